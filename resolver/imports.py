"""Imports at a node: who may start, see and stop one, and the threads that work on them.

Jobs lie in the data directory (`registry.import_jobs`); each worker takes one at a time, so
that one goes on when the worker that had it dies. `hand_over` and `hand_over_chunk` are the two
places where good rows go to the registry, as rows and as blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from biaojie.account import Role
from biaojie.change import RowResult
from biaojie.errors import (
    BiaojieError,
    Forbidden,
    NotFound,
    OverCapacity,
    Unauthenticated,
)
from biaojie.wire.imports import ImportJob, ImportOptions
from registry.admission import Caller, Right, allows, authorize
from registry.blocks import Bulk
from registry.import_jobs import Claim, JobLimits, Jobs, Kept, Owner
from registry.import_rows import Row
from registry.import_work import Stopped, Work, work
from registry.operations import make_create
from registry.registrar import Idempotency
from registry.store import Store

from .callers import KEY_TRUSTED_S, caller_of
from .service import Service

POLL_S = 0.5
SWEEP_S = 60.0
PIECE_BYTES = 1_048_576
SWITCH_S = 0.000_5
"""How long the thread of an import may keep the interpreter while requests wait for it."""
log = structlog.get_logger("biaojie.imports")


@dataclass(frozen=True, slots=True)
class ImportLimits:
    """Each from the setting of the same name; see `docs/settings.md`."""

    import_bytes_max: int = 4 * 2**30
    import_unpacked_bytes_max: int = 16 * 2**30
    import_workbook_memory_bytes: int = 512 * 2**20
    import_sort_memory_bytes: int = 64 * 2**20
    import_jobs_max: int = 100
    import_tenant_jobs_max: int = 10
    import_uploads_max: int = 8
    import_kept_s: float = 7 * 86_400.0
    import_upload_idle_s: float = 900.0


async def hand_over(
    service: Service, caller: Caller, rows: Sequence[Row], key: str, *, dry_run: bool
) -> list[RowResult]:
    """Register a batch of good rows, those that can be; one result each, in order. With the same
    `key` it happens once."""
    outcome = await service.write(
        caller,
        [make_create(row.identifier, row.values, row.status, row.template) for row in rows],
        mode="valid-rows",
        dry_run=dry_run,
        # The key names the rows: which they are follows from the job and where it stands.
        idempotency=Idempotency(key, bytes(32)) if key else None,
    )
    results = []
    for number, (row, result) in enumerate(zip(rows, outcome.results, strict=True), 1):
        name = str(row.identifier)
        if isinstance(result, BiaojieError):
            results.append(RowResult(number, name, None, result.code, *result.detail))
        else:
            results.append(RowResult(number, name, result))
    return results


async def hand_over_chunk(service: Service, caller: Caller, bulk: Bulk, key: str) -> Sequence[str]:
    """Register a chunk, whose records were checked; the names that were refused."""
    outcome = await service.load(caller, bulk, Idempotency(key, bytes(32)))
    return outcome.refused


class Imports:
    """`start()` before jobs are worked on, `stop()` leaves them where they are."""

    def __init__(
        self,
        service: Service,
        store: Store,
        data_dir: Path,
        limits: ImportLimits,
        *,
        case_sensitive: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._store = store
        self._limits = limits
        self._case_sensitive = case_sensitive
        self._monotonic = monotonic
        self.jobs = Jobs(
            data_dir / "imports",
            JobLimits(
                limits.import_bytes_max,
                limits.import_jobs_max,
                limits.import_tenant_jobs_max,
                limits.import_kept_s,
                limits.import_upload_idle_s,
            ),
        )
        self._uploads = 0
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopping = threading.Event()
        self.ended = {"done": 0, "failed": 0, "cancelled": 0}
        self.running = 0

    def readings(self) -> dict[str, float]:
        return {"imports_running": self.running, "import_uploads": self._uploads}

    def counts(self) -> dict[str, float]:
        return {f"imports_{state}": number for state, number in self.ended.items()}

    # What callers may do -----------------------------------------------------------------

    async def begin(
        self,
        caller: Caller,
        options: ImportOptions,
        idempotency_key: str = "",
        *,
        go_on: bool = False,
    ) -> tuple[ImportJob, bool]:
        """See `Jobs.begin`. Needs a key that may write."""
        owner = Owner(caller.key_id, caller.tenant)
        if caller.handle is not None:
            raise Forbidden("Imports take an API key.", "导入需使用 API 密钥。")
        authorize(caller, Right.WRITE, caller.tenant)
        return await asyncio.to_thread(
            self.jobs.begin, options, owner, idempotency_key, go_on=go_on
        )

    async def append(self, caller: Caller, id_: str, data: bytes, at: int | None) -> int:
        await self._mine(caller, id_, Right.WRITE)
        return await asyncio.to_thread(self.jobs.append, id_, data, at)

    async def finish(self, caller: Caller, id_: str) -> ImportJob:
        await self._mine(caller, id_, Right.WRITE)
        job = await asyncio.to_thread(self.jobs.finish, id_)
        self._wake.set()
        return job

    async def upload(
        self,
        caller: Caller,
        options: ImportOptions,
        parts: AsyncIterator[bytes],
        idempotency_key: str = "",
    ) -> tuple[ImportJob, bool]:
        """A whole file in one go. Where it breaks off, nothing of it stays."""
        if self._uploads >= self._limits.import_uploads_max:
            raise OverCapacity(
                f"{self._uploads} files are being uploaded already.",
                f"已有 {self._uploads} 个文件正在上传。",
                retry_after_s=5,
            )
        self._uploads += 1
        try:
            job, known = await self.begin(caller, options, idempotency_key)
            if known:
                return job, True
            try:
                await self._receive(job.id, parts)
                return await self.finish(caller, job.id), False
            except BaseException:
                await asyncio.shield(asyncio.to_thread(self.jobs.discard, job.id))
                raise
        finally:
            self._uploads -= 1

    async def _receive(self, id_: str, parts: AsyncIterator[bytes]) -> None:
        piece = bytearray()
        async for part in parts:
            piece += part
            if len(piece) >= PIECE_BYTES:
                await asyncio.to_thread(self.jobs.append, id_, bytes(piece))
                piece.clear()
        await asyncio.to_thread(self.jobs.append, id_, bytes(piece))

    async def find(self, caller: Caller, id_: str) -> ImportJob:
        return await self._mine(caller, id_, Right.READ_PRIVATE)

    async def list_jobs(self, caller: Caller, after: str, limit: int) -> list[ImportJob]:
        authorize(caller, Right.READ_PRIVATE, caller.tenant)
        tenant = None if caller.role is Role.ADMIN else caller.tenant
        return await asyncio.to_thread(self.jobs.page, tenant, after, limit)

    async def cancel(self, caller: Caller, id_: str) -> ImportJob:
        await self._mine(caller, id_, Right.WRITE)
        return await asyncio.to_thread(self.jobs.cancel, id_)

    async def report(
        self, caller: Caller, id_: str, at: int, limit: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        await self._mine(caller, id_, Right.READ_PRIVATE)
        return await asyncio.to_thread(self.jobs.report, id_, at, limit)

    async def error_file(self, caller: Caller, id_: str) -> Path:
        await self._mine(caller, id_, Right.READ_PRIVATE)
        path = await asyncio.to_thread(self.jobs.error_file, id_)
        if path is None:
            raise NotFound("This import has no bad rows (yet).", "该导入任务（尚）无错误行。")
        return path

    async def _mine(self, caller: Caller, id_: str, right: Right) -> ImportJob:
        """The job, if it is of the caller's tenant: of others nobody learns that they exist."""
        if caller.is_public:
            raise Unauthenticated()
        job = await asyncio.to_thread(self.jobs.find, id_)
        if not allows(caller, Right.READ_PRIVATE, job.tenant):
            raise NotFound("There is no such import.", "没有该导入任务。")
        authorize(caller, right, job.tenant)
        return job

    # Working ----------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="imports")

    async def stop(self) -> None:
        """A batch that is on its way is waited for."""
        self._stopping.set()
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        swept = -SWEEP_S
        last = ""
        with ThreadPoolExecutor(1, "import") as thread:
            while not self._stopping.is_set():
                if self._monotonic() - swept >= SWEEP_S:
                    swept = self._monotonic()
                    await self._beside(self.jobs.sweep)
                claim = await self._beside(self._next, last)
                if claim is not None:
                    last = claim.kept.job.tenant
                    await self._work(claim, thread)
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_S)
                self._wake.clear()

    def _next(self, last: str) -> Claim | None:
        """Tenants take turns: after one's job comes another's, if there is one."""

        def passing(kept: Kept) -> bool:
            return kept.job.tenant == last

        return self.jobs.claim(passing) or self.jobs.claim()

    async def _beside(self, look: Callable[..., Any], *arguments: Any) -> Any:
        """The disk may fail us, which is no reason to stop looking."""
        try:
            return await asyncio.to_thread(look, *arguments)
        except OSError as error:
            log.error("imports cannot be looked at", reason=str(error))
        except Exception:
            log.exception("imports cannot be looked at")
        return None

    async def _work(self, claim: Claim, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        id_, began = claim.kept.job.id, self._monotonic()
        runs = _Runs(self._service, self._store, claim.kept, self._monotonic)

        async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
            handed = asyncio.run_coroutine_threadsafe(runs.submit(rows, key, dry_run), loop)
            return await asyncio.wrap_future(handed)

        async def load(bulk: Bulk, key: str) -> Sequence[str]:
            handed = asyncio.run_coroutine_threadsafe(runs.load(bulk, key), loop)
            return await asyncio.wrap_future(handed)

        todo = Work(
            submit,
            self._stopping.is_set,
            self._case_sensitive,
            self._limits.import_unpacked_bytes_max,
            self._limits.import_workbook_memory_bytes,
            load=load,
            sort_memory_bytes=self._limits.import_sort_memory_bytes,
        )
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_S, usual_s))
        self.running += 1
        try:
            job = await loop.run_in_executor(thread, work, claim, todo)
        except Stopped:
            log.info("import goes on later", import_id=id_)
        except Exception:
            log.exception("import failed", import_id=id_)
            self.ended["failed"] += 1
            await asyncio.sleep(POLL_S)  # its end may not have been noted: not again at once
        else:
            self.ended[job.state] += 1
            log.info(
                "import ended",
                import_id=id_,
                state=job.state,
                rows=job.rows,
                written=job.written,
                failed=job.failed,
                code=job.fault.code if job.fault else "",
                seconds=round(self._monotonic() - began, 3),
            )
        finally:
            self.running -= 1
            sys.setswitchinterval(usual_s)
            claim.release()


