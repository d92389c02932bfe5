"""What the drivers' and SQLAlchemy's errors mean to us, and which of our errors they become."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from sqlalchemy import exc

from biaojie.errors import StorageFull, TemporarilyUnavailable, Text


class Fault(Enum):
    BUSY = auto()  # another process holds the file's lock: ask again until the deadline
    BROKEN = auto()  # the connection is dead, a new one may work
    CONFLICT = auto()  # the database asks for the statement to be repeated
    FULL = auto()  # no space, or read-only
    OURS = auto()  # a mistake in this program
    OTHER = auto()


_SQLITE = {5: Fault.BUSY, 6: Fault.BUSY, 8: Fault.FULL, 13: Fault.FULL} | dict.fromkeys(
    (1, 19, 20, 21, 25), Fault.OURS
)
_SQLSTATE = {
    "53100": Fault.FULL,
    "25006": Fault.FULL,
    "40001": Fault.CONFLICT,
    "40P01": Fault.CONFLICT,
    "0A000": Fault.CONFLICT,  # a cached plan that a migration has outdated
    "42501": Fault.OTHER,  # rights on a table taken away
    "57P01": Fault.BROKEN,  # ended by an operator, by a crash, or by a server that shuts down
    "57P02": Fault.BROKEN,
    "57P03": Fault.BROKEN,
    "25P03": Fault.BROKEN,  # idle for too long
}
_SQLSTATE_CLASS = {
    "22": Fault.OURS,
    "23": Fault.OURS,
    "42": Fault.OURS,
    "08": Fault.BROKEN,
}
Errors = tuple[type[BaseException], ...]


def drivers() -> Errors:
    """What a statement may raise, through SQLAlchemy or beneath it."""
    said, refused = _asyncpg()
    return (exc.SQLAlchemyError, sqlite3.Error, OSError, *said, *refused)


def _asyncpg() -> tuple[Errors, Errors]:
    """What PostgreSQL says, and what its driver does. Where nobody has asked for PostgreSQL, its
    driver is not there to raise them, nor worth the time of its import."""
    asyncpg = sys.modules.get("asyncpg")
    if asyncpg is None:
        return (), ()
    return (asyncpg.PostgresError,), (asyncpg.InterfaceError, asyncpg.InternalClientError)


def fault_of(error: BaseException) -> Fault:
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return Fault.BROKEN
    said = error.orig if isinstance(error, exc.DBAPIError) else error
    sqlite_code = getattr(said, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return _SQLITE.get(sqlite_code & 0xFF, Fault.OTHER)
    sqlstate = getattr(said, "sqlstate", None) or ""
    fault = _SQLSTATE.get(sqlstate) or _SQLSTATE_CLASS.get(sqlstate[:2])
    if fault is not None:
        return fault
    from_postgresql, from_its_driver = _asyncpg()
    if isinstance(error, from_its_driver):
        # What cannot be encoded is a ValueError as well; the others say that it is closed, or
        # has met a last word from the server before anything was asked.
        return Fault.OURS if isinstance(error, ValueError) else Fault.BROKEN
    # PendingRollbackError: the connection broke earlier in this transaction.
    ended = (exc.DBAPIError, exc.TimeoutError, exc.PendingRollbackError)
    outside = (OSError, sqlite3.Error, *ended, *from_postgresql)
    return Fault.OTHER if isinstance(error, outside) else Fault.OURS


UNREACHABLE = Text("The registry's database does not answer.", "注册库的数据库没有响应。")
FULL = Text(
    "The registry's database has no space left or is read-only.",
    "注册库的数据库空间已满或为只读。",
)
SLOW = Text("The registry's database did not answer in time.", "注册库的数据库未在限时内响应。")
UNDECIDED = Text(
    "The database went away during the commit; the change may or may not be kept.",
    "数据库在提交时中断；更改可能已保存，也可能未保存。",
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever keeps the database from answering into TemporarilyUnavailable or StorageFull.

    Mistakes of ours (bad SQL, broken constraints) pass through as they are.
    """
    try:
        yield
    except drivers() as error:
        fault = fault_of(error)
        if fault is Fault.OURS:
            raise
        if fault is Fault.FULL:
            raise StorageFull(*FULL) from error
        raise TemporarilyUnavailable(*UNREACHABLE) from error
