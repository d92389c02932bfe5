"""hdl://: where referrals (302, 303) lead, and where they must not."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from biaojie import Client, Value, handle_exchange
from biaojie.errors import Elsewhere, Forbidden, PrefixNotHere
from biaojie.handle_options import HandleOptions
from biaojie.retry import Backoff
from biaojie.wire.handle import Failure, Interface, Referral, ResponseCode, Server, Site
from tests.scripted_handle import IDENTITY, SECRET, ScriptedHandle

URL = Value(1, "URL", b"https://a.example")
QUICK = Backoff(base_s=0.01, cap_s=0.01)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHandle]:
    async with ScriptedHandle().serving() as scripted:
        yield scripted


@pytest.fixture
async def client(server: ScriptedHandle) -> AsyncIterator[Client]:
    async with Client(server.url, identity=IDENTITY, secret=SECRET, backoff=QUICK) as client:
        yield client


async def reads(client: Client, name: str) -> bool:
    return (await client.resolve(name)).record.values[0].type == "URL"


def site_value(port: int, index: int = 1, type_: str = "HS_SITE", purpose: int = 3) -> Value:
    both = (Interface(purpose, 1, port), Interface(2, 0, port))
    return Value(index, type_, Site((Server.at(1, "127.0.0.1", b"", both),)).encode())


@pytest.fixture
async def other() -> AsyncIterator[ScriptedHandle]:
    scripted = ScriptedHandle()
    scripted.put("88.118.9/X", URL)
    async with scripted.serving():
        yield scripted


@pytest.mark.parametrize(
    ("code", "type_"),
    [(302, "HS_SITE"), (303, "HS_SITE"), (303, "HS_SITE.PREFIX"), (303, "HS_NA_DELEGATE")],
)
async def test_a_referral_is_followed(
    server: ScriptedHandle, other: ScriptedHandle, client: Client, code: int, type_: str
) -> None:
    junk = Value(2, type_, b"not a site")
    referral = Referral("", (junk, site_value(other.port, type_=type_)))
    server.referrals["88.118.9/"] = (ResponseCode(code), referral)
    assert await reads(client, "88.118.9/X")
    await client.register("88.118.9/Y", {"URL": "x"})
    assert "88.118.9/Y" in other.records
    assert other.seen[0][1].recursion_count == 1
    async with Client(server.url, handle=HandleOptions(follow_referrals=False)) as stays:
        with pytest.raises(Elsewhere) as caught:
            await stays.resolve("88.118.9/X")
        assert caught.value.fields["response_code"] == code


async def test_a_referral_by_name(
    server: ScriptedHandle, other: ScriptedHandle, client: Client
) -> None:
    server.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, Referral("0.SERV/1"))
    server.put("0.SERV/1", Value(1, "HS_SERV", b"0.SERV/2"), Value(2, "DESC", b"x"))
    server.put("0.SERV/2", site_value(other.port))
    assert await reads(client, "88.118.9/X")


async def test_referrals_in_a_circle_and_without_end(
    server: ScriptedHandle, other: ScriptedHandle, client: Client
) -> None:
    here, there = site_value(server.port), site_value(other.port)
    server.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, Referral("", (there,)))
    other.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, Referral("", (here,)))
    with pytest.raises(Elsewhere) as caught:
        await client.resolve("88.118.9/X")
    assert "circle" in caught.value.detail.en
    assert len(server.seen) + len(other.seen) <= 4
    server.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, Referral("0.SERV/1"))
    server.put("0.SERV/1", Value(1, "HS_SERV", b"0.SERV/1"))
    with pytest.raises(Elsewhere):
        await client.resolve("88.118.9/X")
    for number in range(40):
        server.put(f"0.SERV/N{number}", Value(1, "HS_SERV", f"0.SERV/N{number + 1}".encode()))
    server.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, Referral("0.SERV/N0"))
    server.seen.clear()
    with pytest.raises(Elsewhere) as caught:
        await client.resolve("88.118.9/X")
    assert "too far" in caught.value.detail.en
    assert len(server.seen) == 9


async def test_referrals_that_lead_nowhere(
    server: ScriptedHandle, other: ScriptedHandle, client: Client
) -> None:
    useless = [
        Value(1, "HS_SITE", Site(()).encode()),
        Value(2, "HS_SITE", b""),
        site_value(0, 3),
        site_value(70_000, 4),
        Value(5, "HS_SITE", Site((Server(1, bytes(16), b"", (Interface(3, 1, 2641),)),)).encode()),
    ]
    server.referrals["88.118.9/"] = (
        ResponseCode.SERVICE_REFERRAL, Referral("", tuple(useless))
    )  # fmt: skip
    with pytest.raises(Elsewhere):
        await client.resolve("88.118.9/X")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = site_value(closed.getsockname()[1], 6)
    working = Referral("", (*useless, dead, site_value(other.port, 7)))
    server.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, working)
    assert await reads(client, "88.118.9/X")
    query_only = Referral("", (site_value(other.port, purpose=2),))
    server.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, query_only)
    assert await reads(client, "88.118.9/X")
    with pytest.raises(Elsewhere):
        await client.register("88.118.9/Z", {"URL": "x"})
    server.referrals["88.118.9/"] = (ResponseCode.SERVER_NOT_RESPONSIBLE, Failure("no"))  # type: ignore[assignment]
    with pytest.raises(PrefixNotHere):
        await client.resolve("88.118.9/X")
    server.referrals["88.118.9/"] = (ResponseCode.INSUFFICIENT_PERMISSIONS, Failure("no"))  # type: ignore[assignment]
    with pytest.raises(Forbidden):
        await client.resolve("88.118.9/X")


async def test_no_more_servers_are_remembered_than_that(
    server: ScriptedHandle, other: ScriptedHandle, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_exchange, "SERVERS_MAX", 2)
    exchange = client._transport._exchange  # type: ignore[attr-defined]
    ports = []
    for number in range(4):
        scripted = ScriptedHandle()
        scripted.put(f"88.118.9/{number}", URL)
        async with scripted.serving():
            ports.append(scripted.port)
            there = Referral("", (site_value(scripted.port),))
            server.referrals["88.118.9/"] = (ResponseCode.SERVICE_REFERRAL, there)
            assert await reads(client, f"88.118.9/{number}")
            assert len(exchange._servers) <= 2
