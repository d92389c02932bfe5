"""The sync client: the same answers, from any thread, inside running loops, and it ends."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web

from biaojie import Client, Resolved, Row, SyncClient
from biaojie.errors import (
    BatchRejected,
    DeadlineExceeded,
    IdentifierNotFound,
    InvalidIdentifier,
    InvalidRequest,
    Unauthenticated,
)
from biaojie.retry import Backoff
from tests.scripted_node import Answer, ScriptedNode, cut_after_commit, held, problem, serving

QUICK = Backoff(base_s=0.001, cap_s=0.002)


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with serving(ScriptedNode()) as node:
        yield node


async def in_thread(work: Callable[[SyncClient], object], node: ScriptedNode) -> None:
    def run() -> None:
        with SyncClient(node.url, "bj_12345678_secret", backoff=QUICK) as client:
            work(client)

    await asyncio.wait_for(asyncio.to_thread(run), 20)


def threads() -> int:
    return sum(thread.name == "biaojie-client" for thread in threading.enumerate())


def test_it_has_every_method_of_the_client() -> None:
    from biaojie.administration import Keys, Prefixes
    from biaojie.importing import Imports
    from biaojie.sync import SyncImports, SyncKeys, SyncPrefixes

    faces = (
        (Client, SyncClient),
        (Prefixes, SyncPrefixes),
        (Keys, SyncKeys),
        (Imports, SyncImports),
    )
    for behind, face in faces:
        names = [name for name in vars(behind) if not name.startswith("_")]
        assert names
        for name in names:
            mine, theirs = getattr(face, name), getattr(behind, name)
            if isinstance(theirs, property):
                assert isinstance(mine, property)
                continue
            assert mine.__doc__, name
            assert list(inspect.signature(mine).parameters) == list(
                inspect.signature(theirs).parameters
            ), name
    parameters = inspect.signature(Client).parameters
    assert list(inspect.signature(SyncClient).parameters) == list(parameters)


async def test_every_call(node: ScriptedNode) -> None:
    def work(client: SyncClient) -> None:
        node.faults.append(cut_after_commit)
        assert client.register("hdl:99.1/a", {"URL": "x"}).version == 1
        assert client.resolve("99.1/a").record.values[0].text == "x"
        assert client.modify("99.1/a", remove=1).version == 2
        assert client.mint("99.1", {"A": "b"}).identifier == "99.1/01MINTED"
        assert client.retire("99.1/a").version == 3
        assert client.purge("99.1/a").version == 4
        with pytest.raises(IdentifierNotFound):
            client.resolve("99.1/b")
        with pytest.raises(InvalidIdentifier):
            client.resolve("b")
        with pytest.raises(InvalidRequest):
            client.register("99.1/a", {}, if_version=1)
        assert [prefix.name for prefix in client.prefixes.list()] == ["99.1"]
        assert client.prefixes.get("99.1").tenant == "acme"
        assert client.prefixes.home("99.1", "x").tenant == "x"
        assert client.prefixes.change("99.1", tenant="y").tenant == "y"
        assert [key.id for key in client.keys.list()] == ["k1"]
        assert client.keys.issue("reader", "acme").secret
        assert client.keys.revoke("k1").id == "k1"
        assert [entry.sequence for entry in client.changes(follow=False)] == [1, 2, 3, 4, 5]
        assert client.url == node.url
        assert client.connections_max == 64
        assert "secret" not in repr(client) + repr(vars(client))

    await in_thread(work, node)
    assert node.registered.count("99.1/a") == 4


async def test_streams(node: ScriptedNode) -> None:
    def work(client: SyncClient) -> None:
        rows = [Row(f"99.1/{number}", {"A": "b"}) for number in range(25)]
        rows[7] = Row("bad")
        results = list(client.register_many(iter(rows), chunk_rows=10))
        assert [result.row for result in results] == list(range(1, 26))
        assert [result.row for result in results if not result.ok] == [8]
        names = [f"99.1/{number}" for number in range(25)]
        found = list(client.resolve_many(iter(names), chunk_names=4))
        assert [isinstance(item, Resolved) for item in found] == [n != 7 for n in range(25)]
        assert len(list(client.records("99.1"))) == 24
        with pytest.raises(BatchRejected) as caught:
            list(client.register_many([Row("99.1/x"), Row("99.1/0")], "all"))
        assert caught.value.fields["rows"][0]["row"] == 2
        with pytest.raises(BatchRejected):
            client.register_batch(iter([Row("99.1/0")]), "all")
        with pytest.raises(InvalidRequest):
            client.register_batch(Row("99.1/0") for _ in iter(int, 1))

    await in_thread(work, node)


async def test_a_stream_may_use_what_belongs_to_the_caller(node: ScriptedNode) -> None:
    def work(client: SyncClient) -> None:
        mine = threading.get_ident()

        def rows() -> Iterator[Row]:
            for number in range(12):
                assert threading.get_ident() == mine
                with pytest.raises(IdentifierNotFound):
                    client.resolve(f"99.1/{number}")
                yield Row(f"99.1/{number}")

        assert all(result.ok for result in client.register_many(rows(), chunk_rows=5))
        names = (str(record.identifier) for record in client.records("99.1"))
        assert all(isinstance(item, Resolved) for item in client.resolve_many(names))

    await in_thread(work, node)


async def test_streams_read_ahead_no_more_than_they_say(node: ScriptedNode) -> None:
    def work(client: SyncClient) -> None:
        read = 0

        def names() -> Iterator[str]:
            nonlocal read
            while True:
                read += 1
                yield f"99.1/{read}"

        answers = client.resolve_many(names(), chunk_names=10, concurrency=3)
        next(answers)
        assert read == 30
        answers.close()  # type: ignore[attr-defined]
        read = 0
        results = client.register_many((Row(name) for name in names()), chunk_rows=10)
        next(results)
        assert read == 10

    await in_thread(work, node)


async def test_a_fault_ends_the_stream(node: ScriptedNode) -> None:
    def work(client: SyncClient) -> None:
        node.faults.extend([problem(Unauthenticated())] * 5)
        with pytest.raises(Unauthenticated):
            list(client.resolve_many(["99.1/a"] * 20, chunk_names=10))

    await in_thread(work, node)


async def test_many_threads_share_one(node: ScriptedNode) -> None:
    def work(client: SyncClient) -> None:
        with ThreadPoolExecutor(8) as pool:
            receipts = pool.map(lambda n: client.register(f"99.1/{n}", {"A": "b"}), range(100))
            assert [receipt.identifier for receipt in receipts] == [f"99.1/{n}" for n in range(100)]
        assert threads() == 1

    await in_thread(work, node)
    assert threads() == 0


async def test_inside_a_running_loop(node: ScriptedNode) -> None:
    """The node runs in a thread of its own, because a sync call holds up the loop it is in."""
    loops: list[asyncio.AbstractEventLoop] = []
    up, stop = threading.Event(), asyncio.Event()
    inner = ScriptedNode()

    def run() -> None:
        async def main() -> None:
            inner.news = asyncio.Condition()
            loops.append(asyncio.get_running_loop())
            async with serving(inner):
                up.set()
                await stop.wait()

        asyncio.run(main())

    server = threading.Thread(target=run)
    server.start()
    assert up.wait(10)
    try:
        assert asyncio.get_running_loop().is_running()
        with SyncClient(inner.url) as client:
            client.register("99.1/a", {"A": "b"})
            assert client.resolve("99.1/a").record.version == 1
            assert len(list(client.resolve_many(["99.1/a"] * 3))) == 3
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        server.join(10)
    assert not server.is_alive()


async def test_deadlines_hold(node: ScriptedNode) -> None:
    never = asyncio.Event()
    node.faults.append(held(never))

    def work(client: SyncClient) -> None:
        with pytest.raises(DeadlineExceeded):
            client.register("99.1/a", {"A": "b"}, timeout_s=0.2)

    await in_thread(work, node)


async def test_close_ends_what_runs(node: ScriptedNode) -> None:
    never = asyncio.Event()
    node.faults.append(held(never))
    client = SyncClient(node.url)

    def call() -> None:
        with pytest.raises(RuntimeError, match="closed"):
            client.register("99.1/a", {"A": "b"})

    calling = asyncio.create_task(asyncio.to_thread(call))
    await node.arrived(1)
    await asyncio.to_thread(client.close)
    await asyncio.wait_for(calling, 5)
    await asyncio.to_thread(client.close)
    with pytest.raises(RuntimeError, match="closed"):
        client.resolve("99.1/a")
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(client.records("99.1")))
    assert threads() == 0


async def test_an_interrupt_ends_the_call(node: ScriptedNode) -> None:
    """Ctrl-C while waiting: KeyboardInterrupt at once, and the call does not go on unseen."""
    hung_up = asyncio.Event()

    async def never(request: web.Request, answer: Answer) -> web.StreamResponse:
        while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        hung_up.set()
        return web.Response()

    node.faults.append(never)
    program = f"""
