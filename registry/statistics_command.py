"""`biaojie stats`: the registry's numbers, for the operator on the node's machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from biaojie.errors import PrefixNotHere
from biaojie.identifier import check_prefix, fold_prefix
from biaojie.record import Status

from .census import Layer
from .statistics import Report, Scope, Totals, date_of, day_of, report

if TYPE_CHECKING:
    from .store import Store

_LAYERS = {Layer.ROWS: "单行", Layer.BLOCKS: "数据块", Layer.RANGES: "号段"}
_STATES = {
    Status.DRAFT: "草稿",
    Status.ACTIVE: "有效",
    Status.FROZEN: "已冻结",
    Status.RETIRED: "已注销",
}
UNCOUNTED = (
    "By template, layer and state only after biaojie stats --recount: the change log began before"
    " it told of them. 变更日志始于记录数据模板、存储层与状态之前；请运行 biaojie stats --recount。"
)
TITLES = ("registered 注册", "changed 变更", "retired 注销", "purged 删除")


async def numbers(store: Store, prefix: str, days: int, templates: int) -> Report:
    """Up to the end of the change log, which is counted now. Raises PrefixNotHere."""
    while await store.fold_statistics():
        pass
    scope = Scope(templates=templates)
    if prefix:
        folded = fold_prefix(check_prefix(prefix))
        found = (await store.find_prefixes([folded])).get(folded)
        if found is None:
            raise PrefixNotHere(
                f"Prefix {prefix} is not homed here.", f"前缀 {prefix} 不在本节点。"
            )
        scope = scope._replace(prefix=found)
    return await report(store, scope, day_of(time.time_ns() // 1_000_000), days)


def show(made: Report) -> None:
    """As tables on standard output; days on which nothing happened are left out."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def row(totals: Totals) -> list[str]:
        return [f"{number:,}" for number in totals.four]

    console = Console()
    console.print(f"{made.identifiers:,} identifiers 标识 (entry 变更序号 {made.sequence})")
    by_day = Table("day 日期 (UTC)", *TITLES, *(["resolved 解析"] if made.whole else []))
    for name, totals in (*((date_of(day), t) for day, t in made.days), ("all 合计", made.total)):
        resolved = [f"{totals.resolved:,}"] if made.whole else []
        if totals != Totals() or totals is made.total:
            by_day.add_row(name, *row(totals), *resolved)
    console.print(by_day)
    if made.octets is not None:
        each = [f"{name} {octets:,}" for name, octets in made.octets.tables.items()]
        console.print(f"{made.octets.total:,} bytes on disk 磁盘字节", *each, sep="\n  ")
    populations = made.populations or ()
    titles = [f"{layer} {_LAYERS[layer]}" for layer in Layer] if populations else []
    by_prefix = Table("prefix 前缀", "tenant 租户", "identifiers 标识", *titles, *TITLES)
    for n, (prefix, totals) in enumerate(made.prefixes):
        there = totals.identifiers
        layers: list[str] = []
        if populations:
            there = populations[n].total
            layers = [f"{populations[n].layers[layer]:,}" for layer in Layer]
        by_prefix.add_row(prefix.name, prefix.tenant, f"{there:,}", *layers, *row(totals))
    console.print(by_prefix)
    if made.population is None or made.templates is None:
        console.print(UNCOUNTED)
        return
    by_state = Table("state 状态", "identifiers 标识")
    for state in Status:
        by_state.add_row(f"{state} {_STATES[state]}", f"{made.population.states[state]:,}")
    console.print(by_state)
    by_template = Table("template 数据模板", "identifiers 标识")
    for template, number in made.templates:
        by_template.add_row(escape(template) or "none 无", f"{number:,}")
    if made.others:
        by_template.add_row("others 其余", f"{made.others:,}")
    console.print(by_template)
