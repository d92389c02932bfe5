"""More is asked than can be done, or than a tenant may: what is done goes on, in time, and the rest
is refused with when to come again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest

from biaojie import Client
from biaojie.account import Role
from biaojie.errors import TooManyRequests
from biaojie.wire.handle import ResponseCode
from resolver.front.handle.udp import BUSY_PER_S
from tests.system.described import Described, path
from tests.system.handle_desk import ask
from tests.system.handle_peers import Datagrams, Line, on_uvloop, serving

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]
LAST_S = 30.0
RATE = 40
NAMES = 50


@pytest.fixture(scope="module")
def node(make_node: Make) -> RunningNode:
    made = make_node(requests_max=16, tenant_rate_max=RATE)
    made.home("88.118.8", "acme")
    api = Described(made.port, made.key)
    for number in range(NAMES):
        assert api.ask("PUT", path(f"n{number}"), {"values": []}).status == 201
    return made


@dataclass
class Told:
    """What connections were told by status, and how long the refused waited (seconds)."""

    statuses: Counter[int] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    async def keep_asking(self, port: int, number: int, headers: str, seconds: float) -> None:
        """One request at a time, the next as soon as the last is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        until = time.monotonic() + seconds
        try:
            while (sent := time.monotonic()) < until:
                target = f"{path(f'n{number % NAMES}')}?auth=1"
                writer.write(f"GET {target} HTTP/1.1\r\nHost: node\r\n{headers}\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                self.add(
                    int(head[9:12]), time.monotonic() - sent, b"\r\nRetry-After: 1\r\n" in head
                )
        finally:
            writer.close()

    def add(self, status: int, seconds: float, retry_after: bool) -> None:
        self.statuses[status] += 1
        if status in (429, 503):
            self.refused_s.append(seconds)
            self.without_retry_after += not retry_after


async def asked_by(port: int, connections: int, seconds: float, headers: str = "") -> Told:
    told = Told()
    async with asyncio.timeout(LAST_S):
        await asyncio.gather(
            *(told.keep_asking(port, n, headers, seconds) for n in range(connections))
        )
    return told


def cpu_s(node: RunningNode) -> float:
    assert node.process is not None
    spent = psutil.Process(node.process.pid).cpu_times()
    return float(spent.user + spent.system)


async def test_far_beyond_capacity_the_work_goes_on(node: RunningNode) -> None:
    few, many, spent = Told(), Told(), [0.0, 0.0]
    for _ in range(2):  # in turn, so that both see the same machine
        for which, told, connections in ((0, few, 12), (1, many, 150)):
            before = cpu_s(node)
            found = await asked_by(node.port, connections, 1.5)
            spent[which] += cpu_s(node) - before
            told.statuses += found.statuses
            told.refused_s += found.refused_s
            told.without_retry_after += found.without_retry_after
    assert few.statuses.keys() == {200}
    assert many.statuses.keys() == {200, 503}
    assert many.without_retry_after == 0
    assert many.statuses[503] > many.statuses[200] / 4
    # For each second of the node's processor: how much of it the clients leave is chance.
    share = (many.statuses[200] / spent[1]) / (few.statuses[200] / spent[0])
    assert share > 0.3, f"{share:.2f} of what was done before"
    many.refused_s.sort()
    assert many.refused_s[len(many.refused_s) // 2] < 2
    # And it is over as soon as they stop.
    after = await asked_by(node.port, 8, 0.5)
    assert after.statuses.keys() == {200}


async def test_the_loud_are_held_back_and_the_others_are_not(node: RunningNode) -> None:
    api = Described(node.port, node.key)
    keys = {
        tenant: api.ask(
            "POST", "/api/v1/keys", {"tenant": tenant, "role": Role.READER, "label": "test"}
        ).json["key"]
        for tenant in ("loud", "quiet")
    }
    seconds = 3.0
    headers = {tenant: f"Authorization: Bearer {key}\r\n" for tenant, key in keys.items()}

    async def quietly() -> Counter[int]:
        told = Told()
        for _ in range(10):
            one = await asked_by(node.port, 1, 0.0001, headers["quiet"])
            told.statuses += one.statuses
            await asyncio.sleep(seconds / 10)
        return told.statuses

    loud, quiet = await asyncio.gather(asked_by(node.port, 12, seconds, headers["loud"]), quietly())
    assert quiet.keys() == {200}
    assert loud.statuses.keys() == {200, 429}
    assert loud.without_retry_after == 0
    # A second's worth at once, and the rate since; the clock of a busy machine may be late.
    assert loud.statuses[200] <= RATE * (2 + 2 * seconds)
    assert loud.statuses[429] > 2 * loud.statuses[200] / seconds
    # It is one quota, whatever way they ask.
    async with Client(node.native_url, keys["loud"], retries=0) as client:
        names = [f"88.118.8/n{number % NAMES}" for number in range(3 * RATE)]
        answers = await asyncio.gather(*map(client.resolve, names), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, TooManyRequests)]
    assert refused
    assert {(e.fields["retry_after_s"], e.fields["rate_max"]) for e in refused} == {(1, RATE)}


# Handle ---------------------------------------------------------------------------------------


@on_uvloop
async def test_of_datagrams_beyond_capacity_only_so_many_are_answered() -> None:
    async with serving(handle_requests_max=1, handle_udp_rate_max=0) as served:
        line = await Line.open(served.port)
        line.send(ask("late/x", 1))
        await served.desk.until_asked(1)
        sent = 0
        with Datagrams(served.port) as client:
            for _ in range(30):
                client.send(*(ask("size/1", n) for n in range(1, 101)))
                sent += 100
                await asyncio.sleep(0.01)
            answers = client.waiting()
        assert served.count("udp_dropped") > 0
        assert 0 < served.count("too_busy") <= BUSY_PER_S * 3
        assert len(answers) <= served.count("too_busy")
        served.desk.release("x")
        assert (await line.answer()).response_code == ResponseCode.SUCCESS
        line.close()


@on_uvloop
async def test_a_refused_connection_is_read_from_less_often() -> None:
    async with serving(handle_requests_max=1) as served:
        line = await Line.open(served.port)
        line.send(ask("late/x", 1))
        await served.desk.until_asked(1)
        loud = await Line.open(served.port)
        refused = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while True:
                    loud.send(ask("size/1", 1))
                    answer = await loud.answer()
                    assert answer.response_code == ResponseCode.SERVER_BUSY
                    refused += 1
        # Asked as fast as it is answered; without the penalty these would be thousands.
        assert 1 <= refused <= 60
        served.desk.release("x")
        await line.answer()
        loud.send(ask("size/1", 2))
        while (await loud.answer()).response_code == ResponseCode.SERVER_BUSY:
            loud.send(ask("size/1", 2))
        line.close()
        loud.close()
