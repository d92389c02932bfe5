"""Checks the registry against its change log: what `biaojie verify` does.

First the log itself (chain, roots, head, witness), then, unless told not to, every record,
prefix and key: each must be what the log says was written last, and none may be missing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from biaojie.change import RUNS, Action, Change
from biaojie.errors import BiaojieError, TamperedLog
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

from .audit_blocks import BlockSums, BlockWalk, PageRead, look_up_blocks, read_page
from .audit_ranges import OF_RANGES, RangeLedger
from .changelog import (
    Verifier,
    key_digest,
    prefix_digest,
    record_digest,
    subject_key,
    subject_prefix,
)
from .ranges import RangeKey
from .store import BLOCKS_MAX, ReadStore, Row

FAULTS_KEPT_MAX = 1_000
PAGE = 200
ENTRIES_PAGE = 8  # an entry may hold thousands of changes
WALKS_MAX = 3
"""How often a prefix is read anew because its rows were folded into blocks meanwhile."""
PAGES_AHEAD = 4
"""Pages of blocks that are looked at while the next is read."""
STATES_MAX = 50_000
"""States of records kept until they are looked up in the log, in the order of the log."""


@dataclass(slots=True)
class Audit:
    """`faults` has one line for each thing wrong, the first 1,000 of them. `busy` has prefixes
    that were compacted all the while: whether they are complete was not checked."""

    entries: int = 0
    changes: int = 0
    records: int = 0
    fault_count: int = 0
    faults: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        self.fault_count += 1
        if len(self.faults) < FAULTS_KEPT_MAX:
            self.faults.append(fault)


async def audit(
    store: ReadStore,
    *,
    witness: tuple[int, bytes] = (0, b""),
    log_only: bool = False,
    case_sensitive: bool = False,
    progress: Callable[[str, int], None] = lambda what, count: None,
    helpers: Executor | None = None,
) -> Audit:
    """Walk everything; what is written while it runs does not disturb it.

    `helpers` (threads of this process, if None) look at blocks, PAGES_AHEAD pages of them at a
    time. Memory grows with the number of prefixes, keys and purges, not with that of records; time
    with the records and, for each STATES_MAX of them, with the log.
    """
    auditor = _Auditor(store, witness, case_sensitive, progress, helpers)
    return await auditor.run(log_only=log_only)


_MODULUS = 1 << 2048


def _state(subject: str, version: int) -> int:
    """A number for "this subject is at this version". Sums of such stand for sets of them.

    Each change of a record replaces version n - 1 by n, so the sum over a prefix can be kept
    while walking the log without knowing the records. It is the sum over the rows, less what
    they lie over in blocks: the first change of a member takes away what was never added. 2,048
    bits, because shorter sums can be forged by choosing which records to set back.
    """
    return int.from_bytes(hashlib.shake_256(f"{version} {subject}".encode()).digest(256), "big")


def _added(change: Change) -> int:
    """What a change adds to the sum of its prefix, modulo `_MODULUS`."""
    match change.action:
        case Action.CREATE | Action.LEAVE_RANGE:  # a range answered for it, with no row
            return _state(change.subject, change.version)
        case Action.PURGE:
            return -_state(change.subject, change.version - 1)
        case Action.FOLD:  # a row is no more, and does no longer lie over a member of a block
            row = _state(change.subject, change.version) if change.version else 0
            return (_state(change.subject, change.count) if change.count else 0) - row
    return _state(change.subject, change.version) - _state(change.subject, change.version - 1)


_ROWS_MORE = {Action.CREATE: 1, Action.LEAVE_RANGE: 1, Action.PURGE: -1}
_OF_PREFIXES = (Action.HOME_PREFIX, Action.CHANGE_PREFIX)
_OF_KEYS = (Action.ISSUE_KEY, Action.REVOKE_KEY)


class _Auditor:
    def __init__(
        self,
        store: ReadStore,
        witness: tuple[int, bytes],
        case_sensitive: bool,
        progress: Callable[[str, int], None],
        helpers: Executor | None,
    ) -> None:
        self.store = store
        self.helpers = helpers
        self.witness = witness
        self.marks = [(*witness, "is not the one the witness saw")]
        self.case_sensitive = case_sensitive
        self.progress = progress
        self.result = Audit()
        self.verifier = Verifier()
        self.states: list[tuple[int, str, int, bytes]] = []  # entry, subject, version, digest
        self.counts: Counter[str] = Counter()  # rows, less what they lie over, by folded prefix
        self.blocks = BlockSums()
        self.ranges = RangeLedger()
        self.sums: Counter[str] = Counter()  # of _state, by folded prefix
        self.purged: dict[str, int] = {}  # subject → entry that purged it last
        # States the log has given to prefixes and keys (digest, entry): the last, and those
        # given meanwhile.
        self.prefixes: dict[str, list[tuple[bytes, int]]] = {}
        self.keys: dict[str, list[tuple[bytes, int]]] = {}
        self.walked = False

    async def run(self, *, log_only: bool) -> Audit:
        result = self.result
        newest_record = await self.store.newest_record_sequence()
        try:
            before = await self.store.head()
            self.marks.append((*before, "is not the one the head names"))
            await self.follow()
            end = self.verifier.head
            after = await self.store.head()
            # Entries may be appended all the time, but what the head named before the walk
            # must have been walked, and what was walked must be named by now.
            head = before if before[0] > end[0] else after if after[0] < end[0] else end
            for fault in self.verifier.end(head, newest_record):
                result.add(fault)
            if self.witness[0] > end[0]:
                result.add(
                    f"the witness saw entry {self.witness[0]}, the log ends at {end[0]};"
                    " it was truncated"
                )
            if not log_only:
                self.walked = True
                await self.audit_state()
        except TamperedLog as error:
            result.add(error.detail.en)
        return result

    async def follow(self) -> list[Change]:
        """Check the entries appended since the last time; returns the changes in them.

        The first walk, whose changes are all there ever were, returns none.
        """
        seen: list[Change] = []
        while entries := await self.store.list_changes(self.verifier.head[0], ENTRIES_PAGE):
            for entry in entries:
                for fault in self.verifier.feed(entry):
                    self.result.add(fault)
                for sequence, hash_, what in self.marks:
                    if entry.sequence == sequence and entry.hash != hash_:
                        self.result.add(f"entry {sequence}: {what}")
                for change in entry.changes:
                    self.note(change, entry.sequence)
                self.result.entries += 1
                self.result.changes += len(entry.changes)
                seen += entry.changes if self.walked else ()
            self.progress("entries", self.result.entries)
        return seen

    def note(self, change: Change, sequence: int) -> None:
        states = None
        if change.action in _OF_PREFIXES:
            states = self.prefixes.setdefault(change.subject, [])
        elif change.action in _OF_KEYS:
            states = self.keys.setdefault(change.subject, [])
        if states is not None:
            if not self.walked:
                states.clear()
            states.append((change.digest, sequence))
            return
        if change.action in RUNS:
            self.blocks.note(change)
            return
        if change.action in OF_RANGES:
            self.ranges.note(change, sequence, walked=self.walked)
            return
        if change.action is Action.PURGE:
            self.purged[change.subject] = sequence
        prefix = fold_prefix(subject_prefix(change))
        self.counts[prefix] += _ROWS_MORE.get(change.action, 0)
        if change.action is Action.FOLD:
            self.counts[prefix] += bool(change.count) - bool(change.version)
        self.sums[prefix] = (self.sums[prefix] + _added(change)) % _MODULUS

    async def audit_state(self) -> None:
        names = await self.audit_prefixes()
        await self.audit_keys()
        for name in names:
            await self.audit_records(name)
            await self.audit_ranges(name)
        await self.look_up_states()
        await self.audit_purged()

    async def audit_prefixes(self) -> list[str]:
        """Checks them, and returns their folded names."""
        lost = set(self.prefixes)
        names: list[str] = []
        after: str | None = None
        with self.readable("the prefixes"):
            while prefixes := await self.store.list_prefixes(after, PAGE):
                await self.follow()
                for prefix in prefixes:
                    name = fold_prefix(prefix.name)
                    if name <= (after or ""):
                        self.result.add(
                            f"prefix {prefix.name}: is kept under another's name;"
                            " what comes after it was not checked"
                        )
                        return names
                    after = name
                    names.append(name)
                    lost.discard(prefix.name)
                    state = (prefix_digest(prefix), prefix.sequence)
                    if state not in self.prefixes.get(prefix.name, ()):
                        self.result.add(
                            f"prefix {prefix.name}: is not what the log says; it was edited"
                        )
            for name in sorted(lost):
                self.result.add(f"prefix {name}: the log homed it, the registry has lost it")
        return names

    async def audit_keys(self) -> None:
        lost = set(self.keys)
        after: str | None = None
        with self.readable("the keys"):
            while keys := await self.store.list_keys(after, PAGE):
                await self.follow()
                after = keys[-1].id
                for key in keys:
                    lost.discard(key.id)
                    if key_digest(key) not in [digest for digest, _ in self.keys.get(key.id, ())]:
                        self.result.add(
                            f"key {key.id}: is not what the log says; it was edited or slipped in"
                        )
            for key_id in sorted(lost):
                self.result.add(f"key {key_id}: the log issued it, the registry has lost it")

    @contextmanager
    def readable(self, what: str) -> Iterator[None]:
        """Rows that cannot be read were written by somebody else."""
        try:
            yield
        except BiaojieError:
            raise
        except Exception as error:
            self.result.add(f"{what} cannot be read: {error!r}")

    async def audit_records(self, prefix: str) -> None:
        """Each record of a prefix, and that they are all of those there should be."""
        before = self.result.records
        for _ in range(WALKS_MAX):
            if await self.walk_records(prefix):
                return
            self.result.records = before
        self.result.busy.append(prefix)

    async def walk_records(self, prefix: str) -> bool:
        """One walk over a prefix; False when rows became members of blocks meanwhile.

        Records may change while their prefix is read. A record that had changed by the time
        its page was read is left out of the sums on both sides; one that changes afterwards
        was read, and counts, as it was before. So are blocks that are written meanwhile.
        """
        blocks = BlockWalk(prefix, self.verifier.head[0])
        expected_members = self.blocks.counts[prefix], self.blocks.sums[prefix]
        count, expected_count = 0, self.counts[prefix]
        total, expected = 0, self.sums[prefix]
        changed: set[bytes] = set()
        after: bytes | None = None
        while True:
            page: list[Row] | None = None
            with self.readable(f"a record of {prefix}, and so the rest of that prefix,"):
                listed = await self.store.list_rows(prefix, after, PAGE)
                keys = [Key(prefix, row.suffix) for row in listed]
                found = await self.store.look_up(keys)
                beneath = await self.store.find_in_blocks(keys)
                page = listed
            if page is None:
                await self.narrow(prefix, after)
                return await self.walk_blocks(blocks)
            for change in await self.follow():
                if self.rewrites(change, prefix):
                    return False
                if change.action in (*_OF_PREFIXES, *_OF_KEYS, *RUNS, *OF_RANGES):
                    continue
                key = subject_key(change.subject, case_sensitive=self.case_sensitive)
                if key.prefix != prefix or key.suffix in changed or key.suffix <= (after or b""):
                    continue
                changed.add(key.suffix)
                if change.action not in (Action.CREATE, Action.LEAVE_RANGE):
                    expected_count -= 1
                    expected -= _state(change.subject, change.version - 1)
                [hidden] = await self.store.find_in_blocks([key])
                if hidden is not None:
                    expected_count += 1
                    expected += _state(str(hidden.identifier), hidden.version)
            for row, (_, again), hidden in zip(page, found, beneath, strict=True):
                record = row.record
                after = row.suffix
                if record is not None:
                    await self.audit_record(record)
                    if self.key(record) != Key(prefix, row.suffix):
                        name = record.identifier
                        self.result.add(f"record {name}: is kept under another's name")
                if after in changed:
                    continue
                if hidden is not None:
                    self.result.records -= 1  # it is counted as a member of its block
                    count -= 1
                    total -= _state(str(hidden.identifier), hidden.version)
                if record is None:
                    continue
                if again is None:
                    self.result.add(f"record {record.identifier}: is not found by its name")
                count += 1
                total += _state(str(record.identifier), record.version)
            if not page:
                break
        if not await self.walk_blocks(blocks):
            return False
        count += blocks.count
        expected_count += expected_members[0]
        if count != expected_count:
            self.result.add(
                f"prefix {prefix}: the log says {expected_count} records, there are {count}"
                f" ({len(changed)} that changed meanwhile left out)"
            )
        elif total % _MODULUS != expected % _MODULUS:
            self.result.add(f"prefix {prefix}: holds an older state of a record than the last")
        elif blocks.sum != expected_members[1]:
            self.result.add(f"prefix {prefix}: holds other blocks than the log says")
        return True

    def rewrites(self, change: Change, prefix: str) -> bool:
        if change.action not in (Action.DISSOLVE, Action.FOLD):
            return False
        return fold_prefix(subject_prefix(change)) == prefix

    async def walk_blocks(self, walk: BlockWalk) -> bool:
        """As `walk_records`, the blocks of the same prefix."""
        loop = asyncio.get_running_loop()
        pages: deque[asyncio.Future[PageRead]] = deque()
        after: bytes | None = None
        try:
            while blocks := await self.store.list_blocks(walk.prefix, after, BLOCKS_MAX):
                if any(self.rewrites(change, walk.prefix) for change in await self.follow()):
                    return False
                look = partial(read_page, walk.prefix, walk.until, blocks)
                pages.append(loop.run_in_executor(self.helpers, look))
                after = blocks[-1].first
                self.result.records += sum(block.size for block in blocks)
                self.progress("records", self.result.records)
                if len(pages) >= PAGES_AHEAD:
                    walk.take(await pages.popleft())
                if len(walk.runs) + len(walk.members) >= STATES_MAX // 10:
                    await self.look_up_walked(walk)
            while pages:
                walk.take(await pages.popleft())
        finally:
            for page in pages:
                page.cancel()
        await self.look_up_walked(walk)
        return True

    async def look_up_walked(self, walk: BlockWalk) -> None:
        walk.faults += await look_up_blocks(self.store, walk.runs, walk.members)
        walk.runs.clear()
        walk.members.clear()
        for fault in walk.faults:
            self.result.add(fault)
        walk.faults.clear()

    async def audit_ranges(self, prefix: str) -> None:
        """Each range is what the log says, and none is missing."""
        seen: set[str] = set()
        after: RangeKey | None = None
        with self.readable(f"a range of {prefix}, and so the rest of them,"):
            while ranges := await self.store.list_ranges(prefix, after, PAGE):
                await self.follow()
                for held in ranges:
                    key = held.key(case_sensitive=self.case_sensitive)
                    if key.prefix != prefix or (after is not None and key <= after):
                        self.result.add(f"range {held.name}: is kept under another's name")
                        return
                    after = key
                    seen.add(held.name)
                    if not self.ranges.knows(held):
                        self.result.add(f"range {held.name}: is not what the log says")
            for name in self.ranges.lost(prefix, seen):
                self.result.add(f"range {name}: the log registered it, the registry has lost it")

    async def audit_purged(self) -> None:
        """None of those purged is there as it was before."""
        subjects = list(self.purged)
        for at in range(0, len(subjects), PAGE):
            some = subjects[at : at + PAGE]
            keys = [subject_key(each, case_sensitive=self.case_sensitive) for each in some]
            with self.readable("a record that was purged"):
                for subject, found in zip(some, await self.store.look_up(keys), strict=True):
                    if found.record and found.record.sequence < self.purged[subject]:
                        self.result.add(f"record {subject}: was purged after it was written")

    async def audit_record(self, record: Record) -> None:
        self.result.records += 1
        if self.result.records % 1_000 == 0:
            self.progress("records", self.result.records)
        state = (str(record.identifier), record.version, record_digest(record))
        self.states.append((record.sequence, *state))
        if len(self.states) >= STATES_MAX:
            await self.look_up_states()

    async def look_up_states(self) -> None:
        """Each must be the last that its entry gave to its subject."""
        for sequence, states in groupby(sorted(self.states), key=lambda state: state[0]):
            entries = await self.store.list_changes(sequence - 1, 1)
            written: dict[str, tuple[int, bytes]] = {}
            if entries and entries[0].sequence == sequence:
                written = {
                    c.subject: (c.version, c.digest)
                    for c in entries[0].changes
                    if c.action not in (*RUNS, Action.FOLD)
                }
            for _, subject, version, digest in states:
                if written.get(subject) != (version, digest):
                    self.result.add(f"record {subject}: is not what the log says; it was edited")
        self.states.clear()

    async def narrow(self, prefix: str, after: bytes | None) -> None:
        """Say which record of a page cannot be read."""
        for _ in range(PAGE):
            name = f"{prefix}/{after.decode(errors='replace')}" if after else "the first"
            with self.readable(f"the record that follows {name}"):
                [record] = await self.store.list_rows(prefix, after, 1)
                after = record.suffix
                continue
            return

    def key(self, record: Record) -> Key:
        return record.identifier.key(case_sensitive=self.case_sensitive)
