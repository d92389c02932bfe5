"""The hash-chained change log. Pure: entries in, entries or faults out.

A leaf is SHA-256(0x00 ‖ msgpack[action, subject, version, actor, digest]), where the change is
of a block with its last suffix and its count after them; the root is the RFC 6962 §2.1 Merkle
tree hash of the leaves; an entry's hash is SHA-256 over msgpack of its other fields, the previous
entry's hash among them. These encodings are permanent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgpack
import zstandard

from biaojie.account import ApiKey, Prefix
from biaojie.change import RUNS, Action, Change, Entry, make_change
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

ZERO = bytes(32)
_OF_BLOCKS = frozenset({*RUNS, Action.FOLD})
_PACKED = b"\xc1"
"""Begins the compressed form, and no msgpack. Entries of one change for each record do without."""
_PACKED_MAX = 2**24


def record_digest(record: Record) -> bytes:
    """SHA-256 of a record's whole state except `sequence`, which only the commit knows."""
    packed = msgpack.packb(
        [
            record.identifier.prefix,
            record.identifier.suffix,
            record.status,
            record.template,
            record.version,
            record.created,
            record.modified,
            [
                [
                    v.index,
                    v.type,
                    v.data,
                    v.ttl,
                    v.ttl_absolute,
                    v.timestamp,
                    v.permissions,
                    [[r.identifier, r.index] for r in v.references] if v.references else (),
                ]
                for v in record.values
            ],
        ]
    )
    return hashlib.sha256(packed).digest()


def text_digest(*fields: str | int) -> bytes:
    """SHA-256 of the state of a prefix or key, given as its fields."""
    return hashlib.sha256(msgpack.packb(list(fields))).digest()


def prefix_digest(prefix: Prefix) -> bytes:
    """SHA-256 of a prefix's whole state except `sequence`, and how far its index is made."""
    p = prefix
    return text_digest(p.name, p.tenant, p.status.value, p.version, p.created, *p.searchable)


def key_digest(key: ApiKey) -> bytes:
    """SHA-256 of a key's whole state, which secret it answers to included."""
    k = key
    return text_digest(k.id, k.tenant, k.role.value, k.revoked, k.label, k.created, k.digest.hex())


def _fields(change: Change) -> list[str | int | bytes]:
    c = change
    plain: list[str | int | bytes] = [c.action, c.subject, c.version, c.actor, c.digest]
    return [*plain, c.last, c.count] if c.action in _OF_BLOCKS else plain


def leaf(change: Change) -> bytes:
    return hashlib.sha256(b"\x00" + msgpack.packb(_fields(change))).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 §2.1 tree hash of leaf hashes; an odd node moves up unpaired, never doubled."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        paired = [
            hashlib.sha256(b"\x01" + level[at] + level[at + 1]).digest()
            for at in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def entry_hash(entry: Entry) -> bytes:
    packed = msgpack.packb(
        [
            entry.sequence,
            entry.time_ms,
            entry.actor,
            entry.action,
            entry.prefix,
            entry.count,
            entry.root,
            entry.previous,
        ]
    )
    return hashlib.sha256(packed).digest()


def _shared(distinct: set[str]) -> str:
    return str(distinct.pop()) if len(distinct) == 1 else ""


def _action(changes: Sequence[Change]) -> str:
    """What they have in common. Rewriting blocks is part of what it is done for, and
    leaving a range of the change that follows."""
    actions = {change.action for change in changes}
    if Action.BULK in actions or Action.COMPACT in actions:
        actions -= {Action.DISSOLVE, Action.FOLD}
    if Action.BULK in actions:
        actions -= {Action.COMPACT}
    if len(actions) > 1:
        actions -= {Action.LEAVE_RANGE}
    return _shared(set(actions))


def subject_prefix(change: Change) -> str:
    """The prefix a change belongs to; empty for changes of keys."""
    if change.action in (Action.ISSUE_KEY, Action.REVOKE_KEY):
        return ""
    return change.subject.partition("/")[0]


def subject_key(subject: str, *, case_sensitive: bool = False) -> Key:
    """The look-up key of an identifier the log names.

    It is not parsed again: it was valid by the rules of its time.
    """
    prefix, _, text = subject.partition("/")
    suffix = text.encode()
    return Key(fold_prefix(prefix), suffix if case_sensitive else suffix.upper())


def next_entry(head: tuple[int, bytes], time_ms: int, changes: Sequence[Change]) -> Entry:
    """The entry that records `changes` on top of `head` (sequence, hash)."""
    assert changes
    entry = Entry(
        sequence=head[0] + 1,
        time_ms=time_ms,
        actor=_shared({change.actor for change in changes}),
        action=_action(changes),
        prefix=_shared({subject_prefix(change) for change in changes}),
        count=len(changes),
        root=merkle_root([leaf(change) for change in changes]),
        previous=head[1],
        hash=ZERO,
        changes=tuple(changes),
    )
    return replace(entry, hash=entry_hash(entry))


