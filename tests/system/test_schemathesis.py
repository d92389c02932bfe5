"""Schemathesis against real nodes: thousands of requests made from the node's own description.

How many is given, not for how long: a machine that is busy takes longer, and sends as much. The
cases at the limits of each operation ("coverage") are always the same, some two thousand; made-up
ones and rows of calls come on top. Which checks are off, and why, is said in schemathesis.toml;
what stands in for them is in schemathesis_hooks.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.described import Described, end_of_log, metrics, total

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

ROOT = Path(__file__).parents[2]
RUN = "import schemathesis.cli as cli; cli.schemathesis()"
LIMIT_S = 240
EVERYTHING = ("--max-examples", "4")
MADE_UP = ("--phases", "fuzzing,stateful", "--max-examples", "6")


def run(node: RunningNode, directory: Path, *more: str) -> int:
    """Send what Schemathesis thinks of; returns how many. Fails on findings."""
    command = [
        sys.executable,
        *("-c", RUN, "--config-file", "tests/system/schemathesis.toml"),
        *("run", f"{node.url}/openapi.json"),
        *("--seed", "1", "--no-color", "--continue-on-failure", "--warnings", "off"),
        *("--request-timeout", "20", "--max-response-time", "10"),
        *("--generation-database", "none", "--report-dir", str(directory)),
        *more,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "errors" not in done.stdout.lower().rpartition("summary")[2]
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated, done.stdout[-5_000:]
    return int(generated.group(1).replace(",", ""))


@pytest.mark.parametrize(
    ("database", "phases", "at_least"),
    [("sqlite_url", EVERYTHING, 2_000), ("postgres_url", MADE_UP, 150)],
)
def test_with_an_admin_key(
    make_node: Callable[..., RunningNode],
    database: str,
    phases: tuple[str, ...],
    at_least: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    node = make_node(database_url=request.getfixturevalue(database))
    node.home("88.118.8", "acme")
    before = end_of_log(Described(node.port, node.key))
    sent = run(node, tmp_path, *phases, "-H", f"Authorization: Bearer {node.key}")
    check(node, sent, at_least)
    assert end_of_log(Described(node.port, node.key)) > before
    assert node.stop() == 0
    verified = subprocess.run(node.command("verify"), env=node.settings(), timeout=60)
    assert verified.returncode == 0


def test_without_a_key(make_node: Callable[..., RunningNode], tmp_path: Path) -> None:
    node = make_node()
    node.home("88.118.8", "acme")
    before = end_of_log(Described(node.port, node.key))
    check(node, run(node, tmp_path, *MADE_UP), 60)
    assert end_of_log(Described(node.port, node.key)) == before


def check(node: RunningNode, sent: int, at_least: int) -> None:
    """It lives, met nothing that it did not foresee, and counted all that was sent."""
    assert sent >= at_least
    series = metrics(Described(node.port))
    assert total(series, "biaojie_requests_total", outcome="internal") == 0
    assert total(series, "biaojie_requests_total") >= sent
    assert series[("process_resident_memory_bytes", ())] < 400 * 2**20
    assert "Traceback" not in node.log
