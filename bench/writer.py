"""The process that writes during a run: `python -m bench.writer`. It speaks as worker.py does.

Writes go through the client library, on a schedule of their own; what is acknowledged is noted
at once where the readers look. Each name is written in turn, so that none is written twice
within two seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from biaojie.client import Client
from biaojie.errors import BiaojieError

from .checking import Acknowledged
from .histogram import Histogram
from .names import OwnNames, from_document
from .prepare import found_in, value_of

IN_FLIGHT_MAX: Final = 512
PROGRESS_S: Final = 0.5


class Writer:
    def __init__(self, config: dict[str, Any]) -> None:
        names = from_document(config["names"])
        assert isinstance(names, OwnNames)
        self._names = names
        self._written: list[int] = config["written"]
        self._shared = Acknowledged.open(Path(config["acknowledged"]), self._written)
        self._config = config
        self._rate: float = config["writing"]["rate"]
        self.latency = Histogram()
        self.lateness = Histogram()
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._last: dict[int, int] = {}
        self._unsure: set[int] = set()

    async def run(self, client: Client, start: float) -> None:
        end = start + self._config["warmup_s"] + self._config["duration_s"]
        tasks: set[asyncio.Task[None]] = set()
        position = 0
        while True:
            due = start + position / self._rate
            if due >= end:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.lateness.add_us(int((time.monotonic() - due) * 1e6))
            if len(tasks) >= IN_FLIGHT_MAX:
                self.failed["lost"] += 1
            else:
                number = self._written[position % len(self._written)]
                task = asyncio.create_task(self._write(client, number, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            position += 1
        if tasks:
            await asyncio.wait(tasks, timeout=self._config["timeout_s"] + 1)
        await self._read_back(client)

    async def _write(self, client: Client, number: int, due: float) -> None:
        generation = max(int(time.time() * 1000), self._last.get(number, 0) + 1)
        self._last[number] = generation
        name = self._names.name(number)
        try:
            await client.register(
                name,
                [value_of(self._names, number, generation)],
                overwrite=True,
                timeout_s=self._config["timeout_s"],
            )
        except BiaojieError as error:
            self.failed[error.code] += 1
            self._unsure.add(number)
            return
        now = time.monotonic()
        self.latency.add_us(int((now - due) * 1e6))
        self.done += 1
        self._shared.note(number, generation, now)
        self._last[number] = generation

    async def _read_back(self, client: Client) -> None:
        """At the end, what was last acknowledged must be there, or, after an error, something
        that was sent."""
        for number, generation in self._last.items():
            name = self._names.name(number)
            try:
                resolved = await client.resolve(name, authoritative=True)
            except BiaojieError as error:
                self.wrong.append(f"{name} was written and is not to be had: {error}")
                continue
            seen = self._names.generation_of(number, found_in(resolved.record))
            if seen is None or (seen != generation and number not in self._unsure):
                self.wrong.append(
                    f"{name} was acknowledged in generation {generation} and reads {seen}"
                )

    def to_document(self) -> dict[str, Any]:
        length_s = self._config["warmup_s"] + self._config["duration_s"]
        return {
            "rate_offered": self._rate,
            "rate": round(self.done / length_s, 1),
            "acknowledged": self.done,
            "failed": self.failed.total(),
            "failures": dict(self.failed),
            "wrong": len(self.wrong),
            "first_wrong": self.wrong[:20],
            "latency": self.latency.summary(),
            "lateness": self.lateness.summary(),
        }


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def work(config: dict[str, Any]) -> None:
    writing = config["writing"]
    writer = Writer(config)
    async with Client(writing["url"], writing["key"], connections_max=64, retries=0) as client:
        await client.resolve(writer._names.name(writer._written[0]))
        _say({"ready": True})
        loop = asyncio.get_running_loop()
        told = await loop.run_in_executor(None, sys.stdin.readline)
        await writer.run(client, json.loads(told)["start"])
    _say({"writes": writer.to_document()})


def main() -> None:
    config = json.loads(sys.stdin.readline())
    try:
        asyncio.run(work(config))
    except (BiaojieError, OSError, ValueError) as error:
        _say({"fault": str(error) or type(error).__name__})
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
