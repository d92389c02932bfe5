"""No octets from outside raise anything but the errors that are promised, or cost much."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from biaojie.keys import (
    InvalidKey,
    decode_certificate,
    decode_dh_key,
    decode_private_key,
    decode_public_key,
    der,
    jwk,
    keyfile,
    load,
    pem,
    structures,
    verify,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "keys"
KEYS = {
    kind: load((VECTORS / name).read_bytes()).public
    for kind, name in (
        ("rsa", "rsa-pubkey.bin"),
        ("dsa", "dsa-pubkey.bin"),
        ("sm2", "sm2-public.pem"),
    )
}


def _mutations(data: bytes, number: int) -> list[bytes]:
    """The same ones on each run: cut, flipped, spliced and lengthened."""
    chance = random.Random(len(data))
    made = []
    for _ in range(number):
        octets = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(octets))
            match chance.randrange(5):
                case 0:
                    octets[at] ^= 1 << chance.randrange(8)
                case 1:
                    octets[at] = chance.choice((0, 1, 0x30, 0x7F, 0x80, 0xFF))
                case 2:
                    del octets[at + 1 :]
                case 3:
                    octets[at:at] = chance.randbytes(chance.choice((1, 4, 40)))
                case 4:
                    octets[at : at + 4] = chance.choice(
                        (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4)
                    )
        made.append(bytes(octets))
    return made


@pytest.mark.parametrize("name", sorted(path.name for path in VECTORS.glob("*-*")))
def test_damaged_files_are_refused_clearly(name: str) -> None:
    for data in _mutations((VECTORS / name).read_bytes(), 300):
        for read in (lambda d: load(d, b"abracadabra"), decode_public_key, decode_certificate):
            _refused_or_read(read, data)


def _refused_or_read(read: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(InvalidKey):
        read(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"0" + b"\x84\xff\xff\xff\xff")
@example(b"\0\0\0\4" + b"\0\0\0\0" + b"\x7f\xff\xff\xff" + b"\0\0\0\x80" + bytes(24))
@example(b"-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----")
@example(b"[" * 100_000)
@example(b'{"kty":' + b"[" * 100_000)
@example(b"0\x80" * 60_000)
def test_any_octets_are_a_key_or_refused(data: bytes) -> None:
    readers: list[Callable[[bytes], object]] = [
        load,
        decode_public_key,
        decode_private_key,
        decode_dh_key,
        decode_certificate,
        structures.decode_private,
        structures.decode_public,
        lambda d: keyfile.decode_private(d, b"p"),
        lambda d: pem.decrypt(d, b"p"),
    ]
    for read in readers:
        _refused_or_read(read, data)


def test_nested_structures_cost_nothing() -> None:
    data = b""
    for _ in range(2_000):
        algorithm = der.sequence(der.object_id(structures.RSA_ID), der.null())
        data = der.sequence(der.integer(0), algorithm, der.octets(data[:60_000]))
    _refused_or_read(load, data)
    with pytest.raises(InvalidKey, match="at most"):
        load(bytes(200_000))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(KEYS)),
    st.sampled_from(["SHA-256", "sha1", "MD5", "SM3", "", "\0", "SHA-512", "x" * 500, "\ud800"]),
    st.binary(max_size=64),
    st.one_of(st.binary(max_size=300), st.binary(min_size=64, max_size=64)),
    st.text(max_size=20),
)
@example("sm2", "SM3", b"", b"\0" * 64, "\ud800")
@example("sm2", "SM3", b"", b"\x30\x06\x02\x01\x01\x02\x01\x01", "x" * 10_000)
@example("rsa", "SHA-256", b"", b"x" * 5_000, "")
def test_verify_never_raises(
    kind: str, name: str, data: bytes, signature: bytes, user: str
) -> None:
    assert verify(KEYS[kind], name, data, signature, user) is False


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"kty": 3},
        {"kty": "EC"},
        {"kty": "RSA"},
        {"kty": "RSA", "n": 5, "e": "AQAB"},
        {"kty": "RSA", "n": "\u20ac", "e": "AQAB"},
        {"kty": "RSA", "n": "A" * 5000, "e": "AQAB"},
        {"kty": "SM2", "d": "AAAA"},
        {"kty": "SM2", "d": ""},
    ],
)
def test_other_json_is_refused(document: object) -> None:
    with pytest.raises(InvalidKey):
        jwk.decode(document)
