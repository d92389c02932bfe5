"""Whole blocks at once: what registering a chunk, and compacting, do in their transaction.

Either has its commit to itself. What is decided here is exact, for nobody else writes
meanwhile; blocks that are in the way of new ones are taken out and cut anew with them. The
work that grows with the names is done in a thread, so that the loop answers others.
"""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from biaojie.account import Prefix
from biaojie.change import Action, Change
from biaojie.errors import TooLarge
from biaojie.identifier import Key

from .admission import Caller, decide_bulk
from .blocks import Block, Bulk, Sealed, seal
from .census import Kind, Layer, Shift, kind_of
from .changelog import ZERO, record_digest
from .matching import Match, rows_of
from .members import Member, Members, content_of
from .store import BLOCKS_MAX, LOOK_UP_MAX, Transaction

T = TypeVar("T")

CHANGES_MAX = 4_096
"""Most changes in the entry of one commit."""
REWRITTEN_MAX = 1_024
"""Most blocks that one commit takes out to make others of their members."""
FOLDED_MAX = 512
"""Rows that one commit of a compaction looks at."""


@dataclass(frozen=True, slots=True)
class BulkOutcome:
    """`count` names were registered by the entry `sequence` (0: none was). `refused` were taken
    already, or given out before and retired; as spelled in the chunk, with the prefix."""

    sequence: int
    count: int
    refused: tuple[str, ...]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Compacted:
    """One step of a compaction. `after` is where the next begins, None at the end; `rows` were
    folded, `markers` of purges dropped, `blocks` taken out and `made` put in."""

    after: bytes | None
    rows: int = 0
    markers: int = 0
    blocks: int = 0
    made: int = 0


class Done(NamedTuple):
    """What the entry of a commit tells, by how much it changes the census, and the answer."""

    changes: list[Change]
    shift: Shift
    answer: BulkOutcome | Compacted


@dataclass(slots=True)
class Rewriting:
    """What one commit takes out and puts in, and the changes that tell of it."""

    tx: Transaction
    prefix: str
    sequence: int
    actor: str
    gone: dict[bytes, Block] = field(default_factory=dict)
    made: list[Sealed] = field(default_factory=list)
    bared: list[bytes] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    shift: Shift = field(default_factory=Counter)

    def dissolve(self, block: Block) -> None:
        self.gone[block.first] = block
        if len(self.gone) > REWRITTEN_MAX:
            raise TooLarge(
                f"These names lie among those of more than {REWRITTEN_MAX} blocks; send fewer at"
                " a time.",
                f"这些标识分散在超过 {REWRITTEN_MAX} 个数据块之间；请减少单次数量。",
                blocks_max=REWRITTEN_MAX,
            )

    def fold(
        self,
        suffix: bytes,
        above: Member | None,
        beneath: Member | None,
        *,
        stays: bool = False,
    ) -> None:
        """Take a row (`above`) or the mark of a purge off what lay beneath in a block, or where
        the mark `stays` only that from beneath it."""
        if not stays:
            self.bared.append(suffix)
        if above is not None:
            self.shift[kind_of(self.prefix, above.record, Layer.ROWS)] -= 1
            self.shift[kind_of(self.prefix, above.record, Layer.BLOCKS)] += 1
        names = {str(m.record.identifier): None for m in (above, beneath) if m is not None}
        for name in names:
            row = above if above is not None and str(above.record.identifier) == name else None
            low = beneath
            if beneath is not None and str(beneath.record.identifier) != name:
                low = None
            self.changes.append(
                Change(
                    Action.FOLD,
                    name,
                    0 if row is None else row.record.version,
                    self.actor,
                    ZERO if row is None else record_digest(row.record),
                    count=0 if low is None else low.record.version,
                )
            )

    async def write(self, action: Action) -> list[Change]:
        """Put in what was made; `action` is what the log calls that."""

        def told() -> list[Change]:
            out = [
                self._run(Action.DISSOLVE, b.first, b.last, b.size, _digest(b.blob))
                for b in self.gone.values()
            ]
            made = [self._run(action, s.first, s.last, s.size, s.digest) for s in self.made]
            return out + made

        if len(self.made) + len(self.gone) + len(self.changes) > CHANGES_MAX:
            raise TooLarge(
                f"These names would make more than {CHANGES_MAX} blocks; send fewer at a time.",
                f"这些标识将形成超过 {CHANGES_MAX} 个数据块；请减少单次数量。",
                blocks_max=CHANGES_MAX,
            )
        self.changes += await asyncio.to_thread(told)
        if self.gone:
            await self.tx.remove_blocks(self.prefix, self.gone)
        if self.bared:
            await self.tx.remove_rows(self.prefix, self.bared)
        if self.made:
            self.made.sort()
            await self.tx.put_blocks(self.prefix, [s.at(self.sequence) for s in self.made])
        return self.changes

    def _run(self, action: Action, first: bytes, last: bytes, count: int, digest: bytes) -> Change:
        subject = f"{self.prefix}/{first.decode()}"
        return Change(action, subject, 0, self.actor, digest, last.decode(), count)


