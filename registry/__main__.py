"""The registry's own commands, for the operator on the node's machine: migrate, verify, backup,
restore, move, and a new admin key when the first is lost. One of the two places that know the
SQL store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .audit import Audit
    from .exports import Page
    from .sql.transfer import Moved

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
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Lose what is there now. 丢弃目标中已有的内容。")
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
def migrate(
    database_url: DatabaseUrl = "",
    data_dir: DataDir = Path("data"),
    partitions: Annotated[
        int,
        typer.Option(min=0, max=256, help="Hash partitions of a new PostgreSQL registry."),
    ] = 0,
    citus: Annotated[
        bool, typer.Option("--citus", help="Spread a new registry over the workers of Citus.")
    ] = False,
) -> None:
    """Bring the registry's schema to the newest version; creates an embedded one.

    How the tables are laid out is decided while the registry is empty: see docs/scaling.md.
    """
    if not database_url:
        data_dir.mkdir(parents=True, exist_ok=True)

    async def work() -> int:
        from .sql import migrate as migrate_schema

        url = _url(database_url, data_dir)
        await migrate_schema(url, partitions=partitions, citus=citus)
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
    processes: Annotated[
        int,
        typer.Option(min=0, max=64, help="More that look at blocks, for large registries."),
    ] = 0,
) -> None:
    """Check the change log and that the registry is what the log says. Exit code 1: it is not."""

    async def work() -> int:
        from contextlib import nullcontext

        from rich.console import Console

        from .audit import audit
        from .processes import processes as started
        from .sql import open_store
        from .witness import Witness

        store = await open_store(_url(database_url, data_dir), allow_unsafe_durability=True)
        console = Console(stderr=True)
        try:
            with (
                started(processes) if processes else nullcontext() as helpers,
                console.status("") as status,
            ):
                found = await audit(
                    store,
                    witness=Witness(data_dir).read(),
                    log_only=log_only,
                    case_sensitive=case_sensitive,
                    progress=lambda what, count: status.update(f"{count:,} {what}"),
                    helpers=helpers,
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
def stats(
    prefix: Annotated[
        str, typer.Argument(help="Only of this prefix. 前缀。", show_default=False)
    ] = "",
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days. 天数。")] = 30,
    templates: Annotated[
        int,
        typer.Option(min=0, max=100, help="How many templates, at most. 最多列出的数据模板数。"),
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As GET /api/v1/stats gives it.")] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--recount",
            help="Count by template, layer and state from the records themselves, as is needed"
            " once where the log began before it told of them. 按数据模板、存储层与状态重新清点。",
        ),
    ] = False,
    database_url: DatabaseUrl = "",
    data_dir: DataDir = Path("data"),
) -> None:
    """Identifiers by prefix, template, layer and state; registrations and resolutions by day.
    按前缀、数据模板、存储层、状态统计标识，按日统计注册与解析。

    Counted from the change log, which the numbers agree with up to the entry that is named;
    resolutions are those that nodes have added so far.
    """

    async def work() -> int:
        import json

        from .sql import open_store
        from .sql.recount import recount
        from .statistics import as_document
        from .statistics_command import numbers, show

        url = _url(database_url, data_dir)
        store = await open_store(url, allow_unsafe_durability=True)
        try:
            if again:
                await recount(url, store)
            made = await numbers(store, prefix, days, templates)
        finally:
            await store.close()
        if as_json:
            typer.echo(json.dumps(as_document(made), ensure_ascii=False))
        else:
            show(made)
        return 0

    _run(work())


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


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file. 新的备份文件。")],
    database_url: DatabaseUrl = "",
    data_dir: DataDir = Path("data"),
) -> None:
    """Write the whole registry to a file, while nodes go on writing. 备份整个注册库。

    The file holds everything: records, change log, keys (by their digests), receipts; keep it as
    safe as the database. It can be restored into SQLite and PostgreSQL alike. What is printed
    last is its digest: kept elsewhere, it tells (restore --digest) that nobody changed the file.
    """

    async def work() -> int:
        from .sql.transfer import backup as back_up

        with _counting() as progress:
            made = await back_up(_url(database_url, data_dir), file, progress)
        _say_moved(f"backed up 已备份: {file}", made)
        return 0

    _run(work())


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by backup. 备份文件。")],
    database_url: DatabaseUrl = "",
    data_dir: DataDir = Path("data"),
    overwrite: Overwrite = False,
    digest: Annotated[
        str, typer.Option(metavar="HEX", help="What backup printed. 备份时给出的摘要。")
    ] = "",
) -> None:
    """Make the registry what it was when the backup was made. Stop the nodes first. 恢复注册库。

    The file is checked as a whole before anything is changed, and what was written is read back
    and compared. When stopped, run the same command again: it goes on, and until it is done no
    node serves the half of a registry.
    """
    if not database_url:
        data_dir.mkdir(parents=True, exist_ok=True)

    async def work() -> int:
        from .sql.transfer import restore as bring_back
        from .witness import Witness

        with _counting() as progress:
            made = await bring_back(
                file,
                _url(database_url, data_dir),
                overwrite=overwrite,
                digest=_hex(digest) if digest else None,
                progress=progress,
            )
        _say_moved(f"restored 已恢复: {file}", made)
        seen = Witness(data_dir).read()[0]
        if seen > made.head[0]:
            typer.echo(
                f"{data_dir}/log-witness.json saw entry {seen}: the {seen - made.head[0]} after"
                f" this backup are lost. `biaojie verify` will say so until that file is removed.\n"
                f"{data_dir}/log-witness.json 曾见到第 {seen} 条变更；备份之后的"
                f" {seen - made.head[0]} 条已丢失。删除该文件之前 `biaojie verify` 会持续提示。",
                err=True,
            )
        return 0

    _run(work())


@app.command()
def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help="URL or SQLite file. 来源。")],
    target: Annotated[str, typer.Argument(metavar="TO", help="URL or SQLite file. 目标。")],
    overwrite: Overwrite = False,
) -> None:
    """Move a registry to another database, such as SQLite to PostgreSQL. 迁移注册库。

    Everything goes along: records, change log, keys, receipts. Stop the nodes first, and start
    them on TO afterwards; FROM stays as it is. What was written is read back and compared. When
    stopped, run the same command again: it goes on. Exit code 1: FROM was written to meanwhile.
    """

    async def work() -> int:
        from .sql.transfer import move as carry

        with _counting() as progress:
            made = await carry(
                _as_url(source), _as_url(target), overwrite=overwrite, progress=progress
            )
        _say_moved("moved 已迁移", made)
        if made.behind:
            typer.echo(
                f"NOT ALL: {made.behind} entries were written to FROM meanwhile. Stop the nodes,"
                " then run this again with --overwrite.\n"
                f"未全部迁移：期间来源又写入了 {made.behind} 条变更。"
                "请停止节点，再加 --overwrite 重新运行。",
                err=True,
            )
        return 1 if made.behind else 0

    _run(work())


@asynccontextmanager
async def open_pages(
    database_url: str, data_dir: Path, prefixes: Sequence[str]
) -> AsyncIterator[AsyncIterator[Page]]:
    """What `biaojie export --direct` writes: the registry's records as they are read."""
    import gc

    from .exports import registry_pages
    from .sql import open_store

    # Rows come and go by the thousand and have no cycles: looking for some would take a fifth.
    gc.set_threshold(200_000, 20, 20)
    store = await open_store(
        _url(database_url, data_dir), allow_unsafe_durability=True, read_timeout_s=60
    )
    try:
        async with aclosing(registry_pages(store, prefixes)) as pages:
            yield pages
    finally:
        await store.close()


def _as_url(text: str) -> str:
    return text if "://" in text else f"sqlite:///{text}"


def _hex(text: str) -> bytes:
    from biaojie.errors import InvalidRequest

    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidRequest(
            "--digest is 64 hex digits.", "--digest 应为 64 位十六进制数。"
        ) from None


@contextmanager
def _counting() -> Iterator[Callable[[str, int], None]]:
    """Shows how far it is on a terminal, a few times a second."""
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda what, count: status.update(f"{what}: {count:,}")


def _say_moved(what: str, made: Moved) -> None:
    for table, (rows, _) in sorted(made.sums.items()):
        typer.echo(f"  {table}: {rows:,}", err=True)
    if made.resumed:
        typer.echo(f"  (went on after {made.resumed} runs 从第 {made.resumed} 段继续)", err=True)
    typer.echo(f"{what}")
    typer.echo(f"entry {made.head[0]} {made.head[1].hex()}")
    typer.echo(f"root {made.root.hex()}")
    typer.echo(f"digest {made.digest.hex()}")


def main() -> None:
    app(prog_name="biaojie")


if __name__ == "__main__":
    main()
