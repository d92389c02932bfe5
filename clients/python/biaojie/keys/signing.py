"""Signatures of the Handle protocol: RSA (PKCS#1 v1.5), DSA, and SM2 as IIIS clients make it.

`verify` answers True or False whatever it is given; a caller never learns why from an exception.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ..wire.handle.version import Version
from . import der, sm2_curve
from .errors import InvalidKey, bad, missing
from .values import (
    DsaPrivateKey,
    DsaPublicKey,
    PrivateKey,
    PublicKey,
    RsaPrivateKey,
    RsaPublicKey,
    Sm2PrivateKey,
    Sm2PublicKey,
    rsa_private,
)

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import dsa, rsa
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
except ImportError:
    raise missing("cryptography") from None

SIGNATURE_OCTETS_MAX: Final = 1_100
DATA_OCTETS_MAX: Final = 1_048_576
_HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "MD5": hashes.MD5,
    "SHA1": hashes.SHA1,
    "SHA256": hashes.SHA256,
    "\1": hashes.MD5,
    "\2": hashes.SHA1,
    "\3": hashes.SHA256,
}
SM3: Final = "SM3"


def default_hash(key: PublicKey | PrivateKey, version: tuple[int, int]) -> str:
    """The hash that clients of a protocol version sign with, as they write it on the wire."""
    if key.kind == "SM2":
        return SM3
    since = (2, 11) if key.kind == "DSA" else (2, 7)
    return "SHA256" if Version(*version).reaches(since) else "SHA1"


def verify(
    public_key: PublicKey, hash_name: str, data: bytes, signature: bytes, user: str = ""
) -> bool:
    """Whether `signature` over `data` was made with the key's private half. Never raises.

    `hash_name` as on the wire: SHA-1, SHA1, SHA-256, SHA256, MD5, SM3 or the one-octet codes
    1 to 3, any case. SM2: `user` is the handle that logs in, its UTF-8 is the SM2 user id; what is
    signed is SM3(data); r ‖ s (64 octets) and DER are both read, with SM3 only.
    """
    if len(signature) > SIGNATURE_OCTETS_MAX or len(data) > DATA_OCTETS_MAX:
        return False
    if isinstance(public_key, Sm2PublicKey):
        return _hash_key(hash_name) == SM3 and _verify_sm2(public_key, data, signature, user)
    algorithm = _HASHES.get(_hash_key(hash_name))
    if algorithm is None:
        return False
    try:
        if isinstance(public_key, RsaPublicKey):
            numbers = rsa.RSAPublicNumbers(public_key.e, public_key.n)
            numbers.public_key().verify(signature, data, PKCS1v15(), algorithm())
        else:
            library_dsa_public_key(public_key).verify(signature, data, algorithm())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def sign(private_key: PrivateKey, hash_name: str, data: bytes, user: str = "") -> bytes:
    """A signature over `data` that `verify` takes: PKCS#1 v1.5 octets (RSA) or DER (DSA, SM2).

    Raises InvalidKey for a hash the key cannot sign with, and MissingLibrary for SM2 without
    `gmssl-pyx`.
    """
    if isinstance(private_key, Sm2PrivateKey):
        if _hash_key(hash_name) != SM3:
            raise bad("An SM2 key signs with SM3.", "SM2 密钥须使用 SM3 签名。")
        return _sign_sm2(private_key, data, user)
    algorithm = _HASHES.get(_hash_key(hash_name))
    if algorithm is None:
        raise bad(
            f"No {private_key.kind} key signs with {hash_name[:20]!r}; use SHA-256.",
            f"{private_key.kind} 密钥不能使用 {hash_name[:20]!r} 签名；请使用 SHA-256。",
        )
    library = library_private_key(private_key)
    try:
        if isinstance(library, rsa.RSAPrivateKey):
            return library.sign(data, PKCS1v15(), algorithm())
        return library.sign(data, algorithm())
    except UnsupportedAlgorithm:
        raise bad(
            f"This machine's OpenSSL refuses to sign with {hash_name[:20]!r}.",
            f"本机 OpenSSL 不允许使用 {hash_name[:20]!r} 签名。",
        ) from None


@lru_cache(maxsize=16)  # the library tests the primes anew each time, some 30 ms
def library_private_key(
    key: RsaPrivateKey | DsaPrivateKey,
) -> rsa.RSAPrivateKey | dsa.DSAPrivateKey:
    """The key as `cryptography` has it; raises InvalidKey."""
    try:
        if isinstance(key, RsaPrivateKey):
            return rsa.RSAPrivateNumbers(
                key.p,
                key.q,
                key.d,
                rsa.rsa_crt_dmp1(key.d, key.p),
                rsa.rsa_crt_dmq1(key.d, key.q),
                rsa.rsa_crt_iqmp(key.p, key.q),
                rsa.RSAPublicNumbers(key.public.e, key.public.n),
            ).private_key()
        return dsa.DSAPrivateNumbers(key.x, _dsa_numbers(key.public)).private_key()
    except ValueError:
        raise InvalidKey("The private key's numbers are wrong.", "私钥数值有误。") from None


def library_dsa_public_key(key: DsaPublicKey) -> dsa.DSAPublicKey:
    """The key as `cryptography` has it; raises ValueError."""
    return _dsa_numbers(key).public_key()


def private_key_of(library: rsa.RSAPrivateKey | dsa.DSAPrivateKey) -> PrivateKey:
    """A key of `cryptography` as ours."""
    if isinstance(library, rsa.RSAPrivateKey):
        numbers = library.private_numbers()
        public = numbers.public_numbers
        return rsa_private(public.n, public.e, numbers.d, numbers.p, numbers.q)
    private = library.private_numbers()
    y, group = private.public_numbers.y, private.public_numbers.parameter_numbers
    return DsaPrivateKey(DsaPublicKey(group.p, group.q, group.g, y), private.x)


def _hash_key(name: str) -> str:
    return name.upper().replace("-", "").replace("_", "")


def _dsa_numbers(key: DsaPublicKey) -> dsa.DSAPublicNumbers:
    return dsa.DSAPublicNumbers(key.y, dsa.DSAParameterNumbers(key.p, key.q, key.g))


def _verify_sm2(key: Sm2PublicKey, data: bytes, signature: bytes, user: str) -> bool:
    user_id = user.encode(errors="replace")
    if len(user_id) > sm2_curve.USER_OCTETS_MAX:
        return False
    digest = sm2_curve.sm3(data)
    return any(
        sm2_curve.verify((key.x, key.y), user_id, digest, r, s) for r, s in _readings(signature)
    )


def _readings(signature: bytes) -> list[tuple[int, int]]:
    """What a signature can mean: r ‖ s, DER, or (64 octets of DER) perhaps either."""
    found = []
    if len(signature) == 64:
        found.append((int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")))
    try:
        outer = der.Reader(signature)
        members = outer.sequence()
        outer.done()
        r, s = members.integer(), members.integer()
        members.done()
        found.append((r, s))
    except InvalidKey:
        pass
    return found


def _sign_sm2(key: Sm2PrivateKey, data: bytes, user: str) -> bytes:
    try:
        import gmssl_pyx
    except ImportError:
        raise missing("gmssl-pyx") from None
    user_id = user.encode(errors="replace")
    if not 1 <= len(user_id) <= sm2_curve.USER_OCTETS_MAX:
        raise bad(
            "An SM2 signature names its user, in at most 8191 octets.",
            "SM2 签名须指明用户标识，且不超过 8191 字节。",
        )
    private, public = key.d.to_bytes(32, "big"), key.public.point[1:]
    signature: bytes = gmssl_pyx.sm2_sign(private, public, sm2_curve.sm3(data), user_id)
    return signature
