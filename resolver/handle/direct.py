"""Writes in a session that has proved whose it is, answered by a call: no task, no timer, no
message object and no generator for each.

    write = writes.read(frame, peer)         None: the ordinary path has to look at it
    waiting = writes.begin(write, send)      None: it has been answered at once

Rules: the answer is, octet by octet, the one of the ordinary path (operations.py); what has to ask
for anything before the registrar has it, would be refused for who sent it, or wants more than a
plain answer goes that way with the same octets, and is not counted here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from biaojie.errors import BiaojieError, DeadlineExceeded, Elsewhere, Internal, PrefixNotHere
from biaojie.wire.handle import (
    ENVELOPE_OCTETS,
    HEADER_OCTETS,
    HandleRequest,
    Malformed,
    OpCode,
    OpFlag,
    RemoveRequest,
    ValuesRequest,
)
from biaojie.wire.handle.cursor import Reader
from biaojie.wire.handle.message import encode_plain_answer
from registry.admission import Caller
from registry.registrar import Submission

from ..exchange import Later, Waiting, new_request_id
from ..observe import Observer
from ..service import Service
from .asked import Answered
from .exchange import expiration_of, failure_of, operation_of
from .peer import Peer
from .proving import Proving
from .resolution import Resolution
from .sessions import Sessions
from .writing import Writing

Read = Callable[[Reader], ValuesRequest | HandleRequest | RemoveRequest]
_BODY: Final = ENVELOPE_OCTETS + HEADER_OCTETS
_BODIES: Final[dict[bytes, tuple[OpCode, Read]]] = {
    opcode.to_bytes(4, "big") + bytes(4): (opcode, read)
    for opcode, read in (
        (OpCode.CREATE_HANDLE, ValuesRequest.read),
        (OpCode.DELETE_HANDLE, HandleRequest.read),
        (OpCode.ADD_VALUE, ValuesRequest.read),
        (OpCode.REMOVE_VALUE, RemoveRequest.read),
        (OpCode.MODIFY_VALUE, ValuesRequest.read),
        (OpCode.UNHOME_PREFIX, HandleRequest.read),
    )
}
"""By opcode and response code: what is read here, and how."""
_MARKS: Final = 0xE0
"""Compressed, encrypted, truncated."""
_MORE: Final = OpFlag.CERTIFY | OpFlag.ENCRYPT | OpFlag.REQUEST_DIGEST | OpFlag.CONTINUOUS
"""Who sets one of these wants more than a plain answer, or says something unusual."""
Tell = Callable[[Answered | BiaojieError], None]


@dataclass(slots=True, eq=False)
class DirectWrite:
    """What `frame` says, and who says it."""

    frame: bytes
    caller: Caller
    peer: str
    request_id: str
    opcode: OpCode
    flags: int
    body: ValuesRequest | HandleRequest | RemoveRequest


class DirectWrites:
    """Those of all connections. `site_serial` is the node's own."""

    def __init__(
        self,
        service: Service,
        writing: Writing,
        resolution: Resolution,
        sessions: Sessions,
        proving: Proving,
        site_serial: Callable[[], int],
        observer: Observer,
        deadline_s: float,
    ) -> None:
        self._service = service
        self._writing = writing
        self._resolution = resolution
        self._sessions = sessions
        self._proving = proving
        self._codecs = {opcode: _Codec(opcode, site_serial) for opcode, _ in _BODIES.values()}
        self._deadline_s = deadline_s
        self._later = Later(deadline_s, observer)
        self._referring: set[asyncio.Task[None]] = set()

    def read(self, frame: bytes, peer: Peer) -> DirectWrite | None:
        """`frame` is whole. None where it is none of these, or not for certain; nothing has
        changed then."""
        known = _BODIES.get(frame[20:28])
        if known is None or frame[2] & _MARKS:
            return None
        number, flags = int.from_bytes(frame[4:8], "big"), int.from_bytes(frame[28:32], "big")
        if not number or flags & _MORE:
            return None
        session = self._sessions.find(peer.scope, number)
        if session is None:
            return None
        end = _BODY + int.from_bytes(frame[40:44], "big")
        if end > len(frame):
            return None
        opcode, read = known
        try:
            reader = Reader(frame, _BODY, end)
            body = read(reader)
            reader.done("the body")
        except Malformed:
            return None
        caller = self._proving.vouched(frame, end, session)  # last: a MAC is used up by this
        if caller is None:
            return None
        return DirectWrite(frame, caller, peer.address, new_request_id(), opcode, flags, body)

    def begin(self, write: DirectWrite, send: Callable[[bytes | None], None]) -> Waiting | None:
        """`send` is given the answer; None when `write` was cancelled."""
        return self._later.serve(self._codecs[write.opcode], self._hand_in, write, send)

    def _hand_in(self, write: DirectWrite, done: Tell) -> Submission:
        self._service.admit(write.caller)

        def tell(answer: Answered | BiaojieError) -> None:
            if not isinstance(answer, Elsewhere):
                done(answer)
            elif write.flags & OpFlag.DO_NOT_REFER:
                done(PrefixNotHere())
            else:
                task = asyncio.get_running_loop().create_task(self._refer(answer, done))
                self._referring.add(task)
                task.add_done_callback(self._referring.discard)

        return self._writing.begin(write.caller, write.opcode, write.flags, write.body, tell)

    async def _refer(self, elsewhere: Elsewhere, done: Tell) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                answer: Answered | BiaojieError = await self._resolution.refer(elsewhere)
        except BiaojieError as error:
            answer = error
        except TimeoutError:
            answer = DeadlineExceeded()
        except Exception as error:
            answer = Internal()
            answer.__cause__ = error
        done(answer)


class _Codec:
    """What `Later` is told of one operation."""

    def __init__(self, opcode: OpCode, site_serial: Callable[[], int]) -> None:
        self.front = "handle-tcp"
        self.operation = operation_of(opcode)
        self._site_serial = site_serial

    def decode(self, data: DirectWrite) -> DirectWrite:
        return data

    def encode(self, data: DirectWrite, answer: Answered) -> bytes:
        wanted = int.from_bytes(data.frame[36:40], "big")
        return encode_plain_answer(
            data.frame,
            answer.body.encode(),
            answer.code,
            answer.flags | (OpFlag.AUTHORITATIVE if answer.fresh else 0),
            self._site_serial(),
            expiration_of(answer.ttl_s, wanted, int(time.time())),
        )

    def encode_error(self, data: DirectWrite, error: BiaojieError) -> bytes:
        return self.encode(data, Answered(*failure_of(error)))
