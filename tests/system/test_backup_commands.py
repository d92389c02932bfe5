"""The drill an operator does: a registry is backed up while in use, lost, restored and moved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.core_parts import create, home, opened, registering, write


def biaojie(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "resolver", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


async def test_the_drill(tmp_path: Path, postgres_url: str) -> None:
    data, file = tmp_path / "data", tmp_path / "a.bak"
    biaojie("migrate", "--data-dir", data)
    database = data / "registry.db"
    async with opened(f"sqlite:///{database}") as store, registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}") for n in range(50)))
        said, counted = biaojie("backup", file, "--data-dir", data)
        assert "records: 50" in counted
        lines = dict(line.split(" ", 1) for line in said.splitlines())
        await write(registrar, create("LOST"))

    shutil.rmtree(data)
    (data := tmp_path / "new").mkdir()
    (data / "log-witness.json").write_text('{"sequence": 3, "hash": "00"}')
    digest = lines["digest"]
    _, wrong = biaojie("restore", file, "--data-dir", data, "--digest", "00" * 32, code=3)
    assert digest in wrong
    assert "摘要" in wrong
    said, warned = biaojie("restore", file, "--data-dir", data, "--digest", digest)
    assert [line for line in said.splitlines() if line.startswith("root ")] == [
        f"root {lines['root']}"
    ]
    assert "saw entry 3: the 1 after" in warned
    assert "丢失" in warned
    said, _ = biaojie("verify", "--data-dir", data, code=1)
    assert "the witness saw entry 3" in said
    (data / "log-witness.json").unlink()
    said, _ = biaojie("verify", "--data-dir", data)
    assert "50 records" in said

    _, refused = biaojie("move", data / "registry.db", data / "registry.db", code=3)
    assert "相同" in refused
    said, _ = biaojie("move", data / "registry.db", postgres_url)
    assert f"root {lines['root']}" in said
    said, _ = biaojie("verify", "--database-url", postgres_url)
    assert "50 records" in said
    _, refused = biaojie("restore", file, "--database-url", postgres_url, code=3)
    assert "--overwrite" in refused

    file.write_bytes(file.read_bytes()[:-100])
    _, refused = biaojie("restore", file, "--database-url", postgres_url, "--overwrite", code=3)
    assert "cut off" in refused
    assert "截断" in refused
    said, _ = biaojie("verify", "--database-url", postgres_url)
    assert "50 records" in said


async def test_an_export_without_a_node(tmp_path: Path, database_url: str) -> None:
    async with opened(database_url) as store, registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}") for n in range(3)), create("T", "two\nlines"))
    said, _ = biaojie("export", "--direct", "--database-url", database_url)
    assert [json.loads(line)["identifier"] for line in said.splitlines()] == [
        "88.118.8/S0",
        "88.118.8/S1",
        "88.118.8/S2",
        "88.118.8/T",
    ]
    file = tmp_path / "x.hdl"
    direct = ("--direct", "--database-url", database_url)
    _, told = biaojie("export", "88.118.8", *direct, "--format", "handle", "-o", file)
    assert "3 records" in told
    assert "1 records, 1 values" in told
    assert file.read_text().count("CREATE ") == 3
    _, refused = biaojie("export", "88.118.9", *direct, "-o", tmp_path / "no", code=1)
    assert "prefix-not-here" in refused
    assert os.listdir(tmp_path).count("no") == 0
