"""Which frame is the answer to what was asked. Pure.

It has the question's number, is about the same operation, names the question by its digest,
and where the server is to sign, is signed. Anything else is no answer, whoever sent it. A
refusal that says nothing of any identifier (handle_proof.UNREAD) needs neither digest nor
signature: a server makes those also of what it could not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from .errors import MalformedAnswer
from .handle_proof import UNREAD, check_signature
from .handle_session import Session
from .keys import PublicKey, Undecryptable
from .wire.handle import (
    ENVELOPE_OCTETS,
    Failure,
    Malformed,
    Message,
    OpCode,
    decode_envelope,
    decode_payload,
)

_OPCODE_OCTETS: Final = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """`opcode` is what was asked for in the first place, also when a challenge was answered
    since; `said` are headers and bodies of all that was sent for it. `keys` is None where the
    server need not sign."""

    request_id: int
    opcode: int
    said: Sequence[bytes]
    session: Session | None = None
    keys: Sequence[PublicKey] | None = None


def read_answer(frame: bytes, asked: Asked) -> Message:
    """The answer in a frame; raises MalformedAnswer where it is none."""
    try:
        message, plain = _decoded(frame, asked)
    except Malformed as fault:
        raise MalformedAnswer(
            f"The answer is not the Handle protocol: {fault}.", f"答复不符合 Handle 协议：{fault}。"
        ) from None
    except Undecryptable:
        raise _none("it does not decrypt", "无法解密") from None
    unread = isinstance(message.body, Failure) and message.response_code in UNREAD
    if message.is_request:
        raise _none("it is a request", "它是请求")
    if message.request_id != asked.request_id and not (unread and message.request_id == 0):
        raise _none("it answers another request", "它答复的是另一请求")
    if message.opcode != asked.opcode and not isinstance(message.body, Failure):
        raise _none(f"it is about operation {message.opcode}", f"操作码为 {message.opcode}")
    if message.digest is None:
        if not unread:
            raise _none("it lacks the request's digest", "缺少请求摘要")
    elif not any(message.digest.matches(said) for said in asked.said):
        raise _none("it has the digest of another request", "请求摘要不符")
    if asked.session is not None:
        if not (plain and unread):
            asked.session.check(message)
    elif asked.keys is not None:
        check_signature(message, asked.keys)
    return message


def _decoded(frame: bytes, asked: Asked) -> tuple[Message, bool]:
    """The message, and whether it came unencrypted. Some servers answer a proof under its own
    operation and others under that of the question; either way it is the question's answer."""
    envelope = decode_envelope(frame)
    payload = frame[ENVELOPE_OCTETS:]
    if envelope.length != len(payload) or envelope.compressed:
        raise Malformed(16, f"a message of {len(payload)} octets, not compressed")
    if envelope.encrypted:
        if asked.session is None:
            raise Malformed(2, "an unencrypted message outside a session")
        payload = asked.session.unseal(envelope, payload)
    message = decode_payload(envelope, payload)
    if message.opcode == OpCode.CHALLENGE_RESPONSE and not isinstance(message.body, Failure):
        told = asked.opcode.to_bytes(_OPCODE_OCTETS, "big") + payload[_OPCODE_OCTETS:]
        message = replace(decode_payload(envelope, told), received=message.received)
    return message, not envelope.encrypted


def _none(en: str, zh: str) -> MalformedAnswer:
    return MalformedAnswer(f"This is no answer to the request: {en}.", f"并非本请求的答复：{zh}。")
