"""biaojie:// against a real node: Unix socket, streams through a crash, the command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from biaojie import Client, Resolved, Row
from biaojie.errors import IdentifierNotFound, Unauthenticated
from biaojie.retry import Backoff

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode


async def test_many_calls_at_once(node: RunningNode) -> None:
    names = [f"88.118.8/NATIVE-{number}" for number in range(300)]
    async with Client(node.native_url, node.key, connections_max=4) as client:
        receipts = await asyncio.gather(*(client.register(name, {"A": name}) for name in names))
        assert {receipt.version for receipt in receipts} == {1}
    async with Client(node.native_url, connections_max=4) as public:
        for _ in range(2):  # from the store, and then from the cache
            found = await asyncio.gather(*(public.resolve(name) for name in names * 7))
            assert [each.record.values[0].text for each in found] == names * 7
        assert {each.source for each in found} == {"cache"}
        missing = await asyncio.gather(
            *(public.resolve(name + "-X") for name in names), return_exceptions=True
        )
        assert {type(error) for error in missing} == {IdentifierNotFound}
        with pytest.raises(Unauthenticated):
            await public.register("88.118.8/NATIVE-P", {})


async def test_a_key_that_nobody_has(node: RunningNode) -> None:
    wrong = "bj_" + "0" * 8 + "_" + "0" * 32
    async with Client(node.native_url, wrong) as client:
        with pytest.raises(Unauthenticated) as caught:
            await client.resolve("88.118.8/NATIVE-0")
        assert caught.value.request_id


async def test_over_a_unix_socket(make_node: Callable[..., RunningNode], tmp_path: Path) -> None:
    socket = tmp_path / "node.sock"
    node = await asyncio.to_thread(make_node, native_socket=socket)
    async with Client(f"biaojie+unix://{socket}", node.key) as client:
        await client.prefixes.home("88.118.8", "acme")
        await client.register("88.118.8/U", {"A": "b"})
        assert (await client.resolve("88.118.8/U")).record.version == 1
    await asyncio.to_thread(node.stop)


async def test_news_come_at_once(node: RunningNode) -> None:
    async with (
        Client(node.native_url, node.key) as client,
        Client(node.url, node.key) as writer,
    ):
        head = (await writer.register("88.118.8/NATIVE-NEWS", {}, overwrite=True)).sequence
        entries = client.changes(head)
        for _ in range(3):
            coming = asyncio.ensure_future(anext(entries))
            await asyncio.sleep(0.1)
            receipt = await writer.register("88.118.8/NATIVE-NEWS", {"A": "b"}, overwrite=True)
            entry = await asyncio.wait_for(coming, 5)
            assert entry.sequence == receipt.sequence
            assert [change.subject for change in entry.changes] == ["88.118.8/NATIVE-NEWS"]
        await entries.aclose()


async def test_a_long_list_outlives_a_crash(make_node: Callable[..., RunningNode]) -> None:
    node = await asyncio.to_thread(make_node)
    patient = Backoff(retries=1000, cap_s=0.2)
    rows = [Row(f"88.118.8/{number:05}", {"A": "b" * 900}) for number in range(20_000)]
    async with Client(node.native_url, node.key, timeout_s=60, backoff=patient) as client:
        await client.prefixes.home("88.118.8", "acme")
        assert all([result.ok async for result in client.register_many(rows)])
        listed = []
        async for record in client.records("88.118.8"):
            listed.append(record.identifier.suffix)
            if len(listed) in (1_500, 12_000):  # in the middle of a stretch
                await asyncio.to_thread(node.kill)
                await asyncio.to_thread(node.start)
        assert listed == [f"{number:05}" for number in range(20_000)]
        found = [item async for item in client.resolve_many(row.identifier for row in rows)]
        assert all(isinstance(item, Resolved) for item in found)
    await asyncio.to_thread(node.stop)


def _command(node: RunningNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = node.settings() | {"BIAOJIE_URL": node.native_url}
    return subprocess.run(
        [sys.executable, "-m", "resolver", *arguments],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip


def test_the_command_line(node: RunningNode) -> None:
    registered = _command(
        node, "register", "88.118.8/NATIVE-CLI", "URL=https://a", "--key", node.key
    )
    assert registered.returncode == 0, registered.stderr
    found = _command(node, "resolve", "88.118.8/NATIVE-CLI", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["values"][0]["data"] == "https://a"
    started = time.monotonic()
    nowhere = _command(node, "resolve", "88.118.8/X", "--url", "biaojie://127.0.0.1:1")
    assert nowhere.returncode == 3
    assert "biaojie://127.0.0.1:1" in nowhere.stderr
    assert time.monotonic() - started < 30
