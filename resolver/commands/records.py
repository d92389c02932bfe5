"""`resolve`, `register`, `modify`, `retire`, `list`: one record, or those of a prefix."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    TIMEOUT_S,
    URL_DEFAULT,
    AsJson,
    HandleIdentity,
    HandleServer,
    IfVersion,
    Key,
    KeyFile,
    ReadKeyFile,
    RecordStatus,
    RecordTemplate,
    TheIdentifier,
    Timeout,
    Url,
)

_ValueList = typer.Argument(
    metavar="TYPE=DATA…",
    help="Values; also INDEX:TYPE=DATA or a JSON value object. 值。",
    show_default=False,
)
_Set = typer.Option(
    "--set", metavar="TYPE=DATA", help="A value, as above. 值。", show_default=False
)
_File = typer.Option(
    "--file", help="Record or list of values as JSON; - for standard input. JSON 文件。"
)


def attach(app: typer.Typer) -> None:
    app.command("resolve")(resolve)
    app.command("register")(register)
    app.command("modify")(modify)
    app.command("retire")(retire)
    app.command("list")(list_records)
    app.command("search")(search)


def resolve(
    identifier: TheIdentifier,
    index: Annotated[
        list[int] | None, typer.Option(help="Only these indexes. 仅这些索引。")
    ] = None,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="Only these types. 仅这些类型。")
    ] = None,
    auth: Annotated[bool, typer.Option("--auth", help="Bypass every cache. 绕过缓存。")] = False,
    as_json: AsJson = False,
    handle: HandleServer = None,
    identity: HandleIdentity = None,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: ReadKeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Look an identifier up. 解析标识。

    With --handle it asks a Handle server; with --identity as well it logs in there, by the
    secret given as --key or the private key in --key-file.

    Exit code: 0 found, 1 not found or retired, 2 malformed, 3 temporarily no answer.
    """
    from .handle_login import connect_handle
    from .session import connect, run
    from .wording import answer, to_json

    async def work() -> None:
        if handle:
            made = connect_handle(handle, identity, key, key_file, timeout)
        else:
            made = connect(url, key, key_file, timeout, public=True)
        async with made as client:
            begun = time.perf_counter()
            found = await client.resolve(
                identifier, index=index or (), types=type_ or (), authoritative=auth
            )
            took_s = time.perf_counter() - begun
            if as_json:
                from biaojie.wire.document import encode_record

                typer.echo(to_json(encode_record(found.record)))
                return
            flags = ["auth"] if auth else []
            flags += ["stale"] if found.source == "stale" else []
            flags += [f"age={found.age_s}s"] if found.age_s else []
            typer.echo(answer(found.record, found.source, flags, took_s, client.url))

    run(work, as_json=as_json)


