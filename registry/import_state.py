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
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import orjson

from biaojie.errors import InvalidFile
from biaojie.identifier import Identifier

from .import_csv import HEAD_BYTES
from .import_report import fault_document, fix_of
from .import_rows import FAULT_COLUMNS, BadRow

if sys.platform != "win32":
    import fcntl

FORMAT = 1
_RUN_NAMES = 256
"""Names that one row of a run has."""
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
    report_bytes: int = 0
    by_rows: list[str] = field(default_factory=list)
    """Prefixes whose rows of the chunk that is next go in as rows and not as blocks."""
    sorted: bool = False
    """Whether `offset` is a place in the rows as they were put in order, on disk."""
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


class GrowingFile:
    """A file that is made with its first rows and appended to durably. What is beyond
    `kept_bytes`, all that the state knows of, is cut off before it grows again."""

    def __init__(self, path: Path, *, kept_bytes: int = 0) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._kept_bytes = kept_bytes
        if kept_bytes:
            self._open("r+b")

    def close(self) -> None:
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
        fresh = not self._kept_bytes
        file = self._file or self._open("w+b")
        file.write(self._encode(rows, fresh=fresh))
        file.flush()
        os.fsync(file.fileno())
        if fresh:
            sync_directory(self.path.parent)
        self._kept_bytes = file.tell()
        return self._kept_bytes

    def _encode(self, rows: Sequence[BadRow], *, fresh: bool) -> bytes:
        raise NotImplementedError


class ErrorFile(GrowingFile):
    """Bad rows as CSV: the user's columns and text, then line, column, code, reason with what to
    do, and the text of rows that could not be split. Cells that are not UTF-8 are written back
    byte for byte."""

    def __init__(
        self, path: Path, titles: Sequence[str], *, bom: bool = False, kept_bytes: int = 0
    ) -> None:
        super().__init__(path, kept_bytes=kept_bytes)
        self._titles = titles
        names = [title.strip() for title in titles]
        self._kept = [at for at, name in enumerate(names) if name not in FAULT_COLUMNS]
        self._text_at = names.index("_text") if "_text" in names else None
        self._bom = bom

    def _encode(self, rows: Sequence[BadRow], *, fresh: bool) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text)
        if fresh:
            text.write("\ufeff" if self._bom else "")
            writer.writerow([*(self._titles[at] for at in self._kept), *FAULT_COLUMNS])
        for row in rows:
            writer.writerow(self._cells(row))
        return text.getvalue().encode("utf-8", "surrogateescape")

    def _cells(self, row: BadRow) -> list[str]:
        text = _cut(row.text)
        if row.cells and not text and self._text_at is not None:
            text = row.cells[self._text_at]
        cells = [row.cells[at] if row.cells else "" for at in self._kept]
        return [*cells, *_told(row).values(), text]


class DocumentErrorFile(GrowingFile):
    """Bad rows as NDJSON: the user's fields, then `_line`, `_column`, `_code`, `_reason`, and
    `_text` of rows that could not be read."""

    def __init__(self, path: Path, titles: Sequence[str], *, kept_bytes: int = 0) -> None:
        super().__init__(path, kept_bytes=kept_bytes)
        self._titles = titles

    def _encode(self, rows: Sequence[BadRow], *, fresh: bool) -> bytes:
        return b"".join(self._line(row) for row in rows)

    def _line(self, row: BadRow) -> bytes:
        fields: dict[str, Any] = dict(zip(self._titles, row.cells, strict=False))
        if row.document is not None:
            fields = {
                name: value for name, value in row.document.items() if name not in FAULT_COLUMNS
            }
        fields |= _told(row)
        if row.text:
            fields["_text"] = _cut(row.text)
        try:
            return orjson.dumps(fields, default=_readable) + b"\n"
        except TypeError:  # a lone surrogate, or a number beyond 64 bits
            return json.dumps(fields, default=_readable).encode() + b"\n"


class ReportFile(GrowingFile):
    """Every fault of every bad row, a JSON object a line: line, column, code, reason and fix, in
    English and Chinese."""

    def _encode(self, rows: Sequence[BadRow], *, fresh: bool) -> bytes:
        return b"".join(
            json.dumps(fault_document(fault), ensure_ascii=True).encode() + b"\n"
            for row in rows
            for fault in row.faults
        )


def _readable(octets: object) -> object:
    """What msgpack has and JSON has not."""
    if isinstance(octets, bytes):
        try:
            return octets.decode()
        except UnicodeError:
            return {"format": "hex", "value": octets.hex()}
    return repr(octets)


def _cut(text: str) -> str:
    """A spreadsheet holds no more in a cell."""
    return text if len(text) <= _TEXT_CHARS_MAX else text[:_TEXT_CHARS_MAX] + "…"


