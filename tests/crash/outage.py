"""The database goes away while people ask, over HTTP, natively and by Handle: warm names are
answered throughout and marked stale, others are "temporarily unavailable" and never "not found",
no call outlives its deadline, and soon after the return all is as before.

A proxy stands between the node and its PostgreSQL, so that the network between them can fail too.
The Handle protocol cannot mark an answer; its way to say "temporarily" is "server busy".
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from bench.proxy import Faults, Proxy
from biaojie import Client
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    IdentifierNotFound,
    TemporarilyUnavailable,
)
from biaojie.handle_options import HandleOptions
from registry.sql import migrate
from tests.crash.group import PREFIX, START_S, Group
from tests.crash.ledger import auditor
from tests.postgres import Postgres

T = TypeVar("T")
WARM = 100
COLD = 400
ASKERS = 8
"""Of each front; each has one connection, and so one worker."""
PAUSE_S = 0.04
DEADLINE_S = 2.0
NOTICED_S = 3.0
"""Within it every worker knows that the registry is out of reach."""
RECOVERED_S = 5.0
CALL_S = 20.0
"""What a client allows; it is the node that must end a call."""
SOCKET = ".s.PGSQL.5432"


@dataclass
class World:
    """A node whose connections to its database go through `network`."""

    group: Group
    server: Postgres
    network: Proxy


@asynccontextmanager
async def world(folder: Path, workers: int = 2) -> AsyncIterator[World]:
    server = await asyncio.to_thread(Postgres)
    try:
        await migrate(server.url())
        async with Proxy(str(server.root / SOCKET)) as network:
            url = f"postgresql+asyncpg://postgres@127.0.0.1:{network.port}/postgres"
            group = Group(folder, workers, url)
            try:
                await asyncio.to_thread(group.start)
                async with Client(group.url, group.key) as client:
                    await client.prefixes.home(PREFIX, "acme")
                yield World(group, server, network)
                assert await asyncio.to_thread(group.stop) == 0
                assert "Traceback" not in group.log, group.log[-4000:]
            finally:
                group.close()
    finally:
        server.close()


async def _reset(here: World) -> None:
    here.network.faults = Faults(reset=1)
    here.network.reset_all()


async def _pass(here: World) -> None:
    here.network.faults = Faults()


def _plain(work: Callable[[World], None]) -> Callable[[World], Awaitable[None]]:
    async def do(here: World) -> None:
        await asyncio.to_thread(work, here)

    return do


def _soon(work: Callable[[World], None]) -> Callable[[World], Awaitable[None]]:
    async def do(here: World) -> None:
        work(here)

    return do


FAULTS: dict[str, tuple[Callable[[World], Awaitable[None]], Callable[[World], Awaitable[None]]]] = {
    "killed": (_plain(lambda here: here.server.kill()), _plain(lambda here: here.server.start())),
    "frozen": (_soon(lambda here: here.server.freeze()), _soon(lambda here: here.server.thaw())),
    "black-holed": (
        _soon(lambda here: here.network.hold()),
        _soon(lambda here: here.network.release()),
    ),
    "reset": (_reset, _pass),
}


# Those who ask ------------------------------------------------------------------------------


@dataclass
class Calls:
    """What was asked in one phase: by front, seconds and sources; `wrong` is what may not be."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    longest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def took(self, kind: str, seconds: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)
        self.longest_s = max(self.longest_s, seconds)

    def p99_ms(self, kind: str) -> float:
        times = sorted(self.seconds.get(kind, [0.0]))
        return times[int(len(times) * 0.99)] * 1_000


