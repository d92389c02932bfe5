"""How the supervisor starts a worker: the command line, what it inherits, the private folder in
which the workers of one node find each other.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .worker import Start
from .worker_sockets import Sockets, descriptors

FOLDER_START: Final = "workers-"
_LOCK: Final = "lock"


@dataclass(frozen=True, slots=True)
class Launcher:
    """`sockets` are those of each slot; `config` the settings file that was named."""

    sockets: list[Sockets]
    folder: Path
    config: Path | None = None
    demo: bool = False

    def launch(self, slot: int, start: Start) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A worker, and our end of the pipe on which it says that it is ready."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [
                *program(),
                "worker",
                f"--slot={slot}",
                f"--start={start}",
                f"--workers={len(self.sockets)}",
                f"--pipe={theirs.fileno()}",
                f"--folder={self.folder}",
                f"--sockets={json.dumps(descriptors(self.sockets[slot]))}",
            ]
            if self.config is not None:
                arguments.append(f"--config={self.config}")
            if self.demo:
                arguments.append("--demo")
            inherited = [n for several in descriptors(self.sockets[slot]).values() for n in several]
            try:
                process = subprocess.Popen(  # noqa: S603 - our own program
                    arguments, pass_fds=[theirs.fileno(), *inherited]
                )
            except BaseException:
                ours.close()
                raise
        return process, ours


def program() -> list[str]:
    """The interpreter and program of this process, without the program's own arguments."""
    given = len(sys.orig_argv) - len(sys.argv[1:])
    return [sys.executable, *sys.orig_argv[1:given]]


@contextmanager
def private_folder(data_dir: Path) -> Iterator[Path]:
    """A folder in `data_dir` that only this user can enter, gone afterwards. What supervisors
    that were killed have left is removed. Raises OSError."""
    data_dir.mkdir(parents=True, exist_ok=True)
    for left in data_dir.glob(f"{FOLDER_START}*"):
        with suppress(OSError), (left / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_START, dir=data_dir)).absolute()
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
