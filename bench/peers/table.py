"""From samples to medians, ratios with their spread, marks and the tables. Arithmetic alone.

Rounds are interleaved, so a ratio is taken within each round, between two runs that had the same
machine around them, and the median of those is what counts. A mark that was missed says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

from ..programs import Sample

Measure = Literal["cpu", "wall"]
"""`cpu`: replies for a second of the server's processor. `wall`: replies a second."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and the least and the most of them."""

    median: float
    least: float
    most: float


def spread(figures: Sequence[float]) -> Spread | None:
    return Spread(median(figures), min(figures), max(figures)) if figures else None


def figures(samples: Sequence[Sample], by: Measure) -> list[float]:
    return [sample.cpu_rate if by == "cpu" else sample.rate for sample in samples]


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], by: Measure) -> Spread | None:
    """Round by round; None if one of the two is not known in any round."""
    pairs = zip(figures(ours, by), figures(theirs, by), strict=False)
    return spread([mine / other for mine, other in pairs if mine and other])


@dataclass(frozen=True, slots=True)
class Line:
    """One server in one group: its key, and how the table calls it."""

    key: str
    label: str
    limit: bool = False
    """The ratios of its group are taken to this one."""


@dataclass(frozen=True, slots=True)
class Group:
    key: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """`subject` at least `floor` times `basis`."""

    title: str
    subject: str
    basis: str
    floor: float
    stretch: float
    by: Measure = "cpu"


GROUPS: Final = (
    Group(
        "http",
        "HTTP GET, keep-alive, 64 connections",
        (
            Line("nginx.fixed", "nginx, `return 200`", limit=True),
            Line("nginx.files", "nginx, a file for each name"),
            Line("aiohttp.http", "a minimal aiohttp handler"),
            Line("node.http", "**biaojie**"),
            Line("peer.url", "the address given"),
        ),
    ),
    Group(
        "native",
        "Native TCP, 64 connections × 1 outstanding",
        (
            Line("c.native", "C responder, epoll", limit=True),
            Line("redis.one", "redis GET"),
            Line("node.native", "**biaojie**"),
        ),
    ),
    Group(
        "pipeline",
        "Native TCP, 8 connections × 32 outstanding",
        (
            Line("c.pipeline", "C responder, epoll", limit=True),
            Line("redis.pipeline", "redis GET"),
            Line("node.pipeline", "**biaojie**"),
        ),
    ),
    Group(
        "handle-tcp",
        "Handle TCP, 64 connections × 1 outstanding",
        (
            Line("c.handle-tcp", "C responder, epoll", limit=True),
            Line("node.handle-tcp", "**biaojie**"),
            Line("peer.handle-tcp", "the Handle server given"),
        ),
    ),
    Group(
        "handle-udp",
        "Handle UDP, 64 outstanding",
        (
            Line("c.handle-udp", "C responder, recvmmsg", limit=True),
            Line("nsd", "NSD, TXT over DNS"),
            Line("node.handle-udp", "**biaojie**"),
            Line("peer.handle-udp", "the Handle server given"),
        ),
    ),
    Group(
        "rest",
        "Handle REST, keep-alive, 64 connections",
        (
            Line("nginx.rest", "nginx, `return 200`", limit=True),
            Line("node.rest", "**biaojie**"),
            Line("peer.rest", "the Handle server given"),
        ),
    ),
    Group(
        "miss",
        "Cache misses, PostgreSQL, warm pages, 256 callers",
        (
            Line("bare.reads", "bare asyncpg, gathered reads", limit=True),
            Line("node.miss", "**biaojie**, native 8 × 32"),
            Line("node.miss-udp", "**biaojie**, Handle UDP, 64 outstanding"),
            Line("peer.miss-udp", "the Handle server given, the same"),
        ),
    ),
    Group(
        "durable",
        "Durable single registrations, PostgreSQL, 64 callers",
        (
            Line("bare.commits", "bare asyncpg, group commit", limit=True),
            Line("node.durable", "**biaojie**, native 64 × 1"),
        ),
    ),
    Group(
        "creates",
        "Durable creates through the Handle protocol, embedded registry, 64 callers",
        (
            Line("node.creates", "**biaojie**, kept connections"),
            Line("node.creates-anew", "**biaojie**, a connection for each"),
            Line("node.creates-native", "**biaojie**, native protocol instead"),
            Line("peer.creates", "the Handle server given"),
        ),
    ),
)
MARKS: Final = (
    Mark("HTTP GET to nginx `return 200`", "node.http", "nginx.fixed", 0.60, 0.70),
    Mark("HTTP GET to the minimal aiohttp handler", "node.http", "aiohttp.http", 4.0, 4.0),
    Mark("native 64 × 1 to the C responder", "node.native", "c.native", 0.48, 0.60),
    Mark("native 64 × 1 to redis GET", "node.native", "redis.one", 1.1, 1.1),
    Mark("native 8 × 32 to its own 64 × 1", "node.pipeline", "node.native", 3.5, 6.0),
    Mark("Handle TCP to the C responder", "node.handle-tcp", "c.handle-tcp", 0.42, 0.55),
    Mark("Handle UDP to the C responder", "node.handle-udp", "c.handle-udp", 0.36, 0.60),
    Mark("Handle UDP to NSD", "node.handle-udp", "nsd", 0.7, 0.7),
    # The other half of these two is PostgreSQL's processor and the disk, so the wall decides.
    Mark("misses to the bare driver's reads", "node.miss", "bare.reads", 0.5, 0.7, "wall"),
    Mark("registrations to its group commit", "node.durable", "bare.commits", 0.4, 0.6, "wall"),
    Mark("REST to the Handle server given", "node.rest", "peer.rest", 4.0, 6.0),
    Mark("UDP to the Handle server given", "node.handle-udp", "peer.handle-udp", 1.1, 1.6),
    Mark("misses to the Handle server given", "node.miss-udp", "peer.miss-udp", 5, 15, "wall"),
    # A server elsewhere spends most of a create waiting for its disk. Ours has its harder way.
    Mark(
        "creates to the Handle server given", "node.creates-anew", "peer.creates", 20, 100, "wall"
    ),
)

