"""Nodes that start in a moment (tests/forked.py), for tests that start very many."""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.forked import context

START_S = 20.0


def _serve(environment: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["biaojie", "serve"]
    from resolver.__main__ import main

    main()


class QuickNode:
    """A node on `data_dir` with the environment given; the second start takes the same port."""

    def __init__(self, data_dir: Path, environment: dict[str, str]) -> None:
        self.data_dir = data_dir
        self.environment = environment
        self.port = 0
        self._process: ForkServerProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def log(self) -> str:
        file = self.data_dir / "node.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def settings(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BIAOJIE_")}
        own = {
            "BIAOJIE_DATA_DIR": str(self.data_dir),
            "BIAOJIE_PORT": str(self.port),
            "BIAOJIE_HANDLE_PORT": "0",
            "BIAOJIE_NATIVE_PORT": "0",
        }
        return kept | own | self.environment

    def start(self) -> None:
        """Start and wait until it serves."""
        before = len(self.log)
        self._process = context.Process(
            target=_serve, args=(self.settings(), str(self.data_dir / "node.log"))
        )
        self._process.start()
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.is_alive():
            for line in self.log[before:].splitlines():
                if '"event": "serving"' in line:
                    self.port = int(json.loads(line)["port"])
                    return
            time.sleep(0.01)
        raise AssertionError(f"the node did not start:\n{self.log[before:][-3000:]}")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.join(10)
        assert self._process.exitcode == -9

    def stop(self) -> int | None:
        """Graceful; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        self._process.join(30)
        return self._process.exitcode
