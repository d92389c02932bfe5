"""Import jobs on disk: a folder each, under the data directory of a node.

`job.json` says what is asked and how it stands; it is replaced atomically. `upload` is the file
as it comes, `rows` what `import_prepare` makes of it, `state.json` and `seen.db` where the
import stands, `errors.*` and `report.ndjson` what people get. Whoever works on a job holds a
lock on its folder's `lock`, which the system takes back when a process dies: another worker, or
the next start, goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from ulid import ULID

from biaojie.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    MalformedAnswer,
    NotFound,
    OverCapacity,
    StorageFull,
    TooLarge,
    TooManyRequests,
)
from biaojie.wire.imports import ImportJob, ImportOptions, decode_job, encode_job

from .import_state import sync_directory

FREE_BYTES_MIN = 256 * 2**20
"""An upload ends before the disk, which the registry may share, is full to the last."""
_SCRATCH = (
    *("upload", "rows", "rows.sorted", "rows.sorted.part", "state.json"),
    *("seen.db", "seen.db-wal", "seen.db-shm", "progress"),
)


@dataclass(frozen=True, slots=True)
class JobLimits:
    """`jobs_max` and `tenant_jobs_max` bound those that have not ended. What has ended is kept
    for `kept_s`; an upload of which nothing came for `upload_idle_s` is forgotten."""

    bytes_max: int = 4 * 2**30
    jobs_max: int = 100
    tenant_jobs_max: int = 10
    kept_s: float = 7 * 86_400.0
    upload_idle_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Owner:
    """In whose name a job registers: an API key, and the tenant whose job it is."""

    key_id: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A job as `job.json` has it. `form` is that of the rows, once they are prepared."""

    job: ImportJob
    key_id: str
    idempotency_key: str = ""
    form: str = ""
    transcoded: bool = False
    restarted: int = 0


@dataclass(slots=True)
class Claim:
    """A job that this process works on, until `release`."""

    folder: Path
    kept: Kept
    _lock: IO[bytes] = field(repr=False)

    def save(self, kept: Kept) -> None:
        self.kept = kept
        _save(self.folder, kept)

    @property
    def cancelled(self) -> bool:
        return (self.folder / "cancel").exists()

    def tell(self, job: ImportJob) -> None:
        """How it goes, for those who ask; it need not survive."""
        draft = self.folder / "progress.new"
        draft.write_text(json.dumps(encode_job(job)))
        draft.replace(self.folder / "progress")

    def told(self) -> ImportJob | None:
        """What was told last, by whoever worked on it before."""
        with contextlib.suppress(OSError, ValueError, MalformedAnswer):
            return decode_job(json.loads((self.folder / "progress").read_bytes()))
        return None

    def end(self, job: ImportJob) -> None:
        """Note how it ended, and only then forget what it stood on."""
        self.save(replace(self.kept, job=job))
        clear(self.folder)

    def release(self) -> None:
        self._lock.close()


