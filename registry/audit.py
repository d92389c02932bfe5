"""Checks the registry against its change log: what `biaojie verify` does.

First the log itself (chain, roots, head, witness), then, unless told not to, every record,
prefix and key: each must be what the log says was written last, and none may be missing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from biaojie.change import Action, Change, Entry
from biaojie.errors import TamperedLog
from biaojie.identifier import fold_prefix
from biaojie.record import Record

from .changelog import Verifier, record_digest, subject_prefix, text_digest
from .store import ReadStore

FAULTS_KEPT_MAX = 1_000
ENTRIES_KEPT_MAX = 64
PAGE = 200


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


@dataclass(slots=True)
class _Expected:
    """What the log says there is now."""

    records: Counter[str] = field(default_factory=Counter)  # how many, by folded prefix
    prefixes: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)

    def note(self, change: Change) -> None:
        match change.action:
            case Action.CREATE:
                self.records[fold_prefix(subject_prefix(change))] += 1
            case Action.PURGE:
                self.records[fold_prefix(subject_prefix(change))] -= 1
            case Action.HOME_PREFIX | Action.CHANGE_PREFIX:
                self.prefixes[change.subject] = change.digest
            case Action.ISSUE_KEY | Action.REVOKE_KEY:
                self.keys[change.subject] = change.digest


async def audit(
    store: ReadStore,
    *,
    witness: tuple[int, bytes] = (0, b""),
    log_only: bool = False,
    case_sensitive: bool = False,
    progress: Callable[[str, int], None] = lambda what, count: None,
) -> Audit:
    """Walk everything in bounded memory. Records written while it runs do not disturb it."""
    result = Audit()
    expected = _Expected()
    verifier = Verifier()
    newest_record = await store.newest_record_sequence()
    try:
        while True:
            await _walk(store, verifier, witness, expected, result, progress)
            head = await store.head()
            # Entries may have been appended meanwhile; a head without entries is a fault.
            if head[0] <= verifier.head[0] or not await store.list_changes(verifier.head[0], 1):
                break
    except TamperedLog as error:
        result.add(error.detail.en)
        return result
    if witness[0] > verifier.head[0]:
        result.add(
            f"the witness saw entry {witness[0]}, the log ends at {verifier.head[0]};"
            " it was truncated"
        )
    for fault in verifier.end(head, newest_record):
        result.add(fault)
    if not log_only:
        await _audit_state(store, expected, verifier.head[0], case_sensitive, result, progress)
    return result


async def _walk(
    store: ReadStore,
    verifier: Verifier,
    witness: tuple[int, bytes],
    expected: _Expected,
    result: Audit,
    progress: Callable[[str, int], None],
) -> None:
    while entries := await store.list_changes(verifier.head[0], PAGE):
        for entry in entries:
            for fault in verifier.feed(entry):
                result.add(fault)
            if entry.sequence == witness[0] and entry.hash != witness[1]:
                result.add(f"entry {entry.sequence}: is not the one the witness saw")
            for change in entry.changes:
                expected.note(change)
            result.entries += 1
            result.changes += len(entry.changes)
        progress("entries", result.entries)


async def _audit_state(
    store: ReadStore,
    expected: _Expected,
    upto: int,
    case_sensitive: bool,
    result: Audit,
    progress: Callable[[str, int], None],
) -> None:
    log = _Log(store)
    names: list[str] = []
    after: str | None = None
    while prefixes := await store.list_prefixes(after, PAGE):
        after = fold_prefix(prefixes[-1].name)
        for prefix in prefixes:
            names.append(fold_prefix(prefix.name))
            digest = text_digest(prefix.name, prefix.tenant, prefix.status, prefix.version)
            if prefix.sequence <= upto and expected.prefixes.get(prefix.name) != digest:
                result.add(f"prefix {prefix.name}: is not what the log says; it was edited")
    for name in expected.prefixes.keys() - await _names(store, names):
        result.add(f"prefix {name}: the log homed it, the registry has lost it")
    await _audit_keys(store, expected, result)
    for name in names:
        count = newer = 0
        async for record in _records(store, name, case_sensitive):
            count += 1
            result.records += 1
            if record.sequence > upto:
                newer += 1
            elif not await log.holds(record):
                result.add(f"record {record.identifier}: is not what the log says; it was edited")
            if result.records % 1_000 == 0:
                progress("records", result.records)
        if not newer and count != expected.records[name]:
            result.add(
                f"prefix {name}: the log says {expected.records[name]} records, there are {count}"
            )


async def _names(store: ReadStore, folded: list[str]) -> set[str]:
    found: set[str] = set()
    for at in range(0, len(folded), PAGE):
        prefixes = await store.find_prefixes(folded[at : at + PAGE])
        found |= {prefix.name for prefix in prefixes.values()}
    return found


async def _audit_keys(store: ReadStore, expected: _Expected, result: Audit) -> None:
    left = dict(expected.keys)
    after: str | None = None
    while keys := await store.list_keys(after, PAGE):
        after = keys[-1].id
        for key in keys:
            digest = text_digest(key.id, key.tenant, key.role, key.revoked)
            if left.pop(key.id, None) != digest:
                result.add(f"key {key.id}: is not what the log says; it was edited or slipped in")
    for key_id in left:
        result.add(f"key {key_id}: the log issued it, the registry has lost it")


async def _records(store: ReadStore, prefix: str, case_sensitive: bool) -> AsyncIterator[Record]:
    after: bytes | None = None
    while records := await store.list_records(prefix, after, PAGE):
        for record in records:
            yield record
        after = records[-1].identifier.key(case_sensitive=case_sensitive).suffix


class _Log:
    """Says whether an entry wrote a record as it is. Keeps the last entries it needed."""

    def __init__(self, store: ReadStore) -> None:
        self._store = store
        self._kept: OrderedDict[int, dict[str, set[tuple[int, bytes]]]] = OrderedDict()

    async def holds(self, record: Record) -> bool:
        written = self._kept.get(record.sequence)
        if written is None:
            entries = await self._store.list_changes(record.sequence - 1, 1)
            written = _written(entries[0]) if entries else {}
            self._kept[record.sequence] = written
            while len(self._kept) > ENTRIES_KEPT_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(record.sequence)
        states = written.get(str(record.identifier), set())
        return (record.version, record_digest(record)) in states


def _written(entry: Entry) -> dict[str, set[tuple[int, bytes]]]:
    found: dict[str, set[tuple[int, bytes]]] = {}
    for change in entry.changes:
        found.setdefault(change.subject, set()).add((change.version, change.digest))
    return found
