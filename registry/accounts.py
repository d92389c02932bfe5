"""API keys: made here, shown once, kept only as a SHA-256.

A key is `bj_<id>_<secret>`: the id (8 characters) may be shown and logged, the secret is 256
random bits in base64url. Look-up is by the digest of the whole text, so there is nothing to
compare in a way that could leak timing.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from biaojie.account import Role

from .operations import IssueKey

KEY_PATTERN = re.compile(r"bj_([a-z0-9]{8})_([A-Za-z0-9_-]{43})", re.ASCII)
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # no look-alikes: ids are read aloud


def new_key(
    tenant: str, role: Role, label: str = "", *, first: bool = False
) -> tuple[str, IssueKey]:
    """A fresh secret key and the operation that registers its digest."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    key = f"bj_{key_id}_{secrets.token_urlsafe(32)}"
    return key, IssueKey(key_id, digest(key), tenant, role, label, first)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