def _digest(blob: bytes) -> bytes:
    return hashlib.sha256(content_of(blob)).digest()


def members_of(block: Block) -> list[Member]:
    return Members(block.blob, block.size, block.sequence).all()


async def _each(work: Callable[[T], list[Member]], items: Sequence[T]) -> list[list[Member]]:
    return await asyncio.to_thread(lambda: [work(item) for item in items]) if items else []


async def register(
    tx: Transaction,
    bulk: Bulk,
    caller: Caller,
    sequence: int,
    *,
    whole: bool,
    strict_slash: bool,
) -> Done:
    """Register a chunk as entry `sequence`; `whole`: all of it or none.

    Raises what the caller may not do, and TooLarge where the names lie so scattered among
    others that they are too much for one commit.
    """
    name = bulk.prefix
    prefix = decide_bulk(
        caller, bulk, (await tx.find_prefixes([name])).get(name), strict_slash=strict_slash
    )
    sealed = bulk.sealed
    touched = set(await tx.touched(name, [(s.first, s.last) for s in sealed]))
    work = Rewriting(tx, name, sequence, caller.key_id)
    fresh = [s for n, s in enumerate(sealed) if n not in touched]
    work.made += fresh
    runs = await _each(members_of, [sealed[n].at(sequence) for n in sorted(touched)])
    free, marked = await _free(tx, name, runs)
    merged = [run for run in free if run]
    refused = [
        str(member.record.identifier)
        for run, left in zip(runs, free, strict=True)
        for member in run
        if len(left) < len(run) and member not in left
    ]
    if whole and refused:
        return Done([], Counter(), BulkOutcome(0, 0, tuple(refused)))
    if merged:
        await _merge(work, merged, marked)
    count = sum(s.size for s in fresh) + sum(map(len, merged))
    if not count:
        return Done([], Counter(), BulkOutcome(0, 0, tuple(refused)))
    work.shift[Kind(name, bulk.template or "", Layer.BLOCKS, bulk.status)] += count
    if prefix.searchable or prefix.indexing:
        blocks = [s.at(sequence) for s in fresh]
        listed = await _each(members_of, blocks)
        await tx.change_rows(
            await asyncio.to_thread(_indexed, prefix, name, [*listed, *merged]), []
        )
    changes = await work.write(Action.BULK)
    return Done(changes, work.shift, BulkOutcome(sequence, count, tuple(refused)))


def _indexed(prefix: Prefix, name: str, runs: Iterable[Sequence[Member]]) -> set[Match]:
    rows: set[Match] = set()
    for run in runs:
        for suffix, record in run:
            rows |= rows_of(Key(name, suffix), record, prefix.searchable)
    return rows


async def _free(
    tx: Transaction, prefix: str, runs: Sequence[Sequence[Member]]
) -> tuple[list[list[Member]], list[Key]]:
    """Of each run, the members whose names are free, and which of all have the mark of a purge."""
    keys = [Key(prefix, member.suffix) for run in runs for member in run]
    taken: set[bytes] = set()
    marked: list[Key] = []
    for at in range(0, len(keys), LOOK_UP_MAX):
        some = keys[at : at + LOOK_UP_MAX]
        found, purged = await tx.look_up_marked(some)
        taken |= {key.suffix for key, f in zip(some, found, strict=True) if f.record is not None}
        marked += sorted(purged)
    return [[member for member in run if member.suffix not in taken] for run in runs], marked


async def _blocks_in(tx: Transaction, prefix: str, first: bytes, last: bytes) -> list[Block]:
    blocks: list[Block] = []
    page = await tx.blocks_in(prefix, first, last)
    while page:
        blocks += page
        if len(blocks) > REWRITTEN_MAX or len(page) < BLOCKS_MAX:
            break
        page = (await tx.blocks_in(prefix, page[-1].last, last))[1:]
    return blocks


