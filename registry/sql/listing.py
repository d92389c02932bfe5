"""Listing what is stored as columns, for those who read a whole registry.

By keyset pages, past SQLAlchemy and without an object for each record: of a page the layers are
read as they are kept and laid over each other. Rows first: compaction, which may come between,
makes blocks of them, never the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.errors import TamperedLog
from biaojie.identifier import Key

from ..blocks import MEMBERS_MAX, Block
from ..members import Members
from ..runs import Piece, Plain, Rows, Run, overlaid, range_runs
from ..store import Ask, Listed
from .blob import decode_blob
from .direct import Home, Row, direct
from .ranges import near_ranges, range_shapes
from .tables import PURGED, STATUS_OF

_ROWS = """
SELECT suffix, status, version, sequence, template, blob FROM records
WHERE prefix_id = {0} AND suffix > {1}
ORDER BY suffix LIMIT {2}
"""
# One statement, since blocks that are read at different times may overlap.
_BLOCKS = """
SELECT first_suffix, last_suffix, count, sequence, blob FROM blocks
WHERE prefix_id = {0} AND first_suffix <= {2} AND first_suffix >= coalesce((
    SELECT first_suffix FROM blocks WHERE prefix_id = {0} AND first_suffix <= {1}
    ORDER BY first_suffix DESC LIMIT 1
), {1})
ORDER BY first_suffix LIMIT {3}
"""
_RANGED = "SELECT EXISTS (SELECT 1 FROM ranges WHERE prefix_id = {0})"
_STATEMENTS = (_ROWS, _BLOCKS, _RANGED)
SQLITE = [text.format("?1", "?2", "?3", "?4") for text in _STATEMENTS]
POSTGRESQL = [text.format("$1", "$2", "$3", "$4") for text in _STATEMENTS]
"""Of rows, of blocks, and whether there are ranges."""
_AFTER_ALL = b"\xff"
"""No name, which is UTF-8, comes after this."""
_STATUS_TEXT = {number: status.value for number, status in STATUS_OF.items()}
_FEW_ROWS, _FEW_BLOCKS = 64, 4


class _Layers:
    """Rows and blocks > `after` as they are kept, and the name up to which they are all there
    are; None: all. `ranged`: whether the prefix has ranges."""

    def __init__(self, after: bytes, ask: Ask) -> None:
        self.after = after
        self.ask = ask
        self.rows: Sequence[Row] = []
        self.blocks: Sequence[Row] = []
        self.ranged = False
        self.end: bytes | None = None

    def row_question(self, home: Home) -> tuple[Any, ...]:
        return home.id, self.after, self.ask.rows

    def take_rows(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        if len(rows) == self.ask.rows:
            self.end = rows[-1][0]

    def block_question(self, home: Home) -> tuple[Any, ...]:
        return home.id, self.after, self.end or _AFTER_ALL, self.ask.blocks + 1

    def take_blocks(self, blocks: Sequence[Row]) -> None:
        self.blocks = blocks
        if len(blocks) == self.ask.blocks + 1:
            last = blocks[-1][1]
            self.end = last if self.end is None else min(self.end, last)

    def used(self) -> Ask:
        """What to ask for next: twice as much as came to use, that little is read in vain."""
        ask, end = self.ask, self.end
        if end is None:
            return ask
        rows = sum(row[0] <= end for row in self.rows)
        blocks = sum(block[0] <= end for block in self.blocks)
        most = Ask()
        return Ask(
            min(max(2 * rows, _FEW_ROWS), most.rows), min(max(2 * blocks, _FEW_BLOCKS), most.blocks)
        )


async def list_pieces(
    connection: AsyncConnection, home: Home, after: bytes | None, ask: Ask
) -> Listed:
    """See registry.store."""
    driver: Any = direct(connection)
    layers = _Layers(after or b"", ask)
    if connection.dialect.name == "postgresql":
        of_rows, of_blocks, of_ranges = POSTGRESQL
        layers.take_rows(await driver.fetch(of_rows, *layers.row_question(home)))
        layers.take_blocks(await driver.fetch(of_blocks, *layers.block_question(home)))
        layers.ranged = await driver.fetchval(of_ranges, home.id)
    else:
        await driver.run(lambda raw: _read(raw, home, layers))
    members: list[Run] = []
    if layers.ranged:
        shapes = await range_shapes(connection, home)
        near, end = await near_ranges(connection, home, shapes, layers.after)
        end = min([each for each in (end, layers.end) if each is not None], default=None)
        most = Ask().blocks * MEMBERS_MAX
        members, layers.end = range_runs(near, layers.after, most, end)
    return Listed(_laid(home.prefix, layers, members), layers.end, layers.used())


def _read(raw: Any, home: Home, layers: _Layers) -> None:
    of_rows, of_blocks, of_ranges = SQLITE
    layers.take_rows(raw.execute(of_rows, layers.row_question(home)).fetchall())
    layers.take_blocks(raw.execute(of_blocks, layers.block_question(home)).fetchall())
    [[layers.ranged]] = raw.execute(of_ranges, (home.id,)).fetchall()


def _laid(prefix: str, layers: _Layers, members: list[Run]) -> list[Piece]:
    after, end = layers.after, layers.end
    rows = [row for row in layers.rows if end is None or row[0] <= end]
    live = [row for row in rows if row[1] != PURGED]
    plain = _plain(prefix, live)
    blocks = [Block(*row) for row in layers.blocks]
    lower: list[Piece] = []
    for block in blocks:
        if block.last > after and (end is None or block.first <= end):
            lower.append(_unfolded(prefix, block))
    if not lower and not members:
        return [plain] if plain else []
    items: Sequence[Plain | None] = plain
    if len(live) < len(rows):
        coming = iter(plain)
        items = [None if row[1] == PURGED else next(coming) for row in rows]
    upper = Rows([row[0] for row in rows], items)
    return overlaid([*members, *map(_as_source, lower), upper], after, end)


def _as_source(piece: Piece) -> Run | Rows:
    return piece if isinstance(piece, Run) else Rows([item[0] for item in piece], piece)


def _unfolded(prefix: str, block: Block) -> Piece:
    try:
        return Members(block.blob, block.size, block.sequence).columns(prefix)
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise _damaged(prefix, block.first) from error


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
