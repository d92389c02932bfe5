"""The C driver in the place of worker.py, where Python cannot ask fast enough.

It is given the same schedule, written out, and the questions as octets with the data that their
answers must hold. It follows no changes: names that are written during a run are not for it.
"""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .fronts import StreamWire, Wire
from .fronts.wires import make_wire
from .histogram import from_pairs
from .names import Names
from .programs import compiler, program
from .schedule import KINDS, Schedule
from .target import Target

_UNKNOWN: Final = KINDS.index("unknown")
_AUTH: Final = KINDS.index("auth")
_QUESTION: Final = struct.Struct("=III")
_HEAD: Final = struct.Struct("=IId")
_ARRIVAL: Final = struct.Struct("=dII")


def usable() -> bool:
    """Whether this machine can build and run it."""
    return sys.platform == "linux" and compiler() is not None and shutil.which("ld") is not None


def command(
    folder: Path,
    target: Target,
    names: Names,
    schedule: Schedule,
    *,
    connections: int,
    pipeline: int,
    times: Mapping[str, float],
) -> list[str]:
    """Write what the driver reads into `folder`; returns how to call it. `times`: warmup,
    duration, timeout and patience, in seconds. Raises BenchFault if it cannot be built."""
    wire = make_wire(target)
    write_load(folder, wire, names, schedule)
    options = {
        "--front": target.front,
        "--questions": str(folder / "questions"),
        "--schedule": str(folder / "schedule"),
        "--connections": str(connections),
        "--pipeline": str(pipeline),
        **{f"--{name}": repr(value) for name, value in times.items()},
    }
    if target.socket:
        options["--socket"] = target.socket
    else:
        options |= {"--host": target.address, "--port": str(target.port)}
    if target.front != "hdl-udp":
        stream: StreamWire = wire  # type: ignore[assignment]
        if stream.greeting():
            (folder / "greeting").write_bytes(stream.greeting())
            options["--greeting"] = str(folder / "greeting")
    return [str(program("driver")), *(part for pair in options.items() for part in pair)]


def write_load(folder: Path, wire: Wire, names: Names, schedule: Schedule) -> None:
    """The files `questions` and `schedule`, as c/driver.c describes them."""
    positions: dict[tuple[int, int], int] = {}
    with (folder / "questions").open("wb") as out:
        out.write(bytes(4))
        for kind, number in zip(schedule.kinds, schedule.numbers, strict=True):
            if (kind, number) in positions:
                continue
            positions[kind, number] = len(positions)
            unknown = kind == _UNKNOWN
            name = names.unknown(number) if unknown else names.name(number)
            question = wire.question(0, name, kind == _AUTH)
            needle = b"" if unknown else names.data(number, 0)
            out.write(_QUESTION.pack(len(question), len(needle), kind) + question + needle)
        out.seek(0)
        out.write(struct.pack("=I", len(positions)))
    with (folder / "schedule").open("wb") as out:
        first = schedule.offsets_s[0]
        out.write(_HEAD.pack(len(schedule), 0, schedule.period_s))
        assert first >= 0
        for offset, kind, number in zip(
            schedule.offsets_s, schedule.kinds, schedule.numbers, strict=True
        ):
            out.write(_ARRIVAL.pack(offset, positions[kind, number], 0))


def as_worker(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the driver said, in the form in which worker.py says it."""
    book = dict(said["book"])
    book["latencies"] = {
        kind: from_pairs(pairs).encode() for kind, pairs in book["latencies"].items() if pairs
    }
    for name in ("refusals", "lateness"):
        book[name] = from_pairs(book[name]).encode()
    return {**said, "book": book}
