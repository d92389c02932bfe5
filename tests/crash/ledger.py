"""Clients that keep a ledger of what they were told, and the comparison of ledgers and registry.

Every client repeats what was not answered under the same key until it is. Then the registry must
hold exactly what the ledgers say: no change less, none more, none in part. The identifiers of a
client are its own, so that what it knows of them is all that there is to know.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, TypeVar

import aiohttp

from biaojie import Client, Row
from biaojie.calls import Mode
from biaojie.change import Receipt
from biaojie.errors import BiaojieError, IdempotencyRunning, StorageFull

T = TypeVar("T")
BATCH = 15
CALL_S = 4.0
SETTLE_S = 60.0
"""Within it every write is answered, whatever was done to the node meanwhile."""
PAGE = 500
RECENT = 60
OUT_OF_REACH = {"temporarily-unavailable", "deadline-exceeded", "over-capacity"}

Known = tuple[int, str | None]
"""An identifier's version and the text of its values; None: it is retired."""


def values(text: str) -> list[dict[str, Any]]:
    return [{"index": n, "type": "TEXT", "data": f"{text} {n}"} for n in (1, 2, 3)]


class Writer:
    """Writes without pause while `running` is set; never leaves a write unanswered.

    `urls` are the ways to the node, used in turn: directly, through a proxy. All speak one
    protocol: under a key the same octets must come.
    """

    def __init__(self, number: int, urls: Sequence[str], key: str, prefix: str, seed: int) -> None:
        self.number = number
        self.known: dict[str, Known] = {}
        self.names: list[str] = []
        """In the order in which they were registered."""
        self.changes: Counter[tuple[int, str]] = Counter()
        """How often it was told that a log entry holds a change of an identifier."""
        self.acknowledged = 0
        self.attempts = 0
        self.pending: set[str] = set()
        self.running = asyncio.Event()
        self.idle = asyncio.Event()
        self._clients = [Client(url, key, timeout_s=CALL_S, retries=1) for url in urls]
        self._prefix = prefix
        self._chance = random.Random(f"{seed}-{number}")
        self._seed = seed
        self._serial = count()
        self.task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for client in self._clients:
            await client.close()

    def check(self) -> None:
        """Raise what ended this client, if anything did."""
        if self.task.done():
            self.task.result()

    async def _run(self) -> None:
        try:
            while True:
                if not self.running.is_set():
                    self.idle.set()
                    await self.running.wait()
                    self.idle.clear()
                await self._write()
        finally:
            self.idle.set()

    async def _told(self, call: Callable[[Client, str], Awaitable[T]]) -> T:
        """One write, repeated on one way after the other until it is answered."""
        key = f"{self._seed}-{self.number}-{next(self._serial)}"
        deadline = time.monotonic() + SETTLE_S
        while True:
            self.attempts += 1
            client = self._clients[self.attempts % len(self._clients)]
            try:
                return await call(client, key)
            except (IdempotencyRunning, StorageFull) as error:
                last: BiaojieError = error
            except BiaojieError as error:
                if not error.retryable:
                    raise
                last = error
            assert time.monotonic() < deadline, f"client {self.number}, {client}: {last!r}"
            await asyncio.sleep(0.02)

    async def _write(self) -> None:
        old = self.names[-40:]
        name = self._chance.choice(old) if old and self._chance.random() < 0.4 else None
        if name is not None and self.known[name][1] is not None:
            await (self._modify(name) if self._chance.random() < 0.85 else self._retire(name))
        elif self._chance.random() < 0.25:
            await self._batch()
        else:
            await self._register()

    def _name(self) -> str:
        return f"{self._prefix}/c{self.number}-{next(self._serial)}"

    def _note(self, receipt: Receipt, name: str, known: Known, action: str) -> None:
        told = (receipt.identifier, receipt.action.value, receipt.version)
        assert told == (name, action, known[0]), (receipt, name, known, action)
        if name not in self.known:
            self.names.append(name)
        self.known[name] = known
        self.changes[receipt.sequence, name] += 1
        self.acknowledged += 1

    async def _register(self) -> None:
        name = self._name()
        self.pending = {name}
        receipt = await self._told(
            lambda client, key: client.register(name, values("first"), idempotency_key=key)
        )
        self._note(receipt, name, (1, "first"), "create")

    async def _modify(self, name: str) -> None:
        version = self.known[name][0] + 1
        text = f"change {version}"
        self.pending = {name}
        receipt = await self._told(
            lambda client, key: client.modify(name, values(text), idempotency_key=key)
        )
        self._note(receipt, name, (version, text), "modify")

    async def _retire(self, name: str) -> None:
        self.pending = {name}
        receipt = await self._told(lambda client, key: client.retire(name, idempotency_key=key))
        self._note(receipt, name, (self.known[name][0] + 1, None), "retire")

    async def _batch(self) -> None:
        names = [self._name() for _ in range(BATCH)]
        rows = [Row(name, values("batch")) for name in names]
        mode: Mode = self._chance.choice(["all", "valid-rows"])
        if mode == "valid-rows":
            rows.insert(7, Row(f"{self._prefix}.999/nobody", values("not written")))
        self.pending = set(names)
        results = await self._told(
            lambda client, key: client.register_batch(
                rows, mode, idempotency_key=key, timeout_s=CALL_S
            )
        )
        # A torn batch would show as rows that are taken already, or in different entries.
        receipts = [result.receipt for result in results if result.code != "prefix-not-here"]
        for name, receipt in zip(names, receipts, strict=True):
            assert receipt is not None, results
            assert receipt.sequence == (receipts[0] or receipt).sequence, results
            self._note(receipt, name, (1, "batch"), "create")


