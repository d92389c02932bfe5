"""One connection of the Handle protocol on TCP: its octets, its limits and its end.

A connection stays open whatever its messages say of keeping it. Requests are answered as they
get done, up to `handle_pipeline_max` of them at a time; then, and while the peer does not take
our answers, nothing more is read. Replies that are ready together leave in one write. Times are
looked at by one sweep over all connections, so that a message costs no timer.

What the express lane has is answered where it arrives, without a task; it takes no place among
those worked on. Everything else, and what comes in pieces, goes the ordinary way; plain resolutions
of all connections go it together.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, cast

from biaojie.wire.handle import ENVELOPE_OCTETS, Malformed, ResponseCode, StreamFraming, refusal
from biaojie.wire.handle.framing import whole_until

from ...handle.lane import REQUEST_OCTETS_MIN, HandleLane
from ...handle.peer import Peer
from ...handle.together import may_be_plain, read_plain
from ...overload import ASIDE_OCTETS, REFUSED_AT_ONCE
from ..connections import CROWD_SHARE, FAREWELL_S, WRITE_OCTETS, StreamConnection

if TYPE_CHECKING:
    from ...exchange import Waiting
    from ...handle.direct import DirectWrite
    from .tcp import TcpFront


class Connection(StreamConnection):
    """One peer. `_deaf`: nothing more is begun, what comes is thrown away. `_last`: hang up as
    soon as all that came has been answered. `_penalized`: something was refused, `_refused`
    requests by now, and it waits among others for the gate: nothing more is begun. `_aside`: a
    request that came too soon after a refusal, before `_again`, or when too many were refused.
    `_gathered`: how many are asked for together with others, without a task of their own;
    `_writing`: writes that are answered by a call."""

    __slots__ = (
        "_again",
        "_aside",
        "_crowded",
        "_framing",
        "_front",
        "_gathered",
        "_lane",
        "_last",
        "_partial",
        "_peer",
        "_penalized",
        "_refused",
        "_tasks",
        "_writing",
    )
    _front: TcpFront

    def __init__(self, front: TcpFront) -> None:
        super().__init__()
        self._front = front
        self._peer = Peer("", "tcp", verified=True, scope=object())
        self._framing = StreamFraming()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing: dict[DirectWrite, Waiting] = {}
        self._refused = self._gathered = 0
        self._again = 0.0
        self._aside = b""
        self._lane = front.lane
        self._partial = False
        self._crowded = self._last = self._penalized = False

    # Coming and going -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # uvloop's has another base
        self._transport = stream
        front = self._front
        front.connections.add(self)
        address = stream.get_extra_info("peername")
        self._peer.address = str(address[0]) if address else ""
        stream.set_write_buffer_limits(high=WRITE_OCTETS)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A peer that takes nothing of what we wrote holds the connection no longer than this.
            milliseconds = int(front.limits.reply_timeout_s * 1000)
            connection = stream.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if front.leaving:
            self.let_go()
        most = front.limits.handle_connections_max
        if len(front.connections) > most:
            # Its first message will be told that there is no room.
            front.counts["handle_tcp_crowded"] += 1
            self._crowded = True
            self._lane = None
            self._deadline = self._heard + FAREWELL_S
        if len(front.connections) > most * CROWD_SHARE or front.draining:
            stream.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        front = self._front
        front.connections.discard(self)
        front.work.gate.penalties.forget(self)
        self._transport = None
        self._deaf = True
        self._hold_octets(0)
        for task in self._tasks:
            task.cancel()
        for waiting in tuple(self._writing.values()):
            waiting.cancel()
        if self._writable is not None:
            self._writable.set()
        front.work.forget(self._peer)
        front.left()

    def eof_received(self) -> bool:
        """The peer says nothing more. What it asked is still answered."""
        self._ended = self._last = True
        self._flush()
        return bool(self._running or self._penalized)

    # Reading ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._heard = now = monotonic()
        lane = self._lane
        if lane is None or self._partial or self._holding or self._peer.logged_in:
            if self._aside:
                self._framing.feed(self._aside)
                self._aside = b""
            self._framing.feed(data)
            self._read_on()
            return
        answer = lane.reply(data, now)  # most often what comes is one whole message
        if answer is None:
            if not (self._front.work.gate.full and self._turned_away(data, now)):
                self._walk(data, now, lane)
            return
        self._partial_since = None
        self._write(answer)
        lane.tallies["tcp"].add(monotonic() - now)

    def _turned_away(self, data: bytes, now: float) -> bool:
        """Whether `data` was one message and was refused, or waits for that. While the gate is
        full, where nothing is left of what came before."""
        work = self._front.work
        length = ENVELOPE_OCTETS + int.from_bytes(data[16:20], "big")
        if not REQUEST_OCTETS_MIN <= len(data) == length <= ASIDE_OCTETS or self._refused:
            return False
        penalties = work.gate.penalties
        self._partial_since = None
        if now < self._again or not penalties.allow(now):
            self._aside = data
            self._partial = self._penalized = True
            penalties.add(self, now)
            return True
        busy = work.refuse(data)
        if busy is None:
            return False
        self._again = now + penalties.pause_s
        self._write(busy)
        return True

    def _walk(self, data: bytes, now: float, lane: HandleLane) -> None:
        """Answer what the lane has of the messages in front, and frame the rest."""
        at = count = octets = 0
        answers: list[bytes] = []
        while len(data) - at >= REQUEST_OCTETS_MIN and not self._holding:
            end = at + ENVELOPE_OCTETS + int.from_bytes(data[at + 16 : at + 20], "big")
            answer = lane.reply(data[at:end], now) if end <= len(data) else None
            if answer is None:
                break
            at = end
            count += 1
            answers.append(answer)
            octets += len(answer)
            if octets > WRITE_OCTETS:
                self._write(b"".join(answers))
                answers.clear()
                octets = 0
        if answers:
            self._write(b"".join(answers))
        if count:
            self._partial_since = None
            lane.tallies["tcp"].add(monotonic() - now, count)
        if at < len(data):
            began = at
            while not (self._full or self._deaf) and (end := whole_until(data, at)):
                self._begin(data[at:end], looked=at == began)
                at = end
            self._framing.feed(data[at:])
            self._read_on(at > began)

    def _write(self, answers: bytes) -> None:
        """Where nothing else waits to be sent before it, or has to stay with it."""
        assert self._transport is not None
        self._transport.write(answers)
        if self._holding:
            self._account(self._framing.buffered)
        if self._front.leaving:
            self._front.loop.call_soon(self._leave)

    @property
    def _busy(self) -> bool:
        return bool(self._running)

    @property
    def _running(self) -> int:
        return len(self._tasks) + self._gathered + len(self._writing)

    @property
    def _full(self) -> bool:
        """Whether nothing more may be begun for now."""
        pipeline_max = self._front.limits.handle_pipeline_max
        return (
            self._running >= pipeline_max
            or self._writable is not None
            or self._refused >= REFUSED_AT_ONCE
        )

    def _read_on(self, began: bool = False) -> None:
        """Begin the requests that have come whole, as far as the limits allow. `began`: of what
        came some have been already."""
        if self._deaf:
            return
        if self._penalized and not began:
            self._hold(True)
            self._account(self._framing.buffered)
            return
        try:
            if self._framing.buffered and not self._full:
                for frame in self._framing.feed(b""):
                    began = True
                    self._begin(frame)
                    if self._full or self._deaf:
                        break
        except Malformed as error:
            self._front.counts["handle_tcp_malformed"] += 1
            text = f"malformed 报文格式错误: {error}"
            self._dismiss(refusal(self._framing.start, ResponseCode.PROTOCOL_ERROR, text))
        if self._deaf:
            return
        self._partial = self._framing.buffered > 0
        self._hold(self._full or self._last or self._penalized)
        if self._holding or not self._framing.buffered:
            self._partial_since = None  # who waits for us is not late
        elif began or self._partial_since is None:
            self._partial_since = self._heard
        self._account(self._framing.buffered)
        if self._last and not (self._running or self._penalized):
            self._hang_up()

    def _begin(self, frame: bytes, looked: bool = False) -> None:
        """`looked`: the lane has been asked for it."""
        front = self._front
        if self._crowded:
            self._dismiss(front.work.refuse(frame))
        elif not looked and self._ready(frame):
            pass
        elif front.work.gate.full:
            busy = front.work.refuse(frame)
            if busy is not None:
                self.send(busy)
            self._penalize()
        elif not self._gather(frame) and not self._hand_in(frame):
            self._run(frame, front.work.enter())

    def _gather(self, frame: bytes) -> bool:
        """Whether it is plain: it is answered then, or will be together with others."""
        gathering = self._front.gathering
        if gathering is None or self._peer.logged_in or not may_be_plain(frame):
            return False
        asked = read_plain(frame, self._peer.address)
        if asked is None:
            return False
        answer = gathering.at_hand(asked)
        if answer is not None:
            self.send(answer)
        else:
            self._front.work.enter()
            self._gathered += 1
            gathering.take(asked, (self, frame))
        return True

    def _hand_in(self, frame: bytes) -> bool:
        """Whether it is a write in a proved session: it is answered then, or will be by a call."""
        direct = self._front.direct
        if direct is None:
            return False
        write = direct.read(frame, self._peer)
        if write is None:
            return False
        self._front.work.enter()
        waiting = direct.begin(write, partial(self._handed, write))
        if waiting is not None:
            self._writing[write] = waiting
        return True

    def _handed(self, write: DirectWrite, answer: bytes | None) -> None:
        """What came of one of those, maybe before it was among them."""
        waited = self._writing.pop(write, None) is not None
        self._front.work.gate.leave(None)
        if answer is not None and self._transport is not None:
            self.send(answer)
        if waited:
            self.answered()

    def _run(self, frame: bytes, began: float) -> None:
        task = self._front.loop.create_task(self._answer(frame))
        self._tasks.add(task)
        task.add_done_callback(partial(self._answered, frame, began))

    def _penalize(self) -> None:
        """For a moment nothing is read; of what has come some is still looked at."""
        self._refused += 1
        penalties = self._front.work.gate.penalties
        if self._penalized:
            penalties.charge()
        else:
            self._penalized = True
            penalties.add(self, monotonic())

    def read_again(self, now: float) -> None:
        self._penalized = False
        self._refused = 0
        aside, self._aside = self._aside, b""
        if aside:
            self._partial = False
            gate = self._front.work.gate
            if gate.full and not (self._deaf or self._last):
                busy = self._front.work.refuse(aside)
                if busy is not None:
                    self._again = now + gate.penalties.pause_s
                    self._write(busy)
                return
            self._framing.feed(aside)
        self._read_on()

    def _ready(self, frame: bytes) -> bool:
        """Whether the lane had the answer; it is sent then."""
        lane, now = self._lane, monotonic()
        if lane is None or self._peer.logged_in:
            return False
        answer = lane.reply(frame, now)
        if answer is None:
            return False
        self.send(answer)
        lane.tallies["tcp"].add(monotonic() - now)
        return True

    # Answering --------------------------------------------------------------------------

    async def _answer(self, frame: bytes) -> None:
        async with aclosing(self._front.work.answer(frame, self._peer)) as messages:
            async for message in messages:
                self.send(message)
                if self._writable is not None:
                    await self._writable.wait()

    def _answered(self, frame: bytes, began: float, task: asyncio.Task[None]) -> None:
        self._front.work.leave(frame, began)
        self._tasks.discard(task)
        self.answered()
        if not task.cancelled():
            task.result()

    def gathered(self, frame: bytes, answer: bytes | None, seconds: float) -> None:
        """What came of one of those, after so long; None: it goes on in its place by itself."""
        self._gathered -= 1
        if answer is None and self._transport is not None:
            self._run(frame, monotonic() - seconds)
            return
        self._front.work.gate.leave(seconds)
        if answer and self._transport is not None:
            self.send(answer)

    def answered(self) -> None:
        """Something has been done: what is to come after it?"""
        self._heard = monotonic()
        if self._deaf:
            if not self._running and self._deadline is None:
                self._hang_up()
        elif self._holding or self._last:
            self._read_on()
        if self._front.leaving:
            self._leave()

    def _written(self) -> None:
        self._account(self._framing.buffered)
        if self._front.leaving:
            self._front.loop.call_soon(self._leave)

    def pause_writing(self) -> None:
        self._stuck_since = monotonic()
        self._writable = asyncio.Event()
        if not self._deaf:
            self._hold(True)

    # Limits -----------------------------------------------------------------------------

    def _dismiss(self, words: bytes | None) -> None:
        """Say why, answer what is running, hang up."""
        self._deaf = True
        if words is not None:
            self.send(words)
        if not self._running:
            self._hang_up()

    def drain(self) -> None:
        """Answer what has come, then hang up."""
        self._last = True
        self._read_on()

    def let_go(self) -> None:
        """From now on the next answer is the last. It leaves together with the end of the
        connection: who read the one without the other would ask again, and nobody hear it."""
        if self._transport is not None and hasattr(socket, "TCP_CORK"):
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def _leave(self) -> None:
        """The node is being replaced: whoever has an answer and asks nothing is let go."""
        if not (self._deaf or self._running or self._unsent or self._framing.buffered):
            self._hang_up()
