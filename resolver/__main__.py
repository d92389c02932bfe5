"""The composition root and the command `biaojie`: the only file that sees everything."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from biaojie.identifier import Identifier

if TYPE_CHECKING:
    from .settings import Settings
    from .worker import Post, SupervisorPipe

COLLECTED: Final = (5_000, 8, 500)
"""So many objects more than before make the collector look at the youngest, so many of its looks
at one generation at the next. The usual 700, 10 and 10 took a quarter of the time of a write. A
look at 40,000 of the second generation, while caches fill, holds everybody up for 10 ms."""
STOP_SPARE_S: Final = 15.0
"""What a worker has to stop, besides the time for requests and for a commit."""
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="biaojie 标解: an identifier-resolution node and its tools.",
)


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file with settings (default: BIAOJIE_CONFIG)."),
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Print the settings in effect and stop.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Home a demo prefix and fill it with sample data.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, max=256, help="Processes that serve (default: the setting)."
        ),
    ] = None,
) -> None:
    """Run a node. Its settings come from BIAOJIE_* variables and an optional TOML file."""
    settings = _settings(config)
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    if check_config:
        for name, value in settings.masked().items():
            typer.echo(f"{name} = {value!r}")
        return
    if settings.workers > 1:
        _supervise(settings, config, demo, workers)
    else:
        _serve_here(settings, Duty(demo=demo, fills=demo))


@app.command(hidden=True)
def worker(
    slot: Annotated[int, typer.Option()],
    workers: Annotated[int, typer.Option()],
    pipe: Annotated[int, typer.Option()],
    folder: Annotated[Path, typer.Option()],
    sockets: Annotated[str, typer.Option()],
    config: Annotated[Path | None, typer.Option()] = None,
    demo: Annotated[bool, typer.Option("--demo")] = False,
    start: Annotated[str, typer.Option()] = "join",
) -> None:
    """One of several processes that serve together; `serve` starts them."""
    from .worker import BEATS, Post, Start, SupervisorPipe
    from .worker_sockets import adopt

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal, for the supervisor to obey
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = _settings(config)
    post = Post(slot, workers, folder, adopt(sockets))
    speaks = SupervisorPipe(pipe, settings.worker_silent_s / BEATS)
    fills, waits = demo and start == Start.FIRST, start == Start.JOIN
    _serve_here(settings, Duty(demo, fills, waits, post, speaks))


@dataclass(frozen=True, slots=True)
class Duty:
    """What a process that serves is to do besides: `fills` with the `demo` data. Alone it has no
    `post`, and nobody at the other end of a `pipe`. It `waits` for a registry out of reach where
    others have found it, unless one serves in its place: the first of a node says at once that
    there is none."""

    demo: bool = False
    fills: bool = False
    waits: bool = False
    post: Post | None = None
    pipe: SupervisorPipe | None = None


def _settings(config: Path | None) -> Settings:
    from .settings import SettingsFault, load

    try:
        return load(config)
    except SettingsFault as error:
        for fault in error.faults:
            typer.echo(f"settings 配置: {fault}", err=True)
        raise typer.Exit(2) from None


def _supervise(settings: Settings, config: Path | None, demo: bool, workers: int | None) -> None:
    """Run the workers until told to stop."""
    from .front.listening import CannotListen
    from .logs import configure_logging
    from .settings import SettingsFault, load
    from .supervisor import NOBODY, Supervisor
    from .worker_launch import Launcher, private_folder
    from .worker_sockets import HTTP, PLACE_SETTINGS, bind_slots, port_of

    configure_logging(settings.log_level, settings.log_format)
    fixed = ("data_dir", "workers", "worker_silent_s", *PLACE_SETTINGS)

    def reload() -> str | None:
        try:
            new = load(config)
        except SettingsFault as error:
            return "; ".join(error.faults)
        if workers is not None:
            new = new.model_copy(update={"workers": workers})
        changed = [name for name in fixed if getattr(new, name) != getattr(settings, name)]
        return f"only a restart changes {', '.join(changed)}" if changed else None

    try:
        sockets = bind_slots(_spare_ports(settings) if demo else settings, settings.workers)
        port = port_of(sockets[0], HTTP)
        with private_folder(settings.data_dir) as folder:
            supervisor = Supervisor(
                settings.workers,
                Launcher(sockets, folder, config, demo).launch,
                reload,
                on_ready=(lambda: _announce(settings, port)) if demo else lambda: None,
                stop_s=settings.drain_s + settings.commit_timeout_s + STOP_SPARE_S,
                silent_s=settings.worker_silent_s,
            )
            code = supervisor.run()
    except CannotListen as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(3) from None
    except OSError as error:
        typer.echo(f"{settings.data_dir}: {error}", err=True)
        raise typer.Exit(3) from None
    if code == NOBODY:
        typer.echo(
            "No worker could start; why is said above. Nothing was served."
            "\n没有工作进程能够启动，原因见上文；节点未提供服务。",
            err=True,
        )
    if code:
        raise typer.Exit(code)


def _serve_here(settings: Settings, duty: Duty) -> None:
    """Serve in this process until told to stop."""
    gc.disable()
    from .logs import configure_logging  # isort: split

    import structlog
    import uvloop

    from biaojie.errors import BiaojieError

    from .front.http.tls_client import CannotServeTls
    from .front.listening import CannotListen

    configure_logging(settings.log_level, settings.log_format)
    if duty.post is not None:
        structlog.contextvars.bind_contextvars(worker=duty.post.slot)
    elif duty.demo:
        settings = _spare_ports(settings)
    try:
        uvloop.run(_run(settings, duty))
    except BiaojieError as error:
        typer.echo(f"{error.detail.en}\n{error.detail.zh}\n{error.advice.en}", err=True)
        raise typer.Exit(3) from None
    except (CannotListen, CannotServeTls) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(3) from None
    except OSError as error:
        typer.echo(f"{settings.host}:{settings.port}: {error}", err=True)
        raise typer.Exit(3) from None


async def _run(settings: Settings, duty: Duty) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends at once."""
    from registry.sql import open_store

    from .node import Node

    stop = asyncio.Event()
    if duty.pipe is not None:
        duty.pipe.watch(stop)
        await duty.pipe.may_begin()  # what must be imported has been
        if stop.is_set():
            return
    opening = partial(
        open_store,
        settings.registry_url,
        allow_unsafe_durability=settings.allow_unsafe_durability,
        read_timeout_s=settings.store_timeout_s,
        write_timeout_s=settings.commit_timeout_s,
        pool_size=settings.database_connections - 1,
    )
    if duty.post is not None and duty.waits:
        from .worker_waiting import wait_for

        opened = await wait_for(opening, duty.post.sockets, stop)
        if opened is None:
            return
        store = opened
    else:
        store = await opening()
    shown: tuple[str, ...] = ()
    if duty.demo:
        from .demo import examples, fill

        shown = examples(settings.demo_prefix)
    standbys = None
    if settings.replica_urls:
        from registry.sql.standbys import open_standbys

        standbys = await open_standbys(
            store,
            settings.replica_urls,
            read_timeout_s=settings.store_timeout_s,
            pool_size=settings.database_connections - 1,
        )
    node = Node(settings, store, examples=shown, post=duty.post, standbys=standbys)
    loop = asyncio.get_running_loop()
    if duty.pipe is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop_or_quit, stop)
        loop.add_signal_handler(signal.SIGHUP, _hang_up, stop)
    else:  # it may come from the supervisor and from whoever tells the whole group
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        await node.start()
        # What a start makes stays: the collector need never look at it again, and did not
        # stop the start to do so. Requests leave no cycles, so what is young is looked at only
        # when there is much of it, and the whole cache with it seldom.
        gc.freeze()
        gc.set_threshold(*COLLECTED)
        gc.enable()
        filled = await _unless(stop, fill(node)) if duty.fills else True
        if duty.pipe is not None:
            duty.pipe.ready()
        elif duty.demo and filled:
            _announce(settings, node.port)
        await stop.wait()
    finally:
        await node.stop()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Do it, but not longer than until `stop`; says whether it is done."""
    doing = asyncio.create_task(work)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait((doing, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if doing.done():
        doing.result()
        return True
    doing.cancel()
    await asyncio.wait((doing,))
    return False


def _spare_ports(settings: Settings) -> Settings:
    """A demo must start where a usual port is taken; it takes any other then."""
    from .front.listening import CannotListen, bind, close
    from .front.native.listening import bind_tcp

    given, chosen = settings.model_fields_set, dict[str, int]()
    try:
        if settings.handle_enabled and "handle_port" not in given:
            close(bind(settings.handle_host, settings.handle_port, fallback=settings.host))
    except CannotListen as error:
        typer.echo(f"{error.reason}; taking a free port 改用空闲端口", err=True)
        chosen["handle_port"] = 0
    try:
        if settings.native_enabled and "native_port" not in given:
            host, port = settings.native_host, settings.native_port
            close((bind_tcp(host, port, fallback=settings.host),))
    except CannotListen as error:
        typer.echo(f"{error.reason}; taking a free port 改用空闲端口", err=True)
        chosen["native_port"] = 0
    return settings.model_copy(update=chosen)


def _stop_or_quit(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(130)
    stop.set()


def _hang_up(stop: asyncio.Event) -> None:
    """SIGHUP for a process without a supervisor: nobody could take its place meanwhile. Whoever
    sees the log in a terminal has closed it; others asked for a reload, and are told."""
    import structlog

    if sys.stderr.isatty():
        stop.set()
        return
    structlog.get_logger("biaojie.node").warning(
        "nothing is reloaded", why="a single process is not replaced; serve with --workers 2"
    )


def _announce(settings: Settings, port: int) -> None:
    """The three lines with which `make run` ends: what to open, what to ask, what to write."""
    from .demo import examples

    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    base = settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    prefix = settings.demo_prefix
    key_file = settings.data_dir / "admin.key"
    key = key_file.read_text().strip() if key_file.exists() else "<your key>"
    first = Identifier.parse(examples(prefix)[0]).url_path()
    typer.echo(f"Open 打开:  {base}/{first}")
    typer.echo(f"Ask 查询:   curl -H 'Accept: application/json' {base}/{first}")
    typer.echo(
        f"Write 注册: curl -X PUT {base}/api/v1/identifiers/{prefix}/SN0001"
        f" -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
        """ -d '{"values":[{"index":1,"type":"URL","data":"https://example.com/SN0001"}]}'"""
    )


def _attach(app: typer.Typer) -> None:
    """Add the other commands: the registry's own, and those that speak to a node."""
    from bench.commands import app as bench_app
    from bench.loading.__main__ import app as loading_app
    from registry.__main__ import app as registry_app

    from .commands import client_commands

    app.registered_commands += registry_app.registered_commands
    client_commands(app)
    bench_app.registered_commands += loading_app.registered_commands
    app.add_typer(bench_app)


def main() -> None:
    if sys.argv[1:2] not in (["serve"], ["worker"]):  # to serve, nothing of them is needed
        _attach(app)
    app(prog_name="biaojie")


if __name__ == "__main__":
    main()
