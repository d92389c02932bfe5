"""Imports over the native protocol, for `native_transport`."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from .calls import Page
from .errors import DeadlineExceeded
from .native_exchange import NativeExchange
from .wire.imports import ImportJob, ImportOptions, RowFault
from .wire.native import encode_request
from .wire.native import imports as said
from .wire.native.requests import ImportStep


class NativeImports:
    """The part of a Transport that is `Importing`."""

    _native: NativeExchange

    async def start_import(
        self,
        options: ImportOptions,
        source: Callable[[], AsyncIterator[bytes]],
        *,
        key: str,
        timeout_s: float,
    ) -> ImportJob:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s

        async def ask(step: str, *arguments: Any) -> bytes:
            left = until - loop.time()
            if left <= 0:
                raise DeadlineExceeded()
            return await self._step(step, *arguments, timeout_s=left)

        job = said.decode_begun(await ask("begin", said.encode_options(options), key))
        if job.state != "uploading":
            return job  # begun with this key before, and whole
        there, at = job.bytes_received, 0
        async with aclosing(cast(AsyncGenerator[bytes, None], source())) as pieces:
            async for piece in pieces:
                rest = piece[max(there - at, 0) :]
                at += len(piece)
                if rest:
                    await ask("part", job.id, at - len(rest), rest)
        return said.decode_begun(await ask("finish", job.id))

    async def find_import(self, id_: str, *, timeout_s: float) -> ImportJob:
        return said.decode_begun(await self._step("find", id_, timeout_s=timeout_s))

    async def list_imports(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[ImportJob]:
        body = await self._step("list", _octets(after), limit, timeout_s=timeout_s)
        items, onward = said.decode_jobs(body)
        return Page(items, _text(onward))

    async def cancel_import(self, id_: str, *, timeout_s: float) -> ImportJob:
        kind, body = encode_request(ImportStep("cancel", (id_,)))
        # Not again: the second time it would be removed.
        return said.decode_begun(await self._native.call(kind, body, timeout_s, again=False))

    async def import_report(
        self, id_: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[RowFault]:
        body = await self._step("report", id_, _octets(after), limit, timeout_s=timeout_s)
        items, onward = said.decode_faults(body)
        return Page(items, _text(onward))

    async def import_errors(self, id_: str, *, timeout_s: float) -> AsyncGenerator[bytes, None]:
        at, length = 0, 1
        async with asyncio.timeout(timeout_s):
            while at < length:
                body = await self._step("errors", id_, at, timeout_s=timeout_s)
                piece, length = said.decode_piece(body)
                if not piece:
                    return
                at += len(piece)
                yield piece

    async def _step(self, step: str, *arguments: Any, timeout_s: float) -> bytes:
        kind, body = encode_request(ImportStep(step, arguments))
        return await self._native.call(kind, body, timeout_s)


def _text(cursor: bytes | None) -> str | None:
    return None if cursor is None else urlsafe_b64encode(cursor).decode()


def _octets(after: str | None) -> bytes | None:
    return None if after is None else urlsafe_b64decode(after)
