"""Search: what a page costs, what a cursor tells, whom rights lead to private values."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgpack
import pytest

from biaojie.account import Prefix, PrefixStatus, check_searchable
from biaojie.errors import InvalidRequest, TemporarilyUnavailable
from biaojie.identifier import Key
from biaojie.record import Permissions, Status, Value
from biaojie.wire.handle.typed import AdminRight
from registry.admission import PUBLIC, SYSTEM, Caller
from registry.admission_accounts import decide_change_prefix, decide_home
from registry.changelog import prefix_digest
from registry.handle_rights import HandleIdentity
from registry.indexing import Indexer
from registry.matching import Criterion, Match
from registry.operations import ChangePrefix, HomePrefix, Modify, Operation, Put
from registry.registrar import Registrar
from resolver import search
from resolver.search import START, Findings, Question, Search
from tests.core_parts import ADMIN, GatedStore, create, identifier, registering

URL = Criterion("URL", b"x")
NOTE = Criterion("NOTE", b"x")


def url(data: str = "x", index: int = 1, bits: str = "1110", type_: str = "URL") -> Value:
    return Value(index, type_, data.encode(), permissions=Permissions.parse(bits))


@pytest.fixture
def store() -> GatedStore:
    return GatedStore()


@pytest.fixture
async def registrar(store: GatedStore) -> AsyncIterator[Registrar]:
    async with registering(store) as registrar:
        yield registrar


async def do(registrar: Registrar, *operations: Operation) -> None:
    outcome = await registrar.submit(SYSTEM, operations)
    assert outcome.sequence


async def fill(registrar: Registrar, prefix: str, count: int, *values: Value) -> None:
    await do(registrar, HomePrefix(prefix, "acme", searchable=("URL", "NOTE")))
    names = [identifier(f"N{n:04}", prefix) for n in range(count)]
    await do(registrar, *(Put(name, values or (url(),)) for name in names))


async def find(
    store: GatedStore, *criteria: Criterion, caller: Caller = PUBLIC, **more: Any
) -> Findings:
    return await Search(store).find(caller, Question(criteria or (URL,), **more))


def suffixes(findings: Findings) -> list[str]:
    return [found.suffix for found in findings.identifiers]


# Pages ----------------------------------------------------------------------------------


async def test_the_last_page_says_that_it_is_the_last(
    store: GatedStore, registrar: Registrar
) -> None:
    await fill(registrar, "1.1", 4)
    assert (await find(store, limit=4)).next is None
    page = await find(store, limit=3)
    assert (suffixes(page), page.next) == (["N0000", "N0001", "N0002"], Key("1.1", b"N0002"))
    page = await find(store, limit=3, after=page.next)
    assert (suffixes(page), page.next) == (["N0003"], None)
    assert (await find(store, after=Key("1.1", b"N0003"))).next is None


async def test_a_rare_value_leads_past_the_many_of_a_common_one(
    store: GatedStore, registrar: Registrar
) -> None:
    await fill(registrar, "1.1", 350)
    await do(registrar, Modify(identifier("N0300", "1.1"), (url(index=2, type_="NOTE"),)))
    store.calls.clear()
    for criteria in ((URL, NOTE), (NOTE, URL)):
        assert suffixes(await find(store, *criteria)) == ["N0300"]
    assert store.calls["look_up"] == 2
    assert store.calls["find_matches"] == 4


async def test_a_page_has_a_limit_in_work_and_goes_on(
    store: GatedStore, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two common values, turn by turn, that meet at the end alone."""
    monkeypatch.setattr(search, "ROWS", 5)
    monkeypatch.setattr(search, "ROUNDS_MAX", 2)
    await fill(registrar, "1.1", 60)
    both = (url(), url(index=2, type_="NOTE"))
    odd = (identifier(f"N{n:04}", "1.1") for n in range(1, 60, 2))
    await do(registrar, *(Put(name, both[1:]) for name in odd))
    await do(registrar, Put(identifier("Z", "1.1"), both))
    found: list[str] = []
    pages = 0
    after: Key | None = START
    while after is not None:
        store.calls.clear()
        page = await find(store, URL, NOTE, after=after)
        assert store.calls["look_up"] <= 2
        assert page.next is None or page.next > after
        found += suffixes(page)
        after = page.next
        pages += 1
    assert found == ["Z"]
    assert pages > 2


