"""Imports: what is said of a file that is to be registered, and how its job stands. Sans I/O.

The JSON is that of `/api/v1/imports`; the query of an upload has the fields of the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from ..errors import ERRORS, BiaojieError, Internal, InvalidRequest, MalformedAnswer
from .document import decode_time

Mode = Literal["all", "valid-rows"]
State = Literal["uploading", "queued", "running", "done", "failed", "cancelled"]
Phase = Literal["", "preparing", "checking", "writing"]
FORMATS: Final = ("csv", "ndjson", "msgpack", "xlsx")
ENDED: Final = frozenset(("done", "failed", "cancelled"))
COLUMNS_MAX: Final = 200
TEXT_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What is to be made of a file.

    `name` is the file's, for people; `format` (one of FORMATS) and `encoding` may be empty, to
    be found out. Mode `all` registers nothing while any row is bad. `prefix` and `suffix`, a
    pattern such as `SN-{serial}`, make identifiers of columns; without them a column holds
    them. `columns` says of columns by title what they hold: `identifier`, `status`,
    `template`, a value as `TYPE` or `TYPE[index]`, or `-` for nothing. `formulas` "text" takes
    cells that begin with `=` as they are.
    """

    name: str = ""
    format: str = ""
    encoding: str = ""
    mode: Mode = "valid-rows"
    dry_run: bool = False
    prefix: str = ""
    suffix: str = ""
    status: str = "active"
    template: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    formulas: Literal["refuse", "text"] = "refuse"


@dataclass(frozen=True, slots=True)
class ImportJob:
    """How an import stands. `rows` = `good` + `failed`, as far as it has come; `written` is what
    is in the registry. `bytes_done` of `bytes_total` belong to this phase. `codes` counts faults
    by code. `fault` is why it failed; `waiting` the code of what it waits for to pass.
    Times are epoch seconds, `ended` 0 while it goes on. `errors` is the form of the error file,
    empty where there is none.
    """

    id: str
    state: State
    options: ImportOptions
    tenant: str = ""
    created: int = 0
    ended: int = 0
    bytes_received: int = 0
    phase: Phase = ""
    bytes_done: int = 0
    bytes_total: int = 0
    rows: int = 0
    good: int = 0
    failed: int = 0
    written: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)
    fault: BiaojieError | None = None
    waiting: str = ""
    errors: Literal["", "csv", "ndjson"] = ""

    @property
    def over(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class RowFault:
    """One fault of one row, as the report has it."""

    line: int
    column: str
    code: str
    reason: str
    reason_zh: str
    fix: str
    fix_zh: str


# Options --------------------------------------------------------------------------------


def check_options(options: ImportOptions) -> ImportOptions:
    """Raise InvalidRequest for what no import can be; what depends on the file comes later."""
    chosen: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("format", options.format, ("", *FORMATS)),
        ("mode", options.mode, ("all", "valid-rows")),
        ("status", options.status, ("draft", "active", "frozen")),
        ("formulas", options.formulas, ("refuse", "text")),
    )
    for name, given, known in chosen:
        if given not in known:
            listed = ", ".join(filter(None, known))
            raise _bad(name, f"one of {listed}.", f"应为 {listed} 之一。")
    texts = (options.name, options.encoding, options.prefix, options.suffix, options.template)
    names = ("name", "encoding", "prefix", "suffix", "template")
    for name, text in zip(names, texts, strict=True):
        if len(text) > TEXT_MAX:
            raise _bad(name, f"at most {TEXT_MAX} characters.", f"最多 {TEXT_MAX} 个字符。")
    if len(options.columns) > COLUMNS_MAX:
        raise _bad("column", f"at most {COLUMNS_MAX} columns.", f"最多 {COLUMNS_MAX} 列。")
    for title, target in options.columns:
        if not title or not target or len(title) + len(target) > TEXT_MAX:
            raise _bad("column", "TITLE=TARGET, neither empty.", "应为 列名=目标，均不得为空。")
    return options


def _bad(path: str, en: str, zh: str) -> InvalidRequest:
    errors = [{"path": path, "message": en}]
    return InvalidRequest(f"{path}: {en}", f"{path}：{zh}", errors=errors)


