"""Patterns against the plain list of their members."""

from __future__ import annotations

from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st

from registry.patterns import Check, Pattern, parse_pattern, sought

literals = st.text(alphabet="aZ-0159é/", max_size=4)


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    width = draw(st.integers(1, 3))
    low = draw(st.integers(0, 10**width - 1))
    high = draw(st.integers(low, 10**width - 1))
    step = draw(st.integers(1, 40))
    check = draw(st.sampled_from(list(Check)))
    after = draw(literals)
    if check:
        after = after.lstrip("0123456789")
    number = f"{low:0{width}}..{high:0{width}}..{step}" + (f"+{check}" if check else "")
    text = f"{draw(literals)}{{{number}}}{after}"
    return parse_pattern(text)


def listed(pattern: Pattern) -> list[bytes]:
    return [pattern.key(number) for number in range(pattern.first, pattern.last + 1, pattern.step)]


@given(patterns())
def test_members_are_found_in_order_and_no_others(pattern: Pattern) -> None:
    keys = listed(pattern)
    assert keys == sorted(set(keys))
    assert len(keys) == pattern.count
    assert parse_pattern(str(pattern)) == pattern
    first, last = pattern.runs
    for key in keys:
        [run] = [each.run for each in sought(key) if each.shape == pattern.shape()]
        assert first <= run <= last
        assert pattern.number_of(run) is not None
        assert pattern.key(pattern.number_of(run) or 0) == key


@given(patterns(), st.integers(0, 10**4))
def test_only_members_are_members(pattern: Pattern, other: int) -> None:
    width = len(pattern.runs[0])
    run = f"{other % 10**width:0{width}}".encode()
    blank = pattern.shape()
    key = blank.replace(bytes(width), run, 1)
    assert (pattern.number_of(run) is not None) == (key in listed(pattern))


@given(patterns(), st.binary(max_size=6), st.integers(0, 10**3))
def test_listing_begins_anywhere(pattern: Pattern, octets: bytes, at: int) -> None:
    keys = listed(pattern)
    near = keys[at % len(keys)]
    for after in (octets, near, near[:-1], near + b"\0", near[:-1] + b"\xff"):
        number = pattern.first_after(after, pattern.shape())
        place = bisect_right(keys, after)
        assert (None if number is None else pattern.key(number)) == (
            keys[place] if place < len(keys) else None
        )


@given(patterns(), st.integers(-5, 10**7), st.integers(0, 10**6))
def test_a_cut_loses_nobody(pattern: Pattern, low: int, width: int) -> None:
    parts = pattern.cut(low, low + width)
    assert [key for part in parts if part for key in listed(part)] == listed(pattern)
    assert all(parse_pattern(str(part)) == part for part in parts if part)
    _, cut, _ = parts
    numbers = range(pattern.first, pattern.last + 1, pattern.step)
    inside = [number for number in numbers if low <= number <= low + width]
    assert (cut.count if cut else 0) == len(inside)


@given(patterns(), patterns())
def test_two_that_share_a_name_have_one_shape_and_overlap(one: Pattern, two: Pattern) -> None:
    if set(listed(one)) & set(listed(two)):
        assert one.shape() == two.shape()
        assert one.runs[0] <= two.runs[1]
        assert two.runs[0] <= one.runs[1]
