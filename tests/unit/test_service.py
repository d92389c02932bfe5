"""What the node does for whom: views, lists, the log as each tenant may see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from biaojie.account import PrefixStatus, Role
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    Forbidden,
    IdentifierNotFound,
    IdentifierRetired,
    NotFound,
    PrefixNotHere,
    PrefixSuspended,
    Unauthenticated,
)
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Status, Value
from registry.admission import PUBLIC, SYSTEM, Caller
from registry.operations import ChangePrefix, HomePrefix, Retire
from resolver import service as service_module
from resolver.core import Source
from resolver.query import Query, Resolution, select
from tests.core_parts import (
    ACME,
    ACME_READER,
    ADMIN,
    BETA,
    PREFIX,
    GatedStore,
    Parts,
    create,
    home,
    identifier,
    key,
    secret,
    value,
    write,
)

OTHER = "88.118.9"


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    """A node with acme's 88.118.8 and beta's 88.118.9."""
    async with Parts(GatedStore()) as parts:
        await home(parts.registrar)
        await home(parts.registrar, OTHER, "beta")
        yield parts


# What is asked for ----------------------------------------------------------------------


def typed(*types: str) -> Record:
    values = tuple(Value(n, type_, b"") for n, type_ in enumerate(types, 1))
    return Record(identifier(), values)


@pytest.mark.parametrize(
    ("indexes", "types", "chosen"),
    [
        ((), (), [1, 2, 3, 4, 5]),
        ((2,), (), [2]),
        ((2, 5, 99), (), [2, 5]),
        ((99,), (), []),
        ((), ("URL",), [1]),
        ((), ("url",), [1]),
        ((), ("URL.",), [1, 2, 3]),
        ((), ("url.pdf.",), [2]),
        ((), ("URL.PDF",), [2]),
        ((), ("URLX.",), [4]),
        ((), (".",), []),
        ((), ("",), []),
        ((), ("EMAIL", "URLX"), [4, 5]),
        ((3,), ("EMAIL",), [3, 5]),
        ((), ("NONE",), []),
        # Only ASCII letters fold: the Kelvin sign is no k.
        ((), ("\u212a",), []),
    ],
)
def test_select(indexes: tuple[int, ...], types: tuple[str, ...], chosen: list[int]) -> None:
    record = typed("URL", "URL.pdf", "url.HTML", "URLX", "email")
    view = select(record, Query(identifier(), indexes, types))
    assert [v.index for v in view.values] == chosen
    assert replace(view, values=record.values) == record


def test_types_fold_as_everywhere_else() -> None:
    record = typed("k", "straße")
    assert select(record, Query(identifier(), (), ("K",))).values == record.values[:1]
    assert select(record, Query(identifier(), (), ("STRASSE",))).values == ()


# Who sees what --------------------------------------------------------------------------

UNREADABLE = Value(7, "HIDDEN", b"nobody", permissions=Permissions(0))


async def view(parts: Parts, caller: Caller, suffix: str = "SN1", **options: Any) -> Any:
    """(indexes, private) of what the caller gets, or the error's class."""
    try:
        found = await parts.service.resolve(Query(identifier(suffix), **options), caller)
    except BiaojieError as error:
        return type(error)
    return [v.index for v in found.record.values], found.private


