"""The store on SQLite and PostgreSQL. SQLAlchemy and the drivers live here and nowhere else."""

from __future__ import annotations

from .engine import Limits, Pools, read_url
from .schema import UnfitDatabase, check_durability, check_schema, explained, file_of, migrate
from .standbys import open_standbys
from .store import SqlStore

__all__ = ["SqlStore", "UnfitDatabase", "migrate", "open_standbys", "open_store"]


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
    pools = Pools(parsed, Limits(connect_timeout_s, read_timeout_s, write_timeout_s, pool_size))
    try:
        with explained():
            await pools.read(check_schema)
            if not allow_unsafe_durability:
                async with pools.write() as connection:
                    await check_durability(connection)
    except BaseException:
        await pools.close()
        raise
    return SqlStore(pools)
