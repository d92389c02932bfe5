"""A real node in a process of its own, on a free port, for the tests of this folder."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Postgres
from tests.system.described import Described, end_of_log, metrics, total

START_S = 20.0
REQUESTS = "biaojie_requests_total"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])


@dataclass
class RunningNode:
    """`ask()` makes one request on a connection of its own; `key` is the first admin key."""

    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    demo: bool = False
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    handle_port: int = 0
    native_port: int = 0
    shared: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def native_url(self) -> str:
        return f"biaojie://127.0.0.1:{self.native_port}"

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def log(self) -> str:
        return (self.data_dir / "node.log").read_text(errors="replace")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "resolver", *arguments]

    def settings(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BIAOJIE_")}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start would compile the program anew
        return kept | {
            "BIAOJIE_DATA_DIR": str(self.data_dir),
            "BIAOJIE_PORT": str(self.port),
            "BIAOJIE_HANDLE_PORT": str(self.handle_port),
            "BIAOJIE_NATIVE_PORT": str(self.native_port),
            **self.environment,
        }

    def migrate(self) -> None:
        subprocess.run(self.command("migrate"), env=self.settings(), check=True, timeout=60)

    def start(self) -> None:
        """Start and wait until it serves. A second start takes the same ports."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        before = len(self.log) if (self.data_dir / "node.log").exists() else 0
        with (self.data_dir / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command("serve", *(["--demo"] if self.demo else [])),
                env=self.settings(),
                stdout=subprocess.PIPE,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for line in self.log[before:].splitlines():
                if '"event": "serving"' in line:
                    event = json.loads(line)
                    self.port, self.handle_port = event["port"], event["handle_port"]
                    self.native_port = event.get("native_port", 0)
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the node did not start:\n{self.log[before:][-3000:]}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> int:
        """Graceful; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = "",
        timeout_s: float = 15,
        **headers: str,
    ) -> Reply:
        """`key=""` sends the admin key, None sends none. `body` is JSON unless bytes.

        Header names are given with `_` for `-`.
        """
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key or self.key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def home(self, prefix: str, tenant: str = "acme") -> None:
        reply = self.ask("POST", "/api/v1/prefixes", {"prefix": prefix, "tenant": tenant})
        assert reply.status == 201, reply.body

    def issue(self, role: str, tenant: str = "acme") -> str:
        reply = self.ask("POST", "/api/v1/keys", {"role": role, "tenant": tenant})
        assert reply.status == 201, reply.body
        return str(reply.json["key"])


@pytest.fixture(scope="session")
def _nodes() -> Iterator[list[RunningNode]]:
    nodes: list[RunningNode] = []
    yield nodes
    _stop(nodes)


@pytest.fixture(scope="module", autouse=True)
def _nodes_of_the_module(_nodes: list[RunningNode]) -> Iterator[None]:
    """Many idle nodes together keep a small machine busy: they end with who made them."""
    first = len(_nodes)
    yield
    _stop([node for node in _nodes[first:] if not node.shared])


def _stop(nodes: list[RunningNode]) -> None:
    for node in nodes:
        if node.process is not None and node.process.poll() is None:
            node.stop()


@pytest.fixture(scope="session")
def make_node(
    tmp_path_factory: pytest.TempPathFactory, _migrated_file: Path, _nodes: list[RunningNode]
) -> Callable[..., RunningNode]:
    """make_node(demo=False, **settings) starts a node; settings without `BIAOJIE_`, lower case.

    On a migrated SQLite file of its own, unless `database_url` names a migrated database. With
    start=False nothing is there yet.
    """

    def make(*, demo: bool = False, start: bool = True, **settings: object) -> RunningNode:
        environment = {f"BIAOJIE_{name.upper()}": str(value) for name, value in settings.items()}
        node = RunningNode(tmp_path_factory.mktemp("node") / "data", environment, demo)
        _nodes.append(node)
        if start:
            if "database_url" not in settings:
                node.data_dir.mkdir()
                shutil.copy(_migrated_file, node.data_dir / "registry.db")
            node.start()
        return node

    return make


@pytest.fixture(scope="session")
def node(make_node: Callable[..., RunningNode]) -> RunningNode:
    """One node on SQLite, shared by tests that do not disturb each other.

    Prefix 88.118.8 belongs to tenant acme, 88.118.9 to globex.
    """
    shared = make_node()
    shared.shared = True
    shared.home("88.118.8", "acme")
    shared.home("88.118.9", "globex")
    return shared


@pytest.fixture(scope="session")
def postgres_node(
    make_node: Callable[..., RunningNode], postgres: Postgres, _migrated_template: str
) -> RunningNode:
    """As `node`, on PostgreSQL."""
    database = postgres.create_database(_migrated_template)
    shared = make_node(database_url=postgres.url(database))
    shared.shared = True
    shared.home("88.118.8", "acme")
    shared.home("88.118.9", "globex")
    return shared


@pytest.fixture(scope="session")
def api(node: RunningNode) -> Described:
    """An admin's client of `node` that holds every reply against the node's description."""
    return Described(node.port, node.key)


@pytest.fixture
def unharmed(api: Described, node: RunningNode) -> Iterator[Described]:
    """`api` for tests that must leave nothing behind: neither log entries nor internal errors."""
    before = end_of_log(api)
    yield api
    assert node.process is not None
    assert node.process.poll() is None
    assert end_of_log(api) == before
    assert total(metrics(api, REQUESTS), REQUESTS, outcome="internal") == 0
