"""hdl:// in the client: each method as operations of the Handle protocol, on real sockets."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from biaojie import Client, Permissions, Resolved, Row, SyncClient, Value, keys
from biaojie.account import PrefixStatus
from biaojie.change import Action
from biaojie.errors import (
    BiaojieError,
    IdentifierNotFound,
    IdentifierTaken,
    InvalidRequest,
    MalformedAnswer,
    MethodNotAllowed,
    PrefixNotHere,
    TooLarge,
    Unauthenticated,
    ValueNotFound,
    ValueTaken,
)
from biaojie.handle_options import identity_of
from biaojie.record import Reference
from biaojie.wire.handle import (
    Body,
    CreateResponse,
    Failure,
    OpCode,
    OpFlag,
    ResolveRequest,
    ResolveResponse,
    Version,
    answer_to,
    encode_message,
)
from tests.scripted_handle import (
    IDENTITY,
    SECRET,
    Met,
    ScriptedHandle,
)

A = "88.118.8/A"
URL = Value(1, "URL", b"https://a.example")
MIRROR = Value(2, "URL.mirror", b"https://b.example")
PIN = Value(3, "PIN", b"\x00\xff", permissions=Permissions.parse("1100"))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHandle]:
    scripted = ScriptedHandle()
    scripted.put(A, MIRROR, URL, PIN)
    async with scripted.serving():
        yield scripted


@pytest.fixture
async def client(server: ScriptedHandle) -> AsyncIterator[Client]:
    async with Client(server.url, identity=IDENTITY, secret=SECRET, retries=0) as client:
        yield client


async def test_a_look_up_is_one_datagram_each_way(server: ScriptedHandle) -> None:
    async with Client(server.url) as client:
        assert client.url == server.url
        found = await client.resolve(f"hdl:{A}")
        assert [value.index for value in found.record.values] == [1, 2]
        assert (found.record.version, found.record.status, found.source) == (0, "active", "")
        by_type = await client.resolve(A, types="url.")
        assert [value.index for value in by_type.record.values] == [1, 2]
        by_either = await client.resolve(A, index=2, types="URL", authoritative=True)
        assert [value.index for value in by_either.record.values] == [1, 2]
        assert (await client.resolve(A, index=[3, 9])).record.values == ()
        with pytest.raises(IdentifierNotFound) as caught:
            await client.resolve("88.118.8/NOBODY")
        assert caught.value.fields["response_code"] == 100
    assert server.over() == ["udp 1"] * 5
    asked = [message for _, message in server.seen]
    assert all(message.has(OpFlag.REQUEST_DIGEST | OpFlag.PUBLIC_ONLY) for message in asked)
    assert [message.has(OpFlag.AUTHORITATIVE) for message in asked] == [False, False, True] + [
        False
    ] * 2
    assert asked[2].body == ResolveRequest(A, (2,), ("URL",))
    assert len({message.request_id for message in asked}) == 5


async def test_whoever_logs_in_reads_what_the_public_may_not(
    server: ScriptedHandle, client: Client
) -> None:
    mine = await client.resolve(A)
    assert [value.data for value in mine.record.values][2] == b"\x00\xff"
    assert server.over() == ["udp 1", "udp 200"]
    async with Client(server.url, identity=IDENTITY, secret="wrong", retries=0) as wrong:
        with pytest.raises(Unauthenticated) as caught:
            await wrong.resolve(A)
        assert caught.value.fields["response_code"] == 403


async def test_the_life_of_a_record(server: ScriptedHandle, client: Client) -> None:
    name = "88.118.8/泵 #1"
    made = await client.register(name, {"URL": "https://a", "MODEL": "P"})
    assert (made.identifier, made.action, made.status) == (name, Action.CREATE, "active")
    assert (made.version, made.sequence) == (0, 0)
    with pytest.raises(IdentifierTaken):
        await client.register(name, {})
    replaced = await client.register(name, [URL, PIN], overwrite=True)
    assert replaced.action is Action.PUT
    await client.modify(name, [Value(1, "URL", b"https://b"), Value(7, "EMAIL", b"a@b")], remove=3)
    now = (await client.resolve(name)).record.values
    assert [(value.index, value.data) for value in now] == [(1, b"https://b"), (7, b"a@b")]
    assert (await client.retire(name)).status == "retired"
    with pytest.raises(IdentifierNotFound):
        await client.purge(name)
    assert [opcode for opcode, _ in server.done] == [100, 100, 100, 104, 102, 103, 101, 101]
    writes = [each for each, (_, message) in zip(server.over(), server.seen, strict=True)
              if 100 <= message.opcode < 200]  # fmt: skip
    assert not [each for each in writes if each.startswith("udp")]


async def test_minting(server: ScriptedHandle, client: Client) -> None:
    made = await client.mint("88.118.8", {"MODEL": "P"}, "PUMP-")
    assert made.identifier.startswith("88.118.8/PUMP-")
    assert made.identifier.upper() in server.records

    async def says_nothing(met: Met) -> None:
        await met.send(encode_message(answer_to(met.request, CreateResponse())))

    server.open_to_all = True
    server.faults.append(says_nothing)
    with pytest.raises(MalformedAnswer):
        await client.mint("88.118.8", {})


async def test_a_change_that_fails_half_way_says_so(server: ScriptedHandle, client: Client) -> None:
    server.open_to_all = True

    async def grown_meanwhile(met: Met) -> None:
        await met.say_all()
        server.put(A, URL, MIRROR, PIN, Value(7, "EMAIL", b"first"))

    server.faults.append(grown_meanwhile)
    with pytest.raises(ValueTaken) as caught:
        await client.modify(A, [Value(1, "URL", b"https://new"), Value(7, "EMAIL", b"second")])
    assert caught.value.fields["step"] == "add"
    assert caught.value.fields["done"] == ["modify"]
    assert (await client.resolve(A, index=1)).record.values[0].data == b"https://new"
    with pytest.raises(InvalidRequest):
        await client.modify(A)


async def test_many_names_in_order_over_tcp(server: ScriptedHandle) -> None:
    for number in range(0, 300, 3):
        server.put(f"88.118.8/N{number}", URL)
    async with Client(server.url, connections_max=3) as client:
        names = [f"88.118.8/N{number}" for number in range(300)]
        got = [each async for each in client.resolve_many(["no slash", *names])]
    assert [isinstance(each, Resolved) for each in got[1:]] == [n % 3 == 0 for n in range(300)]
    assert [str(each.record.identifier) for each in got if isinstance(each, Resolved)] == names[::3]
    missing = [each for each in got[1:] if isinstance(each, BiaojieError)]
    assert {type(each) for each in missing} == {IdentifierNotFound}
    assert missing[0].fields["identifier"] == "88.118.8/N1"
    assert set(server.over()) == {"tcp 1"}
    assert server.connections == 3


async def test_rows_are_written_one_by_one(server: ScriptedHandle, client: Client) -> None:
    rows = [Row(f"88.118.8/R{n}", [URL]) for n in range(20)]
    rows += [Row(A, [URL]), Row(A, [URL], action="put"), Row(A, action="retire"), Row("bad", [])]
    results = [result async for result in client.register_many(rows)]
    assert [result.row for result in results] == list(range(1, 25))
    assert [result.code for result in results[20:]][0:1] == ["identifier-taken"]
    assert results[-1].code == "invalid-identifier"
    assert len([1 for opcode, _ in server.done if opcode == OpCode.CREATE_HANDLE]) == 22
    with pytest.raises(MethodNotAllowed):
        await client.register_batch(rows[:2], "all")
    with pytest.raises(MethodNotAllowed):
        await client.register_batch(rows[:2], dry_run=True)


async def test_records_of_a_prefix_page_by_page(server: ScriptedHandle, client: Client) -> None:
    for number in range(25):
        server.put(f"88.118.8/n{number:02}", Value(1, "N", str(number).encode()))
    server.put("88.118.8/ends in space ", URL)
    server.part_names = 4

    records = client.records("88.118.8", page_rows=10)
    first = await anext(records)
    del server.records["88.118.8/N21"]
    rest = [record async for record in records]
    names = [str(record.identifier) for record in [first, *rest]]
    assert names == [A, *(f"88.118.8/n{number:02}" for number in range(25) if number != 21)]
    assert [message.opcode for _, message in server.seen][:2] == [105, 200]
    page = await client._transport.list_records("88.118.8", after=None, limit=2, timeout_s=5)
    assert page.next is not None
    for _ in range(4):
        await client._transport.list_records("88.118.8", after=None, limit=2, timeout_s=5)
    with pytest.raises(InvalidRequest):
        await client._transport.list_records("88.118.8", after=page.next, limit=2, timeout_s=5)


async def test_a_list_has_a_limit(server: ScriptedHandle) -> None:
    for number in range(200):
        server.put(f"88.118.8/{number:0100}", URL)
    server.open_to_all = True
    async with Client(
        server.url, identity=IDENTITY, secret=SECRET, reply_octets_max=9_000
    ) as client:
        with pytest.raises(TooLarge):
            await anext(client.records("88.118.8"))


async def test_prefixes(server: ScriptedHandle, client: Client) -> None:
    homed = await client.prefixes.home("88.118.9", "")
    assert (homed.name, homed.tenant, homed.version) == ("88.118.9", "", 0)
    assert (await client.prefixes.change("88.118.10", status="active")).name == "88.118.10"
    assert [each.name async for each in client.prefixes.list()] == ["88.118.10", "88.118.9"]
    assert (await client.prefixes.get("88.118.9")).status is PrefixStatus.ACTIVE
    gone = await client.prefixes.change("88.118.9", status="unhomed")
    assert gone.status is PrefixStatus.UNHOMED
    assert server.prefixes == {"0.NA/88.118.10"}
    with pytest.raises(PrefixNotHere):
        await client.prefixes.get("88.118.9")


async def test_what_the_protocol_lacks_is_said_and_not_sent(
    server: ScriptedHandle, client: Client
) -> None:
    lacking = [
        client.register(A, {}, status="draft"),
        client.register(A, {}, template="T"),
        client.register(A, {}, overwrite=True, if_version=1),
        client.mint("88.118.8", {}, status="frozen"),
        client.modify(A, [URL], if_version=1),
        client.retire(A, if_version=1),
        client.prefixes.home("88.118.9", "acme"),
        client.prefixes.home("88.118.9", "", searchable="URL"),
        client.prefixes.change("88.118.9", status="suspended"),
        client.prefixes.change("88.118.9", tenant="acme"),
        anext(client.changes()),
        anext(client.search(URL="x")),
        anext(client.keys.list()),
        client.keys.issue("reader", "acme"),
        client.keys.revoke("k1"),
    ]
    for call in lacking:
        with pytest.raises(MethodNotAllowed) as caught:
            await call
        assert "Handle" in caught.value.detail.en
        assert "Handle" in caught.value.detail.zh
    assert server.seen == []


async def test_the_sync_client_speaks_it_too() -> None:
    scripted = ScriptedHandle()
    scripted.put(A, URL)
    async with scripted.serving():

        def work() -> list[str]:
            with SyncClient(scripted.url, identity=IDENTITY, secret=SECRET) as client:
                client.register("88.118.8/S", {"URL": "https://s"})
                assert list(client.resolve_many([A, "88.118.8/S"]))
                return [str(record.identifier) for record in client.records("88.118.8")]

        assert await asyncio.to_thread(work) == [A, "88.118.8/S"]


@pytest.mark.parametrize(
    ("url", "kwargs"),
    [
        ("hdl://", {}),
        ("hdl://host/path", {}),
        ("hdl://user@host", {}),
        ("hdl://host:0x1", {}),
        ("hdl://host:99999", {}),
        ("hdl://host?x=1", {}),
        ("hdl://host", {"key": "bj_12345678_x"}),
        ("hdl://host", {"secret": "x"}),
        ("hdl://host", {"identity": IDENTITY}),
        ("hdl://host", {"identity": IDENTITY, "secret": "x", "private_key": b"y"}),
        ("hdl://host", {"identity": "88.118.8/ADMIN", "secret": "x"}),
        ("hdl://host", {"identity": "300:ADMIN", "secret": "x"}),
        ("hdl://host", {"identity": "-1:88.118.8/ADMIN", "secret": "x"}),
        ("http://host", {"identity": IDENTITY, "secret": "x"}),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(url: str, kwargs: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        Client(url, **kwargs)  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    client = Client("hdl://[::1]", identity=IDENTITY, secret="s3cret")
    assert "s3cret" not in repr(client)
    assert client.url == "hdl://[::1]:2641"
    assert identity_of("0:88.118.8/泵") == Reference("88.118.8/泵", 0)


@pytest.mark.parametrize("version", [(2, 1), (2, 2), (2, 6), (2, 7), (2, 10), (2, 11), (3, 0)])
async def test_a_secret_is_proven_in_the_form_of_the_version(
    server: ScriptedHandle, client: Client, version: tuple[int, int]
) -> None:
    server.says_version = Version(*version)
    await client.register("88.118.8/V", {"URL": "https://v"})
    answer = server.seen[-1][1]
    form = getattr(answer.body, "answer", b"")[0]
    assert form == (0x22 if version >= (2, 7) else 2)
    assert answer.version == version


@pytest.mark.parametrize("kind", ["rsa", "dsa", "sm2"])
async def test_a_private_key_is_proven(server: ScriptedHandle, kind: str) -> None:
    private = keys.generate(kind)
    server.user_key = private.public
    async with Client(server.url, identity=IDENTITY, private_key=private) as client:
        await client.register("88.118.8/K", {"URL": "https://k"})
    from biaojie.keys.keyfile import encode_private

    if kind != "sm2":
        async with Client(
            server.url, identity=IDENTITY, private_key=encode_private(private)
        ) as client:
            await client.retire("88.118.8/K")
    other = keys.generate("sm2")
    async with Client(server.url, identity=IDENTITY, private_key=other) as client:
        with pytest.raises(Unauthenticated):
            await client.register("88.118.8/L", {})


async def test_without_a_login_a_challenge_is_an_error(server: ScriptedHandle) -> None:
    async with Client(server.url) as client:
        with pytest.raises(Unauthenticated) as caught:
            await client.register("88.118.8/X", {})
        assert "identity" in caught.value.detail.en
    assert server.done == []


async def test_a_server_that_challenges_for_ever(server: ScriptedHandle, client: Client) -> None:
    async def again(met: Met) -> None:
        body, code = server._challenge(met.request)
        await met.send(
            encode_message(answer_to(met.request, body, code, session_id=server._session_id))
        )

    server.faults.extend([again] * 5)
    with pytest.raises(Unauthenticated):
        await client.register("88.118.8/X", {})
    assert server.over() == ["tcp 100", "tcp 200", "tcp 200"]


async def test_answers_that_are_about_something_else(server: ScriptedHandle) -> None:
    odd: list[Body] = [
        ResolveResponse("88.118.8/B", (URL,)),
        ResolveResponse(A, (URL, URL)),
        ResolveResponse(A, (Value(0, "URL", b""),)),
    ]
    async with Client(server.url, retries=0) as client:
        for body in odd:

            async def say(met: Met, body: Body = body) -> None:
                await met.send(encode_message(answer_to(met.request, body)))

            server.faults.append(say)
            with pytest.raises(MalformedAnswer):
                await client.resolve(A)
        server.faults.append(say_not_found)
        with pytest.raises(ValueNotFound):
            await client._transport._exchange.send(  # type: ignore[attr-defined]
                _ask(A), 5.0
            )


async def say_not_found(met: Met) -> None:
    await met.send(encode_message(answer_to(met.request, Failure("none"), 200)))


def _ask(name: str):  # type: ignore[no-untyped-def]
    from biaojie.handle_server import Ask

    return Ask(OpCode.RESOLUTION, ResolveRequest(name), name)


async def test_secrets_need_no_cryptographic_library(server: ScriptedHandle) -> None:
    program = f"""
import sys
sys.modules["cryptography"] = sys.modules["gmssl_pyx"] = None
from biaojie import SyncClient
from biaojie.handle_options import HandleOptions
from biaojie.keys import MissingLibrary
with SyncClient({server.url!r}, identity={IDENTITY!r}, secret={SECRET!r}) as client:
    client.register("88.118.8/BARE", {{"URL": "x"}})
    print(len(client.resolve({A!r}).record.values))
with SyncClient({server.url!r}, handle=HandleOptions(certified=True)) as client:
    try:
        client.resolve({A!r})
    except MissingLibrary as error:
        print(error.advice.en)
"""
    server.site_key = keys.generate("rsa")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert out.decode().splitlines() == [
        "3", "Install it: pip install 'biaojie-client[handle]'."
    ]  # fmt: skip
