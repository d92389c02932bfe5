"""What there is by prefix, template, layer and state, counted bit by bit and counted anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from biaojie.account import Prefix
from biaojie.errors import BiaojieError, TooLarge
from biaojie.identifier import Identifier, fold_prefix
from biaojie.record import Status, Value
from registry import range_staging
from registry.admission import SYSTEM
from registry.blocks import Chunk, cut
from registry.census import (
    ALL_PREFIXES,
    Kind,
    Layer,
    Shift,
    added,
    pack_shift,
    unpack_shift,
)
from registry.operations import ChangePrefix, CutRange, Purge, RegisterRange, Retire
from registry.patterns import parse_pattern
from registry.registrar import Registrar
from registry.sql import SqlStore, UnfitDatabase, migrate, open_store
from registry.sql.engine import Limits, Pools, read_url
from registry.sql.recount import recount
from registry.sql.schema import upgrade
from registry.statistics import ALL_DAYS, Scope, as_document, report
from registry.store import Store
from tests.citus import CITUS_URL
from tests.core_parts import create, home, identifier, modify, put, registering, write
from tests.recount import check_census, recounted

A, B = "88.118.8", "cn.Acme"
BOTH = [A, B]
NOW = 1_700_000_000
TODAY = NOW // 86_400
T1, T2 = "88.118.8/T1", "88.118.8/T2"
URL = Value(1, "URL", b"https://acme.example/{number}")


@pytest.fixture
async def registrar(store: Store) -> AsyncIterator[Registrar]:
    async with registering(store, clock=lambda: float(NOW)) as made:
        await home(made, A)
        await home(made, B, "beta")
        yield made


async def load(registrar: Registrar, names: list[str], prefix: str = A, **fields: Any) -> int:
    run = Chunk(prefix, sorted(names), [[]], [], **fields)
    return (await registrar.load(SYSTEM, cut(run, NOW))).count


async def register(registrar: Registrar, pattern: str, **fields: Any) -> None:
    await write(registrar, RegisterRange(A, parse_pattern(pattern), (URL,), **fields))


async def cut_out(registrar: Registrar, pattern: str, *, purge: bool) -> None:
    await write(registrar, CutRange(A, parse_pattern(pattern), purge))


async def some_of_all(registrar: Registrar) -> None:
    """Every layer and state, names that lie over others, and marks of purges."""
    await write(registrar, create("D1", status=Status.DRAFT), create("R1", template=T1))
    await write(registrar, modify("R1", status=Status.FROZEN), create("X1", prefix=B))
    await load(registrar, [f"B{n:03}" for n in range(60)], template=T2)
    await load(registrar, [f"F{n:03}" for n in range(5)], B, status=Status.FROZEN)
    await register(registrar, "SN{000..999}", template=T1)
    await write(registrar, put("B001", template=T1), Retire(identifier("B002")))
    await write(registrar, Purge(identifier("B003")), Purge(identifier("SN500")))
    await write(registrar, modify("SN100", status=Status.DRAFT), Retire(identifier("SN200")))
    await write(registrar, put("SN300", template=T2), Purge(Identifier(B, "F001")))


async def whole(store: Store, scope: Scope = Scope()) -> Any:  # noqa: B008  (frozen)
    while await store.fold_statistics():
        pass
    return await report(store, scope, TODAY, 1)


async def test_a_report_by_template_layer_and_state(store: Store, registrar: Registrar) -> None:
    await some_of_all(registrar)
    await check_census(store, BOTH)
    made = await whole(store)
    assert made.identifiers == made.total.identifiers == made.population.total
    assert made.population.layers == {Layer.ROWS: 8, Layer.BLOCKS: 61, Layer.RANGES: 996}
    states = {Status.DRAFT: 2, Status.ACTIVE: 1056, Status.FROZEN: 5, Status.RETIRED: 2}
    assert made.population.states == states
    assert made.templates == ((T1, 1000), (T2, 59), ("", 6))
    assert made.others == 0
    document = as_document(made)
    assert document["total"]["layers"] == {"rows": 8, "blocks": 61, "ranges": 996}
    assert document["prefixes"][1]["layers"] == {"rows": 1, "blocks": 4, "ranges": 0}
    assert document["prefixes"][1]["states"] == {
        "draft": 0,
        "active": 1,
        "frozen": 4,
        "retired": 0,
    }
    assert document["templates"][2] == {"template": None, "identifiers": 6}
    first = await whole(store, Scope(templates=1))
    assert (first.templates, first.others) == (((T1, 1000),), 65)
    assert (await whole(store, Scope(templates=0))).others == 1065
    one = await whole(store, Scope(prefix=Prefix(B, "beta")))
    assert (one.identifiers, one.templates) == (5, (("", 5),))
    beta = await whole(store, Scope(tenant="beta"))
    assert (beta.population, beta.templates) == (one.population, one.templates)
    await write(registrar, ChangePrefix(B, tenant="acme"))
    assert (await whole(store, Scope(tenant="beta"))).identifiers == 0
    acme = await whole(store, Scope(tenant="acme"))
    assert (acme.population, acme.templates) == (made.population, made.templates)


async def test_compaction_moves_from_layer_to_layer(store: Store, registrar: Registrar) -> None:
    await some_of_all(registrar)
    before = await whole(store)
    await registrar.compact(SYSTEM, A, before=1 << 40)
    await check_census(store, BOTH)
    after = await whole(store)
    assert after.population.states == before.population.states
    assert after.templates == before.templates
    moved = after.population.layers[Layer.BLOCKS] - before.population.layers[Layer.BLOCKS]
    assert moved == before.population.layers[Layer.ROWS] - after.population.layers[Layer.ROWS] > 0
    assert after.total == before.total


@pytest.mark.parametrize("compacted", [False, True])
async def test_a_cut_counts_only_members_that_the_range_still_answers_for(
    store: Store, registrar: Registrar, compacted: bool
) -> None:
    await register(registrar, "SN{000..999}")
    await register(registrar, "SN{2000..2100..4}")
    own = [f"SN{n:03}" for n in (*range(100, 112), 300)]
    await write(registrar, *(put(name) for name in own), Purge(identifier("SN113")))
    await write(registrar, put("SN2004"), create("SN2005"), create("SN1000"))
    if compacted:
        await registrar.compact(SYSTEM, A, before=1 << 40)
    await cut_out(registrar, "SN{100..199}", purge=True)
    made = await whole(store)
    # 100 members, of which 12 are records of their own, and one was purged before
    assert made.total.purged == 1 + 100 - 13
    await check_census(store, BOTH)
    await cut_out(registrar, "SN{250..349}", purge=False)
    assert (await whole(store)).total.retired == 99
    await cut_out(registrar, "SN{2000..2010}", purge=False)
    made = await whole(store)
    assert made.total.retired == 99 + 2
    await cut_out(registrar, "SN{240..259}", purge=True)  # some of them retired
    counted = await check_census(store, BOTH)
    made = await whole(store)
    assert made.total.identifiers == made.identifiers
    assert sum(n for kind, n in counted.items() if kind.prefix == A) == made.identifiers
    by_prefix = await store.read_statistics([fold_prefix(A)], [ALL_DAYS])
    assert by_prefix.totals(ALL_DAYS, [fold_prefix(A)]) == replace(made.total, resolved=0)


async def test_a_cut_looks_at_so_many_other_names_and_no_more(
    store: Store, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(registrar, "SN{000..999}")
    await write(registrar, *(put(f"SN{n:03}") for n in range(20)))
    monkeypatch.setattr(range_staging, "NAMES_SEEN_MAX", 19)
    with pytest.raises(TooLarge):
        await cut_out(registrar, "SN{000..500}", purge=True)
    await cut_out(registrar, "SN{005..500}", purge=True)
    await check_census(store, BOTH)


async def test_what_is_refused_or_only_tried_changes_nothing(
    store: Store, registrar: Registrar
) -> None:
    await write(registrar, create("S1"))
    operations = [create("S2"), create("S1")]
    await registrar.submit(SYSTEM, operations, mode="valid-rows")
    for mode in ("all", "valid-rows"):
        try:
            await registrar.submit(SYSTEM, [create("S3"), create("S1")], mode=mode, dry_run=True)
        except BiaojieError:
            assert mode == "all"
    await write(registrar, create("S4"), Purge(identifier("S4")), create("S4", template=T1))
    counted = await check_census(store, BOTH)
    assert {k.template: n for k, n in counted.items() if k.prefix == A} == {"": 2, T1: 1}


# Logs that began before ------------------------------------------------------------------


@pytest.fixture
def sql_url(store_url: str | None) -> str:
    if store_url is None:
        pytest.skip("nothing in memory was there before")
    if store_url == CITUS_URL:
        pytest.skip("is not counted anew")
    return store_url


@pytest.fixture
def sql_store(sql_url: str, store: Store) -> SqlStore:
    assert isinstance(store, SqlStore)
    return store


async def forget(store: SqlStore) -> None:
    """As if a program before the census had written all entries, and migrated then."""
    async with store.reach.write() as connection:
        for statement in (
            "UPDATE changelog SET shift = NULL",
            "UPDATE statistics_head SET census = NULL",
            "DELETE FROM census",
        ):
            await connection.execute(sa.text(statement))


async def test_what_was_there_before_is_counted_once_and_then_the_log_goes_on(
    sql_store: SqlStore, sql_url: str, registrar: Registrar
) -> None:
    store = sql_store
    await some_of_all(registrar)
    await registrar.compact(SYSTEM, A, before=1 << 40)
    await write(registrar, put("B010"), put("SN010"), Purge(identifier("B011")))
    expected = (await whole(store)).population
    await forget(store)
    made = await whole(store)
    assert (made.population, made.populations, made.templates, made.others) == (None,) * 4
    assert made.identifiers == made.total.identifiers == expected.total
    document = as_document(made)
    assert document["total"]["layers"] is document["total"]["states"] is None
    assert document["prefixes"][0]["layers"] is document["templates"] is None
    await write(registrar, create("N1"))
    await store.fold_statistics()
    begun: list[str] = []
    await recount(sql_url, store, begun.append)
    assert begun == [A, B]
    await check_census(store, BOTH)
    assert (await whole(store)).identifiers == expected.total + 1
    await write(registrar, create("N2"), Retire(identifier("SN900")))
    await check_census(store, BOTH)
    await recount(sql_url, store)  # where nothing is missing it changes nothing
    await check_census(store, BOTH)


async def test_what_is_written_while_it_is_counted_anew_is_counted_by_the_log(
    sql_store: SqlStore, sql_url: str, registrar: Registrar
) -> None:
    """Some entries are counted by action before the census has them, and some are not."""
    store = sql_store
    await some_of_all(registrar)
    await forget(store)
    await store.fold_statistics()
    sequence = (await store.head())[0]
    counted = Shift(await recounted(store, BOTH))
    await write(registrar, create("N1", template=T2), Purge(identifier("R1")))
    await load(registrar, [f"N3{n}" for n in range(9)])
    await store.fold_statistics()
    await write(registrar, create("N2"))
    await store.replace_census(counted, sequence)
    assert (await store.read_census([A])).counts is None  # not up to the same entry
    await check_census(store, BOTH)
    assert (await whole(store)).total.identifiers == (await whole(store)).identifiers
    # And where the moment of counting lies after what is counted by action.
    await write(registrar, create("N4"))
    await recount(sql_url, store)
    assert (await store.read_census([A])).counts is None
    await check_census(store, BOTH)


async def test_an_entry_without_its_shift_is_not_taken_for_one_that_changes_nothing(
    sql_store: SqlStore, sql_url: str, registrar: Registrar
) -> None:
    await write(registrar, create("S1"))
    async with sql_store.reach.write() as connection:
        await connection.execute(sa.text("UPDATE changelog SET shift = NULL WHERE sequence = 3"))
    assert (await whole(sql_store)).population is None
    await recount(sql_url, sql_store)
    await check_census(sql_store, BOTH)


async def test_names_that_do_not_fold_are_counted_anew(sqlite_url: str) -> None:
    store = await open_store(sqlite_url)
    await store.settle_rules(case_sensitive=True)
    from registry.staging import Rules

    async with registering(store, rules=Rules(case_sensitive=True)) as registrar:
        await home(registrar, A)
        for stem in ("sn", "SN", "a", "b"):
            await register(registrar, stem + "{000..299}")
        await write(registrar, put("sn001"), put("SN002"), create("Sn001"))
        before = await whole(store)
        await forget(store)
        await recount(sqlite_url, store)
        after = await whole(store)
        assert (after.population, after.templates) == (before.population, before.templates)
        assert after.identifiers == 1201
    await store.close()


@pytest.mark.skipif(not CITUS_URL, reason="names no Citus cluster")
async def test_over_citus_it_is_not_counted_anew(citus_url: str) -> None:
    store = await open_store(citus_url)
    with pytest.raises(UnfitDatabase, match="Citus"):
        await recount(citus_url, store)
    await store.close()


@pytest.mark.parametrize("written", [False, True])
async def test_a_registry_of_the_schema_before_knows_that_it_is_not_counted(
    tmp_path: Path, written: bool
) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    (tmp_path / "registry.db").touch()
    pools = Pools(read_url(url), Limits())
    async with pools.write() as connection:
        await connection.begin()
        await connection.run_sync(lambda sync: upgrade(sync, "0005"))
        if written:
            entry = f"1, 5, 'k', 'home-prefix', '{A}', 1, x'00', x'00', x'00', x'90'"
            await connection.execute(sa.text(f"INSERT INTO changelog VALUES ({entry})"))
            await connection.execute(sa.text("UPDATE chain_head SET sequence = 1"))
    await pools.close()
    await migrate(url)
    store = await open_store(url)
    assert ((await whole(store)).population is None) is written
    await recount(url, store)
    assert (await whole(store)).population.total == 0
    await store.close()


# The stored form ------------------------------------------------------------------------


def test_a_shift_is_stored_and_read_again() -> None:
    shift: Shift = Shift()
    for n, layer in enumerate(Layer):
        for m, state in enumerate(Status):
            shift[Kind(A, T1 if m % 2 else "", layer, state)] = 10**12 * n - m - 1
    shift[Kind(A, T2, Layer.ROWS, Status.ACTIVE)] = 0
    assert unpack_shift(pack_shift(shift)) == {k: n for k, n in shift.items() if n}
    # The form is permanent.
    plain = Shift({Kind("88.1", "", Layer.BLOCKS, Status.ACTIVE): 3})
    assert pack_shift(plain).hex() == "9194a438382e31a00503"
    total = added([pack_shift(plain), pack_shift(plain)])
    assert total == dict.fromkeys((*plain, next(iter(plain))._replace(prefix=ALL_PREFIXES)), 6)
    assert added([pack_shift(plain), None]) is None
    for wrong in (b"", b"\xc1", b"\x91\x01", bytes.fromhex("9194a438382e31a06303")):
        with pytest.raises(ValueError, match="not a packed shift"):
            unpack_shift(wrong)
