"""Listing what is stored as plain columns, for those who read a whole registry.

Reads the table `records` alone, by keyset pages: whatever `list_records` learns to merge in must
be merged in here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.errors import TamperedLog
from biaojie.identifier import Key

from ..store import Plain
from .blob import decode_blob
from .direct import Row, direct
from .tables import STATUS_OF

_LIST = """
SELECT suffix, status, version, sequence, template, blob FROM records
WHERE prefix_id = (SELECT id FROM prefixes WHERE name = {}) AND suffix > {}
ORDER BY suffix LIMIT {}
"""
_SQLITE = _LIST.format("?", "?", "?")
_POSTGRESQL = _LIST.format("$1", "$2", "$3")
_STATUS_TEXT = {number: status.value for number, status in STATUS_OF.items()}


async def list_rows(
    connection: AsyncConnection, prefix: str, after: bytes | None, limit: int
) -> list[Row]:
    """Columns of `records` but the prefix, past SQLAlchemy."""
    driver: Any = direct(connection)
    page = (prefix, after or b"", limit)
    rows: list[Row]
    if connection.dialect.name == "postgresql":
        rows = await driver.fetch(_POSTGRESQL, *page)
    else:
        rows = await driver.run(lambda raw: raw.execute(_SQLITE, page).fetchall())
    return rows


def plain(prefix: str, rows: Sequence[Row]) -> list[Plain]:
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
