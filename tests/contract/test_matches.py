"""The index of values on each kind of store: rows, pages, progress, and what writes make of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from biaojie.account import Prefix
from biaojie.errors import BiaojieError
from biaojie.identifier import Identifier, Key
from biaojie.record import Permissions, Status, Value
from registry import indexing
from registry.admission import SYSTEM
from registry.audit import audit
from registry.indexing import Indexer, index_page
from registry.matching import Criterion, Match, rows_of
from registry.operations import (
    ChangePrefix,
    Create,
    HomePrefix,
    Modify,
    Operation,
    Purge,
    Put,
    Retire,
)
from registry.registrar import Registrar
from registry.store import Store
from tests.contract.sample import PREFIX, home, put, record

START = Key("", b"")
DIGEST = Criterion("URL", b"x").digest


def row(suffix: str, prefix: str = PREFIX, *, public: bool = True, digest: bytes = DIGEST) -> Match:
    return Match(digest, public, Key(prefix, suffix.encode()))


async def change(store: Store, added: list[Match], removed: list[Match] | None = None) -> None:
    async with store.transaction() as tx:
        await tx.change_rows(added, removed or [])


async def find(
    store: Store,
    after: Key = START,
    limit: int = 100,
    *,
    prefix: str | None = None,
    private: bool = False,
    digest: bytes = DIGEST,
) -> list[str]:
    keys = await store.find_matches(
        digest, private=private, prefix=prefix, after=after, limit=limit
    )
    return [f"{key.prefix}/{key.suffix.decode()}" for key in keys]


async def test_rows_come_in_order_of_prefix_and_suffix_page_by_page(store: Store) -> None:
    names = [f"{prefix}/{suffix}" for prefix in ("1", "1.2", "10", "2") for suffix in "ABC"]
    rows = [row(name.partition("/")[2], name.partition("/")[0]) for name in names]
    random.Random(1).shuffle(rows)
    await change(store, rows)
    assert await find(store) == names
    paged: list[str] = []
    after = START
    while page := await find(store, after, 5):
        paged += page
        prefix, _, suffix = page[-1].partition("/")
        after = Key(prefix, suffix.encode())
    assert paged == names
    assert await find(store, prefix="10") == ["10/A", "10/B", "10/C"]
    assert await find(store, Key("10", b"A"), 1, prefix="10") == ["10/B"]
    assert await find(store, Key("2", b""), prefix="10") == []
    assert await find(store, Key("1.2", b"C"), prefix="10", limit=2) == ["10/A", "10/B"]
    assert await find(store, Key("1", b"\xff"), 1) == ["1.2/A"]
    assert await find(store, prefix="3") == []
    assert await find(store, digest=bytes(16)) == []


async def test_private_rows_are_for_those_who_ask_for_them(store: Store) -> None:
    await change(store, [row("a"), row("b", public=False), row("c"), row("d", public=False)])
    assert await find(store) == [f"{PREFIX}/a", f"{PREFIX}/c"]
    assert await find(store, private=True) == [f"{PREFIX}/{name}" for name in "abcd"]
    assert await find(store, Key(PREFIX, b"a"), 2, private=True, prefix=PREFIX) == [
        f"{PREFIX}/b",
        f"{PREFIX}/c",
    ]


async def test_rows_may_be_added_and_removed_again_and_again(store: Store) -> None:
    for _ in range(2):
        await change(store, [row("a"), row("b")])
    assert await find(store) == [f"{PREFIX}/a", f"{PREFIX}/b"]
    for _ in range(2):
        await change(store, [row("c")], [row("a"), row("a", public=False), row("none")])
    assert await find(store) == [f"{PREFIX}/b", f"{PREFIX}/c"]
    await change(store, [])


async def test_rows_are_of_the_transaction(store: Store, peer: Store) -> None:
    await change(store, [row("a")])

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.change_rows([row("b")], [row("a")])
            assert await find(peer) == [f"{PREFIX}/a"]
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await find(peer) == [f"{PREFIX}/a"]


async def test_octets_of_any_kind_are_suffixes(store: Store) -> None:
    suffixes = ["0", "A'\"\\%_", "标识", "é", "~"]
    await change(store, [row(suffix) for suffix in suffixes])
    found = await find(store)
    assert found == [f"{PREFIX}/{s}" for s in sorted(suffixes, key=str.encode)]


async def test_what_a_prefix_declares_is_kept(store: Store, peer: Store) -> None:
    declared = Prefix(PREFIX, "acme", searchable=("10320/LOC", "URL", "类型 X"), indexing=True)
    async with store.transaction() as tx:
        await tx.put_prefixes([declared, Prefix("1", "b", searchable=("URL",))])
        assert await tx.indexed_to(PREFIX) == b""
        assert (await tx.find_prefixes([PREFIX]))[PREFIX] == declared
    await put(store, record("a"))
    assert (await peer.find_prefixes([PREFIX]))[PREFIX] == declared
    found = await peer.look_up([Key(PREFIX, b"A"), Key(PREFIX, b"none"), Key("1", b"none")])
    assert [f.prefix and f.prefix.searchable for f in found] == [declared.searchable] * 2 + [
        ("URL",)
    ]
    assert found[0].record == record("a")
    assert found[0].prefix == declared
    assert await peer.list_indexing() == [declared]
    assert await peer.list_prefixes(PREFIX[:-1], 1) == [declared]


async def test_progress_is_noted(store: Store, peer: Store) -> None:
    async with store.transaction() as tx:
        names = ["3", "1", "2"]
        await tx.put_prefixes([Prefix(n, "t", searchable=("URL",), indexing=True) for n in names])
        await tx.put_prefixes([Prefix("4", "t", searchable=("URL",))])
        assert await tx.indexed_to("none") is None
        assert await tx.indexed_to("4") is None
    assert [p.name for p in await peer.list_indexing()] == ["1", "2", "3"]
    async with store.transaction() as tx:
        await tx.set_indexed_to("1", None)
        await tx.set_indexed_to("2", "é".encode())
        assert await tx.indexed_to("2") == "é".encode()
        assert await tx.indexed_to("1") is None
    assert [p.name for p in await peer.list_indexing()] == ["2", "3"]
    assert not (await peer.find_prefixes(["1"]))["1"].indexing
    async with peer.transaction() as tx:
        assert await tx.indexed_to("2") == "é".encode()
        await tx.put_prefixes([Prefix("2", "t", searchable=("X",), indexing=True)])
        assert await tx.indexed_to("2") == b""


async def test_a_transaction_lists_what_it_has_written(store: Store) -> None:
    await home(store)
    await put(store, *(record(name) for name in "ACEG"))
    async with store.transaction() as tx:
        await tx.put_records({Key(PREFIX, b"B"): record("B"), Key(PREFIX, b"C"): record("C2")})
        await tx.purge_records([Key(PREFIX, b"A")], 2)
        listed = await tx.list_records(PREFIX, None, 3)
        assert [r.identifier.suffix for r in listed] == ["B", "C2", "E"]
        listed = await tx.list_records(PREFIX, b"C", 9)
        assert [r.identifier.suffix for r in listed] == ["E", "G"]


# What the registrar makes of it ---------------------------------------------------------


@pytest.fixture
async def registrar(store: Store) -> AsyncIterator[Registrar]:
    registrar = Registrar(store)
    registrar.start()
    yield registrar
    await registrar.stop()


async def do(registrar: Registrar, *operations: Operation) -> None:
    await registrar.submit(SYSTEM, operations, mode="valid-rows")


def url(data: str, index: int = 1, bits: str = "1110", type_: str = "URL") -> Value:
    return Value(index, type_, data.encode(), permissions=Permissions.parse(bits))


def name(suffix: str, prefix: str = PREFIX) -> Identifier:
    return Identifier(prefix, suffix)


def of(data: str, type_: str = "URL") -> bytes:
    return Criterion(type_, data.encode()).digest


async def test_rows_follow_every_kind_of_write(store: Store, registrar: Registrar) -> None:
    async def at(data: str, *, private: bool = False) -> list[str]:
        found = await find(store, digest=of(data), private=private)
        return [text.partition("/")[2] for text in found]

    await do(registrar, HomePrefix(PREFIX, "acme", searchable=("url",)))
    await do(registrar, Create(name("a"), (url("1"), url("1", 2, type_="OTHER"))))
    await do(registrar, Create(name("b"), (url("1", type_="Url"), url("2", 2, "1100"))))
    await do(registrar, Create(name("d"), (url("1"),), Status.DRAFT))
    assert await at("1") == ["A", "B"]
    assert await at("1", private=True) == ["A", "B", "D"]
    assert (await at("2"), await at("2", private=True)) == ([], ["B"])
    assert await find(store, digest=of("1", "OTHER"), private=True) == []
    await do(registrar, Put(name("a"), (url("3"),)))
    assert (await at("1"), await at("3")) == (["B"], ["A"])
    await do(registrar, Modify(name("d"), status=Status.ACTIVE))
    assert await at("1") == ["B", "D"]
    await do(registrar, Modify(name("b"), (url("2", 2),), (1,)))
    assert (await at("1"), await at("2")) == (["D"], ["B"])
    await do(registrar, Retire(name("b")), Purge(name("d")))
    assert (await at("1", private=True), await at("2", private=True)) == ([], [])
    await do(registrar, Purge(name("b")), Create(name("b"), (url("4"),)), Retire(name("a")))
    assert (await at("3", private=True), await at("4")) == ([], ["B"])


async def test_what_nobody_may_read_has_no_row(store: Store, registrar: Registrar) -> None:
    await do(registrar, HomePrefix(PREFIX, "acme", searchable=("URL",)))
    await do(registrar, Create(name("a"), (url("1", 1, "0000"), url("2", 2, "0101"))))
    for data in ("1", "2"):
        assert await find(store, digest=of(data), private=True) == []


async def test_a_refused_write_leaves_no_row(store: Store, registrar: Registrar) -> None:
    await do(registrar, HomePrefix(PREFIX, "acme", searchable=("URL",)))
    rows = [Create(name("a"), (url("1"),)), Create(name("a"), (url("2"),))]
    with pytest.raises(BiaojieError):
        await registrar.submit(SYSTEM, rows, mode="all")
    await registrar.submit(SYSTEM, rows[:1], dry_run=True)
    assert await find(store, digest=of("1"), private=True) == []


async def index_all(store: Store) -> None:
    for prefix in await store.list_indexing():
        while await index_page(store, prefix):
            pass
    assert await store.list_indexing() == []


async def test_declared_later_the_records_are_indexed_in_pages(
    store: Store, peer: Store, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "PAGE_RECORDS", 4)
    await do(registrar, HomePrefix(PREFIX, "acme"))
    await do(registrar, *(Create(name(f"n{n}"), (url("1"),)) for n in range(10)))
    assert await find(store, digest=of("1")) == []
    await do(registrar, ChangePrefix(PREFIX, searchable=("URL",)))
    [prefix] = await store.list_indexing()
    assert (prefix.searchable, prefix.indexing) == (("URL",), True)
    assert await index_page(store, prefix)
    assert len(await find(store, digest=of("1"))) == 4
    # Writes on both sides of where it has come to; a restart goes on there.
    await do(registrar, Put(name("n0"), (url("2"),)), Put(name("n9"), (url("2"),)))
    await do(registrar, Purge(name("n1")), Purge(name("n8")), Create(name("m"), (url("1"),)))
    await do(registrar, ChangePrefix(PREFIX, tenant="other"))  # begins again, and loses nothing
    await index_all(peer)
    expected = ["M", *(f"N{n}" for n in range(2, 8))]
    assert await find(store, digest=of("1")) == [f"{PREFIX}/{suffix}" for suffix in expected]
    assert await find(store, digest=of("2")) == [f"{PREFIX}/N0", f"{PREFIX}/N9"]
    await do(registrar, ChangePrefix(PREFIX, searchable=("X",)))
    await do(registrar, Put(name("n2"), (url("3"),)))
    await index_all(store)
    for data in "123":
        assert await find(store, digest=of(data), private=True) == []
    assert (await audit(store)).faults == []


async def test_the_same_types_again_are_no_change(store: Store, registrar: Registrar) -> None:
    await do(registrar, HomePrefix(PREFIX, "acme", searchable=("URL", "a", "A")))
    await do(registrar, ChangePrefix(PREFIX, searchable=("A", "url")))
    assert await store.list_indexing() == []
    assert (await store.find_prefixes([PREFIX]))[PREFIX].searchable == ("A", "URL")


async def test_the_indexer_finds_its_work(store: Store, registrar: Registrar) -> None:
    indexer = Indexer(store, poll_s=30)
    indexer.start()
    await do(registrar, HomePrefix(PREFIX, "acme"))
    await do(registrar, Create(name("a"), (url("1"),)))
    await do(registrar, ChangePrefix(PREFIX, searchable=("URL",)))
    indexer.forget((await store.list_changes(2, 1))[0])
    async with asyncio.timeout(10):
        while await store.list_indexing():  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert await find(store, digest=of("1")) == [f"{PREFIX}/A"]
    await indexer.stop()


async def test_any_history_leaves_the_rows_of_what_is_there(
    store: Store, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random writes and declarations, with the index being made in between, on every store."""
    monkeypatch.setattr(indexing, "PAGE_RECORDS", 3)
    chance = random.Random(7)
    types, data, names = ["URL", "url", "B"], ["1", "2"], ["a", "B", "c", "d", "e"]
    prefixes = [PREFIX, "88.118.9"]
    await do(registrar, *(HomePrefix(prefix, "acme") for prefix in prefixes))

    def values() -> tuple[Value, ...]:
        bits = ["1110", "1110", "1100", "0000"]
        return tuple(
            url(chance.choice(data), n, chance.choice(bits), chance.choice(types))
            for n in range(1, chance.randint(1, 4))
        )

    def operation() -> Operation:
        at = name(chance.choice(names), chance.choice(prefixes))
        status = chance.choice([None, Status.DRAFT, Status.ACTIVE])
        declared: tuple[str, ...] = chance.choice([("URL",), ("B",), ("B", "URL"), ()])
        operations: list[Operation] = [
            Put(at, values(), status),
            Put(at, values(), status),
            Modify(at, values(), (), status),
            Retire(at),
            Purge(at),
            ChangePrefix(at.prefix, searchable=declared),
        ]
        return chance.choice(operations)

    for _ in range(60):
        await do(registrar, *(operation() for _ in range(chance.randint(1, 4))))
        unfinished = await store.list_indexing()
        if unfinished and chance.random() < 0.5:
            await index_page(store, chance.choice(unfinished))
    await index_all(store)
    expected: set[Match] = set()
    for prefix in await store.list_prefixes(None, 9):
        for found in await store.list_records(prefix.name, None, 99):
            expected |= rows_of(found.identifier.key(), found, prefix.searchable)
    assert expected
    got: set[Match] = set()
    for digest in {of(d, t) for d in data for t in ("URL", "B")}:
        page = {"prefix": None, "after": START, "limit": 999}
        public = await store.find_matches(digest, private=False, **page)  # type: ignore[arg-type]
        every = await store.find_matches(digest, private=True, **page)  # type: ignore[arg-type]
        got |= {Match(digest, key in public, key) for key in every}
        assert len(every) == len(set(every))
    assert got == expected
