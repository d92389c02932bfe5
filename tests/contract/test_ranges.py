"""Ranges on every store: one row answers for all members, and no layer shows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import pytest

from biaojie.errors import (
    BiaojieError,
    IdentifierRetired,
    IdentifierTaken,
    InvalidRecord,
    NotFound,
    RangeTaken,
    RecordFrozen,
)
from biaojie.identifier import Identifier, Key
from biaojie.record import Record, Status, Value
from registry.admission import SYSTEM
from registry.indexing import index_page
from registry.matching import Criterion
from registry.operations import (
    ChangePrefix,
    Create,
    CutRange,
    HomePrefix,
    Modify,
    Operation,
    Purge,
    Put,
    RegisterRange,
    Retire,
)
from registry.patterns import parse_pattern
from registry.ranges import SHAPES_MAX
from registry.registrar import Registrar
from registry.store import Store
from tests.contract.sample import PREFIX

URL = Value(1, "URL", b"https://acme.example/p/{suffix}")


@pytest.fixture
async def registrar(store: Store) -> AsyncIterator[Registrar]:
    registrar = Registrar(store, clock=lambda: 1_700_000_000)
    registrar.start()
    await submit(registrar, HomePrefix(PREFIX, "acme"), HomePrefix("88.118.9", "globex"))
    yield registrar
    await registrar.stop()


async def submit(registrar: Registrar, *operations: Operation) -> int:
    outcome = await registrar.submit(SYSTEM, operations)
    for result in outcome.results:
        assert not isinstance(result, BiaojieError), result
    return outcome.sequence


def ranged(pattern: str, prefix: str = PREFIX, status: Status = Status.ACTIVE) -> RegisterRange:
    return RegisterRange(prefix, parse_pattern(pattern), (URL,), status, "88.118.8/T")


def cut(pattern: str, *, purge: bool = False) -> CutRange:
    return CutRange(PREFIX, parse_pattern(pattern), purge)


def name(suffix: str) -> Identifier:
    return Identifier(PREFIX, suffix)


async def found(store: Store, *suffixes: str) -> list[Record | None]:
    return [f.record for f in await store.look_up([name(each).key() for each in suffixes])]


async def listed(store: Store, page: int, after: bytes | None = None) -> list[str]:
    names: list[str] = []
    while records := await store.list_records(PREFIX, after, page):
        names += [record.identifier.suffix for record in records]
        after = records[-1].identifier.key().suffix
        if len(records) < page:
            break
    return names


async def test_a_hundred_million_in_one_commit(store: Store, registrar: Registrar) -> None:
    sequence = await submit(registrar, ranged("SN{00000000..99999999}"))
    first, last, folded, *none = await found(
        store, "SN00000000", "SN99999999", "sn12345678", "SN1234567", "SN123456789", "SX00000000"
    )
    assert none == [None, None, None]
    assert first == Record(
        name("SN00000000"),
        (Value(1, "URL", b"https://acme.example/p/SN00000000", timestamp=1_700_000_000),),
        template="88.118.8/T",
        created=1_700_000_000,
        modified=1_700_000_000,
        sequence=sequence,
    )
    assert last is not None
    assert last.identifier == name("SN99999999")
    assert folded is not None
    assert folded.identifier == name("SN12345678"), "spelled as the pattern is"
    assert await store.newest_record_sequence() == sequence
    [entry] = await store.list_changes(sequence - 1, 10)
    assert (entry.action, entry.count, entry.prefix) == ("register-range", 1, PREFIX)
    [held] = await store.list_ranges(PREFIX, None, 10)
    assert held.pattern.count == 100_000_000
    assert (await store.look_up([Key("88.118.9", b"SN00000000")]))[0].record is None
    page = await store.list_records(PREFIX, b"SN55555554", 3)
    assert [r.identifier.suffix for r in page] == ["SN55555555", "SN55555556", "SN55555557"]
    assert await store.list_records(PREFIX, b"SN99999999", 3) == []


async def test_check_digits_and_steps(store: Store, registrar: Registrar) -> None:
    await submit(registrar, ranged("G{590123412345..590123412365..10+gs1}"))
    assert await listed(store, 2) == ["G5901234123457", "G5901234123556", "G5901234123655"]
    right, wrong, between = await found(store, "G5901234123556", "G5901234123550", "G5901234123464")
    assert right is not None
    assert (wrong, between) == (None, None)
    await submit(registrar, Create(name("G5901234123550"), ()))  # no member: free


async def test_a_member_is_changed_as_any_record_is(store: Store, registrar: Registrar) -> None:
    await submit(registrar, ranged("S{00..99}"))
    with pytest.raises(IdentifierTaken):
        await submit(registrar, Create(name("S05"), ()))
    changed = await submit(registrar, Modify(name("s05"), (Value(2, "EMAIL", b"a@b.example"),)))
    await submit(registrar, Modify(name("S06"), status=Status.FROZEN))
    with pytest.raises(RecordFrozen):
        await submit(registrar, Put(name("S06"), ()))
    await submit(registrar, Retire(name("S07")))
    with pytest.raises(IdentifierRetired):
        await submit(registrar, Put(name("S07"), ()))
    await submit(registrar, Purge(name("S08")))
    own, frozen, retired, purged, other = await found(store, "S05", "S06", "S07", "S08", "S09")
    assert own is not None
    assert (own.version, own.sequence, len(own.values)) == (2, changed, 2)
    assert own.values[0].data == b"https://acme.example/p/S05"
    assert own.identifier == name("S05")
    assert frozen is not None
    assert frozen.status is Status.FROZEN
    assert retired is not None
    assert (retired.status, retired.version) == (Status.RETIRED, 2)
    assert purged is None
    assert other is not None
    assert other.version == 1
    assert await listed(store, 7) == [f"S{n:02}" for n in range(100) if n != 8]
    await submit(registrar, Create(name("S08"), ()))
    assert await listed(store, 9) == [f"S{n:02}" for n in range(100)]


async def test_frozen_from_the_beginning(store: Store, registrar: Registrar) -> None:
    await submit(registrar, ranged("S{00..99}", status=Status.FROZEN))
    with pytest.raises(RecordFrozen):
        await submit(registrar, Put(name("S06"), ()))
    await submit(registrar, Put(name("S06"), (), Status.ACTIVE))


@pytest.mark.parametrize(
    ("pattern", "place", "of"),
    [
        ("s{0050..0150}", "S0100", "S{0100..0200}"),
        ("S{0150..0160..7}", "S0150", "S{0100..0200}"),
        ("S0{100..100}", "S0100", "S{0100..0200}"),
        ("S{000..999+luhn}", "S0100", "S{0100..0200}"),  # no two of one shape may interleave
        ("R{0..9}", "R5", None),
        ("R{00..99..11}", "R55", None),
    ],
)
async def test_overlap_is_refused_with_its_place(
    registrar: Registrar, store: Store, pattern: str, place: str, of: str | None
) -> None:
    await submit(
        registrar,
        ranged("S{0100..0200}"),
    )
    await submit(registrar, Create(name("r5"), ()), Create(name("R55"), ()))
    before = await store.head()
    with pytest.raises(RangeTaken) as caught:
        await submit(registrar, ranged(pattern))
    assert caught.value.fields["place"].upper() == f"{PREFIX}/{place}"
    assert caught.value.fields.get("range") == (of and f"{PREFIX}/{of}")
    assert await store.head() == before
    for free in ("S{0000..0099}", "S{0201..0300}", "S{000..999}", "S{0100..0200}x", "R{6..9}"):
        await submit(registrar, ranged(free))
    await submit(registrar, ranged("S{0100..0200}", "88.118.9"))


async def test_tombstones_are_in_the_way_and_purged_names_are_not(
    store: Store, registrar: Registrar
) -> None:
    await submit(registrar, ranged("S{00..99}"))
    await submit(registrar, Purge(name("S05")))
    await submit(registrar, Retire(name("S06")))
    await submit(registrar, cut("S{00..99}", purge=True))
    assert await listed(store, 10) == ["S06"]
    with pytest.raises(RangeTaken):
        await submit(registrar, ranged("S{00..09}"))
    await submit(registrar, ranged("S{00..05}"))
    assert await listed(store, 10) == [f"S{n:02}" for n in range(7)]
    [five] = await found(store, "S05")
    assert five is not None
    assert five.version == 1


async def test_cutting(store: Store, registrar: Registrar) -> None:
    made = await submit(registrar, ranged("S{0000..9999}"))
    await submit(registrar, Put(name("S0150"), (URL,)))
    gone = await submit(registrar, cut("s{0100..0199}"))
    inside, own, below, above = await found(store, "S0199", "S0150", "S0099", "S0200")
    assert inside is not None
    assert (inside.status, inside.values, inside.version) == (Status.RETIRED, (), 2)
    assert inside.sequence == gone
    assert own is not None
    assert own.status is Status.ACTIVE, "what was changed on its own has a life of its own"
    assert below is not None
    assert above is not None
    assert (below.version, below.sequence, above.sequence) == (1, made, made)
    with pytest.raises(IdentifierRetired):
        await submit(registrar, Create(name("S0100"), ()))
    with pytest.raises(IdentifierRetired):
        await submit(registrar, cut("S{0120..0130}"))
    await submit(registrar, cut("S{0000..0120}", purge=True))
    assert await found(store, "S0000", "S0120") == [None, None]
    held = await store.list_ranges(PREFIX, None, 10)
    assert [(str(each.pattern), each.rule.status) for each in held] == [
        ("S{0121..0199}", Status.RETIRED),
        ("S{0200..9999}", Status.ACTIVE),
    ]
    [entry] = await store.list_changes(gone - 1, 1)
    assert (entry.action, entry.sequence) == ("cut-range", gone)
    assert [(c.subject.partition("/")[2], any(c.digest)) for c in entry.changes] == [
        ("S{0000..9999}", False),
        ("S{0000..0099}", True),
        ("S{0100..0199}", True),
        ("S{0200..9999}", True),
    ]
    for nothing in ("S{00..99}", "X{0..9}", "S{0000..0050}", "S{000..999+luhn}"):
        with pytest.raises(NotFound):
            await submit(registrar, cut(nothing))
    with pytest.raises(InvalidRecord):
        await submit(registrar, cut("S{0200..0300..2}"))


async def test_shapes_are_bounded(registrar: Registrar) -> None:
    for number in range(SHAPES_MAX):
        await submit(
            registrar, ranged(f"{chr(ord('A') + number % 26)}{'x' * (number // 26)}{{0..9}}")
        )
    with pytest.raises(InvalidRecord):
        await submit(registrar, ranged("one-more{0..9}"))
    await submit(registrar, cut("A{0..9}", purge=True))
    await submit(registrar, ranged("one-more{0..9}"))


async def test_another_process_sees_them_at_once(
    store: Store, peer: Store, registrar: Registrar
) -> None:
    assert await found(peer, "S5", "S6") == [None, None]
    await submit(registrar, ranged("S{0..9}"))
    assert None not in await found(peer, "S5", "S6")
    await submit(registrar, cut("S{0..9}", purge=True))
    assert await found(peer, "S5", "S6") == [None, None]


async def test_range_operations_do_not_share_a_commit(store: Store, registrar: Registrar) -> None:
    outcomes = await asyncio.gather(
        *(
            registrar.submit(SYSTEM, [operation])
            for operation in (
                Create(name("A1"), ()),
                ranged("A{0..9}"),
                ranged("B{0..9}"),
                Create(name("B1"), ()),
                ranged("B{5..6}"),
                cut("B{5..5}"),
            )
        ),
        return_exceptions=True,
    )
    kinds = [type(o).__name__ if isinstance(o, Exception) else "" for o in outcomes]
    assert kinds == ["", "RangeTaken", "", "IdentifierTaken", "RangeTaken", ""]
    assert await listed(store, 3) == ["A1", *(f"B{n}" for n in range(10))]


class Model:
    """The same by a plain dictionary: suffix → status and version."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[Status, int]] = {}

    def apply(self, operation: Operation) -> bool:
        """Whether it is accepted."""
        records = self.records
        match operation:
            case RegisterRange(_, pattern):
                members = [pattern.spelled(n) for n in range(pattern.first, pattern.last + 1)]
                if any(member in records for member in members):
                    return False
                records.update(dict.fromkeys(members, (Status.ACTIVE, 1)))
                return True
            case Create(identifier):
                if identifier.suffix in records:
                    return False
                records[identifier.suffix] = (Status.ACTIVE, 1)
                return True
            case Put(identifier) | Retire(identifier):
                status, version = records.get(identifier.suffix, (Status.ACTIVE, 0))
                retires = isinstance(operation, Retire)
                if status is Status.RETIRED or (retires and not version):
                    return False
                after = Status.RETIRED if retires else Status.ACTIVE
                records[identifier.suffix] = (after, version + 1)
                return True
            case Purge(identifier):
                return records.pop(identifier.suffix, None) is not None
        raise AssertionError(operation)


