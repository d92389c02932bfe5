"""What registering or cutting a range sees in its transaction, and what comes of it.

A range operation has its commit to itself: what `survey` found is all there is. Whether the
caller may is decided by `decide_record`, asked about one member as if it stood alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from biaojie.account import Prefix
from biaojie.change import Action
from biaojie.errors import IdentifierRetired, InvalidRecord, NotFound, RangeTaken, TooLarge
from biaojie.identifier import Identifier, fold_prefix
from biaojie.record import Status, check_values

from .admission import Caller, Right, authorize, decide_record
from .census import Layer, Shift, kind_of
from .members import Members
from .operations import Create, CutRange, Purge, RangeOperation, RegisterRange, Retire
from .patterns import Pattern, check_members, sought
from .ranges import CUT_RANGES_MAX, SHAPES_MAX, HeldRange, RangeKey, hold_range
from .store import BLOCKS_MAX, Found, Transaction

NAMES_PAGE = 1_000
NAMES_SEEN_MAX = 1_000_000
"""Other names between the first and the last member that a registration looks at."""


@dataclass(frozen=True, slots=True)
class Ground:
    """`ranges`: those with a run between the first and the last. For a registration also:
    `taken`, the first member there is a record of; `shapes`, how many others the prefix has. For
    a cut, `hidden`: of each of the ranges, how many of the members to be cut out have something
    of their own, a record or the mark of a purge, and stay as they are."""

    prefix: Prefix | None
    ranges: Sequence[HeldRange]
    taken: str | None = None
    shapes: int = 0
    hidden: Sequence[int] = ()


async def survey(tx: Transaction, operation: RangeOperation, case_sensitive: bool) -> Ground:
    """Raises InvalidIdentifier, and TooLarge where one commit may not look at all there is."""
    check_members(operation.prefix, operation.pattern)
    name = fold_prefix(operation.prefix)
    prefix = (await tx.find_prefixes([name])).get(name)
    if prefix is None:
        return Ground(None, ())
    pattern = operation.pattern
    shape = pattern.shape(case_sensitive=case_sensitive)
    first, last = pattern.runs
    ranges = await tx.find_ranges(RangeKey(name, shape, first), last, CUT_RANGES_MAX + 1)
    if isinstance(operation, CutRange):
        hidden = await _hidden(tx, name, pattern, ranges, case_sensitive)
        return Ground(prefix, ranges, hidden=hidden)
    others = set(await tx.range_shapes(name)) - {shape}
    taken = None if ranges else await _taken(tx, name, pattern, shape, case_sensitive)
    return Ground(prefix, ranges, taken, len(others))


async def _taken(
    tx: Transaction, prefix: str, pattern: Pattern, shape: bytes, case_sensitive: bool
) -> str | None:
    """The first member that a row or a block has; markers of purged ones are cleared away."""

    def member(suffix: bytes) -> str | None:
        runs = [each.run for each in sought(suffix) if each.shape == shape]
        number = pattern.number_of(runs[0]) if runs else None
        return None if number is None else f"{prefix}/{pattern.spelled(number)}"

    low, high = (
        pattern.key(number, case_sensitive=case_sensitive)
        for number in (pattern.first, pattern.last)
    )
    purged: list[bytes] = []
    seen = 0
    at: bytes | None = low
    while at is not None:
        rows = await tx.list_row_names(prefix, at, high, len(shape), NAMES_PAGE)
        for suffix, purge in rows:
            name = member(suffix)
            if name is not None and not purge:
                return name
            if name is not None:
                purged.append(suffix)
        at = rows[-1][0] + b"\0" if len(rows) == NAMES_PAGE else None
        seen = _counted(seen + len(rows))
    hidden = set(purged)
    at = low
    while at is not None:
        blocks = await tx.blocks_in(prefix, at, high)
        for block in blocks:
            for suffix, _ in Members(block.blob, block.size, block.sequence).all():
                name = member(suffix) if low <= suffix <= high else None
                if name is not None and suffix in hidden:
                    raise RangeTaken(
                        f"{name} was purged out of a block that still holds it; run"
                        " `biaojie compact` first.",
                        f"{name} 已彻底删除，但所在数据块尚未整理；请先运行 `biaojie compact`。",
                        place=name,
                    )
                if name is not None:
                    return name
            seen = _counted(seen + block.size)
        at = blocks[-1].last + b"\0" if len(blocks) == BLOCKS_MAX else None
    if purged:
        await tx.remove_rows(prefix, purged)
    return None


def _counted(seen: int) -> int:
    if seen > NAMES_SEEN_MAX:
        raise TooLarge(
            f"More than {NAMES_SEEN_MAX} other identifiers lie between the first and the last"
            " member; do it in parts.",
            f"首末成员之间已有超过 {NAMES_SEEN_MAX} 个其他标识；请分段处理。",
        )
    return seen


async def _hidden(
    tx: Transaction,
    prefix: str,
    wanted: Pattern,
    ranges: Sequence[HeldRange],
    case_sensitive: bool,
) -> list[int]:
    """See `Ground`. Raises TooLarge where one commit may not look at all there is."""
    cuts = [_cut_of(held, wanted) for held in ranges]
    hidden = [0] * len(cuts)
    if not any(cuts) or len(cuts) > CUT_RANGES_MAX:  # too many are refused
        return hidden
    shape = wanted.shape(case_sensitive=case_sensitive)
    low, high = (
        wanted.key(number, case_sensitive=case_sensitive) for number in (wanted.first, wanted.last)
    )

    def count(suffix: bytes) -> bool:
        """Whether it is a member."""
        for run in [each.run for each in sought(suffix) if each.shape == shape][:1]:
            for n, cut in enumerate(cuts):
                if cut is not None and cut.number_of(run) is not None:
                    hidden[n] += 1
                    return True
        return False

    having: set[bytes] = set()
    seen = 0
    at: bytes | None = low
    while at is not None:
        rows = await tx.list_row_names(prefix, at, high, len(shape), NAMES_PAGE)
        having |= {suffix for suffix, _ in rows if count(suffix)}
        at = rows[-1][0] + b"\0" if len(rows) == NAMES_PAGE else None
        seen = _counted(seen + len(rows))
    at = low
    while at is not None:
        blocks = await tx.blocks_in(prefix, at, high)
        for block in blocks:
            for suffix in Members(block.blob, block.size, block.sequence).suffixes():
                if low <= suffix <= high and suffix not in having:
                    count(suffix)
            seen = _counted(seen + block.size)
        at = blocks[-1].last + b"\0" if len(blocks) == BLOCKS_MAX else None
    return hidden


def _cut_of(held: HeldRange, wanted: Pattern) -> Pattern | None:
    """The members that are cut out, if there are some."""
    if held.pattern.check is not wanted.check:
        return None
    return held.pattern.cut(wanted.first, wanted.last)[1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Ranges that are gone, ranges that are there instead, by how much that changes the census,
    and what the receipt says."""

    action: Action
    gone: Sequence[HeldRange]
    made: Sequence[HeldRange]
    shift: Shift
    status: str
    version: int


