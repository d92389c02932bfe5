"""biaojie:// against a scripted node: every method, calls pipelined on few connections, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from biaojie import Client, Resolved, Row, SyncClient, Value
from biaojie.account import PrefixStatus, Role
from biaojie.calls import Operation
from biaojie.change import Action
from biaojie.errors import (
    BatchRejected,
    DeadlineExceeded,
    IdentifierNotFound,
    IdentifierTaken,
    InvalidRequest,
    OverCapacity,
    TooLarge,
    VersionMismatch,
)
from biaojie.handle_options import HandleOptions
from biaojie.identifier import Identifier
from biaojie.native_transport import NativeTransport
from biaojie.retry import Backoff
from biaojie.transport import Options
from biaojie.wire.native import Resolve, ResolveMany, requests
from tests.scripted_native import Met, ScriptedNative, fill, held

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


# Every method ---------------------------------------------------------------------------


async def test_the_life_of_a_record(node: ScriptedNative, client: Client) -> None:
    name = "99.1/生命"
    value = Value(7, "PIN", b"\x00\xff", ttl=9, timestamp=5)
    created = await client.register(name, [value], status="draft", template="99.1/T")
    assert (created.identifier, created.action, created.version) == (name, Action.CREATE, 1)
    found = await client.resolve("hdl:" + name)
    assert (found.source, found.age_s, found.record.values) == ("cache", 7, (value,))
    await client.resolve(name, index=7, types=("PIN", "URL"), authoritative=True)
    assert node.seen[-1] == Resolve(name, (7,), ("PIN", "URL"), True)
    with pytest.raises(IdentifierTaken) as caught:
        await client.register(name, {})
    assert caught.value.request_id == "req-1"
    with pytest.raises(VersionMismatch):
        await client.modify(name, remove=7, if_version=9)
    await client.modify(
        name, [{"index": 2, "type": "EMAIL", "data": "a@b"}], (7, 8), status="active", if_version=1
    )
    sent = node.seen[-1]
    assert isinstance(sent, requests.Write)
    assert (sent.operation.remove, sent.operation.status) == ((7, 8), "active")
    assert sent.operation.values[0].text == "a@b"
    assert sent.condition == requests.Condition(version=1)
    assert (await client.register(name, {"A": "b"}, overwrite=True)).action is Action.PUT
    assert (await client.retire(name)).status == "retired"
    assert (await client.purge(name, if_version=4)).action is Action.PURGE
    minted = await client.mint("99.1", {"A": "b"}, "M-", idempotency_key="mine")
    assert minted.identifier == "99.1/M-01MINTED"
    assert node.keys[-1] == "mine"
    writes = [key for key in node.keys if key is not None]
    assert len(set(writes)) == len(writes) == 8


async def test_rows_names_and_pages(node: ScriptedNative, client: Client) -> None:
    rows = [Row(f"99.1/{number}", {"A": "b"}) for number in range(2300)] + [Row("99.1/a")]
    results = [result async for result in client.register_many(rows, job="rows")]
    assert [result.row for result in results] == list(range(1, 2302))
    assert [result.code for result in results if not result.ok] == ["identifier-taken"]
    with pytest.raises(BatchRejected):
        await client.register_batch([Row("99.1/a")], "all")
    asked = ["99.1/1", "99.1/none", "no slash"]
    got = [item async for item in client.resolve_many(asked)]
    assert isinstance(got[0], Resolved)
    assert (got[0].source, got[0].age_s) == ("store", 7)
    assert isinstance(got[1], IdentifierNotFound)
    assert got[1].fields["identifier"] == "99.1/none"
    assert len([name async for name in client.search(URL="x")]) == 2301
    sent = node.seen[-1]
    assert sent == requests.Search((("URL", b"x"),), None, None, 1000)


async def test_prefixes_and_keys(node: ScriptedNative, client: Client) -> None:
    assert [prefix.name async for prefix in client.prefixes.list()] == ["99.1"]
    assert (await client.prefixes.get("99.7")).name == "99.7"
    await client.prefixes.home("99.2", "acme", searchable="url", status="referred", admin="300:9/A")
    sent = node.seen[-1]
    assert isinstance(sent, requests.HomePrefix)
    assert (sent.searchable, sent.status, sent.admin) == (
        ("URL",), PrefixStatus.REFERRED, "300:9/A",
    )  # fmt: skip
    await client.prefixes.change("99.2", searchable=())
    sent = node.seen[-1]
    assert isinstance(sent, requests.ChangePrefix)
    assert (sent.searchable, sent.tenant, sent.status) == ((), None, None)
    assert [key.id async for key in client.keys.list()] == ["k1"]
    issued = await client.keys.issue(Role.READER, "acme", "label")
    assert issued.secret == KEY
    assert KEY not in repr(issued)
    assert (await client.keys.revoke("k1")).id == "k1"


def test_the_sync_face() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()
    scripted = ScriptedNative()
    names = fill(scripted, 40)
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with scripted.serving():
            started.set()
            await stopped.wait()

    import threading

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    asyncio.run_coroutine_threadsafe(started.wait(), loop).result(5)
    try:
        with SyncClient(scripted.url, KEY) as client:
            assert client.url == scripted.url
            assert client.resolve(names[0]).record.identifier == Identifier.parse(names[0])
            found = list(client.resolve_many(names))
            assert all(isinstance(item, Resolved) for item in found)
            assert [str(r.identifier) for r in client.records("99.1", page_rows=4)] == names
            assert client.register("99.1/new", {"A": "b"}).sequence == 1
            for entry in client.changes():
                assert entry.sequence == 1
                break
            assert [entry.sequence for entry in client.changes(follow=False)] == [1]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(5)
        loop.close()
    assert not thread.is_alive()


async def test_unix_socket(tmp_path: Path) -> None:
    scripted = ScriptedNative()
    scripted.node.add("99.1/a")
    async with scripted.serving(tmp_path / "node 1.sock"):
        url = f"biaojie+unix://{tmp_path}/node%201.sock"
        async with Client(url) as client:
            assert (await client.resolve("99.1/a")).source == "cache"
            assert client.url == url


# Addresses and what cannot be asked -----------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("biaojie://node", "biaojie://node:2650"),
        ("BIAOJIE://node:7/", "biaojie://node:7"),
        ("biaojie://[::1]", "biaojie://[::1]:2650"),
        ("biaojie+unix:///run/node.sock", "biaojie+unix:///run/node.sock"),
    ],
)
async def test_addresses(url: str, address: str) -> None:
    async with Client(url) as client:
        assert client.url == address


@pytest.mark.parametrize(
    "url",
    [
        "biaojie://", "biaojie://u:p@node", "biaojie://node/path", "biaojie://node?x", "biaojie://a:0",
        "biaojie://node#x", "biaojie://node:99999", "biaojie+unix://", "biaojie+unix:///",
        "biaojie+unix://host/path", "biaojie+unix:///a%00b", "biaojie+tls://node",
    ],
)  # fmt: skip
def test_addresses_that_are_wrong(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Client(url)
    assert caught.value.detail.zh != caught.value.detail.en


def test_options_of_other_protocols_are_refused() -> None:
    import ssl

    for given in (
        {"tls": ssl.create_default_context()},
        {"identity": "300:9/A", "secret": "x"},
        {"handle": HandleOptions()},
        {"key": "two words"},
    ):
        with pytest.raises(InvalidRequest) as caught:
            Client("biaojie://node", **given)
        assert "two words" not in str(caught.value)


# Pipelining -----------------------------------------------------------------------------


async def test_a_thousand_calls_on_one_connection(node: ScriptedNative) -> None:
    names = fill(node, 1000)
    async with Client(node.url, connections_max=1) as client:
        await client.resolve(names[0])
        before = node.reads
        go = asyncio.Event()
        node.always = held(go)
        running = [asyncio.create_task(client.resolve(name)) for name in names]
        await node.arrived(1001)  # all of them, before the first is answered
        # They were asked in one turn of the loop and written at once: about 20 kB.
        assert node.reads - before <= 3
        go.set()
        found = await asyncio.gather(*running)
        assert [str(each.record.identifier) for each in found] == names
    assert node.open_most == len(node.hellos) == 1


async def test_one_connection_is_enough_until_it_is_busy(node: ScriptedNative) -> None:
    go = asyncio.Event()
    node.always = held(go)
    async with Client(node.url, connections_max=3) as client:
        running = [asyncio.create_task(client.resolve("99.1/a")) for _ in range(60)]
        await node.arrived(60)
        assert node.open == 1
        running += [asyncio.create_task(client.resolve("99.1/a")) for _ in range(500)]
        await node.arrived(560)
        assert 2 <= node.open <= 3
        go.set()
        await asyncio.gather(*running)
    assert node.open_most <= 3


async def test_what_one_connection_may_ask_is_kept_to(node: ScriptedNative) -> None:
    node.limits["pipeline_max"] = 4

    async def slowly(met: Met) -> None:
        frames = await met.frames()
        await asyncio.sleep(0.002)
        met.send(*frames)

    node.always = slowly
    async with Client(node.url, connections_max=2) as client:
        await asyncio.gather(*(client.resolve("99.1/a") for _ in range(100)))
    assert node.running_most == 8
    assert node.open_most == 2


async def test_answers_in_any_order(node: ScriptedNative, client: Client) -> None:
    names = fill(node, 64)
    met: list[Met] = []

    async def keep(one: Met) -> None:
        met.append(one)
        if len(met) == len(names):
            for each in reversed(met):
                await each.answer()

    node.always = keep
    found = await asyncio.gather(*(client.resolve(name) for name in names))
    assert [str(each.record.identifier) for each in found] == names


async def test_waiting_for_room_counts(node: ScriptedNative) -> None:
    node.limits["pipeline_max"] = 1
    go = asyncio.Event()
    node.faults.append(held(go))
    async with Client(node.url, connections_max=1) as client:
        first = asyncio.create_task(client.resolve("99.1/a"))
        await node.arrived(1)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.resolve("99.1/a", timeout_s=0.1)
        assert 0.09 < time.monotonic() - started < 3
        second = asyncio.create_task(client.resolve("99.1/a"))
        third = asyncio.create_task(client.resolve("99.1/a"))
        await asyncio.sleep(0.01)
        second.cancel()
        go.set()
        await asyncio.gather(first, third)
    assert len(node.seen) == 2


async def test_calls_that_wait_are_bounded(
    node: ScriptedNative, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biaojie.native_connections.QUEUE_MAX", 5)
    node.limits["pipeline_max"] = 1
    go = asyncio.Event()
    node.always = held(go)
    async with Client(node.url, connections_max=1, retries=0) as client:
        running = [asyncio.create_task(client.resolve("99.1/a"))]
        await node.arrived(1)
        running += [asyncio.create_task(client.resolve("99.1/a")) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(OverCapacity):
            await client.resolve("99.1/a")
        go.set()
        await asyncio.gather(*running)


async def test_unused_connections_are_closed(node: ScriptedNative) -> None:
    transport = NativeTransport(node.url, Options(idle_s=0.1))
    for _ in range(2):
        await _resolve(transport)
        assert node.open == 1
        await asyncio.sleep(0.25)
        assert node.open == 0
    await transport.close()
    assert len(node.hellos) == 2


async def _resolve(transport: NativeTransport, name: str = "99.1/a") -> Resolved:
    return await transport.resolve(
        Identifier.parse(name), index=(), types=(), authoritative=False, timeout_s=5
    )


async def test_a_client_belongs_to_its_loop_and_ends(node: ScriptedNative) -> None:
    client = Client(node.url)
    await client.resolve("99.1/a")

    def elsewhere() -> None:
        asyncio.run(client.resolve("99.1/a"))

    with pytest.raises(RuntimeError, match="事件循环"):
        await asyncio.to_thread(elsewhere)
    node.always = held(asyncio.Event())
    running = asyncio.create_task(client.resolve("99.1/a"))
    await node.arrived(2)
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="客户端已关闭"):
        await running
    with pytest.raises(RuntimeError, match="客户端已关闭"):
        await client.resolve("99.1/a")
    await asyncio.sleep(0.02)
    assert node.open == 0


# What the node allows -------------------------------------------------------------------


async def test_the_nodes_limits_are_kept_to(node: ScriptedNative, client: Client) -> None:
    names = fill(node, 20)
    node.limits |= {
        "resolve_many_max": 8, "batch_rows_max": 2, "page_rows_max": 3, "frame_octets_max": 9_000,
    }  # fmt: skip
    got = [item async for item in client.resolve_many(names)]
    assert [str(item.record.identifier) for item in got if isinstance(item, Resolved)] == names
    sizes = [len(each.identifiers) for each in node.seen if isinstance(each, ResolveMany)]
    assert sizes == [8, 8, 4]
    with pytest.raises(TooLarge):
        await client.register_batch([Row(name) for name in names[:3]])
    assert [prefix async for prefix in client.prefixes.list()]
    assert node.seen[-1] == requests.ListPrefixes(None, 3)
    before = len(node.seen)
    with pytest.raises(TooLarge) as caught:
        await client.register("99.1/big", {"A": "b" * 9_000})
    assert caught.value.fields["octets_max"] == 9_000
    assert len(node.seen) == before
    assert (await client.resolve(names[0])).record.version == 1


async def test_the_key_is_said_once_a_connection(node: ScriptedNative, client: Client) -> None:
    await asyncio.gather(*(client.resolve("99.1/a") for _ in range(50)))
    assert [(hello.key, hello.version_min, hello.version_max) for hello in node.hellos] == [
        (KEY, 1, 1)
    ]
    assert node.hellos[0].agent.startswith("biaojie-client/")


async def test_an_operation_that_cannot_be_written(node: ScriptedNative) -> None:
    transport = NativeTransport(node.url, Options())
    operation = Operation(Action.CREATE, Identifier("99.1", "x"), (Value(2**70, "A", b""),))
    with pytest.raises(InvalidRequest):
        await transport.write(operation, key="k", timeout_s=1)
    await transport.close()
    assert node.seen == []
