"""What the Handle transports share: their limits, and a bound on the requests in hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from time import monotonic
from typing import Final

import structlog

from biaojie.wire.handle import ENVELOPE_OCTETS, OpCode, ResponseCode, refusal

from ...handle.peer import Answerer, Peer
from ...overload import Gate

TOO_BUSY: Final = "over capacity, try again in a second 超出处理能力，请稍后重试"
FAILED: Final = "internal error 内部错误"
FORMS_MAX: Final = 256
_IDS: Final = slice(4, 12)
_OPERATION: Final = slice(ENVELOPE_OCTETS, ENVELOPE_OCTETS + 8)
"""What is asked, and that it is asked: opcode and response code."""
_DECIDING_OCTETS: Final = 16
_OPCODE: Final = slice(ENVELOPE_OCTETS, ENVELOPE_OCTETS + 4)
_RESOLUTION: Final = OpCode.RESOLUTION.to_bytes(4, "big")
_ENCRYPTED: Final = 0x40
log = structlog.get_logger("biaojie.handle")


@dataclass(frozen=True, slots=True)
class HandleLimits:
    """Settings of the same names say what each is for."""

    handle_connections_max: int = 10_000
    handle_pipeline_max: int = 64
    handle_requests_max: int = 512
    handle_idle_timeout_s: float = 600.0
    handle_message_timeout_s: float = 15.0
    handle_udp_amplification_max: float = 3.0
    handle_udp_rate_max: int = 500
    reply_timeout_s: float = 30.0


class Work:
    """Hands frames to the answerer; `gate` bounds how many at a time over all transports."""

    def __init__(self, answerer: Answerer, gate: Gate) -> None:
        self.gate = gate
        self._answerer = answerer
        self._busy: dict[bytes, tuple[bytes, bytes]] = {}

    def refuse(self, frame: bytes) -> bytes | None:
        """The answer to a frame that there is no room for, which is counted; None where it is no
        request. But for session and request id, which it repeats, it is one for most frames."""
        decides = frame[:4] + frame[12:16] + frame[_OPERATION]
        form = self._busy.get(decides)
        if form is None:
            busy = refusal(frame, ResponseCode.SERVER_BUSY, TOO_BUSY)
            if busy is None:
                return None
            if len(decides) == _DECIDING_OCTETS:
                if len(self._busy) >= FORMS_MAX:
                    self._busy.clear()
                self._busy[decides] = busy[:4], busy[12:]
            self.gate.crowd()
            return busy
        self.gate.crowd()
        return form[0] + frame[_IDS] + form[1]

    def enter(self) -> float:
        """Take a place, which there must be, for one frame. Whoever does calls `leave`."""
        entered = self.gate.enter()
        assert entered
        return monotonic()

    def leave(self, frame: bytes, began: float) -> None:
        """`began` is what `enter` said."""
        quick = frame[_OPCODE] == _RESOLUTION and not frame[2] & _ENCRYPTED
        self.gate.leave(monotonic() - began if quick else None)

    async def answer(self, frame: bytes, peer: Peer) -> AsyncGenerator[bytes, None]:
        """The messages that answer `frame`, which has a place. While the caller is busy with one
        of them (its peer may read slowly) the request takes up no room."""
        messages = self._answerer.answer(frame, peer)
        try:
            async for message in messages:
                self.gate.step_out()
                try:
                    yield message
                finally:
                    self.gate.come_back()
        except Exception as error:
            log.error("an answer failed", transport=peer.transport, exc_info=error)
            failure = refusal(frame, ResponseCode.ERROR, FAILED)
            if failure is not None:
                yield failure
        finally:
            close = getattr(messages, "aclose", None)
            if close is not None:
                await close()

    def forget(self, peer: Peer) -> None:
        self._answerer.forget(peer)
