"""Two nodes over one registry, asked the same octets: one answers by the express lane and plain
resolutions together, the other each in the ordinary way.

    async with twins(tmp_path) as pair:
        await pair.same("tcp", [frame, …])          # each asked ROUNDS times, answers compared

Answers are compared octet by octet, but for what no two answers share: the moment of expiration
(two seconds apart at most), and of a challenge its nonce and session.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from biaojie.account import PrefixStatus
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Status, Value
from biaojie.wire.handle import NONCE_OCTETS, OpCode, ResponseCode
from registry.admission import SYSTEM
from registry.memory import MemoryStore
from registry.operations import ChangePrefix, Create, HomePrefix, Operation, Retire
from resolver.handle.lane import HandleLane
from resolver.node import Node
from resolver.settings import Settings

PREFIX = "88.118.8"
ROUNDS = 4
"""From the registry, from the cache, and twice from the lane."""
WAIT_S = 20.0
_UNLIKE = {OpCode.SESSION_SETUP, OpCode.SESSION_EXCHANGE_KEY, OpCode.CHALLENGE_RESPONSE}
Transport = Literal["tcp", "udp"]


def value(index: int, type_: str, data: str, **fields: Any) -> Value:
    return Value(index, type_, data.encode(), **fields)


HIDDEN = Permissions.parse("1100")
RECORDS: dict[str, tuple[Value, ...]] = {
    "SN1": (value(1, "URL", "https://example.com/"),),
    "many": (
        value(1, "URL", "https://example.com/1"),
        value(2, "URL.mirror", "https://example.com/2"),
        value(3, "EMAIL", "a@example.com"),
        value(4, "DESC", "一二三"),
    ),
    "Mixed-Case": (value(7, "Url", "x"),),
    "mixed": (
        value(1, "URL", "https://example.com/"),
        value(9, "NOTE", "ours", permissions=HIDDEN),
    ),
    "secret": (value(9, "NOTE", "ours", permissions=HIDDEN),),
    "a/b/c": (value(1, "URL", "slashes"),),
    "零件": (value(1, "URL", "not ASCII"),),
    "ttl0": (value(1, "URL", "x", ttl=0),),
    "ttl1": (value(1, "URL", "x", ttl=1),),
    "ttl600": (value(1, "URL", "x", ttl=600),),
    "ttl-day": (value(1, "URL", "x", ttl=86_400),),
    "ttl-two": (value(1, "URL", "x", ttl=172_800), value(2, "URL", "y", ttl=7_200)),
    "ttl-far": (value(1, "URL", "x", ttl=2_140_000_000, ttl_absolute=True),),
    "ttl-past": (value(1, "URL", "x", ttl=1_000_000_000, ttl_absolute=True),),
    "l300": (value(1, "URL", "x" * 300),),
    "l700": (value(1, "URL", "x" * 700),),
    "l5000": (value(1, "URL", "x" * 5_000),),
}
ELSEWHERE = {
    "88.118.20": PrefixStatus.SUSPENDED,
    "88.118.21": PrefixStatus.DELEGATED,
    "88.118.22": PrefixStatus.REFERRED,
    "88.118.23": PrefixStatus.UNHOMED,
}


def operations() -> list[Operation]:
    """What the registry holds."""
    made: list[Operation] = [HomePrefix(PREFIX, "acme"), HomePrefix("0.NA", "acme")]
    made += [HomePrefix(prefix, "acme") for prefix in ELSEWHERE]
    made += [Create(Identifier(PREFIX, suffix), values) for suffix, values in RECORDS.items()]
    made += [Create(Identifier(prefix, "SN1"), RECORDS["SN1"]) for prefix in ELSEWHERE]
    made += [
        Create(Identifier(PREFIX, "draft"), RECORDS["SN1"], Status.DRAFT),
        Create(Identifier(PREFIX, "frozen"), RECORDS["SN1"], Status.FROZEN),
        Create(Identifier(PREFIX, "gone"), RECORDS["SN1"]),
        Retire(Identifier(PREFIX, "gone")),
        Create(Identifier("0.NA", "88.118.22"), (value(1, "DESC", "who answers for it"),)),
    ]
    return made + [ChangePrefix(prefix, status=status) for prefix, status in ELSEWHERE.items()]


@dataclass
class Twins:
    """`plain` has no lane and answers one by one; `laned` has one, and what it has not it answers
    together with others."""

    plain: Node
    laned: Node

    @property
    def lane(self) -> HandleLane:
        assert self.laned.handle is not None
        assert self.laned.handle.tcp.lane is not None
        return self.laned.handle.tcp.lane

    async def write(self, node: Node, *operations: Operation) -> None:
        """Commit, and wait until both nodes know."""
        for operation in operations:
            (await node.registrar.submit(SYSTEM, [operation])).single()
        sequence, _ = await node.store.head()
        async with asyncio.timeout(WAIT_S):
            for each in (self.plain, self.laned):
                while each.tail.sequence < sequence:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)

    async def ask(self, transport: Transport, node: Node, packets: Sequence[bytes]) -> list[bytes]:
        """All that comes back, in the order of its octets: answers may overtake each other. The
        session comes last, for that of a challenge is made by chance."""
        asked = datagrams if transport == "udp" else stream
        return sorted(await asked(node, packets), key=lambda frame: (frame[8:], frame[:8]))

    async def same(
        self, transport: Transport, cases: Sequence[Sequence[bytes]], rounds: int = ROUNDS
    ) -> list[list[bytes]]:
        """Ask each case `rounds` times; the last answers. Raises AssertionError where the two
        nodes answer differently."""
        last = []
        for case in cases:
            for number in range(rounds):
                expected = await self.ask(transport, self.plain, case)
                got = await self.ask(transport, self.laned, case)
                said = f"round {number} of {[part.hex() for part in case]}"
                assert len(got) == len(expected), said
                for one, other in zip(got, expected, strict=True):
                    assert_alike(one, other, said)
            last.append(got)
        return last


def assert_alike(got: bytes, expected: bytes, said: str = "") -> None:
    one, other = _comparable(got), _comparable(expected)
    assert one == other, f"{said}\n{one.hex()}\n{other.hex()}"
    if len(got) >= 40 and not got[2] & 0x40:
        moments = [int.from_bytes(frame[36:40], "big") for frame in (got, expected)]
        assert abs(moments[0] - moments[1]) <= 2, f"{said} {moments}"


def _comparable(frame: bytes) -> bytes:
    if len(frame) < 44 or frame[2] & 0x40:
        return frame
    opcode, code = (int.from_bytes(frame[at : at + 4], "big") for at in (20, 24))
    if opcode in _UNLIKE and code == ResponseCode.SUCCESS:
        return frame[:4] + frame[8:36]
    end = 44 + int.from_bytes(frame[40:44], "big")
    if code == ResponseCode.AUTHENTICATION_NEEDED:
        return frame[:4] + frame[8:36] + frame[40 : end - NONCE_OCTETS]
    signed = len(frame) > end + 4  # a signature covers the expiration
    return frame[:36] + frame[40 : end if signed else None]


@asynccontextmanager
async def twins(data_dir: Path, store: Any = None, **settings: Any) -> AsyncIterator[Twins]:
    """Over `store`, else one of their own."""
    store = store or MemoryStore()
    given = {
        "data_dir": data_dir,  # one key, one site
        "port": 0,
        "handle_port": 0,
        "handle_public_port": 2641,
        "handle_public_http_port": 8080,
        "handle_udp_rate_max": 0,
        "native_enabled": False,
        "poll_s": 0.02,
        "drain_s": 1.0,
        **settings,
    }
    nodes = [Node(Settings(**given, lane_bytes_max=octets), store) for octets in (0, 30 * 2**20)]
    assert nodes[0].handle is not None
    nodes[0].handle.tcp.gathering = nodes[0].handle.udp.gathering = None
    pair = Twins(*nodes)
    async with asyncio.timeout(10 * WAIT_S):
        for node in nodes:
            await node.start()
        try:
            await pair.write(nodes[0], *operations())
            yield pair
        finally:
            for node in nodes:
                await node.stop()


async def stream(node: Node, pieces: Sequence[bytes]) -> list[bytes]:
    """One connection: the pieces one after the other, then the end; the messages that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.handle_port)
    data = b""
    with suppress(ConnectionError):
        socket_ = writer.get_extra_info("socket")
        socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            while part := await reader.read(2**20):
                data += part
    writer.close()
    frames = []
    while data:
        size = 20 + int.from_bytes(data[16:20], "big")
        frames.append(data[:size])
        data = data[size:]
    return frames


async def datagrams(node: Node, packets: Sequence[bytes], host: str = "127.0.0.1") -> list[bytes]:
    assert node.handle is not None
    udp = node.handle.udp
    took = udp.counts["handle_udp_packets"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.connect((host, node.handle_port))
        for packet in packets:
            line.send(packet)
        async with asyncio.timeout(WAIT_S):
            while udp.counts["handle_udp_packets"] < took + len(packets):  # noqa: ASYNC110
                await asyncio.sleep(0)
            while udp.readings()["handle_udp_requests_running"]:  # noqa: ASYNC110
                await asyncio.sleep(0)
        answers = []
        with suppress(BlockingIOError):
            while True:
                answers.append(line.recv(65_536))
        return answers
