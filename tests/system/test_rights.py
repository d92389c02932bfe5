"""Who may do what: every operation of the description by every kind of caller, and no leaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.system.described import IDS, Described, end_of_log, metrics
from tests.system.wire import Answer, Wire, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

CALLERS = ("public", "reader", "registrar", "stranger", "admin", "revoked", "garbage")
"""Reader and registrar belong to tenant acme, which owns 88.118.8; the stranger is registrar of
globex, which owns 88.118.9."""

RULES = """
operation        public  reader  registrar  stranger  admin  revoked  garbage
resolve             200     200        200       200    200      401      401
resolve-many        200     200        200       200    200      401      401
search              200     200        200       200    200      401      401
list                401     200        200       403    200      401      401
register            401     403        201       403    201      401      401
mint                401     403        201       403    201      401      401
put                 401     403        201       403    201      401      401
modify              401     403        200       403    200      401      401
retire              401     403        200       403    200      401      401
purge               401     403        403       403    200      401      401
batch               401     422        200       422    200      401      401
register-range      401     403        201       403    201      401      401
list-ranges         401     200        200       403    200      401      401
find-range          401     200        200       403    200      401      401
cut-range           401     403        200       403    200      401      401
purge-range         401     403        403       403    200      401      401
list-prefixes       401     200        200       200    200      401      401
find-prefix         401     200        200       403    200      401      401
stats               401     200        200       200    200      401      401
home-prefix         401     403        403       403    201      401      401
change-prefix       401     403        403       403    200      401      401
list-keys           401     403        403       403    200      401      401
issue-key           401     403        403       403    201      401      401
revoke-key          401     403        403       403    200      401      401
import              401     403        202       202    202      401      401
list-imports        401     200        200       200    200      401      401
find-import         401     200        200       404    200      401      401
cancel-import       401     403        200       404    200      401      401
import-report       401     200        200       404    200      401      401
import-errors       401     200        200       404    200      401      401
import-template     200     200        200       200    200      200      200
changes             401     200        200       200    200      401      401
openapi             200     200        200       200    200      200      200
healthz             200     200        200       200    200      200      200
readyz              200     200        200       200    200      200      200
metrics             200     200        200       200    200      200      200
"""
MORE = {"mint", "purge", "purge-range"}  # rules beyond one for each operationId


def rules() -> dict[str, dict[str, int]]:
    header, *lines = (line.split() for line in RULES.strip().splitlines())
    assert tuple(header[1:]) == CALLERS
    return {line[0]: dict(zip(CALLERS, map(int, line[1:]), strict=True)) for line in lines}


@dataclass
class Callers:
    """Clients by kind of caller. A wrong key is counted against its address: a new one each."""

    node: RunningNode
    keys: dict[str, str | None]
    addresses: itertools.count[int]

    def address(self) -> str:
        number = next(self.addresses)
        return f"127.7.{number // 250}.{number % 250 + 1}"

    def client(self, caller: str) -> Described:
        client = Described(self.node.port, self.keys[caller])
        client.source = self.address()
        return client


@pytest.fixture(scope="module")
def callers(node: RunningNode) -> Callers:
    admin = Described(node.port, node.key)
    revoked = admin.ask("POST", "/api/v1/keys", {"role": "admin"}).json
    assert admin.ask("DELETE", f"/api/v1/keys/{revoked['id']}").status == 200
    keys = {
        "public": None,
        "reader": node.issue("reader", "acme"),
        "registrar": node.issue("registrar", "acme"),
        "stranger": node.issue("registrar", "globex"),
        "admin": node.key,
        "revoked": revoked["key"],
        "garbage": "bj_abcdefgh_" + "A" * 43,
    }
    return Callers(node, keys, itertools.count())


Make = Callable[[Described, str], tuple[str, str, Any]]


def record(admin: Described, name: str) -> str:
    assert admin.ask("PUT", f"{IDS}/88.118.8/{name}", {"values": []}).status == 201
    return f"{IDS}/88.118.8/{name}"


def spare_key(admin: Described, name: str) -> str:
    issued = admin.ask("POST", "/api/v1/keys", {"role": "reader", "tenant": "acme"})
    return f"/api/v1/keys/{issued.json['id']}"


def import_job(admin: Described, name: str) -> str:
    """One of acme's, whose only row is bad, which has ended."""
    key = admin.ask("POST", "/api/v1/keys", {"role": "registrar", "tenant": "acme"}).json["key"]
    begun = admin.ask("POST", f"{IMPORTS}?name={name}", b"identifier\nnone\n", key=key)
    id_ = str(begun.json["id"])
    until(lambda: admin.ask("GET", f"{IMPORTS}/{id_}").json["state"] == "done")
    return id_


