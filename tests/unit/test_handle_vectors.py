"""The Handle codec against tests/vectors/handle: octets made by another program, and traffic
between the reference client and server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from biaojie.wire.handle import (
    DATAGRAM_OCTETS_MAX,
    ENVELOPE_OCTETS,
    AnswerForm,
    AnswerRequest,
    Challenge,
    Malformed,
    Message,
    OpCode,
    OpFlag,
    Reassembly,
    StreamFraming,
    covered,
    decode_admin,
    decode_message,
    decode_namespace,
    decode_public_key,
    decode_session_key,
    decode_site,
    decode_value_list,
    encode_message,
    encode_public_key,
    encode_value_list,
    handle_hash,
    mac_matches,
    secret_answer,
    secret_answer_matches,
    split,
    with_mac,
)
from tests.handle_meaning import meaning, thing, vectors

DECODE: dict[str, Callable[[bytes], Any]] = {
    "HS_ADMIN": decode_admin,
    "HS_VLIST": decode_value_list,
    "HS_SITE": decode_site,
    "HS_PUBKEY": decode_public_key,
    "HS_NAMESPACE": decode_namespace,
}
ENCODE: dict[str, Callable[[Any], bytes]] = {
    "HS_VLIST": encode_value_list,
    "HS_PUBKEY": encode_public_key,
}


def why(vector: dict[str, Any]) -> str:
    return f"{vector.get('type', '')} {vector['why']}".strip()


@pytest.mark.parametrize("vector", list(vectors("messages")), ids=why)
def test_message(vector: dict[str, Any]) -> None:
    octets = bytes.fromhex(vector["hex"])
    message = decode_message(octets)
    assert meaning(message) == vector["message"]
    assert thing(vector["message"]) == message
    assert message.received == octets[ENVELOPE_OCTETS : ENVELOPE_OCTETS + len(message.received)]
    again = encode_message(thing(vector["message"]))
    if vector.get("again", True):
        assert again == octets
    assert decode_message(again) == message


def test_messages_show_every_operation() -> None:
    shown = [vector["message"]["opcode"] for vector in vectors("messages")]
    assert set(shown) >= set(OpCode) - {1001, 1003}


@pytest.mark.parametrize("vector", list(vectors("malformed")), ids=why)
def test_malformed_message(vector: dict[str, Any]) -> None:
    with pytest.raises(Malformed) as caught:
        decode_message(bytes.fromhex(vector["hex"]))
    assert caught.value.offset == vector["offset"], caught.value
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("vector", list(vectors("typed")), ids=why)
def test_typed(vector: dict[str, Any]) -> None:
    octets = bytes.fromhex(vector["hex"])
    decode = DECODE[vector["type"]]
    if "malformed" in vector:
        with pytest.raises(Malformed) as caught:
            decode(octets)
        assert caught.value.offset == vector["malformed"], caught.value
        return
    decoded = decode(octets)
    assert meaning(decoded) == vector["meaning"]
    expected = thing(vector["meaning"])
    assert decoded == expected
    encode = ENCODE.get(vector["type"], lambda typed: typed.encode())
    if vector.get("again", True):
        assert encode(expected) == octets
    assert decode(encode(expected)) == expected


@pytest.mark.parametrize("vector", list(vectors("macs")), ids=why)
def test_mac(vector: dict[str, Any]) -> None:
    octets, key = bytes.fromhex(vector["hex"]), bytes.fromhex(vector["key"])
    message = decode_message(octets)
    assert covered(message, vector["counter"]).hex() == vector["covered"]
    assert mac_matches(message, key)
    assert not mac_matches(message, key[:-1] + b"?")
    assert encode_message(with_mac(message, key, vector["counter"])) == octets
    late = bytearray(octets)
    late[ENVELOPE_OCTETS + 16] ^= 1  # the header's expiration is covered in every version
    assert not mac_matches(decode_message(bytes(late)), key)


@pytest.mark.parametrize("vector", list(vectors("answers")), ids=why)
def test_secret_answer(vector: dict[str, Any]) -> None:
    secret, nonce, digest, answer = (
        bytes.fromhex(vector[name]) for name in ("secret", "nonce", "digest", "answer")
    )
    form = AnswerForm(vector["form"])
    extra = {"salt": bytes.fromhex(vector["salt"])} if "salt" in vector else {}
    assert secret_answer(form, secret, nonce, digest, **extra) == answer
    forms = frozenset(AnswerForm)
    assert secret_answer_matches(answer, secret, nonce, digest, forms)
    assert not secret_answer_matches(answer, secret + b"?", nonce, digest, forms)
    assert not secret_answer_matches(answer, secret, nonce[::-1], digest, forms)
    assert not secret_answer_matches(answer, secret, nonce, digest[::-1], forms)
    assert not secret_answer_matches(answer, secret, nonce, digest, forms - {form})
    weak = form in {AnswerForm.OLDEST, AnswerForm.MD5}
    assert secret_answer_matches(answer, secret, nonce, digest) is not weak


@pytest.mark.parametrize(
    "vector", list(vectors("hashes")), ids=lambda v: f"{v['handle']} {v['option']}"
)
def test_handle_hash(vector: dict[str, Any]) -> None:
    assert handle_hash(vector["handle"], vector["option"]) == vector["hash"]


# Captures -------------------------------------------------------------------------------


def captured(chunk: int | None = None) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every frame of the captures with the line that completed it; streams cut in pieces of
    `chunk` octets."""
    streams: dict[tuple[str, str], StreamFraming] = defaultdict(StreamFraming)
    reassembly = Reassembly()
    for line in vectors("captures"):
        octets = bytes.fromhex(line["hex"])
        flow = (line["conn"], line["dir"])
        if line["proto"] == "udp":
            frame = reassembly.take(flow, octets, 0.0)
            if frame is not None:
                yield line, frame
            continue
        step = chunk or len(octets)
        for start in range(0, len(octets), step):
            for frame in streams[flow].feed(octets[start : start + step]):
                yield line, frame
    assert not any(stream.buffered for stream in streams.values())
    assert not len(reassembly)


