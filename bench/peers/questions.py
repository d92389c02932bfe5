"""Files of questions for the drivers: each front's own octets over the same names."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from biaojie.change import Action
from biaojie.record import Value
from biaojie.wire.native.frames import VERSION, Kind, encode_frame
from biaojie.wire.native.request_bodies import encode_request
from biaojie.wire.native.requests import Operation, Write
from biaojie.wire.native.shapes import pack

from ..fronts.handle import HandleTcpWire
from ..fronts.http import HttpWire
from ..fronts.native import NativeWire
from ..names import VALUE_INDEX, VALUE_TYPE, Names, OwnNames
from ..programs import write_messages
from ..words import BenchFault
from .work import http_get

HOST: Final = "127.0.0.1"
_ANSWER_S: Final = 10.0
_ANSWER_OCTETS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Questions:
    """Files of messages, and the first question itself."""

    requests: Path
    needles: Path | None
    first: bytes
    hello: Path | None = None


class Writer:
    """Writes files into one folder, each with a name of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def file(self, messages: Iterable[bytes]) -> Path:
        self._count += 1
        file = self._folder / f"messages-{self._count}"
        write_messages(file, messages)
        return file

    def of(
        self,
        question: Callable[[int], bytes],
        count: int,
        needles: Path | None = None,
        hello: bytes = b"",
    ) -> Questions:
        return Questions(
            self.file(question(number) for number in range(count)),
            needles,
            question(0),
            self.file([hello]) if hello else None,
        )

    def data(self, names: Names) -> Path:
        """The needle of each name: what its record holds and no other."""
        return self.file(names.data(number, 0) for number in range(names.count))


class Named(Protocol):
    def name(self, number: int) -> str: ...


def http(names: Named) -> Callable[[int], bytes]:
    wire = HttpWire(HOST)
    return lambda number: wire.question(0, names.name(number), False)


def rest(names: Named) -> Callable[[int], bytes]:
    return lambda number: http_get(f"/api/handles/{names.name(number)}", HOST)


def handle(names: Named) -> Callable[[int], bytes]:
    wire = HandleTcpWire()  # over UDP the octets are the same
    return lambda number: wire.question(1, names.name(number), False)


def native(names: Named) -> Callable[[int], bytes]:
    wire = NativeWire()
    return lambda number: wire.question(1, names.name(number), False)


def native_hello(key: str | None = None) -> bytes:
    return encode_frame(0, Kind.HELLO, pack([VERSION, VERSION, key, "biaojie-bench"]))


def native_create(names: OwnNames) -> Callable[[int], bytes]:
    def question(number: int) -> bytes:
        value = Value(VALUE_INDEX, VALUE_TYPE, names.data(number, 0))
        write = Write(Operation(Action.CREATE, names.name(number), (value,)))
        kind, body = encode_request(write)
        return encode_frame(1, kind, body)

    return question


def answer_octets(port: int, question: bytes, greeting: bytes = b"") -> int:
    """How long a server's answer is; of HTTP, its body."""
    with socket.create_connection((HOST, port), timeout=_ANSWER_S) as connection:
        if greeting:
            connection.sendall(greeting)
            _read(connection, _native_octets)
        connection.sendall(question)
        is_http = question.startswith(b"GET ")
        return _read(connection, _http_octets if is_http else _binary_octets(question))


def _read(connection: socket.socket, octets: Callable[[bytes], tuple[int, int] | None]) -> int:
    """`octets` gives the size of the whole answer and of what is asked for, once it can."""
    got = b""
    while len(got) < _ANSWER_OCTETS:
        sizes = octets(got)
        if sizes is not None and len(got) >= sizes[0]:
            return sizes[1]
        some = connection.recv(_ANSWER_OCTETS)
        if not some:
            break
        got += some
    raise BenchFault("A server hung up or answered too much.", "服务器断开连接或应答过长。")


def _http_octets(got: bytes) -> tuple[int, int] | None:
    head, end, _ = got.partition(b"\r\n\r\n")
    if not end:
        return None
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            body = int(line.partition(b":")[2])
            return len(head) + 4 + body, body
    raise BenchFault("An HTTP answer without Content-Length.", "HTTP 应答缺少 Content-Length。")


def _native_octets(got: bytes) -> tuple[int, int] | None:
    size = 4 + int.from_bytes(got[:4], "big")
    return (size, size) if len(got) >= 4 else None


def _handle_octets(got: bytes) -> tuple[int, int] | None:
    size = 20 + int.from_bytes(got[16:20], "big")
    return (size, size) if len(got) >= 20 else None


def _binary_octets(question: bytes) -> Callable[[bytes], tuple[int, int] | None]:
    # A Handle envelope begins with the protocol's version, a native frame with a length < 2^24.
    return _handle_octets if question[0] else _native_octets
