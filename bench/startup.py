"""`python -m bench.startup`: how long a node takes from its start to its first answer, and how
much processor time that costs.

A real node on an empty registry of its own, started again and again; the first start, which
compiles the program and makes keys, is not counted. Ready is who answers `GET /readyz`; of several
workers, all on the page of metrics.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from . import results
from .facts import machine
from .peers.table import head
from .processes import ROOT, Process, cpu_s, describe, family, free_port
from .words import BenchFault

START_S: Final = 60.0
_LOOK_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start to the first answer and to the readiness of all workers; of
    processor, in all processes till then. `load` is the machine's, before."""

    answer_s: float
    ready_s: float
    cpu_s: float
    load: float


def start(folder: Path, workers: int) -> Start:
    """Start a node in `folder`, and end it when it is ready. Raises BenchFault."""
    port, load = free_port(), machine()["load_before"]
    began = time.monotonic()
    serve = ("serve", "--workers", str(workers))
    with _node(folder, port, serve) as process:
        while not _answers(port, "/readyz"):
            _still(process, began)
        answer_s = time.monotonic() - began
        while workers > 1 and _up(_answers(port, "/metrics")) < workers:
            _still(process, began)
        ready_s = time.monotonic() - began
        return Start(answer_s, ready_s, cpu_s(family(process.pid)), load)


def _node(folder: Path, port: int, arguments: Sequence[str]) -> Process:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("BIAOJIE_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    settings = {"DATA_DIR": folder, "PORT": port, "HANDLE_PORT": 0, "NATIVE_PORT": 0}
    given = {f"BIAOJIE_{name}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "resolver", *arguments]
    return Process(command, environment=kept | given, log=folder / "log", directory=ROOT)


def _answers(port: int, target: str) -> bytes:
    """What is answered with 200; nothing where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request("GET", target)
        reply = connection.getresponse()
        body = reply.read()
        return body if reply.status == 200 else b""
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


def _up(metrics: bytes) -> float:
    """How many workers tell of themselves."""
    told = [line for line in metrics.splitlines() if line.startswith(b"biaojie_worker_up{")]
    return sum(float(line.rpartition(b" ")[2]) for line in told)


def _still(process: Process, began: float) -> None:
    if process.poll() is not None:
        raise process.fault("ended")
    if time.monotonic() - began > START_S:
        raise process.fault("is not ready")
    time.sleep(_LOOK_S)


def table(measured: dict[int, list[Start]]) -> str:
    rows = [
        "| workers | first answer, s | all ready, s | processor, s | quickest, s | starts | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for workers, starts in measured.items():
        answer, ready, cpu = (
            median(getattr(one, name) for one in starts)
            for name in ("answer_s", "ready_s", "cpu_s")
        )
        quickest = min(one.ready_s for one in starts)
        load = max(one.load for one in starts)
        rows.append(
            f"| {workers} | {answer:.2f} | {ready:.2f} | {cpu:.2f} | {quickest:.2f} |"
            f" {len(starts)} | {load:.1f} |"
        )
    return "\n".join(rows)


def main(
    workers: Annotated[list[int] | None, typer.Option(min=1, max=64)] = None,
    starts: Annotated[int, typer.Option(min=1, max=100)] = 5,
    json_file: Annotated[Path, typer.Option("--json")] = ROOT / "bench/results/startup.json",
    write: Annotated[bool, typer.Option(help="Write into bench/RESULTS.md, too.")] = True,
) -> None:
    """Time and processor from start to readiness. 从启动到就绪所需的时间与处理器时间。"""
    try:
        measured: dict[int, list[Start]] = {}
        with tempfile.TemporaryDirectory(prefix="biaojie-bench-") as name:
            folder = Path(name)
            with _node(folder, 0, ["migrate"]) as migrate:
                if migrate.wait(START_S):
                    raise migrate.fault("could not set up the registry")
            for number in workers or [1]:
                start(folder, number)
                measured[number] = [start(folder, number) for _ in range(starts)]
        document: dict[str, Any] = {
            "machine": describe(),
            "starts": {number: [asdict(one) for one in each] for number, each in measured.items()},
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n")
        text = f"{head(document['machine'])}\n\n{table(measured)}"
        print(text)
        if write:
            results.write("startup", text)
    except BenchFault as fault:
        print(fault)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
