"""The report of a resolution run: one HTML file that needs nothing else, English and Chinese.

No scripts and nothing from outside: plots are inline SVG, the language is that of the terminal
first and the other below it.
"""

from __future__ import annotations

import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .words import BenchFault, chinese, missing_extra

try:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
except ImportError as error:
    raise missing_extra(error) from None

_COLOURS: Final = {"right": "#1769aa", "refused": "#b26a00", "failed": "#c62828", "long": "#5e35b1"}
_TICKS: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)

Say = Callable[[str, str], str]


def write_report(file: Path, result: Mapping[str, Any]) -> None:
    """Raises BenchFault where the file cannot be written."""
    try:
        file.write_text(report(result), encoding="utf-8")
    except OSError as error:
        raise BenchFault(
            f"{file} cannot be written: {error}", f"无法写入 {file}：{error}"
        ) from None


def report(result: Mapping[str, Any]) -> str:
    """The report as HTML."""
    first, second = ("zh", "en") if chinese() else ("en", "zh")
    plots = _plots(result)
    target = html.escape(result["target"]["url"])
    return (
        "<!doctype html>\n"
        f'<html lang="{first}"><head><meta charset="utf-8">'
        f"<title>biaojie bench {target}</title>"
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><main>"
        f"{_part(result, first, plots)}{_part(result, second, plots)}"
        "</main></body></html>\n"
    )


_STYLE: Final = """
:root{color-scheme:light}
body{margin:0;background:#f4f6f8;color:#1d2733;font:15px/1.5 system-ui,"Noto Sans CJK SC",
"Microsoft YaHei",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem}
section{background:#fff;border:1px solid #dde3e9;border-radius:8px;padding:1.25rem 1.5rem;
margin-bottom:1.5rem}
h1{font-size:1.35rem;margin:0 0 .25rem}h2{font-size:1.05rem;margin:1.5rem 0 .5rem}
p{margin:.3rem 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem 1rem .2rem 0;text-align:right;border-bottom:1px solid #eef1f4;
font-weight:400;vertical-align:top}
td:first-child,th:first-child{text-align:left}th{color:#5c6b7a}
figure{margin:0;overflow-x:auto}svg{max-width:100%;height:auto}
.verdict{font-weight:600}.good{color:#1b7f4b}.bad{color:#c62828}
.muted{color:#5c6b7a}code{font-size:.9em;overflow-wrap:anywhere}
"""


def _part(result: Mapping[str, Any], language: str, plots: Mapping[str, str]) -> str:
    def say(en: str, zh: str) -> str:
        return zh if language == "zh" else en

    counts = result["counts"]
    head = say("Resolution under load", "解析压测报告")
    target = html.escape(result["target"]["url"])
    lines = [
        f'<section lang="{language}"><h1>{head}</h1>',
        f'<p class="muted"><code>{target}</code> · {html.escape(result["started"])}</p>',
        _verdict(result, say),
        _wrong(result, say),
        _table(
            (say("Question", "请求"), say("Number", "数量")),
            [
                (say("asked", "发起"), f"{counts['scheduled']:,}"),
                (say("answered rightly", "应答正确"), f"{counts['right']:,}"),
                (say("refused (over capacity)", "拒绝（超出容量）"), f"{counts['refused']:,}"),
                (say("failed or lost", "失败或丢失"), f"{counts['failed']:,}"),
                (say("answered wrongly", "应答错误"), f"{counts['wrong']:,}"),
                (say("right answers a second", "每秒正确应答"), f"{result['rate']:,.0f}"),
            ],
        ),
        _failures(result, say),
        f"<h2>{say('Latency by percentile', '延迟百分位')}</h2>",
        f"<figure>{plots[f'latency-{language}']}</figure>",
        _latencies(result, say),
        f"<h2>{say('Over time', '随时间变化')}</h2>",
        f"<figure>{plots[f'time-{language}']}</figure>",
        _peak(result, say),
        f"<h2>{say('How it was measured', '测量方法')}</h2>",
        _method(result, say),
        "</section>",
    ]
    return "\n".join(line for line in lines if line)


