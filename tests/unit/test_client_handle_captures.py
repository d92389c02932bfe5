"""hdl:// beside real traffic: what the reference client wrote, our client writes; what the
reference server said, our client reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from biaojie import Client, Value
from biaojie.wire.handle import (
    Body,
    ListResponse,
    Message,
    OpCode,
    OpFlag,
    StreamFraming,
    ValuesRequest,
    answer_to,
    decode_message,
    encode_message,
)
from tests.scripted_handle import CAPTURES, IDENTITY, SECRET, Met, ScriptedHandle, captured_records

PIN = Value(3, "PIN", b"1234")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHandle]:
    async with ScriptedHandle().serving() as scripted:
        yield scripted


@pytest.fixture
async def client(server: ScriptedHandle) -> AsyncIterator[Client]:
    async with Client(server.url, identity=IDENTITY, secret=SECRET, retries=0) as client:
        yield client


def captured(opcode: int) -> list[Message]:
    """Requests of the reference client with that operation."""
    streams: dict[str, StreamFraming] = {}
    found = []
    for line in Path(CAPTURES).read_text().splitlines():
        packet = json.loads(line)
        data = bytes.fromhex(packet["hex"])
        if packet["dir"] != "C>S":
            continue
        frames = [data]
        if packet["proto"] == "tcp":
            frames = list(streams.setdefault(packet["conn"], StreamFraming()).feed(data))
        found += [m for m in map(decode_message, frames) if m.opcode == opcode]
    return found


def captured_parts() -> list[ListResponse]:
    """A long list, as the reference server sent it."""
    streams: dict[str, StreamFraming] = {}
    parts: list[ListResponse] = []
    for line in Path(CAPTURES).read_text().splitlines():
        packet = json.loads(line)
        if packet["proto"] == "tcp" and packet["dir"] == "S>C":
            stream = streams.setdefault(packet["conn"], StreamFraming())
            for frame in stream.feed(bytes.fromhex(packet["hex"])):
                body = decode_message(frame).body
                parts += [body] if isinstance(body, ListResponse) else []
    return parts


def bodies(server: ScriptedHandle, opcode: int) -> list[Body]:
    return [message.body for _, message in server.seen if message.opcode == opcode]


async def test_requests_are_those_of_the_reference_client(
    server: ScriptedHandle, client: Client
) -> None:
    server.open_to_all = True
    create = captured(OpCode.CREATE_HANDLE)[0].body
    assert isinstance(create, ValuesRequest)
    await client.register(create.handle, create.values)
    add, change = captured(OpCode.ADD_VALUE)[0].body, captured(OpCode.MODIFY_VALUE)[0].body
    assert isinstance(add, ValuesRequest)
    assert isinstance(change, ValuesRequest)
    server.put(add.handle, PIN)
    await client.modify(add.handle, add.values)
    server.put(change.handle, *change.values)
    await client.modify(change.handle, change.values)
    remove = captured(OpCode.REMOVE_VALUE)[0].body
    await client.modify(remove.handle, remove=remove.indexes)  # type: ignore[attr-defined]
    delete = captured(OpCode.DELETE_HANDLE)[0].body
    server.put(delete.handle)  # type: ignore[attr-defined]
    await client.retire(delete.handle)  # type: ignore[attr-defined]
    for opcode in (100, 102, 103, 104, 101):
        (ours,) = bodies(server, opcode)
        assert ours.encode() == captured(opcode)[0].body.encode()


async def test_a_captured_record_and_a_captured_list(
    server: ScriptedHandle, client: Client
) -> None:
    ((handle, values),) = captured_records().items()
    server.put(handle, *values)
    found = await client.resolve(handle)
    assert found.record.values == tuple(sorted(values, key=lambda value: value.index))
    assert found.record.modified == max(value.timestamp for value in values)

    parts = captured_parts()
    names = [name for part in parts for name in part.handles]
    assert len(parts) > 100

    async def replay(met: Met) -> None:
        for number, part in enumerate(parts, 1):
            more = OpFlag.CONTINUOUS if number < len(parts) else 0
            await met.send(encode_message(answer_to(met.request, part, flags=more)))

    server.open_to_all = True
    server.faults.append(replay)
    got = await client._transport._list("88.111.1", 20.0)  # type: ignore[attr-defined]
    assert {str(name) for name in got} == set(names)
