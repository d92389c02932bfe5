"""The Handle REST interface of a running node: forms, codes, authentication, proxy behaviour."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from biaojie.keys import encode_public_key, generate, sign
from tests.system.conftest import Reply, RunningNode

PREFIX = "20.500"
USER = f"{PREFIX}/ADMIN"
KEY = generate("rsa")
ADMIN = {
    "format": "admin",
    "value": {"handle": USER, "index": 300, "permissions": "111111110011"},
}


def basic(password: str = "secret", index: int = 300) -> str:
    text = f"{quote(f'{index}:{USER}', safe='/')}:{password}"
    return "Basic " + base64.b64encode(text.encode()).decode()


def value(index: int, data: Any, type_: str = "URL", **more: Any) -> dict[str, Any]:
    return {"index": index, "type": type_, "data": data, **more}


@pytest.fixture(scope="module")
def rest(make_node: Callable[..., RunningNode]) -> RunningNode:
    node = make_node(tls_enabled=True, tls_port=0, tls_self_signed=True)
    for prefix in ("0.NA", PREFIX):
        node.home(prefix)
    admins = [value(300, ADMIN, "HS_ADMIN")]
    admins.append(value(301, ADMIN | {"value": ADMIN["value"] | {"index": 301}}, "HS_ADMIN"))
    assert node.ask("PUT", f"/api/handles/0.NA/{PREFIX}", admins).status == 201
    key = {"format": "hex", "value": encode_public_key(KEY.public).hex()}
    keys = [value(300, "secret", "HS_SECKEY"), value(301, key, "HS_PUBKEY")]
    assert node.ask("PUT", f"/api/handles/{USER}", keys).status == 201
    return node


def ask(
    node: RunningNode, method: str, path: str, body: Any = None, auth: str = "", **headers: str
) -> Reply:
    if auth:
        headers["Authorization"] = auth
    return node.ask(method, path, body, key=None, **headers)


def at(suffix: str) -> str:
    return f"/api/handles/{PREFIX}/{suffix}"


def codes(reply: Reply) -> tuple[int, int]:
    return reply.status, reply.json["responseCode"]


def types(reply: Reply) -> list[str]:
    return [v["type"] for v in reply.json["values"]]


# Forms and codes ------------------------------------------------------------------------


def test_create_replace_modify_delete(rest: RunningNode) -> None:
    where = at("LIFE")
    made = ask(rest, "PUT", where, {"values": [value(1, "a"), value(2, "b", "NOTE")]}, basic())
    assert codes(made) == (201, 1)
    assert made.json["handle"] == f"{PREFIX}/LIFE"
    assert codes(ask(rest, "PUT", f"{where}?overwrite=false", [value(1, "x")], basic())) == (
        409,
        101,
    )
    assert codes(ask(rest, "PUT", where, value(1, "c"), basic())) == (200, 1)
    assert types(ask(rest, "GET", where)) == ["URL"]
    only = f"{where}?index=5&index=6"
    body = [value(5, "five", "A"), value(6, "six", "B"), value(7, "seven", "C")]
    assert codes(ask(rest, "PUT", only, body, basic())) == (200, 1)
    assert types(ask(rest, "GET", where)) == ["URL", "A", "B"]
    assert codes(ask(rest, "PUT", f"{only}&overwrite=false", body, basic())) == (409, 201)
    assert codes(ask(rest, "PUT", f"{where}?index=9", body, basic())) == (400, 202)
    assert codes(ask(rest, "PUT", f"{where}?index=various", body, basic())) == (200, 1)
    assert codes(ask(rest, "DELETE", f"{where}?index=5&index=7", auth=basic())) == (200, 1)
    assert types(ask(rest, "GET", where)) == ["URL", "B"]
    assert codes(ask(rest, "DELETE", f"{where}?index=5", auth=basic())) == (400, 200)
    assert codes(ask(rest, "DELETE", where, auth=basic())) == (200, 1)
    assert codes(ask(rest, "GET", where)) == (404, 100)
    assert codes(ask(rest, "DELETE", where, auth=basic())) == (404, 100)
    assert codes(ask(rest, "POST", where, [value(1, "again")], basic())) == (201, 1)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"{PREFIX}/ABSENT", (404, 100)),
        ("99.999/ELSEWHERE", (400, 301)),
        ("a b/x", (400, 102)),
        (f"{PREFIX}/%FF", (400, 102)),
    ],
)
def test_what_is_not_there(rest: RunningNode, path: str, code: tuple[int, int]) -> None:
    reply = ask(rest, "GET", f"/api/handles/{quote(path, safe='/%')}")
    assert codes(reply) == code
    assert reply.json["message"]


def test_filters_and_forms_of_the_reply(rest: RunningNode) -> None:
    where = at("FORMS/" + quote("绿"))
    values = [value(1, "u"), value(2, "e", "URL.X"), value(3, "n\u2028", "NOTE")]
    values.append(value(4, "hidden", "NOTE", permissions="1100"))
    assert ask(rest, "PUT", where, values, basic()).status == 201
    assert types(ask(rest, "GET", f"{where}?type=url.")) == ["URL", "URL.X"]
    assert types(ask(rest, "GET", f"{where}?index=3&type=URL")) == ["URL", "NOTE"]
    none = ask(rest, "GET", f"{where}?index=4")
    assert codes(none) == (200, 200)
    assert none.json["values"] == []
    assert types(ask(rest, "GET", f"{where}?index=4", auth=basic())) == ["NOTE"]
    assert types(ask(rest, "GET", f"{where}?index=4&publicOnly=true", auth=basic())) == []
    assert codes(ask(rest, "GET", f"{where}?publicOnly=false")) == (401, 402)
    assert b"\n  " in ask(rest, "GET", f"{where}?pretty").body
    encoded = ask(rest, "GET", at(quote("FORMS/绿", safe="")))
    assert encoded.json["handle"] == f"{PREFIX}/FORMS/绿"


def test_jsonp(rest: RunningNode) -> None:
    where = at("FORMS/" + quote("绿"))
    script = ask(rest, "GET", f"{where}?callback=my.call_1", auth=basic())
    assert script.headers["Content-Type"].startswith("application/javascript")
    assert script.body.startswith(b"/**/my.call_1({")
    assert "\u2028".encode() not in script.body
    assert b"hidden" not in script.body  # whoever is logged in, a script sees what all see
    for name in ("alert(1)", "a;b", "a.", "1a", "x" * 200, "é"):
        reply = ask(rest, "GET", f"{where}?callback={quote(name)}")
        assert reply.json["responseCode"] == 1


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b'{"values": 7}', b'[{"index": 1, "type": "A"}]', b"\xff"]
)
def test_bodies_that_are_none(rest: RunningNode, body: bytes) -> None:
    reply = ask(rest, "PUT", at("BAD"), body, basic(), Content_Type="application/json")
    assert codes(reply) == (400, 202)


def test_a_form_elsewhere_cannot_post(rest: RunningNode) -> None:
    reply = ask(rest, "POST", at("CSRF"), b"[]", basic(), Content_Type="text/plain")
    assert reply.status == 415


def test_a_name_can_be_minted(rest: RunningNode) -> None:
    made = ask(rest, "PUT", at("M-?mintNewSuffix=true"), [value(1, "u")], basic())
    assert codes(made) == (201, 1)
    assert ask(rest, "GET", f"/api/handles/{made.json['handle']}").status == 200


def test_lists(rest: RunningNode) -> None:
    assert codes(ask(rest, "GET", f"/api/handles?prefix={PREFIX}")) == (401, 402)
    every = ask(rest, "GET", f"/api/handles?prefix={PREFIX}", auth=basic()).json
    assert every["totalCount"] == len(every["handles"]) >= 2
    query = f"/api/handles?prefix={PREFIX}&page=1&pageSize=1"
    assert ask(rest, "GET", query, auth=basic()).json["handles"] == every["handles"][1:2]
    count = ask(rest, "GET", f"/api/handles?prefix={PREFIX}&pageSize=0", auth=basic()).json
    assert (count["totalCount"], count["handles"]) == (every["totalCount"], [])
    assert f"0.NA/{PREFIX}" in rest.ask("GET", "/api/prefixes").json["prefixes"]
    assert rest.ask("GET", f"/api/prefixes/{PREFIX}").json["status"] == "active"
    assert ask(rest, "GET", "/api/prefixes").status == 401


def test_the_site(rest: RunningNode) -> None:
    site = ask(rest, "GET", "/api/site").json
    ports = {i["port"] for i in site["servers"][0]["interfaces"] if i["protocol"] == "TCP"}
    assert ports == {rest.handle_port}
    assert site["servers"][0]["publicKey"]["value"]["kty"] == "RSA"


# Who asks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "auth",
    [
        "",
        basic("wrong"),
        basic(index=301),
        "Basic " + base64.b64encode(b"nobody:secret").decode(),
        'Handle clientCert="true"',
        'Handle sessionId="unknown"',
        "Bearer nothing",
        "Digest x",
    ],
)
def test_without_proof_nothing_is_written(rest: RunningNode, auth: str) -> None:
    reply = ask(rest, "PUT", at("NOT"), [value(1, "u")], auth)
    assert codes(reply) == (401, 402)
    assert ask(rest, "GET", at("NOT")).status == 404


def test_a_401_names_both_schemes(rest: RunningNode) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", rest.port, timeout=10)
    connection.request("DELETE", at("NOT"))
    schemes = connection.getresponse().headers.get_all("WWW-Authenticate") or []
    connection.close()
    assert schemes[0] == 'Basic realm="handle"'
    assert schemes[1].startswith('Handle sessionId="')


def proof(session: dict[str, Any], key: Any = KEY, scheme: str = "Handle") -> str:
    client_nonce = b"0123456789abcdef"
    signature = sign(key, "SHA256", base64.b64decode(session["nonce"]) + client_nonce)
    parts = {
        "version": "0",
        "sessionId": session["sessionId"],
        "cnonce": base64.b64encode(client_nonce).decode(),
        "id": f"301:{USER}",
        "type": "HS_PUBKEY",
        "alg": "SHA256",
        "signature": base64.b64encode(signature).decode(),
    }
    return f"{scheme} " + ", ".join(f'{name}="{text}"' for name, text in parts.items())


def test_a_session(rest: RunningNode) -> None:
    session = ask(rest, "POST", "/api/sessions/").json
    named = f'handle version="0",sessionId="{session["sessionId"]}"'
    assert ask(rest, "PUT", "/api/sessions/this", auth=named).status == 401
    proved = ask(rest, "PUT", "/api/sessions/this", auth=proof(session)).json
    assert (proved["authenticated"], proved["id"]) == (True, f"301:{USER}")
    assert proved["nonce"] != session["nonce"]
    assert ask(rest, "PUT", at("SESSION"), [value(1, "u")], named).status == 201
    # the same proof again: its nonce is used up
    assert ask(rest, "PUT", "/api/sessions/this", auth=proof(session)).status == 401
    assert ask(rest, "DELETE", "/api/sessions/this", auth=named).status == 204
    assert ask(rest, "DELETE", at("SESSION"), auth=named).status == 401


def test_a_session_proved_by_another_key_is_nobodys(rest: RunningNode) -> None:
    session = ask(rest, "POST", "/api/sessions").json
    stranger = generate("rsa")
    assert ask(rest, "PUT", "/api/sessions/this", auth=proof(session, stranger)).status == 401
    named = f'Handle sessionId="{session["sessionId"]}"'
    assert ask(rest, "PUT", at("NOT"), [value(1, "u")], named).status == 401


def test_over_tls(rest: RunningNode) -> None:
    event = next(line for line in rest.log.splitlines() if '"serving"' in line)
    context = ssl.create_default_context(cafile=str(rest.data_dir / "tls-certificate.pem"))
    port = json.loads(event)["tls_port"]
    big = [value(n, "x" * 20_000, "NOTE") for n in range(1, 11)]
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
    headers = {"Authorization": basic(), "Content-Type": "application/json"}
    connection.request("PUT", at("TLS"), json.dumps(big), headers)
    assert connection.getresponse().read() == ask(rest, "PUT", at("TLS"), big, basic()).body
    connection.request("GET", at("TLS"))
    assert len(json.loads(connection.getresponse().read())["values"]) == 10
    connection.close()


def test_old_tls_is_refused(rest: RunningNode) -> None:
    event = next(line for line in rest.log.splitlines() if '"serving"' in line)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    port = json.loads(event)["tls_port"]
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert|EOF"):
        connection.connect()
    connection.close()


# The page as a proxy --------------------------------------------------------------------


LOCATIONS = """<locations><location href="https://a.example/" id="0" country="cn" weight="0"/>
<location href="https://b.example/x" id="1"/><location href="javascript:alert(1)" id="2"/>
</locations>"""


@pytest.fixture(scope="module")
def named(rest: RunningNode) -> RunningNode:
    records = {
        "URL": [value(1, "https://example.com/item"), value(2, "note", "NOTE")],
        "LOC": [value(1, "https://example.com/item"), value(2, LOCATIONS, "10320/loc")],
        "BAD": [value(1, "javascript:alert(1)"), value(2, "https://e\r\nX: y/", "URL")],
        "ALIAS": [value(1, f"{PREFIX}/ALIAS2", "HS_ALIAS")],
        "ALIAS2": [value(1, f"{PREFIX}/URL", "HS_ALIAS")],
        "LOOP": [value(1, f"{PREFIX}/LOOP2", "HS_ALIAS")],
        "LOOP2": [value(1, f"{PREFIX}/loop", "HS_ALIAS")],
        "LOST": [value(1, f"{PREFIX}/GONE", "HS_ALIAS")],
    }
    for suffix, values in records.items():
        assert ask(rest, "PUT", at(f"P-{suffix}"), _here(values), basic()).status == 201
    return rest


def _here(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for one in values:
        if one["type"] == "HS_ALIAS":
            one["data"] = one["data"].replace("/", "/P-")
    return values


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("URL?redirect", "https://example.com/item"),
        ("URL?redirect&urlappend=%3Fa=1%0A", None),
        ("URL?redirect&urlappend=%3Fa=%E7%BB%BF", "https://example.com/item?a=%E7%BB%BF"),
        ("URL?redirect&noredirect", ""),
        ("URL?redirect&type=NOTE", ""),
        ("URL", ""),
        ("LOC?redirect", "https://b.example/x"),
        ("LOC?redirect&locatt=country:cn", "https://a.example/"),
        ("LOC?redirect&locatt=id:2", "https://b.example/x"),
        ("LOC?redirect&type=URL", "https://example.com/item"),
        ("BAD?redirect", ""),
        ("ALIAS?redirect", "https://example.com/item"),
        ("ALIAS?redirect&ignore_aliases", ""),
        ("LOOP?redirect", ""),
        ("LOST?redirect", ""),
    ],
)
def test_where_a_page_leads(named: RunningNode, path: str, target: str | None) -> None:
    reply = named.ask("GET", f"/{PREFIX}/P-{path}", key=None)
    expected = {None: 400, "": 200}.get(target, 302)
    assert (reply.status, reply.headers.get("Location", "")) == (expected, target or "")


def test_what_is_appended_cannot_change_the_host(rest: RunningNode) -> None:
    assert ask(rest, "PUT", at("HOST"), [value(1, "https://good.example")], basic()).status == 201
    reply = rest.ask("GET", f"/{PREFIX}/HOST?redirect&urlappend=.evil.example/", key=None)
    assert reply.status == 400


def test_aliases_and_filters_without_a_redirect(named: RunningNode) -> None:
    def shown(path: str) -> Any:
        return named.ask("GET", f"/{PREFIX}/P-{path}", key=None, Accept="application/json").json

    assert shown("ALIAS")["identifier"] == f"{PREFIX}/P-URL"
    assert shown("ALIAS?ignore_aliases")["identifier"] == f"{PREFIX}/P-ALIAS"
    assert shown("LOOP")["identifier"] == f"{PREFIX}/P-LOOP"
    assert [v["index"] for v in shown("URL?type=note")["values"]] == [2]
    assert [v["index"] for v in shown("ALIAS?index=1")["values"]] == [1]
