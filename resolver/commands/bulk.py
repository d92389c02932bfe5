"""`import` and `export`: whole files of records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import TIMEOUT_S, URL_DEFAULT, Key, KeyFile, RecordTemplate, Timeout, Url


def attach(app: typer.Typer) -> None:
    app.command("import")(import_rows)
    app.command("export")(export_prefix)


def import_rows(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.csv", help="UTF-8. CSV 文件。", show_default=False)
    ],
    prefix: Annotated[
        str, typer.Option(help="Prefix of the new identifiers. 前缀。", show_default=False)
    ] = "",
    suffix: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="Suffix of {column}s, such as 'SN-{serial}'; without it, a column `identifier`"
            " holds whole identifiers. 由列名组成的后缀模式。",
            show_default=False,
        ),
    ] = "",
    mode: Annotated[
        str,
        typer.Option(
            help="valid-rows: register every good row. all: check the whole file first, register"
            " only if no row is bad. 有错误行时：仅写入正确行，或全部不写。"
        ),
    ] = "valid-rows",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen. 只检查，不写入。")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget where it was stopped. 从头开始。")
    ] = False,
    chunk: Annotated[
        int, typer.Option(min=1, max=2_000, help="Rows per request. 每批行数。")
    ] = 500,
    errors: Annotated[
        Path | None,
        typer.Option(help="Where bad rows go. 错误文件。", show_default="FILE.errors.csv"),
    ] = None,
    status: Annotated[str, typer.Option(help="draft, active or frozen. 状态。")] = "active",
    template: RecordTemplate = None,
    case_sensitive: Annotated[
        bool,
        typer.Option(
            "--case-sensitive",
            help="For a dry run at a node with case-sensitive suffixes. 后缀区分大小写。",
        ),
    ] = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
) -> None:
    """Register the rows of a CSV file; each column becomes a value. 导入 CSV 文件。

    The first row names the columns. Rows that are refused go to the error file with line,
    column and reason: mend them there and import that file. An import that was stopped, in
    whatever way, goes on when the same command is run again, and registers nothing twice.

    --mode all guarantees that nothing is registered while any row of the file is bad. It does
    not hide the first rows from others until the last is registered, and a row that somebody
    else registers between check and writing is reported, not undone.

    Exit code: 0 every row is good, 1 there are bad rows, 2 the file cannot be imported,
    3 the node cannot be reached.
    """
    from biaojie.accept import choice_of
    from biaojie.errors import InvalidRequest
    from biaojie.record import Status
    from registry.imports import RowMapping, import_file

    from .progress import Bar, summary
    from .sending import through
    from .session import connect, run
    from .wording import say

    async def work() -> int:
        if mode not in ("valid-rows", "all"):
            raise InvalidRequest("--mode is valid-rows or all.", "--mode 应为 valid-rows 或 all。")
        mapping = RowMapping(prefix, suffix, choice_of(Status, status, "status"), template)
        async with connect(url, key, key_file, 60.0, retries=5) as client:
            with Bar(file.name) as bar:
                report = await import_file(
                    file,
                    mapping,
                    through(client),
                    mode="all" if mode == "all" else "valid-rows",
                    dry_run=dry_run,
                    error_file=errors,
                    restart=restart,
                    chunk_rows=chunk,
                    target=client.url,
                    case_sensitive=case_sensitive,
                    progress=bar.show,
                )
        typer.echo(summary(file.name, report))
        return 1 if report.failed else 0

    run(
        work,
        go_on=say(
            "Run the same command again: it goes on where it stopped.",
            "重新运行同一命令即可继续。",
        ),
    )


def export_prefix(
    prefix: Annotated[str, typer.Argument(help="Whose records. 前缀。", show_default=False)],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="ndjson: everything, a JSON record a line. csv: a row per identifier, a column"
            " per value. 格式。",
        ),
    ] = "ndjson",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file.", show_default="standard output"),
    ] = None,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Write out all records of a prefix, retired ones included. 导出前缀下的记录。

    The CSV can be read with a spreadsheet and imported again: text values have a column each,
    others are in the column `_more` as JSON.
    """
    from biaojie.errors import InvalidRequest
    from registry.exports import export_csv, export_ndjson

    from .sending import destination
    from .session import connect, run
    from .wording import say

    async def work() -> None:
        writers = {"ndjson": export_ndjson, "csv": export_csv}
        if format_ not in writers:
            raise InvalidRequest("--format is ndjson or csv.", "--format 应为 ndjson 或 csv。")
        async with connect(url, key, key_file, timeout) as client:
            with destination(output) as out:
                count = await writers[format_](client.records(prefix), out)
        if output:
            typer.echo(say(f"{output}: {count} records", f"{output}：{count} 条记录"), err=True)

    run(work)
