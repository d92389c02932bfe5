"""The one write path: every change to the registry goes through `Registrar.submit`.

Concurrent submissions share a transaction (group commit without a timer: the next group
leaves when the last has returned). Each commit appends one change-log entry. An answer means
the change is on disk. A submission that fails leaves nothing behind and harms no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgpack

from biaojie.change import Action, Entry, Receipt
from biaojie.errors import (
    ERRORS,
    BatchRejected,
    BiaojieError,
    DeadlineExceeded,
    IdempotencyMismatch,
    IdempotencyRunning,
    Internal,
    OverCapacity,
    TemporarilyUnavailable,
)
from biaojie.making import maker

from .admission import Caller
from .changelog import next_entry
from .operations import CutRange, Operation, RegisterRange
from .staging import RULES_DEFAULT, Rules, Staging
from .store import ReceiptKey, Store, StoredReceipt, Transaction
from .turns import Turns

RECEIPTS_SWEPT = 256
"""Expired receipts are removed each time this many new ones have been kept."""
Mode = Literal["all", "valid-rows"]
log = logging.getLogger("biaojie.registrar")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The caller's key for this request and the SHA-256 of the request itself."""

    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """One result per operation, in order. `sequence` is 0 when nothing was written."""

    results: tuple[Receipt | BiaojieError, ...]
    sequence: int
    replayed: bool = False

    def single(self) -> Receipt:
        """The receipt of the only operation; raises its error."""
        (result,) = self.results
        if isinstance(result, BiaojieError):
            raise result
        return result


_make_outcome = maker(Outcome)


@dataclass(eq=False, slots=True)
class Submission:
    """What was handed in. `answer` is called once, unless `wanted` is cleared before: what still
    waits for a commit is then not done at all, what is in one is, and nobody is told."""

    caller: Caller
    operations: Sequence[Operation]
    mode: Mode
    dry_run: bool
    idempotency: Idempotency | None
    receipt_key: ReceiptKey | None
    answer: Callable[[Outcome | BiaojieError], None]
    wanted: bool = True


class Watcher(Protocol):
    """Told how each commit went: operations in it, seconds it took, whether it succeeded."""

    def committed(self, operations: int, seconds: float, ok: bool) -> None: ...


