"""The database beneath a load: its octets on disk, its processes, and making its pages cold."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..processes import describe, family
from ..words import BenchFault

OCTETS_EACH: Final = 60
"""The mark: octets on disk for an identifier. So much must be free before a load."""
_SPARE_OCTETS: Final = 2**30
_TIMEOUT_S: Final = 300.0


@dataclass(slots=True)
class Place:
    """Where a registry lies. `folder` is that of its files where they can be reached from here,
    `pids` are the processes of a server on this machine."""

    url: str
    folder: Path | None
    file: Path | None = None
    pids: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return "PostgreSQL" if self.file is None else "SQLite"

    def machine(self) -> dict[str, Any]:
        """What a result says of where it was measured; not how to get into the database."""
        told = describe()
        if self.file is None:
            told["command"] = told["command"].replace(self.url, "postgresql://…")
        return told

    def check_free(self, more: int) -> None:
        """Raise BenchFault unless there is room for `more` identifiers."""
        if self.folder is None:
            return
        free = shutil.disk_usage(self.folder).free
        wanted = more * OCTETS_EACH + _SPARE_OCTETS
        if free < wanted:
            raise BenchFault(
                f"{more:,} identifiers may take {wanted / 1e9:.1f} GB; {self.folder} has"
                f" {free / 1e9:.1f} GB free.",
                f"{more:,} 个标识约需 {wanted / 1e9:.1f} GB；{self.folder} 仅余"
                f" {free / 1e9:.1f} GB。",
            )

    async def octets(self) -> int:
        """All that the registry takes on disk: tables, indexes, logs not yet folded in."""
        if self.file is not None:
            return sum(each.stat().st_size for each in self._files())
        return int(await self._ask("SELECT pg_database_size(current_database())"))

    async def make_cold(self) -> str:
        """Take the database's files out of the page cache; says how, or why not."""
        if self.file is not None:
            connection = sqlite3.connect(self.file, timeout=_TIMEOUT_S)
            try:
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                connection.close()
            dropped = self._drop()
            wal = "; the WAL could not be folded in" if busy else ""
            return (
                f"WAL folded in, posix_fadvise DONTNEED on {dropped} files; SQLite's own cache of"
                f" 2 MB for each connection was kept{wal}"
            )
        if self.folder is None:
            return "not made cold: the server's files cannot be reached from here"
        await self._ask("CHECKPOINT")
        return (
            f"CHECKPOINT, posix_fadvise DONTNEED on the server's {self._drop()} files; its shared"
            " buffers were kept"
        )

    def _drop(self) -> int:
        dropped = 0
        for file in self._files():
            at = os.open(file, os.O_RDONLY)
            try:
                os.fdatasync(at)  # pages not yet written would stay
                os.posix_fadvise(at, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(at)
            dropped += 1
        return dropped

    def _files(self) -> Iterator[Path]:
        if self.file is not None:
            for end in ("", "-wal", "-shm"):
                if (file := self.file.with_name(self.file.name + end)).exists():
                    yield file
        elif self.folder is not None:
            yield from (each for each in (self.folder / "base").rglob("*") if each.is_file())

    async def _ask(self, statement: str) -> Any:
        import asyncpg

        connection = await asyncpg.connect(
            self.url.replace("postgresql+asyncpg://", "postgresql://"),
            timeout=10.0,
            command_timeout=_TIMEOUT_S,
        )
        try:
            if statement == "CHECKPOINT":
                return await connection.execute(statement)
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    async def find_server(self) -> None:
        """Learn where a PostgreSQL server keeps its files, if that is on this machine."""
        if self.file is not None:
            return
        try:
            folder = Path(await self._ask("SHOW data_directory"))
            pid = int((folder / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except Exception:  # another machine, or not ours to look at: then it is not measured
            return
        self.folder, self.pids = folder, (pid,)

    def all_pids(self) -> list[int]:
        """This process and those it started, and the server's."""
        return [each for pid in (os.getpid(), *self.pids) for each in family(pid)]


def place_of(database: str, folder: Path) -> Place:
    """`database` is "sqlite" for a file in `folder`, or a PostgreSQL URL."""
    if database == "sqlite":
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "registry.db").absolute()
        return Place(f"sqlite:///{file}", folder, file)
    if database.startswith("postgresql"):
        return Place(database, None)
    raise BenchFault(
        "A database is `sqlite` or a postgresql:// URL.",
        "数据库应为 sqlite 或 postgresql:// 地址。",
    )
