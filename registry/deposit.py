"""The deposit: a whole registry as one file, whatever database it came from. Pure but for the file.

    magic, then frames: length (4 octets, big-endian), kind (1 octet), zstd of msgpack; at the
    end the SHA-256 of all octets before it

The first frame is the header, the last the trailer; between them are the rows of one table
after another, each in the order of its primary key. Rows are cut into runs by their own octets
alone, so that the same rows give the same runs wherever they are read, and the same RFC 6962
root over the runs. Nothing of a file may be used before `read_trailer` has passed it as whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack
import zstandard

from biaojie.errors import InvalidFile

MAGIC = b"BIAOJIE DEPOSIT 1\n"
RUN_ROWS = 1_000
RUN_BYTES = 1 << 20
"""A run ends with the row that reaches either."""
FRAME_BYTES_MAX = 1 << 29
"""A row is an entry of the change log at the most, and that no larger than one commit."""
_LEVEL = 3
_FRAME = struct.Struct(">Ic")
_HEADER, _RUN, _TRAILER = b"H", b"R", b"T"
_DIGEST_BYTES = 32
_READ_BYTES = 1 << 20
_NEEDED = {"changelog", "chain_head", "rules"}
_FIELDS = {int, str, bytes, type(None)}
_NAME = re.compile("[a-z0-9_]{1,63}")

Row = Sequence[Any]


class Shape(NamedTuple):
    """A table: its columns in order, and those of its primary key."""

    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What the rows are of. `head`: sequence and hash of the newest entry of the change log."""

    schema: str
    kind: str
    made_ms: int
    head: tuple[int, bytes]
    shapes: tuple[Shape, ...]


class Run(NamedTuple):
    """Neighbouring rows of the table `shapes[table]`, and the octets that are hashed of them."""

    table: int
    rows: list[Row]
    packed: bytes


class Sum(NamedTuple):
    """How many rows a table has, and the root over its runs."""

    rows: int
    root: bytes


class Tree:
    """An RFC 6962 §2.1 root over leaves that come one by one; holds one hash for each level."""

    def __init__(self) -> None:
        self._whole: list[tuple[int, bytes]] = []  # roots of full subtrees by height, falling

    def add(self, leaf: bytes) -> None:
        height, hash_ = 0, leaf
        while self._whole and self._whole[-1][0] == height:
            hash_ = hashlib.sha256(b"\x01" + self._whole.pop()[1] + hash_).digest()
            height += 1
        self._whole.append((height, hash_))

    def root(self) -> bytes:
        if not self._whole:
            return hashlib.sha256(b"").digest()
        hash_ = self._whole[-1][1]
        for _, left in reversed(self._whole[:-1]):
            hash_ = hashlib.sha256(b"\x01" + left + hash_).digest()
        return hash_


class Tally:
    """Counts and roots of the tables whose runs were seen."""

    def __init__(self, tables: int) -> None:
        self._counts = [0] * tables
        self._trees = [Tree() for _ in range(tables)]

    @property
    def rows(self) -> int:
        return sum(self._counts)

    def add(self, run: Run) -> None:
        self._counts[run.table] += len(run.rows)
        self._trees[run.table].add(hashlib.sha256(b"\x00" + run.packed).digest())

    def sums(self) -> list[Sum]:
        return [
            Sum(count, tree.root()) for count, tree in zip(self._counts, self._trees, strict=True)
        ]


class Cutter:
    """Cuts the rows of one table into runs."""

    def __init__(self, table: int) -> None:
        self._table = table
        self._rows: list[Row] = []
        self._packed: list[bytes] = []
        self._octets = 0
        self._pack: Callable[[Row], bytes] = msgpack.Packer().pack

    def feed(self, rows: Sequence[Row]) -> Iterator[Run]:
        """The runs that are full with these rows."""
        for row in rows:
            packed = self._pack(row)
            self._rows.append(row)
            self._packed.append(packed)
            self._octets += len(packed)
            if self._octets >= RUN_BYTES or len(self._rows) == RUN_ROWS:
                yield self._take()

    def end(self) -> Iterator[Run]:
        if self._rows:
            yield self._take()

    def _take(self) -> Run:
        run = Run(self._table, self._rows, b"".join(self._packed))
        self._rows, self._packed, self._octets = [], [], 0
        return run


class Writer:
    """Writes a deposit to `out`: the header at once, then `add` for each run, then `end`."""

    def __init__(self, out: BinaryIO, header: Header) -> None:
        self._out = out
        self._digest = hashlib.sha256()
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)
        self.tally = Tally(len(header.shapes))
        self._put(MAGIC)
        fields = [header.schema, header.kind, header.made_ms, header.head, header.shapes]
        self._frame(_HEADER, msgpack.packb(fields))

    def _put(self, octets: bytes) -> None:
        self._out.write(octets)
        self._digest.update(octets)

    def _frame(self, kind: bytes, packed: bytes) -> None:
        body = self._zstd.compress(packed)
        self._put(_FRAME.pack(len(body), kind))
        self._put(body)

    def add(self, run: Run) -> None:
        self.tally.add(run)
        self._frame(_RUN, msgpack.packb(run.table) + run.packed)

    def end(self) -> bytes:
        """Write the trailer; returns the digest with which the file ends."""
        self._frame(_TRAILER, msgpack.packb(self.tally.sums()))
        digest = self._digest.digest()
        self._out.write(digest)
        return digest