def register(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IDENTIFIER TYPE=DATA…",
            help="Identifier (not with --mint), then values: TYPE=DATA, INDEX:TYPE=DATA or JSON."
            " 标识（使用 --mint 时省略）与各个值。",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[list[str] | None, _Set] = None,
    file: Annotated[Path | None, _File] = None,
    mint: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX[/START]",
            help="Let the node make up the suffix. 由节点生成后缀。",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace it if it exists. 已存在则替换。")
    ] = False,
    status: RecordStatus = None,
    template: RecordTemplate = None,
    if_version: IfVersion = None,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Register an identifier. 注册标识。

    biaojie register 88.118.8/SN1 URL=https://example.com/SN1 MODEL=A1
    """
    from biaojie.errors import InvalidRequest

    from .printing import print_receipt
    from .session import connect, run
    from .values import Given, number, parse_value, read_record

    async def work() -> None:
        given = read_record(file) if file else Given()
        texts = list(words or ())
        name = given.identifier
        if not mint and texts and ("=" not in texts[0].partition("/")[0] or name is None):
            name = texts.pop(0)
        if not mint and name is None:
            raise InvalidRequest(
                "Name an identifier, or use --mint.", "请给出标识，或使用 --mint。"
            )
        named = [parse_value(text) for text in [*texts, *(set_ or ())]]
        values = number([*given.values, *named])
        state, model = status or given.status, template or given.template
        async with connect(url, key, key_file, timeout) as client:
            if mint:
                prefix, _, start = mint.partition("/")
                receipt = await client.mint(prefix, values, start, status=state, template=model)
            else:
                receipt = await client.register(
                    str(name),
                    values,
                    status=state,
                    template=model,
                    overwrite=overwrite,
                    if_version=if_version,
                )
        print_receipt(receipt, as_json=as_json)

    run(work, as_json=as_json)


def modify(
    identifier: TheIdentifier,
    words: Annotated[list[str] | None, _ValueList] = None,
    set_: Annotated[list[str] | None, _Set] = None,
    remove: Annotated[
        list[int] | None, typer.Option(help="Index of a value to remove. 要删除的索引。")
    ] = None,
    status: RecordStatus = None,
    template: RecordTemplate = None,
    if_version: IfVersion = None,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Change some values, the status or the template. 修改标识。

    A value without an index replaces the only value of its type, or is added.
    """
    from biaojie.errors import ValueTaken

    from .printing import print_receipt
    from .session import connect, run
    from .values import number, parse_value

    async def work() -> None:
        values = tuple(parse_value(text) for text in [*(words or ()), *(set_ or ())])
        version = if_version
        async with connect(url, key, key_file, timeout) as client:
            now = None
            if any(not value.index for value in values):
                now = (await client.resolve(identifier, authoritative=True)).record
                version = version or now.version
            hidden: set[int] = set()
            while True:
                try:
                    receipt = await client.modify(
                        identifier,
                        number(values, now, hidden) if now else values,
                        remove or (),
                        status=status,
                        template=template,
                        if_version=version,
                    )
                    break
                except ValueTaken as error:
                    # A secret that we cannot see has the index we chose: choose the next.
                    index = error.fields.get("index")
                    if now is None or not isinstance(index, int) or index in hidden:
                        raise
                    hidden.add(index)
        print_receipt(receipt, as_json=as_json)

    run(work, as_json=as_json)


def retire(
    identifier: TheIdentifier,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Remove without a tombstone (admin). 彻底删除（管理员）。"),
    ] = False,
    if_version: IfVersion = None,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Retire an identifier for good; it is never given out again. 注销标识。"""
    from .printing import print_receipt
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            call = client.purge if purge else client.retire
            print_receipt(await call(identifier, if_version=if_version), as_json=as_json)

    run(work, as_json=as_json)


def list_records(
    prefix: Annotated[str, typer.Argument(help="Whose identifiers. 前缀。", show_default=False)],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many. 最多条数。", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """All identifiers of a prefix, retired ones included. 列出前缀下的标识。

    Columns: identifier, status, version, modified, number of values.
    """
    from biaojie.limits import PAGE_ROWS_MAX

    from .printing import print_listed
    from .session import connect, run

    async def work() -> None:
        count = 0
        async with connect(url, key, key_file, timeout) as client:
            pages = client.records(prefix, page_rows=min(limit or PAGE_ROWS_MAX, PAGE_ROWS_MAX))
            async for record in pages:
                print_listed(record, as_json=as_json)
                count += 1
                if count == limit:
                    await pages.aclose()
                    break

    run(work, as_json=as_json)


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="TYPE=DATA…",
            help="Whole values; all must match. 完整的值，须全部相符。",
            show_default=False,
        ),
    ],
    prefix: Annotated[
        str | None, typer.Option(help="Only under this prefix. 仅此前缀。", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many. 最多条数。", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: ReadKeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Find identifiers by values that their prefix declares searchable. 按值检索标识。

    biaojie search URL=https://example.com/SN1

    With a key and --prefix, drafts and private values are searched too.
    Exit code: 0 found, 1 nothing found, 2 malformed, 3 temporarily no answer.
    """
    from biaojie.limits import PAGE_ROWS_MAX

    from .session import connect, run
    from .values import parse_pair
    from .wording import safe, to_json

    async def work() -> int:
        pairs = [parse_pair(text) for text in words]
        count = 0
        async with connect(url, key, key_file, timeout, public=True) as client:
            rows = min(limit or PAGE_ROWS_MAX, PAGE_ROWS_MAX)
            found = client.search(pairs, prefix=prefix, page_rows=rows)
            async for identifier in found:
                text = str(identifier)
                print(to_json(text) if as_json else safe(text))
                count += 1
                if count == limit:
                    await found.aclose()
                    break
        return 0 if count else 1

    run(work, as_json=as_json)
