"""Keys in the ASN.1 structures of the rest of the world, DER: X.509 SubjectPublicKeyInfo,
PKCS#8 PrivateKeyInfo, PKCS#1, OpenSSL's DSA form and SEC 1. `decode_*` raise InvalidKey.
"""

from __future__ import annotations

from . import der
from .errors import InvalidKey, bad
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

RSA_ID = "1.2.840.113549.1.1.1"
DSA_ID = "1.2.840.10040.4.1"
EC_ID = "1.2.840.10045.2.1"
SM2_ID = "1.2.156.10197.1.301"


def encode_public(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo."""
    if isinstance(key, RsaPublicKey):
        return der.sequence(_algorithm(key), der.bits(encode_rsa_public(key)))
    if isinstance(key, DsaPublicKey):
        return der.sequence(_algorithm(key), der.bits(der.integer(key.y)))
    return der.sequence(_algorithm(key), der.bits(key.point))


def encode_rsa_public(key: RsaPublicKey) -> bytes:
    """PKCS#1 RSAPublicKey."""
    return der.sequence(der.integer(key.n), der.integer(key.e))


def decode_public(data: bytes) -> PublicKey:
    """From SubjectPublicKeyInfo or PKCS#1 RSAPublicKey."""
    outer = der.Reader(data)
    reader = outer.sequence()
    outer.done()
    if reader.peek() == der.INTEGER:
        return _rsa_public(reader)
    kind, parameters = _read_algorithm(reader)
    raw = reader.bits()
    reader.done()
    if kind == RSA_ID:
        inner = der.Reader(raw)
        members = inner.sequence()
        inner.done()
        return _rsa_public(members)
    if kind == DSA_ID:
        p, q, g = _dsa_parameters(parameters)
        inner = der.Reader(raw)
        y = inner.integer()
        inner.done()
        return DsaPublicKey(p, q, g, y)
    if kind == EC_ID:
        _need_sm2_curve(parameters)
    elif kind != SM2_ID:
        raise _unknown(kind)
    return Sm2PublicKey.from_point(raw)


def encode_private(key: PrivateKey) -> bytes:
    """PKCS#8 PrivateKeyInfo, unencrypted."""
    if isinstance(key, RsaPrivateKey):
        inner = encode_rsa_private(key)
    elif isinstance(key, DsaPrivateKey):
        inner = der.integer(key.x)
    else:
        inner = der.sequence(
            der.integer(1),
            der.octets(key.d.to_bytes(32, "big")),
            der.element(der.CONTEXT_1, der.bits(key.public.point)),
        )
    return der.sequence(der.integer(0), _algorithm(key.public), der.octets(inner))


def encode_rsa_private(key: RsaPrivateKey) -> bytes:
    """PKCS#1 RSAPrivateKey."""
    p, q, d = key.p, key.q, key.d
    numbers = (0, key.public.n, key.public.e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p))
    return der.sequence(*map(der.integer, numbers))


def decode_private(data: bytes) -> PrivateKey:
    """From unencrypted PKCS#8, PKCS#1, OpenSSL's DSA form or SEC 1."""
    outer = der.Reader(data)
    reader = outer.sequence()
    outer.done()
    version = reader.integer()
    tag = reader.peek()
    if tag == der.SEQUENCE:
        return _pkcs8(reader)
    if tag == der.OCTET_STRING and version == 1:
        return _sec1(reader, b"")
    return _numbers(reader)


def _numbers(reader: der.Reader) -> PrivateKey:
    """The members after the version: PKCS#1, or OpenSSL's DSA form."""
    numbers: list[int] = []
    while reader.left and len(numbers) < 9:
        numbers.append(reader.integer())
    reader.done()
    if len(numbers) == 8:
        n, e, d, p, q = numbers[:5]
        return rsa_private(n, e, d, p, q)
    if len(numbers) == 5:
        p, q, g, y, x = numbers
        return DsaPrivateKey(DsaPublicKey(p, q, g, y), x)
    raise bad("This is no private key that we know.", "无法识别的私钥结构。")


