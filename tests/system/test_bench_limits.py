"""The C programs of the bench: a driver against a responder, and that a driver sees faults."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.peers.servers import Server, responder
from bench.processes import Cores, on, resting
from bench.programs import (
    DATAGRAMS,
    PIPELINED,
    SINGLE,
    Asked,
    Shape,
    compiler,
    drive,
    program,
    write_messages,
)
from bench.words import BenchFault

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
CORES = Cores.of_this_machine()


def native(body: bytes) -> bytes:
    return struct.pack("!IIB", len(body) + 5, 0, 0x02) + body


def handle(body: bytes) -> bytes:
    return struct.pack("!BB6xIII", 2, 11, 0, 0, 24 + len(body)) + bytes(24) + body


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    file = tmp_path / "requests"
    write_messages(file, [native(b"q" * size) for size in range(1, 500)])
    return file


@pytest.fixture
def limit() -> Iterator[Server]:
    server = responder("respond_tcp", "native", 250, CORES.server)
    yield server
    server.close()


@pytest.mark.parametrize("shape", [SINGLE, PIPELINED])
def test_every_request_is_answered_and_counted(limit: Server, requests: Path, shape: Shape) -> None:
    asked = Asked("native", limit.port, requests, shape=shape)
    sample = drive(asked, seconds=20, once=True, cores=CORES.generator)
    assert (sample.replies, sample.lost) == (499, 0)


def test_two_rounds(limit: Server, requests: Path) -> None:
    asked = Asked("native", limit.port, requests)
    for _ in range(2):
        sample = drive(asked, seconds=0.3, pids=limit.pids(), cores=CORES.generator)
        assert sample.replies > 0
        assert sample.rate > 0
        assert 0 < sample.p50_us <= sample.p99_us


def test_an_open_loop_asks_at_its_rate_whatever_comes_back(limit: Server, requests: Path) -> None:
    asked = Asked("native", limit.port, requests)
    sample = drive(asked, seconds=1, rate=200, cores=CORES.generator)
    assert 100 < sample.replies + sample.lost < 400


def test_over_udp(tmp_path: Path) -> None:
    server = responder("respond_udp", "handle", 231, CORES.server)
    try:
        write_messages(tmp_path / "requests", [handle(b"h" * size) for size in range(10, 110)])
        asked = Asked("handle", server.port, tmp_path / "requests", shape=DATAGRAMS)
        sample = drive(asked, seconds=20, once=True, cores=CORES.generator)
        assert sample.replies + sample.lost == 100
        assert sample.replies > 0
    finally:
        server.close()


def test_split_requests_are_put_together(limit: Server) -> None:
    with socket.create_connection(("127.0.0.1", limit.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in native(b"abc") + native(b"defg"):
            connection.sendall(bytes([octet]))
        got = b""
        while len(got) < 500:
            got += connection.recv(500)
    assert len(got) == 500
    assert got[8] == got[258] == 0x81


def test_an_answer_to_another_question_is_wrong(limit: Server, tmp_path: Path) -> None:
    write_messages(tmp_path / "requests", [native(b"one")])
    write_messages(tmp_path / "needles", [b"not in the fixed reply"])
    asked = Asked("native", limit.port, tmp_path / "requests", tmp_path / "needles")
    with pytest.raises(BenchFault, match="wrong answers"):
        drive(asked, seconds=0.2, cores=CORES.generator)


class OneEach:
    """A server that ends each connection after its first answer."""

    def __init__(self, reply: bytes, connections: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(20)
        self.port = self._listener.getsockname()[1]
        self.served = 0
        self._thread = threading.Thread(target=self._serve, args=(reply, connections))
        self._thread.start()

    def _serve(self, reply: bytes, connections: int) -> None:
        with self._listener:
            for _ in range(connections):
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(20)
                    if connection.recv(65_536):
                        connection.sendall(reply)
                        self.served += 1

    def close(self) -> None:
        self._thread.join(30)


def test_a_connection_for_each_request(tmp_path: Path) -> None:
    count, shape = 40, Shape(4, 1)
    write_messages(tmp_path / "requests", [native(b"q")] * count)
    reply = struct.pack("!IIB", 7, 1, 0x81) + b"ok"
    server = OneEach(reply, count)
    asked = Asked("native", server.port, tmp_path / "requests", shape=shape)
    try:
        sample = drive(asked, seconds=20, once=True, anew=True, cores=CORES.generator)
    finally:
        server.close()
    assert (sample.replies, sample.lost, server.served) == (count, 0, count)


def test_a_connection_for_each_request_on_many(limit: Server, requests: Path) -> None:
    asked = Asked("native", limit.port, requests)
    sample = drive(asked, seconds=20, once=True, anew=True, cores=CORES.generator)
    assert (sample.replies, sample.lost) == (499, 0)


class Scripted:
    """A server that gives one connection what it was told to give for its first request."""

    def __init__(self, reply: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(reply,))
        self._thread.start()

    def _serve(self, reply: bytes) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(65_536)
            connection.sendall(reply)
            while connection.recv(65_536):
                pass

    def close(self) -> None:
        self._thread.join(30)
        self._listener.close()


REFUSED = struct.pack("!IIB", 7, 1, 0x84) + b"no"
FOREIGN_ID = struct.pack("!IIB", 7, 77, 0x81) + b"ok"


@pytest.mark.parametrize(
    ("frame", "reply", "counted"),
    [
        ("native", REFUSED, "errors"),
        ("native", FOREIGN_ID, "wrong"),
        ("http", b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "errors"),
        ("redis", b"$-1\r\n", "errors"),
    ],
)
def test_a_reply_that_is_none_is_counted(
    tmp_path: Path, frame: str, reply: bytes, counted: str
) -> None:
    server = Scripted(reply)
    try:
        write_messages(tmp_path / "requests", [native(b"x")])
        asked = Asked(frame, server.port, tmp_path / "requests", shape=Shape(1, 1))
        done = subprocess.run(
            [
                program("drive_tcp"),
                *asked.options(),
                "--once",
                "1",
                "--warm-ms",
                "0",
                "--ms",
                "300",
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert json.loads(done.stdout)[counted] == 1
    finally:
        server.close()


def test_a_server_that_hangs_up_is_a_fault(requests: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(BenchFault, match="hung up"):
            drive(
                Asked("native", port, requests, shape=Shape(1, 1)),
                seconds=1,
                cores=CORES.generator,
            )
        thread.join(10)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_what_is_not_asked_stands_still() -> None:
    here = frozenset({min(os.sched_getaffinity(0))})
    with on(here):
        asked, other, gone = (subprocess.Popen(["sleep", "60"]) for _ in range(3))
    try:
        with resting(here, (asked.pid,)):
            wait_for(lambda: state_of(other.pid) == "T")
            assert state_of(asked.pid) != "T"
            gone.kill()
        wait_for(lambda: state_of(other.pid) != "T")
    finally:
        for process in (asked, other, gone):
            process.kill()
            process.wait()


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)
