"""Streams of any length: order kept, reading ahead bounded, work resumed, logs followed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
from aiohttp import web

from biaojie import Client, Resolved, Row
from biaojie.accept import CHUNK_OCTETS_MAX
from biaojie.errors import (
    BatchRejected,
    Forbidden,
    IdempotencyMismatch,
    IdentifierNotFound,
    InvalidIdentifier,
    InvalidRequest,
    MalformedAnswer,
    TemporarilyUnavailable,
    TooLarge,
    Unauthenticated,
    Unreachable,
)
from biaojie.retry import Backoff
from tests.scripted_node import (
    ENTRY,
    Answer,
    ScriptedNode,
    cut_after_commit,
    free_port,
    problem,
    reset,
    saying,
    serving,
)

QUICK = Backoff(base_s=0.001, cap_s=0.002)


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with serving(ScriptedNode()) as node:
        yield node


@pytest.fixture
async def client(node: ScriptedNode) -> AsyncIterator[Client]:
    async with Client(node.url, backoff=QUICK) as client:
        yield client


class Counted:
    """An endless source that knows how much of it has been read."""

    def __init__(self) -> None:
        self.read = 0

    def names(self) -> Iterator[str]:
        for number in count():
            self.read += 1
            yield f"99.1/{number}"

    def rows(self) -> Iterator[Row]:
        for name in self.names():
            yield Row(name, {"A": "b"})

    async def slowly(self) -> AsyncIterator[str]:
        for name in self.names():
            await asyncio.sleep(0)
            yield name


# Many names -----------------------------------------------------------------------------


async def test_answers_come_in_order(node: ScriptedNode, client: Client) -> None:
    dice = random.Random(7)
    for number in range(0, 95, 2):
        node.add(f"99.1/{number}")

    async def late(request: web.Request, answer: Answer) -> web.StreamResponse:
        await asyncio.sleep(dice.random() / 50)
        return await answer()

    node.faults.extend([late] * 100)
    names = [f"99.1/{number}" for number in range(95)]
    names[11] = "no slash"
    got = [item async for item in client.resolve_many(names, chunk_names=10)]
    assert len(got) == 95
    for number, item in enumerate(got):
        if number == 11:
            assert isinstance(item, InvalidIdentifier)
            assert item.fields["identifier"] == "no slash"
        elif number % 2:
            assert isinstance(item, IdentifierNotFound)
            assert item.fields["identifier"] == f"99.1/{number}"
        else:
            assert isinstance(item, Resolved)
            assert str(item.record.identifier) == f"99.1/{number}"
    assert [len(seen.body["identifiers"]) for seen in node.seen] == [10, 9, *[10] * 7, 5]
    assert 1 < node.running_most <= 4


@pytest.mark.parametrize("source", [Counted.names, Counted.slowly])
async def test_an_endless_source_of_names(
    node: ScriptedNode, client: Client, source: object
) -> None:
    counted = Counted()
    names = source(counted)  # type: ignore[operator]
    answers = client.resolve_many(names, chunk_names=10, concurrency=3)
    for most in (30, 30, 40):
        for _ in range(10 if most == 40 else 5):
            await anext(answers)
        assert counted.read == most
    before = len(node.seen)
    await answers.aclose()
    assert counted.read == 40
    await asyncio.sleep(0.02)
    assert node.running == 0
    assert before <= len(node.seen) <= 4


async def test_a_refused_key_ends_the_stream(node: ScriptedNode, client: Client) -> None:
    node.faults.extend([problem(Unauthenticated())] * 3)
    answers = client.resolve_many(["99.1/a"] * 30, chunk_names=10, concurrency=3)
    with pytest.raises(Unauthenticated):
        await anext(answers)


async def test_nothing_to_ask(node: ScriptedNode, client: Client) -> None:
    assert [item async for item in client.resolve_many([])] == []
    assert [type(item) async for item in client.resolve_many(["", "x"])] == [InvalidIdentifier] * 2
    assert [row async for row in client.register_many([])] == []
    assert node.seen == []


async def test_one_answer_that_is_wrong_hides_no_other(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    good = node._item("99.1/a")
    items = [good, {"identifier": "x", "code": "code-of-the-future"}, {"record": {}}, good]
    node.faults.append(saying(200, {"items": items}))
    got = [item async for item in client.resolve_many(["99.1/a"] * 4)]
    assert [type(item) for item in got] == [Resolved, MalformedAnswer, MalformedAnswer, Resolved]


async def test_a_reply_that_is_full_is_continued(node: ScriptedNode, client: Client) -> None:
    node.answers_max = 7
    names = [f"99.1/{number}" for number in range(20)]
    for name in names[:-1]:
        node.add(name)
    got = [item async for item in client.resolve_many(["bad", *names])]
    assert [str(i.record.identifier) for i in got if isinstance(i, Resolved)] == names[:-1]
    assert [type(got[0]), type(got[-1])] == [InvalidIdentifier, IdentifierNotFound]
    assert [len(seen.body["identifiers"]) for seen in node.seen] == [20, 13, 6]

    node.answers_max = 0
    full = [item async for item in client.resolve_many(names)]
    assert {type(item) for item in full} == {TooLarge}
    assert len(node.seen) == 4


@pytest.mark.parametrize(("chunk", "concurrency"), [(0, 1), (1001, 1), (1, 0), (1, 65)])
async def test_bounds_are_checked(client: Client, chunk: int, concurrency: int) -> None:
    with pytest.raises(InvalidRequest):
        await anext(client.resolve_many([], chunk_names=chunk, concurrency=concurrency))
    with pytest.raises(InvalidRequest):
        await anext(client.register_many([], chunk_rows=2001 if chunk else 0))


# Many rows ------------------------------------------------------------------------------


async def test_rows_are_numbered_over_the_stream(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/12")
    rows = [Row(f"99.1/{number}", {"A": "b"}) for number in range(1, 26)]
    rows[4] = Row("bad", {"A": "b"})
    rows[5] = Row("99.1/6", [{"index": 0, "type": "A", "data": ""}])
    rows[24] = Row("99.1/1", action="retire")
    got = [result async for result in client.register_many(iter(rows), chunk_rows=10)]
    assert [result.row for result in got] == list(range(1, 26))
    assert {result.row: result.code for result in got if not result.ok} == {
        5: "invalid-identifier",
        6: "invalid-record",
        12: "identifier-taken",
    }
    assert got[4].zh
    assert [result.identifier for result in got] == [str(row.identifier) for row in rows]
    assert [len(seen.body["rows"]) for seen in node.seen] == [8, 10, 5]
    assert node.seen[2].body["rows"][-1] == {"identifier": "99.1/1", "action": "retire"}
    assert len({seen.key for seen in node.seen}) == 3


async def test_an_endless_source_of_rows(node: ScriptedNode, client: Client) -> None:
    counted = Counted()
    results = client.register_many(counted.rows(), chunk_rows=10)
    for number in range(1, 22):
        assert (await anext(results)).row == number
        assert counted.read == (number + 9) // 10 * 10
    await results.aclose()
    assert len(node.registered) == 30


async def test_mode_all_names_the_rows_of_the_stream(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/17")
    rows = [Row(f"99.1/{number}", {"A": "b"}) for number in range(1, 31)]
    results = client.register_many(rows, "all", chunk_rows=10)
    assert [(await anext(results)).row for _ in range(10)] == list(range(1, 11))
    with pytest.raises(BatchRejected) as caught:
        await anext(results)
    assert [(row["row"], row["identifier"]) for row in caught.value.fields["rows"]] == [
        (17, "99.1/17")
    ]
    assert len(node.registered) == 10


async def test_mode_all_sends_no_chunk_with_a_bad_row(node: ScriptedNode, client: Client) -> None:
    rows = [Row("99.1/1"), Row("bad"), Row("99.1/3", action="purge")]  # type: ignore[arg-type]
    with pytest.raises(BatchRejected) as caught:
        await client.register_batch(rows, "all")
    assert [(row["row"], row["code"]) for row in caught.value.fields["rows"]] == [
        (2, "invalid-identifier"),
        (3, "invalid-request"),
    ]
    assert node.seen == []


async def test_a_job_can_be_repeated(node: ScriptedNode, client: Client) -> None:
    rows = [Row(f"99.1/{number}", {"A": "b"}) for number in range(35)]
    first = client.register_many(rows, job="delivery 7", chunk_rows=10)
    async for result in first:
        if result.row == 15:
            break
    await first.aclose()
    got = [r async for r in client.register_many(rows, job="delivery 7", chunk_rows=10)]
    assert all(result.ok for result in got)
    assert len(node.registered) == len(set(node.registered)) == 35
    keys = [seen.key for seen in node.seen]
    assert keys[:2] == keys[2:4]
    assert len(set(keys)) == 4

    # A dry run, another mode and another job are other work …
    for other in ({"dry_run": True, "job": "delivery 7"}, {"job": "delivery 8"}):
        again = [r async for r in client.register_many(rows, chunk_rows=10, **other)]
        assert not any(result.ok for result in again)
    # … and other rows under the same name are refused.
    with pytest.raises(IdempotencyMismatch):
        await anext(client.register_many(rows[5:], job="delivery 7", chunk_rows=10))


async def test_no_row_is_written_twice(node: ScriptedNode, client: Client) -> None:
    node.faults.extend([cut_after_commit, cut_after_commit, reset])
    rows = [Row(f"99.1/{number}") for number in range(25)]
    got = [result async for result in client.register_many(rows, chunk_rows=10)]
    assert all(result.ok for result in got)
    assert node.registered == [f"99.1/{number}" for number in range(25)]
    assert len(node.seen) == 6


async def test_a_lost_chunk_carries_its_key(node: ScriptedNode, client: Client) -> None:
    node.faults.extend([cut_after_commit] * 9)
    with pytest.raises(Unreachable) as caught:
        await client.register_batch([Row("99.1/a")])
    node.faults.clear()
    key = caught.value.fields["idempotency_key"]
    (result,) = await client.register_batch([Row("99.1/a")], idempotency_key=key)
    assert result.ok


async def test_chunks_are_cut_by_weight_too(node: ScriptedNode, client: Client) -> None:
    heavy = {"BLOB": b"x" * 60_000}
    rows = [Row(f"99.1/{number}", heavy) for number in range(40)]
    got = [result async for result in client.register_many(rows)]
    assert [result.row for result in got] == list(range(1, 41))
    sizes = [len(seen.body["rows"]) for seen in node.seen]
    assert sum(sizes) == 40
    assert max(sizes) == CHUNK_OCTETS_MAX // 60_300 == 17


async def test_results_that_do_not_match_the_rows(node: ScriptedNode, client: Client) -> None:
    node.faults.append(saying(200, {"mode": "all", "dry_run": False, "sequence": 1, "rows": []}))
    with pytest.raises(MalformedAnswer):
        await client.register_batch([Row("99.1/a")])


# Pages and changes ----------------------------------------------------------------------


async def test_all_pages(node: ScriptedNode, client: Client) -> None:
    for number in range(10):
        node.add(f"99.1/{number}")
    got = [str(record.identifier) async for record in client.records("99.1")]
    assert got == [f"99.1/{number}" for number in range(10)]
    assert [seen.query.get("after") for seen in node.seen] == [None, ["3"], ["6"], ["9"]]
    with pytest.raises(InvalidIdentifier):
        await anext(client.records("9/9"))


async def test_pages_are_read_as_they_are_wanted(node: ScriptedNode, client: Client) -> None:
    for number in range(10):
        node.add(f"99.1/{number}")
    records = client.records("99.1")
    for _ in range(4):
        await anext(records)
    await records.aclose()
    assert len(node.seen) == 2


async def test_a_cursor_that_stands_still(node: ScriptedNode, client: Client) -> None:
    node.faults.extend([saying(200, {"items": [], "next": "here"})] * 9)
    with pytest.raises(MalformedAnswer, match="cursor"):
        [record async for record in client.records("99.1")]
    assert len(node.seen) == 2


async def test_changes_to_the_head(node: ScriptedNode, client: Client) -> None:
    node.head = 7
    got = [entry.sequence async for entry in client.changes(2, follow=False, page_rows=2)]
    assert got == [3, 4, 5, 6, 7]
    assert {seen.query["wait"][0] for seen in node.seen} == {"0"}


async def test_filtered_pages_are_walked_through(node: ScriptedNode, client: Client) -> None:
    pages = [([], 5), ([6], 9), ([], 9)]
    for sequences, following in pages:
        items = [{**ENTRY, "sequence": n} for n in sequences]
        node.faults.append(saying(200, {"items": items, "next": following}))
    assert [entry.sequence async for entry in client.changes(0, follow=False)] == [6]
    assert [seen.query["after"] for seen in node.seen] == [["0"], ["5"], ["9"]]


@pytest.mark.parametrize(
    ("sequences", "following"), [([1], 5), ([4, 3], 5), ([3, 3], 5), ([9], 5), ([], 1)]
)
async def test_a_log_out_of_order(
    node: ScriptedNode, client: Client, sequences: list[int], following: int
) -> None:
    items = [{**ENTRY, "sequence": n} for n in sequences]
    node.faults.append(saying(200, {"items": items, "next": following}))
    with pytest.raises(MalformedAnswer):
        [entry async for entry in client.changes(2, follow=False)]


async def test_following_outlives_faults_and_restarts() -> None:
    port = free_port()
    node = ScriptedNode()
    got: list[int] = []
    enough = asyncio.Condition()

    async def follow(client: Client) -> None:
        async for entry in client.changes(0, page_rows=2):
            async with enough:
                got.append(entry.sequence)
                enough.notify_all()

    async def reach(sequence: int) -> None:
        async with enough:
            await asyncio.wait_for(enough.wait_for(lambda: got and got[-1] >= sequence), 10)

    async with Client(f"http://127.0.0.1:{port}", timeout_s=2, backoff=QUICK) as client:
        following = asyncio.create_task(follow(client))  # the node is not even there yet
        async with serving(node, port):
            await node.append(3)
            await reach(3)
            node.faults.extend([reset, cut_after_commit, saying(502, b"<html>", "text/html")])
            await node.append()
            await reach(4)
            node.faults.append(problem(TemporarilyUnavailable(retry_after_s="soon")))
            await node.append(4)
            await reach(8)
        async with serving(node, port):  # restarted
            await node.append(2)
            await reach(10)
            node.faults.append(problem(Forbidden()))
            await node.append()
            with pytest.raises(Forbidden):
                await asyncio.wait_for(following, 10)
    assert got == list(range(1, len(got) + 1))


async def test_a_node_that_does_not_wait_is_not_flooded(node: ScriptedNode, client: Client) -> None:
    node.faults.extend([saying(200, {"items": [], "next": 0})] * 1000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(client.changes(0)), 0.5)
    assert len(node.seen) == 1


async def test_without_follow_faults_are_raised(node: ScriptedNode, client: Client) -> None:
    node.faults.extend([problem(TemporarilyUnavailable())] * 4)
    with pytest.raises(TemporarilyUnavailable):
        [entry async for entry in client.changes(follow=False)]
    assert len(node.seen) == 4
