"""biaojie:// when things go wrong: nothing is written twice, no answer goes to the wrong caller,
no deadline is missed, memory is bounded, and no secret gets out."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from biaojie import Client, Row, native_connection
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    Forbidden,
    IdempotencyRunning,
    IdentifierNotFound,
    Internal,
    InvalidRequest,
    MalformedAnswer,
    OverCapacity,
    TemporarilyUnavailable,
    TooManyRequests,
    Unauthenticated,
    Unreachable,
)
from biaojie.identifier import Identifier
from biaojie.record import Record
from biaojie.retry import Backoff
from biaojie.wire.native import (
    HEAD,
    Kind,
    Welcome,
    encode_error,
    encode_frame,
    encode_resolution,
    encode_welcome,
)
from tests.scripted_native import (
    Fault,
    Met,
    ScriptedNative,
    cut_after_commit,
    cut_in_answer,
    framing,
    held,
    reads,
    refusing,
    reset,
    saying,
    silence,
)
from tests.scripted_node import free_port

SECRET = "bj_12345678_verysecret"
QUICK = Backoff(base_s=0.001, cap_s=0.002)
OTHER = encode_resolution(Record(Identifier("99.1", "other"), ()), 1, 1, "cache")


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNative]:
    scripted = ScriptedNative()
    scripted.node.add("99.1/a")
    async with scripted.serving():
        yield scripted


@pytest.fixture
async def client(node: ScriptedNative) -> AsyncIterator[Client]:
    async with Client(node.url, SECRET, backoff=QUICK) as client:
        yield client


@asynccontextmanager
async def peer(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The address of a peer that talks to each connection in its own way."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"biaojie://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# Retries are safe -----------------------------------------------------------------------


async def _write_all(client: Client) -> None:
    await client.register("99.1/new", {"A": "b"})
    await client.register("99.1/a", {"A": "b"}, overwrite=True)
    await client.mint("99.1", {"A": "b"})
    await client.modify("99.1/a", remove=1)
    await client.register_batch([Row("99.1/row")])
    await client.retire("99.1/a")


@pytest.mark.parametrize("fault", [reset, cut_after_commit, cut_in_answer])
@pytest.mark.parametrize("times", [1, 3])
async def test_no_write_happens_twice(
    node: ScriptedNative, client: Client, fault: Fault, times: int
) -> None:
    await _write_all(client)
    once, requests = list(node.node.registered), len(node.seen)
    node.node.records.clear()
    node.node.registered.clear()
    node.node.add("99.1/a")

    async def faulty(met: Met) -> None:
        key = met.request.idempotency_key  # type: ignore[union-attr]
        await (fault(met) if node.keys[requests:].count(key) <= times else met.answer())

    node.always = faulty
    await _write_all(client)
    assert node.node.registered == once
    later = node.seen[requests:]
    for key in {request.idempotency_key for request in later}:  # type: ignore[union-attr]
        same = [request for request in later if request.idempotency_key == key]  # type: ignore[union-attr]
        assert len(same) >= times + 1
        assert set(map(repr, same)) == {repr(same[0])}


@pytest.mark.parametrize(
    "error", [TemporarilyUnavailable(), OverCapacity(), TooManyRequests(), IdempotencyRunning()]
)
async def test_a_busy_node_is_asked_again(
    node: ScriptedNative, client: Client, error: BiaojieError
) -> None:
    node.faults.extend([refusing(error)] * 3)
    await client.register("99.1/b", {"A": "b"})
    assert node.node.registered == ["99.1/b"]
    assert len(set(node.keys)) == 1
    assert len(node.seen) == 4
    assert len(node.hellos) == 1


@pytest.mark.parametrize("error", [Forbidden(), Internal(), IdentifierNotFound()])
async def test_an_answer_is_not_asked_for_again(
    node: ScriptedNative, client: Client, error: BiaojieError
) -> None:
    node.faults.append(refusing(error))
    with pytest.raises(type(error)) as caught:
        await client.resolve("99.1/a")
    assert type(caught.value) is type(error)
    assert len(node.seen) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_retries_end(node: ScriptedNative, retries: int) -> None:
    waits: list[tuple[float, float]] = []

    def dice(low: float, high: float) -> float:
        waits.append((low, high))
        return low

    node.faults.extend([refusing(TemporarilyUnavailable())] * 9)
    async with Client(node.url, backoff=Backoff(retries, 0.001, 0.003, dice=dice)) as client:
        with pytest.raises(TemporarilyUnavailable) as caught:
            await client.register("99.1/b", {})
        assert len(node.seen) == retries + 1
        assert caught.value.fields["idempotency_key"] == node.keys[0]
        assert waits[:3] == [(0.0, 0.001), (0.0, 0.002), (0.0, 0.003)][: retries + 1]


async def test_key_issue_is_never_retried(node: ScriptedNative, client: Client) -> None:
    await reads(client)  # so that the next request goes out on a used connection
    for fault, kind in (
        (reset, Unreachable),
        (cut_after_commit, Unreachable),
        (refusing(OverCapacity()), OverCapacity),
    ):
        node.faults.append(fault)
        before = len(node.seen)
        with pytest.raises(kind):
            await client.keys.issue("admin", "acme")
        assert len(node.seen) == before + 1
        await reads(client)
    assert node.node.registered == ["key"]


@pytest.mark.parametrize("retries", [0, 3])
async def test_a_used_connection_that_died_costs_no_attempt(
    node: ScriptedNative, retries: int
) -> None:
    async with Client(node.url, retries=retries) as client:
        for number in range(3):
            await client.resolve("99.1/a")
            node.faults.append(reset)
            await client.register(f"99.1/{number}", {"A": "b"})
    assert len(node.node.registered) == len(set(node.node.registered)) == 3


async def test_all_calls_of_a_connection_that_breaks_are_made_again(
    node: ScriptedNative, client: Client
) -> None:
    await reads(client)
    node.faults.extend([*[silence] * 299, reset])
    names = [f"99.1/{number}" for number in range(300)]
    receipts = await asyncio.gather(*(client.register(name, {"A": "b"}) for name in names))
    assert [receipt.version for receipt in receipts] == [1] * 300
    assert sorted(node.node.registered) == sorted(names)


async def test_node_that_is_not_there() -> None:
    port = free_port()
    async with Client(f"biaojie://127.0.0.1:{port}", SECRET, backoff=QUICK) as client:
        with pytest.raises(Unreachable, match=str(port)) as caught:
            await client.register("99.1/a", {"A": "b"})
        assert caught.value.fields["idempotency_key"]
        errors = await asyncio.gather(
            *(client.register(f"99.1/{n}", {}) for n in range(50)), return_exceptions=True
        )
        # what one caller is told is not told to another
        keys = {e.fields["idempotency_key"] for e in errors if isinstance(e, Unreachable)}
        assert len(keys) == 50


# Hello ----------------------------------------------------------------------------------


async def test_a_wrong_key_is_told_to_all_and_not_tried_again(node: ScriptedNative) -> None:
    def no(met: Met) -> bytes:
        return encode_frame(0, Kind.ERROR, encode_error(Unauthenticated("No.", "不。", x=1)))

    node.greetings.extend([saying(no)] * 50)
    async with Client(node.url, SECRET, backoff=QUICK) as client:
        got = await asyncio.gather(
            *(client.register(f"99.1/{n}", {}) for n in range(20)), return_exceptions=True
        )
        assert {type(error) for error in got} == {Unauthenticated}
        assert len({id(error) for error in got}) == 20
        assert isinstance(got[0], Unauthenticated)
        assert got[0].detail.zh == "不。"
        assert len(node.hellos) == 1
        assert node.seen == []
        node.greetings.clear()
        assert await reads(client)  # it is not for ever


async def test_another_version(node: ScriptedNative, client: Client) -> None:
    welcome = encode_frame(0, Kind.ANSWER, encode_welcome(Welcome(2, "new", {})))
    node.greetings.append(saying(lambda met: welcome))
    with pytest.raises(MalformedAnswer, match="version 2") as caught:
        await client.resolve("99.1/a")
    assert "版本 2" in caught.value.detail.zh
    versions = encode_error(InvalidRequest("Versions 2 to 3 only.", "仅版本 2 至 3。"))
    node.greetings.append(saying(lambda met: encode_frame(0, Kind.ERROR, versions)))
    with pytest.raises(InvalidRequest, match="Versions 2 to 3"):
        await client.resolve("99.1/a")
    assert node.seen == []


async def test_a_node_without_room_is_asked_again(node: ScriptedNative) -> None:
    full = encode_frame(0, Kind.ERROR, encode_error(OverCapacity(retry_after_s=0.2)))
    node.greetings.append(saying(lambda met: full))
    async with Client(node.url, backoff=QUICK) as client:
        started = time.monotonic()
        assert await reads(client)
        assert 0.19 < time.monotonic() - started < 2
    assert len(node.hellos) == 2


async def test_a_further_connection_that_is_refused_costs_no_call(node: ScriptedNative) -> None:
    full = encode_frame(0, Kind.ERROR, encode_error(OverCapacity()))

    async def first_only(met: Met) -> None:
        await (met.answer() if met.connection == 0 else saying(lambda met: full)(met))

    node.greetings.extend([first_only] * 99)
    async with Client(node.url, retries=0) as client:
        await reads(client)
        assert all(await asyncio.gather(*(reads(client) for _ in range(3000))))
    assert len(node.hellos) == 2  # it is not tried again at once


@pytest.mark.parametrize(
    "octets",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\0\0\0\0\0",
        b"\xff" * 20,
        HEAD.pack(6, 0, Kind.ANSWER) + b"\xc1",
        encode_frame(0, Kind.ANSWER, b"\xc0"),
        encode_frame(0, Kind.ANSWER, encode_welcome(Welcome(1, "x", {}))[:-1]),
        encode_frame(0, 0x99, b"\xc0"),
        encode_frame(0, Kind.ERROR, b"\xc0"),
    ],
)
async def test_peers_of_another_kind(octets: bytes) -> None:
    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(octets)
        await writer.drain()
        writer.close()

    async with peer(chatter) as url, Client(url, SECRET, backoff=QUICK) as client:
        with pytest.raises((MalformedAnswer, Unreachable)) as caught:
            await client.resolve("99.1/a")
        assert SECRET not in "".join(_everything_about(caught.value))
        assert caught.value.detail.zh != caught.value.detail.en


async def test_a_peer_that_says_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with peer(mute) as url, Client(url, retries=0) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await client.register("99.1/a", {}, timeout_s=0.2)
        assert 0.15 < time.monotonic() - started < 3
        assert caught.value.fields["idempotency_key"]


# Time -----------------------------------------------------------------------------------


async def test_deadline_then_the_same_write_again(node: ScriptedNative, client: Client) -> None:
    done = asyncio.Event()
    node.faults.append(held(done))
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await client.register("99.1/b", {"A": "b"}, timeout_s=0.3)
    assert 0.25 < time.monotonic() - started < 3
    done.set()
    key = caught.value.fields["idempotency_key"]
    receipt = await client.register("99.1/b", {"A": "b"}, idempotency_key=key)
    assert receipt.version == 1
    assert node.node.registered == ["99.1/b"]


async def test_each_call_has_its_own_deadline(node: ScriptedNative, client: Client) -> None:
    node.always = silence
    started = time.monotonic()
    took: dict[float, float] = {}

    async def ask(timeout_s: float) -> None:
        with pytest.raises(DeadlineExceeded, match=f"{timeout_s:g} s"):
            await client.resolve("99.1/a", timeout_s=timeout_s)
        took[timeout_s] = time.monotonic() - started

    await asyncio.gather(*(ask(timeout_s) for timeout_s in (0.4, 0.1, 0.3, 0.2)))
    for timeout_s, seconds in took.items():
        assert timeout_s - 0.01 < seconds < timeout_s + 2
    assert list(took) == sorted(took)


async def test_the_deadline_holds_for_all_attempts_together(node: ScriptedNative) -> None:
    node.always = reset
    async with Client(node.url, timeout_s=0.3, backoff=Backoff(10**6, 0.01, 0.01)) as client:
        started = time.monotonic()
        with pytest.raises((Unreachable, DeadlineExceeded)):
            await client.resolve("99.1/a")
        assert time.monotonic() - started < 3


async def test_a_late_answer_is_nobody_elses(node: ScriptedNative, client: Client) -> None:
    """The connection goes on, its ids too, and what comes late is passed over."""
    for number in range(20):
        node.node.add(f"99.1/{number}")
    go = asyncio.Event()
    node.faults.append(held(go))
    beside = asyncio.create_task(_ask_on(client))
    with pytest.raises(DeadlineExceeded):
        await client.resolve("99.1/a", timeout_s=0.1)
    go.set()
    for number in range(20):
        assert await reads(client, f"99.1/{number}")
    beside.cancel()
    assert len(node.hellos) == 1


async def _ask_on(client: Client) -> None:
    while True:
        await client.resolve("99.1/0")
        await asyncio.sleep(0.005)


async def test_a_connection_that_has_gone_silent_is_left(
    node: ScriptedNative, client: Client
) -> None:
    await reads(client)
    node.faults.append(silence)
    with pytest.raises(DeadlineExceeded):
        await client.resolve("99.1/a", timeout_s=0.1)
    assert await reads(client)
    assert len(node.hellos) == 2
    await asyncio.sleep(0.02)
    assert node.open == 1


async def test_answers_that_never_come_do_not_fill_a_connection_for_ever(
    node: ScriptedNative, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_connection, "FORGOTTEN_S", 0.2)
    node.limits["pipeline_max"] = 4
    async with Client(node.url, connections_max=1) as client:
        beside = asyncio.create_task(_ask_on(client))
        node.node.add("99.1/0")
        await node.arrived(1)
        node.faults.extend([silence] * 3)
        lost = [asyncio.create_task(client.resolve("99.1/a", timeout_s=0.1)) for _ in range(3)]
        await asyncio.wait(lost)
        assert await reads(client)
        beside.cancel()
        await asyncio.sleep(0.5)
        assert all(await asyncio.gather(*(reads(client) for _ in range(10))))
    assert len(node.hellos) == 2


async def test_retry_after_is_kept(node: ScriptedNative, client: Client) -> None:
    node.faults.append(refusing(OverCapacity(retry_after_s=0.3)))
    started = time.monotonic()
    await client.resolve("99.1/a")
    assert 0.29 < time.monotonic() - started < 2


async def test_retry_after_beyond_the_deadline(node: ScriptedNative, client: Client) -> None:
    node.faults.append(refusing(OverCapacity(retry_after_s=3600)))
    started = time.monotonic()
    with pytest.raises(OverCapacity) as caught:
        await client.resolve("99.1/a")
    assert time.monotonic() - started < 3
    assert caught.value.fields["retry_after_s"] == 3600
    assert len(node.seen) == 1


@pytest.mark.parametrize("wait", [-1, "soon", 1e300, float("nan"), True, [1], None])
async def test_retry_after_that_is_no_number(
    node: ScriptedNative, client: Client, wait: object
) -> None:
    node.faults.append(refusing(OverCapacity(retry_after_s=wait)))
    assert await reads(client)


# Silence --------------------------------------------------------------------------------


def _everything_about(error: BaseException | None) -> list[str]:
    told: list[str] = []
    while error is not None:
        told += [repr(error), str(error), repr(vars(error))]
        told += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    return told


async def test_secrets_stay_inside(node: ScriptedNative, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    client = Client(node.url, SECRET, backoff=QUICK)
    nobody = Client(f"biaojie://127.0.0.1:{free_port()}", SECRET, backoff=QUICK)
    for fault in (
        refusing(Forbidden()),
        reset,
        framing(Kind.ANSWER, b"\xc0"),
        refusing(OverCapacity()),
    ):
        node.faults.extend([fault] * 5)
        for each in (client, nobody):
            with pytest.raises(BiaojieError) as caught:
                await each.register("99.1/b", {})
            told += _everything_about(caught.value)
        node.faults.clear()
    told += [repr(client), repr(client.prefixes), repr(vars(client)), caplog.text]
    await client.close()
    await nobody.close()
    assert SECRET not in "".join(told)
    assert "attempt 2 follows" in caplog.text
