"""A start loads what serving needs and no more: who is not asked for it does not wait for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

NOT_NEEDED = frozenset(
    {
        "OpenSSL",
        "alembic",
        "asyncpg",
        "bench",
        "biaojie.client",
        "cryptography",
        "jinja2",
        "resolver.commands",
        "rich.console",
        "segno",
    }
)
_IMPORT = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def test_what_a_start_imports(make_node: Callable[..., RunningNode]) -> None:
    node = make_node(start=False)
    node.data_dir.mkdir()
    node.migrate()
    node.start()  # the first makes keys, which takes cryptography
    node.stop()
    seen = len(node.log)
    node.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    node.start()
    imported = set(_IMPORT.findall(node.log[seen:]))
    assert {"resolver.node", "aiohttp", "sqlalchemy", "structlog"} <= imported
    assert imported & NOT_NEEDED == set()
    # What was left out is there when it is asked for.
    assert b"</html>" in node.ask("GET", "/", key=None, Accept="text/html").body
    assert "jinja2" in _IMPORT.findall(node.log[seen:])


def test_tracebacks_on_a_terminal_show_no_variables() -> None:
    code = """
from resolver.logs import configure_logging
import structlog
configure_logging("info", "console")
def fail(key):
    raise ValueError("no")
try:
    fail("bj_" + "secret")
except ValueError:
    structlog.get_logger("x").exception("it failed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert "ValueError: no" in done.stderr
    assert "bj_secret" not in done.stderr


def test_the_bench_of_starts(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    told = subprocess.run(
        [sys.executable, "-m", "bench.startup", "--starts", "1", "--no-write", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (one,) = json.loads(file.read_text())["starts"]["1"]
    assert 0 < one["answer_s"] <= one["ready_s"]
    assert one["cpu_s"] > 0
    assert "| 1 |" in told.stdout
