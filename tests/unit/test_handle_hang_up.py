"""A Handle connection is hung up on while its peer is gone already."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from resolver.front.handle.connection import Connection
from resolver.front.handle.tcp import TcpFront
from resolver.front.handle.work import HandleLimits, Work
from resolver.overload import Gate


class Gone:
    """The transport of a connection that the peer has reset, which nobody has been told yet."""

    def __init__(self) -> None:
        self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return SimpleNamespace(setsockopt=lambda *_: None) if name == "socket" else ("::1", 1)

    def set_write_buffer_limits(self, high: int) -> None: ...

    def pause_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.aborted

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("how", ["drain", "idle"])
async def test_who_is_gone_is_cut(how: str) -> None:
    answerer: Any = SimpleNamespace(forget=lambda peer: None)
    front = TcpFront(Work(answerer, Gate(1)), HandleLimits())
    connection, gone = Connection(front), Gone()
    connection.connection_made(gone)  # type: ignore[arg-type]
    if how == "drain":
        connection.drain()
    else:
        connection._partial_since = None
        connection.sweep(connection._heard + 1e6)
    assert gone.aborted
    connection.connection_lost(None)
    assert not front.connections
