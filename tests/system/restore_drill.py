"""How long it takes to be back: a registry of N identifiers is backed up, restored, moved and
exported.

    python -m tests.system.restore_drill --rows 1000000 [--blocks]

They are registered one by one, or in bulk with `--blocks`. Each step is the command an operator
would type, in a process of its own. Fails unless what is restored passes `biaojie verify`. Times
are wall and processor seconds, memory is the most that the step held.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from biaojie.identifier import Identifier
from biaojie.limits import BATCH_ROWS_MAX
from biaojie.record import Value
from registry.admission import SYSTEM
from registry.blocks import Chunk, cut
from registry.exports import FORMS
from registry.operations import Create, HomePrefix
from registry.registrar import Registrar
from registry.sql import migrate, open_store
from tests.postgres import Postgres

PREFIX = "88.118.8"
CHUNK_ROWS = 24_576
STEP_S_MAX = 3 * 3_600


async def fill(url: str, rows: int, *, blocks: bool = False) -> None:
    """Register `rows` serial numbers with two values each, 20 octets of them random."""
    await migrate(url)
    store = await open_store(url, write_timeout_s=60)
    registrar = Registrar(store)
    registrar.start()
    chance = random.Random(7)
    try:
        (await registrar.submit(SYSTEM, [HomePrefix(PREFIX, "acme")])).single()
        if blocks:
            for first in range(0, rows, CHUNK_ROWS):
                chunk = _chunk(range(first, min(rows, first + CHUNK_ROWS)), chance)
                await registrar.load(SYSTEM, cut(chunk, int(time.time())))
            return
        for first in range(0, rows, BATCH_ROWS_MAX):
            batch = [
                Create(
                    Identifier(PREFIX, f"SN{n:010}"),
                    (
                        Value(1, "URL", f"https://acme.example/p/{n}".encode()),
                        Value(2, "BATCH", f"{chance.getrandbits(160):040x}".encode()),
                    ),
                )
                for n in range(first, min(rows, first + BATCH_ROWS_MAX))
            ]
            await registrar.submit(SYSTEM, batch)
    finally:
        await registrar.stop()
        await store.close()


def _chunk(numbers: range, chance: random.Random) -> Chunk:
    return Chunk(
        PREFIX,
        [f"SN{n:010}" for n in numbers],
        [[Value(1, "URL", b""), Value(2, "BATCH", b"")]],
        [
            [f"https://acme.example/p/{n}".encode() for n in numbers],
            [f"{chance.getrandbits(160):040x}".encode() for _ in numbers],
        ],
    )


class Step:
    """What a command took. Raises SystemExit unless it ends with 0."""

    def __init__(self, *arguments: str) -> None:
        began = time.monotonic()
        command = [sys.executable, "-m", "resolver", *arguments]
        pid = os.posix_spawn(sys.executable, command, dict(os.environ))
        _, status, usage = os.wait4(pid, 0)
        if status:
            raise SystemExit(f"biaojie {' '.join(arguments)}: ended with {status}")
        self.wall_s = time.monotonic() - began
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.memory_mb = usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--blocks", action="store_true", help="register in bulk")
    asked = parser.parse_args()
    server = Postgres("max_wal_size=8GB", "shared_buffers=256MB")
    try:
        with tempfile.TemporaryDirectory(prefix="biaojie-drill-") as name:
            postgres = server.url(server.create_database())
            _drill(Path(name), postgres, asked.rows, blocks=asked.blocks)
    finally:
        server.close()


def _drill(folder: Path, postgres: str, rows: int, *, blocks: bool) -> None:
    file = folder / "registry.bak"
    lite, again = (f"sqlite:///{folder / name}.db" for name in ("registry", "again"))
    began = time.monotonic()
    asyncio.run(fill(lite, rows, blocks=blocks))
    print(f"{rows:,} identifiers registered in {time.monotonic() - began:.0f} s")
    steps: dict[str, tuple[str, ...]] = {
        "backup of SQLite": ("backup", str(file), "--database-url", lite),
        "restore into SQLite": ("restore", str(file), "--database-url", again),
        "restore into PostgreSQL": ("restore", str(file), "--database-url", postgres),
        "verify what was restored": ("verify", "--database-url", again),
        "backup of PostgreSQL": ("backup", f"{file}.2", "--database-url", postgres),
        "move SQLite to PostgreSQL": ("move", lite, postgres, "--overwrite"),
        "move PostgreSQL to SQLite": ("move", postgres, again, "--overwrite"),
    }
    for kind, url in (("SQLite", lite), ("PostgreSQL", postgres)):
        for form in FORMS:
            arguments = ("--format", form, "--output", f"{file}.{form}", "--database-url", url)
            steps[f"export of {kind}, {form}"] = ("export", "--direct", *arguments)
    print("| step | s | processor s | identifiers/s | memory MB |\n|---|---|---|---|---|")
    for what, arguments in steps.items():
        step = Step(*arguments)
        each = (f"{step.wall_s:.1f}", f"{step.cpu_s:.1f}", f"{rows / step.wall_s:,.0f}")
        print(f"| {what} | {' | '.join(each)} | {step.memory_mb:.0f} |", flush=True)
    size = file.stat().st_size
    print(f"backup: {size / 1e6:.1f} MB, {size / rows:.1f} octets an identifier")


if __name__ == "__main__":
    main()
