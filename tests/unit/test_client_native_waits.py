"""biaojie:// when nothing comes any more: nobody waits beyond his time, and nothing stays taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from biaojie import Client, Row
from biaojie.errors import BiaojieError, DeadlineExceeded, TooLarge, Unreachable
from biaojie.wire.native import Framing, Hello, decode_request
from tests.scripted_native import Met, ScriptedNative, held
from tests.scripted_node import free_port

SECRET = "bj_12345678_verysecret"


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNative]:
    scripted = ScriptedNative()
    async with scripted.serving():
        yield scripted


async def test_closing_ends_calls_that_wait_for_their_next_attempt() -> None:
    client = Client(f"biaojie://127.0.0.1:{free_port()}", timeout_s=3)
    call = asyncio.create_task(client.resolve("88.118.8/SN1"))
    await asyncio.sleep(0.02)
    await client.close()
    done, _ = await asyncio.wait([call], timeout=5)
    assert done
    assert isinstance(call.exception(), RuntimeError | Unreachable)


async def test_who_cannot_use_his_turn_passes_it_on(node: ScriptedNative) -> None:
    node.limits.update(pipeline_max=1, frame_octets_max=8_192)
    async with Client(node.url, key=SECRET, timeout_s=5, connections_max=1, retries=0) as client:
        await client.register("99.1/A", {"URL": "x"})
        gate = asyncio.Event()
        node.faults.append(held(gate))
        first = asyncio.create_task(client.resolve("99.1/A"))
        await asyncio.sleep(0.05)
        long = asyncio.create_task(client.register("99.1/B", {"URL": "x" * 20_000}))
        after = asyncio.create_task(client.resolve("99.1/A"))
        await asyncio.sleep(0.05)
        gate.set()
        await first
        with pytest.raises(TooLarge):
            await long
        async with asyncio.timeout(1):
            await after


class Deaf(ScriptedNative):
    """The first two connections are greeted, and then nothing more is taken from them."""

    over: asyncio.Event

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.hellos) >= 2:
            await super()._serve(reader, writer)
            return
        (frame,) = Framing().feed(await reader.read(4_096))
        hello = decode_request(frame.kind, frame.body)
        assert isinstance(hello, Hello)
        self.hellos.append(hello)
        await Met(self, hello, frame.id, 0, writer).answer()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await self.over.wait()
        writer.transport.abort()


async def test_a_dead_connection_gives_back_its_place() -> None:
    """Also where its peer takes nothing of what was sent."""
    node = Deaf()
    node.over = asyncio.Event()
    async with (
        node.serving(),
        Client(node.url, SECRET, timeout_s=0.5, connections_max=2, retries=0) as client,
    ):
        values = [{"index": n, "type": "URL", "data": "x" * 60_000} for n in range(1, 5)]
        rows = [Row(f"99.1/N{n}", values) for n in range(25)]
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await client.register_batch(rows, timeout_s=0.5)
        async with asyncio.timeout(10):
            while len(node.hellos) < 3:
                with suppress(BiaojieError):
                    await client.resolve("99.1/a")
        node.over.set()


async def test_a_silent_connection_is_left_by_callers_of_little_patience() -> None:
    """Who gives up before his deadline has waited in vain all the same."""
    node = Deaf()
    node.over = asyncio.Event()
    async with node.serving(), Client(node.url, SECRET, timeout_s=0.4) as client:
        async with asyncio.timeout(10):
            while len(node.hellos) < 3:
                with suppress(TimeoutError, BiaojieError):
                    async with asyncio.timeout(0.1):
                        await client.resolve("99.1/a")
        node.over.set()


async def test_a_host_that_cannot_be_is_told_at_once() -> None:
    async with Client("biaojie://a..b:2650", timeout_s=20, retries=0) as client:
        with pytest.raises(Unreachable):
            await client.resolve("99.1/A")
