"""What one commit sees and changes, between the transaction that loads it and the one write.

`load` reads every subject that the operations touch in a few statements, `apply` decides one
operation against what the ones before it left, `write` stores the sum. What is refused after
all is taken back with `back_to` a `mark`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from biaojie.account import ApiKey, Prefix
from biaojie.change import Action, Change, Receipt, make_change, make_receipt
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record, Reference

from .admission import (
    SYSTEM,
    Caller,
    decide_record,
)
from .admission_accounts import decide_change_prefix, decide_home, decide_issue, decide_revoke
from .census import Layer, Shift, kind_of
from .changelog import ZERO, key_digest, prefix_digest, record_digest
from .handle_rights import (
    PREFIXES,
    HandleIdentity,
    admins,
    ancestors,
    full_admin,
    groups_of,
    held,
    prefix_identifier,
)
from .matching import Match, row_changes
from .operations import (
    ChangePrefix,
    Create,
    CutRange,
    HomePrefix,
    IssueKey,
    Operation,
    RangeOperation,
    RecordOperation,
    RegisterRange,
    RevokeKey,
)
from .range_staging import Ground, decide_range, survey
from .ranges import HeldRange, RangeKey, range_digest
from .store import LOOK_UP_MAX, Found, FoundInBlock, FoundInRange, Loaded, ReceiptKey, Transaction


@dataclass(frozen=True, slots=True)
class Rules:
    """Node settings that decisions depend on."""

    case_sensitive: bool = False
    strict_slash: bool = False

    def prefix_key(self, prefix: str) -> Key:
        """Where the record of a prefix is looked up."""
        return prefix_identifier(prefix).key(case_sensitive=self.case_sensitive)


RULES_DEFAULT = Rules()
NODE_TENANT = "node"
"""Owns `0.NA` where it is homed by itself."""


async def _look_up_all(tx: Transaction, keys: Sequence[Key]) -> list[Found]:
    found: list[Found] = []
    for at in range(0, len(keys), LOOK_UP_MAX):
        found += await tx.look_up(keys[at : at + LOOK_UP_MAX])
    return found


@dataclass(slots=True)
class Staging:
    """`sequence` is the entry this commit will be, `now` its time in epoch seconds.

    `blank`: nothing has ever been written before what is staged here. `found`, `prefixes` and
    `keys` are the state as it would be; `done` is what was set in them, with what was there.
    `shift` is by how much the sum changes the census, complete once it is written.
    """

    rules: Rules
    sequence: int
    now: int
    blank: bool
    found: dict[Key, Found] = field(default_factory=dict)
    prefixes: dict[str, Prefix | None] = field(default_factory=dict)
    keys: dict[str, ApiKey | None] = field(default_factory=dict)
    groups: Mapping[HandleIdentity, frozenset[Reference]] = field(default_factory=dict)
    ranges: dict[RangeKey, HeldRange | None] = field(default_factory=dict)
    ground: Ground | None = None
    new_keys: dict[bytes, ApiKey] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    done: list[tuple[dict[Any, Any], Any, Any]] = field(default_factory=list)
    shift: Shift = field(default_factory=Counter)

    @classmethod
    async def load(
        cls,
        tx: Transaction,
        asked: Iterable[tuple[Caller, Operation]],
        receipts: Sequence[ReceiptKey],
        rules: Rules,
        now: int,
    ) -> tuple[Staging, Loaded]:
        """What the operations and the receipts need, in one round trip where that is enough."""
        records: dict[Key, None] = {}
        prefixes: dict[str, None] = {}
        keys: dict[str, None] = {}
        identities: set[HandleIdentity] = set()
        over: RangeOperation | None = None
        for caller, operation in asked:
            match operation:
                case HomePrefix() | ChangePrefix():
                    prefixes[fold_prefix(operation.name)] = None
                    above = [operation.name, *ancestors(operation.name)]
                    if isinstance(operation, HomePrefix) and operation.admin is not None:
                        prefixes[PREFIXES] = None
                        records[rules.prefix_key(operation.name)] = None
                case IssueKey() | RevokeKey():
                    keys[operation.id] = None
                    above = []
                case RegisterRange() | CutRange():
                    over = operation
                    above = []
                case _:
                    records[operation.identifier.key(case_sensitive=rules.case_sensitive)] = None
                    above = [operation.identifier.prefix]
            if caller.handle is not None:
                identities.add(caller.handle)
                records.update(dict.fromkeys(rules.prefix_key(name) for name in above))
        wanted = list(records)
        loaded = await tx.load(wanted[:LOOK_UP_MAX], receipts, now)
        found = loaded.found + await _look_up_all(tx, wanted[LOOK_UP_MAX:])
        named = {ref for _, record in found for _, ref in admins(record)} if identities else set()
        groups = {
            identity: await groups_of(identity, named, lambda some: _look_up_all(tx, some))
            for identity in identities
        }
        homed = await tx.find_prefixes(list(prefixes)) if prefixes else {}
        issued = await tx.find_keys_by_id(list(keys)) if keys else {}
        sequence = loaded.head[0] + 1
        staging = cls(
            rules,
            sequence,
            now,
            sequence == 1,
            dict(zip(wanted, found, strict=True)),
            {name: homed.get(name) for name in prefixes},
            {key_id: issued.get(key_id) for key_id in keys},
            groups,
            ground=None if over is None else await survey(tx, over, rules.case_sensitive),
        )
        return staging, loaded

    def _set(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        self.done.append((mapping, key, mapping.get(key)))
        mapping[key] = value

    def mark(self) -> tuple[int, int]:
        """Where we are, for `back_to`."""
        return len(self.done), len(self.changes)

    def back_to(self, mark: tuple[int, int]) -> None:
        done, changes = mark
        while len(self.done) > done:
            mapping, key, before = self.done.pop()
            if before is None and mapping is self.new_keys:
                del mapping[key]
            else:
                mapping[key] = before
        del self.changes[changes:]

    def _set_since(self, mapping: Mapping[Any, Any]) -> dict[Any, Any]:
        """What was set in it since it was loaded, and what was there then."""
        firsts: dict[Any, Any] = {}
        for where, key, before in self.done:
            if where is mapping:
                firsts.setdefault(key, before)
        return firsts

    # Deciding ---------------------------------------------------------------------------

    def apply(self, operation: Operation, caller: Caller) -> Receipt:
        """Decide one operation and stage what it does; raises the operation's error."""
        match operation:
            case HomePrefix() | ChangePrefix():
                return self._apply_prefix(operation, caller)
            case IssueKey() | RevokeKey():
                return self._apply_key(operation, caller)
            case RegisterRange() | CutRange():
                return self._apply_range(operation, caller)
            case _:
                return self._apply_record(operation, caller)

    def _apply_record(self, operation: RecordOperation, caller: Caller) -> Receipt:
        key = operation.identifier.key(case_sensitive=self.rules.case_sensitive)
        loaded = found = self.found[key]
        if self.prefixes:  # one changed earlier in this commit is as that change left it
            found = Found(self.prefixes.get(key.prefix, found.prefix), found.record)
        decision = decide_record(
            operation,
            caller,
            found,
            self.now,
            strict_slash=self.rules.strict_slash,
            holds=self._holds(caller, found.record, [key.prefix]) if caller.handle else 0,
            sequence=self.sequence,
        )
        record = decision.record
        if isinstance(loaded, FoundInRange) and found.record is not None:
            self._leave_range(found.record, caller)
        if record is None:
            assert found.record is not None
            self._set(self.found, key, Found(found.prefix, None))
            old = found.record
            return self._note(
                decision.action, str(old.identifier), "purged", old.version + 1, caller, ZERO
            )
        if record.sequence != self.sequence:
            record = record.at(self.sequence)
        self._set(self.found, key, Found(found.prefix, record))
        return self._note(
            decision.action,
            str(record.identifier),
            record.status,
            record.version,
            caller,
            record_digest(record),
        )

    def _leave_range(self, member: Record, caller: Caller) -> None:
        """It is a record of its own from the change on that is noted next."""
        name, digest = str(member.identifier), record_digest(member)
        self.changes.append(Change(Action.LEAVE_RANGE, name, member.version, caller.key_id, digest))

    def _apply_prefix(self, operation: HomePrefix | ChangePrefix, caller: Caller) -> Receipt:
        folded = fold_prefix(operation.name)
        current = self.prefixes[folded]
        holds = self._holds(caller, None, [folded, *ancestors(folded)])
        if isinstance(operation, HomePrefix):
            action = Action.HOME_PREFIX
            prefix = decide_home(operation, caller, current, self.now, holds=holds)
        else:
            action = Action.CHANGE_PREFIX
            prefix = decide_change_prefix(operation, caller, current, holds=holds)
        receipt = self._put_prefix(action, prefix, caller)
        if isinstance(operation, HomePrefix) and operation.admin is not None:
            self._give_to(operation.name, operation.admin, caller)
        return receipt

    def _put_prefix(self, action: Action, prefix: Prefix, caller: Caller) -> Receipt:
        self._set(self.prefixes, fold_prefix(prefix.name), replace(prefix, sequence=self.sequence))
        return self._note(
            action, prefix.name, prefix.status, prefix.version, caller, prefix_digest(prefix)
        )

    def _give_to(self, name: str, admin: Reference, caller: Caller) -> None:
        """Register `0.NA/<name>` with this administrator, homing `0.NA` if that is not yet."""
        if self.prefixes[PREFIXES] is None:
            home = decide_home(HomePrefix(PREFIXES, NODE_TENANT), SYSTEM, None, self.now)
            self._put_prefix(Action.HOME_PREFIX, home, caller)
        key = self.rules.prefix_key(name)
        if self.found[key].record is None:
            self._set(self.found, key, Found(self.prefixes[PREFIXES], None))
            create = Create(prefix_identifier(name), (full_admin(admin),))
            self._apply_record(create, SYSTEM)

    def _holds(self, caller: Caller, record: Record | None, prefixes: Iterable[str]) -> int:
        """AdminRight bits of a Handle identity on a record and under its prefixes."""
        if caller.handle is None:
            return 0
        above = [self.found[self.rules.prefix_key(name)].record for name in prefixes]
        return held(caller.handle, self.groups[caller.handle], record, *above)

    def _apply_key(self, operation: IssueKey | RevokeKey, caller: Caller) -> Receipt:
        if isinstance(operation, IssueKey):
            blank = self.blank and not self.changes
            key = decide_issue(operation, caller, self.keys[operation.id], blank, self.now)
            self._set(self.new_keys, operation.digest, key)
            action, status, version = Action.ISSUE_KEY, "valid", 1
        else:
            key = decide_revoke(operation, caller, self.keys[operation.id], self.now)
            action, status, version = Action.REVOKE_KEY, "revoked", 2
        self._set(self.keys, key.id, key)
        return self._note(action, key.id, status, version, caller, key_digest(key))

    def _apply_range(self, operation: RangeOperation, caller: Caller) -> Receipt:
        assert self.ground is not None
        assert not self.changes, "a range operation has its commit to itself"
        sensitive, strict = self.rules.case_sensitive, self.rules.strict_slash
        outcome = decide_range(
            operation, caller, self.ground, self.now, self.sequence, strict_slash=strict
        )
        self.shift.update(outcome.shift)
        action = outcome.action
        for gone in outcome.gone:
            self._set(self.ranges, gone.key(case_sensitive=sensitive), None)
            self._note(action, gone.name, "", gone.rule.version, caller, ZERO)
        for made in outcome.made:
            self._set(self.ranges, made.key(case_sensitive=sensitive), made)
            self._note(action, made.name, "", made.rule.version, caller, range_digest(made))
        name = f"{operation.prefix}/{operation.pattern}"
        return make_receipt(name, action, outcome.status, outcome.version, self.sequence)

    def _note(
        self,
        action: Action,
        subject: str,
        status: str,
        version: int,
        caller: Caller,
        digest: bytes,
    ) -> Receipt:
        self.changes.append(make_change(action, subject, version, caller.key_id, digest, "", 0))
        return make_receipt(subject, action, str(status), version, self.sequence)

    # Writing ----------------------------------------------------------------------------

    async def write(self, tx: Transaction) -> None:
        """Store everything staged; the log entry is the caller's to append."""
        prefixes = [
            prefix for name in self._set_since(self.prefixes) if (prefix := self.prefixes[name])
        ]
        if prefixes:
            await tx.put_prefixes(prefixes)
        records: dict[Key, Record] = {}
        purged: list[Key] = []
        added: set[Match] = set()
        removed: set[Match] = set()
        shift = self.shift
        for key, before in self._set_since(self.found).items():
            found = self.found[key]
            prefix = self.prefixes.get(key.prefix) or found.prefix
            if prefix is not None and (prefix.searchable or prefix.indexing):
                rows = row_changes(prefix, key, before.record, found.record)
                added |= rows[0]
                removed |= rows[1]
            if before.record is not None:
                shift[kind_of(key.prefix, before.record, _layer(before))] -= 1
            if found.record is None:
                purged.append(key)
            else:
                records[key] = found.record
                shift[kind_of(key.prefix, found.record, Layer.ROWS)] += 1
        if records:
            await tx.put_records(records)
        if purged:
            await tx.purge_records(purged, self.sequence)
        if added or removed:
            await tx.change_rows(added, removed)
        ranges = {key: self.ranges[key] for key in self._set_since(self.ranges)}
        if ranges:
            put = {key: held for key, held in ranges.items() if held is not None}
            await tx.change_ranges(ranges.keys() - put.keys(), put)
        if self.new_keys:
            await tx.put_keys(self.new_keys)
        revoked = {
            key.id: key.revoked
            for id_ in self._set_since(self.keys)
            if (key := self.keys[id_]) is not None and key.revoked
        }
        if revoked:
            await tx.revoke_keys(revoked)


def _layer(found: Found) -> Layer:
    """What answered."""
    if isinstance(found, FoundInRange):
        return Layer.RANGES
    return Layer.BLOCKS if isinstance(found, FoundInBlock) else Layer.ROWS
