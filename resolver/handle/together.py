"""Plain resolutions that come in the same turn of the loop are asked for and answered together.

A task, two deadlines and a message object for each of them cost several times what the look-up
does. Rules: an answer is, octet by octet, the one of the ordinary path (operations.py); whatever
needs more than the public record goes that way with the same octets, and is not counted here;
nobody waits for a look-up that brings nothing he asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from biaojie.errors import BiaojieError, Elsewhere, InvalidIdentifier
from biaojie.identifier import fold_prefix
from biaojie.wire.handle import (
    ENVELOPE_OCTETS,
    HEADER_OCTETS,
    Malformed,
    OpFlag,
    Oversized,
    ResolveRequest,
    ResponseCode,
    asked_for,
)
from biaojie.wire.handle.bodies import resolve_all
from biaojie.wire.handle.cursor import Reader
from biaojie.wire.handle.message import encode_plain_answer
from biaojie.wire.handle.values import encode_values
from biaojie.wire.handle.version import MAJORS
from registry.handle_rights import PREFIXES

from ..core import Source
from ..exchange import new_request_id, serve_at_hand, serve_many
from ..gathered import Soon
from ..observe import Observer
from ..query import Query, Resolution, make_query
from ..service import Service
from .asked import identifier_of
from .exchange import expiration_of, failure_of, too_long
from .lane import HandleLane, is_plain
from .resolution import nothing_to_read

_BODY: Final = ENVELOPE_OCTETS + HEADER_OCTETS
_NO_LISTS: Final = bytes(8)
T = TypeVar("T")


@dataclass(slots=True)
class Plain:
    """A resolution that the public record may answer; `body` and `query` are what `frame` says."""

    frame: bytes
    peer: str
    request_id: str
    body: ResolveRequest
    query: Query


def may_be_plain(frame: bytes) -> bool:
    """Whether to ask `read_plain`: it is a whole resolution without any proof."""
    return is_plain(frame) and frame[0] in MAJORS


def read_plain(frame: bytes, peer: str) -> Plain | None:
    """None where the ordinary path has to look at it after all."""
    end = _BODY + int.from_bytes(frame[40:44], "big")
    try:
        body = _read_body(frame, end)
        identifier = identifier_of(body.handle)
    except (Malformed, InvalidIdentifier):
        return None
    if body.token or body.trailing or fold_prefix(identifier.prefix) == PREFIXES:
        return None
    return Plain(frame, peer, new_request_id(), body, make_query(identifier))


def _read_body(frame: bytes, end: int) -> ResolveRequest:
    handle_end = _BODY + 4 + int.from_bytes(frame[_BODY : _BODY + 4], "big")
    if frame[handle_end:end] == _NO_LISTS:  # as most are
        try:
            return resolve_all(frame[_BODY + 4 : handle_end].decode())
        except UnicodeDecodeError:
            raise Malformed(_BODY, "a handle in UTF-8") from None
    return ResolveRequest.read(Reader(frame, _BODY, end))


class Together:
    """What the gatherings of all transports are made of. `site_serial` is the node's own."""

    def __init__(
        self,
        service: Service,
        observer: Observer,
        lane: HandleLane | None,
        site_serial: Callable[[], int],
        deadline_s: float,
    ) -> None:
        self.service = service
        self.observer = observer
        self.lane = lane
        self.site_serial = site_serial
        self.deadline_s = deadline_s


