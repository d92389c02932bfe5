"""HTTP/1.1 as the generator needs it: GET on kept connections, answers with a Content-Length."""

from __future__ import annotations

import json
from typing import Final

from biaojie.identifier import Identifier
from biaojie.wire.document import decode_record

from ..names import Found
from . import RECORD, UNREADABLE, Answer

_HEAD_OCTETS_MAX: Final = 65_536
_BODY_OCTETS_MAX: Final = 8 * 2**20
_PATH: Final = "/api/v1/identifiers/"


class HttpWire:
    ordered = True

    def __init__(self, host: str, path: str = "") -> None:
        self._start = f"GET {path.rstrip('/')}{_PATH}".encode()
        head = f" HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n\r\n".encode()
        self._end = head
        self._auth_end = b"?auth=1" + head

    def greeting(self) -> bytes:
        return b""

    def question(self, id_: int, name: str, authoritative: bool) -> bytes:
        # Names of the bench need no escapes; those of a list may.
        path = name if _plain(name) else Identifier.parse(name).url_path()
        return self._start + path.encode() + (self._auth_end if authoritative else self._end)

    def answers(self, buffer: bytearray) -> list[Answer]:
        answers = []
        start = 0
        while True:
            end = buffer.find(b"\r\n\r\n", start)
            if end < 0:
                if len(buffer) - start > _HEAD_OCTETS_MAX:
                    raise ValueError("no end of the head")
                break
            head = bytes(buffer[start:end])
            if not head.startswith(b"HTTP/1.1 "):
                raise ValueError("no HTTP/1.1")
            stop = end + 4 + _length(head)
            if len(buffer) < stop:
                break
            body = bytes(buffer[end + 4 : stop])
            if head.startswith(b"200 ", 9):
                answers.append(Answer(None, RECORD, body, _source(head)))
            else:
                answers.append(Answer(None, _code(body), body, ""))
            start = stop
        if start:
            del buffer[:start]
        return answers

    def found(self, body: bytes) -> Found:
        record = decode_record(json.loads(body))
        return str(record.identifier), tuple(
            (value.index, value.type, value.data) for value in record.values
        )


def _plain(name: str) -> bool:
    return name.isascii() and name.replace("/", "").replace("-", "").replace(".", "").isalnum()


def _length(head: bytes) -> int:
    at = head.find(b"\r\nContent-Length: ")
    if at < 0:
        at = head.lower().find(b"\r\ncontent-length: ")
        if at < 0:
            raise ValueError("no Content-Length")
    start = at + 18
    end = head.find(b"\r\n", start)
    length = int(head[start:] if end < 0 else head[start:end])
    if not 0 <= length <= _BODY_OCTETS_MAX:
        raise ValueError("Content-Length out of range")
    return length


def _source(head: bytes) -> str:
    at = head.find(b"\r\nBiaojie-Source: ")
    if at < 0:
        return ""
    return head[at + 18 : at + 23].decode("latin-1").rstrip("\r\n")


def _code(body: bytes) -> str:
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError):
        return UNREADABLE
    return code if isinstance(code, str) else UNREADABLE