@pytest.mark.parametrize("authoritative", [False, True])
async def test_views(parts: Parts, authoritative: bool) -> None:
    await write(
        parts.registrar,
        create("SN1", values=(value(), UNREADABLE, secret())),
        create("DRAFT", status=Status.DRAFT),
        create("GONE"),
        Retire(identifier("GONE")),
    )
    own = (ACME, ACME_READER, ADMIN, SYSTEM)
    others = (PUBLIC, BETA, Caller("k", "beta", Role.READER), Caller("k", "", Role.READER))
    options: Any = {"authoritative": authoritative}
    for caller in own:
        assert await view(parts, caller, **options) == ([1, 9], True)
        assert await view(parts, caller, "DRAFT", **options) == ([1], True)
        assert await view(parts, caller, "GONE", **options) is IdentifierRetired
        assert await view(parts, caller, "NONE", **options) is IdentifierNotFound
    for caller in others:
        assert await view(parts, caller, **options) == ([1], False)
        assert await view(parts, caller, "DRAFT", **options) is IdentifierNotFound
        assert await view(parts, caller, "GONE", **options) is IdentifierRetired
        assert await view(parts, caller, "NONE", **options) is IdentifierNotFound
    for caller in (*own, *others):
        nowhere = Query(Identifier("88.118.7", "x"), **options)
        with pytest.raises(PrefixNotHere):
            await parts.service.resolve(nowhere, caller)


async def test_what_is_filtered_is_filtered_by_right_too(parts: Parts) -> None:
    await write(parts.registrar, create("SN1", values=(value(), secret())))
    assert await view(parts, ACME, indexes=(9,)) == ([9], True)
    assert await view(parts, BETA, indexes=(9,)) == ([], False)
    assert await view(parts, PUBLIC, types=("NOTE",)) == ([], False)


async def test_a_suspended_prefix_is_closed_to_the_public(parts: Parts) -> None:
    await write(parts.registrar, create(values=(value(), secret())))
    assert await view(parts, PUBLIC) == ([1], False)
    await write(parts.registrar, ChangePrefix(PREFIX, status=PrefixStatus.SUSPENDED))
    for caller in (PUBLIC, BETA):
        assert await view(parts, caller) is PrefixSuspended
        assert await view(parts, caller, authoritative=True) is PrefixSuspended
    assert await view(parts, ACME) == ([1, 9], True)


async def test_a_prefix_that_changes_hands(parts: Parts) -> None:
    await write(parts.registrar, create(values=(value(), secret())))
    assert await view(parts, ACME) == ([1, 9], True)
    await write(parts.registrar, ChangePrefix(PREFIX, tenant="beta"))
    assert await view(parts, ACME) == ([1], False)
    assert await view(parts, BETA) == ([1, 9], True)


async def test_authoritative_bypasses_the_cache(parts: Parts) -> None:
    await write(parts.registrar, create(data="old"))
    query = Query(identifier())
    await parts.service.resolve(query)
    # A change this node has not heard of yet.
    store = parts.store.inner
    [found] = await store.look_up([key()])
    changed = replace(found.record, values=(value("new"),))
    async with store.transaction() as transaction:
        await transaction.put_records({key(): changed})
    cached = await parts.service.resolve(query)
    fresh = await parts.service.resolve(replace(query, authoritative=True))
    assert (cached.source, cached.record.values[0].text) == (Source.CACHE, "old")
    assert (fresh.source, fresh.record.values[0].text) == (Source.STORE, "new")
    assert (await parts.service.resolve(query)).source is Source.CACHE


async def test_resolve_many(parts: Parts) -> None:
    await write(parts.registrar, create("A", values=(value(), secret())), create("B"))
    names = [identifier(s) for s in ("B", "NONE", "A", "b", "A")]
    found = await parts.service.resolve_many([*names, Identifier("88.118.7", "x")], ACME)
    shape = [
        type(f)
        if isinstance(f, BiaojieError)
        else (f.record.identifier.suffix, len(f.record.values))
        for f in found
    ]
    assert shape == [
        ("B", 1),
        IdentifierNotFound,
        ("A", 2),
        ("B", 1),
        ("A", 2),
        PrefixNotHere,
    ]
    assert await parts.service.resolve_many([], ACME) == []


