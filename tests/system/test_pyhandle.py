"""pyhandle, the client library of the EUDAT sites, against a running node: over Basic and with a
TLS client certificate. What it sends and reads is its own affair; we only call its methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyhandle.client.resthandleclient import RESTHandleClient
from pyhandle.clientcredentials import PIDClientCredentials
from pyhandle.handleexceptions import (
    HandleAlreadyExistsException,
    HandleAuthenticationError,
    HandleNotFoundException,
)

from biaojie.keys import encode_public_key, generate, pem, self_signed
from tests.system.conftest import RunningNode

PREFIX = "21.T14999"
USER = f"{PREFIX}/ADMIN"
PASSWORD = "pass wörd:100%"


@dataclass
class Site:
    node: RunningNode
    tls_port: int
    folder: Path

    @property
    def tls_url(self) -> str:
        return f"https://localhost:{self.tls_port}"

    @property
    def authority(self) -> str:
        return str(self.node.data_dir / "tls-certificate.pem")


def put(node: RunningNode, name: str, values: list[dict[str, Any]]) -> None:
    reply = node.ask("PUT", f"/api/handles/{name}", values)
    assert reply.status == 201, reply.body


def admin(index: int) -> dict[str, Any]:
    value = {"handle": USER, "index": index, "permissions": "111111110011"}
    return {"index": index, "type": "HS_ADMIN", "data": {"format": "admin", "value": value}}


def tls_port(node: RunningNode) -> int:
    events = [json.loads(line) for line in node.log.splitlines() if '"serving"' in line]
    return int(events[-1]["tls_port"])


@pytest.fixture(scope="module")
def site(make_node: Callable[..., RunningNode], tmp_path_factory: pytest.TempPathFactory) -> Site:
    node = make_node(tls_enabled=True, tls_port=0, tls_self_signed=True)
    folder = tmp_path_factory.mktemp("keys")
    for prefix in ("0.NA", PREFIX):
        node.home(prefix)
    key = generate("rsa")
    certificate = self_signed(key, f"301:{USER}")
    (folder / "certificate.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(pem.encode_private(key))
    put(node, f"0.NA/{PREFIX}", [admin(300), admin(301)])
    public = {"format": "hex", "value": encode_public_key(key.public).hex()}
    put(
        node,
        USER,
        [
            admin(100) | {"data": admin(300)["data"]},
            {"index": 300, "type": "HS_SECKEY", "data": PASSWORD, "permissions": "1100"},
            {"index": 301, "type": "HS_PUBKEY", "data": public},
        ],
    )
    reply = node.ask("PATCH", f"/api/v1/prefixes/{PREFIX}", {"searchable": ["URL", "CHECKSUM"]})
    assert reply.status == 200, reply.body
    return Site(node, tls_port(node), folder)


def by_password(site: Site, password: str = PASSWORD) -> RESTHandleClient:
    return RESTHandleClient.instantiate_with_username_and_password(
        site.node.url, f"300:{USER}", password, handleowner=f"300:{USER}", HTTPS_verify=True
    )


def by_certificate(site: Site) -> RESTHandleClient:
    credentials = PIDClientCredentials(
        client="rest",
        handle_server_url=site.tls_url,
        certificate_only=str(site.folder / "certificate.pem"),
        private_key=str(site.folder / "key.pem"),
        handleowner=f"301:{USER}",
        HTTPS_verify=site.authority,
    )
    return RESTHandleClient.instantiate_with_credentials(credentials, HTTPS_verify=site.authority)


@pytest.fixture(params=[by_password, by_certificate])
def client(request: pytest.FixtureRequest, site: Site) -> RESTHandleClient:
    found: RESTHandleClient = request.param(site)
    return found


def test_a_handle_lives_and_dies(client: RESTHandleClient, request: pytest.FixtureRequest) -> None:
    name = f"{PREFIX}/NEW-{request.node.callspec.indices['client']}"
    assert client.register_handle(name, "https://example.com/1", COLOUR="red") == name
    with pytest.raises(HandleAlreadyExistsException):
        client.register_handle(name, "https://example.com/2")
    assert client.register_handle(name, "https://example.com/3", overwrite=True) == name
    assert client.get_value_from_handle(name, "URL") == "https://example.com/3"

    client.modify_handle_value(name, URL="https://example.com/4")
    client.modify_handle_value(name, COLOUR="grün 绿", SIZE="7")
    record = client.retrieve_handle_record(name)
    assert record["URL"] == "https://example.com/4"
    assert (record["COLOUR"], record["SIZE"]) == ("grün 绿", "7")

    client.delete_handle_value(name, "SIZE")
    client.delete_handle_value(name, "SIZE")  # nothing left to delete is fine
    assert client.get_value_from_handle(name, "SIZE") is None
    client.delete_handle(name)
    assert client.retrieve_handle_record_json(name) is None
    with pytest.raises(HandleNotFoundException):
        client.delete_handle(name)


def test_a_generated_name(client: RESTHandleClient) -> None:
    name = client.generate_and_register_handle(PREFIX, "https://example.com/g")
    assert name.startswith(f"{PREFIX}/")
    assert client.retrieve_handle_record(name)["URL"] == "https://example.com/g"


def test_handles_are_found_by_value(site: Site) -> None:
    client = by_password(site)
    client.register_handle(f"{PREFIX}/FIND-1", "https://example.com/find", checksum="c1")
    client.register_handle(f"{PREFIX}/FIND-2", "https://example.com/find", checksum="c2")
    searcher = RESTHandleClient.instantiate_for_read_and_search(
        site.node.url, f"300:{USER}", PASSWORD, reverselookup_baseuri=site.node.url
    )
    found = searcher.search_handle(URL="https://example.com/find")
    assert sorted(found) == [f"{PREFIX}/FIND-1", f"{PREFIX}/FIND-2"]
    assert searcher.search_handle(URL="https://example.com/find", CHECKSUM="c2") == [
        f"{PREFIX}/FIND-2"
    ]
    assert searcher.search_handle(URL="https://example.com/nowhere") == []
    wrong = RESTHandleClient.instantiate_for_read_and_search(
        site.node.url, f"300:{USER}", "wrong", reverselookup_baseuri=site.node.url
    )
    with pytest.raises(Exception, match=r"(?i)auth|401"):
        wrong.search_handle(URL="https://example.com/find")


def test_a_wrong_password_changes_nothing(site: Site) -> None:
    with pytest.raises(HandleAuthenticationError):
        by_password(site, "wrong").register_handle(f"{PREFIX}/NOT", "https://example.com/")
    assert by_password(site).retrieve_handle_record_json(f"{PREFIX}/NOT") is None


def test_another_certificate_of_the_same_name_is_nobody(site: Site, tmp_path: Path) -> None:
    key = generate("rsa")
    (tmp_path / "certificate.pem").write_bytes(self_signed(key, f"301:{USER}"))
    (tmp_path / "key.pem").write_bytes(pem.encode_private(key))
    impostor = by_certificate(Site(site.node, site.tls_port, tmp_path))
    with pytest.raises(HandleAuthenticationError):
        impostor.register_handle(f"{PREFIX}/IMPOSTOR", "https://example.com/")
    assert by_password(site).retrieve_handle_record_json(f"{PREFIX}/IMPOSTOR") is None
