"""What a load says of itself: Markdown for bench/RESULTS.md, and the curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..peers.table import head

Result = Mapping[str, Any]


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def volume(result: Result, picture: str) -> str:
    """The section of one database."""
    return "\n\n".join(
        [
            head(result["machine"]),
            _curve(result),
            f"![identifiers a second, octets and look-ups by size]({picture})",
            _looked_up(result),
            _marks(result),
        ]
    )


def _curve(result: Result) -> str:
    rows = []
    for point in result["points"]:
        count, wall, cpu = point["count"], point["wall_s"], point["cpu_s"]
        rows.append(
            [
                f"{count:,}",
                _minutes(wall),
                _minutes(cpu),
                f"{count / wall:,.0f}",
                f"{count / cpu:,.0f}",
                f"{point['octets'] / count:.1f}",
                f"{point['resident_octets'] / 2**20:,.0f}",
                f"{point['warm']['p50_ms']:.3f}",
                f"{point['warm']['p99_ms']:.3f}",
                f"{point['cold']['p50_ms']:.3f}",
                f"{point['cold']['p99_ms']:.3f}",
            ]
        )
    titles = [
        "identifiers",
        "loaded in, min",
        "processor, min",
        "a second",
        "a processor second",
        "octets each",
        "resident, MiB",
        "warm p50, ms",
        "warm p99",
        "cold p50",
        "cold p99",
    ]
    return _table(titles, rows)


def _looked_up(result: Result) -> str:
    rows = [
        [
            each["what"],
            f"{each['count']:,}",
            f"{each['p50_ms']:.3f}",
            f"{each['p99_ms']:.3f}",
            f"{each['max_ms']:.1f}",
            f"{each['cpu_s'] / each['count'] * 1e6:.0f}",
            f"{each['disk_octets'] / each['count']:,.0f}",
        ]
        for each in result["readings"]
    ]
    titles = ["names", "read, all right", "p50, ms", "p99", "most", "processor, µs", "disk octets"]
    return _table(titles, rows) + f"\n\nCold: {result['cold']}."


def _marks(result: Result) -> str:
    first, last, steps = result["points"][0], result["points"][-1], result["steps"]
    changed, verified = steps["change"], steps["verify"]
    ratio = last["warm"]["p99_ms"] / first["warm"]["p99_ms"]
    went_on = f" (went on after {result['resumed']} stops)" if result["resumed"] else ""
    return "\n".join(
        [
            f"- All of it in {_minutes(result['total_s'])} min{went_on}: load"
            f" {_minutes(last['wall_s'])}, verify {_minutes(verified['wall_s'])}, the rest"
            " reading.",
            f"- {last['octets'] / last['count']:.1f} octets for an identifier on disk;"
            f" {result['resident_octets'] / 2**20:,.0f} MiB resident at most, all processes.",
            f"- Warm look-ups: p99 is {ratio:.2f} times that at {first['count']:,}.",
            f"- {changed['count']:,} changed, every tenth retired, and read back in"
            f" {changed['wall_s']:.0f} s; `verify` found {verified['records']:,} records and"
            f" {verified['entries']:,} entries as they should be.",
        ]
    )


def loaded(result: Result) -> str:
    ours, bare = result["ours"], result["bare"]
    rows = [
        [
            what,
            f"{each['rows']:,}",
            f"{each['rows'] / each['wall_s']:,.0f}",
            f"{each['rows'] / each['cpu_s']:,.0f}",
            f"{each['octets'] / each['rows']:.1f}" if "octets" in each else "",
        ]
        for what, each in (("biaojie", ours), (result["driver"], bare))
    ]
    titles = ["", "identifiers", "a second", "a processor second", "octets each"]
    on_wall = ours["rows"] / ours["wall_s"] / (bare["rows"] / bare["wall_s"])
    by_cpu = ours["rows"] / ours["cpu_s"] / (bare["rows"] / bare["cpu_s"])
    return (
        f"{head(result['machine'])}\n\n{_table(titles, rows)}\n\n"
        f"Ratio to the bare driver: {on_wall:.2f} on the wall, {by_cpu:.2f} by processor"
        f" ({ours['workers']} workers and one that commits; {ours['resident_octets'] / 2**20:.0f}"
        " MiB resident). The driver's rows were made beforehand; ours are made, checked and cut"
        " within the time."
    )


def imported(result: Result) -> str:
    """The section of one database."""

    def per(rows: int, seconds: float) -> str:
        return f"{rows / seconds:,.0f}" if seconds else "–"

    bare = result["bare"]
    bare_wall, bare_cpu = bare["rows"] / bare["wall_s"], bare["rows"] / bare["cpu_s"]
    rows = []
    for run in result["runs"]:
        count = run["rows"]
        cpu = run["reading_cpu_s"] + run["storing_cpu_s"] + run["server_cpu_s"]
        whole = cpu + run["upload_cpu_s"]
        rows.append(
            [
                f"{run['form']}, {run['order']}",
                f"{count:,}",
                per(count, run["job_s"]),
                per(count, run["upload_s"] + run["job_s"]),
                per(count, run["upload_cpu_s"]),
                per(count, run["reading_cpu_s"]),
                per(count, run["storing_cpu_s"]),
                per(count, run["server_cpu_s"]),
                per(count, whole),
                f"{count / run['job_s'] / bare_wall:.2f}",
                f"{count / cpu / bare_cpu:.2f}",
                f"{run['resident_octets'] / 2**20:,.0f}",
            ]
        )
    titles = [
        "file",
        "identifiers",
        "imported a second",
        "with upload",
        "upload, a processor second",
        "reading",
        "storing",
        "server",
        "all",
        "to the driver, wall",
        "processor",
        "resident, MiB",
    ]
    return (
        f"{head(result['machine'])}\n\n{_table(titles, rows)}\n\n"
        f"The bare driver ({result['driver']}): {bare_wall:,.0f} rows a second, {bare_cpu:,.0f} a"
        f" processor second, of {bare['rows']:,} that were made beforehand. Reading is the process"
        " beside the node, storing the node, all of it the database server too."
    )


def draw(result: Result, file: Path) -> None:
    """The curve. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    points = result["points"]
    counts = [point["count"] for point in points]
    figure, (rates, sizes, times) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    before = (0, 0.0)
    since = []
    for point in points:
        since.append((point["count"] - before[0]) / (point["wall_s"] - before[1]))
        before = (point["count"], point["wall_s"])
    rates.plot(counts, since, marker="o")
    rates.set_title("identifiers/s, since the point before")
    sizes.plot(counts, [p["octets"] / p["count"] for p in points], marker="o")
    sizes.set_title("octets an identifier, on disk")
    for name in ("p50_ms", "p99_ms"):
        label = name.removesuffix("_ms")
        times.plot(counts, [p["warm"][name] for p in points], marker="o", label=label)
    times.set_title("warm look-up, ms")
    times.legend()
    for axes in (rates, sizes, times):
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.set_xlabel("identifiers")
    figure.suptitle(f"{result['kind']}, {counts[-1]:,} identifiers")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
