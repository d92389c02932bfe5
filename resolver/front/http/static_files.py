"""The fixed files pages need: a style sheet and an icon, read once from the package.

Nothing is looked up on disk by a name from outside, so no name can lead out of the table.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from types import MappingProxyType

_CONTENT_TYPES = {
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def _read(name: str) -> tuple[bytes, str, str]:
    body = (files("resolver.front.http") / "static" / name).read_bytes()
    return body, _CONTENT_TYPES[name], f'"{hashlib.sha256(body).hexdigest()[:16]}"'


_FILES = MappingProxyType({name: _read(name) for name in _CONTENT_TYPES})

STATIC_NAMES = tuple(_FILES)
"""Every name `static_file` knows; each is served at `/static/<name>`."""


def static_file(name: str) -> tuple[bytes, str, str] | None:
    """(body, Content-Type, quoted strong ETag) of a file of the table, else None."""
    return _FILES.get(name)


def static_url(name: str) -> str:
    """Path with the version in the query, so that it may be cached for good."""
    return f"/static/{name}?v={_FILES[name][2].strip(chr(34))}"
