"""Endpoints for imports: files that are registered as jobs of the node."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from biaojie.errors import (
    BiaojieError,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    OverCapacity,
    StorageFull,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMediaType,
)
from biaojie.wire.document import encode_time
from biaojie.wire.imports import (
    COLUMNS_MAX,
    TEXT_MAX,
    ImportJob,
    ImportOptions,
    check_options,
    column_of,
    encode_job,
)
from registry.admission import Caller

from ...imports import Imports
from ...service import Service
from .cursor import cursor_octets, cursor_text, not_a_cursor
from .endpoint import Asked, Endpoint, Reply, json_reply, write_headers
from .models import PageQuery, Shape, Time

BASE = "/api/v1/imports"
NDJSON = "application/x-ndjson"
CSV = "text/csv; charset=utf-8"
MEDIA = {
    "text/csv": "csv",
    NDJSON: "ndjson",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/msgpack": "msgpack",
    "application/octet-stream": "",
}
_FORMS = Literal["csv", "ndjson", "msgpack", "xlsx"]
_ID = re.compile(r"[0-9A-Z]{26}")
_NAME = re.compile(r"[^0-9A-Za-z._-]+")
_READ: tuple[type[BiaojieError], ...] = (Unauthenticated, Forbidden, NotFound)

Words = Annotated[str, Field(max_length=TEXT_MAX)]


class UploadQuery(Shape):
    name: Words = Field("", description="Name of the file, for people.")
    format: _FORMS | None = Field(
        None, description="Left out, it is found by content type, name and content."
    )
    encoding: Words = Field("", description="Of CSV and NDJSON, e.g. gb18030; UTF-8 if left out.")
    mode: Literal["all", "valid-rows"] = Field(
        "valid-rows",
        description="`valid-rows` registers every good row; `all` nothing while any is bad.",
    )
    dry_run: bool = Field(False, description="Only find out what would happen.")
    prefix: Words = Field("", description="Prefix of the new identifiers.")
    suffix: Words = Field(
        "",
        description="Their suffix, a pattern of columns such as `SN-{serial}`. Left out, a column"
        " `identifier` holds whole identifiers.",
    )
    status: Literal["draft", "active", "frozen"] = "active"
    template: Words = Field("", description="Identifier of the data template it follows.")
    column: list[Annotated[str, Field(max_length=TEXT_MAX + 1, pattern="^.+=[^=]+$")]] = Field(
        [],
        max_length=COLUMNS_MAX,
        description="TITLE=TARGET, where the target is `identifier`, `status`, `template`, a"
        " value as `TYPE` or `TYPE[index]`, or `-` for nothing. Other columns hold a value of the"
        " type that is their title.",
    )
    formulas: Literal["refuse", "text"] = Field(
        "refuse", description="Whether cells that begin with `=` are bad, or text."
    )


class TemplateQuery(Shape):
    format: Literal["csv", "ndjson"] = "csv"
    columns: Words = Field(
        "URL", description="Types of the values, commas between, in the order of their columns."
    )


class OptionsReply(Shape):
    name: str
    format: str
    encoding: str
    mode: Literal["all", "valid-rows"]
    dry_run: bool
    prefix: str
    suffix: str
    status: str
    template: str
    columns: list[list[str]]
    formulas: str


class FaultReply(Shape):
    """Why a job failed. `fields` may name an `encoding` that fits, with a `sample` of the text."""

    code: str
    detail: str
    detail_zh: str
    fields: dict[str, str | int]


class ImportReply(Shape):
    """`rows` = `good` + `failed`, as far as it has come; `written` is what is in the registry."""

    id: str
    state: Literal["uploading", "queued", "running", "done", "failed", "cancelled"]
    phase: Literal["", "preparing", "checking", "writing"] = Field(
        description="`bytes_done` of `bytes_total` belong to it."
    )
    tenant: str
    created: Time
    ended: Time | None
    options: OptionsReply
    bytes_received: int
    bytes_done: int
    bytes_total: int
    rows: int
    good: int
    failed: int
    written: int
    codes: dict[str, int] = Field(description="How many faults have which code.")
    fault: FaultReply | None
    waiting: str = Field(description="Code of what it waits for to pass, or empty.")
    errors: Literal["", "csv", "ndjson"] = Field(
        description="Format of the error file; empty where there is none."
    )


class ImportPage(Shape):
    items: list[ImportReply]
    next: str | None


class RowFaultReply(Shape):
    """One fault of one row, with what to do about it."""

    line: int
    column: str
    code: str
    reason: str
    reason_zh: str
    fix: str
    fix_zh: str


class ReportPage(Shape):
    items: list[RowFaultReply]
    next: str | None


@dataclass(frozen=True, slots=True)
class _Upload:
    options: ImportOptions
    parts: AsyncIterator[bytes]
    idempotency_key: str


def _upload_question(asked: Asked) -> _Upload:
    query = asked.query_as(UploadQuery)
    kind = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in MEDIA:
        raise UnsupportedMediaType(
            f"The content type is {kind[:80]}; this takes {', '.join(MEDIA)}.",
            f"内容类型为 {kind[:80]}；此处应为 {'、'.join(MEDIA)}。",
        )
    if asked.headers.get("content-encoding", "identity").lower() not in _PACKED:
        raise UnsupportedMediaType(
            "A file may be packed with gzip or zstd.", "文件可用 gzip 或 zstd 压缩。"
        )
    options = ImportOptions(
        query.name,
        query.format or MEDIA.get(kind, ""),
        query.encoding,
        query.mode,
        query.dry_run,
        query.prefix,
        query.suffix,
        query.status,
        query.template,
        tuple(column_of(text) for text in query.column),
        query.formulas,
    )
    idempotency = asked.idempotency()
    assert asked.parts is not None
    return _Upload(check_options(options), asked.parts, idempotency.key if idempotency else "")


_PACKED = ("identity", "gzip", "zstd")
"""What it is packed with is seen by its first octets; the header may say so too."""


def _job_id(asked: Asked) -> str:
    if not _ID.fullmatch(asked.tail):
        raise NotFound("There is no such import.", "没有该导入任务。")
    return asked.tail


def _shown(job: ImportJob) -> dict[str, Any]:
    return {
        **encode_job(job),
        "created": encode_time(job.created),
        "ended": encode_time(job.ended) if job.ended else None,
    }


def _encode_begun(asked: Asked, answer: tuple[ImportJob, bool]) -> Reply:
    job, known = answer
    return json_reply(_shown(job), 202, {**write_headers(known), "Location": f"{BASE}/{job.id}"})


def _encode_job(asked: Asked, job: ImportJob) -> Reply:
    return json_reply(_shown(job))


@dataclass(frozen=True, slots=True)
class _Errors:
    job: ImportJob
    path: Path


def _encode_errors(asked: Asked, errors: _Errors) -> Reply:
    form = errors.job.errors
    stem = _NAME.sub("-", errors.job.options.name.rpartition(".")[0])[:80].strip("-.") or "import"
    return Reply(
        200,
        content_type=CSV if form == "csv" else NDJSON,
        headers={
            "Cache-Control": "no-store",
            "Content-Disposition": f'attachment; filename="{stem}.errors.{form}"',
        },
        file=errors.path,
    )


def _encode_template(asked: Asked, query: TemplateQuery) -> Reply:
    types = [text.strip() for text in query.columns.split(",")]
    if not all(types) or len({text.casefold() for text in types}) < len(types):
        raise InvalidRequest(
            "columns: types with commas between, each once.",
            "columns：以逗号分隔的类型，不得重复。",
            errors=[{"path": "query.columns", "message": "each once"}],
        )
    if query.format == "csv":
        text = io.StringIO()
        csv.writer(text).writerow(["identifier", *types])
        body, media = text.getvalue().encode("utf-8-sig", "replace"), CSV
    else:
        values = [{"index": n, "type": type_, "data": ""} for n, type_ in enumerate(types, 1)]
        body = json_reply({"identifier": "", "values": values}).body + b"\n"
        media = NDJSON
    return Reply(
        200,
        body,
        media,
        {
            "Cache-Control": "public, max-age=3600",
            "Content-Disposition": f'attachment; filename="import.{query.format}"',
        },
    )


def _offset(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return int(cursor_octets(text)[:18])
    except ValueError:
        raise not_a_cursor() from None


class ImportRest:
    """`imports` None: only to be described."""

    def __init__(self, imports: Imports | None) -> None:
        self._given = imports

    @property
    def _imports(self) -> Imports:
        assert self._given is not None
        return self._given

    async def _upload(
        self, service: Service, caller: Caller, upload: _Upload
    ) -> tuple[ImportJob, bool]:
        return await self._imports.upload(
            caller, upload.options, upload.parts, upload.idempotency_key
        )

    async def _find(self, service: Service, caller: Caller, id_: str) -> ImportJob:
        return await self._imports.find(caller, id_)

    async def _cancel(self, service: Service, caller: Caller, id_: str) -> ImportJob:
        return await self._imports.cancel(caller, id_)

    async def _list(self, service: Service, caller: Caller, query: PageQuery) -> dict[str, Any]:
        try:
            after = "" if query.after is None else cursor_octets(query.after).decode("ascii")
        except ValueError:
            raise not_a_cursor() from None
        jobs = await self._imports.list_jobs(caller, after, query.limit)
        onward = cursor_text(jobs[-1].id.encode()) if len(jobs) == query.limit else None
        return {"items": [_shown(job) for job in jobs], "next": onward}

    async def _report(
        self, service: Service, caller: Caller, question: tuple[str, int, int]
    ) -> dict[str, Any]:
        items, onward = await self._imports.report(caller, *question)
        return {
            "items": items,
            "next": None if onward is None else cursor_text(str(onward).encode()),
        }

    async def _errors(self, service: Service, caller: Caller, id_: str) -> _Errors:
        path = await self._imports.error_file(caller, id_)
        return _Errors(await self._imports.find(caller, id_), path)

    async def _template(
        self, service: Service, caller: Caller, query: TemplateQuery
    ) -> TemplateQuery:
        return query

    def endpoints(self) -> tuple[Endpoint[Any, Any], ...]:
        return (
            Endpoint(
                "POST",
                BASE,
                "import",
                "imports",
                "Upload a file of identifiers, to be registered as a job",
                _upload_question,
                self._upload,
                _encode_begun,
                query=UploadQuery,
                upload=tuple(MEDIA),
                reply=ImportReply,
                success=(202,),
                errors=(
                    *(Unauthenticated, Forbidden, UnsupportedMediaType, TooLarge),
                    *(TooManyRequests, OverCapacity, StorageFull, IdempotencyMismatch),
                ),
                headers=("Idempotency-Key",),
            ),
            Endpoint(
                "GET",
                BASE,
                "list-imports",
                "imports",
                "List imports, the latest first",
                lambda asked: asked.query_as(PageQuery),
                self._list,
                lambda asked, page: json_reply(page),
                query=PageQuery,
                reply=ImportPage,
                errors=(Unauthenticated, Forbidden),
            ),
            Endpoint(
                "GET",
                BASE + "/{import}",
                "find-import",
                "imports",
                "How an import stands",
                _job_id,
                self._find,
                _encode_job,
                reply=ImportReply,
                errors=_READ,
            ),
            Endpoint(
                "DELETE",
                BASE + "/{import}",
                "cancel-import",
                "imports",
                "Stop an import (what is registered stays), or remove one that has ended",
                _job_id,
                self._cancel,
                _encode_job,
                reply=ImportReply,
                errors=_READ,
            ),
            Endpoint(
                "GET",
                BASE + ":report/{import}",
                "import-report",
                "imports",
                "Every fault of every bad row: line, column, reason, and what to do",
                _report_question,
                self._report,
                lambda asked, page: json_reply(page),
                query=PageQuery,
                reply=ReportPage,
                errors=_READ,
            ),
            Endpoint(
                "GET",
                BASE + ":errors/{import}",
                "import-errors",
                "imports",
                "The bad rows as a file, to be corrected and uploaded again",
                _job_id,
                self._errors,
                _encode_errors,
                media=CSV,
                also=(NDJSON,),
                errors=_READ,
            ),
            Endpoint(
                "GET",
                BASE + ":template",
                "import-template",
                "imports",
                "An empty file to fill in",
                lambda asked: asked.query_as(TemplateQuery),
                self._template,
                _encode_template,
                query=TemplateQuery,
                media=CSV,
                also=(NDJSON,),
                keyless=True,
                public=True,
            ),
        )


def _report_question(asked: Asked) -> tuple[str, int, int]:
    query = asked.query_as(PageQuery)
    return _job_id(asked), _offset(query.after), query.limit
