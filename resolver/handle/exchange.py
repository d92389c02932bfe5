"""One request and its answer: octets to a request, an answer or error to messages, messages to
octets. What it knows of the protocol is how answers are framed; what they say is the
operations' business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from biaojie.errors import BiaojieError, Forbidden, InvalidRequest, TooLarge, Unauthenticated
from biaojie.keys import InvalidKey
from biaojie.wire.handle import (
    ENVELOPE_OCTETS,
    Digest,
    Failure,
    Malformed,
    Message,
    OpCode,
    OpFlag,
    Oversized,
    ResponseCode,
    answer_to,
    answer_version,
    decode_envelope,
    decode_message,
    encode_message,
    refusal,
    response_code_of,
    with_mac,
)
from biaojie.wire.handle.message import digest_algorithm

from .asked import Answered, Asked, refused
from .nodekey import NodeKey
from .peer import Peer
from .proving import Proving, session_lost
from .sessions import Sessions

EXPIRES_S: Final = 43_200
"""How long an answer holds at least where it is no record: as long as clients ask for."""
EXPIRES_MAX_S: Final = 172_800
EXPIRES_MIN_S: Final = 3_600
"""Clients whose clock is ahead of ours take an answer for expired; they may be by this much."""
MESSAGE_CHARS_MAX: Final = 300
_UNSEALED: Final = frozenset({OpCode.SESSION_SETUP, OpCode.SESSION_EXCHANGE_KEY})
"""The key is not known to both before their answer has arrived."""


class Exchange:
    """The codec of one request (see `resolver.exchange.serve`): it decodes a frame to Asked and
    encodes Answered, or an error, to the first message of the answer.

    `asked` is what is being answered; after a challenge that is the request that was challenged.
    """

    def __init__(
        self,
        frame: bytes,
        peer: Peer,
        sessions: Sessions,
        proving: Proving,
        site_serial: Callable[[], int],
    ) -> None:
        self.front = f"handle-{peer.transport}"
        self.operation = "malformed"
        self.asked: Asked | None = None
        self._frame = frame
        self._peer = peer
        self._sessions = sessions
        self._proving = proving
        self._site_serial = site_serial
        self._answer_request: Message | None = None

    def decode(self, data: bytes) -> Asked:
        """Raises InvalidRequest for octets that are no message, what `session_lost` gives for a
        sealed message of no session."""
        try:
            envelope = decode_envelope(data)
            session = self._sessions.find(self._peer.scope, envelope.session_id)
            if not envelope.encrypted:
                request = decode_message(data, envelope=envelope)
            elif session is None or session.key is None:
                raise session_lost()
            else:
                self.operation = "sealed"
                request = _unsealed(data, session.unseal)
        except Malformed as error:
            raise InvalidRequest(f"malformed: {error}", f"报文格式错误：{error}") from None
        if not request.is_request:
            raise InvalidRequest("This is a response.", "这是响应报文。")
        self.operation = operation_of(request.opcode)
        self.asked = Asked(request, self._peer, session=session, sealed=envelope.encrypted)
        return self.asked

    def answer_instead(self, asked: Asked) -> Asked:
        """The answer to a challenge makes the request that was challenged be answered: as it
        would have been, but in the name of the message that proved who sent it."""
        assert self.asked is not None
        proving = self.asked.request
        keep = OpFlag.REQUEST_DIGEST | OpFlag.CERTIFY | OpFlag.ENCRYPT
        flags = asked.request.flags & ~keep | proving.flags & keep
        request = replace(asked.request, request_id=proving.request_id, flags=flags)
        self._answer_request = proving
        self.asked = replace(asked, request=request, sealed=self.asked.sealed)
        return self.asked

    # Answers ------------------------------------------------------------------------------

    def encode(self, data: bytes, answer: Answered) -> Message:
        if answer.more is not None:
            answer = replace(answer, flags=answer.flags | OpFlag.CONTINUOUS)
        return self._message(answer)

    def encode_error(self, data: bytes, error: BiaojieError) -> Message | bytes | None:
        """Total. A challenge where nobody in particular asked for what needs somebody."""
        asked = self.asked
        code = error.fields.get("response_code")
        if asked is None:
            code = ResponseCode.PROTOCOL_ERROR if code is None else code
            return refusal(data, code, error.detail.en)
        nobody = asked.caller.is_public or asked.request.opcode == OpCode.LOGIN
        if code is None and isinstance(error, Unauthenticated) and nobody:
            challenge, digest, number = self._proving.challenge(asked)
            answer = Answered(challenge, ResponseCode.AUTHENTICATION_NEEDED, session_id=number)
            return self._message(answer, digest)
        return self._message(Answered(*failure_of(error)))

    def _message(self, answer: Answered, digest: Digest | None = None) -> Message:
        assert self.asked is not None
        request = self.asked.request
        proving = self._answer_request
        if digest is None and proving is not None and proving.has(OpFlag.REQUEST_DIGEST):
            algorithm = digest_algorithm(answer_version(proving.suggested))
            digest = Digest.of(proving.header_and_body(), algorithm)
        return answer_to(
            request,
            answer.body,
            answer.code,
            flags=answer.flags | (OpFlag.AUTHORITATIVE if answer.fresh else 0),
            session_id=answer.session_id,
            site_serial=self._site_serial(),
            expiration=expiration_of(answer.ttl_s, request.expiration, int(time.time())),
            digest=digest,
        )

    async def finished(self, message: Message, node_key: NodeKey) -> bytes:
        """The frame of an answer: signed or under the session's MAC where that was asked for,
        sealed where the request was. Raises OverCapacity."""
        asked = self.asked
        assert asked is not None
        session = asked.session if message.opcode not in _UNSEALED else None
        key = session.key if session is not None else None
        if message.has(OpFlag.CERTIFY):
            if session is not None and key is not None:
                message = with_mac(message, key.octets, session.next_counter())
            else:
                message = await node_key.signed(message)
        wanted = asked.sealed or message.has(OpFlag.ENCRYPT)
        seal = session.seal if session is not None and key is not None and wanted else None
        try:
            return encode_message(message, seal)
        except Oversized:
            shorter = self.encode_error(self._frame, too_long())
            assert isinstance(shorter, Message)
            return encode_message(shorter, seal)


def failure_of(error: BiaojieError) -> tuple[Failure, int]:
    """What a client is told of an error, and its response code."""
    code = error.fields.get("response_code")
    indexes = (index,) if isinstance(index := error.fields.get("index"), int) else ()
    text = error.detail.en
    if isinstance(error, Forbidden):
        text = "Your HS_ADMIN rights do not include this."
    failure = Failure(text[:MESSAGE_CHARS_MAX], indexes)
    return failure, response_code_of(error) if code is None else code


def expiration_of(ttl_s: int | None, wanted: int, now: int) -> int:
    """Until when an answer holds that may be relied on for `ttl_s`; without it one is no record,
    and holds as long as the client wants, within limits."""
    if ttl_s is None:
        return min(max(wanted, now + EXPIRES_S), now + EXPIRES_MAX_S)
    return now + max(ttl_s, EXPIRES_MIN_S)


def too_long() -> TooLarge:
    return TooLarge(
        "The answer is longer than a message can be; ask for fewer values.",
        "结果超过报文长度上限，请减少所查询的值。",
    )


def _unsealed(data: bytes, unseal: Callable[[bytes], bytes]) -> Message:
    """Whatever is wrong with a sealed message, it is refused alike."""
    try:
        return decode_message(data, unseal)
    except (Malformed, InvalidKey):
        raise refused(
            ResponseCode.SESSION_FAILED,
            "The message was not sealed in this session.",
            "报文未按此会话加密。",
        ) from None


def is_response(frame: bytes) -> bool:
    """Whether a frame is plainly no request; answering it could go on for ever."""
    if len(frame) < ENVELOPE_OCTETS + 8 or frame[2] & 0x40:
        return False
    return frame[ENVELOPE_OCTETS + 4 : ENVELOPE_OCTETS + 8] != bytes(4)


def operation_of(opcode: int) -> str:
    """For metrics and logs; numbers that nobody defined are not counted one by one."""
    try:
        return OpCode(opcode).name.lower().replace("_", "-")
    except ValueError:
        return "unknown"
