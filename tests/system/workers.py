"""A node of several workers, for tests: connections to each of them, what each tells of itself.

Which worker a connection has reached is told by the metrics, whose counts of that worker grow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.handle_talk import TcpLine
from tests.system.described import Series, read_metrics, total
from tests.system.wire import Wire, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]
REACH_S = 20.0


def several(make_node: Make, workers: int, **settings: object) -> RunningNode:
    """A node all of whose workers are ready."""
    node = make_node(workers=workers, **settings)
    until(lambda: '"all workers ready"' in node.log, timeout_s=30)
    return node


def series(wire: Wire, name: str = "") -> Series:
    return read_metrics(wire.ask("GET", "/metrics").body.decode(), name)


def up(node: RunningNode) -> dict[int, bool]:
    """Which workers tell of themselves, asked of any."""
    with Wire(node.port) as wire:
        seen = series(wire, "biaojie_worker_up")
    return {int(dict(labels)["worker"]): bool(value) for (_, labels), value in seen.items()}


def pids(node: RunningNode) -> dict[int, int]:
    """The worker processes of now, by slot."""
    found: dict[int, int] = {}
    for line in node.log.splitlines():
        if '"worker ready"' in line:
            event = json.loads(line)
            found[event["worker"]] = event["pid"]
    return found


def reached(wire: Wire, workers: int) -> int:
    """The worker at the other end; nobody else may ask for metrics meanwhile."""

    name = "biaojie_requests_total"

    def asked(seen: Series, slot: int) -> float:
        return total(seen, name, operation="metrics", worker=str(slot))

    before, after = series(wire, name), series(wire, name)
    (grown,) = [slot for slot in range(workers) if asked(after, slot) > asked(before, slot)]
    return grown


def wires(node: RunningNode, workers: int) -> dict[int, Wire]:
    """A connection to each worker, kept alive."""
    found: dict[int, Wire] = {}
    deadline = time.monotonic() + REACH_S
    while len(found) < workers:
        assert time.monotonic() < deadline, found
        wire = Wire(node.port)
        if found.setdefault(reached(wire, workers), wire) is not wire:
            wire.socket.close()
    return found


def lines(node: RunningNode, workers: int) -> dict[int, TcpLine]:
    """A Handle connection to each worker."""
    found: dict[int, TcpLine] = {}
    deadline = time.monotonic() + REACH_S
    with Wire(node.port) as wire:

        def connected() -> dict[int, float]:
            name = "biaojie_handle_tcp_connections"
            seen = series(wire, name)
            return {slot: total(seen, name, worker=str(slot)) for slot in range(workers)}

        while len(found) < workers:
            assert time.monotonic() < deadline, found
            before = connected()
            line = TcpLine(node.handle_port)
            after = until(lambda b=before: (now := connected()) != b and now)
            (slot,) = [slot for slot in after if after[slot] > before[slot]]
            if slot in found:
                line.close()
                until(lambda b=before: connected() == b)
            else:
                found[slot] = line
    return found
