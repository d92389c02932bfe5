"""Imports over HTTP, for `http_transport`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from .calls import Page
from .errors import MalformedAnswer
from .http_exchange import Call, HttpExchange, segment
from .wire.imports import ImportJob, ImportOptions, RowFault, decode_fault, decode_job, query_of

BASE = "/api/v1/imports"


class HttpImports:
    """The part of a Transport that is `Importing`."""

    _http: HttpExchange

    async def start_import(
        self,
        options: ImportOptions,
        source: Callable[[], AsyncIterator[bytes]],
        *,
        key: str,
        timeout_s: float,
    ) -> ImportJob:
        headers = {"Idempotency-Key": key, "Content-Type": "application/octet-stream"}
        call = Call("POST", BASE, timeout_s, query_of(options), headers=headers, source=source)
        return decode_job((await self._http.send(call)).document)

    async def find_import(self, id_: str, *, timeout_s: float) -> ImportJob:
        reply = await self._http.send(Call("GET", f"{BASE}/{segment(id_)}", timeout_s))
        return decode_job(reply.document)

    async def list_imports(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[ImportJob]:
        items, onward = await self._listed(BASE, after, limit, timeout_s)
        return Page(tuple(decode_job(item) for item in items), onward)

    async def cancel_import(self, id_: str, *, timeout_s: float) -> ImportJob:
        call = Call("DELETE", f"{BASE}/{segment(id_)}", timeout_s, again=False)
        return decode_job((await self._http.send(call)).document)

    async def import_report(
        self, id_: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[RowFault]:
        path = f"{BASE}:report/{segment(id_)}"
        items, onward = await self._listed(path, after, limit, timeout_s)
        return Page(tuple(decode_fault(item) for item in items), onward)

    def import_errors(self, id_: str, *, timeout_s: float) -> AsyncGenerator[bytes, None]:
        return self._http.stream(Call("GET", f"{BASE}:errors/{segment(id_)}", timeout_s))

    async def _listed(
        self, path: str, after: str | None, limit: int, timeout_s: float
    ) -> tuple[list[Any], str | None]:
        query = [("limit", str(limit)), *([] if after is None else [("after", after)])]
        got = (await self._http.send(Call("GET", path, timeout_s, query))).document
        items, onward = (got.get("items"), got.get("next")) if isinstance(got, dict) else (0, 0)
        if not isinstance(items, list) or not isinstance(onward, str | None):
            raise MalformedAnswer("There is no list of items.", "没有条目列表。")
        return items, onward