def _pkcs8(reader: der.Reader) -> PrivateKey:
    kind, parameters = _read_algorithm(reader)
    inner = reader.take(der.OCTET_STRING)  # attributes may follow; they say nothing we need
    if kind == RSA_ID:
        outer = der.Reader(inner)
        members = outer.sequence()
        outer.done()
        members.integer()
        key = _numbers(members)
        if isinstance(key, RsaPrivateKey):
            return key
    elif kind == DSA_ID:
        p, q, g = _dsa_parameters(parameters)
        number = der.Reader(inner)
        x = number.integer()
        number.done()
        # y follows from x; the bounds of p are checked before the power is computed
        DsaPublicKey(p, q, g, 2)
        if 0 < x < q:
            return DsaPrivateKey(DsaPublicKey(p, q, g, pow(g, x, p)), x)
    elif kind in (EC_ID, SM2_ID):
        outer = der.Reader(inner)
        members = outer.sequence()
        outer.done()
        if members.integer() == 1:
            return _sec1(members, parameters)
    else:
        raise _unknown(kind)
    raise bad("The private key does not match its own type.", "私钥内容与其类型不符。")


def _sec1(reader: der.Reader, parameters: bytes) -> Sm2PrivateKey:
    """The members of an ECPrivateKey after its version; `parameters` name the curve where the
    structure itself does not."""
    raw = reader.take(der.OCTET_STRING)
    if reader.peek() == der.CONTEXT_0:
        parameters = reader.take(der.CONTEXT_0)
    _need_sm2_curve(parameters)
    if not 1 <= len(raw) <= 32:
        raise bad("The SM2 private number is out of range.", "SM2 私钥数值超出范围。")
    d = int.from_bytes(raw, "big")
    if reader.peek() == der.CONTEXT_1:
        inner = der.Reader(reader.take(der.CONTEXT_1))
        return Sm2PrivateKey(Sm2PublicKey.from_point(inner.bits()), d)
    return Sm2PrivateKey.from_number(d)


def _algorithm(key: PublicKey) -> bytes:
    if isinstance(key, RsaPublicKey):
        return der.sequence(der.object_id(RSA_ID), der.null())
    if isinstance(key, DsaPublicKey):
        numbers = der.sequence(*map(der.integer, (key.p, key.q, key.g)))
        return der.sequence(der.object_id(DSA_ID), numbers)
    return der.sequence(der.object_id(EC_ID), der.object_id(SM2_ID))


def _read_algorithm(reader: der.Reader) -> tuple[str, bytes]:
    """The algorithm's object identifier and its parameters as they stand."""
    inner = reader.sequence()
    kind = inner.object_id()
    return kind, inner.data[inner.at :]


def _rsa_public(reader: der.Reader) -> RsaPublicKey:
    n, e = reader.integer(), reader.integer()
    reader.done()
    return RsaPublicKey(n, e)


def _dsa_parameters(parameters: bytes) -> tuple[int, int, int]:
    reader = der.Reader(parameters).sequence()
    p, q, g = reader.integer(), reader.integer(), reader.integer()
    reader.done()
    return p, q, g


def _need_sm2_curve(parameters: bytes) -> None:
    reader = der.Reader(parameters)
    if reader.peek() != der.OBJECT or reader.object_id() != SM2_ID:
        raise bad(
            "Of elliptic curves only SM2 is used in the Handle system.",
            "Handle 体系中的椭圆曲线密钥仅支持 SM2。",
        )


def _unknown(kind: str) -> InvalidKey:
    return InvalidKey(
        f"Keys of algorithm {kind} are not used in the Handle system; use RSA, DSA or SM2.",
        f"Handle 体系不使用算法 {kind} 的密钥；请使用 RSA、DSA 或 SM2。",
    )
