"""The native protocol on TCP and Unix sockets; see docs/protocol.md."""

from .listening import bind_tcp, bind_unix
from .server import NativeFront
from .work import NativeLimits, ReadyResolution

__all__ = ["NativeFront", "NativeLimits", "ReadyResolution", "bind_tcp", "bind_unix"]
