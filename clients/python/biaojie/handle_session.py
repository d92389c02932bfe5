"""Encrypted sessions with a Handle server: set up once, then every message has a MAC and is
encrypted. `biaojie.keys.session` has the ciphers; here is who says what when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from .errors import InvalidRequest, MalformedAnswer
from .handle_options import Login
from .keys import DsaPrivateKey, InvalidKey, PrivateKey, decode_public_key, encode_public_key
from .wire.handle import (
    Body,
    Envelope,
    KeyExchange,
    KeyRequest,
    Message,
    OpCode,
    OpFlag,
    SessionKey,
    SessionRequest,
    SessionResponse,
    Version,
    encode_message,
    mac_matches,
    with_mac,
)

LIFE_S: Final = 3_600
"""Asked for; a session is given up a minute before."""
_MARGIN_S: Final = 60
_CLIENT_KEY_BITS: Final = 2_048

Send = Callable[[int, Body, int], Awaitable[Message]]
"""Sends an operation and its body under a session id (0: none) and gives the successful answer,
whose signature has been checked."""


@dataclass(slots=True)
class Session:
    """`until` in the loop's time. `proven`: a challenge has been answered in it, so the server
    knows who we are; until then `proving` lets in one question at a time, because a session
    has but one challenge."""

    id: int
    key: SessionKey
    version: Version
    until: float
    proven: bool = False
    counter: int = 0
    proving: asyncio.Lock = field(default_factory=asyncio.Lock)

    def seal(self, message: Message) -> tuple[Message, bytes]:
        """The message as it goes out in this session, and its frame."""
        from .keys import encrypt_message

        self.counter += 1
        ours = replace(
            message,
            session_id=self.id,
            version=self.version,
            flags=message.flags | OpFlag.CERTIFY | OpFlag.ENCRYPT,
        )
        ours = with_mac(ours, self.key.octets, self.counter)
        frame = encode_message(ours, lambda data: encrypt_message(self.key, self.version, data))
        return ours, frame

    def unseal(self, envelope: Envelope, payload: bytes) -> bytes:
        """What an encrypted answer holds; raises Undecryptable."""
        from .keys import decrypt_message

        return decrypt_message(self.key, envelope.version, payload)

    def check(self, message: Message) -> None:
        """Raises MalformedAnswer unless the answer has this session's MAC."""
        if message.session_id != self.id or not mac_matches(message, self.key.octets):
            raise MalformedAnswer(
                "The answer lacks the session's MAC; somebody else may have sent it.",
                "答复缺少会话校验码，可能并非来自该服务器。",
            )


async def set_up(mode: KeyExchange, login: Login, send: Send, now: float) -> Session:
    """A session with whoever answers `send`. Raises InvalidRequest, InvalidKey or Undecryptable
    where this way of key exchange does not suit the key, MalformedAnswer where the server's part
    of it is wrong, and what `send` raises. `now` is the loop's time."""
    from . import keys

    request = SessionRequest(mode, LIFE_S, login.identity)
    private: PrivateKey | None = None
    ours: keys.DiffieHellman | None = None
    if mode is KeyExchange.DIFFIE_HELLMAN:
        ours = keys.DiffieHellman()
        request = replace(request, public_key=ours.offer())
    elif mode is KeyExchange.CLIENT_KEY:
        private = await asyncio.to_thread(keys.generate, "RSA", _CLIENT_KEY_BITS)
        request = replace(request, public_key=encode_public_key(private.public))
    elif mode is KeyExchange.HANDLE_KEY:
        private = login.private_key
        if private is None or isinstance(private, DsaPrivateKey):
            raise InvalidRequest(
                "A session by HANDLE_KEY needs an identity with an RSA or SM2 private key.",
                "HANDLE_KEY 会话需要使用 RSA 或 SM2 私钥的身份。",
            )
        request = replace(request, key=login.identity)
    answer = await send(OpCode.SESSION_SETUP, request, 0)
    body = answer.body
    if not isinstance(body, SessionResponse) or body.mode != mode or not answer.session_id:
        raise MalformedAnswer(
            "The server set up another kind of session.", "服务器建立了不同类型的会话。"
        )
    try:
        if ours is not None:
            cipher, theirs = keys.read_reply(body.data, answer.version)
            key = ours.agree(theirs, cipher)
        elif private is not None:
            key = keys.unwrap(private, body.data, answer.version)
        else:
            key = keys.new_session_key()
            wrapped = keys.wrap(decode_public_key(body.data), key, answer.version)
            await send(OpCode.SESSION_EXCHANGE_KEY, KeyRequest(wrapped), answer.session_id)
    except InvalidKey as error:
        raise MalformedAnswer(
            f"The session key cannot be had: {error.detail.en}",
            f"无法取得会话密钥：{error.detail.zh}",
        ) from None
    return Session(answer.session_id, key, answer.version, now + LIFE_S - _MARGIN_S)
