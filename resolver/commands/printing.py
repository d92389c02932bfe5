"""Lines that commands print for the values they get back."""

from __future__ import annotations

import typer

from biaojie.account import ApiKey, Prefix
from biaojie.change import Action, Entry, Receipt
from biaojie.range import Range
from biaojie.record import Record
from biaojie.wire import document
from biaojie.wire.document import encode_time

from .wording import safe, say, to_json

_DONE = {
    Action.CREATE: ("registered", "已注册"),
    Action.PUT: ("written", "已写入"),
    Action.MODIFY: ("modified", "已修改"),
    Action.RETIRE: ("retired", "已注销"),
    Action.PURGE: ("purged", "已彻底删除"),
    Action.REGISTER_RANGE: ("registered", "已注册"),
    Action.CUT_RANGE: ("cut", "已移除"),
}


def print_receipt(receipt: Receipt, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(document.encode_receipt(receipt)))
        return
    name = safe(receipt.identifier)
    done = _DONE.get(receipt.action, (receipt.action.value, receipt.action.value))
    typer.echo(
        say(
            f"{name} {done[0]}: {receipt.status}, version {receipt.version},"
            f" change {receipt.sequence}",
            f"{name} {done[1]}：状态 {receipt.status}，版本 {receipt.version}，"
            f"变更 {receipt.sequence}",
        )
    )


def print_listed(record: Record, *, as_json: bool) -> None:
    if as_json:
        print(to_json(document.encode_record(record)))
        return
    print(
        f"{safe(str(record.identifier))}\t{record.status}\t{record.version}"
        f"\t{encode_time(record.modified)}\t{len(record.values)}"
    )


def print_range(found: Range, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(document.encode_range(found)))
        return
    typer.echo(
        f"{safe(found.prefix)}/{safe(found.pattern)}\t{found.status}\t{found.count}"
        f"\t{encode_time(found.created)}"
    )


def print_prefix(prefix: Prefix, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(document.encode_prefix(prefix)))
        return
    typer.echo(
        f"{safe(prefix.name)}\t{prefix.status}\t{safe(prefix.tenant)}\t{encode_time(prefix.created)}"
    )


def print_key(key: ApiKey, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(document.encode_key(key)))
        return
    state = "revoked" if key.revoked else "valid"
    typer.echo(
        f"{safe(key.id)}\t{key.role}\t{safe(key.tenant)}\t{state}\t{encode_time(key.created)}"
        f"\t{safe(key.label)}"
    )


def print_entry(entry: Entry, *, as_json: bool) -> None:
    if as_json:
        print(to_json(document.encode_entry(entry)))
        return
    first = safe(entry.changes[0].subject) if entry.changes else "-"
    more = f" +{entry.count - 1}" if entry.count > 1 else ""
    print(
        f"{entry.sequence}\t{encode_time(entry.time_ms / 1000)}\t{safe(entry.actor) or '-'}"
        f"\t{safe(entry.action) or '-'}\t{first}{more}\t{entry.hash.hex()[:16]}"
    )
