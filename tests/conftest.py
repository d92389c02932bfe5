"""Settings of the whole suite, and the databases any test may ask for.

Hypothesis draws the same examples on every run. The databases are real, migrated, and fresh
for each test:

- `postgres`      the session's PostgreSQL server (tests.postgres.Postgres): .url(), .pid,
                  .execute(), .create_database(). Never kill or freeze this one; make your own.
- `postgres_url`  URL of an empty, migrated database on it, dropped after the test.
- `sqlite_url`    URL of an empty, migrated SQLite file in the test's tmp_path.
- `database_url`  either of the two: the test runs once on each.
- `primary`, `standby`  the file's own server and one that streams from it: these may be frozen
                  and killed. The primary's first database is migrated.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from registry.sql import migrate
from tests.postgres import Postgres, Standby, run_apart

settings.register_profile(
    "biaojie",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("biaojie")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def _migrated_template(postgres: Postgres) -> str:
    name = postgres.create_database()
    run_apart(migrate(postgres.url(name)))
    return name


@pytest.fixture
def postgres_url(postgres: Postgres, _migrated_template: str) -> Iterator[str]:
    name = postgres.create_database(_migrated_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "registry.db"
    run_apart(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def sqlite_url(_migrated_file: Path, tmp_path: Path) -> str:
    path = tmp_path / "registry.db"
    shutil.copy(_migrated_file, path)
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(
        {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    )
    return url


@pytest.fixture(scope="module")
def primary() -> Iterator[Postgres]:
    server = Postgres()
    try:
        run_apart(migrate(server.url()))
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def standby(primary: Postgres) -> Iterator[Standby]:
    server = Standby(primary)
    try:
        yield server
    finally:
        server.close()


# A shell starts what runs in its background with SIGINT ignored, and children inherit that: the
# tests that interrupt a program must find it as a person at a terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)


_died: list[object] = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Tests of a process that died were never run, whatever the others say of theirs."""
    if error:
        _died.append(error)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _died:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
