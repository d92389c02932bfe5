"""The registrar against a plain dictionary: any history, the same outcome."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from biaojie.account import PrefixStatus, Role
from biaojie.errors import BatchRejected, BiaojieError
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Status, Value
from registry.admission import PUBLIC, Caller
from registry.audit import audit
from registry.memory import MemoryStore
from registry.operations import (
    ChangePrefix,
    Condition,
    Create,
    HomePrefix,
    Modify,
    Purge,
    Put,
    Retire,
)
from registry.registrar import Registrar
from tests.core_parts import ACME, ACME_READER, ADMIN, BETA

PREFIXES = ["88.118.8", "88.118.9", "X.y"]
BETA_READER = Caller("beta0002", "beta", Role.READER)
LOCKED = Permissions.parse("1010")


@dataclasses.dataclass
class Row:
    """A record as the model has it: the values are a dictionary of (data, permissions)."""

    spelling: str
    status: str
    version: int
    sequence: int
    template: str | None
    values: dict[int, tuple[bytes, Permissions]]


@dataclasses.dataclass
class World:
    """All the model knows. `step` is a word-by-word reading of the rules, without their code."""

    prefixes: dict[str, list[str]]  # folded → [tenant, status]
    rows: dict[tuple[str, str], Row]
    sequence: int

    def copy(self) -> World:
        rows = {
            at: dataclasses.replace(row, values=dict(row.values)) for at, row in self.rows.items()
        }
        return World({name: list(p) for name, p in self.prefixes.items()}, rows, self.sequence)

    def step(self, caller: Caller, op: Any) -> str:
        """Do it, and return "ok" or the code of the refusal."""
        if isinstance(op, HomePrefix | ChangePrefix):
            return self._prefix(caller, op)
        at = (op.identifier.prefix.upper(), op.identifier.suffix.upper())
        prefix = self.prefixes.get(at[0])
        role = caller.role
        if role is None:
            return "unauthenticated"
        if prefix is None:
            return "forbidden" if role is Role.READER else "prefix-not-here"
        foreign = caller.tenant != prefix[0] or isinstance(op, Purge)
        if role is Role.READER or (role is not Role.ADMIN and foreign):
            return "forbidden"
        if prefix[1] == "unhomed":
            return "prefix-not-here"
        if prefix[1] in ("delegated", "referred"):
            return "elsewhere"
        if prefix[1] == "suspended" and role is not Role.ADMIN:
            return "prefix-suspended"
        row = self.rows.get(at)
        if row is not None and row.status == "retired" and not isinstance(op, Purge):
            return "identifier-retired"
        condition = getattr(op, "condition", None)
        if condition is not None and not self._matches(condition, row):
            return "version-mismatch"
        if isinstance(op, Create) and row is not None:
            return "identifier-taken"
        if row is None:
            if not isinstance(op, Create | Put):
                return "identifier-not-found"
            if op.status is Status.RETIRED:
                return "invalid-record"
            values = {v.index: (v.data, v.permissions) for v in op.values}
            status = str(op.status or "active")
            name = str(op.identifier)
            self.rows[at] = Row(name, status, 1, self.sequence, op.template, values)
            return "ok"
        if isinstance(op, Purge):
            del self.rows[at]
            return "ok"
        if isinstance(op, Retire):
            row.values, row.status = {}, "retired"
        else:
            code = self._change(row, op)
            if code != "ok":
                return code
        row.version += 1
        row.sequence = self.sequence
        return "ok"

    @staticmethod
    def _matches(condition: Condition, row: Row | None) -> bool:
        if condition.absent:
            return row is None
        return (
            row is not None
            and condition.version in (None, row.version)
            and condition.sequence in (None, row.sequence)
        )

    @staticmethod
    def _change(row: Row, op: Any) -> str:
        if row.status == "frozen" and op.status in (None, Status.FROZEN):
            return "record-frozen"
        if isinstance(op, Put):
            after = {v.index: (v.data, v.permissions) for v in op.values}
        else:
            after = dict(row.values)
            for index in op.remove:
                if index not in after:
                    return "value-not-found"
                del after[index]
            after |= {v.index: (v.data, v.permissions) for v in op.set}
        for index, before in row.values.items():
            if before[1] == LOCKED and after.get(index) != before:
                return "value-read-only"
        if op.status is Status.RETIRED:
            return "invalid-record"
        row.values = after
        row.status = str(op.status or row.status)
        row.template = op.template or row.template
        return "ok"

    def _prefix(self, caller: Caller, op: HomePrefix | ChangePrefix) -> str:
        if caller.role is not Role.ADMIN:
            return "unauthenticated" if caller.role is None else "forbidden"
        known = self.prefixes.get(op.name.upper())
        if isinstance(op, HomePrefix):
            if known is not None and known[1] == "unhomed":
                known[1] = "active"
                return "ok"
            if known is not None:
                return "prefix-taken"
            self.prefixes[op.name.upper()] = [op.tenant, "active"]
            return "ok"
        if known is None:
            return "prefix-not-here"
        known[0] = op.tenant or known[0]
        known[1] = str(op.status or known[1])
        return "ok"


tenants = st.sampled_from(["acme", "beta"])
names = st.builds(
    Identifier,
    st.sampled_from(["88.118.8"] * 4 + ["88.118.9", "X.Y", "x.y"]),
    st.sampled_from(["a", "A", "b"]),
)
values = st.lists(
    st.builds(
        Value,
        st.integers(1, 3),
        st.just("URL"),
        st.sampled_from([b"", b"x", b"y"]),
        permissions=st.sampled_from([Permissions.parse("1110")] * 3 + [LOCKED]),
    ),
    max_size=3,
    unique_by=lambda value: value.index,
).map(tuple)
statuses = st.sampled_from([None, None, None, *Status])
templates = st.sampled_from([None, None, "88.118.8/t", "88.118.8/u"])
conditions = st.one_of(
    st.none(),
    st.builds(
        Condition,
        st.just(False),
        st.sampled_from([None, 1, 2, 3]),
        st.sampled_from([None, None, None, 2, 3, 4]),
    ),
    st.just(Condition(absent=True)),
)
record_operations = st.one_of(
    st.builds(Create, names, values, st.sampled_from([Status.ACTIVE, *Status]), templates),
    st.builds(Put, names, values, statuses, templates, conditions),
    st.builds(
        Modify,
        names,
        values,
        st.lists(st.integers(1, 3), max_size=1).map(tuple),
        statuses,
        templates,
        conditions,
    ),
    st.builds(Retire, names, conditions),
    st.builds(Purge, names, conditions),
)
operations = st.one_of(
    *[record_operations] * 4,
    st.builds(HomePrefix, st.sampled_from([*PREFIXES, "x.Y"]), tenants),
    st.builds(
        ChangePrefix,
        st.sampled_from([*PREFIXES, "x.Y"]),
        st.one_of(st.none(), tenants),
        st.sampled_from([None, *PrefixStatus]),
    ),
)
callers = st.sampled_from([ADMIN, ADMIN, ACME, ACME, ACME, BETA, ACME_READER, BETA_READER, PUBLIC])


class RegistrarMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = MemoryStore()
        self.now = 1_700_000_000.0
        self.world = World({}, {}, 1)
        self.written = 0
        self.runner.run(self._start())
        self._submit(ADMIN, [HomePrefix("88.118.8", "acme")], "all", dry_run=False)

    async def _start(self) -> None:
        self.registrar = Registrar(self.store, clock=lambda: self.now)
        self.registrar.start()

    def _submit(self, caller: Caller, ops: list[Any], mode: Any, *, dry_run: bool) -> None:
        after = self.world.copy()
        expected = []
        for op in ops:
            expected.append(after.step(caller, op))
        failed = any(code != "ok" for code in expected)
        try:
            outcome = self.runner.run(
                self.registrar.submit(caller, ops, mode=mode, dry_run=dry_run)
            )
            got = [getattr(result, "code", "ok") for result in outcome.results]
        except BatchRejected as error:
            assert mode == "all"
            assert len(ops) > 1
            got = [getattr(result, "code", "ok") for result in error.fields["results"]]
        except BiaojieError as error:
            assert mode == "all"
            assert len(ops) == 1
            got = [error.code]
        assert got == expected
        if not dry_run and "ok" in got and not (mode == "all" and failed):
            after.sequence += 1
            self.world = after

    @rule(
        caller=callers,
        ops=st.lists(operations, min_size=1, max_size=4),
        mode=st.sampled_from(["all", "valid-rows"]),
        dry_run=st.sampled_from([False, False, False, True]),
    )
    def submit(self, caller: Caller, ops: list[Any], mode: Any, dry_run: bool) -> None:
        self._submit(caller, ops, mode, dry_run=dry_run)

    @rule(seconds=st.sampled_from([-86_400, -1, 1, 3_600]))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.world.rows)
    @rule(caller=st.sampled_from([ACME, ADMIN]), data=st.data())
    def change_what_is_there(self, caller: Caller, data: st.DataObject) -> None:
        """With the version that is there, so that conditions often hold."""
        at = data.draw(st.sampled_from(sorted(self.world.rows)))
        row = self.world.rows[at]
        condition = Condition(version=row.version, sequence=row.sequence)
        name = Identifier.parse(row.spelling)
        put = Put(name, data.draw(values), data.draw(statuses), None, condition)
        self._submit(caller, [put], "all", dry_run=False)

    @invariant()
    def store_is_as_the_model(self) -> None:
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        found = {}
        for prefix in await self.store.list_prefixes(None, 100):
            tenant, status = self.world.prefixes[prefix.name.upper()]
            assert (prefix.tenant, str(prefix.status)) == (tenant, status)
            for record in await self.store.list_records(prefix.name.upper(), None, 100):
                at = (record.identifier.prefix.upper(), record.identifier.suffix.upper())
                found[at] = Row(
                    str(record.identifier),
                    str(record.status),
                    record.version,
                    record.sequence,
                    record.template,
                    {v.index: (v.data, v.permissions) for v in record.values},
                )
        assert found == self.world.rows
        assert (await self.store.head())[0] == self.world.sequence - 1

    def teardown(self) -> None:
        async def finish() -> None:
            await self.registrar.stop()
            assert (await audit(self.store)).faults == []

        self.runner.run(finish())
        self.runner.close()


TestRegistrar = RegistrarMachine.TestCase
TestRegistrar.settings = settings(
    settings.get_profile("biaojie"), max_examples=60, stateful_step_count=40
)
