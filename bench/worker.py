"""One generator process: `python -m bench.worker`.

One line of JSON comes in (see `Config`); when all connections are open a line `{"ready": true}`
goes out; a line with the time to start comes in. Then progress twice a second, at the end one
line with the key `book`. On a fault a line with the key `fault`. It ends by itself, at the latest
a little after its last question has run out of time.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checking import Acknowledged, Checker
from .engine import Connect, Engine, Times
from .fronts.datagram import DatagramLink
from .fronts.stream import StreamLink
from .fronts.wires import make_wire
from .names import from_document
from .schedule import KINDS, Load, plan
from .target import Target

CONNECT_TIMEOUT_S = 15.0
PROGRESS_S = 0.5
_UNKNOWN = KINDS.index("unknown")


def connector(target: Target, wire_of: Any, room: int) -> Connect:
    async def connect(engine: Engine) -> Any:
        loop = asyncio.get_running_loop()
        if target.front == "hdl-udp":
            return await loop.create_datagram_endpoint(
                lambda: DatagramLink(wire_of(), engine, room),
                remote_addr=(target.address, target.port),
            )
        if target.socket:
            return await loop.create_unix_connection(
                lambda: StreamLink(wire_of(), engine, room), target.socket
            )
        return await loop.create_connection(
            lambda: StreamLink(wire_of(), engine, room), target.address, target.port
        )

    return connect


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def _progress(engine: Engine) -> None:
    book = engine.book
    while True:
        await asyncio.sleep(PROGRESS_S)
        _say(
            {
                "scheduled": book.scheduled,
                "right": book.right.total(),
                "refused": book.refused,
                "failed": book.failed.total(),
                "wrong": book.wrong,
                "max_us": max((row[4] for row in book.seconds[-2:]), default=0),
            }
        )


async def work(config: dict[str, Any]) -> None:
    target = Target(**config["target"])
    names = from_document(config["names"])
    schedule = plan(
        Load(**config["load"]),
        names,
        seconds=config["warmup_s"] + config["duration_s"],
        part=config["part"],
        parts=config["parts"],
    )
    acknowledged = None
    if config["acknowledged"]:
        acknowledged = Acknowledged.open(Path(config["acknowledged"]), config["written"])
    checker = Checker(names, make_wire(target), acknowledged)

    def name_of(kind: int, number: int) -> str:
        return names.unknown(number) if kind == _UNKNOWN else names.name(number)

    engine = Engine(
        schedule.arrivals(),
        name_of,
        checker,
        connector(target, lambda: make_wire(target), config["pipeline"]),
        config["connections"],
    )
    await engine.open(CONNECT_TIMEOUT_S)
    # What is there now stays; a collection in the midst of a run would be a pause of ours.
    gc.collect()
    gc.freeze()
    gc.disable()
    _say({"ready": True})
    loop = asyncio.get_running_loop()
    start = json.loads(await loop.run_in_executor(None, sys.stdin.readline) or "{}").get("start")
    if start is None:
        raise TimeoutError("not told to start")
    measured = start + config["warmup_s"]
    times = Times(start, measured, measured + config["duration_s"], config["timeout_s"])
    progress = loop.create_task(_progress(engine))
    try:
        busy = await engine.run(times)
    finally:
        progress.cancel()
    _say({"book": engine.book.to_document(), "busy": busy, "decoded": checker.decoded})


def main() -> None:
    config = json.loads(sys.stdin.readline())
    try:
        import uvloop

        loop: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        loop = None
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(work(config))
    except (OSError, EOFError) as error:
        _say({"fault": str(error) or type(error).__name__})
    # The reading thread of the executor must not keep us.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    assert time.get_clock_info("monotonic").monotonic
    main()
