"""Any file at all: as blocks it comes to the same report, error file and registry as row by row."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biaojie.change import RowResult
from biaojie.errors import BiaojieError, InvalidFile
from biaojie.record import Record, Status
from registry import import_batches, import_blocks, import_passes, imports
from registry.admission import SYSTEM
from registry.blocks import Bulk
from registry.import_prepare import Form
from registry.imports import Aside, Row, RowMapping, import_file
from registry.memory import MemoryStore
from registry.operations import HomePrefix, Retire
from registry.registrar import Registrar
from resolver.imports import hand_over, hand_over_chunk
from tests.core_parts import create, identifier, registering

PREFIX = "88.118.8"


class Killed(BaseException):
    pass


class Node:
    """A registry, as a service gives it; dies at the given calls, before or after the commit."""

    def __init__(self, registrar: Registrar, deaths: Sequence[int]) -> None:
        self._registrar = registrar
        self._deaths = set(deaths)
        self.calls = 0
        self.chunks = 0

    @contextlib.contextmanager
    def _mortal(self) -> Iterator[None]:
        self.calls += 1
        dies = self.calls in self._deaths
        if dies and self.calls % 2:
            raise Killed
        yield
        if dies:
            raise Killed

    async def write(self, caller: Any, operations: Any, **how: Any) -> Any:
        with self._mortal():
            return await self._registrar.submit(caller, operations, **how)

    async def load(self, caller: Any, bulk: Bulk, idempotency: Any) -> Any:
        self.chunks += 1
        with self._mortal():
            return await self._registrar.load(caller, bulk, idempotency=idempotency)


Story = tuple[list[Record], Any, list[dict[str, Any]], bytes, int]


async def story(
    data: bytes,
    form: Form,
    mapping: RowMapping,
    deaths: Sequence[int] | None,
    folder: Path,
    *,
    ordered: bool,
) -> Story:
    """What is in the registry, the report, its file, the error file; `deaths` None: by rows."""
    store = MemoryStore()
    async with registering(store) as registrar:
        await registrar.submit(SYSTEM, [HomePrefix(PREFIX, "acme"), HomePrefix("77.1", "acme")])
        await registrar.submit(SYSTEM, [create("taken"), create("gone")])
        await registrar.submit(SYSTEM, [Retire(identifier("gone"))])
        node: Any = Node(registrar, deaths or ())

        async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
            return await hand_over(node, SYSTEM, rows, key, dry_run=dry_run)

        async def load(bulk: Bulk, key: str) -> Sequence[str]:
            return await hand_over_chunk(node, SYSTEM, bulk, key)

        file, report, errors = folder / "f", folder / "report", folder / "errors"
        file.write_bytes(data)
        aside = Aside(
            form,
            report_file=report,
            seen_file=folder / "seen.db",
            sorted_file=folder / "sorted" if ordered else None,
            sort_memory_bytes=900,
        )
        while True:
            try:
                came = await import_file(
                    file,
                    mapping,
                    submit,
                    load=None if deaths is None else load,
                    aside=aside,
                    error_file=errors,
                    chunk_rows=3,
                )
                break
            except Killed:
                continue
        records: list[Record] = []
        for prefix in (PREFIX, "77.1"):
            records += await store.list_records(prefix, None, 500)
        faults = (
            [orjson.loads(line) for line in report.read_bytes().splitlines()]
            if report.exists()
            else []
        )
        mistakes = errors.read_bytes() if errors.exists() else b""
    counts = (came.rows, came.good, came.failed, came.written, came.codes)
    plain = [
        replace(
            record,
            sequence=0,
            created=0,
            modified=0,
            values=tuple(replace(value, timestamp=0) for value in record.values),
        )
        for record in records
    ]
    return plain, counts, faults, mistakes, node.chunks


def told(
    data: bytes, form: Form, mapping: RowMapping, deaths: Sequence[int]
) -> tuple[Story, Story, Story]:
    """Row by row; as blocks; as blocks, and where the file is in no order put into order."""
    with (
        mock.patch.object(import_blocks, "WINDOW_ROWS", 6),
        mock.patch.object(import_passes, "WINDOW_ROWS", 6),
        mock.patch.object(imports, "WINDOW_ROWS", 6),
        mock.patch.object(import_blocks, "CHUNK_ROWS_MIN", 2),
        mock.patch.object(import_blocks, "BATCH_ROWS", 2),
        mock.patch.object(import_batches, "BATCH_ROWS", 4),
        mock.patch.object(import_batches, "BATCH_BYTES", 200),
        mock.patch.object(import_batches, "_SLICE_ROWS", 2),
        mock.patch.object(import_batches, "PLAIN_BYTES_MAX", 100),
    ):
        found = []
        for dying, ordered in ((None, False), (deaths, False), (deaths, True)):
            with tempfile.TemporaryDirectory() as folder:
                came = story(data, form, mapping, dying, Path(folder), ordered=ordered)
                try:
                    found.append(asyncio.run(came))
                except (InvalidFile, BiaojieError) as error:
                    found.append(([], (error.code, error.detail), [], b"", 0))
    by_rows, as_blocks, sorted_first = found
    return by_rows, as_blocks, sorted_first


def same(data: bytes, form: Form, mapping: RowMapping, deaths: Sequence[int]) -> None:
    by_rows, as_blocks, in_order = told(data, form, mapping, deaths)
    assert as_blocks[1] == by_rows[1]
    assert as_blocks[:4] == by_rows[:4]
    assert in_order[:2] == by_rows[:2]
    # What is wrong with the rows comes before what is refused.
    assert sorted(in_order[2], key=_place) == sorted(by_rows[2], key=_place)
    assert len(in_order[3]) == len(by_rows[3])


def _place(fault: dict[str, Any]) -> Any:
    return fault["line"], fault["column"], fault["reason"]


names = st.sampled_from(
    [
        *(f"SN{n}" for n in range(30)),
        *("sn3", "taken", "TAKEN", "gone", "标识", "e\u0301", "\u00e9", "a b", " a", "x" * 250),
        *("a\0", "=1", "", "a/b", "a\nb", "%41", "\u200b"),
    ]
)
prefixes = st.sampled_from([PREFIX] * 6 + ["77.1", "77.2", "88.x", "hdl:88.118.8", ""])
whole = st.builds("{}/{}".format, prefixes, names) | names
texts = st.sampled_from(
    ["", "x", "https://a.example/1", "值", "=1+1", "=", "a,b", 'a"b', "a\0", "a\nb", "y" * 120]
) | st.text(st.characters(codec="utf-8"), max_size=4)
statuses = st.sampled_from(["", "active", "active", "active", "draft", "frozen", "retired", "?"])
deaths = st.lists(st.integers(1, 14), max_size=3)
WHOLE = RowMapping(columns=(("state", "status"),))
PATTERN = RowMapping(PREFIX, "P-{name}", columns=(("state", "status"),))
DRAFTS = RowMapping(template="88.118.8/taken", status=Status.DRAFT, columns=(("state", "status"),))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(whole, texts, texts, statuses), max_size=30),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
    mapping=st.sampled_from([WHOLE, WHOLE, PATTERN, DRAFTS]),
    damage=st.lists(
        st.tuples(st.integers(0, 800), st.sampled_from([b'"', b"\xff", b"\r", b"\n"])), max_size=2
    ),
    deaths=deaths,
)
def test_csv(
    rows: list[tuple[str, ...]],
    end: str,
    quoting: Any,
    mapping: RowMapping,
    damage: list[tuple[int, bytes]],
    deaths: list[int],
) -> None:
    text = io.StringIO(newline="")
    title = "name" if mapping is PATTERN else "identifier"
    writer = csv.writer(text, lineterminator=end, quoting=quoting, escapechar="\\")
    writer.writerow((title, "URL", "b", "state"))
    writer.writerows(rows)
    data = text.getvalue().encode()
    for at, octets in damage:
        if len(title) + 20 < at < len(data):
            data = data[:at] + octets + data[at:]
    same(data, "csv", mapping, deaths)


plain = st.fixed_dictionaries(
    {
        "identifier": whole | st.integers(0, 9),
        "URL": texts | st.none() | st.floats(allow_nan=False),
    },
    optional={"b": texts | st.booleans() | st.just([1]), "_note": st.just("x"), "more": texts},
)
value = st.fixed_dictionaries(
    {"index": st.integers(0, 4), "type": st.sampled_from(["URL", "HS_SECKEY", "", "标"])},
    optional={
        "data": texts | st.just({"format": "hex", "value": "00ff"}),
        "ttl": st.integers(-1, 9),
        "permissions": st.just("1100"),
    },
)
record = st.fixed_dictionaries(
    {"identifier": whole},
    optional={
        "values": st.lists(value, max_size=3),
        "status": statuses | st.none(),
        "template": st.sampled_from([None, "", "88.118.8/taken", 3]),
        "version": st.just(3),
        "odd": st.just(1),
    },
)
broken = st.sampled_from([b"", b"  ", b"[1]", b"{", b'{"a":1},{"a":2}', b"nothing", b"\xff", b"1"])


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(plain, max_size=20) | st.lists(record, max_size=20),
    spoilt=st.lists(st.tuples(st.integers(0, 20), broken), max_size=2),
    end=st.sampled_from([b"\n", b"\r\n"]),
    deaths=deaths,
)
def test_ndjson(
    rows: list[dict[str, Any]], spoilt: list[tuple[int, bytes]], end: bytes, deaths: list[int]
) -> None:
    lines = [orjson.dumps(row) for row in rows]
    for at, line in spoilt:
        lines.insert(at, line)
    same(end.join(lines), "ndjson", RowMapping(), deaths)


packed_value = st.tuples(
    st.integers(0, 4), st.sampled_from(["URL", "HS_SECKEY", ""]), texts | st.binary(max_size=4)
) | st.tuples(st.integers(1, 4), st.just("URL"), texts, st.integers(0, 90))
packed = st.tuples(whole, st.lists(packed_value, max_size=3)) | st.tuples(
    whole, st.lists(packed_value, max_size=2), statuses, st.sampled_from([None, "88.118.8/taken"])
)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(packed | record | st.integers(0, 9) | st.just([1]), max_size=25),
    cut=st.integers(0, 3),
    deaths=deaths,
)
def test_msgpack(rows: list[Any], cut: int, deaths: list[int]) -> None:
    data = b"".join(msgpack.packb(row) for row in rows)
    data = data[: len(data) - cut]
    by_rows, as_blocks, in_order = told(data, "msgpack", RowMapping(), deaths)
    if by_rows[1][0] == "invalid-file":  # a window that is not whole is not registered
        assert as_blocks[1] == in_order[1] == by_rows[1]
    else:
        same(data, "msgpack", RowMapping(), deaths)


@pytest.mark.parametrize("form", ["csv", "ndjson", "msgpack"])
def test_plain_rows_go_in_as_blocks(form: Form) -> None:
    """Else what is above would compare one way with itself."""
    rows = [(f"{PREFIX}/A{n:03}", f"https://a.example/{n}") for n in range(100)]
    data = {
        "csv": b"identifier,URL\n" + b"".join(f"{a},{b}\n".encode() for a, b in rows),
        "ndjson": b"".join(
            orjson.dumps({"identifier": a, "values": [{"index": 1, "type": "URL", "data": b}]})
            + b"\n"
            for a, b in rows
        ),
        "msgpack": b"".join(msgpack.packb([a, [[1, "URL", b]]]) for a, b in rows),
    }[form]
    by_rows, as_blocks, _ = told(data, form, RowMapping(), [2, 5, 8])
    assert as_blocks[:4] == by_rows[:4]
    assert as_blocks[1][:2] == (100, 100)
    assert as_blocks[4] > 100 // 10
    assert by_rows[4] == 0
