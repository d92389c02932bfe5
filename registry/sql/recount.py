"""The census of a registry whose log began before it told of it: everything is counted once.

It is counted as it is at one moment, in bounded pages and beside writers; what they write from
that moment on the log tells. See registry.census.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

from ..census import ALL_PREFIXES, Kind, Layer, Shift, kind_of
from ..members import Members
from ..ranges import RangeKey
from ..store import BLOCKS_MAX
from . import reader
from .direct import Home, direct
from .layout import layout_of
from .ranges import list_ranges, members_in
from .schema import UnfitDatabase
from .snapshot import snapshot
from .store import SqlStore
from .tables import PURGED, STATUS_OF, ranges, records, rules

_PREFIXES_PAGE = 200
_ROWS_PAGE = 4_096
_RANGES_PAGE = 256
_ROWS = (
    select(records.c.suffix, records.c.status, records.c.template)
    .where(records.c.prefix_id == bindparam("id"), records.c.suffix > bindparam("after"))
    .order_by(records.c.suffix)
    .limit(_ROWS_PAGE)
)
_RULE = select(rules.c.value).where(rules.c.name == "case-sensitive")
_RANGED = select(sa.exists().where(ranges.c.prefix_id == bindparam("id")))


async def recount(
    url: str, store: SqlStore, progress: Callable[[str], None] = lambda prefix: None
) -> None:
    """Count what the registry at `url`, that of `store`, has; tells of each prefix begun. Raises
    UnfitDatabase over Citus, whose workers cannot be read as they are at one moment."""
    counted: Shift = Counter()
    async with snapshot(url) as read:
        connection = read.connection
        if (await connection.run_sync(layout_of)).distributed:
            raise UnfitDatabase(
                "A registry over Citus cannot be counted anew.",
                "基于 Citus 的注册库不支持重新清点。",
            )
        case_sensitive = await connection.scalar(_RULE) == "yes"
        after: str | None = None
        while page := await reader.list_prefixes(connection, after, _PREFIXES_PAGE, None):
            for prefix in page:
                progress(prefix.name)
                after = fold_prefix(prefix.name)
                home = await reader.home_of(connection, after)
                counted.update(await _count(connection, home, case_sensitive))
        sequence = read.moment.head[0]
    for kind, number in list(counted.items()):
        counted[kind._replace(prefix=ALL_PREFIXES)] += number
    await store.replace_census(counted, sequence)


async def _count(connection: AsyncConnection, home: Home, case_sensitive: bool) -> Shift:
    counted: Shift = Counter()
    ranged = bool(await connection.scalar(_RANGED, {"id": home.id}))

    async def in_ranges(suffixes: Sequence[bytes]) -> list[Record]:
        if not ranged or not suffixes:
            return []
        keys = [Key(home.prefix, suffix) for suffix in suffixes]
        found = await direct(connection).in_ranges([home.id] * len(keys), list(suffixes))
        return list(members_in(found, keys).values())

    def hide(records: Sequence[Record], layer: Layer) -> None:
        for record in records:
            counted[kind_of(home.prefix, record, layer)] -= 1

    at = b""
    while rows := (await connection.execute(_ROWS, {"id": home.id, "after": at})).all():
        for _, status, template in rows:
            if status != PURGED:
                counted[Kind(home.prefix, template or "", Layer.ROWS, STATUS_OF[status])] += 1
        suffixes = [row[0] for row in rows]
        keys = [Key(home.prefix, suffix) for suffix in suffixes]
        lower = await reader.beneath(direct(connection), keys, [home.id] * len(keys))
        hide([record for record in lower if record is not None], Layer.BLOCKS)
        bare = [s for s, record in zip(suffixes, lower, strict=True) if record is None]
        hide(await in_ranges(bare), Layer.RANGES)
        at = suffixes[-1]
    after: bytes | None = None
    while blocks := await reader.list_blocks(connection, home, after, BLOCKS_MAX):
        for block in blocks:
            members = Members(block.blob, block.size, block.sequence)
            for (template, state), number in members.sorts().items():
                counted[Kind(home.prefix, template or "", Layer.BLOCKS, state)] += number
            hide(await in_ranges(members.suffixes()), Layer.RANGES)
        after = blocks[-1].first
    place: RangeKey | None = None
    while held := await list_ranges(connection, home, place, _RANGES_PAGE):
        for each in held:
            counted[kind_of(home.prefix, each.rule, Layer.RANGES)] += each.pattern.count
        place = held[-1].key(case_sensitive=case_sensitive)
    return counted
