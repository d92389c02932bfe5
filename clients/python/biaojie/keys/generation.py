"""New key pairs."""

from __future__ import annotations

import secrets

from . import sm2_curve
from .errors import bad, missing
from .values import PrivateKey, Sm2PrivateKey

BITS_DEFAULT = {"rsa": 2048, "dsa": 2048, "sm2": 256}
_BITS = {"rsa": (2048, 3072, 4096), "dsa": (2048, 3072), "sm2": (256,)}


def generate(kind: str, bits: int | None = None) -> PrivateKey:
    """A new key: `kind` rsa, dsa or sm2; `bits` 2048 to 4096 (rsa), 2048 or 3072 (dsa).

    Raises InvalidKey, or MissingLibrary without `cryptography` (rsa, dsa). A 3072-bit DSA key
    can take a minute.
    """
    kind = kind.lower()
    size = bits or BITS_DEFAULT.get(kind, 0)
    if size not in _BITS.get(kind, ()):
        raise bad(
            "A new key is rsa with 2048, 3072 or 4096 bits, dsa with 2048 or 3072, or sm2.",
            "新密钥可为 rsa（2048、3072、4096 位）、dsa（2048、3072 位）或 sm2。",
        )
    if kind == "sm2":
        # 1 to n - 2, as the standard wants it
        return Sm2PrivateKey.from_number(1 + secrets.randbelow(sm2_curve.N - 2))
    try:
        from cryptography.hazmat.primitives.asymmetric import dsa, rsa

        from .signing import private_key_of
    except ImportError:
        raise missing("cryptography") from None
    if kind == "rsa":
        return private_key_of(rsa.generate_private_key(65537, size))
    return private_key_of(dsa.generate_private_key(size))
