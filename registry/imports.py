"""Importing a file of rows: good ones to a registry in chunks, bad ones to an error file.

Knows no transport: `submit` sends a chunk, over the network or straight to the registrar.
What holds at any moment, also after kill -9: a row is registered once, counted once and, if it
is bad, written to the error file once, by running the same import again until it ends.
Memory is bounded by a chunk, never by the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from biaojie.change import RowResult
from biaojie.errors import (
    ERRORS,
    InvalidFile,
    MalformedAnswer,
    TooLarge,
)
from biaojie.limits import BATCH_ROWS_MAX

from .import_blocks import WINDOW_ROWS, Blocks, Load, windows
from .import_columns import Place, Reader, Rows, Source
from .import_counts import Count, hopeless, settle, settle_rows
from .import_documents import DocumentFile, RecordReader, SheetFile
from .import_prepare import Form, open_rows
from .import_rows import BadRow, Fault, Row, RowMapping, RowReader
from .import_sorting import SORT_MEMORY_BYTES, SortedRows, in_order, sort_rows
from .import_state import (
    DocumentErrorFile,
    ErrorFile,
    GrowingFile,
    ImportState,
    ReportFile,
    SeenIdentifiers,
    fingerprint,
    free_path,
    lock,
    new_job,
)

__all__ = ["ImportProgress", "ImportReport", "Row", "RowMapping", "Submit", "import_file"]

Mode = Literal["valid-rows", "all"]
CHUNK_ROWS = 500
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


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What came of an import, earlier runs of a resumed one included.

    `rows` = `good` + `failed`. `written` is what is in the registry: 0 after a dry run, and in
    mode `all` when any row was bad. `codes` counts faults by code; `faults` are the first of
    this run, all of them are in `error_file` (None: no bad row).
    """

    rows: int
    good: int
    failed: int
    written: int
    codes: dict[str, int]
    faults: tuple[Fault, ...]
    error_file: Path | None
    dry_run: bool
    resumed: bool


@dataclass(frozen=True, slots=True)
class Aside:
    """What goes along with an import whose files are not all beside the file of rows.

    `form` is that of the rows as `import_prepare` left them, `transcoded` whether from another
    encoding, `origin` the file as it was given (by which a stopped import knows it again).
    `report_file` gets every fault, `seen_file` remembers which line had an identifier first.
    With `keep_state` the state stays when the import has ended, for whoever has to note that
    first: run again it ends at once, with the same report. In `sorted_file`, with so much
    memory, rows of a file that is in no order are put in order for blocks.
    """

    form: Form = "csv"
    transcoded: bool = False
    origin: Path | None = None
    report_file: Path | None = None
    seen_file: Path | None = None
    keep_state: bool = False
    sorted_file: Path | None = None
    sort_memory_bytes: int = SORT_MEMORY_BYTES


BESIDE = Aside()


