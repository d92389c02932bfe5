"""SESSION_SETUP and SESSION_EXCHANGE_KEY: how client and node come to one session key.

A session proves nothing by itself: whoever claims an identity in it is challenged once, and the
MACs that follow are under a key that only the two know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from biaojie import keys
from biaojie.errors import OverCapacity
from biaojie.record import Reference, fold_type
from biaojie.wire.handle import (
    Cipher,
    Done,
    KeyExchange,
    KeyRequest,
    ResponseCode,
    SessionKey,
    SessionRequest,
    SessionResponse,
    Version,
    answer_version,
)

from .asked import Answered, Asked, identity_of, refused
from .identity import Authenticator
from .nodekey import NodeKey
from .sessions import Sessions

AT_ONCE: Final = 2
WAITING_MAX: Final = 128
"""A key exchange takes some milliseconds of one core."""
P = ParamSpec("P")
T = TypeVar("T")


class KeyExchanges:
    def __init__(
        self, sessions: Sessions, authenticator: Authenticator, *, case_sensitive: bool = False
    ) -> None:
        self._sessions = sessions
        self._authenticator = authenticator
        self._case_sensitive = case_sensitive
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def set_up(self, asked: Asked, node_key: NodeKey) -> Answered:
        """A new session. Its number is the node's to choose, unless the client did so on a TCP
        connection, where it is then tied to that. Raises OverCapacity, TooManyRequests."""
        request, body = asked.request, asked.request.body
        assert isinstance(body, SessionRequest)
        version = answer_version(request.suggested)
        try:
            key, data = await self._agree(body, version, node_key)
        except keys.InvalidKey as error:
            raise refused(ResponseCode.SESSION_FAILED, *error.detail) from None
        scope, number = None, 0
        if asked.peer.scope is not None and request.session_id and not _ours(asked):
            scope, number = asked.peer.scope, request.session_id
        session = self._sessions.open(scope, number, asked.peer.address, version, body.timeout_s)
        session.key = key
        session.identity = identity_of(body.identity, case_sensitive=self._case_sensitive)
        return Answered(SessionResponse(body.mode, data), session_id=session.number)

    async def exchange(self, asked: Asked, node_key: NodeKey) -> Answered:
        """Mode 2, second half: the client's key, for ours."""
        body, session = asked.request.body, asked.session
        assert isinstance(body, KeyRequest)
        if session is None or session.key is not None:
            raise refused(
                ResponseCode.SESSION_FAILED,
                "No key exchange was begun in this session.",
                "此会话未开始密钥交换。",
            )
        encrypted, private, version = body.encrypted_key, node_key.private, session.version
        try:
            session.key = await self._compute(keys.unwrap, private, encrypted, version)
        except keys.InvalidKey:
            # Not told: who sends octets of their own making would learn of our key from it. A
            # client that made a mistake finds that its MACs are not right.
            session.key = keys.new_session_key()
        return Answered(Done())

    async def _agree(
        self, body: SessionRequest, version: Version, node_key: NodeKey
    ) -> tuple[SessionKey | None, bytes]:
        """The session key, None if it is yet to come, and what the client is told of it."""
        match body.mode:
            case KeyExchange.CLIENT_KEY:
                return await self._wrapped(keys.decode_public_key(body.public_key), version)
            case KeyExchange.SERVER_KEY:
                return None, node_key.octets
            case KeyExchange.HANDLE_KEY:
                assert body.key is not None
                return await self._wrapped(await self._key_at(body.key), version)
            case KeyExchange.DIFFIE_HELLMAN:
                return await self._compute(_diffie_hellman, body.public_key, version)
        raise keys.InvalidKey(
            f"There is no key exchange mode {body.mode}.", f"没有密钥交换模式 {body.mode}。"
        )

    async def _wrapped(self, public: keys.PublicKey, version: Version) -> tuple[SessionKey, bytes]:
        key = keys.new_session_key(_cipher(public, version))
        return key, await self._compute(keys.wrap, public, key, version)

    async def _key_at(self, reference: Reference) -> keys.PublicKey:
        identity = identity_of(reference, case_sensitive=self._case_sensitive)
        value = await self._authenticator.key_value(identity) if identity else None
        if value is None or fold_type(value.type) != "HS_PUBKEY":
            raise keys.InvalidKey(
                "There is no public key at the handle for the key exchange.",
                "用于密钥交换的标识处没有公钥。",
            )
        return keys.decode_public_key(value.data)

    async def _compute(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In a thread, few at a time. Raises OverCapacity."""
        if self._waiting >= WAITING_MAX:
            raise OverCapacity()
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(function, *args, **kwargs)
        finally:
            self._waiting -= 1


def _ours(asked: Asked) -> bool:
    """Whether the message is in a session whose number the node gave: clients that renew one."""
    return asked.session is not None and asked.session.scope is None


def _cipher(public: keys.PublicKey, version: Version) -> Cipher:
    if isinstance(public, keys.Sm2PublicKey):
        return Cipher.SM4
    return Cipher.AES if version.reaches((2, 2)) else Cipher.DES


def _diffie_hellman(offer: bytes, version: Version) -> tuple[SessionKey, bytes]:
    peer = keys.decode_dh_key(offer)
    own = keys.DiffieHellman(peer)
    cipher = Cipher.AES if version.reaches((2, 4)) else Cipher.DES
    return own.agree(peer, cipher), own.reply(cipher, version)
