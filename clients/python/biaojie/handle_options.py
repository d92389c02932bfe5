"""What only the Handle protocol asks of a caller: who logs in with what, and how careful the
client is to be. Values; what a caller wrote is checked here, before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from .errors import InvalidIdentifier, InvalidRequest
from .identifier import Identifier
from .keys import PrivateKey, PublicKey, decode_public_key
from .limits import INDEX_MAX
from .record import Reference
from .wire.handle import PORT, KeyExchange

HOPS_MAX: Final = 8
SCHEME: Final = "hdl"


@dataclass(frozen=True, slots=True)
class HandleOptions:
    """How to speak the Handle protocol, where the defaults do not fit.

    `udp`: ask over UDP first where a question fits one datagram; TCP follows where it does not
    answer. `follow_referrals`: go where an answer 302 or 303 points, at most `hops_max` times.

    `certified`: every answer must be signed by the server. Its key is `site_key`, or (without
    it) the one that the server itself gave first: then a forger must have been there from the
    beginning. `site_key` is as in an HS_PUBKEY value, or a key of `biaojie.keys`.

    `session`: a way of key exchange; writes and whatever else logs in then go through an
    encrypted session, set up once and signed by the server as with `certified`. All four ways
    work; DIFFIE_HELLMAN suits every identity, HANDLE_KEY needs an RSA or SM2 key.
    """

    udp: bool = True
    follow_referrals: bool = True
    hops_max: int = HOPS_MAX
    certified: bool = False
    site_key: PublicKey | bytes | None = None
    session: KeyExchange | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.hops_max <= 64:
            raise InvalidRequest("hops_max is 0 to 64.", "hops_max 应为 0 至 64。")
        if self.session is not None and self.session not in set(KeyExchange):
            raise InvalidRequest(
                "session is a KeyExchange, 1 to 4.", "session 应为 KeyExchange（1 至 4）。"
            )
        if isinstance(self.site_key, bytes):
            object.__setattr__(self, "site_key", decode_public_key(self.site_key))

    @property
    def site_keys(self) -> tuple[PublicKey, ...]:
        """The key given, as a tuple of one or none."""
        given = self.site_key
        assert not isinstance(given, bytes)
        return () if given is None else (given,)


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in: the value that holds the key, and a secret or a private key."""

    identity: Reference
    secret: bytes | None = field(default=None, repr=False)
    private_key: PrivateKey | None = field(default=None, repr=False)


def login_of(
    identity: str | None, secret: str | bytes | None, private_key: PrivateKey | bytes | None
) -> Login | None:
    """None where no identity is given. Raises InvalidRequest or InvalidKey.

    `private_key` as octets is a key file in any format that `biaojie.keys.load` reads.
    """
    if identity is None:
        if secret is None and private_key is None:
            return None
        raise InvalidRequest(
            "A secret or a private key needs the identity that it belongs to.",
            "提供口令或私钥时须同时给出 identity。",
        )
    if (secret is None) == (private_key is None):
        raise InvalidRequest(
            "An identity logs in with either a secret or a private key.",
            "identity 须配合 secret 或 private_key 之一登录。",
        )
    if isinstance(secret, str):
        secret = secret.encode()
    if isinstance(private_key, bytes):
        private_key = _loaded(private_key)
    return Login(identity_of(identity), secret, private_key)


def identity_of(text: str) -> Reference:
    """From `300:88.118.8/ADMIN`; raises InvalidRequest."""
    index, colon, handle = text.partition(":")
    try:
        if colon and index.isascii() and index.isdigit() and len(index) < 11:
            number = int(index)
            if number <= INDEX_MAX:
                return Reference(str(Identifier(*handle.partition("/")[::2])), number)
    except InvalidIdentifier:
        pass
    raise InvalidRequest(
        f"An identity is like 300:88.118.8/ADMIN, not {text[:80]!a}.",
        f"identity 形如 300:88.118.8/ADMIN，而不是 {text[:80]!a}。",
    )


def _loaded(data: bytes) -> PrivateKey:
    from .keys import load

    private = load(data).private
    if private is None:
        raise InvalidRequest(
            "private_key is a public key; its private half is needed.",
            "private_key 是公钥，需要的是私钥。",
        )
    return private


def host_and_port(url: str) -> tuple[str, int]:
    """Of `hdl://host[:port]`; raises InvalidRequest."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidRequest(
            "A Handle server's address is like hdl://host:2641, without path, user or query.",
            "Handle 服务器地址形如 hdl://host:2641，不含路径、用户或查询。",
        )
    return host, PORT if port is None else port


def address_of(host: str, port: int) -> str:
    """`hdl://host:port`, with brackets around an IPv6 address."""
    return f"{SCHEME}://[{host}]:{port}" if ":" in host else f"{SCHEME}://{host}:{port}"
