"""Values and records: limits, views, look-ups by type, how long a record may be kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from biaojie import limits
from biaojie.errors import InvalidRecord
from biaojie.identifier import Identifier
from biaojie.record import (
    PERMISSIONS_DEFAULT,
    PERMISSIONS_SECRET,
    Permissions,
    Record,
    Reference,
    Value,
    check_values,
    fold_type,
)

VALUE = Value(1, "URL", b"https://example.com/")


def _record(*values: Value) -> Record:
    return Record(Identifier("88.118.8", "SN1"), values)


@pytest.mark.parametrize("octet", range(16))
def test_permissions_both_ways(octet: int) -> None:
    permissions = Permissions(octet)
    text = str(permissions)
    assert len(text) == 4
    assert Permissions.parse(text) is permissions
    assert (text[0] == "1") == bool(octet & 0x08), "admin-read comes first"
    assert (text[3] == "1") == bool(octet & 0x01), "public-write comes last"


def test_default_permissions() -> None:
    assert (str(PERMISSIONS_DEFAULT), str(PERMISSIONS_SECRET)) == ("1110", "1100")


@pytest.mark.parametrize("text", ["", "111", "11100", "1112", "１１１０", " 110", "1e10", "\ud800"])
def test_other_permissions_are_refused(text: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        Permissions.parse(text, "values[3].permissions")
    assert caught.value.fields == {"path": "values[3].permissions"}
    caught.value.detail.en.encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"index": limits.INDEX_MAX},
        {"type": "类" * limits.TYPE_CHARS_MAX},
        {"data": bytes(limits.VALUE_BYTES_MAX)},
        {"ttl": 0},
        {"ttl": limits.TTL_MAX_S},
        {"references": (Reference("a/b", 0),) * limits.REFERENCES_MAX},
        {"references": (Reference("88.118.8/a/b:c?d", limits.INDEX_MAX),)},
        {"type": "HS_SECKEY", "permissions": PERMISSIONS_SECRET},
        {"permissions": Permissions(0)},
    ],
)
def test_values_at_the_limit(changed: dict[str, Any]) -> None:
    value = replace(VALUE, **changed)
    assert check_values([value]) == (value,)


PUBLIC = Permissions.PUBLIC_READ


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"index": 0}, "index"),
        ({"index": -1}, "index"),
        ({"index": limits.INDEX_MAX + 1}, "index"),
        ({"type": ""}, "type"),
        ({"type": "a\nb"}, "type"),
        ({"type": "a\u200bb"}, "type"),
        ({"type": "\ud800"}, "type"),
        ({"type": "a" * (limits.TYPE_CHARS_MAX + 1)}, "type"),
        ({"data": bytes(limits.VALUE_BYTES_MAX + 1)}, "data"),
        ({"ttl": -1}, "ttl"),
        ({"ttl": limits.TTL_MAX_S + 1}, "ttl"),
        ({"ttl": limits.TTL_MAX_S + 1, "ttl_absolute": True}, "ttl"),
        ({"references": (Reference("a/b", 0),) * (limits.REFERENCES_MAX + 1)}, "references"),
        ({"references": (Reference("a/b", -1),)}, "references[0].index"),
        ({"references": (Reference("a/b", 1), Reference("ab", 1))}, "references[1].identifier"),
        ({"references": (Reference("hdl:a/b", 1),)}, "references[0].identifier"),
        ({"references": (Reference("https://h/a/b?" + "x" * 10_000_000, 1),)}, "references[0].id"),
        ({"references": (Reference("a/\ud800", 1),)}, "references[0].identifier"),
        ({"type": "HS_SECKEY"}, "permissions"),
        ({"type": "hs_seckey"}, "permissions"),
        ({"type": "Hs_SecKey", "permissions": PUBLIC}, "permissions"),
    ],
)
def test_values_over_the_limit_name_the_field(changed: dict[str, Any], field: str) -> None:
    value = replace(VALUE, **changed)
    with pytest.raises(InvalidRecord) as caught:
        check_values([value], "rows[7].values")
    path = caught.value.fields["path"]
    assert path.startswith(f"rows[7].values[index={value.index}].{field}")
    assert caught.value.detail.en.startswith(path)
    assert caught.value.detail.zh.startswith(path)
    assert len(str(caught.value)) < 500


def test_a_late_expiry_is_refused_in_words_of_time() -> None:
    with pytest.raises(InvalidRecord, match="must not be after 2038-01-19T03:14:07Z"):
        replace(VALUE, ttl=2**31, ttl_absolute=True).check()


def test_values_are_sorted_and_distinct() -> None:
    values = [replace(VALUE, index=index) for index in (3, 1, 2)]
    assert [value.index for value in check_values(values)] == [1, 2, 3]
    assert check_values([]) == ()
    with pytest.raises(InvalidRecord, match="index 3 occurs twice") as caught:
        check_values([*values, replace(VALUE, index=3, type="EMAIL")])
    assert caught.value.fields == {"path": "values", "index": 3}


def test_all_values_together() -> None:
    many = [replace(VALUE, index=n + 1, data=b"") for n in range(limits.VALUES_MAX)]
    assert len(check_values(many)) == limits.VALUES_MAX
    with pytest.raises(InvalidRecord, match="over 512 values"):
        check_values([*many, replace(VALUE, index=9999)])
    big = [replace(VALUE, index=n + 1, data=bytes(limits.VALUE_BYTES_MAX)) for n in range(4)]
    assert len(check_values(big)) == 4
    with pytest.raises(InvalidRecord, match="over 262144 bytes"):
        check_values([*big, replace(VALUE, index=9, data=b"x")])


@pytest.mark.parametrize("octet", range(16))
def test_views_follow_the_bits(octet: int) -> None:
    record = _record(VALUE, replace(VALUE, index=2, permissions=Permissions(octet)))
    assert [v.index for v in record.public().values] == ([1, 2] if octet & 0x02 else [1])
    assert [v.index for v in record.readable().values] == ([1, 2] if octet & 0x0A else [1])


def test_a_view_that_hides_nothing_is_the_record_itself() -> None:
    record = _record(VALUE)
    assert record.public() is record
    assert record.readable() is record


def test_types_compare_by_ascii_case_only() -> None:
    kelvin = replace(VALUE, index=1, type="\u212aEY")
    record = _record(kelvin, replace(VALUE, index=2, type="Key"), replace(VALUE, index=3))
    assert record.first("kEY") is record.values[1]
    assert record.first("\u212aey") is kelvin
    assert record.first("url") is record.values[2]
    assert record.first("\ud800") is None
    assert fold_type("aZ é ß ı") == "AZ é ß ı"
    assert record.value(3) is record.values[2]
    assert record.value(4) is None


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([(60, False), (30, False)], 30),
        ([(10**6, False)], limits.TTL_CACHE_MAX_S),
        ([(0, False), (30, False)], 0),
        ([(1_000_090, True), (100, False)], 90),
        ([(1_000_000, True)], 0),
        ([(5, True)], 0),
        ([(2**31 - 1, True)], limits.TTL_CACHE_MAX_S),
        ([], limits.TTL_CACHE_MAX_S),
    ],
)
def test_how_long_a_record_may_be_kept(values: list[tuple[int, bool]], seconds: int) -> None:
    record = _record(
        *(
            replace(VALUE, index=n, ttl=ttl, ttl_absolute=absolute)
            for n, (ttl, absolute) in enumerate(values, 1)
        )
    )
    assert record.ttl_s(1_000_000.9) == seconds


def test_data_as_text() -> None:
    assert replace(VALUE, data="电".encode()).text == "电"
    assert replace(VALUE, data=b"").text == ""
    assert replace(VALUE, data=b"\xff").text is None
    assert replace(VALUE, data=b"\xed\xa0\x80").text is None, "a surrogate is not UTF-8"
