"""Keys: who is let in, for how long, and how guessing is slowed down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from biaojie.account import ApiKey, Role
from biaojie.errors import TemporarilyUnavailable, TooManyRequests, Unauthenticated
from registry.accounts import KEY_PATTERN, digest, new_key
from registry.admission import PUBLIC, Caller
from registry.operations import RevokeKey
from resolver.callers import KEY_TRUSTED_S
from resolver.guesses import Guesses
from tests.core_parts import GatedStore, Parts, home, issue, opened, write

PEER = "192.0.2.1"


class World:
    def __init__(self, parts: Parts, now: list[float]) -> None:
        self.parts = parts
        self.service = parts.service
        self.store = parts.store
        self.now = now

    async def enters(self, key: str | None, peer: str = PEER) -> Caller:
        caller: Caller = await self.service.authenticate(key, peer)
        return caller

    async def refused(self, key: str, peer: str = PEER) -> int:
        """0 if the key is refused as such, else the seconds to wait."""
        with pytest.raises((Unauthenticated, TooManyRequests)) as error:
            await self.enters(key, peer)
        return int(error.value.fields.get("retry_after_s", 0))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    now = [1_000.0]
    store = GatedStore()
    async with Parts(store, poll_s=60, service={"monotonic": lambda: now[0]}) as parts:
        yield World(parts, now)


def unknown() -> str:
    return new_key("", Role.ADMIN)[0]


# Who is let in --------------------------------------------------------------------------


async def test_without_a_key_one_is_the_public(world: World) -> None:
    assert await world.enters(None) is PUBLIC
    assert world.store.calls["find_key"] == 0


@pytest.mark.parametrize("role", Role)
async def test_a_key_is_its_tenant_and_role(world: World, role: Role) -> None:
    text, key_id = await issue(world.parts.registrar, "acme", role)
    assert await world.enters(text) == Caller(key_id, "acme", role)
    assert KEY_PATTERN.fullmatch(text)
    assert text.split("_")[1] == key_id


@pytest.mark.parametrize(
    "mangle",
    [
        lambda key: "",
        lambda key: " " + key,
        lambda key: key + " ",
        lambda key: key + "\n",
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key.upper(),
        lambda key: key.replace("bj_", "bk_"),
        lambda key: key.split("_")[1],
        lambda key: key + "\udcff",
        lambda key: key.replace("_", "＿"),
        lambda key: "钥匙",
        lambda key: "\x00",
        lambda key: "bj_" + "a" * 10**6,
        lambda key: f"Basic {key}",
        lambda key: digest(key).hex(),
    ],
)
async def test_what_is_no_key_is_refused_without_asking(world: World, mangle: Any) -> None:
    text, _ = await issue(world.parts.registrar)
    assert await world.refused(mangle(text)) == 0
    assert world.store.calls["find_key"] == 0


async def test_a_key_must_be_right_in_all_its_parts(world: World) -> None:
    (one, one_id), (two, two_id) = [await issue(world.parts.registrar) for _ in "12"]
    assert await world.refused(one.replace(one_id, two_id)) == 0
    assert await world.refused(two.replace(two_id, "zzzzzzzz")) == 0
    last = "A" if one[-1] != "A" else "B"
    assert await world.refused(one[:-1] + last) == 0
    assert (await world.enters(one)).key_id == one_id


async def test_only_digests_are_kept(tmp_path: Path, sqlite_url: str) -> None:
    async with opened(sqlite_url) as store, Parts(store) as parts:
        text, key_id = await issue(parts.registrar)
        await parts.service.authenticate(text, PEER)
        await parts.service.list_keys(Caller("x", "", Role.ADMIN), None, 10)
        remembered = repr(parts.service.callers._kept)
        octets = b"".join(p.read_bytes() for p in files(tmp_path))
    assert key_id.encode() in octets
    secret = text.split("_", 2)[2]
    assert secret.encode() not in octets
    assert digest(text) in octets
    assert key_id in remembered
    assert secret not in remembered


def files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


# For how long ---------------------------------------------------------------------------


async def test_a_key_is_trusted_for_a_moment(world: World) -> None:
    text, _ = await issue(world.parts.registrar)
    for _ in range(10):
        await world.enters(text)
    assert world.store.calls["find_key"] == 1
    world.now[0] += KEY_TRUSTED_S
    await world.enters(text)
    assert world.store.calls["find_key"] == 2


async def test_however_many_ask_with_a_key_it_is_looked_up_once(world: World) -> None:
    text, _ = await issue(world.parts.registrar)
    wrong = unknown()
    world.store.close_gate("find_key")
    asking = [asyncio.ensure_future(world.enters(text)) for _ in range(200)]
    asking += [asyncio.ensure_future(world.enters(wrong, "192.0.2.2")) for _ in range(3)]
    await world.store.reached("find_key", 2)
    asking[0].cancel()  # who gives up does not end it for the others
    await asyncio.sleep(0)
    world.store.open_gate("find_key")
    told = await asyncio.gather(*asking, return_exceptions=True)
    assert world.store.calls["find_key"] == 2
    assert isinstance(told[0], asyncio.CancelledError)
    assert {caller.role for caller in told[1:200]} == {Role.REGISTRAR}  # type: ignore[union-attr]
    assert [type(error) for error in told[200:]] == [Unauthenticated] * 3
    world.now[0] += KEY_TRUSTED_S
    world.store.errors["find_key"] = TemporarilyUnavailable()
    told = await asyncio.gather(*(world.enters(text) for _ in range(9)), return_exceptions=True)
    assert {type(error) for error in told} == {TemporarilyUnavailable}
    assert len(set(map(id, told))) == 9, "nobody shares an error"


async def test_what_was_asked_before_a_key_was_revoked_counts_for_nobody_after_it(
    world: World,
) -> None:
    text, key_id = await issue(world.parts.registrar)
    released = asyncio.Event()
    found = world.store.inner.find_key

    async def slowly(hashed: bytes) -> ApiKey | None:
        known: ApiKey | None = await found(hashed)
        await released.wait()
        return known

    world.store.inner.find_key = slowly
    early = asyncio.ensure_future(world.enters(text))
    await asyncio.sleep(0.01)
    await write(world.parts.registrar, RevokeKey(key_id))
    world.store.inner.find_key = found
    assert await world.refused(text) == 0
    released.set()
    assert (await early).key_id == key_id, "it was valid when he asked"
    assert await world.refused(text) == 0


async def test_a_revoked_key_is_refused_at_once_here(world: World) -> None:
    text, key_id = await issue(world.parts.registrar)
    other, _ = await issue(world.parts.registrar)
    await world.enters(text)
    await world.enters(other)
    await write(world.parts.registrar, RevokeKey(key_id))
    assert await world.refused(text) == 0
    assert (await world.enters(other)).role is Role.REGISTRAR


async def test_a_key_revoked_elsewhere_is_refused_within_5_s_even_if_the_log_is_not_followed(
    world: World,
) -> None:
    """The tail of this node is asleep."""
    text, key_id = await issue(world.parts.registrar)
    await world.enters(text)
    async with Parts(world.store.inner) as elsewhere:
        await write(elsewhere.registrar, RevokeKey(key_id))
    assert KEY_TRUSTED_S <= 5
    world.now[0] += KEY_TRUSTED_S - 0.01
    await world.enters(text)
    world.now[0] += 0.01
    assert await world.refused(text) == 0
    assert world.service.callers._kept == {}


async def test_a_key_revoked_by_another_process(database_url: str) -> None:
    async with (
        opened(database_url) as one,
        opened(database_url) as two,
        Parts(one, poll_s=0.25) as here,
        Parts(two, poll_s=0.25) as there,
    ):
        text, key_id = await issue(there.registrar)
        assert (await here.service.authenticate(text, PEER)).key_id == key_id
        await write(there.registrar, RevokeKey(key_id))
        revoked = time.monotonic()
        refused = False
        while not refused:
            assert time.monotonic() - revoked < 1.5
            await asyncio.sleep(0.005)
            try:
                await here.service.authenticate(text, PEER)
            except Unauthenticated:
                refused = True


async def test_when_the_log_was_replaced_no_key_is_trusted_unasked(world: World) -> None:
    text, _ = await issue(world.parts.registrar)
    await world.enters(text)
    world.service.callers.clear()
    await world.enters(text)
    assert world.store.calls["find_key"] == 2


async def test_the_table_of_trusted_keys_is_bounded(world: World) -> None:
    texts = []
    keys = {}
    for n in range(10_050):
        text, operation = new_key("acme", Role.READER)
        texts.append(text)
        keys[operation.digest] = ApiKey(f"{n:08}", "acme", Role.READER)
    async with world.store.inner.transaction() as transaction:
        await transaction.put_keys(keys)
    for text in texts:
        await world.enters(text)
    assert len(world.service.callers._kept) == 10_000
    assert (await world.enters(texts[0])).key_id == "00000000"


async def test_while_the_registry_is_down_nobody_waits_for_a_key(world: World) -> None:
    text, _ = await issue(world.parts.registrar)
    await world.enters(text)
    world.parts.health.failed("test")
    assert (await world.enters(text)).role is Role.REGISTRAR, "trusted for its moment"
    world.now[0] += KEY_TRUSTED_S
    for key in (text, unknown()):
        with pytest.raises(TemporarilyUnavailable):
            await world.enters(key)
    assert world.store.calls["find_key"] == 1
    # That was no guess.
    world.parts.health.answered()
    assert await world.refused(unknown()) == 0


# Guessing -------------------------------------------------------------------------------


async def test_after_five_misses_a_peer_waits_longer_each_time(world: World) -> None:
    waits = []
    for _ in range(5):
        assert await world.refused(unknown()) == 0
    for _ in range(12):
        assert await world.refused(unknown()) == 0
        waits.append(wait := await world.refused(unknown()))
        world.now[0] += wait - 1.5
        assert await world.refused(unknown()) > 0, "not before its time"
        world.now[0] += 1.5
    assert waits == [3, 5, 9, 17, 33, 65, 129, 257, 301, 301, 301, 301]


async def test_malformed_keys_are_guesses_too(world: World) -> None:
    for _ in range(6):
        assert await world.refused("no key") == 0
    assert await world.refused("no key") > 0


async def test_who_waits_is_not_even_looked_up(world: World) -> None:
    for _ in range(6):
        await world.refused(unknown())
    calls = world.store.calls["find_key"]
    right, _ = await issue(world.parts.registrar)
    assert await world.refused(right) > 0, "else a guesser would learn that it is right"
    assert world.store.calls["find_key"] == calls


async def test_who_came_in_before_is_not_shut_out_by_a_neighbour(world: World) -> None:
    """Many may share an address, behind a proxy say."""
    right, _ = await issue(world.parts.registrar)
    await world.enters(right)
    for _ in range(6):
        await world.refused(unknown())
    world.now[0] += 1.9
    assert (await world.enters(right)).role is Role.REGISTRAR
    world.now[0] += 0.5
    await world.refused(unknown())
    world.now[0] += 1  # its trust is over, the neighbour's wait is not
    assert (await world.enters(right)).role is Role.REGISTRAR


async def test_others_do_not_wait(world: World) -> None:
    right, _ = await issue(world.parts.registrar)
    for _ in range(6):
        await world.refused(unknown())
    assert (await world.enters(right, "192.0.2.2")).role is Role.REGISTRAR
    assert await world.refused(unknown(), "192.0.2.2") == 0


@pytest.mark.parametrize(
    ("peer", "neighbour", "stranger"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
        ("fe80::1%eth0", "fe80::2%eth0", "fe81::1%eth0"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.3"),
        ("not:an:address", "not:an:address", ""),
    ],
)
async def test_one_ipv6_host_is_one_guesser(
    world: World, peer: str, neighbour: str, stranger: str
) -> None:
    for _ in range(6):
        await world.refused(unknown(), peer)
    assert await world.refused(unknown(), neighbour) > 0
    assert await world.refused(unknown(), stranger) == 0


async def test_after_a_long_quiet_it_begins_again(world: World) -> None:
    for _ in range(6):
        await world.refused(unknown())
    world.now[0] += 2 + Guesses.WAIT_MAX_S + 1
    for _ in range(5):
        assert await world.refused(unknown()) == 0
    assert await world.refused(unknown()) == 0
    assert await world.refused(unknown()) > 0


def test_any_number_of_misses_at_once_only_makes_it_longer() -> None:
    """As when thousands of guesses were under way before the first was refused."""
    guesses = Guesses()
    for _ in range(5_000):
        guesses.missed(PEER, 0.0)
    with pytest.raises(TooManyRequests):
        guesses.check(PEER, 299.0)
    guesses.check(PEER, 300.0)


def test_the_table_of_guessers_is_bounded() -> None:
    guesses = Guesses(peers_max=100)
    for n in range(1_000):
        for _ in range(6):
            guesses.missed(f"peer{n}", 0.0)
    assert len(guesses._peers) == 100
    with pytest.raises(TooManyRequests):
        guesses.check("peer999", 0.0)


async def test_issuing_through_the_service(world: World) -> None:
    admin = Caller("x", "", Role.ADMIN)
    text, key = await world.service.issue_key(admin, "acme", Role.READER, "line 3")
    assert (key.tenant, key.role, key.label, key.revoked) == ("acme", Role.READER, "line 3", 0)
    assert await world.enters(text) == Caller(key.id, "acme", Role.READER)
    await home(world.parts.registrar)
