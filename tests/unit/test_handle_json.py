"""Handle values as REST clients write and read them, and the query around them."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biaojie import handle_json
from biaojie.errors import BiaojieError, InvalidRecord
from biaojie.keys import encode_public_key, generate
from biaojie.record import Permissions, Reference, Value
from biaojie.wire.handle import (
    Admin,
    Interface,
    Purpose,
    Server,
    Site,
    Transport,
    encode_value_list,
)

SITE = Site(
    (
        Server.at(7, "192.0.2.1", b"", (Interface(Purpose.BOTH, Transport.TCP, 2641),)),
        Server.at(8, "2001:db8::1", b"", (Interface(Purpose.QUERY, Transport.UDP, 2641),)),
    ),
    serial=9,
    primary_mask=0xC0,
    hash_option=1,
    attributes=(("desc", "Ä"),),
)
TYPED = [
    ("HS_ADMIN", Admin(0x7F3, Reference("0.NA/20.500", 200)).encode(), "admin"),
    ("hs_admin", Admin(0x7F3, Reference("0.NA/20.500", 200), legacy=True).encode(), "admin"),
    ("HS_VLIST", encode_value_list((Reference("20.500/A", 300),)), "vlist"),
    ("HS_SITE", SITE.encode(), "site"),
    ("HS_SITE.PREFIX", SITE.encode(), "site"),
    ("HS_PUBKEY", encode_public_key(generate("rsa").public), "key"),
    ("URL", "https://example.com/绿".encode(), "string"),
    ("NOTE", b"line\r\n\tnext", "string"),
    ("NOTE", b"\x00\x01", "base64"),
    ("NOTE", b"\xff", "base64"),
]


def encoded(type_: str, data: bytes) -> dict[str, Any]:
    return handle_json.encode_value(Value(1, type_, data))


def decoded(data: Any, type_: str = "NOTE", **members: Any) -> Value:
    return handle_json.decode_values([{"index": 1, "type": type_, "data": data, **members}])[0]


@pytest.mark.parametrize(("type_", "data", "form"), TYPED)
def test_every_form_reads_back(type_: str, data: bytes, form: str) -> None:
    shown = encoded(type_, data)
    assert shown["data"]["format"] == form
    assert decoded(shown["data"], type_).data == data


def test_an_admin_value_is_shown_as_others_show_it() -> None:
    assert encoded("HS_ADMIN", TYPED[0][1])["data"]["value"] == {
        "handle": "0.NA/20.500",
        "index": 200,
        "permissions": "011111110011",
    }


def test_a_site_is_shown_as_others_show_it() -> None:
    shown = encoded("HS_SITE", SITE.encode())["data"]["value"]
    assert shown["protocolVersion"] == "2.11"
    assert (shown["serialNumber"], shown["primarySite"], shown["multiPrimary"]) == (9, True, True)
    interface = {"query": True, "admin": True, "protocol": "TCP", "port": 2641}
    assert shown["servers"][0] == {
        "serverId": 7,
        "address": "192.0.2.1",
        "interfaces": [interface],
    }


@pytest.mark.parametrize("type_", ["HS_ADMIN", "HS_VLIST", "HS_SITE", "HS_PUBKEY"])
def test_what_is_not_in_its_own_form_is_shown_all_the_same(type_: str) -> None:
    assert encoded(type_, b"odd")["data"] == {"format": "string", "value": "odd"}
    octets = b"\xff\xfe"
    assert encoded(type_, octets)["data"]["value"] == base64.b64encode(octets).decode()


def test_only_what_is_unusual_is_said() -> None:
    assert set(encoded("URL", b"x")) == {"index", "type", "data", "ttl", "timestamp"}
    value = Value(
        1, "URL", b"x", 2_000_000_000, True, 0, Permissions(0xC), (Reference("20.500/A", 3),)
    )
    shown = handle_json.encode_value(value)
    assert shown["ttl"] == "2033-05-18T03:33:20Z"
    assert shown["permissions"] == "1100"
    assert shown["references"] == [{"handle": "20.500/A", "index": 3}]
    assert handle_json.decode_values(shown)[0] == value


def test_reading_is_lenient() -> None:
    assert decoded("plain").data == b"plain"
    assert decoded({"value": "plain"}).data == b"plain"
    assert decoded({"format": "hex", "value": "0aFF"}).data == b"\x0a\xff"
    value = decoded("x", index="7", ttl="60", timestamp="whenever", more=[1])
    assert (value.index, value.ttl, value.permissions) == (7, 60, Permissions(0xE))
    assert str(decoded("x", "HS_SECKEY").permissions) == "1100"
    one = {"index": 1, "type": "URL", "data": "x"}
    for shape in (one, [one], {"values": [one]}, {"values": [one], "handle": "ignored"}):
        assert [v.data for v in handle_json.decode_values(shape)] == [b"x"]


@pytest.mark.parametrize(
    ("written", "rights"),
    [
        ("011111110011", 0x7F3),
        ("*", 0xFFF),
        (True, 0xFFF),
        (False, 0),
        (0x7F3, 0x7F3),
        ([0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1], 0x7F3),
    ],
)
def test_rights_in_all_the_ways_they_are_written(written: Any, rights: int) -> None:
    value = {"handle": "0.NA/20.500", "index": "200", "permissions": written}
    data = decoded({"format": "admin", "value": value}, "HS_ADMIN").data
    assert data == Admin(rights, Reference("0.NA/20.500", 200)).encode()


@pytest.mark.parametrize(
    "data",
    [
        None,
        7,
        ["a"],
        {"format": "nonsense", "value": "x"},
        {"format": ["admin"], "value": "x"},
        {"format": "base64", "value": "*"},
        {"format": "string", "value": "\ud800"},
        {"format": "admin", "value": {"handle": "0.NA/1", "index": 1}},
        {"format": "admin", "value": {"handle": "\ud800/1", "index": 1, "permissions": "*"}},
        {"format": "admin", "value": {"handle": "0.NA/1", "index": 1, "permissions": "2"}},
        {"format": "admin", "value": "text"},
        {"format": "vlist", "value": {"handle": "x"}},
        {"format": "vlist", "value": [None]},
        {"format": "key", "value": {"kty": "RSA", "n": "", "e": 1}},
        {"format": "key", "value": None},
        {"format": "site", "value": {"servers": [{"address": "nowhere"}]}},
        {"format": "site", "value": {"serialNumber": 70_000}},
        {"format": "site", "value": {"protocolVersion": "9999999.1"}},
        {"format": "site", "value": []},
    ],
)
def test_what_cannot_be_read_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRecord):
        decoded(data)


MEMBERS = re.findall(
    r"\w+",
    "index type data format value handle permissions ttl references servers address"
    " interfaces publicKey kty n e d protocol port values attributes name",
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(MEMBERS),
            inner | st.sampled_from(["admin", "vlist", "site", "key", "RSA", "SM2", "HS_ADMIN"]),
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300)
@given(json_values)
def test_any_json_gives_values_or_a_refusal(content: Any) -> None:
    for given_ in (content, [{"index": 1, "type": "X", "data": content}]):
        try:
            values = handle_json.decode_values(given_)
        except BiaojieError:
            continue
        for value in values:
            assert isinstance(value.data, bytes)


@settings(max_examples=300)
@given(st.binary(max_size=80), st.sampled_from([t for t, _, _ in TYPED]))
def test_any_octets_can_be_shown_and_mean_themselves(data: bytes, type_: str) -> None:
    assert decoded(encoded(type_, data)["data"], type_).data == data
