"""Errors as RFC 9457 problem documents, and the HTTP status of every error code. Sans I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import (
    ERRORS,
    BiaojieError,
    DeadlineExceeded,
    MalformedAnswer,
    TemporarilyUnavailable,
    TooManyRequests,
    Unreachable,
)

HTTP_STATUS: dict[str, int] = {
    "invalid-identifier": 400,
    "invalid-record": 400,
    "invalid-request": 400,
    "invalid-file": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "prefix-suspended": 403,
    "value-read-only": 403,
    "not-found": 404,
    "identifier-not-found": 404,
    "prefix-not-here": 404,
    "value-not-found": 404,
    "method-not-allowed": 405,
    "request-timeout": 408,
    "identifier-taken": 409,
    "value-taken": 409,
    "prefix-taken": 409,
    "range-taken": 409,
    "record-frozen": 409,
    "idempotency-running": 409,
    "identifier-retired": 410,
    "version-mismatch": 412,
    "too-large": 413,
    "elsewhere": 421,
    "unsupported-media-type": 415,
    "idempotency-mismatch": 422,
    "batch-rejected": 422,
    "too-many-requests": 429,
    "internal": 500,
    "tampered-log": 500,
    "malformed-answer": 502,
    "unreachable": 502,
    "over-capacity": 503,
    "temporarily-unavailable": 503,
    "deadline-exceeded": 504,
    "storage-full": 507,
}
"""HTTP status of each error code."""
assert HTTP_STATUS.keys() == ERRORS.keys(), HTTP_STATUS.keys() ^ ERRORS.keys()

PROBLEM_TYPE = "urn:biaojie:error:"


def encode_error(error: BiaojieError, *, chinese: bool = False) -> dict[str, Any]:
    """Problem JSON. `title`, `detail` and `advice` follow the reader's language; the English
    and Chinese detail are both present as `detail_en` and `detail_zh`. A field of the error
    never replaces a member of the same name."""
    pick = 1 if chinese else 0
    return {
        **error.fields,
        "type": PROBLEM_TYPE + error.code,
        "title": error.title[pick],
        "status": HTTP_STATUS[error.code],
        "code": error.code,
        "detail": error.detail[pick],
        "detail_en": error.detail.en,
        "detail_zh": error.detail.zh,
        "advice": error.advice[pick],
        "request_id": error.request_id,
    }


_PROBLEM_MEMBERS = frozenset(
    ("type", "title", "status", "code", "detail", "detail_en", "detail_zh", "advice", "request_id")
)


# What a status means when something between us and the node says it. A 404 is not here:
# only the node itself may say that an identifier does not exist.
_FOREIGN_STATUS: dict[int, type[BiaojieError]] = {
    429: TooManyRequests,
    502: Unreachable,
    503: TemporarilyUnavailable,
    504: DeadlineExceeded,
}


def decode_error(document: object, status: int) -> BiaojieError:
    """The error a problem document stands for; total, whatever the document is."""
    code = document.get("code") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or not isinstance(code, str) or code not in ERRORS:
        return _FOREIGN_STATUS.get(status, MalformedAnswer)(
            f"HTTP {status} without a problem document.", f"HTTP {status}，且没有错误说明。"
        )
    en, zh, request_id = (
        text if isinstance(text := document.get(name), str) else ""
        for name in ("detail_en", "detail_zh", "request_id")
    )
    extra = {
        name: item
        for name, item in document.items()
        if isinstance(name, str) and name not in _PROBLEM_MEMBERS
    }
    return ERRORS[code](en, zh, request_id=request_id, **extra)