class Jobs:
    """All methods are quick but do touch the disk: call them beside the loop."""

    def __init__(
        self,
        folder: Path,
        limits: JobLimits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self.limits = limits
        self._clock = clock
        self._over: dict[str, tuple[str, str]] = {}
        """Of jobs that have ended, by whom and with which idempotency key they were begun: there
        may be thousands, and nothing of them changes any more."""

    # Uploading --------------------------------------------------------------------------

    def begin(
        self,
        options: ImportOptions,
        owner: Owner,
        idempotency_key: str = "",
        *,
        go_on: bool = False,
    ) -> tuple[ImportJob, bool]:
        """A job that waits for its file, and False; or the one that this key of the same caller
        has begun, and True. One whose file is not whole yet is taken up again if it is to
        `go_on`, else it is forgotten: whoever sent it begins anew. Raises OverCapacity,
        TooManyRequests, IdempotencyMismatch, StorageFull."""
        waiting = owned = 0
        for kept in self._under_way():
            if idempotency_key and _begun_by(kept) == (owner.key_id, idempotency_key):
                if kept.job.options != options:
                    raise IdempotencyMismatch()
                if go_on or kept.job.state != "uploading":
                    return self.find(kept.job.id), True
                self.discard(kept.job.id)
                continue
            waiting += 1
            owned += kept.job.tenant == owner.tenant
        known = self._ended(owner, idempotency_key) if idempotency_key else None
        if known is not None:
            if known.options != options:
                raise IdempotencyMismatch()
            return known, True
        if owned >= self.limits.tenant_jobs_max:
            raise TooManyRequests(
                f"{owned} imports of this tenant have not ended yet.",
                f"该租户有 {owned} 个导入任务尚未结束。",
                retry_after_s=30,
            )
        if waiting >= self.limits.jobs_max:
            raise OverCapacity(retry_after_s=30)
        now = int(self._clock())
        job = ImportJob(str(ULID()), "uploading", options, owner.tenant, created=now)
        folder = self._folder / job.id
        with _written():
            folder.mkdir(parents=True, mode=0o700)
            (folder / "upload").touch(0o600)
            _save(folder, Kept(job, owner.key_id, idempotency_key))
            sync_directory(self._folder)
        return job, False

    def append(self, id_: str, data: bytes, at: int | None = None) -> int:
        """Add to the file of a job that is being uploaded; `at` says where, so that a piece sent
        twice is there once. Returns its length. Raises NotFound, TooLarge, StorageFull."""
        folder, kept = self._read(id_)
        if kept.job.state != "uploading":
            raise NotFound("This upload has ended.", "该上传已结束。")
        upload = folder / "upload"
        length = upload.stat().st_size
        if at is not None and at != length:
            if at + len(data) <= length:
                return length
            raise InvalidRequest(
                f"The next octet is {length}, not {at}.",
                f"下一字节应为 {length}，而不是 {at}。",
                errors=[{"path": "at", "message": f"must be {length}"}],
            )
        if length + len(data) > self.limits.bytes_max:
            raise TooLarge(
                f"The file is larger than {self.limits.bytes_max} bytes.",
                f"文件超过 {self.limits.bytes_max} 字节。",
                bytes_max=self.limits.bytes_max,
            )
        with _written():
            if shutil.disk_usage(folder).free < FREE_BYTES_MIN + len(data):
                raise OSError(errno.ENOSPC, "reserve")
            with upload.open("ab") as file:
                file.write(data)
        return length + len(data)

    def finish(self, id_: str) -> ImportJob:
        """The file is whole and on disk: the job may be worked on. Again: nothing more."""
        folder, kept = self._read(id_)
        if kept.job.state != "uploading":
            return self.find(id_)
        with _written():
            with (folder / "upload").open("rb") as file:
                os.fsync(file.fileno())
                length = os.fstat(file.fileno()).st_size
            job = replace(kept.job, state="queued", bytes_received=length)
            _save(folder, replace(kept, job=job))
        return job

    # Looking ----------------------------------------------------------------------------

    def find(self, id_: str) -> ImportJob:
        """As it stands now; raises NotFound."""
        folder, kept = self._read(id_)
        if kept.job.state == "uploading":
            with contextlib.suppress(OSError):
                return replace(kept.job, bytes_received=(folder / "upload").stat().st_size)
        if not kept.job.over:
            with contextlib.suppress(OSError, ValueError, MalformedAnswer):
                return decode_job(json.loads((folder / "progress").read_bytes()))
        return kept.job

    def page(self, tenant: str | None, after: str, limit: int) -> list[ImportJob]:
        """The latest first; those of a tenant, or all."""
        found = []
        for name in sorted(self._names(), reverse=True):
            if after and name >= after:
                continue
            with contextlib.suppress(NotFound):
                job = self.find(name)
                if tenant is None or job.tenant == tenant:
                    found.append(job)
            if len(found) >= limit:
                break
        return found

    def error_file(self, id_: str) -> Path | None:
        folder, kept = self._read(id_)
        path = folder / f"errors.{kept.job.errors}"
        return path if kept.job.errors and path.exists() else None

    def report(self, id_: str, at: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
        """Faults from that octet of the report on, and the octet to go on from."""
        folder, _ = self._read(id_)
        try:
            file = (folder / "report.ndjson").open("rb")
        except FileNotFoundError:
            return [], None
        with file:
            file.seek(at)
            items: list[dict[str, Any]] = []
            while len(items) < limit and (line := file.readline(2**20)).endswith(b"\n"):
                try:
                    items.append(json.loads(line))
                except ValueError:
                    raise InvalidRequest(
                        "after: not a cursor.", "after：不是有效游标。", errors=[]
                    ) from None
            onward = file.tell()
            return items, onward if file.read(1) else None

    # Ending -----------------------------------------------------------------------------

    def cancel(self, id_: str) -> ImportJob:
        """Stop a job; what is registered stays. One that has ended is removed. Raises NotFound."""
        folder, kept = self._read(id_)
        if kept.job.over:
            shutil.rmtree(folder, ignore_errors=True)
            return kept.job
        with _written():
            (folder / "cancel").touch()
        claim = self._claim(folder)
        if claim is None:
            return self.find(id_)  # whoever works on it looks before each batch
        try:
            if not claim.kept.job.over:
                ended = replace(self.find(id_), state="cancelled", ended=int(self._clock()))
                claim.end(ended)
            return claim.kept.job
        finally:
            claim.release()

    def discard(self, id_: str) -> None:
        """Of an upload that did not get through nothing stays."""
        shutil.rmtree(self._folder / id_, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what has ended long ago, and uploads that nobody goes on with."""
        now = self._clock()
        for folder, kept in self._all():
            old = kept.job.over and now - kept.job.ended > self.limits.kept_s
            if kept.job.state == "uploading":
                with contextlib.suppress(OSError):
                    old = now - (folder / "upload").stat().st_mtime > self.limits.upload_idle_s
            if old:
                shutil.rmtree(folder, ignore_errors=True)
            elif kept.job.over and (folder / "rows").exists():
                clear(folder)  # its end was noted, and then the process ended too

    # Working ----------------------------------------------------------------------------

    def claim(self, passing: Callable[[Kept], bool] = lambda kept: False) -> Claim | None:
        """The oldest job that nobody works on and that is not `passing`."""
        for kept in self._under_way():
            if kept.job.state not in ("queued", "running") or passing(kept):
                continue
            claim = self._claim(self._folder / kept.job.id)
            if claim is None:
                continue
            if claim.kept.job.state in ("queued", "running"):
                return claim
            claim.release()
        return None

    def _claim(self, folder: Path) -> Claim | None:
        try:
            lock = (folder / "lock").open("wb")
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Claim(folder, self._read(folder.name)[1], lock)
        except (OSError, NotFound):
            lock.close()
            return None

    def _names(self) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self._folder) if _is_id(entry.name)]
        except FileNotFoundError:
            return []

    def _under_way(self) -> Iterator[Kept]:
        """Those that have not ended, the oldest first."""
        names = self._names()
        for gone in self._over.keys() - set(names):
            self._over.pop(gone, None)
        for name in sorted(names):
            if name in self._over:
                continue
            with contextlib.suppress(NotFound):
                kept = self._read(name)[1]
                if kept.job.over:
                    self._over[name] = _begun_by(kept)
                else:
                    yield kept

    def _ended(self, owner: Owner, idempotency_key: str) -> ImportJob | None:
        """The one that has ended and was begun so."""
        for name, begun_by in tuple(self._over.items()):
            if begun_by == (owner.key_id, idempotency_key):
                with contextlib.suppress(NotFound):
                    return self._read(name)[1].job
        return None

    def _all(self) -> Iterator[tuple[Path, Kept]]:
        """The oldest first."""
        for name in sorted(self._names()):
            with contextlib.suppress(NotFound):
                yield self._read(name)

    def _read(self, id_: str) -> tuple[Path, Kept]:
        folder = self._folder / id_
        if _is_id(id_):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, MalformedAnswer):
                document = json.loads((folder / "job.json").read_bytes())
                job = decode_job(document.pop("job"))
                return folder, Kept(job, **document)
        raise NotFound("There is no such import.", "没有该导入任务。")


def _begun_by(kept: Kept) -> tuple[str, str]:
    return kept.key_id, kept.idempotency_key


def clear(folder: Path) -> None:
    for name in _SCRATCH:
        (folder / name).unlink(missing_ok=True)


def _is_id(text: str) -> bool:
    return len(text) == 26 and text.isascii() and text.isalnum()


def _save(folder: Path, kept: Kept) -> None:
    document = {
        "job": encode_job(kept.job),
        "key_id": kept.key_id,
        "idempotency_key": kept.idempotency_key,
        "form": kept.form,
        "transcoded": kept.transcoded,
        "restarted": kept.restarted,
    }
    draft = folder / f"job.json.{os.getpid()}"
    with draft.open("w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / "job.json")
    sync_directory(folder)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound("There is no such import.", "没有该导入任务。") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                "The disk has no room for this file.", "磁盘空间不足，无法保存该文件。"
            ) from None
        raise


ErrorForm = Literal["csv", "ndjson"]


def error_form(form: str) -> ErrorForm:
    """In what form the bad rows of a file are given back."""
    return "csv" if form in ("csv", "xlsx") else "ndjson"
