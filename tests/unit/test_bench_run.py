"""Runs against servers that pause, lie, lose and refuse: the result must say so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.driver import usable
from bench.names import OwnNames
from bench.resolve import Wanted, resolve_run
from bench.words import BenchFault
from tests.bench_servers import Script, handle_udp_server, http_server

NAMES = OwnNames("88.118.8", 50)
DRIVERS = [
    "python",
    pytest.param("c", marks=pytest.mark.skipif(not usable(), reason="no C compiler")),
]


def wanted(url: str, driver: str, **changes: object) -> Wanted:
    base = Wanted(
        url=url,
        rate=200,
        duration_s=0.7,
        warmup_s=0.1,
        timeout_s=1.0,
        connections=8,
        prefix=NAMES.prefix,
        names=NAMES.count,
        prepared=True,
        driver=driver,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("server", [http_server, handle_udp_server])
async def test_an_honest_server(driver: str, server: object) -> None:
    async with server(Script(NAMES)) as url:  # type: ignore[operator]
        result = await resolve_run(wanted(url, driver, mix="hit=5,unknown=4,auth=1"))
    counts = result["counts"]
    assert counts["right"] == counts["scheduled"] > 80
    assert counts["wrong"] == counts["failed"] == counts["refused"] == 0
    assert set(result["latency_by_kind"]) == {"hit", "unknown", "auth"}
    assert result["latency"]["count"] == counts["right"]
    assert sum(row[0] for row in result["seconds"]) == counts["right"]
    assert result["headroom"]["engine"] == driver
    assert 0 < result["headroom"]["busy"][0] < 1


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_pause_of_the_server_shows(driver: str) -> None:
    """A third of the questions fall due in the pause. A loop that waits for answers before it
    asks on would ask only one for each connection then, 8 of 300, and no percentile below 97
    would know of the pause."""
    script = Script(NAMES, pause_after_s=0.7, pause_s=0.5)
    async with http_server(script) as url:
        result = await resolve_run(wanted(url, driver, duration_s=1.5))
    latency = result["latency"]
    assert result["counts"]["right"] == result["counts"]["scheduled"]
    assert latency["p75_ms"] > 50
    assert 350 < latency["max_ms"] < 900
    assert latency["p50_ms"] < 250
    assert not any(why["code"] == "busy" for why in result["lagged"])


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("server", [http_server, handle_udp_server])
async def test_a_lie_is_found_and_named(driver: str, server: object) -> None:
    liar = NAMES.name(7)
    lies = {
        liar: NAMES.data(8, 0),  # another's answer
        NAMES.name(9): NAMES.data(9, 0)[:-1] + b"!",
    }
    script = Script(NAMES, data=lambda name, data: lies.get(name, data))
    async with server(script) as url:  # type: ignore[operator]
        result = await resolve_run(wanted(url, driver, keys="uniform", duration_s=1.5))
    counts = result["counts"]
    assert 0 < counts["wrong"] < counts["scheduled"] / 5
    named = {name for name in lies for fault in result["wrong"] if name in fault}
    assert named == set(lies)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("found", "mix"), [(False, "hit=1"), (True, "unknown=1")])
async def test_found_and_not_found_are_checked(driver: str, found: bool, mix: str) -> None:
    script = Script(NAMES, data=lambda name, data: None)
    if found:
        script.told = lambda name: NAMES.data(0, 0)  # type: ignore[method-assign]
    async with http_server(script) as url:
        result = await resolve_run(wanted(url, driver, mix=mix, duration_s=0.3))
    assert result["counts"]["wrong"] >= result["counts"]["scheduled"] > 0
    assert result["counts"]["right"] == 0


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("server", [http_server, handle_udp_server])
async def test_lost_answers_count_with_the_time_they_waited(driver: str, server: object) -> None:
    script = Script(NAMES, silent=20)
    async with server(script) as url:  # type: ignore[operator]
        result = await resolve_run(wanted(url, driver, timeout_s=0.4, pipeline=4))
    counts = result["counts"]
    assert counts["wrong"] == 0
    assert counts["right"] + counts["failed"] == counts["scheduled"]
    assert counts["failed"] >= counts["scheduled"] // 25
    assert set(result["failures"]) == {"lost"}
    assert result["latency"]["p99_ms"] >= 400


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("status", [503, 500])
async def test_refusals_are_no_failures(driver: str, status: int) -> None:
    async with http_server(Script(NAMES, status=status)) as url:
        result = await resolve_run(wanted(url, driver, duration_s=0.3))
    counts = result["counts"]
    assert counts["refused" if status == 503 else "failed"] == counts["scheduled"] > 0
    assert result["failures"] == ({} if status == 503 else {"internal": counts["scheduled"]})


async def test_processes_add_up() -> None:
    async with http_server(Script(NAMES)) as url:
        result = await resolve_run(wanted(url, "python", processes=2, duration_s=1.0))
    assert len(result["headroom"]["busy"]) == 2
    assert result["counts"]["right"] == result["counts"]["scheduled"]
    assert result["latency"]["count"] == result["counts"]["right"]
    assert 140 < result["counts"]["scheduled"] < 260


async def test_nobody_listens() -> None:
    async with http_server(Script(NAMES)) as url:
        pass
    with pytest.raises(BenchFault):
        await resolve_run(wanted(url, "python"))
