"""The policy, exhaustively, and what each operation makes of each state."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from biaojie.account import Prefix, PrefixStatus, Role
from biaojie.change import Action
from biaojie.errors import (
    BiaojieError,
    Forbidden,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRecord,
    PrefixNotHere,
    PrefixSuspended,
    RecordFrozen,
    Unauthenticated,
    ValueNotFound,
    ValueReadOnly,
    VersionMismatch,
)
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Status, Value
from registry.admission import (
    PUBLIC,
    SYSTEM,
    Caller,
    Right,
    allows,
    authorize,
    decide_record,
)
from registry.operations import (
    Condition,
    Create,
    Modify,
    Purge,
    Put,
    RecordOperation,
    Retire,
)
from registry.store import Found
from tests.core_parts import ACME, ACME_READER, ADMIN, BETA

NAME = Identifier("88.118.8", "SN1")
HOMED = Prefix("88.118.8", "acme")
NOW = 2_000


def value(
    index: int = 1, data: bytes = b"x", permissions: str = "1110", type_: str = "URL"
) -> Value:
    return Value(index, type_, data, permissions=Permissions.parse(permissions), timestamp=1_000)


RECORD = Record(NAME, (value(1), value(2)), version=3, created=1_000, modified=1_000, sequence=7)
LOCKED = replace(RECORD, values=(value(1), value(2, permissions="1010")))


def decide(
    operation: RecordOperation,
    current: Record | None = RECORD,
    *,
    caller: Caller = ACME,
    prefix: Prefix | None = HOMED,
    strict_slash: bool = False,
) -> Any:
    return decide_record(operation, caller, Found(prefix, current), NOW, strict_slash=strict_slash)


# Who may --------------------------------------------------------------------------------

# Written out by hand, one row for each role: (role, same tenant?) → rights it has.
OWN = {"READ_PRIVATE", "WRITE", "READ_CHANGES"}
TABLE = {
    (Role.ADMIN, True): {"READ_PRIVATE", "WRITE", "PURGE", "MANAGE", "READ_CHANGES"},
    (Role.ADMIN, False): {"READ_PRIVATE", "WRITE", "PURGE", "MANAGE", "READ_CHANGES"},
    (Role.REGISTRAR, True): OWN,
    (Role.REGISTRAR, False): set(),
    (Role.READER, True): {"READ_PRIVATE", "READ_CHANGES"},
    (Role.READER, False): set(),
    (None, True): set(),
    (None, False): set(),
}


def test_the_table_names_every_role() -> None:
    assert {role for role, _ in TABLE} == {*Role, None}


@pytest.mark.parametrize(
    ("role", "same", "right"), [(*row, right) for row, right in product(TABLE, Right)]
)
def test_policy(role: Role | None, same: bool, right: Right) -> None:
    caller = Caller("k", "acme", role)
    owners: list[str | None] = ["acme"] if same else ["beta", "ACME", "", None]
    for owner in owners:
        allowed = right.name in TABLE[role, same]
        assert allows(caller, right, owner) is allowed
        if allowed:
            authorize(caller, right, owner)
        else:
            expected = Unauthenticated if role is None else Forbidden
            with pytest.raises(expected):
                authorize(caller, right, owner)


def test_a_tenant_without_a_name_owns_nothing_of_the_nodes() -> None:
    nobody = Caller("k", "", Role.REGISTRAR)
    assert not any(allows(nobody, right, None) for right in Right)
    assert PUBLIC.role is None
    assert SYSTEM.role is Role.ADMIN


OPERATIONS = [
    Create(NAME, ()),
    Put(NAME, ()),
    Modify(NAME),
    Retire(NAME),
    Purge(NAME),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: type(op).__name__)
@pytest.mark.parametrize(
    ("caller", "refusal"),
    [
        (PUBLIC, Unauthenticated),
        (ACME_READER, Forbidden),
        (BETA, Forbidden),
        (Caller("k", "", Role.REGISTRAR), Forbidden),
        (Caller("k", "beta", Role.READER), Forbidden),
    ],
)
@pytest.mark.parametrize("current", [None, RECORD])
@pytest.mark.parametrize("status", PrefixStatus)
def test_no_operation_without_the_right(
    operation: RecordOperation,
    caller: Caller,
    refusal: type[BiaojieError],
    current: Record | None,
    status: PrefixStatus,
) -> None:
    """Neither existence nor suspension shows to those who may not act."""
    with pytest.raises(refusal):
        decide(operation, current, caller=caller, prefix=replace(HOMED, status=status))


def test_purging_is_for_admins() -> None:
    with pytest.raises(Forbidden):
        decide(Purge(NAME))
    assert decide(Purge(NAME), caller=ADMIN) == (Action.PURGE, None)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: type(op).__name__)
def test_a_prefix_that_is_not_homed(operation: RecordOperation) -> None:
    for caller, refusal in [
        (PUBLIC, Unauthenticated),
        (ACME_READER, Forbidden),
        (ACME, PrefixNotHere),
        (ADMIN, PrefixNotHere),
    ]:
        with pytest.raises(refusal):
            decide(operation, None, caller=caller, prefix=None)


@pytest.mark.parametrize("operation", OPERATIONS[:4], ids=lambda op: type(op).__name__)
def test_a_suspended_prefix_takes_writes_from_admins_only(operation: RecordOperation) -> None:
    suspended = replace(HOMED, status=PrefixStatus.SUSPENDED)
    current = None if isinstance(operation, Create) else RECORD
    with pytest.raises(PrefixSuspended):
        decide(operation, current, prefix=suspended)
    assert decide(operation, current, prefix=suspended, caller=ADMIN).record is not None


# What comes of it -----------------------------------------------------------------------


def test_create() -> None:
    action, record = decide(
        Create(NAME, (value(2), value(1)), Status.DRAFT, "88.118.8/template"), None
    )
    assert action is Action.CREATE
    assert record == Record(
        NAME,
        (replace(value(1), timestamp=NOW), replace(value(2), timestamp=NOW)),
        Status.DRAFT,
        "88.118.8/template",
        version=1,
        created=NOW,
        modified=NOW,
    )


@pytest.mark.parametrize(
    ("current", "error"),
    [(RECORD, IdentifierTaken), (replace(RECORD, status=Status.RETIRED), IdentifierRetired)],
)
def test_create_never_replaces(current: Record, error: type[BiaojieError]) -> None:
    with pytest.raises(error):
        decide(Create(NAME, ()), current)
    with pytest.raises(error):
        decide(Create(NAME, ()), current, caller=ADMIN)


def test_put_registers_what_is_not_there() -> None:
    action, record = decide(Put(NAME, (value(),)), None)
    assert (action, record.version, record.status) == (Action.CREATE, 1, Status.ACTIVE)


def test_put_replaces_values_and_keeps_what_is_not_given() -> None:
    current = replace(RECORD, status=Status.DRAFT, template="88.118.8/t")
    action, record = decide(Put(NAME, (value(5),)), current)
    assert action is Action.PUT
    assert record == replace(
        current, values=(replace(value(5), timestamp=NOW),), version=4, modified=NOW
    )
    _, record = decide(Put(NAME, (), Status.ACTIVE, "88.118.8/other"), current)
    assert (record.status, record.template) == (Status.ACTIVE, "88.118.8/other")


def test_the_first_spelling_stays() -> None:
    other = Identifier("88.118.8", "sn1")
    for operation in (Put(other, ()), Modify(other), Retire(other)):
        assert str(decide(operation).record.identifier) == "88.118.8/SN1"


def test_modify_adds_replaces_and_removes_by_index() -> None:
    operation = Modify(NAME, set=(value(3), value(1, b"new")), remove=(2,), status=Status.FROZEN)
    action, record = decide(operation)
    assert action is Action.MODIFY
    assert [(v.index, v.data, v.timestamp) for v in record.values] == [
        (1, b"new", NOW),
        (3, b"x", NOW),
    ]
    assert (record.status, record.version, record.created) == (Status.FROZEN, 4, 1_000)


def test_modify_leaves_the_time_of_other_values() -> None:
    record = decide(Modify(NAME, set=(value(1, b"new"),))).record
    assert [v.timestamp for v in record.values] == [NOW, 1_000]


def test_removing_and_setting_the_same_index_sets_it() -> None:
    record = decide(Modify(NAME, set=(value(1, b"new"),), remove=(1,))).record
    assert record.value(1).data == b"new"


def test_modify_needs_what_it_removes() -> None:
    with pytest.raises(ValueNotFound) as error:
        decide(Modify(NAME, remove=(7,)))
    assert error.value.fields["index"] == 7
    with pytest.raises(ValueNotFound):
        decide(Modify(NAME, remove=(1, 1)))


def test_retire_leaves_a_tombstone() -> None:
    current = replace(RECORD, template="88.118.8/t")
    action, record = decide(Retire(NAME), current)
    assert action is Action.RETIRE
    assert record == replace(current, values=(), status=Status.RETIRED, version=4, modified=NOW)


@pytest.mark.parametrize("operation", [Modify(NAME), Retire(NAME)])
def test_what_is_not_there_cannot_be_changed(operation: RecordOperation) -> None:
    with pytest.raises(IdentifierNotFound):
        decide(operation, None)
    with pytest.raises(IdentifierNotFound):
        decide(Purge(NAME), None, caller=ADMIN)


@pytest.mark.parametrize(
    "operation",
    [
        Create(NAME, ()),
        Put(NAME, ()),
        Put(NAME, (), condition=Condition(absent=True)),
        Put(NAME, (), condition=Condition(version=1)),
        Modify(NAME, condition=Condition()),
        Retire(NAME),
    ],
)
@pytest.mark.parametrize("caller", [ACME, ADMIN])
def test_a_tombstone_is_for_ever(operation: RecordOperation, caller: Caller) -> None:
    tombstone = replace(RECORD, values=(), status=Status.RETIRED)
    with pytest.raises(IdentifierRetired):
        decide(operation, tombstone, caller=caller)
    assert decide(Purge(NAME), tombstone, caller=ADMIN).record is None


FROZEN = replace(RECORD, status=Status.FROZEN)


@pytest.mark.parametrize(
    "operation",
    [
        Put(NAME, RECORD.values),
        Put(NAME, (), Status.FROZEN),
        Modify(NAME),
        Modify(NAME, status=Status.FROZEN),
        Modify(NAME, set=(value(3),)),
    ],
)
def test_a_frozen_record_does_not_change(operation: RecordOperation) -> None:
    with pytest.raises(RecordFrozen):
        decide(operation, FROZEN)


def test_a_frozen_record_can_be_thawed_or_retired() -> None:
    thawed = decide(Modify(NAME, status=Status.ACTIVE), FROZEN).record
    assert (thawed.status, thawed.values) == (Status.ACTIVE, RECORD.values)
    assert decide(Put(NAME, (), Status.DRAFT), FROZEN).record.status is Status.DRAFT
    assert decide(Retire(NAME), FROZEN).record.status is Status.RETIRED


@pytest.mark.parametrize(
    "operation",
    [
        Create(NAME, (), Status.RETIRED),
        Put(NAME, (), Status.RETIRED),
        Modify(NAME, status=Status.RETIRED),
    ],
)
def test_retiring_is_an_operation_not_a_status(operation: RecordOperation) -> None:
    with pytest.raises(InvalidRecord) as error:
        decide(operation, None if isinstance(operation, Create) else RECORD)
    assert error.value.fields["path"] == "status"


@pytest.mark.parametrize(
    "operation",
    [
        Put(NAME, (value(1), value(2, b"other", "1010"))),
        Put(NAME, (value(1), value(2, permissions="1110"))),
        Put(NAME, (value(1),)),
        Modify(NAME, set=(value(2, b"other", "1010"),)),
        Modify(NAME, set=(replace(value(2, permissions="1010"), ttl=5),)),
        Modify(NAME, remove=(2,)),
        Modify(NAME, remove=(2,), set=(value(2, b"other"),)),
    ],
)
@pytest.mark.parametrize("caller", [ACME, ADMIN])
def test_a_value_without_admin_write_stays(operation: RecordOperation, caller: Caller) -> None:
    with pytest.raises(ValueReadOnly) as error:
        decide(operation, LOCKED, caller=caller)
    assert error.value.fields["index"] == 2


@pytest.mark.parametrize(
    "operation",
    [
        Put(NAME, (value(1, b"new"), value(2, permissions="1010"))),
        Modify(NAME, set=(value(1, b"new"), value(2, permissions="1010"))),
        Modify(NAME, set=(value(1, b"new"),)),
    ],
)
def test_a_read_only_value_may_be_sent_again_and_keeps_its_time(operation: RecordOperation) -> None:
    record = decide(operation, LOCKED).record
    assert record.value(1).data == b"new"
    assert record.value(2) == LOCKED.value(2)
    assert decide(Retire(NAME), LOCKED).record.values == ()


def test_secret_keys_are_never_public() -> None:
    """In either spelling, by any operation, for anybody."""
    for type_ in ("HS_SECKEY", "hs_seckey"):
        public = value(3, permissions="1110", type_=type_)
        tried: list[tuple[RecordOperation, Record | None]] = [
            (Create(NAME, (public,)), None),
            (Put(NAME, (public,)), None),
            (Put(NAME, (public,)), RECORD),
            (Modify(NAME, set=(public,)), RECORD),
        ]
        for operation, current in tried:
            with pytest.raises(InvalidRecord):
                decide(operation, current, caller=ADMIN)
        private = replace(public, permissions=Permissions.parse("1100"))
        record = decide(Modify(NAME, set=(private,))).record
        assert [v.index for v in record.public().values] == [1, 2]
        assert [v.index for v in record.readable().values] == [1, 2]


def test_slashes_in_new_suffixes_can_be_refused() -> None:
    name = Identifier("88.118.8", "a/b")
    assert decide(Create(name, ()), None).record.identifier == name
    for operation in (Create(name, ()), Put(name, ())):
        with pytest.raises(InvalidRecord):
            decide(operation, None, strict_slash=True)
    # What is registered already stays changeable.
    old = replace(RECORD, identifier=name)
    assert decide(Put(name, ()), old, strict_slash=True).record.identifier == name


def test_templates_are_identifiers() -> None:
    for operation in (Put(NAME, (), template="x"), Modify(NAME, template="x")):
        with pytest.raises(InvalidIdentifier):
            decide(operation)
    assert decide(Modify(NAME, template="hdl:88.118.8/t")).record.template == "88.118.8/t"


# Conditions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "holds_of_none", "holds"),
    [
        (None, True, True),
        (Condition(), False, True),
        (Condition(absent=True), True, False),
        (Condition(version=3), False, True),
        (Condition(version=2), False, False),
        (Condition(version=4), False, False),
        (Condition(version=3, sequence=7), False, True),
        (Condition(version=3, sequence=8), False, False),
    ],
)
def test_conditions(condition: Condition | None, holds_of_none: bool, holds: bool) -> None:
    for current, good in ((None, holds_of_none), (RECORD, holds)):
        if good:
            assert decide(Put(NAME, (), condition=condition), current).record is not None
        else:
            with pytest.raises(VersionMismatch):
                decide(Put(NAME, (), condition=condition), current)
    operations = (
        Modify(NAME, condition=condition),
        Retire(NAME, condition=condition),
        Purge(NAME, condition=condition),
    )
    for operation in operations:
        if holds:
            decide(operation, caller=ADMIN)
        else:
            with pytest.raises(VersionMismatch):
                decide(operation, caller=ADMIN)


def test_a_mismatch_says_what_is_there() -> None:
    with pytest.raises(VersionMismatch) as error:
        decide(Put(NAME, (), condition=Condition(version=3, sequence=8)))
    assert "3.7" in error.value.detail.en
    assert "3.8" in error.value.detail.en
    assert error.value.fields["version"] == 3
