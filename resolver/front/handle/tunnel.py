"""The Handle protocol inside HTTP: one frame as the body of a POST to any path, the frames of the
answer as the body of the reply. Knows nothing of the HTTP server, which brings octets and an
address.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from biaojie.wire.handle import Malformed, ResponseCode, refusal, whole_frames

from ...handle.peer import Peer
from .work import Work

ANSWER_OCTETS_MAX: Final = 16 * 2**20
"""The reply has a length in front, so a streamed list must be held whole."""
TOO_LONG: Final = "the answer is too long for HTTP, ask over TCP 结果过长，请改用 TCP"


class Tunnel:
    def __init__(self, work: Work) -> None:
        self._work = work

    async def answer(self, body: bytes, address: str) -> bytes:
        """The reply's body. Raises Malformed only where there is nothing to echo: such a sender
        speaks no Handle."""
        try:
            frames = whole_frames(body)
            if len(frames) != 1:
                raise Malformed(0, f"one message, not {len(frames)}")
        except Malformed as error:
            text = f"malformed 报文格式错误: {error}"
            words = refusal(body, ResponseCode.PROTOCOL_ERROR, text)
            if words is None:
                raise
            return words
        frame = frames[0]
        if self._work.gate.full:
            return self._work.refuse(frame) or b""
        reply = bytearray()
        peer = Peer(address, "http", verified=True)
        began = self._work.enter()
        try:
            async with aclosing(self._work.answer(frame, peer)) as messages:
                async for message in messages:
                    reply += message
                    if len(reply) > ANSWER_OCTETS_MAX:
                        return refusal(frame, ResponseCode.ERROR, TOO_LONG) or b""
        finally:
            self._work.leave(frame, began)
        return bytes(reply)
