"""The steps of an import over the native protocol."""

from __future__ import annotations

import asyncio
from pathlib import Path

from biaojie.errors import InvalidRequest, NotFound
from biaojie.wire.native import imports as said
from biaojie.wire.native.requests import ImportStep
from registry.admission import Caller

from ...imports import Imports
from ...service import Service


async def import_step(service: Service, caller: Caller, step: ImportStep) -> bytes:
    """Do it; the packed answer."""
    imports = service.imports
    if imports is None:
        raise NotFound("Files cannot be imported here.", "此处不支持文件导入。")
    given = step.arguments
    match step.step:
        case "begin":
            options = said.decode_options(given[0])
            job, _ = await imports.begin(caller, options, given[1] or "", go_on=True)
            return said.encode_begun(job)
        case "part":
            id_, at, data = given
            return said.encode_length(await imports.append(caller, id_, data, at))
        case "finish":
            return said.encode_begun(await imports.finish(caller, given[0]))
        case "find":
            return said.encode_begun(await imports.find(caller, given[0]))
        case "cancel":
            return said.encode_begun(await imports.cancel(caller, given[0]))
        case "list":
            return await _list(imports, caller, *given)
        case "report":
            id_, after, limit = given
            items, onward = await imports.report(caller, id_, _offset(after), limit)
            return said.encode_faults(items, None if onward is None else str(onward).encode())
        case _:
            path = await imports.error_file(caller, given[0])
            data, length = await asyncio.to_thread(_piece, path, given[1])
            return said.encode_piece(data, length)


async def _list(imports: Imports, caller: Caller, after: bytes | None, limit: int) -> bytes:
    jobs = await imports.list_jobs(caller, (after or b"").decode("ascii", "replace"), limit)
    return said.encode_jobs(jobs, jobs[-1].id.encode() if len(jobs) == limit else None)


def _offset(after: bytes | None) -> int:
    if after is None:
        return 0
    if len(after) > 18 or not after.isdigit():
        errors = [{"path": "after", "message": "not a cursor"}]
        raise InvalidRequest("after: not a cursor.", "after：不是有效游标。", errors=errors)
    return int(after)


def _piece(path: Path, at: int) -> tuple[bytes, int]:
    with path.open("rb") as file:
        length = path.stat().st_size
        file.seek(min(at, length))
        return file.read(said.PART_OCTETS_MAX), length