class Gathering(Generic[T]):
    """Those of one transport. `deliver` is given, when some of them are done, to whom each answer
    goes; the answers themselves, None where the ordinary path has to make it and no octets where
    there is none; and how long it took. `running` have been taken and not delivered."""

    def __init__(
        self,
        transport: str,
        together: Together,
        deliver: Callable[[Sequence[T], Sequence[bytes | None], float], None],
    ) -> None:
        self.front = f"handle-{transport}"
        self.operation = "resolution"
        self.running = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._with = together
        self._service = together.service
        self._deliver = deliver
        self._gathered: list[tuple[Plain, T]] = []
        self._since = 0.0
        self._soon = Soon(self._ask, self.tasks)

    def at_hand(self, asked: Plain) -> bytes | None:
        """The answer where nothing has to be waited for."""
        if not self._service.knows(asked.query):
            return None
        return serve_at_hand(
            self,
            self._kept,
            asked,
            observer=self._with.observer,
            request_id=asked.request_id,
            peer=asked.peer,
        )

    def take(self, asked: Plain, to: T) -> None:
        """Ask for it together with all that come soon."""
        if not self._gathered:
            self._since = time.monotonic()
            self._soon.begin()
        self._gathered.append((asked, to))
        self.running += 1

    def _ask(self) -> None:
        gathered, self._gathered = self._gathered, []
        for part in self._service.parts(gathered, _query):
            task = asyncio.create_task(self._answer(part, self._since))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _answer(self, gathered: Sequence[tuple[Plain, T]], since: float) -> None:
        replies: Sequence[bytes | None] = [b""] * len(gathered)
        try:
            replies = await serve_many(
                self,
                self._resolve,
                [asked for asked, _ in gathered],
                deadline_s=self._with.deadline_s,
                observer=self._with.observer,
            )
        finally:
            self.running -= len(gathered)
            self._deliver([to for _, to in gathered], replies, time.monotonic() - since)

    async def stop(self, drain_s: float) -> None:
        """Wait for all that were taken, for `drain_s` seconds at most, then for no more."""
        if self._gathered:
            self._ask()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=drain_s)
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    # What is asked of the service --------------------------------------------------------

    def _kept(self, asked: Plain) -> Resolution | None:
        found = self._service.at_hand(asked.query)
        return None if found is None or _hides(asked, found) else found

    async def _resolve(self, asked: Sequence[Plain]) -> list[Resolution | BiaojieError | None]:
        queries = [one.query for one in asked]
        found = await self._service.resolve_public(queries, say_where=False)
        return [
            None if isinstance(outcome, Elsewhere) or _hides(one, outcome) else outcome
            for one, outcome in zip(asked, found, strict=True)
        ]

    # The codec ----------------------------------------------------------------------------

    def decode(self, data: Plain) -> Plain:
        return data

    def encode(self, data: Plain, answer: Resolution) -> bytes:
        asked = data.body
        values = asked_for(answer.record.values, asked.indexes, asked.types)
        if not values:
            raise nothing_to_read(data.query.identifier)
        frame = data.frame
        handle_end = _BODY + 4 + int.from_bytes(frame[_BODY : _BODY + 4], "big")
        flags = OpFlag.AUTHORITATIVE if answer.source is Source.STORE else 0
        try:
            reply = encode_plain_answer(
                frame,
                frame[_BODY:handle_end] + encode_values(values),
                ResponseCode.SUCCESS,
                flags,
                self._with.site_serial(),
                expiration_of(answer.ttl_s, 0, int(time.time())),
            )
        except Oversized:
            return self.encode_error(data, too_long())
        if answer.entry is not None and self._with.lane is not None:
            self._with.lane.learn(frame, reply, answer.entry)
        return reply

    def encode_error(self, data: Plain, error: BiaojieError) -> bytes:
        failure, code = failure_of(error)
        wanted = int.from_bytes(data.frame[36:40], "big")
        return encode_plain_answer(
            data.frame,
            failure.encode(),
            code,
            OpFlag.AUTHORITATIVE,
            self._with.site_serial(),
            expiration_of(None, wanted, int(time.time())),
        )


def _query(gathered: tuple[Plain, object]) -> Query:
    return gathered[0].query


def _hides(asked: Plain, found: Resolution | BiaojieError) -> bool:
    """Whether values that were asked for may exist that only some may read."""
    if isinstance(found, BiaojieError) or found.whole:
        return False
    return not int.from_bytes(asked.frame[28:32], "big") & OpFlag.PUBLIC_ONLY
