"""`biaojie bench …`. Thin: arguments in, result and exit code out.

Exit codes: 0 carried out and nothing wrong; 1 a wrong answer, or a write lost, doubled or
different; 2 it could not be carried out; 3 the generator lagged, so that the run is not valid.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .words import BenchFault, say

if TYPE_CHECKING:
    from .register import Wanted as WantedRegister
    from .resolve import Wanted

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    help="Load tests: how fast a node is, on this machine. 压测：节点在本机的性能。",
)
_TARGET = "Target"
_NAMES = "Names"
_LOAD = "Load"
_OUT = "Result"

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="http://, biaojie://, biaojie+unix://, hdl:// (TCP) or hdl+udp://. 目标地址。",
    ),
]
NodeUrl = Annotated[
    str,
    typer.Option(
        "--node",
        envvar="BIAOJIE_URL",
        rich_help_panel=_TARGET,
        help="HTTP address of the node: for registering, writes and its metrics.",
        show_default="URL, if that is http",
    ),
]
Key = Annotated[
    str, typer.Option("--key", envvar="BIAOJIE_KEY", rich_help_panel=_TARGET, show_default=False)
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", rich_help_panel=_TARGET, show_default="data/admin.key, if there"),
]
Own = Annotated[
    bool,
    typer.Option(
        "--i-own-this-target",
        rich_help_panel=_TARGET,
        help="Load a machine other than this one. It must be yours. 声明目标是自己的机器。",
    ),
]
Prefix = Annotated[
    str,
    typer.Option(
        rich_help_panel=_NAMES,
        show_default=False,
        help="Register and use names of our own under this prefix. 压测标识的前缀。",
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", rich_help_panel=_OUT, help="Write the result here. 结果文件。"),
]


@app.command()
def resolve(
    url: Url,
    rate: Annotated[
        float,
        typer.Option(rich_help_panel=_LOAD, min=0.1, help="Questions a second. 每秒请求数。"),
    ] = 1_000.0,
    peak: Annotated[
        bool,
        typer.Option(
            "--peak",
            rich_help_panel=_LOAD,
            help="Search for the highest rate within --peak-p99, from --rate on. 搜索峰值。",
        ),
    ] = False,
    peak_p99: Annotated[
        float, typer.Option(rich_help_panel=_LOAD, min=0.01, help="Milliseconds. 毫秒。")
    ] = 10.0,
    peak_step: Annotated[
        float, typer.Option(rich_help_panel=_LOAD, min=0.2, help="Seconds of one step. 每步秒数。")
    ] = 2.0,
    duration: Annotated[
        float, typer.Option(rich_help_panel=_LOAD, min=0.2, max=86_400, help="Seconds. 秒。")
    ] = 10.0,
    warmup: Annotated[
        float, typer.Option(rich_help_panel=_LOAD, min=0, max=3_600, help="Seconds before. 秒。")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(rich_help_panel=_LOAD, min=0.01, max=60, help="Seconds. 秒。")
    ] = 2.0,
    connections: Annotated[int, typer.Option(rich_help_panel=_LOAD, min=1, max=50_000)] = 64,
    pipeline: Annotated[
        int,
        typer.Option(
            rich_help_panel=_LOAD, min=1, max=10_000, help="Outstanding on each. 每连接在途数。"
        ),
    ] = 1,
    keys: Annotated[
        str, typer.Option(rich_help_panel=_LOAD, help="uniform, zipf:S or trace:FILE. 键分布。")
    ] = "zipf:0.99",
    mix: Annotated[
        str,
        typer.Option(
            rich_help_panel=_LOAD, help="Shares of hit, miss, unknown and auth. 请求构成。"
        ),
    ] = "hit=100",
    arrivals: Annotated[
        str, typer.Option(rich_help_panel=_LOAD, help="poisson or even. 到达过程。")
    ] = "poisson",
    seed: Annotated[int, typer.Option(rich_help_panel=_LOAD)] = 1,
    writes: Annotated[
        float,
        typer.Option(
            rich_help_panel=_LOAD, min=0, max=100_000, help="Writes a second beside. 每秒写入数。"
        ),
    ] = 0.0,
    processes: Annotated[int, typer.Option(rich_help_panel=_LOAD, min=1, max=64)] = 1,
    driver: Annotated[
        str,
        typer.Option(
            rich_help_panel=_LOAD,
            help="python, c (built on first use), or auto: c for a plain --peak. 压测引擎。",
        ),
    ] = "auto",
    prefix: Prefix = "",
    names: Annotated[
        int, typer.Option(rich_help_panel=_NAMES, min=1, help="How many. 标识数。")
    ] = 10_000,
    cold: Annotated[
        int,
        typer.Option(
            rich_help_panel=_NAMES, min=0, help="Of these, kept for misses. 留作未命中的数量。"
        ),
    ] = 0,
    value_octets: Annotated[int, typer.Option(rich_help_panel=_NAMES, min=96, max=65_536)] = 125,
    list_file: Annotated[
        Path | None,
        typer.Option(
            "--list",
            rich_help_panel=_NAMES,
            help="Ask for the records of this file, as `biaojie export` wrote it. 已有列表。",
        ),
    ] = None,
    prepared: Annotated[
        bool,
        typer.Option("--prepared", rich_help_panel=_NAMES, help="The names are there. 已注册。"),
    ] = False,
    node: NodeUrl = "",
    key: Key = "",
    key_file: KeyFile = None,
    own: Own = False,
    json_file: Json = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", rich_help_panel=_OUT, help="Write a report here. 报告文件。"),
    ] = None,
) -> None:
    """Ask a node for names at a rate, and check every answer. 解析压测。

    Questions leave by a schedule fixed before, whatever the node does, and count from the time
    they were due: a pause of the node shows. Answers are checked against what was registered.
    """

    def work() -> Coroutine[Any, Any, int]:
        from .resolve import Wanted, resolve_run

        wanted = Wanted(
            url=url,
            rate=rate,
            peak_p99_ms=peak_p99 if peak else None,
            peak_step_s=peak_step,
            duration_s=duration,
            warmup_s=warmup,
            timeout_s=timeout,
            connections=connections,
            pipeline=pipeline,
            keys=keys,
            mix=mix,
            arrivals=arrivals,
            seed=seed,
            writes=writes,
            processes=processes,
            driver=driver,
            prefix=prefix,
            names=names,
            cold=cold,
            value_octets=value_octets,
            list_file=list_file,
            prepared=prepared,
            node=node,
            key=_key(key, key_file),
            own=own,
        )
        return _resolve(wanted, resolve_run, json_file, html)

    _run(work)


async def _resolve(
    wanted: Wanted,
    resolve_run: Callable[..., Coroutine[Any, Any, dict[str, Any]]],
    json_file: Path | None,
    html: Path | None,
) -> int:
    from .telling import Live, resolve_summary, write_json

    if html is not None:  # a missing package is better known before the run
        from .report import write_report
    with Live() as live:
        result = await resolve_run(wanted, live.show, live.note)
    write_json(json_file, result)
    if html is not None:
        write_report(html, result)
    typer.echo(resolve_summary(result))
    if result["counts"]["wrong"]:
        return 1
    return 0 if result["valid"] else 3


@app.command()
def register(
    url: Url,
    prefix: Prefix = "",
    single: Annotated[
        int, typer.Option(min=0, help="Names written one by one. 逐个注册的数量。")
    ] = 2_000,
    batch: Annotated[
        int, typer.Option(min=0, help="Names written in batches. 批量注册的数量。")
    ] = 50_000,
    file: Annotated[
        int, typer.Option(min=0, help="Names imported from a file. 文件导入的数量。")
    ] = 50_000,
    callers: Annotated[
        int, typer.Option(min=1, max=1_000, help="Of single writes. 并发写入者。")
    ] = 64,
    rate: Annotated[
        float,
        typer.Option(
            min=0, help="Single writes a second, by a schedule; 0: as fast as acknowledged."
        ),
    ] = 0.0,
    batch_rows: Annotated[int, typer.Option(min=1, max=2_000)] = 1_000,
    batch_callers: Annotated[int, typer.Option(min=1, max=64)] = 2,
    value_octets: Annotated[int, typer.Option(min=96, max=65_536)] = 125,
    timeout: Annotated[float, typer.Option(min=0.1, max=300)] = 30.0,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="The node's data folder, to see its registry grow. 节点数据目录。"),
    ] = None,
    node: NodeUrl = "",
    key: Key = "",
    key_file: KeyFile = None,
    own: Own = False,
    json_file: Json = None,
) -> None:
    """Register names one by one, in batches and from a file; read all back. 注册压测。

    Every acknowledged write is read back and compared; one that is lost, doubled or different
    fails the run.
    """

    def work() -> Coroutine[Any, Any, int]:
        from .register import Wanted as WantedRegister

        if not prefix:
            raise BenchFault("Say under which --prefix.", "请用 --prefix 指定前缀。")
        return _register(
            WantedRegister(
                url=url,
                prefix=prefix,
                key=_key(key, key_file),
                single=single,
                batch=batch,
                file=file,
                callers=callers,
                batch_rows=batch_rows,
                batch_callers=batch_callers,
                rate=rate,
                value_octets=value_octets,
                timeout_s=timeout,
                node=node,
                data_dir=data_dir,
                own=own,
            ),
            json_file,
        )

    _run(work)


async def _register(wanted: WantedRegister, json_file: Path | None) -> int:
    from .register import register_run
    from .telling import Live, register_summary, write_json

    with Live() as live:
        result = await register_run(wanted, live.show)
    write_json(json_file, result)
    typer.echo(register_summary(result))
    return 1 if result["counts"]["wrong"] else 0


@app.command()
def plan(
    run: Annotated[
        Path | None, typer.Option("--run", help="Result of `bench resolve`. 解析压测结果。")
    ] = None,
    register_file: Annotated[
        Path | None, typer.Option("--register", help="Result of `bench register`. 注册压测结果。")
    ] = None,
    registered: Annotated[float, typer.Option(help="Names. 注册总量。")] = 500e6,
    resolutions: Annotated[float, typer.Option(help="A day. 每日解析量。")] = 1e6,
    peak_factor: Annotated[
        float, typer.Option(help="Busiest second to the mean of the day. 峰值系数。")
    ] = 10.0,
    growth: Annotated[float, typer.Option(help="A year, 0.3 is 30 %. 年增长率。")] = 0.3,
    years: Annotated[float, typer.Option(help="To plan for. 规划年数。")] = 3.0,
    cached: Annotated[
        float, typer.Option(help="Share of the names that caches hold. 缓存比例。")
    ] = 0.01,
    replicas: Annotated[int, typer.Option(help="Copies of everything. 副本数。")] = 2,
    utilisation: Annotated[
        float, typer.Option(help="How much of the measured rate may be used. 利用率上限。")
    ] = 0.5,
    workers: Annotated[
        int, typer.Option(help="Workers that the measured node had. 被测节点进程数。")
    ] = 1,
    json_file: Json = None,
) -> None:
    """What goals take in disk, memory and workers, from the last measured runs. 容量规划。"""

    async def work() -> int:
        from .plan import Goals, read_result, tell, to_document
        from .plan import plan as work_out
        from .telling import write_json

        goals = Goals(
            registered,
            resolutions,
            peak_factor,
            growth,
            years,
            cached,
            replicas,
            utilisation,
            workers,
        )
        figures = work_out(
            goals, read_result(run, "resolve"), read_result(register_file, "register")
        )
        write_json(json_file, to_document(goals, figures))
        typer.echo(tell(figures))
        return 0

    _run(work)


@app.command()
def proxy(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="host:port or path of a Unix socket. 目标地址。"),
    ],
    listen: Annotated[str, typer.Option(help="host:port; port 0: any. 监听地址。")] = "127.0.0.1:0",
    reset: Annotated[float, typer.Option(help="Share reset at once. 立即重置的比例。")] = 0.0,
    cut: Annotated[float, typer.Option(help="Reset within a reply. 答复中途重置。")] = 0.0,
    half_close: Annotated[float, typer.Option(help="Told that no more comes. 半关闭。")] = 0.0,
    drop: Annotated[float, typer.Option(help="Done, never answered. 请求送达、答复丢弃。")] = 0.0,
    stall: Annotated[float, typer.Option(help="Open and silent. 静默挂起。")] = 0.0,
    after: Annotated[
        tuple[int, int], typer.Option(help="Octets of replies before it. 此前通过的字节数。")
    ] = (0, 0),
    delay: Annotated[
        tuple[float, float], typer.Option(help="Seconds each piece is held. 每段延迟。")
    ] = (0.0, 0.0),
    seed: Annotated[int, typer.Option(help="Same seed, same fates. 随机种子。")] = 0,
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="Then it ends.")] = 3_600.0,
) -> None:
    """Pass TCP connections on as a bad network does, by a seed. 故障代理：按种子制造网络故障。

    Shares are 0 to 1, of connections. SIGUSR1 makes it a black hole, and no more the next time.
    """

    async def work() -> int:
        from .proxy import Faults, stand

        faults = Faults(reset, cut, half_close, drop, stall, after, delay)
        counts = await stand(target, listen, faults, seed, seconds, typer.echo)
        typer.echo(" ".join(f"{fate}={number}" for fate, number in sorted(counts.items())))
        return 0

    _run(work)


def _key(key: str, key_file: Path | None) -> str:
    if key:
        return key
    try:
        return (key_file or Path("data/admin.key")).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        if key_file is None:
            return ""
        raise BenchFault(
            f"The key file {key_file} cannot be read: {error}",
            f"无法读取密钥文件 {key_file}：{error}",
        ) from None


def _run(work: Callable[[], Coroutine[Any, Any, int]]) -> None:
    import asyncio

    from biaojie.errors import BiaojieError

    try:
        code = asyncio.run(work())
    except BenchFault as fault:
        typer.echo(f"biaojie bench: {say(fault.en, fault.zh)}", err=True)
        code = 2
    except BiaojieError as error:
        typer.echo(f"biaojie bench: {say(*error.detail)}\n  {say(*error.advice)}", err=True)
        code = 2
    except KeyboardInterrupt:
        typer.echo(say("\nStopped.", "\n已停止。"), err=True)
        code = 130
    except OSError as error:
        typer.echo(f"biaojie bench: {error}", err=True)
        code = 2
    sys.stdout.flush()
    raise typer.Exit(code)
