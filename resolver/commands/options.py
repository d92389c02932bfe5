"""Options that many commands have, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

URL_DEFAULT = "http://127.0.0.1:8080"
KEY_FILE_DEFAULT = Path("data/admin.key")
_PANEL = "Connection"

Url = Annotated[
    str,
    typer.Option("--url", envvar="BIAOJIE_URL", rich_help_panel=_PANEL, help="Node. 节点地址。"),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="BIAOJIE_KEY",
        rich_help_panel=_PANEL,
        show_default=False,
        help="Key to act with. 密钥。",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        rich_help_panel=_PANEL,
        show_default=str(KEY_FILE_DEFAULT),
        help="File with the key, where --key is not given. 密钥文件。",
    ),
]
ReadKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        rich_help_panel=_PANEL,
        show_default="none: asks as the public does",
        help="File with the key, where --key is not given. 密钥文件（默认不使用密钥）。",
    ),
]
HandleServer = Annotated[
    str | None,
    typer.Option(
        "--handle",
        metavar="HOST[:PORT]",
        rich_help_panel=_PANEL,
        show_default=False,
        help="Ask this Handle server, port 2641, instead of --url. 改用 Handle 协议查询。",
    ),
]
HandleIdentity = Annotated[
    str | None,
    typer.Option(
        "--identity",
        metavar="INDEX:HANDLE",
        rich_help_panel=_PANEL,
        show_default=False,
        help="Who logs in to the Handle server, e.g. 300:88.118.8/ADMIN. 登录身份。",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", rich_help_panel=_PANEL, min=0.1, help="Seconds, retries included. 时限（秒）。"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs. 输出 JSON。")]
TheIdentifier = Annotated[
    str,
    typer.Argument(
        metavar="IDENTIFIER",
        help="prefix/suffix, hdl:… or a URL. 标识，亦可为 hdl: 或网址形式。",
        show_default=False,
    ),
]
RecordStatus = Annotated[
    str | None,
    typer.Option("--status", help="draft, active or frozen. 状态。", show_default=False),
]
RecordTemplate = Annotated[
    str | None,
    typer.Option("--template", help="Its data template. 数据模板标识。", show_default=False),
]
IfVersion = Annotated[
    int | None,
    typer.Option(
        "--if-version",
        min=1,
        help="Only if it is at this version. 仅当版本相符。",
        show_default=False,
    ),
]
TIMEOUT_S = 10.0
