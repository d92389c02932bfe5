"""The registry's own commands, for the operator on the node's machine: migrate, verify, and a
new admin key when the first is lost. One of the two places that know the SQL store."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .audit import Audit

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Commands on the registry.")
DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="BIAOJIE_DATABASE_URL",
        help="Registry to work on; default: registry.db in the data folder.",
    ),
]
DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="BIAOJIE_DATA_DIR", help="Data folder of the node."),
]


def _url(database_url: str, data_dir: Path) -> str:
    return database_url or f"sqlite+aiosqlite:///{data_dir / 'registry.db'}"


# What is slow to import is imported by the command that needs it: all commands of the program
# pay for what stands at the top of this file.


def _run(work: Coroutine[Any, Any, int]) -> None:
    import asyncio

    from biaojie.errors import BiaojieError

    try:
        code = asyncio.run(work)
    except BiaojieError as error:
        typer.echo(f"{error.detail.en}\n{error.detail.zh}\n{error.advice.en}", err=True)
        code = 3
    if code:
        raise typer.Exit(code)


@app.command()
def migrate(database_url: DatabaseUrl = "", data_dir: DataDir = Path("data")) -> None:
    """Bring the registry's schema to the newest version; creates an embedded one."""
    if not database_url:
        data_dir.mkdir(parents=True, exist_ok=True)

    async def work() -> int:
        from .sql import migrate as migrate_schema

        await migrate_schema(_url(database_url, data_dir))
        return 0

    _run(work())


@app.command()
def verify(
    database_url: DatabaseUrl = "",
    data_dir: DataDir = Path("data"),
    log_only: Annotated[
        bool, typer.Option("--log-only", help="Check the change log, not every record.")
    ] = False,
    case_sensitive: Annotated[
        bool,
        typer.Option(envvar="BIAOJIE_SUFFIX_CASE_SENSITIVE", help="As the node is set."),
    ] = False,
) -> None:
    """Check the change log and that the registry is what the log says. Exit code 1: it is not."""

    async def work() -> int:
        from rich.console import Console

        from .audit import audit
        from .sql import open_store
        from .witness import Witness

        store = await open_store(_url(database_url, data_dir), allow_unsafe_durability=True)
        console = Console(stderr=True)
        try:
            with console.status("") as status:
                found = await audit(
                    store,
                    witness=Witness(data_dir).read(),
                    log_only=log_only,
                    case_sensitive=case_sensitive,
                    progress=lambda what, count: status.update(f"{count:,} {what}"),
                )
        finally:
            await store.close()
        return _report(found, log_only=log_only)

    _run(work())


def _report(found: Audit, *, log_only: bool) -> int:
    for fault in found.faults:
        typer.echo(f"FAULT {fault}")
    if found.fault_count > len(found.faults):
        typer.echo(f"… and {found.fault_count - len(found.faults)} more")
    walked = f"{found.entries} entries, {found.changes} changes"
    if not log_only:
        walked += f", {found.records} records"
    if found.fault_count:
        typer.echo(f"NOT VERIFIED 校验未通过: {found.fault_count} faults in {walked}")
        return 1
    typer.echo(f"verified 校验通过: {walked}")
    if found.busy:
        names = ", ".join(found.busy[:5])
        typer.echo(
            "not checked for completeness, because they were being compacted:"
            f" {len(found.busy)} prefixes ({names}) 正在整理，未检查完整性"
        )
    return 0


@app.command()
def compact(
    prefixes: Annotated[
        list[str] | None, typer.Argument(help="Prefixes to compact; all if none is named.")
    ] = None,
    database_url: DatabaseUrl = "",
    data_dir: DataDir = Path("data"),
    days: Annotated[
        int, typer.Option("--days", min=0, help="Fold what has not changed for so many days.")
    ] = 7,
) -> None:
    """Fold single records that no longer change into blocks. A node may run meanwhile."""

    async def work() -> int:
        from rich.console import Console

        from .admission import SYSTEM
        from .compaction import compact as compact_all
        from .compaction import last_entry_before
        from .registrar import Registrar
        from .sql import open_store

        store = await open_store(_url(database_url, data_dir))
        registrar = Registrar(store)
        registrar.start()
        try:
            cold = int((time.time() - days * 86_400) * 1_000)
            before = await last_entry_before(store, cold) + 1
            with Console(stderr=True).status("") as status:
                done = await compact_all(
                    store,
                    registrar,
                    SYSTEM,
                    before=before,
                    prefixes=prefixes or (),
                    progress=lambda name, so_far: status.update(f"{name}: {so_far.rows:,} rows"),
                )
        finally:
            await registrar.stop()
            await store.close()
        typer.echo(
            f"compacted 已整理: {done.rows} records and {done.markers} marks of purges in"
            f" {done.prefixes} prefixes; {done.blocks} blocks gave way to {done.made}"
        )
        return 0

    _run(work())


@app.command("new-admin-key")
def new_admin_key(database_url: DatabaseUrl = "", data_dir: DataDir = Path("data")) -> None:
    """Issue another admin key straight into the registry, for when the first is lost."""

    async def work() -> int:
        from biaojie.account import Role

        from .accounts import new_key
        from .admission import SYSTEM
        from .registrar import Registrar
        from .sql import open_store

        store = await open_store(_url(database_url, data_dir))
        registrar = Registrar(store)
        registrar.start()
        try:
            key, operation = new_key("", Role.ADMIN, "issued on the node's machine")
            (await registrar.submit(SYSTEM, [operation])).single()
        finally:
            await registrar.stop()
            await store.close()
        typer.echo(key)
        return 0

    _run(work())


def main() -> None:
    app(prog_name="biaojie")


if __name__ == "__main__":
    main()
