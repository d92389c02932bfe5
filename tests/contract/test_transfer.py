"""Backup, restore and move, from each kind of database into each: all of it, or nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from biaojie.errors import InvalidFile, StorageFull, TamperedLog
from registry import deposit
from registry.admission import SYSTEM
from registry.audit import audit
from registry.changelog import merkle_root
from registry.deposit import Cutter, Header, Reader, Shape, Tree, Writer
from registry.sql import UnfitDatabase, migrate, open_store
from registry.sql.loading import Loading
from registry.sql.snapshot import shapes, snapshot
from registry.sql.tables import changelog, records
from registry.sql.transfer import backup, move, restore
from tests.audited import Registry, built, traffic
from tests.core_parts import create, home, opened, registering, token, value, write
from tests.postgres import Postgres

Contents = dict[str, list[tuple[Any, ...]]]


async def contents(url: str) -> Contents:
    """Every row of every table."""
    found: Contents = {shape.table: [] for shape in shapes()}
    async with snapshot(url) as read:
        async for run in read.runs(shapes()):
            found[shapes()[run.table].table] += [tuple(row) for row in run.rows]
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres) -> Iterator[str]:
    """A database nobody has made tables in; of SQLite not even the file."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'other' / 'registry.db'}"
        return
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with built(database_url) as made:
        async with registering(made.store) as registrar:
            strange = create("RECEIPT", values=(value(), value("\0ñ", 2)))
            await registrar.submit(SYSTEM, [strange], idempotency=token())
        yield made


