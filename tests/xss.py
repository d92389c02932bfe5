"""Texts that would run a script, load something or change a page, if a page let them.

Those that run call `xss()` or a dialog, those that load name `evil.invalid`.
"""

from __future__ import annotations

import json
from pathlib import Path

from biaojie.errors import InvalidIdentifier
from biaojie.identifier import Identifier, Key

PAYLOADS: tuple[str, ...] = tuple(
    json.loads(line)
    for line in Path(__file__).with_suffix(".jsonl").read_text(encoding="ascii").splitlines()
)
assert len(PAYLOADS) >= 200


def _identifiers(prefix: str) -> tuple[Identifier, ...]:
    found: dict[Key, Identifier] = {}
    for payload in PAYLOADS:
        try:
            identifier = Identifier(prefix, payload)
        except InvalidIdentifier:
            continue  # a control character or a space in front, refused at the door
        found.setdefault(identifier.key(), identifier)
    return tuple(found.values())


IDENTIFIERS = _identifiers("88.118.8")
assert len(IDENTIFIERS) >= 180, len(IDENTIFIERS)
