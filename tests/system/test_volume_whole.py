"""`biaojie bench load` and `bench volume` as an operator runs them, small: killed in the middle,
gone on with, larger, and over a registry that somebody else has changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 120
ROWS = 30_000


def command(name: str, *options: object) -> list[str]:
    return [sys.executable, "-m", "resolver", "bench", name, *map(str, options)]


def run(name: str, *options: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *options),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def small(folder: Path, count: int) -> list[object]:
    out = folder / "result.json"
    fixed = ["--reads", 2_000, "--changes", 300, "--workers", 2, "--json", out]
    return ["--count", count, "--folder", folder, *fixed]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def entries(file: Path) -> int:
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5) as connection:
            return int(connection.execute("SELECT sequence FROM chain_head").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_a_killed_load_goes_on_where_it_was(tmp_path: Path) -> None:
    options = small(tmp_path, 200_000)
    with subprocess.Popen(
        command("volume", *options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + LIMIT_S
        while entries(tmp_path / "registry.db") < 4:
            assert process.poll() is None, "it was done before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        helpers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(helpers, 10)
    assert not alive
    before = entries(tmp_path / "registry.db")
    done = run("volume", *options)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stderr
    made = result(tmp_path)
    [point] = made["points"]
    assert point["count"] >= 200_000
    assert before < made["steps"]["verify"]["entries"]
    assert made["steps"]["verify"]["records"] == point["count"]
    assert {each["what"]: each["count"] for each in made["readings"]} == {
        "random, cold": 2_000,
        "random, warm": 2_000,
        "random, hot": 200,
        "recent, hot": 200,
        "recent, cold": 2_000,
        "recent, warm": 2_000,
    }
    assert made["steps"]["change"]["count"] == 300
    assert point["octets"] / point["count"] < 100  # the WAL weighs much in so small a one
    assert (tmp_path / "volume-sqlite.png").exists()

    again = run("volume", *options)  # there is nothing left to do
    assert again.returncode == 0, again.stderr
    assert result(tmp_path)["steps"] == made["steps"]
    larger = run("volume", *small(tmp_path, 400_000))  # some were changed
    assert larger.returncode == 2
    assert "another folder" in larger.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one that is done; copy it."""
    folder = tmp_path_factory.mktemp("volume") / "whole"
    folder.mkdir()
    done = run("volume", *small(folder, ROWS))
    assert done.returncode == 0, done.stderr
    return folder


def test_a_wrong_answer_ends_it(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    kept = json.loads((tmp_path / "volume.json").read_text())
    kept["points"], kept["readings"], kept["steps"] = [], [], {"loaded": kept["steps"]["loaded"]}
    (tmp_path / "volume.json").write_text(json.dumps(kept))
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("DELETE FROM blocks WHERE rowid % 3 = 0")
    done = run("volume", *small(tmp_path, ROWS))
    assert done.returncode == 1
    assert "is not found" in done.stderr


def test_a_registry_that_is_in_use_is_left_alone(whole: Path, tmp_path: Path) -> None:
    assert run("load", "--count", 1, "--driver-rows", 1_000, cwd=tmp_path).returncode == 0
    assert os.listdir(tmp_path) == []
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "volume.json").unlink()
    done = run("volume", *small(tmp_path, ROWS))
    assert done.returncode == 2
    assert "something else" in done.stderr
    other = run("volume", *small(tmp_path, ROWS), "--seed", "other")
    assert other.returncode == 2


@pytest.mark.parametrize("name", ["volume", "load"])
def test_postgresql(tmp_path: Path, postgres_url: str, name: str) -> None:
    url = postgres_url.replace("+asyncpg", "")
    if name == "volume":
        done = run("volume", *small(tmp_path, 60_000), "--database", url)
        assert done.returncode == 0, done.stderr
        assert result(tmp_path)["kind"] == "PostgreSQL"
        assert "shared buffers" in result(tmp_path)["cold"]
    else:
        out = tmp_path / "load.json"
        options = ("--count", 60_000, "--driver-rows", 30_000, "--json", out)
        done = run("load", *options, "--database", url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told = json.loads(out.read_text())
        assert told["ours"]["rows"] >= 60_000
        assert told["bare"]["rows"] == 30_000
        assert url not in out.read_text()  # it may have a password in it
        assert told["ours"]["octets"] / told["ours"]["rows"] < 100
        again = run("load", *options, "--database", url, cwd=tmp_path)
        assert again.returncode == 2
