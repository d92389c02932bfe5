"""Asking over UDP: the datagram again after 0.5, 1 and 1.5 s, fragments put together, and no
belief in what merely arrives.

Whoever can guess a request's number can send us a datagram, so one that is not the answer is
passed over as if it had not come. A cut answer (the truncated mark on a packet that holds all
it announces) and one whose fragments stay out are to be asked for over TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, cast

from .errors import BiaojieError, MalformedAnswer
from .wire.handle import (
    DATAGRAM_OCTETS_MAX,
    ENVELOPE_OCTETS,
    Malformed,
    Message,
    Reassembly,
    decode_envelope,
)

TIMEOUTS_S: Final = (0.5, 1.0, 1.5)
"""What clients of the protocol have always waited."""
_HALF: Final = 0.5
"""Of a call's time, at most this much is spent on UDP: TCP needs some too."""
_FRAGMENTS_MAX: Final = 256

Accept = Callable[[bytes], Message]
"""The answer in a frame; raises MalformedAnswer where it is none for us."""


class Nothing(Enum):
    """Why there is no answer. CUT: there is one, over TCP."""

    SILENCE = "silence"
    CUT = "cut"


@dataclass(slots=True)
class _Waiting:
    accept: Accept
    answer: asyncio.Future[Message | Nothing]
    partial: bool = False


class Datagrams(asyncio.DatagramProtocol):
    """One socket to one server, for any number of questions at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, _Waiting] = {}
        self._reassembly = Reassembly(
            partial_max=_FRAGMENTS_MAX, per_source_max=_FRAGMENTS_MAX, wait_s=sum(TIMEOUTS_S)
        )
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Datagrams:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_datagram_endpoint(cls, remote_addr=(host, port))
        return protocol

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def ask(
        self, frame: bytes, request_id: int, accept: Accept, deadline: float
    ) -> Message | Nothing:
        """The answer, or why there is none. `frame` fits one datagram; `deadline` is the
        call's, in the loop's time.
        """
        assert len(frame) <= DATAGRAM_OCTETS_MAX
        if not self.usable or request_id in self._waiting:
            return Nothing.SILENCE
        waiting = _Waiting(accept, self._loop.create_future())
        self._waiting[request_id] = waiting
        now = self._loop.time()
        last = now + (deadline - now) * _HALF
        try:
            for timeout_s in TIMEOUTS_S:
                left_s = last - self._loop.time()
                if left_s <= 0 or waiting.partial or self._transport is None:
                    break
                self._transport.sendto(frame)
                await asyncio.wait([waiting.answer], timeout=min(timeout_s, left_s))
                if waiting.answer.done():
                    return waiting.answer.result()
            return Nothing.CUT if waiting.partial else Nothing.SILENCE
        finally:
            del self._waiting[request_id]

    # What asyncio calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own are no subclass of it before Python 3.13
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, _: object) -> None:
        try:
            envelope = decode_envelope(data)
            waiting = self._waiting.get(envelope.request_id)
            if waiting is None or waiting.answer.done():
                return
            frame = self._reassembly.take(0, data, self._loop.time())
        except Malformed:
            return
        if frame is None:
            waiting.partial = True
            return
        try:
            message = waiting.accept(frame)
        except MalformedAnswer:
            return
        except BiaojieError as error:  # ours, not theirs: say a missing library
            waiting.answer.set_exception(error)
            return
        whole = envelope.length == len(data) - ENVELOPE_OCTETS
        waiting.answer.set_result(Nothing.CUT if envelope.truncated and whole else message)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there."""
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_result(Nothing.SILENCE)

    def connection_lost(self, exc: Exception | None) -> None:
        self.error_received(exc or OSError())
        self._transport = None
