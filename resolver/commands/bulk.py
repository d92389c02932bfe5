"""`import` and `export`: whole files of records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from registry.__main__ import DatabaseUrl, DataDir

from .options import TIMEOUT_S, URL_DEFAULT, Key, KeyFile, RecordTemplate, Timeout, Url

if TYPE_CHECKING:
    from biaojie.client import Client
    from biaojie.record import Record
    from registry.exports import Exported, Page


def attach(app: typer.Typer) -> None:
    app.command("import")(import_rows)
    app.command("export")(export_records)


def import_rows(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="CSV, NDJSON, msgpack or .xlsx; also as .gz or .zst. 文件。",
            show_default=False,
        ),
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
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TITLE=TARGET",
            help="What a column holds: identifier, status, template, a value as TYPE or"
            " TYPE[index], or - for nothing. May be repeated. 列映射，可重复。",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv, ndjson, msgpack or xlsx. 格式。",
            show_default="by name and content",
        ),
    ] = "",
    encoding: Annotated[
        str, typer.Option(help="Such as gb18030. 编码。", show_default="UTF-8")
    ] = "",
    formulas: Annotated[
        str,
        typer.Option(help="Cells that begin with =: refuse, or text. 以 = 开头的单元格。"),
    ] = "refuse",
    at_node: Annotated[
        bool,
        typer.Option(
            "--at-node",
            help="Hand the whole file to the node, which goes on by itself. 交由节点执行。",
        ),
    ] = False,
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
    """Register the rows of a file; each column becomes a value. 导入文件。

    The first row names the columns; rows of NDJSON and msgpack may be whole records. Rows that
    are refused go to the error file with line, column and reason: mend them there and import
    that file. An import that was stopped, in whatever way, goes on when the same command is run
    again, and registers nothing twice.

    --mode all guarantees that nothing is registered while any row of the file is bad. It does
    not hide the first rows from others until the last is registered, and a row that somebody
    else registers between check and writing is reported, not undone.

    With --at-node the file is uploaded once and is the node's affair then: it goes on when this
    program ends, and when the node is started anew.

    Exit code: 0 every row is good, 1 there are bad rows, 2 the file cannot be imported,
    3 the node cannot be reached.
    """
    from biaojie.wire.imports import ImportOptions, check_options, column_of

    from .importing import hand_to_node, send_rows
    from .progress import Bar, summary
    from .session import connect, run
    from .wording import say

    async def work() -> int:
        options = check_options(
            ImportOptions(
                file.name[-200:],
                format_,
                encoding,
                cast(Any, mode),
                dry_run,
                prefix,
                suffix,
                status,
                template or "",
                tuple(column_of(text) for text in column or ()),
                cast(Any, formulas),
            )
        )
        async with connect(url, key, key_file, 60.0, retries=5) as client:
            with Bar(file.name) as bar:
                if at_node:
                    report = await hand_to_node(client, file, options, bar, errors=errors)
                else:
                    report = await send_rows(
                        client,
                        file,
                        options,
                        bar,
                        errors=errors,
                        restart=restart,
                        chunk_rows=chunk,
                        case_sensitive=case_sensitive,
                    )
        typer.echo(summary(file.name, report))
        return 1 if report.failed else 0

    run(
        work,
        go_on=say("What the node has of the file goes on there.", "节点已收到的文件会继续执行。")
        if at_node
        else say(
            "Run the same command again: it goes on where it stopped.",
            "重新运行同一命令即可继续。",
        ),
    )


def export_records(
    prefixes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PREFIX]...", help="Whose records; without, of all. 前缀。", show_default=False
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="ndjson: everything, a JSON record a line. csv: a row per identifier, a column"
            " per value. handle: CREATE operations for Handle tools. 格式。",
        ),
    ] = "ndjson",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file.", show_default="standard output"),
    ] = None,
    direct: Annotated[
        bool,
        typer.Option(
            "--direct",
            help="Read the registry itself, on its machine: many times quicker, without a node or"
            " a key, private values included. 直接读取注册库。",
        ),
    ] = False,
    database_url: DatabaseUrl = "",
    data_dir: DataDir = Path("data"),
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Write out all records, retired ones included, in order of prefix and suffix. 导出记录。

    The CSV can be read with a spreadsheet and imported again: text values have a column each,
    others are in the column `_more` as JSON. The Handle format has no drafts and no retired
    identifiers, and no values that are not one line of text; how many are left out is said.
    """
    from registry.exports import export, form_of, paged

    from .sending import destination
    from .session import connect, run
    from .wording import say

    async def written(pages: AsyncIterator[Page]) -> None:
        with destination(output) as out:
            done = await export(pages, form_of(format_), out)
        if output:
            said = say(f"{output}: {done.records} records", f"{output}：{done.records} 条记录")
            typer.echo(said, err=True)
        if done.records_left_out or done.values_left_out:
            typer.echo(_left_out(done), err=True)

    async def work() -> None:
        form_of(format_)
        if direct:
            from registry.__main__ import open_pages

            async with open_pages(database_url, data_dir, prefixes or ()) as pages:
                await written(pages)
            return
        async with connect(url, key, key_file, timeout) as client:
            names = sorted(set(prefixes or ())) or [p.name async for p in client.prefixes.list()]
            await written(paged(_records(client, names)))

    run(work)


async def _records(client: Client, prefixes: Sequence[str]) -> AsyncIterator[Record]:
    for prefix in prefixes:
        async for record in client.records(prefix):
            yield record


def _left_out(done: Exported) -> str:
    from .wording import say

    records, values = done.records_left_out, done.values_left_out
    return say(
        f"Left out, because the format cannot say them: {records} records, {values} values.",
        f"该格式无法表示而略去：{records} 条记录，{values} 个值。",
    )
