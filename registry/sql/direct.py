"""The hot statements, which go to the driver itself: what they ask and what they give back.

Both kinds of connection (`postgresql.Connection`, `sqlite.Connection`) answer to `Direct`, each
call with one round trip or one turn of its thread. SQLAlchemy, which costs more for a statement
than the database does, keeps the rest: it runs on the same connections, in the same
transactions, and takes them for autocommit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.identifier import Key

Row = Sequence[Any]


class Home(NamedTuple):
    """A folded prefix, and the number that its rows have: 0, as no row has, if it is not homed.

    Lists ask by the number, which tells a cluster where they lie.
    """

    prefix: str
    id: int


class Rows(NamedTuple):
    """What a look-up finds, in no order.

    `prefixes`: name, id, spelling, tenant, status, created, version, sequence, searchable,
    indexing. `records`: number of the key, status, version, sequence, template, blob, and a
    column that says nothing. A status that is none says what else is there for the key: PURGED
    a marker; IN_BLOCK a block that the name lies in, if it has it, `version` being its count.
    `ranges`: number of the key, run, status, version, sequence, written, template and blob of a
    range that the name may be a member of; names with a row may be left out.
    """

    prefixes: Sequence[Row]
    records: Sequence[Row]
    ranges: Sequence[Row] = ()


class Beginning(NamedTuple):
    """What a commit begins with. `receipts`: key, actor, fingerprint, reply, expires."""

    head: tuple[int, bytes]
    rows: Rows
    receipts: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Put:
    """Rows to insert, or to replace by `key`; their fields in the order of the table's columns.

    The columns `alike` are the same in most groups of rows, though they need not be.
    """

    table: Table
    key: tuple[str, ...]
    rows: Sequence[Row]
    alike: frozenset[str] = frozenset()


class LogRow(NamedTuple):
    """An entry to append: the columns of `changelog` in order; its head must be at `before`."""

    before: int
    row: Row


class Direct(Protocol):
    def is_closed(self) -> bool: ...

    async def begin(self) -> None:
        """Begin a transaction and take the one write lock."""
        ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...

    async def look_up(self, keys: Sequence[Key]) -> Rows:
        """1 to 4,096 keys."""
        ...

    async def load(self, keys: Sequence[Key], receipts: Sequence[str]) -> Beginning:
        """Head, receipts by Idempotency-Key (of any actor, expired or not) and up to 4,096 keys."""
        ...

    async def in_blocks(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        """The blocks that names lie in: number of the name, IN_BLOCK and so on, as in `Rows`."""
        ...

    async def in_ranges(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        """The ranges that names may be members of, as in `Rows`."""
        ...

    async def touched(self, prefix_id: int, spans: Sequence[tuple[bytes, bytes]]) -> list[int]:
        """See registry.store.Transaction.touched."""
        ...

    async def add_blocks(self, rows: Sequence[Row]) -> None:
        """Rows with the columns of `blocks` in order."""
        ...

    async def forget_receipts(self, now: int, limit: int) -> None:
        """Delete up to `limit` that expired before `now`, the oldest first."""
        ...

    async def write(self, puts: Sequence[Put], log: LogRow | None) -> None:
        """Not more than one Put for a table. Fails an assertion if `log` does not follow."""
        ...


def direct(connection: AsyncConnection) -> Direct:
    """The driver's own connection beneath one of SQLAlchemy's."""
    assert connection.sync_connection is not None
    return cast(Direct, connection.sync_connection.connection.driver_connection)
