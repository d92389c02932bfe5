"""A TCP proxy that does to connections what bad networks do, by a seed: for tests of what speaks to
a node, or of a node and its database.

Connection n of a proxy meets the same fate in every run with the same seed and shares: what is
drawn depends on the two numbers alone, never on the clock. Octets that pass are passed in order
and unchanged; a fault only ever delays or ends them.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

from .words import BenchFault, say

CONNECT_S: Final = 5.0
IDLE_S: Final = 3_600.0
"""A connection that says nothing for so long is ended."""
PIECE_OCTETS: Final = 65_536
CONNECTIONS_MAX: Final = 1_024
_AT_ONCE: Final = struct.pack("ii", 1, 0)

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


class Fate(StrEnum):
    """What becomes of a connection once `Faults.after` octets of its replies have passed."""

    PASS = "pass"  # noqa: S105 - no password
    """Nothing."""
    RESET = "reset"
    """Reset as soon as it is taken; nothing reaches the other side."""
    CUT = "cut"
    """Reset in the middle of a reply: what was asked has been done."""
    HALF_CLOSE = "half-close"
    """The client is told that no more comes; what it still sends goes through."""
    DROP = "drop"
    """No more of the replies passes while requests still do; reset `Faults.linger_s` later."""
    STALL = "stall"
    """Nothing passes any more, either way, and the connection stays open."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Which share of the connections (0 to 1) meets which fate; the rest passes.

    `after`: octets of the replies that pass before, drawn between the two. `delay_s`: how long
    each piece is held back, either way. `linger_s`: how long a dropped connection lives on.
    """

    reset: float = 0.0
    cut: float = 0.0
    half_close: float = 0.0
    drop: float = 0.0
    stall: float = 0.0
    after: tuple[int, int] = (0, 0)
    delay_s: tuple[float, float] = (0.0, 0.0)
    linger_s: tuple[float, float] = (0.0, 0.05)

    def __post_init__(self) -> None:
        shares = self.shares()
        ranges = (self.after, self.delay_s, self.linger_s)
        wrong = any(share < 0 for share in shares.values()) or sum(shares.values()) > 1.000001
        if wrong or any(not 0 <= low <= high for low, high in ranges):
            raise BenchFault(
                "Shares are 0 to 1 and at most 1 together; ranges go from the less to the more.",
                "各比例应在 0 到 1 之间且合计不超过 1；区间应由小到大。",
            )

    def shares(self) -> dict[Fate, float]:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f: given[f.name.lower()] for f in Fate if f is not Fate.PASS}

    def draw(self, dice: random.Random) -> tuple[Fate, int]:
        """A connection's fate and the octet of its replies that brings it."""
        point, after = dice.random(), dice.randint(*self.after)
        for fate, share in self.shares().items():
            if point < share:
                return fate, after
            point -= share
        return Fate.PASS, after