async def test_what_was_backed_up_is_restored_row_for_row(
    registry: Registry, empty: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.bak"
    made = await backup(registry.url, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    back = await restore(file, empty)
    assert (back.head, back.sums, back.root, back.digest) == (
        made.head,
        made.sums,
        made.root,
        made.digest,
    )
    there = await contents(empty)
    assert there == await contents(registry.url)
    assert len(there["receipts"]) == 1
    assert made.head == await registry.store.head()
    async with opened(empty) as store:
        found = await audit(store, witness=made.head)
        assert not found.faults
        assert found.records == made.sums["records"].rows == len(there["records"])
        async with registering(store) as registrar:  # and life goes on, numbers included
            await home(registrar, "88.118.77")
            await write(registrar, create("NEW", prefix="88.118.77"))
        assert not (await audit(store)).faults


async def test_a_registry_moves_into_the_other_kind_and_back(
    registry: Registry, empty: str, tmp_path: Path
) -> None:
    before = await contents(registry.url)
    made = await move(registry.url, empty)
    assert made.behind == 0
    assert await contents(empty) == before
    back = f"sqlite:///{tmp_path / 'back.db'}"
    again = await move(empty, back)
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


async def test_a_file_that_is_not_whole_is_refused_and_nothing_is_touched(
    registry: Registry, empty: str, tmp_path: Path
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
            await restore(bad, empty)
        assert str(bad) in caught.value.detail.en
        assert str(bad) in caught.value.detail.zh
    with pytest.raises(UnfitDatabase):
        await open_store(empty)
    with pytest.raises(InvalidFile):
        await restore(tmp_path / "absent.bak", empty)
    await restore(file, empty)


def _rehashed(octets: bytes) -> bytes:
    body = octets[:-32]
    return body + hashlib.sha256(body).digest()


async def test_a_file_made_up_with_a_digest_of_its_own_is_refused(
    registry: Registry, empty: str, tmp_path: Path
) -> None:
    file, bad = tmp_path / "a.bak", tmp_path / "bad.bak"
    made = await backup(registry.url, file)
    with pytest.raises(InvalidFile, match=made.digest.hex()):
        await restore(file, empty, digest=bytes(32))
    good, before = file.read_bytes(), await contents(registry.url)
    chance = random.Random(2)
    refused = 0
    for _ in range(40):
        at = chance.randrange(len(deposit.MAGIC), len(good) - 32)
        changed = good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]
        bad.write_bytes(_rehashed(changed))
        try:
            await restore(bad, empty, overwrite=True)
        except InvalidFile:
            refused += 1
        else:  # what told nothing of the rows, such as when the backup was made
            assert await contents(empty) == before
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
        await restore(bad, empty, overwrite=True)
    assert "Nothing of it was kept" in caught.value.detail.en
    async with opened(empty) as store:
        assert await store.head() == (0, bytes(32))
        assert await store.list_prefixes(None, 10) == []


async def test_a_file_made_up_with_rows_of_no_registry_is_refused(
    registry: Registry, empty: str, tmp_path: Path
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
            await restore(bad, empty)
    for row in (
        [1, b"S", 1, 1, 1, None, ["a list"]],
        [1, b"S", 1, 1, 1, None],
        [1, b"S", 1, 1, 1, None, 1.5],
    ):
        make_up(header.shapes, "records", row)
        with pytest.raises(InvalidFile):
            await restore(bad, empty)
    with pytest.raises(UnfitDatabase, match=r"empty|no file"):
        await open_store(empty)
    make_up(header.shapes, "changelog", ["one", 1, "", "", "", 1, b"", b"", b"", "text"])
    with pytest.raises(InvalidFile):
        await restore(bad, empty)
    with pytest.raises((UnfitDatabase, InvalidFile)):
        await restore(bad, empty)
    await restore(file, empty, overwrite=True)
    async with opened(empty) as store:
        assert not (await audit(store)).faults


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


KILLED = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from registry import deposit
    from registry.sql import loading, transfer
    deposit.RUN_ROWS, loading._COMMIT_BYTES = 2, 1
    what, source, target, left, moment = sys.argv[1:]
    left = int(left)
    write, finish = loading.Loading._write, loading.Loading.finish
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    async def counted(self, *arguments):
        global left
        left -= 1
        if left == 0 and moment == "before":
            die()
        if left == 0 and moment == "within":
            insert = self._insert
            async def inserted(*arguments):
                await insert(*arguments)
                die()
            self._insert = inserted
        await write(self, *arguments)
        if left == 0:
            die()
    async def finished(self, *arguments):
        if moment == "at the end":
            die()
        return await finish(self, *arguments)
    loading.Loading._write, loading.Loading.finish = counted, finished
    if what == "restore":
        made = asyncio.run(transfer.restore(Path(source), target))
    else:
        made = asyncio.run(transfer.move(source, target))
    print(made.resumed)
"""


def _run(what: str, source: str, target: str, left: int, moment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), what, source, target, str(left), moment],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("what", ["restore", "move"])
async def test_what_was_killed_goes_on_and_is_served_by_nobody_before(
    what: str, registry: Registry, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deposit, "RUN_ROWS", 2)
    file = tmp_path / "a.bak"
    await backup(registry.url, file)
    source = str(file) if what == "restore" else registry.url
    for left, moment in ((3, "before"), (3, "within"), (4, "after"), (10**6, "at the end")):
        code, _ = await asyncio.to_thread(_run, what, source, empty, left, moment)
        assert code == -signal.SIGKILL
        with pytest.raises(UnfitDatabase, match="half restored"):
            await open_store(empty)
        with pytest.raises(UnfitDatabase, match="half restored"):
            await migrate(empty)
        with pytest.raises(UnfitDatabase, match="half restored"):
            await backup(empty, tmp_path / "half.bak")
    code, told = await asyncio.to_thread(_run, what, source, empty, -1, "never")
    assert code == 0
    assert int(told) > 6
    assert await contents(empty) == await contents(registry.url)
    async with opened(empty) as store:
        assert not (await audit(store)).faults


async def test_another_source_begins_anew_where_one_was_stopped(
    registry: Registry, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deposit, "RUN_ROWS", 2)
    await asyncio.to_thread(_run, "move", registry.url, empty, 5, "after")
    async with registering(registry.store) as registrar:
        await write(registrar, create("LATER"))
    made = await move(registry.url, empty)
    assert made.resumed == 0
    assert await contents(empty) == await contents(registry.url)


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


async def test_who_writes_into_a_restore_is_found_out(
    registry: Registry, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        await restore(file, empty)
    async with opened(empty) as store:
        assert await store.head() == (0, bytes(32))


async def test_a_backup_of_an_older_schema_is_restored_and_migrated(
    registry: Registry, empty: str, tmp_path: Path
) -> None:
    file, old, unknown = (tmp_path / name for name in ("new.bak", "old.bak", "unknown.bak"))
    await backup(registry.url, file)
    header = Reader(file).header()
    dropped = ("searchable", "indexed_to")
    kept = [shape for shape in header.shapes if shape.table in OLD]
    older = [
        Shape(
            s.table, tuple(c for c in s.columns if c not in dropped or s.table != "prefixes"), s.key
        )
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
        await restore(unknown, empty)
    await restore(old, empty)
    assert (await contents(empty))["records"] == (await contents(registry.url))["records"]
    async with opened(empty) as store:
        assert not (await audit(store)).faults


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


async def test_a_node_that_writes_into_a_restore_is_named(
    registry: Registry, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        await restore(file, empty)
    monkeypatch.undo()
    with pytest.raises(UnfitDatabase, match="half restored"):
        await open_store(empty)
    assert (await restore(file, empty)).resumed == 0
    assert await contents(empty) == await contents(registry.url)
