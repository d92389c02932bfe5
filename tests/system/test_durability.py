"""kill -9 at random moments while many write: nothing acknowledged is lost, doubled or torn.

Every client keeps a ledger and repeats what was not answered under the same Idempotency-Key
until it is. Then the registry must hold exactly what the ledger says: not one change more.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from registry.sql import migrate
from tests.postgres import Postgres, run_apart
from tests.system.described import IDS, Described
from tests.system.quick_start import QuickNode

KILLS = 25
CLIENTS = 8
BATCH = 15
SETTLE_S = 30.0
AGAIN = {
    "idempotency-running",
    "temporarily-unavailable",
    "deadline-exceeded",
    "over-capacity",
}
"""Refusals after which a write is repeated."""

Values = list[dict[str, Any]]


def values(text: str) -> Values:
    return [{"index": n, "type": "TEXT", "data": f"{text} {n}"} for n in (1, 2, 3)]


@dataclass
class Ledger:
    """What one client was told is so: name → (version, text of its values or None if retired)."""

    known: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    acknowledged: int = 0
    changes: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, version: int, text: str | None) -> None:
        self.known[name] = (version, text)
        self.changes[name] += 1


class Client:
    """Writes without pause while `running` is set; never leaves a write unanswered."""

    def __init__(
        self, number: int, node: QuickNode, session: aiohttp.ClientSession, seed: int
    ) -> None:
        self.number = number
        self.node = node
        self.session = session
        self.chance = random.Random(f"{seed}-{number}")
        self.ledger = Ledger()
        self.pending: set[str] = set()
        self.running = asyncio.Event()
        self.idle = asyncio.Event()
        self.task = asyncio.create_task(self.run())
        self._serial = count()

    async def ask(self, method: str, target: str, body: Any) -> Any:
        """One write, repeated until it is answered; returns the reply of the one that was done."""
        key = f"{self.number}-{next(self._serial)}"
        async with asyncio.timeout(SETTLE_S):
            while True:
                try:
                    reply = await self.session.request(
                        method,
                        self.node.url + target,
                        json=body,
                        headers={"Idempotency-Key": key},
                    )
                    content = await reply.json()
                except (aiohttp.ClientError, TimeoutError, ValueError):
                    await asyncio.sleep(0.02)
                    continue
                if content.get("code") in AGAIN:
                    await asyncio.sleep(0.02)
                    continue
                assert reply.status in (200, 201), (method, target, reply.status, content)
                self.ledger.acknowledged += 1
                return content

    async def run(self) -> None:
        try:
            while True:
                if not self.running.is_set():
                    self.idle.set()
                    await self.running.wait()
                    self.idle.clear()
                await self.write()
        finally:
            self.idle.set()

    def check(self) -> None:
        """Raise what ended this client, if anything did."""
        if self.task.done():
            self.task.result()

    async def write(self) -> None:
        old = list(self.ledger.known)[-40:]
        name = self.chance.choice(old) if old and self.chance.random() < 0.4 else None
        if name is not None and self.ledger.known[name][1] is not None:
            await (self.change(name) if self.chance.random() < 0.85 else self.retire(name))
        elif self.chance.random() < 0.25:
            await self.batch()
        else:
            await self.register()

    def name(self) -> str:
        return f"88.118.8/c{self.number}-{next(self._serial)}"

    async def register(self) -> None:
        name = self.name()
        body = {"identifier": name, "values": values("first")}
        self.pending = {name}
        receipt = await self.ask("POST", IDS, body)
        assert (receipt["action"], receipt["version"]) == ("create", 1), receipt
        self.ledger.note(name, 1, "first")

    async def change(self, name: str) -> None:
        version = self.ledger.known[name][0] + 1
        text = f"change {version}"
        self.pending = {name}
        receipt = await self.ask("PATCH", f"{IDS}/{name}", {"set": values(text)})
        assert receipt["version"] == version, receipt
        self.ledger.note(name, version, text)

    async def retire(self, name: str) -> None:
        version = self.ledger.known[name][0] + 1
        self.pending = {name}
        receipt = await self.ask("DELETE", f"{IDS}/{name}", None)
        assert (receipt["version"], receipt["status"]) == (version, "retired"), receipt
        self.ledger.note(name, version, None)

    async def batch(self) -> None:
        names = [self.name() for _ in range(BATCH)]
        mode = self.chance.choice(["all", "valid-rows"])
        rows: list[dict[str, Any]] = [
            {"identifier": name, "values": values("batch")} for name in names
        ]
        if mode == "valid-rows":
            rows.insert(7, {"identifier": "no identifier"})
        self.pending = set(names)
        reply = await self.ask("POST", IDS + ":batch", {"mode": mode, "rows": rows})
        # A torn batch would show as rows that are taken already.
        assert reply["written"] == BATCH, reply
        assert {row["sequence"] for row in reply["rows"] if row["ok"]} == {reply["sequence"]}
        for name in names:
            self.ledger.note(name, 1, "batch")


async def records(
    node: QuickNode, session: aiohttp.ClientSession, names: list[str]
) -> dict[str, dict[str, Any]]:
    """What the registry holds. With an admin's key all but stale answers come from the store."""
    found: dict[str, dict[str, Any]] = {}
    async with asyncio.timeout(SETTLE_S):
        while len(found) < len(names):
            asked = [name for name in names if name not in found][:500]
            body = {"identifiers": asked}
            async with session.post(f"{node.url}{IDS}:resolve", json=body) as reply:
                items = (await reply.json())["items"]
            known = [i for i in items if i.get("source") != "stale" and i.get("code") not in AGAIN]
            found |= {item["identifier"]: item for item in known}
            if len(known) < len(items):
                await asyncio.sleep(0.05)
    return found


