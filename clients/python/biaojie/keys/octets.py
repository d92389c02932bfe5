"""Keys in the octets of the Handle system: HS_PUBKEY data, and the private key inside
handle.net's key files. Their frames are read by `biaojie.wire.handle.keys`; here they become
keys that are judged and bounded.

    DSA_PRIV_KEY     x p q g          RSA_PRIV_KEY  n d
    RSA_PRIVCRT_KEY  n e d p q d mod (p-1) d mod (q-1) q^-1 mod p
"""

from __future__ import annotations

from typing import Literal

from ..wire.handle import keys as wire
from ..wire.handle.cursor import Malformed, Reader, block, text
from . import pem, structures
from .errors import InvalidKey, bad
from .values import (
    DhPublicKey,
    DsaPrivateKey,
    DsaPublicKey,
    PrivateKey,
    PublicKey,
    RsaPrivateKey,
    RsaPublicKey,
    Sm2PublicKey,
    rsa_private,
    rsa_private_without_exponent,
)

_NUMBER_OCTETS_MAX = 1_100


def decode_public_key(data: bytes) -> PublicKey:
    """A key from HS_PUBKEY data, in handle.net's octets or as X.509 PEM text (IDIS nodes).

    Raises InvalidKey; SM9 and Diffie-Hellman keys are refused by name.
    """
    key = _read(data)
    match key:
        case wire.RsaKey(e, n):
            return RsaPublicKey(n, e)
        case wire.DsaKey(q, p, g, y):
            return DsaPublicKey(p, q, g, y)
        case wire.Sm2Key(octets):
            return _sm2(octets)
        case wire.PemKey(octets):
            return pem.decode_public(octets)
        case wire.Sm9Key():
            raise bad(
                "SM9 keys cannot be checked here: they need the master key of their issuer."
                " Use RSA or SM2.",
                "此处无法校验 SM9 密钥：需要其签发方的主公钥。请使用 RSA 或 SM2。",
            )
        case wire.DhKey():
            raise bad(
                "A Diffie-Hellman key identifies nobody.", "Diffie-Hellman 密钥不能标识身份。"
            )


def encode_public_key(key: PublicKey, form: Literal["binary", "pem"] = "binary") -> bytes:
    """HS_PUBKEY data: handle.net's octets, or the X.509 PEM text of IDIS nodes."""
    if form == "pem":
        return wire.encode_public_key(wire.PemKey(pem.encode_public(key)))
    if isinstance(key, RsaPublicKey):
        # handle.net leaves four zero octets, and finds a certificate's key by comparing octets
        return wire.encode_public_key(wire.RsaKey(key.e, key.n)) + bytes(4)
    if isinstance(key, DsaPublicKey):
        return wire.encode_public_key(wire.DsaKey(key.q, key.p, key.g, key.y))
    # The national SDK reads DER inside this frame (and writes PEM text, which it cannot read)
    return wire.encode_public_key(wire.Sm2Key(structures.encode_public(key)))


def decode_dh_key(data: bytes) -> DhPublicKey:
    """A peer's Diffie-Hellman value of a session setup; raises InvalidKey."""
    key = _read(data)
    if isinstance(key, wire.DhKey):
        return DhPublicKey(key.p, key.g, key.y)
    raise bad("This is not a Diffie-Hellman key.", "这不是 Diffie-Hellman 密钥。")


def encode_dh_key(key: DhPublicKey) -> bytes:
    return wire.encode_public_key(wire.DhKey(key.y, key.p, key.g))


def decode_private_key(data: bytes) -> PrivateKey:
    """The private key inside a handle.net key file, decrypted; raises InvalidKey."""
    reader = Reader(data)
    try:
        type_ = reader.text("a key type", 64)
        numbers: list[int] = []
        while reader.left and len(numbers) < 9:
            numbers.append(int.from_bytes(reader.block("a number", _NUMBER_OCTETS_MAX), "big"))
        reader.done("the private key")
    except Malformed as fault:
        raise _damaged(fault) from None
    match type_, numbers:
        case "RSA_PRIVCRT_KEY", [n, e, d, p, q, _, _, _]:
            return rsa_private(n, e, d, p, q)
        case "RSA_PRIV_KEY", [n, d]:
            return rsa_private_without_exponent(n, d)
        case "DSA_PRIV_KEY", [x, p, q, g]:
            DsaPublicKey(p, q, g, 2)  # bounds before a power is computed
            if 0 < x < q:
                return DsaPrivateKey(DsaPublicKey(p, q, g, pow(g, x, p)), x)
    raise bad("This is no private key that we know.", "无法识别的私钥结构。")


def encode_private_key(key: PrivateKey) -> bytes:
    """What a handle.net key file holds; SM2 has no such form and is refused."""
    if isinstance(key, RsaPrivateKey):
        p, q, d = key.p, key.q, key.d
        numbers = (key.public.n, key.public.e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p))
        return text("RSA_PRIVCRT_KEY") + b"".join(map(_number, numbers))
    if isinstance(key, DsaPrivateKey):
        group = key.public
        return text("DSA_PRIV_KEY") + b"".join(map(_number, (key.x, group.p, group.q, group.g)))
    raise bad(
        "handle.net's key files have no form for SM2; use PEM.",
        "handle.net 密钥文件格式不支持 SM2；请使用 PEM。",
    )


def _read(data: bytes) -> wire.PublicKey:
    try:
        return wire.decode_public_key(data)
    except Malformed as fault:
        raise _damaged(fault) from None


def _sm2(octets: bytes) -> Sm2PublicKey:
    """From a raw point, DER or PEM text."""
    if octets.startswith(b"-----"):
        key = pem.decode_public(octets)
    elif octets[:1] == b"\x30" and len(octets) > 65:
        key = structures.decode_public(octets)
    else:
        return Sm2PublicKey.from_point(octets)
    if isinstance(key, Sm2PublicKey):
        return key
    raise bad("The key is not an SM2 key, as its frame says.", "密钥内容并非其类型所示的 SM2。")


def _number(number: int) -> bytes:
    return block(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _damaged(fault: Malformed) -> InvalidKey:
    return InvalidKey(
        f"The key's octets are damaged: {fault}.",
        f"密钥字节损坏：第 {fault.offset} 字节处不符合格式。",
    )
