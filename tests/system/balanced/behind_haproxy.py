"""Two nodes on one PostgreSQL behind a real HAProxy with the configuration in deploy/haproxy:
`make balanced`. Needs haproxy; not part of `make test`, whose machine need not have it."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from biaojie.sync import SyncClient
from tests.system.conftest import RunningNode
from tests.system.test_workers_replaced import NAMES, Load
from tests.system.wire import until
from tests.system.workers import Make, pids, several

if TYPE_CHECKING:
    from tests.postgres import Postgres

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "haproxy" / "haproxy.cfg"
WORKERS = 2


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Balancer(RunningNode):
    """What a client sees: HAProxy's ports, the key of the node that was first."""

    def __init__(self, nodes: list[RunningNode], folder: Path) -> None:
        super().__init__(nodes[0].data_dir)
        self.port, self.native_port, self.handle_port, stats = (free_port() for _ in range(4))
        self.stats_port, self.admin_socket = stats, folder / "admin.sock"
        given = {
            "LISTEN": "127.0.0.1",
            "HTTP_PORT": self.port,
            "NATIVE_PORT": self.native_port,
            "HANDLE_PORT": self.handle_port,
            "STATS_PORT": stats,
            "CONNECTIONS_MAX": 1000,
            "ADMIN_SOCKET": folder / "admin.sock",
        }
        for letter, node in zip("AB", nodes, strict=True):
            given |= {
                f"NODE_{letter}": "127.0.0.1",
                f"NODE_{letter}_HTTP_PORT": node.port,
                f"NODE_{letter}_NATIVE_PORT": node.native_port,
                f"NODE_{letter}_HANDLE_PORT": node.handle_port,
            }
        environment = os.environ | {name: str(value) for name, value in given.items()}
        haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
        assert haproxy, "this needs haproxy on the PATH"
        said = folder / "haproxy.log"
        with said.open("wb") as log:
            self.process = subprocess.Popen(
                [haproxy, "-db", "-f", str(CONFIGURATION)], env=environment, stdout=log, stderr=log
            )
        until(lambda: self.states("http_any") or self.process.poll(), timeout_s=10)
        assert self.process.poll() is None, said.read_text()

    def states(self, backend: str) -> dict[str, bool]:
        """Which servers of a backend are up."""
        try:
            with socket.create_connection(("127.0.0.1", self.stats_port), 2) as line:
                line.sendall(b"GET /;csv HTTP/1.0\r\n\r\n")
                text = b"".join(iter(lambda: line.recv(65_536), b"")).decode()
        except ConnectionRefusedError:
            return {}
        rows = [row.split(",") for row in text.splitlines() if row.startswith(f"{backend},")]
        return {row[1]: row[17].startswith("UP") for row in rows if len(row[1]) == 1}

    def order(self, *commands: str) -> None:
        """To HAProxy's administrator's socket."""
        for command in commands:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(2)
                line.connect(str(self.admin_socket))
                line.sendall(command.encode() + b"\n")
                assert not b"".join(iter(lambda: line.recv(4096), b"")).strip()