class Proxy:
    """Listens on `host`:`port` (0: any free one, see `port`) and passes on to `target`.

    `faults` may be changed while it runs and counts for connections taken from then on;
    `hold()` and `reset_all()` are for all at once. `counts` says how many met which fate,
    `passed` how many octets went through to the target and back.
    """

    def __init__(
        self,
        target: Address,
        *,
        faults: Faults | None = None,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.target = target
        self.faults = faults or Faults()
        self.host = host
        self.port = port
        self.counts: Counter[Fate] = Counter()
        self.passed = [0, 0]
        self._seed = seed
        self._taken = 0
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Raises OSError if the address is not to be had."""
        self._server = await asyncio.start_server(
            self._take, self.host, self.port, limit=PIECE_OCTETS, backlog=CONNECTIONS_MAX
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Take no more and reset what is there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset_all()
        await asyncio.gather(*(link.task for link in self._links), return_exceptions=True)

    def hold(self) -> None:
        """A black hole: connections are taken and stay open, and nothing passes."""
        self._open.clear()

    def release(self) -> None:
        """What was held passes, in order."""
        self._open.set()

    def reset_all(self) -> None:
        """Reset the connections of now."""
        for link in self._links:
            link.task.cancel()

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._links)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self._taken = self._taken, self._taken + 1
        dice = random.Random(f"{self._seed}-{number}")  # noqa: S311 - faults, not secrets
        fate, after = self.faults.draw(dice)
        if fate is Fate.RESET or len(self._links) >= CONNECTIONS_MAX:
            self.counts[Fate.RESET] += 1
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        link = _Link(task, self.faults, fate, after, dice)
        self._links.add(link)
        there: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            async with asyncio.timeout(CONNECT_S):
                back, there = await self._connect()
            await link.run(reader, there, back, writer, self)
        except OSError:
            pass  # either side went away, or was silent too long: the other goes with it
        finally:
            if link.struck or fate is Fate.PASS:
                self.counts[link.fate] += 1
            self._links.discard(link)
            for one in (writer, there):
                if one is not None:
                    _reset(one)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target, limit=PIECE_OCTETS)
        return await asyncio.open_connection(*self.target, limit=PIECE_OCTETS)

    @property
    def held(self) -> bool:
        return not self._open.is_set()

    async def passing(self) -> None:
        """Wait while nothing may pass."""
        await self._open.wait()


class _Link:
    """One connection and what is to become of it."""

    def __init__(
        self,
        task: asyncio.Task[None],
        faults: Faults,
        fate: Fate,
        after: int,
        dice: random.Random,
    ) -> None:
        self.task = task
        self.fate = fate
        self.struck = False
        self._faults = faults
        self._left = after
        self._dice = dice

    async def run(
        self,
        reader: asyncio.StreamReader,
        there: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        proxy: Proxy,
    ) -> None:
        """Pass both ways until both are at their end, or one breaks."""
        ways = (
            asyncio.ensure_future(self._pass(reader, there, proxy, 0, self._request)),
            asyncio.ensure_future(self._pass(back, writer, proxy, 1, self._reply)),
        )
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        proxy: Proxy,
        way: int,
        judge: Callable[[bytes], tuple[bytes, bool]],
    ) -> None:
        """`judge` says what of a piece passes, and whether the fate strikes after it."""
        with suppress(_Ended):
            while True:
                async with asyncio.timeout(IDLE_S):
                    piece = await source.read(PIECE_OCTETS)
                await proxy.passing()
                if self._faults.delay_s[1]:
                    await asyncio.sleep(self._dice.uniform(*self._faults.delay_s))
                if not piece:
                    if sink.can_write_eof():
                        sink.write_eof()
                    return
                piece, strikes = judge(piece)
                if piece:
                    sink.write(piece)
                    await sink.drain()
                    proxy.passed[way] += len(piece)
                if strikes:
                    await self._strike(source, sink)

    def _request(self, piece: bytes) -> tuple[bytes, bool]:
        stalled = self.struck and self.fate is Fate.STALL
        return (b"", True) if stalled else (piece, False)

    def _reply(self, piece: bytes) -> tuple[bytes, bool]:
        if self.fate is Fate.PASS or len(piece) <= self._left:
            self._left -= len(piece)
            return piece, False
        return piece[: self._left], True

    async def _strike(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Raises ConnectionResetError where it ends the connection, _Ended where one way."""
        self.struck = True
        if self.fate is Fate.CUT:
            raise ConnectionResetError
        if self.fate is Fate.STALL:
            await asyncio.sleep(IDLE_S)
        if self.fate is Fate.HALF_CLOSE:
            sink.write_eof()
            async with asyncio.timeout(IDLE_S):
                while await source.read(PIECE_OCTETS):  # or the target would block
                    pass
            raise _Ended
        with suppress(TimeoutError):
            async with asyncio.timeout(self._dice.uniform(*self._faults.linger_s)):
                while await source.read(PIECE_OCTETS):
                    pass
        raise ConnectionResetError


class _Ended(Exception):
    """One way of a connection is over."""


async def stand(
    target: str,
    listen: str,
    faults: Faults,
    seed: int,
    seconds: float,
    tell: Callable[[str], None],
) -> Counter[Fate]:
    """Be such a proxy for so long, or until interrupted; SIGUSR1 holds everything, the next one
    releases it. `target` and `listen` as text: `host:port`, or a path. Raises OSError."""
    host, port = _host_and_port(listen)
    there: Address = target if "/" in target else _host_and_port(target)
    async with Proxy(there, faults=faults, seed=seed, host=host, port=port) as proxy:

        def turn() -> None:
            held = proxy.held
            (proxy.release if held else proxy.hold)()
            tell(say("passing again", "恢复转发") if held else say("black hole", "黑洞"))

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, turn)
        tell(f"{host}:{proxy.port} -> {target}")
        await asyncio.sleep(seconds)
    return proxy.counts


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise BenchFault(f"{text} is not host:port.", f"{text} 不是 主机:端口。")
    return host.strip("[]"), int(port)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End it with RST where that exists; what was not sent yet is lost."""
    own = writer.get_extra_info("socket")
    if own is not None and own.family != socket.AF_UNIX:
        with suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
