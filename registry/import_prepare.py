"""Making of a file as people send it the plain file that is imported: unpacked, in UTF-8, rows.

`prepare` writes to disk and holds a piece at a time. What it writes depends on the file and the
options alone, so that an import which was stopped finds its place again. A compressed file may
unfold to `bytes_max` and no further; one that ends too early is refused, not taken for whole.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import zstandard

from biaojie.errors import InvalidFile, TooLarge

from .import_csv import HEAD_BYTES, CsvFile
from .import_documents import DocumentFile, SheetFile

Form = Literal["csv", "ndjson", "msgpack", "xlsx"]
FORMS: tuple[Form, ...] = ("csv", "ndjson", "msgpack", "xlsx")
PIECE_BYTES = 262_144
RATIO_MAX = 1_000
"""How much larger than sent; below RATIO_FREE_BYTES it does not matter."""
RATIO_FREE_BYTES = 64 * 2**20
WORKBOOK_S = 300
_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_UTF8_NAMES = ("", "utf-8", "utf8", "utf-8-sig")
_SUFFIXES: dict[str, Form] = {
    ".csv": "csv",
    ".txt": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".msgpack": "msgpack",
    ".xlsx": "xlsx",
}


@dataclass(frozen=True, slots=True)
class Making:
    """`form` None: by the file's name and what it begins with. `encoding` of CSV and NDJSON.
    `bytes_max` bounds what is written, `workbook_memory_bytes` the process that reads a
    workbook."""

    name: str = ""
    form: Form | None = None
    encoding: str = ""
    bytes_max: int = 64 * 2**30
    workbook_memory_bytes: int = 2**30


class Source(Protocol):
    """An opened file of rows; see `CsvFile`."""

    file: BinaryIO
    size: int
    bom: bool
    titles: tuple[str, ...]
    header: tuple[str, ...]
    start: tuple[int, int]

    @property
    def offset(self) -> int: ...
    @property
    def line(self) -> int: ...


Step = Callable[[], None]
"""Called for each piece; raises to stop."""


def form_by_name(name: str) -> Form | None:
    """By the end of the file's name, `.gz` or `.zst` left out."""
    stem = name.lower().removesuffix(".gz").removesuffix(".zst")
    return _SUFFIXES.get(os.path.splitext(stem)[1])


def open_rows(path: Path, form: Form, *, transcoded: bool = False) -> CsvFile | DocumentFile:
    """A prepared file. Raises InvalidFile."""
    if form == "csv":
        file = CsvFile(path)
        file.bom = file.bom or transcoded
        return file
    return SheetFile(path) if form == "xlsx" else DocumentFile(path, packed=form == "msgpack")


def prepare(given: Path, rows: Path, making: Making, step: Step = lambda: None) -> Form:
    """Write to `rows` what `open_rows` reads, and say what form it is. `given` stays.

    Raises InvalidFile (fields: `encoding`, `sample` where another encoding is likely), TooLarge.
    """
    draft = rows.with_name(rows.name + ".part")
    try:
        with given.open("rb") as file:
            form = _unpack(file, draft, making, step)
        if form == "xlsx":
            _read_workbook(draft, rows, making, step)
        else:
            draft.replace(rows)
        return form
    finally:
        draft.unlink(missing_ok=True)


def is_plain(given: Path, making: Making) -> Form | None:
    """The form of a file that can be imported as it lies; None if it has to be prepared."""
    with given.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith((_GZIP, _ZSTD)) or making.encoding.lower() not in _UTF8_NAMES:
        return None
    form = _form(head, making)
    if form in ("csv", "ndjson"):
        _check_encoding(head)
    return None if form == "xlsx" else form


def _unpack(file: BinaryIO, draft: Path, making: Making, step: Step) -> Form:
    head = file.read(4)
    file.seek(0)
    if head.startswith(_GZIP):
        pieces = _gunzip(file)
    elif head.startswith(_ZSTD):
        pieces = _unzstd(file)
    else:
        pieces = iter(lambda: file.read(PIECE_BYTES), b"")
    first = bytearray()
    for piece in pieces:
        first += piece
        if len(first) >= HEAD_BYTES:
            break
    form = _form(bytes(first), making)
    recode: Callable[[bytes, bool], bytes] | None = None
    if form in ("csv", "ndjson"):
        if making.encoding.lower() in _UTF8_NAMES:
            _check_encoding(bytes(first[:HEAD_BYTES]))
        else:
            recode = _recoder(making.encoding)
    sent = os.fstat(file.fileno()).st_size
    written = 0
    with draft.open("wb") as out:
        for piece in _with(bytes(first), pieces):
            step()
            plain = recode(piece, False) if recode else piece
            written += len(plain)
            _check_size(written, sent, making)
            out.write(plain)
        if recode:
            out.write(recode(b"", True))
        out.flush()
        os.fsync(out.fileno())
    return form


