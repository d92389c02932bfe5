"""The fronts of a node as the generator sees them: how a question is written, where an answer
ends, what it says. Nothing is measured here and nothing judged.

A Wire is pure octets. Links move them: stream.py over TCP and Unix sockets, datagram.py over UDP.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from ..names import Found

RECORD: Final = ""
"""`Answer.code` of a record; others are the node's own codes, or the bench's below."""
ABSENT: Final = "identifier-not-found"
REFUSED: Final = frozenset({"over-capacity", "too-many-requests"})
LOST: Final = "lost"
"""No answer within the time a question has, or the connection went."""
UNREADABLE: Final = "unreadable"
CUT: Final = "cut"
"""A Handle answer over UDP that says: ask over TCP."""


class Answer(NamedTuple):
    """`id`: of the question answered; None where answers come in the order of the questions.
    `body`: the octets that say what was found, the same for the same record. `source`: where
    the node says it had it from, or empty."""

    id: int | None
    code: str
    body: bytes
    source: str


class Wire(Protocol):
    def question(self, id_: int, name: str, authoritative: bool) -> bytes: ...

    def found(self, body: bytes) -> Found:
        """What the body of a RECORD answer says; raises ValueError or BiaojieError."""
        ...


class StreamWire(Wire, Protocol):
    ordered: bool
    """Answers come in the order of the questions, and have no id."""

    def greeting(self) -> bytes:
        """What a connection begins with, if anything; it has one answer, of id 0."""
        ...

    def answers(self, buffer: bytearray) -> list[Answer]:
        """Take whole answers off the front of `buffer`. Raises ValueError where it is no such
        stream."""
        ...


class DatagramWire(Wire, Protocol):
    def answer(self, packet: bytes) -> Answer | None:
        """The answer that a packet is or completes."""
        ...
