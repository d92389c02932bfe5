"""What the Handle transports share: their limits, and a bound on the requests in hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import structlog

from biaojie.wire.handle import ResponseCode, refusal

from ...handle.peer import Answerer, Peer

TOO_BUSY: Final = "over capacity, try again in a second 超出处理能力，请稍后重试"
FAILED: Final = "internal error 内部错误"
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
    """Hands frames to the answerer, at most `requests_max` at a time over all transports."""

    def __init__(self, answerer: Answerer, requests_max: int) -> None:
        self.running = 0
        self.refused = 0
        self.requests_max = requests_max
        self._answerer = answerer

    @property
    def full(self) -> bool:
        return self.running >= self.requests_max

    def refuse(self, frame: bytes) -> bytes | None:
        """The answer to a frame that there is no room for."""
        self.refused += 1
        return refusal(frame, ResponseCode.SERVER_BUSY, TOO_BUSY)

    async def answer(self, frame: bytes, peer: Peer) -> AsyncGenerator[bytes, None]:
        """The messages that answer `frame`. While the caller is busy with one of them (its peer
        may read slowly) the request takes up no room."""
        messages = self._answerer.answer(frame, peer)
        self.running += 1
        try:
            async for message in messages:
                self.running -= 1
                try:
                    yield message
                finally:
                    self.running += 1
        except Exception as error:
            log.error("an answer failed", transport=peer.transport, exc_info=error)
            failure = refusal(frame, ResponseCode.ERROR, FAILED)
            if failure is not None:
                yield failure
        finally:
            self.running -= 1
            close = getattr(messages, "aclose", None)
            if close is not None:
                await close()

    def forget(self, peer: Peer) -> None:
        self._answerer.forget(peer)