class Clients(Load):
    """As against one node, but without datagrams, and with the native protocol."""

    def __enter__(self) -> Clients:
        clients = (self.http, self.http, self.writes, self.tcp, self.tcp_each, self.native)
        for number, client in enumerate(clients):
            thread = threading.Thread(target=self._run, args=(client, number), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def native(self, number: int) -> Iterator[None]:
        """The library, which asks again what a connection that ended left unanswered."""
        with SyncClient(self.node.native_url) as client:
            while True:
                for name in NAMES:
                    assert str(client.resolve(name).record.identifier) == name
                    yield


@pytest.fixture
def nodes(make_node: Make, postgres: Postgres, postgres_url: str) -> list[RunningNode]:
    pair = [several(make_node, WORKERS, database_url=postgres_url) for _ in range(2)]
    pair[0].home("88.118.8")
    body = {"values": [{"index": 1, "type": "URL", "data": "https://acme.example/1"}]}
    for name in NAMES:
        reply = pair[0].ask("PUT", f"/api/v1/identifiers/{name}", body)
        assert reply.status == 201
    return pair


@pytest.fixture
def balancer(nodes: list[RunningNode], tmp_path: Path) -> Iterator[Balancer]:
    balancer = Balancer(nodes, tmp_path)
    yield balancer
    assert balancer.process is not None
    balancer.process.send_signal(signal.SIGUSR1)
    try:
        balancer.process.wait(3)
    except subprocess.TimeoutExpired:
        balancer.process.kill()
        balancer.process.wait(5)


def test_a_rolling_restart_loses_nothing(nodes: list[RunningNode], balancer: Balancer) -> None:
    before = [pids(node) for node in nodes]
    with Clients(balancer) as clients:
        time.sleep(1)
        for node, old in zip(nodes, before, strict=True):
            assert node.process is not None
            node.process.send_signal(signal.SIGHUP)
            until(lambda n=node: "all workers replaced" in n.log, timeout_s=60)
            assert not set(old.values()) & set(pids(node).values())
        time.sleep(1)
    assert not clients.failures
    print(dict(clients.answered))
    assert min(clients.answered.values()) > 50, clients.answered
    assert len(clients.answered) == 5, clients.answered


def test_a_node_is_taken_out_stopped_and_started_again(
    nodes: list[RunningNode], balancer: Balancer
) -> None:
    """As for a new kernel: HAProxy is told first. Only connections that clients keep to that node
    over TCP end, which their protocols allow at any time."""
    with Clients(balancer) as clients:
        time.sleep(1)
        balancer.order("set server http_any/b state drain", "set server native/b state drain")
        for backend in ("http_any", "http_steady", "native", "handle"):
            assert balancer.states(backend) == {"a": True, "b": False}, backend
        time.sleep(2)
        before = clients.answered["tcp_each"]
        assert nodes[1].stop() == 0
        nodes[1].start()
        until(lambda: nodes[1].ask("GET", "/readyz", key=None).status == 200, timeout_s=20)
        balancer.order("set server http_any/b state ready", "set server native/b state ready")
        until(lambda: balancer.states("http_any")["b"], timeout_s=10)
        time.sleep(1)
    print(dict(clients.answered), clients.failures)
    assert clients.answered["tcp_each"] > before
    assert not [each for each in clients.failures if not each.startswith("tcp ")]
    assert len(clients.failures) <= 1


def test_a_killed_node_is_taken_out(nodes: list[RunningNode], balancer: Balancer) -> None:
    """SIGKILL: what ran on it is lost, nothing that comes later."""
    victim = nodes[1]
    with Clients(balancer) as clients:
        time.sleep(1)
        began = time.monotonic()
        children = list(pids(victim).values())
        victim.kill()  # workers end with their supervisor; a machine's power does not wait for it
        for child in children:
            os.kill(child, signal.SIGKILL)
        until(lambda: not balancer.states("http_any")["b"], timeout_s=10)
        taken_out_s = time.monotonic() - began
        cut = list(clients.failures)
        clients.failures.clear()
        time.sleep(3)
        answered = sum(clients.answered.values())
        time.sleep(1)
        assert sum(clients.answered.values()) > answered
    print(f"taken out after {taken_out_s:.1f} s; cut: {cut}; after: {clients.failures}")
    # What was at that node, and again within the second in which HAProxy does not know yet.
    assert len(cut) <= 12, cut
    assert not clients.failures
    assert taken_out_s < 5


def test_what_the_public_does_not_see(balancer: Balancer) -> None:
    for path in ("/metrics", "/%6Detrics", "/metrics?x", "/metrics#"):
        assert balancer.ask("GET", path, key=None).status in (403, 400), path
    assert balancer.ask("GET", "/readyz", key=None).status == 200
    for _ in range(10):  # whoever writes reads what he wrote
        name = f"88.118.8/OWN{time.monotonic_ns()}"
        assert balancer.ask("PUT", f"/api/v1/identifiers/{name}", {"values": []}).status == 201
        assert balancer.ask("GET", f"/api/v1/identifiers/{name}").status == 200


def test_one_who_guesses_keys_does_not_shut_out_the_others(balancer: Balancer) -> None:
    def status(key: str, source: str) -> int:
        line = http.client.HTTPConnection(
            "127.0.0.1", balancer.port, timeout=10, source_address=(source, 0)
        )
        line.request("GET", "/api/v1/prefixes", headers={"Authorization": f"Bearer {key}"})
        answer = line.getresponse()
        answer.read()
        line.close()
        return answer.status

    guesses = [status(f"bj_wrong_{number}", "127.0.0.5") for number in range(12)]
    assert guesses == [401] * 3 + [429] * 9
    assert status(balancer.key, "127.0.0.1") == 200
    assert status(balancer.key, "127.0.0.5") == 429
    assert balancer.ask("GET", "/readyz", key=None).status == 200
