"""A stand-in for the operations, to test the Handle transports alone; and a server of its own
process around it: `python -m tests.system.handle_desk '{"handle_idle_timeout_s": 1}'` prints its
port and then, for each line on its standard input, a line of JSON about itself.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from biaojie.record import Value
from biaojie.wire.handle import (
    VERSION_CAUTIOUS,
    Failure,
    ListResponse,
    Malformed,
    Message,
    OpCode,
    OpFlag,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    answer_to,
    decode_message,
    encode_message,
    refusal,
)
from resolver.front.handle import HandleFront, HandleLimits
from resolver.handle.peer import Peer

DRAIN_S = 5.0


class Desk:
    """Answers by what the handle says.

    size/N: a value of N octets. many/N: N messages, each of a thousand handles. late/NAME: only
    after `release(NAME)`. late-size/NAME/N. verified/N: as size, from a source proven meanwhile.
    broken: raises. silent: nothing.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.peers: list[Peer] = []
        self.forgotten: list[Peer] = []
        self.cancelled: list[str] = []
        self.running = 0
        self.running_most = 0
        self._gates: dict[str, asyncio.Event] = {}
        self.arrived = asyncio.Condition()

    def release(self, name: str) -> None:
        self._gates.setdefault(name, asyncio.Event()).set()

    async def until_asked(self, count: int, timeout_s: float = 5) -> None:
        async with asyncio.timeout(timeout_s), self.arrived:
            await self.arrived.wait_for(lambda: len(self.asked) >= count)

    def forget(self, peer: Peer) -> None:
        self.forgotten.append(peer)

    async def answer(self, frame: bytes, peer: Peer) -> AsyncIterator[bytes]:
        self.peers.append(peer)
        try:
            request = decode_message(frame)
        except Malformed as error:
            words = refusal(frame, ResponseCode.PROTOCOL_ERROR, str(error))
            if words is not None:
                yield words
            return
        if not request.is_request:
            return
        handle = request.body.handle if isinstance(request.body, ResolveRequest) else ""
        self.asked.append(handle)
        self.running += 1
        self.running_most = max(self.running, self.running_most)
        async with self.arrived:
            self.arrived.notify_all()
        try:
            async for message in self._answer(request, handle, peer):
                yield message
        except asyncio.CancelledError:
            self.cancelled.append(handle)
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: Message, handle: str, peer: Peer) -> AsyncIterator[bytes]:
        kind, *rest = handle.split("/")
        match kind:
            case "late" | "late-size":
                await self._gates.setdefault(rest[0], asyncio.Event()).wait()
                yield self._value(request, handle, int(rest[1]) if kind == "late-size" else 10)
            case "size":
                yield self._value(request, handle, int(rest[0]))
            case "verified":
                peer.verified = True
                yield self._value(request, handle, int(rest[0]))
            case "many":
                for number in range(left := int(rest[0])):
                    handles = tuple(f"88.118.8/{number:06}-{n:04}" for n in range(1000))
                    flags = OpFlag.CONTINUOUS if number < left - 1 else 0
                    yield encode_message(
                        replace(
                            answer_to(request, ListResponse(handles), flags=flags),
                            opcode=OpCode.LIST_HANDLES,
                        )
                    )
            case "broken":
                raise RuntimeError("this answer is broken")
            case "silent":
                return
            case _:
                failure = Failure("no such handle")
                yield encode_message(answer_to(request, failure, ResponseCode.HANDLE_NOT_FOUND))

    @staticmethod
    def _value(request: Message, handle: str, size: int) -> bytes:
        value = Value(index=1, type="URL", data=b"x" * size)
        return encode_message(answer_to(request, ResolveResponse(handle, (value,))))


def ask(handle: str, request_id: int = 1, *, flags: int = 0) -> bytes:
    """The frame of a resolution, as the Java client sends it."""
    return encode_message(
        Message(
            OpCode.RESOLUTION,
            ResolveRequest(handle, (), ()),
            flags=flags,
            request_id=request_id,
            version=VERSION_CAUTIOUS,
        )
    )


async def serve(limits: HandleLimits) -> None:
    desk = Desk()
    front = HandleFront(desk, limits)
    port = await front.start("", 0, fallback="127.0.0.1")
    print(port, flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def report() -> None:
        sys.stdin.readline()
        with open("/proc/self/status") as status:
            kept = next(line.split()[1] for line in status if line.startswith("VmRSS"))
        print(json.dumps({**front.readings(), **front.counts(), "rss": int(kept) * 1024}))
        sys.stdout.flush()

    loop.add_reader(sys.stdin.fileno(), report)
    await stop.wait()
    loop.remove_reader(sys.stdin.fileno())
    await front.stop(DRAIN_S)


def main(arguments: Sequence[str]) -> None:
    import uvloop

    uvloop.run(serve(HandleLimits(**json.loads(arguments[0] if arguments else "{}"))))


if __name__ == "__main__":
    main(sys.argv[1:])
