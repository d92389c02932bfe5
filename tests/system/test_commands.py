"""The commands at a real node: what a person does with them, and imports that are killed."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from biaojie import Client
from biaojie.record import Record
from resolver.commands import client_commands

app = typer.Typer()
client_commands(app)
Node = Any
ROWS = 4_000


class Shell:
    """Commands as typed in a folder where only the node's address and key are known."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.environment = {"BIAOJIE_URL": node.url, "BIAOJIE_KEY": node.key, "LANG": "C.UTF-8"}

    def __call__(self, *words: str, code: int = 0, **environment: str) -> str:
        done = CliRunner().invoke(app, list(words), env=self.environment | environment)
        assert done.exit_code == code, (words, done.stdout, done.stderr, done.exception)
        self.errors = done.stderr
        return done.stdout

    def start(self, *words: str, **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", "from resolver.__main__ import main; main()", *words],
            cwd=self.folder,
            env={**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
        )

    def records(self, prefix: str) -> list[Record]:
        async def read() -> list[Record]:
            async with Client(self.node.url, self.node.key) as client:
                return [record async for record in client.records(prefix)]

        return asyncio.run(read())


@pytest.fixture(scope="module")
def node(make_node: Callable[..., Node]) -> Node:
    """Its own: everything is exported, and on the shared one others have ranges of millions."""
    own = make_node()
    own.home("88.118.8")
    return own


@pytest.fixture
def shell(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(node, tmp_path)


def test_a_record_from_its_prefix_to_its_end(shell: Shell) -> None:
    assert "88.118.31\tactive\tacme" in shell("prefix", "home", "88.118.31", "--tenant", "acme")
    assert "88.118.31" in shell("prefix", "list")
    private = '{"index": 9, "type": "NOTE", "data": "inside", "permissions": "1100"}'
    given = ("URL=https://a.example", "--set", "HS_SECKEY=s3", "--set", private)
    out = shell("register", "88.118.31/SN1", *given)
    assert out.startswith("88.118.31/SN1 registered: active, version 1, change ")
    shell("register", "88.118.31/SN1", "URL=x", code=1)
    assert "already registered" in shell.errors
    shell("register", "88.118.31/SN1", "URL=x", code=1, LANG="zh_CN.UTF-8")
    assert "标识已被注册" in shell.errors
    receipt = json.loads(
        shell("modify", "88.118.31/SN1", "URL=https://b.example", "名=泵", "--json")
    )
    assert (receipt["version"], receipt["action"]) == (2, "modify")

    answer = shell("resolve", "hdl:88.118.31/SN1", BIAOJIE_KEY="")
    assert "88.118.31/SN1  86400  1      URL   1110  https://b.example" in answer
    assert "s3" not in answer
    assert "3      名" in answer
    assert "source: cache" in shell("resolve", "88.118.31/SN1", BIAOJIE_KEY="")
    assert "flags: auth" in shell("resolve", "88.118.31/SN1", "--auth", BIAOJIE_KEY="")
    assert "inside" not in answer
    answer = shell("resolve", "88.118.31/SN1")
    assert "inside" in answer, "a key that was given is used"
    assert "s3" not in answer
    only = json.loads(shell("resolve", "88.118.31/SN1", "--type", "url", "--json"))
    assert [value["type"] for value in only["values"]] == ["URL"]

    Path("r.json").write_text(shell("resolve", "88.118.31/SN1", "--json"))
    shell("register", "88.118.31/SN2", "--file", "r.json", "--status", "draft")
    shell("register", "--file", "r.json", "--overwrite", "--if-version", "1", code=1)
    minted = json.loads(shell("register", "--mint", "88.118.31/AUTO-", "a=b", "--json"))
    assert minted["identifier"].startswith("88.118.31/AUTO-")
    listed = [line.split("\t")[:2] for line in shell("list", "88.118.31").splitlines()]
    assert listed == [
        [minted["identifier"], "active"],
        ["88.118.31/SN1", "active"],
        ["88.118.31/SN2", "draft"],
    ]
    assert len(shell("list", "88.118.31", "--limit", "1", "--json").splitlines()) == 1

    shell("retire", "88.118.31/SN2")
    shell("resolve", "88.118.31/SN2", code=1)
    shell("resolve", "88.118.31/none", code=1)
    shell("resolve", "88.999.1/none", "--json", code=1)
    assert json.loads(shell.errors)["code"] == "prefix-not-here"
    shell("prefix", "suspend", "88.118.31")
    shell("resolve", "88.118.31/SN1", code=1, BIAOJIE_KEY="")
    shell("prefix", "activate", "88.118.31")
    shell("resolve", "88.118.31/SN1", BIAOJIE_KEY="")
    entries = [json.loads(line) for line in shell("changes", "--json").splitlines()]
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))
    assert len(shell("changes", "--limit", "2").splitlines()) == 2


