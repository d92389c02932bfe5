"""Public keys as JSON, in the form of the Handle REST interface: a JWK with `kty` RSA, DSA (not
registered, but what handle.net writes) or SM2 (IIIS: `d` is the DER SubjectPublicKeyInfo).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from . import structures
from .errors import bad
from .values import DsaPublicKey, PublicKey, RsaPublicKey, Sm2PublicKey

_TEXT_MAX = 4_096


def encode(key: PublicKey) -> dict[str, str]:
    if isinstance(key, RsaPublicKey):
        return {"kty": "RSA", "n": _number(key.n), "e": _number(key.e)}
    if isinstance(key, DsaPublicKey):
        numbers = {name: _number(getattr(key, name)) for name in "ypqg"}
        return {"kty": "DSA", **numbers}
    return {"kty": "SM2", "d": _text(structures.encode_public(key))}


def decode(document: Any) -> PublicKey:
    """From a JSON object; unknown members are ignored. Raises InvalidKey."""
    kind = document.get("kty") if isinstance(document, dict) else None
    match kind.upper() if isinstance(kind, str) else None:
        case "RSA":
            return RsaPublicKey(_read_number(document, "n"), _read_number(document, "e"))
        case "DSA":
            return DsaPublicKey(*(_read_number(document, name) for name in "pqgy"))
        case "SM2":
            raw = _read(document, "d")
            if len(raw) <= 65:
                return Sm2PublicKey.from_point(raw)
            key = structures.decode_public(raw)
            if isinstance(key, Sm2PublicKey):
                return key
    raise bad("`kty` must be RSA, DSA or SM2.", "`kty` 应为 RSA、DSA 或 SM2。")


def _number(number: int) -> str:
    return _text(number.to_bytes(max((number.bit_length() + 7) // 8, 1), "big"))


def _text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _read_number(document: dict[str, Any], name: str) -> int:
    return int.from_bytes(_read(document, name), "big")


def _read(document: dict[str, Any], name: str) -> bytes:
    """Base64, URL-safe or plain, padded or not."""
    text = document.get(name)
    if isinstance(text, str) and 0 < len(text) <= _TEXT_MAX:
        try:
            plain = text.translate(_PLAIN).rstrip("=")
            return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise bad(f"`{name}` must be base64url text.", f"`{name}` 应为 base64url 文本。")


_PLAIN = {ord("-"): "+", ord("_"): "/"}
