"""`python -m tests.crash PART…`: the long runs, each with a verdict in one line and all in a file.

Exit code: 0 every promise was kept, 1 one was broken (the node's log is kept then).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from bench.processes import describe
from tests.crash.group import running_group
from tests.crash.kills import kills
from tests.crash.outage import outage, worker_lost, world
from tests.crash.retries import cut_replies, race
from tests.crash.shortage import full_disk_apart, no_descriptors, why_not

DATABASES = ("sqlite", "postgresql")
PARTS = ("kills", "retries", "race", "disk", "descriptors", "outage")
P99_MORE_MS = 10.0
"""What an outage may add to the p99 of warm names."""


async def _part(part: str, folder: Path, database: str, given: argparse.Namespace) -> Any:
    match part:
        case "outage":
            async with world(folder) as here:
                found = await outage(here, away_s=given.seconds, before_s=20.0, say=say)
                lost = await worker_lost(here, calls=100, margin_s=0.5)
            return found | {"worker_lost": lost}
        case "disk":
            rounds, seed = given.disks, given.seed
            return await asyncio.to_thread(
                full_disk_apart, folder, database, rounds=rounds, seed=seed
            )
        case "descriptors":
            return await no_descriptors(folder, database, seed=given.seed)
    async with running_group(folder, database) as (group, server):
        match part:
            case "kills":
                number = given.kills // len(given.database)
                return await kills(group, server, number=number, seed=given.seed, say=say)
            case "retries":
                return await cut_replies(group, server, number=given.calls, seed=given.seed)
            case _:
                return await race(
                    group, rounds=given.rounds, clients=given.clients, seed=given.seed
                )


def verdict(part: str, found: dict[str, Any]) -> str:
    """What was done, in a line."""
    match part:
        case "kills":
            return (
                f"{found['kills']} kills, {found['acknowledged']:,} writes acknowledged"
                f" ({found['attempts']:,} calls): 0 lost, 0 doubled, 0 torn; writes again after"
                f" {found['back_s']['median']:.1f} s, at most {found['back_s']['max']:.1f} s"
            )
        case "retries":
            return (
                f"{found['done_before_the_retry']:,} of {found['calls']:,} calls done without"
                " a reply, all repeated: 1 record and 1 reply each;"
                f" 422 {found['mismatches_refused']:,} of {found['mismatches_refused']:,}"
            )
        case "disk":
            return (
                f"{found['rounds']} times full ({found['killed_while_full']} kills meanwhile),"
                f" {found['read_while_full']:,} reads answered, refused {found['refused']}:"
                f" 0 of {found['acknowledged']:,} writes lost, again after at most"
                f" {found['back_s']:.1f} s"
            )
        case "descriptors":
            return (
                f"{found['held']} of {found['descriptors']} held, {found['read_meanwhile']:,} reads"
                f" answered, {found['acknowledged_meanwhile']:,} writes meanwhile,"
                f" refused {found['refused']}: 0 lost, again after {found['back_s']:.1f} s"
            )
        case "outage":
            return "; ".join(
                f"{fault} {one['warm_answered']:,} warm answers, all right, longest call"
                f" {one['longest_s']:.2f} s, back after {one['recovered_s']:.1f} s, p99 "
                + ", ".join(
                    f"{front} {p99['before']:.1f} -> {p99['away']:.1f} ms"
                    for front, p99 in one["p99_ms"].items()
                )
                for fault, one in found["faults"].items()
            )
        case _:
            return f"{found['clients']} clients, {found['rounds']} rounds: 1 winner in each"


def slow(part: str, found: dict[str, Any]) -> bool:
    """Whether it was right, but slower than promised."""
    if part != "outage":
        return False
    p99s = [p99 for one in found["faults"].values() for p99 in one["p99_ms"].values()]
    return any(p99["away"] > p99["before"] + P99_MORE_MS for p99 in p99s)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(work: Coroutine[Any, Any, Any]) -> tuple[bool, dict[str, Any]]:
    try:
        return True, asyncio.run(work)
    except Exception as error:  # told, and the other parts go on
        traceback.print_exc()
        return False, {"error": f"{type(error).__name__}: {error}"[:4_000]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("part", nargs="+", choices=PARTS)
    parser.add_argument("--database", action="append", choices=DATABASES)
    parser.add_argument("--kills", type=int, default=1_000, help="over all databases")
    parser.add_argument("--calls", type=int, default=12_500, help="a fifth gets no further")
    parser.add_argument("--rounds", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--disks", type=int, default=10, help="how often it is filled")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each outage")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("bench/results/crash.json"))
    given = parser.parse_args()
    given.database = given.database or list(DATABASES)
    document: dict[str, Any] = {"machine": describe(), "parts": []}
    passed = True
    for part in given.part:
        if part == "disk" and (reason := why_not()):
            print(f"disk: skipped, {reason}", flush=True)
            document["parts"].append({"part": part, "skipped": reason})
            continue
        for database in given.database if part != "outage" else ["postgresql"]:
            folder = Path(tempfile.mkdtemp(prefix=f"biaojie-{part}-"))
            began = time.monotonic()
            ok, found = _run(_part(part, folder, database, given))
            late = ok and slow(part, found)
            passed = passed and ok and not late
            took = time.monotonic() - began
            told = verdict(part, found) if ok else f"FAILED, see {folder}: {found['error']}"
            told += "; SLOWER than promised" * late
            print(f"{part} on {database}, {took:.0f} s, seed {given.seed}: {told}", flush=True)
            done = {"part": part, "database": database, "passed": ok and not late, "seconds": took}
            document["parts"].append(done | found)
            if ok:
                shutil.rmtree(folder, ignore_errors=True)
    document["passed"] = passed
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(document, indent=1) + "\n")
    print("passed" if passed else "FAILED", os.fspath(given.json))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
