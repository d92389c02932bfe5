"""Imports over the native protocol: one kind of request with steps, and what answers them.

A step is `[step, arguments]`; which there are, and what they take, is said in `STEPS`. Sans I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from ...errors import ERRORS, BiaojieError, Internal
from ...limits import IDEMPOTENCY_KEY_CHARS_MAX, PAGE_ROWS_MAX
from ..imports import (
    COLUMNS_MAX,
    TEXT_MAX,
    ImportJob,
    ImportOptions,
    RowFault,
    check_options,
)
from .requests import ImportStep
from .shapes import Row, answering, bad, flag, many, octets, pack, row, text, unpack_answer, whole

PART_OCTETS_MAX: Final = 2**20
"""Octets of a file in one request or answer."""
_ID_CHARS_MAX: Final = 26
_LONG: Final = 2**16


def shape(request: ImportStep) -> Row:
    return (request.step, request.arguments)


def decode_step(got: object) -> ImportStep:
    step, arguments = row(got, 2, "import")[:2]
    if not isinstance(step, str) or step not in STEPS:
        known = ", ".join(STEPS)
        raise bad("import.step", f"must be one of {known}.", f"应为 {known} 之一。")
    return ImportStep(step, STEPS[step](arguments))


def _id(got: object) -> str:
    return text(got, _ID_CHARS_MAX, "import.id", least=1)


def _begin(got: object) -> Row:
    options, key = row(got, 2, "import.begin")[:2]
    decoded = encode_options(decode_options(options))
    if key is None:
        return (decoded, None)
    key = text(key, IDEMPOTENCY_KEY_CHARS_MAX, "idempotency_key", least=1)
    if not (key.isascii() and key.isprintable()):
        raise bad("idempotency_key", "must be printable ASCII.", "应为可打印 ASCII 字符。")
    return (decoded, key)


def _part(got: object) -> Row:
    id_, at, data = row(got, 3, "import.part")[:3]
    return (_id(id_), whole(at, "import.at"), octets(data, PART_OCTETS_MAX, "import.data"))


def _named(got: object) -> Row:
    return (_id(row(got, 1, "import")[0]),)


def _after(got: object) -> bytes | None:
    return None if got is None else octets(got, 64, "after")


def _limit(got: object) -> int:
    return whole(got, "limit", least=1, most=PAGE_ROWS_MAX)


def _list(got: object) -> Row:
    after, limit = row(got, 2, "import.list")[:2]
    return (_after(after), _limit(limit))


def _report(got: object) -> Row:
    id_, after, limit = row(got, 3, "import.report")[:3]
    return (_id(id_), _after(after), _limit(limit))


def _errors(got: object) -> Row:
    id_, at = row(got, 2, "import.errors")[:2]
    return (_id(id_), whole(at, "import.at"))


STEPS: Final[dict[str, Callable[[object], Row]]] = {
    "begin": _begin,
    "part": _part,
    "finish": _named,
    "find": _named,
    "list": _list,
    "cancel": _named,
    "report": _report,
    "errors": _errors,
}

# Options and jobs -----------------------------------------------------------------------


def encode_options(o: ImportOptions) -> Row:
    return (
        o.name,
        o.format,
        o.encoding,
        o.mode,
        o.dry_run,
        o.prefix,
        o.suffix,
        o.status,
        o.template,
        tuple(tuple(pair) for pair in o.columns),
        o.formulas,
    )


def decode_options(got: object) -> ImportOptions:
    """Raises InvalidRequest."""
    name, form, encoding, mode, dry_run, prefix, suffix, status, template, columns, formulas = row(
        got, 11, "import.options"
    )[:11]

    def words(given: object, path: str) -> str:
        return text(given, TEXT_MAX, f"import.options.{path}")

    pairs = []
    for pair in many(columns, COLUMNS_MAX, "import.options.columns"):
        title, target = row(pair, 2, "import.options.columns")[:2]
        pairs.append((words(title, "columns"), words(target, "columns")))
    return check_options(
        ImportOptions(
            words(name, "name"),
            words(form, "format"),
            words(encoding, "encoding"),
            cast(Any, words(mode, "mode")),
            flag(dry_run, "import.options.dry_run"),
            words(prefix, "prefix"),
            words(suffix, "suffix"),
            words(status, "status"),
            words(template, "template"),
            tuple(pairs),
            cast(Any, words(formulas, "formulas")),
        )
    )


_COUNTS: Final = (
    *("created", "ended", "bytes_received", "bytes_done", "bytes_total"),
    *("rows", "good", "failed", "written"),
)


def encode_job(job: ImportJob) -> Row:
    fault = job.fault
    told = None
    if fault is not None:
        fields = [(n, v) for n, v in fault.fields.items() if isinstance(v, str | int)]
        told = (fault.code, fault.detail.en, fault.detail.zh, fields)
    return (
        job.id,
        job.state,
        encode_options(job.options),
        job.tenant,
        job.phase,
        [getattr(job, name) for name in _COUNTS],
        list(job.codes.items()),
        told,
        job.waiting,
        job.errors,
    )


def decode_job(got: object) -> ImportJob:
    id_, state, options, tenant, phase, counts, codes, told, waiting, errors = row(got, 10, "job")[
        :10
    ]
    fault: BiaojieError | None = None
    if told is not None:
        code, en, zh, fields = row(told, 4, "job.fault")[:4]
        named = {
            text(name, 64, "job.fault"): value
            for name, value in (row(pair, 2, "job.fault")[:2] for pair in many(fields, 64, "job"))
        }
        kind = ERRORS.get(text(code, 64, "job.fault"), Internal)
        fault = kind(text(en, _LONG, "job.fault"), text(zh, _LONG, "job.fault"), **named)
    numbers = [whole(count, "job.counts") for count in row(counts, len(_COUNTS), "job.counts")]
    return ImportJob(
        id=text(id_, 64, "job.id"),
        state=cast(Any, text(state, 32, "job.state")),
        options=decode_options(options),
        tenant=text(tenant, _LONG, "job.tenant"),
        phase=cast(Any, text(phase, 32, "job.phase")),
        codes={
            text(code, 64, "job.codes"): whole(count, "job.codes")
            for code, count in (row(pair, 2, "job.codes")[:2] for pair in many(codes, 256, "job"))
        },
        fault=fault,
        waiting=text(waiting, 64, "job.waiting"),
        errors=cast(Any, text(errors, 32, "job.errors")),
        **dict(zip(_COUNTS, numbers, strict=False)),
    )


# Answers --------------------------------------------------------------------------------


def encode_begun(job: ImportJob) -> bytes:
    return pack(encode_job(job))


def decode_begun(body: bytes) -> ImportJob:
    with answering("import", "导入任务"):
        return decode_job(unpack_answer(body))


def encode_jobs(jobs: list[ImportJob], onward: bytes | None) -> bytes:
    return pack(([encode_job(job) for job in jobs], onward))


def decode_jobs(body: bytes) -> tuple[tuple[ImportJob, ...], bytes | None]:
    with answering("page of imports", "导入任务页"):
        items, onward = row(unpack_answer(body), 2, "page")[:2]
        return tuple(decode_job(item) for item in many(items, _LONG, "page")), _after(onward)


def encode_faults(faults: list[dict[str, Any]], onward: bytes | None) -> bytes:
    names = ("line", "column", "code", "reason", "reason_zh", "fix", "fix_zh")
    return pack(([[fault[name] for name in names] for fault in faults], onward))


def decode_faults(body: bytes) -> tuple[tuple[RowFault, ...], bytes | None]:
    with answering("page of faults", "错误页"):
        items, onward = row(unpack_answer(body), 2, "page")[:2]
        faults = []
        for item in many(items, _LONG, "page"):
            line, *texts = row(item, 7, "fault")[:7]
            faults.append(
                RowFault(whole(line, "fault"), *(text(each, _LONG, "fault") for each in texts))
            )
        return tuple(faults), _after(onward)


def encode_length(length: int) -> bytes:
    return pack(length)


def decode_length(body: bytes) -> int:
    with answering("length", "长度"):
        return whole(unpack_answer(body), "length")


def encode_piece(data: bytes, length: int) -> bytes:
    return pack((data, length))


def decode_piece(body: bytes) -> tuple[bytes, int]:
    """Octets of the error file, and how long it is."""
    with answering("piece of a file", "文件片段"):
        data, length = row(unpack_answer(body), 2, "piece")[:2]
        return octets(data, PART_OCTETS_MAX, "piece"), whole(length, "piece")
