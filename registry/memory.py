"""A store in memory: for tests, and as the limit in benches. Nothing survives the process.

A transaction writes to an overlay that is merged in one step without awaiting, so readers see
all of it or none; an asyncio.Lock makes transactions serial.
"""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

from biaojie.account import ApiKey, Prefix
from biaojie.change import Entry
from biaojie.errors import TemporarilyUnavailable
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

from .blocks import Block
from .census import Shift, pack_shift
from .changelog import ZERO
from .layers import Page, merged, page_of
from .matching import Match
from .members import Members
from .memory_statistics import MemoryStatistics
from .patterns import sought
from .ranges import HeldRange, RangeKey, first_members, member_of
from .store import (
    BLOCKS_MAX,
    INDEXING_MAX,
    Found,
    FoundInBlock,
    FoundInRange,
    Loaded,
    ReceiptKey,
    Row,
    StoredReceipt,
)

_FEW = 64
"""From this many new names on, sorting a prefix once is cheaper than inserting one by one."""


@dataclass(frozen=True, slots=True)
class _Marker:
    """In place of a record: there is none of this name, though a block may have one."""

    sequence: int


@dataclass(slots=True)
class _State:
    """Tables by key. In an overlay, None in `records` or `receipts` stands for "removed", as
    False does in `rows`. `indexed` has the prefixes whose index is not complete, None once it is.
    `blocks` and `ranges` have those of a prefix, in order; in an overlay, all of each prefix that
    changed.
    """

    prefixes: dict[str, Prefix] = field(default_factory=dict)
    records: dict[Key, Record | _Marker | None] = field(default_factory=dict)
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    ranges: dict[str, list[tuple[RangeKey, HeldRange]]] = field(default_factory=dict)
    keys: dict[str, ApiKey] = field(default_factory=dict)
    key_ids: dict[bytes, str] = field(default_factory=dict)
    receipts: dict[ReceiptKey, StoredReceipt | None] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)
    shifts: list[bytes | None] = field(default_factory=list)
    rows: dict[Match, bool] = field(default_factory=dict)
    indexed: dict[str, bytes | None] = field(default_factory=dict)
    suffixes: dict[str, list[bytes]] = field(default_factory=dict)

    def suffixes_after(self, prefix: str, after: bytes | None, limit: int) -> list[bytes]:
        suffixes = self.suffixes.get(prefix, [])
        start = 0 if after is None else bisect_right(suffixes, after)
        return suffixes[start : start + limit]


def _row(suffix: bytes, kept: Record | _Marker) -> Row:
    return Row(suffix, None if isinstance(kept, _Marker) else kept, kept.sequence)


def _around(blocks: Sequence[Block], suffix: bytes) -> int:
    """The number of the last block that begins <= `suffix`; -1 if there is none."""
    return bisect_right(blocks, suffix, key=lambda block: block.first) - 1


def _in_block(blocks: Sequence[Block], suffix: bytes) -> Record | None:
    at = _around(blocks, suffix)
    if at < 0 or blocks[at].last < suffix:
        return None
    block = blocks[at]
    return Members(block.blob, block.size, block.sequence).find(suffix)


def _in_range(ranges: Sequence[tuple[RangeKey, HeldRange]], key: Key) -> Record | None:
    for shape, run in sought(key.suffix) if ranges else ():
        wanted = RangeKey(key.prefix, shape, run)
        at = bisect_right(ranges, wanted, key=lambda each: each[0]) - 1
        if at >= 0 and ranges[at][0].shape == shape:
            record = member_of(ranges[at][1], run)
            if record is not None:
                return record
    return None


def _layered(
    rows: Sequence[Row],
    blocks: Sequence[Block],
    ranges: Sequence[tuple[RangeKey, HeldRange]],
    after: bytes | None,
    limit: int,
) -> list[Record]:
    """Of all rows > `after`, and all blocks and ranges."""
    after = after or b""
    inside = blocks[max(_around(blocks, after), 0) :][: limit + len(rows) + 1]
    lower = page_of(inside, after, more=False)
    upper = Page([(row.suffix, row.record) for row in rows], None)
    members = Page(*first_members(ranges, after, limit + len(rows) + len(lower.items)))
    return [record for _, record in merged([upper, lower, members], limit)[0]]


