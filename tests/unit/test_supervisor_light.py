"""The supervisor holds nothing of a node: it starts quickly, and stays small."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "aiohttp",
    "sqlalchemy",
    "uvloop",
    "cryptography",
    "asyncpg",
    "jinja2",
    "prometheus_client",
)


def test_a_supervisor_imports_no_server() -> None:
    code = (
        "import sys, resolver.__main__, resolver.logs, resolver.settings, resolver.supervisor,"
        " resolver.worker_launch, resolver.worker_sockets;"
        f" print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
