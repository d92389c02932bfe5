"""Filling a registry with the runs of another, so that nobody takes the half of it for the whole.

From the first change on a mark stands in `rules`, and no node opens or migrates a registry that
has it. The mark tells which source the rows are of and how many runs are in: it moves in the
transaction that writes them, so loading goes on after a kill with the run that comes next.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.change import Entry
from biaojie.errors import InvalidFile

from ..changelog import ZERO, Verifier, packed_leaves
from ..deposit import Run, Shape, Sum, Tally
from .direct import direct
from .engine import Limits, Pools, read_url
from .faults import drivers, translated
from .layout import lay_out, layout_of
from .schema import MARK, UnfitDatabase, explained, file_of, make_file, mark_of, schema_of, upgrade
from .snapshot import CONNECT_S, STEP_S, snapshot
from .tables import metadata

_MOVE_MARK = "UPDATE rules SET value = :new WHERE name = :name AND value = :old"
_COMMIT_BYTES = 32 << 20
"""Packed rows that one transaction writes."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows come from. Two origins are equal if their runs are the same, one for one."""

    name: str
    schema: str
    head: tuple[int, bytes]
    shapes: tuple[Shape, ...]


class Loading:
    """Fills the database at a URL. `begin`, then `load`, then `finish`; `close` in any case."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._url = read_url(text)
        self._pools = Pools(self._url, Limits(CONNECT_S, STEP_S, STEP_S, 1))
        self._postgresql = self._url.get_backend_name() == "postgresql"
        self._mark = ""

    async def close(self) -> None:
        await self._pools.close()

    async def begin(self, origin: Origin, *, overwrite: bool) -> int:
        """Make ready; returns how many runs of this origin are in already.

        Raises UnfitDatabase if there is a registry that is not empty, unless told to overwrite
        it or it is a half of one that was never whole.
        """
        file = file_of(self._url)
        if file is not None:
            make_file(str(file))
        with explained():
            async with self._pools.write() as connection:
                await connection.begin()  # or else Alembic would, and commit for itself
                mark = await self._found(connection, overwrite)
                if mark and (known := json.loads(mark))["origin"] == origin.name:
                    self._mark = mark
                    return int(known["runs"])
                await connection.run_sync(_make_afresh, origin)
                self._mark = _marked(origin, 0)
                insert = sa.text("INSERT INTO rules (name, value) VALUES (:name, :value)")
                await connection.execute(insert, {"name": MARK, "value": self._mark})
        return 0

    async def _found(self, connection: AsyncConnection, overwrite: bool) -> str | None:
        if await connection.run_sync(schema_of) is None:
            return None
        mark = await mark_of(connection)
        if mark is None and not overwrite and not await connection.run_sync(_is_empty):
            raise UnfitDatabase(
                "There is a registry already, and it is not empty. Give --overwrite to lose it.",
                "目标数据库中已有非空注册库。若确定丢弃，请加 --overwrite。",
            )
        return mark

    async def load(
        self,
        origin: Origin,
        runs: AsyncIterator[Run],
        done: int,
        progress: Callable[[str, int], None],
    ) -> list[Sum]:
        """Write all runs but the first `done`; returns the sums of all of them."""
        tally = Tally(len(origin.shapes))
        waiting: list[Run] = []
        octets = number = 0
        async for run in runs:
            tally.add(run)
            number += 1
            if number > done:
                waiting.append(run)
                octets += len(run.packed)
            if octets >= _COMMIT_BYTES:
                await self._write(origin, waiting, number)
                waiting, octets = [], 0
            progress(origin.shapes[run.table].table, tally.rows)
        if waiting:
            await self._write(origin, waiting, number)
        return tally.sums()

    async def _write(self, origin: Origin, runs: Sequence[Run], number: int) -> None:
        mark = _marked(origin, number)
        try:
            async with self._pools.write() as connection:
                with translated():
                    for run in runs:
                        await self._insert(connection, origin.shapes[run.table], run)
                    moved = await connection.execute(
                        sa.text(_MOVE_MARK), {"new": mark, "name": MARK, "old": self._mark}
                    )
                if moved.rowcount != 1:
                    raise _disturbed()
        except drivers() as error:
            await self._spoil()
            raise (_disturbed() if _is_doubled(error) else _unfit(error)) from error
        except (TypeError, OverflowError) as error:
            await self._spoil()
            raise _unfit(error) from error
        self._mark = mark

    async def _spoil(self) -> None:
        """What is there can be gone on with by nobody: the next attempt begins anew."""
        async with self._pools.write() as connection:
            with translated():
                spoilt = json.dumps({"origin": "", "runs": 0})
                await connection.execute(
                    sa.text(_MOVE_MARK), {"new": spoilt, "name": MARK, "old": self._mark}
                )

    async def _insert(self, connection: AsyncConnection, shape: Shape, run: Run) -> None:
        driver: Any = direct(connection)
        if self._postgresql:
            await driver.copy_records_to_table(
                shape.table, records=run.rows, columns=shape.columns, timeout=STEP_S
            )
            return
        names = ", ".join(f'"{name}"' for name in shape.columns)
        marks = ", ".join("?" * len(shape.columns))
        statement = f'INSERT INTO "{shape.table}" ({names}) VALUES ({marks})'  # noqa: S608
        await driver.run(lambda raw: raw.executemany(statement, run.rows))

    async def finish(self, origin: Origin, sums: Sequence[Sum]) -> None:
        """Read all back, bring it to the newest schema and take the mark away.

        Raises InvalidFile, and leaves an empty registry, if what is there is not what was sent.
        """
        fault = await self._fault(origin, sums)
        async with self._pools.write() as connection:
            await connection.begin()
            layout = await connection.run_sync(layout_of)
            if fault is None:
                await connection.run_sync(_settle, origin)
            else:
                await connection.run_sync(_drop)
            await connection.run_sync(upgrade)
            await connection.run_sync(lay_out, layout)
        if fault is not None:
            raise InvalidFile(
                f"{fault[0]} Nothing of it was kept.", f"{fault[1]}没有保留任何内容。"
            )
        if self._postgresql:
            async with self._pools.write() as connection:
                await connection.exec_driver_sql("ANALYZE")

    async def _fault(self, origin: Origin, sums: Sequence[Sum]) -> tuple[str, str] | None:
        """What is wrong with what was written, if anything is."""
        tally = Tally(len(origin.shapes))
        chain = Chain(origin.shapes)
        async with snapshot(self._text, whole=False) as read:
            async for run in read.runs(origin.shapes):
                tally.add(run)
                chain.feed(run)
            at_end = read.moment.head
        for shape, wanted, got in zip(origin.shapes, sums, tally.sums(), strict=True):
            if wanted != got:
                return (
                    f"Table {shape.table}: {wanted.rows} rows were sent, {got.rows} are there,"
                    " or they are others.",
                    f"表 {shape.table}：应有 {wanted.rows} 行，实有 {got.rows} 行，或内容不同。",
                )
        if at_end != origin.head or chain.end(at_end):
            why = "; ".join(chain.faults[:3]) or "its head is another"
            return f"The change log is broken: {why}.", "变更日志不连续或已被改动。"
        return None


class Chain:
    """Follows the change log through the runs of a registry."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._table = next(n for n, shape in enumerate(shapes) if shape.table == "changelog")
        at = {name: n for n, name in enumerate(shapes[self._table].columns)}
        self._at = [at[name] for name in _ENTRY]
        self._packed = at["changes"]
        self._verifier = Verifier((0, ZERO))

    @property
    def faults(self) -> list[str]:
        return self._verifier.faults

    def feed(self, run: Run) -> None:
        if run.table != self._table:
            return
        for row in run.rows:
            fields = [row[n] for n in self._at]
            try:
                leaves = packed_leaves(row[self._packed])
            except (ValueError, TypeError) as error:
                self.faults.append(f"entry {fields[0]}: {error}")
                continue
            self._verifier.feed(Entry(*[*fields, ()]), leaves)

    def end(self, head: tuple[int, bytes]) -> list[str]:
        """All faults, an end of the log elsewhere than at `head` among them."""
        self._verifier.end(head, 0)
        return self.faults


