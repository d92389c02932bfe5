"""Nobody may use the node to send others more than he sends: the cut form and the rates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biaojie.wire.handle import (
    DATAGRAM_OCTETS_MAX,
    ENVELOPE_OCTETS,
    Digest,
    DigestAlgorithm,
    Failure,
    Message,
    OpCode,
    OpFlag,
    ResolveRequest,
    ResponseCode,
    Version,
    answer_to,
    decode_envelope,
    decode_message,
    encode_message,
    split,
)
from resolver.front.handle.guard import (
    NETWORKS_MAX,
    REFUSAL_OCTETS,
    RateLimit,
    Verdict,
    cut_form,
    is_cut_form,
    network,
    short_refusal,
)

REQUEST = Message(OpCode.RESOLUTION, ResolveRequest("0.0/0.0", (), ()), request_id=77)


def verdicts(limit: RateLimit, address: str, count: int, now: float) -> list[Verdict]:
    return [limit.verdict(address, now) for _ in range(count)]


def test_the_cut_form_is_one_whole_error_with_the_mark() -> None:
    frame = encode_message(REQUEST)
    short = cut_form(frame)
    assert short is not None
    envelope = decode_envelope(short)
    assert envelope.truncated
    assert envelope.sequence == 0
    assert envelope.length == len(short) - ENVELOPE_OCTETS
    assert envelope.request_id == 77
    answer = decode_message(short)
    assert answer.response_code == ResponseCode.ERROR
    assert answer.opcode == OpCode.RESOLUTION
    assert answer.body == Failure("ask over TCP")
    assert len(short) <= len(frame)


@pytest.mark.parametrize("version", [Version(2, 1), Version(2, 11)])
def test_it_has_the_digest_that_the_client_wants(version: Version) -> None:
    frame = encode_message(
        replace(REQUEST, flags=OpFlag.REQUEST_DIGEST, version=version, suggested=version)
    )
    short = cut_form(frame)
    assert short is not None
    digest = decode_message(short).digest
    assert digest is not None
    assert digest.algorithm != DigestAlgorithm.LEGACY
    assert digest == Digest.of(frame[ENVELOPE_OCTETS:-4], digest.algorithm)
    assert len(short) <= 3 * len(frame)


def test_an_encrypted_request_gets_one_in_clear() -> None:
    frame = encode_message(REQUEST, lambda payload: payload[::-1])
    short = cut_form(frame)
    assert short is not None
    assert decode_message(short).response_code == ResponseCode.ERROR
    assert decode_envelope(short).truncated


def test_an_answer_gets_none() -> None:
    answer = encode_message(answer_to(REQUEST, Failure("no"), ResponseCode.HANDLE_NOT_FOUND))
    assert cut_form(answer) is None


def test_a_fragment_is_no_cut_form() -> None:
    short = cut_form(encode_message(REQUEST))
    assert short is not None
    assert is_cut_form(short)
    long = encode_message(answer_to(REQUEST, Failure("x" * 2000), ResponseCode.ERROR))
    fragments = split(long)
    assert len(fragments) > 3
    assert not any(map(is_cut_form, fragments))
    assert not is_cut_form(encode_message(answer_to(REQUEST, Failure(), ResponseCode.ERROR)))
    assert not is_cut_form(b"\x02\x0a\x22")


def test_a_refusal_keeps_to_its_length() -> None:
    frame = encode_message(REQUEST)
    for most in range(DATAGRAM_OCTETS_MAX):
        words = short_refusal(frame, ResponseCode.PROTOCOL_ERROR, "报文格式错误" * 20, most)
        assert (words is None) == (most < REFUSAL_OCTETS)
        if words is not None:
            assert len(words) <= most
            decode_message(words)


def test_rates_are_by_network() -> None:
    assert network("192.0.2.1") == network("192.0.2.254")
    assert network("192.0.2.1") != network("192.0.3.1")
    assert network("2001:db8:0:1ff::1") == network("2001:db8:0:1aa:ffff::")
    assert network("2001:db8:0:1ff::1") != network("2001:db8:0:2ff::1")
    assert network("fe80::1%eth0") == network("fe80::2%eth1")


def test_beyond_the_rate_every_second_answer_is_cut_and_the_others_are_not_sent() -> None:
    limit = RateLimit(10)
    first = [limit.verdict(f"192.0.2.{n}", 100.0) for n in range(10)]
    assert first == [Verdict.ANSWER] * 10
    assert verdicts(limit, "192.0.2.77", 6, 100.0) == [Verdict.SILENCE, Verdict.CUT] * 3
    assert limit.verdict("192.0.3.1", 100.0) is Verdict.ANSWER
    assert verdicts(limit, "192.0.2.1", 2, 100.15) == [Verdict.ANSWER, Verdict.SILENCE]
    assert verdicts(limit, "192.0.2.1", 11, 200.0).count(Verdict.ANSWER) == 10


def test_no_rate_means_no_limit() -> None:
    limit = RateLimit(0)
    assert set(verdicts(limit, "192.0.2.1", 10_000, 1.0)) == {Verdict.ANSWER}
    assert len(limit) == 0


def test_few_networks_are_remembered_but_the_busy_ones_are() -> None:
    limit = RateLimit(1, networks_max=100)
    assert limit.verdict("192.0.2.1", 0.0) is Verdict.ANSWER
    for n in range(5_000):
        limit.verdict(f"10.{n >> 8}.{n & 255}.1", 0.0)
        assert limit.verdict("192.0.2.1", 0.0) is not Verdict.ANSWER
        assert len(limit) <= 100


def test_the_table_is_bounded() -> None:
    limit = RateLimit(5)
    for n in range(3 * NETWORKS_MAX):
        limit.verdict(f"{n >> 16}.{n >> 8 & 255}.{n & 255}.1", 0.0)
    assert len(limit) <= NETWORKS_MAX