@pytest.mark.parametrize(("caller", "tasks_max"), [(PUBLIC, 5), (ACME, 256 + 5)])
async def test_resolve_many_looks_up_a_part_at_a_time(caller: Caller, tasks_max: int) -> None:
    store = GatedStore()
    parts = Parts(store)
    async with parts:
        await home(parts.registrar)
        await write(parts.registrar, *(create(f"A{n:03}") for n in range(600)))
        names = [identifier(f"A{n:03}" if n % 3 else f"NO{n}") for n in range(600)]
        await parts.service.resolve_many(names[:10], caller)
        store.close_gate("look_up")
        store.calls.clear()
        before = len(asyncio.all_tasks())
        asked = asyncio.create_task(parts.service.resolve_many(names, caller))
        await store.reached("look_up")
        # A task for each of a part, where rights have to be looked at; else all go together.
        assert len(asyncio.all_tasks()) - before <= tasks_max
        store.open_gate("look_up")
        found = await asked
        assert store.calls["look_up"] <= 3
        assert [f.record.identifier if isinstance(f, Resolution) else type(f) for f in found] == [
            name if n % 3 else IdentifierNotFound for n, name in enumerate(names)
        ]
        again = await parts.service.resolve_many(names, caller)
        sources = {f.source for f in again if isinstance(f, Resolution)}
        assert sources == {Source.CACHE if caller is PUBLIC else Source.STORE}


async def test_resolve_many_of_names_that_are_elsewhere_asks_once_where() -> None:
    async with Parts(GatedStore()) as parts:
        await home(parts.registrar)
        await write(parts.registrar, create("A"))
        await write(parts.registrar, HomePrefix("88.119", "acme", PrefixStatus.DELEGATED))
        names = [identifier(f"N{n}", f"88.119.{n}") for n in range(50)]
        names += [identifier("A"), identifier("NONE"), identifier("X", "88.120")]
        parts.store.calls.clear()
        found = await parts.service.resolve_many(names, PUBLIC)
        assert [type(f) for f in found] == [Elsewhere] * 50 + [
            Resolution,
            IdentifierNotFound,
            PrefixNotHere,
        ]
        assert len({id(f) for f in found}) == len(found), "errors are nobody else's"
        assert isinstance(found[49], Elsewhere)
        assert found[49].fields == {"referral": "0.NA/88.119", "kind": "delegated"}
        assert parts.store.calls["find_prefixes"] <= 2


async def test_resolve_many_hides_no_mistake_of_ours(parts: Parts) -> None:
    async def broken(*arguments: Any) -> Any:
        raise RuntimeError("a mistake")

    parts.service._resolver.resolve_many = broken
    with pytest.raises(RuntimeError):
        await parts.service.resolve_many([identifier("A"), identifier("B")], PUBLIC)


# The rest of what may be asked ----------------------------------------------------------

Ask = Callable[[Parts, Caller], Awaitable[Any]]
ASKED: dict[str, Ask] = {
    "list records": lambda p, c: p.service.list_records(c, PREFIX, None, 10),
    "find the prefix": lambda p, c: p.service.find_prefix(c, PREFIX),
    "list prefixes": lambda p, c: p.service.list_prefixes(c, None, 10),
    "list keys": lambda p, c: p.service.list_keys(c, None, 10),
    "find a key": lambda p, c: p.service.find_key(c, "none"),
    "changes": lambda p, c: p.service.list_changes(c, 0, 10, 0),
    "register": lambda p, c: p.service.write(c, [create()]),
    "issue a key": lambda p, c: p.service.issue_key(c, "acme", Role.READER, ""),
    "home": lambda p, c: p.service.write(c, [HomePrefix("88.118.7", "acme")]),
}
# Each caller's answers, in the order above: + yes, 0 nothing there, - Forbidden, ? who are you.
ANSWERS = {
    "admin": (ADMIN, "++++0++++"),
    "registrar": (ACME, "+++--++--"),
    "reader": (ACME_READER, "+++--+---"),
    "registrar of another": (BETA, "--+--+---"),
    "reader of another": (Caller("k", "beta", Role.READER), "--+--+---"),
    "public": (PUBLIC, "?????????"),
}


