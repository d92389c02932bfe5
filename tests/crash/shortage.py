"""Disk full, no descriptors left: what was acknowledged stays, reads go on, writes are refused with
a code that says why, and when there is room again all goes on without repair.

The disk is a small tmpfs in a mount namespace of its own, so this file runs itself anew inside one:
`python -m tests.crash.shortage FOLDER DATABASE ROUNDS SEED`. Where that is not permitted `why_not`
says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from biaojie import Client
from biaojie.errors import (
    DeadlineExceeded,
    StorageFull,
    TemporarilyUnavailable,
    Unreachable,
)
from tests.crash.group import PREFIX, Group, running_group
from tests.crash.ledger import Writer, auditor, settle, writers

DISK_MIB: Final = {"sqlite": 24, "postgresql": 192}
LEFT_MAX: Final = 400_000
"""Octets that filling the disk may leave, so that it is full in the middle of something."""
FULL_S: Final = 1.5
BACK_S: Final = 10.0
WARM: Final = [f"{PREFIX}/warm-{n}" for n in range(20)]
CLIENTS: Final = 6
DESCRIPTORS: Final = 96
CROWD: Final = 300


class Prober:
    """Asks for warm names over connections that it has, and tries to write; counts what comes."""

    def __init__(self, group: Group) -> None:
        urls = (group.url, group.native_url)
        self._readers = [Client(url, retries=0, connections_max=1) for url in urls for _ in "123"]
        self._writers = [Client(url, group.key, retries=0, connections_max=1) for url in urls]
        self.codes: Counter[str] = Counter()
        self.read = 0
        self._serial = 0
        self._run = secrets.token_hex(4)

    async def __aenter__(self) -> Prober:
        writer = self._writers[1]
        await asyncio.gather(*(writer.register(n, {"URL": "warm"}, overwrite=True) for n in WARM))
        for reader in self._readers:
            for name in WARM:
                await reader.resolve(name)
        await self.write()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in (*self._readers, *self._writers):
            await client.close()

    async def reads(self) -> None:
        """Every warm name, by everybody. Raises what stands in the way of an answer."""
        for reader in self._readers:
            for name in WARM:
                resolved = await reader.resolve(name)
                assert resolved.record.values[0].data == b"warm"
                self.read += 1

    async def write(self) -> bool:
        """Whether both writers could; what else they were told is counted."""
        done = 0
        for writer in self._writers:
            self._serial += 1
            name = f"{PREFIX}/probe-{self._run}-{self._serial}"
            try:
                await writer.register(name, {"URL": "x" * 2_000})
                done += 1
            except (StorageFull, TemporarilyUnavailable, DeadlineExceeded) as error:
                self.codes[error.code] += 1
        return done == len(self._writers)


async def full_disk(folder: Path, database: str, *, rounds: int, seed: int) -> dict[str, Any]:
    """So many times the file system of `folder`, which is small and nobody else's, is filled
    while clients write; now and then the node is killed while it is full."""
    chance = random.Random(seed)
    tempfile.tempdir = str(folder)
    back_s: list[float] = []
    codes: Counter[str] = Counter()
    read = killed = crashed = 0
    async with (
        running_group(folder, database, options=_SMALL_LOG) as (group, server),
        auditor(lambda: group.url, group.key) as audit,
        writers(CLIENTS, [[group.url], [group.native_url]], group.key, PREFIX, seed) as made,
    ):
        for number in range(rounds):
            async with Prober(group) as prober:
                for writer in made:
                    writer.running.set()
                await asyncio.sleep(chance.uniform(0.05, 0.5))
                fill(folder / "ballast", chance.randrange(LEFT_MAX))
                until = time.monotonic() + FULL_S
                while time.monotonic() < until:
                    await prober.reads()
                    await prober.write()
                    await asyncio.sleep(0.05)
                assert prober.codes, "the disk was not full"
                codes += prober.codes
                read += prober.read
            if number % 2:
                group.kill()
                killed += 1
            (folder / "ballast").unlink()
            back = time.monotonic()
            if server is not None and not server.running:
                await asyncio.to_thread(server.start)
                crashed += 1
            if number % 2:
                await asyncio.to_thread(group.start)
            await _writing(made, back)
            back_s.append(time.monotonic() - back)
            await audit.recent(made)
        await settle(made)
        changes = await audit.everything(made, PREFIX, "c")
    return {
        "rounds": rounds,
        "killed_while_full": killed,
        "database_gave_up": crashed,
        "refused": dict(codes),
        "read_while_full": read,
        "acknowledged": changes,
        "back_s": max(back_s),
    }


_SMALL_LOG: Final = ("max_wal_size=48MB", "min_wal_size=32MB")


async def _writing(made: list[Writer], since: float) -> None:
    """Return when every client's writes are acknowledged again."""
    before = [writer.acknowledged for writer in made]
    while any(w.acknowledged == b for w, b in zip(made, before, strict=True)):
        for writer in made:
            writer.check()
        assert time.monotonic() < since + 6 * BACK_S, "no write though there is room"
        await asyncio.sleep(0.02)


