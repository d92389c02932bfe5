"""Addresses of the native protocol: `biaojie://host[:port]` and `biaojie+unix:///path`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote, unquote, urlsplit

from .errors import InvalidRequest
from .wire.native import PORT

SCHEME: Final = "biaojie"
UNIX_SCHEME: Final = "biaojie+unix"
_NEXT_ADDRESS_S: Final = 0.25
"""A name's next address is tried beside one that says nothing for so long (RFC 8305 §5)."""
ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port, or else the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"{UNIX_SCHEME}://{quote(self.path)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}"

    async def connect(self, protocol: Callable[[], ProtocolT]) -> ProtocolT:
        """A connected protocol. Raises OSError; the caller sets the time."""
        loop = asyncio.get_running_loop()
        if self.path:
            return (await loop.create_unix_connection(protocol, self.path))[1]
        _, made = await loop.create_connection(
            protocol, self.host, self.port, happy_eyeballs_delay=_NEXT_ADDRESS_S
        )
        return made


def address_of(url: str) -> Address:
    """Raises InvalidRequest."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _strange() from None
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise _strange()
    if parts.scheme == UNIX_SCHEME:
        path = unquote(parts.path)
        if parts.netloc or not path.strip("/") or "\0" in path:
            raise _strange()
        return Address("", 0, path)
    if not host or parts.path.strip("/") or port == 0:
        raise _strange()
    return Address(host, PORT if port is None else port)


def _strange() -> InvalidRequest:
    return InvalidRequest(
        "A node's native address is like biaojie://host:2650 or biaojie+unix:///path/to/socket, "
        "without user or query.",
        "节点的原生协议地址形如 biaojie://host:2650 或 biaojie+unix:///path/to/socket，"
        "不含用户名或查询。",
    )
