"""Backup, restore and move: a whole registry from one database into a file or another database.

What says it is done has been read back and compared: counts and Merkle roots of all tables, the
chain of the change log and its head.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgpack

from biaojie.errors import InvalidFile, StorageFull, TamperedLog

from ..deposit import Header, Reader, Run, Shape, Sum, Writer
from .loading import Chain, Loading, Origin
from .schema import UnfitDatabase
from .snapshot import Moment, shapes, snapshot

T = TypeVar("T")
Progress = Callable[[str, int], None]
"""Called with a table (or what else is being done) and the number of rows so far."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What was backed up, restored or moved. `resumed`: runs that an earlier attempt wrote.

    `digest` is the SHA-256 of the file; of a move, a name for the state that was moved.
    `behind`: entries that were appended to the source meanwhile and are not in it.
    """

    head: tuple[int, bytes]
    sums: dict[str, Sum]
    digest: bytes
    resumed: int = 0
    behind: int = 0

    @property
    def root(self) -> bytes:
        """One hash over the tables: their names, counts and roots."""
        each = [[name, *sum_] for name, sum_ in sorted(self.sums.items())]
        return hashlib.sha256(msgpack.packb(each)).digest()


def _no_progress(what: str, rows: int) -> None:
    pass


def _by_name(shapes_: Iterable[Shape], sums: Iterable[Sum]) -> dict[str, Sum]:
    return {shape.table: sum_ for shape, sum_ in zip(shapes_, sums, strict=True)}


async def backup(url: str, path: Path, progress: Progress = _no_progress) -> Moved:
    """Write the registry as it is now to a new file, which appears when it is whole.

    Nodes may write meanwhile. Raises InvalidFile if there is such a file, TamperedLog if the
    change log is not what was written, StorageFull.
    """
    draft = path.with_name(path.name + ".part")
    try:
        with _new_file(path, draft) as out:
            async with snapshot(url) as read:
                moment, tables = read.moment, shapes()
                made_ms = time.time_ns() // 1_000_000
                header = Header(moment.schema, moment.kind, made_ms, moment.head, tables)
                writer = Writer(out, header)
                chain = Chain(tables)
                async for run in read.runs(tables):
                    writer.add(run)
                    chain.feed(run)
                    progress(tables[run.table].table, writer.tally.rows)
            _check_chain(chain, moment)
            digest = writer.end()
            out.flush()
            os.fsync(out.fileno())
        written, sums = Reader(draft).read_trailer()
        if (written, sums) != (digest, writer.tally.sums()):
            raise InvalidFile(f"{path} cannot be read back.", f"{path} 写入后读回不一致。")
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageFull(
            f"{path} cannot be written: {error.strerror}.", f"无法写入 {path}：{error.strerror}。"
        ) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return Moved(moment.head, _by_name(tables, sums), digest)


def _new_file(path: Path, draft: Path) -> BinaryIO:
    if path.exists():
        raise InvalidFile(f"{path} exists; name a new file.", f"{path} 已存在；请指定新文件。")
    draft.unlink(missing_ok=True)
    # 0600: records may hold secret values, and keys are there by their digests.
    return os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def _check_chain(chain: Chain, moment: Moment) -> None:
    if faults := chain.end(moment.head):
        raise TamperedLog(
            f"The change log is not whole, so this was not kept: {'; '.join(faults[:3])}.",
            "变更日志不完整或已被改动，结果未保留。",
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def restore(
    path: Path,
    url: str,
    *,
    overwrite: bool = False,
    digest: bytes | None = None,
    progress: Progress = _no_progress,
) -> Moved:
    """Make the registry at `url` what it was when the backup was made.

    The file is checked first as a whole, against `digest` if that is known. The database may be
    of either kind, empty or new; what was stopped goes on. Raises InvalidFile on a file that is
    not whole, UnfitDatabase on a registry that is not empty, without `overwrite`.
    """
    reader = Reader(path)
    try:
        got, sums = reader.read_trailer(_counted(progress))
        header = reader.header()
    except OSError as error:
        raise InvalidFile(
            f"{path} cannot be read: {error.strerror}.", f"无法读取 {path}：{error.strerror}。"
        ) from error
    if digest is not None and digest != got:
        raise InvalidFile(
            f"{path} is not the backup with that digest; its own is {got.hex()}.",
            f"{path} 与给定摘要不符；其摘要为 {got.hex()}。",
        )
    origin = Origin(got.hex(), header.schema, header.head, header.shapes)
    loading = Loading(url)
    try:
        done = await loading.begin(origin, overwrite=overwrite)
        loaded = await loading.load(origin, _as_stream(reader.runs()), done, progress)
        if loaded != sums:
            raise InvalidFile(f"{path} changed meanwhile.", f"{path} 在恢复期间被改动。")
        await loading.finish(origin, sums)
    finally:
        await loading.close()
    return Moved(header.head, _by_name(header.shapes, sums), got, resumed=done)


def _counted(progress: Progress) -> Callable[[int], None]:
    read = 0

    def count(octets: int) -> None:
        nonlocal read
        read += octets
        progress("octets checked", read)

    return count


async def _as_stream(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


async def move(
    source: str, target: str, *, overwrite: bool = False, progress: Progress = _no_progress
) -> Moved:
    """Make the registry at `target` what the one at `source` is now; the source stays as it is.

    After a kill it goes on where it was stopped, if nothing was written to the source since;
    else it begins anew. What is written to the source while it runs is not moved, and counted
    in `behind`: stop the nodes first. Raises as `restore` does.
    """
    if source == target:
        raise UnfitDatabase("Source and target are the same.", "来源与目标相同。")
    async with snapshot(source) as read:
        moment, tables = read.moment, shapes()
        state = msgpack.packb([moment.schema, moment.head, tables])
        name = hashlib.sha256(state).hexdigest()
        origin = Origin(name, moment.schema, moment.head, tables)
        loading = Loading(target)
        try:
            done = await loading.begin(origin, overwrite=overwrite)
            chain = Chain(tables)
            sums = await loading.load(origin, _watched(read.runs(tables), chain), done, progress)
            _check_chain(chain, moment)
            await loading.finish(origin, sums)
        finally:
            await loading.close()
    async with snapshot(source) as now:
        behind = now.moment.head[0] - moment.head[0]
    digest = bytes.fromhex(name)
    return Moved(moment.head, _by_name(tables, sums), digest, resumed=done, behind=behind)


async def _watched(runs: AsyncIterator[Run], chain: Chain) -> AsyncIterator[Run]:
    async for run in runs:
        chain.feed(run)
        yield run