def part_of(entry: Entry, changes: Sequence[Change]) -> Entry:
    """An entry that tells only of `changes`. Its hashes stay those of the whole."""
    return replace(
        entry,
        actor=_shared({change.actor for change in changes}),
        action=_action(changes),
        prefix=_shared({subject_prefix(change) for change in changes}),
        count=len(changes),
        changes=tuple(changes),
    )


_ACTIONS = {action.value: action for action in Action}
_NO_RUN = ("", 0)


def pack_changes(changes: Sequence[Change]) -> bytes:
    """The stored form of an entry's changes."""
    packed: bytes = msgpack.packb([_fields(change) for change in changes])
    if any(change.action in _OF_BLOCKS for change in changes):
        return _PACKED + zstandard.ZstdCompressor(level=1).compress(packed)
    return packed


def _unpacked(packed: bytes) -> bytes:
    if packed[:1] != _PACKED:
        return packed
    if not 0 <= zstandard.frame_content_size(packed[1:]) <= _PACKED_MAX:
        raise ValueError("too large")
    return zstandard.ZstdDecompressor().decompress(packed[1:])


def unpack_changes(packed: bytes) -> tuple[Change, ...]:
    """Raises ValueError on anything `pack_changes` did not write."""
    try:
        plain = _unpacked(packed)
        changes = tuple(
            make_change(_ACTIONS[action], subject, version, actor, digest, *(run or _NO_RUN))
            for action, subject, version, actor, digest, *run in msgpack.unpackb(plain)
        )
    except Exception as error:
        raise ValueError(f"not packed changes: {error}") from error
    for change in changes:
        kinds = (type(change.subject), type(change.version), type(change.actor))
        run = (type(change.last), type(change.count))
        if (*kinds, type(change.digest), *run) != (str, int, str, bytes, str, int):
            raise ValueError("not packed changes: a field has the wrong type")
    if msgpack.packb([_fields(change) for change in changes]) != plain:
        raise ValueError("not packed changes: the encoding is not the one that was written")
    return changes


def packed_leaves(packed: bytes) -> list[bytes]:
    """The leaves of `pack_changes`, a fifth of the work of unpacking them.

    Raises ValueError on what is not a list. A list of anything else has other leaves.
    """
    leaves = []
    try:
        packed = _unpacked(packed)
        unpacker = msgpack.Unpacker(max_buffer_size=len(packed))
        unpacker.feed(packed)
        count = unpacker.read_array_header()
        start = unpacker.tell()
        for _ in range(count):
            unpacker.skip()
            end = unpacker.tell()
            leaves.append(hashlib.sha256(b"\x00" + packed[start:end]).digest())
            start = end
    except (ValueError, msgpack.UnpackException, zstandard.ZstdError) as error:
        raise ValueError(f"not packed changes: {error!r}") from error
    if start != len(packed):
        raise ValueError("not packed changes: more follows")
    return leaves


class Verifier:
    """Walks entries in order and says what is wrong. Feed every entry, then `end()`."""

    def __init__(self, head: tuple[int, bytes] = (0, ZERO)) -> None:
        self.head = head
        self.faults: list[str] = []

    def feed(self, entry: Entry, leaves: Sequence[bytes] | None = None) -> list[str]:
        """The faults of this entry (also kept in `faults`).

        `leaves` stand for its changes where those were not unpacked: see `packed_leaves`.
        """
        if leaves is None:
            leaves = [leaf(change) for change in entry.changes]
        found = list(self._check(entry, leaves))
        self.faults += found
        self.head = (entry.sequence, entry.hash)
        return found

    def _check(self, entry: Entry, leaves: Sequence[bytes]) -> Iterator[str]:
        at = f"entry {entry.sequence}"
        if entry.sequence != self.head[0] + 1:
            yield f"{at}: follows entry {self.head[0]}; entries are missing, doubled or reordered"
        if entry.previous != self.head[1]:
            yield f"{at}: does not continue the hash of the entry before it"
        if entry.count != len(leaves):
            yield f"{at}: says {entry.count} changes, holds {len(leaves)}"
        if merkle_root(leaves) != entry.root:
            yield f"{at}: its changes do not hash to its Merkle root; a change was edited"
        if entry_hash(entry) != entry.hash:
            yield f"{at}: its fields do not hash to its hash; it was edited"

    def end(self, head: tuple[int, bytes], newest_record: int) -> list[str]:
        """Compare the walked log with the store's head row and its newest record."""
        found = []
        if self.head != head:
            found.append(
                f"the log ends at entry {self.head[0]}, the head says {head[0]}; it was truncated"
                " or extended by hand"
            )
        if newest_record > self.head[0]:
            found.append(
                f"a record carries entry {newest_record}, the log ends at {self.head[0]};"
                " it was truncated"
            )
        self.faults += found
        return found