IMPORTS = "/api/v1/imports"


def a_range(admin: Described, name: str) -> str:
    body = {"prefix": "88.118.8", "pattern": name + "-{00..99}", "values": []}
    assert admin.ask("POST", "/api/v1/ranges", body).status == 201
    return f"/api/v1/ranges/88.118.8/{name}-%7B00..99%7D"


REQUESTS: dict[str, Make] = {
    "resolve": lambda admin, name: ("GET", record(admin, name), None),
    "resolve-many": lambda admin, name: (
        "POST",
        IDS + ":resolve",
        {"identifiers": ["88.118.8/" + name]},
    ),
    "search": lambda admin, name: ("GET", IDS + ":search?value=URL%3Dx", None),
    "list": lambda admin, name: ("GET", IDS + "?prefix=88.118.8&limit=1", None),
    "register": lambda admin, name: (
        "POST",
        IDS,
        {"identifier": "88.118.8/" + name, "values": []},
    ),
    "mint": lambda admin, name: ("POST", IDS, {"prefix": "88.118.8", "values": []}),
    "put": lambda admin, name: ("PUT", f"{IDS}/88.118.8/{name}", {"values": []}),
    "modify": lambda admin, name: ("PATCH", record(admin, name), {"status": "draft"}),
    "retire": lambda admin, name: ("DELETE", record(admin, name), None),
    "purge": lambda admin, name: ("DELETE", record(admin, name) + "?purge=true", None),
    "batch": lambda admin, name: (
        "POST",
        IDS + ":batch",
        {"mode": "all", "rows": [{"identifier": f"88.118.8/{name}-{n}"} for n in range(2)]},
    ),
    "register-range": lambda admin, name: (
        "POST",
        "/api/v1/ranges",
        {"prefix": "88.118.8", "pattern": name + "-{00..99}", "values": []},
    ),
    "list-ranges": lambda admin, name: ("GET", "/api/v1/ranges?prefix=88.118.8", None),
    "find-range": lambda admin, name: ("GET", a_range(admin, name), None),
    "cut-range": lambda admin, name: ("DELETE", a_range(admin, name), None),
    "purge-range": lambda admin, name: ("DELETE", a_range(admin, name) + "?purge=true", None),
    "list-prefixes": lambda admin, name: ("GET", "/api/v1/prefixes", None),
    "find-prefix": lambda admin, name: ("GET", "/api/v1/prefixes/88.118.8", None),
    "home-prefix": lambda admin, name: (
        "POST",
        "/api/v1/prefixes",
        {"prefix": f"20.{name}", "tenant": "acme"},
    ),
    "change-prefix": lambda admin, name: (
        "PATCH",
        "/api/v1/prefixes/88.118.8",
        {"status": "active"},
    ),
    "list-keys": lambda admin, name: ("GET", "/api/v1/keys", None),
    "issue-key": lambda admin, name: ("POST", "/api/v1/keys", {"role": "reader", "tenant": "a"}),
    "revoke-key": lambda admin, name: ("DELETE", spare_key(admin, name), None),
    "import": lambda admin, name: ("POST", IMPORTS, b"identifier\nnone\n"),
    "list-imports": lambda admin, name: ("GET", IMPORTS, None),
    "find-import": lambda admin, name: ("GET", f"{IMPORTS}/{import_job(admin, name)}", None),
    "cancel-import": lambda admin, name: ("DELETE", f"{IMPORTS}/{import_job(admin, name)}", None),
    "import-report": lambda admin, name: (
        "GET",
        f"{IMPORTS}:report/{import_job(admin, name)}",
        None,
    ),
    "import-errors": lambda admin, name: (
        "GET",
        f"{IMPORTS}:errors/{import_job(admin, name)}",
        None,
    ),
    "import-template": lambda admin, name: ("GET", f"{IMPORTS}:template", None),
    "changes": lambda admin, name: ("GET", "/api/v1/changes", None),
    "openapi": lambda admin, name: ("GET", "/openapi.json", None),
    "healthz": lambda admin, name: ("GET", "/healthz", None),
    "stats": lambda admin, name: ("GET", "/api/v1/stats", None),
    "readyz": lambda admin, name: ("GET", "/readyz", None),
    "metrics": lambda admin, name: ("GET", "/metrics", None),
}
CODES = {401: "unauthenticated", 403: "forbidden", 404: "not-found", 422: "batch-rejected"}


