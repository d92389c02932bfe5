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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from biaojie.change import Entry, Receipt
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    DeadlineExceeded,
    IdempotencyMismatch,
    IdempotencyRunning,
    Internal,
    OverCapacity,
    TemporarilyUnavailable,
)

from . import bulk as bulks
from .admission import Caller, Right, authorize
from .blocks import Bulk
from .bulk import BulkOutcome, Compacted, Done
from .changelog import next_entry
from .operations import CutRange, Operation, RegisterRange
from .outcomes import Outcome, make_outcome, pack, pack_bulk, unpack, unpack_bulk
from .staging import RULES_DEFAULT, Rules, Staging
from .store import ReceiptKey, Store, StoredReceipt, Transaction
from .turns import Turns

__all__ = ["Idempotency", "Mode", "Outcome", "Registrar", "Submission", "Watcher"]

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
class Alone:
    """Work on whole blocks, which has a commit to itself; it counts as `count` operations.

    `do` is given the transaction and the sequence of the entry.
    """

    count: int
    do: Callable[[Transaction, int], Awaitable[Done]]


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
    answer: Callable[[Any], None]
    wanted: bool = True
    alone: Alone | None = None

    @property
    def count(self) -> int:
        """How many operations it counts for."""
        return len(self.operations) if self.alone is None else self.alone.count


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
        future, answer = _future()
        submission = self.hand_in(
            caller, operations, answer, mode=mode, dry_run=dry_run, idempotency=idempotency
        )
        try:
            outcome: Outcome = await future
            return outcome
        finally:
            submission.wanted = False

    async def load(
        self,
        caller: Caller,
        bulk: Bulk,
        *,
        mode: Mode = "valid-rows",
        idempotency: Idempotency | None = None,
    ) -> BulkOutcome:
        """Register a chunk (`registry.blocks.cut`), whose records were checked before, in one
        commit. Names that are taken are in `refused`; in mode `all` nothing is written then.

        Raises what the caller may not do, TooLarge (send it in parts), and what `submit` does.
        """

        def do(tx: Transaction, sequence: int) -> Awaitable[Done]:
            strict = self._rules.strict_slash
            return bulks.register(
                tx, bulk, caller, sequence, whole=mode == "all", strict_slash=strict
            )

        outcome: BulkOutcome = await self._alone(caller, Alone(bulk.count, do), idempotency)
        return outcome

    async def compact(
        self, caller: Caller, prefix: str, *, before: int, after: bytes | None = None
    ) -> Compacted:
        """One short step: fold rows of the folded prefix with a suffix > `after` into blocks, as
        far as entries < `before` wrote them. For administrators."""
        authorize(caller, Right.MANAGE, None)

        def do(tx: Transaction, sequence: int) -> Awaitable[Done]:
            return bulks.compact(tx, prefix, after, before, sequence, caller.key_id)

        done: Compacted = await self._alone(caller, Alone(bulks.FOLDED_MAX, do), None)
        return done

    async def _alone(self, caller: Caller, work: Alone, idempotency: Idempotency | None) -> Any:
        future, answer = _future()
        submission = Submission(caller, (), "all", False, idempotency, None, answer, alone=work)
        # In the queue it is as much as one commit takes, however many names it has.
        self._queued(submission, self._commit_operations_max)
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
        plain = Submission(caller, operations, mode, dry_run, idempotency, None, answer)
        return self._queued(plain, len(operations))

    def _queued(self, submission: Submission, size: int) -> Submission:
        caller, idempotency = submission.caller, submission.idempotency
        side = _side(caller)
        if self._stopping or not self._queue.has_room(side, size):
            raise OverCapacity()
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
            submission.receipt_key = receipt_key
        self._queue.put(side, size, submission)
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
        operations = sum(submission.count for submission in group)
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

    async def _transact_alone(
        self, tx: Transaction, submission: Submission, work: Alone
    ) -> tuple[Entry | None, list[Any]]:
        now = int(self._clock())
        key, asked = submission.receipt_key, submission.idempotency
        loaded = await tx.load([], [key] if key else [], now)
        kept = loaded.receipts.get(key) if key else None
        if kept is not None:
            assert asked is not None
            same = kept.fingerprint == asked.fingerprint
            return None, [unpack_bulk(kept.reply) if same else IdempotencyMismatch()]
        changes, shift, answer = await work.do(tx, loaded.head[0] + 1)
        if not changes:
            return None, [answer]
        if key and isinstance(answer, BulkOutcome):
            assert asked is not None
            kept = StoredReceipt(asked.fingerprint, pack_bulk(answer), now + self._receipts_kept_s)
            await tx.put_receipts({key: kept})
            await self._sweep_receipts(tx, 1, now)
        time_ms = int(self._clock() * 1000)
        entry = await asyncio.to_thread(next_entry, loaded.head, time_ms, changes)
        await tx.append(entry, shift)
        return entry, [answer]

    async def _transact(
        self, tx: Transaction, group: list[Submission]
    ) -> tuple[Entry | None, list[Any]]:
        if group[0].alone is not None:
            return await self._transact_alone(tx, group[0], group[0].alone)
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
                answers.append(unpack(kept.reply) if same else IdempotencyMismatch())
                continue
            answer = self._apply(submission, staging)
            answers.append(answer)
            if key and isinstance(answer, Outcome) and answer.sequence:
                assert submission.idempotency is not None
                fresh[key] = StoredReceipt(
                    submission.idempotency.fingerprint, pack(answer), now + self._receipts_kept_s
                )
        if not staging.changes:
            return None, answers
        await staging.write(tx)
        if fresh:
            await tx.put_receipts(fresh)
        entry = next_entry(loaded.head, int(self._clock() * 1000), staging.changes)
        await tx.append(entry, staging.shift)
        if fresh:
            await self._sweep_receipts(tx, len(fresh), now)
        return entry, answers

    async def _sweep_receipts(self, tx: Transaction, added: int, now: int) -> None:
        """More are removed than were added, so that the expired ones cannot pile up."""
        self._receipts_since += added
        if self._receipts_since >= RECEIPTS_SWEPT:
            await tx.forget_receipts(now, 2 * self._receipts_since)
            self._receipts_since = 0

    def _apply(self, submission: Submission, staging: Staging) -> Outcome | BiaojieError:
        began = done = staging.mark()
        results: list[Receipt | BiaojieError] = []
        failed = False
        for operation in submission.operations:
            try:
                results.append(staging.apply(operation, submission.caller))
                done = staging.mark()
            except BiaojieError as error:
                staging.back_to(done)
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
            done = began
        return make_outcome(tuple(results), staging.sequence if done != began else 0, False)


def _apart(submissions: Sequence[Submission]) -> Iterator[list[Submission]]:
    """What is committed together: as much as comes, but ranges and whole blocks alone."""
    group: list[Submission] = []
    for submission in submissions:
        alone = submission.alone is not None
        if alone or isinstance(submission.operations[0], RegisterRange | CutRange):
            assert alone or len(submission.operations) == 1
            if group:
                yield group
            yield [submission]
            group = []
        else:
            group.append(submission)
    if group:
        yield group


def _future() -> tuple[asyncio.Future[Any], Callable[[Any], None]]:
    """What waits for an answer, and what gives it."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(outcome: Any) -> None:
        if future.done():
            return
        if isinstance(outcome, BiaojieError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    return future, answer


def _side(caller: Caller) -> str:
    """Who takes turns with others when more waits than one commit takes."""
    handle = caller.handle
    return caller.tenant if handle is None else f"prefix {handle.identifier.prefix}"
