"""Client certificates of the Handle REST interface: self-signed, the subject naming the
identity as `index:handle` in UID (else CN). Who issued them means nothing; the key does.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from . import structures
from .errors import InvalidKey, bad, missing
from .values import PrivateKey, PublicKey, Sm2PrivateKey

try:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    from .signing import library_private_key
except ImportError:
    raise missing("cryptography") from None

CERTIFICATE_OCTETS_MAX = 65_536
DAYS = 3_650
_COMMON_NAME_MAX = 64
_IDENTITY = re.compile(r"(?:(\d{1,10}):)?([^\x00-\x1f]{1,2048})")


@dataclass(frozen=True, slots=True)
class Certificate:
    """`identity` is `index:handle` as the subject says it, or None; nothing is verified."""

    public: PublicKey
    identity: str | None


def decode(data: bytes) -> Certificate:
    """From DER or PEM; raises InvalidKey."""
    if len(data) > CERTIFICATE_OCTETS_MAX:
        raise bad("The certificate is too large.", "证书过大。")
    try:
        with warnings.catch_warnings():  # oddities of old Java certificates are no concern here
            warnings.simplefilter("ignore")
            if b"-----BEGIN" in data[:4096]:
                parsed = x509.load_pem_x509_certificate(data)
            else:
                parsed = x509.load_der_x509_certificate(data)
            subject = parsed.subject
            spki = _public_key_octets(parsed)
    except (ValueError, TypeError, x509.InvalidVersion):
        raise InvalidKey("The certificate is damaged.", "证书损坏。") from None
    return Certificate(structures.decode_public(spki), _identity(subject))


def parse_identity(text: str) -> tuple[int, str]:
    """`index:handle` as its parts; index 0 where there is none. Raises InvalidKey."""
    found = _IDENTITY.fullmatch(text)
    index = int(found[1] or 0) if found else -1
    if found is None or not 0 <= index < 1 << 31 or "/" not in found[2]:
        raise bad(
            f"An identity is index:handle, e.g. 300:88.118.8/ADMIN, not {text[:60]!r}.",
            f"身份格式为 索引:标识，例如 300:88.118.8/ADMIN，而不是 {text[:60]!r}。",
        )
    return index, found[2]


def self_signed(
    key: PrivateKey, identity: str, now: datetime | None = None, days: int = DAYS
) -> bytes:
    """A PEM certificate by which pyhandle and other REST clients log in as `identity`
    (`index:handle`). Not for SM2, which their TLS does not speak. Raises InvalidKey."""
    parse_identity(identity)
    if isinstance(key, Sm2PrivateKey):
        raise bad(
            "TLS client certificates of the Handle REST interface are RSA or DSA, not SM2.",
            "Handle REST 接口的 TLS 客户端证书使用 RSA 或 DSA，不支持 SM2。",
        )
    since = (now or datetime.now(UTC)) - timedelta(hours=1)
    names = [x509.NameAttribute(NameOID.USER_ID, identity)]
    if len(identity) <= _COMMON_NAME_MAX:  # the standard's limit; UID alone is enough
        names.insert(0, x509.NameAttribute(NameOID.COMMON_NAME, identity))
    subject = x509.Name(names)
    private = library_private_key(key)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=days))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(private, SHA256())
    )
    return built.public_bytes(Encoding.PEM)


def _public_key_octets(parsed: x509.Certificate) -> bytes:
    """SubjectPublicKeyInfo. Where the library does not know the algorithm (SM2), it is cut out
    of the certificate: the seventh member of a version 3 one."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (UnsupportedAlgorithm, ValueError):
        from . import der

        reader = der.Reader(parsed.tbs_certificate_bytes).sequence()
        if reader.peek() == der.CONTEXT_0:
            reader.take(der.CONTEXT_0)
        reader.take(der.INTEGER)
        for _ in range(4):  # signature algorithm, issuer, validity, subject
            reader.take(der.SEQUENCE)
        return der.sequence(reader.take(der.SEQUENCE))


def _identity(subject: x509.Name) -> str | None:
    for name in (NameOID.USER_ID, NameOID.COMMON_NAME):
        for attribute in subject.get_attributes_for_oid(name):
            value = attribute.value
            if isinstance(value, str) and "/" in value and _IDENTITY.fullmatch(value):
                return value
    return None
