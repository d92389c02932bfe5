"""One connection of the native protocol: frames in, replies out, and its limits.

In one look at the octets that have come, requests whose reply is ready leave by the express lane,
those that need no waiting are answered on the spot, the others get a task each, and what is ready
leaves in one write. While a connection has `native_pipeline_max` requests running, or its peer does
not take our replies, nothing more is read from it. Times are looked at by one sweep over all
connections, so that a request costs no timer.
"""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from biaojie.errors import BiaojieError
from biaojie.limits import FRAME_OCTETS_MAX
from biaojie.wire.native import Kind
from biaojie.wire.native.frames import LENGTH_MIN, REQUEST_OCTETS_MAX, length_fault

from ...exchange import new_request_id
from ...lane import HITS
from ...overload import ASIDE_OCTETS, PIPELINED_SHARE, REFUSED_AT_ONCE, Penalties
from ..connections import CROWD_SHARE, FAREWELL_S, WRITE_OCTETS, StreamConnection
from .session import NOTHING_READY, Session
from .work import LENGTH, busy_frame, error_frame

if TYPE_CHECKING:
    from .server import NativeFront

_join = b"".join
PUBLIC_OCTETS_MAX: Final = 2**20
"""The longest request without a key: nothing that the public may ask is longer."""
SINGLE_OCTETS: Final = 256
"""What is longer is hardly one request to resolve by itself."""
NOBODY: Final = bytes(4)
BYPASS_START: Final = bytes((Kind.RESOLVE, 0x94))
"""An array of four, the last of which is `authoritative`,"""
BYPASS_END: Final = 0xC3
"""and true."""
LENGTH_OCTETS: Final = 4
_BYPASS_OCTETS: Final = 12
_HEAD_OCTETS: Final = 9
_length_at = LENGTH.unpack_from