def _verdict(result: Mapping[str, Any], say: Say) -> str:
    if result["counts"]["wrong"]:
        text = say("FAILED: there were wrong answers.", "未通过：存在错误应答。")
        return f'<p class="verdict bad">{text}</p>'
    if not result["valid"]:
        why = " ".join(html.escape(say(item["en"], item["zh"])) for item in result["lagged"])
        text = say("NOT VALID: the generator lagged.", "结果无效：压测程序自身落后。")
        return f'<p class="verdict bad">{text} {why}</p>'
    text = say("Every answer was checked; none was wrong.", "所有应答均已校验，无错误。")
    return f'<p class="verdict good">{text}</p>'


def _wrong(result: Mapping[str, Any], say: Say) -> str:
    if not result["wrong"]:
        return ""
    items = "".join(f"<li><code>{html.escape(str(item))}</code></li>" for item in result["wrong"])
    return f"<h2>{say('Wrong answers', '错误应答')}</h2><ul>{items}</ul>"


def _failures(result: Mapping[str, Any], say: Say) -> str:
    if not result["failures"]:
        return ""
    rows = [(html.escape(code), f"{count:,}") for code, count in sorted(result["failures"].items())]
    return f"<h2>{say('Failures', '失败')}</h2>" + _table(
        (say("code", "错误码"), say("number", "数量")), rows
    )


def _latencies(result: Mapping[str, Any], say: Say) -> str:
    columns = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms")
    rows = [("all", result["latency"]), *sorted(result["latency_by_kind"].items())]
    if result.get("writes"):
        rows.append(("write", result["writes"]["latency"]))
    named = {
        "all": say("all", "全部"),
        "hit": say("hit", "热门标识"),
        "miss": say("miss", "未缓存标识"),
        "unknown": say("unknown name", "未注册标识"),
        "auth": say("authoritative", "权威查询"),
        "write": say("write", "写入"),
    }
    head = (
        say("kind", "类别"),
        say("number", "数量"),
        *(column.removesuffix("_ms") for column in columns),
    )
    return (
        _table(
            head,
            [
                (
                    named.get(kind, kind),
                    f"{summary['count']:,}",
                    *(f"{summary[column]:.2f}" for column in columns),
                )
                for kind, summary in rows
            ],
        )
        + f'<p class="muted">{say("Milliseconds.", "单位：毫秒。")}</p>'
    )


def _peak(result: Mapping[str, Any], say: Say) -> str:
    peak = result.get("peak")
    if not peak:
        return ""
    rows = [
        (
            f"{step['rate']:,.0f}",
            f"{step['p99_ms']:.2f}",
            f"{step['failed']:,}",
            step["shortfall"] or say("held", "达标"),
        )
        for step in peak["steps"]
    ]
    head = (say("rate", "速率"), "p99 ms", say("errors", "失败"), say("verdict", "结论"))
    found = say(
        f"Highest rate held with p99 within {peak['limit_p99_ms']:g} ms and no errors:"
        f" {peak['rate']:,.0f}/s; limited by: {peak['limited_by']}.",
        f"p99 不超过 {peak['limit_p99_ms']:g} 毫秒且无失败的最高速率："
        f"{peak['rate']:,.0f}/秒；受限于：{peak['limited_by']}。",
    )
    return f"<h2>{say('Search for the peak', '峰值搜索')}</h2><p>{found}</p>{_table(head, rows)}"


