"""Bodies of the native protocol: what is written is read again, what is not is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biaojie.account import ApiKey, Prefix, PrefixStatus, Role
from biaojie.change import Action, BatchResult, Change, Entry, Receipt, RowResult
from biaojie.errors import BiaojieError, InvalidRecord, InvalidRequest, MalformedAnswer
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Reference, Status, Value
from biaojie.wire.native import Kind, answers, decode_request, encode_request, requests, shapes
from biaojie.wire.native.requests import ACTIONS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAME = TEXT.filter(bool)
WHOLE = st.integers(0, 2**63 - 1)
INDEX = st.integers(1, 2**31 - 1)
MOMENT = st.integers(0, 253_402_300_799)
REFERENCE = st.builds(Reference, TEXT, st.integers(0, 2**31 - 1))
VALUE = st.builds(
    Value,
    INDEX,
    TEXT,
    st.binary(max_size=300),
    WHOLE,
    st.booleans(),
    MOMENT,
    st.integers(0, 15).map(Permissions),
    st.lists(REFERENCE, max_size=4).map(tuple),
)
VALUES = st.lists(VALUE, max_size=5).map(tuple)
SUFFIX = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30)
IDENTIFIER = st.builds(Identifier, st.just("88.118.8"), SUFFIX)
SETTABLE = st.none() | st.sampled_from([Status.DRAFT, Status.ACTIVE, Status.FROZEN])
KEY = st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)
CURSOR = st.none() | st.binary(max_size=200)
LIMIT = st.integers(1, 1_000)
TYPES = st.lists(NAME, max_size=5).map(tuple)
INDEXES = st.lists(INDEX, max_size=5).map(tuple)
CONDITION = (
    st.none()
    | st.just(requests.Condition(absent=True))
    | st.builds(requests.Condition, st.just(False), st.none() | WHOLE)
    | st.builds(requests.Condition, st.just(False), WHOLE, WHOLE)
)
OPERATION = st.builds(
    requests.Operation, st.sampled_from(ACTIONS), NAME, VALUES, INDEXES, SETTABLE, st.none() | NAME
)
REQUEST = st.one_of(
    st.builds(requests.Hello, st.integers(0, 255), st.integers(0, 255), st.none() | TEXT, TEXT),
    st.builds(requests.Resolve, NAME, INDEXES, TYPES, st.booleans()),
    st.builds(requests.ResolveMany, st.lists(NAME, min_size=1).map(tuple), st.booleans()),
    st.builds(requests.Write, OPERATION, KEY, CONDITION),
    st.builds(
        requests.WriteMany,
        st.lists(OPERATION, min_size=1, max_size=4).map(tuple),
        st.sampled_from(["all", "valid-rows"]),
        st.booleans(),
        KEY,
    ),
    st.builds(requests.Mint, NAME, TEXT, VALUES, SETTABLE, st.none() | NAME, KEY),
    st.builds(requests.ListRecords, NAME, CURSOR, st.none() | st.integers(1, 2**40)),
    st.builds(requests.Follow, WHOLE, st.none() | st.integers(1, 2**40)),
    st.builds(requests.Cancel, st.integers(1, 2**32 - 1)),
    st.builds(
        requests.Search,
        st.lists(st.tuples(NAME, st.binary(max_size=100)), max_size=8).map(tuple),
        st.none() | NAME,
        CURSOR,
        LIMIT,
    ),
    st.builds(requests.ListPrefixes, CURSOR, LIMIT),
    st.builds(requests.FindPrefix, NAME),
    st.builds(requests.HomePrefix, NAME, NAME, TYPES, st.sampled_from(PrefixStatus), TEXT, KEY),
    st.builds(
        requests.ChangePrefix,
        NAME,
        st.none() | NAME,
        st.none() | st.sampled_from(PrefixStatus),
        st.none() | TYPES,
        KEY,
    ),
    st.builds(requests.ListKeys, CURSOR, LIMIT),
    st.builds(requests.IssueKey, st.sampled_from(Role), TEXT, TEXT),
    st.builds(requests.RevokeKey, NAME, KEY),
    st.builds(requests.Changes, WHOLE, LIMIT, st.floats(0, 30)),
    st.just(requests.Ping()),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(REQUEST)
def test_a_request_is_read_as_it_was_meant(request: requests.Request) -> None:
    kind, body = encode_request(request)
    assert decode_request(kind, body) == request


def _sayable(error: BiaojieError) -> None:
    assert answers.decode_error(answers.encode_error(error)).code == error.code


@settings(max_examples=300)
@given(st.sampled_from(list(Kind)), st.binary(max_size=200))
def test_any_octets_are_a_request_or_refused(kind: Kind, body: bytes) -> None:
    try:
        decode_request(kind, body)
    except (InvalidRequest, InvalidRecord) as error:
        _sayable(error)


@settings(max_examples=300)
@given(REQUEST, st.data())
def test_a_request_with_octets_changed_is_a_request_or_refused(
    request: requests.Request, data: Any
) -> None:
    kind, body = encode_request(request)
    spoilt = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        if data.draw(st.booleans()):
            spoilt[at] = data.draw(st.integers(0, 255))
        elif len(spoilt) > 1:
            del spoilt[at]
    try:
        decode_request(kind, bytes(spoilt))
    except (InvalidRequest, InvalidRecord) as error:
        _sayable(error)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | TEXT | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=40,
)


@settings(max_examples=300)
@given(st.sampled_from(list(Kind)), NESTED)
def test_any_value_is_a_request_or_refused(kind: Kind, value: Any) -> None:
    with suppress(InvalidRequest, InvalidRecord):
        decode_request(kind, shapes.pack(value))


# Answers --------------------------------------------------------------------------------

RECORD = st.builds(
    Record,
    IDENTIFIER,
    VALUES,
    st.sampled_from(Status),
    st.none() | TEXT,
    WHOLE,
    MOMENT,
    MOMENT,
    WHOLE,
)
RECEIPT = st.builds(Receipt, TEXT, st.sampled_from(Action), TEXT, WHOLE, WHOLE)
HASH = st.binary(min_size=32, max_size=32)
CHANGE = st.builds(Change, st.sampled_from(Action), TEXT, WHOLE, TEXT, HASH)
ENTRY = st.builds(
    Entry,
    WHOLE,
    WHOLE,
    TEXT,
    TEXT,
    TEXT,
    WHOLE,
    HASH,
    HASH,
    HASH,
    st.lists(CHANGE, max_size=4).map(tuple),
)
PREFIX = st.builds(
    Prefix, TEXT, TEXT, st.sampled_from(PrefixStatus), WHOLE, WHOLE, WHOLE, TYPES, st.booleans()
)
API_KEY = st.builds(ApiKey, TEXT, TEXT, st.sampled_from(Role), TEXT, WHOLE, WHOLE)
ROW = st.builds(RowResult, WHOLE, TEXT, RECEIPT) | st.builds(
    RowResult, WHOLE, TEXT, st.none(), TEXT, TEXT, TEXT
)
BATCH = st.builds(BatchResult, TEXT, st.booleans(), WHOLE, st.lists(ROW, max_size=4).map(tuple))
SECONDS = st.integers(0, 2**32 - 1)
DECODERS: list[Callable[[bytes], Any]] = [
    answers.decode_welcome,
    answers.decode_resolution,
    answers.decode_resolutions,
    answers.decode_written,
    answers.decode_written_many,
    answers.decode_records,
    answers.decode_entries,
    answers.decode_list_end,
    answers.decode_follow_end,
    answers.decode_changes,
    answers.decode_findings,
    answers.decode_prefixes,
    answers.decode_one_prefix,
    answers.decode_written_prefix,
    answers.decode_keys,
    answers.decode_issued,
    answers.decode_revoked,
]


@given(RECORD, SECONDS, SECONDS, st.sampled_from(answers.SOURCES))
def test_a_resolution_is_read_as_it_was_meant(
    record: Record, age: int, ttl: int, source: str
) -> None:
    body = answers.encode_resolution(record, age, ttl, source)
    assert answers.decode_resolution(body) == answers.Resolution(age, ttl, source, record)
    assert body[answers.RESOLUTION_OCTETS :] == answers.encode_resolution_tail(record)
    assert int.from_bytes(body[2:6], "big") == age
    assert int.from_bytes(body[7:11], "big") == ttl


@given(RECEIPT, BATCH, ENTRY, PREFIX, API_KEY, st.booleans(), CURSOR)
def test_other_answers_are_read_as_they_were_meant(
    receipt: Receipt,
    batch: BatchResult,
    entry: Entry,
    prefix: Prefix,
    key: ApiKey,
    replayed: bool,
    cursor: bytes | None,
) -> None:
    a = answers
    assert a.decode_written(a.encode_written(receipt, replayed=replayed)) == (receipt, replayed)
    again = a.decode_written_many(a.encode_written_many(batch, replayed=replayed))
    assert again == (batch, replayed)
    assert a.decode_entries(a.encode_entries([a.encode_entry_packed(entry)] * 20)) == (entry,) * 20
    assert a.decode_changes(a.encode_changes([entry], 7)) == ((entry,), 7)
    assert a.decode_prefixes(a.encode_prefixes([prefix], cursor)) == ((prefix,), cursor)
    assert a.decode_keys(a.encode_keys([key], cursor)) == ((key,), cursor)
    assert a.decode_list_end(a.encode_end(cursor)) == cursor


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@settings(max_examples=60)
@given(value=NESTED | st.lists(NESTED, max_size=12))
def test_any_value_is_an_answer_or_malformed(decode: Callable[[bytes], Any], value: Any) -> None:
    with suppress(MalformedAnswer):
        decode(shapes.pack(value))


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@settings(max_examples=60)
@given(body=st.binary(max_size=60))
def test_any_octets_are_an_answer_or_malformed(decode: Callable[[bytes], Any], body: bytes) -> None:
    with suppress(MalformedAnswer):
        decode(body)
