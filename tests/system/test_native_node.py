"""A whole node asked over the native protocol: what it shares with the other fronts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from biaojie.change import Action
from biaojie.errors import Forbidden, Unauthenticated
from biaojie.record import Value
from biaojie.wire.native import Frame, Kind, Resolve, answers, decode_resolution, requests
from tests.native_world import Peer, error, request

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

    Make = Callable[..., RunningNode]


@asynccontextmanager
async def peer_of(node: RunningNode, key: str | None = None) -> AsyncIterator[Peer]:
    peer = Peer(*await asyncio.open_connection("127.0.0.1", node.native_port))
    await peer.hello(key)
    try:
        yield peer
    finally:
        await peer.close()


def write(name: str, data: bytes, key: str | None = None) -> requests.Write:
    operation = requests.Operation(Action.PUT, name, (Value(1, "URL", data),))
    return requests.Write(operation, key)


async def test_what_one_front_writes_every_front_shows_at_once(node: RunningNode) -> None:
    name = "88.118.8/native/fresh"
    async with peer_of(node) as peer, peer_of(node, node.key) as admin:
        for round_ in range(20):
            text = f"round {round_}"
            if round_ % 2:
                await admin.answer(write(name, text.encode()))
            else:
                body = {"values": [{"index": 1, "type": "URL", "data": text}]}
                put = await asyncio.to_thread(node.ask, "PUT", f"/api/v1/identifiers/{name}", body)
                assert put.status in (200, 201)
            for _ in range(4):
                found = decode_resolution(await peer.answer(Resolve(name)))
                assert found.record.values[0].text == text
            shown = await asyncio.to_thread(
                node.ask, "GET", f"/api/v1/identifiers/{name}", key=None
            )
            assert shown.json["values"][0]["data"] == text
    page = (await asyncio.to_thread(node.ask, "GET", "/metrics", key=None)).body.decode()
    assert 'biaojie_requests_total{front="native",operation="resolve",outcome="ok"}' in page
    assert "biaojie_native_lane_hits_total" in page


async def test_a_revoked_key_ends_within_five_seconds(node: RunningNode) -> None:
    key = await asyncio.to_thread(node.issue, "registrar")
    id_ = key.split("_")[1]
    async with peer_of(node, key) as peer:
        await peer.answer(write("88.118.8/native/revoked", b"x"))
        other = write("88.118.9/native/other", b"x")
        assert isinstance(error(await peer.ask(other)), Forbidden)
        reply = await asyncio.to_thread(node.ask, "DELETE", f"/api/v1/keys/{id_}")
        assert reply.status == 200
        revoked = time.monotonic()
        told = error(await peer.ask(write("88.118.8/native/revoked", b"y")))
        assert isinstance(told, Unauthenticated)
        assert time.monotonic() - revoked < 5
        assert await peer.rest() == []


async def test_a_node_that_is_told_to_stop_answers_first(make_node: Make) -> None:
    node = make_node()
    node.home("88.118.8")
    async with peer_of(node, node.key) as peer, peer_of(node) as public:
        await peer.answer(write("88.118.8/A", b"x"))
        peer.send(request(77, requests.Follow(0)))
        entries = answers.decode_entries((await peer.frame()).body)
        assert entries[-1].changes[0].subject == "88.118.8/A"
        public.send(*(request(n, Resolve("88.118.8/A")) for n in range(1, 200)))
        await asyncio.sleep(0.1)
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        frames: list[Frame] = await public.rest()
        assert sorted(frame.id for frame in frames) == list(range(1, 200))
        (end,) = await peer.rest()
        assert (end.id, end.kind) == (77, Kind.END)
        assert answers.decode_follow_end(end.body) == entries[-1].sequence
        assert await asyncio.to_thread(node.process.wait, 20) == 0


async def test_a_write_of_a_node_that_was_killed_is_there_once(make_node: Make) -> None:
    node = make_node()
    node.home("88.118.8")
    async with peer_of(node, node.key) as peer:
        for n in range(1, 400):
            peer.send(request(n, write(f"88.118.8/K{n}", b"x", f"key {n}")))
        got = await peer.frames(50)
        node.kill()
        got += await peer.rest()
    acknowledged = {
        frame.id: answers.decode_written(frame.body)[0]
        for frame in got
        if frame.kind == Kind.ANSWER
    }
    assert len(acknowledged) >= 50
    node.start()
    async with peer_of(node, node.key) as peer:
        for n in range(1, 400):
            peer.send(request(n, write(f"88.118.8/K{n}", b"x", f"key {n}")))
        for frame in await peer.frames(399):
            receipt, replayed = answers.decode_written(frame.body)
            assert receipt.version == 1
            if frame.id in acknowledged:
                assert (receipt, replayed) == (acknowledged[frame.id], True)


async def test_the_unix_socket_is_taken_over_from_one_that_died(
    make_node: Make, tmp_path: Path
) -> None:
    path = tmp_path / "native.sock"
    node = make_node(native_socket=path)

    async def ping() -> None:
        peer = Peer(*await asyncio.open_unix_connection(str(path)))
        await peer.hello(node.key)
        assert (await peer.ask(requests.Ping())).kind == Kind.ANSWER
        await peer.close()

    await ping()
    node.kill()
    assert path.exists()
    node.start()
    await ping()
    second = make_node(start=False, native_socket=path)
    second.migrate()
    done = await asyncio.to_thread(
        subprocess.run,
        second.command("serve"),
        env=second.settings(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 3
    assert "BIAOJIE_NATIVE_SOCKET" in done.stderr
    assert "Traceback" not in done.stderr
    await ping()


def test_a_port_that_is_taken_is_named(make_node: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = make_node(start=False)
        node.native_port = taken.getsockname()[1]
        node.migrate()
        done = subprocess.run(
            node.command("serve"), env=node.settings(), capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 3
    assert f"port {node.native_port} (native)" in done.stderr
    assert "BIAOJIE_NATIVE_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_need_not_speak_it(make_node: Make) -> None:
    node = make_node(native_enabled=False)
    assert node.native_port == 0
    assert "biaojie_native" not in node.ask("GET", "/metrics", key=None).body.decode()


def test_a_demo_starts_even_where_the_usual_port_is_taken(make_node: Make) -> None:
    node = make_node(start=False, demo=True)
    settings = node.settings()
    del settings["BIAOJIE_NATIVE_PORT"]
    node.settings = lambda: settings  # type: ignore[method-assign]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 2650))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which serves as well
        node.migrate()
        node.start()
        assert node.native_port not in (0, 2650)
        assert "port 2650 (native)" in node.log
        assert node.stop() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers need fork")
async def test_workers_share_the_port_and_the_unix_socket(make_node: Make, tmp_path: Path) -> None:
    path = tmp_path / "native.sock"
    node = make_node(workers=2, native_socket=path)
    node.home("88.118.8")
    name = "88.118.8/shared"
    async with peer_of(node, node.key) as writer:
        peers = [
            Peer(*await asyncio.open_connection("127.0.0.1", node.native_port)) for _ in range(6)
        ]
        peers += [Peer(*await asyncio.open_unix_connection(str(path))) for _ in range(6)]
        for peer in peers:
            await peer.hello()
        for round_ in range(5):
            await writer.answer(write(name, b"%d" % round_))
            written = time.monotonic()
            for peer in peers:
                while True:
                    found = decode_resolution(await peer.answer(Resolve(name)))
                    if found.record.values[0].data == b"%d" % round_:
                        break
                    assert time.monotonic() - written < 1.0
                    await asyncio.sleep(0.02)
        for peer in peers:
            await peer.close()
