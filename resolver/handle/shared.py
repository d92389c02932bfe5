"""Handle messages that belong to what another worker of this node remembers: they are handed over
whole, and its answer is passed on. So a session, its counters, a nonce that is good once, are in
one place only, whichever worker a client's next connection reaches.

What a client ties to its TCP connection by a number of its own stays with the connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgpack

from biaojie.wire.handle import ResponseCode, refusal

from ..neighbours import NeighbourFault, Neighbours, NotThere
from .exchange import is_response
from .numbers import Numbers
from .operations import Operations
from .peer import Peer

KIND: Final = b"h"
UNANSWERED: Final = "no answer in time, try again in a second 未及时得到应答，请稍后重试"
_PLAIN: Final = b"\x00"
_VERIFIED: Final = b"\x01"


class SharedAnswerer:
    """An Answerer over this worker's own `operations` and those of its neighbours, which have
    `timeout_s` for each part of an answer."""

    def __init__(
        self,
        operations: Operations,
        numbers: Numbers,
        neighbours: Neighbours,
        *,
        timeout_s: float,
    ) -> None:
        self._operations = operations
        self._numbers = numbers
        self._neighbours = neighbours
        self._timeout_s = timeout_s
        neighbours.on_call[KIND] = self._asked

    async def answer(self, frame: bytes, peer: Peer) -> AsyncGenerator[bytes, None]:
        """See `Answerer`."""
        if not self._is_here(frame, peer):
            passed_on = False
            async with aclosing(self._elsewhere(frame, peer)) as messages:
                async for message in messages:
                    passed_on = True
                    yield message
            if passed_on:
                return
        async with aclosing(self._operations.answer(frame, peer)) as messages:
            async for message in messages:
                yield message

    def forget(self, peer: Peer) -> None:
        self._operations.forget(peer)

    def _is_here(self, frame: bytes, peer: Peer) -> bool:
        number = int.from_bytes(frame[4:8], "big")
        if not number or is_response(frame):
            return True
        if self._numbers.keeper(number) == self._numbers.slot:
            return True
        return self._operations.remembers(peer.scope, number)

    async def _elsewhere(self, frame: bytes, peer: Peer) -> AsyncGenerator[bytes, None]:
        """Nothing, if it is for this worker to answer after all."""
        keeper = self._numbers.keeper(int.from_bytes(frame[4:8], "big"))
        question = msgpack.packb((peer.address, peer.transport, peer.verified, frame))
        asking = self._neighbours.ask(keeper, KIND, question, timeout_s=self._timeout_s)
        try:
            async with aclosing(asking) as parts:
                async for part in parts:
                    peer.verified = peer.verified or part[:1] == _VERIFIED
                    yield part[1:]
        except NotThere:  # nor is what it remembered: say so as ever
            return
        except NeighbourFault:  # it may have done what it was asked
            words = refusal(frame, ResponseCode.SERVER_BUSY, UNANSWERED)
            if words is not None:
                yield words

    async def _asked(self, question: bytes) -> AsyncGenerator[bytes, None]:
        """Answer for a neighbour, unless what it means is not here."""
        address, transport, verified, frame = msgpack.unpackb(question)
        if not self._operations.remembers(None, int.from_bytes(frame[4:8], "big")):
            return
        peer = Peer(address, transport, verified)
        async with aclosing(self._operations.answer(frame, peer)) as messages:
            async for message in messages:
                yield (_VERIFIED if peer.verified else _PLAIN) + message
