"""Ten thousand ask at once for a name that is in no cache: the registry is asked once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from biaojie.errors import OverCapacity
from biaojie.identifier import Identifier, Key
from biaojie.wire.native import Framing, Kind
from biaojie.wire.native.requests import Resolve
from registry.admission import SYSTEM
from registry.memory import MemoryStore
from registry.operations import HomePrefix
from registry.store import Found
from resolver.front.native.work import busy_frame, error_frame
from resolver.node import Node
from resolver.settings import Settings
from tests.core_parts import create
from tests.native_world import hello, request
from tests.system.handle_peers import on_uvloop, until

PREFIX = "88.118.8"
NAME = f"{PREFIX}/COLD"
ASKS = 10_000
LAST_S = 60.0


class CountingStore(MemoryStore):
    """How often each name was asked for; no look-up ends before `open`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[Key] = Counter()
        self.open = asyncio.Event()

    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        self.asked.update(keys)
        await self.open.wait()
        return await super().look_up(keys)


@asynccontextmanager
async def cold_node(folder: Path, **settings: Any) -> AsyncIterator[tuple[Node, CountingStore]]:
    store = CountingStore()
    given = {"port": 0, "native_port": 0, "handle_enabled": False, "log_level": "error"}
    slow = {"store_timeout_s": 50, "deadline_s": 55, "large_pages": False}
    node = Node(Settings(data_dir=folder / "data", **given, **slow, **settings), store)
    await node.start()
    try:
        await node.registrar.submit(SYSTEM, [HomePrefix(PREFIX, "acme"), create("COLD")])
        yield node, store
    finally:
        store.open.set()
        await node.stop()


@on_uvloop
async def over_native(folder: Path, connections: int) -> None:
    async with cold_node(folder) as (node, store):
        each = ASKS // connections

        async def ask() -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", node.native_port)
            writer.write(hello())
            framing = Framing()
            frames = framing.feed(await reader.readexactly(4))
            while not frames:
                frames = framing.feed(await reader.read(65_536))
            writer.write(b"".join(request(n, Resolve(NAME)) for n in range(1, each + 1)))
            answers = []
            while len(answers) < each:
                answers += framing.feed(await reader.read(65_536))
            writer.close()
            return sum(frame.kind == Kind.ANSWER for frame in answers)

        async with asyncio.timeout(LAST_S):
            asking = [asyncio.create_task(ask()) for _ in range(connections)]
            assert node.native is not None
            gate = node.native.gate
            await until(lambda: gate.running == ASKS, LAST_S)
            store.open.set()
            assert sum(await asyncio.gather(*asking)) == ASKS
        assert store.asked[Identifier.parse(NAME).key()] == 1


@pytest.mark.parametrize("connections", [20, 500])
def test_over_the_native_protocol_all_are_answered(tmp_path: Path, connections: int) -> None:
    over_native(tmp_path, connections)


@on_uvloop
async def test_over_http_those_there_is_room_for_are_answered(tmp_path: Path) -> None:
    """The others are refused, and find the name in the cache when they come again."""
    connections = 400
    target = f"/api/v1/identifiers/{NAME}"
    asked = f"GET {target} HTTP/1.1\r\nHost: node\r\nAccept: application/json\r\n\r\n".encode()
    async with cold_node(tmp_path, requests_max=300) as (node, store):
        told: Counter[bytes] = Counter()

        async def ask() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            for _ in range(ASKS // connections):
                writer.write(asked)
                head = await reader.readuntil(b"\r\n\r\n")
                told[head[9:12]] += 1
                refused = head.startswith(b"HTTP/1.1 503 ")
                assert refused == (b"\r\nRetry-After: 1\r\n" in head)
                length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                if refused:
                    await store.open.wait()
            writer.close()

        async with asyncio.timeout(LAST_S):
            asking = [asyncio.create_task(ask()) for _ in range(connections)]
            await until(lambda: node.front.gate.running + told[b"503"] == connections, LAST_S)
            assert (node.front.gate.running, told[b"503"]) == (300, 100)
            store.open.set()
            await asyncio.gather(*asking)
        assert told[b"200"] + told[b"503"] == ASKS
        assert told[b"200"] >= 0.9 * ASKS
        assert store.asked[Identifier.parse(NAME).key()] == 1


def test_a_refusal_has_the_octets_of_any_other() -> None:
    error = OverCapacity(request_id="0123456789abcdef", retry_after_s=1)
    assert busy_frame(b"\0\0\0\7", error.request_id) == error_frame(b"\0\0\0\7", error)
