"""bench/RESULTS.md: each command of the bench owns one part of it, between two marks.

What stands outside of the marks is written by people and left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .processes import ROOT
from .words import BenchFault

FILE: Final = ROOT / "bench" / "RESULTS.md"


def replaced(text: str, part: str, body: str) -> str:
    """`text` with that part replaced; raises BenchFault if it has no such part."""
    begin, end = f"<!-- {part}: begin -->\n", f"<!-- {part}: end -->\n"
    start, stop = text.find(begin), text.find(end)
    if start < 0 or stop < start:
        raise BenchFault(
            f"{FILE.name} has no part {part!r} between its two marks.",
            f"{FILE.name} 中没有 {part!r} 部分的起止标记。",
        )
    return text[: start + len(begin)] + "\n" + body.strip("\n") + "\n\n" + text[stop:]


def write(part: str, body: str, file: Path = FILE) -> None:
    text = file.read_text(encoding="utf-8")
    new = file.with_suffix(".new")
    new.write_text(replaced(text, part, body), encoding="utf-8")
    new.rename(file)
