"""The passes over the rows of a file that an import makes: checking, putting in order, writing.

The order of what is done to a chunk is what makes it safe to stop anywhere: acknowledged, its
bad rows on disk, the state on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from biaojie.change import RowResult
from biaojie.errors import ERRORS, MalformedAnswer, TooLarge

from .import_ahead import Errand, readied, sorting, source_of
from .import_blocks import WINDOW_ROWS, Blocks, Cutter, Load
from .import_columns import Reader, Rows, Source
from .import_counts import Count, hopeless, settle, settle_rows
from .import_documents import DocumentFile, SheetFile
from .import_rows import BadRow, Row
from .import_sorting import in_order
from .import_state import (
    DocumentErrorFile,
    ErrorFile,
    GrowingFile,
    ImportState,
    ReportFile,
    SeenIdentifiers,
    new_job,
)

CHUNK_BYTES_MAX = 2_097_152
"""Roughly what a chunk may weigh as JSON, apart from one long row."""


class Submit(Protocol):
    async def __call__(
        self, rows: Sequence[Row], key: str, *, dry_run: bool
    ) -> Sequence[RowResult]:
        """Register the rows that can be (mode valid-rows); one result per row, in order.

        `key` is the chunk's idempotency key: a chunk that comes a second time under its key
        gets the results of the first. A dry run only says what would happen; its key is empty.
        Raises what concerns the chunk as a whole, TooLarge to be given it in halves.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """`checking` is true while nothing is being written (dry run, first pass of mode all)."""

    checking: bool
    bytes_done: int
    bytes_total: int
    rows: int
    good: int
    failed: int


class BadRows:
    """Where bad rows go: the error file and, where there is one, the report."""

    def __init__(
        self, file: Rows, errors: Path, report: Path | None, state: ImportState | None = None
    ) -> None:
        kept = state.error_bytes if state else 0
        self._errors: GrowingFile
        if isinstance(file, DocumentFile) and not isinstance(file, SheetFile):
            self._errors = DocumentErrorFile(errors, file.titles, kept_bytes=kept)
        else:
            self._errors = ErrorFile(errors, file.titles, bom=file.bom, kept_bytes=kept)
        self._report = None
        if report is not None:
            self._report = ReportFile(report, kept_bytes=state.report_bytes if state else 0)

    def __enter__(self) -> BadRows:
        return self

    def __exit__(self, *fault: object) -> None:
        self._errors.close()
        if self._report is not None:
            self._report.close()

    def add(self, rows: Sequence[BadRow]) -> tuple[int, int]:
        """Append durably; the lengths of both."""
        return self._errors.add(rows), self._report.add(rows) if self._report else 0


@dataclass(frozen=True, slots=True)
class Passing:
    """What all passes over a file need."""

    file: Rows
    reader: Reader
    submit: Submit
    progress: Callable[[ImportProgress], None]
    case_sensitive: bool

    def tell(self, count: Count, offset: int, size: int, *, checking: bool) -> None:
        self.progress(ImportProgress(checking, offset, size, count.rows, count.good, count.failed))


@dataclass(slots=True)
class Standing:
    """Where a pass that registers stands, on disk. `seen` remembers names, where that is wanted."""

    state: ImportState
    file: Path
    bad: BadRows
    seen: SeenIdentifiers | None

    def save(self) -> None:
        self.state.save(self.file)

    @property
    def key(self) -> str:
        return f"import-{self.state.job}-{self.state.chunk}"

    def settled(self, failed: list[BadRow], count: Count, end: tuple[int, int]) -> None:
        """A chunk is done with; the next begins at `end`."""
        state = self.state
        state.error_bytes, state.report_bytes = self.bad.add(failed)
        if self.seen is not None:
            self.seen.keep()
        state.rows, state.written, state.failed = count.rows, count.good, count.failed
        state.offset, state.line = end
        state.chunk += 1
        state.by_rows = []
        self.save()


async def check(work: Passing, chunk_rows: int, bad: BadRows) -> Count:
    """A pass that writes nothing to the registry."""
    count = Count()
    file = work.file
    seen = SeenIdentifiers(case_sensitive=work.case_sensitive)
    with bad:
        try:
            for window in _windows(file, work.reader, chunk_rows):
                results = await _send(work.submit, _rows(window), "", dry_run=True)
                bad.add(settle(window, results, work.reader.naming, count, seen))
                work.tell(count, file.offset, file.size, checking=True)
        finally:
            seen.close()
    return count