def some_operation(dice: random.Random) -> Operation:
    low = dice.randrange(100)
    stem = dice.choice(("A", "A", "B1-"))
    end = dice.choice(("", "", "Z"))
    if dice.random() < 0.2:
        high = min(low + dice.randrange(30), 99)
        return ranged(f"{stem}{{{low:02}..{high:02}}}{end}")
    identifier = name(f"{stem}{low:02}{end}" if dice.random() < 0.9 else f"{stem}{low}X")
    kind = dice.choice((Create, Put, Put, Retire, Purge, Purge))
    return kind(identifier, ()) if kind in (Create, Put) else kind(identifier)  # type: ignore[call-arg]


@pytest.mark.parametrize("seed", range(2))
async def test_layers_do_not_show(store: Store, registrar: Registrar, seed: int) -> None:
    dice = random.Random(seed)
    model = Model()
    for turn in range(150):
        operation = some_operation(dice)
        accepted = model.apply(operation)
        outcome = await registrar.submit(SYSTEM, [operation], mode="valid-rows")
        refused = isinstance(outcome.results[0], BiaojieError)
        assert refused != accepted, (turn, operation, outcome)
        if turn % 50 == 49:
            await check(store, model, dice)
    await check(store, model, dice)


async def check(store: Store, model: Model, dice: random.Random) -> None:
    def state(records: Sequence[Record]) -> dict[str, tuple[Status, int]]:
        return {r.identifier.suffix: (r.status, r.version) for r in records}

    everything = await store.list_records(PREFIX, None, 1_000)
    assert state(everything) == model.records
    assert [r.identifier.suffix for r in everything] == sorted(model.records)
    after = f"A{dice.randrange(100):02}"
    rest = [suffix for suffix in sorted(model.records) if suffix > after]
    assert await listed(store, dice.randrange(5, 40), after.encode()) == rest
    names = [f"{stem}{n:02}{end}" for stem in ("A", "B1-") for n in range(100) for end in ("", "Z")]
    looked_up = [record for record in await found(store, *names) if record is not None]
    assert state(looked_up) == {n: s for n, s in model.records.items() if n in names}


async def test_members_are_not_indexed_one_by_one(store: Store, registrar: Registrar) -> None:
    """Declaring a type searchable reads records, of which a range has none."""
    await submit(registrar, ranged("SN{00000000..99999999}"))
    await submit(registrar, Create(name("T1"), (URL,)))
    await submit(registrar, Put(name("SN00000005"), (URL,)))
    await submit(registrar, ChangePrefix(PREFIX, searchable=("URL",)))
    for _ in range(3):
        [prefix] = (await store.find_prefixes([PREFIX])).values()
        if not await index_page(store, prefix):
            break
    matched = await store.find_matches(
        Criterion("URL", URL.data).digest, private=True, prefix=None, after=Key("", b""), limit=9
    )
    assert matched == [Key(PREFIX, b"SN00000005"), Key(PREFIX, b"T1")]
    await submit(registrar, Put(name("SN00000006"), (URL,)), Retire(name("SN00000005")))
    matched = await store.find_matches(
        Criterion("URL", URL.data).digest, private=True, prefix=None, after=Key("", b""), limit=9
    )
    assert matched == [Key(PREFIX, b"SN00000006"), Key(PREFIX, b"T1")]
