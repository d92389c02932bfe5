"""Adding up, searching for the peak, planning, and what the command line says."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.commands import app
from bench.histogram import Histogram, from_pairs, merged
from bench.peak import Goal, search
from bench.plan import Figure, Goals, plan
from bench.report import report
from bench.run import Shape, added_up, lags
from bench.schedule import Load
from bench.words import BenchFault
from biaojie.limits import TTL_MAX_S

# Histograms -----------------------------------------------------------------------------


def test_histograms_of_processes_merge_without_loss() -> None:
    draw = random.Random(7)
    values = [int(draw.lognormvariate(6, 1.5)) + 1 for _ in range(20_000)]
    whole = Histogram()
    parts = [Histogram() for _ in range(4)]
    for position, value in enumerate(values):
        whole.add_us(value)
        parts[position % 4].add_us(value)
    together = merged(part.encode() for part in parts)
    assert together.summary() == whole.summary()
    values.sort()
    for percentile in (50, 90, 99, 99.9):
        exact = values[int(len(values) * percentile / 100) - 1] / 1e3
        assert together.percentile_ms(percentile) == pytest.approx(exact, rel=0.002)
    assert together.max_ms() == pytest.approx(values[-1] / 1e3, rel=0.002)
    assert together.count == 20_000


def test_histograms_of_the_c_driver_and_the_ends_of_the_range() -> None:
    histogram = from_pairs([[1, 2], [2_000, 3], [70_000_000, 1]])
    assert histogram.count == 6
    assert histogram.percentile_ms(50) == pytest.approx(2.0, rel=0.001)
    assert histogram.max_ms() == pytest.approx(60_000, rel=0.001)
    histogram.add_us(-5)
    histogram.add_us(TTL_MAX_S)
    assert histogram.count == 8
    assert Histogram().summary()["p99_ms"] == 0.0
    assert all(ms >= 0 for _, ms in Histogram().curve())


# Adding up ------------------------------------------------------------------------------


def book(right: int, took_us: int, *, wrong: int = 0, late_us: int = 10) -> dict[str, Any]:
    latency, lateness = Histogram(), Histogram()
    latency.add_us(took_us, right)
    lateness.add_us(late_us, right)
    return {
        "right": {"hit": right},
        "failed": {"lost": 1},
        "sources": {"hit cache": right},
        "refused": 2,
        "wrong": wrong,
        "first_wrong": [f"name {n}" for n in range(wrong)],
        "scheduled": right + 3 + wrong,
        "reconnects": 1,
        "octets": right * 100,
        "latencies": {"hit": latency.encode()},
        "refusals": Histogram().encode(),
        "lateness": lateness.encode(),
        "seconds": [[right, 2, 0, wrong, took_us], [0, 0, 1, 0, 5]][: 1 + (right > 100)],
    }


def test_books_add_up() -> None:
    readers = [
        {"book": book(100, 1_000), "busy": 0.2},
        {"book": book(300, 5_000, wrong=1), "busy": 0.4},
    ]
    result = added_up(readers, [], Load(50, {"hit": 1}), Shape(duration_s=4))
    assert result["counts"] == {
        "scheduled": 407,
        "right": 400,
        "refused": 4,
        "failed": 2,
        "wrong": 1,
    }
    assert result["rate"] == 100
    assert result["answer_octets"] == 100
    assert result["latency"]["p50_ms"] == pytest.approx(5, rel=0.001)
    assert result["latency"]["count"] == 400
    assert result["seconds"] == [[400, 4, 0, 1, 5_000], [0, 0, 1, 0, 5]]
    assert result["wrong"] == ["name 0"]
    assert result["headroom"]["busy"] == [0.2, 0.4]
    assert result["headroom"]["free"] == 0.6
    assert result["valid"]


@pytest.mark.parametrize(
    ("busy", "late_us", "codes"),
    [
        (0.5, 100, []),
        (0.95, 100, ["busy"]),
        (0.5, 9_000, ["late"]),
        (0.95, 9_000, ["busy", "late"]),
    ],
)
def test_a_run_whose_generator_lagged_is_not_valid(
    busy: float, late_us: int, codes: list[str]
) -> None:
    readers = [{"book": book(100, 1_000, late_us=late_us), "busy": busy}]
    result = added_up(readers, [], Load(50, {"hit": 1}), Shape())
    assert [why["code"] for why in result["lagged"]] == codes
    assert result["valid"] is not bool(codes)
    assert all(why["en"] and why["zh"] for why in result["lagged"])


def test_lateness_is_held_against_what_was_measured() -> None:
    assert lags([0.1], lateness_p99_ms=3, allowed_ms=2)
    assert not lags([0.1], lateness_p99_ms=3, allowed_ms=25)


# The peak -------------------------------------------------------------------------------


class Node:
    """Answers within 1 ms up to its limit; the generator gives out at `generator`."""

    def __init__(self, limit: float, generator: float = 1e9) -> None:
        self.limit, self.generator = limit, generator
        self.rates: list[float] = []
        self.hiccups = 0

    async def attempt(self, rate: float, whole: bool) -> dict[str, Any]:
        self.rates.append(rate)
        slow = rate > self.limit or self.hiccups > 0
        self.hiccups -= 1
        lagged = [{"code": "busy"}] if rate >= self.generator else []
        counts = {"scheduled": 100, "right": 100, "wrong": 0, "failed": 0, "refused": 0}
        return {
            "counts": counts,
            "latency": {"p99_ms": 50.0 if slow else 1.0},
            "lagged": lagged,
            "rate": rate,
        }


def quiet(line: str) -> None:
    """Nobody reads it here."""


@pytest.mark.parametrize("limit", [37.0, 900.0, 33_333.0, 250_000.0])
async def test_the_search_finds_the_limit(limit: float) -> None:
    node = Node(limit)
    result = await search(node.attempt, Goal(p99_ms=10), quiet)
    assert limit / 1.06 <= result["peak"]["rate"] <= limit
    assert result["peak"]["limited_by"] == "node"
    assert result["rate"] == node.rates[-1]


async def test_one_hiccup_is_no_limit() -> None:
    node = Node(20_000.0)
    node.hiccups = 1
    result = await search(node.attempt, Goal(), quiet)
    assert result["peak"]["rate"] > 18_000


async def test_a_generator_that_gives_out_is_said_to_be_the_limit() -> None:
    result = await search(Node(1e8, generator=8_000).attempt, Goal(), quiet)
    assert result["peak"]["limited_by"] == "generator"
    assert result["peak"]["rate"] == 8_000


async def test_the_search_ends_at_a_wrong_answer() -> None:
    async def attempt(rate: float, whole: bool) -> dict[str, Any]:
        counts = {"scheduled": 9, "right": 8, "wrong": 1, "failed": 0, "refused": 0}
        return {"counts": counts, "latency": {"p99_ms": 1.0}, "lagged": []}

    result = await search(attempt, Goal(), quiet)
    assert len(result["peak"]["steps"]) == 1
    assert result["peak"]["rate"] == 0


async def test_the_search_is_bounded_whatever_the_node_does() -> None:
    draw = random.Random(3)
    calls = 0

    async def attempt(rate: float, whole: bool) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        bad = draw.random() < 0.7
        counts = {"scheduled": 9, "right": 9, "wrong": 0, "failed": int(bad), "refused": 0}
        return {"counts": counts, "latency": {"p99_ms": 1.0}, "lagged": []}

    for _ in range(50):
        await search(attempt, Goal(), quiet)
    assert calls < 50 * 40


# The plan -------------------------------------------------------------------------------

RESOLVE: dict[str, Any] = {
    "kind": "resolve",
    "format": 1,
    "started": "2026-01-01T00:00:00+00:00",
    "target": {"url": "http://127.0.0.1"},
    "valid": True,
    "counts": {"wrong": 0},
    "rate": 1_000.0,
    "peak": {"rate": 20_000.0, "limit_p99_ms": 10},
    "answer_octets": 250.0,
    "shape": {"duration_s": 9, "warmup_s": 1},
    "node": {
        "cpu_s": 5.0,
        "resident_bytes": 150 * 2**20,
        "gauges": {"biaojie_cache_entries": 1_000.0, "biaojie_cache_bytes": 50 * 2**20},
    },
}
REGISTER: dict[str, Any] = {
    "kind": "register",
    "format": 1,
    "started": "2026-01-02T00:00:00+00:00",
    "names": {"value_octets": 125},
    "ways": {
        "single": {"acknowledged": 1_000, "rate": 500.0},
        "batch": {"acknowledged": 9_000, "rate": 10_000.0},
    },
    "disk": {"bytes_per_identifier": 200.0},
}
GOALS = Goals(
    registered=500e6,
    resolutions_a_day=864e6,
    peak_factor=5,
    growth=0.1,
    years=2,
    cached_share=0.01,
    replicas=3,
    utilisation=0.5,
    workers_measured=2,
)


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_the_arithmetic_of_a_plan() -> None:
    figures = by_name(plan(GOALS, RESOLVE, REGISTER))
    amounts = {name: figure.amount for name, figure in figures.items()}
    assert amounts["names"] == pytest.approx(605e6)
    assert amounts["mean_rate"] == pytest.approx(12_100)
    assert amounts["peak_rate"] == pytest.approx(60_500)
    assert amounts["workers"] == 13  # 60,500 / (10,000 × 0.5) = 12.1
    assert amounts["headroom"] == pytest.approx(130_000 / 60_500)
    assert amounts["bandwidth"] == pytest.approx(60_500 * 250 * 8 / 1e6)
    assert amounts["rate_per_cpu_second"] == pytest.approx(2_000)
    entry = 50 * 2**20 / 1_000
    assert amounts["entry_bytes"] == pytest.approx(entry)
    assert amounts["memory"] == pytest.approx(13 * (100 * 2**20 + 6.05e6 * entry) / 2**30)
    assert amounts["disk"] == pytest.approx(605e6 * 200 * 3 / 1e9)
    assert amounts["loading"] == pytest.approx(500e6 / 10_000 / 3_600)
    for name in ("rate", "entry_bytes", "bytes_per_name", "registration_rate"):
        assert figures[name].source == "measured"
        assert "2026-01-0" in figures[name].en
        assert "2026-01-0" in figures[name].zh
    for name in ("workers", "memory", "disk", "loading", "headroom", "bandwidth"):
        assert figures[name].source == "extrapolated"


def test_what_was_not_measured_is_unknown() -> None:
    figures = by_name(plan(GOALS))
    assert {name for name, figure in figures.items() if figure.source == "unknown"} == {
        "rate",
        "workers",
        "memory",
        "disk",
        "loading",
    }
    assert all((f.amount is None) is (f.source == "unknown") for f in figures.values())
    lagging = {**RESOLVE, "valid": False}
    assert by_name(plan(GOALS, lagging))["workers"].amount is None
    wrong = {**RESOLVE, "counts": {"wrong": 1}}
    assert by_name(plan(GOALS, wrong))["rate"].source == "unknown"
    asked = {name: item for name, item in RESOLVE.items() if name != "peak"}
    assert "may not be its limit" in by_name(plan(GOALS, asked))["rate"].en


@pytest.mark.parametrize(
    "goals",
    [
        Goals(registered=0),
        Goals(peak_factor=0.5),
        Goals(growth=-1),
        Goals(replicas=0),
        Goals(utilisation=0),
        Goals(utilisation=1.5),
        Goals(cached_share=2),
    ],
)
def test_goals_out_of_range(goals: Goals) -> None:
    with pytest.raises(BenchFault):
        plan(goals)


# The command line -----------------------------------------------------------------------


def bench(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, arguments, env={"LC_ALL": "C.UTF-8", **environment})


def test_plan_on_the_command_line(tmp_path: Path) -> None:
    run, register, out = tmp_path / "run", tmp_path / "register", tmp_path / "out"
    run.write_text(json.dumps(RESOLVE))
    register.write_text(json.dumps(REGISTER))
    files = ("--run", str(run), "--register", str(register))
    done = bench("plan", *files, "--json", str(out))
    assert done.exit_code == 0
    assert "[MEASURED]" in done.output
    assert "[extrapolated]" in done.output
    assert "names at the end: 1,098,500,000" in done.output
    assert {figure["name"] for figure in json.loads(out.read_text())["figures"]} >= {"disk"}
    assert "实测" in bench("plan", *files, LC_ALL="zh_CN.UTF-8").output
    assert bench("plan", "--run", str(register)).exit_code == 2
    assert bench("plan", "--run", str(tmp_path / "none")).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("resolve", "http://192.0.2.1", "--prefix", "88.118.8"),
        ("resolve", "http://127.0.0.1:1", "--prefix", "88.118.8", "--node", "http://192.0.2.1"),
        ("resolve", "http://127.0.0.1:1"),
        ("resolve", "http://127.0.0.1:1", "--prefix", "88.118.8", "--list", "f"),
        ("resolve", "hdl://127.0.0.1:1", "--prefix", "88.118.8"),
        ("resolve", "http://127.0.0.1:1", "--prefix", "88.118.8", "--arrivals", "now"),
        ("resolve", "http://127.0.0.1:1", "--prefix", "88.118.8", "--driver", "go", "--prepared"),
        ("register", "http://192.0.2.1", "--prefix", "88.118.8", "--key", "k"),
        ("register", "http://127.0.0.1:1", "--key", "k"),
        ("register", "hdl://127.0.0.1:1", "--prefix", "88.118.8", "--key", "k"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_anything_is_sent(
    arguments: tuple[str, ...],
) -> None:
    done = bench(*arguments)
    assert done.exit_code == 2
    assert "biaojie bench:" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("package", ["hdrh", "matplotlib"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from bench.commands import app; app(prog_name='bench')"
    )
    line = ("resolve", "http://127.0.0.1:1", "--prefix", "88.118.8", "--prepared", "--html", "x")
    for locale, told in (("C.UTF-8", "which is not installed"), ("zh_CN.UTF-8", "尚未安装")):
        done = subprocess.run(
            [sys.executable, "-c", code, *line],
            env={"LC_ALL": locale, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert "biaojie[bench]" in done.stderr


def test_importing_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, bench, bench.commands; "
        "print({'asyncio', 'hdrh', 'matplotlib', 'numpy', 'aiohttp'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


# The report -----------------------------------------------------------------------------


def test_a_report_escapes_what_it_tells() -> None:
    readers = [{"book": book(100, 1_000), "busy": 0.2}]
    result = {
        **added_up(readers, [], Load(50, {"hit": 1}), Shape(duration_s=1)),
        "started": "<b>now</b>",
        "target": {"url": "http://127.0.0.1/<script>"},
        "machine": {"cpu": "<i>", "cores": 1, "system": "&"},
        "load": {"arrivals": "poisson", "keys": "<u>", "mix": "hit=1", "writes": 0},
        "shape": {"connections": 1, "pipeline": 1, "duration_s": 1, "warmup_s": 0},
        "wrong": ["<img src=x onerror=alert(1)>"],
        "failures": {"<s>": 1},
    }
    page = report(result)
    for raw in ("<script", "<img", "<b>now", "<i>", "<u>", "<s>"):
        assert raw not in page
    assert page.count("<svg") == 4
    assert "Latency by percentile" in page
    assert "延迟百分位" in page
