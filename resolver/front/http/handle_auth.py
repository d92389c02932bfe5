"""Who asks over the Handle REST interface: Basic, TLS client certificate, Handle session, or one
of our own keys as Bearer.

Passwords and sessions are taken over TLS only, or from this machine itself: what arrives over
plain HTTP from elsewhere counts as not sent. Sessions: a client is given a session and a nonce,
signs the nonce and one of its own, and from then on names the session alone.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from biaojie import keys
from biaojie.errors import BiaojieError, InvalidRequest, Unauthenticated
from registry.admission import PUBLIC, Caller

from ...handle.identity import Authenticator, key_digest
from ...service import Service
from .endpoint import Asked

OPEN_S: Final = 60.0
"""How long a session waits for its proof; the nonce of a proved one lasts as long as it does."""
IDLE_S: Final = 600.0
LIFE_S: Final = 86_400.0
OPEN_MAX: Final = 20_000
PROVED_MAX: Final = 10_000
HEADER_CHARS_MAX: Final = 8_192
ITERATIONS_MAX: Final = 100_000
_PARAMETER = re.compile(r'\s*([A-Za-z]{1,32})\s*=\s*(?:"([^"]*)"|([^\s",]*))\s*(?:,|$)')


@dataclass(slots=True)
class RestSession:
    """`proved` is who, with the SHA-256 of the key value that proved it."""

    id: str
    nonce: bytes
    since: float
    used: float
    proved: tuple[Caller, bytes] | None = None

    def renew(self) -> None:
        self.nonce = secrets.token_bytes(16)


class RestSessions:
    """Bounded both ways: sessions that nobody has proved never push out those that were."""

    def __init__(
        self,
        *,
        open_max: int = OPEN_MAX,
        proved_max: int = PROVED_MAX,
        idle_s: float = IDLE_S,
        home: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`home` is what the ids of sessions begin with."""
        self._home = home
        self._open: OrderedDict[str, RestSession] = OrderedDict()
        self._proved: OrderedDict[str, RestSession] = OrderedDict()
        self._open_max = open_max
        self._proved_max = proved_max
        self._idle_s = idle_s
        self._clock = clock

    def __len__(self) -> int:
        return len(self._open) + len(self._proved)

    def begin(self) -> RestSession:
        now = self._clock()
        session = RestSession(
            self._home + secrets.token_urlsafe(18), secrets.token_bytes(16), now, now
        )
        self._open[session.id] = session
        while len(self._open) > self._open_max:
            self._open.popitem(last=False)
        return session

    def find(self, id_: str) -> RestSession | None:
        session = self._proved.get(id_) or self._open.get(id_)
        if session is None:
            return None
        now = self._clock()
        idle_s = OPEN_S if session.proved is None else self._idle_s
        if now - session.used > idle_s or now - session.since > LIFE_S:
            self.end(id_)
            return None
        if session.proved is not None:
            session.used = now
            self._proved.move_to_end(id_)
        return session

    def prove(self, session: RestSession, caller: Caller, digest: bytes) -> None:
        self.end(session.id)
        session.proved = caller, digest
        session.used = self._clock()
        self._proved[session.id] = session
        while len(self._proved) > self._proved_max:
            self._proved.popitem(last=False)

    def end(self, id_: str) -> None:
        self._open.pop(id_, None)
        self._proved.pop(id_, None)


class SessionsElsewhere(Protocol):
    """Sessions that other workers of this node keep; each method says what RestAuthentication
    would say there. Without such a session (any more): Unauthenticated, None, nothing."""

    def is_elsewhere(self, id_: str) -> bool: ...
    async def prove(self, given: Mapping[str, str], peer: str) -> Caller: ...
    async def find(self, id_: str) -> RestSession | None: ...
    async def end(self, id_: str) -> None: ...


