"""The change log: golden entries, RFC 6962 roots, and 1,000 ways of tampering, each found."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from biaojie.change import Action, Change, Entry
from biaojie.wire import document
from registry.changelog import (
    ZERO,
    Verifier,
    entry_hash,
    leaf,
    merkle_root,
    next_entry,
    pack_changes,
    packed_leaves,
    record_digest,
    text_digest,
    unpack_changes,
)

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "vectors" / "changelog.jsonl")
    .read_text()
    .splitlines()
]


def _vectors(kind: str) -> Any:
    found = [vector for vector in VECTORS if vector["kind"] == kind]
    return pytest.mark.parametrize("vector", found, ids=lambda vector: vector["why"])


def _rfc_6962(inputs: Sequence[bytes]) -> bytes:
    """The definition in RFC 6962 §2.1, word by word."""
    if not inputs:
        return hashlib.sha256().digest()
    if len(inputs) == 1:
        return hashlib.sha256(b"\x00" + inputs[0]).digest()
    k = 1
    while k * 2 < len(inputs):
        k *= 2
    return hashlib.sha256(b"\x01" + _rfc_6962(inputs[:k]) + _rfc_6962(inputs[k:])).digest()


def _root(inputs: Sequence[bytes]) -> bytes:
    return merkle_root([hashlib.sha256(b"\x00" + octets).digest() for octets in inputs])


@_vectors("root")
def test_published_roots(vector: dict[str, Any]) -> None:
    inputs = [bytes.fromhex(text) for text in vector["inputs"]]
    assert _root(inputs).hex() == vector["root"]
    assert _rfc_6962(inputs).hex() == vector["root"]


def test_roots_of_every_size() -> None:
    inputs = [b"%d" % n for n in range(300)]
    for size in (*range(140), 255, 256, 257, 300):
        assert _root(inputs[:size]) == _rfc_6962(inputs[:size]), size


def test_an_odd_node_is_not_doubled() -> None:
    assert _root([b"a", b"b", b"c"]) != _root([b"a", b"b", b"c", b"c"])


@_vectors("entry")
def test_golden_entries_both_ways(vector: dict[str, Any]) -> None:
    entry = document.decode_entry(vector["document"])
    head = (vector["head"][0], bytes.fromhex(vector["head"][1]))
    assert next_entry(head, entry.time_ms, entry.changes) == entry
    assert pack_changes(entry.changes).hex() == vector["packed"]
    assert unpack_changes(bytes.fromhex(vector["packed"])) == entry.changes
    assert document.encode_entry(entry) == vector["document"]
    assert Verifier(head).feed(entry) == []
    leaves = packed_leaves(bytes.fromhex(vector["packed"]))
    assert leaves == [leaf(change) for change in entry.changes]
    assert Verifier(head).feed(replace(entry, changes=()), leaves) == []
    assert Verifier(head).feed(entry, [*leaves[:-1], bytes(32)]) != []


def test_golden_entry_of_blocks() -> None:
    digest = bytes.fromhex("4d630aa4fbcc24d046cd31046cada8e0cce808ee5720f24b1620b23c7af1f6a7")
    changes = (
        Change(Action.DISSOLVE, "88.118.8/SN1", 0, "k", digest, "SN1", 1),
        Change(Action.FOLD, "88.118.8/sn1", 2, "k", digest, "", 1),
        Change(Action.BULK, "88.118.8/SN1", 0, "k", digest, "SN30", 3),
    )
    head = (4, bytes(range(32)))
    entry = next_entry(head, 1_700_000_000_123, changes)
    assert (entry.action, entry.count, entry.prefix) == ("bulk", 3, "88.118.8")
    assert entry.root.hex() == "65e5956eb43f0ad88d25c49cd8e205117d7ae87119733a9a5d7aac5f8d396967"
    assert entry.hash.hex() == "debe1c4ac15c0bbe9982de893ce34402e2087d33769309c577722c66f41417e5"
    packed = pack_changes(changes)
    assert packed[:1] == b"\xc1"  # compressed, which begins no msgpack
    assert unpack_changes(packed) == changes
    assert document.decode_entry(document.encode_entry(entry)) == entry
    assert Verifier(head).feed(entry) == []
    for damaged in (packed[:-1], packed[:1], packed[:5] + b"x" + packed[6:]):
        with pytest.raises(ValueError, match="not packed changes"):
            unpack_changes(damaged)


@_vectors("record")
def test_golden_record_digest(vector: dict[str, Any]) -> None:
    record = document.decode_record(vector["document"])
    assert record_digest(record).hex() == vector["digest"]
    assert record_digest(replace(record, sequence=1)).hex() == vector["digest"]
    for change in (
        {"version": 4},
        {"template": "t"},
        {"created": 0},
        {"modified": 0},
        {"values": record.values[:1]},
        {"values": record.values[::-1]},
        {"values": (replace(record.values[0], data=b""), record.values[1])},
        {"values": (record.values[0], replace(record.values[1], references=()))},
    ):
        assert record_digest(replace(record, **change)).hex() != vector["digest"], change


@_vectors("text")
def test_golden_text_digest(vector: dict[str, Any]) -> None:
    assert text_digest(*vector["fields"]).hex() == vector["digest"]
    assert text_digest("ab", "c") != text_digest("a", "bc")
    assert text_digest("1") != text_digest(1)


GOOD_CHANGE = ["put", "a/b", 1, "k", bytes(32)]


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        b"\x93",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5_000,
        msgpack.packb(None),
        msgpack.packb({}),
        msgpack.packb([[]]),
        msgpack.packb([GOOD_CHANGE[:4]]),
        msgpack.packb([[*GOOD_CHANGE, 1]]),
        msgpack.packb([["no-such-action", *GOOD_CHANGE[1:]]]),
        msgpack.packb([["put", 5, 1, "k", bytes(32)]]),
        msgpack.packb([["put", "a/b", "1", "k", bytes(32)]]),
        msgpack.packb([["put", "a/b", True, "k", bytes(32)]]),
        msgpack.packb([["put", "a/b", 1, None, bytes(32)]]),
        msgpack.packb([["put", "a/b", 1, "k", "0" * 32]]),
        msgpack.packb([GOOD_CHANGE]) + b"\x00",
        msgpack.packb([GOOD_CHANGE]).replace(b"\x01\xa1k", b"\xcc\x01\xa1k"),
    ],
)
def test_stored_changes_that_nobody_packed(packed: bytes) -> None:
    with pytest.raises(ValueError, match="not packed changes"):
        unpack_changes(packed)
    leaves = []
    with suppress(ValueError):  # or has others than the one that its entry was hashed from
        leaves = packed_leaves(packed)
    assert leaves != [leaf(Change(Action.PUT, "a/b", 1, "k", bytes(32)))]


# Promise 12 ------------------------------------------------------------------------------


def _changes(chance: random.Random) -> list[Change]:
    return [
        Change(
            chance.choice(list(Action)),
            f"88.118.8/SN{chance.randrange(1_000)}",
            chance.randint(1, 9),
            chance.choice(["k1", "k2"]),
            chance.randbytes(32),
        )
        for _ in range(chance.randint(1, 5))
    ]


def _extend(log: list[Entry], count: int, chance: random.Random) -> list[Entry]:
    log = list(log)
    for _ in range(count):
        head = (log[-1].sequence, log[-1].hash) if log else (0, ZERO)
        log.append(next_entry(head, 1_700_000_000_000 + chance.randrange(10**6), _changes(chance)))
    return log


def _rehash(entry: Entry) -> Entry:
    """What a thief who knows the format makes of an entry: consistent in itself."""
    root = merkle_root([leaf(change) for change in entry.changes])
    entry = replace(entry, root=root, count=len(entry.changes))
    return replace(entry, hash=entry_hash(entry))


def _flip(octets: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(octets))
    return octets[:at] + bytes([octets[at] ^ (1 << chance.randrange(8))]) + octets[at + 1 :]


def _edit_change(log: list[Entry], chance: random.Random) -> list[Entry]:
    at = chance.randrange(len(log))
    changes = list(log[at].changes)
    which = chance.randrange(len(changes))
    change = changes[which]
    others = [action for action in Action if action != change.action]
    edited: dict[str, Any] = chance.choice(
        [
            {"action": chance.choice(others)},
            {"subject": change.subject + "0"},
            {"version": change.version + 1},
            {"actor": change.actor + "x"},
            {"digest": _flip(change.digest, chance)},
        ]
    )
    changes[which] = replace(change, **edited)
    log[at] = replace(log[at], changes=tuple(changes))
    return log


def _edit_entry(log: list[Entry], chance: random.Random) -> list[Entry]:
    at = chance.randrange(len(log))
    entry = log[at]
    edited: dict[str, Any] = chance.choice(
        [
            {"sequence": entry.sequence + chance.choice([-1, 1])},
            {"time_ms": entry.time_ms + 1},
            {"actor": entry.actor + "x"},
            {"action": entry.action + "x"},
            {"prefix": entry.prefix + "x"},
            {"count": entry.count + 1},
            {"root": _flip(entry.root, chance)},
            {"previous": _flip(entry.previous, chance)},
            {"hash": _flip(entry.hash, chance)},
            {"changes": ()},
            {"changes": (*entry.changes, entry.changes[-1])},
        ]
    )
    log[at] = replace(entry, **edited)
    return log


def _edit_and_rehash(log: list[Entry], chance: random.Random) -> list[Entry]:
    at = chance.randrange(len(log))
    log[at] = _rehash(replace(log[at], time_ms=log[at].time_ms + 1))
    return log


def _delete(log: list[Entry], chance: random.Random) -> list[Entry]:
    at = chance.randrange(len(log) - 1)
    del log[at : min(at + chance.randint(1, 3), len(log) - 1)]
    return log


def _delete_and_renumber(log: list[Entry], chance: random.Random) -> list[Entry]:
    return [
        _rehash(replace(entry, sequence=sequence))
        for sequence, entry in enumerate(_delete(log, chance), 1)
    ]


def _reorder(log: list[Entry], chance: random.Random) -> list[Entry]:
    one, other = chance.sample(range(len(log)), 2)
    log[one], log[other] = log[other], log[one]
    return log


def _reorder_changes(log: list[Entry], chance: random.Random) -> list[Entry]:
    at = chance.choice([n for n, entry in enumerate(log) if len(entry.changes) > 1])
    log[at] = replace(log[at], changes=(*log[at].changes[1:], log[at].changes[0]))
    return log


def _double(log: list[Entry], chance: random.Random) -> list[Entry]:
    at = chance.randrange(len(log))
    return [*log[: at + 1], log[at], *log[at + 1 :]]


def _truncate(log: list[Entry], chance: random.Random) -> list[Entry]:
    return log[: chance.randrange(len(log))]


def _cut_the_front(log: list[Entry], chance: random.Random) -> list[Entry]:
    return log[chance.randrange(1, len(log)) :]


def _fork(log: list[Entry], chance: random.Random) -> list[Entry]:
    """Another history from some entry on, as long as the true one and flawless in itself."""
    at = chance.randrange(len(log))
    return _extend(log[:at], len(log) - at, chance)


def _fork_the_middle(log: list[Entry], chance: random.Random) -> list[Entry]:
    at = chance.randrange(len(log) - 1)
    return [*_extend(log[:at], 1, chance), *log[at + 1 :]]


def _extend_by_hand(log: list[Entry], chance: random.Random) -> list[Entry]:
    return _extend(log, 1, chance)


TAMPERINGS: list[Callable[[list[Entry], random.Random], list[Entry]]] = [
    _edit_change,
    _edit_entry,
    _edit_and_rehash,
    _delete,
    _delete_and_renumber,
    _reorder,
    _reorder_changes,
    _double,
    _truncate,
    _cut_the_front,
    _fork,
    _fork_the_middle,
    _extend_by_hand,
]
LOG = _extend([], 24, random.Random("log"))
HEAD = (LOG[-1].sequence, LOG[-1].hash)


def _faults(log: list[Entry], head: tuple[int, bytes] = HEAD, newest: int = HEAD[0]) -> list[str]:
    verifier = Verifier()
    for entry in log:
        verifier.feed(entry)
    verifier.end(head, newest)
    return verifier.faults


def test_the_true_log_has_no_faults() -> None:
    assert _faults(LOG) == []
    assert _faults([], (0, ZERO), 0) == []


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__[1:])
def test_tampering_is_found(tamper: Callable[[list[Entry], random.Random], list[Entry]]) -> None:
    chance = random.Random(tamper.__name__)
    for _ in range(-(-1_000 // len(TAMPERINGS))):
        tampered = tamper(list(LOG), chance)
        assert tampered != LOG
        assert _faults(tampered), tampered


def test_truncation_together_with_the_head_is_found_by_the_records() -> None:
    for length in range(len(LOG)):
        shorter = LOG[:length]
        head = (shorter[-1].sequence, shorter[-1].hash) if shorter else (0, ZERO)
        assert _faults(shorter, head, newest=HEAD[0]), length


def test_an_entry_that_counts_wrong_though_its_hash_is_right() -> None:
    entry = replace(LOG[0], count=LOG[0].count + 1)
    entry = replace(entry, hash=entry_hash(entry))
    (fault,) = _faults([entry], (1, entry.hash), 1)
    assert fault == f"entry 1: says {entry.count} changes, holds {entry.count - 1}"


def test_the_fault_names_the_entry() -> None:
    tampered = list(LOG)
    tampered[6] = replace(LOG[6], time_ms=0)
    assert _faults(tampered) == ["entry 7: its fields do not hash to its hash; it was edited"]
    assert _faults(LOG[:5] + LOG[6:]) == [
        "entry 7: follows entry 5; entries are missing, doubled or reordered",
        "entry 7: does not continue the hash of the entry before it",
    ]
