"""A node of our own to measure: a real process, its registry filled through its public API."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from biaojie import Client

from .names import OwnNames
from .prepare import prepare
from .processes import ROOT, Process, wait_until

START_S: Final = 30.0
_MIGRATE_S: Final = 60.0


class Node:
    """Started in `folder`, on free ports. `settings` are its BIAOJIE_* variables."""

    def __init__(
        self,
        folder: Path,
        cores: frozenset[int] | None = None,
        *,
        arguments: tuple[str, ...] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.cores = cores
        self._arguments = arguments
        self._environment = _environment(folder, settings or {})
        self._log = folder / "node.log"
        migrate = Process(
            [sys.executable, "-m", "resolver", "migrate"],
            environment=self._environment,
            log=self._log,
            directory=ROOT,
        )
        with migrate:
            if migrate.wait(_MIGRATE_S):
                raise migrate.fault("could not set up the registry")
        self._start()

    def _start(self) -> None:
        before, began = self._log.stat().st_size, time.monotonic()
        self.process = Process(
            [sys.executable, "-m", "resolver", "serve", *self._arguments],
            cores=self.cores,
            environment=self._environment,
            log=self._log,
            directory=ROOT,
        )
        self.ports: dict[str, int] = {}

        def serving() -> bool:
            with self._log.open("rb") as log:
                log.seek(before)
                for line in log:
                    if b'"event": "serving"' in line and line.endswith(b"\n"):
                        event: dict[str, Any] = json.loads(line)
                        self.ports = {k: v for k, v in event.items() if k.endswith("port")}
                        return True
            return False

        try:
            wait_until(serving, START_S, self.process)
        except BaseException:
            self.process.close()
            raise
        self.start_s = time.monotonic() - began

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['port']}"

    @property
    def key(self) -> str:
        return (self.folder / "admin.key").read_text().strip()

    @property
    def pid(self) -> int:
        return self.process.pid

    def fill(self, names: OwnNames) -> None:
        """Register them all, in generation 0, under a prefix that is homed for it."""
        asyncio.run(self._fill(names))

    async def _fill(self, names: OwnNames) -> None:
        async with Client(self.url, key=self.key, timeout_s=60) as client:
            await prepare(client, names)

    def close(self) -> None:
        self.process.close()


def _environment(folder: Path, settings: Mapping[str, object]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BIAOJIE_")}
    given = {
        "data_dir": folder,
        "port": 0,
        "handle_port": 0,
        "native_port": 0,
        "host": "127.0.0.1",
        "handle_host": "127.0.0.1",
        **settings,
    }
    return kept | {f"BIAOJIE_{name.upper()}": str(value) for name, value in given.items()}