def check_record(name: str, item: dict[str, Any], version: int, text: str | None) -> None:
    """The record is wholly what that version was."""
    if text is None:
        assert item.get("code") == "identifier-retired", (name, item)
        return
    record = item.get("record")
    assert record is not None, f"{name} was acknowledged and is lost: {item}"
    assert record["version"] == version, (name, item)
    assert [value["data"] for value in record["values"]] == [f"{text} {n}" for n in (1, 2, 3)], name


async def check_acknowledged(
    node: QuickNode, session: aiohttp.ClientSession, clients: list[Client]
) -> None:
    """Right after a restart, while the clients go on: all that was acknowledged is there."""
    for client in clients:
        client.check()
        pending = set(client.pending)
        before = dict(list(client.ledger.known.items())[-60:])
        found = await records(node, session, list(before))
        for name, known in before.items():
            # What is being changed just now is checked when it is done.
            if name not in pending | client.pending and client.ledger.known[name] == known:
                check_record(name, found[name], *known)


async def settle(clients: list[Client]) -> None:
    """Let every client end the write it has begun."""
    for client in clients:
        client.running.clear()
    async with asyncio.timeout(SETTLE_S):
        await asyncio.gather(*(client.idle.wait() for client in clients))
    for client in clients:
        client.check()


@asynccontextmanager
async def clients_of(node: QuickNode, seed: int) -> AsyncIterator[list[Client]]:
    session = aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {node.key}"},
        timeout=aiohttp.ClientTimeout(total=6),
        connector=aiohttp.TCPConnector(limit=CLIENTS * 2),
    )
    async with session:
        clients = [Client(number, node, session, seed) for number in range(CLIENTS)]
        try:
            yield clients
        finally:
            for client in clients:
                client.task.cancel()
            await asyncio.gather(*(client.task for client in clients), return_exceptions=True)


async def survive(
    node: QuickNode, seed: int, harm: Callable[[random.Random], Awaitable[None]]
) -> int:
    """KILLS rounds of writing and harm; returns how many writes were acknowledged."""
    chance = random.Random(seed)
    async with clients_of(node, seed) as clients:
        session = clients[0].session
        for _ in range(KILLS):
            for client in clients:
                client.running.set()
            await asyncio.sleep(chance.uniform(0.005, 0.4))
            await harm(chance)
            await check_acknowledged(node, session, clients)
        await settle(clients)
        changes: Counter[str] = Counter()
        for client in clients:
            found = await records(node, session, list(client.ledger.known))
            for name, (version, text) in client.ledger.known.items():
                check_record(name, found[name], version, text)
            changes += client.ledger.changes
        assert await logged_changes(node, session) == changes
        return sum(client.ledger.acknowledged for client in clients)


async def logged_changes(node: QuickNode, session: aiohttp.ClientSession) -> Counter[str]:
    """How often the log says that each identifier was changed."""
    changes: Counter[str] = Counter()
    after = 0
    while True:
        target = f"{node.url}/api/v1/changes?after={after}&limit=1000"
        async with session.get(target) as reply:
            page = await reply.json()
        if not page["items"]:
            return changes
        after = page["next"]
        for entry in page["items"]:
            subjects = [change["subject"] for change in entry["changes"]]
            changes += Counter(s for s in subjects if s.startswith("88.118.8/"))


def check_log(node: QuickNode) -> None:
    verified = subprocess.run(
        [sys.executable, "-m", "resolver", "verify"],
        env=node.settings(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "Traceback" not in node.log


async def restart(node: QuickNode) -> None:
    node.kill()
    await asyncio.to_thread(node.start)


@pytest.fixture
def make_quick(tmp_path: Path) -> Iterator[Callable[[str], QuickNode]]:
    """make_quick(database_url) starts a node with the prefix 88.118.8."""
    nodes: list[QuickNode] = []

    def make(database_url: str) -> QuickNode:
        node = QuickNode(tmp_path, {"BIAOJIE_DATABASE_URL": database_url})
        nodes.append(node)
        node.start()
        home = {"prefix": "88.118.8", "tenant": "acme"}
        made = Described(node.port, node.key).ask("POST", "/api/v1/prefixes", home)
        assert made.status == 201
        return node

    yield make
    for node in nodes:
        node.stop()


async def test_kills_on_sqlite(make_quick: Callable[[str], QuickNode], sqlite_url: str) -> None:
    node = make_quick(sqlite_url)
    acknowledged = await survive(node, 20, lambda chance: restart(node))
    assert acknowledged > 300
    assert node.stop() == 0
    check_log(node)


@pytest.fixture
def server() -> Iterator[Postgres]:
    own = Postgres()
    try:
        run_apart(migrate(own.url()))
        yield own
    finally:
        own.close()


async def test_kills_on_postgresql(
    make_quick: Callable[[str], QuickNode], server: Postgres
) -> None:
    """The node, the postmaster, or both at once."""
    node = make_quick(server.url())

    async def harm(chance: random.Random) -> None:
        what = chance.choice(["node", "node", "node", "database", "both"])
        if what != "node":
            server.kill()
        if what != "database":
            node.kill()
        if what != "node":
            await asyncio.to_thread(server.start)
        if what != "database":
            await asyncio.to_thread(node.start)
        await ready(node)

    acknowledged = await survive(node, 21, harm)
    assert acknowledged > 300
    assert node.stop() == 0
    check_log(node)


async def ready(node: QuickNode) -> None:
    """Wait until the node has found its database again."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(10):
        while True:
            async with session.get(node.url + "/readyz") as reply:
                if (await reply.json())["status"] == "ok":
                    return
            await asyncio.sleep(0.05)
