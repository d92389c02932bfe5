"""Working on one import job, from the file as it came to its report.

`work` runs beside the loop in a thread of its own, whose rows go where `submit` takes them.
Stopped in whatever way, the job goes on where it was when `work` is called again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from biaojie.change import RowResult
from biaojie.errors import (
    BiaojieError,
    IdempotencyRunning,
    Internal,
    StorageFull,
)
from biaojie.wire.imports import ImportJob

from .blocks import Bulk
from .import_blocks import Load
from .import_jobs import Claim, error_form
from .import_prepare import FORMS, Form, Making, is_plain, prepare
from .import_rows import Row, mapping_of
from .import_sorting import SORT_MEMORY_BYTES
from .import_state import ImportState
from .imports import Aside, ImportProgress, Submit, import_file

T = TypeVar("T")
CHUNK_ROWS = 1_000
"""Rows of one batch: as many as a commit takes without keeping other writers waiting for long."""
TOLD_EVERY_S = 0.3
WAITS_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class Stopped(Exception):
    """The node is about to stop: the job stays as it is."""


class Cancelled(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Work:
    """What every job needs. `stopping` is asked before each batch and while waiting."""

    submit: Submit
    stopping: Callable[[], bool]
    case_sensitive: bool
    bytes_max: int
    workbook_memory_bytes: int
    clock: Callable[[], float] = time.time
    load: Load | None = None
    sort_memory_bytes: int = SORT_MEMORY_BYTES


def work(claim: Claim, work: Work) -> ImportJob:
    """Do the job; it is over then. Raises Stopped, and nothing else on purpose."""
    one = _One(claim, work)
    try:
        return asyncio.run(one.run())
    except Cancelled:
        return one.end("cancelled", None)
    except BiaojieError as error:
        return one.end("failed", error)
    except Stopped:
        raise
    except Exception:
        one.end("failed", Internal())
        raise


class _One:
    def __init__(self, claim: Claim, work: Work) -> None:
        self._claim = claim
        self._work = work
        self._folder = claim.folder
        self._job = replace(claim.told() or claim.kept.job, state="running", waiting="")
        self._told = 0.0

    async def run(self) -> ImportJob:
        self._claim.save(
            replace(self._claim.kept, job=self._job, restarted=self._claim.kept.restarted + 1)
        )
        form = self._prepared()
        errors = error_form(form)
        state_file = self._folder / "state.json"
        error_file = self._folder / f"errors.{errors}"
        report_file = self._folder / "report.ndjson"
        if not state_file.exists():  # what a pass that wrote nothing had found is found again
            error_file.unlink(missing_ok=True)
            report_file.unlink(missing_ok=True)
        report = await import_file(
            self._folder / "rows",
            mapping_of(self._job.options),
            self._submit,
            load=None if self._work.load is None else self._load,
            aside=Aside(
                form,
                self._claim.kept.transcoded,
                report_file=report_file,
                seen_file=self._folder / "seen.db",
                keep_state=True,
                sorted_file=self._folder / "rows.sorted",
                sort_memory_bytes=self._work.sort_memory_bytes,
            ),
            mode=self._job.options.mode,
            dry_run=self._job.options.dry_run,
            state_file=state_file,
            error_file=error_file,
            chunk_rows=CHUNK_ROWS,
            case_sensitive=self._work.case_sensitive,
            progress=self._progress,
        )
        job = replace(
            self._job,
            state="done",
            ended=int(self._work.clock()),
            rows=report.rows,
            good=report.good,
            failed=report.failed,
            written=report.written,
            codes=report.codes,
            bytes_done=self._job.bytes_total,
            waiting="",
            errors=errors if report.failed else "",
        )
        self._claim.end(job)
        return job

    def end(self, state: str, error: BiaojieError | None) -> ImportJob:
        """It ends before its time: what it did until then is told all the same."""
        assert state in ("failed", "cancelled")
        job = replace(
            self._job,
            state="failed" if state == "failed" else "cancelled",
            ended=int(self._work.clock()),
            fault=error,
            waiting="",
        )
        with contextlib.suppress(BiaojieError):
            stands = ImportState.load(self._folder / "state.json")
            if stands is not None:
                job = replace(
                    job,
                    rows=stands.rows,
                    good=stands.written,
                    failed=stands.failed,
                    written=stands.written,
                    codes=stands.codes,
                )
        form = self._claim.kept.form
        if form and (self._folder / f"errors.{error_form(form)}").exists():
            job = replace(job, errors=error_form(form))
        self._claim.end(job)
        return job

    def _prepared(self) -> Form:
        """The rows, made of the upload once."""
        kept, upload, rows = self._claim.kept, self._folder / "upload", self._folder / "rows"
        known: dict[str, Form] = {form: form for form in FORMS}
        if kept.form:
            if not rows.exists():  # it was about to get its name
                upload.replace(rows)
            return known[kept.form]
        self._job = replace(self._job, phase="preparing", bytes_total=upload.stat().st_size)
        self._look(always=True)
        options = self._job.options
        making = Making(
            options.name,
            known.get(options.format),
            options.encoding,
            self._work.bytes_max,
            self._work.workbook_memory_bytes,
        )
        form = is_plain(upload, making)
        if form is None:
            form = prepare(upload, rows, making, self._look)
        recoded = form == "csv" and options.encoding.lower() not in ("", "utf-8", "utf8")
        self._claim.save(replace(self._claim.kept, form=form, transcoded=recoded))
        if rows.exists():
            upload.unlink()
        else:
            upload.replace(rows)
        return form

    def _look(self, *, always: bool = False) -> None:
        """Tell how it goes now and then, and give up if that is wanted."""
        if self._work.stopping():
            self._claim.tell(self._job)
            raise Stopped
        if self._claim.cancelled:
            raise Cancelled
        now = time.monotonic()
        if always or now - self._told >= TOLD_EVERY_S:
            self._told = now
            self._claim.tell(self._job)

    def _progress(self, progress: ImportProgress) -> None:
        self._job = replace(
            self._job,
            phase="checking" if progress.checking else "writing",
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            rows=progress.rows,
            good=progress.good,
            failed=progress.failed,
            written=0 if progress.checking else progress.good,
        )
        self._look()

    async def _submit(self, rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        return await self._insist(lambda: self._work.submit(rows, key, dry_run=dry_run))

    async def _load(self, bulk: Bulk, key: str) -> Sequence[str]:
        load = self._work.load
        assert load is not None
        return await self._insist(lambda: load(bulk, key))

    async def _insist(self, hand_over: Callable[[], Awaitable[T]]) -> T:
        """What passes is waited for: the registry being down, the node busy, the disk full."""
        attempt = 0
        while True:
            self._look()
            try:
                results = await hand_over()
            except BiaojieError as error:
                if not (error.retryable or isinstance(error, StorageFull | IdempotencyRunning)):
                    raise
                wait_s = WAITS_S[min(attempt, len(WAITS_S) - 1)]
                wait_s = max(wait_s, min(float(error.fields.get("retry_after_s", 0)), 5.0))
                attempt += 1
                self._job = replace(self._job, waiting=error.code)
                await self._wait(wait_s)
            else:
                if self._job.waiting:
                    self._job = replace(self._job, waiting="")
                return results

    async def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._look()
            await asyncio.sleep(min(left, 0.2))