def test_all_captures_decode_and_encode_to_the_same_octets() -> None:
    frames = 0
    for line, frame in captured():
        message = decode_message(frame)
        assert encode_message(message) == frame
        assert message.is_request is (line["dir"] == "C>S")
        assert thing(meaning(message)) == message
        frames += 1
    packets = [line for line in vectors("captures") if line["proto"] == "udp"]
    lines = sum(1 for _ in vectors("captures"))
    assert (lines, frames, len(packets)) == (121, 505, 24)


def test_captured_streams_byte_by_byte() -> None:
    assert [frame for _, frame in captured(1)] == [frame for _, frame in captured()]


def test_captured_packets_split_as_the_reference_server_splits() -> None:
    sent = [bytes.fromhex(line["hex"]) for line in vectors("captures") if line["proto"] == "udp"]
    frames = [frame for line, frame in captured() if line["proto"] == "udp"]
    split_again = [packet for frame in frames for packet in split(frame)]
    assert sorted(split_again) == sorted(sent)
    assert sum(len(split(frame)) > 1 for frame in frames) == 2
    assert max(map(len, sent)) == DATAGRAM_OCTETS_MAX


def _conversations() -> Iterator[tuple[Message, Message]]:
    """Challenged requests and their challenges."""
    requests: dict[int, Message] = {}
    for _, frame in captured():
        message = decode_message(frame)
        if message.is_request:
            requests[message.request_id] = message
        elif isinstance(message.body, Challenge):
            yield requests[message.request_id], message


def test_captured_challenges_carry_the_digest_of_the_request() -> None:
    pairs = list(_conversations())
    assert len(pairs) == 3
    for request, challenge in pairs:
        assert challenge.digest is not None
        assert challenge.digest.matches(request.header_and_body())
        assert challenge.digest.matches(encode_message(request)[20:-4]) is (
            request.credential is None
        )
        assert not challenge.digest.matches(request.header_and_body() + b"?")


def test_the_captured_answer_proves_the_secret() -> None:
    challenges = {challenge.session_id: challenge for _, challenge in _conversations()}
    answers = [
        (message, message.body)
        for _, frame in captured()
        if isinstance((message := decode_message(frame)).body, AnswerRequest)
    ]
    right = 0
    for message, body in answers:
        if body.type == "HS_SECKEY":
            challenge = challenges[message.session_id]
            assert isinstance(challenge.body, Challenge)
            assert challenge.digest is not None
            known = challenge.body.nonce, challenge.digest.octets
            assert secret_answer_matches(body.answer, b"peer-secret", *known)
            assert not secret_answer_matches(body.answer, b"peer-Secret", *known)
            right += 1
    assert (right, len(answers)) == (1, 3)


def test_captured_session_keys_are_diffie_hellman() -> None:
    for _, frame in captured():
        message = decode_message(frame)
        if message.opcode == OpCode.SESSION_SETUP and message.is_request:
            key = decode_public_key(message.body.public_key)
        elif message.opcode == OpCode.SESSION_SETUP:
            session_key = decode_session_key(message.body.data)
            assert session_key.cipher == 3
            key = decode_public_key(session_key.octets)
        else:
            continue
        assert meaning(key)["kind"] == "DhKey"
        assert message.body.trailing == b"\0\0"


def test_captured_lists_say_that_more_follows() -> None:
    parts = [decode_message(frame) for _, frame in captured()]
    parts = [part for part in parts if part.opcode == 105 and part.response_code == 1]
    assert [part.has(OpFlag.CONTINUOUS) for part in parts] == [True] * 461 + [False]
    assert sum(len(part.body.handles) for part in parts) > 20_000
