"""Reading whole tables as they are at one moment, while others write.

One transaction sees one state: REPEATABLE READ on PostgreSQL, a read transaction of the
write-ahead log on SQLite. It takes no lock that a writer waits for. Until it ends SQLite keeps
what is written meanwhile in its log, and PostgreSQL the rows that were replaced.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from sqlalchemy import URL, Table, Text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..deposit import Cutter, Row, Run, Shape
from .direct import direct
from .engine import read_url
from .faults import translated
from .schema import MARK, check_schema, explained, newest_schema
from .tables import metadata

CONNECT_S = 10.0
STEP_S = 600.0
"""For one statement, and for what is done with its rows: a pipe may be slow."""
_FETCH_ROWS = (16, 1_000)
_FETCH_BYTES = 4 << 20


class Moment(NamedTuple):
    """What a snapshot is of. `head`: sequence and hash of the newest entry of the change log."""

    schema: str
    kind: str
    head: tuple[int, bytes]


def shapes() -> tuple[Shape, ...]:
    """The tables of the newest schema, those first on which others rest."""
    return tuple(_shape(table) for table in metadata.sorted_tables)


def _shape(table: Table) -> Shape:
    key = tuple(column.name for column in table.primary_key.columns)
    assert key, f"{table.name} has no primary key to be read by"
    return Shape(table.name, tuple(column.name for column in table.columns), key)


def make_engine(url: URL, *, writes: bool) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        from . import sqlite

        return sqlite.make_engine(url, writes=writes)
    from . import postgresql

    return postgresql.make_engine(url, writes=writes, connect_s=CONNECT_S, statement_s=STEP_S)


class Snapshot:
    """One state of a database. Made by `snapshot`; for one reader at a time."""

    def __init__(self, connection: AsyncConnection, moment: Moment) -> None:
        self.connection = connection
        self._driver: Any = direct(connection)
        self._postgresql = moment.kind == "postgresql"
        self.moment = moment

    async def runs(self, shapes_: Sequence[Shape]) -> AsyncIterator[Run]:
        """All rows of these tables, in order."""
        for number, shape in enumerate(shapes_):
            cutter = Cutter(number)
            async for rows in self._rows(shape):
                for run in cutter.feed(rows):
                    yield run
            for run in cutter.end():
                yield run

    def _select(self, shape: Shape) -> str:
        table = metadata.tables.get(shape.table)
        order = [
            # Octet order on both, also where the column has a collation of its own.
            f'"{name}" COLLATE "C"' if self._postgresql and _is_text(table, name) else f'"{name}"'
            for name in shape.key
        ]
        columns = ", ".join(f'"{name}"' for name in shape.columns)
        where = f" WHERE name <> '{MARK}'" if shape.table == "rules" else ""
        return f'SELECT {columns} FROM "{shape.table}"{where} ORDER BY {", ".join(order)}'  # noqa: S608

    async def _rows(self, shape: Shape) -> AsyncIterator[list[Row]]:
        least, most = _FETCH_ROWS
        size = least
        with translated():
            fetch = await self._cursor(self._select(shape))
            rows = await fetch(size)
        while rows:
            yield [tuple(row) for row in rows]
            some = [field for row in rows[:least] for field in row]
            octets = sum(len(field) for field in some if isinstance(field, str | bytes))
            size = max(least, min(most, _FETCH_BYTES * least // (octets + 1)))
            with translated():
                rows = await fetch(size)

    async def _cursor(self, statement: str) -> Callable[[int], Any]:
        if self._postgresql:
            cursor = await self._driver.cursor(statement, timeout=STEP_S)
            return lambda rows: cursor.fetch(rows, timeout=STEP_S)
        within = await self._driver.run(lambda raw: raw.execute(statement))
        return lambda rows: self._driver.run(lambda _: within.fetchmany(rows))


def _is_text(table: Table | None, name: str) -> bool:
    return table is not None and name in table.c and isinstance(table.c[name].type, Text)


@asynccontextmanager
async def snapshot(text: str, *, whole: bool = True) -> AsyncIterator[Snapshot]:
    """The database at this URL as it is now. Raises UnfitDatabase unless it has the newest
    schema and is not being restored, which `whole=False` does not ask for."""
    engine = make_engine(read_url(text), writes=False)
    try:
        with explained(), translated():
            connection = await engine.connect()
        try:
            with explained(), translated():
                if whole:
                    await check_schema(connection)
                head = await _begin(direct(connection), engine.dialect.name)
            yield Snapshot(connection, Moment(newest_schema(), engine.dialect.name, head))
        finally:
            await connection.invalidate()
            await connection.close()
    finally:
        await engine.dispose()


_HEAD = "SELECT sequence, hash FROM chain_head WHERE id = 1"


async def _begin(driver: Any, kind: str) -> tuple[int, bytes]:
    if kind == "postgresql":
        await driver.transaction(isolation="repeatable_read", readonly=True).start()
        row = await driver.fetchrow(_HEAD)
    else:
        await driver.run(lambda raw: raw.execute("BEGIN"))
        # The first read decides which state is seen.
        row = await driver.run(lambda raw: raw.execute(_HEAD).fetchone())
    return row[0], row[1]