def test_every_operation_has_a_rule(callers: Callers) -> None:
    """An endpoint without a rule fails here, and a rule without an endpoint too."""
    admin = callers.client("admin")
    operations = {operation["operationId"] for _, _, operation in admin.operations()}
    assert operations | MORE == rules().keys() == REQUESTS.keys()


@pytest.mark.parametrize("operation", rules())
def test_rule(callers: Callers, api: Described, operation: str) -> None:
    admin = callers.client("admin")
    for caller, expected in rules()[operation].items():
        method, target, body = REQUESTS[operation](admin, f"r-{operation}-{caller}")
        before = end_of_log(api)
        answer = callers.client(caller).ask(method, target, body)
        assert answer.status == expected, f"{operation} by {caller}: {answer.body!r}"
        if expected >= 400:
            assert answer.code == CODES[expected]
            assert end_of_log(api) == before, f"{operation} by {caller} left something behind"
        if expected == 422:
            assert {row["code"] for row in answer.json["rows"]} == {"forbidden"}


def test_keys_in_other_forms_are_wrong_keys(callers: Callers) -> None:
    key = str(callers.keys["admin"])
    for header in (
        f"Basic {key}",
        key,
        "Bearer",
        "Bearer ",
        f"Bearer {key[:-1]}",
        f"Bearer {key}A",
        f"Bearer {key.upper()}",
        f"Bearer {key} {key}",
        "Bearer " + "A" * 10_000,
        "Bearer é",
    ):
        with Wire(callers.node.port, source=callers.address()) as wire:
            answer = wire.ask("GET", "/api/v1/keys", {"Authorization": header})
        assert (answer.status, answer.code) == (401, "unauthenticated"), header
    with Wire(callers.node.port, source=callers.address()) as wire:
        assert wire.ask("GET", "/api/v1/keys", {"authorization": f"bearer  {key}"}).status == 200


def test_who_guesses_waits_and_the_others_do_not(callers: Callers) -> None:
    address = callers.address()

    def guess(number: int) -> Answer:
        with Wire(callers.node.port, source=address) as wire:
            key = f"bj_guess{number:03}_{'B' * 43}"
            return wire.ask("GET", "/api/v1/keys", {"Authorization": f"Bearer {key}"})

    answers = [guess(number) for number in range(9)]
    assert [answer.status for answer in answers] == [401] * 6 + [429] * 3
    assert answers[-1].code == "too-many-requests"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3
    with Wire(callers.node.port, source=address) as wire:
        # Without a key, and where none is needed, nothing is refused.
        assert wire.ask("GET", "/healthz", {"Authorization": "Bearer x"}).status == 200
        assert wire.ask("GET", IDS + "/88.118.8/guess").code == "identifier-not-found"
    assert callers.client("reader").ask("GET", "/api/v1/prefixes").status == 200


MARKERS = ("PRIVATE-DATA", "DRAFT-DATA", "RETIRED-DATA", "HIDDEN-NAME", "KEY-LABEL")


