"""biaojie:// streams: long lists and the log as it grows, through faults and slow readers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from biaojie import Client
from biaojie.errors import (
    OverCapacity,
)
from biaojie.identifier import Identifier
from biaojie.retry import Backoff
from biaojie.wire.native import Resolve, requests
from tests.scripted_native import Met, ScriptedNative, fill, refusing

QUICK = Backoff(base_s=0.001, cap_s=0.002)
KEY = "bj_12345678_secret"


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNative]:
    scripted = ScriptedNative()
    scripted.node.add("99.1/a")
    async with scripted.serving():
        yield scripted


@pytest.fixture
async def client(node: ScriptedNative) -> AsyncIterator[Client]:
    async with Client(node.url, KEY, backoff=QUICK) as client:
        yield client


async def test_a_list_of_one_page_needs_no_stream(node: ScriptedNative, client: Client) -> None:
    names = fill(node, 9)
    assert [str(r.identifier) async for r in client.records("99.1")] == names
    assert len(node.seen) == len(node.hellos) == 1


async def test_a_long_list_is_streamed(node: ScriptedNative, client: Client) -> None:
    names = fill(node, 500)
    assert [str(r.identifier) async for r in client.records("99.1", page_rows=10)] == names
    # one page, and then ten pages at a time, on a connection of their own
    limits = [each.limit for each in node.seen if isinstance(each, requests.ListRecords)]
    assert limits == [10, 100, 100, 100, 100, 100]
    assert len(node.hellos) == 2
    await asyncio.sleep(0.02)
    assert node.open == 1


async def test_without_room_for_a_stream_pages_are_asked_for(node: ScriptedNative) -> None:
    names = fill(node, 50)
    async with Client(node.url, connections_max=1) as client:
        assert [str(r.identifier) async for r in client.records("99.1", page_rows=10)] == names
        following = client.changes()
        coming = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.02)
        assert (await client.resolve(names[0])).source == "cache"
        await node.node.append()
        assert (await coming).sequence == 1
        await following.aclose()
    assert node.open_most == 1
    assert {type(each) for each in node.seen} == {requests.ListRecords, requests.Changes, Resolve}


async def test_a_slow_reader_holds_up_the_node_and_nobody_else(
    node: ScriptedNative, client: Client
) -> None:
    fill(node, 600, octets=65_536)
    node.part_rows = 10
    sent = 0

    async def list_(met: Met) -> None:
        nonlocal sent
        for frame in await met.frames():
            met.send(frame)
            await met.writer.drain()
            sent += len(frame)

    node.faults.extend([list_] * 2)
    records = client.records("99.1", page_rows=50)
    for _ in range(60):
        await anext(records)
    for _ in range(20):
        await client.resolve("99.1/00000")
        await asyncio.sleep(0.01)
    # 500 records are 32 MiB: most of that waits at the node until it is wanted.
    held_back = sent
    assert held_back < 24 * 2**20
    rest = [record async for record in records]
    assert len(rest) == 540
    assert sent > held_back


async def test_a_reader_that_stops_stops_the_stream(node: ScriptedNative, client: Client) -> None:
    fill(node, 500)
    records = client.records("99.1", page_rows=10)
    for _ in range(15):
        await anext(records)
    await asyncio.sleep(0.02)
    assert node.open == 2
    await records.aclose()
    await asyncio.sleep(0.02)
    assert node.open == 1


async def test_a_stream_that_breaks_goes_on_where_it_was(
    node: ScriptedNative, client: Client
) -> None:
    names = fill(node, 300)
    breaks = 0

    async def broken(met: Met) -> None:
        nonlocal breaks
        frames = await met.frames()
        breaks += 1
        met.send(*frames[: 2 + breaks], frames[-1][:3])
        await met.writer.drain()
        await asyncio.sleep(0.01)  # so that it arrives before the connection breaks
        if breaks == 3:  # one that the reader has is gone, one behind it is new
            del node.node.records[names[15]]
            kept = dict(node.node.records)
            node.node.records.clear()
            for name, record in kept.items():
                node.node.records[name] = record
                if name == names[12]:
                    extra = Identifier.parse(names[12] + "x")
                    node.node.records[str(extra)] = replace(record, identifier=extra)
        met.abort()

    async def whole(met: Met) -> None:
        await met.answer()

    node.faults.extend([whole, broken, broken, broken])
    got = [str(r.identifier) async for r in client.records("99.1", page_rows=10)]
    assert breaks == 3
    assert got == names


async def test_a_node_that_hangs_up_between_stretches(node: ScriptedNative) -> None:
    names = fill(node, 300)

    async def last(met: Met) -> None:
        await met.answer()
        await met.writer.drain()
        met.writer.close()

    node.always = last
    got = []
    async with Client(node.url, backoff=QUICK, timeout_s=5) as client:
        started = time.monotonic()
        async for record in client.records("99.1", page_rows=10):
            got.append(str(record.identifier))
            if len(got) % 100 == 10:
                await asyncio.sleep(0.01)  # it is gone when the next stretch is asked for
        assert time.monotonic() - started < 4
    assert got == names


async def test_a_client_that_is_closed_ends_its_streams(node: ScriptedNative) -> None:
    fill(node, 500)
    client = Client(node.url)
    records = client.records("99.1", page_rows=10)
    for _ in range(15):
        await anext(records)
    entries = client.changes()
    coming = asyncio.ensure_future(anext(entries))
    await asyncio.sleep(0.02)
    await client.close()
    with pytest.raises(RuntimeError):
        assert [record async for record in records]
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(coming, 5)
    await asyncio.sleep(0.02)
    assert node.open == 0


async def test_a_stream_that_is_refused(node: ScriptedNative, client: Client) -> None:
    fill(node, 100)

    async def whole(met: Met) -> None:
        await met.answer()

    node.faults.extend([whole, *[refusing(OverCapacity())] * 2])
    assert len([r async for r in client.records("99.1", page_rows=10)]) == 100
    node.faults.extend([whole, *[refusing(OverCapacity())] * 9])
    with pytest.raises(OverCapacity):
        assert [r async for r in client.records("99.1", page_rows=10)]
    assert len(node.faults) == 5


async def test_the_log_is_followed_through_faults(node: ScriptedNative, client: Client) -> None:
    node.follow_limit = 3  # then it breaks
    seen: list[int] = []

    async def follow() -> None:
        async for entry in client.changes(2):
            seen.append(entry.sequence)
            if entry.sequence == 40:
                return

    following = asyncio.create_task(follow())
    while not following.done():
        await node.node.append()
        await asyncio.sleep(0.01)
    assert seen == list(range(3, 41))
    follows = [each.after for each in node.seen if isinstance(each, requests.Follow)]
    assert len(follows) > 1
    assert follows == sorted(set(follows))


async def test_a_quiet_log_is_asked_whether_it_is_there(
    node: ScriptedNative, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biaojie.native_streams.QUIET_S", 0.05)
    entries = client.changes(timeout_s=0.1)
    coming = asyncio.ensure_future(anext(entries))
    await asyncio.sleep(0.4)
    assert len(node.hellos) == 1  # it answers, so it is not left
    node.deaf = True
    await asyncio.sleep(0.4)
    node.deaf = False
    await node.node.append()
    assert (await asyncio.wait_for(coming, 5)).sequence == 1
    assert len(node.hellos) > 1
    await entries.aclose()
