"""What can go wrong between client and node, on real sockets: nothing is written twice, no
deadline is missed, retries end, and no secret gets out."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from biaojie import Client, Row
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    Forbidden,
    IdempotencyRunning,
    IdentifierNotFound,
    Internal,
    MalformedAnswer,
    OverCapacity,
    TemporarilyUnavailable,
    TooManyRequests,
    Unreachable,
)
from biaojie.retry import Backoff
from tests.scripted_node import (
    Answer,
    Fault,
    ScriptedNode,
    cut_after_commit,
    cut_in_reply,
    free_port,
    held,
    problem,
    reset,
    saying,
    serving,
)

SECRET = "bj_12345678_verysecret"
QUICK = Backoff(base_s=0.001, cap_s=0.002)


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with serving(ScriptedNode()) as node:
        yield node


@pytest.fixture
async def client(node: ScriptedNode) -> AsyncIterator[Client]:
    async with Client(node.url, SECRET, backoff=QUICK) as client:
        yield client


# Retries are safe -----------------------------------------------------------------------


async def _write_all(client: Client) -> None:
    await client.register("99.1/new", {"A": "b"})
    await client.register("99.1/old", {"A": "b"}, overwrite=True)
    await client.mint("99.1", {"A": "b"})
    await client.modify("99.1/old", remove=1)
    await client.register_batch([Row("99.1/row")])
    await client.retire("99.1/old")
    await client.purge("99.1/old")


@pytest.mark.parametrize("fault", [reset, cut_after_commit, cut_in_reply])
@pytest.mark.parametrize("times", [1, 3])
async def test_no_write_happens_twice(
    node: ScriptedNode, client: Client, fault: Fault, times: int
) -> None:
    node.add("99.1/old")
    await _write_all(client)
    once, requests = list(node.registered), len(node.seen)
    node.records.clear()
    node.registered.clear()
    node.add("99.1/old")

    async def faulty(request: web.Request, answer: Answer) -> web.StreamResponse:
        mine = [seen for seen in node.seen[requests:] if seen.key == node.seen[-1].key]
        node.faults.append(faulty)
        return await (fault(request, answer) if len(mine) <= times else answer())

    node.faults.append(faulty)
    await _write_all(client)
    assert node.registered == once
    for seen in {seen.key: seen for seen in node.seen[requests:]}.values():
        same = [other for other in node.seen if other.key == seen.key]
        assert len(same) >= times + 1
        assert all((s.path, s.body) == (seen.path, seen.body) for s in same)


@pytest.mark.parametrize(
    "error", [TemporarilyUnavailable(), OverCapacity(), TooManyRequests(), IdempotencyRunning()]
)
async def test_a_busy_node_is_asked_again(
    node: ScriptedNode, client: Client, error: BiaojieError
) -> None:
    node.faults.extend([problem(error)] * 3)
    await client.register("99.1/a", {"A": "b"})
    assert node.registered == ["99.1/a"]
    assert len({seen.key for seen in node.seen}) == 1
    assert len(node.seen) == 4


@pytest.mark.parametrize("error", [Forbidden(), Internal(), IdentifierNotFound()])
async def test_an_answer_is_not_asked_for_again(
    node: ScriptedNode, client: Client, error: BiaojieError
) -> None:
    node.faults.append(problem(error))
    with pytest.raises(type(error)) as caught:
        await client.resolve("99.1/a")
    assert type(caught.value) is type(error)
    assert len(node.seen) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_retries_end(node: ScriptedNode, retries: int) -> None:
    waits: list[tuple[float, float]] = []

    def dice(low: float, high: float) -> float:
        waits.append((low, high))
        return low

    backoff = Backoff(retries, 0.001, 0.003, dice=dice)
    node.faults.extend([problem(TemporarilyUnavailable())] * 9)
    async with Client(node.url, backoff=backoff) as client:
        with pytest.raises(TemporarilyUnavailable) as caught:
            await client.register("99.1/a", {})
        assert len(node.seen) == retries + 1
        assert caught.value.fields["idempotency_key"] == node.seen[0].key
        assert waits[:3] == [(0.0, 0.001), (0.0, 0.002), (0.0, 0.003)][: retries + 1]


async def test_key_issue_is_never_retried(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    await client.resolve("99.1/a")  # so that the next request goes out on a used connection
    for fault, kind in (
        (reset, Unreachable),
        (cut_after_commit, Unreachable),
        (problem(OverCapacity()), OverCapacity),
    ):
        node.faults.append(fault)
        before = len(node.seen)
        with pytest.raises(kind):
            await client.keys.issue("admin", "acme")
        assert len(node.seen) == before + 1


async def test_connection_closed_while_idle(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    for _ in range(3):
        await client.resolve("99.1/a")
        node.faults.append(reset)  # the node hangs up on the kept connection
        await client.register(f"99.1/{len(node.seen)}", {"A": "b"})
    assert len(node.registered) == len(set(node.registered)) == 3


async def test_node_that_is_not_there() -> None:
    port = free_port()
    async with Client(f"http://127.0.0.1:{port}", SECRET, backoff=QUICK) as client:
        with pytest.raises(Unreachable, match=str(port)) as caught:
            await client.register("99.1/a", {})
        assert caught.value.fields["idempotency_key"]


# Time -----------------------------------------------------------------------------------


async def test_deadline_then_the_same_write_again(node: ScriptedNode, client: Client) -> None:
    done = asyncio.Event()
    node.faults.append(held(done))
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await client.register("99.1/a", {"A": "b"}, timeout_s=0.3)
    assert 0.25 < time.monotonic() - started < 1
    done.set()
    key = caught.value.fields["idempotency_key"]
    receipt = await client.register("99.1/a", {"A": "b"}, idempotency_key=key)
    assert receipt.version == 1
    assert node.registered == ["99.1/a"]


async def test_the_deadline_holds_for_all_attempts_together(node: ScriptedNode) -> None:
    backoff = Backoff(10**6, 0.01, 0.01)
    node.faults.extend([reset] * 10_000)
    async with Client(node.url, timeout_s=0.3, backoff=backoff) as client:
        started = time.monotonic()
        with pytest.raises((Unreachable, DeadlineExceeded)):
            await client.resolve("99.1/a")
        assert time.monotonic() - started < 0.8


async def test_a_reply_that_trickles(node: ScriptedNode, client: Client) -> None:
    async def trickle(request: web.Request, answer: Answer) -> web.StreamResponse:
        slow = web.StreamResponse(headers={"Content-Type": "application/json"})
        await slow.prepare(request)
        while True:
            await slow.write(b" ")
            await asyncio.sleep(0.02)

    node.faults.append(trickle)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await client.resolve("99.1/a", timeout_s=0.3)
    assert time.monotonic() - started < 1


async def test_retry_after_is_kept(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    node.faults.append(problem(OverCapacity(), Retry_After="1"))
    started = time.monotonic()
    await client.resolve("99.1/a")
    assert 0.95 < time.monotonic() - started < 2


async def test_retry_after_beyond_the_deadline(node: ScriptedNode, client: Client) -> None:
    node.faults.append(problem(OverCapacity(), Retry_After="3600"))
    started = time.monotonic()
    with pytest.raises(OverCapacity) as caught:
        await client.resolve("99.1/a")
    assert time.monotonic() - started < 0.5
    assert caught.value.fields["retry_after_s"] == 3600
    assert len(node.seen) == 1


def test_retry_after_is_cut() -> None:
    assert Backoff(retry_after_max_s=30).delay_s(1, 1e9) <= 30.1
    assert 0 <= Backoff().delay_s(10_000) <= 5


@pytest.mark.parametrize("text", ["-1", "soon", "1e9", "Wed, 21 Oct 2099 07:28:00 GMT", "²"])
async def test_retry_after_that_is_no_number(node: ScriptedNode, client: Client, text: str) -> None:
    node.add("99.1/a")
    node.faults.append(problem(OverCapacity(), Retry_After=text))
    await client.resolve("99.1/a", timeout_s=2)


async def test_connections_are_bounded_and_kept(node: ScriptedNode) -> None:
    node.add("99.1/a")
    ports = set()

    async def note(request: web.Request, answer: Answer) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        await asyncio.sleep(0.005)
        return await answer()

    node.faults.extend([note] * 30)
    async with Client(node.url, connections_max=2) as client:
        assert client.connections_max == 2
        await asyncio.gather(*(client.resolve("99.1/a") for _ in range(30)))
    assert node.running_most == 2
    assert len(ports) == 2


async def test_waiting_for_a_connection_counts(node: ScriptedNode) -> None:
    never = asyncio.Event()
    node.faults.append(held(never))
    async with Client(node.url, connections_max=1) as client:
        first = asyncio.create_task(client.register("99.1/a", {}, timeout_s=1))
        await node.arrived(1)
        with pytest.raises(DeadlineExceeded):
            await client.resolve("99.1/a", timeout_s=0.1)
        first.cancel()
        await asyncio.wait([first])
    assert len(node.seen) == 1


# Peers that are not what they should be -------------------------------------------------


async def test_a_peer_that_does_not_speak_http() -> None:
    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(chatter, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}", SECRET, backoff=QUICK) as client:
            with pytest.raises(MalformedAnswer) as caught:
                await client.resolve("99.1/a")
            assert SECRET not in "".join(_everything_about(caught.value))


async def test_tls_to_a_peer_without_it(node: ScriptedNode) -> None:
    waits: list[float] = []
    backoff = Backoff(dice=lambda low, high: waits.append(high) or 0.0)  # type: ignore[func-returns-value]
    async with Client(node.url.replace("http", "https"), SECRET, backoff=backoff) as client:
        with pytest.raises(Unreachable, match="TLS"):
            await client.resolve("99.1/a")
    assert node.seen == []
    assert len(waits) == 1


async def test_redirects_do_not_carry_the_key_away(node: ScriptedNode, client: Client) -> None:
    async with serving(ScriptedNode()) as elsewhere:
        node.faults.append(saying(307, b"", Location=f"{elsewhere.url}/api/v1/identifiers/99.1/a"))
        with pytest.raises(MalformedAnswer):
            await client.resolve("99.1/a")
        assert elsewhere.seen == []


# Silence --------------------------------------------------------------------------------


def _everything_about(error: BaseException | None) -> list[str]:
    told: list[str] = []
    while error is not None:
        told += [repr(error), str(error), repr(vars(error))]
        told += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    return told


async def test_secrets_stay_inside(node: ScriptedNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    client = Client(node.url, SECRET, backoff=QUICK)
    nobody = Client(f"http://127.0.0.1:{free_port()}", SECRET, backoff=QUICK)
    for fault in (saying(429, b""), saying(200, b"{"), saying(200, {}), problem(Forbidden())):
        node.faults.extend([fault] * 4)
        for each in (client, nobody):
            with pytest.raises(BiaojieError) as caught:
                await each.register("99.1/a", {})
            told += _everything_about(caught.value)
        node.faults.clear()
    told += [repr(client), repr(client.prefixes), repr(vars(client)), caplog.text]
    await client.close()
    await nobody.close()
    assert SECRET not in "".join(told)
    assert "attempt 2 follows" in caplog.text


def test_silent_by_default() -> None:
    quiet = logging.getLogger("biaojie")
    assert any(isinstance(handler, logging.NullHandler) for handler in quiet.handlers)
