"""The C programs of bench/c: built here, run here, their line of JSON read here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from .processes import ROOT, on
from .words import BenchFault

SOURCES: Final = ROOT / "bench" / "c"
BUILT: Final = SOURCES / "build"
_FLAGS: Final = ("-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
_BUILD_S: Final = 60
_OVER_S: Final = 30.0
"""How much longer than its measurement a driver may take, to connect and to end."""


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def program(name: str) -> Path:
    """The program built from `name`.c, new if its sources changed. BenchFault: no compiler."""
    built = BUILT / name
    source = SOURCES / f"{name}.c"
    newest = max(file.stat().st_mtime for file in (source, *SOURCES.glob("*.h")))
    if built.exists() and built.stat().st_mtime >= newest:
        return built
    cc = compiler()
    if cc is None:
        raise BenchFault("There is no C compiler (gcc).", "没有 C 编译器（gcc）。")
    BUILT.mkdir(parents=True, exist_ok=True)
    new = built.with_suffix(".new")
    done = subprocess.run(
        [cc, *_FLAGS, "-o", new, source, "-lm"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_BUILD_S,
    )
    if done.returncode:
        raise BenchFault(
            f"{source.name}:\n{done.stderr}", f"{source.name} 编译失败：\n{done.stderr}"
        )
    new.rename(built)
    return built


def write_messages(file: Path, messages: Iterable[bytes]) -> int:
    """A file of messages as the drivers read it; how many there are."""
    count = 0
    with file.open("wb") as out:
        for message in messages:
            out.write(len(message).to_bytes(4, "big"))
            out.write(message)
            count += 1
    return count


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of a driver counted. CPU times are of the counted span alone. `stalled_s`: in
    an open loop, time in which the machine did not let the driver run; `server_waited_s`: in which
    it kept the server's main thread waiting. `cut`: outstanding on a connection that the server
    ended."""

    replies: int
    seconds: float
    server_cpu_s: float
    driver_cpu_s: float
    errors: int = 0
    wrong: int = 0
    lost: int = 0
    cut: int = 0
    stalled_s: float = 0.0
    server_waited_s: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0

    @property
    def rate(self) -> float:
        """Replies a second, on the wall."""
        return self.replies / self.seconds if self.seconds else 0.0

    @property
    def cpu_rate(self) -> float:
        """Replies for a second of the server's processor; 0 when that is not known."""
        return self.replies / self.server_cpu_s if self.server_cpu_s else 0.0


def sample_of(document: dict[str, Any]) -> Sample:
    return Sample(
        **{name: document[name] for name in Sample.__dataclass_fields__ if name in document}
    )


class Shape(NamedTuple):
    """How many connections, and how much is outstanding on each; no connection: one UDP socket."""

    connections: int
    depth: int


SINGLE: Final = Shape(64, 1)
PIPELINED: Final = Shape(8, 32)
DATAGRAMS: Final = Shape(0, 64)


@dataclass(frozen=True, slots=True)
class Asked:
    """One way to ask a server: the driver's options, without how long.

    `requests`, `needles`, `hello`: files of messages.
    """

    frame: str
    port: int
    requests: Path
    needles: Path | None = None
    hello: Path | None = None
    shape: Shape = SINGLE
    host: str = "127.0.0.1"

    @property
    def udp(self) -> bool:
        return self.shape.connections == 0

    def options(self) -> list[str]:
        given: dict[str, object] = {
            "--frame": self.frame,
            "--host": self.host,
            "--port": self.port,
            "--requests": self.requests,
            "--depth": self.shape.depth,
        }
        if self.needles is not None:
            given["--needles"] = self.needles
        if not self.udp:
            given["--connections"] = self.shape.connections
            if self.hello is not None:
                given["--hello"] = self.hello
        return [str(part) for pair in given.items() for part in pair]


def drive(
    asked: Asked,
    *,
    seconds: float,
    warm_s: float = 0.2,
    once: bool = False,
    rate: float = 0.0,
    first: bool = False,
    reconnect: bool = False,
    anew: bool = False,
    pids: Sequence[int] = (),
    cores: frozenset[int],
) -> Sample:
    """Ask for `seconds`, or each request `once`; in a closed loop, or at a `rate`. Raises
    BenchFault when the driver cannot, when an answer was wrong, when none came at all; errors,
    such as refusals, are counted and said. `first`: it goes before all else on its
    core, where it may. `reconnect`: a connection that the server ends is made
    anew. `anew`: each request has a connection of its own; over TCP, one outstanding on each."""
    command = [
        str(program("drive_udp" if asked.udp else "drive_tcp")),
        *asked.options(),
        *("--ms", str(int(seconds * 1000))),
        *("--warm-ms", "0" if once else str(int(warm_s * 1000))),
        *("--once", "1" if once else "0"),
        *("--rate", str(int(rate))),
        *(("--first", "1") if first else ()),
        *(("--reconnect", "1") if reconnect and not asked.udp else ()),
        *(("--anew", "1") if anew and not asked.udp else ()),
    ]
    if pids:
        command += ["--server-pids", ",".join(map(str, pids))]
    with on(cores):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + warm_s + _OVER_S
        )
    if done.returncode not in (0, 1) or not done.stdout:
        raise BenchFault(f"{asked.frame}: {done.stderr}", f"{asked.frame}：{done.stderr}")
    sample = sample_of(json.loads(done.stdout))
    if sample.errors:
        print(f"{asked.frame}: {sample.errors} errors. {done.stderr}", file=sys.stderr)
    if sample.wrong or not sample.replies:
        raise BenchFault(
            f"{asked.frame} on port {asked.port}: {sample.wrong} wrong answers, {sample.errors}"
            f" errors, {sample.replies} right ones. {done.stderr}",
            f"{asked.frame} 端口 {asked.port}：错误应答 {sample.wrong}，失败 {sample.errors}，"
            f"正确 {sample.replies}。{done.stderr}",
        )
    return sample
