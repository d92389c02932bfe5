"""The hello of a connection: its codec, and which versions are spoken."""

from __future__ import annotations

from typing import Final

from biaojie.errors import BiaojieError, InvalidRequest
from biaojie.wire.native import VERSION, Hello, Kind, decode_request, encode_welcome
from biaojie.wire.native.answers import Welcome

from .work import Asked, error_frame, frame


class Greeting:
    """The codec of the hello."""

    front = "native"
    operation = "hello"

    def decode(self, data: Asked) -> Hello:
        if data.question is None:
            data.question = _hello(data)
        assert isinstance(data.question, Hello)
        return data.question

    def encode(self, data: Asked, answer: Welcome) -> bytes:
        return frame(data.id, Kind.ANSWER, encode_welcome(answer))

    def encode_error(self, data: Asked, error: BiaojieError) -> bytes:
        return error_frame(data.id, error)


def _hello(asked: Asked) -> Hello:
    if asked.kind != Kind.HELLO:
        raise InvalidRequest(
            "The first frame of a connection is a hello.", "连接的首帧应为 hello。", errors=[]
        )
    hello = decode_request(asked.kind, asked.body)
    assert isinstance(hello, Hello)
    if not hello.version_min <= VERSION <= hello.version_max:
        raise InvalidRequest(
            f"This node speaks version {VERSION}.",
            f"本节点使用版本 {VERSION}。",
            errors=[],
            version=VERSION,
        )
    return hello


GREETING: Final = Greeting()
