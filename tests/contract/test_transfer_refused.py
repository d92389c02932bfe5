"""What is no whole, true backup is refused, and nothing of it is kept.

The files are of one registry on SQLite: rows from PostgreSQL make the same file (test_transfer.py).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from biaojie.errors import InvalidFile
from registry import deposit
from registry.audit import audit
from registry.deposit import Cutter, Reader, Shape, Writer
from registry.sql import UnfitDatabase, open_store
from registry.sql.loading import Loading
from registry.sql.tables import records
from registry.sql.transfer import backup, restore
from tests.audited import Registry
from tests.contract.transferred import contents, history
from tests.core_parts import create, opened, registering, write


@pytest.fixture
async def registry(sqlite_url: str) -> AsyncIterator[Registry]:
    async with history(sqlite_url) as made:
        yield made


async def test_a_file_that_is_not_whole_is_refused_and_nothing_is_touched(
    registry: Registry, bare_url: str, tmp_path: Path
) -> None:
    file, bad = tmp_path / "a.bak", tmp_path / "bad.bak"
    await backup(registry.url, file)
    good = file.read_bytes()
    chance = random.Random(1)
    cut = [good[:at] for at in (0, 5, len(deposit.MAGIC), len(good) // 2, len(good) - 1)]
    cut += [good[: chance.randrange(len(good))] for _ in range(40)]
    flipped = []
    for _ in range(80):
        at = chance.randrange(len(good))
        flipped.append(good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :])
    for octets in (*cut, *flipped, good + b"\0", b"not a backup" * 20):
        bad.write_bytes(octets)
        with pytest.raises(InvalidFile) as caught:
            await restore(bad, bare_url)
        assert str(bad) in caught.value.detail.en
        assert str(bad) in caught.value.detail.zh
    with pytest.raises(UnfitDatabase):
        await open_store(bare_url)
    with pytest.raises(InvalidFile):
        await restore(tmp_path / "absent.bak", bare_url)
    await restore(file, bare_url)


def _rehashed(octets: bytes) -> bytes:
    body = octets[:-32]
    return body + hashlib.sha256(body).digest()


async def test_a_file_made_up_with_a_digest_of_its_own_is_refused(
    registry: Registry, bare_url: str, tmp_path: Path
) -> None:
    file, bad = tmp_path / "a.bak", tmp_path / "bad.bak"
    made = await backup(registry.url, file)
    with pytest.raises(InvalidFile, match=made.digest.hex()):
        await restore(file, bare_url, digest=bytes(32))
    good, before = file.read_bytes(), await contents(registry.url)
    chance = random.Random(2)
    refused = 0
    for _ in range(40):
        at = chance.randrange(len(deposit.MAGIC), len(good) - 32)
        changed = good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]
        bad.write_bytes(_rehashed(changed))
        try:
            await restore(bad, bare_url, overwrite=True)
        except InvalidFile:
            refused += 1
        else:  # what told nothing of the rows, such as when the backup was made
            assert await contents(bare_url) == before
    assert refused > 20

    def edited(run: deposit.Run) -> deposit.Run:
        if header.shapes[run.table].table != "changelog":
            return run
        [again] = [*(cutter := Cutter(run.table)).feed([*run.rows[:3], *run.rows[4:]])] or [
            *cutter.end()
        ]
        return again

    header = Reader(file).header()
    with bad.open("wb") as out:
        writer = Writer(out, header)
        for run in Reader(file).runs():
            writer.add(edited(run))
        writer.end()
    with pytest.raises(InvalidFile, match=r"change log is broken.*missing") as caught:
        await restore(bad, bare_url, overwrite=True)
    assert "Nothing of it was kept" in caught.value.detail.en
    async with opened(bare_url) as store:
        assert await store.head() == (0, bytes(32))
        assert await store.list_prefixes(None, 10) == []


async def test_a_file_made_up_with_rows_of_no_registry_is_refused(
    registry: Registry, bare_url: str, tmp_path: Path
) -> None:
    file, bad = tmp_path / "a.bak", tmp_path / "bad.bak"
    await backup(registry.url, file)
    header = Reader(file).header()

    def make_up(shapes: tuple[Shape, ...], table: str = "", *rows: list[Any]) -> None:
        with bad.open("wb") as out:
            writer = Writer(out, replace(header, shapes=shapes))
            for at, shape in enumerate(shapes):
                if shape.table == table:
                    cutter = Cutter(at)
                    for run in (*cutter.feed(rows), *cutter.end()):
                        writer.add(run)
            writer.end()

    for made_up in (
        (),
        header.shapes[:1],
        header.shapes * 2,
        (*header.shapes, Shape("records; DROP TABLE x", ("a",), ("a",))),
        tuple(shape._replace(columns=shape.columns[:-1]) for shape in header.shapes),
        (*header.shapes, Shape("strangers", ("a",), ("a",))),
    ):
        make_up(made_up)
        with pytest.raises(InvalidFile):
            await restore(bad, bare_url)
    for row in (
        [1, b"S", 1, 1, 1, None, ["a list"]],
        [1, b"S", 1, 1, 1, None],
        [1, b"S", 1, 1, 1, None, 1.5],
    ):
        make_up(header.shapes, "records", row)
        with pytest.raises(InvalidFile):
            await restore(bad, bare_url)
    with pytest.raises(UnfitDatabase, match=r"empty|no file"):
        await open_store(bare_url)
    make_up(header.shapes, "changelog", ["one", 1, "", "", "", 1, b"", b"", b"", "text"])
    with pytest.raises(InvalidFile):
        await restore(bad, bare_url)
    with pytest.raises((UnfitDatabase, InvalidFile)):
        await restore(bad, bare_url)
    await restore(file, bare_url, overwrite=True)
    async with opened(bare_url) as store:
        assert not (await audit(store)).faults


async def test_who_writes_into_a_restore_is_found_out(
    registry: Registry, bare_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bak"
    await backup(registry.url, file)
    [row] = await registry.rows(records, records.c.suffix == b"S7")
    finish = Loading.finish

    async def meddled(self: Loading, *arguments: Any) -> None:
        async with self._pools.write() as connection:
            await connection.execute(
                update(records).where(records.c.suffix == row["suffix"]).values(version=99)
            )
        await finish(self, *arguments)

    monkeypatch.setattr(Loading, "finish", meddled)
    with pytest.raises(InvalidFile, match="Table records"):
        await restore(file, bare_url)
    async with opened(bare_url) as store:
        assert await store.head() == (0, bytes(32))


async def test_a_node_that_writes_into_a_restore_is_named(
    registry: Registry, bare_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Loading.load

    async def raced(self: Loading, *arguments: Any) -> Any:
        async with self._pools.write() as connection:
            await connection.exec_driver_sql(
                "INSERT INTO statistics (day, prefix, action, count) VALUES (0, '', 'create', 1)"
            )
        return await load(self, *arguments)

    async with registering(registry.store) as registrar:
        await write(registrar, create("COUNTED"))
    while await registry.store.fold_statistics():
        pass
    await backup(registry.url, file := tmp_path / "b.bak")
    monkeypatch.setattr(Loading, "load", raced)
    with pytest.raises(UnfitDatabase, match="Somebody else"):
        await restore(file, bare_url)
    monkeypatch.undo()
    with pytest.raises(UnfitDatabase, match="half restored"):
        await open_store(bare_url)
    assert (await restore(file, bare_url)).resumed == 0
    assert await contents(bare_url) == await contents(registry.url)