import os, signal, threading, time
from biaojie import SyncClient
client = SyncClient({node.url!r}, timeout_s=30)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
started = time.monotonic()
try:
    client.register("99.1/a", {{"A": "b"}})
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - started < 10, flush=True)
input()
client.close()
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        told = await asyncio.wait_for(process.stdout.readline(), 20)
        await asyncio.wait_for(hung_up.wait(), 10)
    finally:
        await asyncio.wait_for(process.communicate(b"\n"), 20)
    assert told == b"interrupted True\n"
    assert process.returncode == 0


async def run_python(program: str) -> tuple[str, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout, done.stderr


async def test_left_open_it_ends_with_the_program_in_silence(node: ScriptedNode) -> None:
    node.add("99.1/a")
    program = f"""
from biaojie import SyncClient
client = SyncClient({node.url!r})
print(client.resolve("99.1/a").record.version)
dropped = SyncClient({node.url!r})
dropped.resolve("99.1/a")
del dropped
pages = client.changes()
"""
    out, err = await run_python(program)
    assert (out, err) == ("1\n", "")


async def test_collected_as_garbage(node: ScriptedNode) -> None:
    node.add("99.1/a")

    def work() -> None:
        client = SyncClient(node.url)
        client.resolve("99.1/a")
        cycle = [client]
        cycle.append(cycle)  # type: ignore[arg-type]
        del client, cycle
        gc.collect()

    await asyncio.to_thread(work)
    assert threads() == 0


async def test_after_a_fork_it_says_so(node: ScriptedNode) -> None:
    node.add("99.1/a")
    program = f"""
import os
from biaojie import SyncClient
used, unused = SyncClient({node.url!r}), SyncClient({node.url!r})
used.resolve("99.1/a")
if os.fork() == 0:
    try:
        used.resolve("99.1/a")
    except RuntimeError as error:
        print("fork" in str(error), unused.resolve("99.1/a").record.version, flush=True)
    os._exit(0)
os.wait()
print(used.resolve("99.1/a").record.version)
"""
    out, err = await run_python(program)
    assert out == "True 1\n1\n"
    assert "Traceback" not in err  # Python itself may warn of forking with threads