@asynccontextmanager
async def writers(
    number: int, ways: Sequence[Sequence[str]], key: str, prefix: str, seed: int
) -> AsyncIterator[list[Writer]]:
    """So many clients; the n-th takes the n-th of `ways`, round and round."""
    made = [Writer(n, ways[n % len(ways)], key, prefix, seed) for n in range(number)]
    try:
        yield made
    finally:
        for writer in made:
            await writer.close()


async def settle(clients: Sequence[Writer]) -> None:
    """Let every client end the write it has begun."""
    for client in clients:
        client.running.clear()
    async with asyncio.timeout(SETTLE_S):
        await asyncio.gather(*(client.idle.wait() for client in clients))
    for client in clients:
        client.check()


class Auditor:
    """Compares what the ledgers say with what the registry holds, over HTTP with an admin's key."""

    def __init__(self, url: Callable[[], str], session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def records(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What the registry holds now: with an admin's key all but stale answers come from it."""
        found: dict[str, dict[str, Any]] = {}
        left = list(names)
        deadline = time.monotonic() + SETTLE_S
        while left:
            asked, left = left[:PAGE], left[PAGE:]
            items = []
            try:
                target = f"{self._url()}/api/v1/identifiers:resolve"
                async with self._session.post(target, json={"identifiers": asked}) as reply:
                    document = await reply.json()
                items = document.get("items", [])
            except (aiohttp.ClientError, TimeoutError, ValueError):
                pass
            sure = {
                item["identifier"]: item
                for item in items
                if item.get("source") != "stale" and item.get("code") not in OUT_OF_REACH
            }
            found |= sure
            if len(sure) < len(asked):
                assert time.monotonic() < deadline, "the registry does not answer"
                left += [name for name in asked if name not in sure]
                await asyncio.sleep(0.05)
        return found

    async def recent(self, clients: Sequence[Writer]) -> int:
        """While the clients go on: what was acknowledged a moment ago is there. How many it
        looked at."""
        looked_at = 0
        for client in clients:
            client.check()
            pending = set(client.pending)
            before = {name: client.known[name] for name in client.names[-RECENT:]}
            found = await self.records(list(before))
            for name, known in before.items():
                # What is being changed just now is compared when it is done.
                if name not in pending | client.pending and client.known[name] == known:
                    check_record(name, found[name], known)
                    looked_at += 1
        return looked_at

    async def everything(self, clients: Sequence[Writer], prefix: str, start: str = "") -> int:
        """When the clients rest: each record is what its ledger says, and the log holds the
        changes of the ledgers and no other. How many changes it holds. With `start` others have
        written too, under suffixes that start otherwise."""
        changes: Counter[tuple[int, str]] = Counter()
        ours = f"{prefix}/{start}"
        for client in clients:
            found = await self.records(list(client.known))
            for name, known in client.known.items():
                check_record(name, found[name], known)
            changes += client.changes
        logged = Counter(
            {told: n for told, n in (await self.logged(prefix)).items() if told[1].startswith(ours)}
        )
        assert logged == changes, (
            f"lost: {list((changes - logged).items())[:5]},"
            f" doubled or never told: {list((logged - changes).items())[:5]}"
        )
        return changes.total()

    async def logged(self, prefix: str) -> Counter[tuple[int, str]]:
        """How often each identifier was changed by each entry of the log."""
        changes: Counter[tuple[int, str]] = Counter()
        after = 0
        while True:
            target = f"{self._url()}/api/v1/changes?after={after}&limit=200"
            async with self._session.get(target) as reply:
                page = await reply.json()
            if not page["items"]:
                return changes
            after = page["next"]
            for entry in page["items"]:
                changes.update(
                    (entry["sequence"], change["subject"])
                    for change in entry["changes"]
                    if change["subject"].startswith(f"{prefix}/")
                )


@asynccontextmanager
async def auditor(url: Callable[[], str], key: str) -> AsyncIterator[Auditor]:
    session = aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"}, timeout=aiohttp.ClientTimeout(total=15)
    )
    async with session:
        yield Auditor(url, session)


def check_record(name: str, item: dict[str, Any], known: Known) -> None:
    """The record is wholly what that version was."""
    version, text = known
    if text is None:
        assert item.get("code") == "identifier-retired", (name, item)
        return
    record = item.get("record")
    assert record is not None, f"{name} was acknowledged and is lost: {item}"
    assert record["version"] == version, (name, item)
    assert [value["data"] for value in record["values"]] == [f"{text} {n}" for n in (1, 2, 3)], name
