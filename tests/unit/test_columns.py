"""Checks of whole chunks: what single names and values are refused for, they are refused for."""

from __future__ import annotations

import pytest

from biaojie.errors import InvalidIdentifier, InvalidRecord
from biaojie.limits import IDENTIFIER_CHARS_MAX, RECORD_BYTES_MAX, VALUE_BYTES_MAX
from biaojie.record import Value
from registry.blocks import Chunk
from registry.columns import check_chunk

PREFIX = "88.118.8"
URL = Value(1, "URL", b"")


def chunk(*suffixes: str, data: bytes = b"x", shape: tuple[Value, ...] = (URL,)) -> Chunk:
    columns = [[b"x"] * (len(suffixes) - 1) + [data] for _ in shape]
    return Chunk(PREFIX, suffixes, [shape], columns)


@pytest.mark.parametrize(
    "suffix", ["SN1", "a b", "产品/1", "\u00e9", "~", "x" * (255 - len(PREFIX) - 1)]
)
def test_good_names_pass(suffix: str) -> None:
    check_chunk(chunk("SN0", suffix))


@pytest.mark.parametrize(
    "suffix",
    [
        "",
        " a",
        "a ",
        "a\tb",
        "a\n",
        "\u200b",
        "x" * (IDENTIFIER_CHARS_MAX - len(PREFIX)),
        "e\u0301",
    ],
)
def test_one_bad_name_among_good_ones_is_found(suffix: str) -> None:
    with pytest.raises(InvalidIdentifier):
        check_chunk(chunk("SN0", suffix, "SN1"))


def test_a_bad_prefix_is_found() -> None:
    with pytest.raises(InvalidIdentifier):
        check_chunk(Chunk("88.1", ["a"], [[URL]], [[b"x"]]))


def test_values_are_checked_with_the_longest_data() -> None:
    check_chunk(chunk("a", "b", data=bytes(VALUE_BYTES_MAX)))
    with pytest.raises(InvalidRecord, match="data"):
        check_chunk(chunk("a", "b", data=bytes(VALUE_BYTES_MAX + 1)))


def test_a_record_is_only_as_long_as_its_own_values() -> None:
    shape = tuple(Value(n, "URL", b"") for n in range(1, 7))
    share = RECORD_BYTES_MAX // 5
    # Each name is long in another value: the longest of all columns are no record.
    columns = [[bytes(share if at == n else 1) for at in range(6)] for n in range(6)]
    names = [f"n{at}" for at in range(6)]
    check_chunk(Chunk(PREFIX, names, [shape], columns))
    columns = [[bytes(share)] * 6 for _ in range(6)]
    with pytest.raises(InvalidRecord, match="bytes of data"):
        check_chunk(Chunk(PREFIX, names, [shape], columns))


@pytest.mark.parametrize(
    "shape", [(URL, URL), (Value(0, "URL", b""),), (Value(1, "", b""),), (Value(1, "U", b"", -1),)]
)
def test_shapes_are_checked(shape: tuple[Value, ...]) -> None:
    with pytest.raises(InvalidRecord):
        check_chunk(chunk("a", shape=shape))


def test_each_of_several_shapes_is_checked() -> None:
    bad = (Value(1, "HS_SECKEY", b""),)  # readable by everybody
    with pytest.raises(InvalidRecord):
        check_chunk(Chunk(PREFIX, ["a", "b"], [(URL,), bad], [[b"x"], [b"x"]], kinds=[0, 1]))
