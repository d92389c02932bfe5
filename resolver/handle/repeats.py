"""Datagrams get lost, and clients send them again. Whoever repeats a write over UDP, because its
answer was lost or late, gets that answer and not a second write.

What is kept are answers to writes, which hold nothing private, and they go to no address but the
one that asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from biaojie.wire.handle import ENVELOPE_OCTETS, HEADER_OCTETS, OpCode

from .peer import Peer
from .writing import WRITES

SECONDS: Final = 30.0
REPEATS_MAX: Final = 4_096
_ENCRYPTED: Final = 0x40
_REPEATED: Final = WRITES | {OpCode.CHALLENGE_RESPONSE}
_KEPT: Final = WRITES | {OpCode.LOGIN}
Name = tuple[str, bytes]


@dataclass(slots=True)
class _Kept:
    answer: asyncio.Future[bytes | None]
    until: float


class Repeats:
    def __init__(
        self, *, repeats_max: int = REPEATS_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max = repeats_max
        self._clock = clock
        self._kept: OrderedDict[Name, _Kept] = OrderedDict()

    @staticmethod
    def name(frame: bytes, peer: Peer) -> Name | None:
        """What a frame is known by: sender, session, request, header and body; not the MAC, which
        clients make anew. None where it would not be sent again, or must not be kept."""
        if peer.transport != "udp" or len(frame) < ENVELOPE_OCTETS + HEADER_OCTETS:
            return None
        if frame[2] & _ENCRYPTED or int.from_bytes(frame[20:24], "big") not in _REPEATED:
            return None
        end = ENVELOPE_OCTETS + HEADER_OCTETS + int.from_bytes(frame[40:44], "big")
        return peer.address, hashlib.sha256(frame[4:12] + frame[ENVELOPE_OCTETS:end]).digest()

    async def find(self, name: Name) -> bytes | None:
        """The answer that a repetition gets, waited for if it is still being made; None where
        this is no repetition: then `begin` and `end` must follow."""
        self._forget()
        kept = self._kept.get(name)
        return None if kept is None else await asyncio.shield(kept.answer)

    def begin(self, name: Name) -> None:
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._kept[name] = _Kept(future, self._clock() + SECONDS)
        while len(self._kept) > self._max:
            _, oldest = self._kept.popitem(last=False)
            _settle(oldest, None)

    def end(self, name: Name, frame: bytes | None) -> None:
        """The answer, None where there is none to keep."""
        if frame is not None and int.from_bytes(frame[20:24], "big") not in _KEPT:
            frame = None
        kept = self._kept.get(name)
        if kept is not None:
            _settle(kept, frame)
            if frame is None:
                del self._kept[name]

    def _forget(self) -> None:
        now = self._clock()
        while self._kept:
            name, kept = next(iter(self._kept.items()))
            if now < kept.until:
                return
            del self._kept[name]
            _settle(kept, None)


def _settle(kept: _Kept, frame: bytes | None) -> None:
    if not kept.answer.done():
        kept.answer.set_result(frame)
