"""`biaojie bench` against a real node, as an operator calls it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.driver import usable
from bench.names import OwnNames
from tests.bench_servers import Script, http_server
from tests.system.browser import open_browser, open_page
from tests.system.conftest import RunningNode

PREFIX = "88.118.71"
NAMES = 300


@pytest.fixture(scope="module")
def loaded(make_node: Callable[..., RunningNode], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A node whose names are registered, and its sockets."""
    folder = tmp_path_factory.mktemp("bench")
    node = make_node(handle_udp_rate_max=0, native_socket=folder / "native", requests_max=10_000)
    done = bench(node, "resolve", node.url, *names(), "--rate", "50", "--duration", "0.2")
    assert done.returncode in (0, 3), done.stderr
    return node


def bench(node: RunningNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Its exit code 3 (the machine had no time for the generator) is no fault of a test."""
    return subprocess.run(
        [*node.command("bench"), *arguments],
        env={**os.environ, "BIAOJIE_KEY": node.key, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def names(count: int = NAMES) -> tuple[str, ...]:
    return ("--prefix", PREFIX, "--names", str(count))


def urls(node: RunningNode) -> dict[str, str]:
    return {
        "http": node.url,
        "hdl-tcp": f"hdl://127.0.0.1:{node.handle_port}",
        "hdl-udp": f"hdl+udp://127.0.0.1:{node.handle_port}",
        "native": f"biaojie+unix://{node.environment['BIAOJIE_NATIVE_SOCKET']}",
    }


@pytest.mark.parametrize(
    "driver",
    ["python", pytest.param("c", marks=pytest.mark.skipif(not usable(), reason="no compiler"))],
)
@pytest.mark.parametrize("front", ["http", "hdl-tcp", "hdl-udp", "native"])
def test_every_front_answers_rightly(
    loaded: RunningNode, front: str, driver: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    mix = ("--mix", "hit=6,miss=1,unknown=2,auth=1", "--cold", "100")
    load = ("--rate", "200", "--duration", "1", "--warmup", "0.2", "--connections", "4")
    depth = ("--pipeline", "4", "--timeout", "10", "--driver", driver)
    where = ("--node", loaded.url, "--json", str(out), "--prepared")
    done = bench(loaded, "resolve", urls(loaded)[front], *names(), *mix, *load, *depth, *where)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["target"]["front"] == front
    counts = result["counts"]
    assert counts["wrong"] == counts["failed"] == counts["refused"] == 0
    assert counts["right"] == counts["scheduled"] > 120
    assert set(result["latency_by_kind"]) == {"hit", "miss", "unknown", "auth"}
    if front in ("http", "native"):
        assert result["sources"]["hit cache"] > 50
        assert "auth cache" not in result["sources"]
    assert result["node"]["cpu_s"] > 0
    assert result["node"]["gauges"]["biaojie_cache_entries"] > 0


@pytest.mark.parametrize("front", ["http", "hdl-tcp"])
def test_changes_show_within_a_second_under_load(
    loaded: RunningNode, front: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    load = ("--rate", "300", "--duration", "2.5", "--timeout", "10", "--writes", "20")
    where = ("--node", loaded.url, "--json", str(out))
    done = bench(loaded, "resolve", urls(loaded)[front], *names(30), *load, *where)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["counts"]["wrong"] == result["counts"]["failed"] == 0
    assert result["writes"]["acknowledged"] > 30
    assert result["writes"]["wrong"] == 0


def test_answers_older_than_a_change_fail_the_run(loaded: RunningNode, tmp_path: Path) -> None:
    """Writes go to the node; what is read comes from a server that never hears of them."""
    out = tmp_path / "out.json"

    async def run() -> subprocess.CompletedProcess[str]:
        async with http_server(Script(OwnNames(PREFIX, NAMES))) as url:
            load = ("--rate", "100", "--duration", "2.5", "--writes", "20", "--timeout", "5")
            where = ("--node", loaded.url, "--json", str(out))
            line = ("resolve", url, *names(), *load, *where)
            return await asyncio.to_thread(bench, loaded, *line)

    done = asyncio.run(run())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG" in done.stdout
    result = json.loads(out.read_text())
    assert result["counts"]["wrong"] > 10
    assert result["writes"]["wrong"] == 0
    assert all("was acknowledged more than 1 s before" in fault for fault in result["wrong"])
    assert result["counts"]["right"] > 50  # of names that were not written, or only just


def test_the_peak_is_searched_for(loaded: RunningNode, tmp_path: Path) -> None:
    """Of a server whose limit is known, and low: nobody else here is to wait for the search."""
    out = tmp_path / "out.json"
    limit = 400.0

    async def run() -> subprocess.CompletedProcess[str]:
        async with http_server(Script(OwnNames(PREFIX, NAMES), rate_max=limit)) as url:
            search = ("--peak", "--peak-p99", "2000", "--rate", "100", "--peak-step", "0.3")
            more = ("--duration", "0.5", "--prepared", "--json", str(out))
            return await asyncio.to_thread(bench, loaded, "resolve", url, *names(), *search, *more)

    done = asyncio.run(run())
    assert done.returncode in (0, 3), done.stdout + done.stderr
    peak = json.loads(out.read_text())["peak"]
    assert len(peak["steps"]) > 3
    assert peak["steps"][0]["rate"] == 100
    assert peak["limited_by"] in ("node", "generator")
    assert any(step["shortfall"] == "errors" for step in peak["steps"])
    assert peak["rate"] < 2 * limit


def test_registrations_are_kept(loaded: RunningNode, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ("--single", "40", "--batch", "300", "--file", "200", "--batch-rows", "100")
    where = ("--prefix", PREFIX, "--data-dir", str(loaded.data_dir), "--json", str(out))
    done = bench(loaded, "register", loaded.url, *sizes, *where)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    acknowledged = {name: way["acknowledged"] for name, way in result["ways"].items()}
    assert acknowledged == {"single": 40, "batch": 300, "file": 200}
    assert result["log"]["names"] == 540
    assert result["disk"]["grown_bytes"] >= 0
    plan = bench(loaded, "plan", "--register", str(out))
    assert plan.returncode == 0
    assert "registration rate" in plan.stdout


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_the_report_opens_in_a_browser(loaded: RunningNode, locale: str, tmp_path: Path) -> None:
    page_file = tmp_path / "report.html"
    done = bench(
        loaded,
        "resolve",
        loaded.url,
        *names(),
        *("--prepared", "--rate", "200", "--duration", "1.2", "--html", str(page_file)),
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr

    async def look() -> None:
        async with (
            open_browser() as browser,
            open_page(browser, "file://", locale=locale, offline=True) as watch,
        ):
            page = watch.page
            await page.goto(page_file.as_uri())
            assert await page.locator("h1").all_inner_texts() == [
                "Resolution under load",
                "解析压测报告",
            ]
            plots = page.locator("figure svg")
            assert await plots.count() == 4
            for number in range(4):
                box = await plots.nth(number).bounding_box()
                assert box
                assert box["width"] > 300
                assert box["height"] > 100
                assert await plots.nth(number).locator("path").count() > 5
            ids = await page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
            assert len(ids) == len(set(ids))
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await page.evaluate(wide) <= 0
            faults = await watch.faults()
            # Strangers are what our own pages never have; SVG has styles.
            assert not [fault for fault in faults if not fault.startswith("stranger")]

    asyncio.run(look())
