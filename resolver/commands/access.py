"""`prefix …`, `key …`, `changes`, `version`: who may act where, and what was done."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import TIMEOUT_S, URL_DEFAULT, AsJson, Key, KeyFile, Timeout, Url

_Prefix = Annotated[
    str, typer.Argument(metavar="PREFIX", help="e.g. 88.118.8. 前缀。", show_default=False)
]
_Searchable = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TYPE",
        help="Value type to be found by; may be repeated. 可检索的值类型。",
        show_default=False,
    ),
]
_Tenant = Annotated[str, typer.Option(help="Its owner. 所属租户。", show_default=False)]


def attach(app: typer.Typer) -> None:
    prefixes = typer.Typer(no_args_is_help=True, help="Prefixes of the node. 管理前缀。")
    prefixes.command("list")(list_prefixes)
    prefixes.command("home")(home_prefix)
    prefixes.command("suspend")(suspend_prefix)
    prefixes.command("activate")(activate_prefix)
    prefixes.command("set")(set_prefix)
    app.add_typer(prefixes, name="prefix")
    keys = typer.Typer(no_args_is_help=True, help="Keys to the node. 管理密钥。")
    keys.command("list")(list_keys)
    keys.command("issue")(issue_key)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="key")
    app.command("changes")(changes)
    app.command("version")(version)


def list_prefixes(
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Prefix, status, tenant, since when. 列出前缀。"""
    from .printing import print_prefix
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            async for prefix in client.prefixes.list():
                print_prefix(prefix, as_json=as_json)

    run(work, as_json=as_json)


def home_prefix(
    prefix: _Prefix,
    tenant: _Tenant,
    searchable: _Searchable = None,
    admin: Annotated[
        str,
        typer.Option(
            metavar="INDEX:HANDLE",
            help="Handle identity with every right under it, e.g. 300:88.118.8/ADMIN."
            " 拥有全部权限的 Handle 管理员。",
            show_default=False,
        ),
    ] = "",
    status: Annotated[
        str,
        typer.Option(
            help="active: here. delegated, referred: at the node that HS_SITE values of"
            " 0.NA/PREFIX name. 本节点托管，或由其他节点负责。",
        ),
    ] = "active",
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Let this node answer for a prefix. 托管前缀。"""
    from .printing import print_prefix
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            homed = await client.prefixes.home(
                prefix, tenant, searchable=searchable or (), admin=admin, status=status
            )
            print_prefix(homed, as_json=as_json)

    run(work, as_json=as_json)


def set_prefix(
    prefix: _Prefix,
    searchable: _Searchable = None,
    not_searchable: Annotated[
        bool, typer.Option("--not-searchable", help="Declare none searchable. 全部取消检索。")
    ] = False,
    tenant: Annotated[
        str | None, typer.Option(help="Its new owner. 新的所属租户。", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Change what is searchable (all types at once), or the owner. 修改可检索类型或所属租户。

    The node then indexes the records that are there; `prefix list --json` tells when it is done.
    """
    from biaojie.errors import InvalidRequest

    from .printing import print_prefix
    from .session import connect, run

    async def work() -> None:
        if bool(searchable) == not_searchable and (searchable or tenant is None):
            raise InvalidRequest(
                "Give --searchable or --not-searchable, or --tenant.",
                "请给出 --searchable 或 --not-searchable，或 --tenant。",
            )
        types = () if not_searchable else searchable
        async with connect(url, key, key_file, timeout) as client:
            changed = await client.prefixes.change(prefix, tenant=tenant, searchable=types)
            print_prefix(changed, as_json=as_json)

    run(work, as_json=as_json)


def suspend_prefix(
    prefix: _Prefix,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Neither resolve nor register under it until it is active again. 暂停前缀。"""
    _set_status(prefix, "suspended", as_json, url, key, key_file, timeout)


def activate_prefix(
    prefix: _Prefix,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """End a suspension. 恢复前缀。"""
    _set_status(prefix, "active", as_json, url, key, key_file, timeout)


def _set_status(
    prefix: str,
    status: str,
    as_json: bool,
    url: str,
    key: str | None,
    key_file: KeyFile,
    timeout: float,
) -> None:
    from .printing import print_prefix
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            print_prefix(await client.prefixes.change(prefix, status=status), as_json=as_json)

    run(work, as_json=as_json)


def list_keys(
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Id, role, tenant, state, since when, label; never secrets. 列出密钥。"""
    from .printing import print_key
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            async for listed in client.keys.list():
                print_key(listed, as_json=as_json)

    run(work, as_json=as_json)


def issue_key(
    role: Annotated[
        str, typer.Option(help="admin, registrar or reader. 角色。", show_default=False)
    ],
    tenant: Annotated[str, typer.Option(help="Whose key. 所属租户。", show_default=False)] = "",
    label: Annotated[str, typer.Option(help="What it is for. 用途。", show_default=False)] = "",
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Make a key. The secret is printed now and never again. 签发密钥（仅显示一次）。

    Standard output holds the secret and nothing else: KEY=$(biaojie key issue --role reader …).
    """
    from .session import connect, run
    from .wording import safe, say, to_json

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            issued = await client.keys.issue(role, tenant, label)
        if as_json:
            from biaojie.wire.document import encode_key

            typer.echo(to_json({**encode_key(issued.key), "key": issued.secret}))
            return
        name = safe(issued.key.id)
        typer.echo(
            say(
                f"Key {name} is made; keep it, it is shown this once.",
                f"密钥 {name} 已签发，仅显示一次。",
            ),
            err=True,
        )
        typer.echo(issued.secret)

    run(work, as_json=as_json)


def revoke_key(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="Its id, not the secret. 编号。", show_default=False)
    ],
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """Make a key worthless within seconds. 吊销密钥。"""
    from .printing import print_key
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            print_key(await client.keys.revoke(key_id), as_json=as_json)

    run(work, as_json=as_json)


def changes(
    after: Annotated[int, typer.Option(min=0, help="Begin after this sequence. 起始序号。")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many. 最多条数。", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more, for ever. 持续等待。")
    ] = False,
    as_json: AsJson = False,
    url: Url = URL_DEFAULT,
    key: Key = None,
    key_file: KeyFile = None,
    timeout: Timeout = TIMEOUT_S,
) -> None:
    """The change log: sequence, time, who, what, subject, hash. 变更日志。"""
    import sys

    from .printing import print_entry
    from .session import connect, run

    async def work() -> None:
        async with connect(url, key, key_file, timeout) as client:
            entries = client.changes(after, follow=follow, page_rows=min(limit or 100, 100))
            count = 0
            async for entry in entries:
                print_entry(entry, as_json=as_json)
                count += 1
                if follow:
                    sys.stdout.flush()
                if count == limit:
                    await entries.aclose()
                    break

    run(work, as_json=as_json)


def version() -> None:
    """What is installed. 版本。"""
    import platform

    import biaojie

    typer.echo(f"biaojie {biaojie.__version__} (Python {platform.python_version()})")
