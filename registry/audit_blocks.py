"""What `verify` checks of blocks: each is as the log says it was written, all of them are there,
and no other is.

A block is checked as a whole, by the digest of its content, without making records of its
members; only members that were rows before a compaction are held against their own entries.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import lt
from typing import NamedTuple

from biaojie.change import RUNS, Action, Change
from biaojie.identifier import Key, fold_prefix

from .blocks import Block
from .changelog import record_digest, subject_prefix
from .members import Members, content_of
from .store import ReadStore

MODULUS = 1 << 2048
WRITTEN = (Action.BULK, Action.COMPACT)


class RunState(NamedTuple):
    """A block as the log names it, and the entry that wrote it."""

    sequence: int
    subject: str
    last: str
    size: int
    digest: bytes


class MemberState(NamedTuple):
    """A member that another entry wrote than its block."""

    sequence: int
    subject: str
    version: int
    digest: bytes
    key: Key


def _number(subject: str, last: str, count: int, digest: bytes) -> int:
    """For sums that stand for sets, as in registry.audit."""
    told = f"{count} {subject}\n{last}\n".encode() + digest
    return int.from_bytes(hashlib.shake_256(told).digest(256), "big")


class BlockSums:
    """What the log says of blocks, by folded prefix: a sum that stands for their set, and how
    many members they have."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def note(self, change: Change) -> None:
        prefix = fold_prefix(subject_prefix(change))
        sign = 1 if change.action in WRITTEN else -1
        number = _number(change.subject, change.last, change.count, change.digest)
        self.sums[prefix] = (self.sums[prefix] + sign * number) % MODULUS
        self.counts[prefix] += sign * change.count


class PageRead(NamedTuple):
    """What is to be said of some blocks, in order, of a prefix; see BlockWalk. `first` begins the
    first of them, `end` is the greatest last suffix."""

    first: bytes
    end: bytes
    sum: int
    members_count: int
    faults: list[str]
    runs: list[RunState]
    members: list[MemberState]


def read_page(prefix: str, until: int, blocks: Sequence[Block]) -> PageRead:
    """Check some blocks by themselves. Pure: it may be done in another process."""
    total = count = 0
    end = b""
    faults: list[str] = []
    runs: list[RunState] = []
    older: list[MemberState] = []
    for block in blocks:
        first, last = block.first.decode(errors="replace"), block.last.decode(errors="replace")
        name = f"{prefix}/{first}"
        if block.first <= end:
            faults.append(_lies_over(name))
        end = max(end, block.last)
        try:
            digest = hashlib.sha256(content_of(block.blob)).digest()
            members = Members(block.blob, block.size, block.sequence)
            names = members.suffixes()
            if (names[0], names[-1], len(names)) != (block.first, block.last, block.size):
                raise ValueError("its ends are not those of its content")
            if not all(map(lt, names, names[1:])):
                raise ValueError("its members are not in order")
            older += _older(prefix, members)
        except Exception as error:  # written by somebody else: anything may be wrong with it
            faults.append(f"block {name}: cannot be read: {error!r}")
            continue
        runs.append(RunState(block.sequence, name, last, block.size, digest))
        if block.sequence <= until:
            total = (total + _number(name, last, block.size, digest)) % MODULUS
            count += block.size
    return PageRead(blocks[0].first, end, total, count, faults, runs, older)


def _lies_over(name: str) -> str:
    return f"block {name}: lies over the one before it"


def _older(prefix: str, members: Members) -> Iterator[MemberState]:
    if members.alike_in_age:
        return
    for suffix, record in members.all():
        if record.sequence != members.sequence:
            subject, key = str(record.identifier), Key(prefix, suffix)
            digest = record_digest(record)
            yield MemberState(record.sequence, subject, record.version, digest, key)


class BlockWalk:
    """The blocks of a prefix that were written up to the entry `until`, page by page. What must be
    looked up in the log is left in `runs` and `members`."""

    def __init__(self, prefix: str, until: int) -> None:
        self.prefix = prefix
        self.until = until
        self.sum = 0
        self.count = 0
        self.end = b""
        self.faults: list[str] = []
        self.runs: list[RunState] = []
        self.members: list[MemberState] = []

    def take(self, page: PageRead) -> None:
        """The next page in order."""
        if page.first <= self.end:
            name = f"{self.prefix}/{page.first.decode(errors='replace')}"
            self.faults.append(_lies_over(name))
        self.end = max(self.end, page.end)
        self.sum = (self.sum + page.sum) % MODULUS
        self.count += page.members_count
        self.faults += page.faults
        self.runs += page.runs
        self.members += page.members


async def look_up_blocks(
    store: ReadStore, runs: Sequence[RunState], members: Sequence[MemberState]
) -> list[str]:
    """The faults of blocks and members that their entries do not tell of."""
    faults: list[str] = []
    asked: list[RunState | MemberState] = [*runs, *members]
    asked.sort(key=lambda state: state.sequence)
    for sequence, states in groupby(asked, key=lambda state: state.sequence):
        entries = await store.list_changes(sequence - 1, 1)
        changes = entries[0].changes if entries and entries[0].sequence == sequence else ()
        written = {(c.subject, c.last, c.count, c.digest) for c in changes if c.action in WRITTEN}
        single = {
            c.subject: (c.version, c.digest)
            for c in changes
            if c.action not in (*RUNS, Action.FOLD)
        }
        spans = [_span(c) for c in changes if c.action in WRITTEN]
        for state in states:
            if isinstance(state, RunState):
                if tuple(state[1:]) not in written:
                    faults.append(
                        f"block {state.subject}: is not what the log says; it was edited"
                        " or slipped in"
                    )
            elif state.subject in single:
                if single[state.subject] != (state.version, state.digest):
                    faults.append(
                        f"record {state.subject}: is not what the log says; it was edited"
                    )
            elif not any(first <= state.key <= last for first, last in spans):
                faults.append(f"record {state.subject}: is not what the log says; it was edited")
    return faults


def _span(change: Change) -> tuple[Key, Key]:
    prefix, _, first = change.subject.partition("/")
    return Key(prefix, first.encode()), Key(prefix, change.last.encode())
