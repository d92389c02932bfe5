"""Patterns of ranges: what is read, what is refused and where, members, check digits, cutting."""

from __future__ import annotations

import pytest

from biaojie.change import Action, Change
from biaojie.errors import InvalidIdentifier, InvalidRecord
from biaojie.identifier import Identifier
from biaojie.record import Record, Status, Value
from registry.patterns import (
    DIGITS_MAX,
    Check,
    Pattern,
    check_digit,
    check_members,
    parse_pattern,
    sought,
)
from registry.ranges import cut_out, hold_range, member_of


def members(pattern: Pattern) -> list[str]:
    return [pattern.spelled(pattern.number_at(index)) for index in range(pattern.count)]


def test_pattern_names_its_members() -> None:
    pattern = parse_pattern("SN{008..012}-x")
    assert members(pattern) == ["SN008-x", "SN009-x", "SN010-x", "SN011-x", "SN012-x"]
    assert str(pattern) == "SN{008..012}-x"
    assert parse_pattern("SN{00000000..99999999}").count == 100_000_000


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("SN{0..9}", "SN{0..9}"),
        ("SN20{00..99}", "SN{2000..2099}"),  # digits that touch the number are part of it
        ("SN{00..99}05", "SN{0005..9905..100}"),
        ("SN1{0..9}7/b", "SN{107..197..10}/b"),
        ("SN{000..999..300}", "SN{000..900..300}"),  # the last member, not the last number
        ("SN{000..999..5000}", "SN{000..000}"),
        ("SN{7..7..3}", "SN{7..7}"),
        ("69012{3..5}+{", None),
        ("x{001..009+luhn}", "x{001..009+luhn}"),
        ("590{0..9+gs1}", "{5900..5909+gs1}"),
        ("e\u0301{0..1}", "é{0..1}"),
    ],
)
def test_normal_form(given: str, normal: str | None) -> None:
    if normal is None:
        with pytest.raises(InvalidRecord):
            parse_pattern(given)
        return
    pattern = parse_pattern(given)
    assert str(pattern) == normal
    assert parse_pattern(normal) == pattern


