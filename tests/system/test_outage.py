"""The registry's database stops, dies or hangs: warm names go on, nobody waits, nothing is lost."""

from __future__ import annotations

import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING

import pytest

from registry.sql import migrate
from tests.postgres import Postgres, run_apart
from tests.system.described import IDS, URL, Described, metrics, path, total
from tests.system.wire import Answer, Wire, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]
DEADLINE_S = 2.0
MARGIN_S = 1.5
"""For a busy machine. What a call waits for here takes 1.5 s or for ever: see AT_ONCE_S."""
AT_ONCE_S = 1.0
WARM = 40


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL of our own, to be hurt."""
    own = Postgres()
    try:
        run_apart(migrate(own.url()))
        yield own
    finally:
        own.close()


@pytest.fixture(scope="module")
def pair(make_node: Make, server: Postgres) -> Iterator[tuple[RunningNode, RunningNode]]:
    """Two nodes on one database."""
    first = make_node(database_url=server.url(), slow_request_s=5)
    first.home("88.118.8", "acme")
    first.home("88.118.9", "globex")
    second = make_node(database_url=server.url(), slow_request_s=5)
    yield first, second
    for node in (first, second):
        node.stop()


def timed(api: Described, method: str, target: str, *more: object, **headers: str) -> Answer:
    """One call, which must end within the deadline whatever the registry does."""
    began = time.monotonic()
    answer = api.ask(method, target, *more, **headers)
    assert time.monotonic() - began < DEADLINE_S + MARGIN_S, (method, target)
    return answer


def source(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.headers["biaojie-source"]


FAULTS: dict[str, tuple[Callable[[Postgres], None], Callable[[Postgres], None]]] = {
    "frozen": (Postgres.freeze, Postgres.thaw),
    "killed": (Postgres.kill, Postgres.start),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_database_that_is_gone(
    pair: tuple[RunningNode, RunningNode], server: Postgres, fault: str
) -> None:
    node, other = pair
    admin = Described(node.port, node.key)
    reader = Described(node.port, node.issue("reader"))
    public = Described(node.port)
    names = [path(f"{fault}-{number}") for number in range(WARM)]
    for name in names:
        # Half of them are too old to be served as fresh at once.
        ttl = 0 if name.endswith("1") else 3600
        written = admin.ask("PUT", name, {"values": [URL | {"ttl": ttl}]})
        assert written.status == 201
    until(lambda: metrics(public)[("biaojie_log_sequence", ())] >= written.json["sequence"])
    for name in names:
        assert public.ask("GET", name).status == 200
    assert reader.ask("GET", names[0]).status == 200
    harm, heal = FAULTS[fault]
    harm(server)
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(16) as pool:
            # From the first moment: everything is answered in time, warm names with what is known.
            warm = [pool.submit(timed, public, "GET", name) for name in names]
            keyed = [pool.submit(timed, reader, "GET", name) for name in names[:10]]
            cold = [pool.submit(timed, public, "GET", path(f"{fault}-cold-{n}")) for n in range(10)]
            writes = [
                pool.submit(
                    timed,
                    admin,
                    "PUT",
                    path(f"{fault}-w{n}"),
                    {"values": [URL]},
                    Idempotency_Key=f"{fault}-w{n}",
                )
                for n in range(5)
            ]
            assert {source(call.result()) for call in warm + keyed} <= {"cache", "stale"}
            assert {call.result().code for call in cold} == {"temporarily-unavailable"}
            assert {call.result().status for call in writes} <= {503, 504}
        until(lambda: source(public.ask("GET", names[0])) == "stale", timeout_s=4)

        # Once it is known to be gone nobody waits for it.
        while time.monotonic() - began < 5:
            for name in names:
                before = time.monotonic()
                answer = public.ask("GET", name)
                assert time.monotonic() - before < AT_ONCE_S
                assert source(answer) == "stale"
                age = int(answer.headers["cache-control"].removeprefix("public, max-age="))
                assert age <= 30
            assert source(timed(reader, "GET", names[0])) == "stale"
            before = time.monotonic()
            unknown = public.ask("GET", path(f"{fault}-unknown"))
            assert (unknown.status, unknown.code) == (503, "temporarily-unavailable")
            assert unknown.headers["cache-control"] == "no-store"
            assert time.monotonic() - before < AT_ONCE_S
        kept = public.ask("GET", names[0], If_None_Match="*")
        assert kept.status == 200  # stale answers are not confirmed
        asked = {"identifiers": ["88.118.8/" + names[0].rpartition("/")[2], "88.118.8/nobody"]}
        items = timed(public, "POST", IDS + ":resolve", asked).json["items"]
        assert "record" in items[0]
        assert items[1]["code"] == "temporarily-unavailable"
        page = timed(public, "GET", names[0].removeprefix(IDS), Accept="text/html")
        assert page.status == 200
        for target in (
            "/api/v1/prefixes",
            "/api/v1/keys",
            "/api/v1/changes",
            "/api/v1/changes?wait=30",
            IDS + "?prefix=88.118.8",
            names[0] + "?auth=1",
        ):
            assert timed(admin, "GET", target).status in (503, 504), target
        for method, target, body in (
            ("PUT", path(f"{fault}-w9"), {"values": []}),
            ("POST", IDS, {"prefix": "88.118.8", "values": []}),
            ("DELETE", names[0], None),
            ("POST", "/api/v1/keys", {"role": "reader", "tenant": "acme"}),
        ):
            assert timed(admin, method, target, body).status in (503, 504), target
        assert public.ask("GET", "/readyz").json == {"status": "registry-down"}
        assert public.ask("GET", "/healthz").status == 200
        assert metrics(public)[("biaojie_registry_down", ())] == 1
    finally:
        heal(server)
    back = time.monotonic()
    until(lambda: source(public.ask("GET", names[0])) in ("store", "cache"))
    until(lambda: admin.ask("PUT", path(f"{fault}-back"), {"values": []}).status in (200, 201))
    theirs = Described(other.port, node.key)
    until(lambda: theirs.ask("PUT", names[2], {"values": [URL | {"data": "new"}]}).status == 200)
    until(lambda: public.ask("GET", names[2]).json["values"][0]["data"] == "new")
    assert time.monotonic() - back < 5
    assert public.ask("GET", path(f"{fault}-unknown")).code == "identifier-not-found"
    # A retry of what nobody knew the end of: done once, whether then or now.
    for number in range(5):
        target = path(f"{fault}-w{number}")
        again = admin.ask("PUT", target, {"values": [URL]}, Idempotency_Key=f"{fault}-w{number}")
        assert (again.status, again.json["version"]) == (201, 1)
    for one in (node, other):
        assert (
            total(metrics(Described(one.port)), "biaojie_requests_total", outcome="internal") == 0
        )
        assert "Traceback" not in one.log


def test_connections_cut_by_the_database(
    pair: tuple[RunningNode, RunningNode], server: Postgres
) -> None:
    node, _ = pair
    admin = Described(node.port, node.key)
    for round_ in range(5):
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'biaojie'"
        )
        written = timed(admin, "PUT", path(f"cut-{round_}"), {"values": [URL]})
        assert written.status in (201, 503)
        assert timed(admin, "GET", path(f"never-{round_}")).status in (404, 503)
        until(lambda: admin.ask("GET", "/readyz").json == {"status": "ok"})


def test_a_change_on_one_node_shows_on_the_other(pair: tuple[RunningNode, RunningNode]) -> None:
    node, other = pair
    ours, theirs = Described(node.port, node.key), Described(other.port)
    waits = []
    for round_ in range(8):
        body = {"values": [URL | {"data": f"round {round_}", "ttl": 3600}]}
        assert ours.ask("PUT", path("shared"), body).status in (200, 201)
        began = time.monotonic()
        until(
            lambda text=f"round {round_}": (
                theirs.ask("GET", path("shared")).json.get("values", [{}])[0].get("data") == text
            )
        )
        waits.append(time.monotonic() - began)
        assert theirs.ask("GET", path("shared")).headers["biaojie-source"] == "cache"
    assert median(waits) < 0.6, waits
    assert max(waits) < 2, waits
    assert ours.ask("DELETE", path("shared")).status == 200
    until(lambda: theirs.ask("GET", path("shared")).status == 410, timeout_s=2)
    assert theirs.ask("GET", path("absent-yet")).status == 404
    assert ours.ask("PUT", path("absent-yet"), {"values": [URL]}).status == 201
    until(lambda: theirs.ask("GET", path("absent-yet")).status == 200, timeout_s=2)
    suspended = ours.ask("PATCH", "/api/v1/prefixes/88.118.8", {"status": "suspended"})
    assert suspended.status == 200
    until(lambda: theirs.ask("GET", path("absent-yet")).status == 403, timeout_s=2)
    ours.ask("PATCH", "/api/v1/prefixes/88.118.8", {"status": "active"})
    until(lambda: theirs.ask("GET", path("absent-yet")).status == 200, timeout_s=2)


def test_a_key_revoked_on_one_node_is_refused_by_the_other(
    pair: tuple[RunningNode, RunningNode],
) -> None:
    node, other = pair
    ours = Described(node.port, node.key)
    issued = ours.ask("POST", "/api/v1/keys", {"role": "registrar", "tenant": "acme"}).json
    headers = {"Authorization": f"Bearer {issued['key']}"}

    def refused() -> bool:
        with Wire(other.port, source="127.8.0.1") as wire:
            return wire.ask("GET", "/api/v1/prefixes", headers).status == 401

    assert not refused()
    assert ours.ask("DELETE", f"/api/v1/keys/{issued['id']}").status == 200
    until(refused, timeout_s=5, every_s=0.25)


def test_news_of_one_node_wake_those_who_wait_at_the_other(
    pair: tuple[RunningNode, RunningNode],
) -> None:
    node, other = pair
    ours, theirs = Described(node.port, node.key), Described(other.port, node.key)
    after = ours.ask("PUT", path("wake"), {"values": []}).json["sequence"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(theirs.ask, "GET", f"/api/v1/changes?after={after}&wait=10")
        time.sleep(0.3)
        written = ours.ask("PUT", path("wake"), {"values": []}).json["sequence"]
        began = time.monotonic()
        page = waiting.result(10).json
        assert time.monotonic() - began < 2
    assert [item["sequence"] for item in page["items"]] == [written]


def test_a_sqlite_file_locked_by_another_process(make_node: Make) -> None:
    node = make_node(slow_request_s=5)
    node.home("88.118.8")
    admin, public = Described(node.port, node.key), Described(node.port)
    assert admin.ask("PUT", path("there"), {"values": [URL]}).status == 201
    lock = sqlite3.connect(node.data_dir / "registry.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    lock.execute("UPDATE records SET version = version + 7")
    try:
        for number in range(2):
            refused = timed(
                admin, "PUT", path(f"w{number}"), {"values": []}, Idempotency_Key=f"w{number}"
            )
            assert refused.status in (503, 504)
            # Who reads does not wait for who writes.
            assert source(timed(public, "GET", path("there"))) in ("cache", "store")
            assert timed(public, "GET", path("there") + "?auth=1").json["version"] == 1
            assert timed(public, "GET", path(f"cold-{number}")).status == 404
            assert timed(admin, "GET", IDS + "?prefix=88.118.8").status == 200
    finally:
        lock.execute("ROLLBACK")
        lock.close()

    def settled(number: int) -> bool:
        done = admin.ask("PUT", path(f"w{number}"), {"values": []}, Idempotency_Key=f"w{number}")
        return (done.status, done.json.get("version")) == (201, 1)

    until(lambda: settled(0))
    until(lambda: settled(1))
    assert "Traceback" not in node.log


def test_a_file_that_cannot_grow(make_node: Make) -> None:
    """As on a full disk: reads go on, writes are refused, and it recovers without repair."""
    node = make_node()
    node.home("88.118.8")
    admin, public = Described(node.port, node.key), Described(node.port)
    assert node.process is not None
    largest = max(file.stat().st_size for file in node.data_dir.iterdir())
    limits = resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (largest + 60_000, limits[1]))
    answers = {}
    for number in range(30):
        name = path(f"grown-{number}")
        body = {"values": [URL | {"data": "x" * 5_000}]}
        answers[name] = timed(admin, "PUT", name, body, Idempotency_Key=name)
        assert answers[name].status in (201, 503, 507)
    written = [name for name, answer in answers.items() if answer.status == 201]
    assert 0 < len(written) < 30
    for name in written:
        assert timed(public, "GET", name + "?auth=1").status == 200
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, limits)
    for name in answers:
        body = {"values": [URL | {"data": "x" * 5_000}]}
        again = timed(admin, "PUT", name, body, Idempotency_Key=name)
        assert (again.status, again.json["version"]) == (201, 1)
    assert "Traceback" not in node.log
