"""Blocks give back what was put in, whichever way they were made."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Reference, Status, Value
from registry import blocks
from registry.blocks import Chunk, cut, seal
from registry.members import CONTENT_MAX, Member, Members, content_of

SUFFIXES = st.lists(
    st.text(st.sampled_from("abAB019-é标"), min_size=1, max_size=8),
    min_size=1,
    max_size=120,
    unique_by=lambda text: text.encode().upper(),
).map(lambda texts: sorted(texts, key=lambda text: text.encode().upper()))
VALUES = st.lists(
    st.builds(
        Value,
        index=st.integers(1, 5),
        type=st.sampled_from(["URL", "LOT"]),
        data=st.binary(max_size=12),
        ttl=st.sampled_from([86_400, 5]),
        ttl_absolute=st.booleans(),
        timestamp=st.integers(0, 3),
        permissions=st.sampled_from([Permissions(0x0E), Permissions(0)]),
        references=st.sampled_from([(), (Reference("1/a", 2),)]),
    ),
    max_size=3,
    unique_by=lambda value: value.index,
)


def all_of(sealed: tuple[blocks.Sealed, ...] | list[blocks.Sealed]) -> list[Member]:
    found = []
    for at in sealed:
        assert at.digest == hashlib.sha256(content_of(at.blob)).digest()
        members = Members(at.blob, at.size, 9)
        one_by_one = [
            Member(suffix, members.record(n)) for n, suffix in enumerate(members.suffixes())
        ]
        assert members.all() == one_by_one
        assert (at.first, at.last) == (one_by_one[0].suffix, one_by_one[-1].suffix)
        assert at.size == len(one_by_one) <= blocks.MEMBERS_MAX
        for member in one_by_one:
            assert members.find(member.suffix) == member.record
            for other in (member.suffix + b"0", member.suffix[:-1], b"", b"~"):
                assert (members.find(other) is None) == (other not in members.suffixes())
        found += one_by_one
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_records_come_back(data: st.DataObject) -> None:
    members = []
    for suffix in data.draw(SUFFIXES):
        record = Record(
            Identifier(data.draw(st.sampled_from(["88.118.8", "88.118.8"])), suffix),
            tuple(data.draw(VALUES)),
            data.draw(st.sampled_from(list(Status))),
            data.draw(st.sampled_from([None, "88.118.8/t"])),
            data.draw(st.integers(1, 3)),
            data.draw(st.integers(0, 2**35)),
            0,
            data.draw(st.integers(1, 9)),
        )
        record = replace(record, modified=record.created + data.draw(st.integers(0, 9)))
        members.append(Member(record.identifier.key().suffix, record))
    assert all_of(seal(members, 9)) == members


@settings(max_examples=60, deadline=None)
@given(st.data(), SUFFIXES, st.booleans())
def test_columns_are_the_records_they_stand_for(
    data: st.DataObject, suffixes: list[str], mixed: bool
) -> None:
    shapes = [[Value(1, "URL", b""), Value(3, "LOT", b"", ttl=5)], [Value(2, "X", b"")], []]
    kinds = data.draw(st.lists(st.integers(0, 2), min_size=len(suffixes), max_size=len(suffixes)))
    if not mixed:
        kinds = [0] * len(suffixes)
    columns: list[list[bytes]] = [[], [], []]
    expected = []
    for suffix, kind in zip(suffixes, kinds, strict=True):
        values = []
        for n, value in enumerate(shapes[kind]):
            octets = data.draw(st.sampled_from([b"", b"https://a/1", b"https://a/22", b"x"]))
            columns[n if kind == 0 else 2].append(octets)
            values.append(replace(value, data=octets, timestamp=1_700_000_000))
        record = Record(
            Identifier("a.B", suffix),
            tuple(values),
            Status.DRAFT,
            "a.B/t",
            created=1_700_000_000,
            modified=1_700_000_000,
            sequence=9,
        )
        expected.append(Member(suffix.encode().upper(), record))
    chunk = Chunk(
        "a.B",
        suffixes,
        shapes if mixed else shapes[:1],
        columns if mixed else columns[:2],
        kinds if mixed else None,
        Status.DRAFT,
        "a.B/t",
    )
    bulk = cut(chunk, 1_700_000_000)
    assert (bulk.prefix, bulk.count, bulk.slashes) == ("A.B", len(suffixes), False)
    assert all_of(bulk.sealed) == expected
    # The two ways to make a block make the same one, so that rewriting it changes no octet.
    assert [at.digest for at in seal(expected, 9)] == [at.digest for at in bulk.sealed] or mixed


def test_large_values_make_small_blocks() -> None:
    suffixes = [f"{n:03}" for n in range(100)]
    column = [bytes(5_000 if n % 10 == 0 else 10) for n in range(100)]
    bulk = cut(Chunk("1", suffixes, [[Value(1, "B", b"")]], [column]), 1)
    assert [member.record.values[0].data for member in all_of(bulk.sealed)] == column
    assert max(len(content_of(at.blob)) for at in bulk.sealed) < 2 * blocks.OCTETS_MAX


@pytest.mark.parametrize(
    ("suffixes", "columns", "kinds"),
    [
        ([], [[]], None),
        (["b", "a"], [[b"", b""]], None),
        (["a", "A"], [[b"", b""]], None),
        (["a", "a"], [[b"", b""]], None),
        (["a\nb"], [[b""]], None),
        (["a", "b"], [[b""]], None),
        (["a"], [], None),
        (["a", "b"], [[b"", b""]], [0]),
        (["a", "b"], [[b"", b""]], [0, 1]),
    ],
)
def test_a_chunk_that_is_not_one(
    suffixes: list[str], columns: list[list[bytes]], kinds: list[int] | None
) -> None:
    with pytest.raises(ValueError, match="chunk"):
        cut(Chunk("1", suffixes, [[Value(1, "B", b"")]], columns, kinds), 1)


def test_what_is_no_block_says_so() -> None:
    good = cut(Chunk("1", ["a", "b"], [[]], []), 1).sealed[0].blob
    huge = zstandard.ZstdCompressor().compress(bytes(CONTENT_MAX + 1))
    other = zstandard.ZstdCompressor().compress(msgpack.packb([2] + [None] * 12))
    for bad in (b"", b"x", good[:-1], huge, other):
        with pytest.raises(ValueError, match="block"):
            Members(bad, 2, 1)


def test_the_content_of_a_block_is_for_ever() -> None:
    """Its digest is in change logs: another content for the same members would not verify."""
    shapes = [[Value(1, "URL", b""), Value(2, "LOT", b"", ttl=5)], []]
    columns = [[b"https://a/1", b"https://a/30"], [b"x", b"yy"]]
    chunk = Chunk(
        "88.118.8", ["sn1", "SN2", "sn30"], shapes, columns, [0, 1, 0], Status.ACTIVE, "8/t"
    )
    [sealed] = cut(chunk, 1_700_000_000).sealed
    assert content_of(sealed.blob).hex() == (
        "9d01a838382e3131382e3893c402534e93010102c4043132333093c40093030304c40a736e31534e32736e3330"
        "01a3382f740100ce6553f1000092929201a355524c9302a34c4f5481010590c4030001009293c40a68747470"
        "733a2f2f612f920102c40331333093c400920102c403787979"
    )