def decide_range(
    operation: RangeOperation,
    caller: Caller,
    ground: Ground,
    now: int,
    sequence: int,
    *,
    strict_slash: bool,
) -> Outcome:
    """The ranges after the operation, as entry `sequence` writes them; raises what it is refused
    with."""
    if isinstance(operation, RegisterRange):
        return _register(operation, caller, ground, now, sequence, strict_slash)
    return _cut(operation, caller, ground, now, sequence, strict_slash)


def _register(
    operation: RegisterRange,
    caller: Caller,
    ground: Ground,
    now: int,
    sequence: int,
    strict_slash: bool,
) -> Outcome:
    prefix, pattern = operation.prefix, operation.pattern
    as_named = Create(
        _first(prefix, pattern), operation.values, operation.status, operation.template
    )
    found = Found(ground.prefix, None)
    made = decide_record(as_named, caller, found, now, strict_slash=strict_slash).record
    assert made is not None
    held = hold_range(made.at(sequence), pattern, sequence)
    # All members are as long as this one, so what it may hold they may.
    check_values(held.member(pattern.first).values)
    if ground.ranges:
        raise _overlap(held, ground.ranges[0])
    if ground.taken is not None:
        raise RangeTaken(
            f"{ground.taken} is already registered.",
            f"{ground.taken} 已被注册。",
            place=ground.taken,
        )
    if ground.shapes >= SHAPES_MAX:
        raise InvalidRecord(
            f"pattern: ranges under one prefix may have {SHAPES_MAX} shapes, and have them.",
            f"pattern：同一前缀下的号段最多 {SHAPES_MAX} 种形式，已达上限。",
            path="pattern",
        )
    kind = kind_of(fold_prefix(prefix), held.rule, Layer.RANGES)
    shift = Counter({kind: pattern.count})
    return Outcome(Action.REGISTER_RANGE, (), (held,), shift, held.rule.status, held.rule.version)