async def _merge(work: Rewriting, fresh: Sequence[list[Member]], marked: Sequence[Key]) -> None:
    """Cut blocks anew from runs of new members and the blocks that they would come between.

    Marks of purges of the new ones are taken away, with what the marks hid.
    """
    for run in fresh:
        for block in await _blocks_in(work.tx, work.prefix, run[0].suffix, run[-1].suffix):
            work.dissolve(block)
    old = await _each(members_of, list(work.gone.values()))
    hidden = await work.tx.find_in_blocks(marked)

    def cut() -> list[Sealed]:
        new = {member.suffix for run in fresh for member in run}
        for key, record in zip(marked, hidden, strict=True):
            work.fold(key.suffix, None, None if record is None else Member(key.suffix, record))
        made: list[Sealed] = []
        for cluster in _overlapping([*fresh, *old]):
            members = {m.suffix: m for m in cluster if m.suffix not in new}
            members |= {m.suffix: m for m in cluster if m.record.sequence == work.sequence}
            made += seal([members[suffix] for suffix in sorted(members)], work.sequence)
        return made

    work.made += await asyncio.to_thread(cut)


def _overlapping(runs: Sequence[Sequence[Member]]) -> Iterable[list[Member]]:
    """Runs, each in order, that reach over each other, put together."""
    cluster: list[Member] = []
    end = b""
    for run in sorted(runs, key=lambda run: run[0].suffix):
        if cluster and run[0].suffix > end:
            yield cluster
            cluster = []
        cluster += run
        end = max(end, run[-1].suffix)
    if cluster:
        yield cluster


# Compaction -----------------------------------------------------------------------------

MEMBERS_MIN = 8
"""Fewer rows than these, with no block to join, stay rows."""


async def compact(
    tx: Transaction, prefix: str, after: bytes | None, before: int, sequence: int, actor: str
) -> Done:
    """Fold rows of a prefix > `after` that entries < `before` wrote, as entry `sequence`.

    Nothing that can be looked up or listed changes. A mark of a purge goes with what it hides.
    """
    rows = await tx.list_rows(prefix, after, FOLDED_MAX)
    if not rows:
        return Done([], Counter(), Compacted(None))
    blocks = await tx.blocks_in(prefix, rows[0].suffix, rows[-1].suffix)
    on = rows[-1].suffix if len(rows) == FOLDED_MAX else None
    if len(blocks) == BLOCKS_MAX and blocks[-1].last < rows[-1].suffix:
        on = blocks[-1].last
        rows = [row for row in rows if row.suffix <= on]
    cold = {row.suffix: row for row in rows if row.sequence < before}
    runs = await _each(members_of, blocks)
    marked = [Key(prefix, suffix) for suffix, row in cold.items() if row.record is None]
    in_ranges = await tx.members_of_ranges(marked)  # these would show again without the mark
    work = Rewriting(tx, prefix, sequence, actor)
    markers = 0

    def fold() -> int:
        nonlocal markers
        standing: list[bytes] = []
        members: dict[bytes, Member] = {}
        beneath: dict[bytes, Member] = {}
        for block, run in zip(blocks, runs, strict=True):
            within = {m.suffix: m for m in run if m.suffix in cold}
            joins = any(
                row.record is not None and block.first <= row.suffix <= block.last
                for row in cold.values()
            )
            if not within and not joins:
                standing.append(block.first)
                continue
            work.dissolve(block)
            beneath |= within
            members |= {m.suffix: m for m in run if m.suffix not in cold}
        for row in cold.values():
            if row.record is not None:
                members[row.suffix] = Member(row.suffix, row.record)
        folded = 0
        for cluster in _parted([members[suffix] for suffix in sorted(members)], standing):
            own = [m for m in cluster if m.suffix in cold]
            if len(cluster) < MEMBERS_MIN and len(own) == len(cluster) and not beneath:
                continue  # they stay rows
            for member in own:
                work.fold(member.suffix, member, beneath.get(member.suffix))
            folded += len(own)
            work.made += seal(cluster, sequence)
        for suffix, member in beneath.items():
            if cold[suffix].record is None:
                stays = Key(prefix, suffix) in in_ranges
                work.fold(suffix, None, member, stays=stays)
                markers += not stays
        return folded

    folded = await asyncio.to_thread(fold)
    if not work.made and not work.gone:
        return Done([], Counter(), Compacted(on))
    changes = await work.write(Action.COMPACT)
    compacted = Compacted(on, folded, markers, len(work.gone), len(work.made))
    return Done(changes, work.shift, compacted)


def _parted(members: Sequence[Member], standing: Sequence[bytes]) -> Iterable[list[Member]]:
    """Members in order, parted where a block that stays lies between two of them."""
    cluster: list[Member] = []
    passed = 0
    for member in members:
        now = bisect_right(standing, member.suffix)
        if cluster and now != passed:
            yield cluster
            cluster = []
        passed = now
        cluster.append(member)
    if cluster:
        yield cluster
