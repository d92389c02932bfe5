"""Mutated HTTP at a real node's socket: it lives, answers as it should and keeps its size."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.described import IDS, Described, metrics, total
from tests.system.quick_start import QuickNode
from tests.system.wire import request

SEED = 7
SECONDS = 10.0
CONNECTIONS = 24
CASES_MIN = 1_500
QUIET_S = 0.25
MEMORY_MAX = 60 * 2**20
STATUSES = {100, 200, 201, 204, 303, 304, 400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415}
STATUSES |= {422, 429, 503}

TOKENS = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b" ",
    b":",
    b"%",
    b"%00",
    b"%2f",
    b"/",
    b"?",
    b"#",
    b'"',
    b"\\",
    b"\\ud800",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "标".encode(),
    b"{",
    b"[" * 2000,
    b"null",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"Content-Length: 5\r\n",
    b"Content-Length: 999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.0",
    b"HTTP/9.9",
    b"http://x/",
    b"88.118.8/",
    b"hdl:",
    b"a" * 20_000,
]


def corpus(key: str) -> list[bytes]:
    """Well-formed requests of every kind, to be spoilt."""
    own = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    values = [{"index": 1, "type": "URL", "data": "https://x.example", "ttl": 60}]
    record = json.dumps({"values": values}).encode()
    rows = {"mode": "valid-rows", "rows": [{"identifier": "88.118.8/f", "values": values}]}
    asked = json.dumps({"identifiers": ["88.118.8/a", "hdl:88.118.8/b"]}).encode()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(record), record)
    at = f"{IDS}/88.118.8/a"
    seeds = [
        request("GET", at),
        request("GET", at + "?index=1&type=URL&auth=1", {"If-None-Match": '"1.2"'}),
        request("HEAD", "/88.118.8/a", {"Accept": "text/html", "Accept-Language": "zh,en;q=0.5"}),
        request("GET", "/88.118.8/%E6%A0%87?x=y#z"),
        request("OPTIONS", at, {"Origin": "https://x", "Access-Control-Request-Method": "GET"}),
        request("PUT", at, own | {"If-Match": "*", "Idempotency-Key": "k"}, record),
        request("PATCH", at, own, b'{"set":[],"remove":[1],"status":"active"}'),
        request("DELETE", at + "?purge=true", own),
        request("POST", IDS, own, b'{"prefix":"88.118.8","values":[]}'),
        request("POST", IDS + ":batch", own, json.dumps(rows).encode()),
        request("POST", IDS + ":resolve", {"Content-Type": "application/json"}, asked),
        request("PUT", at, own | {"Transfer-Encoding": "chunked"}) + chunked,
        request("GET", IDS + "?prefix=88.118.8&limit=3&after=QQ==", own),
        request("GET", "/api/v1/changes?after=0&limit=2&wait=0.01", own),
        request("GET", "/api/v1/prefixes/88.118.8", own),
        request("GET", "/resolve?identifier=88.118.8/a"),
        request("GET", "/static/style.css", {"If-None-Match": "*"}),
        request("GET", "/metrics"),
    ]
    return [*seeds, seeds[0] + seeds[5] + seeds[2]]


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        size = chance.choice((1, 1, 2, 5, 30))
        match chance.randrange(8):
            case 0:
                data[at:at] = chance.choice(TOKENS)
            case 1:
                data[at : at + size] = chance.choice(TOKENS)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * chance.choice((1, 2, 50))
            case 4:
                data[at:at] = chance.randbytes(size)
            case 5:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 6:
                other = chance.choice(seeds)
                data[at:] = other[chance.randrange(len(other)) :]
            case 7:
                del data[at:]
    return bytes(data)


def replies(received: bytes) -> Iterator[tuple[int, bytes]]:
    """(status, body) of each whole reply; AssertionError where something else is said."""
    while received:
        head, blank, rest = received.partition(b"\r\n\r\n")
        if not blank:
            return
        line = re.match(rb"HTTP/(?:0\.9|1\.[01]) (\d{3}) ", head)
        assert line, received[:200]
        status = int(line.group(1))
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        size = int(length.group(1)) if length and status not in (100, 204, 304) else 0
        if rest.startswith(b"HTTP/"):
            size = 0  # to a HEAD
        yield status, rest[:size]
        received = rest[size:]


async def attack(port: int, data: bytes, pieces: int, address: str = "127.0.0.1") -> bytes:
    """Send it, in pieces, and return all that comes back until it goes quiet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    received = b""
    try:
        step = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            if pieces > 1:
                await asyncio.sleep(0)
        async with asyncio.timeout(3):
            while True:
                async with asyncio.timeout(QUIET_S):
                    part = await reader.read(65536)
                if not part:
                    break
                received += part
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return received


@pytest.fixture
def node(tmp_path: Path, sqlite_url: str) -> Iterator[QuickNode]:
    own = QuickNode(
        tmp_path,
        {
            "BIAOJIE_DATABASE_URL": sqlite_url,
            "BIAOJIE_HEADER_TIMEOUT_S": "0.2",
            "BIAOJIE_BODY_TIMEOUT_S": "0.2",
        },
    )
    own.start()
    home = {"prefix": "88.118.8", "tenant": "acme"}
    assert Described(own.port, own.key).ask("POST", "/api/v1/prefixes", home).status == 201
    yield own
    own.stop()


async def test_mutated_requests(node: QuickNode) -> None:
    chance = random.Random(SEED)
    seeds = corpus(node.key)
    unspoilt = [status for seed in seeds for status, _ in replies(await attack(node.port, seed, 1))]
    assert set(unspoilt) <= {200, 201, 204, 303, 304, 404, 412}
    api = Described(node.port, node.key)
    process = psutil.Process(node.pid)
    statuses: Counter[int] = Counter()
    until = time.monotonic() + SECONDS
    grown: list[int] = []

    async def work(mine: random.Random) -> None:
        while time.monotonic() < until:
            data = mutated(mine, seeds)
            # Spoilt keys are guesses, for which an address is locked: a new one each time.
            address = f"127.{mine.randrange(1, 250)}.{mine.randrange(250)}.{mine.randrange(1, 250)}"
            received = await attack(node.port, data, mine.choice((1, 1, 1, 2, 20)), address)
            for status, body in replies(received):
                statuses[status] += 1
                assert status in STATUSES, (status, data[:300])
                if status >= 400 and body.startswith(b"{"):
                    assert b'"request_id"' in body

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(work(random.Random(chance.random())))
        before = process.memory_info().rss
        while time.monotonic() < until:
            await asyncio.sleep(0.5)
            grown.append(process.memory_info().rss - before)
    assert max(grown) < MEMORY_MAX
    assert sum(statuses.values()) > CASES_MIN, statuses
    assert len(statuses) >= 10, statuses
    assert total(metrics(api), "biaojie_requests_total", outcome="internal") == 0
    assert api.ask("PUT", f"{IDS}/88.118.8/alive", {"values": []}).status == 201
    assert "Traceback" not in node.log
