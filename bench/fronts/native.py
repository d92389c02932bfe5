"""The native protocol as the generator needs it: a hello, then resolutions."""

from __future__ import annotations

from typing import Any, Final

from biaojie.limits import FRAME_OCTETS_MAX
from biaojie.wire.native.frames import HEAD, HEAD_OCTETS, VERSION, Kind, encode_frame
from biaojie.wire.native.shapes import pack, unpack_answer
from biaojie.wire.native.values import decode_record

from ..names import Found
from . import RECORD, UNREADABLE, Answer

_LEAD: Final = 11
"""Octets of an answer before its source: array head, age and ttl as uint32 each."""
_SOURCES: Final = ("cache", "store", "stale")


class NativeWire:
    ordered = False

    def greeting(self) -> bytes:
        return encode_frame(0, Kind.HELLO, pack([VERSION, VERSION, None, "biaojie-bench"]))

    def question(self, id_: int, name: str, authoritative: bool) -> bytes:
        body = pack([name, [], [], True] if authoritative else [name])
        return HEAD.pack(len(body) + 5, id_, Kind.RESOLVE) + body

    def answers(self, buffer: bytearray) -> list[Answer]:
        answers = []
        start = 0
        end = len(buffer)
        while end - start >= HEAD_OCTETS:
            length, id_, kind = HEAD.unpack_from(buffer, start)
            if not 6 <= length <= FRAME_OCTETS_MAX:
                raise ValueError("no native frame")
            stop = start + 4 + length
            if end < stop:
                break
            body = bytes(buffer[start + HEAD_OCTETS : stop])
            start = stop
            if kind == Kind.ANSWER:
                if id_ and len(body) > _LEAD:
                    number = body[_LEAD]
                    source = _SOURCES[number] if number < len(_SOURCES) else ""
                    answers.append(Answer(id_, RECORD, body[_LEAD + 1 :], source))
                else:
                    answers.append(Answer(id_, RECORD, b"", ""))
            else:
                answers.append(Answer(id_, _code(body), body, ""))
        if start:
            del buffer[:start]
        return answers

    def found(self, body: bytes) -> Found:
        record = decode_record(unpack_answer(body))
        return str(record.identifier), tuple(
            (value.index, value.type, value.data) for value in record.values
        )


def _code(body: bytes) -> str:
    error: Any = unpack_answer(body)
    if isinstance(error, tuple) and error and isinstance(error[0], str):
        return error[0]
    return UNREADABLE
