"""`client.imports`: files that the node registers as jobs of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from .calls import Page
from .errors import BiaojieError, InvalidFile, InvalidRequest
from .limits import PAGE_ROWS_MAX
from .retry import keyed
from .streams import flat, pages
from .transport import Transport
from .wire.imports import ImportJob, ImportOptions, RowFault, check_options

__all__ = ["ImportJob", "ImportOptions", "Importing", "Imports", "RowFault"]

PIECE_BYTES = 1_048_576
PATIENCE_S = 60.0
"""A node that cannot be asked how an import goes is asked again for so long."""

Source = Callable[[], AsyncIterator[bytes]]
"""The octets of a file from its start, each time it is called."""


@runtime_checkable
class Importing(Protocol):
    """What a Transport offers that can hand over files."""

    async def start_import(
        self, options: ImportOptions, source: Source, *, key: str, timeout_s: float
    ) -> ImportJob: ...

    async def find_import(self, id_: str, *, timeout_s: float) -> ImportJob: ...

    async def list_imports(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[ImportJob]: ...

    async def cancel_import(self, id_: str, *, timeout_s: float) -> ImportJob: ...

    async def import_report(
        self, id_: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[RowFault]: ...

    def import_errors(self, id_: str, *, timeout_s: float) -> AsyncGenerator[bytes, None]: ...


class Imports:
    """Imports of the key's tenant. Starting and stopping them needs a key that may register.

    An import is the node's affair once the file is there: it goes on when this program ends, and
    when the node is started anew.
    """

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s

    def run(
        self,
        file: str | os.PathLike[str],
        options: ImportOptions | None = None,
        *,
        poll_s: float = 0.5,
        upload_s: float = 3_600.0,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ImportJob, None]:
        """Upload a file and tell how it goes until it is over; the last says what came of it.

        While the file is on its way, `state` is "uploading", and the id empty. `upload_s` is for
        all of that, `timeout_s` for each question after. Raises InvalidFile for a file that
        cannot be read, and what `start` raises.
        """
        return flat(
            self._run_pages(
                file,
                options,
                poll_s=poll_s,
                upload_s=upload_s,
                idempotency_key=idempotency_key,
                timeout_s=timeout_s,
            )
        )

    async def _run_pages(
        self,
        file: str | os.PathLike[str],
        options: ImportOptions | None = None,
        *,
        poll_s: float = 0.5,
        upload_s: float = 3_600.0,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Sequence[ImportJob], None]:
        opened = _File(Path(file))
        wanted = _named(options, opened.path)
        starting = asyncio.create_task(self._start(opened, wanted, upload_s, idempotency_key))
        try:
            while not (await asyncio.wait([starting], timeout=poll_s))[0]:
                done, total = opened.sent, opened.size
                yield (ImportJob("", "uploading", wanted, bytes_done=done, bytes_total=total),)
            job = await starting
        finally:
            starting.cancel()
        async with aclosing(self._follow_pages(job.id, poll_s=poll_s, timeout_s=timeout_s)) as told:
            async for page in told:
                yield page

    async def start(
        self,
        file: str | os.PathLike[str],
        options: ImportOptions | None = None,
        *,
        upload_s: float = 3_600.0,
        idempotency_key: str | None = None,
    ) -> ImportJob:
        """Upload a file, and return when it is there. Raises InvalidFile, TooLarge,
        TooManyRequests, OverCapacity, StorageFull."""
        opened = _File(Path(file))
        return await self._start(opened, _named(options, opened.path), upload_s, idempotency_key)

    async def _start(
        self, file: _File, options: ImportOptions, upload_s: float, idempotency_key: str | None
    ) -> ImportJob:
        with keyed(idempotency_key) as key:
            return await self._importing.start_import(
                options, file.pieces, key=key, timeout_s=upload_s
            )

    def follow(
        self, import_id: str, *, poll_s: float = 0.5, timeout_s: float | None = None
    ) -> AsyncGenerator[ImportJob, None]:
        """How it stands, over and over, until it is over. A node that is not there for a while
        (it is started anew, say) is asked again for a minute."""
        return flat(self._follow_pages(import_id, poll_s=poll_s, timeout_s=timeout_s))

    async def _follow_pages(
        self, import_id: str, *, poll_s: float = 0.5, timeout_s: float | None = None
    ) -> AsyncGenerator[Sequence[ImportJob], None]:
        loop = asyncio.get_running_loop()
        answered = loop.time()
        while True:
            try:
                job = await self.get(import_id, timeout_s=timeout_s)
            except BiaojieError as error:
                if not error.retryable or loop.time() - answered > PATIENCE_S:
                    raise
            else:
                answered = loop.time()
                yield (job,)
                if job.over:
                    return
            await asyncio.sleep(poll_s)

    async def get(self, import_id: str, *, timeout_s: float | None = None) -> ImportJob:
        """Raises NotFound."""
        return await self._importing.find_import(import_id, timeout_s=timeout_s or self._timeout_s)

    async def list(self, *, timeout_s: float | None = None) -> AsyncGenerator[ImportJob, None]:
        """Those that the node still knows, the latest first."""
        async for page in self._pages(timeout_s=timeout_s):
            for job in page:
                yield job

    def _pages(
        self, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Sequence[ImportJob], None]:
        return pages(
            lambda after: self._importing.list_imports(
                after=after, limit=100, timeout_s=timeout_s or self._timeout_s
            )
        )

    async def cancel(self, import_id: str, *, timeout_s: float | None = None) -> ImportJob:
        """Stop it; what is registered stays. One that has ended is removed with its report."""
        return await self._importing.cancel_import(
            import_id, timeout_s=timeout_s or self._timeout_s
        )

    def report(
        self, import_id: str, *, timeout_s: float | None = None
    ) -> AsyncGenerator[RowFault, None]:
        """Every fault of every bad row, in the order of the file."""
        return flat(self._report_pages(import_id, timeout_s=timeout_s))

    def _report_pages(
        self, import_id: str, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Sequence[RowFault], None]:
        return pages(
            lambda after: self._importing.import_report(
                import_id,
                after=after,
                limit=PAGE_ROWS_MAX,
                timeout_s=timeout_s or self._timeout_s,
            )
        )

    async def save_errors(
        self,
        import_id: str,
        path: str | os.PathLike[str],
        *,
        timeout_s: float = 600.0,
    ) -> int:
        """Write the error file, the bad rows with what is wrong with them, to a new file; its
        length. Raises NotFound where there are none, FileExistsError."""
        octets = 0
        target = Path(path)
        with await asyncio.to_thread(target.open, "xb") as file:
            try:
                pieces = self._importing.import_errors(import_id, timeout_s=timeout_s)
                async with aclosing(pieces):
                    async for piece in pieces:
                        octets += file.write(piece)
            except BaseException:
                target.unlink()  # noqa: ASYNC240 — a moment, and nothing may come between
                raise
        return octets

    @property
    def _importing(self) -> Importing:
        if not isinstance(self._transport, Importing):
            raise InvalidRequest(
                "Files cannot be imported over the Handle protocol; use http:// or biaojie://.",
                "Handle 协议不支持文件导入；请使用 http:// 或 biaojie://。",
            )
        return self._transport


class _File:
    """`sent` is how much of it has been read for sending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sent = 0
        try:
            with path.open("rb"):
                self.size = path.stat().st_size
        except OSError as error:
            why = error.strerror or error
            raise InvalidFile(
                f"{path} cannot be read: {why}.", f"无法读取 {path}：{why}。"
            ) from None

    async def pieces(self) -> AsyncIterator[bytes]:
        self.sent = 0
        with await asyncio.to_thread(self.path.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece
                self.sent += len(piece)


def _named(options: ImportOptions | None, path: Path) -> ImportOptions:
    options = options or ImportOptions()
    return check_options(options if options.name else replace(options, name=path.name[-200:]))
