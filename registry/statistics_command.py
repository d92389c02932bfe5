"""`biaojie stats`: the registry's numbers, for the operator on the node's machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from biaojie.errors import PrefixNotHere
from biaojie.identifier import check_prefix, fold_prefix

from .statistics import Report, Scope, Totals, date_of, day_of, report

if TYPE_CHECKING:
    from .store import Store

TITLES = ("registered 注册", "changed 变更", "retired 注销", "purged 删除")


async def numbers(store: Store, prefix: str, days: int) -> Report:
    """Up to the end of the change log, which is counted now. Raises PrefixNotHere."""
    while await store.fold_statistics():
        pass
    scope = Scope()
    if prefix:
        folded = fold_prefix(check_prefix(prefix))
        found = (await store.find_prefixes([folded])).get(folded)
        if found is None:
            raise PrefixNotHere(
                f"Prefix {prefix} is not homed here.", f"前缀 {prefix} 不在本节点。"
            )
        scope = Scope(found)
    return await report(store, scope, day_of(time.time_ns() // 1_000_000), days)


def show(made: Report) -> None:
    """As tables on standard output; days on which nothing happened are left out."""
    from rich.console import Console
    from rich.table import Table

    def row(totals: Totals) -> list[str]:
        return [f"{number:,}" for number in totals.four]

    console = Console()
    console.print(f"{made.total.identifiers:,} identifiers 标识 (entry 变更序号 {made.sequence})")
    by_day = Table("day 日期 (UTC)", *TITLES, *(["resolved 解析"] if made.whole else []))
    for name, totals in (*((date_of(day), t) for day, t in made.days), ("all 合计", made.total)):
        resolved = [f"{totals.resolved:,}"] if made.whole else []
        if totals != Totals() or totals is made.total:
            by_day.add_row(name, *row(totals), *resolved)
    console.print(by_day)
    if made.octets is not None:
        each = [f"{name} {octets:,}" for name, octets in made.octets.tables.items()]
        console.print(f"{made.octets.total:,} bytes on disk 磁盘字节", *each, sep="\n  ")
    by_prefix = Table("prefix 前缀", "tenant 租户", "identifiers 标识", *TITLES)
    for prefix, totals in made.prefixes:
        by_prefix.add_row(prefix.name, prefix.tenant, f"{totals.identifiers:,}", *row(totals))
    console.print(by_prefix)
