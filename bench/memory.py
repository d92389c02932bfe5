"""`python -m bench.memory`: what a cached name and an open connection cost, and how long a start
takes, of a real node.

Memory is the growth of the process's resident memory, divided by how many there are of what
made it grow; so it counts what the allocator keeps, not only what objects say they are. Buffers
of sockets are the kernel's and not in it.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from . import results
from .names import OwnNames
from .node import Node
from .peers import questions
from .peers.stage import warmed
from .peers.table import head
from .processes import ROOT, Cores, describe, resident_octets
from .programs import PIPELINED, SINGLE, Asked, drive, write_messages
from .words import BenchFault

PREFIX: Final = "88.118.8"
_ANSWER_S: Final = 10.0
_SETTLE_S: Final = 1.0
_STARTS: Final = 5
_SETTINGS: Final[dict[str, object]] = {"cache_bytes_max": 2**31}


@dataclass(frozen=True, slots=True)
class Growth:
    """`count` of `what` made the resident memory grow from `before` to `after`, in octets."""

    what: str
    count: int
    before: int
    after: int

    @property
    def each(self) -> float:
        return (self.after - self.before) / self.count


def table(grown: list[Growth], starts_s: list[float]) -> str:
    rows = [
        "| what | octets each | how many | resident before, MiB | after |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {one.what} | {one.each:,.0f} | {one.count:,} | {one.before / 2**20:.1f} |"
        f" {one.after / 2**20:.1f} |"
        for one in grown
    ]
    started = f"From start to serving: {median(starts_s):.2f} s (median of {len(starts_s)})."
    return "\n".join(rows) + "\n\n" + started


class Meter:
    """One node, filled and started anew, so that it begins without what filling left behind."""

    def __init__(self, folder: Path, names: OwnNames) -> None:
        self._folder = folder
        self._names = names
        self._cores = Cores.of_this_machine()
        self.starts_s: list[float] = []
        place = folder / "node"
        filled = Node(place, self._cores.server, settings=_SETTINGS)
        try:
            filled.fill(names)
        finally:
            filled.close()
        for last in [False] * (_STARTS - 1) + [True]:
            self.node = Node(place, self._cores.server, settings=_SETTINGS)
            self.starts_s.append(self.node.start_s)
            if not last:
                self.node.close()

    def _resident(self) -> int:
        time.sleep(_SETTLE_S)
        return resident_octets([self.node.pid])

    def sweep(self, what: str, frame: str, port: str, question: Callable[[int], bytes]) -> Growth:
        """Every name, as often as it takes for each place that keeps it to have it."""
        count = self._names.count
        requests, hello = self._folder / "requests", self._folder / "hello"
        write_messages(requests, (question(number) for number in range(count)))
        write_messages(hello, [questions.native_hello()] if frame == "native" else [])
        shape = SINGLE if frame == "http" else PIPELINED
        asked = Asked(frame, self.node.ports[port], requests, None, hello, shape)
        # Connections and what a first request loads are not to be counted with the names.
        write_messages(self._folder / "few", [question(0)])
        few = Asked(frame, self.node.ports[port], self._folder / "few", None, hello, shape)
        drive(few, seconds=1.0, cores=self._cores.generator)
        before = self._resident()
        warmed(asked, [self.node.pid], self._cores.generator)
        return Growth(what, count, before, self._resident())

    def connect(self, what: str, port: str, first: bytes, hello: bytes, count: int) -> Growth:
        """Connections that asked once and then stay open."""
        opened: list[socket.socket] = []

        def one() -> None:
            connection = socket.create_connection(
                ("127.0.0.1", self.node.ports[port]), timeout=_ANSWER_S
            )
            opened.append(connection)
            for message in filter(None, (hello, first)):
                connection.sendall(message)
                if not connection.recv(65_536):
                    raise BenchFault("The node hung up.", "节点断开了连接。")

        try:
            one()
            before = self._resident()
            for _ in range(count):
                one()
            return Growth(what, count, before, self._resident())
        finally:
            for connection in opened:
                connection.close()


def measure(meter: Meter, names: OwnNames, connections: int) -> list[Growth]:
    http, handle = questions.http(names), questions.handle(names)
    grown = [
        meter.sweep(
            "cached record",
            "http",
            "port",
            # A question that chooses values is answered from the cache but not by the lane.
            lambda n: http(n).replace(b" HTTP/1.1", b"?index=1 HTTP/1.1", 1),
        ),
        meter.sweep("its answer over HTTP, ready in the lane", "http", "port", http),
        meter.sweep("its answer over Handle", "handle", "handle_port", handle),
    ]
    hello = questions.native_hello()
    ports = meter.node.ports
    if "native_port" in ports:
        native = questions.native(names)
        grown.append(meter.sweep("its answer over native", "native", "native_port", native))
    grown.append(meter.connect("HTTP connection", "port", http(0), b"", connections))
    grown.append(meter.connect("Handle connection", "handle_port", handle(0), b"", connections))
    if "native_port" in ports:
        first = questions.native(names)(0)
        grown.append(meter.connect("native connection", "native_port", first, hello, connections))
    return grown


def main(
    names: Annotated[int, typer.Option(min=1_000, max=10_000_000)] = 100_000,
    connections: Annotated[int, typer.Option(min=10, max=9_000)] = 2_000,
    json_file: Annotated[Path, typer.Option("--json")] = ROOT / "bench" / "results" / "memory.json",
    write: Annotated[bool, typer.Option(help="Write into bench/RESULTS.md, too.")] = True,
) -> None:
    """Memory of a cached name and of a connection. 每个缓存条目与连接的内存。"""
    try:
        with tempfile.TemporaryDirectory(prefix="biaojie-bench-") as folder:
            own = OwnNames(PREFIX, names)
            meter = Meter(Path(folder), own)
            try:
                grown = measure(meter, own, connections)
            finally:
                meter.node.close()
        document: dict[str, Any] = {
            "machine": describe(),
            "grown": [asdict(one) | {"each": one.each} for one in grown],
            "starts_s": meter.starts_s,
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n")
        text = f"{head(document['machine'])}\n\n{table(grown, meter.starts_s)}"
        print(text)
        if write:
            results.write("memory", text)
    except BenchFault as fault:
        print(fault)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
