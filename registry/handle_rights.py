"""What a Handle identity may do, by the HS_ADMIN values of a record and of its prefix.

An identity is a key value at a handle, such as `300:88.118.8/ADMIN`, whose holder has proved
to know the key. An HS_ADMIN value names an identity, or a group: an HS_VLIST value that lists
identities and other groups. Rights come from the record and from `0.NA/<prefix>` together;
creating and listing, which have no record, from the prefix alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from biaojie.errors import InvalidIdentifier
from biaojie.identifier import Identifier, Key, fold_prefix
from biaojie.record import Record, Reference, Value, fold_type
from biaojie.wire.handle.cursor import Malformed
from biaojie.wire.handle.typed import RIGHTS_ALL, Admin, AdminRight, decode_admin, decode_value_list

from .operations import Create, Modify, Purge, Put, RecordOperation, Retire
from .store import Found

GROUP_DEPTH_MAX = 4
GROUPS_MAX = 64
"""Groups read for one decision; what lies beyond gives no rights."""
PREFIXES = "0.NA"


@dataclass(frozen=True, slots=True)
class HandleIdentity:
    """`300:88.118.8/ADMIN`. `case_sensitive` is the node's rule for comparing suffixes."""

    identifier: Identifier
    index: int
    case_sensitive: bool = False

    def __str__(self) -> str:
        return f"{self.index}:{self.identifier}"

    def is_named_by(self, reference: Reference) -> bool:
        """Whether an admin reference means this identity; index 0 means any key there."""
        key = self.identifier.key(case_sensitive=self.case_sensitive)
        return reference.index in (0, self.index) and self.key_of(reference) == key

    def key_of(self, reference: Reference) -> Key | None:
        prefix, _, suffix = reference.identifier.partition("/")
        try:
            return Identifier(prefix, suffix).key(case_sensitive=self.case_sensitive)
        except InvalidIdentifier:
            return None


def prefix_identifier(prefix: str) -> Identifier:
    """Where the record of a prefix is: `88.118.8` → `0.NA/88.118.8`."""
    return Identifier(PREFIXES, fold_prefix(prefix))


def ancestors(prefix: str) -> list[str]:
    """`88.118.8.1` → `88.118.8`, `88.118`, `88`; at most 31, a prefix has 64 characters."""
    labels = prefix.split(".")
    return [".".join(labels[:count]) for count in range(len(labels) - 1, 0, -1)]


def full_admin(admin: Reference) -> Value:
    """The HS_ADMIN value that gives `admin` every right, at the usual index 100."""
    return Value(100, "HS_ADMIN", Admin(RIGHTS_ALL, admin).encode())


def admins(record: Record | None) -> list[tuple[int, Reference]]:
    """Rights and identity or group of each HS_ADMIN value; what cannot be read names nobody."""
    found = []
    for value in record.values if record is not None else ():
        if fold_type(value.type) == "HS_ADMIN":
            try:
                admin = decode_admin(value.data)
            except Malformed:
                continue
            found.append((admin.rights, admin.admin))
    return found


Fetch = Callable[[Sequence[Key]], Awaitable[list[Found]]]


async def groups_of(
    identity: HandleIdentity, named: Iterable[Reference], fetch: Fetch
) -> frozenset[Reference]:
    """Which of the `named` references are groups that the identity belongs to.

    Groups may list groups, four deep; loops end by themselves, and 64 are read at most.
    """
    members: dict[Reference, tuple[Reference, ...]] = {}
    wanted = {reference for reference in named if not identity.is_named_by(reference)}
    for _ in range(GROUP_DEPTH_MAX):
        fresh = sorted(wanted - members.keys(), key=lambda r: (r.identifier, r.index))
        fresh = fresh[: GROUPS_MAX - len(members)]
        keyed = [(r, key) for r in fresh if (key := identity.key_of(r)) is not None]
        if not keyed:
            break
        found = await fetch([key for _, key in keyed])
        for (reference, _), (_, record) in zip(keyed, found, strict=True):
            members[reference] = _listed(record, reference.index)
            wanted.update(members[reference])
    belongs: set[Reference] = set()
    for _ in range(GROUP_DEPTH_MAX):  # once for each level that groups can lie below another
        belongs |= {
            group
            for group, listed in members.items()
            if any(identity.is_named_by(member) or member in belongs for member in listed)
        }
    return frozenset(belongs)


def _listed(record: Record | None, index: int) -> tuple[Reference, ...]:
    value = record.value(index) if record is not None else None
    if value is None or fold_type(value.type) != "HS_VLIST":
        return ()
    try:
        return decode_value_list(value.data)
    except Malformed:
        return ()


def held(identity: HandleIdentity, groups: frozenset[Reference], *records: Record | None) -> int:
    """AdminRight bits that the HS_ADMIN values of `records` give to the identity."""
    rights = 0
    for record in records:
        for given, reference in admins(record):
            if reference in groups or identity.is_named_by(reference):
                rights |= given
    return rights


def needed(operation: RecordOperation, current: Record | None) -> int:
    """AdminRight bits without which the operation is refused."""
    match operation:
        case Create():
            return AdminRight.ADD_HANDLE
        case Put():
            if current is None:
                return AdminRight.ADD_HANDLE
            return AdminRight.ADD_HANDLE | AdminRight.DELETE_HANDLE
        case Retire() | Purge():
            return AdminRight.DELETE_HANDLE
        case Modify():
            return _needed_to_modify(operation, current)


def _needed_to_modify(operation: Modify, current: Record | None) -> int:
    before = {value.index: value for value in current.values} if current is not None else {}
    rights = 0
    for value in operation.set:
        old = before.get(value.index)
        if old is None:
            rights |= AdminRight.ADD_ADMIN if _is_admin(value) else AdminRight.ADD_VALUE
        elif _is_admin(value) or _is_admin(old):
            rights |= AdminRight.MODIFY_ADMIN
        else:
            rights |= AdminRight.MODIFY_VALUE
    for index in operation.remove:
        old = before.get(index)
        admin = old is not None and _is_admin(old)
        rights |= AdminRight.REMOVE_ADMIN if admin else AdminRight.REMOVE_VALUE
    if operation.status is not None or operation.template is not None:
        rights |= AdminRight.MODIFY_VALUE
    return rights


def _is_admin(value: Value) -> bool:
    return fold_type(value.type) == "HS_ADMIN"