def _told(row: BadRow) -> dict[str, Any]:
    reasons = []
    for fault in row.faults:
        fix = fix_of(fault)
        said = f"{fault.en} {fix.en} {fault.zh}{fix.zh}"
        reasons.append(f"{fault.column}: {said}" if fault.column else said)
    return {
        "_line": row.line,
        "_column": "; ".join(dict.fromkeys(f.column for f in row.faults if f.column)),
        "_code": "; ".join(dict.fromkeys(f.code for f in row.faults)),
        "_reason": " ".join(reasons),
    }


class Run(NamedTuple):
    """Some names of a chunk, by their folded suffixes: the first of them and the last of the
    chunk with prefix, all of them, and the line of each."""

    first: bytes
    last: bytes
    names: bytes
    lines: bytes


def runs_of(prefix: str, suffixes: Sequence[bytes], lines: Sequence[int]) -> list[Run]:
    """Of folded suffixes in order, under a folded prefix."""
    start = f"{prefix}/".encode()
    return [
        Run(
            start + suffixes[at],
            start + suffixes[-1],
            b"\n".join(suffixes[at : at + _RUN_NAMES]),
            array("q", lines[at : at + _RUN_NAMES]).tobytes(),
        )
        for at in range(0, len(suffixes), _RUN_NAMES)
    ]


class SeenIdentifiers:
    """On which line an identifier came first. Lives in a file, not in memory, so that what any
    number of rows say twice is found; in a temporary one, or at `path`, where an import that was
    stopped finds it again. If that is damaged (the machine itself went down), it begins empty:
    a repeated identifier is then reported as taken and not as one of the file's own."""

    def __init__(self, path: Path | None = None, *, case_sensitive: bool) -> None:
        self._case_sensitive = case_sensitive
        try:
            self._scratch = self._opened(path)
        except sqlite3.DatabaseError:
            assert path is not None
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            self._scratch = self._opened(path)
        ends = "SELECT min(first), max(last) FROM runs GROUP BY run ORDER BY run"
        self._runs: list[tuple[bytes, bytes]] = self._scratch.execute(ends).fetchall()

    @staticmethod
    def _opened(path: Path | None) -> sqlite3.Connection:
        scratch = sqlite3.connect(path or "", isolation_level=None)
        try:
            scratch.execute(f"PRAGMA journal_mode={'WAL' if path else 'OFF'}")
            scratch.execute("PRAGMA synchronous=OFF")
            scratch.execute("PRAGMA cache_size=-16000")
            scratch.execute(
                "CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, line INT) WITHOUT ROWID"
            )
            scratch.execute(
                "CREATE TABLE IF NOT EXISTS runs (run INT, first BLOB, last BLOB, names BLOB,"
                " lines BLOB, PRIMARY KEY (run, first))"
            )
            scratch.execute("BEGIN")
        except sqlite3.DatabaseError:
            scratch.close()
            raise
        return scratch

    def add(self, identifier: Identifier, line: int) -> int:
        """The line that has the same identifier already, or 0."""
        found = self._scratch.execute(
            "INSERT INTO seen VALUES (?1, ?2) ON CONFLICT DO UPDATE SET line = line RETURNING line",
            (self._key(identifier), line),
        ).fetchone()
        earlier: int = found[0]
        return earlier if earlier != line else 0

    def line_of(self, identifier: Identifier) -> int:
        """The line that has it, or 0."""
        found = self._scratch.execute(
            "SELECT line FROM seen WHERE key = ?", (self._key(identifier),)
        ).fetchone()
        return int(found[0]) if found else self._in_runs(self._key(identifier))

    def add_runs(self, runs: Sequence[Run]) -> None:
        """As `add`, of what `runs_of` made of a chunk, without saying which were there: many to a
        row, which costs a tenth."""
        if not runs:
            return
        number = len(self._runs)
        self._scratch.executemany(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?)", [(number, *run) for run in runs]
        )
        self._runs.append((runs[0].first, runs[0].last))

    def _in_runs(self, key: bytes) -> int:
        """The first line that has it, or 0."""
        found = []
        for number, (first, last) in enumerate(self._runs):
            if not first <= key <= last:
                continue
            names, lines = self._scratch.execute(
                "SELECT names, lines FROM runs WHERE run = ? AND first <= ? ORDER BY first DESC",
                (number, key),
            ).fetchone()
            suffixes, suffix = names.split(b"\n"), key.partition(b"/")[2]
            at = bisect_left(suffixes, suffix)
            if suffixes[at : at + 1] == [suffix]:
                found.append(array("q", lines)[at])
        return min(found, default=0)

    def keep(self) -> None:
        """What was added so far survives the end of the process."""
        self._scratch.execute("COMMIT")
        self._scratch.execute("BEGIN")

    def _key(self, identifier: Identifier) -> bytes:
        """The name itself: sorted names then come one behind the other."""
        key = identifier.key(case_sensitive=self._case_sensitive)
        return b"/".join((key.prefix.encode(), key.suffix))

    def close(self) -> None:
        self._scratch.close()
