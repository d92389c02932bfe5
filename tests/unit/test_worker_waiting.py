"""A worker that finds no registry waits for it, and nobody waits with it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from biaojie.errors import TemporarilyUnavailable
from registry.sql import UnfitDatabase
from resolver import worker_waiting
from resolver.worker_sockets import HANDLE_UDP, HTTP, Sockets
from resolver.worker_waiting import wait_for


class Registry:
    """Opens when it is told to."""

    def __init__(self) -> None:
        self.tries = 0
        self.there = False
        self.error: Exception = TemporarilyUnavailable("no database", "")

    async def open(self) -> str:
        self.tries += 1
        if not self.there:
            raise self.error
        return "a store"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_waiting, "AGAIN_S", 0.02)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    listening, datagrams = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    for one in (listening, datagrams):
        one.bind(("127.0.0.1", 0))
    listening.listen(10)
    yield {HTTP: [listening], HANDLE_UDP: [datagrams]}
    listening.close()
    datagrams.close()


async def hung_up_on(sockets: Sockets, within_s: float = 5.0) -> bool:
    reader, writer = await asyncio.open_connection(*sockets[HTTP][0].getsockname())
    try:
        async with asyncio.timeout(within_s):
            return not await reader.read(1)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.close()


async def test_a_registry_that_is_there(sockets: Sockets) -> None:
    registry = Registry()
    registry.there = True
    assert await wait_for(registry.open, sockets, asyncio.Event()) == "a store"
    assert not await hung_up_on(sockets, 0.1)


async def test_who_connects_meanwhile_is_sent_away(sockets: Sockets) -> None:
    registry = Registry()
    waiting = asyncio.create_task(wait_for(registry.open, sockets, asyncio.Event()))
    for _ in range(3):
        assert await hung_up_on(sockets)
    assert registry.tries >= 1
    registry.there = True
    assert await asyncio.wait_for(waiting, 5) == "a store"
    # From now on it is the front that takes them.
    assert not await hung_up_on(sockets, 0.1)


async def test_told_to_stop(sockets: Sockets) -> None:
    stop = asyncio.Event()
    waiting = asyncio.create_task(wait_for(Registry().open, sockets, stop))
    assert await hung_up_on(sockets)
    stop.set()
    assert await asyncio.wait_for(waiting, 5) is None


async def test_given_up_after_a_while(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_waiting, "GIVEN_UP_S", 0.1)
    registry = Registry()
    with pytest.raises(TemporarilyUnavailable):
        await asyncio.wait_for(wait_for(registry.open, sockets, asyncio.Event()), 5)
    assert registry.tries > 1
    assert not await hung_up_on(sockets, 0.1)


async def test_what_no_waiting_mends(sockets: Sockets) -> None:
    registry = Registry()
    registry.error = UnfitDatabase("too new", "")
    with pytest.raises(UnfitDatabase):
        await wait_for(registry.open, sockets, asyncio.Event())
    assert registry.tries == 1
