"""A CSV file of any length in which one row in a hundred is bad, in twenty ways in turn, and what
is to be said of each. Seeded by nothing: row n is always the same.

It needs prefixes 88.118.8 (one's own), 88.118.9 (another tenant's) and 88.118.7 (one's own,
suspended), `TAKEN` registered and `RETIRED` retired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OWN, FOREIGN, SUSPENDED = "88.118.8", "88.118.9", "88.118.7"
TAKEN, RETIRED = f"{OWN}/TAKEN", f"{OWN}/RETIRED"
HEADER = b"identifier,serial,URL,state\n"
COLUMN = ("state", "status")
"""What the column `state` holds has to be said."""
EVERY = 100


@dataclass(frozen=True, slots=True)
class Bad:
    """One way: the octets of a row (`{n}` is its number), the column and the code that are to be
    named. `lines` is how many the row takes."""

    row: bytes
    column: str
    code: str
    lines: int = 1


_RECORD = "invalid-record"
WAYS = (
    Bad(b",S{n},https://a.example/{n},active", "identifier", _RECORD),
    Bad(b"no slash {n},S{n},https://a.example/{n},active", "identifier", "invalid-identifier"),
    Bad(b"77.1/{n},S{n},https://a.example/{n},active", "identifier", "prefix-not-here"),
    Bad(b"88.118.9/F{n},S{n},https://a.example/{n},active", "identifier", "forbidden"),
    Bad(b"88.118.7/P{n},S{n},https://a.example/{n},active", "identifier", "prefix-suspended"),
    Bad(b"88.118.8/SN0,S{n},https://a.example/{n},active", "identifier", "identifier-taken"),
    Bad(b"88.118.8/taken,S{n},https://a.example/{n},active", "identifier", "identifier-taken"),
    Bad(b"88.118.8/RETIRED,S{n},https://a.example/{n},active", "identifier", "identifier-retired"),
    Bad(b"88.118.8/X{n},S{n}", "URL", _RECORD),
    Bad(b"88.118.8/X{n},S{n},https://a.example/{n},active,more", "", _RECORD),
    Bad(b'88.118.8/X{n},"S{n}"x,https://a.example/{n},active', "", _RECORD),
    Bad(b"88.118.8/X{n},=A{n}&B{n},https://a.example/{n},active", "serial", _RECORD),
    Bad(b"88.118.8/X{n},\xd0\xf2{n},https://a.example/{n},active", "serial", _RECORD),
    Bad(b"88.118.8/X{n},S\0{n},https://a.example/{n},active", "serial", _RECORD),
    Bad(b"88.118.8/X{n},S{n}," + b"a" * 66_000 + b",active", "URL", _RECORD),
    Bad(b"88.118.8/X\x07{n},S{n},https://a.example/{n},active", "identifier", "invalid-identifier"),
    Bad(b'"88.118.8/X\n{n}",S{n},https://a.example/{n},active', "identifier", _RECORD, 2),
    Bad(b"88.118.8/X{n},S{n},https://a.example/{n},retired", "state", _RECORD),
    Bad(b"88.118.8/X\r{n},S{n},https://a.example/{n},active", "", _RECORD),
    Bad(
        b"88.118.8/" + b"x" * 300 + b"{n},S{n},https://a.example/{n},active",
        "identifier",
        "invalid-identifier",
    ),
)
assert len(WAYS) == 20

Expected = dict[int, tuple[str, str]]
"""Column and code by line."""


def write(path: Path, rows: int) -> tuple[Expected, int]:
    """Write the file; what is bad in it by line, and how many rows are good."""
    bad: Expected = {}
    with path.open("wb") as file:
        file.write(HEADER)
        line = 2
        for number, (data, way) in enumerate(_rows(rows)):
            # Line ends of either kind, as files have that many hands have been at.
            file.write(data + (b"\r\n" if number % 7 == 0 else b"\n"))
            if way is not None:
                bad[line] = (way.column, way.code)
            line += way.lines if way else 1
    return bad, rows - len(bad)


def _rows(rows: int) -> Iterator[tuple[bytes, Bad | None]]:
    for number in range(rows):
        if number % EVERY == EVERY - 1:
            way = WAYS[number // EVERY % len(WAYS)]
            yield way.row.replace(b"{n}", str(number).encode()), way
        else:
            text = f"{OWN}/SN{number},S{number},https://a.example/{number},active"
            yield text.encode(), None


def good_names(rows: int) -> Iterator[str]:
    for number in range(rows):
        if number % EVERY != EVERY - 1:
            yield f"{OWN}/SN{number}"
