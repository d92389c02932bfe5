"""SIGKILL over and over while clients write: nothing acknowledged is lost, doubled or torn.

Half of the clients come through proxies that cut and drop replies after the commit.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bench.proxy import Faults, Proxy
from tests.crash.group import PREFIX, Group, harm, kinds_of
from tests.crash.ledger import SETTLE_S, auditor, settle, writers
from tests.postgres import Postgres

FAULTS = Faults(
    reset=0.05, cut=0.2, half_close=0.1, drop=0.15, stall=0.01, after=(0, 4_000), linger_s=(0, 0.1)
)


async def kills(
    group: Group,
    server: Postgres | None,
    *,
    number: int,
    seed: int,
    clients: int = 12,
    pause_s: tuple[float, float] = (0.005, 2.0),
    kinds: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """So many kills at random moments, `pause_s` apart; `kinds`: of what else than is usual.
    Raises AssertionError where a promise was broken; else says what was done."""
    kinds = kinds or kinds_of(group, server)
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    back_s: list[float] = []
    compared = 0
    began = time.monotonic()
    http = Proxy(("127.0.0.1", group.ports["port"]), faults=FAULTS, seed=seed)
    native = Proxy(("127.0.0.1", group.ports["native_port"]), faults=FAULTS, seed=seed + 1)
    async with http, native, auditor(lambda: group.url, group.key) as audit:
        ways = [
            [group.url],
            [group.native_url],
            [f"http://127.0.0.1:{http.port}", group.url],
            [f"biaojie://127.0.0.1:{native.port}", group.native_url],
        ]
        async with writers(clients, ways, group.key, PREFIX, seed) as made:
            for writer in made:
                writer.running.set()
            for turn in range(number):
                await asyncio.sleep(chance.uniform(*pause_s))
                # Each kind once in so many, in another order every time.
                if turn % len(kinds) == 0:
                    order = chance.sample(kinds, len(kinds))
                kind = order[turn % len(kinds)]
                done[kind] += 1
                before = sum(writer.acknowledged for writer in made)
                harmed = time.monotonic()
                await harm(kind, group, server, chance)
                while sum(writer.acknowledged for writer in made) == before:
                    for writer in made:
                        writer.check()
                    assert time.monotonic() - harmed < SETTLE_S, f"no write after {kind}"
                    await asyncio.sleep(0.02)
                back_s.append(time.monotonic() - harmed)
                compared += await audit.recent(made)
                if turn % 20 == 19:
                    acknowledged = sum(writer.acknowledged for writer in made)
                    took = time.monotonic() - began
                    say(f"{took:6.0f} s  {turn + 1} kills, {acknowledged:,} writes acknowledged")
            await settle(made)
            changes = await audit.everything(made, PREFIX)
            return {
                "workers": group.workers,
                "kills": done.total(),
                "kinds": dict(done),
                "acknowledged": sum(writer.acknowledged for writer in made),
                "attempts": sum(writer.attempts for writer in made),
                "changes": changes,
                "compared_at_once": compared,
                "faults": dict(http.counts + native.counts),
                "back_s": {"median": median(back_s), "max": max(back_s)},
                "seconds": time.monotonic() - began,
            }