def test_keys_are_issued_used_and_revoked(shell: Shell) -> None:
    secret = shell(
        "key", "issue", "--role", "registrar", "--tenant", "acme", "--label", "l"
    ).strip()
    key_id = secret.split("_")[1]
    assert key_id in shell.errors
    assert secret not in shell.errors
    shell("register", "88.118.8/by-registrar", "a=b", BIAOJIE_KEY=secret)
    shell("register", "88.118.9/by-registrar", "a=b", code=1, BIAOJIE_KEY=secret)
    assert f"{key_id}\tregistrar\tacme\tvalid" in shell("key", "list")
    assert "revoked" in shell("key", "revoke", key_id)
    deadline = time.monotonic() + 5
    while (
        CliRunner()
        .invoke(app, ["list", "88.118.8"], env=shell.environment | {"BIAOJIE_KEY": secret})
        .exit_code
        == 0
    ):
        assert time.monotonic() < deadline, "revoked keys are refused within 5 s"


def catalogue(path: Path, rows: int = ROWS) -> tuple[set[str], list[int]]:
    """A file with a bad row in ten; returns what can be registered and the bad lines."""
    good, bad = set(), []
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["serial", "model", "note"])
        for number in range(rows):
            line = number + 2
            match number % 40:
                case 7:
                    writer.writerow(["", "X", "no serial"])
                case 17:
                    writer.writerow([f"S{number}", "too few"])
                case 27:
                    writer.writerow([f"s{number - 1}", "X", "taken"])
                case 37:
                    writer.writerow([f"S\x07{number}", "X", "control"])
                case _:
                    writer.writerow([f"S{number}", "X", "说明" * 20])
                    good.add(f"S{number}")
                    continue
            bad.append(line)
    return good, bad


def lines_of(errors: Path) -> list[int]:
    with errors.open(encoding="utf-8", newline="") as file:
        return [int(row["_line"]) for row in csv.DictReader(file)]


def wait_for_chunk(state: Path, chunk: int, process: subprocess.Popen[bytes]) -> bool:
    """Until the import has noted that chunk; False when it ended before."""
    while process.poll() is None:
        try:
            if json.loads(state.read_text())["chunk"] >= chunk:
                return True
        except FileNotFoundError:
            pass
        time.sleep(0.002)
    return False