def fill(ballast: Path, left: int) -> None:
    """Leave so many octets of the file system of `ballast`."""
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while (room := shutil.disk_usage(ballast.parent).free - left) > 0:
            file.write(bytes(min(room, 2**20)))


# Descriptors ------------------------------------------------------------------------------


async def no_descriptors(folder: Path, database: str, *, seed: int) -> dict[str, Any]:
    """More connections than the node's processes have descriptors, while clients read and write."""
    limit = (DESCRIPTORS, DESCRIPTORS)

    async with (
        running_group(
            folder, database, limit=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        ) as (group, _),
        auditor(lambda: group.url, group.key) as audit,
        writers(CLIENTS, [[group.url], [group.native_url]], group.key, PREFIX, seed) as made,
        Prober(group) as prober,
    ):
        pids = group.serving()
        for writer in made:
            writer.running.set()
        await asyncio.sleep(0.3)
        crowd = [_connected(group.ports[port]) for port in group.ports for _ in range(CROWD // 3)]
        held = await _exhausted(pids)
        before, busy = sum(writer.acknowledged for writer in made), _cpu_s(pids)
        until = time.monotonic() + FULL_S
        while time.monotonic() < until:
            await prober.reads()
            await prober.write()
            await asyncio.sleep(0.05)
        busy = _cpu_s(pids) - busy
        meanwhile = sum(writer.acknowledged for writer in made) - before
        for one in crowd:
            one.close()
        back = time.monotonic()
        async with AsyncExitStack() as stack:
            for url in (group.url, group.native_url):
                fresh = await stack.enter_async_context(Client(url, timeout_s=BACK_S, retries=9))
                with suppress(Unreachable):
                    await fresh.resolve(WARM[0])
                await fresh.resolve(WARM[0])
        await _writing(made, back)
        back_s = time.monotonic() - back
        assert group.serving() == pids, "a worker has ended"
        await settle(made)
        changes = await audit.everything(made, PREFIX, "c")
    return {
        "descriptors": DESCRIPTORS,
        "held": held,
        "acknowledged": changes,
        "acknowledged_meanwhile": meanwhile,
        "refused": dict(prober.codes),
        "read_meanwhile": prober.read,
        "busy_cores_meanwhile": busy / FULL_S,
        "back_s": back_s,
    }


async def _exhausted(pids: list[int]) -> list[int]:
    """How many descriptors each holds, once that is all that one may."""
    until = time.monotonic() + BACK_S
    while True:
        held = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        if max(held) >= DESCRIPTORS - 2:
            return held
        assert time.monotonic() < until, f"they hold {held}"
        await asyncio.sleep(0.05)


def _connected(port: int) -> socket.socket:
    """A connection that says nothing. What the node does not take waits in the system's queue."""
    one = socket.socket()
    one.settimeout(0.2)
    with suppress(OSError):
        one.connect(("127.0.0.1", port))
    return one


def _cpu_s(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


# A disk of our own ------------------------------------------------------------------------

_APART: Final = ("unshare", "--mount", "--propagation", "private")


def why_not() -> str | None:
    """What stands in the way of a small disk, if anything does."""
    if shutil.which(_APART[0]) is None:
        return "unshare (util-linux) is not there"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            [*_APART, "mount", "-t", "tmpfs", "-o", "size=1m", "none", folder],
            capture_output=True,
            text=True,
            timeout=20,
        )
    return None if tried.returncode == 0 else f"a tmpfs is not permitted: {tried.stderr.strip()}"


def full_disk_apart(folder: Path, database: str, *, rounds: int, seed: int) -> dict[str, Any]:
    """`full_disk` in a process with a tmpfs at `folder`. Raises AssertionError."""
    run = [*_APART, sys.executable, "-m", __name__, folder, database, str(rounds), str(seed)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60 + 30 * rounds)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6_000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    folder, database, rounds, seed = sys.argv[1:]
    size = f"size={DISK_MIB[database]}m,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=True, timeout=20)
    found = asyncio.run(full_disk(Path(folder), database, rounds=int(rounds), seed=int(seed)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