async def write_rows(work: Passing, at: Standing) -> Count:
    """The pass that registers row by row, from where it stands."""
    state, file = at.state, work.file
    count = Count(state.rows, state.written, state.failed, state.codes)
    file.seek(state.offset, state.line)
    with at.bad:
        for items in _windows(file, work.reader, state.chunk_rows):
            results = await _send(work.submit, _rows(items), at.key, dry_run=False)
            _give_up(results, work.reader, at)
            failed = settle(items, results, work.reader.naming, count, at.seen)
            at.settled(failed, count, (file.offset, file.line))
            work.tell(count, file.offset, file.size, checking=False)
    return count


async def write_blocks(work: Passing, at: Standing, load: Load, errand: Errand) -> Count:
    """The pass that registers blocks, from where it stands."""
    state = at.state
    count = Count(state.rows, state.written, state.failed, state.codes)

    async def send(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        return await _send(work.submit, rows, key, dry_run=dry_run)

    with closing(source_of(work.file, errand)) as source, at.bad:
        cutter = Cutter(source, case_sensitive=work.case_sensitive)
        blocks = Blocks(cutter, load, send)

        def tell() -> None:
            work.tell(count, state.offset, source.place.size, checking=False)

        with closing(readied(cutter, errand, tell)) as windows:
            for ready in windows:
                got = await blocks.register(ready, at.key, state.by_rows, at.save, at.seen)
                if not got.loaded:
                    _give_up([result for _, result in got.results], work.reader, at)
                failed = settle_rows(
                    ready.count, ready.bad, got.results, work.reader.naming, count, at.seen
                )
                at.settled(failed, count, ready.end)
                tell()
    return count


def put_in_order(work: Passing, state: ImportState, errand: Errand, report: Path | None) -> None:
    """Where the file is in no order, sort its good rows; the bad ones are done with then."""
    file = work.file
    if in_order(Source(file, work.reader), WINDOW_ROWS, case_sensitive=work.case_sensitive):
        return
    count = Count()
    last = [ImportProgress(True, 0, file.size, 0, 0, 0)]
    for steps in sorting(file, errand, lambda: work.progress(last[0])):
        count = Count()
        state.error_bytes = state.report_bytes = 0
        kept = BadRows(file, Path(state.error_file), report, state)
        with kept as bad, closing(steps):
            for step in steps:
                settle_rows(len(step.bad), step.bad, (), work.reader.naming, count, None)
                state.error_bytes, state.report_bytes = bad.add(step.bad)
                good = step.read - count.failed
                last[0] = ImportProgress(
                    True, step.offset, file.size, step.read, good, count.failed
                )
                work.progress(last[0])
                state.sorted = step.whole
        if state.sorted:
            break
    state.rows, state.failed, state.codes = count.rows, count.failed, count.codes
    state.offset = state.line = 0


def _give_up(results: Sequence[RowResult], reader: Reader, at: Standing) -> None:
    """Where every row is refused for the prefix that the user gave."""
    why = hopeless(results) if reader.mapping.suffix else None
    if why:
        # Nothing of the chunk was written; under a new key the node will judge it anew.
        at.state.job = new_job()
        at.state.by_rows = []
        at.save()
        raise ERRORS[why.code](why.en, why.zh)


def _windows(file: Rows, reader: Reader, rows_max: int) -> Iterator[list[Row | BadRow]]:
    """Runs of neighbouring rows. Where they are cut depends only on the file, the place they
    start from and `rows_max`: a chunk sent again is the same chunk."""
    window: list[Row | BadRow] = []
    weight, before = 0, file.offset
    read: Callable[[Any], Row | BadRow] = reader.read  # of what this file gives: `reader_of`
    for split in file:
        item = read(split)
        window.append(item)
        weight += file.offset - before + reader.row_bytes
        before = file.offset
        if len(window) >= rows_max or weight >= CHUNK_BYTES_MAX:
            yield window
            window, weight = [], 0
    if window:
        yield window


def _rows(window: Sequence[Row | BadRow]) -> list[Row]:
    return [item for item in window if isinstance(item, Row)]


async def _send(
    submit: Submit, rows: Sequence[Row], key: str, *, dry_run: bool
) -> Sequence[RowResult]:
    """One result per row. A chunk that the node finds too large goes in halves, whose keys
    follow from the chunk's; a single row that is too large is a bad row."""
    if not rows:
        return ()
    try:
        results = await submit(rows, key, dry_run=dry_run)
    except TooLarge as error:
        if len(rows) == 1:
            name = str(rows[0].identifier)
            return (RowResult(0, name, None, error.code, error.detail.en, error.detail.zh),)
        middle = len(rows) // 2
        left = await _send(submit, rows[:middle], key and f"{key}a", dry_run=dry_run)
        right = await _send(submit, rows[middle:], key and f"{key}b", dry_run=dry_run)
        return (*left, *right)
    if len(results) != len(rows):
        raise MalformedAnswer(
            f"{len(results)} results for {len(rows)} rows.",
            f"{len(rows)} 行却返回 {len(results)} 个结果。",
        )
    return results
