"""Checks the registry against its change log: what `biaojie verify` does.

First the log itself (chain, roots, head, witness), then, unless told not to, every record,
prefix and key: each must be what the log says was written last, and none may be missing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

from biaojie.change import Action, Change
from biaojie.errors import BiaojieError, TamperedLog
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

from .changelog import (
    Verifier,
    key_digest,
    prefix_digest,
    record_digest,
    subject_key,
    subject_prefix,
)
from .store import ReadStore

FAULTS_KEPT_MAX = 1_000
PAGE = 200
ENTRIES_PAGE = 8  # an entry may hold thousands of changes
STATES_MAX = 50_000
"""States of records kept until they are looked up in the log, in the order of the log."""


@dataclass(slots=True)
class Audit:
    """`faults` has one line for each thing wrong, the first 1,000 of them."""

    entries: int = 0
    changes: int = 0
    records: int = 0
    fault_count: int = 0
    faults: list[str] = field(default_factory=list)

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
) -> Audit:
    """Walk everything; what is written while it runs does not disturb it.

    Memory grows with the number of prefixes, keys and purges, not with that of records; time
    with the records and, for each STATES_MAX of them, with the log.
    """
    return await _Auditor(store, witness, case_sensitive, progress).run(log_only=log_only)


_MODULUS = 1 << 2048


def _state(subject: str, version: int) -> int:
    """A number for "this subject is at this version". Sums of such stand for sets of them.

    Each change of a record replaces version n - 1 by n, so the sum over a prefix can be kept
    while walking the log without knowing the records. 2,048 bits, because shorter sums can be
    forged by choosing which records to set back.
    """
    return int.from_bytes(hashlib.shake_256(f"{version} {subject}".encode()).digest(256), "big")


def _added(change: Change) -> int:
    """What a change adds to the sum of its prefix, modulo `_MODULUS`."""
    match change.action:
        case Action.CREATE:
            return _state(change.subject, 1)
        case Action.PURGE:
            return -_state(change.subject, change.version - 1)
    return _state(change.subject, change.version) - _state(change.subject, change.version - 1)


_OF_PREFIXES = (Action.HOME_PREFIX, Action.CHANGE_PREFIX)
_OF_KEYS = (Action.ISSUE_KEY, Action.REVOKE_KEY)


class _Auditor:
    def __init__(
        self,
        store: ReadStore,
        witness: tuple[int, bytes],
        case_sensitive: bool,
        progress: Callable[[str, int], None],
    ) -> None:
        self.store = store
        self.witness = witness
        self.marks = [(*witness, "is not the one the witness saw")]
        self.case_sensitive = case_sensitive
        self.progress = progress
        self.result = Audit()
        self.verifier = Verifier()
        self.states: list[tuple[int, str, int, bytes]] = []  # entry, subject, version, digest
        self.counts: Counter[str] = Counter()  # records by folded prefix
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
        if change.action is Action.PURGE:
            self.purged[change.subject] = sequence
        prefix = fold_prefix(subject_prefix(change))
        self.counts[prefix] += {Action.CREATE: 1, Action.PURGE: -1}.get(change.action, 0)
        self.sums[prefix] = (self.sums[prefix] + _added(change)) % _MODULUS

    async def audit_state(self) -> None:
        names = await self.audit_prefixes()
        await self.audit_keys()
        for name in names:
            await self.audit_records(name)
        await self.look_up_states()

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
        """Each record of a prefix, and that they are all of those there should be.

        Records may change while their prefix is read. A record that had changed by the time
        its page was read is left out of the sums on both sides; one that changes afterwards
        was read, and counts, as it was before.
        """
        count, expected_count = 0, self.counts[prefix]
        total, expected = 0, self.sums[prefix]
        changed: set[bytes] = set()
        after: bytes | None = None
        while True:
            page: list[Record] | None = None
            with self.readable(f"a record of {prefix}, and so the rest of that prefix,"):
                listed = await self.store.list_records(prefix, after, PAGE)
                found = await self.store.look_up([self.key(record) for record in listed])
                page = listed
            if page is None:
                await self.narrow(prefix, after)
                return
            for change in await self.follow():
                if change.action in _OF_PREFIXES or change.action in _OF_KEYS:
                    continue
                key = subject_key(change.subject, case_sensitive=self.case_sensitive)
                if key.prefix != prefix or key.suffix in changed or key.suffix <= (after or b""):
                    continue
                changed.add(key.suffix)
                if change.action is not Action.CREATE:
                    expected_count -= 1
                    expected -= _state(change.subject, change.version - 1)
            for record in page:
                await self.audit_record(record)
            for record, (_, again) in zip(page, found, strict=True):
                key = self.key(record)
                if key.prefix != prefix or key.suffix <= (after or b""):
                    self.result.add(
                        f"record {record.identifier}: is kept under another's name;"
                        f" the rest of {prefix} was not checked"
                    )
                    return
                after = key.suffix
                if after in changed:
                    continue
                if again is None:
                    self.result.add(f"record {record.identifier}: is not found by its name")
                count += 1
                subject = str(record.identifier)
                total += _state(subject, record.version)
                if record.sequence < self.purged.get(subject, 0):
                    self.result.add(f"record {subject}: was purged after it was written")
            if not page:
                break
        if count != expected_count:
            self.result.add(
                f"prefix {prefix}: the log says {expected_count} records, there are {count}"
                f" ({len(changed)} that changed meanwhile left out)"
            )
        elif total % _MODULUS != expected % _MODULUS:
            self.result.add(f"prefix {prefix}: holds an older state of a record than the last")

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
                written = {c.subject: (c.version, c.digest) for c in entries[0].changes}
            for _, subject, version, digest in states:
                if written.get(subject) != (version, digest):
                    self.result.add(f"record {subject}: is not what the log says; it was edited")
        self.states.clear()

    async def narrow(self, prefix: str, after: bytes | None) -> None:
        """Say which record of a page cannot be read."""
        for _ in range(PAGE):
            name = f"{prefix}/{after.decode(errors='replace')}" if after else "the first"
            with self.readable(f"the record that follows {name}"):
                [record] = await self.store.list_records(prefix, after, 1)
                after = self.key(record).suffix
                continue
            return

    def key(self, record: Record) -> Key:
        return record.identifier.key(case_sensitive=self.case_sensitive)
