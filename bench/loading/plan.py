"""Half a billion realistic records, each of which anybody can make again from its number. Pure.

Enterprises of very different size register runs of several product lines, again and again. Which
chunk comes when is drawn from the seed alone, and does not depend on how many are wanted: a plan
for more begins with the chunks of a plan for fewer. What a record holds is a keyed hash of where
it stands, so any answer can be checked without a table.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from biaojie.record import Value

PREFIXES: Final = 1_000
LINES: Final = 4
"""Product lines of each enterprise."""
LOT: Final = 20_000
_SIZES: Final = ((100, 24_576), (400, 8_192), (PREFIXES, 2_048))
"""The largest 100 register so many at once, the next so many, the rest so many."""
_GROUP: Final = 64
"""Names whose random octets come of one hash."""
_RANDOM: Final = 20
_STRIDE_BITS: Final = 20


class Piece(NamedTuple):
    """A chunk: `size` records from `first` on, of a line of an enterprise. `start` counts the
    records of all chunks before it."""

    number: int
    rank: int
    line: int
    first: int
    size: int
    start: int


class Columns(NamedTuple):
    """Records as `registry.blocks.Chunk` takes them; the data of each value of `shape`."""

    suffixes: list[str]
    shape: tuple[Value, ...]
    data: list[list[bytes]]


class Expected(NamedTuple):
    """What the registry must hold under `prefix`/`suffix`: index, type and data of each value."""

    prefix: str
    suffix: str
    template: str
    values: tuple[tuple[int, str, bytes], ...]


def prefix_of(rank: int) -> str:
    return f"88.{100 + rank % 900}.{1 + rank}"


def tenant_of(rank: int) -> str:
    return f"enterprise-{rank}"


class Plan:
    """Chunks until there are at least `count` records: the last one is whole, so `total` is a
    little more."""

    def __init__(self, seed: str, count: int) -> None:
        self.seed = seed
        self.pieces: list[Piece] = []
        self.total = 0
        reached: dict[tuple[int, int], int] = {}
        while self.total < count:
            number = len(self.pieces)
            drawn = hashlib.blake2b(f"{seed} chunk {number}".encode(), digest_size=9).digest()
            # Evenly over the logarithm of the rank: the n-th largest has 1/n of the largest.
            rank = int(PREFIXES ** (int.from_bytes(drawn[:8]) / 2**64)) - 1
            line = drawn[8] % LINES
            size = next(size for below, size in _SIZES if rank < below)
            first = reached.get((rank, line), 0)
            self.pieces.append(Piece(number, rank, line, first, size, self.total))
            reached[rank, line] = first + size
            self.total += size
        self._starts = [piece.start for piece in self.pieces]

    def pieces_for(self, count: int) -> int:
        """How many chunks have at least `count` records, or all of them."""
        at = bisect_right(self._starts, count - 1) if count > 0 else 0
        return min(at, len(self.pieces))

    def records_in(self, pieces: int) -> int:
        return self.pieces[pieces].start if pieces < len(self.pieces) else self.total

    def expected(self, number: int) -> Expected:
        """The record with this number, from 0 in the order of registration."""
        piece = self.pieces[bisect_right(self._starts, number) - 1]
        made = columns(self.seed, piece.rank, piece.line, piece.first + number - piece.start, 1)
        values = tuple(
            (value.index, value.type, column[0])
            for value, column in zip(made.shape, made.data, strict=True)
        )
        template = template_of(piece.rank, piece.line)
        return Expected(prefix_of(piece.rank), made.suffixes[0], template, values)


def _random(seed: str, rank: int, line: int, first: int, count: int) -> list[bytes]:
    """Twenty random octets for each of the records."""
    out: list[bytes] = []
    start = first // _GROUP
    for group in range(start, (first + count - 1) // _GROUP + 1):
        octets = hashlib.shake_128(f"{seed} {rank} {line} {group}".encode()).digest(
            _GROUP * _RANDOM
        )
        out += [octets[at : at + _RANDOM] for at in range(0, _GROUP * _RANDOM, _RANDOM)]
    skipped = first - start * _GROUP
    return out[skipped : skipped + count]


TEMPLATES: Final = ("product", "trade-item", "lot", "device")
_URL, _KEY, _DIGEST = Value(1, "URL", b""), Value(2, "KEY", b""), Value(2, "DIGEST", b"")
_SHAPES: Final = (
    (_URL, _KEY),
    (_URL, _DIGEST),
    (_URL, Value(2, "LOT", b""), Value(3, "KEY", b"")),
    (Value(1, "FINGERPRINT", b""), Value(2, "URL", b"")),
)


def template_of(rank: int, line: int) -> str:
    return TEMPLATES[(rank + line) % len(TEMPLATES)]


def columns(seed: str, rank: int, line: int, first: int, count: int) -> Columns:
    """The records `first` to `first + count - 1` of a line, in the order of their names."""
    template = (rank + line) % len(TEMPLATES)
    random = _random(seed, rank, line, first, count)
    numbers = range(first, first + count)
    data: list[list[bytes]]
    if template == 0:  # serial numbers of a product
        suffixes = [f"P{line}-{number:010d}" for number in numbers]
        data = [_urls(rank, "p", suffixes), random]
    elif template == 1:  # GS1: a trade item and its serial number
        head = f"01069{rank:05d}{line:04d}21"
        suffixes = [f"{head}{number:08d}" for number in numbers]
        data = [_urls(rank, "gs1", suffixes), [each.hex().encode() for each in random]]
    elif template == 2:  # pieces of a lot, spelled in small letters
        suffixes = [f"lot{line}.{number // LOT:05d}.{number % LOT:05d}" for number in numbers]
        data = [_urls(rank, "lot", suffixes), list(_lots(rank, line, numbers)), random]
    else:  # devices, whose numbers are far apart
        suffixes = [
            f"E{line}{number << _STRIDE_BITS | _scattered(each):012X}"
            for number, each in zip(numbers, random, strict=True)
        ]
        data = [[each.hex().encode() for each in random], _urls(rank, "dev", suffixes)]
    return Columns(suffixes, _SHAPES[template], data)


def _scattered(random: bytes) -> int:
    """A number below 2**_STRIDE_BITS whose digits are not among those of the value."""
    return int.from_bytes(random[:4]) * 0x9E3779B1 >> 12 & (1 << _STRIDE_BITS) - 1


def _urls(rank: int, kind: str, suffixes: Sequence[str]) -> list[bytes]:
    head = f"https://id.ent{rank:04d}.example.cn/{kind}/"
    # One step of the interpreter for all; no suffix has a line break in it.
    return (head + f"\n{head}".join(suffixes)).encode().split(b"\n")


def _lots(rank: int, line: int, numbers: Sequence[int]) -> Iterator[bytes]:
    lot, text = -1, b""
    for number in numbers:
        if number // LOT != lot:
            lot = number // LOT
            shift = "ABC"[(rank + lot) % 3]
            text = f'{{"lot":{lot},"line":{line},"shift":"{shift}","made":"{_day(lot)}"}}'.encode()
        yield text


def _day(lot: int) -> str:
    return f"2026-{1 + lot // 28 % 12:02d}-{1 + lot % 28:02d}"
