"""Lists and the change log as streams of the native protocol."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from biaojie.errors import InvalidRequest, OverCapacity
from biaojie.record import Value
from biaojie.wire.native import Kind, answers, encode_frame, requests
from tests.core_parts import create
from tests.native_world import HungUp, Peer, error, request, world
from tests.native_world import event_loop_policy as event_loop_policy  # noqa: PLC0414

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


async def read_stream(peer: Peer, id_: int) -> tuple[list[bytes], bytes]:
    parts = []
    while (frame := await peer.frame()).kind == Kind.PART:
        assert frame.id == id_
        parts.append(frame.body)
    assert (frame.id, frame.kind) == (id_, Kind.END)
    return parts, frame.body


async def test_a_list_is_streamed_to_its_end_or_limit() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        await node.write(*(create(f"R{n:04}") for n in range(1_300)))
        peer.send(request(5, requests.ListRecords("88.118.8")))
        parts, end = await read_stream(peer, 5)
        whole = [record for part in parts for record in answers.decode_records(part)]
        assert len(whole) == 1_302
        assert answers.decode_list_end(end) is None
        got: list[Any] = []
        after: bytes | None = None
        for limit in (1, 499, 501, 1_000):
            peer.send(request(6, requests.ListRecords("88.118.8", after, limit)))
            parts, end = await read_stream(peer, 6)
            page = [record for part in parts for record in answers.decode_records(part)]
            assert len(page) == min(limit, 1_302 - len(got))
            got += page
            after = answers.decode_list_end(end)
        assert got == whole
        assert after is None


async def test_large_records_come_in_parts_of_a_bounded_size() -> None:
    big = tuple(Value(n, "X", bytes(60_000)) for n in range(1, 5))
    async with world() as node, node.peer(node.acme) as peer:
        await node.write(*(create(f"BIG{n:02}", values=big) for n in range(30)))
        peer.send(request(5, requests.ListRecords("88.118.8")))
        parts, _ = await read_stream(peer, 5)
        assert sum(len(answers.decode_records(part)) for part in parts) == 32
        assert max(map(len, parts)) < 300_000


async def test_following_the_log_as_it_grows() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        sequence = (await node.parts.store.head())[0]
        peer.send(request(5, requests.Follow(sequence, 3)))
        for suffix in "ABC":
            await node.write(create(suffix))
            (entry,) = answers.decode_entries((await peer.frame()).body)
            assert entry.changes[0].subject == f"88.118.8/{suffix}"
        end = await peer.frame()
        assert (end.kind, answers.decode_follow_end(end.body)) == (Kind.END, sequence + 3)


async def test_a_stream_is_cancelled_and_says_where_it_goes_on() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        sequence = (await node.parts.store.head())[0]
        peer.send(request(5, requests.Follow(sequence)), request(6, requests.Follow(sequence)))
        await node.write(create("A"))
        await peer.frames(2)
        peer.send(request(9, requests.Cancel(5)))
        end = await peer.frame()
        assert (end.id, answers.decode_follow_end(end.body)) == (5, sequence + 1)
        # Cancelled in the same moment as begun, twice, and what is no stream at all.
        cancel = request(9, requests.Cancel(7))
        peer.send(request(7, requests.Follow(sequence)), cancel, cancel)
        peer.send(request(9, requests.Cancel(77)), request(9, requests.Cancel(9)))
        end = await peer.frame()
        assert (end.id, answers.decode_follow_end(end.body)) == (7, sequence)
        await peer.answer(requests.Ping())
        peer.send(encode_frame(9, Kind.CANCEL, b"\xc0"))
        assert isinstance(error(await peer.frame()), InvalidRequest)


async def test_streams_end_with_a_place_to_go_on_when_the_node_stops() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        sequence = (await node.parts.store.head())[0]
        peer.send(request(5, requests.Follow(sequence)))
        await peer.answer(requests.Ping())
        node.parts.tail.release()
        async with asyncio.timeout(5):
            await node.front.stop(3)
        end = await peer.frame()
        assert (end.id, answers.decode_follow_end(end.body)) == (5, sequence)
        with pytest.raises(HungUp):
            await peer.frame()


async def test_there_is_a_most_of_streams() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        peer.send(*(request(n, requests.Follow(10**6)) for n in range(1, 18)))
        frame = await peer.frame()
        assert frame.id == 17
        assert isinstance(error(frame), OverCapacity)


async def test_when_too_many_wait_for_news_the_stream_ends_with_an_error() -> None:
    async with world(service={"watchers_max": 1}) as node, node.peer(node.acme) as peer:
        peer.send(request(100, requests.Follow(10**6)))
        await peer.answer(requests.Ping())
        await asyncio.sleep(0.05)
        peer.send(request(101, requests.Follow(10**6)))
        frame = await peer.frame()
        assert frame.id == 101
        assert isinstance(error(frame), OverCapacity)


async def test_a_page_of_changes_waits_for_news() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        sequence = (await node.parts.store.head())[0]
        entries, onward = answers.decode_changes(await peer.answer(requests.Changes(sequence)))
        assert (entries, onward) == ((), sequence)
        peer.send(request(50, requests.Changes(sequence, 10, 20.0)))
        await peer.answer(requests.Ping())
        await node.write(create("A"))
        entries, onward = answers.decode_changes((await peer.frame()).body)
        assert (len(entries), onward) == (1, sequence + 1)
