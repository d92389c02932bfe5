"""The Handle protocol on TCP, on UDP and inside HTTP: transports, which move frames."""

from .server import HandleFront
from .tunnel import Tunnel
from .work import HandleLimits, Work

__all__ = ["HandleFront", "HandleLimits", "Tunnel", "Work"]
