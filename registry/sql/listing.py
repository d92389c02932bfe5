"""Listing what is stored as plain columns, for those who read a whole registry.

By keyset pages. Where a prefix has rows alone, which most have, past SQLAlchemy and without an
object for each; else what `list_records` merges of its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.errors import TamperedLog
from biaojie.identifier import Key
from biaojie.record import Record

from ..store import Plain
from .blob import decode_blob
from .direct import Home, Row, direct
from .reader import list_layers
from .tables import PURGED, STATUS_OF

_LIST = """
SELECT suffix, status, version, sequence, template, blob FROM records
WHERE prefix_id = {} AND suffix > {}
ORDER BY suffix LIMIT {}
"""
_LAYERED = """
SELECT EXISTS (SELECT 1 FROM blocks WHERE prefix_id = {0})
    OR EXISTS (SELECT 1 FROM ranges WHERE prefix_id = {0})
"""
_SQLITE = _LIST.format("?", "?", "?")
_POSTGRESQL = _LIST.format("$1", "$2", "$3")
_STATUS_TEXT = {number: status.value for number, status in STATUS_OF.items()}


async def list_plain(
    connection: AsyncConnection, home: Home, after: bytes | None, limit: int
) -> list[Plain]:
    """See registry.store."""
    driver: Any = direct(connection)
    page = (home.id, after or b"", limit)
    if connection.dialect.name == "postgresql":
        layered = await driver.fetchval(_LAYERED.format("$1"), home.id)
        rows = [] if layered else await driver.fetch(_POSTGRESQL, *page)
    else:
        layered, rows = await driver.run(lambda raw: _read(raw, page))
    if not layered and all(row[1] != PURGED for row in rows):
        return _plain(home.prefix, rows)
    records = await list_layers(connection, home, after, limit)
    return [_columns(suffix, record) for suffix, record in records]


def _read(raw: Any, page: tuple[int, bytes, int]) -> tuple[bool, list[Row]]:
    """Of SQLite: whether there are other layers than rows, else the rows."""
    [[layered]] = raw.execute(_LAYERED.format("?1"), page[:1]).fetchall()
    return layered, [] if layered else raw.execute(_SQLITE, page).fetchall()


def _columns(suffix: bytes, record: Record) -> Plain:
    return (
        suffix,
        record.status.value,
        record.version,
        record.sequence,
        record.template,
        record.created,
        record.modified,
        [(value.index, value.type, value.data) for value in record.values],
        record,
    )


def _plain(prefix: str, rows: Sequence[Row]) -> list[Plain]:
    """The columns of rows. Most rows are nothing but what they look like; a record is made of
    the others."""
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
    unpacker.feed(b"".join([row[5] for row in rows]))  # at once, for half the time
    unpack, tell = unpacker.unpack, unpacker.tell
    listed: list[Plain] = []
    end = 0
    for suffix, status, version, sequence, template, blob in rows:
        try:
            created, age, values = (parts := unpack())[:3]
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise _damaged(prefix, suffix) from error
        end += len(blob)
        if tell() != end:
            raise _damaged(prefix, suffix)
        record = None
        if len(parts) != 3 or max([len(value) for value in values], default=3) != 3:
            key = Key(prefix, suffix)
            record = decode_blob(blob, key, STATUS_OF[status], version, sequence, template)
        listed.append(
            (
                suffix,
                _STATUS_TEXT[status],
                version,
                sequence,
                template,
                created,
                created + age,
                values,
                record,
            )
        )
    return listed


def _damaged(prefix: str, suffix: bytes) -> TamperedLog:
    name = f"{prefix}/{suffix.decode(errors='replace')}"
    return TamperedLog(
        f"Record {name} cannot be read; it was edited or its disk failed.",
        f"记录 {name} 无法读取，已被改动或磁盘故障。",
    )
