"""Retries and races: what was done is never done twice, and of many who want one name one has it.

`cut_replies`: replies are cut or dropped after the commit, the call is repeated with its key.
`race`: many clients at once register the same identifier, each with values of its own.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import aiohttp

from bench.proxy import Faults, Proxy
from biaojie import Client
from biaojie.errors import (
    BiaojieError,
    IdempotencyMismatch,
    IdempotencyRunning,
    IdentifierTaken,
)
from tests.crash.group import PREFIX, Group
from tests.crash.ledger import CALL_S, SETTLE_S, Auditor, auditor
from tests.postgres import Postgres

IDS = "/api/v1/identifiers"
AT_ONCE = 32
LOST = Faults(cut=0.5, drop=0.5, after=(0, 100), linger_s=(0.0, 0.02))
"""The reply to a registration has more octets."""
RUNNING = 20
"""Pairs of calls for the 409."""
HELD_S = 0.4


# Replies that never come ------------------------------------------------------------------


async def cut_replies(
    group: Group, server: Postgres | None, *, number: int, seed: int
) -> dict[str, Any]:
    """So many registrations, three of four over HTTP, one native. Raises AssertionError."""
    began = time.monotonic()
    async with auditor(lambda: group.url, group.key) as audit:
        natively = number // 4
        http = await _http(group, audit, number - natively, seed)
        native = await _native(group, audit, natively, seed)
        running = await _still_running(group, server)
        for way, times in (("http", number - natively), ("native", natively), ("running", running)):
            names = await _logged(audit, way)
            assert set(names.values()) == {1}, [name for name, n in names.items() if n > 1][:5]
            assert names.total() == times
    return {
        "calls": number,
        "done_before_the_retry": http + native,
        "mismatches_refused": number,
        "running_refused": running - 1,
        "seconds": time.monotonic() - began,
    }


async def _http(group: Group, audit: Auditor, number: int, seed: int) -> int:
    """How many were done though their reply did not come; then each is repeated."""
    headers = {"Authorization": f"Bearer {group.key}"}
    names = [f"{PREFIX}/http-{n}" for n in range(number)]
    url = group.url + IDS
    async with (
        Proxy(("127.0.0.1", group.ports["port"]), faults=LOST, seed=seed) as proxy,
        aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=30),
            connector=aiohttp.TCPConnector(limit=AT_ONCE),
        ) as session,
        aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=30),
            connector=aiohttp.TCPConnector(limit=AT_ONCE, force_close=True),
        ) as cut,
    ):

        async def lose(name: str) -> None:
            body, key = {"identifier": name, "values": _values(name)}, {"Idempotency-Key": name}
            try:
                there = f"http://127.0.0.1:{proxy.port}{IDS}"
                async with cut.post(there, json=body, headers=key) as reply:
                    await reply.read()
            except aiohttp.ClientError:
                return
            raise AssertionError(f"the reply for {name} came through")

        async def repeat(name: str) -> None:
            body, key = {"identifier": name, "values": _values(name)}, {"Idempotency-Key": name}
            replies = []
            for _ in range(2):
                async with session.post(url, json=body, headers=key) as reply:
                    replies.append((reply.status, await reply.read()))
            assert replies[0] == replies[1], replies
            assert replies[0][0] == 201, replies
            assert b'"version":1,' in replies[0][1].replace(b" ", b""), replies
            other = body | {"values": _values("something else")}
            async with session.post(url, json=other, headers=key) as reply:
                told = (reply.status, (await reply.json())["code"])
            assert told == (422, "idempotency-mismatch"), told

        await _all(lose, names)
        done = await _held(audit, names)
        assert done == number  # a reply that had begun was one to a commit
        await _all(repeat, names)
        assert await _held(audit, names) == number
        return done


async def _native(group: Group, audit: Auditor, number: int, seed: int) -> int:
    """As over HTTP. Here many calls share a connection, so that the requests of some are lost
    with the replies of others."""
    names = [f"{PREFIX}/native-{n}" for n in range(number)]
    lost = Faults(cut=0.5, drop=0.5, after=(0, 3_000), linger_s=LOST.linger_s)
    async with (
        Proxy(("127.0.0.1", group.ports["native_port"]), faults=lost, seed=seed) as proxy,
        Client(f"biaojie://127.0.0.1:{proxy.port}", group.key, retries=0, timeout_s=CALL_S) as cut,
        Client(group.native_url, group.key, timeout_s=30) as client,
    ):
        came: dict[str, Any] = {}

        async def lose(name: str) -> None:
            try:
                came[name] = await cut.register(name, _values(name), idempotency_key=name)
            except BiaojieError as error:
                if not error.retryable:
                    raise

        async def repeat(name: str) -> None:
            receipts = [
                await client.register(name, _values(name), idempotency_key=name) for _ in range(2)
            ]
            assert receipts[0] == receipts[1] == came.get(name, receipts[0])
            assert receipts[0].version == 1
            try:
                await client.register(name, _values("something else"), idempotency_key=name)
            except IdempotencyMismatch:
                return
            raise AssertionError(f"{name}: another request under the same key")

        await _all(lose, names)
        done = await _held(audit, names) - len(came)
        await _all(repeat, names)
        assert await _held(audit, names) == number
        return done


async def _still_running(group: Group, server: Postgres | None) -> int:
    """The same call twice on one connection while no commit can end: the second is told so, and
    both get the same answer later. How many names that took."""
    names = [f"{PREFIX}/running-{n}" for n in range(RUNNING)]
    async with Client(group.native_url, group.key, connections_max=1, retries=0) as client:

        async def register(name: str) -> Any:
            return await client.register(name, _values(name), idempotency_key=name)

        await client.register(names[0], _values(names[0]), idempotency_key=names[0])
        with _no_commit(group, server):
            first = [asyncio.create_task(register(name)) for name in names[1:]]
            await asyncio.sleep(HELD_S / 2)
            second = await asyncio.gather(*map(register, names[1:]), return_exceptions=True)
            assert {type(one) for one in second} == {IdempotencyRunning}, second
        told = await asyncio.gather(*first)
        assert [await register(name) for name in names[1:]] == told
    return len(names)


@contextmanager
def _no_commit(group: Group, server: Postgres | None) -> Iterator[None]:
    """Within it no write comes to its end."""
    if server is not None:
        server.freeze()
        try:
            yield
        finally:
            server.thaw()
        return
    with closing(sqlite3.connect(group.data_dir / "registry.db", isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield
        file.execute("ROLLBACK")


# One name, many who want it ---------------------------------------------------------------


async def race(group: Group, *, rounds: int, clients: int, seed: int) -> dict[str, Any]:
    """Raises AssertionError unless each round has exactly one winner, whose values are there."""
    chance = random.Random(seed)
    began = time.monotonic()
    async with auditor(lambda: group.url, group.key) as audit:
        urls = [group.url, group.native_url]
        racers = [
            Client(urls[n % 2], group.key, retries=20, timeout_s=SETTLE_S, connections_max=1)
            for n in range(clients)
        ]
        try:
            winners = Counter[str]()
            for number in range(rounds):
                name = f"{PREFIX}/race-{number}"
                order = chance.sample(range(clients), clients)
                told = await asyncio.gather(
                    *(racers[n].register(name, _values(f"of {n}")) for n in order),
                    return_exceptions=True,
                )
                won = [n for n, one in zip(order, told, strict=True) if not _taken(one)]
                assert len(won) == 1, f"{name}: {won} have it"
                record = (await audit.records([name]))[name]["record"]
                assert record["version"] == 1
                assert record["values"][0]["data"] == f"of {won[0]}"
                winners["native" if won[0] % 2 else "http"] += 1
        finally:
            for racer in racers:
                await racer.close()
        assert await _logged(audit, "race") == {
            f"{PREFIX}/race-{number}": 1 for number in range(rounds)
        }
    return {
        "clients": clients,
        "rounds": rounds,
        "winners": dict(winners),
        "seconds": time.monotonic() - began,
    }


def _taken(told: Any) -> bool:
    if isinstance(told, BaseException):
        assert isinstance(told, IdentifierTaken), repr(told)
        return True
    return False


# What they have in common -----------------------------------------------------------------


def _values(text: str) -> list[dict[str, Any]]:
    return [{"index": 1, "type": "TEXT", "data": text}]


async def _all(work: Callable[[str], Any], names: list[str]) -> None:
    """For every name, `AT_ONCE` at a time."""
    left = iter(names)

    async def some() -> None:
        for name in left:
            await work(name)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def _held(audit: Auditor, names: list[str]) -> int:
    """How many of them the registry holds."""
    found = await audit.records(names)
    held = [item["record"] for item in found.values() if item.get("record")]
    assert all(record["version"] == 1 for record in held)
    return len(held)


async def _logged(audit: Auditor, start: str) -> Counter[str]:
    """How often the log says that each of these identifiers was changed."""
    logged = await audit.logged(PREFIX)
    return Counter(name for _, name in logged.elements() if name.startswith(f"{PREFIX}/{start}-"))
