"""A node for tests of what is asked for together over HTTP, and ways to ask with nothing cached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from biaojie.account import PrefixStatus
from biaojie.identifier import Identifier
from registry.memory import MemoryStore
from registry.operations import ChangePrefix, HomePrefix, Retire
from tests.lane_world import (
    API,
    PREFIX,
    REST,
    LaneWorld,
    create,
    request,
    turns,
    value,
)

JSON = "Accept: application/json"
ZH = "Accept-Language: zh-CN,en;q=0.3"
ELSEWHERE = "88.118.10"
PROXY = "X-Forwarded-For: 192.0.2.7, 198.51.100.4"


ONE, OTHER, MANY = request(API + "SN1"), request(REST + "unknown", ZH), request(API + "many")


def gathering_world(folder: Path) -> LaneWorld:
    """Records of all kinds; what is asked for may take half a second."""
    made = LaneWorld(
        folder,
        deadline_s=0.5,
        store_timeout_s=0.4,
        requests_max=200,
        trusted_proxies="127.0.0.1",
    )
    made.run(
        made.commit(
            HomePrefix(ELSEWHERE, "acme"),
            create("SN1", value("https://example.cn/e"), prefix=ELSEWHERE),
            create("many", *(value("x", n, type="TEXT") for n in range(1, 100))),
        )
    )
    made.run(made.commit(create("gone")))
    made.run(made.commit(Retire(Identifier(PREFIX, "gone"))))
    made.run(made.commit(ChangePrefix(ELSEWHERE, status=PrefixStatus.DELEGATED)))
    return made


def cold(world: LaneWorld) -> None:
    """Nothing is cached and no reply is ready."""
    world.node.cache.clear()


async def say(world: LaneWorld, chunks: Sequence[bytes], **how: Any) -> tuple[bytes, bool, bool]:
    """What is answered, whether the connection was closed, and whether aiohttp was there."""
    begun: list[object] = []
    handler = world.server.handler

    def made(connection: Any) -> Any:
        begun.append(connection)
        return handler(connection)

    world.server.handler = made  # type: ignore[method-assign]
    try:
        return *(await world.say(world.server, chunks, **how)), bool(begun)
    finally:
        world.server.handler = handler  # type: ignore[method-assign]


def same(world: LaneWorld, chunks: Sequence[bytes], **how: Any) -> bool:
    """Say it to both paths with nothing cached, and again with all of it; whether aiohttp was in
    it the first time."""

    async def work() -> bool:
        first = []
        for _ in range(2):
            if not first:
                cold(world)
            expected = await world.say(world.plain, chunks, **how)
            if not first:
                cold(world)
            *found, by_aiohttp = await say(world, chunks, **how)
            assert tuple(found) == expected
            first.append(by_aiohttp)
        return first[0]

    return world.run(work())


@contextmanager
def look_up(monkeypatch: pytest.MonkeyPatch, before: Callable[[], Any]) -> Iterator[list[int]]:
    """Have `before` awaited in each look-up; yields how many names each was for."""
    counts: list[int] = []
    look_up = MemoryStore.look_up

    async def looked_up(store: MemoryStore, keys: Any) -> Any:
        counts.append(len(keys))
        await before()
        return await look_up(store, keys)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "look_up", looked_up)
        yield counts


async def at_once() -> None:
    """Nothing to wait for."""


async def never() -> None:
    await asyncio.sleep(10)


@asynccontextmanager
async def held(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """Nothing comes of look-ups until the event is set, which it is at the end."""
    event = asyncio.Event()
    cold(world)
    with look_up(monkeypatch, event.wait):
        try:
            yield event
        finally:
            event.set()
            await turns()
