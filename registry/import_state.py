"""What an import leaves on disk: where it stands, the error file, and nothing half-written.

The state is replaced atomically after each acknowledged chunk; the error file is cut back to
the length that the state knows before an import goes on, so no line is ever doubled.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

from biaojie.errors import InvalidFile
from biaojie.identifier import Identifier

from .import_csv import HEAD_BYTES
from .import_rows import FAULT_COLUMNS, BadRow

if sys.platform != "win32":
    import fcntl

FORMAT = 1
_TEXT_CHARS_MAX = 32_000
"""Spreadsheets hold no more in a cell."""


@dataclass(slots=True)
class ImportState:
    """Where an import stands after its last acknowledged chunk.

    `source` and `plan` fingerprint the file and everything that decides what its rows become;
    `chunk_rows` stays what it was at the start, so that a chunk that was committed but not
    noted is sent again exactly as it was.
    """

    job: str
    source: dict[str, Any]
    plan: str
    chunk_rows: int
    error_file: str
    offset: int = 0
    line: int = 0
    chunk: int = 0
    rows: int = 0
    written: int = 0
    failed: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    error_bytes: int = 0
    format: int = FORMAT

    def save(self, path: Path) -> None:
        draft = path.with_name(path.name + ".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_directory(path.parent)

    @classmethod
    def load(cls, path: Path) -> ImportState | None:
        """None if there is no such file; InvalidFile if it cannot be understood."""
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError("format")
            return cls(**document)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise InvalidFile(
                f"The state file {path} cannot be understood; begin again with --restart.",
                f"无法读取状态文件 {path}；请用 --restart 重新开始。",
            ) from None


def new_job() -> str:
    return secrets.token_hex(12)


def fingerprint(file: BinaryIO) -> dict[str, Any]:
    """Size, time of change and SHA-256 of the head; leaves the file where it was."""
    at = file.tell()
    file.seek(0)
    digest = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    file.seek(at)
    facts = os.fstat(file.fileno())
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "head": digest}


def lock(file: BinaryIO) -> None:
    """Hold the file for one import at a time, until it is closed."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidFile(
                "Another import of this file is running.", "该文件正在被另一个导入任务使用。"
            ) from None
        except OSError:
            return  # a file system without locks


def sync_directory(path: Path) -> None:
    if sys.platform != "win32":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def free_path(path: Path) -> Path:
    """`path`, or the first of `name-2.csv`, `name-3.csv` … that does not exist: an error file
    that someone may be mending is never overwritten."""
    candidate = path
    for number in range(2, 1_000):
        if not candidate.exists():
            return candidate
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    raise InvalidFile(
        f"There are too many files named like {path.name}; remove old ones.",
        f"名称类似 {path.name} 的文件过多，请删除旧文件。",
    )


class ErrorFile:
    """Bad rows as CSV: the user's columns and text, then line, column, code, reason, and the
    text of rows that could not be split. Made with the first bad row, not before.

    Cells that are not UTF-8 are written back byte for byte.
    """

    def __init__(
        self, path: Path, titles: Sequence[str], *, bom: bool = False, kept_bytes: int = 0
    ) -> None:
        self.path = path
        self._titles = titles
        names = [title.strip() for title in titles]
        self._kept = [at for at, name in enumerate(names) if name not in FAULT_COLUMNS]
        self._text_at = names.index("_text") if "_text" in names else None
        self._bom = bom
        self._file: IO[bytes] | None = None
        self._kept_bytes = kept_bytes
        if kept_bytes:
            self._open("r+b")

    def __enter__(self) -> ErrorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self, mode: str) -> IO[bytes]:
        try:
            self._file = file = open(self.path, mode)  # noqa: SIM115 — closed by __exit__
            short = os.fstat(file.fileno()).st_size < self._kept_bytes
        except FileNotFoundError:
            short = True
        if short:
            raise InvalidFile(
                f"The error file {self.path} is no longer what this import wrote; put it back, or"
                " begin again with --restart.",
                f"错误文件 {self.path} 已被改动；请恢复它，或用 --restart 重新开始。",
            ) from None
        file.truncate(self._kept_bytes)
        file.seek(self._kept_bytes)
        return file

    def add(self, rows: Sequence[BadRow]) -> int:
        """Append durably; returns the length of the file."""
        if not rows:
            return self._kept_bytes
        text = io.StringIO()
        writer = csv.writer(text)
        fresh = not self._kept_bytes
        if fresh:
            text.write("\ufeff" if self._bom else "")
            writer.writerow([*(self._titles[at] for at in self._kept), *FAULT_COLUMNS])
        for row in rows:
            writer.writerow(self._cells(row))
        file = self._file or self._open("w+b")
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
        if fresh:
            sync_directory(self.path.parent)
        self._kept_bytes = file.tell()
        return self._kept_bytes

    def _cells(self, row: BadRow) -> list[str]:
        text = row.text
        if len(text) > _TEXT_CHARS_MAX:
            text = text[:_TEXT_CHARS_MAX] + "…"
        if row.cells and not text and self._text_at is not None:
            text = row.cells[self._text_at]
        cells = [row.cells[at] if row.cells else "" for at in self._kept]
        return [
            *cells,
            str(row.line),
            "; ".join(dict.fromkeys(fault.column for fault in row.faults if fault.column)),
            "; ".join(dict.fromkeys(fault.code for fault in row.faults)),
            " ".join(
                f"{fault.column}: {fault.en} {fault.zh}"
                if fault.column
                else f"{fault.en} {fault.zh}"
                for fault in row.faults
            ),
            text,
        ]


class SeenIdentifiers:
    """On which line an identifier came first. Lives in a temporary file, not in memory, so that
    a dry run over any number of rows finds what the file says twice."""

    def __init__(self, *, case_sensitive: bool) -> None:
        self._case_sensitive = case_sensitive
        self._scratch = sqlite3.connect("", isolation_level=None)
        self._scratch.execute("PRAGMA journal_mode=OFF")
        self._scratch.execute("PRAGMA cache_size=-16000")
        self._scratch.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, line INT) WITHOUT ROWID")
        self._scratch.execute("BEGIN")

    def add(self, identifier: Identifier, line: int) -> int:
        """The line that has the same identifier already, or 0."""
        key = identifier.key(case_sensitive=self._case_sensitive)
        digest = hashlib.blake2b(b"/".join((key.prefix.encode(), key.suffix)), digest_size=16)
        found = self._scratch.execute(
            "INSERT INTO seen VALUES (?1, ?2) ON CONFLICT DO UPDATE SET line = line RETURNING line",
            (digest.digest(), line),
        ).fetchone()
        earlier: int = found[0]
        return earlier if earlier != line else 0

    def close(self) -> None:
        self._scratch.close()
