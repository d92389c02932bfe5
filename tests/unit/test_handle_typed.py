"""Handle values, sites, admin rights and XML: what they mean and where they end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biaojie.record import Permissions, Reference, Value
from biaojie.wire.handle import (
    Malformed,
    Server,
    Site,
    asked_for,
    decode_value,
    decode_xml,
    encode_value,
    format_rights,
    hashed_secret,
    parse_rights,
)
from biaojie.wire.handle.markup import XML_OCTETS_MAX, Element

# Values, sites, rights ------------------------------------------------------------------


def _values(*types: str) -> tuple[Value, ...]:
    return tuple(Value(index, type_, b"") for index, type_ in enumerate(types, 1))


@pytest.mark.parametrize(
    ("indexes", "types", "found"),
    [
        ((), (), [1, 2, 3, 4, 5]),
        ((2, 99), (), [2]),
        ((), ("url",), [1]),
        ((), ("URL.",), [1, 2, 3]),
        ((), ("URL.Mirror",), [2]),
        ((), ("URL.MIRROR.",), [2, 3]),
        ((5,), ("url",), [1, 5]),
        ((), ("", "."), []),
        ((), ("GIBT ES NICHT",), []),
    ],
)
def test_what_is_asked_for(
    indexes: tuple[int, ...], types: tuple[str, ...], found: list[int]
) -> None:
    values = _values("URL", "url.mirror", "URL.MIRROR.CN", "URLX", "DESC")
    assert [value.index for value in asked_for(values, indexes, types)] == found


def test_only_ascii_letters_fold_in_types() -> None:
    assert asked_for(_values("STRASSE", "straße"), types=("STRASSE",)) == _values("STRASSE")


def test_ipv4_stands_at_the_right() -> None:
    server = Server.at(1, "192.0.2.1", b"", ())
    assert server.address == bytes(12) + bytes((192, 0, 2, 1))
    assert str(server.ip) == "192.0.2.1"
    assert str(Server.at(1, "2001:db8::1", b"", ()).ip) == "2001:db8::1"
    assert str(Server.at(1, "::1", b"", ()).ip) == "::1"
    with pytest.raises(ValueError, match="localhost"):
        Server.at(1, "localhost", b"", ())


def test_one_server_is_responsible_for_each_handle() -> None:
    servers = tuple(Server.at(id_, "192.0.2.1", b"", ()) for id_ in range(3))
    site = Site(servers)
    got = {site.server_for(f"88.118.8/SN{number}").id for number in range(50)}
    assert got == {0, 1, 2}
    assert site.server_for("88.118.8/sn1") is site.server_for("88.118.8/SN1")
    one = replace(site, servers=servers[:1])
    assert one.server_for("x").id == 0
    for wrong in (Site(()), replace(site, hash_option=3)):
        with pytest.raises(ValueError, match=r"no server|hash option"):
            wrong.server_for("a/b")


def test_rights_in_digits() -> None:
    assert format_rights(0x7F3) == "011111110011"
    assert parse_rights("011111110011") == 0x7F3
    assert format_rights(0xF001) == "000000000001"
    for wrong in ("", "1", "0" * 13, "01111111001x", "２" * 12):
        with pytest.raises(ValueError, match="twelve digits"):
            parse_rights(wrong)


def test_hashed_secret() -> None:
    assert hashed_secret(b"") == b"da39a3ee5e6b4b0d3255bfef95601890afd80709"


@pytest.mark.parametrize(
    "value",
    [
        Value(2**32, "T", b""),
        Value(-1, "T", b""),
        Value(1, "T", b"", ttl=-1),
        Value(1, "T", b"", timestamp=2**32),
        Value(1, "T", b"", references=(Reference("a/b", 2**32),)),
    ],
)
def test_a_value_that_does_not_fit(value: Value) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        encode_value(value)


def test_unknown_permission_bits_are_dropped() -> None:
    frame = bytearray(encode_value(Value(1, "T", b"x")))
    frame[13] = 0xF6
    assert decode_value(bytes(frame)).permissions == Permissions(0x06)


# XML --------------------------------------------------------------------------------


def test_xml_over_the_limit() -> None:
    with pytest.raises(Malformed, match=str(XML_OCTETS_MAX)):
        decode_xml(b"<a>" + b" " * XML_OCTETS_MAX + b"</a>")
    with pytest.raises(Malformed, match="elements"):
        decode_xml(b"<a>" + b"<b/>" * 2_048 + b"</a>")


@pytest.mark.parametrize(
    "element",
    [Element("a b"), Element(""), Element("a", {"x y": ""}), Element("a", text="\0"), Element("1")],
)
def test_what_cannot_stand_in_xml(element: Element) -> None:
    with pytest.raises(ValueError, match=r"XML"):
        element.encode()
