"""The fault proxy: each fate does what it says, and the seed decides whom it meets."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bench.proxy import Fate, Faults, Proxy, stand
from bench.words import BenchFault

WAIT_S = 5.0


class Echo:
    """Answers each line with itself, ten times; `heard` is all that came."""

    def __init__(self) -> None:
        self.heard = b""
        self.news = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard += line
                self.news.set()
                writer.write(line * 10)
        except OSError:
            pass
        finally:
            writer.close()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            while text not in self.heard:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def proxied(faults: Faults | None = None, seed: int = 1) -> AsyncIterator[tuple[Proxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        target = server.sockets[0].getsockname()[:2]
        async with Proxy(target, faults=faults, seed=seed) as proxy:
            yield proxy, echo
    finally:
        server.close()


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def all_of(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """All that comes, and whether it ended as it should."""
    got = b""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                piece = await reader.read(1_000)
            except ConnectionResetError:
                return got, False
            if not piece:
                return got, True
            got += piece


async def test_octets_pass_unchanged_both_ways_and_so_does_the_end() -> None:
    sent = b"".join(b"%d " % n * 50 + b"\n" for n in range(500))
    async with proxied(Faults(delay_s=(0.0, 0.002))) as (proxy, echo):
        reader, writer = await connect(proxy)
        writer.write(sent)
        writer.write_eof()
        got, properly = await all_of(reader)
        assert properly
        assert got == b"".join(line * 10 for line in sent.splitlines(keepends=True))
        assert echo.heard == sent
        assert proxy.passed == [len(sent), len(sent) * 10]
        writer.close()
    assert proxy.counts == {Fate.PASS: 1}


async def test_a_reset_lets_nothing_through() -> None:
    async with proxied(Faults(reset=1)) as (proxy, echo):
        reader, writer = await connect(proxy)
        writer.write(b"hello\n")
        assert await all_of(reader) == (b"", False)
        assert echo.heard == b""
        assert proxy.counts == {Fate.RESET: 1}
        writer.close()


@pytest.mark.parametrize("after", [0, 1, 17, 59])
async def test_a_cut_comes_after_so_many_octets_of_the_reply(after: int) -> None:
    async with proxied(Faults(cut=1, after=(after, after))) as (proxy, echo):
        reader, writer = await connect(proxy)
        writer.write(b"hello\n")
        got, properly = await all_of(reader)
        assert not properly
        # A reset may overtake what was sent before it.
        assert (b"hello\n" * 10)[:after].startswith(got)
        assert echo.heard == b"hello\n"
        assert proxy.passed[1] == after
        writer.close()


async def test_what_is_dropped_has_been_done() -> None:
    async with proxied(Faults(drop=1, after=(60, 60), linger_s=(0.3, 0.3))) as (proxy, echo):
        reader, writer = await connect(proxy)
        writer.write(b"first\n")
        assert await reader.readexactly(60) == b"first\n" * 10
        writer.write(b"second\n")
        await echo.until(b"second\n")
        writer.write(b"third\n")
        await echo.until(b"third\n")
        assert await all_of(reader) == (b"", False)
        writer.close()


async def test_a_half_closed_connection_still_takes_what_is_sent() -> None:
    async with proxied(Faults(half_close=1, after=(6, 6))) as (proxy, echo):
        reader, writer = await connect(proxy)
        writer.write(b"first\n")
        assert await all_of(reader) == (b"first\n", True)
        writer.write(b"second\n")
        await echo.until(b"second\n")
        writer.close()


async def test_a_stalled_connection_says_nothing_and_stays() -> None:
    async with proxied(Faults(stall=1, after=(60, 60))) as (proxy, echo):
        reader, writer = await connect(proxy)
        writer.write(b"first\n")
        assert await reader.readexactly(60) == b"first\n" * 10
        writer.write(b"second\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        assert proxy.connections == 1
        writer.write(b"third\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        assert b"third" not in echo.heard
        proxy.reset_all()
        assert await all_of(reader) == (b"", False)
        writer.close()


async def test_a_black_hole_swallows_old_and_new_and_lets_go_in_order() -> None:
    async with proxied() as (proxy, echo):
        reader, writer = await connect(proxy)
        writer.write(b"first\n")
        assert await reader.readexactly(60) == b"first\n" * 10
        proxy.hold()
        writer.write(b"second\n")
        later, later_writer = await connect(proxy)
        later_writer.write(b"other\n")
        for silent in (reader, later):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(silent.read(1), 0.1)
        assert echo.heard == b"first\n"
        proxy.release()
        async with asyncio.timeout(WAIT_S):
            assert await reader.readexactly(70) == b"second\n" * 10
            assert await later.readexactly(60) == b"other\n" * 10
        for one in (writer, later_writer):
            one.close()


async def test_nobody_at_the_other_end() -> None:
    async with proxied() as (proxy, _):
        proxy.target = ("127.0.0.1", 1)
        reader, writer = await connect(proxy)
        assert await all_of(reader) == (b"", False)
        writer.close()


async def test_the_seed_decides() -> None:
    faults = Faults(reset=0.2, cut=0.3, drop=0.1, after=(0, 1_000))

    def fates(seed: int) -> list[tuple[Fate, int]]:
        return [faults.draw(random.Random(f"{seed}-{n}")) for n in range(1_000)]

    assert fates(1) == fates(1) != fates(2)
    met = [fate for fate, _ in fates(1)]
    assert {fate: round(met.count(fate) / 1_000, 1) for fate in set(met)} == {
        Fate.PASS: 0.4,
        Fate.RESET: 0.2,
        Fate.CUT: 0.3,
        Fate.DROP: 0.1,
    }


@pytest.mark.parametrize(
    "given", [{"cut": 0.7, "drop": 0.4}, {"cut": -0.1}, {"after": (5, 1)}, {"delay_s": (-1, 1)}]
)
def test_shares_and_ranges_that_make_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(BenchFault):
        Faults(**given)


async def test_as_a_command() -> None:
    echo = Echo()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    said: list[str] = []
    standing = asyncio.create_task(
        stand(target, "127.0.0.1:0", Faults(cut=1), 1, WAIT_S, said.append)
    )
    async with asyncio.timeout(WAIT_S):
        while not said:
            await asyncio.sleep(0.01)
    listening, arrow, there = said[0].split()
    assert (arrow, there) == ("->", target)
    os.kill(os.getpid(), signal.SIGUSR1)
    reader, writer = await asyncio.open_connection(*listening.split(":"))
    writer.write(b"hello\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await all_of(reader) == (b"", False)
    assert echo.heard == b"hello\n"
    assert len(said) == 3
    writer.close()
    standing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await standing
    server.close()


@pytest.mark.parametrize("text", ["9000", "here:", "here:x", ":1", "here:70000"])
async def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(BenchFault):
        await stand("127.0.0.1:1", text, Faults(), 1, 1.0, print)