async def test_no_cursor_tells_of_what_was_passed_over(
    store: GatedStore, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "ROWS", 2)
    monkeypatch.setattr(search, "ROUNDS_MAX", 3)
    for number in range(1, 8):
        await fill(registrar, f"1.{number}", 5)
    for number in range(2, 7):
        await do(registrar, ChangePrefix(f"1.{number}", status=PrefixStatus.SUSPENDED))
    page = await find(store)
    assert suffixes(page) == [f"N000{n}" for n in range(5)]
    assert page.next == Key("1.1", b"N0004")
    # It cannot go on, and says so: a cursor further on would name a prefix that is shut.
    with pytest.raises(TemporarilyUnavailable, match="takes too long"):
        await find(store, after=page.next)
    monkeypatch.setattr(search, "ROUNDS_MAX", 10)
    page = await find(store, after=page.next)
    assert {str(found.prefix) for found in page.identifiers} == {"1.7"}
    assert len((await find(store, caller=ADMIN)).identifiers) > len(page.identifiers)


async def test_values_that_hash_alike_are_told_apart(
    store: GatedStore, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Criterion, "digest", property(lambda self: bytes(16)))
    await fill(registrar, "1.1", 2)
    await do(registrar, Put(identifier("OTHER", "1.1"), (url("y"),)))
    await do(registrar, Put(identifier("SECRET", "1.1"), (url("y", bits="1100"), url("z", 2))))
    assert suffixes(await find(store)) == ["N0000", "N0001"]
    assert suffixes(await find(store, Criterion("URL", b"y"))) == ["OTHER"]


async def test_rows_that_lead_nowhere_lead_nowhere(store: GatedStore, registrar: Registrar) -> None:
    """As after somebody wrote into the database by hand."""
    await fill(registrar, "1.1", 1)
    async with store.inner.transaction() as tx:
        keys = [Key("1.1", b"GONE"), Key("1.2", b"X"), Key("1.1", b"N0000")]
        await tx.change_rows([Match(NOTE.digest, True, key) for key in keys], [])
    assert await find(store, NOTE) == Findings((), None)


# Rights ---------------------------------------------------------------------------------


async def test_a_handle_identity_reads_with_the_right_to(
    store: GatedStore, registrar: Registrar
) -> None:
    await do(registrar, HomePrefix("1.1", "acme", searchable=("URL",)))
    await do(registrar, Put(identifier("A", "1.1"), (url(bits="1100"),)))
    await do(registrar, Put(identifier("B", "1.1"), (url(),), Status.DRAFT))
    caller = Caller("300:1.1/a", handle=HandleIdentity(identifier("a", "1.1"), 300))
    ask = Question((URL,), "1.1")
    finder = Search(store)
    assert suffixes(await finder.find(caller, ask)) == []
    assert suffixes(await finder.find(caller, ask, holds=AdminRight.ADD_VALUE)) == []
    may = await finder.find(caller, ask, holds=AdminRight.AUTHORIZED_READ)
    assert suffixes(may) == ["A", "B"]
    everywhere = await finder.find(caller, Question((URL,)), holds=AdminRight.AUTHORIZED_READ)
    assert suffixes(everywhere) == []


# What a prefix declares -----------------------------------------------------------------


def test_types_are_kept_as_they_are_compared() -> None:
    assert check_searchable(["url", "URL", "10320/loc", "é"]) == ("10320/LOC", "URL", "é")
    assert check_searchable([]) == ()
    assert len(check_searchable([f"T{n}" for n in range(16)])) == 16


