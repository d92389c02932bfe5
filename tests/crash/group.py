"""A node of several workers and its database, to be killed in parts or whole and started again.

What is started here ends with `close()`; the node is a session of its own, so that a whole group
can be killed at one blow.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import psutil

from biaojie import Client
from registry.sql import migrate
from tests.postgres import Postgres, run_apart

START_S = 60.0
PREFIX = "88.118.8"


class Group:
    """On `database_url`, or an SQLite file in `folder`; a second start takes the same ports."""

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        database_url: str | None = None,
        **settings: object,
    ) -> None:
        self.data_dir = folder / "data"
        self.data_dir.mkdir(parents=True)
        self.ports = {"port": 0, "native_port": 0, "handle_port": 0}
        self._given = {"workers": workers, "host": "127.0.0.1", **settings}
        if database_url is not None:
            self._given["database_url"] = database_url
        self.workers = workers
        self._process: subprocess.Popen[bytes] | None = None

    # What it is ---------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['port']}"

    @property
    def native_url(self) -> str:
        return f"biaojie://127.0.0.1:{self.ports['native_port']}"

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def log(self) -> str:
        file = self.data_dir / "node.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def pid(self) -> int:
        """The supervisor's, or of the one process that there is."""
        assert self._process is not None
        return self._process.pid

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BIAOJIE_")}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start would compile the program anew
        given = {"data_dir": self.data_dir, **self.ports, **self._given}
        return kept | {f"BIAOJIE_{name.upper()}": str(value) for name, value in given.items()}

    def serving(self) -> list[int]:
        """The processes that serve."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children()
            return [child.pid for child in children] or [self.pid]
        return []

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One of the node's other commands, with its settings."""
        return subprocess.run(
            [sys.executable, "-m", "resolver", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )

    # Starting and ending ------------------------------------------------------------------

    def migrate(self) -> None:
        run_apart(migrate(self._registry_url))

    @property
    def _registry_url(self) -> str:
        given = self._given.get("database_url")
        return str(given) if given else f"sqlite+aiosqlite:///{self.data_dir / 'registry.db'}"

    def start(self, limit: Callable[[], None] | None = None) -> None:
        """Start and wait until every worker serves. `limit` runs in the child, before."""
        before = len(self.log)
        with (self.data_dir / "node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "resolver", "serve"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=limit,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            time.sleep(0.02)
            said = self.log[before:].splitlines()
            for line in said:
                if '"event": "serving"' in line and line.endswith("}"):
                    event = json.loads(line)
                    self.ports = {name: event[name] for name in self.ports}
            ready = '"all workers ready"' if self.workers > 1 else '"event": "serving"'
            if any(ready in line for line in said):
                return
        raise AssertionError(f"the node did not start:\n{self.log[before:][-3000:]}")

    def kill(self) -> None:
        """SIGKILL to every process at once."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)

    def kill_supervisor(self) -> None:
        """To it alone: its workers end by themselves."""
        assert self._process is not None
        workers = [psutil.Process(pid) for pid in self.serving() if pid != self.pid]
        self._process.kill()
        self._process.wait(10)
        _, alive = psutil.wait_procs(workers, 30)
        assert not alive, f"workers outlived their supervisor: {alive}"

    def stop(self) -> int:
        """As an operator does it; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def close(self) -> None:
        if self._process is not None:
            self.kill()


def backends(server: Postgres) -> list[int]:
    """The server's processes that serve a connection of a node."""
    found = []
    for child in psutil.Process(server.pid).children():
        with suppress(psutil.NoSuchProcess):
            if "postgres: postgres " in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


@asynccontextmanager
async def running_group(
    folder: Path,
    database: str,
    workers: int = 2,
    *,
    options: tuple[str, ...] = (),
    limit: Callable[[], None] | None = None,
) -> AsyncIterator[tuple[Group, Postgres | None]]:
    """A node with the prefix, gone afterwards. In the end it must stop as it should, its registry
    be whole. `options` are PostgreSQL's settings, `limit` is as for `start`."""
    server = await asyncio.to_thread(Postgres, *options) if database == "postgresql" else None
    group = Group(folder, workers, server.url() if server else None)
    try:
        await (migrate(server.url()) if server else asyncio.to_thread(group.migrate))
        await asyncio.to_thread(group.start, limit)
        async with Client(group.url, group.key) as client:
            await client.prefixes.home(PREFIX, "acme")
        yield group, server
        assert await asyncio.to_thread(group.stop) == 0
        verified = await asyncio.to_thread(group.command, "verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        if server is None:
            with closing(sqlite3.connect(group.data_dir / "registry.db")) as file:
                assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert "Traceback" not in group.log, group.log[-4000:]
    finally:
        group.close()
        if server is not None:
            server.close()


# Harm ---------------------------------------------------------------------------------------

WORKER_KINDS = ("worker",) * 4 + ("workers", "supervisor")
DATABASE_KINDS = ("backend",) * 3 + ("postmaster",) * 2 + ("everything",) * 2


def kinds_of(group: Group, server: Postgres | None) -> tuple[str, ...]:
    """What can be killed, as often as it is to be among so many."""
    workers = WORKER_KINDS if group.workers > 1 else ()
    return ("group",) * 3 + workers + (DATABASE_KINDS if server else ())


async def harm(kind: str, group: Group, server: Postgres | None, chance: random.Random) -> None:
    """Kill what `kind` says, and start again what nobody else does."""
    match kind:
        case "worker" | "workers":
            pids = group.serving()
            for pid in pids if kind == "workers" else chance.sample(pids, min(1, len(pids))):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        case "supervisor":
            await asyncio.to_thread(group.kill_supervisor)
            await asyncio.to_thread(group.start)
        case "group":
            group.kill()
            await asyncio.to_thread(group.start)
        case "backend":
            assert server is not None
            for pid in chance.sample(found := backends(server), min(1, len(found))):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        case "postmaster" | "everything":
            assert server is not None
            if kind == "everything":
                group.kill()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            if kind == "everything":
                await asyncio.to_thread(group.start)
        case _:
            raise ValueError(kind)
