"""Starting and stopping: nothing in flight is cut, one first key, faults that name themselves."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from resolver.__main__ import _hang_up
from tests.postgres import Postgres
from tests.system.described import IDS, URL, Described, batch, end_of_log, metrics, path
from tests.system.wire import Wire, request, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]
BODY = b'{"values":[]}'


@pytest.fixture
def fresh(make_node: Make) -> RunningNode:
    node = make_node(deadline_s=10)
    node.home("88.118.8")
    return node


def headers(node: RunningNode) -> dict[str, str]:
    return {"Authorization": f"Bearer {node.key}", "Content-Type": "application/json"}


def terminate(node: RunningNode) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)


def exit_code(node: RunningNode) -> int:
    """Of a node that was told to stop: a second signal would hurry it."""
    assert node.process is not None
    node.process.wait(20)
    return node.stop()


def refuses(node: RunningNode) -> bool:
    try:
        Wire(node.port).socket.close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_single_process_goes_on_at_a_reload_and_says_so(fresh: RunningNode) -> None:
    assert fresh.process is not None
    fresh.process.send_signal(signal.SIGHUP)
    until(lambda: "nothing is reloaded" in fresh.log)
    assert Described(fresh.port).ask("GET", "/readyz").status == 200
    terminate(fresh)
    assert exit_code(fresh) == 0


@pytest.mark.parametrize("terminal", [True, False])
async def test_whoever_closes_the_terminal_ends_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: terminal, write=print))
    stop = asyncio.Event()
    _hang_up(stop)
    assert stop.is_set() is terminal


@pytest.fixture
def held(fresh: RunningNode) -> Iterator[tuple[list[Wire], sqlite3.Connection]]:
    """Five writes under way, that end when the lock is given back."""
    lock = sqlite3.connect(fresh.data_dir / "registry.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    writers = [Wire(fresh.port) for _ in range(5)]
    for number, wire in enumerate(writers):
        wire.send(request("PUT", path(f"held-{number}"), headers(fresh), BODY))
    api = Described(fresh.port)
    until(lambda: metrics(api)[("biaojie_http_requests_running", ())] == len(writers))
    yield writers, lock
    for wire in writers:
        wire.socket.close()
    lock.close()


def test_what_is_under_way_is_finished(
    fresh: RunningNode, held: tuple[list[Wire], sqlite3.Connection]
) -> None:
    writers, lock = held
    idle = Wire(fresh.port)
    assert idle.ask("GET", "/healthz").status == 200
    terminate(fresh)
    until(lambda: refuses(fresh))
    assert idle.ended()
    assert writers[0].silent(0.1)
    lock.execute("ROLLBACK")
    assert [wire.answer().status for wire in writers] == [201] * 5
    assert all(wire.ended() for wire in writers)
    assert exit_code(fresh) == 0
    fresh.start()
    api = Described(fresh.port, fresh.key)
    assert [api.ask("GET", path(f"held-{n}")).status for n in range(5)] == [200] * 5


def test_a_second_signal_ends_it_at_once(
    fresh: RunningNode, held: tuple[list[Wire], sqlite3.Connection]
) -> None:
    terminate(fresh)
    until(lambda: refuses(fresh))
    terminate(fresh)
    assert exit_code(fresh) == 130


def test_under_load_no_reply_is_cut(fresh: RunningNode) -> None:
    """A reply comes whole or not at all, and what was acknowledged is there afterwards."""
    acknowledged: list[str] = []
    torn: list[bytes] = []

    def load(worker: int) -> None:
        number = 0
        while True:
            name = f"load-{worker}-{number}"
            number += 1
            sent = request(
                "PUT",
                path(name),
                headers(fresh) | {"Connection": "close"},
                json.dumps({"values": [URL]}).encode(),
            )
            received = b""
            try:
                with Wire(fresh.port) as wire:
                    wire.send(sent)
                    while part := wire.socket.recv(65536):
                        received += part
            except ConnectionError:
                pass
            if not received:
                return
            head, _, body = received.partition(b"\r\n\r\n")
            length = f"content-length: {len(body)}".encode()
            if b"201 Created" not in head or length not in head.lower():
                torn.append(received)
                return
            acknowledged.append(name)

    workers = [threading.Thread(target=load, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    until(lambda: len(acknowledged) > 100, timeout_s=20)
    terminate(fresh)
    for worker in workers:
        worker.join(20)
    assert exit_code(fresh) == 0
    assert torn == []
    fresh.start()
    api = Described(fresh.port, fresh.key)
    asked = {"identifiers": [f"88.118.8/{name}" for name in acknowledged[-1000:]]}
    items = api.ask("POST", IDS + ":resolve", asked).json["items"]
    assert all("record" in item for item in items)


def test_a_large_reply_under_way_arrives_whole(fresh: RunningNode) -> None:
    api = Described(fresh.port, fresh.key)
    heavy = [URL | {"index": n, "data": "x" * 60_000} for n in range(1, 5)]
    rows = [{"identifier": f"88.118.8/h{n}", "values": heavy} for n in range(12)]
    assert batch(api, "all", rows).status == 200
    with Wire(fresh.port, receive_bytes=4096) as wire:
        wire.send(request("GET", IDS + "?prefix=88.118.8", headers(fresh)))
        assert not wire.silent(5)
        terminate(fresh)
        until(lambda: refuses(fresh))
        assert len(wire.answer().json["items"]) == 12
    assert exit_code(fresh) == 0


def test_who_waits_for_news_is_let_go(fresh: RunningNode) -> None:
    after = end_of_log(Described(fresh.port, fresh.key))
    with Wire(fresh.port) as wire:
        wire.send(request("GET", f"/api/v1/changes?after={after}&wait=30", headers(fresh)))
        assert wire.silent(0.3)
        began = time.monotonic()
        terminate(fresh)
        answer = wire.answer()
        assert (answer.status, answer.json["items"]) == (200, [])
        assert answer.json["next"] == after
    assert exit_code(fresh) == 0
    assert time.monotonic() - began < 8  # of the 30 s it asked for


def test_a_second_start_keeps_the_data_and_the_key(fresh: RunningNode) -> None:
    file = fresh.data_dir / "admin.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = fresh.key
    api = Described(fresh.port, key)
    api.ask("PUT", path("kept"), {"values": [URL]})
    assert fresh.stop() == 0
    fresh.start()
    assert fresh.key == key
    assert api.ask("GET", path("kept")).status == 200
    assert len(api.ask("GET", "/api/v1/keys").json["items"]) == 1
    # Taken away, as one should: the next start makes no new one.
    file.unlink()
    assert fresh.stop() == 0
    fresh.start()
    assert not file.exists()
    assert len(api.ask("GET", "/api/v1/keys").json["items"]) == 1


def start_together(nodes: list[RunningNode]) -> None:
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: node.start(), nodes))


def test_two_nodes_that_start_at_once_make_one_key_in_one_folder(make_node: Make) -> None:
    first = make_node(start=False)
    first.migrate()
    second = make_node(start=False, data_dir=first.data_dir)
    start_together([first, second])
    for node in (first, second):
        assert len(Described(node.port, first.key).ask("GET", "/api/v1/keys").json["items"]) == 1
        assert node.stop() == 0


def test_two_nodes_that_start_at_once_make_one_key_in_one_database(
    make_node: Make, postgres_url: str
) -> None:
    nodes = [make_node(start=False, database_url=postgres_url) for _ in range(2)]
    start_together(nodes)
    keys = [node.data_dir / "admin.key" for node in nodes]
    (key,) = [file.read_text().strip() for file in keys if file.exists()]
    for node in nodes:
        assert len(Described(node.port, key).ask("GET", "/api/v1/keys").json["items"]) == 1
        assert node.stop() == 0


# Faults ---------------------------------------------------------------------------------------


def run(node: RunningNode, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = node.settings() | {f"BIAOJIE_{k.upper()}": v for k, v in settings.items()}
    return subprocess.run(
        node.command(*arguments), env=environment, capture_output=True, text=True, timeout=30
    )


def test_every_fault_in_the_settings_is_named(make_node: Make, tmp_path: Path) -> None:
    node = make_node(start=False)
    config = tmp_path / "biaojie.toml"
    config.write_text('database_connections = "many"\nnode_nam = "x"\npublic_url = "ftp://x"\n')
    done = run(node, "serve", "--config", str(config), deadline_s="0", log_level="loud", prt="1")
    assert done.returncode == 2
    faults = done.stderr.splitlines()
    for name in (
        "database_connections",
        "node_nam",
        "public_url",
        "DEADLINE_S",
        "LOG_LEVEL",
        "PRT",
    ):
        assert any(name in line for line in faults), (name, faults)
    assert len(faults) == 6
    assert "Traceback" not in done.stderr
    config.write_text("port = ")
    assert run(node, "serve", "--config", str(config)).returncode == 2
    assert run(node, "serve", "--config", str(tmp_path / "none.toml")).returncode == 2


def test_the_settings_in_effect_are_shown_without_the_password(make_node: Make) -> None:
    node = make_node(start=False)
    url = "postgresql+asyncpg://who:s3cr3t@db.example/registry"
    done = run(node, "serve", "--check-config", database_url=url, node_name="shown")
    assert done.returncode == 0
    assert "who:***@db.example/registry" in done.stdout
    assert "node_name = 'shown'" in done.stdout
    assert "s3cr3t" not in done.stdout + done.stderr


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_registry_that_is_not_migrated(make_node: Make, postgres: Postgres, store: str) -> None:
    url = postgres.url(postgres.create_database()) if store == "postgresql" else ""
    node = make_node(start=False)
    done = run(node, "serve", database_url=url)
    assert done.returncode == 3
    assert "biaojie migrate" in done.stderr
    assert any("\u4e00" <= character <= "\u9fff" for character in done.stderr)
    assert "Traceback" not in done.stderr


def test_a_database_that_does_not_answer(make_node: Make, tmp_path: Path) -> None:
    node = make_node(start=False)
    url = f"postgresql+asyncpg://who:s3cr3t@/none?host={tmp_path}"
    done = run(node, "serve", database_url=url)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr


def test_a_port_that_is_taken(fresh: RunningNode, make_node: Make) -> None:
    other = make_node(start=False)
    other.migrate()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(other, "serve", port=str(port))
    assert done.returncode == 3
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
