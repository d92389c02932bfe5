"""Names that carry their proof, schedules, and what may be loaded."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from bench.names import ListedNames, OwnNames, from_document, read_trace, to_document
from bench.schedule import KINDS, Load, misses_repeat, parse_mix, plan, popular
from bench.target import parse_target
from bench.words import BenchFault
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Status, Value
from biaojie.wire.document import encode_record

NAMES = OwnNames("88.118.8", 1_000)


def test_an_answer_proves_its_name_and_generation() -> None:
    for generation in (0, 1, 1_700_000_000_000):
        data = NAMES.data(5, generation)
        assert len(data) == NAMES.value_octets
        right = (NAMES.name(5), ((1, "URL", data),))
        assert NAMES.generation_of(5, right) == generation
        assert NAMES.generation_of(6, right) is None
        assert NAMES.generation_of(6, (NAMES.name(6), right[1])) is None
    assert NAMES.data(5, 0) != NAMES.data(5, 1) != NAMES.data(6, 1)


@pytest.mark.parametrize(
    "values",
    [
        (),
        ((2, "URL", NAMES.data(5, 0)),),
        ((1, "EMAIL", NAMES.data(5, 0)),),
        ((1, "URL", NAMES.data(5, 0) + b"0"),),
        ((1, "URL", NAMES.data(5, 0)[:-1]),),
        ((1, "URL", NAMES.data(5, 0)[:-1] + b"\n"),),
        ((1, "URL", b"https://bench.example/zz/"),),
        ((1, "URL", b""),),
        ((1, "URL", NAMES.data(5, 0)), (2, "URL", b"more")),
    ],
)
def test_any_other_answer_is_wrong(values: tuple[tuple[int, str, bytes], ...]) -> None:
    assert NAMES.generation_of(5, (NAMES.name(5), values)) is None


def test_numbers_of_names() -> None:
    assert NAMES.number_of(NAMES.name(999)) == 999
    for strange in (
        "88.118.8/B-1000",
        "88.118.8/B-1",
        "88.118.9/B-0000000001",
        "B",
        NAMES.unknown(3),
    ):
        assert NAMES.number_of(strange) is None
    assert NAMES.number_of(OwnNames("88.118.8", 2_000).name(1_500)) is None
    assert from_document(json.loads(json.dumps(to_document(NAMES)))) == NAMES


def _line(suffix: str, status: Status = Status.ACTIVE) -> str:
    values = (
        Value(1, "URL", b"https://example.com/"),
        Value(2, "NOTE", b"private", permissions=Permissions(0x0C)),
        Value(3, "BIN", b"\xff\x00"),
    )
    return json.dumps(encode_record(Record(Identifier("88.118.2", suffix), values, status)))


def test_an_existing_list(tmp_path: Path) -> None:
    file = tmp_path / "list.ndjson"
    lines = [_line("a"), _line("b", Status.DRAFT), "", _line("c", Status.RETIRED), _line("编号/1")]
    file.write_text("\n".join(lines), encoding="utf-8")
    names = ListedNames(file)
    assert [names.name(n) for n in range(names.count)] == ["88.118.2/a", "88.118.2/编号/1"]
    public = ((1, "URL", b"https://example.com/"), (3, "BIN", b"\xff\x00"))
    assert names.generation_of(0, ("88.118.2/a", public)) == 0
    assert names.generation_of(1, ("88.118.2/a", public)) is None
    assert names.generation_of(0, ("88.118.2/a", public[:1])) is None
    file.write_text("88.118.2/a\n")
    with pytest.raises(BenchFault):
        ListedNames(file)


def test_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(f"{NAMES.name(3)}\n\n{NAMES.name(1)}\n")
    assert list(read_trace(file, NAMES, 10)) == [3, 1]
    schedule = plan(Load(10, {"hit": 1}, f"trace:{file}"), NAMES, seconds=1)
    assert list(schedule.numbers[:4]) == [3, 1, 3, 1]
    file.write_text(f"{NAMES.name(3)}\n88.118.8/other\n")
    with pytest.raises(BenchFault, match="line 2"):
        read_trace(file, NAMES, 10)


# Schedules ------------------------------------------------------------------------------


@pytest.mark.parametrize("arrivals", ["poisson", "even"])
def test_a_schedule_has_the_rate_and_mix_asked_for(arrivals: str) -> None:
    load = Load(
        5_000,
        {"hit": 70, "miss": 10, "unknown": 15, "auth": 5},
        arrivals=arrivals,  # type: ignore[arg-type]
        cold=500,
    )
    schedule = plan(load, NAMES, seconds=4)
    assert list(schedule.offsets_s) == sorted(schedule.offsets_s)
    assert len(schedule) / schedule.period_s == pytest.approx(5_000, rel=0.05)
    shares = Counter(KINDS[kind] for kind in schedule.kinds)
    for kind, share in load.mix.items():
        assert shares[kind] / len(schedule) == pytest.approx(share / 100, rel=0.15)
    for kind, number in zip(schedule.kinds, schedule.numbers, strict=True):
        if KINDS[kind] == "miss":
            assert 500 <= number < 1_000
        elif KINDS[kind] != "unknown":
            assert 0 <= number < 500
    again = plan(load, NAMES, seconds=4)
    assert (again.offsets_s, again.numbers) == (schedule.offsets_s, schedule.numbers)


def test_poisson_arrivals_come_in_bursts_and_even_ones_do_not() -> None:
    gaps = {}
    for arrivals in ("poisson", "even"):
        load = Load(1_000, {"hit": 1}, arrivals=arrivals)  # type: ignore[arg-type]
        at = plan(load, NAMES, seconds=10).offsets_s
        gaps[arrivals] = [after - before for before, after in itertools.pairwise(at)]
    assert max(gaps["even"]) == pytest.approx(0.001)
    mean = sum(gaps["poisson"]) / len(gaps["poisson"])
    deviation = (sum((gap - mean) ** 2 for gap in gaps["poisson"]) / len(gaps["poisson"])) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)


def test_parts_are_different_and_add_up_and_misses_are_asked_once() -> None:
    load = Load(1_000, {"miss": 1}, cold=900)
    parts = [plan(load, NAMES, seconds=0.4, part=part, parts=3) for part in range(3)]
    assert sum(len(part) / part.period_s for part in parts) == pytest.approx(1_000, rel=0.2)
    asked = [number for part in parts for number in part.numbers]
    assert len(set(asked)) == len(asked)
    assert not misses_repeat(load, 0.8)
    assert misses_repeat(load, 1.0)


def test_a_schedule_repeats_with_its_times_going_on() -> None:
    schedule = plan(Load(100, {"hit": 1}, arrivals="even"), NAMES, seconds=0.1)
    arrivals = schedule.arrivals()
    taken = [next(arrivals) for _ in range(3 * len(schedule))]
    assert [number for _, _, number in taken[: len(schedule)]] == [
        number for _, _, number in taken[len(schedule) : 2 * len(schedule)]
    ]
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(taken)]
    assert gaps == pytest.approx([0.01] * len(gaps))


def test_zipf_is_skewed_and_uniform_is_not() -> None:
    most = {}
    for keys in ("zipf:0.99", "zipf:1.5", "uniform"):
        numbers = plan(Load(20_000, {"hit": 1}, keys), NAMES, seconds=1).numbers
        counted = Counter(numbers)
        most[keys] = counted.most_common(1)[0][1] / len(numbers)
        assert len(counted) > 300
    assert most["uniform"] < 0.005
    assert most["zipf:0.99"] == pytest.approx(1 / sum(k**-0.99 for k in range(1, 1_001)), rel=0.1)
    assert most["zipf:1.5"] > 0.35


def test_written_names_are_spread_over_popularity() -> None:
    numbers = plan(Load(20_000, {"hit": 1}, "zipf:0.99"), NAMES, seconds=1).numbers
    written = popular(1_000, 20)
    assert len(set(written)) == 20
    assert written[0] == Counter(numbers).most_common(1)[0][0]


@pytest.mark.parametrize(
    "load",
    [
        Load(0, {"hit": 1}),
        Load(1, {"hit": 1}, cold=1_000),
        Load(1, {"hit": 1, "miss": 1}),
        Load(1, {"hit": 1}, "zipf:x"),
        Load(1, {"hit": 1}, "zipf:-1"),
        Load(1, {"hit": 1}, "often"),
        Load(1, {"hit": 1}, "trace:/no/such/file"),
    ],
)
def test_loads_that_cannot_be_planned(load: Load) -> None:
    with pytest.raises(BenchFault):
        plan(load, NAMES, seconds=1)


@pytest.mark.parametrize("text", ["", "hit", "hit=x", "hit=-1", "hits=1", "hit=0", "hit=nan"])
def test_mixes_that_are_none(text: str) -> None:
    with pytest.raises(BenchFault):
        parse_mix(text)


# Targets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "front", "port"),
    [
        ("http://127.0.0.1:8080", "http", 8080),
        ("http://localhost", "http", 80),
        ("http://[::1]:8080/node", "http", 8080),
        ("hdl://127.0.0.1", "hdl-tcp", 2641),
        ("hdl+udp://127.0.0.1:99", "hdl-udp", 99),
        ("biaojie://127.0.0.1", "native", 2650),
        ("biaojie+unix:///run/node.sock", "native", 0),
    ],
)
def test_targets(url: str, front: str, port: int) -> None:
    target = parse_target(url)
    assert (target.front, target.port) == (front, port)
    assert target.loopback


def test_other_machines_are_refused_unless_owned() -> None:
    with pytest.raises(BenchFault, match="i-own-this-target"):
        parse_target("http://192.0.2.1:8080")
    assert not parse_target("http://192.0.2.1:8080", own=True).loopback


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "https://127.0.0.1", "http://", "http://h:x", "ftp://127.0.0.1"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(BenchFault):
        parse_target(url)