class Connection(StreamConnection):
    """One peer. `_deaf`: nothing more is begun, what comes is thrown away. `_last`: hang up as
    soon as all that came has been answered. `_penalized`: something was refused, `_refused`
    requests of a piece, and what came with it or since, too soon (before `_again`), waits with
    others for the gate or a quota (`_among`), or what came was too much for one turn of the loop:
    nothing more is begun."""

    __slots__ = (
        "_again",
        "_among",
        "_came",
        "_front",
        "_health",
        "_kept",
        "_last",
        "_penalized",
        "_refused",
        "_running",
        "_session",
        "_table",
        "_taking",
        "_wanted",
    )
    _front: NativeFront

    def __init__(self, front: NativeFront) -> None:
        super().__init__()
        self._front = front
        self._session = Session(front, self)
        self._running = self._session.running
        self._health = front.lane.health
        self._table = NOTHING_READY  # the lane, while a request may be answered by itself
        self._kept = bytearray()
        self._wanted = 0
        self._refused = 0
        self._again = self._came = 0.0
        self._among = front.gate.penalties
        self._last = self._penalized = self._taking = False

    # Coming and going -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # uvloop's has another base
        self._transport = stream
        front = self._front
        front.connections.add(self)
        connection = stream.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            address = stream.get_extra_info("peername")
            self._session.peer = str(address[0]) if address else ""
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # A peer that takes nothing of what we wrote holds the connection no longer.
                milliseconds = int(front.limits.reply_timeout_s * 1000)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        stream.set_write_buffer_limits(high=WRITE_OCTETS)
        most = front.limits.native_connections_max
        if len(front.connections) > most:
            # Its hello will be told that there is no room.
            front.counts["native_crowded"] += 1
            self._session.crowded = True
            self._deadline = self._heard + FAREWELL_S
        if len(front.connections) > most * CROWD_SHARE or front.draining:
            stream.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._front.connections.discard(self)
        self._among.forget(self)
        self._transport = None
        self._go_deaf()
        self._unsent.clear()
        self._kept.clear()
        self._hold_octets(0)
        self._session.lost()
        if self._writable is not None:
            self._writable.set()
        self._front.left()

    def eof_received(self) -> bool:
        """The peer says nothing more. What it asked is still answered."""
        self._ended = self._last = True
        self._table = NOTHING_READY
        self._flush()
        self._session.end_following()
        return bool(self._session.running) or self._writable is not None or self._penalized

    # Reading ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        # One request, ready, and nothing else to look at: what most peers send most of the time.
        if (
            len(data) < SINGLE_OCTETS
            and (ready := self._table.get(data[8:])) is not None
            and not self._running
            and not self._health.down
            and data.startswith(ready.asked)
        ):
            now = monotonic()
            heads = ready.heads
            passed = now - ready.fetched
            if passed < heads.kept_s:
                if ready.hits < HITS:
                    ready.hits += 1
                self._heard = now
                self._transport.write(  # type: ignore[union-attr]
                    _join((ready.length, data[4:8], heads[int(passed)], ready.record))
                )
                front = self._front
                front.lane.hits += 1
                front.tally.add(monotonic() - now)
                return
        if self._deaf:
            return
        now = self._heard = monotonic()
        if self._kept:
            self._kept += data
            if self._penalized and len(self._kept) > ASIDE_OCTETS:
                self._hold(True)
            if self._penalized or self._holding or len(self._kept) < self._wanted:
                self._account(len(self._kept) + self._session.octets)
                return
            data = bytes(self._kept)
            self._kept.clear()
        elif (self._again or self._front.gate.full) and self._turned_away(data, now):
            return
        self._take(data, now)

    def _turned_away(self, data: bytes, now: float) -> bool:
        """Whether `data` was one request and was refused, or waits for that. Where nothing is left
        of what came before."""
        if len(data) > ASIDE_OCTETS or self._holding or self._last or not self._session.greeted:
            return False
        front = self._front
        gate = front.gate
        among = gate.penalties if gate.full else self._among
        shut = gate.full if among is gate.penalties else now < front.service.quotas.until
        if not shut:
            self._again = 0.0
            return False
        if now < self._again or among.exhausted(now):
            self._wait(data, among, now)
            return True
        if not (gate.full and self._refused_unread(data, now)):
            return False
        among.charge(1)
        return True

    def _refused_unread(self, data: bytes, now: float, waited_s: float = 0.0) -> bool:
        """Refuse, while the gate is full, one public request for which the cache is to be
        bypassed: no more than that need be known of it."""
        front = self._front
        if (
            not self._session.in_lane
            or not _BYPASS_OCTETS <= len(data) == LENGTH_OCTETS + _length_at(data)[0]
            or data[8:10] != BYPASS_START
            or data[-1] != BYPASS_END
            or data[4:8] in self._running
            or now >= front.in_full
        ):
            return False
        self._again = now + front.gate.penalties.pause_s
        self._partial_since = None
        front.gate.crowd()
        self._transport.write(busy_frame(data[4:8], new_request_id()))  # type: ignore[union-attr]
        front.crowded.leave_out(waited_s)
        return True

    def _wait(self, data: bytes, penalties: Penalties, now: float) -> None:
        """Put `data` aside: it came too soon, or too many are refused."""
        self._kept += data
        self._wanted = len(data)
        self._partial_since = None
        self._table = NOTHING_READY
        self._penalized = True
        self._came = now
        penalties.add(self, now)

    def _take(self, data: bytes, now: float) -> None:
        """Answer or begin the requests in `data` that have come whole, as far as the limits
        allow; keep the rest."""
        session, out = self._session, self._unsent
        running = session.running
        front = self._front
        lane = front.lane
        entries = lane.table() if session.in_lane else NOTHING_READY
        self._flushing = self._taking = True  # what gets ready here is sent at the end
        room, hits = WRITE_OCTETS, 0
        self._refused = 0
        at, size = 0, len(data)
        while size - at >= 4:
            stop = at + 4 + _length_at(data, at)[0]
            if stop > size:
                break
            id_ = data[at + 4 : at + 8]
            ready = entries.get(data[at + 8 : stop])
            if ready is not None:
                heads = ready.heads
                passed = now - ready.fetched
                if passed < heads.kept_s:
                    if not running or id_ not in running:
                        if ready.hits < HITS:
                            ready.hits += 1
                        out += (ready.length, id_, heads[int(passed)], ready.record)
                        hits += 1
                        at = stop
                        room -= ready.octets
                        if room < 0:
                            room = WRITE_OCTETS
                            self._flush()
                            self._flushing = True
                            if self._writable is not None:
                                break
                        continue
                else:
                    lane.drop(data[at + 8 : stop])
            if self._full or self._refused >= REFUSED_AT_ONCE or (front.room <= 0 and at):
                break  # a single request has its turn at once: whether there is room the gate says
            if stop - at < _HEAD_OCTETS:
                self.dismiss(length_fault(stop - at - 4, FRAME_OCTETS_MAX))
                break
            if REQUEST_OCTETS_MAX.get(data[at + 8], 0) < stop - at - 4:
                self._check_length(data, at)
            if self._deaf:
                break
            front.begin()
            session.begin(id_, data[at + 8], data[at + 9 : stop])
            at = stop
            if self._deaf:  # it was dismissed for that
                break
        self._taking = False
        self._flush()
        if hits:
            lane.hits += hits
            front.tally.add(monotonic() - now, hits)
        if at != size or self._partial_since is not None or self._holding or self._last:
            self._settle(data, at, now)
        elif session.in_lane and not self._deaf:
            self._table = lane.everything

    def _settle(self, data: bytes, at: int, now: float) -> None:
        """Keep what is left after a look at `data`, and see what may come next."""
        self._table = NOTHING_READY
        if self._deaf:
            return
        if at:
            data = data[at:]
        if data and not self._penalized:
            if self._refused >= REFUSED_AT_ONCE:
                self._penalized = True
                self._among.add(self, now)
            elif self._front.room <= 0 and at:
                self._penalized = True
                self._front.wait(self)
        if data:
            self._wanted = 4
            if len(data) >= 4 and not self._full:
                self._check_length(data, 0)
                if self._deaf:
                    return
                self._wanted += _length_at(data)[0]
            self._kept += data
        full = self._full
        self._hold(full or self._last or (self._penalized and len(self._kept) > ASIDE_OCTETS))
        if full or self._penalized or (not data and self._session.greeted):
            self._partial_since = None  # who waits for us is not late
        elif at or self._partial_since is None:
            self._partial_since = now
        self._account(len(self._kept) + self._session.octets)
        if self._last and not (full or self._penalized or self._session.running):
            self._hang_up()

    def _check_length(self, data: bytes, at: int) -> None:
        """Dismiss a peer that announces a frame longer than it may be. Where the next one would
        begin could be told, but not without taking all of this one."""
        length = _length_at(data, at)[0]
        if not LENGTH_MIN <= length <= FRAME_OCTETS_MAX:
            self.dismiss(length_fault(length, FRAME_OCTETS_MAX))
        elif len(data) - at >= _HEAD_OCTETS:
            most = REQUEST_OCTETS_MAX.get(data[at + 8], 65_536)
            if self._session.public:
                most = min(most, PUBLIC_OCTETS_MAX)
            if length > most:
                self.dismiss(length_fault(length, most), data[at + 4 : at + 8])

    @property
    def _full(self) -> bool:
        """Whether nothing more may be begun for now."""
        return self._writable is not None or self._session.full

    def _read_on(self) -> None:
        if self._deaf or self._penalized:
            return
        data = bytes(self._kept)
        self._kept.clear()
        self._take(data, monotonic())

    def penalize(self, penalties: Penalties, share: float = 1.0) -> None:
        """Something was refused, which cost `share` of what is usual. Of what has come with it
        some is still looked at; all else, and what comes too soon, has to wait."""
        self._refused += 1
        self._among = penalties
        self._again = monotonic() + penalties.pause_s
        penalties.charge(share * PIPELINED_SHARE if self._refused > 1 else share)

    def read_again(self, now: float) -> None:
        self._penalized = False
        if self._deaf:
            return
        data = bytes(self._kept)
        self._kept.clear()
        front = self._front
        if self._holding or self._last or not front.gate.full:
            self._take(data, now)
        elif self._refused_unread(data, now, now - self._came):
            self._table = front.lane.everything
        else:
            self._take(data, now)

    # Answering --------------------------------------------------------------------------

    def answered(self) -> None:
        """A request that had to wait has been answered."""
        self._heard = monotonic()
        if self._held:
            self._account(len(self._kept) + self._session.octets)
        if self._deaf:
            if not self._session.running and self._deadline is None:
                self._hang_up()
        elif self._penalized or self._taking:
            pass
        elif self._last or (self._holding and not self._full and self._session.roomy):
            self._read_on()

    @property
    def last(self) -> bool:
        """Whether nothing more is begun."""
        return self._last or self._deaf

    async def writable(self) -> None:
        """Wait until the peer has taken enough of what was sent."""
        self._flush()
        while self._writable is not None and self._transport is not None:
            await self._writable.wait()

    def _written(self) -> None:
        if self._writable is not None:
            self._account(len(self._kept) + self._session.octets)

    def pause_writing(self) -> None:
        self._table = NOTHING_READY
        self._stuck_since = monotonic()
        self._writable = asyncio.Event()
        if not self._deaf:
            self._hold(True)
        self._account(len(self._kept) + self._session.octets)

    # Limits -----------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return bool(self._running)

    def _go_deaf(self) -> None:
        super()._go_deaf()
        self._table = NOTHING_READY

    def dismiss(self, error: BiaojieError | None = None, id_: bytes = NOBODY) -> None:
        """Say why, answer what is running, hang up."""
        if error is not None:
            self._front.counts["native_malformed"] += 1
            self.send(error_frame(id_, error))
        self._go_deaf()
        self._kept.clear()
        self._session.end_following()
        if not self._session.running:
            self._hang_up()

    def drain(self) -> None:
        """Answer what has come, then hang up. Streams end after the page they are at."""
        self._last = True
        self._table = NOTHING_READY
        self._session.end_following()
        self._read_on()
