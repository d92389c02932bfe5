"""Values ← pure codecs ← I/O ← programs ← roots: who may import whom, read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VALUES = "errors|limits|making|identifier|range|record|account|change"
STDLIB = "|".join(sys.stdlib_module_names)
IO = "asyncio|socket|ssl|selectors|select|http|urllib.request|subprocess|threading|multiprocessing"

# yarl is the address type in aiohttp's own signatures and comes with it.
# Files (by path without ".py") · what they may not import (by dotted name) · why.
RULES = [
    (
        r"biaojie/(?!keys/)",
        rf"(?!({STDLIB}|msgpack|aiohttp|yarl|biaojie)\b)",
        "the library stands alone",
    ),
    (
        r"biaojie/keys/",
        rf"(?!({STDLIB}|cryptography|gmssl_pyx|biaojie)\b)",
        "keys rest on cryptography alone",
    ),
    (r"biaojie/keys/", rf"({IO}|biaojie\.(?!({VALUES}|wire|keys)\b))", "keys do no I/O"),
    (
        r"biaojie/(?!http_|transport$|client$)",
        "(aiohttp|yarl)",
        "a codec or value needs no HTTP stack",
    ),
    (r"biaojie/", r"aiohttp\.(web|test_utils)", "the library serves nobody"),
    (
        rf"biaojie/({VALUES}|wire/.+)$",
        rf"({IO}|time|random|secrets|logging)",
        "sans I/O, no clock",
    ),
    (rf"biaojie/({VALUES})$", rf"biaojie\.(?!({VALUES})\b)", "values rest on values"),
    (r"biaojie/wire/", rf"biaojie\.(?!({VALUES}|wire)\b)", "codecs rest on values"),
    (r"registry/", "resolver", "the registry knows no server"),
    (
        r"(?!registry/sql/|bench/(registry_limits$|peers/|loading/))",
        "(sqlalchemy|alembic|asyncpg|aiosqlite)",
        "SQL stays in registry/sql",
    ),
    (r"(?!registry/sql/)(?!.*__main__$)", r"registry\.sql", "only roots choose a store"),
    (
        r"(?!biaojie/|resolver/front/http/|bench/peers/)",
        "aiohttp",
        "the framework stays in its front; a bare one is a peer to measure against",
    ),
    (
        r"resolver/(core|exchange|lane|service|tail|health|observe|steps/)",
        r"resolver\.(front|node|commands)",
        "what is served knows no front",
    ),
    # The peers run from a checkout only, and borrow its PostgreSQL.
    (r"(?!bench/peers/)", "tests", "nothing rests on tests"),
    (r"(?!bench/|resolver/__main__$)", "bench", "only the root attaches the bench's commands"),
    (
        r"bench/(?!peers/|loading/|registry_limits$)",
        "(resolver|registry)",
        "the load generator sees a node from outside",
    ),
    (
        r"bench/loading/",
        "resolver",
        "loading measures the registry's own entrance, at sizes no client could send in time",
    ),
]


def imports(path: str, source: str) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` counts as `a` and as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.split("/")[: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def faults(path: str, source: str) -> list[str]:
    """What `source`, kept at `path` (`package/module`, without ".py"), may not import."""
    return [
        f"{path} imports {name}: {why}"
        for name in sorted(set(imports(path, source)))
        for where, forbidden, why in RULES
        if re.match(where, path) and re.match(rf"{forbidden}(?:\b|$)", name)
    ]


def _sources() -> Iterator[tuple[str, str]]:
    packages = ((".", "registry"), (".", "resolver"), (".", "bench"), ("clients/python", "biaojie"))
    for base, package in packages:
        for file in sorted((ROOT / base / package).rglob("*.py")):
            yield file.relative_to(ROOT / base).with_suffix("").as_posix(), file.read_text()


def test_no_file_imports_what_it_may_not() -> None:
    sources = dict(_sources())
    assert {"biaojie/wire/document", "registry/changelog", "resolver/core"} <= sources.keys()
    found = [fault for path, source in sources.items() for fault in faults(path, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("biaojie/record", "import pydantic"),
        ("biaojie/client", "from registry.store import Store"),
        ("biaojie/sync", "import resolver"),
        ("biaojie/http_transport", "from aiohttp import web"),
        ("biaojie/retry", "import aiohttp"),
        ("biaojie/wire/document", "def f():\n    from aiohttp import ClientSession"),
        ("biaojie/wire/handle/keys", "from cryptography import x509"),
        ("biaojie/keys/pem", "import msgpack"),
        ("biaojie/keys/session", "from ..client import Client"),
        ("biaojie/keys/keyfile", "import socket"),
        ("biaojie/wire/handle", "import asyncio"),
        ("biaojie/wire/handle", "from socket import inet_aton"),
        ("biaojie/wire/handle", "import time"),
        ("biaojie/wire/dns", "import random"),
        ("biaojie/wire/dns", "import logging.handlers"),
        ("biaojie/wire/dns", "from ..client import Client"),
        ("biaojie/identifier", "import time"),
        ("biaojie/identifier", "from .wire import document"),
        ("biaojie/identifier", "from . import client"),
        ("registry/registrar", "from resolver.core import resolve"),
        ("registry/registrar", "from .sql import open_store"),
        ("registry/registrar", "from . import sql"),
        ("registry/memory", "import sqlalchemy as sa"),
        ("registry/memory", "from aiohttp import web"),
        ("resolver/steps/local", "from registry.sql.store import SqlStore"),
        ("resolver/steps/local", "from registry import sql"),
        ("resolver/steps/local", "import asyncpg"),
        ("resolver/commands/verify", "from registry.sql import open_store"),
        ("resolver/exchange", "from aiohttp.web import Request"),
        ("resolver/front/handle/server", "import aiohttp"),
        ("resolver/core", "from .front.http import server"),
        ("resolver/core", "from bench.load import run"),
        ("registry/registrar", "import bench"),
        ("bench/run", "from resolver.settings import load"),
        ("bench/prepare", "from registry.registrar import Registrar"),
        ("bench/loading/loader", "from resolver.service import Service"),
        ("bench/loading/loader", "from registry.sql import open_store"),
        ("bench/engine", "import aiohttp"),
        ("resolver/__main__", "from tests import conftest"),
    ],
)
def test_each_rule_can_fail(path: str, source: str) -> None:
    assert faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("biaojie/http_transport", "import aiohttp, asyncio, time"),
        ("biaojie/wire/native", "import msgpack, struct\nfrom ..record import Record"),
        (
            "biaojie/wire/document",
            "from .problem import encode_error\nfrom urllib.parse import quote",
        ),
        ("biaojie/record", "from .identifier import Identifier"),
        ("biaojie/keys/signing", "from cryptography import x509\nfrom ..wire.handle import keys"),
        ("registry/sql/store", "import sqlalchemy, asyncpg\nfrom .tables import records"),
        ("bench/registry_limits", "import asyncpg, sqlite3"),
        ("registry/__main__", "from registry.sql import open_store"),
        (
            "resolver/__main__",
            "from registry.sql import open_store\nfrom .front.http import server",
        ),
        ("resolver/front/http/server", "from aiohttp import web\nfrom ...service import Service"),
        ("resolver/__main__", "from bench.commands import app"),
        ("bench/loading/loader", "from registry.registrar import Registrar"),
        ("bench/loading/__main__", "from registry.sql import open_store"),
        ("bench/run", "from biaojie.client import Client\nfrom .engine import Engine"),
    ],
)
def test_what_the_rules_allow(path: str, source: str) -> None:
    assert faults(path, source) == []


@pytest.mark.parametrize("module", ["biaojie", "biaojie.wire.document", "biaojie.record"])
def test_importing_a_codec_loads_no_http_stack(module: str) -> None:
    code = f"import sys, {module}; print({{'aiohttp', 'asyncio', 'ssl'}} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "set()"
