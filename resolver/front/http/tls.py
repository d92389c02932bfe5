"""TLS that asks clients for a certificate and takes any, whoever issued it: the handshake proves
that the client has the certificate's key, and whose key that is the registry says.

Python's own `ssl` turns away certificates without a known issuer, so OpenSSL is asked directly;
what is here looks like `ssl` to the event loop.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakSet

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from .tls_client import CannotServeTls

CERTIFICATE_FILE: Final = "tls-certificate.pem"
KEY_FILE: Final = "tls-key.pem"
SELF_SIGNED_DAYS: Final = 825
HANDSHAKES_MAX: Final = 1_000
"""Connections that have begun a handshake and not ended it; beyond, new ones are cut."""
_OUT_OCTETS: Final = 65_536
T = TypeVar("T")


class TlsContext(ssl.SSLContext):
    """For `create_server(ssl=…)`: TLS 1.2 and later, no resumption, no renegotiation."""

    _context: SSL.Context
    _shaking: WeakSet[TlsObject]

    def wrap_bio(  # type: ignore[override]
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> TlsObject:
        if len(self._shaking) >= HANDSHAKES_MAX:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "too many handshakes at a time")
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        begun = TlsObject(self, connection, incoming, outgoing)
        self._shaking.add(begun)
        return begun

    def done(self, handshake: TlsObject) -> None:
        self._shaking.discard(handshake)


def tls_context(certificate: Path, key: Path) -> TlsContext:
    """Raises CannotServeTls."""
    inner = SSL.Context(SSL.TLS_SERVER_METHOD)
    try:
        inner.use_certificate_chain_file(str(certificate))
        inner.use_privatekey_file(str(key))
        inner.check_privatekey()
    except (SSL.Error, OSError, ValueError) as error:
        raise CannotServeTls(
            f"{certificate} and {key} are no certificate and key for TLS ({error})."
            f" {certificate} 与 {key} 不是可用的 TLS 证书和密钥。"
        ) from None
    inner.set_min_proto_version(SSL.TLS1_2_VERSION)
    inner.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    inner.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    inner.set_verify(SSL.VERIFY_PEER, lambda *_: True)  # any issuer; possession is still proved
    context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
    context._context = inner
    context._shaking = WeakSet()
    return context


class TlsObject:
    """One connection, as the event loop uses `ssl.SSLObject`. `certificate` (DER) is the
    client's, empty before the handshake is over and where there is none."""

    server_side = True
    server_hostname = None

    def __init__(
        self,
        context: TlsContext,
        connection: SSL.Connection,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self.context = context
        self.certificate = b""
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._unread = False

    def do_handshake(self) -> None:
        self._do(self._connection.do_handshake)
        self.context.done(self)
        found = self._connection.get_peer_certificate(as_cryptography=True)
        if found is not None:
            self.certificate = found.public_bytes(serialization.Encoding.DER)

    def read(self, octets: int = 1024, buffer: Any = None) -> Any:
        """Empty (0 into a buffer) when the client has said that it is done."""
        try:
            if buffer is None:
                return self._do(lambda: self._connection.recv(octets))
            return self._do(lambda: self._connection.recv_into(buffer, octets or len(buffer)))
        except ssl.SSLZeroReturnError:
            return b"" if buffer is None else 0

    def write(self, data: Any) -> int:
        return self._do(lambda: self._connection.send(bytes(data)))

    def unwrap(self) -> None:
        if not self._do(self._connection.shutdown):
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the client is not done")

    def pending(self) -> int:
        """The loop reads again only if there is something: octets that OpenSSL was given and
        has perhaps not read count as one."""
        return self._connection.pending() or int(self._unread)

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Not in the form of `ssl`, which only has those it has verified."""
        return self.certificate if binary_form else {}

    def cipher(self) -> tuple[str, str, int] | None:
        name = self._connection.get_cipher_name()
        if name is None:
            return None
        version = self._connection.get_cipher_version() or ""
        return name, version, self._connection.get_cipher_bits() or 0

    def compression(self) -> None:
        return None

    def version(self) -> str:
        return self._connection.get_protocol_version_name()

    def _do(self, step: Callable[[], T]) -> T:
        if data := self._incoming.read():
            self._connection.bio_write(data)
            self._unread = True
        try:
            return step()
        except SSL.WantReadError:
            self._unread = False
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "more is to come") from None
        except SSL.WantWriteError:
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "more is to go") from None
        except SSL.ZeroReturnError:
            raise ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "the client is done") from None
        except SSL.Error as error:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, str(error)) from None
        finally:
            self._flush()

    def _flush(self) -> None:
        try:
            while True:
                self._outgoing.write(self._connection.bio_read(_OUT_OCTETS))
        except SSL.Error:  # nothing left
            return


def self_signed(data_dir: Path, name: str, hosts: tuple[str, ...]) -> tuple[Path, Path]:
    """Certificate and key of the data folder, made if they are not there yet."""
    certificate, key = data_dir / CERTIFICATE_FILE, data_dir / KEY_FILE
    if certificate.exists() and key.exists():
        return certificate, key
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    since = datetime.now(UTC) - timedelta(hours=1)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general(h) for h in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, SHA256())
    )
    pem = serialization.Encoding.PEM
    octets = private.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key.unlink(missing_ok=True)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(octets)
    certificate.write_bytes(built.public_bytes(pem))
    return certificate, key


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
