"""How fast the bulk entrance takes records, and how fast the bare driver does, in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from registry.processes import processes
from registry.registrar import Registrar
from registry.store import Store

from ..processes import cpu_s, family, resident_octets
from ..words import BenchFault
from .disk import Place, place_of
from .drivers import driven
from .loader import home, load
from .plan import Plan
from .reading import read, spread

Opened = Callable[[Place], AbstractAsyncContextManager[tuple[Store, Registrar]]]
_CHECKED = 1_000
"""Names that are read back after a load."""


async def measure(
    opened: Opened,
    database: str,
    folder: Path,
    seed: str,
    count: int,
    workers: int,
    driver_rows: int,
) -> dict[str, Any]:
    """Load `count` records, read some back, then let the driver load. Seconds of processor are of
    all processes, the database server's among them where it is on this machine."""
    place = place_of(database, folder)
    plan = Plan(seed, count)
    place.check_free(plan.total)
    async with opened(place) as (store, registrar):
        if (await store.head())[0]:
            raise BenchFault(
                "The database holds a registry that is in use; give an empty one.",
                "该数据库中已有注册内容；请使用空数据库。",
            )
        await home(store, registrar)
        before = await place.octets()
        most = 0

        def look(_pieces: int) -> None:
            nonlocal most
            most = max(most, resident_octets(family(os.getpid())))

        with processes(workers) as pool:
            began, busy = time.monotonic(), cpu_s(place.all_pids())
            await load(registrar, pool, plan, 0, len(plan.pieces), ahead=workers, progress=look)
            wall, cpu = time.monotonic() - began, cpu_s(place.all_pids()) - busy
        await read(store, plan, "loaded", spread(plan.total, _CHECKED, 1))
        octets = await place.octets() - before
    return {
        "machine": place.machine(),
        "kind": place.kind,
        "seed": seed,
        "ours": {
            "rows": plan.total,
            "wall_s": wall,
            "cpu_s": cpu,
            "octets": octets,
            "resident_octets": most,
            "workers": workers,
        },
        **await driven(place, folder, plan, driver_rows),
    }