@pytest.fixture(scope="module")
def secrets(callers: Callers) -> list[str]:
    """Records of acme whose markers nobody else may meet. The names that are asked for."""
    admin = callers.client("admin")
    hidden = [{"index": 9, "type": "PIN", "data": "PRIVATE-DATA", "permissions": "1100"}]
    nobody = [{"index": 8, "type": "PIN", "data": "PRIVATE-DATA-0", "permissions": "0000"}]
    draft = [{"index": 1, "type": "URL", "data": "DRAFT-DATA"}]
    retired = [{"index": 1, "type": "URL", "data": "RETIRED-DATA"}]
    shown = [{"index": 1, "type": "URL", "data": "shown"}]
    admin.ask("PUT", f"{IDS}/88.118.8/open", {"values": hidden + shown + nobody})
    admin.ask("PUT", f"{IDS}/88.118.8/draft", {"values": draft, "status": "draft"})
    admin.ask("PUT", f"{IDS}/88.118.8/gone", {"values": retired})
    admin.ask("DELETE", f"{IDS}/88.118.8/gone")
    admin.ask("PUT", f"{IDS}/88.118.8/HIDDEN-NAME", {"values": [], "status": "draft"})
    body = {"role": "reader", "tenant": "acme", "label": "KEY-LABEL"}
    admin.ask("POST", "/api/v1/keys", body)
    return ["open", "draft", "gone"]


def everything(client: Described, names: list[str]) -> list[Answer]:
    """All that can be read, in every form."""
    answers = []
    for name in names:
        at = f"{IDS}/88.118.8/{name}"
        queries = ("", "?auth=1", "?index=9", "?index=8", "?type=PIN", "?type=P.")
        answers += [client.ask("GET", at + query) for query in queries]
        answers += [client.ask("GET", at, Accept="text/html")]
        answers += [client.ask("GET", f"/88.118.8/{name}", Accept=kind) for kind in ("*/*",)]
        answers += [client.ask("GET", f"/88.118.8/{name}", Accept="application/json")]
    asked = {"identifiers": [f"88.118.8/{name}" for name in names]}
    answers.append(client.ask("POST", IDS + ":resolve", asked))
    answers += [
        client.ask("GET", target)
        for target in (
            IDS + "?prefix=88.118.8&limit=1000",
            IDS + "?prefix=88.118.9&limit=1000",
            "/api/v1/prefixes?limit=1000",
            "/api/v1/keys?limit=1000",
            "/metrics",
            "/resolve?identifier=88.118.8/open",
        )
    ]
    after = 0
    while True:
        page = client.ask("GET", f"/api/v1/changes?after={after}&limit=1000")
        answers.append(page)
        if page.status != 200 or page.json["next"] == after:
            return answers
        after = page.json["next"]


def test_nobody_finds_what_they_may_not_read(callers: Callers, secrets: list[str]) -> None:
    admin = callers.client("admin")
    at = "/api/v1/prefixes/88.118.8"
    assert admin.ask("PATCH", at, {"searchable": ["PIN", "URL"]}).status == 200
    until(lambda: not admin.ask("GET", at).json["indexing"])

    def found(caller: str, value: str) -> list[str]:
        target = f"{IDS}:search?prefix=88.118.8&limit=1000&value={quote(value)}"
        return list(callers.client(caller).ask("GET", target).json["items"])

    for caller in ("public", "stranger"):
        assert "88.118.8/open" in found(caller, "URL=shown")
        for value in (
            "PIN=PRIVATE-DATA",
            "PIN=PRIVATE-DATA-0",
            "URL=DRAFT-DATA",
            "URL=RETIRED-DATA",
        ):
            assert found(caller, value) == []
    assert found("reader", "PIN=PRIVATE-DATA") == ["88.118.8/open"]
    assert found("reader", "URL=DRAFT-DATA") == ["88.118.8/draft"]
    assert found("reader", "PIN=PRIVATE-DATA-0") == found("reader", "URL=RETIRED-DATA") == []


@pytest.mark.parametrize("caller", ["public", "stranger"])
def test_nothing_private_is_ever_said(callers: Callers, secrets: list[str], caller: str) -> None:
    # Twice: what the owner read in between must not have reached a cache.
    for _ in range(2):
        for answer in everything(callers.client(caller), secrets):
            for marker in MARKERS:
                assert marker not in answer.body.decode() + str(answer.headers)
        everything(callers.client("registrar"), secrets)


