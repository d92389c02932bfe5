"""Exports: the same octets from columns as from records, and what was written can be read again."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from biaojie.account import Prefix
from biaojie.change import Action, Receipt, RowResult
from biaojie.errors import InvalidFile, InvalidRequest, PrefixNotHere, TamperedLog
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Reference, Status, Value
from biaojie.wire.document import decode_record
from biaojie.wire.handle.typed import Admin, encode_value_list
from biaojie.wire.handle_batch import decode_creates, encode_create
from registry.exports import (
    FORMS,
    Exported,
    Form,
    Page,
    export,
    form_of,
    paged,
    record_of,
    registry_pages,
)
from registry.imports import Aside, Row, RowMapping, import_file
from registry.sql.tables import records as records_table
from registry.store import Ask
from tests.core_parts import opened

A, B = "88.118.8", "CN.ACME"
TIME = 1_700_000_000


def record(suffix: str, *values: Value, prefix: str = A, **fields: Any) -> Record:
    stamped = tuple(replace(value, timestamp=value.timestamp or TIME) for value in values)
    made = Record(Identifier(prefix, suffix), stamped, created=TIME - 5, modified=TIME)
    return replace(made, **fields)


ADMIN = Admin(0xFFF, Reference("0.NA/88.118.8", 300)).encode()
LIST = encode_value_list((Reference("88.118.8/A", 300), Reference("88.118.8/B", 301)))
ODD = [
    record("PLAIN", Value(1, "URL", b"https://a.example/"), Value(2, "NOTE", "标".encode())),
    record("spelled otherwise", Value(1, "URL", b"x")),
    record("EMPTY"),
    record("NOTHING", Value(1, "URL", b"")),
    record("BINARY", Value(1, "URL", b"\xff\xfe"), Value(3, "NOTE", b"and text")),
    record("REPLACED", Value(1, "URL", "\ufffd".encode())),
    record("LINES", Value(1, "URL", b"one\ntwo"), Value(2, "NOTE", b" outer ")),
    record("NUL", Value(1, "URL", b"a\0b")),
    record("QUOTES", Value(1, "URL", b'a,"b"')),
    record("TTL", Value(1, "URL", b"x", ttl=5), Value(2, "NOTE", b"y", ttl_absolute=True, ttl=9)),
    record("HIDDEN", Value(1, "URL", b"x", permissions=Permissions.parse("1100"))),
    record("SECRET", Value(4, "HS_SECKEY", b"k", permissions=Permissions.parse("1100"))),
    record("REFERS", Value(1, "URL", b"x", references=(Reference("88.118.8/A", 1),))),
    record("STAMPED", Value(1, "URL", b"x", timestamp=77)),
    record("ADMIN", Value(100, "HS_ADMIN", ADMIN), Value(101, "HS_ADMIN", b"\1")),
    record("VLIST", Value(7, "HS_VLIST", LIST), Value(8, "a type", b"x")),
    record("TEXTADMIN", Value(100, "HS_ADMIN", b"300:111111111111:0.NA/88")),
    record("RETIRED", status=Status.RETIRED, version=3),
    record("DRAFT", Value(1, "URL", b"x"), status=Status.DRAFT, template="88.118.8/T"),
    record("FROZEN", Value(1, "URL", b"x"), status=Status.FROZEN, sequence=9),
    record("EPOCH", Value(1, "URL", b"x"), created=0, modified=0),
    record("OTHER", Value(1, "URL", b"x"), Value(5, "late", b"z"), prefix=B),
    record("cased", Value(1, "URL", b"x"), prefix="cn.acme"),
]


async def fill(store: Any, records: Sequence[Record]) -> None:
    async with store.transaction() as transaction:
        await transaction.put_prefixes([Prefix(A, "acme"), Prefix("Cn.acme", "beta")])
        await transaction.put_records({each.identifier.key(): each for each in records})


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Any]:
    async with opened(database_url) as made:
        await fill(made, ODD)
        yield made


async def listed(store: Any) -> AsyncIterator[Record]:
    for prefix in (A, B):
        for each in await store.list_records(prefix, None, 1_000):
            yield each


async def written(pages: AsyncIterator[Page], form: Form) -> tuple[bytes, Exported]:
    out = io.BytesIO()
    done = await export(pages, form, out)
    return out.getvalue(), done


@pytest.mark.parametrize("form", FORMS)
async def test_columns_give_the_octets_that_records_give(store: Any, form: Form) -> None:
    expected = await written(paged(listed(store)), form)
    assert expected[1].records > 10
    assert await written(registry_pages(store), form) == expected
    for rows in (1, 4):
        assert await written(by_pages(store, Ask(rows, 1)), form) == expected


async def by_pages(store: Any, ask: Ask, prefixes: Sequence[str] = (A, B)) -> AsyncIterator[Page]:
    """All of a registry, so much at once and never more."""
    for prefix in prefixes:
        after: bytes | None = b""
        while after is not None:
            listed = await store.list_pieces(prefix, after, ask)
            assert listed.after is None or listed.after > after
            after = listed.after
            yield Page(prefix, listed.pieces)


async def test_columns_say_what_the_record_says(store: Any) -> None:
    for prefix in (A, B):
        [plain] = (await store.list_pieces(prefix, None, Ask())).pieces
        assert [record_of(prefix, each) for each in plain] == await store.list_records(
            prefix, None, 1_000
        )
        assert any(each[8] is None for each in plain)
        [some], after, _ = await store.list_pieces(prefix, plain[0][0], Ask(rows=2))
        assert some == plain[1:3]
        assert after == (plain[2][0] if len(plain) > 2 else None)


async def test_the_order_is_that_of_prefix_and_suffix_and_prefixes_can_be_chosen(
    store: Any,
) -> None:
    octets, _ = await written(registry_pages(store), "ndjson")
    keys = [decode_record(orjson.loads(line)).identifier.key() for line in octets.splitlines()]
    assert keys == sorted(each.identifier.key() for each in ODD)
    some, done = await written(registry_pages(store, ["cN.aCMe", "CN.ACME"]), "ndjson")
    assert octets.endswith(some)
    assert done.records == 2
    with pytest.raises(PrefixNotHere):
        await written(registry_pages(store, [A, "88.118.99"]), "ndjson")
    with pytest.raises(InvalidRequest, match="ndjson, csv, handle"):
        form_of("xml")


async def test_a_damaged_record_is_named_and_gives_no_other_its_values(store: Any) -> None:
    key = ODD[0].identifier.key()
    async with store._pools.write() as connection:
        at = records_table.c.suffix == key.suffix
        [[blob]] = await connection.execute(
            records_table.select().with_only_columns(records_table.c.blob).where(at)
        )
        await connection.execute(update(records_table).where(at).values(blob=blob[:-3]))
    with pytest.raises(TamperedLog, match=r"88\.118\.8/"):
        await written(registry_pages(store), "ndjson")


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_an_export_of_the_registry_imports_again(
    store: Any, form: Literal["ndjson", "csv"], tmp_path: Path
) -> None:
    file = tmp_path / f"x.{form}"
    with file.open("wb") as out:
        await export(registry_pages(store), form, out)
    got: dict[str, Row] = {}

    async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        got.update({str(row.identifier): row for row in rows})
        return [
            RowResult(
                row.line, (name := str(row.identifier)), Receipt(name, Action.CREATE, "", 1, 1)
            )
            for row in rows
        ]

    report = await import_file(file, RowMapping(), submit, aside=Aside(form=form))
    assert {fault.column for fault in report.faults} == {"status"}, "the tombstone"
    expected = {str(each.identifier): each for each in ODD if each.status is not Status.RETIRED}
    assert got.keys() == expected.keys()
    for name, row in got.items():
        was = expected[name]
        assert (row.status, row.template) == (was.status, was.template)
        assert [replace(value, timestamp=0) for value in row.values] == [
            replace(value, timestamp=0) for value in was.values
        ]


async def test_a_handle_batch_reads_again_and_tells_what_it_leaves_out(store: Any) -> None:
    octets, done = await written(registry_pages(store), "handle")
    text = octets.decode()
    assert "100 HS_ADMIN 86400 1110 ADMIN 300:111111111111:0.NA/88.118.8\n" in text
    assert "7 HS_VLIST 86400 1110 LIST 300:88.118.8/A;301:88.118.8/B\n" in text
    again = dict(decode_creates(io.StringIO(text, newline="\n")))
    names = {each.identifier: each for each in ODD}
    values = 0
    for identifier, read in again.items():
        was = {value.index: replace(value, timestamp=0) for value in names[identifier].values}
        assert {value.index: value for value in read}.items() <= was.items()
        values += len(was) - len(read)
    gone = {name.suffix for name in names.keys() - again.keys()}
    assert gone == {"EMPTY", "NOTHING", "LINES", "RETIRED", "DRAFT", "REFERS"}
    assert (done.records, done.records_left_out) == (len(again), len(gone))
    assert done.values_left_out == values + 1 + 2 + 1  # of NOTHING, LINES, REFERS


texts = st.text(st.characters(codec="utf-8"), max_size=12)
types = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=8)
values = st.builds(
    Value,
    st.integers(1, 2**31 - 1),
    types | st.sampled_from(["HS_ADMIN", "HS_VLIST"]),
    texts.map(str.encode) | st.binary(max_size=30) | st.sampled_from([ADMIN, LIST]),
    st.integers(0, 2**31 - 1),
    permissions=st.integers(0, 15).map(Permissions),
)


@given(st.lists(values, max_size=5, unique_by=lambda value: value.index))
def test_every_line_of_a_batch_gives_the_value_it_was_made_of(values: list[Value]) -> None:
    made = record("SN 1", *values)
    text, left_out = encode_create(made)
    read = dict(decode_creates(io.StringIO(text, newline="\n"))).get(made.identifier, ())
    assert len(read) + left_out == len(values)
    for value in read:
        assert value in [replace(each, timestamp=0) for each in made.values]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("DELETE 88.118.8/A\n", 1),
        ("\nCREATE 88.118.8\n", 2),
        ("# made\nCREATE 88.118.8/A\n1 URL 86400 1110 UTF8\n", 3),
        ("CREATE 88.118.8/A\n1 URL 86400 1110 FILE /etc/passwd\n", 2),
        ("CREATE 88.118.8/A\n1 URL 86400 11 UTF8 x\n", 2),
        ("CREATE 88.118.8/A\n9999999999 URL 86400 1110 UTF8 x\n", 2),
        ("CREATE 88.118.8/A\n1 HS_ADMIN 86400 1110 ADMIN 300:1:0.NA/88\n", 2),
        ("CREATE 88.118.8/A\n1 HS_ADMIN 86400 1110 ADMIN nobody\n", 2),
        ("CREATE 88.118.8/A\n1 HS_VLIST 86400 1110 LIST nobody\n", 2),
        ("CREATE 88.118.8/A\n1 URL 86400 1110 UTF8 x\n1 URL 86400 1110 UTF8 y\n\n", 4),
    ],
)
def test_a_batch_with_a_fault_names_the_line(text: str, line: int) -> None:
    with pytest.raises(InvalidFile, match=f"Line {line}:") as caught:
        list(decode_creates(io.StringIO(text)))
    assert f"第 {line} 行" in caught.value.detail.zh
