"""The store on SQLite and PostgreSQL. SQLAlchemy and the drivers live here and nowhere else."""

from __future__ import annotations

from sqlalchemy import Connection

from .engine import Limits, Pools, read_url
from .layout import Layout, lay_out, layout_of
from .schema import UnfitDatabase, check_durability, check_schema, explained, file_of
from .schema import migrate as upgrade
from .store import SqlStore

__all__ = ["SqlStore", "UnfitDatabase", "migrate", "open_store"]


async def migrate(url: str, *, partitions: int = 0, citus: bool = False) -> None:
    """Bring the database at this URL to the newest schema, making the SQLite file if need be.

    With `partitions` or `citus`, lay out the tables that grow in hash partitions or over the
    workers of Citus; else as they are. Safe to run from many processes at once. Raises
    TemporarilyUnavailable if its turn does not come within a minute, UnfitDatabase where the file
    cannot be made or the tables cannot be laid out so.
    """
    wanted = Layout(partitions, citus)

    def settle(connection: Connection) -> None:
        there = layout_of(connection)
        lay_out(connection, wanted if wanted != Layout() else there)

    await upgrade(url, settle)


async def open_store(
    url: str,
    *,
    allow_unsafe_durability: bool = False,
    connect_timeout_s: float = 2.0,
    read_timeout_s: float = 2.0,
    write_timeout_s: float = 5.0,
    pool_size: int = 4,
) -> SqlStore:
    """Open the registry at `url` (sqlite:///FILE or postgresql://…); close() it after use.

    No call of the store takes longer than its timeout, a transaction's block included; what
    fails in time raises TemporarilyUnavailable. `pool_size` counts readers; one connection
    more writes. Raises ValueError on another kind of URL, UnfitDatabase if the schema is not
    the newest or an acknowledged write could be lost, TemporarilyUnavailable if the database
    does not answer.
    """
    parsed = read_url(url)
    file = file_of(parsed)
    if file is not None and not file.exists():
        raise UnfitDatabase(
            f"There is no file {file}: run `biaojie migrate`.",
            f"文件 {file} 不存在：请运行 `biaojie migrate`。",
        )
    limits = Limits(connect_timeout_s, read_timeout_s, write_timeout_s, pool_size)
    pools = Pools(parsed, limits)
    try:
        with explained():
            await pools.read(check_schema)
            if not allow_unsafe_durability:
                async with pools.write() as connection:
                    await check_durability(connection)
            layout = await pools.read(lambda c: c.run_sync(layout_of))
            if layout.distributed:
                from .citus import CitusStore, check_workers

                await pools.close()
                pools = Pools(parsed, limits, distributed=True)
                unsafe = allow_unsafe_durability
                await pools.read(lambda c: check_workers(c, allow_unsafe_durability=unsafe))
                return CitusStore(pools)
    except BaseException:
        await pools.close()
        raise
    return SqlStore(pools)
