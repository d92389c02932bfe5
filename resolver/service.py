"""What the node does, in the words of the domain. Every front calls this and nothing below.

Reads by the public go through the resolver's steps; reads by callers with rights go straight
to the registry. Writes go to the registrar. Rights are decided by `registry.admission` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from biaojie.account import ApiKey, Prefix, Role
from biaojie.change import Entry
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    IdentifierNotFound,
    IdentifierRetired,
    NotFound,
    OverCapacity,
    PrefixNotHere,
    TemporarilyUnavailable,
    Unauthenticated,
)
from biaojie.identifier import Identifier, Key, fold_prefix
from biaojie.record import Record, Status
from biaojie.wire.handle.typed import AdminRight
from registry.accounts import new_key
from registry.admission import PUBLIC, Caller, Right, allows, authorize, elsewhere
from registry.blocks import Bulk
from registry.bulk import BulkOutcome
from registry.changelog import part_of, subject_prefix
from registry.handle_rights import admins, groups_of, held, prefix_identifier
from registry.operations import Operation
from registry.registrar import Idempotency, Mode, Outcome, Registrar, Submission
from registry.statistics import Report, Scope
from registry.store import Found, Store

from . import statistics
from .callers import Callers
from .core import Answer, Resolver, Source
from .overload import Quotas
from .query import Query, Resolution, select, shown
from .ranges import Ranges
from .search import Findings, Question, Search
from .steps.local import LocalStep
from .steps.referral import ReferralStep
from .tail import Tail

if TYPE_CHECKING:
    from .imports import Imports

T = TypeVar("T")
ROWS_CHARGED = 100
"""A batch costs its tenant one request more for so many rows."""
REPLY_BYTES_MAX = 4 * 2**20
"""Value octets in one page or multi-answer, beyond which it is cut."""
PAGE_CHANGES_MAX = 5_000
NAMES_MAX = 1_000
"""Names asked for in one query."""
GATHERED_MAX = 512
"""Names asked for in one go: as many as one look-up takes."""
RESOLVING_MAX = 256
"""Identifiers of one multi-answer that are looked up at a time: each takes a task."""


class Service:
    def __init__(
        self,
        store: Store,
        registrar: Registrar,
        resolver: Resolver,
        local: LocalStep,
        tail: Tail,
        *,
        referral: ReferralStep | None = None,
        case_sensitive: bool = False,
        watchers_max: int = 256,
        tenant_rate_max: int = 0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._registrar = registrar
        self._resolver = resolver
        self._local = local
        self._tail = tail
        self._referral = referral or ReferralStep(store)
        self._search = Search(store)
        self.ranges = Ranges(store, case_sensitive=case_sensitive)
        self._case_sensitive = case_sensitive
        self._watchers_max = watchers_max
        self._watchers = 0
        self._clock = clock
        self._monotonic = monotonic
        self.imports: Imports | None = None
        """Set where files can be imported."""
        self.callers = Callers(local, monotonic=monotonic)
        self.quotas = Quotas(tenant_rate_max, monotonic)

    # Who asks ---------------------------------------------------------------------------

    async def authenticate(self, key: str | None, peer: str) -> Caller:
        """See Callers."""
        return await self.callers.authenticate(key, peer)

    def admit(self, caller: Caller) -> None:
        """Every front says so once for each request, when it knows who asks. Raises
        TooManyRequests when the caller's tenant has used up its rate."""
        if tenant := self.charged(caller):
            wait_s = self.quotas.take(tenant)
            if wait_s:
                raise self.quotas.refusal(wait_s)

    def charged(self, caller: Caller) -> str:
        """On whose quota a request of this caller counts; "" where on nobody's."""
        return _charged(caller) if self.quotas.rate_max else ""

    def tenant_of(self, key: str | None) -> str:
        """Who is charged for what is asked with this key, as far as that is known without asking
        the registry; "" if nobody is."""
        caller = self.callers.lately(key)
        return "" if caller is None else _charged(caller)

    def left(self, caller: Caller) -> int | None:
        """How much of its rate the caller's tenant has left; None where there is no limit."""
        tenant = self.charged(caller)
        return self.quotas.left(tenant) if tenant else None

    # Resolving --------------------------------------------------------------------------

    async def resolve(self, query: Query, caller: Caller = PUBLIC) -> Resolution:
        """The values asked for that this caller may read.

        Raises IdentifierNotFound, IdentifierRetired, PrefixNotHere, PrefixSuspended, Elsewhere,
        TemporarilyUnavailable, OverCapacity.
        """
        key = query.key(case_sensitive=self._case_sensitive)
        if not caller.is_public or query.authoritative:
            try:
                prefix, record = await self._local.fetch(key)
            except (TemporarilyUnavailable, OverCapacity):
                if query.authoritative:
                    raise
            else:
                if prefix is not None and allows(
                    caller,
                    Right.READ_PRIVATE,
                    prefix.tenant,
                    needs=AdminRight.AUTHORIZED_READ,
                    holds=await self._holds(caller, key.prefix, record),
                ):
                    if prefix.status.elsewhere:
                        raise elsewhere(prefix)
                    if record is None:
                        raise IdentifierNotFound()
                    if record.status is Status.RETIRED:
                        raise IdentifierRetired()
                    view = select(record.readable(), query)
                    return Resolution(view, Source.STORE, 0, record.ttl_s(self._clock()), True)
                if query.authoritative:
                    return await self._public(self._local.answer(prefix, record), query, key)
        return await self._public(await self._resolver.resolve(key), query, key)

    def knows(self, query: Query) -> bool:
        """Whether it is worth while to ask `at_hand`: most often what tells that costs less."""
        return self._resolver.knows(query.key(case_sensitive=self._case_sensitive))

    def at_hand(self, query: Query) -> Resolution | None:
        """What the public gets without waiting, as `resolve` would answer; None where that has
        to be asked for."""
        if query.authoritative:
            return None
        key = query.key(case_sensitive=self._case_sensitive)
        answer = self._resolver.at_hand(key)
        return None if answer is None else shown(answer, query)

    def is_coming(self, query: Query) -> bool:
        """Whether the public's answer to it is on its way already."""
        return not query.authoritative and self.flight(query) is not None

    def flight(self, query: Query) -> object | None:
        """What brings the public's answer, if it is on its way already: who waits for one name of
        it waits for all of them. None of these may be authoritative."""
        return self._resolver.flight(query.key(case_sensitive=self._case_sensitive))

    def parts(self, asked: Sequence[T], query: Callable[[T], Query]) -> Iterator[Sequence[T]]:
        """What came together, in parts to ask for with `resolve_public`: none so large that it
        takes two look-ups, nor waiting for what another asked for earlier, be that slow or not."""
        flights: dict[object | None, list[T]] = {}
        for one in asked:
            flights.setdefault(self.flight(query(one)), []).append(one)
        for part in flights.values():
            for at in range(0, len(part), GATHERED_MAX):
                yield part[at : at + GATHERED_MAX]

    async def _holds(self, caller: Caller, prefix: str, record: Record | None = None) -> int:
        """AdminRight bits of a Handle identity on a record and its prefix; 0 for others."""
        if caller.handle is None:
            return 0
        home = prefix_identifier(prefix).key(case_sensitive=self._case_sensitive)
        above = (await self._local.fetch(home)).record
        named = [reference for _, reference in admins(record) + admins(above)]
        groups = await groups_of(caller.handle, named, self._fetch_all)
        return held(caller.handle, groups, record, above)

    async def _fetch_all(self, keys: Sequence[Key]) -> list[Found]:
        return list(await asyncio.gather(*(self._local.fetch(key) for key in keys)))

    async def _public(self, answer: Answer, query: Query, key: Key) -> Resolution:
        if answer.absence is Elsewhere or (answer.absence is PrefixNotHere and query.authoritative):
            responsible = await self._referral.responsible(key.prefix)
            if responsible is not None:
                raise elsewhere(responsible)
        return shown(answer, query)

    async def resolve_many(
        self, identifiers: Sequence[Identifier], caller: Caller, *, authoritative: bool = False
    ) -> list[Resolution | BiaojieError]:
        """One resolution or error each, in order."""
        self._charge_rows(caller, len(identifiers))
        queries = [Query(identifier, authoritative=authoritative) for identifier in identifiers]
        if caller.is_public and not authoritative:
            return await self.resolve_public(queries)
        found: list[Resolution | BiaojieError] = []
        for at in range(0, len(queries), RESOLVING_MAX):
            answers = await asyncio.gather(
                *(self.resolve(query, caller) for query in queries[at : at + RESOLVING_MAX]),
                return_exceptions=True,
            )
            for answer in answers:
                if isinstance(answer, BaseException) and not isinstance(answer, BiaojieError):
                    raise answer
                found.append(answer)
        return found

    async def resolve_public(
        self, queries: Sequence[Query], *, say_where: bool = True
    ) -> list[Resolution | BiaojieError]:
        """What `resolve` gives the public or raises, for each, asked for together; without
        `say_where` an Elsewhere does not say where. None of them may be authoritative."""
        sensitive = self._case_sensitive
        keys = [query.key(case_sensitive=sensitive) for query in queries]
        outcomes = await self._resolver.resolve_many(keys)
        found: list[Resolution | BiaojieError] = []
        away: list[int] = []
        for n, outcome in enumerate(outcomes):
            if isinstance(outcome, BiaojieError):
                found.append(outcome)
            elif outcome.absence is None:
                found.append(shown(outcome, queries[n]))
            else:
                found.append(outcome.absence())
                if outcome.absence is Elsewhere:
                    away.append(n)
        if away and say_where:
            await self._say_where(keys, away, found)
        return found

    async def _say_where(
        self, keys: Sequence[Key], away: Sequence[int], found: list[Resolution | BiaojieError]
    ) -> None:
        """Put into `found`, for each of the numbers `away`, who answers for its prefix."""
        try:
            nodes = await self._referral.responsible_for({keys[n].prefix for n in away})
        except BiaojieError as error:
            for n in away:
                found[n] = error.again()
            return
        for n in away:
            node = nodes[keys[n].prefix]
            if node is not None:
                found[n] = elsewhere(node)

    async def list_records(
        self, caller: Caller, prefix: str, after: bytes | None, limit: int
    ) -> tuple[list[Record], bool]:
        """Records under a prefix in the order of their folded suffix, and whether more follow.

        Needs rights on the prefix. A page ends early when it has REPLY_BYTES_MAX of data.
        """
        folded = fold_prefix(prefix)
        homed = (await self._store.find_prefixes([folded])).get(folded)
        authorize(
            caller,
            Right.READ_PRIVATE,
            homed.tenant if homed else caller.tenant,
            needs=AdminRight.LIST_HANDLES,
            holds=await self._holds(caller, folded),
        )
        if homed is None:
            raise PrefixNotHere()
        page: list[Record] = []
        octets = 0
        while len(page) < limit:
            size = min(limit - len(page), 100)
            records = await self._store.list_records(folded, after, size)
            for record in records:
                octets += sum(len(value.data) for value in record.values)
                if page and octets > REPLY_BYTES_MAX:
                    return page, True
                page.append(record.readable())
            if len(records) < size:
                return page, False
            after = self.cursor(records[-1])
        return page, True

    async def search(self, caller: Caller, question: Question) -> Findings:
        """Identifiers by their values; see `Search.find`."""
        holds = await self._holds(caller, fold_prefix(question.prefix)) if question.prefix else 0
        return await self._search.find(caller, question, holds=holds)

    async def statistics(
        self, caller: Caller, prefix: str | None, days: int, listed: Scope
    ) -> Report:
        """See `statistics.ask`."""
        return await statistics.ask(self._store, caller, prefix, days, listed)

    def cursor(self, record: Record) -> bytes:
        """Where the page that ends with `record` goes on."""
        return record.identifier.key(case_sensitive=self._case_sensitive).suffix

    # Writing ----------------------------------------------------------------------------

    async def write(
        self,
        caller: Caller,
        operations: Sequence[Operation],
        *,
        mode: Mode = "all",
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Outcome:
        """See `Registrar.submit`. The public is refused before anything is queued."""
        if caller.is_public:
            raise Unauthenticated()
        self._charge_rows(caller, len(operations))
        return await self._registrar.submit(
            caller, operations, mode=mode, dry_run=dry_run, idempotency=idempotency
        )

    async def load(self, caller: Caller, bulk: Bulk, idempotency: Idempotency) -> BulkOutcome:
        """See `Registrar.load`; as `write`."""
        if caller.is_public:
            raise Unauthenticated()
        self._charge_rows(caller, bulk.count)
        return await self._registrar.load(caller, bulk, idempotency=idempotency)

    def _charge_rows(self, caller: Caller, rows: int) -> None:
        if tenant := self.charged(caller):
            self.quotas.owe(tenant, rows // ROWS_CHARGED)

    def hand_in(
        self,
        caller: Caller,
        operations: Sequence[Operation],
        answer: Callable[[Outcome | BiaojieError], None],
        *,
        idempotency: Idempotency | None = None,
    ) -> Submission:
        """`write`, whose outcome comes by a call; see `Registrar.hand_in`."""
        if caller.is_public:
            raise Unauthenticated()
        self._charge_rows(caller, len(operations))
        return self._registrar.hand_in(caller, operations, answer, idempotency=idempotency)

    async def issue_key(
        self, caller: Caller, tenant: str, role: Role, label: str
    ) -> tuple[str, ApiKey]:
        """A new key; its secret is in the answer and nowhere else."""
        key, operation = new_key(tenant, role, label)
        outcome = await self.write(caller, [operation])
        outcome.single()
        issued = await self._store.find_key(operation.digest)
        assert issued is not None
        return key, issued

    # Prefixes, keys, changes --------------------------------------------------------------

    async def find_prefix(self, caller: Caller, name: str) -> Prefix:
        folded = fold_prefix(name)
        prefix = (await self._store.find_prefixes([folded])).get(folded)
        authorize(caller, Right.READ_PRIVATE, prefix.tenant if prefix else caller.tenant)
        if prefix is None:
            raise PrefixNotHere()
        return prefix

    async def list_prefixes(self, caller: Caller, after: str | None, limit: int) -> list[Prefix]:
        """All prefixes for an admin, their tenant's for others."""
        authorize(caller, Right.READ_PRIVATE, caller.tenant)
        tenant = None if caller.role is Role.ADMIN else caller.tenant
        return await self._store.list_prefixes(after, limit, tenant)

    async def list_keys(self, caller: Caller, after: str | None, limit: int) -> list[ApiKey]:
        authorize(caller, Right.MANAGE, None)
        return await self._store.list_keys(after, limit)

    async def find_key(self, caller: Caller, key_id: str) -> ApiKey:
        authorize(caller, Right.MANAGE, None)
        found = await self._store.find_keys_by_id([key_id])
        if key_id not in found:
            raise NotFound(f"There is no key {key_id}.", f"没有密钥 {key_id}。")
        return found[key_id]

    async def list_changes(
        self, caller: Caller, after: int, limit: int, wait_s: float
    ) -> tuple[list[Entry], int]:
        """Log entries after a sequence, and the sequence to go on from.

        Waits up to `wait_s` for news. An admin sees whole entries; others only the changes
        of their tenant's prefixes, and no entry without one.
        """
        authorize(caller, Right.READ_CHANGES, caller.tenant)
        until = time.monotonic() + wait_s
        entries, after = await self._changes(caller, after, limit)
        if entries or wait_s <= 0:
            return entries, after
        with self._watching():
            # What others commit ends nobody's wait, nor does it show in how long it took.
            while not entries and (left := until - time.monotonic()) > 0:
                await self._tail.wait(after, left)
                if self._tail.released:
                    break
                entries, after = await self._changes(caller, after, limit)
        return entries, after

    async def await_change(self, after: int, wait_s: float) -> bool:
        """Return when the log may have grown beyond `after` or the time is up; False when the
        node is about to stop. Raises OverCapacity when too many wait already."""
        with self._watching():
            await self._tail.wait(after, wait_s)
        return not self._tail.released

    @contextmanager
    def _watching(self) -> Iterator[None]:
        if self._watchers >= self._watchers_max:
            raise OverCapacity()
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    async def _changes(self, caller: Caller, after: int, limit: int) -> tuple[list[Entry], int]:
        entries: list[Entry] = []
        changes = 0
        size = 2
        while len(entries) < limit and changes < PAGE_CHANGES_MAX:
            # Few at first: one entry may hold thousands of changes.
            size = min(2 * size, 16, limit - len(entries))
            found = await self._store.list_changes(after, size)
            entries += found
            changes += sum(entry.count for entry in found)
            after = found[-1].sequence if found else after
            if len(found) < size:
                break
        if caller.role is Role.ADMIN:
            return entries, after
        return await self._visible(caller, entries), after

    async def _visible(self, caller: Caller, entries: list[Entry]) -> list[Entry]:
        names = sorted({fold_prefix(subject_prefix(c)) for e in entries for c in e.changes} - {""})
        actors = sorted({c.actor for e in entries for c in e.changes})
        own: set[str] = set()
        own_keys: set[str] = set()
        for at in range(0, len(names), NAMES_MAX):
            homed = await self._store.find_prefixes(names[at : at + NAMES_MAX])
            own |= {name for name, prefix in homed.items() if prefix.tenant == caller.tenant}
        for at in range(0, len(actors) if own else 0, NAMES_MAX):
            keys = await self._store.find_keys_by_id(actors[at : at + NAMES_MAX])
            own_keys |= {id_ for id_, key in keys.items() if key.tenant == caller.tenant}
        visible = []
        for entry in entries:
            # Who else acts here, the operator's people included, is nobody's business; nor
            # what the entry's hashes hide, as long as the ids of others' keys are not known.
            changes = [
                c if c.actor in own_keys else replace(c, actor="")
                for c in entry.changes
                if fold_prefix(subject_prefix(c)) in own
            ]
            if changes:
                visible.append(part_of(entry, changes))
        return visible


def _charged(caller: Caller) -> str:
    """On whose quota a request counts; "" where on nobody's: the public has none, and operators
    must get through whatever happens. Users of the Handle protocol count by the prefix that they
    have proved to be somebody of."""
    if caller.role is Role.ADMIN:
        return ""
    if caller.handle is not None:
        return f"prefix {fold_prefix(caller.handle.identifier.prefix)}"
    return caller.tenant
