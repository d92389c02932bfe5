"""What `bench register` finds when a node loses, changes or doubles what it acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import pytest

from bench.names import OwnNames
from bench.prepare import value_of
from bench.register import (
    Wanted,
    Way,
    check_log,
    read_back,
    write_batches,
    write_csv,
    write_singles,
)
from biaojie.calls import Resolved, Row
from biaojie.change import Action, Change, Entry, Receipt, RowResult
from biaojie.errors import BiaojieError, IdentifierNotFound, Unreachable
from biaojie.identifier import Identifier
from biaojie.record import Record, Value

NAMES = OwnNames("88.118.8", 20, stem="RxS")
WANTED = Wanted("http://127.0.0.1:1", "88.118.8", "key", callers=4, batch_rows=6)


class Node:
    """As the client shows a node: it keeps records and a log, and a test may spoil both."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.log: list[str] = []
        self.refuse: set[str] = set()

    def _keep(self, name: str, values: Iterable[Value]) -> Receipt:
        prefix, _, suffix = name.partition("/")
        self.log.append(name)
        sequence = len(self.log)
        self.records[name] = Record(Identifier(prefix, suffix), tuple(values), sequence=sequence)
        return Receipt(name, Action.CREATE, "active", 1, sequence)

    async def register(self, name: str, values: list[Value], **_: Any) -> Receipt:
        if name in self.refuse:
            raise Unreachable("gone", "断开")
        return self._keep(name, values)

    async def register_batch(self, rows: list[Row], *_: Any, **__: Any) -> list[RowResult]:
        return [
            RowResult(n, str(row.identifier), self._keep(str(row.identifier), row.values))
            for n, row in enumerate(rows, 1)
        ]

    async def resolve_many(self, names: list[str]) -> AsyncIterator[Resolved | BiaojieError]:
        for name in names:
            record = self.records.get(name)
            yield IdentifierNotFound() if record is None else Resolved(record)

    async def changes(self, after: int, *, follow: bool) -> AsyncIterator[Entry]:
        for sequence, name in enumerate(self.log[after:], after + 1):
            change = Change(Action.CREATE, name, 1, "me", bytes(32))
            yield Entry(
                sequence, 0, "me", "write", "", 1, bytes(32), bytes(32), bytes(32), (change,)
            )


async def checked(node: Node, way: Way) -> tuple[int, int, int]:
    """Lost, differing, doubled."""
    await read_back(node, NAMES, way)  # type: ignore[arg-type]
    await check_log(node, 0, "Rx", "88.118.8", {"single": way})  # type: ignore[arg-type]
    return way.lost, way.differing, way.doubled


@pytest.mark.parametrize("write", [write_singles, write_batches])
async def test_a_node_that_keeps_its_word(write: Any) -> None:
    node = Node()
    way = await write(node, NAMES, WANTED)
    assert len(way.receipts) == NAMES.count
    assert await checked(node, way) == (0, 0, 0)
    assert not way.wrong
    assert way.to_document()["acknowledged"] == NAMES.count


async def test_an_open_loop_writes_everything() -> None:
    node = Node()
    way = await write_singles(node, NAMES, replace(WANTED, rate=500))  # type: ignore[arg-type]
    assert len(way.receipts) == NAMES.count
    assert way.seconds > 0.03


@pytest.mark.parametrize("write", [write_singles, write_batches])
async def test_losses_changes_and_doubles_are_found_and_named(write: Any) -> None:
    node = Node()
    way = await write(node, NAMES, WANTED)
    lost, other, again, later = (NAMES.name(n) for n in (3, 5, 7, 9))
    del node.records[lost]
    node.records[other] = replace(node.records[other], values=(value_of(NAMES, 6, 0),))
    node.log.append(again)
    node.records[later] = replace(node.records[later], version=2)
    assert await checked(node, way) == (1, 2, 1)
    assert {name for name in (lost, other, again, later) if any(name in f for f in way.wrong)} == {
        lost,
        other,
        again,
        later,
    }


async def test_what_the_log_does_not_hold_is_lost() -> None:
    node = Node()
    way = await write_singles(node, NAMES, WANTED)  # type: ignore[arg-type]
    node.log[:] = [name for name in node.log if name != NAMES.name(4)]
    assert await checked(node, way) == (1, 0, 0)


async def test_what_was_not_acknowledged_may_be_there_or_not_but_not_otherwise() -> None:
    node = Node()
    node.refuse = {NAMES.name(n) for n in (1, 2, 3)}
    way = await write_singles(node, NAMES, WANTED)  # type: ignore[arg-type]
    assert way.unsure == {1, 2, 3}
    assert dict(way.failed) == {"unreachable": 3}
    await node.register_batch([Row(NAMES.name(2), [value_of(NAMES, 2, 0)])])
    assert await checked(node, way) == (0, 0, 0)
    await node.register_batch([Row(NAMES.name(3), [value_of(NAMES, 4, 0)])])
    assert await checked(node, way) == (0, 1, 0)


def test_the_file_holds_every_name(tmp_path: Any) -> None:
    write_csv(tmp_path / "f.csv", NAMES)
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert lines[0] == "identifier,URL"
    assert lines[5] == f"{NAMES.name(4)},{NAMES.data(4, 0).decode()}"
    assert len(lines) == NAMES.count + 1
