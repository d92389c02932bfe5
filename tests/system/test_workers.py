"""Several workers serve together: one port, one page of metrics; what crashes is started again,
and all of them end when they should."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.system.described import total
from tests.system.wire import Wire, until
from tests.system.workers import Make, pids, series, several, up, wires

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

WORKERS = 3
SILENT_S = 3


@pytest.fixture(scope="module")
def shared(make_node: Make) -> RunningNode:
    tls = {"tls_enabled": True, "tls_self_signed": True, "tls_port": 0}
    node = several(make_node, WORKERS, worker_silent_s=SILENT_S, **tls)
    node.home("88.118.8")
    return node


@pytest.fixture(scope="module")
def house(make_node: Make) -> RunningNode:
    node = make_node(start=False, workers=2)
    node.data_dir.mkdir()
    node.migrate()
    return node


@pytest.fixture
def ending(house: RunningNode) -> Iterator[RunningNode]:
    """A node that each test ends in its own way; it is started anew for the next."""
    started = len(house.log) if house.process is not None else 0
    house.start()
    until(lambda: '"all workers ready"' in house.log[started:], timeout_s=30)
    yield house
    assert house.process is not None
    if house.process.poll() is None:
        house.stop()


def running(node: RunningNode) -> list[psutil.Process]:
    """The workers of a node."""
    assert node.process is not None
    children: list[psutil.Process] = psutil.Process(node.process.pid).children()
    return children


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_each_worker_serves_and_tells_of_all(shared: RunningNode) -> None:
    reach = wires(shared, WORKERS)
    assert len(running(shared)) == WORKERS
    for slot, wire in reach.items():
        assert wire.ask("GET", "/readyz").status == 200
        assert wire.ask("GET", "/healthz").status == 200
        seen = series(wire)
        assert total(seen, "biaojie_worker_up") == WORKERS
        starts = {
            dict(labels)["worker"] for name, labels in seen if name == "process_start_time_seconds"
        }
        assert starts == {str(each) for each in range(WORKERS)}
        assert all("worker" in dict(labels) for _, labels in seen)
        asked = total(seen, "biaojie_requests_total", operation="readyz", worker=str(slot))
        assert asked == 1, slot


def test_a_family_is_described_once(shared: RunningNode) -> None:
    with Wire(shared.port) as wire:
        text = wire.ask("GET", "/metrics").body.decode()
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    assert "biaojie_requests_total" in families


def test_what_they_say_among_themselves_is_nobodys_business(shared: RunningNode) -> None:
    (folder,) = shared.data_dir.glob("workers-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(f.name for f in folder.iterdir()) == sorted(
        ["lock", *(f"{kind}-{slot}" for kind in ("calls", "notes") for slot in range(WORKERS))]
    )


def test_a_crash_is_mended_and_the_others_notice_nothing(shared: RunningNode) -> None:
    reach = wires(shared, WORKERS)
    before = pids(shared)
    os.kill(before[1], signal.SIGKILL)
    assert reach[1].ended()
    # Whoever connects now may have to wait for the new worker, but is answered.
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda _: shared.ask("GET", "/healthz", key=None).status, range(60))
        )
    assert answers == [200] * 60
    for slot in (0, 2):
        assert reach[slot].ask("GET", "/healthz").status == 200
    until(lambda: pids(shared)[1] != before[1], timeout_s=20)
    assert up(shared) == dict.fromkeys(range(WORKERS), True)
    assert {slot: pid for slot, pid in pids(shared).items() if slot != 1} == {
        0: before[0],
        2: before[2],
    }


def test_a_worker_that_hangs_is_replaced(shared: RunningNode) -> None:
    """Stopped, it cannot even be told to end. Until it is found it shows as down, and whoever has
    connected to it waits for its successor."""
    reach = wires(shared, WORKERS)
    before = pids(shared)
    os.kill(before[2], signal.SIGSTOP)
    seen = series(reach[0])
    assert total(seen, "biaojie_worker_up", worker="2") == 0
    assert total(seen, "biaojie_worker_up") == WORKERS - 1
    assert total(seen, "process_start_time_seconds", worker="2") == 0
    assert total(seen, "process_start_time_seconds", worker="1") > 0
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: shared.ask("GET", "/healthz", key=None).status, range(8)))
    assert answers == [200] * 8
    until(lambda: pids(shared)[2] != before[2], timeout_s=20)
    assert '"worker hangs"' in shared.log
    assert not psutil.pid_exists(before[2])
    assert {slot: pid for slot, pid in pids(shared).items() if slot != 2} == {
        slot: before[slot] for slot in (0, 1)
    }
    assert up(shared) == dict.fromkeys(range(WORKERS), True)


def test_the_port_of_another_node_is_not_shared_with_it(shared: RunningNode) -> None:
    settings = shared.settings() | {"BIAOJIE_WORKERS": "2", "BIAOJIE_HANDLE_PORT": "0"}
    settings["BIAOJIE_NATIVE_PORT"] = "0"
    done = subprocess.run(
        shared.command("serve"), env=settings, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 3
    assert f"port {shared.port} (HTTP)" in done.stderr
    assert "BIAOJIE_PORT" in done.stderr
    settings |= {"BIAOJIE_PORT": "0", "BIAOJIE_HANDLE_PORT": str(shared.handle_port)}
    done = subprocess.run(
        shared.command("serve"), env=settings, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 3
    assert "BIAOJIE_HANDLE_PORT" in done.stderr


def test_the_option_wins_over_the_setting(shared: RunningNode) -> None:
    shown = subprocess.run(
        shared.command("serve", "--check-config", "--workers", "5"),
        env=shared.settings(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "workers = 5" in shown.stdout.splitlines()


def test_where_no_worker_can_start_it_says_so(make_node: Make) -> None:
    node = make_node(start=False, workers=2, database_url="postgresql+asyncpg://x@127.0.0.1:9/x")
    node.data_dir.mkdir()
    done = subprocess.run(
        node.command("serve"), env=node.settings(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert "No worker could start" in done.stderr
    assert "没有工作进程能够启动" in done.stderr
    assert list(node.data_dir.glob("workers-*")) == []


def test_stopping_ends_all(ending: RunningNode) -> None:
    workers = running(ending)
    assert ending.stop() == 0
    assert gone(workers)
    assert list(ending.data_dir.glob("workers-*")) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ending.port), 5)


def test_a_second_signal_ends_it_at_once(ending: RunningNode) -> None:
    workers = running(ending)
    held = Wire(ending.port)
    held.send(b"POST /api/v1/identifiers:resolve HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    time.sleep(0.2)
    assert ending.process is not None
    ending.process.send_signal(signal.SIGTERM)
    until(lambda: '"stopping"' in ending.log)
    assert ending.process.poll() is None
    ending.process.send_signal(signal.SIGINT)
    assert ending.process.wait(5) == 130
    assert gone(workers)
    held.socket.close()


def test_workers_do_not_outlive_their_supervisor(ending: RunningNode) -> None:
    workers = running(ending)
    ending.kill()
    until(lambda: gone(workers), timeout_s=20)
    # What it left behind does not disturb the next.
    ending.start()
    until(lambda: len(list(ending.data_dir.glob("workers-*"))) == 1)
    assert ending.ask("GET", "/readyz", key=None).status == 200


def test_over_tls_too(shared: RunningNode) -> None:
    (port,) = {event["tls_port"] for event in map(json.loads, _serving(shared))}
    context = ssl.create_default_context(cafile=str(shared.data_dir / "tls-certificate.pem"))
    for _ in range(10):
        with (
            socket.create_connection(("127.0.0.1", port), 5) as line,
            context.wrap_socket(line, server_hostname="127.0.0.1") as over,
        ):
            over.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert over.recv(100).startswith(b"HTTP/1.1 200")


def _serving(node: RunningNode) -> list[str]:
    return [line for line in node.log.splitlines() if '"event": "serving"' in line]
