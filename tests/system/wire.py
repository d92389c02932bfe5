"""HTTP by hand over a socket: what a well-behaved client library would never send."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass
class Answer:
    """One reply; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])


def request(
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """A request as bytes; Host and Content-Length are added."""
    sent = {"Host": "node.test", **(headers or {})}
    if body is not None:
        sent.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {text}" for name, text in sent.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Wire:
    """One connection. Every wait ends after `timeout_s` with TimeoutError."""

    def __init__(
        self,
        port: int,
        *,
        timeout_s: float = 10,
        source: str = "127.0.0.1",
        receive_bytes: int | None = None,
    ) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout_s)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", port))
        self._left = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        self.send(request(method, target, headers, body))
        return self.answer(method)

    def _more(self) -> bool:
        data = self.socket.recv(65536)
        self._left += data
        return bool(data)

    def answer(self, method: str = "GET") -> Answer:
        """The next reply; ConnectionError if the connection ends first."""
        while b"\r\n\r\n" not in self._left:
            if not self._more():
                raise ConnectionError(f"closed after {self._left!r}")
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        status = int(first.split(" ")[1])
        headers = {}
        for line in lines:
            name, _, text = line.partition(": ")
            headers[name.lower()] = text
        if status in (100, 204, 304) or method == "HEAD":
            return Answer(status, headers, b"")
        length = int(headers["content-length"])
        while len(self._left) < length:
            if not self._more():
                raise ConnectionError("closed within a body")
        body, self._left = self._left[:length], self._left[length:]
        return Answer(status, headers, body)

    def silent(self, seconds: float) -> bool:
        """Whether the node says nothing for so long."""
        return not select.select([self.socket], [], [], seconds)[0]

    def ended(self) -> bool:
        """Whether the node hangs up within the timeout; whatever it still says is dropped."""
        try:
            while self._more():
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True


def until(holds: Any, timeout_s: float = 5, every_s: float = 0.02) -> Any:
    """Wait until `holds()` is true and return what it returned; AssertionError when it stays false.

    For what another process does and tells nobody.
    """
    deadline = time.monotonic() + timeout_s
    while not (held := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(every_s)
    return held