def _method(result: Mapping[str, Any], say: Say) -> str:
    room, shape, load = result["headroom"], result["shape"], result["load"]
    machine = result["machine"]
    rows = [
        (
            say("machine", "机器"),
            html.escape(f"{machine['cpu']}, {machine['cores']} × CPU, {machine['system']}"),
        ),
        (say("generator", "压测程序"), f"{room['engine']}, {len(room['busy'])} ×"),
        (say("busy share of each process", "各进程占用"), _percents(room["busy"])),
        (
            say("own lateness, p99", "自身延迟 p99"),
            f"{room['lateness']['p99_ms']:.3f} ms ≤ {room['lateness_allowed_ms']:g} ms",
        ),
        (
            say("connections × outstanding", "连接数 × 在途"),
            f"{shape['connections']} × {shape['pipeline']}",
        ),
        (say("arrivals", "到达过程"), html.escape(str(load["arrivals"]))),
        (say("keys", "键分布"), html.escape(str(load["keys"]))),
        (say("mix", "请求构成"), html.escape(str(load["mix"]))),
        (say("writes a second", "每秒写入"), f"{load['writes']:g}"),
        (say("duration", "时长"), f"{shape['duration_s']:g} s (+ {shape['warmup_s']:g} s)"),
        (say("answer size", "应答大小"), f"{result['answer_octets']:,.0f} B"),
    ]
    explained = say(
        "Open loop: each question had its time on a schedule fixed before, and its latency counts"
        " from that time, so that a pause of the node shows. Questions that were lost count with"
        " the time they had waited.",
        "开环压测：每次请求的时刻事先排定，延迟自该时刻起算，因此节点停顿会如实体现；"
        "丢失的请求按已等待的时间计入。",
    )
    return f'<p class="muted">{explained}</p>' + _table((say("item", "项目"), ""), rows)


def _percents(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


# Plots ----------------------------------------------------------------------------------


def _plots(result: Mapping[str, Any]) -> dict[str, str]:
    plots = {}
    for language in ("en", "zh"):

        def say(en: str, zh: str, language: str = language) -> str:
            return zh if language == "zh" else en

        plots[f"latency-{language}"] = _latency_plot(result["curve"], say, language)
        plots[f"time-{language}"] = _time_plot(result["seconds"], result["shape"], say, language)
    return plots


def _latency_plot(curve: Sequence[Sequence[float]], say: Say, language: str) -> str:
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots()
    # Each nine takes the same width: the axis is the logarithm of what is left to 100 %.
    places = [1 / max(1 - percentile / 100, 1e-7) for percentile, _ in curve]
    axes.plot(places, [ms for _, ms in curve], color=_COLOURS["right"], linewidth=1.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - tick / 100) for tick in _TICKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{100 * (1 - 1 / place):.6g} %"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(say("share of questions", "请求占比"))
    axes.set_ylabel(say("answered within, ms", "应答时间，毫秒"))
    axes.grid(color="#eef1f4")
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure, say("Latency by percentile", "延迟百分位"), f"latency-{language}")


def _time_plot(
    seconds: Sequence[Sequence[int]], shape: Mapping[str, Any], say: Say, language: str
) -> str:
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    # The last part of a second, and what it took to drain, would look like a fall.
    rows = seconds[: max(1, int(shape["duration_s"]))] if seconds else [[0, 0, 0, 0, 0]]
    at = range(1, len(rows) + 1)
    marker = "o" if len(rows) < 30 else None
    for column, name, label in (
        (0, "right", say("right", "正确")),
        (1, "refused", say("refused", "拒绝")),
        (2, "failed", say("failed or wrong", "失败或错误")),
    ):
        counted = [row[column] + (row[3] if column == 2 else 0) for row in rows]
        upper.plot(at, counted, color=_COLOURS[name], label=label, marker=marker, markersize=3)
    upper.set_ylim(bottom=0)
    upper.set_ylabel(say("a second", "每秒"))
    upper.legend(frameon=False, ncols=3, loc="lower left")
    lower.plot(
        at, [row[4] / 1e3 for row in rows], color=_COLOURS["long"], marker=marker, markersize=3
    )
    lower.set_ylim(bottom=0)
    lower.set_ylabel(say("longest, ms", "最长，毫秒"))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set_xlabel(say("second of the run", "秒"))
    for axes in (upper, lower):
        axes.grid(color="#eef1f4")
        axes.spines[["top", "right"]].set_visible(False)
    title = say("Throughput and errors over time", "吞吐与失败随时间变化")
    return _svg(figure, title, f"time-{language}")


def _svg(figure: Figure, title: str, name: str) -> str:
    """The figure as an SVG element; its text is text, and its ids are its own in a page."""
    out = io.StringIO()
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}),
        warnings.catch_warnings(),
    ):
        # Text stays text: the fonts that matter are the reader's.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for before in (' id="', "url(#", 'href="#'):
        text = text.replace(before, f"{before}{name}-")
    shown = html.escape(title)
    return text.replace("<svg ", f'<svg role="img" aria-label="{shown}" ', 1)
