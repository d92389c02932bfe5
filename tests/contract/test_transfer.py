"""Backup, restore and move, from each kind of database into each: all of it, of one moment."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from biaojie.errors import InvalidFile, StorageFull, TamperedLog
from registry import deposit
from registry.audit import audit
from registry.census import ALL_PREFIXES
from registry.changelog import merkle_root
from registry.deposit import Cutter, Header, Reader, Shape, Tree, Writer
from registry.sql import UnfitDatabase
from registry.sql.loading import Loading
from registry.sql.recount import recount
from registry.sql.snapshot import shapes, snapshot
from registry.sql.tables import changelog, records
from registry.sql.transfer import backup, move, restore
from tests.audited import Registry, traffic
from tests.contract.transferred import contents
from tests.core_parts import create, home, opened, registering, write
from tests.recount import check_census


async def test_what_was_backed_up_is_restored_row_for_row(
    registry: Registry, bare_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.bak"
    made = await backup(registry.url, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    back = await restore(file, bare_url)
    assert (back.head, back.sums, back.root, back.digest) == (
        made.head,
        made.sums,
        made.root,
        made.digest,
    )
    there = await contents(bare_url)
    assert there == await contents(registry.url)
    assert len(there["receipts"]) == 1
    assert made.head == await registry.store.head()
    async with opened(bare_url) as store:
        found = await audit(store, witness=made.head)
        assert not found.faults
        assert found.records == made.sums["records"].rows == len(there["records"])
        async with registering(store) as registrar:  # and life goes on, numbers included
            await home(registrar, "88.118.77")
            await write(registrar, create("NEW", prefix="88.118.77"))
        assert not (await audit(store)).faults


async def test_a_registry_moves_into_the_other_kind_and_back(
    registry: Registry, bare_url: str, tmp_path: Path
) -> None:
    before = await contents(registry.url)
    made = await move(registry.url, bare_url)
    assert made.behind == 0
    assert await contents(bare_url) == before
    back = f"sqlite:///{tmp_path / 'back.db'}"
    again = await move(bare_url, back)
    assert await contents(back) == before
    assert again.root == made.root


async def test_a_backup_made_while_many_write_is_of_one_moment(
    registry: Registry, tmp_path: Path
) -> None:
    async with registering(registry.store) as registrar, traffic(registrar, 4) as busy:
        heads = []
        for n in range(4):
            done = sum(each.done for each in busy)
            made = await backup(registry.url, tmp_path / f"{n}.bak")
            heads.append(made.head[0])
            while sum(each.done for each in busy) < done + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert heads == sorted(set(heads))
    for n, head in enumerate(heads):
        url = f"sqlite:///{tmp_path / f'{n}.db'}"
        await restore(tmp_path / f"{n}.bak", url)
        async with opened(url) as store:
            found = await audit(store)
            assert not found.faults
            assert found.entries == head


async def test_a_registry_that_is_not_empty_is_kept_unless_told(
    registry: Registry, tmp_path: Path
) -> None:
    file = tmp_path / "a.bak"
    await backup(registry.url, file)
    async with registering(registry.store) as registrar:
        await write(registrar, create("LATER"))
    before = await contents(registry.url)
    with pytest.raises(UnfitDatabase, match="--overwrite"):
        await restore(file, registry.url)
    assert await contents(registry.url) == before
    await restore(file, registry.url, overwrite=True)
    after = await contents(registry.url)
    assert len(after["records"]) == len(before["records"]) - 1
    assert not (await registry.audit()).faults


async def test_a_backup_overwrites_no_file_and_leaves_none_when_it_fails(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bak"
    file.write_bytes(b"older")
    with pytest.raises(InvalidFile, match="exists"):
        await backup(registry.url, file)
    assert file.read_bytes() == b"older"
    with pytest.raises(StorageFull):
        await backup(registry.url, tmp_path / "no" / "folder.bak")
    await registry.run(
        update(changelog).where(changelog.c.sequence == 3).values(time_ms=changelog.c.time_ms + 1)
    )
    with pytest.raises(TamperedLog, match="entry 3"):
        await backup(registry.url, tmp_path / "b.bak")
    assert {"b.bak", "b.bak.part"}.isdisjoint(os.listdir(tmp_path))


async def test_a_move_says_what_was_written_meanwhile(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Loading.finish

    async def late(self: Loading, *arguments: Any) -> None:
        async with registering(registry.store) as registrar:
            await write(registrar, create("LATE1"))
            await write(registrar, create("LATE2"))
        await finish(self, *arguments)

    monkeypatch.setattr(Loading, "finish", late)
    made = await move(registry.url, f"sqlite:///{tmp_path / 'to.db'}")
    assert made.behind == 2
    with pytest.raises(UnfitDatabase, match="same"):
        await move(registry.url, registry.url)


async def test_a_backup_of_an_older_schema_is_restored_and_migrated(
    registry: Registry, bare_url: str, tmp_path: Path
) -> None:
    file, old, unknown = (tmp_path / name for name in ("new.bak", "old.bak", "unknown.bak"))
    await backup(registry.url, file)
    header = Reader(file).header()
    kept = [shape for shape in header.shapes if shape.table in OLD]
    older = [
        Shape(s.table, tuple(c for c in s.columns if (s.table, c) not in ADDED), s.key)
        for s in kept
    ]
    for target, schema in ((old, "0001"), (unknown, "9999")):
        with target.open("wb") as out:
            writer = Writer(
                out, Header(schema, header.kind, header.made_ms, header.head, tuple(older))
            )
            for run in Reader(file).runs():
                shape = header.shapes[run.table]
                if shape not in kept:
                    continue
                at = kept.index(shape)
                places = [shape.columns.index(name) for name in older[at].columns]
                cutter = Cutter(at)
                for again in cutter.feed([[row[n] for n in places] for row in run.rows]):
                    writer.add(again)
                for again in cutter.end():
                    writer.add(again)
            writer.end()
    with pytest.raises(InvalidFile, match="newer"):
        await restore(unknown, bare_url)
    await restore(old, bare_url)
    assert (await contents(bare_url))["records"] == (await contents(registry.url))["records"]
    async with opened(bare_url) as store:
        assert not (await audit(store)).faults
        while await store.fold_statistics():
            pass
        assert (await store.read_census([ALL_PREFIXES])).counts is None
        await recount(bare_url, store)
        await check_census(store, [each.name for each in await store.list_prefixes(None, 100)])


ADDED = {("prefixes", "searchable"), ("prefixes", "indexed_to"), ("changelog", "shift")}
OLD = {"prefixes", "records", "api_keys", "receipts", "changelog", "chain_head", "rules"}


async def test_a_snapshot_is_of_the_moment_it_began(registry: Registry) -> None:
    async with snapshot(registry.url) as read:
        async with registering(registry.store) as registrar:
            await write(registrar, create("AFTER"))
        seen = [
            row
            async for run in read.runs(shapes())
            if shapes()[run.table].table == "records"
            for row in run.rows
        ]
    async with registry.store._pools.write() as connection:
        now = (await connection.execute(select(records))).all()
    assert len(now) == len(seen) + 1


def test_a_root_that_grows_is_the_root_of_all() -> None:
    leaves = [hashlib.sha256(bytes([n])).digest() for n in range(70)]
    tree = Tree()
    for n, leaf in enumerate(leaves):
        assert tree.root() == merkle_root(leaves[:n])
        tree.add(leaf)


@pytest.mark.parametrize("fetched", [1, 7, 999, 5_000])
def test_runs_do_not_depend_on_how_rows_were_read(fetched: int) -> None:
    rows = [(n, b"x" * (n % 3_000), "é", None) for n in range(4_000)]
    whole = Cutter(0)
    expected = [run.packed for run in (*whole.feed(rows), *whole.end())]
    cutter = Cutter(0)
    got = []
    for at in range(0, len(rows), fetched):
        got += [run.packed for run in cutter.feed(rows[at : at + fetched])]
    got += [run.packed for run in cutter.end()]
    assert got == expected
    assert max(map(len, got)) < deposit.RUN_BYTES + 4_096
    assert len(got) > 4