class _Runs:
    """In whose name a job registers. It may do what its key may, for as long as that is valid."""

    def __init__(
        self, service: Service, store: Store, kept: Kept, monotonic: Callable[[], float]
    ) -> None:
        self._service = service
        self._store = store
        self._key_id = kept.key_id
        self._monotonic = monotonic
        self._caller: Caller | None = None
        self._until = 0.0

    async def submit(self, rows: Sequence[Row], key: str, dry_run: bool) -> Sequence[RowResult]:
        caller = await self._admitted()
        return await hand_over(self._service, caller, rows, key, dry_run=dry_run)

    async def load(self, bulk: Bulk, key: str) -> Sequence[str]:
        return await hand_over_chunk(self._service, await self._admitted(), bulk, key)

    async def _admitted(self) -> Caller:
        caller = await self._authenticate()
        if self._service.charged(caller):
            # It waits for its turn like any request; the rows are charged with the batch.
            self._service.admit(caller)
        return caller

    async def _authenticate(self) -> Caller:
        now = self._monotonic()
        if self._caller is None or now >= self._until:
            key = (await self._store.find_keys_by_id([self._key_id])).get(self._key_id)
            if key is None or key.revoked:
                raise Unauthenticated(
                    "The key that started this import has been revoked.",
                    "启动该导入任务的密钥已被吊销。",
                )
            self._caller, self._until = caller_of(key), now + KEY_TRUSTED_S
        return self._caller
