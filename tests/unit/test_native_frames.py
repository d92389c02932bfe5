"""Frames of the native protocol: every split, every length, and errors that are always sayable."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from biaojie.errors import ERRORS, BiaojieError, InvalidRequest, MalformedAnswer, TooLarge
from biaojie.limits import FRAME_OCTETS_MAX
from biaojie.wire.native import (
    Frame,
    Framing,
    Kind,
    decode_error,
    decode_request,
    encode_error,
    encode_frame,
    encode_resolve,
    shapes,
)

FRAMES = [
    Frame(1, 2, b"\x91\xa3a/b"),
    Frame(0, 0x81, b"\xc0"),
    Frame(2**32 - 1, 0xFF, bytes(range(256)) * 4),
    Frame(7, 0x13, b""),
    Frame(8, 2, b"\x91\xa3a/c"),
]
OCTETS = b"".join(encode_frame(*frame) for frame in FRAMES)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 8, 9, 13, 64, 1_000, len(OCTETS)])
def test_any_split_gives_the_same_frames(step: int) -> None:
    framing = Framing()
    got: list[Frame] = []
    for at in range(0, len(OCTETS), step):
        got += framing.feed(OCTETS[at : at + step])
    assert got == FRAMES
    assert framing.buffered == 0
    assert framing.fault is None


def test_random_splits_give_the_same_frames() -> None:
    chance = random.Random(4)
    for _ in range(500):
        framing, got, at = Framing(), [], 0
        while at < len(OCTETS):
            size = chance.choice((0, 1, 2, 7, 9, 30, 500))
            got += framing.feed(OCTETS[at : at + size])
            at += size
        assert got == FRAMES


def test_what_is_kept_is_the_unfinished_frame_alone() -> None:
    framing = Framing()
    assert framing.feed(OCTETS + OCTETS[:6]) == FRAMES
    assert framing.buffered == 6


@pytest.mark.parametrize("length", [0, 1, 4, FRAME_OCTETS_MAX + 1, 2**31, 2**32 - 1])
def test_a_length_that_no_frame_has_ends_it(length: int) -> None:
    framing = Framing()
    bad = length.to_bytes(4, "big")
    assert framing.feed(OCTETS + bad) == FRAMES
    assert isinstance(framing.fault, TooLarge if length > 5 else InvalidRequest)
    assert str(length) in framing.fault.detail.en
    assert str(length) in framing.fault.detail.zh
    assert framing.feed(OCTETS) == []
    assert framing.buffered == 0


def test_the_longest_and_the_shortest_frame() -> None:
    longest = encode_frame(1, 4, bytes(FRAME_OCTETS_MAX - 5))
    assert [len(f.body) for f in Framing().feed(longest)] == [FRAME_OCTETS_MAX - 5]
    with pytest.raises(TooLarge):
        encode_frame(1, 4, bytes(FRAME_OCTETS_MAX - 4))
    assert Framing().feed(b"\0\0\0\5\0\0\0\1\x13") == [Frame(1, 0x13, b"")]
    assert Framing(octets_max=10).feed(encode_frame(1, 2, bytes(5))) != []
    small = Framing(octets_max=10)
    assert small.feed(encode_frame(1, 2, bytes(6))) == []
    assert isinstance(small.fault, TooLarge)


def test_a_long_frame_in_small_pieces_is_not_copied_each_time() -> None:
    """8 MiB in pieces of 1 KiB: copied each time that would be 32 GiB."""
    long = encode_frame(1, 4, bytes(FRAME_OCTETS_MAX - 5))
    framing = Framing()
    frames = [f for at in range(0, len(long), 1024) for f in framing.feed(long[at : at + 1024])]
    assert [len(f.body) for f in frames] == [FRAME_OCTETS_MAX - 5]


def test_the_fast_encoder_takes_any_text() -> None:
    for identifier in ("", "a/b", "x" * 40, "泵" * 300, "y" * 70_000):
        (frame,) = Framing().feed(encode_resolve(3, identifier))
        assert (frame.id, frame.kind) == (3, Kind.RESOLVE)
        assert shapes.unpack_answer(frame.body) == (identifier,)


# Errors ---------------------------------------------------------------------------------


class Odd:
    def __str__(self) -> str:
        return "odd \ud800"


LOOP: list[Any] = []
LOOP.append(LOOP)
FIELDS: list[dict[str, Any]] = [
    {},
    {"position": 3, "rule": "prefix-empty", "rows": [{"row": 1, "ok": False}], "share": 0.5},
    {"huge": 2**64, "low": -(2**63) - 1, "fits": 2**64 - 1},
    {"surrogate": "a\ud800b", "octets": b"\xff", "nothing": None, "yes": True},
    {"object": Odd(), "kind": Odd, "set": {1}, "nested": {"tuple": (1, (2, [3, Odd()]))}},
    {"deep": LOOP},
    {"map": {1: "x", None: "y"}},
    {"long": "x" * (5 * 2**20)},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: next(iter(fields), "none"))
def test_any_error_can_be_said(fields: dict[str, Any]) -> None:
    for code, kind in list(ERRORS.items())[: 2 if "long" in fields else None]:
        error = kind("In English \ud800.", "中文。", request_id="id1", **fields)
        read = decode_error(encode_error(error))
        assert type(read) is kind
        assert (read.code, read.request_id) == (code, "id1")
        assert read.detail.zh == "中文。"
        if "long" not in fields:
            assert read.fields.keys() == fields.keys()


def test_plain_fields_come_back_as_they_were() -> None:
    error = InvalidRequest("a", "b", errors=[{"path": "x", "message": "y"}], n=-5, f=0.25)
    assert decode_error(encode_error(error)).fields == {
        "errors": [{"path": "x", "message": "y"}],
        "n": -5,
        "f": 0.25,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x90",
        shapes.pack(["internal"]),
        shapes.pack(["no-such-code", "a", "b", {}, "r"]),
        shapes.pack([1, "a", "b", {}, "r"]),
        shapes.pack(["internal", "a", "b", [], "r"]),
        shapes.pack(["internal", "a", "b", {1: 2}, "r"]),
        shapes.pack(["internal", "a", "b", {"en": 1, "self": 2}, "r"]) + b"\x00",
        b"\x91" * 5000,
        b"\xc1",
    ],
)
def test_what_is_no_error_is_a_malformed_answer(body: bytes) -> None:
    assert isinstance(decode_error(body), MalformedAnswer)


def test_a_field_may_have_any_name() -> None:
    body = shapes.pack(["internal", "a", "b", {"self": 1, "en": 2, "zh": 3, "request_id": 4}, "r"])
    error = decode_error(body)
    assert isinstance(error, BiaojieError)
    assert error.code == "internal"
    assert error.request_id == "r"


NOT_ALLOWED = "it has what is not allowed there: a map, an extension type, too long an array"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it ends within the value"),
        (b"\xc6\xff\xff\xff\xff", "it ends within the value"),
        (b"\x01\x01", "more octets follow the value"),
        (b"\x91" * 2_000, "it is nested too deeply"),
        (b"\xa1\xff", "a text in it is not UTF-8"),
        (b"\xc1", "an octet in it begins no value"),
        (b"\x81\xc0\xc0", NOT_ALLOWED),
        (b"\xd4\x01\x01", NOT_ALLOWED),
        (b"\xdd\x7f\xff\xff\xff", NOT_ALLOWED),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_our_words(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_request(Kind.RESOLVE, body)
    text = "The body is not one msgpack value of this protocol"
    assert caught.value.detail.en == f"{text}: {said}."
    assert not re.search("Error|ExtraData|unpack|max_", str(caught.value.detail))
    assert re.search("[一-鿿]", caught.value.detail.zh)
