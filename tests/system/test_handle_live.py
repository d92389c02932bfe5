"""Handle operations at real nodes, over every transport: what clients do from the first question
to the last, and nodes that send them on to each other."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from biaojie import Client
from biaojie.handle_options import HandleOptions
from biaojie.keys import encode_public_key
from biaojie.record import Reference
from biaojie.wire.handle import (
    RIGHTS_ALL,
    Admin,
    AnswerRequest,
    Challenge,
    Done,
    Message,
    OpCode,
    OpFlag,
    Referral,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    SiteResponse,
    decode_admin,
    decode_message,
    decode_site,
    encode_message,
)
from tests.handle_meaning import vectors
from tests.handle_talk import (
    ADMIN,
    FLAGS_DEFAULT,
    PREFIX,
    PRIVATE,
    PUBKEY,
    RSA,
    SECKEY,
    SECRET,
    Talk,
    TcpLine,
    about,
    create,
    hidden,
    http_exchange,
    login,
    proof,
    request,
    resolve,
    text_value,
    udp_exchange,
)
from tests.system.described import Described, metrics, total

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]


def octets(data: bytes) -> dict[str, str]:
    return {"format": "base64", "value": base64.b64encode(data).decode()}


def with_admin(node: RunningNode, prefix: str = PREFIX) -> RunningNode:
    """Home the prefix for the identities that tests/handle_talk.py has keys of."""
    body = {"prefix": prefix, "tenant": "acme", "admin": f"0:{prefix}/ADMIN"}
    assert node.ask("POST", "/api/v1/prefixes", body).status == 201
    values = [
        {"index": 300, "type": "HS_SECKEY", "data": octets(SECRET), "permissions": "1100"},
        {"index": 301, "type": "HS_PUBKEY", "data": octets(encode_public_key(RSA.public))},  # type: ignore[union-attr]
    ]
    reply = node.ask("PUT", f"/api/v1/identifiers/{prefix}/ADMIN", {"values": values})
    assert reply.status == 201, reply.body
    return node


@pytest.fixture(scope="module")
def served(make_node: Make) -> RunningNode:
    return with_admin(make_node())


def over(node: RunningNode, transport: str) -> Talk:
    async def exchange(frame: bytes) -> list[bytes]:
        if transport == "udp":
            return await udp_exchange(node.handle_port, frame)
        if transport == "http":
            return await http_exchange(node.port, frame)
        host = "::1" if transport == "tcp6" else "127.0.0.1"
        line = TcpLine(node.handle_port, host)
        try:
            return await line.exchange(frame)
        finally:
            line.close()

    return Talk(exchange)


@pytest.mark.parametrize("key", [SECKEY, PUBKEY], ids=["secret", "public"])
@pytest.mark.parametrize("transport", ["tcp", "tcp6", "udp", "http"])
async def test_register_and_read_over_each_transport(
    served: RunningNode, transport: str, key: Reference
) -> None:
    """Each message on a connection of its own, as real clients do it."""
    talk = over(served, transport)
    handle = f"{PREFIX}/LIVE-{transport}-{key.index}"
    made = await talk.authorized(create(handle, text_value(), hidden()), key)
    assert made.response_code == ResponseCode.SUCCESS
    read = await talk.answer(resolve(handle))
    assert isinstance(read.body, ResolveResponse)
    assert [value.index for value in read.body.values] == [1]
    private = await talk.authorized(resolve(handle, flags=PRIVATE), key)
    assert isinstance(private.body, ResolveResponse)
    assert [value.index for value in private.body.values] == [1, 9]
    page = served.ask("GET", f"/api/v1/identifiers/{handle}", key=None)
    assert page.json["values"][0]["data"] == "https://example.com/"
    gone = await talk.authorized(about(OpCode.DELETE_HANDLE, handle), key)
    assert gone.response_code == ResponseCode.SUCCESS
    assert await talk.code(resolve(handle)) == ResponseCode.HANDLE_NOT_FOUND
    assert served.ask("GET", f"/api/v1/identifiers/{handle}", key=None).status == 404


async def test_a_change_over_http_is_seen_over_handle_and_the_other_way_round(
    served: RunningNode,
) -> None:
    talk = over(served, "tcp")
    handle = f"{PREFIX}/BOTH"
    await talk.authorized(create(handle))
    for number in range(3):
        data = f"https://example.com/{number}"
        body = {"values": [{"index": 1, "type": "URL", "data": data}]}
        assert served.ask("PUT", f"/api/v1/identifiers/{handle}", body).status == 200
        read = await talk.answer(resolve(handle))
        assert isinstance(read.body, ResolveResponse)
        assert read.body.values[0].data.decode() == data
    changes = served.ask("GET", "/api/v1/changes?limit=1000").json["items"]
    actors = {c["actor"] for e in changes for c in e["changes"] if c["subject"] == handle}
    assert f"300:{ADMIN}" in actors


async def test_metrics_count_each_operation_by_transport(served: RunningNode) -> None:
    described = Described(served.port, served.key)
    before = total(metrics(described), "biaojie_requests_total", front="handle-tcp")
    await over(served, "tcp").answer(resolve(f"{PREFIX}/NOPE"))
    await over(served, "tcp").exchange(encode_message(resolve("x"))[:19] + b"\x18" + bytes(24))
    after = metrics(described)
    assert total(after, "biaojie_requests_total", front="handle-tcp") == before + 2
    named = {"front": "handle-tcp", "operation": "resolution", "outcome": "identifier-not-found"}
    assert total(after, "biaojie_requests_total", **named) >= 1
    assert total(after, "biaojie_requests_total", outcome="internal") == 0


async def test_the_national_clients_words_are_understood(make_node: Make) -> None:
    """The messages that the national SDK sent, octet for octet, but for the proof, which needs
    the nonce of today. Each session is a connection."""
    node = with_admin(make_node(), "88.111.1")
    lines: dict[int, TcpLine] = {}
    challenged: dict[int, Message] = {}
    opcodes = []
    for vector in vectors("iiis"):
        frame = bytes.fromhex(vector["hex"])
        sent = decode_message(frame)
        opcodes.append(sent.opcode)
        session = sent.session_id
        if isinstance(sent.body, AnswerRequest):
            key = sent.body.key
            assert key == Reference("88.111.1/ADMIN", 301)
            made = proof(challenged[session], key, session_id=session, flags=sent.flags)
            frame = encode_message(made)
            sent = decode_message(frame)
        line = lines.setdefault(session, TcpLine(node.handle_port))
        (answer,) = [decode_message(each) for each in await line.exchange(frame)]
        assert answer.response_code == vector["answer"], vector
        assert (answer.request_id, answer.session_id) == (sent.request_id, session)
        if isinstance(answer.body, Challenge):
            challenged[session] = answer
            assert answer.digest is not None
            assert answer.digest.matches(sent.received)
        elif isinstance(sent.body, AnswerRequest):
            assert (answer.opcode, answer.body) == (OpCode.LOGIN, Done())
    for line in lines.values():
        line.close()
    assert {1, 2, 100, 101, 102, 103, 104, 200, 300, 301, 2001} == set(opcodes)


async def test_a_login_lasts_as_long_as_its_connection(served: RunningNode) -> None:
    line = TcpLine(served.handle_port)
    talk = Talk(line.exchange)
    done = await talk.answer(proof(await talk.answer(login(session_id=10_001))))
    assert done.response_code == ResponseCode.SUCCESS
    assert await talk.code(create(f"{PREFIX}/KEEP", session_id=10_001)) == ResponseCode.SUCCESS
    line.close()
    other = over(served, "tcp")
    assert await other.code(create(f"{PREFIX}/K2", session_id=10_001)) == ResponseCode.LOGIN_FIRST


async def test_pipelined_requests_are_each_answered(served: RunningNode) -> None:
    line = TcpLine(served.handle_port)
    asked = [resolve(ADMIN), create(f"{PREFIX}/P1"), about(OpCode.GET_SITE_INFO, "/")] * 10
    line.send(b"".join(map(encode_message, asked)))
    answers = {m.request_id: m for m in (decode_message(line.receive()) for _ in asked)}
    line.close()
    assert [answers[m.request_id].response_code for m in asked] == [1, 402, 1] * 10


async def test_an_enterprise_node_below_ours_is_found_by_walking(make_node: Make) -> None:
    """top → secondary → enterprise: each a node of ours; clients start at the top."""
    enterprise = with_admin(make_node(), "88.118.8")
    secondary = make_node()
    top = make_node()

    async def site_of(node: RunningNode) -> bytes:
        answer = await over(node, "tcp").answer(about(OpCode.GET_SITE_INFO, "/"))
        assert isinstance(answer.body, SiteResponse)
        return answer.body.site.encode()

    def delegate(node: RunningNode, prefix: str, status: str, site: bytes) -> None:
        body = {"prefix": prefix, "tenant": "below", "status": status}
        assert node.ask("POST", "/api/v1/prefixes", body).status == 201
        if node.ask("GET", "/api/v1/prefixes/0.NA").status != 200:
            home = {"prefix": "0.NA", "tenant": "node"}
            assert node.ask("POST", "/api/v1/prefixes", home).status == 201
        values = {"values": [{"index": 1, "type": "HS_SITE", "data": octets(site)}]}
        reply = node.ask("PUT", f"/api/v1/identifiers/0.NA/{prefix}", values)
        assert reply.status == 201, reply.body

    delegate(secondary, "88.118.8", "delegated", await site_of(enterprise))
    delegate(top, "88.118", "delegated", await site_of(secondary))
    made = await over(enterprise, "tcp").authorized(create("88.118.8/DEEP"))
    assert made.response_code == ResponseCode.SUCCESS

    # step by step, as the reference client walks
    answer = await over(top, "tcp").answer(resolve("0.NA/88.118.8", types=["HS_SITE", "HS_SERV"]))
    assert answer.response_code == ResponseCode.PREFIX_REFERRAL
    assert isinstance(answer.body, Referral)
    (site,) = answer.body.values or ()
    assert decode_site(site.data).servers[0].interfaces[0].port == secondary.handle_port
    answer = await over(secondary, "tcp").answer(resolve("0.NA/88.118.8", types=["HS_SITE"]))
    assert isinstance(answer.body, ResolveResponse)
    (site,) = answer.body.values
    assert decode_site(site.data).servers[0].interfaces[0].port == enterprise.handle_port
    answer = await over(secondary, "tcp").answer(resolve("88.118.8/DEEP"))
    assert answer.response_code == ResponseCode.PREFIX_REFERRAL
    assert await over(enterprise, "tcp").code(resolve("88.118.8/DEEP")) == ResponseCode.SUCCESS
    # and by itself
    for node in (top, secondary, enterprise):
        async with Client(f"hdl://127.0.0.1:{node.handle_port}") as client:
            record = (await client.resolve("88.118.8/DEEP")).record
            assert record.values[0].data == b"https://example.com/"
    stay = HandleOptions(follow_referrals=False)
    async with Client(f"hdl://127.0.0.1:{secondary.handle_port}", handle=stay) as client:
        with pytest.raises(Exception, match="303"):
            await client.resolve("88.118.8/DEEP")
    # another service
    delegate(secondary, "88.118.9", "referred", await site_of(enterprise))
    answer = await over(secondary, "tcp").answer(resolve("88.118.9/X"))
    assert answer.response_code == ResponseCode.SERVICE_REFERRAL
    for node in (top, secondary, enterprise):
        node.stop()


async def test_the_nodes_key_stays_and_its_site_counts_its_changes(make_node: Make) -> None:
    node = make_node()
    key = node.data_dir / "handle-key.pem"
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    text = key.read_bytes()

    async def site() -> Any:
        answer = await over(node, "tcp").answer(about(OpCode.GET_SITE_INFO, "/"))
        assert isinstance(answer.body, SiteResponse)
        assert answer.site_serial == answer.body.site.serial
        return answer.body.site

    first = await site()
    assert first.serial == 1
    node.stop()
    node.start()  # on the same ports
    assert await site() == first
    assert key.read_bytes() == text
    node.stop()
    node.environment["BIAOJIE_HANDLE_PUBLIC_ADDRESSES"] = "192.0.2.7, 2001:db8::7"
    node.environment["BIAOJIE_HANDLE_PUBLIC_PORT"] = "2641"
    node.environment["BIAOJIE_HANDLE_PUBLIC_HTTP_PORT"] = "80"
    node.start()
    moved = await site()
    assert moved.serial == 2
    assert str(moved.servers[0].ip) == "192.0.2.7"
    assert [interface.port for interface in moved.servers[0].interfaces] == [2641, 2641, 80]
    assert moved.servers[0].public_key == first.servers[0].public_key
    node.home("88.118.8")
    listed = await over(node, "tcp").answer(resolve("0.NA/88.118.8"))
    assert isinstance(listed.body, ResolveResponse)
    assert [value.type for value in listed.body.values] == ["HS_SITE", "HS_SITE.6"]
    node.stop()
    (node.data_dir / "handle-site.json").write_text("damaged")
    node.start()
    assert (await site()).serial == 1
    node.stop()
    key.write_text("no key")
    with pytest.raises(AssertionError, match="did not start"):
        node.start()


@pytest.mark.parametrize("addresses", ["example.com", "300.1.1.1"])
def test_public_addresses_are_addresses(make_node: Make, addresses: str) -> None:
    node = make_node(start=False, handle_public_addresses=addresses)
    node.data_dir.mkdir(parents=True)
    with pytest.raises(AssertionError, match="did not start"):
        node.start()


async def test_what_a_client_asks_of_nobody(served: RunningNode) -> None:
    """The heartbeat of the national clients, and questions about the root of the Handle system."""
    for handle, code in (("0", 100), ("0.0/0.0", 301), ("20.1000/1", 301), ("/", 102)):
        body = ResolveRequest(handle, (), (), b"")
        message = request(OpCode.RESOLUTION, body, flags=FLAGS_DEFAULT | OpFlag.CERTIFY)
        answer = await over(served, "tcp").answer(message)
        assert answer.response_code == code
        assert answer.credential is not None


def test_settings_say_how_handle_clients_reach_the_node(served: RunningNode) -> None:
    line = next(line for line in served.log.splitlines() if '"handle site"' in line)
    assert json.loads(line)["addresses"] == ["127.0.0.1"]


def test_the_command_line_homes_a_prefix_with_its_administrator(served: RunningNode) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        environment = served.settings() | {
            "BIAOJIE_URL": served.url,
            "BIAOJIE_KEY": served.key,
            "LANG": "C",
        }
        return subprocess.run(
            served.command(*words), env=environment, capture_output=True, text=True, timeout=60
        )

    owner = f"300:{ADMIN}"
    done = command("prefix", "home", "88.118.21", "--tenant", "acme", "--admin", owner)
    assert done.returncode == 0, done.stderr
    record = served.ask("GET", "/api/v1/identifiers/0.NA/88.118.21").json
    (admin,) = [v for v in record["values"] if v["type"] == "HS_ADMIN"]
    assert decode_admin(base64.b64decode(admin["data"]["value"])) == Admin(RIGHTS_ALL, SECKEY)
    bad = command("prefix", "home", "88.118.22", "--tenant", "acme", "--admin", "nobody")
    assert bad.returncode != 0
    assert "300:88.118.8/ADMIN" in bad.stderr
    below = command("prefix", "home", "88.118.23", "--tenant", "x", "--status", "delegated")
    assert below.returncode == 0, below.stderr
    assert "delegated" in below.stdout
