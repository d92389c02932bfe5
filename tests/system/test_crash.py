"""In short what `make crash` and `make outage` do for long: nothing acknowledged is lost, doubled
or torn, and every front goes on without the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash.group import DATABASE_KINDS, WORKER_KINDS, Group, running_group
from tests.crash.kills import kills
from tests.crash.outage import outage
from tests.crash.retries import cut_replies, race
from tests.postgres import Postgres

PAUSE_S = (0.005, 0.3)


async def test_kills_of_the_one_process_on_sqlite(tmp_path: Path) -> None:
    done = await kills(tmp_path, "sqlite", number=3, seed=20, workers=1, clients=8, pause_s=PAUSE_S)
    assert done["acknowledged"] > 100


async def test_kills_of_workers_and_database(tmp_path: Path) -> None:
    kinds = sorted({*WORKER_KINDS, *DATABASE_KINDS, "group"})
    done = await kills(
        tmp_path, "postgresql", number=7, seed=21, clients=8, pause_s=PAUSE_S, kinds=kinds
    )
    assert done["acknowledged"] > 300
    assert list(done["kinds"].values()) == [1] * 7


@pytest.fixture(params=["sqlite", "postgresql"])
async def held(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Group, Postgres | None]]:
    async with running_group(tmp_path, request.param) as running:
        yield running


async def test_retries_and_races(held: tuple[Group, Postgres | None]) -> None:
    group, server = held
    done = await cut_replies(group, server, number=120, seed=22)
    assert done["done_before_the_retry"] >= 90
    done = await race(group, rounds=4, clients=60, seed=23)
    assert done["winners"].keys() <= {"http", "native"}


async def test_a_database_that_is_away(tmp_path: Path) -> None:
    """Beside test_outage.py: all fronts, several workers, and the network between as well."""
    faults = ("killed", "frozen", "black-holed")
    await outage(tmp_path, away_s=4.0, before_s=0.2, faults=faults, margin_s=1.5)
