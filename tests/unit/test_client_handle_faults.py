"""hdl:// over a bad network and from bad peers: what the client waits for, passes over, asks
again, and what it tells its caller. Real sockets; the waits of UDP are shortened."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from biaojie import Client, Value, handle_connections, handle_datagrams, keys
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    MalformedAnswer,
    OverCapacity,
    Unreachable,
)
from biaojie.handle_options import HandleOptions
from biaojie.handle_server import OutcomeUnknown
from biaojie.retry import Backoff
from biaojie.wire.handle import (
    Digest,
    Failure,
    Message,
    OpCode,
    ResolveResponse,
    ResponseCode,
    answer_to,
    encode_message,
    refusal,
    split,
)
from resolver.front.handle.guard import cut_form
from tests.scripted_handle import (
    IDENTITY,
    SECRET,
    Met,
    ScriptedHandle,
    before,
    hung_up,
    lost,
)

A = "88.118.8/A"
URL = Value(1, "URL", b"https://a.example")
BIG = tuple(Value(n, "URL", bytes([n]) * 300) for n in range(1, 12))
SITE_KEY = keys.generate("rsa")
QUICK = Backoff(base_s=0.01, cap_s=0.01)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_datagrams, "TIMEOUTS_S", (0.1, 0.2, 0.3))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHandle]:
    scripted = ScriptedHandle()
    scripted.put(A, URL)
    scripted.put("88.118.8/BIG", *BIG)
    async with scripted.serving():
        yield scripted


@pytest.fixture
async def client(server: ScriptedHandle) -> AsyncIterator[Client]:
    async with Client(server.url, identity=IDENTITY, secret=SECRET, backoff=QUICK) as client:
        yield client


async def reads(client: Client, name: str = A) -> bool:
    return (await client.resolve(name)).record.values[0].type == "URL"


# Datagrams ------------------------------------------------------------------------------


async def test_a_lost_datagram_is_sent_again_as_it_was(
    server: ScriptedHandle, client: Client
) -> None:
    server.faults.extend([lost, lost])
    assert await reads(client)
    assert server.over() == ["udp 1"] * 3
    assert len({message.request_id for _, message in server.seen}) == 1


async def test_duplicates_and_late_answers_harm_nobody(
    server: ScriptedHandle, client: Client
) -> None:
    held: list[Met] = []

    async def twice(met: Met) -> None:
        await met.say_all()
        await met.say_all()

    async def late(met: Met) -> None:
        held.append(met)

    server.faults.extend([twice, late])
    assert await reads(client)
    assert await reads(client)
    await held[0].say_all()
    assert await reads(client)
    assert server.over() == ["udp 1"] * 4


async def test_no_answer_over_udp_then_tcp_and_udp_is_left_alone(
    server: ScriptedHandle, client: Client
) -> None:
    server.faults.extend([lost] * 3)
    assert await reads(client)
    assert await reads(client)
    assert server.over() == ["udp 1"] * 3 + ["tcp 1"] * 2


async def test_fragments_are_put_together_in_any_order(
    server: ScriptedHandle, client: Client
) -> None:
    async def shuffled(met: Met) -> None:
        packets = split(met.frames[0])
        assert len(packets) > 5
        for packet in [*reversed(packets), packets[0]]:
            await met.send(packet)

    # `send` splits what is too long; single packets pass through it as they are
    server.faults.append(shuffled)
    found = await client.resolve("88.118.8/BIG")
    assert found.record.values == BIG
    assert server.over() == ["udp 1"]


async def test_missing_fragments_send_it_to_tcp_at_once(
    server: ScriptedHandle, client: Client
) -> None:
    async def some(met: Met) -> None:
        for packet in split(met.frames[0])[:2]:
            await met.send(packet)

    server.faults.append(some)
    assert (await client.resolve("88.118.8/BIG")).record.values == BIG
    assert server.over() == ["udp 1", "tcp 1"]
    assert await reads(client)
    assert server.over()[-1] == "udp 1"


async def test_a_cut_answer_sends_it_to_tcp_at_once(server: ScriptedHandle, client: Client) -> None:
    async def cut(met: Met) -> None:
        short = cut_form(encode_message(met.request))
        assert short is not None
        await met.send(short)

    server.faults.append(cut)
    begun = asyncio.get_running_loop().time()
    assert await reads(client)
    assert asyncio.get_running_loop().time() - begun < 0.1
    assert server.over() == ["udp 1", "tcp 1"]
    assert await reads(client)
    assert server.over()[-1] == "udp 1"


def forged(change: Callable[[Message], Message]) -> Callable[[Met], bytes]:
    def make(met: Met) -> bytes:
        lie = answer_to(met.request, ResolveResponse(A, (Value(1, "URL", b"https://evil"),)))
        return encode_message(change(lie))

    return make


FORGERIES = {
    "wrong digest": lambda m: replace(m, digest=Digest.of(b"another request")),
    "no digest": lambda m: replace(m, digest=None),
    "wrong request id": lambda m: replace(m, request_id=m.request_id ^ 1),
    "a request": lambda m: replace(m, response_code=0),
    "other operation": lambda m: replace(m, opcode=OpCode.LIST_HANDLES),
    "not found, no digest": lambda m: replace(
        m, response_code=100, body=Failure("gone"), digest=None
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
async def test_what_merely_arrives_is_not_the_answer(
    server: ScriptedHandle, client: Client, what: str
) -> None:
    server.faults.append(before(forged(FORGERIES[what]), lambda met: b"\2\13nonsense"))
    found = await client.resolve(A)
    assert found.record.values[0].data == b"https://a.example"
    assert server.over() == ["udp 1"]


@pytest.mark.parametrize("what", sorted(set(FORGERIES) - {"wrong request id"}))
async def test_the_same_over_tcp_is_a_malformed_answer(server: ScriptedHandle, what: str) -> None:
    server.faults.append(before(forged(FORGERIES[what])))
    quiet = HandleOptions(udp=False)
    async with Client(server.url, handle=quiet, backoff=QUICK) as client:
        with pytest.raises(MalformedAnswer):
            await client.resolve(A)
        assert await reads(client)


# Connections ----------------------------------------------------------------------------


@pytest.fixture
async def tcp(server: ScriptedHandle) -> AsyncIterator[Client]:
    options = HandleOptions(udp=False)
    async with Client(
        server.url, identity=IDENTITY, secret=SECRET, handle=options, backoff=QUICK
    ) as client:
        yield client


async def test_a_server_that_hangs_up_after_each_answer(
    server: ScriptedHandle, tcp: Client
) -> None:
    server.hangs_up = True
    for _ in range(5):
        assert await reads(tcp)
    got = [each async for each in tcp.resolve_many([A] * 50)]
    assert not [each for each in got if isinstance(each, BiaojieError)]
    await tcp.register("88.118.8/H", {"URL": "x"})
    assert server.connections == 57


async def test_a_server_that_does_not_is_asked_through_one_connection(
    server: ScriptedHandle, tcp: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_connections, "SETTLE_S", 0.0)
    for _ in range(20):
        assert await reads(tcp)
        await asyncio.sleep(0)
    assert server.connections <= 2


async def test_answers_may_come_in_any_order(
    server: ScriptedHandle, tcp: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle_connections, "SETTLE_S", 0.0)
    assert await reads(tcp)
    await asyncio.sleep(0.01)
    held: list[Met] = []
    whole = asyncio.Event()

    async def hold(met: Met) -> None:
        held.append(met)
        if len(held) == 5:
            whole.set()

    server.faults.extend([hold] * 5)
    for number in range(5):
        server.put(f"88.118.8/{number}", Value(1, "N", str(number).encode()))
    asked = [asyncio.create_task(tcp.resolve(f"88.118.8/{number}")) for number in range(5)]
    await asyncio.wait_for(whole.wait(), 5)
    for met in reversed(held):
        await met.say_all()
    got = [(await task).record.values[0].data for task in asked]
    assert got == [b"0", b"1", b"2", b"3", b"4"]
    assert server.connections == 1


async def test_reads_are_asked_again_when_the_connection_breaks(
    server: ScriptedHandle, tcp: Client
) -> None:
    server.faults.extend([hung_up, hung_up])
    assert await reads(tcp)
    assert server.over() == ["tcp 1"] * 3


async def test_reads_are_asked_again_when_the_server_is_busy(
    server: ScriptedHandle, tcp: Client
) -> None:
    async def busy(met: Met) -> None:
        await met.send(encode_message(answer_to(met.request, Failure("later"), 3)))

    server.faults.extend([busy, busy])
    assert await reads(tcp)
    server.faults.extend([busy] * 4)
    with pytest.raises(OverCapacity):
        await tcp.resolve(A)
    server.faults.extend([busy, busy])
    await tcp.register("88.118.8/B", {"URL": "x"})
    assert "88.118.8/B" in server.records


@pytest.mark.parametrize("at", [0, 1])
async def test_a_write_that_left_is_not_sent_twice(
    server: ScriptedHandle, tcp: Client, at: int
) -> None:
    async def done_and_gone(met: Met) -> None:
        met.close()

    async def fine(met: Met) -> None:
        await met.say_all()

    server.faults.extend([fine] * at + [done_and_gone])
    with pytest.raises(OutcomeUnknown) as caught:
        await tcp.register("88.118.8/W", {"URL": "x"})
    error = caught.value
    assert isinstance(error, DeadlineExceeded)
    assert error.fields["outcome"] == "unknown"
    assert "idempotency_key" not in error.fields
    assert len(server.seen) == at + 1
    assert ("88.118.8/W" in server.records) == bool(at)


async def test_a_write_that_nobody_answers(server: ScriptedHandle, tcp: Client) -> None:
    server.faults.append(lost)
    with pytest.raises(OutcomeUnknown):
        await tcp.register("88.118.8/W", {"URL": "x"}, timeout_s=0.2)
    server.faults.append(lost)
    with pytest.raises(DeadlineExceeded) as caught:
        await tcp.resolve(A, timeout_s=0.2)
    assert not isinstance(caught.value, OutcomeUnknown)
    results = [r async for r in tcp.register_many([], timeout_s=1)]
    assert results == []


async def test_a_write_passed_on_and_lost_there(server: ScriptedHandle, tcp: Client) -> None:
    async def passed_on(met: Met) -> None:
        await met.send(encode_message(answer_to(met.request, Failure("timeout"), 602)))

    server.faults.append(passed_on)
    with pytest.raises(OutcomeUnknown):
        await tcp.register("88.118.8/W", {"URL": "x"})
    assert len(server.seen) == 1


async def test_a_write_that_never_left_is_tried_again(server: ScriptedHandle, tcp: Client) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    async with Client(
        f"hdl://127.0.0.1:{port}", identity=IDENTITY, secret=SECRET, retries=2
    ) as nobody:
        with pytest.raises(Unreachable):
            await nobody.register("88.118.8/W", {"URL": "x"})
        with pytest.raises(Unreachable):
            await nobody.resolve(A)
    async with Client("hdl://no-such-host.invalid", retries=0) as unknown:
        with pytest.raises(Unreachable):
            await unknown.resolve(A)


async def test_refusals_of_what_could_not_be_read_are_heard(
    server: ScriptedHandle, tcp: Client
) -> None:
    async def unread(met: Met) -> None:
        frame = refusal(encode_message(met.request), ResponseCode.PROTOCOL_ERROR, "too new")
        assert frame is not None
        await met.send(frame[:8] + bytes(4) + frame[12:])  # without even the request's number

    server.faults.append(unread)
    with pytest.raises(BiaojieError) as caught:
        await tcp.resolve(A)
    assert caught.value.fields["response_code"] == 4
    assert "too new" in caught.value.detail.en


async def test_a_list_that_breaks_off_is_no_list(server: ScriptedHandle, tcp: Client) -> None:
    server.open_to_all = True
    for number in range(20):
        server.put(f"88.118.8/{number}", URL)

    async def broken_off(met: Met) -> None:
        await met.send(met.frames[0])
        await met.send(met.frames[1])
        met.close()

    server.faults.append(broken_off)
    records = [record async for record in tcp.records("88.118.8")]
    assert len(records) == 22
    server.faults.extend([broken_off] * 9)
    with pytest.raises(Unreachable):
        await anext(tcp.records("88.118.8"))


async def test_one_client_one_loop_and_closing(server: ScriptedHandle, tcp: Client) -> None:
    assert await reads(tcp)

    def elsewhere() -> None:
        with pytest.raises(RuntimeError):
            asyncio.run(tcp.resolve(A))  # type: ignore[arg-type]

    await asyncio.to_thread(elsewhere)
    await tcp.close()
    await tcp.close()
    with pytest.raises(RuntimeError):
        await tcp.resolve(A)


async def test_a_caller_who_gives_up_leaves_nothing_behind(
    server: ScriptedHandle, client: Client
) -> None:
    arrived = asyncio.Event()

    async def silent(met: Met) -> None:
        arrived.set()

    server.faults.append(silent)
    task = asyncio.create_task(client.resolve(A))
    await asyncio.wait_for(arrived.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await reads(client)
