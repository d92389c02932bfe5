"""Which wire a target speaks."""

from __future__ import annotations

from ..target import Target
from . import Wire


def make_wire(target: Target) -> Wire:
    """A new one: of a connection, or for decoding alone."""
    if target.front == "http":
        from .http import HttpWire

        return HttpWire(f"{target.shown_host}:{target.port}", target.path)
    if target.front == "native":
        from .native import NativeWire

        return NativeWire()
    from .handle import HandleTcpWire, HandleUdpWire

    return HandleUdpWire() if target.front == "hdl-udp" else HandleTcpWire()