def _head(log: Sequence[Entry]) -> tuple[int, bytes]:
    return (log[-1].sequence, log[-1].hash) if log else (0, ZERO)


class MemoryTransaction:
    def __init__(self, base: _State) -> None:
        self._base = base
        self.overlay = _State()

    def _prefix(self, name: str) -> Prefix | None:
        return self.overlay.prefixes.get(name) or self._base.prefixes.get(name)

    def _kept(self, key: Key) -> Record | _Marker | None:
        if key in self.overlay.records:
            return self.overlay.records[key]
        return self._base.records.get(key)

    def _blocks(self, prefix: str) -> list[Block]:
        return self.overlay.blocks.get(prefix, self._base.blocks.get(prefix, []))

    def _own_blocks(self, prefix: str) -> list[Block]:
        """Those of the overlay, to be changed."""
        return self.overlay.blocks.setdefault(prefix, list(self._base.blocks.get(prefix, [])))

    def _beneath(self, key: Key) -> Record | None:
        found = _in_block(self._blocks(key.prefix), key.suffix)
        return _in_range(self.ranges(key.prefix), key) if found is None else found

    def ranges(self, prefix: str) -> list[tuple[RangeKey, HeldRange]]:
        return self.overlay.ranges.get(prefix, self._base.ranges.get(prefix, []))

    async def load(self, keys: Sequence[Key], receipts: Sequence[ReceiptKey], now: int) -> Loaded:
        return Loaded(
            await self.head(), await self.look_up(keys), await self.find_receipts(receipts, now)
        )

    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        found = []
        for key in keys:
            kept: Record | _Marker | None = self._kept(key)
            kind: type[Found] = Found
            if kept is None:
                kept, kind = _in_block(self._blocks(key.prefix), key.suffix), FoundInBlock
            if kept is None:
                kept, kind = _in_range(self.ranges(key.prefix), key), FoundInRange
            record = None if isinstance(kept, _Marker) else kept
            kind = kind if record is not None else Found
            found.append(kind(self._prefix(key.prefix), record))
        return found

    async def find_prefixes(self, names: Sequence[str]) -> dict[str, Prefix]:
        return {name: prefix for name in names if (prefix := self._prefix(name)) is not None}

    async def find_keys_by_id(self, ids: Sequence[str]) -> dict[str, ApiKey]:
        found = {id_: self.overlay.keys.get(id_) or self._base.keys.get(id_) for id_ in ids}
        return {id_: key for id_, key in found.items() if key is not None}

    async def find_receipts(
        self, keys: Sequence[ReceiptKey], now: int
    ) -> dict[ReceiptKey, StoredReceipt]:
        found = {}
        for key in keys:
            receipt = self.overlay.receipts.get(key, self._base.receipts.get(key))
            if receipt is not None and receipt.expires >= now:
                found[key] = receipt
        return found

    async def head(self) -> tuple[int, bytes]:
        return _head(self.overlay.log or self._base.log)

    async def list_records(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        rows = await self.list_rows(prefix, after, sys.maxsize)
        return _layered(rows, self._blocks(prefix), (), after, limit)

    async def list_all(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        """With the members of ranges."""
        rows = await self.list_rows(prefix, after, sys.maxsize)
        return _layered(rows, self._blocks(prefix), self.ranges(prefix), after, limit)

    async def find_ranges(self, first: RangeKey, last: bytes, limit: int) -> list[HeldRange]:
        same = [each for each in self.ranges(first.prefix) if each[0].shape == first.shape]
        found = [
            held for key, held in same if key.first <= last and held.pattern.runs[1] >= first.first
        ]
        return found[:limit]

    async def range_shapes(self, prefix: str) -> list[bytes]:
        return sorted({key.shape for key, _ in self.ranges(prefix)})

    async def list_row_names(
        self, prefix: str, first: bytes, last: bytes, octets: int, limit: int
    ) -> list[tuple[bytes, bool]]:
        rows = await self.list_rows(prefix, None, sys.maxsize)
        names = [(row.suffix, row.record is None) for row in rows if first <= row.suffix <= last]
        return [each for each in names if len(each[0]) == octets][:limit]

    async def members_of_ranges(self, keys: Sequence[Key]) -> set[Key]:
        return {key for key in keys if _in_range(self.ranges(key.prefix), key) is not None}

    async def change_ranges(
        self, gone: Iterable[RangeKey], put: Mapping[RangeKey, HeldRange]
    ) -> None:
        gone = list(gone)
        for prefix in {key.prefix for key in (*gone, *put)}:
            assert self._prefix(prefix) is not None, f"prefix {prefix} is not homed"
            kept = {key: held for key, held in self.ranges(prefix) if key not in gone}
            kept |= {key: held for key, held in put.items() if key.prefix == prefix}
            self.overlay.ranges[prefix] = sorted(kept.items(), key=lambda each: each[0])

    async def list_rows(self, prefix: str, after: bytes | None, limit: int) -> list[Row]:
        changed = [key.suffix for key in self.overlay.records if key.prefix == prefix]
        listed = self._base.suffixes_after(prefix, after, limit + len(changed))
        suffixes = {*listed, *(s for s in changed if after is None or s > after)}
        found = ((suffix, self._kept(Key(prefix, suffix))) for suffix in sorted(suffixes))
        return [_row(suffix, kept) for suffix, kept in found if kept is not None][:limit]

    async def look_up_marked(self, keys: Sequence[Key]) -> tuple[list[Found], set[Key]]:
        marked = {key for key in keys if isinstance(self._kept(key), _Marker)}
        return await self.look_up(keys), marked

    async def find_in_blocks(self, keys: Sequence[Key]) -> list[Record | None]:
        return [_in_block(self._blocks(key.prefix), key.suffix) for key in keys]

    async def touched(self, prefix: str, spans: Sequence[tuple[bytes, bytes]]) -> list[int]:
        rows = [row.suffix for row in await self.list_rows(prefix, None, sys.maxsize)]

        async def has(first: bytes, last: bytes) -> bool:
            row = bisect_left(rows, first)
            in_rows = row < len(rows) and rows[row] <= last
            return in_rows or bool(await self.blocks_in(prefix, first, last) or self.ranges(prefix))

        return [n for n, span in enumerate(spans) if await has(*span)]

    async def blocks_in(self, prefix: str, first: bytes, last: bytes) -> list[Block]:
        blocks = self._blocks(prefix)
        near = blocks[max(_around(blocks, first), 0) : _around(blocks, last) + 1]
        return [block for block in near if block.last >= first][:BLOCKS_MAX]

    async def put_blocks(self, prefix: str, blocks: Sequence[Block]) -> None:
        own = self._own_blocks(prefix)
        own += blocks
        own.sort()
        for block, after in pairwise(own):
            assert block.last < after.first, "blocks overlap"

    async def remove_blocks(self, prefix: str, firsts: Iterable[bytes]) -> None:
        gone = set(firsts)
        own = self._own_blocks(prefix)
        own[:] = [block for block in own if block.first not in gone]

    async def remove_rows(self, prefix: str, suffixes: Iterable[bytes]) -> None:
        self.overlay.records.update(dict.fromkeys([Key(prefix, suffix) for suffix in suffixes]))

    async def put_prefixes(self, prefixes: Iterable[Prefix]) -> None:
        for prefix in prefixes:
            name = fold_prefix(prefix.name)
            self.overlay.prefixes[name] = prefix
            self.overlay.indexed[name] = b"" if prefix.indexing else None

    async def put_records(self, records: Mapping[Key, Record]) -> None:
        for key in records:
            assert self._prefix(key.prefix) is not None, f"prefix {key.prefix} is not homed"
        self.overlay.records.update(records)

    async def purge_records(self, keys: Iterable[Key], sequence: int) -> None:
        for key in keys:
            beneath = self._beneath(key)
            self.overlay.records[key] = None if beneath is None else _Marker(sequence)

    async def change_rows(self, added: Iterable[Match], removed: Iterable[Match]) -> None:
        self.overlay.rows.update(dict.fromkeys(added, True))
        self.overlay.rows.update(dict.fromkeys(removed, False))

    async def indexed_to(self, prefix: str) -> bytes | None:
        return self.overlay.indexed.get(prefix, self._base.indexed.get(prefix))

    async def set_indexed_to(self, prefix: str, suffix: bytes | None) -> None:
        known = self._prefix(prefix)
        assert known is not None
        self.overlay.prefixes[prefix] = replace(known, indexing=suffix is not None)
        self.overlay.indexed[prefix] = suffix

    async def put_keys(self, keys: Mapping[bytes, ApiKey]) -> None:
        self.overlay.keys.update({key.id: key for key in keys.values()})
        self.overlay.key_ids.update({digest: key.id for digest, key in keys.items()})

    async def revoke_keys(self, revoked: Mapping[str, int]) -> None:
        for id_, key in (await self.find_keys_by_id(list(revoked))).items():
            self.overlay.keys[id_] = replace(key, revoked=revoked[id_])

    async def put_receipts(self, receipts: Mapping[ReceiptKey, StoredReceipt]) -> None:
        self.overlay.receipts.update(receipts)

    async def forget_receipts(self, now: int, limit: int) -> None:
        seen = {**self._base.receipts, **self.overlay.receipts}
        expired = [key for key, kept in seen.items() if kept is not None and kept.expires < now]
        self.overlay.receipts.update(dict.fromkeys(expired[:limit]))

    async def append(self, entry: Entry, shift: Shift | None = None) -> None:
        at = (await self.head())[0]
        assert entry.sequence == at + 1, f"entry {entry.sequence} after {at}"
        self.overlay.log.append(entry)
        self.overlay.shifts.append(None if shift is None else pack_shift(shift))


class MemoryStore(MemoryStatistics):
    """`wait_s` bounds the wait for other transactions."""

    def __init__(self, wait_s: float = 5.0) -> None:
        self._state = _State()
        super().__init__(self._state)
        self._found: dict[tuple[bytes, bool], list[Key]] = {}
        self._lock = asyncio.Lock()
        self._wait_s = wait_s

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        try:
            await asyncio.wait_for(self._lock.acquire(), self._wait_s)
        except TimeoutError:
            raise TemporarilyUnavailable(
                "Other writes kept the registry busy.", "注册库一直忙于其他写入。"
            ) from None
        try:
            transaction = MemoryTransaction(self._state)
            yield transaction
            self._merge(transaction.overlay)
        finally:
            self._lock.release()

    def _merge(self, overlay: _State) -> None:
        state = self._state
        added: dict[str, list[bytes]] = {}
        for key, record in overlay.records.items():
            known = key in state.records
            if record is not None:
                state.records[key] = record
                if not known:
                    added.setdefault(key.prefix, []).append(key.suffix)
            elif known:
                del state.records[key]
                suffixes = state.suffixes[key.prefix]
                del suffixes[bisect_left(suffixes, key.suffix)]
        state.blocks.update(overlay.blocks)
        state.ranges.update(overlay.ranges)
        for prefix, new in added.items():
            suffixes = state.suffixes.setdefault(prefix, [])
            if len(new) < _FEW:
                for suffix in new:
                    insort(suffixes, suffix)
            else:
                suffixes += new
                suffixes.sort()
        for (digest, public, key), wanted in overlay.rows.items():
            keys = self._found.setdefault((digest, public), [])
            at = bisect_left(keys, key)
            there = keys[at : at + 1] == [key]
            if wanted and not there:
                keys.insert(at, key)
            elif there and not wanted:
                del keys[at]
        state.indexed.update(overlay.indexed)
        for receipt_key, receipt in overlay.receipts.items():
            if receipt is None:
                state.receipts.pop(receipt_key, None)
            else:
                state.receipts[receipt_key] = receipt
        state.prefixes.update(overlay.prefixes)
        state.keys.update(overlay.keys)
        state.key_ids.update(overlay.key_ids)
        state.log.extend(overlay.log)
        state.shifts.extend(overlay.shifts)

    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        return await MemoryTransaction(self._state).look_up(keys)

    async def list_records(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        return await MemoryTransaction(self._state).list_all(prefix, after, limit)

    async def list_ranges(self, prefix: str, after: RangeKey | None, limit: int) -> list[HeldRange]:
        ranges = self._state.ranges.get(prefix, [])
        return [held for key, held in ranges if after is None or key > after][:limit]

    async def list_rows(self, prefix: str, after: bytes | None, limit: int) -> list[Row]:
        return await MemoryTransaction(self._state).list_rows(prefix, after, limit)

    async def find_in_blocks(self, keys: Sequence[Key]) -> list[Record | None]:
        return await MemoryTransaction(self._state).find_in_blocks(keys)

    async def list_blocks(self, prefix: str, after: bytes | None, limit: int) -> list[Block]:
        blocks = self._state.blocks.get(prefix, [])
        return blocks[_around(blocks, after or b"") + 1 :][: min(limit, BLOCKS_MAX)]

    async def find_prefixes(self, names: Sequence[str]) -> dict[str, Prefix]:
        return {n: self._state.prefixes[n] for n in names if n in self._state.prefixes}

    async def list_prefixes(
        self, after: str | None, limit: int, tenant: str | None = None
    ) -> list[Prefix]:
        return [
            prefix
            for name, prefix in sorted(self._state.prefixes.items())
            if name > (after or "") and tenant in (None, prefix.tenant)
        ][:limit]

    async def find_key(self, digest: bytes) -> ApiKey | None:
        id_ = self._state.key_ids.get(digest)
        return None if id_ is None else self._state.keys[id_]

    async def find_keys_by_id(self, ids: Sequence[str]) -> dict[str, ApiKey]:
        return {id_: self._state.keys[id_] for id_ in ids if id_ in self._state.keys}

    async def list_keys(self, after: str | None, limit: int) -> list[ApiKey]:
        return [k for id_, k in sorted(self._state.keys.items()) if id_ > (after or "")][:limit]

    async def list_changes(self, after: int, limit: int) -> list[Entry]:
        return self._state.log[max(after, 0) :][:limit]

    async def head(self) -> tuple[int, bytes]:
        return _head(self._state.log)

    async def find_matches(
        self, digest: bytes, *, private: bool, prefix: str | None, after: Key, limit: int
    ) -> list[Key]:
        if prefix is not None:
            after = max(after, Key(prefix, b""))
        found: list[Key] = []
        for public in (True, False) if private else (True,):
            keys = self._found.get((digest, public), [])
            start = bisect_right(keys, after)
            found += keys[start : start + limit]
        return [key for key in sorted(found) if prefix in (None, key.prefix)][:limit]

    async def list_indexing(self) -> list[Prefix]:
        at = sorted(name for name, to in self._state.indexed.items() if to is not None)
        return [self._state.prefixes[name] for name in at[:INDEXING_MAX]]

    async def newest_record_sequence(self) -> int:
        state = self._state
        carried = [kept.sequence for kept in state.records.values() if kept is not None]
        carried += [block.sequence for blocks in state.blocks.values() for block in blocks]
        carried += [held.written for ranges in state.ranges.values() for _, held in ranges]
        return max([*carried, *(p.sequence for p in state.prefixes.values())], default=0)

    async def settle_rules(self, case_sensitive: bool) -> None:
        """Nothing outlives the process, so nothing can differ."""

    def connections(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        """Nothing to give back."""
