"""Files that have to be made plain before they are imported: packed, or in other encodings."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from biaojie.errors import InvalidFile, TooLarge
from registry.import_prepare import Form, Making, is_plain, prepare
from registry.imports import Aside, import_file
from tests.unit.test_import_forms import WHOLE, faults, run, values
from tests.unit.test_imports import Registry

# Compression ----------------------------------------------------------------------------

CSV = b"identifier,URL\n" + b"".join(
    b"88.118.8/A%d,https://x.example/%d\n" % (n, n) for n in range(500)
)


def packed_twice(data: bytes) -> bytes:
    return gzip.compress(data[:1_000]) + gzip.compress(data[1_000:])


def frames(data: bytes) -> bytes:
    return zstandard.compress(data[:1_000]) + zstandard.compress(data[1_000:])


PACKERS: list[Callable[[bytes], bytes]] = [
    gzip.compress,
    packed_twice,
    zstandard.compress,
    frames,
]


@pytest.mark.parametrize("pack", PACKERS)
async def test_packed_files(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "f.csv.packed"
    file.write_bytes(pack(CSV))
    assert is_plain(file, Making(file.name)) is None
    registry = Registry()
    report = await run(file, registry)
    assert (report.good, report.failed) == (500, 0)


@pytest.mark.parametrize("pack", PACKERS)
def test_packed_files_that_are_cut_anywhere_are_never_taken_for_whole(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    file, rows = tmp_path / "f", tmp_path / "rows"
    whole = pack(CSV)
    between = len(pack(CSV[:1_000])) if pack in (packed_twice, frames) else 0
    for length in {*range(8, len(whole), 97), len(whole) - 1, len(whole) - 5}:
        if between and abs(length - between) < 40:
            continue  # cut between two members it is whole as far as anybody can tell
        file.write_bytes(whole[:length])
        with pytest.raises(InvalidFile, match=r"whole|damaged"):
            prepare(file, rows, Making("f.csv"))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    file.write_bytes(damaged)
    try:  # zstd need not have a checksum
        prepare(file, rows, Making("f.csv"))
    except InvalidFile:
        pass
    else:
        assert pack in (zstandard.compress, frames)


@pytest.mark.parametrize(
    "pack",
    [lambda data: gzip.compress(data, 9), lambda data: zstandard.compress(data, 19)],
    ids=["gzip", "zstd"],
)
def test_a_bomb_goes_off_no_further_than_it_may(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    file, rows = tmp_path / "f", tmp_path / "rows"
    file.write_bytes(pack(b"identifier\n" + b"a" * 300_000_000))
    assert file.stat().st_size < 400_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            prepare(file, rows, Making("f.csv", bytes_max=200_000_000))
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


# Text -----------------------------------------------------------------------------------

CHINESE = "identifier,名称,备注\n" + "".join(f"88.118.8/A{n},螺栓{n},不锈钢\n" for n in range(20))


@pytest.mark.parametrize(
    ("encoding", "offered"),
    [("gbk", "gb18030"), ("gb18030", "gb18030"), ("utf-16", "utf-16")],
)
async def test_other_encodings_are_found_out_and_offered(
    tmp_path: Path, encoding: str, offered: str
) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes(CHINESE.encode(encoding))
    with pytest.raises(InvalidFile) as refused:
        prepare(file, tmp_path / "rows", Making(file.name))
    assert refused.value.fields["encoding"] == offered
    assert "名称" in refused.value.fields["sample"]
    assert offered in refused.value.detail.zh
    registry = Registry()
    report = await run(file, registry, encoding=offered)
    assert (report.good, report.failed) == (20, 0)
    assert values(registry)["88.118.8/A0"][0] == (1, "名称", "螺栓0".encode())


async def test_a_short_list_of_names_in_gbk_is_taken_for_gbk(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes("identifier,name\n88.118.8/A,张三\n".encode("gbk"))
    with pytest.raises(InvalidFile) as refused:
        is_plain(file, Making(file.name))
    assert refused.value.fields["encoding"] == "gb18030"


async def test_what_is_no_text_in_the_encoding_is_a_fault_of_its_cell(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes(CHINESE.encode("gbk") + b"88.118.8/B,\xff\xff,x\n88.118.8/C,y,z\n")
    registry = Registry()
    report = await run(file, registry, encoding="gb18030")
    assert (report.good, report.failed) == (21, 1)
    assert faults(report) == [(22, "名称", "invalid-record")]


@pytest.mark.parametrize(
    "name", ["klingon", "base64", "rot13", "\0", "utf-8\0", "idna", "punycode"]
)
def test_encodings_that_are_none(tmp_path: Path, name: str) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes(CHINESE.encode("gbk"))
    with pytest.raises(InvalidFile):
        prepare(file, tmp_path / "rows", Making(file.name, encoding=name))


@pytest.mark.parametrize("form", ["csv", "ndjson"])
async def test_a_cell_of_a_hundred_megabytes_is_one_bad_row(tmp_path: Path, form: Form) -> None:
    file = tmp_path / f"f.{form}"
    with file.open("wb") as out:
        rows = [b"identifier,URL\n88.118.8/A,x\n88.118.8/B,", b"\n88.118.8/C,y\n"]
        if form == "ndjson":
            rows = [
                b'{"identifier":"88.118.8/A"}\n{"identifier":"',
                b'"}\n{"identifier":"88.118.8/C"}\n',
            ]
        out.write(rows[0])
        for _ in range(100):
            out.write(b"a" * 1_000_000)
        out.write(rows[1])
    registry = Registry()
    tracemalloc.start()
    try:
        report = await import_file(file, WHOLE, registry, aside=Aside(form))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert set(values(registry)) == {"88.118.8/A", "88.118.8/C"}
    assert [line for line, _, _ in faults(report)] == [3 if form == "csv" else 2]
    assert report.error_file is not None
    assert report.error_file.stat().st_size < 100_000
