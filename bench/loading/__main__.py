"""`biaojie bench load`, `import` and `volume`: thin, and the root that chooses the store for them.

Exit codes: 0 carried out and nothing wrong; 1 an answer or the registry was not as it must be;
2 it could not be carried out.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..words import BenchFault, missing_extra

if TYPE_CHECKING:
    from registry.registrar import Registrar
    from registry.store import Store

    from .disk import Place

app = typer.Typer(no_args_is_help=True, add_completion=False)
_READ_S: Final = 60.0
_CORES: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2

Database = Annotated[
    str, typer.Option(help="sqlite, or a postgresql:// URL of an empty database. 数据库。")
]
Seed = Annotated[str, typer.Option(help="Same seed, same records. 随机种子。")]
Workers = Annotated[
    int, typer.Option(min=1, max=64, help="Processes that make and cut. 工作进程数。")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result here. 结果文件。")]
Write = Annotated[bool, typer.Option("--write", help="Write into bench/RESULTS.md, too.")]


def _run(work: Coroutine[Any, Any, None]) -> None:
    import asyncio
    from concurrent.futures.process import BrokenProcessPool

    from biaojie.errors import BiaojieError

    from .reading import WrongAnswer

    try:
        asyncio.run(work)
    except BenchFault as fault:
        typer.echo(str(fault), err=True)
        raise typer.Exit(1 if isinstance(fault, WrongAnswer) else 2) from None
    except BiaojieError as error:
        typer.echo(f"{error.detail.en}\n{error.detail.zh}", err=True)
        raise typer.Exit(2) from None
    except BrokenProcessPool:
        typer.echo(
            "A worker process was killed; start it again. 工作进程被终止，请重试。", err=True
        )
        raise typer.Exit(2) from None
    except ImportError as error:
        typer.echo(str(missing_extra(error)), err=True)
        raise typer.Exit(2) from None


@asynccontextmanager
async def _opened(place: Place) -> AsyncIterator[tuple[Store, Registrar]]:
    """The registry there, made if need be. What a commit promises is as in a node."""
    import gc

    from registry.registrar import Registrar
    from registry.sql import migrate, open_store

    from .loader import COMMIT_S

    gc.set_threshold(20_000, 20, 50)  # as a node has it
    await migrate(place.url)
    await place.find_server()
    store = await open_store(place.url, read_timeout_s=_READ_S, write_timeout_s=COMMIT_S)
    registrar = Registrar(store, commit_timeout_s=COMMIT_S)
    registrar.start()
    try:
        yield store, registrar
    finally:
        await registrar.stop()
        await store.close()


def _tell(name: str, result: dict[str, Any], text: str, file: Path | None, write: bool) -> None:
    """Keep what was measured in `file` if there is one, show it, and with `write` put it among the
    results."""
    from .. import results

    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
    typer.echo(text)
    if write:
        results.write(f"{name}-{result['kind'].lower()}", text)


@app.command()
def load(
    count: Annotated[int, typer.Option(min=1, help="Identifiers. 标识数。")] = 2_000_000,
    database: Database = "sqlite",
    driver_rows: Annotated[
        int, typer.Option(min=1_000, max=2_000_000, help="Rows for the bare driver. 对照行数。")
    ] = 200_000,
    seed: Seed = "biaojie",
    workers: Workers = _CORES,
    json_file: Json = None,
    write: Write = False,
) -> None:
    """Load records inside this process through the bulk entrance. 进程内批量装载测速。

    Into a new SQLite file, removed again, or an empty PostgreSQL database, which keeps them. Names
    and values are checked, rights and uniqueness too, and each commit is logged and on disk. The
    bare driver then loads rows of the same records.
    """

    async def work() -> None:
        from . import telling
        from .measured import measure

        with tempfile.TemporaryDirectory(prefix="biaojie-bench-", dir=Path.cwd()) as name:
            result = await measure(_opened, database, Path(name), seed, count, workers, driver_rows)
        _tell("load", result, telling.loaded(result), json_file, write)

    _run(work())


@app.command("import")
def import_(
    count: Annotated[
        int, typer.Option(min=1, max=5_000_000, help="Rows of each file. 每个文件的行数。")
    ] = 1_000_000,
    database: Database = "sqlite",
    form: Annotated[
        list[str] | None, typer.Option(help="csv, ndjson or msgpack; all of them. 文件格式。")
    ] = None,
    order: Annotated[
        list[str] | None, typer.Option(help="sorted or shuffled; both. 行的次序。")
    ] = None,
    driver_rows: Annotated[
        int, typer.Option(min=1_000, max=2_000_000, help="Rows for the bare driver. 对照行数。")
    ] = 200_000,
    seed: Seed = "biaojie",
    json_file: Json = None,
    write: Write = False,
) -> None:
    """Upload files to a node of its own and time their import. 文件导入测速。

    Into a new SQLite file, removed again, or an empty PostgreSQL database, which keeps the names.
    The bare driver then loads rows of like records.
    """
    from .importing import FORMS, ORDERS

    for given, known in ((form, FORMS), (order, ORDERS)):
        if wrong := set(given or ()) - set(known):
            raise typer.BadParameter(f"{', '.join(sorted(wrong))}: {', '.join(known)}")

    async def work() -> None:
        from . import telling
        from .importing import measure

        with tempfile.TemporaryDirectory(prefix="biaojie-bench-", dir=Path.cwd()) as name:
            result = await measure(
                database,
                Path(name),
                seed,
                count,
                form or FORMS,
                order or ORDERS,
                driver_rows,
                lambda text: typer.echo(text, err=True),
            )
        _tell("import", result, telling.imported(result), json_file, write)

    _run(work())


@app.command()
def volume(
    count: Annotated[int, typer.Option(min=1, help="Identifiers. 标识数。")] = 500_000_000,
    database: Database = "sqlite",
    folder: Annotated[
        Path, typer.Option(help="For the SQLite file and what was measured so far. 工作目录。")
    ] = Path("data/volume"),
    reads: Annotated[
        int, typer.Option(min=1, help="Look-ups of each kind at the end. 每类查询次数。")
    ] = 1_000_000,
    changes: Annotated[
        int, typer.Option(min=1, help="Records to change and retire. 变更与注销条数。")
    ] = 10_000,
    seed: Seed = "biaojie",
    workers: Workers = _CORES,
    json_file: Json = None,
    write: Write = False,
) -> None:
    """Load very many records, read them hot, warm and cold, change some, verify. 海量装载测试。

    Killed, it goes on where it was when it is started again with the same options. The registry
    stays in the folder, or in the database.
    """

    async def work() -> None:
        from registry.processes import processes

        from ..processes import ROOT
        from . import telling
        from .disk import place_of
        from .volume import Volume, Wanted

        began = time.strftime("%H:%M:%S")
        typer.echo(f"{began} {count:,} → {folder}", err=True)
        folder.mkdir(parents=True, exist_ok=True)
        place = place_of(database, folder)
        wanted = Wanted(seed, count, reads, changes, workers)
        with processes(workers) as pool:
            async with _opened(place) as (store, registrar):
                run = Volume(store, place, folder, wanted, lambda text: typer.echo(text, err=True))
                await run.run(registrar, pool)
        result = run.document()
        picture = f"volume-{place.kind.lower()}.png"
        _tell("volume", result, telling.volume(result, picture), json_file, write)
        telling.draw(result, (ROOT / "bench" if write else folder) / picture)

    _run(work())


def main() -> None:
    app(prog_name="python -m bench.loading")


if __name__ == "__main__":
    main()