def _with(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _check_size(written: int, sent: int, making: Making) -> None:
    if written > making.bytes_max or (
        written > RATIO_FREE_BYTES and written > RATIO_MAX * max(sent, 1)
    ):
        raise TooLarge(
            f"The file unfolds to more than {min(written, making.bytes_max)} bytes.",
            f"文件解压后超过 {min(written, making.bytes_max)} 字节。",
            bytes_max=making.bytes_max,
        )


# Compression ----------------------------------------------------------------------------


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Of all members, one after the other, as `gzip -c a b` makes them."""
    data = file.read(PIECE_BYTES)
    while data:
        member = zlib.decompressobj(31)
        while not member.eof:
            if not data:
                raise _half("gzip")
            try:
                piece = member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise _broken("gzip", error) from None
            data = member.unconsumed_tail or (b"" if member.eof else file.read(PIECE_BYTES))
            if piece:
                yield piece
        data = member.unused_data or file.read(PIECE_BYTES)
        if not data.strip(b"\0"):
            return  # padding, as tapes have it


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Frame by frame: only so is it seen that the last one is not whole."""
    data = file.read(PIECE_BYTES)
    while data:
        frame = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
        while not frame.eof:
            if not data:
                raise _half("zstd")
            try:
                piece = frame.decompress(data[:_ZSTD_BYTES])
            except zstandard.ZstdError as error:
                raise _broken("zstd", error) from None
            data = data[_ZSTD_BYTES:]
            if not data and not frame.eof:
                data = file.read(PIECE_BYTES)
            if piece:
                yield piece
        data = frame.unused_data + data or file.read(PIECE_BYTES)


_ZSTD_BYTES = 1_024
"""Given at a time: a block takes 4 octets or more, and unfolds to 128 KiB at most."""


def _half(kind: str) -> InvalidFile:
    return InvalidFile(
        f"The {kind} stream ends before it is whole; send the file again.",
        f"{kind} 数据流不完整；请重新发送文件。",
    )


def _broken(kind: str, error: Exception) -> InvalidFile:
    return InvalidFile(
        f"The {kind} stream is damaged ({error}).", f"{kind} 数据流已损坏（{error}）。"
    )


# What it is -----------------------------------------------------------------------------


def _form(head: bytes, making: Making) -> Form:
    found: Form | None = None
    if head.startswith(_ZIP):
        found = "xlsx"
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        found = "ndjson"
    form = making.form or form_by_name(making.name) or found or "csv"
    if (form == "xlsx") != (found == "xlsx"):
        raise InvalidFile(
            f"This is {'an' if found else 'no'} Excel workbook (.xlsx), and the format said is"
            f" {form}.",
            f"文件{'是' if found else '不是'} Excel 工作簿（.xlsx），而指定的格式为 {form}。",
        )
    return form


def _check_encoding(head: bytes) -> None:
    """Where text is in another encoding than UTF-8, say in which it probably is."""
    cut = head.rfind(b"\n") + 1 if len(head) >= HEAD_BYTES else len(head)
    lines = head[:cut].split(b"\n")
    foreign = [number for number, line in enumerate(lines, 1) if not _decodes(line, "utf-8")]
    ours = sum(not line.isascii() for line in lines) - len(foreign)
    # A few bad cells are faults of their rows; a file in another encoding is not.
    if not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and (
        not foreign
        or (foreign[0] != 1 and (len(foreign) <= ours or 10 * len(foreign) <= len(lines)))
    ):
        return
    encoding = _guess(head[:cut], lines, foreign)
    if encoding is None:
        raise InvalidFile(
            f"Line {foreign[0] if foreign else 1} is not UTF-8, and it is not plain what else;"
            " save the file as “CSV UTF-8”.",
            f"第 {foreign[0] if foreign else 1} 行不是 UTF-8 编码，且无法判断其编码；"
            "请另存为“CSV UTF-8”。",
            line=foreign[0] if foreign else 1,
        )
    sample = head[:cut] if encoding.startswith("utf") else lines[foreign[0] - 1]
    text = sample.decode(encoding, "replace").strip("\ufeff\r\n").partition("\n")[0][:200]
    raise InvalidFile(
        f"The file is not UTF-8; it looks like {encoding}: “{text}”. Import it with encoding"
        f" {encoding} if that reads well, or save it as “CSV UTF-8”.",
        f"文件不是 UTF-8 编码，疑为 {encoding}：“{text}”。如文字无误，请以编码 {encoding} 导入，"
        "或另存为“CSV UTF-8”。",
        encoding=encoding,
        sample=text,
        line=foreign[0] if foreign else 1,
    )


def _guess(head: bytes, lines: list[bytes], foreign: list[int]) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = b"\n".join(lines[number - 1] for number in foreign)[:65_536]
    # What Chinese spreadsheets write comes first: short texts fit many encodings.
    if sample.isascii() or not _decodes(sample, "gb18030"):
        from charset_normalizer import from_bytes

        best = from_bytes(sample).best()
        return best.encoding if best is not None and best.encoding != "ascii" else None
    decoded = sample.decode("gb18030")
    chinese = sum("\u3000" <= character <= "\u9fff" for character in decoded)
    if 2 * chinese >= sum(not character.isascii() for character in decoded):
        return "gb18030"
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return best.encoding if best is not None else "gb18030"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeError:
        return False
    return True


def _keep(error: UnicodeError) -> tuple[str, int]:
    """What cannot be decoded stays to be seen: octets as they are, or a replacement character."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    octets = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + o) if o >= 128 else "\ufffd" for o in octets), error.end


codecs.register_error("biaojie-keep", _keep)


def _recoder(encoding: str) -> Callable[[bytes, bool], bytes]:
    """To UTF-8. What is no text in that encoding stays as it is, to be found in its cell."""
    try:
        # Not every codec of Python is one of text.
        if len("a".encode(encoding)) > 8:
            raise LookupError
        decoder = codecs.getincrementaldecoder(encoding)("biaojie-keep")
    except (LookupError, ValueError, TypeError):
        raise InvalidFile(
            f"There is no encoding {encoding[:40]!r}; try gb18030, big5 or utf-16.",
            f"不支持编码 {encoding[:40]!r}；可用 gb18030、big5 或 utf-16。",
        ) from None

    def recode(data: bytes, final: bool) -> bytes:
        return decoder.decode(data, final).encode("utf-8", "surrogateescape")

    return recode


# Workbooks ------------------------------------------------------------------------------


def _read_workbook(draft: Path, rows: Path, making: Making, step: Step) -> None:
    lines = rows.with_name(rows.name + ".lines")
    command = [
        *(sys.executable, "-m", "registry.import_sheet", str(draft), str(lines)),
        *(str(making.workbook_memory_bytes), str(WORKBOOK_S)),
    ]
    try:
        with subprocess.Popen(  # noqa: S603 — our own module, no shell
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        ) as process:
            try:
                _until_ended(process, step)
            except BaseException:
                process.kill()
                raise
            assert process.stdout is not None
            said = process.stdout.read(4_096).decode("utf-8", "replace").splitlines()
        if process.returncode == 2 and len(said) == 2:
            raise InvalidFile(*said)
        if process.returncode:
            raise TooLarge(
                "The workbook takes too much memory or time; save it as CSV in UTF-8.",
                "工作簿占用的内存或时间过多；请另存为 UTF-8 编码的 CSV。",
            )
        if lines.stat().st_size > making.bytes_max:
            raise TooLarge(bytes_max=making.bytes_max)
        with lines.open("rb") as file:
            os.fsync(file.fileno())
        lines.replace(rows)
    finally:
        lines.unlink(missing_ok=True)


def _until_ended(process: subprocess.Popen[bytes], step: Step) -> None:
    until = time.monotonic() + WORKBOOK_S
    while True:
        step()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            return
        if time.monotonic() > until:
            process.kill()
            return