def _first(prefix: str, pattern: Pattern) -> Identifier:
    return Identifier(prefix, pattern.spelled(pattern.first))


def _overlap(held: HeldRange, other: HeldRange) -> RangeTaken:
    begins = max(held.pattern.runs[0], other.pattern.runs[0]).decode()
    prefix = held.rule.identifier.prefix
    place = f"{prefix}/{held.pattern.before}{begins}{held.pattern.after}"
    return RangeTaken(
        f"From {place} on it overlaps the range {other.name}.",
        f"自 {place} 起与号段 {other.name} 重叠。",
        place=place,
        range=other.name,
    )


def _cut(
    operation: CutRange,
    caller: Caller,
    ground: Ground,
    now: int,
    sequence: int,
    strict_slash: bool,
) -> Outcome:
    prefix, wanted = operation.prefix, operation.pattern
    authorize(
        caller,
        Right.PURGE if operation.purge else Right.WRITE,
        ground.prefix.tenant if ground.prefix else caller.tenant,
    )
    if len(ground.ranges) > CUT_RANGES_MAX:
        raise TooLarge(
            f"This cuts more than {CUT_RANGES_MAX} ranges; cut in parts.",
            f"一次最多涉及 {CUT_RANGES_MAX} 个号段；请分段处理。",
        )
    gone: list[HeldRange] = []
    made: list[HeldRange] = []
    retired = 0
    version = 0
    shift: Shift = Counter()
    for held, hidden in zip(ground.ranges, ground.hidden, strict=True):
        if held.pattern.check is not wanted.check:
            continue
        below, cut, above = held.pattern.cut(wanted.first, wanted.last)
        if cut is None:
            continue
        _check_steps(held, wanted, cut)
        if held.rule.status is Status.RETIRED and not operation.purge:
            retired += 1
            continue
        member = held.member(cut.first)
        kind = Purge if operation.purge else Retire
        found = Found(ground.prefix, member)
        decide_record(kind(member.identifier), caller, found, now, strict_slash=strict_slash)
        gone.append(held)
        if below is not None:
            made.append(held.having(below, sequence))
        sort = kind_of(fold_prefix(prefix), held.rule, Layer.RANGES)
        shift[sort] -= cut.count - hidden
        if not operation.purge:
            made.append(held.retired(cut, now, sequence))
            shift[sort._replace(state=Status.RETIRED)] += cut.count - hidden
        if above is not None:
            made.append(held.having(above, sequence))
        version = max(version, held.rule.version + 1)
    name = f"{prefix}/{wanted}"
    if not gone and retired:
        raise IdentifierRetired(f"{name} has been retired.", f"{name} 已注销。")
    if not gone:
        if ground.prefix is None:
            found = Found(None, None)
            as_named = Retire(_first(prefix, wanted))
            decide_record(as_named, caller, found, now, strict_slash=strict_slash)
        raise NotFound(f"No range has a member in {name}.", f"没有号段包含 {name} 中的成员。")
    status = "purged" if operation.purge else Status.RETIRED.value
    return Outcome(Action.CUT_RANGE, gone, made, shift, status, version)


def _check_steps(held: HeldRange, wanted: Pattern, cut: Pattern) -> None:
    """With a step of its own, a cut must mean all members between its first and its last."""
    if wanted.step == 1:
        return
    same = wanted.step == held.pattern.step or cut.count == 1
    if not same or (cut.first - wanted.first) % wanted.step:
        raise InvalidRecord(
            f"pattern: the step is not that of the range {held.name}; leave it out to cut all"
            " between the first and the last.",
            f"pattern：步长与号段 {held.name} 不一致；省略步长即移除首末之间的全部成员。",
            path="pattern",
        )
