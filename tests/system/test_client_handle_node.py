"""hdl:// in the client library against a real node: every method over the Handle protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from biaojie import Client, Permissions, Resolved, Row, SyncClient, Value, keys
from biaojie.account import PrefixStatus
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    Forbidden,
    IdentifierNotFound,
    IdentifierTaken,
    MalformedAnswer,
    PrefixNotHere,
    Unauthenticated,
)
from biaojie.handle_options import HandleOptions
from biaojie.record import Reference
from biaojie.wire.handle import RIGHTS_ALL, Admin, KeyExchange

if TYPE_CHECKING:
    from biaojie.keys import PrivateKey
    from tests.system.conftest import RunningNode

SECRET = "a secret of the tests"
ADMIN = "88.118.8/ADMIN"
PRIVATE = {301: keys.generate("rsa"), 302: keys.generate("dsa"), 303: keys.generate("sm2")}
SECRET_BITS = Permissions.parse("1100")


def admin_value(number: int) -> Value:
    return Value(number, "HS_ADMIN", Admin(RIGHTS_ALL, Reference(ADMIN, 200 + number)).encode())


ADMINS = [admin_value(number) for number in range(100, 104)]


@pytest.fixture(scope="module")
def served(make_node: Callable[..., RunningNode]) -> RunningNode:
    node = make_node()
    with SyncClient(node.url, node.key) as http:
        http.prefixes.home("88.118.8", "acme")
        http.prefixes.home("0.NA", "node")
        http.register("0.NA/88.118.8", ADMINS)
        http.register("0.NA/0.NA", ADMINS)
        secret = Value(300, "HS_SECKEY", SECRET.encode(), permissions=SECRET_BITS)
        public = [
            Value(index, "HS_PUBKEY", keys.encode_public_key(key.public))
            for index, key in PRIVATE.items()
        ]
        http.register(ADMIN, [*ADMINS, secret, *public])
    return node


def url(node: RunningNode) -> str:
    return f"hdl://127.0.0.1:{node.handle_port}"


def login(index: int) -> dict[str, object]:
    proof = {"secret": SECRET} if index == 300 else {"private_key": PRIVATE[index]}
    return {"identity": f"{index}:{ADMIN}", **proof}


WAYS: list[tuple[str, int, HandleOptions]] = [
    ("secret", 300, HandleOptions()),
    ("rsa", 301, HandleOptions()),
    ("dsa", 302, HandleOptions()),
    ("sm2", 303, HandleOptions()),
    ("tcp", 300, HandleOptions(udp=False)),
    ("certified", 300, HandleOptions(certified=True)),
    ("session-dh", 300, HandleOptions(session=KeyExchange.DIFFIE_HELLMAN)),
    ("session-client", 302, HandleOptions(session=KeyExchange.CLIENT_KEY)),
    ("session-server", 300, HandleOptions(session=KeyExchange.SERVER_KEY, certified=True)),
    ("session-rsa", 301, HandleOptions(session=KeyExchange.HANDLE_KEY)),
    ("session-sm2", 303, HandleOptions(session=KeyExchange.HANDLE_KEY, udp=False)),
]


@pytest.mark.parametrize(("name", "index", "options"), WAYS, ids=[way[0] for way in WAYS])
async def test_the_life_of_records(
    served: RunningNode, name: str, index: int, options: HandleOptions
) -> None:
    record = f"88.118.8/{name}/泵 1"
    hidden = Value(9, "PIN", b"\x00\xff", permissions=SECRET_BITS)
    async with (
        Client(url(served), **login(index), handle=options) as client,  # type: ignore[arg-type]
        Client(url(served)) as public,
        Client(served.url, served.key) as http,
    ):
        assert (await client.register(record, [*ADMINS, hidden])).status == "active"
        with pytest.raises(IdentifierTaken):
            await client.register(record, ADMINS)
        await client.register(record, [*ADMINS, hidden, Value(1, "URL", b"a")], overwrite=True)
        await client.modify(record, [Value(1, "URL", b"b"), Value(2, "URL.x", b"c")], remove=103)
        kept = (await http.resolve(record)).record
        assert [value.index for value in kept.values] == [1, 2, 9, 100, 101, 102]
        assert kept.values[0].data == b"b"
        assert (await client.resolve(record, authoritative=True)).record.values == kept.values
        seen = (await public.resolve(record, types="url.")).record
        assert [value.data for value in seen.values] == [b"b", b"c"]
        assert (await public.resolve(record, index=9)).record.values == ()

        minted = await client.mint("88.118.8", ADMINS, f"{name}-")
        assert (await http.resolve(minted.identifier)).record.values == tuple(
            (await client.resolve(minted.identifier)).record.values
        )
        rows = [Row(f"88.118.8/{name}/{n}", [*ADMINS, Value(1, "N", str(n).encode())])
                for n in range(30)]  # fmt: skip
        assert all([result.ok async for result in client.register_many(rows)])
        names = [f"88.118.8/{name}/{n}" for n in range(32)]
        got = [each async for each in client.resolve_many(names)]
        assert [isinstance(each, Resolved) for each in got] == [True] * 30 + [False] * 2
        listed = [str(each.identifier) async for each in client.records("88.118.8")]
        assert {record, minted.identifier, ADMIN, *names[:30]} <= set(listed)

        big = [*ADMINS, *(Value(n, "TEXT", b"x" * 400) for n in range(1, 40))]
        await client.register(f"88.118.8/{name}/big", big)
        assert len((await public.resolve(f"88.118.8/{name}/big")).record.values) == 43

        assert (await client.retire(record)).status == "retired"
        for reader in (client, public):
            with pytest.raises(IdentifierNotFound):
                await reader.resolve(record, authoritative=True)
        gone = [Row(each, action="retire") for each in [*names[:30], minted.identifier]]
        assert all([result.ok async for result in client.register_many(gone)])


async def test_who_may_not(served: RunningNode) -> None:
    async with Client(url(served), identity=f"300:{ADMIN}", secret="wrong") as client:
        with pytest.raises(Unauthenticated):
            await client.register("88.118.8/X", {})
        with pytest.raises(Unauthenticated):
            await anext(client.records("88.118.8"))
    other: PrivateKey = keys.generate("rsa")
    async with Client(url(served), identity=f"301:{ADMIN}", private_key=other) as client:
        with pytest.raises(Unauthenticated):
            await client.register("88.118.8/X", {})
    async with Client(url(served)) as client:
        with pytest.raises(Unauthenticated):
            await client.register("88.118.8/X", {})
        with pytest.raises(PrefixNotHere):
            await client.resolve("88.118.77/X")
    async with (
        Client(served.url, served.key) as http,
        Client(url(served), identity=f"300:{ADMIN}", secret=SECRET) as client,
    ):
        await http.register("88.118.8/NOT-YOURS", {"URL": "x"}, overwrite=True)
        await http.prefixes.home("88.118.70", "globex")
        with pytest.raises(Forbidden):
            await client.register("88.118.70/X", {"URL": "x"})


async def test_prefixes(served: RunningNode) -> None:
    async with (
        Client(url(served), identity=f"300:{ADMIN}", secret=SECRET) as client,
        Client(served.url, served.key) as http,
    ):
        listed = [each.name async for each in client.prefixes.list()]
        assert "88.118.8" in listed
        await client.prefixes.home("88.118.8.1", "")
        assert (await http.prefixes.get("88.118.8.1")).status is PrefixStatus.ACTIVE
        await client.prefixes.change("88.118.8.1", status="unhomed")
        assert (await http.prefixes.get("88.118.8.1")).status is PrefixStatus.UNHOMED
        with pytest.raises(PrefixNotHere):
            await client.prefixes.get("88.118.8.1")


async def test_a_node_refers_to_another(
    served: RunningNode, make_node: Callable[..., RunningNode]
) -> None:
    below = make_node()
    async with (
        Client(below.url, below.key) as http,
        Client(url(below), handle=HandleOptions(udp=False)) as direct,
        Client(served.url, served.key) as above,
        Client(url(served)) as client,
    ):
        await http.prefixes.home("88.118.60", "sub")
        await http.register("88.118.60/X", {"URL": "https://below"})
        from biaojie.handle_server import Ask
        from biaojie.wire.handle import HandleRequest, OpCode, SiteResponse

        exchange = direct._transport._exchange  # type: ignore[attr-defined]
        message = await exchange.send(Ask(OpCode.GET_SITE_INFO, HandleRequest("/"), "/"), 5.0)
        assert isinstance(message.body, SiteResponse)
        site = Value(1, "HS_SITE", message.body.site.encode())
        await above.prefixes.home("88.118.60", "sub")
        await above.register("0.NA/88.118.60", [site])
        for status in ("delegated", "referred"):
            await above.prefixes.change("88.118.60", status=status)
            found = await client.resolve("88.118.60/X")
            assert found.record.values[0].data == b"https://below"
        stays = HandleOptions(follow_referrals=False)
        async with Client(url(served), handle=stays) as blunt:
            with pytest.raises(Elsewhere):
                await blunt.resolve("88.118.60/X")


async def test_the_nodes_own_key(served: RunningNode) -> None:
    trusting = HandleOptions(certified=True)
    async with Client(url(served), handle=trusting) as client:
        assert (await client.resolve(ADMIN)).record.values
        with pytest.raises(IdentifierNotFound):
            await client.resolve("88.118.8/NOBODY")
    wrong = HandleOptions(certified=True, site_key=PRIVATE[301].public)
    async with Client(url(served), handle=wrong, retries=0) as client:
        with pytest.raises(MalformedAnswer):
            await client.resolve(ADMIN)


async def test_a_node_that_goes_and_comes(make_node: Callable[..., RunningNode]) -> None:
    node = make_node()
    with SyncClient(node.url, node.key) as http:
        http.prefixes.home("88.118.8", "acme")
        http.register("88.118.8/A", {"URL": "x"})
    async with Client(url(node), handle=HandleOptions(udp=False), timeout_s=15) as client:
        assert (await client.resolve("88.118.8/A")).record.values
        node.kill()
        with pytest.raises(BiaojieError):
            await client.resolve("88.118.8/A", timeout_s=1)
        node.start()
        assert (await client.resolve("88.118.8/A")).record.values


@pytest.fixture
async def admin(served: RunningNode) -> AsyncIterator[Client]:
    async with Client(url(served), identity=f"300:{ADMIN}", secret=SECRET) as client:
        yield client


async def test_a_secret_is_never_for_the_public(served: RunningNode, admin: Client) -> None:
    mine = await admin.resolve(ADMIN, types="HS_SECKEY")
    assert b"secret" not in b"".join(value.data for value in mine.record.values)
    async with Client(url(served)) as public:
        assert (await public.resolve(ADMIN, index=300)).record.values == ()