class RestAuthentication:
    """`caller` says who asks; `challenge` what a 401 tells those who have not proved it."""

    def __init__(
        self,
        service: Service,
        authenticator: Authenticator,
        *,
        requires_tls: bool = True,
        home: str = "",
    ) -> None:
        """`home` is what the ids of sessions that are kept here begin with."""
        self._service = service
        self._authenticator = authenticator
        self._requires_tls = requires_tls
        self.sessions = RestSessions(home=home)
        self.elsewhere: SessionsElsewhere | None = None

    def safe(self, asked: Asked) -> bool:
        """Whether a password may be sent this way."""
        return asked.tls or not self._requires_tls or is_loopback(asked.peer)

    def challenge(self) -> tuple[str, ...]:
        session = self.sessions.begin()
        nonce = base64.b64encode(session.nonce).decode()
        return ('Basic realm="handle"', f'Handle sessionId="{session.id}", nonce="{nonce}"')

    async def caller(self, asked: Asked) -> Caller:
        """PUBLIC where nothing was sent, or not safely. Raises Unauthenticated,
        TooManyRequests, TemporarilyUnavailable; InvalidRequest for a header in no known form."""
        header = asked.headers.get("authorization")
        if header is None:
            return PUBLIC
        scheme, _, rest = header[:HEADER_CHARS_MAX].partition(" ")
        match scheme.lower():
            case "bearer":
                return await self._service.authenticate(asked.key, asked.peer)
            case "basic" if self.safe(asked):
                return await self._basic(rest, asked.peer)
            case "handle" if self.safe(asked):
                parameters = _parameters(rest)
                if parameters.get("clientcert", "").lower() == "true":
                    return await self._certificate(asked)
                named = parameters.get("sessionid", "")
                if self.elsewhere is not None and self.elsewhere.is_elsewhere(named):
                    return await self.elsewhere.prove(parameters, asked.peer)
                return await self.prove(parameters, asked.peer)
            case "basic" | "handle":
                return PUBLIC
        raise Unauthenticated("No such authentication scheme.", "不支持该认证方式。")

    async def session_of(self, asked: Asked) -> RestSession | None:
        """The session that the request names; whether it is proved is another matter."""
        scheme, _, rest = asked.headers.get("authorization", "")[:HEADER_CHARS_MAX].partition(" ")
        named = _parameters(rest).get("sessionid", "") if scheme.lower() == "handle" else ""
        if self.elsewhere is not None and self.elsewhere.is_elsewhere(named):
            return await self.elsewhere.find(named)
        return self.sessions.find(named)

    async def end(self, session: RestSession) -> None:
        if self.elsewhere is not None and self.elsewhere.is_elsewhere(session.id):
            await self.elsewhere.end(session.id)
        self.sessions.end(session.id)

    # The schemes ------------------------------------------------------------------------

    async def _basic(self, text: str, peer: str) -> Caller:
        user, colon, password = _octets(text.strip()).partition(b":")
        if not colon:
            raise _malformed()
        try:
            name = unquote_to_bytes(user).decode()
            identity = self._authenticator.identity(name)
        except (UnicodeError, InvalidRequest):
            raise Unauthenticated(
                "The user is an index and a handle, such as 300%3A88.118.8/ADMIN.",
                "用户名应为 索引:标识 并经百分号编码，例如 300%3A88.118.8/ADMIN。",
            ) from None
        return (await self._authenticator.by_password(identity, password, peer)).caller

    async def _certificate(self, asked: Asked) -> Caller:
        if not asked.certificate:
            raise Unauthenticated(
                "The TLS connection has no client certificate.", "TLS 连接未提供客户端证书。"
            )
        try:
            certificate = keys.decode_certificate(asked.certificate)
        except keys.InvalidKey as error:
            raise Unauthenticated(error.detail.en, error.detail.zh) from None
        if certificate.identity is None:
            raise Unauthenticated(
                "The certificate's subject names no identity (UID or CN) such as"
                " 300:88.118.8/ADMIN.",
                "证书主体未在 UID 或 CN 中给出身份，例如 300:88.118.8/ADMIN。",
            )
        try:
            identity = self._authenticator.identity(certificate.identity)
        except InvalidRequest as error:
            raise Unauthenticated(error.detail.en, error.detail.zh) from None
        public = certificate.public
        return (await self._authenticator.by_certificate(identity, public, asked.peer)).caller

    async def prove(self, given: Mapping[str, str], peer: str) -> Caller:
        """Who asks in a session kept here; `given` is what the header says. PUBLIC where it has
        not been proved. Raises as `caller`."""
        session = self.sessions.find(given.get("sessionid", ""))
        if session is None:
            raise Unauthenticated("There is no such session.", "没有该会话。")
        if "signature" not in given:
            if session.proved is None:
                return PUBLIC
            return await self._still(session)
        server_nonce, client_nonce = session.nonce, _octets(given.get("cnonce", ""))
        session.renew()  # each nonce is good for one proof, whatever comes of it
        identity = self._authenticator.identity(given.get("id", ""))
        signature = _octets(given["signature"])
        algorithm = given.get("alg", "SHA256")
        kind = given.get("type", "HS_PUBKEY").upper()
        if kind == "HS_PUBKEY":
            proof = await self._authenticator.by_signed_nonces(
                identity, algorithm, server_nonce + client_nonce, signature, peer
            )
        elif kind == "HS_SECKEY":
            answer = _secret_answer(algorithm, signature, given)
            proof = await self._authenticator.by_secret(
                identity, answer, server_nonce, client_nonce, peer
            )
        else:
            raise Unauthenticated("type: HS_PUBKEY or HS_SECKEY.", "type：HS_PUBKEY 或 HS_SECKEY。")
        self.sessions.prove(session, proof.caller, proof.digest)
        return proof.caller

    async def _still(self, session: RestSession) -> Caller:
        """Who proved the session, as long as the key that proved it is in force."""
        assert session.proved is not None
        caller, digest = session.proved
        if await self._digest(caller) != digest:
            self.sessions.end(session.id)
            raise Unauthenticated(
                "The key of this session is no longer in force.", "该会话的密钥已失效。"
            )
        return caller

    async def _digest(self, caller: Caller) -> bytes:
        assert caller.handle is not None
        value = await self._authenticator.key_value(caller.handle)
        return key_digest(value) if value is not None else b""


