"""Who sent a message, and what answers it: the seam between the transports and the operations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(slots=True, eq=False)
class Peer:
    """The sender of one datagram or HTTP request, or one TCP connection for all its life.

    `address` is the IP in text. `verified` says that the source is no forgery: true on TCP and
    HTTP from the start; over UDP whoever has seen a secret come back that only this address was
    told (a nonce, used once) may set it, and the answer may then be of any length. `scope` is
    what a login on the connection is tied to: one object for the life of a TCP connection, None
    where there is none. `logged_in`: what comes in session 0, else nobody's, is a user's.
    """

    address: str
    transport: Literal["udp", "tcp", "http"]
    verified: bool
    scope: object = None
    logged_in: bool = False


class Answerer(Protocol):
    """What transports hand frames to."""

    def answer(self, frame: bytes, peer: Peer) -> AsyncIterator[bytes]:
        """The whole messages that answer a frame: one, or several where more follow (CN), or
        none where the frame is no request. Never raises; ends within a deadline of its own,
        the time aside that the transport takes between two messages."""
        ...

    def forget(self, peer: Peer) -> None:
        """The connection is gone."""
        ...
