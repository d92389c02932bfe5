"""Checks of whole columns: whether a chunk's names and values are what single ones must be. Pure.

`registry.blocks.cut` takes them as checked. What passes here passes `Identifier` and
`check_values` one by one, and what they refuse is refused here with the same error, as are names
they would change; most chunks are told to be good by a few looks at all of their names at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from biaojie.errors import InvalidIdentifier
from biaojie.identifier import Identifier, check_prefix
from biaojie.limits import IDENTIFIER_CHARS_MAX, RECORD_BYTES_MAX, VALUE_BYTES_MAX
from biaojie.record import check_values

from .blocks import Chunk


def check_chunk(chunk: Chunk) -> None:
    """Raise InvalidIdentifier or InvalidRecord with the first fault."""
    check_prefix(chunk.prefix)
    if not _plainly_good(chunk.prefix, chunk.suffixes):
        for suffix in chunk.suffixes:
            if Identifier(chunk.prefix, suffix).suffix != suffix:
                # A single one is normalized; these are kept as they are spelled.
                raise InvalidIdentifier(
                    f"The suffix {suffix!r} is not in Unicode NFC (rule suffix-nfc).",
                    f"后缀 {suffix!r} 不是 Unicode NFC 形式（规则 suffix-nfc）。",
                    rule="suffix-nfc",
                )
    columns = iter(chunk.columns)
    for shape in chunk.shapes:
        of_shape = [next(columns) for _ in shape]
        longest = [max(map(len, column), default=0) for column in of_shape]
        # What is asked of data is only that they be not too long, so the longest stand for all.
        if max(longest, default=0) <= VALUE_BYTES_MAX and sum(longest) <= RECORD_BYTES_MAX:
            check_values(replace(value, data=b"") for value in shape)
            continue
        for row in zip(*of_shape, strict=True):
            check_values(replace(value, data=data) for value, data in zip(shape, row, strict=True))


def _plainly_good(prefix: str, suffixes: Sequence[str]) -> bool:
    """Whether all are printable ASCII without a space and short enough; else nothing is said."""
    joined = "".join(suffixes)
    return (
        bool(suffixes)
        and joined.isascii()
        and joined.isprintable()
        and " " not in joined
        and all(suffixes)
        and len(prefix) + 1 + max(map(len, suffixes)) <= IDENTIFIER_CHARS_MAX
    )