def test_an_import_that_is_killed_again_and_again_registers_all_and_nothing_twice(
    shell: Shell,
) -> None:
    shell("prefix", "home", "88.118.32", "--tenant", "acme")
    good, bad = catalogue(shell.folder / "c.csv")
    command = ("import", "c.csv", "--prefix", "88.118.32", "--suffix", "{serial}", "--chunk", "100")
    state = shell.folder / "c.csv.import-state.json"
    kills = 0
    for chunk in (1, 9, 10, 22, 35):
        process = shell.start(*command)
        if wait_for_chunk(state, chunk, process):
            process.kill()
            kills += 1
        process.communicate()
    assert kills >= 3, "it was too quick to be killed; give it more rows"
    process = shell.start(*command)
    assert wait_for_chunk(state, 36, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert b"Run the same command again" in told
    process = shell.start(*command)
    out, told = process.communicate()
    assert process.returncode == 1, told
    assert f"{ROWS:,} rows, {len(good):,} registered, {len(bad):,} bad" in out.decode()
    records = shell.records("88.118.32")
    assert {record.identifier.suffix for record in records} == good
    assert {record.version for record in records} == {1}
    assert lines_of(shell.folder / "c.errors.csv") == bad
    assert not state.exists()


def test_an_import_outlives_the_death_of_its_node(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node()
    node.home("88.118.33")
    shell = Shell(node, tmp_path)
    good, bad = catalogue(tmp_path / "c.csv")
    command = ("import", "c.csv", "--prefix", "88.118.33", "--suffix", "{serial}", "--chunk", "100")
    state = tmp_path / "c.csv.import-state.json"
    process = shell.start(*command)
    assert wait_for_chunk(state, 5, process)
    node.kill()
    _, told = process.communicate(timeout=90)
    assert process.returncode == 3, told
    assert b"goes on where it stopped" in told
    node.start()
    process = shell.start(*command)
    process.communicate(timeout=90)
    assert process.returncode == 1
    assert {record.identifier.suffix for record in shell.records("88.118.33")} == good
    assert lines_of(tmp_path / "c.errors.csv") == bad


def test_a_dry_run_a_refused_file_and_a_mended_one(shell: Shell) -> None:
    shell("prefix", "home", "88.118.34", "--tenant", "acme")
    good, bad = catalogue(shell.folder / "c.csv", 400)
    command = ("import", "c.csv", "--prefix", "88.118.34", "--suffix", "{serial}", "--chunk", "50")
    out = shell(*command, "--dry-run", code=1)
    assert f"{len(good)} would be registered, {len(bad)} bad" in out
    assert lines_of(shell.folder / "c.errors.csv") == bad
    assert "nothing was written" in shell(*command, "--mode", "all", code=1)
    assert shell.records("88.118.34") == []
    shell(*command, "--errors", "bad.csv", code=1)
    assert len(shell.records("88.118.34")) == len(good)
    with (shell.folder / "bad.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["serial"] = f"mended{number}"
    with (shell.folder / "bad.csv").open("w", encoding="utf-8", newline="") as out_file:
        writer = csv.DictWriter(out_file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    mended = shell("import", "bad.csv", "--prefix", "88.118.34", "--suffix", "{serial}")
    assert f"{len(bad)} registered, 0 bad" in mended
    assert len(shell.records("88.118.34")) == len(good) + len(bad)
    shell("import", "c.csv", "--prefix", "88.999.1", "--suffix", "{serial}", code=1)
    assert "prefix-not-here" in shell.errors, "said once, not for every row"


def test_an_export_holds_everything_and_imports_again(shell: Shell) -> None:
    for prefix in ("88.118.35", "88.118.36"):
        shell("prefix", "home", prefix, "--tenant", "acme")
    shell("register", "88.118.35/a", "URL=https://a.example", 'note=two\nlines, "quoted"')
    shell("register", "88.118.35/b", '{"type": "raw", "data": {"format": "hex", "value": "ff00"}}')
    shell("register", "88.118.35/c", "HS_SECKEY=s3", "--status", "draft")
    shell("register", "88.118.35/d", "URL=gone")
    shell("retire", "88.118.35/d")
    exported = [json.loads(line) for line in shell("export", "88.118.35").splitlines()]
    assert [record["identifier"][-1] for record in exported] == ["a", "b", "c", "d"]
    several = shell("export", "88.118.36", "88.118.35").splitlines()
    assert [json.loads(line) for line in several] == exported
    assert set(several) <= set(shell("export").splitlines()), "of all prefixes"
    batch = shell("export", "88.118.35", "--format", "handle")
    assert "CREATE 88.118.35/a\n1 URL 86400 1110 UTF8 https://a.example\n" in batch
    assert "3 records, 2 values" in shell.errors
    shell("export", "88.118.35", "--format", "xml", code=2)
    shell("export", "88.118.35", "--format", "csv", "-o", "x.csv")
    assert "x.csv: 4 records" in shell.errors
    sheet = (shell.folder / "x.csv").read_text()
    (shell.folder / "x.csv").write_text(sheet.replace("88.118.35/", "88.118.36/"))
    assert "3 registered, 1 bad" in shell("import", "x.csv", code=1)
    before, after = shell.records("88.118.35"), shell.records("88.118.36")
    assert [(r.status, [(v.index, v.type, v.data) for v in r.values]) for r in before[:3]] == [
        (r.status, [(v.index, v.type, v.data) for v in r.values]) for r in after
    ]


def test_output_that_nobody_reads_is_no_error(shell: Shell) -> None:
    process = shell.start("changes", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_terminal_sees_a_progress_bar(shell: Shell) -> None:
    shell("prefix", "home", "88.118.37", "--tenant", "acme")
    catalogue(shell.folder / "c.csv", 200)
    ours, theirs = pty.openpty()
    process = shell.start(
        "import", "c.csv", "--prefix", "88.118.37", "--suffix", "{serial}", stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65_536):
            shown += piece
    except OSError:  # the other end is closed: Linux says so with EIO
        pass
    os.close(ours)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "180 registered, 20 bad" in out.decode()
    assert "100 %" in shown.decode()
    assert "200 rows, 20 bad" in shown.decode()
