"""The large load: how a registry does as it grows, from a million records to half a billion.

What was measured so far lies beside the registry and is written as the load goes; how far it came
is in the registry's own log. Killed at any moment, the same command goes on from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from registry.audit import audit
from registry.registrar import Registrar
from registry.store import Store

from ..processes import cpu_s, family, resident_octets
from ..words import BenchFault
from . import changing
from .disk import Place
from .loader import home, load, pieces_in
from .plan import Plan
from .reading import Reading, WrongAnswer, read, recent, repeated, spread

MILESTONES: Final = (1_000_000, 10_000_000, 100_000_000, 500_000_000)
FEW: Final = 1_000
"""Names that are asked for again and again."""
_SAVED_EACH_S: Final = 5.0
_FAULTS_TOLD: Final = 5
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """`reads` look-ups of each kind at the end, a tenth of them where few names are asked for again
    and again and at the milestones before; `changes` records are changed."""

    seed: str
    count: int
    reads: int
    changes: int
    workers: int


@dataclass(slots=True)
class State:
    """What is known so far. Seconds are those of loading alone; `cpu_s` is of all processes, the
    database server's among them where it is on this machine; `resident_octets` the most that the
    processes of this program had together."""

    seed: str
    kind: str
    loaded: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    resident_octets: int = 0
    resumed: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)
    readings: list[dict[str, Any]] = field(default_factory=list)
    cold: str = ""
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    total_s: float = 0.0

    def save(self, file: Path) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        new.replace(file)


def _kept(file: Path, wanted: Wanted, kind: str) -> State | None:
    if not file.exists():
        return None
    try:
        state = State(**json.loads(file.read_text()))
    except (ValueError, TypeError):
        state = State("", "")
    if (state.seed, state.kind) != (wanted.seed, kind):
        raise BenchFault(
            f"{file} is of another load (seed {state.seed!r}); use another folder.",
            f"{file} 属于另一次装载（种子 {state.seed!r}）；请换一个目录。",
        )
    return state


class Volume:
    """One run, or what is left of it. `state` holds what was measured."""

    def __init__(self, store: Store, place: Place, folder: Path, wanted: Wanted, say: Say) -> None:
        self._store = store
        self._place = place
        self._wanted = wanted
        self._say = say
        self._file = folder / "volume.json"
        self._plan = Plan(wanted.seed, wanted.count)
        kept = _kept(self._file, wanted, place.kind)
        self.state = kept or State(wanted.seed, place.kind)
        self._is_new = kept is None
        self._since = time.monotonic()

    def document(self) -> dict[str, Any]:
        return {"machine": self._place.machine(), **asdict(self.state)}

    async def run(self, registrar: Registrar, pool: ProcessPoolExecutor) -> State:
        """Raises BenchFault on anything that is not as it must be."""
        done = await self._begun(registrar)
        for milestone in sorted({m for m in MILESTONES if m < self._wanted.count}):
            done = await self._grow(registrar, pool, done, milestone, last=False)
        await self._grow(registrar, pool, done, self._plan.total, last=True)
        if "change" not in self.state.steps:
            await self._read_all()
        await self._step("change", self._change(registrar))
        await self._step("verify", self._verify(pool))
        return self.state

    async def _begun(self, registrar: Registrar) -> int:
        """How many chunks are there."""
        state = self.state
        if not self._is_new:
            state.resumed += 1
        if "loaded" in state.steps:
            done = self._plan.pieces_for(state.loaded)
            if self._plan.total != state.loaded:
                raise BenchFault(
                    f"This load has ended with {state.loaded:,} records, and some were changed;"
                    " use another folder for a larger one.",
                    f"该装载已完成（{state.loaded:,} 条）并已变更部分记录；更大的装载请换目录。",
                )
            return done
        done = await pieces_in(self._store, self._plan)
        self._place.check_free(self._plan.total - self._plan.records_in(done))
        await home(self._store, registrar)
        return done

    # Loading ----------------------------------------------------------------------------

    async def _grow(
        self, registrar: Registrar, pool: ProcessPoolExecutor, done: int, to: int, *, last: bool
    ) -> int:
        """Load until there are `to` records, and measure what there is then."""
        end = self._plan.pieces_for(to)
        if end > done:
            await self._load(registrar, pool, done, end)
        count = self._plan.records_in(end)
        self.state.loaded = max(self.state.loaded, count)
        if all(point["count"] != count for point in self.state.points) and end >= done:
            await self._measure(count, last=last)
        if last:
            self.state.steps.setdefault("loaded", {"count": count})
        self._save()
        return max(done, end)

    async def _load(
        self, registrar: Registrar, pool: ProcessPoolExecutor, first: int, end: int
    ) -> None:
        state, plan = self.state, self._plan
        at_wall, at_cpu = time.monotonic(), cpu_s(self._place.all_pids())
        began, told = at_wall, at_wall
        start = plan.records_in(first)

        def progress(pieces: int) -> None:
            nonlocal at_wall, at_cpu, told
            now = time.monotonic()
            if now - told < _SAVED_EACH_S and pieces < end:
                return
            told = now
            busy = cpu_s(self._place.all_pids())
            state.wall_s += now - at_wall
            state.cpu_s += busy - at_cpu
            at_wall, at_cpu = now, busy
            state.loaded = plan.records_in(pieces)
            self._note_memory()
            self._save()
            rate = (state.loaded - start) / (now - began)
            left = (plan.total - state.loaded) / rate if rate else 0.0
            self._say(
                f"{state.loaded:,} of {plan.total:,} 条 · {rate:,.0f}/s ·"
                f" {left / 60:.1f} min left 剩余 · {state.resident_octets / 2**20:,.0f} MiB"
            )

        ahead = self._wanted.workers
        await load(registrar, pool, plan, first, end, ahead=ahead, progress=progress)

    def _note_memory(self) -> None:
        now = resident_octets(family(os.getpid()))
        self.state.resident_octets = max(self.state.resident_octets, now)

    def _save(self) -> None:
        now = time.monotonic()
        self.state.total_s += now - self._since
        self._since = now
        self.state.save(self._file)

    # Measuring --------------------------------------------------------------------------

    async def _measure(self, count: int, *, last: bool) -> None:
        state = self.state
        point: dict[str, Any] = {
            "count": count,
            "wall_s": state.wall_s,
            "cpu_s": state.cpu_s,
            "octets": await self._place.octets(),
            "resident_octets": state.resident_octets,
        }
        reads = self._wanted.reads if last else max(self._wanted.reads // 10, 1)
        names = spread(count, reads, 1)
        if last:
            latest = recent(count, reads, 2)
            await self._read("recent, hot", repeated(latest, FEW, max(reads // 10, 1)))
        state.cold = await self._place.make_cold()
        await self._read_for(point, "cold", "random, cold", names, last)
        await self._read_for(point, "warm", "random, warm", names, last)
        state.points.append(point)
        state.points.sort(key=lambda each: int(each["count"]))
        self._say(f"{count:,}: {point['octets'] / count:.1f} octets each 每条字节")

    async def _read_for(
        self, point: dict[str, Any], name: str, what: str, numbers: Any, last: bool
    ) -> None:
        reading = await read(self._store, self._plan, what, numbers)
        self._note_memory()
        point[name] = {"p50_ms": reading.p50_ms, "p99_ms": reading.p99_ms, "count": reading.count}
        if last:
            self._keep(reading)

    async def _read(self, what: str, numbers: Any) -> None:
        self._keep(await read(self._store, self._plan, what, numbers))

    def _keep(self, reading: Reading) -> None:
        kept = [each for each in self.state.readings if each["what"] != reading.what]
        self.state.readings = [*kept, asdict(reading)]
        self._say(f"{reading.what}: {reading.count:,} right 正确, p99 {reading.p99_ms:.3f} ms")
        self._save()

    async def _read_all(self) -> None:
        """What reading for the last point has left out."""
        total, reads = self._plan.total, self._wanted.reads
        read_already = {each["what"] for each in self.state.readings}
        if "random, hot" not in read_already:
            names = spread(total, reads, 1)
            await self._read("random, hot", repeated(names, FEW, max(reads // 10, 1)))
        if not {"recent, cold", "recent, warm"} <= read_already:
            latest = recent(total, reads, 2)
            self.state.cold = await self._place.make_cold()
            await self._read("recent, cold", latest)
            await self._read("recent, warm", latest)

    # What comes after ---------------------------------------------------------------------

    async def _step(self, name: str, work: Any) -> None:
        """Do it once; a run that goes on later does it not again."""
        if name in self.state.steps:
            work.close()
            return
        began, busy = time.monotonic(), cpu_s(self._place.all_pids())
        found: dict[str, Any] = await work
        self.state.steps[name] = {
            "wall_s": time.monotonic() - began,
            "cpu_s": cpu_s(self._place.all_pids()) - busy,
            **found,
        }
        self._note_memory()
        self._save()

    async def _change(self, registrar: Registrar) -> dict[str, Any]:
        numbers = changing.sample(self._plan, self._wanted.changes)
        await changing.change(registrar, self._plan, numbers)
        await changing.check(self._store, self._plan, numbers)
        self._say(f"{len(numbers):,} changed, every tenth retired 已变更，十分之一注销")
        return {"count": len(numbers)}

    async def _verify(self, pool: ProcessPoolExecutor) -> dict[str, Any]:
        told = time.monotonic()

        def progress(what: str, count: int) -> None:
            nonlocal told
            if time.monotonic() - told >= _SAVED_EACH_S:
                told = time.monotonic()
                self._note_memory()
                self._say(f"verify 校验: {count:,} {what}")

        found = await audit(self._store, progress=progress, helpers=pool)
        if found.faults or found.busy or found.records != self._plan.total:
            said = "; ".join(found.faults[:_FAULTS_TOLD]) or f"{found.records} records"
            raise WrongAnswer(f"verify: {said}", f"校验未通过：{said}")
        self._say(f"verified 校验通过: {found.records:,} records, {found.entries:,} entries")
        return {"records": found.records, "entries": found.entries}
