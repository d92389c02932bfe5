"""Whose turn it is to be committed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registry.turns import Turns

SUBMISSIONS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 8)), max_size=60)


def filled(submissions: list[tuple[str, int]], size_max: int = 10_000) -> Turns[tuple[str, int]]:
    turns: Turns[tuple[str, int]] = Turns(size_max)
    for number, (side, size) in enumerate(submissions):
        turns.put(side, size, (side, number))
    return turns


def test_what_fits_goes_as_it_came() -> None:
    turns = filled([("a", 3), ("b", 1), ("a", 1), ("c", 2)])
    assert turns.take(7) == [("a", 0), ("b", 1), ("a", 2), ("c", 3)]
    assert (turns.size, bool(turns)) == (0, False)


def test_who_has_sent_much_keeps_the_others_waiting_for_one_commit_at_most() -> None:
    turns = filled([("loud", 1)] * 1_000 + [("quiet", 1), ("other", 2)])
    assert ("quiet", 1_000) in (first := turns.take(10))
    assert ("other", 1_001) in first
    assert sum(side == "loud" for side, _ in first) == 7
    turns.put("quiet", 10, ("quiet", 2_000))
    assert turns.take(10) == [("loud", number) for number in range(7, 17)]
    assert turns.take(10) == [("quiet", 2_000)], "as large as a commit, and the next at that"


def test_one_who_fills_the_queue_does_not_shut_the_others_out() -> None:
    turns = filled([("loud", 1)] * 100, size_max=100)
    assert not turns.has_room("loud", 1)
    assert turns.has_room("quiet", 25)
    assert not turns.has_room("quiet", 26)
    turns.put("quiet", 1, ("quiet", 100))
    assert not turns.has_room("quiet", 1)
    assert filled([], size_max=1).has_room("any", 50), "one that is alone is let in, whatever"


@given(SUBMISSIONS, st.integers(8, 30))
def test_each_is_taken_once_and_in_the_order_of_its_side(
    submissions: list[tuple[str, int]], size_max: int
) -> None:
    turns = filled(submissions)
    taken: list[tuple[str, int]] = []
    while turns:
        group = turns.take(size_max)
        assert group
        assert sum(submissions[number][1] for _, number in group) <= size_max
        assert group == sorted(group, key=lambda item: item[1])
        taken += group
    assert turns.size == 0
    assert sorted(number for _, number in taken) == list(range(len(submissions)))
    for side in "abcde":
        own = [number for other, number in taken if other == side]
        assert own == sorted(own)


@given(SUBMISSIONS, st.integers(8, 30))
def test_a_side_waits_no_more_commits_than_there_are_sides(
    submissions: list[tuple[str, int]], size_max: int
) -> None:
    turns = filled(submissions)
    waits: dict[str, int] = {}
    sides = [side for side, _ in submissions]
    while turns:
        served = {side for side, _ in turns.take(size_max)}
        for side in "abcde":
            still = side in sides
            waits[side] = 0 if side in served or not still else waits.get(side, 0) + 1
            if side in served:
                continue
            assert waits[side] <= 5 or not _waits(turns, side)


def _waits(turns: Turns[tuple[str, int]], side: str) -> bool:
    return side in turns._sides
