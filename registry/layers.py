"""One list out of several layers: rows win over blocks, blocks over what comes after. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from biaojie.record import Record

from .blocks import Block
from .members import Members


class Page(NamedTuple):
    """What one layer has after some suffix, in order.

    An item without a record says that there is none of that name in any layer beneath. `end`
    is the folded suffix up to which this is all the layer has; None when it has no more at all.
    """

    items: Sequence[tuple[bytes, Record | None]]
    end: bytes | None


def merged(pages: Sequence[Page], limit: int) -> tuple[list[tuple[bytes, Record]], bytes | None]:
    """The first records of all layers, the uppermost first, by folded suffix, and the suffix to
    go on after.

    There may be fewer than `limit` and more to come: only None says that there are no more.
    """
    ends = [page.end for page in pages if page.end is not None]
    end = min(ends) if ends else None
    items: dict[bytes, Record | None] = {}
    for page in reversed(pages):
        items.update(page.items)
    records: list[tuple[bytes, Record]] = []
    last: bytes | None = None
    for suffix in sorted(items):
        if end is not None and suffix > end:
            break
        record = items[suffix]
        if record is None:
            continue
        if len(records) == limit:
            return records, last
        records.append((suffix, record))
        last = suffix
    return records, end


def page_of(blocks: Sequence[Block], after: bytes, *, more: bool) -> Page:
    """Members > `after` of neighbouring blocks; `more` of which there are, or may be."""
    items = [
        (suffix, record)
        for block in blocks
        for suffix, record in Members(block.blob, block.size, block.sequence).all()
        if suffix > after
    ]
    return Page(items, blocks[-1].last if more else None)
