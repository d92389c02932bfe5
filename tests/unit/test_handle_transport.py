"""Handle messages in TCP streams, UDP packets and HTTP bodies: framing, fragments, limits."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from biaojie.wire.handle import (
    DATAGRAM_OCTETS_MAX,
    ENVELOPE_OCTETS,
    MESSAGE_OCTETS_MAX,
    Envelope,
    Failure,
    Malformed,
    Message,
    OpCode,
    Reassembly,
    ResolveRequest,
    StreamFraming,
    Version,
    decode_envelope,
    decode_message,
    encode_message,
    is_tunnel,
    split,
    tunnel_handle,
    tunnel_path,
    whole_frames,
)
from biaojie.wire.handle.fragments import WAIT_S

FRAGMENT = DATAGRAM_OCTETS_MAX - ENVELOPE_OCTETS


def frame_of(size: int, request_id: int = 7) -> bytes:
    """A frame with a payload of exactly `size` octets."""
    message = Message(OpCode.RESOLUTION, Failure("x" * (size - 32)), 2, request_id=request_id)
    frame = encode_message(message)
    assert len(frame) == size + ENVELOPE_OCTETS
    return frame


# TCP ------------------------------------------------------------------------------------


def test_several_frames_in_one_piece() -> None:
    frames = [frame_of(size, size) for size in (32, 100, 5_000, 33)]
    assert list(StreamFraming().feed(b"".join(frames))) == frames


@pytest.mark.parametrize("seed", range(20))
def test_frames_in_any_pieces(seed: int) -> None:
    chance = random.Random(seed)
    frames = [frame_of(chance.randint(32, 2_000), number) for number in range(10)]
    stream = b"".join(frames)
    framing = StreamFraming()
    got = []
    at = 0
    while at < len(stream):
        step = chance.choice((1, 2, 19, 20, 21, 500, 3_000))
        got += list(framing.feed(stream[at : at + step]))
        at += step
    assert got == frames
    assert framing.buffered == 0


def test_frames_before_the_fault_are_given() -> None:
    good = frame_of(50)
    framing = StreamFraming()
    frames = framing.feed(good + good + b"GET / HTTP/1.1\r\n\r\n\r\n")
    assert [next(frames), next(frames)] == [good, good]
    with pytest.raises(Malformed):
        next(frames)
    with pytest.raises(Malformed):
        list(framing.feed(b""))


def test_frames_left_unread_are_kept() -> None:
    framing = StreamFraming()
    framing.feed(frame_of(40, 1))
    assert framing.buffered == 60
    assert [decode_envelope(frame).request_id for frame in framing.feed(frame_of(40, 2))] == [1, 2]


def test_a_long_message_is_refused_on_its_envelope() -> None:
    long = Envelope(Version(2, 11), Version(2, 11), 0, 1, 0, MESSAGE_OCTETS_MAX + 1)
    with pytest.raises(Malformed, match="at most 262144"):
        list(StreamFraming().feed(long.encode()))
    with pytest.raises(Malformed, match="at most 1000"):
        list(StreamFraming(1_000).feed(frame_of(1_001)[:ENVELOPE_OCTETS]))
    with pytest.raises(Malformed, match="at least 24"):
        list(StreamFraming().feed(replace(long, length=23).encode()))


def test_truncated_means_nothing_on_tcp() -> None:
    frame = bytearray(frame_of(600))
    frame[2] |= 0x20
    [got] = StreamFraming().feed(bytes(frame))
    assert decode_message(got).request_id == 7


# UDP ------------------------------------------------------------------------------------

SIZES = [32, 491, 492, 493, 983, 984, 985, 5_000, MESSAGE_OCTETS_MAX]


@pytest.mark.parametrize("size", SIZES)
def test_packets_of_a_message(size: int) -> None:
    frame = frame_of(size)
    packets = split(frame)
    assert len(packets) == -(-size // FRAGMENT)
    assert all(len(packet) == DATAGRAM_OCTETS_MAX for packet in packets[:-1])
    assert len(packets[-1]) <= DATAGRAM_OCTETS_MAX
    envelopes = [decode_envelope(packet) for packet in packets]
    assert [envelope.sequence for envelope in envelopes] == list(range(len(packets)))
    assert {envelope.length for envelope in envelopes} == {size}
    assert {envelope.truncated for envelope in envelopes} == {len(packets) > 1}
    assert b"".join(packet[ENVELOPE_OCTETS:] for packet in packets) == frame[ENVELOPE_OCTETS:]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ["sent", "reversed", "shuffled", "twice"])
def test_packets_in_any_order_make_the_message(size: int, order: str) -> None:
    frame = frame_of(size)
    packets = split(frame)
    if order == "reversed":
        packets.reverse()
    elif order == "shuffled":
        random.Random(size).shuffle(packets)
    elif order == "twice":
        packets = [packet for packet in packets for _ in range(2)][:-1]
    reassembly = Reassembly()
    got = [reassembly.take("a", packet, 0.0) for packet in packets]
    assert got[-1] == frame
    assert len(packets) == 1 or got[:-1] == [None] * (len(packets) - 1)
    assert (len(reassembly), reassembly.octets) == (0, 0)


def test_fragments_without_the_truncated_mark() -> None:
    frame = frame_of(1_000)
    reassembly = Reassembly()
    got = None
    for packet in split(frame):
        plain = bytearray(packet)
        plain[2] &= ~0x20
        got = reassembly.take("a", bytes(plain), 0.0)
    assert got == frame


def test_a_long_packet_in_one_piece() -> None:
    frame = frame_of(5_000)
    assert Reassembly().take("a", frame, 0.0) == frame


def test_messages_do_not_mix() -> None:
    first, second = frame_of(900, 1), frame_of(900, 2)
    reassembly = Reassembly()
    for source in ("a", "b"):
        assert reassembly.take(source, split(first)[0], 0.0) is None
    assert reassembly.take("a", split(second)[1], 0.0) is None
    assert reassembly.take("c", split(first)[1], 0.0) is None
    assert reassembly.take("a", split(first)[1], 0.0) == first
    assert reassembly.take("a", split(second)[0], 0.0) == second
    assert len(reassembly) == 2


def test_a_second_try_with_other_octets_begins_anew() -> None:
    first = frame_of(1_400)
    second = first[:600] + b"y" * 800 + first[1_400:]
    assert len(split(first)) == 3
    reassembly = Reassembly()
    assert reassembly.take("a", split(first)[0], 0.0) is None
    assert reassembly.take("a", split(first)[1], 0.0) is None
    assert reassembly.take("a", split(second)[1], 0.0) is None  # differs: the old ones go
    assert reassembly.octets == FRAGMENT
    assert reassembly.take("a", split(second)[0], 0.0) is None
    assert reassembly.take("a", split(second)[2], 0.0) == second


def test_another_length_under_the_same_number_begins_anew() -> None:
    reassembly = Reassembly()
    assert reassembly.take("a", split(frame_of(900))[0], 0.0) is None
    frame = frame_of(901)
    assert reassembly.take("a", split(frame)[0], 0.0) is None
    assert len(reassembly) == 1
    assert reassembly.take("a", split(frame)[1], 0.0) == frame


def test_fragments_wait_no_longer_than_they_may() -> None:
    frame = frame_of(900)
    one, two = split(frame)
    reassembly = Reassembly()
    assert reassembly.take("a", one, 100.0) is None
    assert reassembly.take("a", two, 100.0 + WAIT_S) == frame
    assert reassembly.take("a", one, 200.0) is None
    assert reassembly.take("a", two, 200.1 + WAIT_S) is None
    assert len(reassembly) == 1
    reassembly.forget(1e9)
    assert (len(reassembly), reassembly.octets) == (0, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sequence": 2}, "fragment number below 2"),
        ({"sequence": 2**32 - 1}, "fragment number"),
        ({"length": 2**31}, "at most 262144"),
        ({"length": 23}, "at least 24"),
        ({"length": 0}, "at least 24"),
        ({"length": 493}, "fragment of 1 octets"),
        ({"length": 400}, "fragment number below 1"),
        ({"sequence": 0, "length": 400}, "fragment of 400 octets"),
    ],
)
def test_fragments_that_fit_no_message(change: dict[str, int], match: str) -> None:
    packet = split(frame_of(900))[1]
    wrong = replace(decode_envelope(packet), **change).encode() + packet[ENVELOPE_OCTETS:]
    reassembly = Reassembly()
    with pytest.raises(Malformed, match=match):
        reassembly.take("a", wrong, 0.0)
    assert len(reassembly) == 0


def test_a_short_or_long_fragment() -> None:
    one, two = split(frame_of(900))
    reassembly = Reassembly()
    for wrong in (one[:-1], one + b"?", two[:-1], two + b"?", one[:20], one[:19], b""):
        with pytest.raises(Malformed):
            reassembly.take("a", wrong, 0.0)
    assert len(reassembly) == 0


def test_one_source_cannot_crowd_out_another() -> None:
    reassembly = Reassembly(per_source_max=4)
    mine = frame_of(900, 1_000)
    assert reassembly.take("me", split(mine)[0], 0.0) is None
    for number in range(500):
        assert reassembly.take("flood", split(frame_of(900, number))[0], 0.0) is None
    assert len(reassembly) == 5
    assert reassembly.take("me", split(mine)[1], 0.0) == mine


def test_many_sources_are_bounded() -> None:
    reassembly = Reassembly(partial_max=100, octets_max=30_000)
    packet = split(frame_of(900))[0]
    for number in range(5_000):
        reassembly.take(number, packet, number / 1_000_000)
        assert len(reassembly) <= 100
        assert reassembly.octets <= 30_000
    assert reassembly.octets == len(reassembly) * FRAGMENT == 60 * FRAGMENT


def test_one_huge_message_is_bounded() -> None:
    reassembly = Reassembly(octets_max=10 * FRAGMENT)
    for packet in split(frame_of(MESSAGE_OCTETS_MAX)):
        assert reassembly.take("a", packet, 0.0) is None
        assert reassembly.octets <= 10 * FRAGMENT
    with pytest.raises(Malformed, match="at most 2000"):
        Reassembly(message_octets_max=2_000).take("a", split(frame_of(2_001))[0], 0.0)


def test_announced_sizes_take_no_memory() -> None:
    reassembly = Reassembly()
    packet = split(frame_of(MESSAGE_OCTETS_MAX))[0]
    for number in range(50):
        reassembly.take(number, packet, 0.0)
    assert reassembly.octets == 50 * FRAGMENT


# HTTP -----------------------------------------------------------------------------------


def test_http_bodies() -> None:
    frames = (frame_of(40, 1), frame_of(700, 2))
    assert whole_frames(frames[0]) == frames[:1]
    assert whole_frames(b"".join(frames)) == frames
    assert whole_frames(b"") == ()
    for wrong in (frames[0][:-1], frames[0] + b"?", b"<html>" * 10):
        with pytest.raises(Malformed):
            whole_frames(wrong)
    with pytest.raises(Malformed):
        whole_frames(frames[1], 600)


@pytest.mark.parametrize("handle", ["88.118.8/SN1", "88.118.8/零 件?#%2F", "0", "/", "a//b/../c"])
def test_paths_of_the_tunnel(handle: str) -> None:
    path = tunnel_path(handle)
    assert path.startswith("/")
    assert path.isascii()
    assert not {" ", "?", "#"} & set(path)
    assert tunnel_handle(path) == handle
    assert tunnel_path(handle, "/hdl/") == "/hdl" + path


def test_paths_that_are_too_much() -> None:
    for wrong in ("/" + "%E9", "/" + "x" * 7_000):
        with pytest.raises(Malformed):
            tunnel_handle(wrong)


def test_media_type() -> None:
    assert is_tunnel("application/x-hdl-message")
    assert is_tunnel("Application/X-HDL-Message; charset=binary")
    assert not is_tunnel("application/json")
    assert not is_tunnel("")


def test_a_frame_is_the_same_on_every_transport() -> None:
    request = Message(OpCode.RESOLUTION, ResolveRequest("88.118.8/SN1"), request_id=3)
    frame = encode_message(request)
    assert split(frame) == [frame]
    assert list(StreamFraming().feed(frame)) == [frame]
    assert whole_frames(frame) == (frame,)
    assert Reassembly().take("a", frame, 0.0) == frame
    assert decode_message(frame) == request