def test_the_owner_sees_it(callers: Callers, secrets: list[str]) -> None:
    text = "".join(a.body.decode() for a in everything(callers.client("reader"), secrets))
    assert "PRIVATE-DATA" in text
    assert "DRAFT-DATA" in text
    assert "HIDDEN-NAME" in text
    for never in ("RETIRED-DATA", "PRIVATE-DATA-0", "KEY-LABEL"):
        assert never not in text


def test_tenants_see_only_their_own_lists_and_changes(callers: Callers) -> None:
    stranger = callers.client("stranger")
    stranger.ask("PUT", f"{IDS}/88.118.9/theirs", {"values": []})
    rows = [{"identifier": f"88.118.{n}/mixed"} for n in (8, 9)]
    batch = {"mode": "all", "rows": rows}
    mixed = callers.client("admin").ask("POST", IDS + ":batch", batch).json["sequence"]
    prefixes = stranger.ask("GET", "/api/v1/prefixes").json["items"]
    assert {item["tenant"] for item in prefixes} == {"globex"}
    after, entries = 0, []
    while (page := stranger.ask("GET", f"/api/v1/changes?after={after}&limit=1000").json)["items"]:
        entries += page["items"]
        after = page["next"]
    subjects = {change["subject"] for entry in entries for change in entry["changes"]}
    assert {"88.118.9/theirs", "88.118.9/mixed"} <= subjects
    assert not {subject for subject in subjects if subject.startswith("88.118.8/")}
    (entry,) = (entry for entry in entries if entry["sequence"] == mixed)
    assert [change["subject"] for change in entry["changes"]] == ["88.118.9/mixed"]


def test_a_private_view_never_enters_a_shared_cache(callers: Callers, secrets: list[str]) -> None:
    before = metrics(callers.client("admin"))[("biaojie_cache_entries", ())]
    for caller in ("reader", "registrar", "admin"):
        for target in (f"{IDS}/88.118.8/open", "/88.118.8/open"):
            answer = callers.client(caller).ask("GET", target)
            assert answer.headers["cache-control"].startswith("private")
            assert "Authorization" in answer.headers["vary"]
    assert metrics(callers.client("admin"))[("biaojie_cache_entries", ())] <= before + 1


def test_a_revoked_key_is_refused_at_once_and_everywhere(callers: Callers) -> None:
    admin = callers.client("admin")
    issued = admin.ask("POST", "/api/v1/keys", {"role": "registrar", "tenant": "acme"}).json
    client = Described(callers.node.port, issued["key"], source=callers.address())
    with Wire(callers.node.port, source=client.source) as kept:
        headers = {"Authorization": f"Bearer {issued['key']}"}
        assert kept.ask("GET", "/api/v1/prefixes", headers).status == 200
        assert admin.ask("DELETE", f"/api/v1/keys/{issued['id']}").status == 200
        assert kept.ask("GET", "/api/v1/prefixes", headers).status == 401
        assert kept.ask("GET", IDS + "/88.118.8/open", headers).status == 401


def test_a_prefix_that_changes_hands(callers: Callers) -> None:
    admin = callers.client("admin")
    admin.ask("POST", "/api/v1/prefixes", {"prefix": "88.118.50", "tenant": "acme"})
    owner, stranger = callers.client("registrar"), callers.client("stranger")
    at = f"{IDS}/88.118.50/x"
    assert owner.ask("PUT", at, {"values": []}).status == 201
    assert stranger.ask("PUT", at, {"values": []}).status == 403
    admin.ask("PATCH", "/api/v1/prefixes/88.118.50", {"tenant": "globex"})
    assert owner.ask("PUT", at, {"values": []}).status == 403
    assert stranger.ask("PUT", at, {"values": []}).status == 200
    admin.ask("PATCH", "/api/v1/prefixes/88.118.50", {"status": "suspended"})
    suspended = stranger.ask("PUT", at, {"values": []})
    assert (suspended.status, suspended.code) == (403, "prefix-suspended")
    assert admin.ask("PUT", at, {"values": []}).status == 200
