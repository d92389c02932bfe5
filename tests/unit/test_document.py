"""The JSON codec: golden values both ways, and every kind of answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from biaojie.account import ApiKey, Prefix, PrefixStatus, Role
from biaojie.change import Action, BatchResult, Change, Entry, Receipt, RowResult
from biaojie.errors import BiaojieError, IdentifierNotFound, InvalidRecord, MalformedAnswer
from biaojie.identifier import Identifier
from biaojie.limits import VALUES_MAX
from biaojie.record import Permissions, Record, Reference, Status, Value
from biaojie.wire import document

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "vectors" / "values.jsonl").read_text().splitlines()
]
GOOD = [vector for vector in VECTORS if "value" in vector]
BAD = [vector for vector in VECTORS if "path" in vector]


def _name(vector: dict[str, Any]) -> str:
    return str(vector["why"])


def _value(fields: dict[str, Any]) -> Value:
    return Value(
        index=fields["index"],
        type=fields["type"],
        data=bytes.fromhex(fields["data_hex"]),
        ttl=fields["ttl"],
        ttl_absolute=fields["ttl_absolute"],
        timestamp=fields["timestamp"],
        permissions=Permissions(fields["permissions"]),
        references=tuple(Reference(*pair) for pair in fields["references"]),
    )


@pytest.mark.parametrize("vector", GOOD, ids=_name)
def test_golden_values_both_ways(vector: dict[str, Any]) -> None:
    value = _value(vector["value"])
    value.check()
    encoded = document.encode_value(value)
    assert encoded == vector["document"]
    assert json.dumps(encoded) == json.dumps(vector["document"]), "members in this order"
    for spelled in (vector["document"], *vector["also"]):
        assert document.decode_value(spelled) == value


@pytest.mark.parametrize("vector", BAD, ids=_name)
def test_golden_faults_name_the_field(vector: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord) as caught:
        document.decode_value(vector["document"], "v")
    assert caught.value.fields["path"] == vector["path"]
    assert caught.value.detail.en.startswith(f"{vector['path']}: ")
    assert caught.value.detail.zh.startswith(f"{vector['path']}：")


def test_lists_of_values() -> None:
    one = GOOD[0]["document"]
    assert len(document.decode_values([one] * VALUES_MAX)) == VALUES_MAX
    for wrong, path in (
        ([one] * (VALUES_MAX + 1), "values"),
        ({}, "values"),
        (None, "values"),
        ([one, {**one, "permissions": "9"}], "values[1].permissions"),
        ([one, one, 5], "values[2]"),
    ):
        with pytest.raises(InvalidRecord) as caught:
            document.decode_values(wrong)
        assert caught.value.fields["path"] == path


def test_a_lone_surrogate_is_called_one() -> None:
    with pytest.raises(InvalidRecord, match="lone surrogate"):
        document.decode_value({"index": 1, "type": "URL", "data": "\ud800"})


def test_text_that_is_echoed_is_cut() -> None:
    one = {**GOOD[0]["document"], "permissions": "2" * 10_000_000}
    with pytest.raises(InvalidRecord) as caught:
        document.decode_value(one)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("epoch_s", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (-5, "1970-01-01T00:00:00Z"),
        (1.5, "1970-01-01T00:00:01.500Z"),
        (2**31, "2038-01-19T03:14:08Z"),
        (document.EPOCH_MAX, "9999-12-31T23:59:59Z"),
        (document.EPOCH_MAX + 1, "9999-12-31T23:59:59Z"),
        (10**30, "9999-12-31T23:59:59Z"),
    ],
)
def test_times(epoch_s: float, text: str) -> None:
    assert document.encode_time(epoch_s) == text
    assert document.decode_time(text, "t") == min(max(int(epoch_s), 0), document.EPOCH_MAX)


# Answers --------------------------------------------------------------------------------

RECORD = Record(
    identifier=Identifier.parse("88.118.8/电机-01"),
    values=tuple(_value(vector["value"]) for vector in GOOD),
    status=Status.FROZEN,
    template="motor/1",
    version=7,
    created=1_700_000_000,
    modified=1_700_000_001,
    sequence=42,
)
RECEIPT = Receipt("88.118.8/SN1", Action.RETIRE, "retired", 3, 9)
BATCH = BatchResult(
    "valid-rows",
    False,
    9,
    (
        RowResult(0, "88.118.8/SN1", receipt=RECEIPT),
        RowResult(1, "bad", code="invalid-identifier", en="No slash.", zh="缺少斜杠。"),
    ),
)
ENTRY = Entry(
    sequence=3,
    time_ms=1_700_000_000_123,
    actor="k1",
    action="create",
    prefix="88.118.8",
    count=2,
    root=bytes(range(32)),
    previous=bytes(32),
    hash=b"\xff" * 32,
    changes=(Change(Action.CREATE, "88.118.8/a", 1, "k1", b"\x01" * 32),),
)
ANSWERS = [
    pytest.param(document.encode_record, document.decode_record, RECORD, id="record"),
    pytest.param(
        document.encode_record,
        document.decode_record,
        replace(RECORD, template=None, values=(), status=Status.DRAFT),
        id="draft",
    ),
    pytest.param(document.encode_receipt, document.decode_receipt, RECEIPT, id="receipt"),
    pytest.param(document.encode_batch, document.decode_batch, BATCH, id="batch"),
    pytest.param(
        document.encode_batch,
        document.decode_batch,
        replace(BATCH, dry_run=True, sequence=0, rows=()),
        id="dry run",
    ),
    pytest.param(
        document.encode_prefix,
        document.decode_prefix,
        Prefix("88.118.8", "acme", PrefixStatus.SUSPENDED, 1_700_000_000, 2, 5, ("URL",), True),
        id="prefix",
    ),
    pytest.param(
        document.encode_key,
        document.decode_key,
        ApiKey("k1", "acme", Role.READER, "label 标签", 1_700_000_000, 0),
        id="key",
    ),
    pytest.param(
        document.encode_key,
        document.decode_key,
        ApiKey("k1", "acme", Role.ADMIN, "", 1_700_000_000, 1_700_000_009),
        id="revoked key",
    ),
    pytest.param(document.encode_entry, document.decode_entry, ENTRY, id="entry"),
]


@pytest.mark.parametrize(("encode", "decode", "value"), ANSWERS)
def test_answers_both_ways(encode: Any, decode: Any, value: Any) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize(("encode", "decode", "value"), ANSWERS)
def test_answers_ignore_what_a_newer_node_adds(encode: Any, decode: Any, value: Any) -> None:
    assert decode({**encode(value), "newer": {"than": ["us"]}}) == value


OPTIONAL = {"template", "revoked", "code", "detail", "detail_zh", "written", "failed"}
OPTIONAL |= {"searchable", "indexing"}  # which the first nodes did not tell


@pytest.mark.parametrize(("encode", "decode", "value"), ANSWERS)
def test_a_missing_member_is_a_malformed_answer(encode: Any, decode: Any, value: Any) -> None:
    whole = encode(value)
    for name in whole.keys() - OPTIONAL:
        with pytest.raises(MalformedAnswer):
            decode({other: item for other, item in whole.items() if other != name})


@pytest.mark.parametrize(
    ("decode", "wrong"),
    [
        (document.decode_record, {"version": True}),
        (document.decode_prefix, {"searchable": "URL"}),
        (document.decode_prefix, {"searchable": [1]}),
        (document.decode_record, {"version": "1"}),
        (document.decode_record, {"version": float("inf")}),
        (document.decode_record, {"version": float("nan")}),
        (document.decode_record, {"version": 10**30}),
        (document.decode_record, {"status": []}),
        (document.decode_record, {"status": "x" * 10_000_000}),
        (document.decode_record, {"template": 5}),
        (document.decode_record, {"created": 20300101}),
        (document.decode_record, {"identifier": "nothing"}),
        (document.decode_record, {"values": {}}),
        (document.decode_record, {"values": [5]}),
    ],
)
def test_a_wrong_member_is_a_malformed_answer(decode: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(MalformedAnswer) as caught:
        decode({**document.encode_record(RECORD), **wrong})
    assert len(str(caught.value)) < 600
    assert caught.value.__cause__ is not None


def test_hashes_are_32_octets() -> None:
    whole = document.encode_entry(ENTRY)
    for name in ("root", "previous", "hash"):
        for wrong in ("", "00", "zz" * 32, "00" * 33, 5, None):
            with pytest.raises(MalformedAnswer):
                document.decode_entry({**whole, name: wrong})


# Errors ---------------------------------------------------------------------------------


def test_a_problem_document() -> None:
    error = IdentifierNotFound("No a/b.", "没有 a/b。", request_id="r1", identifier="a/b")
    english = document.encode_error(error)
    assert english == {
        "type": "urn:biaojie:error:identifier-not-found",
        "title": "The identifier is not registered",
        "status": 404,
        "code": "identifier-not-found",
        "detail": "No a/b.",
        "detail_en": "No a/b.",
        "detail_zh": "没有 a/b。",
        "advice": "Check the spelling; the owner of the prefix can register it.",
        "request_id": "r1",
        "identifier": "a/b",
    }
    chinese = document.encode_error(error, chinese=True)
    assert (chinese["title"], chinese["detail"]) == ("标识未注册", "没有 a/b。")
    for problem in (english, chinese):
        back = document.decode_error(problem, 404)
        assert type(back) is IdentifierNotFound
        assert back.detail == error.detail
        assert (back.request_id, back.fields) == ("r1", {"identifier": "a/b"})


def test_a_field_never_replaces_a_member() -> None:
    hostile = dict.fromkeys(document.encode_error(BiaojieError()), "hostile")
    del hostile["request_id"]  # a parameter, so it cannot be a field
    assert document.encode_error(BiaojieError(**hostile)) == document.encode_error(BiaojieError())


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (429, "too-many-requests", True),
        (502, "unreachable", True),
        (503, "temporarily-unavailable", True),
        (504, "deadline-exceeded", True),
        (404, "malformed-answer", False),
        (500, "malformed-answer", False),
        (200, "malformed-answer", False),
        (0, "malformed-answer", False),
    ],
)
def test_what_a_stranger_on_the_way_says(status: int, code: str, retryable: bool) -> None:
    for body in (
        None,
        "<html>",
        [],
        {},
        {"type": "about:blank", "title": "Not Found", "status": 404},
        {"code": []},
        {"code": {}},
        {"code": None},
        {"code": 5},
        {"code": "no-such-code"},
        {"code": "IDENTIFIER-NOT-FOUND"},
    ):
        error = document.decode_error(body, status)
        assert (error.code, error.retryable) == (code, retryable)
        assert str(status) in error.detail.en


def test_a_problem_document_with_strange_members() -> None:
    error = document.decode_error(
        {
            "code": "forbidden",
            "detail_en": None,
            "detail_zh": ["x"],
            "request_id": 5,
            "self": 1,
            "en": 2,
            "zh": 3,
            "class": 4,
            "a b": 6,
            "": 7,
        },
        403,
    )
    assert error.code == "forbidden"
    assert error.detail == (f"{error.title.en}.", f"{error.title.zh}。")
    assert error.request_id == ""
    assert error.fields == {"self": 1, "en": 2, "zh": 3, "class": 4, "a b": 6, "": 7}
