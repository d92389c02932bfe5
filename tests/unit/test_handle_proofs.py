"""Sessions, MACs and answers to challenges in the Handle codec: what is believed, what not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from biaojie.wire.handle import (
    AnswerForm,
    Malformed,
    Message,
    OpCode,
    PublicKeyAnswer,
    ResolveRequest,
    Version,
    answer_form,
    decode_envelope,
    decode_message,
    decode_payload,
    decode_public_key_answer,
    encode_message,
    hash_name,
    mac_matches,
    secret_answer,
    secret_answer_matches,
    with_mac,
)
from biaojie.wire.handle.answers import ITERATIONS_MAX
from biaojie.wire.handle.cursor import block, u32

HANDLE = "88.118.8/SN1"
ASK = Message(OpCode.RESOLUTION, ResolveRequest(HANDLE), request_id=7)


# Sessions -------------------------------------------------------------------------------


def test_encrypted_messages() -> None:
    def swap(octets: bytes) -> bytes:
        return bytes(octet ^ 0x55 for octet in octets) + b"pad"

    sealed = encode_message(ASK, seal=swap)
    assert decode_envelope(sealed).encrypted
    assert HANDLE.encode() not in sealed
    assert decode_message(sealed, lambda octets: swap(octets[:-3])[:-3]) == ASK
    assert decode_payload(decode_envelope(sealed), swap(sealed[20:-3])[:-3]) == ASK
    with pytest.raises(Malformed):
        decode_message(sealed)
    with pytest.raises(Malformed):
        decode_message(sealed, lambda octets: b"")


def test_a_mac_needs_a_mac() -> None:
    key = b"k" * 16
    good = with_mac(ASK, key, 1)
    assert mac_matches(good, key)
    assert good.credential is not None
    assert not mac_matches(ASK, key)
    for other in (
        replace(good.credential, type="HS_SIGNED"),
        replace(good.credential, algorithm="SHA-256"),
        replace(good.credential, algorithm="MD5"),
        replace(good.credential, algorithm=""),
        replace(good.credential, counter=2),
        replace(good.credential, signature=b""),
    ):
        assert not mac_matches(replace(good, credential=other), key)
    for other_message in (
        replace(good, session_id=1),
        replace(good, request_id=8),
        replace(good, suggested=Version(2, 10)),
        replace(good, body=ResolveRequest("88.118.8/SN2")),
    ):
        assert not mac_matches(other_message, key)
    assert mac_matches(
        replace(good, credential=replace(good.credential, algorithm="hmac sha256")), key
    )


def test_a_message_changed_after_it_came_is_signed_as_it_now_is() -> None:
    came = decode_message(encode_message(ASK))
    changed = with_mac(replace(came, body=ResolveRequest("88.118.8/SN2")), b"key", 3)
    assert mac_matches(decode_message(encode_message(changed)), b"key")


def test_hash_names() -> None:
    assert [hash_name(name) for name in ("SHA-256", "SHA1", "\x01", "SM3", "SHA-512", "")] == [
        "sha256",
        "sha1",
        "md5",
        "sm3",
        None,
        None,
    ]


# Answers to challenges ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "suggested", "form"),
    [
        ((2, 11), (2, 11), AnswerForm.PBKDF2),
        ((2, 7), (2, 11), AnswerForm.PBKDF2),
        ((2, 11), (2, 6), AnswerForm.SHA1),
        ((2, 1), (2, 11), AnswerForm.SHA1),
        ((2, 0), (2, 11), AnswerForm.OLDEST),
        ((5, 0), (2, 11), AnswerForm.OLDEST),
        ((3, 0), (3, 0), AnswerForm.PBKDF2),
    ],
)
def test_form_of_an_answer(
    declared: tuple[int, int], suggested: tuple[int, int], form: AnswerForm
) -> None:
    assert answer_form(Version(*declared), Version(*suggested)) is form


def test_secrets_outside_ascii_as_java_clients_read_them() -> None:
    """The answer of handle.net 9.3.1 with a Chinese password (vectors/keys)."""
    path = Path(__file__).parents[1] / "vectors" / "keys" / "java.json"
    java = json.loads(path.read_text(encoding="utf-8"))
    secret, nonce, digest = (bytes.fromhex(java[n]) for n in ("secret_zh", "nonce", "digest"))
    answer = bytes([AnswerForm.PBKDF2]) + bytes.fromhex(java["pbkdf2_zh"])
    assert secret_answer_matches(answer, secret, nonce, digest)
    assert not secret_answer_matches(answer, secret[:-1], nonce, digest)
    salt = bytes.fromhex("3bb693c4c24142f0794a783d09d82956")
    assert secret_answer(AnswerForm.PBKDF2, secret, nonce, digest, salt=salt) == answer


def _pbkdf2(salt: bytes = b"s" * 16, iterations: int = 1, bits: int = 160) -> bytes:
    return b"\x22" + block(salt) + u32(iterations) + u32(bits) + block(b"m" * 20)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 17,
        b"\x04" * 21,
        b"\x22",
        _pbkdf2(iterations=0),
        _pbkdf2(iterations=ITERATIONS_MAX + 1),
        _pbkdf2(iterations=2**32 - 1),
        _pbkdf2(bits=8),
        _pbkdf2(bits=0),
        _pbkdf2(bits=161),
        _pbkdf2(bits=2**31),
        _pbkdf2(salt=b""),
        _pbkdf2(salt=b"s" * 65),
        _pbkdf2() + b"?",
    ],
)
def test_answers_that_ask_too_much(answer: bytes) -> None:
    with pytest.raises(Malformed):
        secret_answer_matches(answer, b"secret", b"nonce", b"digest")


def test_answers_that_are_merely_wrong() -> None:
    for answer in (_pbkdf2(), b"\x02", b"\x02" + bytes(19), b"\x02" + bytes(20), bytes(16)):
        assert not secret_answer_matches(answer, b"secret", b"nonce", b"digest")


def test_public_key_answers() -> None:
    answer = PublicKeyAnswer("SM3", b"s" * 64)
    assert decode_public_key_answer(answer.encode()) == answer
    for wrong in (b"", answer.encode() + b"?", b"\xff" * 8, answer.encode()[:-1]):
        with pytest.raises(Malformed):
            decode_public_key_answer(wrong)