@pytest.mark.parametrize("who", ANSWERS)
async def test_who_may_ask_what(parts: Parts, who: str) -> None:
    caller, expected = ANSWERS[who]
    got = ""
    for ask in ASKED.values():
        try:
            await ask(parts, caller)
            got += "+"
        except NotFound:
            got += "0"
        except Forbidden:
            got += "-"
        except Unauthenticated:
            got += "?"
    assert dict(zip(ASKED, got, strict=True)) == dict(zip(ASKED, expected, strict=True))


async def test_the_public_is_refused_before_anything_is_queued(parts: Parts) -> None:
    calls = parts.store.calls["transaction"]
    with pytest.raises(Unauthenticated):
        await parts.service.write(PUBLIC, [create()])
    assert parts.store.calls["transaction"] == calls


async def test_prefixes_of_others_are_not_listed(parts: Parts) -> None:
    await home(parts.registrar, "88.118.10", "acme")
    listed = await parts.service.list_prefixes(ACME, None, 10)
    assert [p.name for p in listed] == ["88.118.10", PREFIX]
    assert [p.name for p in await parts.service.list_prefixes(BETA, None, 10)] == [OTHER]
    everything = await parts.service.list_prefixes(ADMIN, None, 2)
    assert [p.name for p in everything] == ["88.118.10", PREFIX]
    onward = await parts.service.list_prefixes(ADMIN, PREFIX, 2)
    assert [p.name for p in onward] == [OTHER]


async def test_prefixes_that_are_not_here(parts: Parts) -> None:
    for caller in (ADMIN, ACME):
        with pytest.raises(PrefixNotHere):
            await parts.service.find_prefix(caller, "88.118.7")
        with pytest.raises(PrefixNotHere):
            await parts.service.list_records(caller, "88.118.7", None, 10)


# Lists ----------------------------------------------------------------------------------


async def walk(parts: Parts, limit: int, prefix: str = PREFIX) -> list[list[Record]]:
    pages = []
    after: bytes | None = None
    more = True
    while more:
        page, more = await parts.service.list_records(ACME, prefix, after, limit)
        pages.append(page)
        after = parts.service.cursor(page[-1]) if page else None
    return pages


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 101, 1_000])
async def test_pages_hold_everything_once_and_in_order(parts: Parts, limit: int) -> None:
    names = sorted(f"S{n:03}" for n in range(250))
    await write(parts.registrar, *(create(name) for name in reversed(names)))
    await write(parts.registrar, create("S100", prefix=OTHER), Retire(identifier("S007")))
    pages = await walk(parts, limit)
    assert [r.identifier.suffix for page in pages for r in page] == names
    assert all(len(page) == limit for page in pages[:-1])
    listed = {r.identifier.suffix: r for page in pages for r in page}
    assert listed["S007"].status is Status.RETIRED
    assert listed["S007"].values == ()


async def test_lists_show_what_one_may_read(parts: Parts) -> None:
    await write(parts.registrar, create(values=(value(), UNREADABLE, secret())))
    [[record]] = await walk(parts, 10)
    assert [v.index for v in record.values] == [1, 9]


async def test_a_page_of_large_records_ends_early(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "REPLY_BYTES_MAX", 50_000)
    names = [f"S{n:03}" for n in range(250)]
    await write(parts.registrar, *(create(name, "x" * 1_000) for name in names))
    pages = await walk(parts, 1_000)
    assert len(pages) > 1
    assert max(sum(len(v.data) for r in page for v in r.values) for page in pages) <= 150_000
    assert [r.identifier.suffix for page in pages for r in page] == names


async def test_cursors_fold_like_keys(parts: Parts) -> None:
    await write(parts.registrar, *(create(s) for s in ("b", "A", "c", "é", "É")))
    pages = await walk(parts, 1)
    assert [r.identifier.suffix for page in pages for r in page] == ["A", "b", "c", "É", "é"]
    [page] = await walk(parts, 10, PREFIX.lower())
    assert len(page) == 5
