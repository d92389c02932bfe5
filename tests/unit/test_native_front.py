"""The native front, asked by a peer that sends what it likes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from biaojie.account import Role
from biaojie.change import Action
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    Forbidden,
    IdempotencyMismatch,
    IdentifierNotFound,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRequest,
    OverCapacity,
    PrefixNotHere,
    TooLarge,
    Unauthenticated,
    VersionMismatch,
)
from biaojie.record import Value
from biaojie.wire.native import (
    Hello,
    Kind,
    Resolve,
    ResolveMany,
    answers,
    decode_resolution,
    encode_frame,
    encode_request,
    requests,
)
from biaojie.wire.native.frames import REQUEST_OCTETS_MAX
from registry.operations import RevokeKey
from tests.core_parts import GatedStore, create
from tests.native_world import Peer, error, hello, request, world
from tests.native_world import event_loop_policy as event_loop_policy  # noqa: PLC0414

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

VALUE = Value(1, "URL", b"https://acme.example/")


def write(action: Action, suffix: str, key: str | None = None, **fields: Any) -> requests.Write:
    condition = fields.pop("condition", None)
    prefix = fields.pop("prefix", "88.118.8")
    values = fields.pop("values", (VALUE,) if action in (Action.CREATE, Action.PUT) else ())
    operation = requests.Operation(action, f"{prefix}/{suffix}", values, **fields)
    return requests.Write(operation, key, condition)


async def refused(peer: Peer, asked: requests.Request) -> BiaojieError:
    return error(await peer.ask(asked))


# Hello ----------------------------------------------------------------------------------


async def test_the_welcome_names_limits_role_and_tenant() -> None:
    async with world(native_pipeline_max=9) as node:
        async with node.peer(greet=False) as peer:
            welcome = await peer.hello()
        assert (welcome.version, welcome.node, welcome.role) == (1, "biaojie", None)
        assert welcome.limits == {
            "frame_octets_max": 8 * 2**20,
            "pipeline_max": 9,
            "resolve_many_max": 1_000,
            "batch_rows_max": 2_000,
            "page_rows_max": 1_000,
        }
        async with node.peer(greet=False) as peer:
            welcome = await peer.hello(node.acme)
            assert (welcome.role, welcome.tenant) == ("registrar", "acme")
        async with node.peer(greet=False) as peer:
            assert (await peer.hello(node.admin)).role == "admin"


@pytest.mark.parametrize("key", ["", "bj_wrong", "bj_abcdefgh_" + "k" * 43])
async def test_a_wrong_key_is_told_and_hung_up_on(key: str) -> None:
    async with world() as node, node.peer(greet=False) as peer:
        peer.send(hello(key), request(1, Resolve("88.118.8/SN1")))
        frames = await peer.rest()
        assert [frame.id for frame in frames] == [0]
        assert isinstance(error(frames[0]), Unauthenticated)


@pytest.mark.parametrize(
    "first",
    [
        request(1, Resolve("88.118.8/SN1")),
        request(1, requests.Ping()),
        encode_frame(1, 0x7F, b"\xc0"),
        encode_frame(0, Kind.HELLO, b"\xc0"),
        encode_frame(0, Kind.HELLO, b"\xc1"),
        encode_frame(0, *encode_request(Hello(2, 9, None, "later"))),
        encode_frame(0, *encode_request(Hello(0, 0, None, "earlier"))),
    ],
)
async def test_what_is_no_hello_of_this_version_is_hung_up_on(first: bytes) -> None:
    async with world() as node, node.peer(greet=False) as peer:
        peer.send(first, hello(), request(2, requests.Ping()))
        frames = await peer.rest()
        assert len(frames) == 1
        assert isinstance(error(frames[0]), InvalidRequest)


async def test_requests_may_follow_the_hello_at_once() -> None:
    async with world() as node:
        for key in (None, node.acme):
            async with node.peer(greet=False) as peer:
                peer.send(hello(key), *(request(n, Resolve("88.118.8/SN1")) for n in range(1, 9)))
                frames = await peer.frames(9)
                assert frames[0].id == 0
                assert sorted(frame.id for frame in frames) == list(range(9))
                assert {frame.kind for frame in frames} == {Kind.ANSWER}


async def test_a_second_hello_is_refused_and_changes_nothing() -> None:
    async with world() as node, node.peer() as peer:
        assert isinstance(await refused(peer, Hello(1, 1, node.admin, "again")), InvalidRequest)
        assert isinstance(await refused(peer, requests.ListKeys()), Unauthenticated)


async def test_there_is_no_room_for_one_more() -> None:
    async with (
        world(native_connections_max=4) as node,
        node.peer(),
        node.peer(),
        node.peer(),
        node.peer(),
    ):
        async with node.peer(greet=False) as fifth:
            fifth.send(hello(), request(1, requests.Ping()))
            frames = await fifth.rest()
            assert len(frames) == 1
            told = error(frames[0])
            assert isinstance(told, OverCapacity)
            assert told.fields["retry_after_s"] == 1
        assert node.front.counts["native_crowded"] == 1


# Reading --------------------------------------------------------------------------------


async def test_resolving_in_all_its_forms() -> None:
    async with world() as node, node.peer() as peer:
        for text in ("88.118.8/SN1", " hdl:88.118.8/sn1", "https://id.example/88.118.8%2FSN1"):
            found = decode_resolution(await peer.answer(Resolve(text)))
            assert str(found.record.identifier) == "88.118.8/SN1"
            assert found.record.values[0].text == "first"
        assert found.source == "cache"
        fresh = decode_resolution(await peer.answer(Resolve("88.118.8/SN1", authoritative=True)))
        assert fresh.source == "store"
        chosen = await peer.answer(Resolve("88.118.8/SN1", (2, 3), ("EMAIL",)))
        assert decode_resolution(chosen).record.values == ()
        chosen = await peer.answer(Resolve("88.118.8/SN1", (), ("URL.",)))
        assert len(decode_resolution(chosen).record.values) == 1
        assert isinstance(await refused(peer, Resolve("88.118.8/no")), IdentifierNotFound)
        assert isinstance(await refused(peer, Resolve("no slash")), InvalidIdentifier)
        assert isinstance(await refused(peer, Resolve("88.118.999/x")), PrefixNotHere)


async def test_what_is_private_is_for_those_with_rights() -> None:
    async with world() as node:
        for key, seen in ((None, 1), (node.beta, 1), (node.acme, 2), (node.reader, 2)):
            async with node.peer(key) as peer:
                for _ in range(3):
                    found = decode_resolution(await peer.answer(Resolve("88.118.8/SN2")))
                    assert len(found.record.values) == seen


async def test_many_names_at_once() -> None:
    async with world() as node, node.peer() as peer:
        names = ("88.118.8/SN1", "88.118.8/no", "no slash", "88.118.8/SN2")
        found = answers.decode_resolutions(await peer.answer(ResolveMany(names)))
        assert isinstance(found[0], answers.Resolution)
        assert isinstance(found[1], IdentifierNotFound)
        assert isinstance(found[2], InvalidIdentifier)
        assert isinstance(found[3], answers.Resolution)
        assert len(found[3].record.values) == 1
        sure = answers.decode_resolutions(await peer.answer(ResolveMany(names[:1], True)))
        assert isinstance(sure[0], answers.Resolution)
        assert sure[0].source == "store"


async def test_a_reply_that_is_full_says_which_names_to_ask_again() -> None:
    big = tuple(Value(n, "X", bytes(65_000)) for n in range(1, 5))
    async with world() as node, node.peer() as peer:
        await node.write(*(create(f"BIG{n}", values=big) for n in range(20)))
        names = tuple(f"88.118.8/BIG{n}" for n in range(20))
        found = answers.decode_resolutions(await peer.answer(ResolveMany(names)))
        good = [item for item in found if isinstance(item, answers.Resolution)]
        full = [item for item in found if isinstance(item, TooLarge)]
        assert len(good) == 16
        assert len(full) == 4


# Writing --------------------------------------------------------------------------------


async def test_the_life_of_a_record() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        receipt, replayed = answers.decode_written(await peer.answer(write(Action.CREATE, "A")))
        assert (receipt.action, receipt.version, replayed) == (Action.CREATE, 1, False)
        assert isinstance(await refused(peer, write(Action.CREATE, "A")), IdentifierTaken)
        changed = write(Action.MODIFY, "A", values=(Value(2, "B", b"x"),), remove=(1,))
        receipt, _ = answers.decode_written(await peer.answer(changed))
        assert receipt.version == 2
        late = write(Action.PUT, "A", condition=requests.Condition(version=1))
        assert isinstance(await refused(peer, late), VersionMismatch)
        absent = write(Action.PUT, "A", condition=requests.Condition(absent=True))
        assert isinstance(await refused(peer, absent), VersionMismatch)
        right = requests.Condition(version=2, sequence=receipt.sequence)
        receipt, _ = answers.decode_written(
            await peer.answer(write(Action.PUT, "A", condition=right))
        )
        assert receipt.version == 3
        odd = write(Action.CREATE, "B", condition=requests.Condition(version=1))
        assert isinstance(await refused(peer, odd), InvalidRequest)
        receipt, _ = answers.decode_written(await peer.answer(write(Action.RETIRE, "A")))
        assert receipt.status == "retired"
        assert isinstance(await refused(peer, write(Action.PURGE, "A")), Forbidden)
        async with node.peer(node.admin) as admin:
            receipt, _ = answers.decode_written(await admin.answer(write(Action.PURGE, "A")))
            assert receipt.action is Action.PURGE


async def test_a_key_that_was_used_gives_the_first_receipt_again() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        first = await peer.answer(write(Action.CREATE, "A", "k"))
        again = answers.decode_written(await peer.answer(write(Action.CREATE, "A", "k")))
        assert again == (answers.decode_written(first)[0], True)
        other = await refused(peer, write(Action.CREATE, "B", "k"))
        assert isinstance(other, IdempotencyMismatch)
        async with node.peer(node.admin) as admin:  # a key is its caller's own
            assert isinstance(await refused(admin, write(Action.CREATE, "A", "k")), IdentifierTaken)
        minted = requests.Mint("88.118.8", "M-", (VALUE,), idempotency_key="m")
        first_minted, _ = answers.decode_written(await peer.answer(minted))
        assert first_minted.identifier.startswith("88.118.8/M-")
        assert answers.decode_written(await peer.answer(minted)) == (first_minted, True)


@pytest.mark.parametrize(
    "asked",
    [
        write(Action.CREATE, "A", prefix="88.118.9"),
        write(Action.PUT, "A", prefix="88.118.9"),
        write(Action.MODIFY, "A", prefix="88.118.9", values=(VALUE,)),
        write(Action.RETIRE, "A", prefix="88.118.9"),
        requests.Mint("88.118.9", "", (VALUE,)),
        requests.ListRecords("88.118.9"),
        requests.FindPrefix("88.118.9"),
        requests.HomePrefix("88.118.10", "acme"),
        requests.ChangePrefix("88.118.9", tenant="acme"),
        requests.ListKeys(),
        requests.IssueKey(Role.READER, "acme"),
        requests.RevokeKey("abcdefgh"),
    ],
    ids=lambda asked: type(asked).__name__,
)
async def test_another_tenants_things_are_out_of_reach(asked: requests.Request) -> None:
    async with world() as node:
        async with node.peer(node.acme) as peer:
            assert isinstance(await refused(peer, asked), Forbidden)
            await peer.answer(requests.Ping())
        async with node.peer() as peer:
            assert isinstance(await refused(peer, asked), Unauthenticated)
            await peer.answer(requests.Ping())
        assert (await node.parts.local.fetch(create("A", prefix="88.118.9").identifier.key()))[
            1
        ] is None


def batch(*suffixes: str, mode: Any = "all", **fields: Any) -> requests.WriteMany:
    rows = tuple(requests.Operation(Action.CREATE, f"88.118.8/{s}", (VALUE,)) for s in suffixes)
    return requests.WriteMany(rows, mode, **fields)


async def test_batches() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        done, _ = answers.decode_written_many(await peer.answer(batch("A", "B", dry_run=True)))
        assert (done.dry_run, done.written, len(done.rows)) == (True, 0, 2)
        sent = batch("A", "B", idempotency_key="k")
        done, replayed = answers.decode_written_many(await peer.answer(sent))
        assert (done.written, replayed) == (2, False)
        again, replayed = answers.decode_written_many(await peer.answer(sent))
        assert (again, replayed) == (done, True)
        bad = await refused(peer, batch("B", "C"))
        assert isinstance(bad, BatchRejected)
        assert [row["code"] for row in bad.fields["rows"]] == ["identifier-taken"]
        done, _ = answers.decode_written_many(
            await peer.answer(batch("B", "C", " bad ", mode="valid-rows"))
        )
        assert [row.ok for row in done.rows] == [False, True, False]
        kind, body = encode_request(batch("D"))
        spoilt = body.replace(b"create", b"crEate")
        peer.send(encode_frame(900, kind, spoilt.replace(b"\xa3all", b"\xaavalid-rows")))
        done, _ = answers.decode_written_many((await peer.frame()).body)
        assert (done.rows[0].ok, done.rows[0].identifier) == (False, "88.118.8/D")


async def test_prefixes_and_keys() -> None:
    async with world() as node, node.peer(node.admin) as peer:
        home = requests.HomePrefix("88.118.10", "acme", ("url",), idempotency_key="h")
        made, replayed = answers.decode_written_prefix(await peer.answer(home))
        assert (made.name, made.searchable, replayed) == ("88.118.10", ("URL",), False)
        assert answers.decode_written_prefix(await peer.answer(home))[1]
        listed, cursor = answers.decode_prefixes(await peer.answer(requests.ListPrefixes(None, 2)))
        assert len(listed) == 2
        rest, end = answers.decode_prefixes(await peer.answer(requests.ListPrefixes(cursor, 2)))
        assert (len(rest), end) == (1, None)
        changed, _ = answers.decode_written_prefix(
            await peer.answer(requests.ChangePrefix("88.118.10", tenant="beta"))
        )
        assert changed.tenant == "beta"
        found = answers.decode_one_prefix(await peer.answer(requests.FindPrefix("88.118.10")))
        assert found.tenant == "beta"
        issued, secret = answers.decode_issued(
            await peer.answer(requests.IssueKey(Role.READER, "acme", "l"))
        )
        assert (issued.tenant, issued.label) == ("acme", "l")
        async with node.peer(secret) as reader:
            await reader.answer(requests.Ping())
        keys, cursor = answers.decode_keys(await peer.answer(requests.ListKeys(None, 3)))
        assert len(keys) == 3
        assert cursor is not None
        gone, _ = answers.decode_revoked(await peer.answer(requests.RevokeKey(issued.id, "r")))
        assert gone.revoked
        for after in (b"\xff", b"a\n"):
            bad = await refused(peer, requests.ListKeys(after))
            assert isinstance(bad, InvalidRequest)


# Who asks -------------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_and_hung_up_on() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        await peer.answer(write(Action.CREATE, "A"))
        await node.write(RevokeKey(node.ids["acme"]))
        async with asyncio.timeout(5):
            peer.send(request(6, write(Action.CREATE, "B")))
            frames = await peer.rest()
        told = {frame.id: frame for frame in frames}
        assert isinstance(error(told[6]), Unauthenticated)
        assert (await node.parts.local.fetch(create("B").identifier.key()))[1] is None


async def test_who_follows_with_a_key_that_is_revoked_is_told_without_asking() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        peer.send(request(5, requests.Follow(10**6)))
        await peer.answer(requests.Ping())
        await node.write(RevokeKey(node.ids["acme"]))
        (frame,) = await peer.rest(5)
        assert frame.id == 5
        assert isinstance(error(frame), Unauthenticated)


async def test_while_keys_cannot_be_checked_readers_get_what_everybody_gets() -> None:
    store = GatedStore()
    async with world(store=store) as node:
        async with node.peer() as peer:
            await peer.answer(Resolve("88.118.8/SN2"))
        node.parts.health.failed("test")
        node.parts.service.callers.clear()
        async with node.peer(greet=False) as peer:
            assert (await peer.hello(node.acme)).role is None
            found = decode_resolution(await peer.answer(Resolve("88.118.8/SN2")))
            assert (found.source, len(found.record.values)) == ("stale", 1)
            told = await refused(peer, write(Action.CREATE, "A"))
            assert told.code == "temporarily-unavailable"
            assert told.fields["retry_after_s"] == 1


# The connection -------------------------------------------------------------------------


async def test_an_id_in_use_is_refused_and_the_first_is_answered() -> None:
    store = GatedStore()
    async with world(store=store) as node, node.peer() as peer:
        store.close_gate("look_up")
        peer.send(request(5, Resolve("88.118.8/SN1")), request(5, Resolve("88.118.8/SN1")))
        assert isinstance(error(await peer.frame()), InvalidRequest)
        store.open_gate("look_up")
        assert decode_resolution((await peer.frame()).body).record.version == 1


async def test_a_warm_name_with_an_id_in_use_is_refused_as_well() -> None:
    store = GatedStore()
    async with world(store=store) as node:
        for ordinary in (False, True):
            async with node.peer(ordinary=ordinary) as peer:
                for _ in range(3):
                    await peer.answer(Resolve("88.118.8/SN1"))
                store.close_gate("look_up")
                peer.send(request(50, Resolve(f"88.118.8/cold{ordinary}")))
                peer.send(request(50, Resolve("88.118.8/SN1")))
                assert isinstance(error(await peer.frame()), InvalidRequest)
                store.open_gate("look_up")
                assert isinstance(error(await peer.frame()), IdentifierNotFound)


@pytest.mark.parametrize("kind", [0, 0x15, 0x7F, 0x80, 0x81, 0x84, 0xFF])
async def test_a_kind_that_is_no_request_is_refused_and_the_connection_lives(kind: int) -> None:
    async with world() as node, node.peer() as peer:
        peer.send(encode_frame(5, kind, b"\xc0"), request(6, requests.Ping()))
        first, second = await peer.frames(2)
        assert (first.id, second.id) == (5, 6)
        assert isinstance(error(first), InvalidRequest)
        assert (second.kind, second.body) == (Kind.ANSWER, b"\xc0")


async def test_answers_overtake_one_another() -> None:
    store = GatedStore()
    async with world(store=store) as node, node.peer() as peer:
        await peer.answer(Resolve("88.118.8/SN1"))
        store.close_gate("look_up")
        peer.send(request(50, Resolve("88.118.8/SN2")), request(51, Resolve("88.118.8/SN1")))
        assert (await peer.frame()).id == 51
        store.open_gate("look_up")
        assert (await peer.frame()).id == 50


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    async with world(tmp_path / "native") as node:
        peer = Peer(*await asyncio.open_unix_connection(node.path))
        await peer.hello(node.acme)
        await peer.answer(write(Action.CREATE, "A"))
        found = decode_resolution(await peer.answer(Resolve("88.118.8/A")))
        assert found.record.values[0].text == "https://acme.example/"
        await peer.close()


async def test_a_frame_longer_than_its_kind_may_be_ends_the_connection() -> None:
    async with world() as node:
        for key, kind, most in (
            (None, Kind.RESOLVE, REQUEST_OCTETS_MAX[Kind.RESOLVE]),
            (None, Kind.WRITE, 2**20),
            (node.acme, Kind.LIST, REQUEST_OCTETS_MAX[Kind.LIST]),
            (node.acme, Kind.SEARCH, 2**20),
            (node.acme, Kind.WRITE, 8 * 2**20),
        ):
            async with node.peer(key) as peer:
                peer.send((most + 1).to_bytes(4, "big"), b"\0\0\0\7", bytes((kind,)), b"\x91")
                frames = await peer.rest()
                assert len(frames) == 1
                assert isinstance(error(frames[0]), TooLarge)
                assert frames[0].id == (7 if most < 8 * 2**20 else 0)


async def test_the_largest_write_goes_through() -> None:
    values = tuple(Value(n, "X", bytes(65_000)) for n in range(1, 5))
    rows = tuple(requests.Operation(Action.CREATE, f"88.118.8/L{n}", values) for n in range(32))
    async with world() as node, node.peer(node.acme) as peer:
        asked = requests.WriteMany(rows, "all")
        assert len(encode_request(asked)[1]) > 8_300_000
        done, _ = answers.decode_written_many(await peer.answer(asked))
        assert done.written == 32
        assert node.front.held_octets == 0


async def test_metrics_tell_lane_and_ordinary_answers_alike() -> None:
    async with world() as node, node.peer() as peer:
        for _ in range(5):
            await peer.answer(Resolve("88.118.8/SN1"))
        await refused(peer, Resolve("88.118.8/no"))
        page = node.front.observer.page().decode()
        assert 'biaojie_requests_total{front="native",operation="resolve",outcome="ok"} 5.0' in page
        assert 'operation="resolve",outcome="identifier-not-found"} 1.0' in page
        assert node.front.all_counts()["native_lane_hits"] == 3
