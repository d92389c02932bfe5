"""Workers are replaced one by one while everybody goes on asking: no request stays unanswered."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.rolling import KINDS, NAMES, Load
from tests.system.wire import until
from tests.system.workers import Make, pids, several

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

ROLLING_S = float(os.environ.get("ROLLING_S", "0"))
"""How long workers are replaced over and over under full load; 0: once, under a light one."""
WORKERS = 3 if ROLLING_S else 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "node.toml"
    file.write_text('node_name = "before"\n')
    return file


@pytest.fixture(scope="module")
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
    """Once, by clients that leave the machine some time; `make rolling` does it for a minute."""
    before = pids(served)
    config.write_text('node_name = "after"\n')
    times, end = 0, time.monotonic() + ROLLING_S
    with Load(served, pause_s=0.0 if ROLLING_S else 0.01) as load:
        until(lambda: len(load.answered) == KINDS, timeout_s=20)
        while not times or (time.monotonic() < end and not load.failures):
            times += 1
            hang_up(served)
            until(
                lambda n=times: (
                    len(events(served, "all workers replaced")) == n
                    and len(events(served, "worker stopped")) == n * WORKERS
                ),
                timeout_s=60,
            )
    print(f"replaced {times} times; answered:", dict(load.answered))
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
    earlier = len(events(served, "nothing was replaced"))
    config.write_text(settings)
    hang_up(served)
    (event,) = until(lambda: events(served, "nothing was replaced")[earlier:])
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
    earlier = len(events(served, "all workers replaced"))
    hang_up(served)
    until(lambda: events(served, "all workers replaced")[earlier:], timeout_s=60)
    assert b"mended" in served.ask("GET", "/", key=None).body


def test_who_tells_all_processes_to_stop_cuts_nobody(make_node: Make) -> None:
    """As a service without KillMode=mixed does: each worker hears it twice."""
    node = several(make_node, 2)
    node.home("88.118.8")
    body = b'{"values":[{"index":1,"type":"URL","data":"https://acme.example/"}]}'
    writing = []
    for n in range(6):
        line = socket.create_connection(("127.0.0.1", node.port), 10)
        head = (
            f"PUT /api/v1/identifiers/88.118.8/HALF{n} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {node.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        line.sendall(head.encode() + body[:10])
        writing.append(line)
    time.sleep(0.3)  # until all of it has been read
    assert node.process is not None
    for pid in (*pids(node).values(), node.process.pid):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)  # else the system may take the second of two for the first
    time.sleep(0.2)
    for line in writing:
        line.sendall(body[10:])
        assert line.recv(4_096).startswith(b"HTTP/1.1 201 ")
        line.close()
    assert node.process.wait(20) == 0
