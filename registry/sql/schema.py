"""Bringing a database to the newest schema, and refusing one that is not fit to serve."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.errors import BiaojieError, TemporarilyUnavailable, Text

from .engine import Limits, Pools, read_url

if TYPE_CHECKING:
    from alembic.config import Config

# Alembic is imported only to migrate: a node that starts reads two numbers without it.
_TURN_S = 60.0
"""For a migration, waiting for other processes included."""


class UnfitDatabase(BiaojieError):
    """Only met when a node starts, never by a caller."""

    code = "unfit-database"
    title = Text("The database is not fit to serve", "数据库不满足服务条件")
    advice = Text("Correct it as described, then start again.", "请按说明改正后重新启动。")


@contextmanager
def explained() -> Iterator[None]:
    """Add what the driver said to TemporarilyUnavailable: at start it is the operator who reads."""
    try:
        yield
    except TemporarilyUnavailable as error:
        said = getattr(error.__cause__, "orig", None) or error.__cause__
        if not str(said):
            raise
        en, zh = error.detail
        raise TemporarilyUnavailable(f"{en} ({said})", f"{zh}（{said}）") from error


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "registry.sql:migrations")
    return config


def newest_schema() -> str:
    """The revision this program was written for: the number that the last migration's file
    begins with."""
    names = (each.name for each in files("registry.sql.migrations.versions").iterdir())
    return max(name[:4] for name in names if name[:4].isdigit())


def schema_of(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the steps up to `revision`, in the transaction that the connection is in."""
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


MARK = "restoring"
"""The row of `rules` that a registry has until it is wholly restored: see registry.sql.loading."""
_MARKED = f"SELECT value FROM rules WHERE name = '{MARK}'"  # noqa: S608


async def mark_of(connection: AsyncConnection) -> str | None:
    """What the mark says; None if there is none."""
    mark: str | None = await connection.scalar(sa.text(_MARKED))
    return mark


def _has_rules(connection: Connection) -> bool:
    return sa.inspect(connection).has_table("rules")


async def _check_whole(connection: AsyncConnection) -> None:
    if await connection.run_sync(_has_rules) and await mark_of(connection):
        raise UnfitDatabase(
            "It is half restored: run the same `biaojie restore` or `biaojie move` again,"
            " which goes on where it was stopped.",
            "数据库只恢复了一部分：请再次运行同一 `biaojie restore` 或 `biaojie move` 命令，"
            "从中断处继续。",
        )


def make_file(path: str) -> None:
    try:
        # 0600: records may hold secret values. SQLite gives its -wal and -shm files the same.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise UnfitDatabase(
            f"The file {path} cannot be opened: {error.strerror}.",
            f"无法打开文件 {path}：{error.strerror}。",
        ) from error


async def migrate(text: str, settle: Callable[[Connection], None] = lambda _: None) -> None:
    """Bring the database at this URL to the newest schema, making the SQLite file if need be,
    and `settle` what is left, in the same transaction.

    Safe to run from many processes at once: they take turns, and all but the first find
    nothing to do. Raises TemporarilyUnavailable if the turn does not come within a minute,
    UnfitDatabase where the file cannot be made.
    """
    url = read_url(text)
    if url.get_backend_name() == "sqlite":
        make_file(url.database or "")
    pools = Pools(url, Limits(write_s=_TURN_S))
    try:
        with explained():
            async with pools.write() as connection:
                await connection.begin()  # or else Alembic would, and commit for itself
                await _check_whole(connection)
                await connection.run_sync(upgrade)
                await connection.run_sync(settle)
    finally:
        await pools.close()


async def check_schema(connection: AsyncConnection) -> None:
    """Raise UnfitDatabase unless the database has the schema this program was written for, and
    is not being restored."""
    current = await connection.run_sync(schema_of)
    if current is not None:
        await _check_whole(connection)
    newest = newest_schema()
    if current != newest:
        raise UnfitDatabase(
            f"Its schema is {current or 'empty'}, this program needs {newest}:"
            " run `biaojie migrate`.",
            f"其结构版本为 {current or '空'}，本程序需要 {newest}：请运行 `biaojie migrate`。",
            schema=current,
            needed=newest,
        )


async def check_durability(connection: AsyncConnection) -> None:
    """Raise UnfitDatabase if an acknowledged commit could be lost with the power."""
    if connection.dialect.name == "sqlite":
        mode = (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
        if mode != "wal":
            raise UnfitDatabase(
                f"SQLite's journal mode is {mode} here; it must be on a disk that allows WAL.",
                f"SQLite 日志模式为 {mode}；数据库文件须位于支持 WAL 的磁盘。",
                setting="journal_mode",
            )
        return
    for name in ("fsync", "synchronous_commit"):
        value = (await connection.exec_driver_sql(f"SHOW {name}")).scalar_one()
        if value == "off":
            raise UnfitDatabase(
                f"PostgreSQL runs with {name}=off: an acknowledged registration could be lost."
                " Set it to on, or allow unsafe durability for a test bed.",
                f"PostgreSQL 设置了 {name}=off：已确认的注册可能丢失。"
                "请改为 on；仅测试环境可允许不安全的持久性。",
                setting=name,
            )


def file_of(url: URL) -> Path | None:
    """The SQLite file of a URL, None for a server."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None
