"""The two ways of `biaojie import`: rows sent from here, or the file handed to the node."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from biaojie.client import Client
from biaojie.errors import InvalidFile
from biaojie.wire.imports import ImportJob, ImportOptions
from registry.import_counts import FAULTS_SHOWN
from registry.import_prepare import FORMS, Form, Making, is_plain, prepare
from registry.import_rows import Fault, mapping_of
from registry.import_state import free_path
from registry.imports import Aside, ImportReport, import_file

from .progress import Bar
from .sending import through
from .wording import say


async def send_rows(
    client: Client,
    file: Path,
    options: ImportOptions,
    bar: Bar,
    *,
    errors: Path | None,
    restart: bool,
    chunk_rows: int,
    case_sensitive: bool,
) -> ImportReport:
    """Read the file here and send its rows; where it was stopped is kept beside the file."""
    with _rows(file, options, bar) as (rows, form):
        recoded = bool(options.encoding) and options.encoding.lower() not in ("utf-8", "utf8")
        return await import_file(
            rows,
            mapping_of(options),
            through(client),
            aside=Aside(form, form == "csv" and recoded, origin=file),
            mode=options.mode,
            dry_run=options.dry_run,
            state_file=file.with_name(file.name + ".import-state.json"),
            error_file=errors or _error_file(file, form),
            restart=restart,
            chunk_rows=chunk_rows,
            target=client.url,
            case_sensitive=case_sensitive,
            progress=bar.show,
        )


@contextmanager
def _rows(file: Path, options: ImportOptions, bar: Bar) -> Iterator[tuple[Path, Form]]:
    """The file as it lies, or what is made of it for as long as it is needed."""
    known: dict[str, Form] = {form: form for form in FORMS}
    making = Making(file.name, known.get(options.format), options.encoding)
    try:
        form = is_plain(file, making)
    except OSError as error:
        why = error.strerror or error
        raise InvalidFile(f"{file} cannot be read: {why}.", f"无法读取 {file}：{why}。") from None
    if form is not None:
        yield file, form
        return
    with tempfile.TemporaryDirectory(prefix="biaojie-import-") as folder:
        rows = Path(folder) / "rows"
        bar.tell(say("unpacking", "正在展开"), 0, 0)
        yield rows, prepare(file, rows, making)


def _error_file(file: Path, form: Form) -> Path:
    stem = file.name.removesuffix(".gz").removesuffix(".zst")
    ending = ".csv" if form in ("csv", "xlsx") else ".ndjson"
    return file.with_name(Path(stem).stem + ".errors" + ending)


async def hand_to_node(
    client: Client, file: Path, options: ImportOptions, bar: Bar, *, errors: Path | None
) -> ImportReport:
    """Upload the file and watch what the node makes of it. Raises why the node gave it up."""
    job: ImportJob | None = None
    async with aclosing(client.imports.run(file, options)) as told:
        async for job in told:
            bar.tell(_stands(job), job.bytes_done, job.bytes_total)
    assert job is not None
    if job.fault is not None:
        raise job.fault
    if job.state == "cancelled":
        raise InvalidFile(
            f"Import {job.id} was cancelled; {job.written} rows are written.",
            f"导入任务 {job.id} 已被取消；已写入 {job.written} 行。",
        )
    error_file = None
    faults: list[Fault] = []
    if job.errors:
        form: Form = "csv" if job.errors == "csv" else "ndjson"
        error_file = await asyncio.to_thread(free_path, errors or _error_file(file, form))
        await client.imports.save_errors(job.id, error_file)
        async with aclosing(client.imports.report(job.id)) as report:
            async for fault in report:
                faults.append(
                    Fault(fault.line, fault.column, fault.code, fault.reason, fault.reason_zh)
                )
                if len(faults) >= FAULTS_SHOWN:
                    break
    return ImportReport(
        job.rows,
        job.good,
        job.failed,
        job.written,
        dict(job.codes),
        tuple(faults),
        error_file,
        options.dry_run,
        resumed=False,
    )


def _stands(job: ImportJob) -> str:
    match job.state:
        case "uploading":
            return say("uploading", "正在上传")
        case "queued":
            return say("waiting for its turn", "等待执行")
    if job.waiting:
        return say(f"waiting ({job.waiting})", f"等待中（{job.waiting}）")
    if job.phase == "preparing":
        return say("unpacking", "正在展开")
    checking = say("checking: ", "检查：") if job.phase == "checking" else ""
    return checking + say(
        f"{job.rows:,} rows, {job.failed:,} bad", f"{job.rows:,} 行，{job.failed:,} 行有误"
    )
