"""Clients of every front that ask a node while its workers are replaced."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from biaojie import Client, SyncClient
from biaojie.wire.handle import (
    ResolveResponse,
    ResponseCode,
    StreamFraming,
    decode_message,
    encode_message,
)
from tests.handle_talk import resolve
from tests.system.wire import Wire, request

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

KINDS = 8
"""Of clients, by what they ask and how."""
NAMES = [f"88.118.8/N{number}" for number in range(20)]
ANSWER_S = 10.0
JOIN_S = 30.0


class Load:
    """Clients that ask, with `pause_s` between their requests, each in a thread; `failures` are
    requests that got no answer, or another than they should."""

    def __init__(self, node: RunningNode, pause_s: float = 0.0) -> None:
        self.node = node
        self.pause_s = pause_s
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Load:
        handle = (self.tcp, self.tcp_each, self.udp, self.udp)
        native = (self.native, self.native, self.native_many, self.native_writes)
        clients = (self.http, self.http, self.writes, *handle, *native)
        for number, client in enumerate(clients):
            thread = threading.Thread(target=self._run, args=(client, number), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()

    def _run(self, client: Callable[[int], Generator[None, None, None]], number: int) -> None:
        kind = client.__name__
        steps = client(number)
        while not self._stop.is_set() and len(self.failures) < 20:
            try:
                next(steps)
                self.answered[kind] += 1
                time.sleep(self.pause_s)
            except Exception as error:
                self.failures.append(f"{kind} {self.answered[kind]}: {error!r}")
                steps = client(number)
        steps.close()

    def http(self, number: int) -> Generator[None, None, None]:
        """Keeps its connection as long as the node does."""
        wire = Wire(self.node.port, timeout_s=ANSWER_S)
        while True:
            for name in NAMES:
                if ended(wire.socket):
                    wire = Wire(self.node.port, timeout_s=ANSWER_S)
                answer = wire.ask("GET", f"/api/v1/identifiers/{name}")
                assert answer.status == 200, answer
                if answer.headers.get("connection", "").lower() == "close":
                    wire = Wire(self.node.port, timeout_s=ANSWER_S)
                yield

    def writes(self, number: int) -> Generator[None, None, None]:
        wire = Wire(self.node.port, timeout_s=ANSWER_S)
        key = {"Authorization": f"Bearer {self.node.key}", "Content-Type": "application/json"}
        at = time.monotonic_ns()
        while True:
            at += 1
            if ended(wire.socket):
                wire = Wire(self.node.port, timeout_s=ANSWER_S)
            target = f"/api/v1/identifiers/88.118.8/W{at}"
            wire.send(request("PUT", target, key, b'{"values":[]}'))
            answer = wire.answer()
            assert answer.status == 201, answer
            if answer.headers.get("connection", "").lower() == "close":
                wire = Wire(self.node.port, timeout_s=ANSWER_S)
            yield

    def tcp(self, number: int) -> Generator[None, None, None]:
        """Keeps its connection as long as the node does."""
        line = self._line()
        while True:
            for name in NAMES:
                if ended(line):
                    line.close()
                    line = self._line()
                found(asked(line, name), name)
                yield

    def tcp_each(self, number: int) -> Generator[None, None, None]:
        while True:
            for name in NAMES:
                with self._line() as line:
                    time.sleep(0.002)  # taken, and nothing said yet
                    found(asked(line, name), name)
                yield

    def udp(self, number: int) -> Generator[None, None, None]:
        """One datagram each; none is sent again."""
        with socket.socket(type=socket.SOCK_DGRAM) as line:
            line.settimeout(ANSWER_S)
            line.connect(("127.0.0.1", self.node.handle_port))
            while True:
                for name in NAMES:
                    question = encode_message(resolve(name))
                    line.send(question)
                    while (answer := line.recv(65_536))[8:12] != question[8:12]:
                        pass
                    found(answer, name)
                    yield

    # The library's client asks again by itself where a connection ended without an answer.

    def native(self, number: int) -> Generator[None, None, None]:
        with SyncClient(self.node.native_url, timeout_s=ANSWER_S) as client:
            while True:
                for name in NAMES:
                    assert str(client.resolve(name).record.identifier) == name
                    yield

    def native_many(self, number: int) -> Generator[None, None, None]:
        """Many calls on their way at once, on few connections."""
        with asyncio.Runner() as runner:
            client = Client(self.node.native_url, timeout_s=ANSWER_S, connections_max=2)

            async def ask_all() -> list[str]:
                found = await asyncio.gather(*(client.resolve(name) for name in NAMES))
                return [str(each.record.identifier) for each in found]

            try:
                while True:
                    assert runner.run(ask_all()) == NAMES
                    yield
            finally:
                runner.run(client.close())

    def native_writes(self, number: int) -> Generator[None, None, None]:
        at = time.monotonic_ns()
        with SyncClient(self.node.native_url, self.node.key, timeout_s=ANSWER_S) as client:
            while True:
                at += 1
                assert client.register(f"88.118.8/V{at}", {}).version == 1
                yield

    def _line(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.node.handle_port), ANSWER_S)


def ended(line: socket.socket) -> bool:
    """Closed by the node between two requests, which is its right."""
    return bool(select.select([line], [], [], 0)[0])


def asked(line: socket.socket, name: str) -> bytes:
    framing = StreamFraming()
    line.sendall(encode_message(resolve(name)))
    while data := line.recv(65_536):
        for frame in framing.feed(data):
            return frame
    raise EOFError("no answer")


def found(answer: bytes, name: str) -> None:
    message = decode_message(answer)
    assert message.response_code == ResponseCode.SUCCESS, message
    assert isinstance(message.body, ResolveResponse)
    assert message.body.handle == name