@pytest.mark.parametrize(
    ("given", "position", "says"),
    [
        ("SN0001", 6, "no number"),
        ("", 0, "no number"),
        ("SN{0..9}{0..9}", 8, "second brace"),
        ("SN{0..9}}", 8, "second brace"),
        ("SN}0..9{", 7, "do not match"),
        ("SN{0..9", 2, "do not match"),
        ("SN{0-9}", 3, "between braces"),
        ("SN{}", 3, "between braces"),
        ("SN{a..f}", 3, "between braces"),
        ("SN{0..٩}", 3, "between braces"),  # only ASCII digits count
        ("SN{1..500}", 6, "001"),
        ("SN{9..0}", 3, "below"),
        ("SN{0..9..0}", 9, "step"),
        ("SN{0..9+crc}", 8, "crc"),
        ("SN{0..9+luhn}5", 13, "check digit"),
        ("SN{0..9}a1b2c3d4", 8, "runs of digits"),
        ("{" + "0" * 41 + ".." + "9" * 41 + "}", 1, "digits"),
        ("1" * 39 + "{00..99}", 40, "digits"),
        ("{" + "0" * 16 + ".." + "9" * 16 + "}", 1, "members"),
        ("x" * 400 + "{0..9}", 255, "too long"),
    ],
)
def test_faults_are_named_with_their_place(given: str, position: int, says: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        parse_pattern(given)
    assert caught.value.fields["path"] == "pattern"
    assert caught.value.fields["position"] == position
    assert says in caught.value.detail.en
    assert caught.value.detail.zh != caught.value.detail.en


def test_members_must_be_identifiers() -> None:
    check_members("88.118.8", parse_pattern("SN{0..9} x"))
    for bad in ("SN{0..9} ", "a\n{0..9}", "\ud800{0..9}", "x" * 250 + "{0000..9999}"):
        with pytest.raises(InvalidIdentifier):
            check_members("88.118.8", parse_pattern(bad))


@pytest.mark.parametrize(
    ("check", "number", "digit"),
    [
        (Check.LUHN, "7992739871", "3"),
        (Check.LUHN, "453201511283036", "6"),
        (Check.MOD11_10, "0794", "5"),  # ISO/IEC 7064, the standard's own example
        (Check.GS1, "629104150021", "3"),  # GTIN-13
        (Check.GS1, "9638507", "4"),  # GTIN-8
        (Check.GS1, "37610425002123456", "9"),  # SSCC
        (Check.NONE, "123", ""),
    ],
)
def test_check_digits(check: Check, number: str, digit: str) -> None:
    assert check_digit(number, check) == digit


def test_a_wrong_check_digit_is_no_member() -> None:
    pattern = parse_pattern("590{12341234..12341239..2+gs1}7".removesuffix("7"))
    assert str(pattern) == "{59012341234..59012341238..2+gs1}"
    good = pattern.runs[0]
    assert pattern.number_of(good) == 59012341234
    for digit in b"0123456789":
        other = good[:-1] + bytes([digit])
        assert (pattern.number_of(other) is None) == (other != good)
    assert pattern.number_of(pattern.run(59012341235).encode()) is None  # between two steps
    assert pattern.number_of(good[:-1]) is None


def test_a_name_is_sought_by_each_of_its_last_runs() -> None:
    assert [each.shape for each in sought(b"A1B22C")] == [b"A1B\0\0C", b"A\0B22C"]
    assert [each.run for each in sought(b"1-2-3-4-5-6")] == [b"6", b"5", b"4", b"3"]
    assert sought(b"NONE") == []
    assert sought(b"7" * (DIGITS_MAX + 1)) == []


def test_shape_folds_as_keys_do() -> None:
    pattern = parse_pattern("sn{00..99}ü")
    assert pattern.shape() == "SN\0\0ü".encode()
    assert pattern.shape(case_sensitive=True) == "sn\0\0ü".encode()


def test_cutting() -> None:
    pattern = parse_pattern("S{000..999..3}")
    below, cut, above = pattern.cut(100, 200)
    assert [str(part) for part in (below, cut, above)] == [
        "S{000..099..3}",
        "S{102..198..3}",
        "S{201..999..3}",
    ]
    assert pattern.cut(0, 999) == (None, pattern, None)
    assert pattern.cut(1, 2) == (parse_pattern("S{000..000}"), None, pattern.cut(0, 0)[2])


def test_what_a_cut_changed() -> None:
    def change(text: str, version: int, digest: bytes) -> Change:
        return Change(Action.CUT_RANGE, f"x.Y/{text}", version, "k", digest)

    gone, made = bytes(32), b"d" * 32
    changes = [
        change("S{000..099}", 1, gone),
        change("S{000..009}", 1, made),
        change("S{010..099}", 2, made),  # tombstones
        change("S{100..199}", 1, gone),
        change("S{150..199}", 1, made),
        change("T{0..9}", 1, gone),
        change("T{0..9}", 2, made),
        change("U{0..8..2}", 2, gone),
        change("U{0..2..2}", 2, made),
        change("U{8..8}", 2, made),
        Change(Action.CREATE, "x.Y/S5", 1, "k", made),
    ]
    assert [(prefix, str(pattern)) for prefix, pattern in cut_out(changes)] == [
        ("X.Y", "S{010..099}"),
        ("X.Y", "S{100..149}"),
        ("X.Y", "T{0..9}"),
        ("X.Y", "U{4..6..2}"),
    ]


def ruled(text: str, *values: Value) -> Record:
    return Record(
        Identifier("88.118.8", text),
        values,
        template="88.118.8/T",
        created=5,
        modified=5,
        sequence=9,
    )


def test_placeholders_are_filled_and_nothing_else_is() -> None:
    data = b'{suffix} {number} {identifier} {prefix} {{suffix}} {other} {"a": 1} {Suffix}'
    text = "sn{07..08+luhn}"
    found = hold_range(ruled(text, Value(1, "URL", data)), parse_pattern(text), 9)
    record = member_of(found, b"075")
    assert record is not None
    assert record.identifier == Identifier("88.118.8", "sn075")
    assert record.values[0].data == (
        b'sn075 07 88.118.8/sn075 88.118.8 {sn075} {other} {"a": 1} {Suffix}'
    )
    assert (record.version, record.sequence, record.template) == (1, 9, "88.118.8/T")
    assert member_of(found, b"074") is None


def test_a_retired_part_has_tombstones() -> None:
    whole = hold_range(ruled("S{0..9}", Value(1, "URL", b"x")), parse_pattern("S{0..9}"), 9)
    _, cut, above = whole.pattern.cut(0, 4)
    assert cut is not None
    assert above is not None
    gone, kept = whole.retired(cut, 77, 12), whole.having(above, 12)
    record = gone.member(3)
    assert (record.status, record.values, record.version) == (Status.RETIRED, (), 2)
    assert (record.modified, record.sequence, gone.written) == (77, 12, 12)
    assert kept.member(5) == whole.member(5)  # its members are not touched
    assert (kept.name, kept.written) == ("88.118.8/S{5..9}", 12)