def is_loopback(peer: str) -> bool:
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _malformed() -> BiaojieError:
    return InvalidRequest(
        "The Authorization header is malformed.", "Authorization 头格式错误。", errors=[]
    )


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise _malformed() from None


def _parameters(text: str) -> dict[str, str]:
    """`name="value", …` by lower-case name; raises InvalidRequest."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text.rstrip()):
        match = _PARAMETER.match(text, at)
        if match is None:
            raise _malformed()
        found[match[1].lower()] = match[2] if match[2] is not None else match[3]
        at = match.end()
    return found


_MAC_CODES: Final = {"MD5": 1, "SHA1": 2, "SHA256": 3, "HMACSHA1": 0x12, "HMACSHA256": 0x13}


def _secret_answer(algorithm: str, mac: bytes, given: Mapping[str, str]) -> bytes:
    """The octets that the wire protocol has for the same proof with a secret key."""
    name = re.sub(r"[-_]", "", algorithm).upper()
    if name.startswith("PBKDF2"):
        try:
            iterations, bits = int(given["iterations"]), int(given["length"])
        except (KeyError, ValueError):
            raise _malformed() from None
        if not (1 <= iterations <= ITERATIONS_MAX and 8 <= bits <= 4_096):
            raise _malformed()
        salt = _octets(given.get("salt", ""))
        sized = (len(salt).to_bytes(4, "big"), salt, iterations.to_bytes(4, "big"))
        return b"".join(
            (b"\x22", *sized, bits.to_bytes(4, "big"), len(mac).to_bytes(4, "big"), mac)
        )
    code = _MAC_CODES.get(name)
    if code is None:
        raise Unauthenticated(f"No such algorithm: {algorithm[:40]}.", "不支持该算法。")
    return bytes([code]) + mac