def query_of(options: ImportOptions) -> list[tuple[str, str]]:
    """The query of an upload over HTTP."""
    query = [
        (name, str(getattr(options, name)))
        for name in ("name", "format", "encoding", "mode", "prefix", "suffix", "status")
        if getattr(options, name)
    ]
    query += [("template", options.template)] if options.template else []
    query += [("dry_run", "true")] if options.dry_run else []
    query += [("formulas", options.formulas)] if options.formulas != "refuse" else []
    return query + [("column", f"{title}={target}") for title, target in options.columns]


def column_of(text: str) -> tuple[str, str]:
    """`TITLE=TARGET`: a title may hold an equals sign, a target not."""
    title, _, target = text.rpartition("=")
    return title, target


def encode_options(options: ImportOptions) -> dict[str, Any]:
    return {
        "name": options.name,
        "format": options.format,
        "encoding": options.encoding,
        "mode": options.mode,
        "dry_run": options.dry_run,
        "prefix": options.prefix,
        "suffix": options.suffix,
        "status": options.status,
        "template": options.template,
        "columns": [list(pair) for pair in options.columns],
        "formulas": options.formulas,
    }


def decode_options(got: Mapping[str, Any]) -> ImportOptions:
    """Raises InvalidRequest, or TypeError, KeyError and ValueError for another shape."""
    fields = {name: got[name] for name in encode_options(ImportOptions())}
    columns = tuple((str(title), str(target)) for title, target in fields.pop("columns"))
    dry_run = fields.pop("dry_run")
    if not isinstance(dry_run, bool) or not all(isinstance(text, str) for text in fields.values()):
        raise TypeError("an option is not text")
    return check_options(ImportOptions(**fields, columns=columns, dry_run=dry_run))


# Jobs -----------------------------------------------------------------------------------

_COUNTS = ("bytes_received", "bytes_done", "bytes_total", "rows", "good", "failed", "written")


def encode_job(job: ImportJob) -> dict[str, Any]:
    fault = job.fault
    return {
        "id": job.id,
        "state": job.state,
        "phase": job.phase,
        "tenant": job.tenant,
        "created": job.created,
        "ended": job.ended,
        "options": encode_options(job.options),
        **{name: getattr(job, name) for name in _COUNTS},
        "codes": dict(job.codes),
        "fault": None
        if fault is None
        else {
            "code": fault.code,
            "detail": fault.detail.en,
            "detail_zh": fault.detail.zh,
            "fields": {
                name: value for name, value in fault.fields.items() if isinstance(value, str | int)
            },
        },
        "waiting": job.waiting,
        "errors": job.errors,
    }


def decode_job(got: object) -> ImportJob:
    """A job from a node's answer, or from disk; raises MalformedAnswer on anything else."""
    try:
        document = cast(Mapping[str, Any], got)
        told = document["fault"]
        fault = None
        if told is not None:
            kind = ERRORS.get(told["code"], Internal)
            fault = kind(str(told["detail"]), str(told["detail_zh"]), **dict(told["fields"]))
        counts = {name: int(document[name]) for name in _COUNTS}
        counts |= {name: _epoch(document[name], name) for name in ("created", "ended")}
        return ImportJob(
            id=str(document["id"]),
            state=document["state"],
            options=decode_options(document["options"]),
            tenant=str(document["tenant"]),
            phase=document["phase"],
            codes={str(code): int(count) for code, count in document["codes"].items()},
            fault=fault,
            waiting=str(document["waiting"]),
            errors=document["errors"],
            **counts,
        )
    except (TypeError, ValueError, LookupError, AttributeError, BiaojieError) as error:
        raise MalformedAnswer(
            f"Not an import: {type(error).__name__}.", f"不是导入任务：{type(error).__name__}。"
        ) from error


def _epoch(got: object, name: str) -> int:
    """As the JSON interface has it, or as it is kept."""
    if isinstance(got, str):
        return decode_time(got, name)
    return int(cast(int, got)) if got is not None else 0


def decode_fault(got: object) -> RowFault:
    """Raises MalformedAnswer."""
    try:
        document = cast(Mapping[str, Any], got)
        texts = ("column", "code", "reason", "reason_zh", "fix", "fix_zh")
        return RowFault(int(document["line"]), *(str(document[name]) for name in texts))
    except (TypeError, ValueError, LookupError) as error:
        raise MalformedAnswer("Not a fault of a row.", "不是行错误。") from error
