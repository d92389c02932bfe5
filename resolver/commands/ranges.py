"""`range …`: identifiers registered by one rule, any number in one call."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    TIMEOUT_S,
    URL_DEFAULT,
    AsJson,
    Key,
    KeyFile,
    RecordStatus,
    RecordTemplate,
    Timeout,
    Url,
)

_Range = Annotated[
    str,
    typer.Argument(
        metavar="PREFIX/PATTERN",
        help="In quotes, e.g. '88.118.8/SN{0000..9999}'; {0000..9998..2} has a step,"
        " {0000..9999+luhn} a check digit (luhn, mod11-10, gs1). 号段，须加引号。",
        show_default=False,
    ),
]


def attach(app: typer.Typer) -> None:
    ranges = typer.Typer(no_args_is_help=True, help="Identifiers by rule. 管理号段。")
    ranges.command("register")(register_range)
    ranges.command("list")(list_ranges)
    ranges.command("cut")(cut_range)
    app.add_typer(ranges, name="range")


def _parted(text: str) -> tuple[str, str]:
    prefix, _, pattern = text.partition("/")
    return prefix, pattern


def register_range(
    range_: _Range,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TYPE=DATA…",
            help="Values; {suffix}, {number}, {identifier} and {prefix} in them stand for those of"
            " each member. 值，可含占位符。",
            show_default=False,
        ),
    ] = None,
    status: RecordStatus = None,
    template: RecordTemplate = None,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Register all that a pattern names. 注册号段。

    biaojie range register '88.118.8/SN{00000000..99999999}' 'URL=https://acme.example/p/{suffix}'
    """
    from .printing import print_receipt
    from .session import connect, run
    from .values import number, parse_value

    async def work() -> None:
        values = number([parse_value(text) for text in words or ()])
        prefix, pattern = _parted(range_)
        async with connect(url, key, key_file, timeout) as client:
            receipt = await client.ranges.register(
                prefix, pattern, values, status=status, template=template
            )
        print_receipt(receipt, as_json=as_json)

    run(work, as_json=as_json)


def list_ranges(
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="e.g. 88.118.8. 前缀。", show_default=False)
    ],
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Pattern, status, how many, since when. 列出号段。"""
    from .printing import print_range
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            async for each in client.ranges.list(prefix):
                print_range(each, as_json=as_json)

    run(work, as_json=as_json)


def cut_range(
    range_: _Range,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Remove without tombstones (admin). 彻底删除（管理员）。"),
    ] = False,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Retire a range, or a part of ranges, for good. 注销号段或其一部分。

    Members that were changed one by one are records of their own and stay.
    """
    from .printing import print_receipt
    from .session import connect, run

    async def work() -> None:
        prefix, pattern = _parted(range_)
        async with connect(url, key, key_file, timeout) as client:
            receipt = await client.ranges.cut(prefix, pattern, purge=purge)
        print_receipt(receipt, as_json=as_json)

    run(work, as_json=as_json)
