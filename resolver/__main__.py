"""The composition root and the command `biaojie`: the only file that sees everything."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biaojie.identifier import Identifier

if TYPE_CHECKING:
    from .settings import Settings

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
) -> None:
    """Run a node. Its settings come from BIAOJIE_* variables and an optional TOML file."""
    from .settings import SettingsFault, load

    try:
        settings = load(config)
    except SettingsFault as error:
        for fault in error.faults:
            typer.echo(f"settings 配置: {fault}", err=True)
        raise typer.Exit(2) from None
    if check_config:
        for name, value in settings.masked().items():
            typer.echo(f"{name} = {value!r}")
        return
    import uvloop

    from biaojie.errors import BiaojieError

    from .front.handle.listening import CannotListen
    from .front.http.tls import CannotServeTls
    from .observe import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    try:
        uvloop.run(_run(settings, demo))
    except BiaojieError as error:
        typer.echo(f"{error.detail.en}\n{error.detail.zh}\n{error.advice.en}", err=True)
        raise typer.Exit(3) from None
    except (CannotListen, CannotServeTls) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(3) from None
    except OSError as error:
        typer.echo(f"{settings.host}:{settings.port}: {error}", err=True)
        raise typer.Exit(3) from None


async def _run(settings: Settings, demo: bool) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends at once."""
    from registry.sql import open_store

    from .demo import examples, fill
    from .node import Node

    if demo and settings.handle_enabled and "handle_port" not in settings.model_fields_set:
        settings = await _spare_handle_port(settings)
    store = await open_store(
        settings.registry_url,
        allow_unsafe_durability=settings.allow_unsafe_durability,
        read_timeout_s=settings.store_timeout_s,
        write_timeout_s=settings.commit_timeout_s,
        pool_size=settings.database_connections - 1,
    )
    node = Node(settings, store, examples=examples(settings.demo_prefix) if demo else ())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_quit, stop)
    try:
        await node.start()
        if demo:
            filling = asyncio.create_task(fill(node))
            waiting = asyncio.create_task(stop.wait())
            await asyncio.wait((filling, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if filling.done():
                filling.result()
                _announce(settings, node.port)
            else:
                filling.cancel()
                await asyncio.wait((filling,))
        await stop.wait()
    finally:
        await node.stop()


async def _spare_handle_port(settings: Settings) -> Settings:
    """A demo must start where the usual Handle port is taken; it takes any other then."""
    from .front.handle.listening import CannotListen, close, listen

    try:
        close(await listen(settings.handle_host, settings.handle_port, fallback=settings.host))
    except CannotListen as error:
        typer.echo(f"{error.reason}; taking a free port 改用空闲端口", err=True)
        return settings.model_copy(update={"handle_port": 0})
    return settings


def _stop_or_quit(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(130)
    stop.set()


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
    from registry.__main__ import app as registry_app

    from .commands import client_commands

    app.registered_commands += registry_app.registered_commands
    client_commands(app)


def main() -> None:
    _attach(app)
    app(prog_name="biaojie")


if __name__ == "__main__":
    main()
