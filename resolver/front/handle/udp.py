"""The Handle protocol on UDP: one reader drains each socket in batches; see guard.py for whom it
answers and how much. Sending never waits: what the socket does not take is dropped, for the
client asks again.

What the express lane has is answered in place, many packets by one system call where there is
one for it (mmsg.py). A packet that it does not have, or that is over its network's rate, goes the
ordinary way, on which it is counted; plain resolutions go it together, and are answered by one
system call again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from biaojie.wire.handle import (
    DATAGRAM_OCTETS_MAX,
    Malformed,
    Reassembly,
    ResponseCode,
    split,
)

from ...handle.lane import HandleLane
from ...handle.peer import Peer
from ...handle.together import Gathering, Together, may_be_plain, read_plain
from ...lane import HITS
from . import mmsg
from .guard import (
    ENDLESS,
    IPV4_OCTETS,
    IPV6_OCTETS,
    Bucket,
    RateLimit,
    Verdict,
    cut_form,
    network,
    short_refusal,
)
from .work import TOO_BUSY, HandleLimits, Work

BUSY_PER_S: Final = 500.0
"""Who finds no room is told so; more than this many in a second are not even looked at."""
RECEIVE_OCTETS: Final = 4 * 2**20
_PACKET_OCTETS: Final = 65_536
_CODE: Final = slice(24, 28)
_REQUEST: Final = bytes(4)
_ENCRYPTED: Final = 0x40
_Source = tuple[Any, ...]
_Asker = tuple[socket.socket, _Source, bytes]
"""Where a frame came from, and the frame."""


class UdpFront:
    """All UDP sockets. `start` serves bound sockets, `stop` drains and closes them."""

    def __init__(
        self,
        work: Work,
        limits: HandleLimits,
        lane: HandleLane | None = None,
        together: Together | None = None,
    ) -> None:
        self._work = work
        self.gathering: Gathering[_Asker] | None = None
        if together is not None:
            self.gathering = Gathering("udp", together, self._deliver)
        self._lane = lane
        self._factor = limits.handle_udp_amplification_max
        self._rates = RateLimit(limits.handle_udp_rate_max)
        self._reassembly = Reassembly()
        self._busy = Bucket(BUSY_PER_S, 0.0)
        self._buffer = bytearray(_PACKET_OCTETS)
        self._view = memoryview(self._buffer)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._batches: dict[socket.socket, mmsg.Batch] = {}
        self._loop: asyncio.AbstractEventLoop
        self.counts = dict.fromkeys(
            (
                "handle_udp_packets",
                "handle_udp_malformed",
                "handle_udp_truncated",
                "handle_udp_limited",
                "handle_udp_dropped",
            ),
            0,
        )

    def readings(self) -> dict[str, float]:
        return {
            "handle_udp_requests_running": len(self._tasks)
            + (0 if self.gathering is None else self.gathering.running),
            "handle_udp_reassembly_bytes": self._reassembly.octets,
            "handle_udp_reassembly_messages": len(self._reassembly),
            "handle_udp_networks": len(self._rates),
        }

    def start(self, sockets: list[socket.socket]) -> None:
        self._loop = asyncio.get_running_loop()
        for bound in sockets:
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_OCTETS)
            self._sockets.append(bound)
            if mmsg.AVAILABLE:
                batch = mmsg.Batch(bound, (IPV4_OCTETS, IPV6_OCTETS))
                self._batches[bound] = batch
                self._loop.add_reader(bound.fileno(), self._drain_batch, batch)
            else:
                self._loop.add_reader(bound.fileno(), self._drain, bound)

    async def stop(self, drain_s: float) -> None:
        """Take no more, answer what has come, for `drain_s` seconds at most."""
        for bound in self._sockets:
            self._loop.remove_reader(bound.fileno())
        gathering = self.gathering
        if gathering is not None:
            await gathering.stop(drain_s)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_s)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for bound in self._sockets:
            bound.close()
        self._sockets.clear()
        for batch in self._batches.values():
            batch.close()
        self._batches.clear()

    # Receiving --------------------------------------------------------------------------

    def _drain(self, bound: socket.socket) -> None:
        """One by one, as every system can."""
        now = time.monotonic()
        for _ in range(mmsg.BATCH):
            try:
                size, source = bound.recvfrom_into(self._buffer)
            except OSError:  # there is no more; or the network says that a reply got lost
                return
            self.counts["handle_udp_packets"] += 1
            packet = bytes(self._view[:size])
            answer = None
            if self._lane is not None:
                answer = self._ready(self._lane, packet, source, now)
            if answer is None:
                self._take(bound, packet, source, now)
            else:
                self._send(bound, source, answer)

    def _ready(self, lane: HandleLane, packet: bytes, source: _Source, now: float) -> bytes | None:
        """What the lane has for a packet that is within the rate."""
        bucket = self._rates.bucket(network(source[0]), now)
        answer = lane.reply(packet, now, datagram=True) if bucket.tokens >= 1 else None
        if answer is not None:
            bucket.tokens -= 1
            lane.tallies["udp"].add(time.monotonic() - now)
        return answer

    def _drain_batch(self, batch: mmsg.Batch) -> None:
        sizes = batch.receive()
        if not sizes:
            return
        now = time.monotonic()
        self.counts["handle_udp_packets"] += len(sizes)
        lane = self._lane
        if lane is None:
            for slot, size in enumerate(sizes):
                self._take(batch.bound, batch.packet(slot, size), batch.source(slot), now)
            return
        # The hottest loop of the node: what costs a name look-up is kept in a local.
        find, renew, cutters = lane.table().get, lane.renew, batch.cutters
        arena, vectors, join = batch.arena, batch.vectors, b"".join
        slot = at = start = answered = 0
        last, bucket = b"", ENDLESS
        for size, sender in zip(sizes, batch.networks(len(sizes)), strict=True):
            if size <= mmsg.SLOT_OCTETS:
                ready = find(join(cutters[size](arena, at)))
                if (
                    ready is not None
                    and ready.datagram
                    and (now < ready.until or renew(ready, now))
                ):
                    if sender != last:
                        bucket = self._rates.bucket(sender, now)
                        last = sender
                    if bucket.tokens >= 1:
                        bucket.tokens -= 1
                        if ready.hits < HITS:
                            ready.hits += 1
                        if ready.changes_head:
                            arena[at : at + 8] = ready.head
                        tail = ready.tail  # the request id between them is there already
                        end = at + 12 + len(tail)
                        arena[at + 12 : end] = tail
                        vectors[2 * slot + 1] = end - at
                        slot += 1
                        at += mmsg.SLOT_OCTETS
                        continue
            self._answer_slots(batch, start, slot)
            answered += slot - start
            self._take(batch.bound, batch.packet(slot, size), batch.source(slot), now)
            slot += 1
            at += mmsg.SLOT_OCTETS
            start = slot
        self._answer_slots(batch, start, slot)
        answered += slot - start
        if answered:
            lane.hits += answered
            lane.tallies["udp"].add(time.monotonic() - now, answered)

    def _answer_slots(self, batch: mmsg.Batch, start: int, end: int) -> None:
        if start < end:
            self.counts["handle_udp_dropped"] += batch.send(start, end)

    def _take(self, bound: socket.socket, packet: bytes, source: _Source, now: float) -> None:
        if self._work.gate.full and not self._may_say_busy(now):
            self.counts["handle_udp_dropped"] += 1  # the client asks again by itself
            return
        plain = self.gathering is not None and may_be_plain(packet)
        try:
            frame = packet if plain else self._reassembly.take(source, packet, now)
        except Malformed as error:
            self.counts["handle_udp_malformed"] += 1
            if self._rates.verdict(source[0], now) is Verdict.ANSWER:
                text = f"malformed 报文格式错误: {error}"
                most = self._factor * len(packet)
                words = short_refusal(packet, ResponseCode.PROTOCOL_ERROR, text, most)
                self._send(bound, source, words)
            return
        if frame is None:
            return
        if frame[_CODE] != _REQUEST and not frame[2] & _ENCRYPTED:
            self.counts["handle_udp_malformed"] += 1  # an answer: answering it might never end
            return
        verdict = self._rates.verdict(source[0], now)
        if verdict is not Verdict.ANSWER:
            self.counts["handle_udp_limited"] += 1
            if verdict is Verdict.CUT:
                self._send_cut(bound, source, frame)
        elif self._work.gate.full:
            self._busy.tokens -= 1
            busy = self._work.refuse(frame)
            most = self._factor * len(frame)
            if busy is not None and len(busy) > most:
                busy = short_refusal(frame, ResponseCode.SERVER_BUSY, TOO_BUSY, most)
            self._send(bound, source, busy)
        elif not plain or not self._gather(bound, source, frame):
            self._begin(bound, source, frame, self._work.enter())

    def _gather(self, bound: socket.socket, source: _Source, frame: bytes) -> bool:
        """Whether it is plain indeed: it is answered then, or will be together with others."""
        gathering = self.gathering
        asked = None if gathering is None else read_plain(frame, source[0])
        if gathering is None or asked is None:
            return False
        answer = gathering.at_hand(asked)
        if answer is not None:
            self._send_or_cut(bound, source, frame, answer)
        else:
            self._work.enter()
            gathering.take(asked, (bound, source, frame))
        return True

    def _begin(self, bound: socket.socket, source: _Source, frame: bytes, began: float) -> None:
        task = self._loop.create_task(self._answer(bound, source, frame))
        self._tasks.add(task)
        task.add_done_callback(partial(self._answered, frame, began))

    def _may_say_busy(self, now: float) -> bool:
        busy = self._busy
        busy.tokens = min(BUSY_PER_S, busy.tokens + (now - busy.since) * BUSY_PER_S)
        busy.since = now
        return busy.tokens >= 1

    def _answered(self, frame: bytes, began: float, task: asyncio.Task[None]) -> None:
        self._work.leave(frame, began)
        self._tasks.discard(task)

    # Sending ----------------------------------------------------------------------------

    async def _answer(self, bound: socket.socket, source: _Source, frame: bytes) -> None:
        peer = Peer(source[0], "udp", verified=False)
        answer: bytes | None = None
        streamed = False
        async with aclosing(self._work.answer(frame, peer)) as messages:
            async for message in messages:
                if answer is not None:
                    streamed = True  # clients take one message over UDP
                    break
                answer = message
        if streamed:
            self.counts["handle_udp_truncated"] += 1
            self._send_cut(bound, source, frame)
        elif answer is not None:
            self._send_or_cut(bound, source, frame, answer, verified=peer.verified)

    def _deliver(
        self, askers: Sequence[_Asker], answers: Sequence[bytes | None], seconds: float
    ) -> None:
        ready: dict[socket.socket, list[tuple[_Source, bytes]]] = {}
        for (bound, source, frame), answer in zip(askers, answers, strict=True):
            if answer is None:
                self._begin(bound, source, frame, time.monotonic() - seconds)
                continue
            octets = len(answer)
            if octets > min(DATAGRAM_OCTETS_MAX, self._factor * len(frame)):
                self._send_or_cut(bound, source, frame, answer)
            elif octets:
                ready.setdefault(bound, []).append((source, answer))
        for bound, packets in ready.items():
            batch = self._batches.get(bound)
            if batch is not None:
                self.counts["handle_udp_dropped"] += batch.send_to(packets)
            else:
                for source, packet in packets:
                    self._send(bound, source, packet)
        answered = len(answers) - answers.count(None)
        if answered:
            self._work.gate.leave(seconds, answered)

    def _send_or_cut(
        self,
        bound: socket.socket,
        source: _Source,
        frame: bytes,
        answer: bytes,
        *,
        verified: bool = False,
    ) -> None:
        packets = split(answer)
        if not verified and sum(map(len, packets)) > self._factor * len(frame):
            self.counts["handle_udp_truncated"] += 1
            self._send_cut(bound, source, frame)
        else:
            self._send(bound, source, *packets)

    def _send_cut(self, bound: socket.socket, source: _Source, frame: bytes) -> None:
        short = cut_form(frame)
        if short is not None and len(short) <= self._factor * len(frame):
            self._send(bound, source, short)

    def _send(self, bound: socket.socket, source: _Source, *packets: bytes | None) -> None:
        for packet in packets:
            if packet is None:
                return
            try:
                bound.sendto(packet, source)
            except OSError:  # the socket is full, or there is no way to that address
                self.counts["handle_udp_dropped"] += 1
                return
