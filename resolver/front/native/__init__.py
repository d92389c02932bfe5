"""The native protocol on TCP and Unix sockets; see docs/protocol.md."""

from .server import NativeFront
from .work import NativeLimits

__all__ = ["NativeFront", "NativeLimits"]