class Registrar:
    """Shared by all front ends of a process. `start()` before use, `stop()` drains.

    `queue_operations_max` bounds what waits for a commit (beyond: OverCapacity; see `Turns`),
    `commit_operations_max` what one commit takes; `commit_timeout_s` bounds a commit.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_commit: Callable[[Entry], None] = lambda entry: None,
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.time,
        rules: Rules = RULES_DEFAULT,
        queue_operations_max: int = 20_000,
        commit_operations_max: int = 4_000,
        commit_timeout_s: float = 8.0,
        receipts_kept_s: int = 2 * 86_400,
    ) -> None:
        self._store = store
        self._on_commit = on_commit
        self._watcher = watcher
        self._clock = clock
        self._rules = rules
        self._commit_operations_max = commit_operations_max
        self._commit_timeout_s = commit_timeout_s
        self._receipts_kept_s = receipts_kept_s
        self._queue: Turns[Submission] = Turns(queue_operations_max)
        self._running: dict[ReceiptKey, bytes] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._receipts_since = 0
        """Receipts kept since expired ones were last removed."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="registrar")

    async def stop(self) -> None:
        """Commit what is queued, refuse what comes, end the task."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def submit(
        self,
        caller: Caller,
        operations: Sequence[Operation],
        *,
        mode: Mode = "all",
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Outcome:
        """Do the operations (1 to `commit_operations_max`) in one transaction; their results.

        Mode `all`: any error means nothing is written and BatchRejected is raised (with one
        operation: its own error). Mode `valid-rows`: the good ones are written. A dry run
        decides everything and writes nothing. Raises OverCapacity, IdempotencyMismatch,
        IdempotencyRunning, TemporarilyUnavailable, StorageFull.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def answer(outcome: Outcome | BiaojieError) -> None:
            if future.done():
                return
            if isinstance(outcome, BiaojieError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        submission = self.hand_in(
            caller, operations, answer, mode=mode, dry_run=dry_run, idempotency=idempotency
        )
        try:
            return await future
        finally:
            submission.wanted = False

    def hand_in(
        self,
        caller: Caller,
        operations: Sequence[Operation],
        answer: Callable[[Outcome | BiaojieError], None],
        *,
        mode: Mode = "all",
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Submission:
        """As `submit`, but `answer` is called with what that returns or raises. It comes in a
        later turn of the loop, and soon after the commit: the next one has begun by then.
        Raises at once what can be said at once: OverCapacity, IdempotencyMismatch,
        IdempotencyRunning."""
        assert 0 < len(operations) <= self._commit_operations_max
        side = _side(caller)
        if self._stopping or not self._queue.has_room(side, len(operations)):
            raise OverCapacity()
        receipt_key: ReceiptKey | None = None
        if idempotency is not None:
            receipt_key = ReceiptKey(caller.key_id, idempotency.key)
            running = self._running.get(receipt_key)
            if running is not None:
                raise (
                    IdempotencyRunning()
                    if running == idempotency.fingerprint
                    else IdempotencyMismatch()
                )
            self._running[receipt_key] = idempotency.fingerprint
        submission = Submission(caller, operations, mode, dry_run, idempotency, receipt_key, answer)
        self._queue.put(side, len(operations), submission)
        self._wake.set()
        return submission

    # The commit loop --------------------------------------------------------------------

    async def _run(self) -> None:
        groups: deque[list[Submission]] = deque()
        try:
            while not self._stopping or self._queue:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    groups.extend(_apart(self._take()))
                    while groups:
                        await self._commit(groups.popleft())
        finally:
            # Empty unless this task was cancelled: nobody may wait for what will never come.
            self._stopping = True
            for group in groups:
                self._answer(group, TemporarilyUnavailable())
            while self._queue:
                self._answer(self._take(), TemporarilyUnavailable())

    def _take(self) -> list[Submission]:
        group = []
        for submission in self._queue.take(self._commit_operations_max):
            if not submission.wanted:  # its caller gave up while it waited
                self._forget(submission)
            else:
                group.append(submission)
        return group

    def _forget(self, submission: Submission) -> None:
        receipt_key = submission.receipt_key
        if receipt_key is not None:
            self._running.pop(receipt_key, None)

    async def _commit(self, group: list[Submission]) -> None:
        started = time.perf_counter()
        entry: Entry | None = None
        answers: list[Outcome | BiaojieError] = []
        failure: BiaojieError | None = None
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                async with self._store.transaction() as tx:
                    entry, answers = await self._transact(tx, group)
        except BiaojieError as error:
            failure = error
        except TimeoutError:
            failure = DeadlineExceeded()
        except Exception:
            # Not the store's absence but our own mistake, or something it cannot keep.
            log.exception("commit failed")
            failure = Internal()
        except BaseException:
            self._answer(group, TemporarilyUnavailable(outcome="unknown"))
            raise
        self._tell(group, time.perf_counter() - started, failure, entry)
        if isinstance(failure, Internal) and len(group) > 1:
            # Nothing was written. One of them did this; the others must not suffer for it.
            for submission in group:
                await self._commit([submission])
        else:
            # Later: while they are told, the next commit is on its way.
            asyncio.get_running_loop().call_soon(self._answer, group, failure, answers)

    def _tell(
        self,
        group: list[Submission],
        seconds: float,
        failure: BiaojieError | None,
        entry: Entry | None,
    ) -> None:
        operations = sum(len(submission.operations) for submission in group)
        try:
            # Caches forget first: whoever is told of the change must not read the old state.
            if failure is None and entry is not None:
                self._on_commit(entry)
            if self._watcher is not None:
                self._watcher.committed(operations, seconds, failure is None)
        except Exception:  # the change is on disk all the same, and others wait for theirs
            log.exception("a listener failed")

    def _answer(
        self,
        group: Sequence[Submission],
        failure: BiaojieError | None,
        answers: Sequence[Outcome | BiaojieError] = (),
    ) -> None:
        for number, submission in enumerate(group):
            self._forget(submission)
            if not submission.wanted:
                continue
            answer = failure or answers[number]
            try:
                # One exception object per caller: tracebacks and request ids are not shared.
                submission.answer(answer.again() if isinstance(answer, BiaojieError) else answer)
            except Exception:  # others wait for theirs
                log.exception("a caller could not be answered")

    async def _transact(
        self, tx: Transaction, group: list[Submission]
    ) -> tuple[Entry | None, list[Outcome | BiaojieError]]:
        now = int(self._clock())
        asked = [(submission.caller, op) for submission in group for op in submission.operations]
        wanted = [key for submission in group if (key := submission.receipt_key)]
        staging, loaded = await Staging.load(tx, asked, wanted, self._rules, now)
        answers: list[Outcome | BiaojieError] = []
        fresh: dict[ReceiptKey, StoredReceipt] = {}
        for submission in group:
            key = submission.receipt_key
            kept = loaded.receipts.get(key) if key else None
            if kept is not None:
                assert submission.idempotency is not None
                same = kept.fingerprint == submission.idempotency.fingerprint
                answers.append(_unpack(kept.reply) if same else IdempotencyMismatch())
                continue
            answer = self._apply(submission, staging)
            answers.append(answer)
            if key and isinstance(answer, Outcome) and answer.sequence:
                assert submission.idempotency is not None
                fresh[key] = StoredReceipt(
                    submission.idempotency.fingerprint, _pack(answer), now + self._receipts_kept_s
                )
        if not staging.changes:
            return None, answers
        await staging.write(tx)
        if fresh:
            await tx.put_receipts(fresh)
        entry = next_entry(loaded.head, int(self._clock() * 1000), staging.changes)
        await tx.append(entry)
        # More are removed than were added, so that the expired ones cannot pile up.
        self._receipts_since += len(fresh)
        if self._receipts_since >= RECEIPTS_SWEPT:
            await tx.forget_receipts(now, 2 * self._receipts_since)
            self._receipts_since = 0
        return entry, answers

    def _apply(self, submission: Submission, staging: Staging) -> Outcome | BiaojieError:
        began = staging.mark()
        results: list[Receipt | BiaojieError] = []
        failed = False
        for operation in submission.operations:
            mark = staging.mark()
            try:
                results.append(staging.apply(operation, submission.caller))
            except BiaojieError as error:
                staging.back_to(mark)
                failed = True
                results.append(error)
            except Exception:
                log.exception("operation failed")
                staging.back_to(began)
                return Internal()
        if failed and submission.mode == "all":
            staging.back_to(began)
            if len(results) == 1 and isinstance(results[0], BiaojieError):
                return results[0]
            return BatchRejected(results=tuple(results))
        if submission.dry_run:
            staging.back_to(began)
        written = staging.mark() != began
        return _make_outcome(tuple(results), staging.sequence if written else 0, False)


def _apart(submissions: Sequence[Submission]) -> Iterator[list[Submission]]:
    """What is committed together: as much as comes, but each range operation by itself."""
    group: list[Submission] = []
    for submission in submissions:
        if isinstance(submission.operations[0], RegisterRange | CutRange):
            assert len(submission.operations) == 1
            if group:
                yield group
            yield [submission]
            group = []
        else:
            group.append(submission)
    if group:
        yield group


def _side(caller: Caller) -> str:
    """Who takes turns with others when more waits than one commit takes."""
    handle = caller.handle
    return caller.tenant if handle is None else f"prefix {handle.identifier.prefix}"


def _pack(outcome: Outcome) -> bytes:
    packed: bytes = msgpack.packb(
        [
            outcome.sequence,
            [
                [r.code, r.detail.en, r.detail.zh]
                if isinstance(r, BiaojieError)
                else [r.identifier, r.action.value, str(r.status), r.version, r.sequence]
                for r in outcome.results
            ],
        ]
    )
    return packed


def _unpack(reply: bytes) -> Outcome:
    sequence, rows = msgpack.unpackb(reply)
    return Outcome(
        tuple(
            ERRORS[row[0]](row[1], row[2])
            if len(row) == 3
            else Receipt(row[0], Action(row[1]), row[2], row[3], row[4])
            for row in rows
        ),
        sequence,
        replayed=True,
    )
