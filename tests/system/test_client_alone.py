"""The client library by itself: built, installed into a bare virtualenv, and put to work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python"


def run(*command: str | Path, cwd: Path) -> str:
    """Runs without sight of the repository; returns what it printed."""
    environment = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "BIAOJIE"))
    }
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel made from that archive."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, CLIENT, cwd=out)
    return out


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtualenv that has the wheel and what it needs."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home / "env", with_pip=True)
    interpreter = home / "env" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    run(interpreter, "-m", "pip", "install", "--quiet", wheel, cwd=home)
    return interpreter


def test_the_archives_hold_the_library_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    mine = {name for name in names if ".dist-info/" not in name}
    assert mine == {
        str(path.relative_to(CLIENT))
        for path in (CLIENT / "biaojie").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (sources,) = built.glob("*.tar.gz")
    with tarfile.open(sources) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert tops <= {"biaojie", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}


def test_one_version_for_node_and_client(built: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"biaojie_client-{project['version']}-")


LISTING = """
import json, re
from importlib.metadata import distributions
needs = {}
for found in distributions():
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    needs[name] = [
        re.sub(r"[-_.]+", "-", re.match(r"[\\w.-]+", text)[0]).lower()
        for text in found.requires or ()
        if "extra ==" not in text
    ]
print(json.dumps(needs))
"""


def test_it_brings_only_aiohttp_and_msgpack(python: Path, tmp_path: Path) -> None:
    needs: dict[str, list[str]] = json.loads(run(python, "-c", LISTING, cwd=tmp_path))
    assert sorted(needs["biaojie-client"]) == ["aiohttp", "msgpack"]
    wanted, todo = set(), ["biaojie-client"]
    while todo:
        name = todo.pop()
        if name in needs and name not in wanted:
            wanted.add(name)
            todo += needs[name]
    assert set(needs) - {"pip", "setuptools", "wheel"} == wanted


@pytest.mark.parametrize("module", ["biaojie", "biaojie.wire.document", "biaojie.record"])
def test_a_codec_does_not_drag_the_client_in(python: Path, tmp_path: Path, module: str) -> None:
    program = f"""
import sys, {module}
print([name for name in ("aiohttp", "yarl", "asyncio", "ssl", "socket") if name in sys.modules])
"""
    assert run(python, "-c", program, cwd=tmp_path) == "[]\n"


WORK = """
import asyncio, sys
from biaojie import Client, SyncClient, __file__
from biaojie.errors import IdentifierNotFound, IdentifierTaken
url, key = sys.argv[1:]
assert "site-packages" in __file__, __file__

async def main():
    async with Client(url, key) as client:
        receipt = await client.register("hdl:88.118.8/客户端-1", {"URL": "https://acme.example/1"})
        found = await client.resolve("88.118.8/客户端-1")
        assert found.record.first("URL").text == "https://acme.example/1"
        assert found.record.version == receipt.version == 1
        try:
            await client.register("88.118.8/客户端-1", {})
        except IdentifierTaken:
            print("taken")

asyncio.run(main())
with SyncClient(url, key) as client:
    print(client.resolve("88.118.8/客户端-1").record.identifier)
    try:
        client.resolve("88.118.8/nobody")
    except IdentifierNotFound as error:
        print(error.code)
"""


def test_it_registers_and_resolves(python: Path, node: RunningNode, tmp_path: Path) -> None:
    out = run(python, "-X", "utf8", "-c", WORK, node.url, node.key, cwd=tmp_path)
    assert out.splitlines() == ["taken", "88.118.8/客户端-1", "identifier-not-found"]