def _damaged(path: Path, en: str, zh: str) -> InvalidFile:
    return InvalidFile(
        f"{path} is not a whole backup: {en}. Nothing was restored from it.",
        f"{path} 不是完整的备份：{zh}。未从中恢复任何内容。",
        path=str(path),
    )


class Reader:
    """Reads a deposit. Raises InvalidFile on anything a Writer did not write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zstd = zstandard.ZstdDecompressor()

    def read_trailer(
        self, progress: Callable[[int], None] = lambda octets: None
    ) -> tuple[bytes, list[Sum]]:
        """Check every octet; returns the digest and the sums of the tables, in order."""
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
            if file.read(len(MAGIC)) != MAGIC:
                raise _damaged(self._path, "it does not begin as one", "开头不符")
            file.seek(0)
            while left > 0 and (octets := file.read(min(left, _READ_BYTES))):
                digest.update(octets)
                left -= len(octets)
                progress(len(octets))
            if file.read() != digest.digest():
                raise _damaged(
                    self._path,
                    "its digest is another; it was cut off or changed",
                    "摘要不符，文件被截断或改动",
                )
        header = self.header()
        tally = Tally(len(header.shapes))
        told: list[Sum] | None = None
        for kind, packed in self._frames():
            if kind == _TRAILER:
                told = [Sum(*each) for each in self._unpacked(packed)]
            elif kind == _RUN:
                tally.add(self._run(packed, header))
        if told != tally.sums():
            raise _damaged(self._path, "its sums are not those of its rows", "行数或根哈希不符")
        return digest.digest(), told

    def header(self) -> Header:
        kind, packed = next(self._frames(), (b"", b""))
        if kind != _HEADER:
            raise _damaged(self._path, "it has no header", "缺少文件头")
        try:
            schema, database, made_ms, head, told = self._unpacked(packed)
            shapes = tuple(Shape(name, tuple(columns), tuple(key)) for name, columns, key in told)
            for name in [schema, *(n for s in shapes for n in (s.table, *s.columns, *s.key))]:
                if not _NAME.fullmatch(name):  # they become part of statements
                    raise ValueError(name)
            tables = [shape.table for shape in shapes]
            if not set(tables) >= _NEEDED or len(set(tables)) < len(tables):
                raise ValueError("other tables than a registry has")
            return Header(schema, database, made_ms, (head[0], head[1]), shapes)
        except (ValueError, TypeError, IndexError) as error:
            raise _damaged(self._path, "its header cannot be read", "文件头无法读取") from error

    def runs(self) -> Iterator[Run]:
        header = self.header()
        for kind, packed in self._frames():
            if kind == _RUN:
                yield self._run(packed, header)

    def _unpacked(self, packed: bytes) -> Any:
        try:
            return msgpack.unpackb(packed)
        except (ValueError, msgpack.UnpackException) as error:
            raise _damaged(self._path, "a frame cannot be read", "有数据帧无法读取") from error

    def _run(self, packed: bytes, header: Header) -> Run:
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(packed)
        try:
            table = unpacker.unpack()
            start = unpacker.tell()
            width = len(header.shapes[table].columns)
            rows = list(unpacker)
        except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
            raise _damaged(self._path, "a frame cannot be read", "有数据帧无法读取") from error
        if any(type(row) is not list or len(row) != width for row in rows) or not (
            {type(field) for row in rows for field in row} <= _FIELDS
        ):
            raise _damaged(self._path, "a row has the wrong form", "有数据行格式不符")
        return Run(table, rows, packed[start:])

    def _frames(self) -> Iterator[tuple[bytes, bytes]]:
        with self._path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
            if file.read(len(MAGIC)) != MAGIC:
                raise _damaged(self._path, "it does not begin as one", "开头不符")
            while file.tell() < end:
                length, kind = _FRAME.unpack(self._exactly(file, _FRAME.size))
                body = self._exactly(file, length)
                try:
                    size = zstandard.frame_content_size(body)
                    if not 0 <= size <= FRAME_BYTES_MAX:
                        raise _damaged(self._path, "a frame is too large", "数据帧过大")
                    yield kind, self._zstd.decompress(body)
                except zstandard.ZstdError as error:
                    raise _damaged(
                        self._path, "a frame cannot be unpacked", "有数据帧无法解压"
                    ) from error

    def _exactly(self, file: BinaryIO, octets: int) -> bytes:
        if octets > FRAME_BYTES_MAX:
            raise _damaged(self._path, "a frame is too large", "数据帧过大")
        read = file.read(octets)
        if len(read) != octets:
            raise _damaged(self._path, "it is cut off", "文件被截断")
        return read
