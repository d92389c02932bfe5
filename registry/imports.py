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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from biaojie.errors import InvalidFile
from biaojie.limits import BATCH_ROWS_MAX

from .import_ahead import Errand
from .import_blocks import WINDOW_ROWS, Load
from .import_columns import Rows, reader_of
from .import_counts import Count
from .import_passes import (
    BadRows,
    ImportProgress,
    Passing,
    Standing,
    Submit,
    check,
    put_in_order,
    write_blocks,
    write_rows,
)
from .import_prepare import Form, open_rows
from .import_rows import Fault, Row, RowMapping
from .import_sorting import SORT_MEMORY_BYTES
from .import_state import (
    ImportState,
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

    def sorting(self, errand: Errand) -> Errand:
        return replace(errand, sort_to=self.sorted_file, sort_memory_bytes=self.sort_memory_bytes)

    def errand(self, errand: Errand, state: ImportState) -> Errand:
        """From where an import stands, of the rows as they are now."""
        rows = self.sorted_file if state.sorted else None
        return replace(errand, sorted_file=rows, start=(state.offset, state.line))


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
        work = Passing(file, reader, submit, progress, case_sensitive)
        state = None
        if not dry_run:
            state = _begun(origin, state_file, _plan(mapping, mode, target), restart=restart)
        if dry_run or (mode == "all" and state is None):
            errors = free_path(error_file)
            count = await check(work, chunk_rows, BadRows(file, errors, aside.report_file))
            if dry_run or count.failed:
                return _report(count, errors, dry_run=dry_run, written=0)
            file.seek(*file.start)
        errand = Errand(source, aside.form, aside.transcoded, mapping, case_sensitive)
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
                put_in_order(work, state, aside.sorting(errand), aside.report_file)
            state.save(state_file)
        seen = None
        if aside.seen_file is not None and mode == "valid-rows":
            seen = SeenIdentifiers(aside.seen_file, case_sensitive=case_sensitive)
        try:
            bad = BadRows(file, Path(state.error_file), aside.report_file, state)
            standing = Standing(state, state_file, bad, seen)
            if load is None or state.chunk_rows != WINDOW_ROWS:
                count = await write_rows(work, standing)
            else:
                count = await write_blocks(work, standing, load, aside.errand(errand, state))
        finally:
            if seen is not None:
                seen.close()
        if not aside.keep_state:
            state_file.unlink()
    return _report(
        count, Path(state.error_file), dry_run=False, written=count.good, resumed=resumed
    )


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
