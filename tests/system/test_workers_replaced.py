"""Workers are replaced one by one while everybody goes on asking: no request stays unanswered."""

from __future__ import annotations

import json
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from biaojie.wire.handle import (
    ResolveResponse,
    ResponseCode,
    StreamFraming,
    decode_message,
    encode_message,
)
from tests.handle_talk import resolve
from tests.system.wire import Wire, request, until
from tests.system.workers import Make, pids, several

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

WORKERS = 3
NAMES = [f"88.118.8/N{number}" for number in range(20)]
ANSWER_S = 10.0


class Load:
    """Clients that ask without a pause, each in a thread; `failures` are requests that got no
    answer, or another than they should."""

    def __init__(self, node: RunningNode) -> None:
        self.node = node
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Load:
        clients = (self.http, self.http, self.writes, self.tcp, self.tcp_each, self.udp, self.udp)
        for number, client in enumerate(clients):
            thread = threading.Thread(target=self._run, args=(client, number), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _run(self, client: Callable[[int], Iterator[None]], number: int) -> None:
        kind = client.__name__
        steps = client(number)
        while not self._stop.is_set() and len(self.failures) < 20:
            try:
                next(steps)
                self.answered[kind] += 1
            except Exception as error:
                self.failures.append(f"{kind} {self.answered[kind]}: {error!r}")
                steps = client(number)

    def http(self, number: int) -> Iterator[None]:
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

    def writes(self, number: int) -> Iterator[None]:
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

    def tcp(self, number: int) -> Iterator[None]:
        """Keeps its connection as long as the node does."""
        line = self._line()
        while True:
            for name in NAMES:
                if ended(line):
                    line.close()
                    line = self._line()
                found(asked(line, name), name)
                yield

    def tcp_each(self, number: int) -> Iterator[None]:
        while True:
            for name in NAMES:
                with self._line() as line:
                    time.sleep(0.002)  # taken, and nothing said yet
                    found(asked(line, name), name)
                yield

    def udp(self, number: int) -> Iterator[None]:
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


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    file.write_text('node_name = "before"\n')
    return file


@pytest.fixture
def served(make_node: Make, config: Path) -> RunningNode:
    node = several(make_node, WORKERS, config=config, handle_udp_rate_max=0)
    node.home("88.118.8")
    values = [{"index": 1, "type": "URL", "data": "https://acme.example/1"}]
    rows = [{"identifier": name, "values": values} for name in NAMES]
    reply = node.ask("POST", "/api/v1/identifiers:batch", {"mode": "all", "rows": rows})
    assert reply.status == 200, reply.body
    return node


def hang_up(node: RunningNode) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)


def events(node: RunningNode, name: str) -> list[dict[str, object]]:
    return [event for event in map(json.loads, log_lines(node)) if event["event"] == name]


def log_lines(node: RunningNode) -> list[str]:
    return [line for line in node.log.splitlines() if line.startswith("{")]


def test_no_request_is_lost_while_all_workers_are_replaced(
    served: RunningNode, config: Path
) -> None:
    before = pids(served)
    config.write_text('node_name = "after"\n')
    with Load(served) as load:
        until(lambda: len(load.answered) == 5, timeout_s=20)
        for times in (1, 2):
            hang_up(served)
            until(
                lambda n=times: (
                    len(events(served, "all workers replaced")) == n
                    and len(events(served, "worker stopped")) == n * WORKERS
                ),
                timeout_s=60,
            )
    print("answered:", dict(load.answered))
    assert load.failures == []
    assert min(load.answered.values()) > 20
    after = pids(served)
    assert set(after) == set(range(WORKERS))
    assert not set(before.values()) & set(after.values())
    assert b"after" in served.ask("GET", "/", key=None).body
    assert events(served, "worker crashed") == []
    assert events(served, "worker killed") == []


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ('node_name = ""', "node_name"),
        ("tls_enabled = true\ntls_self_signed = true", "only a restart changes tls_enabled"),
        ("not TOML", "is not TOML"),
    ],
)
def test_wrong_settings_change_nothing(
    served: RunningNode, config: Path, settings: str, word: str
) -> None:
    before = pids(served)
    config.write_text(settings)
    hang_up(served)
    (event,) = until(lambda: events(served, "nothing was replaced"))
    assert word in str(event["fault"])
    assert pids(served) == before
    assert served.ask("GET", "/readyz", key=None).status == 200


def test_a_new_worker_that_cannot_start_leaves_the_old_ones(
    served: RunningNode, config: Path
) -> None:
    """The settings are right in form, but the database they name is not there."""
    before = pids(served)
    config.write_text('database_url = "postgresql+asyncpg://nobody@127.0.0.1:9/none"\n')
    hang_up(served)
    until(lambda: events(served, "worker cannot be replaced; the old ones stay"), timeout_s=60)
    assert pids(served) == before
    assert served.ask("GET", f"/api/v1/identifiers/{NAMES[0]}", key=None).status == 200
    config.write_text('node_name = "mended"\n')
    hang_up(served)
    until(lambda: events(served, "all workers replaced"), timeout_s=60)
    assert b"mended" in served.ask("GET", "/", key=None).body
