"""Many may come at once."""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

import pytest

from resolver.front.listening import BACKLOG, bind, close

CROWD = 3_000
"""More than the 2,500 that a load test opens at once."""
_ALLOWED = Path("/proc/sys/net/core/somaxconn")
_BACKLOG_AT = 28
"""tcpi_sacked of TCP_INFO, which is this of a socket that listens."""


@pytest.mark.skipif(sys.platform != "linux", reason="how it is asked for is Linux's")
def test_the_system_holds_thousands_of_connections_until_they_are_taken() -> None:
    allowed = int(_ALLOWED.read_text())
    sockets = bind("127.0.0.1", 0)
    try:
        for listening in sockets[0]:
            info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            (holds,) = struct.unpack_from("=I", info, _BACKLOG_AT)
            assert holds == min(BACKLOG, allowed) >= min(CROWD, allowed)
    finally:
        close(sockets)
