"""Chunks of a plan into a registry: worker processes make, check and cut them, this one commits.

Every chunk goes through `Registrar.load` in its turn, as a registrar of the enterprise that owns
the prefix: rights, uniqueness and change log are as for anybody else, and a chunk that counts is
on disk. The registry begins with one entry that homes all prefixes; each chunk is one entry more,
so the log itself says how far a load came.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from biaojie.account import Role
from biaojie.change import Action
from registry.admission import SYSTEM, Caller
from registry.blocks import Bulk, Chunk, cut
from registry.columns import check_chunk
from registry.operations import HomePrefix
from registry.registrar import Registrar
from registry.store import Store

from ..words import BenchFault
from .plan import PREFIXES, Piece, Plan, columns, prefix_of, template_of, tenant_of

_AHEAD: Final = 3
"""Chunks for each worker that are being made or wait for their commit."""
COMMIT_S: Final = 60.0


def make(seed: str, piece: Piece, now: int) -> Bulk:
    """Make the records of a chunk, check and cut them. For a worker process."""
    made = columns(seed, piece.rank, piece.line, piece.first, piece.size)
    chunk = Chunk(
        prefix_of(piece.rank),
        made.suffixes,
        [made.shape],
        made.data,
        template=template_of(piece.rank, piece.line),
    )
    check_chunk(chunk)
    return cut(chunk, now)


async def pieces_in(store: Store, plan: Plan) -> int:
    """How many chunks of the plan a registry has that nothing else was written to, after homing.

    Raises BenchFault where it holds anything else: another plan, or a registry in use.
    """
    sequence, _ = await store.head()
    if sequence == 0:
        return 0
    done = sequence - 1
    if done <= len(plan.pieces):
        [entry] = await store.list_changes(sequence - 1, 1)
        if done == 0 and entry.action == Action.HOME_PREFIX and entry.count == PREFIXES:
            return 0
        if done and entry.action == Action.BULK:
            piece = plan.pieces[done - 1]
            last = await asyncio.to_thread(make, plan.seed, piece, 0)
            if {(c.subject.partition("/")[2], c.last, c.count) for c in entry.changes} == {
                (s.first.decode(), s.last.decode(), s.size) for s in last.sealed
            } and entry.prefix == last.prefix:
                return done
    raise BenchFault(
        "This registry holds something else than the beginning of this load.",
        "该注册库中已有其他内容，不是本次装载的前一部分。",
    )


async def home(store: Store, registrar: Registrar) -> None:
    """Make all prefixes known, each as its enterprise's own; once."""
    if (await store.head())[0] == 0:
        await store.settle_rules(False)
        homed = [HomePrefix(prefix_of(rank), tenant_of(rank)) for rank in range(PREFIXES)]
        await registrar.submit(SYSTEM, homed)


async def load(
    registrar: Registrar,
    pool: ProcessPoolExecutor,
    plan: Plan,
    first: int,
    end: int,
    *,
    ahead: int = 2,
    progress: Callable[[int], None] = lambda pieces: None,
) -> None:
    """Register the chunks `first` to `end` - 1 in order; `progress` is told after each commit.

    `ahead` is the number of workers. Raises BenchFault if a name is taken, and what
    `Registrar.load` raises.
    """
    loop = asyncio.get_running_loop()
    waiting: deque[tuple[Piece, asyncio.Future[Bulk]]] = deque()
    coming = iter(plan.pieces[first:end])

    def send() -> None:
        piece = next(coming, None)
        if piece is not None:
            made = loop.run_in_executor(pool, make, plan.seed, piece, int(time.time()))
            waiting.append((piece, made))

    for _ in range(ahead * _AHEAD):
        send()
    try:
        while waiting:
            piece, made = waiting.popleft()
            bulk = await made
            send()
            caller = Caller("bench-load", tenant_of(piece.rank), Role.REGISTRAR)
            outcome = await registrar.load(caller, bulk, mode="all")
            if outcome.count != piece.size:
                raise BenchFault(
                    f"Chunk {piece.number}: {len(outcome.refused)} of its names were taken.",
                    f"第 {piece.number} 批：{len(outcome.refused)} 个标识已被占用。",
                )
            progress(piece.number + 1)
    finally:
        for _, made in waiting:
            made.cancel()
