"""What came of the rows of an import: counts, and the bad ones with what is said of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from biaojie.change import RowResult
from biaojie.errors import (
    Forbidden,
    IdentifierRetired,
    IdentifierTaken,
    InvalidIdentifier,
    PrefixNotHere,
    PrefixSuspended,
)

from .import_rows import BadRow, Fault, Row
from .import_state import SeenIdentifiers

FAULTS_SHOWN = 20
_ABOUT_PREFIX = {Forbidden.code, PrefixNotHere.code, PrefixSuspended.code}
_ABOUT_IDENTIFIER = _ABOUT_PREFIX | {
    InvalidIdentifier.code,
    IdentifierTaken.code,
    IdentifierRetired.code,
}


@dataclass(slots=True)
class Count:
    """Of one pass over the file."""

    rows: int = 0
    good: int = 0
    failed: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def hopeless(results: Sequence[RowResult]) -> RowResult | None:
    """A refusal that meets every row of a chunk, because it concerns their common prefix."""
    codes = {result.code for result in results if not result.ok}
    if results and not any(result.ok for result in results) and len(codes) == 1:
        return results[0] if codes <= _ABOUT_PREFIX else None
    return None


def settle(
    window: Sequence[Row | BadRow],
    results: Sequence[RowResult],
    naming: str,
    count: Count,
    seen: SeenIdentifiers | None,
) -> list[BadRow]:
    """Count a window and return its bad rows in the order of the file. `naming` are the columns
    that identifiers are made of."""
    answers = zip([item for item in window if isinstance(item, Row)], results, strict=True)
    bad = [item for item in window if isinstance(item, BadRow)]
    return settle_rows(len(window), bad, answers, naming, count, seen)


def settle_rows(
    rows: int,
    bad: Sequence[BadRow],
    answers: Iterable[tuple[Row, RowResult]],
    naming: str,
    count: Count,
    seen: SeenIdentifiers | None,
) -> list[BadRow]:
    """As `settle`, of so many rows, of which all are good that are not bad or get an answer."""
    failed = list(bad)
    for row, result in answers:
        failure = _refused(row, result, naming, seen)
        if failure is not None:
            failed.append(failure)
    failed.sort(key=lambda row: row.line)
    count.rows += rows
    count.good += rows - len(failed)
    count.failed += len(failed)
    for failure in failed:
        for fault in failure.faults:
            count.codes[fault.code] = count.codes.get(fault.code, 0) + 1
            if len(count.faults) < FAULTS_SHOWN:
                count.faults.append(fault)
    return failed


def _refused(
    row: Row, result: RowResult, naming: str, seen: SeenIdentifiers | None
) -> BadRow | None:
    earlier = 0
    if seen is not None and result.ok:
        earlier = seen.add(row.identifier, row.line)
    elif seen is not None and result.code == IdentifierTaken.code:
        earlier = seen.line_of(row.identifier)
    if earlier:
        fault = Fault(
            row.line,
            naming,
            IdentifierTaken.code,
            f"Line {earlier} of this file has the same identifier.",
            f"与本文件第 {earlier} 行的标识相同。",
        )
    elif result.ok:
        return None
    else:
        column = naming if result.code in _ABOUT_IDENTIFIER else ""
        fault = Fault(row.line, column, result.code, result.en, result.zh)
    return BadRow(row.line, row.cells, (fault,), document=row.document)
