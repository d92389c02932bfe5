"""Prefixes that live at another node: who asks here is sent there, who writes here is refused."""

from __future__ import annotations

import pytest

from biaojie.account import PrefixStatus, Role
from biaojie.errors import Elsewhere, IdentifierNotFound, PrefixNotHere
from biaojie.identifier import Identifier
from biaojie.record import Value
from registry.admission import SYSTEM, Caller
from registry.handle_rights import ancestors
from registry.memory import MemoryStore
from registry.operations import ChangePrefix, Create, HomePrefix
from resolver.query import Query
from tests.core_parts import Parts

VALUES = (Value(1, "URL", b"https://example.com"),)


def test_ancestors_are_nearest_first_and_not_the_prefix_itself() -> None:
    assert ancestors("88.118.8.1") == ["88.118.8", "88.118", "88"]
    assert ancestors("88") == []


async def home(parts: Parts, name: str, status: PrefixStatus) -> None:
    (await parts.registrar.submit(SYSTEM, [HomePrefix(name, "acme", status)])).single()


@pytest.mark.parametrize("caller", [Caller(), SYSTEM, Caller("k", "acme", Role.REGISTRAR)])
async def test_a_delegated_prefix_and_those_below_it_are_elsewhere(caller: Caller) -> None:
    async with Parts(MemoryStore()) as parts:
        await home(parts, "88.118", PrefixStatus.ACTIVE)
        await home(parts, "88.118.9", PrefixStatus.DELEGATED)
        await home(parts, "88.119", PrefixStatus.REFERRED)
        for name, referral, kind in (
            ("88.118.9/X", "0.NA/88.118.9", "delegated"),
            ("88.118.9.4.1/X", "0.NA/88.118.9", "delegated"),
            ("88.119.1/X", "0.NA/88.119", "referred"),
        ):
            for authoritative in (False, True):
                with pytest.raises(Elsewhere) as caught:
                    await parts.service.resolve(
                        Query(Identifier.parse(name), authoritative=authoritative), caller
                    )
                assert caught.value.fields == {"referral": referral, "kind": kind}
        # Below a prefix that is homed here, an unknown one is simply unknown.
        with pytest.raises(PrefixNotHere):
            await parts.service.resolve(Query(Identifier.parse("88.118.7/X")), caller)


async def test_nothing_is_written_under_a_delegated_prefix_until_it_is_homed() -> None:
    async with Parts(MemoryStore()) as parts:
        await home(parts, "88.118.9", PrefixStatus.DELEGATED)
        name = Identifier.parse("88.118.9/X")
        with pytest.raises(Elsewhere):
            (await parts.registrar.submit(SYSTEM, [Create(name, VALUES)])).single()
        with pytest.raises(Elsewhere):
            await parts.service.resolve(Query(name))
        change = ChangePrefix("88.118.9", status=PrefixStatus.ACTIVE)
        (await parts.registrar.submit(SYSTEM, [change])).single()
        with pytest.raises(IdentifierNotFound):
            await parts.service.resolve(Query(name))
        (await parts.registrar.submit(SYSTEM, [Create(name, VALUES)])).single()
        assert (await parts.service.resolve(Query(name))).record.values[0].data == VALUES[0].data
