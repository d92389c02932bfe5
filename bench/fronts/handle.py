"""The Handle protocol as the generator needs it: resolutions over TCP and UDP."""

from __future__ import annotations

import struct
import time
from typing import Final

from biaojie.wire.handle import (
    ENVELOPE_OCTETS,
    FLAGS_DEFAULT,
    HEADER_OCTETS,
    MESSAGE_OCTETS_MAX,
    Malformed,
    Message,
    OpCode,
    OpFlag,
    Reassembly,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    decode_message,
    encode_message,
    error_of,
)

from ..names import Found
from . import ABSENT, CUT, RECORD, UNREADABLE, Answer

_BODY_AT: Final = ENVELOPE_OCTETS + HEADER_OCTETS
_U32: Final = struct.Struct("!I")
_ID_AND_CODE: Final = struct.Struct("!8xII4x4xI")
"""Of a message: request id, length after the envelope, response code."""
_CODES: Final = {
    int(ResponseCode.SUCCESS): RECORD,
    int(ResponseCode.HANDLE_NOT_FOUND): ABSENT,
    int(ResponseCode.SERVER_BUSY): "over-capacity",
}
_TRUNCATED: Final = 0x20


class _HandleWire:
    def __init__(self) -> None:
        flags = FLAGS_DEFAULT | OpFlag.KEEP_CONNECTION
        self._parts = _parts(flags)
        self._authoritative = _parts(flags | OpFlag.AUTHORITATIVE)

    def question(self, id_: int, name: str, authoritative: bool) -> bytes:
        version, middle, end = self._authoritative if authoritative else self._parts
        handle = name.encode()
        size = len(handle)
        return b"".join(
            (
                version,
                _U32.pack(id_),
                b"\0\0\0\0",
                _U32.pack(HEADER_OCTETS + 16 + size),
                middle,
                _U32.pack(12 + size),
                _U32.pack(size),
                handle,
                end,
            )
        )

    def found(self, body: bytes) -> Found:
        # What is kept of an answer lacks the envelope and header, which are the question's.
        template = Message(
            OpCode.RESOLUTION, ResolveResponse("", ()), int(ResponseCode.SUCCESS), FLAGS_DEFAULT
        )
        head = encode_message(template)[:_BODY_AT]
        credential = 4
        length = _U32.pack(len(body) + HEADER_OCTETS)
        frame = head[:16] + length + head[20:40] + _U32.pack(len(body) - credential) + body
        answer = decode_message(frame).body
        if not isinstance(answer, ResolveResponse):
            raise ValueError("no answer to a resolution")
        return answer.handle, tuple(
            (value.index, value.type, value.data)
            for value in sorted(answer.values, key=lambda value: value.index)
        )


def _parts(flags: int) -> tuple[bytes, bytes, bytes]:
    """The octets of a question around what differs: version and session; the header up to the
    length of its body; what follows the handle."""
    frame = encode_message(Message(OpCode.RESOLUTION, ResolveRequest("H"), flags=flags))
    return frame[:8], frame[20:40], frame[_BODY_AT + 5 :]


def _answer(frame: bytes) -> Answer:
    id_, _, code = _ID_AND_CODE.unpack_from(frame)
    named = _CODES.get(code)
    if named is None:
        named = _named(frame)
    return Answer(id_, named, frame[_BODY_AT:], "")


def _named(frame: bytes) -> str:
    try:
        return error_of(decode_message(frame).response_code).code
    except Malformed:
        return UNREADABLE


class HandleTcpWire(_HandleWire):
    ordered = False

    def greeting(self) -> bytes:
        return b""

    def answers(self, buffer: bytearray) -> list[Answer]:
        answers = []
        start = 0
        end = len(buffer)
        while end - start >= _BODY_AT:
            (length,) = _U32.unpack_from(buffer, start + 16)
            if not HEADER_OCTETS <= length <= MESSAGE_OCTETS_MAX:
                raise ValueError("no Handle message")
            stop = start + ENVELOPE_OCTETS + length
            if end < stop:
                break
            answers.append(_answer(bytes(buffer[start:stop])))
            start = stop
        if start:
            del buffer[:start]
        return answers


class HandleUdpWire(_HandleWire):
    def __init__(self) -> None:
        super().__init__()
        self._reassembly = Reassembly(partial_max=4_096, per_source_max=4_096)

    def answer(self, packet: bytes) -> Answer | None:
        if len(packet) < _BODY_AT:
            return None
        (length,) = _U32.unpack_from(packet, 16)
        if length == len(packet) - ENVELOPE_OCTETS:
            if packet[2] & _TRUNCATED:
                return Answer(_U32.unpack_from(packet, 8)[0], CUT, b"", "")
            return _answer(packet)
        try:
            frame = self._reassembly.take(0, packet, time.monotonic())
        except Malformed:
            return None
        return None if frame is None else _answer(frame)