class Askers:
    """They ask for warm names without pause. While `away_since` is set, the database is away."""

    def __init__(self, here: World) -> None:
        group = here.group
        self.urls = urls = {
            "http": group.url,
            "native": group.native_url,
            "handle": f"hdl://127.0.0.1:{group.ports['handle_port']}",
        }
        self.clients = {
            front: [
                Client(url, timeout_s=CALL_S, retries=0, connections_max=1) for _ in range(ASKERS)
            ]
            for front, url in urls.items()
        }
        self.writers = {
            front: Client(urls[front], group.key, timeout_s=CALL_S, retries=0)
            for front in ("http", "native")
        }
        self.calls = Calls()
        self.away_since: float | None = None
        self.unanswered: dict[str, str] = {}
        """Writes of unknown outcome, by name: the front that took them."""
        self._cold = count()
        self._tasks: list[asyncio.Task[None]] = []
        self._run = secrets.token_hex(3)

    async def prepare(self) -> None:
        """Register the names, and make those warm that are to be: at every worker."""
        writer = self.writers["native"]
        names = [*_names("warm", WARM), *_names("cold", COLD)]
        await asyncio.gather(
            *(writer.register(name, {"URL": f"of {name}"}, overwrite=True) for name in names)
        )
        for clients in self.clients.values():
            for client in clients:
                for name in _names("warm", WARM):
                    await client.resolve(name)

    def start(self) -> None:
        for front, clients in self.clients.items():
            for n, client in enumerate(clients):
                self._tasks.append(asyncio.create_task(self._warm(front, client, n)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for clients in (*self.clients.values(), self.writers.values()):
            for client in clients:
                await client.close()
        faults = [e for e in ended if isinstance(e, Exception)]
        assert not faults, faults

    async def _warm(self, front: str, client: Client, n: int) -> None:
        while True:
            name = f"{PREFIX}/warm-{(n := n + 7) % WARM}"
            away, calls = self.away_since, self.calls
            began = time.monotonic()
            try:
                resolved = await client.resolve(name)
            except BiaojieError as error:
                calls.wrong.append(f"{front}: {name} warm: {error!r}")
            else:
                source = resolved.source
                calls.sources[front, source] += 1
                if resolved.record.values[0].data != f"of {name}".encode():
                    calls.wrong.append(f"{front}: {name} is {resolved.record.values}")
                known = away is not None and began > away + NOTICED_S
                if known and self.away_since == away and source == "cache" and front != "handle":
                    calls.wrong.append(f"{front}: {name} is not marked stale")
            calls.took(front, time.monotonic() - began)
            await asyncio.sleep(PAUSE_S)

    async def others(self) -> None:
        """While the database is away, every front: a name that nobody knows, one that exists and
        was never asked for, and a write."""
        work = [self._other(front, clients[0]) for front, clients in self.clients.items()]
        await asyncio.gather(*work, *(self._written(front) for front in self.writers))

    async def _other(self, front: str, client: Client) -> None:
        # One after the other: the first may meet the moment in which nothing is known yet.
        for name in (
            f"{PREFIX}/{self._run}-unknown-{front}-{next(self._cold)}",
            f"{PREFIX}/cold-{next(self._cold) % COLD}",
        ):
            calls, began = self.calls, time.monotonic()
            try:
                await client.resolve(name)
                calls.codes[front, "answered"] += 1  # it was on its way
            except TemporarilyUnavailable as error:
                calls.codes[front, error.code] += 1
            except BiaojieError as error:
                calls.codes[front, error.code] += 1
                if front != "handle" or isinstance(error, IdentifierNotFound):
                    calls.wrong.append(f"{front}: {name}: {error!r}")
            calls.took(f"{front} unknown", time.monotonic() - began)

    async def _written(self, front: str) -> None:
        name = f"{PREFIX}/{self._run}-written-{front}-{next(self._cold)}"
        calls, began = self.calls, time.monotonic()
        self.unanswered[name] = front
        try:
            await self._register(name)
            del self.unanswered[name]
        except (TemporarilyUnavailable, DeadlineExceeded) as error:
            calls.codes[f"{front} write", error.code] += 1
        calls.took(f"{front} write", time.monotonic() - began)

    async def _register(self, name: str) -> Any:
        client = self.writers[self.unanswered[name]]
        return await client.register(name, {"URL": "https://acme.example/"}, idempotency_key=name)

    async def recovered(self) -> None:
        """Return when every front answers everybody from the registry again, and takes writes."""
        fronts = [
            self._recovered(front, client)
            for front, clients in self.clients.items()
            for client in clients
        ]
        await asyncio.gather(*fronts, *map(self._takes_writes, self.writers))

    async def _takes_writes(self, front: str) -> None:
        name = f"{PREFIX}/{self._run}-back-{front}-{next(self._cold)}"
        self.unanswered[name] = front
        await _until(lambda: self._register(name))

    async def repeat(self) -> None:
        """What nobody knew the outcome of is done, now or then, and was done once."""
        for name in list(self.unanswered):
            receipt = await self._register(name)
            assert receipt.version == 1
            assert await self._register(name) == receipt
            del self.unanswered[name]

    async def _recovered(self, front: str, client: Client) -> None:
        async def absent() -> bool:
            try:
                await client.resolve(f"{PREFIX}/{self._run}-absent-{next(self._cold)}")
            except IdentifierNotFound:
                return True
            return False

        async def fresh() -> bool:
            return (await client.resolve(f"{PREFIX}/warm-1")).source != "stale"

        await _until(absent)
        await _until(fresh)


async def _until(work: Callable[[], Awaitable[T]]) -> T:
    """Again and again, until it is neither refused nor false."""
    deadline = time.monotonic() + 3 * RECOVERED_S
    while True:
        said: Any = None
        try:
            if said := await work():
                return said
        except BiaojieError as error:
            said = error
        assert time.monotonic() < deadline, repr(said)
        await asyncio.sleep(0.05)


def _names(kind: str, number: int) -> list[str]:
    return [f"{PREFIX}/{kind}-{n}" for n in range(number)]


# The run ----------------------------------------------------------------------------------


async def outage(
    here: World,
    *,
    away_s: float,
    before_s: float,
    faults: Sequence[str] = tuple(FAULTS),
    margin_s: float = 0.5,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Each fault for so long, one after the other. Raises AssertionError where a promise was
    broken; `margin_s` is what a busy machine may add to the deadline and to the recovery. How
    fast the answers were is measured and not judged here."""
    found: dict[str, Any] = {}
    askers = Askers(here)
    await askers.prepare()
    askers.start()
    try:
        for fault in faults:
            found[fault] = await _one(here, askers, fault, away_s, before_s, margin_s)
            say(f"{fault}: {found[fault]}")
    finally:
        await askers.stop()
    async with auditor(lambda: here.group.url, here.group.key) as audit:
        logged = Counter(name for _, name in (await audit.logged(PREFIX)).elements())
    assert set(logged.values()) == {1}, "a write was done twice"
    verified = await asyncio.to_thread(here.group.command, "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return {"away_s": away_s, "faults": found}


async def _one(
    here: World, askers: Askers, fault: str, away_s: float, before_s: float, margin_s: float
) -> dict[str, Any]:
    harm, heal = FAULTS[fault]
    before = askers.calls = Calls()
    await asyncio.sleep(before_s)
    calls = askers.calls = Calls()
    began = askers.away_since = time.monotonic()
    await harm(here)
    try:
        while time.monotonic() - began < away_s:
            await askers.others()
            await asyncio.sleep(0.2)
    finally:
        askers.away_since = None
        askers.calls = after = Calls()
        await heal(here)
    back = time.monotonic()
    await askers.recovered()
    back_s = time.monotonic() - back
    await askers.repeat()
    wrong = before.wrong + calls.wrong + after.wrong
    assert not wrong, f"{fault}: {len(wrong)} wrong: {wrong[:5]}"
    longest_s = max(calls.longest_s, after.longest_s)
    assert longest_s < DEADLINE_S + margin_s, f"{fault}: a call took {longest_s:.2f} s"
    assert back_s < RECOVERED_S + margin_s, f"{fault}: recovered after {back_s:.2f} s"
    assert calls.sources["http", "stale"] > 0
    assert calls.sources["native", "stale"] > 0
    return {
        "warm_answered": sum(calls.sources.values()),
        "stale": {front: calls.sources[front, "stale"] for front in ("http", "native")},
        "codes": {f"{front} {code}": n for (front, code), n in sorted(calls.codes.items())},
        "longest_s": longest_s,
        "recovered_s": back_s,
        "p99_ms": {
            front: {"before": before.p99_ms(front), "away": calls.p99_ms(front)}
            for front in askers.clients
        },
    }


async def worker_lost(here: World, *, calls: int, margin_s: float) -> dict[str, Any]:
    """A worker dies while the database is away. Its successor has nothing to answer from: who
    reaches it is sent away at once, who reaches the other gets what that one knows, and after the
    return all is well soon."""
    askers = Askers(here)
    await askers.prepare()
    await askers.stop()
    await asyncio.to_thread(here.server.kill)
    try:
        await asyncio.sleep(NOTICED_S)
        lost = here.group.serving()[0]
        os.kill(lost, signal.SIGKILL)
        met: Counter[str] = Counter()
        # Until the successor has loaded the program nobody is there to send people away.
        await _said(here.group, '"waiting for the registry"')
        longest_s = 0.0
        for _ in range(calls):
            for front, url in askers.urls.items():
                began = time.monotonic()
                # A connection for each call, and so either worker. A datagram that nobody
                # takes is lost as any may be; how long its sender waits is its own affair.
                tcp = HandleOptions(udp=False) if front == "handle" else None
                async with Client(url, timeout_s=CALL_S, retries=0, handle=tcp) as client:
                    try:
                        await client.resolve(f"{PREFIX}/warm-1")
                        met[f"{front} answered"] += 1
                    except IdentifierNotFound:
                        raise
                    except BiaojieError as error:
                        met[f"{front} {error.code}"] += 1
                longest_s = max(longest_s, time.monotonic() - began)
            await asyncio.sleep(0.05)
    finally:
        await asyncio.to_thread(here.server.start)
        back = time.monotonic()
    assert longest_s < DEADLINE_S + margin_s, f"{longest_s:.2f} s, {met}"
    pids = here.group.serving()
    assert lost not in pids
    for url in askers.urls.values():
        for _ in range(ASKERS):
            async with Client(url, timeout_s=CALL_S, retries=0) as client:
                await _until(lambda c=client: c.resolve(f"{PREFIX}/cold-1"))
    await _said(here.group, '"worker ready"', len(pids) + 1)
    back_s = time.monotonic() - back
    assert back_s < RECOVERED_S + margin_s, f"recovered after {back_s:.2f} s"
    return {"met": dict(met), "longest_s": longest_s, "recovered_s": back_s}


async def _said(group: Group, event: str, times: int = 1) -> None:
    """Return when the node's log has it so often."""
    until = time.monotonic() + START_S
    while group.log.count(event) < times:
        assert time.monotonic() < until, f"{event} is not in the log"
        await asyncio.sleep(0.05)
