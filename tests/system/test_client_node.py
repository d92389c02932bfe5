"""The client library against a real node process, over HTTP and the native protocol: every
method, and what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from biaojie import BiaojieError, Client, Permissions, Resolved, Row, Status, SyncClient, Value
from biaojie.account import PrefixStatus, Role
from biaojie.change import Action
from biaojie.errors import (
    BatchRejected,
    Forbidden,
    IdempotencyMismatch,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    PrefixNotHere,
    PrefixSuspended,
    Unauthenticated,
    VersionMismatch,
)
from biaojie.retry import Backoff

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode


Url = Callable[["RunningNode"], str]


@pytest.fixture(params=["http", "biaojie"])
def url(request: pytest.FixtureRequest) -> Url:
    """Where the client finds a node."""
    return lambda node: node.url if request.param == "http" else node.native_url


@pytest.fixture
def own(url: Url, node: RunningNode) -> str:
    """A word for names and prefixes, so that what the one transport wrote is not in the way of
    the other."""
    return "1" if url(node).startswith("http") else "2"


@pytest.fixture
async def client(node: RunningNode, url: Url) -> AsyncIterator[Client]:
    async with Client(url(node), node.key) as client:
        yield client


async def test_the_life_of_a_record(node: RunningNode, client: Client, url: Url, own: str) -> None:
    name = f"88.118.8/客户端{own}/a b?#%+:"
    secret = Value(9, "PIN", b"\x00\xff", permissions=Permissions.parse("1100"))
    created = await client.register(name, [Value(1, "URL", b"https://a"), secret], status="draft")
    assert (created.action, created.status, created.version) == (Action.CREATE, "draft", 1)
    with pytest.raises(IdentifierTaken):
        await client.register(name, {})
    async with Client(url(node)) as public:
        with pytest.raises(IdentifierNotFound) as caught:
            await public.resolve(name)
        assert caught.value.request_id
        changed = await client.modify(
            name, [{"index": 2, "type": "EMAIL", "data": "a@b"}], status="active", if_version=1
        )
        assert (changed.action, changed.version) == (Action.MODIFY, 2)
        seen = (await public.resolve("hdl:" + name.replace("%", "%25"))).record
        assert [value.index for value in seen.values] == [1, 2]
        chosen = await public.resolve(name, types="EMAIL", authoritative=True)
        assert [value.index for value in chosen.record.values] == [2]
        assert chosen.source == "store"
        assert (await public.resolve(name)).source == "cache"
    mine = await client.resolve(name, index=[9])
    assert mine.record.values[0].data == b"\x00\xff"
    if node.url == client.url:
        assert mine.etag.endswith('.p"')
    with pytest.raises(VersionMismatch):
        await client.modify(name, remove=2, if_version=1)
    assert (await client.modify(name, remove=(2,), if_version=2)).version == 3
    put = await client.register(name, {"A": "b"}, overwrite=True, if_version=3)
    assert (put.action, put.version) == (Action.PUT, 4)
    assert (await client.retire(name, if_version=4)).status == Status.RETIRED
    with pytest.raises(IdentifierRetired):
        await client.resolve(name)
    assert (await client.purge(name)).action is Action.PURGE
    with pytest.raises(IdentifierNotFound):
        await client.resolve(name, authoritative=True)


async def test_keys_of_writes(client: Client, own: str) -> None:
    name = f"88.118.8/CLIENT-KEYED-{own}"
    first = await client.register(name, {"A": "1"}, idempotency_key=f"client-1-{own}")
    assert await client.register(name, {"A": "1"}, idempotency_key=f"client-1-{own}") == first
    with pytest.raises(IdempotencyMismatch):
        await client.register(name, {"A": "2"}, idempotency_key=f"client-1-{own}")
    minted = await client.mint(
        "88.118.8", {"A": "1"}, "CLIENT-M-", idempotency_key=f"client-2-{own}"
    )
    again = await client.mint(
        "88.118.8", {"A": "1"}, "CLIENT-M-", idempotency_key=f"client-2-{own}"
    )
    assert minted == again
    assert minted.identifier.startswith("88.118.8/CLIENT-M-")


async def test_rows_names_and_pages(node: RunningNode, client: Client, own: str) -> None:
    prefix = f"88.118.7{own}7"
    await client.prefixes.home(prefix, "acme")
    rows = [Row(f"{prefix}/{number:04}", {"NO": str(number)}) for number in range(2300)]
    rows[5] = Row(f"{prefix}/0004", {"NO": "twice"})
    rows[6] = Row("no slash", {})
    rows[2200] = Row("88.118.404/X", {})
    for _ in range(2):  # the second time everything comes from the node's memory
        results = [result async for result in client.register_many(rows, job=f"client rows {own}")]
        assert [result.row for result in results] == list(range(1, 2301))
        assert {result.row: result.code for result in results if not result.ok} == {
            6: "identifier-taken",
            7: "invalid-identifier",
            2201: "prefix-not-here",
        }
    listed = [record async for record in client.records(prefix, page_rows=1000)]
    assert len(listed) == 2297
    assert {record.version for record in listed} == {1}

    names = [f"{prefix}/{number:04}" for number in range(2300)]
    found = [item async for item in client.resolve_many(names, chunk_names=300)]
    for number, item in enumerate(found):
        if number in (5, 6, 2200):
            assert isinstance(item, IdentifierNotFound)
        else:
            assert isinstance(item, Resolved)
            assert item.record.values[0].text == str(number)

    with pytest.raises(BatchRejected) as caught:
        await client.register_batch([Row(f"{prefix}/new"), Row(f"{prefix}/0001")], "all")
    assert [row["row"] for row in caught.value.fields["rows"]] == [2]
    (dry,) = await client.register_batch([Row(f"{prefix}/new")], dry_run=True)
    assert dry.ok
    (only,) = await client.register_batch([Row(f"{prefix}/0001", action="retire")])
    assert only.ok


async def test_prefixes_and_keys(node: RunningNode, client: Client, url: Url, own: str) -> None:
    prefix = f"88.118.7{own}8"
    homed = await client.prefixes.home(prefix, "acme")
    assert await client.prefixes.get(prefix) == homed
    assert homed in [prefix async for prefix in client.prefixes.list()]
    issued = await client.keys.issue(Role.READER, "acme", f"client test {own}")
    assert issued.key in [key async for key in client.keys.list()]
    async with Client(url(node), issued.secret) as reader:
        with pytest.raises(Forbidden):
            await reader.register(f"{prefix}/a", {})
        with pytest.raises(Forbidden):
            await reader.prefixes.home("88.118.799", "acme")
    await client.register(f"{prefix}/a", {"A": "b"})
    changed = await client.prefixes.change(prefix, status=PrefixStatus.SUSPENDED)
    assert changed.status is PrefixStatus.SUSPENDED
    async with Client(url(node)) as public:
        with pytest.raises(PrefixSuspended):
            await public.resolve(f"{prefix}/a", authoritative=True)
    with pytest.raises(PrefixNotHere):
        await client.prefixes.get("88.118.404")
    assert (await client.keys.revoke(issued.key.id)).revoked
    async with Client(url(node), issued.secret) as revoked:
        with pytest.raises(Unauthenticated):
            await asyncio.wait_for(_until_refused(revoked), 6)


async def _until_refused(client: Client) -> None:
    while True:
        await client.resolve("88.118.78/x", authoritative=True, timeout_s=2)


def test_the_sync_face(node: RunningNode, url: Url, own: str) -> None:
    with SyncClient(url(node), node.key) as client:
        results = list(client.register_many(Row(f"88.118.8/SYNC{own}-{n}") for n in range(30)))
        assert all(result.ok for result in results)
        found = list(client.resolve_many(f"88.118.8/SYNC{own}-{n}" for n in range(31)))
        assert [isinstance(item, BiaojieError) for item in found] == [False] * 30 + [True]
        assert client.register(f"88.118.8/SYNC{own}-X", {"A": "b"}).version == 1
        head = max(entry.sequence for entry in client.changes(follow=False))
        assert head == client.resolve(f"88.118.8/SYNC{own}-X").record.sequence


async def test_writes_and_followers_outlive_a_crash(
    make_node: Callable[..., RunningNode], url: Url
) -> None:
    """kill -9 under load: each write is acknowledged once in the end, and followers see all."""
    node = await asyncio.to_thread(make_node)
    last = "88.118.8/LAST"
    patient = Backoff(retries=1000, cap_s=0.2)
    async with Client(url(node), node.key, timeout_s=90, backoff=patient) as client:
        await client.prefixes.home("88.118.8", "acme")

        async def follow() -> list[int]:
            seen = []
            async for entry in client.changes(0):
                seen.append(entry.sequence)
                if any(change.subject == last for change in entry.changes):
                    break
            return seen

        async def write(worker: int) -> list[int]:
            return [
                (await client.register(f"88.118.8/W{worker}-{n}", {"A": "b"})).version
                for n in range(60)
            ]

        following = asyncio.create_task(follow())
        writing = [asyncio.create_task(write(worker)) for worker in range(8)]
        for _ in range(2):
            await asyncio.sleep(0.15)  # some way into the load, wherever that is
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.start)
        assert [await task for task in writing] == [[1] * 60] * 8
        head = (await client.register(last, {})).sequence
        assert await asyncio.wait_for(following, 30) == list(range(1, head + 1))
        assert len([record async for record in client.records("88.118.8")]) == 481
    await asyncio.to_thread(node.stop)
