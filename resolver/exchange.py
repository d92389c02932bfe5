"""The thin waist: every request of every front passes `serve` exactly once.

decode → service → encode, within a deadline. Errors become protocol codes here, metrics and
log lines are written here, and what we did not foresee shows the caller nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, Protocol, TypeVar

from biaojie.errors import BiaojieError, DeadlineExceeded, Internal

from .observe import Observer

D_contra = TypeVar("D_contra", contravariant=True)
Q = TypeVar("Q")
Q_co = TypeVar("Q_co", covariant=True)
A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Codec(Protocol[D_contra, Q_co, A_contra, R_co]):
    """One operation of one front. `encode_error` is total: it works on any data."""

    @property
    def front(self) -> str: ...

    @property
    def operation(self) -> str: ...

    def decode(self, data: D_contra) -> Q_co: ...

    def encode(self, data: D_contra, answer: A_contra) -> R_co: ...

    def encode_error(self, data: D_contra, error: BiaojieError) -> R_co: ...


async def serve(
    codec: Codec[D_contra, Q, A_contra, R_co],
    service: Callable[[Q], Awaitable[A_contra]],
    data: D_contra,
    *,
    deadline_s: float,
    observer: Observer,
    request_id: str,
    peer: str,
) -> R_co:
    started = time.perf_counter()
    outcome = "ok"
    fault: BaseException | None = None
    try:
        async with asyncio.timeout(deadline_s):
            answer = await service(codec.decode(data))
        reply = codec.encode(data, answer)
    except Exception as error:
        reply, outcome, fault = _failed(codec, data, error, request_id)
    observer.answered(
        codec.front,
        codec.operation,
        outcome,
        time.perf_counter() - started,
        request_id=request_id,
        peer=peer,
        fault=fault,
    )
    return reply


def serve_at_hand(
    codec: Codec[D_contra, Q, A_contra, R_co],
    service: Callable[[Q], A_contra | None],
    data: D_contra,
    *,
    observer: Observer,
    request_id: str,
    peer: str,
) -> R_co | None:
    """`serve` where nothing has to be waited for. None, and nothing is counted, when `service`
    gives None: the request then goes through `serve`."""
    started = time.perf_counter()
    outcome = "ok"
    fault: BaseException | None = None
    try:
        answer = service(codec.decode(data))
        if answer is None:
            return None
        reply = codec.encode(data, answer)
    except Exception as error:
        reply, outcome, fault = _failed(codec, data, error, request_id)
    observer.answered(
        codec.front,
        codec.operation,
        outcome,
        time.perf_counter() - started,
        request_id=request_id,
        peer=peer,
        fault=fault,
    )
    return reply


class Named(Protocol):
    """A request that says itself what `serve` is told of it."""

    @property
    def request_id(self) -> str: ...

    @property
    def peer(self) -> str: ...


N_contra = TypeVar("N_contra", bound=Named, contravariant=True)
N = TypeVar("N", bound=Named)
R = TypeVar("R")


async def serve_many(
    codec: Codec[N_contra, Q, A, R_co],
    service: Callable[[Sequence[Q]], Awaitable[Sequence[A | BiaojieError | None]]],
    batch: Sequence[N_contra],
    *,
    deadline_s: float,
    observer: Observer,
) -> list[R_co | None]:
    """`serve` for requests that came together: `service` is asked once for all of them and gives
    an answer or an error to each, within one deadline. A reply to each, in order; None, and
    nothing is counted, where `service` gives None: that request then goes through `serve`."""
    started = time.perf_counter()
    outcomes: list[Exception | None] = []
    questions: list[Q] = []
    for data in batch:
        try:
            questions.append(codec.decode(data))
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)
    try:
        async with asyncio.timeout(deadline_s):
            answers: Sequence[A | Exception | None] = await service(questions) if questions else ()
    except BiaojieError as error:
        answers = [error.again() for _ in questions]
    except Exception as error:
        answers = [error] * len(questions)
    given = iter(answers)
    replies: list[R_co | None] = []
    served: list[N_contra] = []
    faults: list[tuple[N_contra, str, BaseException | None]] = []
    for data, outcome in zip(batch, outcomes, strict=True):
        answer = next(given) if outcome is None else outcome
        if answer is None:
            replies.append(None)
            continue
        served.append(data)
        reply, code, fault = _told(codec, data, answer)
        replies.append(reply)
        if code != "ok":
            faults.append((data, code, fault))
    _count(codec, observer, served, faults, time.perf_counter() - started)
    return replies


class Begun(Protocol):
    """Work that goes on by itself and is answered by a call."""

    wanted: bool
    """To be cleared by who does not care for the answer any more."""


class Later:
    """Requests that somebody answers by a call instead of returning: no task, no timer and no
    context for each of them. All have the same deadline, so that they expire as they came."""

    def __init__(self, deadline_s: float, observer: Observer) -> None:
        self._deadline_s = deadline_s
        self._observer = observer
        self._waiting: deque[Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def serve(
        self,
        codec: Codec[N, Q, A, R],
        service: Callable[[Q, Callable[[A | BiaojieError], None]], Begun],
        data: N,
        send: Callable[[R | None], None],
    ) -> Waiting | None:
        """`serve`, whose reply goes to `send`: at once, and then None is returned, or once
        `service` has called what it was given, or the time is up. None is sent when the request
        was cancelled."""
        started = time.perf_counter()
        waiting = Waiting()

        def done(answer: A | Exception) -> None:
            if waiting.finish is None:
                return
            waiting.end()
            reply, outcome, fault = _told(codec, data, answer)
            self._observer.answered(
                codec.front,
                codec.operation,
                outcome,
                time.perf_counter() - started,
                request_id=data.request_id,
                peer=data.peer,
                fault=fault,
            )
            send(reply)

        waiting.finish = done
        waiting.drop = lambda: send(None)
        try:
            begun = service(codec.decode(data), done)
        except Exception as error:
            done(error)
        if waiting.finish is None:
            return None
        waiting.begun = begun
        while self._waiting and self._waiting[0].finish is None:
            self._waiting.popleft()
        loop = asyncio.get_running_loop()
        waiting.until = loop.time() + self._deadline_s
        self._waiting.append(waiting)
        if self._timer is None:
            self._timer = loop.call_at(waiting.until, self._expire, loop)
        return waiting

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._waiting:
            first = self._waiting[0]
            if first.finish is not None:
                if first.until > loop.time():
                    self._timer = loop.call_at(first.until, self._expire, loop)
                    return
                finish = first.finish
                first.give_up()
                finish(DeadlineExceeded())
            self._waiting.popleft()


class Waiting:
    """One of them. `finish` is None as soon as it has been answered."""

    __slots__ = ("begun", "drop", "finish", "until")

    def __init__(self) -> None:
        self.begun: Begun | None = None
        self.finish: Callable[[Any], None] | None = None
        self.drop: Callable[[], None] | None = None
        self.until = 0.0

    def end(self) -> None:
        """Answered. Work and answer name each other, which only the collector would undo."""
        self.begun = self.finish = self.drop = None

    def give_up(self) -> None:
        if self.begun is not None:
            self.begun.wanted = False

    def cancel(self) -> None:
        """Nobody is there any more to be answered."""
        if self.finish is not None:
            drop = self.drop
            self.give_up()
            self.end()
            assert drop is not None
            drop()


def _count(
    codec: Codec[N_contra, Q, A, R_co],
    observer: Observer,
    batch: Sequence[N_contra],
    faults: Sequence[tuple[N_contra, str, BaseException | None]],
    seconds: float,
) -> None:
    good = len(batch) - len(faults)
    if good and seconds < observer.slow_s:
        # They took that long each, not together.
        observer.tally(codec.front, codec.operation).add(seconds * good, good)
    elif good:
        failed = {id(data) for data, _, _ in faults}  # over HTTP the client says what its id is
        faults = [*((d, "ok", None) for d in batch if id(d) not in failed), *faults]
    for data, outcome, fault in faults:
        observer.answered(
            codec.front,
            codec.operation,
            outcome,
            seconds,
            request_id=data.request_id,
            peer=data.peer,
            fault=fault,
        )


def _told(
    codec: Codec[N_contra, Q, A, R_co], data: N_contra, answer: A | Exception
) -> tuple[R_co, str, BaseException | None]:
    """The reply to who was given an answer or an error, the outcome, and what belongs in the log.

    An error is not raised: with a traceback it would name the call that told it, and this call it,
    until Python's collector comes, which a flood of unknown names would keep busy.
    """
    if isinstance(answer, Exception):
        return _failed(codec, data, answer, data.request_id)
    try:
        return codec.encode(data, answer), "ok", None
    except Exception as error:
        return _failed(codec, data, error, data.request_id)


def _failed(
    codec: Codec[D_contra, Q, A_contra, R_co], data: D_contra, error: Exception, request_id: str
) -> tuple[R_co, str, BaseException | None]:
    """The reply, the outcome for the metrics, and what belongs in the log."""
    fault: BaseException | None = None
    if isinstance(error, BiaojieError):
        refusal, fault = error, error if isinstance(error, Internal) else None
    elif isinstance(error, TimeoutError):
        refusal = DeadlineExceeded()
    else:
        refusal, fault = Internal(), error
    refusal.request_id = request_id
    return codec.encode_error(data, refusal), refusal.code, fault


# Request ids ----------------------------------------------------------------------------

REQUEST_ID_BLOCK = 4_096
"""Ids in one block: three of the sixteen hexadecimal digits."""
_IDS = 2**63
_BLOCKS = 2**51
_ids = count(secrets.randbelow(_IDS))
_blocks = count(secrets.randbelow(_BLOCKS))


def new_request_id() -> str:
    """They count on from where chance put this process: nobody else's, but no secret."""
    return f"{next(_ids) % _IDS:016x}"


def request_id_block() -> str:
    """The first thirteen digits of ids for the asker alone, of another half than those."""
    return f"{_BLOCKS + next(_blocks) % _BLOCKS:013x}"


def _elsewhere() -> None:
    global _ids, _blocks
    _ids, _blocks = count(secrets.randbelow(_IDS)), count(secrets.randbelow(_BLOCKS))


os.register_at_fork(after_in_child=_elsewhere)  # two processes must not count the same ids
