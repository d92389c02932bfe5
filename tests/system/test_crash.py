"""In short what `make crash` and `make outage` do for long: nothing acknowledged is lost, doubled
or torn, and every front goes on without the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.group import running_group
from tests.crash.kills import kills
from tests.crash.outage import outage, worker_lost, world
from tests.crash.retries import cut_replies, race
from tests.crash.shortage import full_disk_apart, no_descriptors, why_not

PAUSE_S = (0.005, 0.3)


@pytest.mark.parametrize(
    ("database", "workers", "kinds"),
    [
        ("sqlite", 1, ("group",) * 2),
        ("postgresql", 2, ("worker", "supervisor", "backend", "postmaster", "everything")),
    ],
)
async def test_kills_retries_and_races(
    tmp_path: Path, database: str, workers: int, kinds: tuple[str, ...]
) -> None:
    async with running_group(tmp_path, database, workers) as (group, server):
        done = await kills(
            group, server, number=len(kinds), seed=21, clients=8, pause_s=PAUSE_S, kinds=kinds
        )
        assert done["kills"] == len(kinds)
        assert done["acknowledged"] > 100
        done = await cut_replies(group, server, number=120, seed=22)
        assert done["done_before_the_retry"] >= 90
        done = await race(group, rounds=4, clients=60, seed=23)
        assert done["winners"].keys() <= {"http", "native"}


async def test_a_database_that_is_away(tmp_path: Path) -> None:
    """Beside test_outage.py: all fronts, several workers, and the network between."""
    async with world(tmp_path) as here:
        await outage(here, away_s=4.0, before_s=0.2, faults=["black-holed"], margin_s=1.5)
        met = (await worker_lost(here, calls=15, margin_s=1.5))["met"]
    assert met["http answered"] > 0
    assert met["native answered"] > 0


def test_a_full_disk(tmp_path: Path) -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    done = full_disk_apart(tmp_path, "sqlite", rounds=1, seed=24)
    assert done["refused"].keys() <= {"storage-full", "temporarily-unavailable"}


async def test_no_descriptors_left(tmp_path: Path) -> None:
    done = await no_descriptors(tmp_path, "sqlite", seed=25)
    assert done["refused"].keys() <= {"temporarily-unavailable", "deadline-exceeded"}