@pytest.mark.parametrize(
    "types",
    [
        [""],
        ["a\nb"],
        ["a\0"],
        ["\ud800"],
        ["T" * 129],
        ["hs_seckey"],
        [f"T{n}" for n in range(17)],
    ],
)
def test_types_that_are_none(types: Sequence[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_searchable(types)
    assert refused.value.fields["path"] == "searchable"
    with pytest.raises(InvalidRequest):
        decide_home(HomePrefix("1.1", "acme", searchable=tuple(types)), ADMIN, None, 0)
    change = ChangePrefix("1.1", searchable=tuple(types))
    with pytest.raises(InvalidRequest):
        decide_change_prefix(change, ADMIN, Prefix("1.1", "acme"))


def test_the_digest_of_a_prefix_without_is_what_it_was() -> None:
    plain = Prefix("1.1", "acme", created=7)
    packed = msgpack.packb(["1.1", "acme", "active", 1, 7])
    assert prefix_digest(plain) == hashlib.sha256(packed).digest()
    assert prefix_digest(Prefix("1.1", "acme", created=7, indexing=True)) == prefix_digest(plain)
    some = {
        prefix_digest(Prefix("1.1", "acme", created=7, searchable=types))
        for types in ((), ("A",), ("A", "B"), ("AB",))
    }
    assert len(some) == 4


def test_only_other_types_are_indexed_anew() -> None:
    prefix = decide_home(HomePrefix("1.1", "acme", searchable=("url",)), ADMIN, None, 0)
    assert (prefix.searchable, prefix.indexing) == (("URL",), False)
    same = decide_change_prefix(ChangePrefix("1.1", "beta"), ADMIN, prefix)
    assert (same.searchable, same.indexing, same.tenant) == (("URL",), False, "beta")
    other = decide_change_prefix(ChangePrefix("1.1", searchable=()), ADMIN, prefix)
    assert (other.searchable, other.indexing, other.version) == ((), True, 2)
    back = decide_change_prefix(ChangePrefix("1.1", searchable=("URL",)), ADMIN, other)
    assert back.indexing
    away = decide_change_prefix(ChangePrefix("1.1", status=PrefixStatus.UNHOMED), ADMIN, prefix)
    again = decide_home(HomePrefix("1.1", "acme"), ADMIN, away, 0)
    assert (again.searchable, again.indexing) == (("URL",), False)
    anew = decide_home(HomePrefix("1.1", "acme", searchable=("X",)), ADMIN, away, 0)
    assert (anew.searchable, anew.indexing) == (("X",), True)


# The job --------------------------------------------------------------------------------


async def until_indexed(store: GatedStore, left: int = 0) -> None:
    async with asyncio.timeout(10):
        while len(await store.inner.list_indexing()) > left:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_indexing_outlives_a_registry_that_is_away(
    store: GatedStore, registrar: Registrar
) -> None:
    await do(registrar, HomePrefix("1.1", "acme"), create(prefix="1.1", values=(url(),)))
    await do(registrar, ChangePrefix("1.1", searchable=("URL",)))
    store.errors["transaction"] = TemporarilyUnavailable()
    indexer = Indexer(store, poll_s=0.001)
    indexer.start()
    before = store.calls["transaction"]
    async with asyncio.timeout(10):
        while store.calls["transaction"] < before + 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert await store.inner.list_indexing()
    del store.errors["transaction"]
    await until_indexed(store)
    assert suffixes(await find(store)) == ["SN1"]
    await indexer.stop()


async def test_a_prefix_that_cannot_be_read_holds_up_no_other(
    store: GatedStore, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prefix in ("1.1", "1.2"):
        await do(registrar, HomePrefix(prefix, "acme"), create(prefix=prefix, values=(url(),)))
        await do(registrar, ChangePrefix(prefix, searchable=("URL",)))
    records: Any = store.inner._state.records
    damaged = records[Key("1.1", b"SN1")]
    records[Key("1.1", b"SN1")] = "damaged"
    indexer = Indexer(store, poll_s=30)
    indexer.start()
    await until_indexed(store, left=1)
    with pytest.raises(TemporarilyUnavailable, match=r"1\.1"):
        await find(store)
    assert suffixes(await find(store, prefix="1.2")) == ["SN1"]
    records[Key("1.1", b"SN1")] = damaged
    indexer.clear()
    await until_indexed(store)
    await indexer.stop()
    assert len((await find(store)).identifiers) == 2


async def test_indexing_stops_after_the_page(
    store: GatedStore, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.indexing.PAGE_RECORDS", 1)
    await do(registrar, HomePrefix("1.1", "acme"))
    await do(registrar, *(create(f"N{n}", prefix="1.1", values=(url(),)) for n in range(5)))
    await do(registrar, ChangePrefix("1.1", searchable=("URL",)))
    store.close_gate("commit")
    indexer = Indexer(store)
    indexer.start()
    await store.reached("commit")
    stopping = asyncio.create_task(indexer.stop())
    await asyncio.sleep(0)
    store.open_gate("commit")
    await asyncio.wait_for(stopping, 5)
    async with store.inner.transaction() as tx:
        assert await tx.indexed_to("1.1") == b"N0"
