"""hdl:// in the client library against a real node: every method over the Handle protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from biaojie import Client, SyncClient, Value, keys
from biaojie.account import PrefixStatus
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    Forbidden,
    IdentifierNotFound,
    MalformedAnswer,
    PrefixNotHere,
    Unauthenticated,
)
from biaojie.handle_options import HandleOptions
from biaojie.record import Reference
from biaojie.wire.handle import KeyExchange
from tests.handle_tour import SECRET_BITS, admin_value, tour

if TYPE_CHECKING:
    from biaojie.keys import PrivateKey
    from tests.system.conftest import RunningNode

SECRET = "a secret of the tests"
ADMIN = "88.118.8/ADMIN"
PRIVATE = {301: keys.generate("rsa"), 302: keys.generate("dsa"), 303: keys.generate("sm2")}


ADMINS = [admin_value(index - 200, Reference(ADMIN, index)) for index in range(300, 304)]


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


@pytest.fixture
async def admin(served: RunningNode) -> AsyncIterator[Client]:
    async with Client(url(served), identity=f"300:{ADMIN}", secret=SECRET) as client:
        yield client


def login(index: int) -> dict[str, object]:
    proof = {"secret": SECRET} if index == 300 else {"private_key": PRIVATE[index]}
    return {"identity": f"{index}:{ADMIN}", **proof}


WAYS = {
    "secret": (300, HandleOptions()),
    "rsa": (301, HandleOptions()),
    "dsa": (302, HandleOptions()),
    "sm2": (303, HandleOptions()),
    "tcp": (300, HandleOptions(udp=False)),
    "certified": (300, HandleOptions(certified=True)),
    "session-dh": (300, HandleOptions(session=KeyExchange.DIFFIE_HELLMAN)),
    "session-client": (302, HandleOptions(session=KeyExchange.CLIENT_KEY)),
    "session-server": (300, HandleOptions(session=KeyExchange.SERVER_KEY, certified=True)),
    "session-rsa": (301, HandleOptions(session=KeyExchange.HANDLE_KEY)),
    "session-sm2": (303, HandleOptions(session=KeyExchange.HANDLE_KEY, udp=False)),
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_operation(served: RunningNode, way: str) -> None:
    index, options = WAYS[way]
    number = 10 + list(WAYS).index(way)
    steps = await tour(url(served), "88.118.8", number, login(index), options)
    assert len(steps) == 8


async def test_both_interfaces_show_one_registry(served: RunningNode, admin: Client) -> None:
    record = "88.118.8/both"
    async with Client(served.url, served.key) as http:
        await admin.register(record, [*ADMINS, Value(1, "URL", b"a")])
        await admin.modify(record, [Value(1, "URL", b"b")])
        kept = (await http.resolve(record)).record
        assert (kept.version, kept.values[0].data) == (2, b"b")
        assert (await admin.resolve(record)).record.values == kept.values
        await http.modify(record, [Value(1, "URL", b"c")], if_version=2)
        assert (await admin.resolve(record)).record.values[0].data == b"c"
        await admin.retire(record)
        with pytest.raises(IdentifierNotFound):
            await http.resolve(record)


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


async def test_prefixes(served: RunningNode, admin: Client) -> None:
    async with Client(served.url, served.key) as http:
        assert "88.118.8" in [each.name async for each in admin.prefixes.list()]
        await admin.prefixes.home("88.118.8.2", "")
        assert (await http.prefixes.get("88.118.8.2")).status is PrefixStatus.ACTIVE
        await admin.prefixes.change("88.118.8.2", status="unhomed")
        assert (await http.prefixes.get("88.118.8.2")).status is PrefixStatus.UNHOMED


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


async def test_a_secret_is_never_for_the_public(served: RunningNode, admin: Client) -> None:
    mine = await admin.resolve(ADMIN, types="HS_SECKEY")
    assert b"secret" not in b"".join(value.data for value in mine.record.values)
    async with Client(url(served)) as public:
        assert (await public.resolve(ADMIN, index=300)).record.values == ()