async def import_file(
    path: str | os.PathLike[str],
    mapping: RowMapping,
    submit: Submit,
    *,
    load: Load | None = None,
    aside: Aside = BESIDE,
    mode: Mode = "valid-rows",
    dry_run: bool = False,
    state_file: Path | None = None,
    error_file: Path | None = None,
    restart: bool = False,
    chunk_rows: int = CHUNK_ROWS,
    target: str = "",
    case_sensitive: bool = False,
    progress: Callable[[ImportProgress], None] = lambda progress: None,
) -> ImportReport:
    """Register the rows of a file: of UTF-8 CSV whose first row names the columns, unless `aside`
    says otherwise.

    Each cell that is not empty becomes a value: its type is the column's name, its index the
    column's number (identifier column and columns named `_…` not counted), its data the text.
    Mode `valid-rows` writes every good row. Mode `all` checks the whole file first and writes
    only if no row is bad; it does not hide the rows from others until the last is written, and
    a row that someone else registers in between is reported, not undone.

    State is kept in `state_file` (default: the file's name + `.import-state.json`) until the
    import ends; bad rows go to `error_file` (default: `NAME.errors.csv`, never overwriting).
    With `load` rows go to the registry as blocks, as far as they are plain creations, and come
    to `submit` otherwise; the file, its report and the registry come to the same.
    `target` names the registry written to: a resumed import must go to the same one.
    `case_sensitive` is the node's setting, needed to find duplicates in a dry run and for `load`.
    Raises InvalidFile, InvalidIdentifier (the prefix) and what `submit` raises; running it
    again goes on after the last acknowledged chunk. A chunk that was registered but not noted
    is recognised for as long as the registry keeps receipts (two days).
    """
    if not 1 <= chunk_rows <= BATCH_ROWS_MAX:
        raise InvalidFile(
            f"A chunk has 1 to {BATCH_ROWS_MAX} rows, not {chunk_rows}.",
            f"每批应为 1 至 {BATCH_ROWS_MAX} 行，而不是 {chunk_rows}。",
        )
    source = Path(path)
    state_file = state_file or source.with_name(source.name + ".import-state.json")
    error_file = error_file or source.with_name(source.stem + ".errors.csv")
    with _open(source, aside) as file, (aside.origin or source).open("rb") as origin:
        lock(origin)
        reader = reader_of(file, mapping)
        state = None
        if not dry_run:
            state = _begun(origin, state_file, _plan(mapping, mode, target), restart=restart)
        if dry_run or (mode == "all" and state is None):
            errors = free_path(error_file)
            count = await _check(
                file,
                reader,
                submit,
                chunk_rows,
                _BadRows(file, errors, aside.report_file),
                progress,
                case_sensitive=case_sensitive,
            )
            if dry_run or count.failed:
                return _report(count, errors, dry_run=dry_run, written=0)
            file.seek(*file.start)
        resumed = state is not None
        if state is None:
            state = ImportState(
                job=new_job(),
                source=fingerprint(origin),
                plan=_plan(mapping, mode, target),
                chunk_rows=chunk_rows if load is None else WINDOW_ROWS,
                error_file=str(free_path(error_file)),
                offset=file.start[0],
                line=file.start[1],
            )
            if load is not None and aside.sorted_file is not None:
                _put_in_order(file, reader, aside, state, progress, case_sensitive=case_sensitive)
            state.save(state_file)
        seen = None
        if aside.seen_file is not None and mode == "valid-rows":
            seen = SeenIdentifiers(aside.seen_file, case_sensitive=case_sensitive)
        try:
            bad = _BadRows(file, Path(state.error_file), aside.report_file, state)
            count = await _write(
                file,
                reader,
                submit,
                load,
                state,
                state_file,
                bad,
                seen,
                progress,
                sorted_file=aside.sorted_file if state.sorted else None,
                case_sensitive=case_sensitive,
            )
        finally:
            if seen is not None:
                seen.close()
        if not aside.keep_state:
            state_file.unlink()
    return _report(
        count, Path(state.error_file), dry_run=False, written=count.good, resumed=resumed
    )


class _BadRows:
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

    def __enter__(self) -> _BadRows:
        return self

    def __exit__(self, *fault: object) -> None:
        self._errors.close()
        if self._report is not None:
            self._report.close()

    def add(self, rows: Sequence[BadRow]) -> tuple[int, int]:
        """Append durably; the lengths of both."""
        return self._errors.add(rows), self._report.add(rows) if self._report else 0


async def _check(
    file: Rows,
    reader: Reader,
    submit: Submit,
    chunk_rows: int,
    bad: _BadRows,
    progress: Callable[[ImportProgress], None],
    *,
    case_sensitive: bool,
) -> Count:
    """A pass that writes nothing to the registry."""
    count = Count()
    seen = SeenIdentifiers(case_sensitive=case_sensitive)
    with bad:
        try:
            for window in _windows(file, reader, chunk_rows):
                results = await _send(submit, _rows(window), "", dry_run=True)
                bad.add(settle(window, results, reader.naming, count, seen))
                progress(_progress(file, count, checking=True))
        finally:
            seen.close()
    return count


