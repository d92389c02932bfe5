"""hdl:// from bad peers: mutated, endless and foreign answers end as errors, in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from biaojie import Client, Value, handle_datagrams, keys
from biaojie.errors import BiaojieError, Unreachable
from biaojie.handle_options import HandleOptions
from biaojie.wire.handle import Failure, answer_to, encode_message
from tests.scripted_handle import Met, ScriptedHandle, before

A = "88.118.8/A"
URL = Value(1, "URL", b"https://a.example")
BIG = tuple(Value(n, "URL", bytes([n]) * 300) for n in range(1, 12))
SITE_KEY = keys.generate("rsa")


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


async def reads(client: Client) -> bool:
    return (await client.resolve(A)).record.values[0].type == "URL"


@pytest.mark.parametrize("seed", range(8))
async def test_mutated_answers_end_as_errors_in_time(server: ScriptedHandle, seed: int) -> None:
    dice = random.Random(seed)

    def mutate(frame: bytes) -> bytes:
        octets = bytearray(frame)
        for _ in range(dice.randint(1, 6)):
            match dice.randrange(4):
                case 0:
                    octets[dice.randrange(len(octets))] = dice.randrange(256)
                case 1:
                    del octets[dice.randrange(len(octets)) :]
                    octets += b"\0"
                case 2:
                    octets += dice.randbytes(dice.randrange(40))
                case _:
                    octets[16:20] = dice.randbytes(4)
        return bytes(octets)

    async def nasty(met: Met) -> None:
        for frame in met.frames:
            await met.send(mutate(frame))
        if met.transport == "tcp":
            met.close()

    signed = seed % 4 > 1
    if signed:
        server.site_key = SITE_KEY
    options = HandleOptions(
        udp=bool(seed % 2), certified=signed, site_key=SITE_KEY.public if signed else None
    )
    async with Client(server.url, retries=0, handle=options, timeout_s=1.5) as client:
        for _ in range(4):
            server.faults.extend([nasty] * 4)
            try:
                found = await asyncio.wait_for(client.resolve("88.118.8/BIG"), 5)
                # only a signature tells a changed answer from the server's own
                assert not signed or found.record.values == BIG
            except BiaojieError:
                pass
            server.faults.clear()
        assert await reads(client)


async def test_a_server_of_another_kind() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(http, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with Client(f"hdl://127.0.0.1:{port}", retries=0) as client:
        with pytest.raises(Unreachable) as caught:
            await client.resolve(A)
        assert "Handle protocol" in caught.value.detail.en
    listening.close()


async def test_a_flood_of_unasked_frames_is_passed_over(server: ScriptedHandle) -> None:
    def noise(met: Met) -> bytes:
        other = answer_to(met.request, Failure("x"), 100)
        return encode_message(replace(other, request_id=other.request_id ^ 1))

    tcp = Client(server.url, handle=HandleOptions(udp=False))
    server.faults.append(before(*[noise] * 500))
    assert await reads(tcp)

    async def over_and_over(met: Met) -> None:
        await met.send(met.frames[0] * 200)

    server.faults.append(over_and_over)
    assert await reads(tcp)
    assert await reads(tcp)
    await tcp.close()
