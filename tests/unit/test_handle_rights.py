"""Who may do what by HS_ADMIN values: each bit, the record's list and the prefix's, groups."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from biaojie.account import PrefixStatus
from biaojie.errors import (
    BiaojieError,
    Forbidden,
    IdentifierTaken,
    PrefixNotHere,
    Unauthenticated,
)
from biaojie.identifier import Identifier
from biaojie.record import Reference, Status, Value
from biaojie.wire.handle.typed import Admin, AdminRight, encode_value_list
from registry.admission import PUBLIC, SYSTEM, Caller
from registry.handle_rights import HandleIdentity
from registry.memory import MemoryStore
from registry.operations import (
    ChangePrefix,
    Create,
    HomePrefix,
    IssueKey,
    Modify,
    Operation,
    Purge,
    Put,
    Retire,
)
from registry.registrar import Registrar

ALICE = HandleIdentity(Identifier.parse("88.118.8/ALICE"), 300)
NAME = Identifier.parse("88.118.8/X")
URL = Value(1, "URL", b"https://example.com")
R = AdminRight


def caller(identity: HandleIdentity = ALICE) -> Caller:
    return Caller(str(identity), handle=identity)


def admin(rights: int, who: str = "88.118.8/ALICE", key: int = 300, *, index: int = 100) -> Value:
    return Value(index, "HS_ADMIN", Admin(rights, Reference(who, key)).encode())


@pytest.fixture
async def registrar() -> AsyncIterator[Registrar]:
    started = Registrar(MemoryStore())
    started.start()
    await do(started, HomePrefix("0.NA", "node"), HomePrefix("88.118.8", "acme"))
    yield started
    await started.stop()


async def do(registrar: Registrar, *operations: Operation, by: Caller = SYSTEM) -> None:
    for operation in operations:
        (await registrar.submit(by, [operation])).single()


async def refused(registrar: Registrar, operation: Operation, by: Caller | None = None) -> bool:
    try:
        await do(registrar, operation, by=by or caller())
    except Forbidden:
        return True
    return False


CHANGES: list[tuple[int, Operation]] = [
    (R.MODIFY_VALUE, Modify(NAME, set=(Value(1, "URL", b"https://other.example"),))),
    (R.ADD_VALUE, Modify(NAME, set=(Value(2, "URL", b"https://other.example"),))),
    (R.REMOVE_VALUE, Modify(NAME, remove=(1,))),
    (R.ADD_ADMIN, Modify(NAME, set=(admin(0, index=101),))),
    (R.MODIFY_ADMIN, Modify(NAME, set=(admin(0xFFF, "88.118.8/EVE"),))),
    (R.MODIFY_ADMIN, Modify(NAME, set=(Value(100, "URL", b"no more an admin"),))),
    (R.MODIFY_ADMIN, Modify(NAME, set=(admin(0xFFF, index=1),))),
    (R.REMOVE_ADMIN, Modify(NAME, remove=(100,))),
    (R.MODIFY_VALUE, Modify(NAME, status=Status.FROZEN)),
    (R.DELETE_HANDLE, Retire(NAME)),
    (R.DELETE_HANDLE, Purge(NAME)),
]


@pytest.mark.parametrize(("right", "operation"), CHANGES)
@pytest.mark.parametrize("where", ["record", "prefix"])
async def test_each_change_needs_its_own_right(
    registrar: Registrar, right: int, operation: Operation, where: str
) -> None:
    prefix = Identifier.parse("0.NA/88.118.8")
    for given, verdict in ((0xFFF & ~right, True), (right, False)):
        held = {"record": (given, 0), "prefix": (0, given)}[where]
        await do(
            registrar,
            Put(NAME, (URL, admin(held[0]))),
            Put(prefix, (admin(held[1]),)),
        )
        assert await refused(registrar, operation) is verdict, (right, given)


async def test_creating_and_replacing_are_for_those_the_prefix_names(
    registrar: Registrar,
) -> None:
    prefix = Identifier.parse("0.NA/88.118.8")
    assert await refused(registrar, Create(NAME, (URL,)))
    await do(registrar, Create(prefix, (admin(R.ADD_HANDLE),)))
    await do(registrar, Create(NAME, (URL,)), by=caller())
    with pytest.raises(IdentifierTaken):
        await do(registrar, Create(NAME, (URL,)), by=caller())
    assert await refused(registrar, Put(NAME, (URL,)))  # it would delete what is there
    await do(registrar, Put(prefix, (admin(R.ADD_HANDLE | R.DELETE_HANDLE),)))
    await do(registrar, Put(NAME, (URL,)), by=caller())


@pytest.mark.parametrize(
    ("who", "key", "named"),
    [
        ("88.118.8/ALICE", 300, True),
        ("88.118.8/alice", 300, True),
        ("88.118.8/ALICE", 0, True),
        ("88.118.8/ALICE", 301, False),
        ("88.118.8/BOB", 300, False),
        ("88.118.8/BOB", 0, False),
        ("not an identifier", 0, False),
    ],
)
async def test_whom_a_reference_names(
    registrar: Registrar, who: str, key: int, named: bool
) -> None:
    await do(registrar, Create(NAME, (URL, admin(0xFFF, who, key))))
    assert await refused(registrar, Retire(NAME)) is not named


async def test_groups_may_list_groups_and_loops_end(registrar: Registrar) -> None:
    def group(name: str, *members: Reference) -> Create:
        value = Value(200, "HS_VLIST", encode_value_list(members))
        return Create(Identifier.parse(name), (value,))

    await do(
        registrar,
        Create(NAME, (URL, admin(R.DELETE_HANDLE, "88.118.8/OUTER", 200))),
        group("88.118.8/OUTER", Reference("88.118.8/INNER", 200)),
        group("88.118.8/INNER", Reference("88.118.8/OUTER", 200), Reference("88.118.8/BOB", 300)),
    )
    assert await refused(registrar, Retire(NAME))
    inner = Identifier.parse("88.118.8/INNER")
    listed = encode_value_list((Reference("88.118.8/ALICE", 300),))
    await do(registrar, Modify(inner, set=(Value(200, "HS_VLIST", listed),)))
    await do(registrar, Retire(NAME), by=caller())


async def test_a_group_of_another_type_or_with_broken_data_names_nobody(
    registrar: Registrar,
) -> None:
    listed = encode_value_list((Reference("88.118.8/ALICE", 300),))
    for number, value in enumerate(
        (Value(200, "URL", listed), Value(200, "HS_VLIST", listed[:-1]))
    ):
        group = Identifier.parse(f"88.118.8/G{number}")
        await do(
            registrar,
            Create(group, (value,)),
            Put(NAME, (URL, admin(0xFFF, str(group), 200), Value(101, "HS_ADMIN", b"\0"))),
        )
        assert await refused(registrar, Retire(NAME))


async def test_rights_lost_earlier_in_the_same_batch_are_lost(registrar: Registrar) -> None:
    await do(registrar, Create(NAME, (URL, admin(0xFFF))))
    outcome = await registrar.submit(
        caller(), [Modify(NAME, remove=(100,)), Modify(NAME, remove=(1,))], mode="valid-rows"
    )
    assert not isinstance(outcome.results[0], BiaojieError)
    assert isinstance(outcome.results[1], Forbidden)


async def test_keys_and_other_tenants_prefixes_are_not_for_handle_identities(
    registrar: Registrar,
) -> None:
    from biaojie.account import Role

    await do(registrar, Create(Identifier.parse("0.NA/88.118.8"), (admin(0xFFF),)))
    assert await refused(registrar, IssueKey("abcdefgh", bytes(32), "", Role.ADMIN))
    assert await refused(registrar, ChangePrefix("88.118.8", tenant="mine"))
    assert await refused(registrar, ChangePrefix("88.118.8", status=PrefixStatus.SUSPENDED))
    assert await refused(registrar, HomePrefix("88.119", "acme"))
    with pytest.raises(PrefixNotHere):
        await do(registrar, Create(Identifier.parse("88.119/X"), ()), by=caller())
    with pytest.raises(Unauthenticated):
        await do(registrar, Retire(NAME), by=PUBLIC)


async def test_homing_and_unhoming_below_a_prefix_one_administers(registrar: Registrar) -> None:
    rights = R.ADD_DERIVED_PREFIX | R.DELETE_DERIVED_PREFIX
    await do(registrar, Create(Identifier.parse("0.NA/88.118.8"), (admin(rights),)))
    name = Identifier.parse("88.118.8.5/X")
    await do(registrar, HomePrefix("88.118.8.5", "acme"), by=caller())
    await do(registrar, Create(name, (URL,)))
    await do(registrar, ChangePrefix("88.118.8.5", status=PrefixStatus.UNHOMED), by=caller())
    with pytest.raises(PrefixNotHere):
        await do(registrar, Retire(name))
    await do(registrar, HomePrefix("88.118.8.5", "acme"), by=caller())
    await do(registrar, Retire(name))


async def test_a_prefix_can_be_homed_together_with_its_administrator() -> None:
    registrar = Registrar(MemoryStore())
    registrar.start()
    try:
        await do(registrar, HomePrefix("88.118.8", "acme", admin=Reference("88.118.8/ALICE", 300)))
        await do(registrar, Create(NAME, (URL,)), by=caller())
        assert await refused(
            registrar, Create(NAME, (URL,)), caller(HandleIdentity(ALICE.identifier, 301))
        )
    finally:
        await registrar.stop()
