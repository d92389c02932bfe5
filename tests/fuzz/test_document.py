"""Garbage of every JSON type at every position: a value, or a BiaojieError. Nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biaojie.account import ApiKey, Prefix, Role
from biaojie.change import Action, BatchResult, Change, Entry, Receipt, RowResult
from biaojie.errors import BiaojieError, InvalidRecord
from biaojie.identifier import Identifier
from biaojie.record import Record, Reference, Value, check_values
from biaojie.wire import document

GARBAGE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(10**400),
    1.0,
    float("nan"),
    float("inf"),
    -0.0,
    "",
    "x",
    "1110",
    "a/b",
    "\ud800",
    "\0",
    "1e999",
    "9" * 5_000,
    "0001-01-01T00:00:00-23:59",
    "电" * 1_000,
    [],
    [[]],
    [None] * 600,
    {},
    {"format": "base64", "value": "="},
    {"format": {}, "value": []},
    {"code": []},
    {5: 6},
]

RECEIPT = Receipt("88.118.8/SN1", Action.PUT, "active", 2, 7)
VALUE = Value(1, "URL", b"x", timestamp=5, references=(Reference("a/b", 1),))
SAMPLES: dict[str, tuple[Any, Any]] = {
    "value": (document.decode_value, document.encode_value(VALUE)),
    "octets": (document.decode_value, document.encode_value(Value(1, "URL", b"\xff"))),
    "values": (document.decode_values, [document.encode_value(VALUE)]),
    "record": (
        document.decode_record,
        document.encode_record(Record(Identifier("a", "b"), (VALUE,), template="t")),
    ),
    "receipt": (document.decode_receipt, document.encode_receipt(RECEIPT)),
    "batch": (
        document.decode_batch,
        document.encode_batch(
            BatchResult("all", False, 1, (RowResult(0, "a/b", RECEIPT), RowResult(1, "b", None)))
        ),
    ),
    "prefix": (document.decode_prefix, document.encode_prefix(Prefix("a", "t"))),
    "key": (document.decode_key, document.encode_key(ApiKey("k", "t", Role.READER, revoked=3))),
    "entry": (
        document.decode_entry,
        document.encode_entry(
            Entry(
                *(1, 2, "k", "put", "a", 1, bytes(32), bytes(32), bytes(32)),
                (Change(Action.PUT, "a/b", 1, "k", bytes(32)),),
            )
        ),
    ),
}


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _places(child, (*path, name))


def _put(node: Any, path: tuple[Any, ...], garbage: Any) -> Any:
    if not path:
        return garbage
    node = deepcopy(node)
    inner = node
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = garbage
    return node


def _feed(decode: Any, wrong: Any) -> bool:
    """Whether it was refused. What is accepted must also pass the checks without a crash."""
    try:
        decoded = decode(wrong)
        if decode is document.decode_value:
            check_values([decoded])
        elif decode is document.decode_values:
            check_values(decoded)
    except BiaojieError as error:
        refusal = error
    else:
        return False
    assert len(refusal.detail.en) < 1_000
    orjson.dumps(document.encode_error(refusal))  # a reply can always carry it
    return True


@pytest.mark.parametrize("name", SAMPLES)
def test_garbage_at_every_place(name: str) -> None:
    decode, sample = SAMPLES[name]
    decode(sample)
    refused = 0
    places = list(_places(sample))
    for path in places:
        for garbage in GARBAGE:
            refused += _feed(decode, _put(sample, path, garbage))
    assert refused > len(places) * len(GARBAGE) // 2


@pytest.mark.parametrize("name", SAMPLES)
def test_two_thousand_random_changes(name: str) -> None:
    decode, sample = SAMPLES[name]
    chance = random.Random(name)
    for _ in range(2_000):
        wrong = sample
        for _ in range(chance.randint(1, 4)):
            wrong = _put(wrong, chance.choice(list(_places(wrong))), chance.choice(GARBAGE))
        _feed(decode, wrong)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=300)
def test_any_json_at_all(anything: Any) -> None:
    for decode, sample in SAMPLES.values():
        _feed(decode, anything)
        if isinstance(anything, dict) and isinstance(sample, dict):
            _feed(decode, {**sample, **anything})


@given(json_values, st.integers(0, 999), st.sampled_from([*document.HTTP_STATUS, "", "x"]))
@settings(max_examples=300)
def test_any_error_document(anything: Any, status: int, code: str) -> None:
    assert isinstance(document.decode_error(anything, status), BiaojieError)
    for body in ({"code": anything}, {"code": code, "detail_en": anything, "fields": anything}):
        error = document.decode_error(body, status)
        assert isinstance(error, BiaojieError)
        back = document.decode_error(document.encode_error(error), status)
        assert (back.code, back.detail) == (error.code, error.detail)


@given(json_values)
def test_any_time(anything: Any) -> None:
    with suppress(InvalidRecord):
        assert 0 <= document.decode_time(anything, "t") <= document.EPOCH_MAX
