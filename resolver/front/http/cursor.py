"""Cursors: where a page of a list ends, as text that may stand in a URL."""

from __future__ import annotations

import base64

from biaojie.errors import InvalidRequest


def cursor_text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode()


def cursor_octets(text: str) -> bytes:
    """Raises ValueError where `cursor_text` did not write it."""
    return base64.b64decode(text, altchars=b"-_", validate=True)


def not_a_cursor() -> InvalidRequest:
    return InvalidRequest(
        "after: not a cursor; pass `next` of the page before.",
        "after：不是有效游标；请传入上一页的 `next`。",
        errors=[{"path": "query.after", "message": "not a cursor"}],
    )
