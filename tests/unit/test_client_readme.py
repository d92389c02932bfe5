"""The client's README keeps its word: every example runs, every default is as it says."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import inspect
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from biaojie import Client, accept
from biaojie.handle_datagrams import TIMEOUTS_S
from biaojie.handle_options import HandleOptions
from biaojie.handle_transport import NAMES_MAX, WRITES_TOGETHER_MAX
from biaojie.native_connections import BUSY
from biaojie.record import Record, Value
from biaojie.retry import Backoff
from biaojie.transport import Options
from biaojie.wire.native import PORT
from tests.scripted_handle import SECRET, ScriptedHandle
from tests.scripted_native import ScriptedNative
from tests.scripted_node import ScriptedNode, serving

README = (Path(__file__).parents[2] / "clients" / "python" / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PRINTED = [
    "active cache\n1 URL https://acme.example/p/SN0001\nhttps://acme.example/p/SN0001\n",
    "88.118.8/PUMP-01MINTED\n",
    "88.118.8/LOT7-0001 active\n88.118.8/nobody identifier-not-found\n2501\n",
    "1 create 0\n",
    "100 3\n",
    "88.118.8/P7 ['URL', 'MODEL', 'HS_ADMIN']\n",
    "identifier-not-found 标识未注册。\n",
]


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with serving(ScriptedNode(head=1, page_rows=1000)) as node:
        node.add("88.118.8/SN0001")
        known = node.records["88.118.8/SN0001"].identifier
        values = (Value(1, "URL", b"https://acme.example/p/SN0001"),)
        node.records["88.118.8/SN0001"] = Record(known, values)
        yield node


@pytest.fixture
async def handle() -> AsyncIterator[ScriptedHandle]:
    async with ScriptedHandle().serving() as scripted:
        yield scripted


@pytest.fixture
async def native() -> AsyncIterator[ScriptedNative]:
    async with ScriptedNative().serving() as scripted:
        yield scripted


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_examples_run(
    node: ScriptedNode, handle: ScriptedHandle, native: ScriptedNative, number: int
) -> None:
    program = EXAMPLES[number].replace("http://127.0.0.1:8080", node.url)
    program = program.replace("hdl://127.0.0.1:2641", handle.url)
    program = program.replace("biaojie://127.0.0.1:2650", native.url)
    given = {"KEY": "bj_12345678_secret", "SECRET": SECRET}
    out = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(out):
            exec(compile(program, f"example {number}", "exec"), given)

    await asyncio.wait_for(asyncio.to_thread(run), 30)
    assert out.getvalue() == PRINTED[number]


def test_every_example_is_expected() -> None:
    assert len(EXAMPLES) == len(PRINTED)


def test_defaults() -> None:
    given = {name: p.default for name, p in inspect.signature(Client).parameters.items()}
    assert (given["timeout_s"], given["retries"], Backoff().retries) == (10, 3, 3)
    assert given["connections_max"] == Options().connections_max == 64
    assert given["reply_octets_max"] == Options().reply_octets_max == 64 * 2**20
    assert Options().idle_s == 30
    assert (HandleOptions().udp, HandleOptions().hops_max, TIMEOUTS_S) == (True, 8, (0.5, 1, 1.5))
    assert (NAMES_MAX, WRITES_TOGETHER_MAX) == (1_000_000, 8)
    assert (PORT, BUSY) == (2650, 64)
    for name in ("timeout_s", "retries", "connections_max", "reply_octets_max", "tls"):
        assert f"{name}=" in README


def test_docstrings() -> None:
    result = doctest.testmod(accept)
    assert result.attempted > 0
    assert result.failed == 0