Samples = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Judged:
    """`verdict`: stretch, met, missed, or not measured."""

    mark: Mark
    measured: Spread | None
    other: Spread | None
    """By the other measure."""
    by: Measure
    verdict: str


def judge(mark: Mark, samples: Samples) -> Judged:
    """Where a peer's processor time is not known, the wall has to do."""
    ours, theirs = samples.get(mark.subject, ()), samples.get(mark.basis, ())
    both: dict[Measure, Spread | None] = {
        "cpu": ratio(ours, theirs, "cpu"),
        "wall": ratio(ours, theirs, "wall"),
    }
    by: Measure = mark.by if both[mark.by] is not None else "wall"
    measured, other = both[by], both["wall" if by == "cpu" else "cpu"]
    if measured is None:
        verdict = "not measured"
    elif measured.median >= mark.stretch > mark.floor:
        verdict = "stretch"
    else:
        verdict = "met" if measured.median >= mark.floor else "missed"
    return Judged(mark, measured, other, by, verdict)


PACED_SHARE: Final = 0.7
P99_FLOOR_MS: Final = 10.0
P99_STRETCH_MS: Final = 3.0
STALLED_SHARE: Final = 0.005
"""A run in which the driver itself stood still for more of the time tells nothing of a p99."""


def paced_table(samples: Samples) -> str:
    """p99 at 70 % of the median peak, in an open loop; the keys are those of `node.` lines."""
    titles = {line.key: group.title for group in GROUPS for line in group.lines}
    rows = [
        "| front | asked/s | p99, ms (least–most) | lost or refused | generator held up"
        " | server held up | |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, of in samples.items():
        p99 = spread([sample.p99_us / 1000 for sample in of])
        if p99 is None:
            continue
        stalled = median(sample.stalled_s / sample.seconds for sample in of)
        waited = median(sample.server_waited_s / sample.seconds for sample in of)
        lost = sum(sample.lost + sample.errors for sample in of)
        rows.append(
            f"| {titles[key]} | {number(median(sample.rate for sample in of))} | {shown(p99)} |"
            f" {lost} | {stalled:.1%} | {waited:.1%} | {judge_p99(p99.median, lost, stalled)} |"
        )
    return "\n".join(rows) if len(rows) > 2 else ""


def judge_p99(p99_ms: float, lost: int, stalled: float) -> str:
    if lost == 0 and p99_ms <= P99_STRETCH_MS:
        return "stretch"
    if lost == 0 and p99_ms <= P99_FLOOR_MS:
        return "met"
    if stalled > STALLED_SHARE:
        return "not measured: the machine was disturbed"
    return "**missed**"


# Tables -------------------------------------------------------------------------------------


def number(figure: float) -> str:
    """Three figures that count: 1.23, 12.3, 123, 12,300."""
    if figure == 0 or abs(figure) < 100:
        return f"{figure:.3g}"
    digits = len(str(int(abs(figure))))
    return f"{round(figure, 3 - digits):,.0f}"


def shown(figure: Spread | None) -> str:
    if figure is None:
        return "–"
    return f"{number(figure.median)} ({number(figure.least)}–{number(figure.most)})"


def _share(samples: Sequence[Sample]) -> str:
    used = [s.driver_cpu_s / s.seconds for s in samples if s.driver_cpu_s and s.seconds]
    return f"{median(used):.0%}" if used else "–"


def group_table(group: Group, samples: Samples) -> str:
    """A row for each server that was measured; empty if none was."""
    lines = [line for line in group.lines if samples.get(line.key)]
    if not lines:
        return ""
    limit = next((line.key for line in lines if line.limit), None)
    rows = [
        f"#### {group.title}",
        "",
        "| server | replies/s | per server-CPU-second | ratio by CPU | ratio on the wall |"
        " p99, ms | lost or refused | generator busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        mine = samples[line.key]
        cpu = [figure for figure in figures(mine, "cpu") if figure]
        to = samples[limit] if limit and limit != line.key else ()
        rows.append(
            f"| {line.label} | {shown(spread(figures(mine, 'wall')))} | {shown(spread(cpu))} |"
            f" {shown(ratio(mine, to, 'cpu')) if to else '1' if line.limit else '–'} |"
            f" {shown(ratio(mine, to, 'wall')) if to else '1' if line.limit else '–'} |"
            f" {number(median(s.p99_us for s in mine) / 1000)} |"
            f" {sum(s.lost + s.errors for s in mine)} | {_share(mine)} |"
        )
    return "\n".join(rows)


def marks_table(judged: Sequence[Judged]) -> str:
    rows = [
        "| mark | floor | stretch | measured, median (least–most) | by | the other way | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in judged:
        mark = one.mark
        stretch = number(mark.stretch) if mark.stretch > mark.floor else ""
        by = "CPU" if one.by == "cpu" else "wall"
        rows.append(
            f"| {mark.title} | {number(mark.floor)} × | {stretch}{' ×' if stretch else ''} |"
            f" {shown(one.measured)} | {by if one.measured else '–'} | {shown(one.other)} |"
            f" {one.verdict if one.verdict != 'missed' else '**missed**'} |"
        )
    return "\n".join(rows)


def head(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['date']} · {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['memory_bytes'] / 2**30:.0f} GiB · {machine['system']} ·"
        f" Python {machine['python']} ·"
        f" commit {machine['commit']}\n\n`{machine['command']}`"
    )
