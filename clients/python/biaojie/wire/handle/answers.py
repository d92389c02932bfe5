"""Answers to challenges: what proves that a client has a key.

Both kinds sign `nonce + digest`, the nonce of the challenge and the digest of the request
that was challenged (without the octet of its algorithm). Secret keys: made and checked here.
Public keys: framed here; RSA is PKCS#1 v1.5, DSA as DER, with SHA-256 from version 2.7 (DSA
from 2.11) and SHA-1 before; SM2 with SM3 is IIIS only.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from .cursor import Malformed, Reader, block, text, u8, u32
from .version import Version, lower

SECRET_KEY: Final = "HS_SECKEY"  # noqa: S105 — a type of value
PUBLIC_KEY: Final = "HS_PUBKEY"
NONCE_OCTETS: Final = 16
SALT_OCTETS: Final = 16
ITERATIONS: Final = 10_000
ITERATIONS_MAX: Final = 100_000
"""The client chooses, the server computes: 100,000 take some 50 ms."""
KEY_BITS: Final = 160
KEY_BITS_MIN: Final = 128
"""The client chooses this too. A derived key of one octet could simply be guessed."""
KEY_BITS_MAX: Final = 512
_SALT_OCTETS_MIN: Final = 8
_SALT_OCTETS_MAX: Final = 64


class AnswerForm(IntEnum):
    """The first octet of a secret-key answer. OLDEST has none: 16 octets of MD5.

    Up to SHA256 the answer is H(secret + nonce + digest + secret).
    """

    OLDEST = 0
    MD5 = 1
    SHA1 = 2
    SHA256 = 3
    HMAC_SHA1 = 0x12
    HMAC_SHA256 = 0x13
    PBKDF2 = 0x22
    """HMAC-SHA1 under PBKDF2-HMAC-SHA1(secret)."""


FORMS_SAFE: Final = frozenset(
    {
        AnswerForm.SHA1,
        AnswerForm.SHA256,
        AnswerForm.HMAC_SHA1,
        AnswerForm.HMAC_SHA256,
        AnswerForm.PBKDF2,
    }
)
"""All but MD5."""
_HASHES: Final = {
    AnswerForm.OLDEST: "md5",
    AnswerForm.MD5: "md5",
    AnswerForm.SHA1: "sha1",
    AnswerForm.SHA256: "sha256",
}
_HMACS: Final = {AnswerForm.HMAC_SHA1: "sha1", AnswerForm.HMAC_SHA256: "sha256"}


def answer_form(declared: Version, suggested: Version) -> AnswerForm:
    """The form in which to answer a challenge of that version."""
    version = lower(declared, suggested)
    if not version.reaches((2, 1)):
        return AnswerForm.OLDEST
    return AnswerForm.PBKDF2 if version.reaches((2, 7)) else AnswerForm.SHA1


def secret_answer(
    form: AnswerForm,
    secret: bytes,
    nonce: bytes,
    digest: bytes,
    *,
    salt: bytes = b"",
    iterations: int = ITERATIONS,
) -> bytes:
    """The answer of who knows `secret`. PBKDF2 needs `salt`, 16 fresh random octets."""
    if form == AnswerForm.PBKDF2:
        if len(salt) < _SALT_OCTETS_MIN:
            raise ValueError(f"PBKDF2 needs a salt of at least {_SALT_OCTETS_MIN} octets")
        mac = _pbkdf2(_as_java(secret), salt, iterations, KEY_BITS, nonce + digest)
        return u8(form) + block(salt) + u32(iterations) + u32(KEY_BITS) + block(mac)
    plain = _plain(form, secret, nonce + digest)
    return plain if form == AnswerForm.OLDEST else u8(form) + plain


def secret_answer_matches(
    answer: bytes,
    secret: bytes,
    nonce: bytes,
    digest: bytes,
    forms: frozenset[AnswerForm] = FORMS_SAFE,
) -> bool:
    """Whether `answer` was made with `secret`, in one of `forms`.

    Raises Malformed where it is no answer, or asks for more work or less security than the
    limits above.
    """
    reader = Reader(answer)
    if len(answer) == 16:
        form = AnswerForm.OLDEST
    else:
        number = reader.u8("the form of an answer")
        try:
            form = AnswerForm(number or -1)
        except ValueError:
            raise Malformed(0, "a form of answer, one of 1, 2, 3, 18, 19, 34") from None
    if form not in forms:
        return False
    if form != AnswerForm.PBKDF2:
        return hmac.compare_digest(_plain(form, secret, nonce + digest), reader.rest())
    salt = reader.block("a salt", _SALT_OCTETS_MAX)
    if len(salt) < _SALT_OCTETS_MIN:
        raise Malformed(1, f"a salt of at least {_SALT_OCTETS_MIN} octets, not {len(salt)}")
    at = reader.offset
    iterations = reader.u32("an iteration count")
    if not 1 <= iterations <= ITERATIONS_MAX:
        raise Malformed(at, f"1 to {ITERATIONS_MAX} iterations, not {iterations}")
    bits = reader.u32("a key length")
    if not KEY_BITS_MIN <= bits <= KEY_BITS_MAX or bits % 8:
        raise Malformed(at + 4, f"a key of {KEY_BITS_MIN} to {KEY_BITS_MAX} bits, not {bits}")
    mac = reader.block("a MAC", 64)
    reader.done("the answer")
    # Java clients derive from their own reading of the octets; others from the octets.
    return any(
        hmac.compare_digest(_pbkdf2(form_of, salt, iterations, bits, nonce + digest), mac)
        for form_of in dict.fromkeys((_as_java(secret), secret))
    )


def _plain(form: AnswerForm, secret: bytes, signed: bytes) -> bytes:
    if form in _HMACS:
        return hmac.digest(secret, signed, _HMACS[form])
    return hashlib.new(_HASHES[form], secret + signed + secret, usedforsecurity=False).digest()


def _as_java(secret: bytes) -> bytes:
    """The octets handle.net derives a key from: each octet of the secret as a character, those
    in UTF-8. The same as the secret where that is ASCII."""
    return secret.decode("latin-1").encode()


def _pbkdf2(secret: bytes, salt: bytes, iterations: int, bits: int, signed: bytes) -> bytes:
    key = hashlib.pbkdf2_hmac("sha1", secret, salt, iterations, bits // 8)
    return hmac.digest(key, signed, "sha1")


@dataclass(frozen=True, slots=True)
class PublicKeyAnswer:
    """`algorithm` as on the wire, e.g. `SHA-256` or `SM3` (credential.hash_name)."""

    algorithm: str
    signature: bytes

    def encode(self) -> bytes:
        return text(self.algorithm) + block(self.signature)


def decode_public_key_answer(answer: bytes) -> PublicKeyAnswer:
    """Raises Malformed."""
    reader = Reader(answer)
    decoded = PublicKeyAnswer(
        reader.text("a digest algorithm", 64), reader.block("a signature", 8_192)
    )
    reader.done("the answer")
    return decoded