async def _write(
    file: Rows,
    reader: Reader,
    submit: Submit,
    load: Load | None,
    state: ImportState,
    state_file: Path,
    bad: _BadRows,
    seen: SeenIdentifiers | None,
    progress: Callable[[ImportProgress], None],
    *,
    sorted_file: Path | None,
    case_sensitive: bool,
) -> Count:
    """The pass that registers, from where `state` stands. The order is what makes it safe to
    stop anywhere: chunk acknowledged, bad rows on disk, state on disk."""
    count = Count(state.rows, state.written, state.failed, state.codes)
    place = SortedRows(sorted_file, cells=bool(file.header)) if sorted_file else None
    source = Source(file, reader, place)
    source.place.seek(state.offset, state.line)

    async def send(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        return await _send(submit, rows, key, dry_run=dry_run)

    async def done() -> AsyncIterator[list[BadRow]]:
        """Window for window, its bad rows."""
        if load is None or state.chunk_rows != WINDOW_ROWS:
            for items in _windows(file, reader, state.chunk_rows):
                results = await send(_rows(items), _key(state), dry_run=False)
                _give_up(results, reader, state, state_file)
                yield settle(items, results, reader.naming, count, seen)
            return
        blocks = Blocks(source, load, send, case_sensitive=case_sensitive)
        for window in windows(source):
            got = await blocks.register(
                window, _key(state), state.by_rows, lambda: state.save(state_file), seen
            )
            if not got.loaded:
                _give_up([result for _, result in got.results], reader, state, state_file)
            state.by_rows = []
            yield settle_rows(window.count, window.bad, got.results, reader.naming, count, seen)

    with bad:
        async for failed in done():
            state.error_bytes, state.report_bytes = bad.add(failed)
            if seen is not None:
                seen.keep()
            state.rows, state.written, state.failed = count.rows, count.good, count.failed
            state.offset, state.line = source.place.offset, source.place.line
            state.chunk += 1
            state.save(state_file)
            progress(_progress(source.place, count, checking=False))
    if place is not None:
        place.close()
    return count


def _put_in_order(
    file: Rows,
    reader: Reader,
    aside: Aside,
    state: ImportState,
    progress: Callable[[ImportProgress], None],
    *,
    case_sensitive: bool,
) -> None:
    """Where the file is in no order, sort its good rows; the bad ones are done with then."""
    source = Source(file, reader)
    assert aside.sorted_file is not None
    if in_order(source, WINDOW_ROWS, case_sensitive=case_sensitive):
        return
    count = Count()
    with _BadRows(file, Path(state.error_file), aside.report_file, state) as bad:

        def failed(rows: list[BadRow]) -> None:
            settle_rows(len(rows), rows, (), reader.naming, count, None)
            state.error_bytes, state.report_bytes = bad.add(rows)

        def step(read: int) -> None:
            good = read - count.failed
            progress(ImportProgress(True, file.offset, file.size, read, good, count.failed))

        sort_rows(
            source,
            aside.sorted_file,
            aside.sort_memory_bytes,
            failed,
            step,
            case_sensitive=case_sensitive,
        )
    state.rows, state.failed, state.codes = count.rows, count.failed, count.codes
    state.offset = state.line = 0
    state.sorted = True


def _key(state: ImportState) -> str:
    return f"import-{state.job}-{state.chunk}"


def _give_up(
    results: Sequence[RowResult], reader: Reader, state: ImportState, state_file: Path
) -> None:
    """Where every row is refused for the prefix that the user gave."""
    why = hopeless(results) if reader.mapping.suffix else None
    if why:
        # Nothing of the chunk was written; under a new key the node will judge it anew.
        state.job = new_job()
        state.by_rows = []
        state.save(state_file)
        raise ERRORS[why.code](why.en, why.zh)


def reader_of(file: Rows, mapping: RowMapping) -> Reader:
    """Raises InvalidFile or InvalidIdentifier where file and mapping do not fit."""
    return RowReader(file.header, mapping) if file.header else RecordReader(mapping)


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


# Beginning and ending -------------------------------------------------------------------


def _open(path: Path, aside: Aside) -> Rows:
    try:
        return open_rows(path, aside.form, transcoded=aside.transcoded)
    except OSError as error:
        why = error.strerror or error
        raise InvalidFile(f"{path} cannot be read: {why}.", f"无法读取 {path}：{why}。") from None


def _plan(mapping: RowMapping, mode: Mode, target: str) -> str:
    plan = json.dumps([asdict(mapping), mode, target], sort_keys=True)
    return hashlib.sha256(plan.encode()).hexdigest()


def _begun(origin: BinaryIO, path: Path, plan: str, *, restart: bool) -> ImportState | None:
    """The state of an import of this file that was stopped; None to begin anew."""
    if restart:
        return None
    state = ImportState.load(path)
    if state is None:
        return None
    if state.source != fingerprint(origin):
        what = ("The file has changed", "文件内容已改变")
    elif state.plan != plan:
        what = (
            "Prefix, suffix, status, template, mode or node differ",
            "前缀、后缀、状态、模板、模式或节点与上次不同",
        )
    else:
        return state
    raise InvalidFile(
        f"{what[0]} since this import was stopped at line {state.line} ({state.written} rows"
        " written). Put it back as it was, or begin anew with --restart: rows that are written"
        " will then be reported as taken.",
        f"自上次在第 {state.line} 行停止（已写入 {state.written} 行）以来，{what[1]}。"
        "请恢复原样，或用 --restart 重新开始（已写入的行届时会报告为已被注册）。",
    )


def _progress(file: Rows | Place, count: Count, *, checking: bool) -> ImportProgress:
    return ImportProgress(checking, file.offset, file.size, count.rows, count.good, count.failed)


def _report(
    count: Count, error_file: Path, *, dry_run: bool, written: int, resumed: bool = False
) -> ImportReport:
    return ImportReport(
        rows=count.rows,
        good=count.good,
        failed=count.failed,
        written=written,
        codes=dict(count.codes),
        faults=tuple(count.faults),
        error_file=error_file if count.failed else None,
        dry_run=dry_run,
        resumed=resumed,
    )
