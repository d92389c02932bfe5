"""The README, word by word, on a machine that has nothing: every command in it is run.

A copy of the checkout, an empty environment, a virtualenv of its own. Only the port differs,
so that the test does not meet a node that already runs here.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL_S = 280.0  # the whole first success is promised within five minutes
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVED = "http://127.0.0.1:8080"


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for name, body in FENCE.findall(text) if name == language]


def test_both_languages_give_the_same_commands() -> None:
    def commands(page: str) -> list[str]:
        return [re.sub(r'--label "[^"]*"', "--label", block) for block in blocks(page, "sh")]

    assert len(commands("README.md")) >= 8
    assert commands("README.md") == commands("README.zh.md")
    assert blocks("README.md", "python") == blocks("README.zh.md", "python")


@dataclass
class Run:
    process: subprocess.Popen[bytes]
    lines: list[str]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@dataclass
class Clone:
    folder: Path
    port: int
    environment: dict[str, str]

    def run(self) -> Run:
        """`make run`; returns once it has said its three lines."""
        output = self.folder.parent / f"run-{time.monotonic_ns()}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                ["make", "run", f"PORT={self.port}"],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + INSTALL_S
        while time.monotonic() < deadline:
            text = output.read_text()
            if "Write 注册" in text and text.endswith("\n"):
                return Run(process, [line for line in text.splitlines() if line.strip()][-3:])
            assert process.poll() is None, text
            time.sleep(0.1)
        process.kill()
        raise AssertionError(f"not up within {INSTALL_S} s:\n{output.read_text()}")

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script.replace(SERVED, f"http://127.0.0.1:{self.port}")],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def get(self, path: str, accept: str) -> str:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Accept": accept}
        )
        with urllib.request.urlopen(asked, timeout=10) as reply:
            return str(reply.read().decode())


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    folder = tmp_path_factory.mktemp("stranger") / "biaojie"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    # Nothing of ours is inherited; how this machine reaches its package index is not ours.
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_"))}
    environment = kept | {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path_factory.mktemp("home")),
        "LANG": "C.UTF-8",
        "BIAOJIE_URL": f"http://127.0.0.1:{port}",
    }
    return Clone(folder, port, environment)


@pytest.fixture(scope="module")
def first_run(clone: Clone) -> Iterator[Run]:
    run = clone.run()
    yield run
    run.end()


def test_make_run_says_what_to_open_ask_and_write(clone: Clone, first_run: Run) -> None:
    opened, asked, written = first_run.lines
    page = opened.split()[-1].removeprefix(f"http://127.0.0.1:{clone.port}")
    assert "Enercon" in clone.get(page, "text/html")
    asking = clone.shell(asked.split(":", 1)[1].strip())
    assert asking.returncode == 0
    assert '"Enercon"' in asking.stdout
    writing = clone.shell(written.split(":", 1)[1].strip())
    assert '"identifier":"88.118.8/SN0001"' in writing.stdout, writing.stdout
    # The tour registers the same name: give it back.
    purged = clone.shell(
        'curl -sf -X DELETE -H "Authorization: Bearer $(cat data/admin.key)"'
        f" '{SERVED}/api/v1/identifiers/88.118.8/SN0001?purge=true'"
    )
    assert purged.returncode == 0, purged.stderr


def test_the_tour_works_as_it_is_written(clone: Clone, first_run: Run) -> None:
    commands = blocks("README.md", "sh")
    assert commands[:2] == ["make run\n", "make test\n"]
    dry = clone.shell("make -n test")
    assert "pytest" in dry.stdout
    prepare, *tour = commands[2:]
    said = {}
    for block in tour:
        done = clone.shell(f"set -e\n{prepare}\n{block}")
        said[block] = done.stdout
        # One row of the sample file is bad on purpose, and `import` says so in its exit code.
        assert done.returncode == (1 if "biaojie import" in block else 0), (
            f"{block}\n{done.stdout}\n{done.stderr}"
        )
    everything = "\n".join(said.values())
    assert "X2" in everything
    assert "verified" in everything
    assert "identifier-taken" in (clone.folder / "batch.errors.csv").read_text()
    assert '"internal"' not in clone.get("/88.118.8/SN-A001", "application/json")
    (program,) = blocks("README.md", "python")
    (clone.folder / "tour.py").write_text(
        program.replace(SERVED, f"http://127.0.0.1:{clone.port}"), encoding="utf-8"
    )
    python = clone.shell(f"{prepare}\npython tour.py")
    assert "1 URL https://example.com/SN0001" in python.stdout, python.stderr


def test_a_second_run_starts_in_seconds_and_keeps_the_data(clone: Clone, first_run: Run) -> None:
    first_run.end()
    begun = time.monotonic()
    second = clone.run()
    try:
        assert time.monotonic() - begun < 15
        assert "X2" in clone.get("/88.118.8/SN0001", "application/json")
    finally:
        second.end()