_ENTRY = (
    "sequence",
    "time_ms",
    "actor",
    "action",
    "prefix",
    "count",
    "root",
    "previous",
    "hash",
)


def _marked(origin: Origin, runs: int) -> str:
    return json.dumps({"origin": origin.name, "runs": runs})


def _disturbed() -> UnfitDatabase:
    return UnfitDatabase(
        "Somebody else wrote to it meanwhile: stop the nodes and other restores, then run this"
        " again; it begins anew.",
        "恢复期间有其他程序写入：请停止节点与其他恢复任务后重新运行，将从头开始。",
    )


def _unfit(error: BaseException) -> InvalidFile:
    return InvalidFile(
        f"A row does not fit its table ({error}); nothing serves what was written so far. Restore"
        " another backup over it.",
        f"有数据行与表不符（{error}）；已写入的部分不会被使用，请用其他备份重新恢复。",
    )


def _is_doubled(error: BaseException) -> bool:
    """Whether a row was there already."""
    said = error.orig if isinstance(error, IntegrityError) else error
    codes = (getattr(said, "sqlstate", None), getattr(said, "sqlite_errorname", None))
    return any(code in _DOUBLED for code in codes)


_DOUBLED = {"23505", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"}


def _tables(connection: Connection) -> set[str]:
    return set(sa.inspect(connection).get_table_names())


def _is_empty(connection: Connection) -> bool:
    """Whether nothing was ever committed to it. A schema that is not the newest may lack tables."""
    present = _tables(connection)
    held = ("prefixes", "records", "api_keys", "changelog")
    return not any(
        connection.scalar(sa.text(f'SELECT EXISTS (SELECT 1 FROM "{name}")'))  # noqa: S608
        for name in held
        if name in present
    )


def _drop(connection: Connection) -> None:
    present = _tables(connection)
    for name in ("alembic_version", *metadata.tables):
        if name in present:
            connection.execute(sa.text(f'DROP TABLE "{name}"'))


def _make_afresh(connection: Connection, origin: Origin) -> None:
    """The tables of the origin's schema, without a row."""
    from alembic.util import CommandError

    layout = layout_of(connection)
    _drop(connection)
    try:
        upgrade(connection, origin.schema)
        lay_out(connection, layout)
    except CommandError as error:
        raise InvalidFile(
            f"It is of schema {origin.schema}, which this program does not know; it was made by a"
            " newer one.",
            f"其结构版本为 {origin.schema}，本程序不识别；请使用更新版本的程序。",
        ) from error
    inspector = sa.inspect(connection)
    present = set(inspector.get_table_names())
    for shape in origin.shapes:
        columns = (
            {column["name"] for column in inspector.get_columns(shape.table)}
            if shape.table in present
            else set[str]()
        )
        if set(shape.columns) != columns or not set(shape.key) <= set(shape.columns):
            raise InvalidFile(
                f"It has a table {shape.table} that schema {origin.schema} does not have so.",
                f"其中的表 {shape.table} 与结构版本 {origin.schema} 不符。",
            )
        connection.execute(sa.text(f'DELETE FROM "{shape.table}"'))  # noqa: S608


def _settle(connection: Connection, origin: Origin) -> None:
    connection.execute(sa.text("DELETE FROM rules WHERE name = :name"), {"name": MARK})
    if connection.dialect.name != "postgresql":
        return
    for shape in origin.shapes:
        for column in shape.key:
            sequence = connection.scalar(
                sa.text("SELECT pg_get_serial_sequence(:table, :column)"),
                {"table": shape.table, "column": column},
            )
            if sequence:  # it did not count the rows that came with their numbers
                connection.execute(
                    sa.text(
                        f'SELECT setval(:sequence, max("{column}")) FROM "{shape.table}"'  # noqa: S608
                    ),
                    {"sequence": sequence},
                )
