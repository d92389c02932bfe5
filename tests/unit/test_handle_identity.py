"""Proofs of identity: secrets in every form, signatures, certificates; what fails looks alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from biaojie.account import PrefixStatus
from biaojie.errors import InvalidRequest, TooManyRequests, Unauthenticated, ValueTaken
from biaojie.identifier import Identifier
from biaojie.keys import encode_public_key, generate, sign
from biaojie.record import PERMISSIONS_SECRET, Status, Value
from biaojie.wire.handle import (
    AnswerForm,
    PublicKeyAnswer,
    hashed_secret,
    secret_answer,
)
from registry.admission import SYSTEM
from registry.memory import MemoryStore
from registry.operations import ChangePrefix, Create, HomePrefix, Modify
from resolver.handle.identity import Authenticator, Challenges, parse_identity
from resolver.query import Query
from tests.core_parts import Parts

NONCE, DIGEST = bytes(range(16)), bytes(range(20))
ADMIN = Identifier.parse("88.118.8/ADMIN")
ALICE = parse_identity("300:88.118.8/ADMIN")
SECRET = b"correct horse"
PEER = "192.0.2.7"


def secret(data: bytes, index: int = 300) -> Value:
    return Value(index, "HS_SECKEY", data, permissions=PERMISSIONS_SECRET)


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    async with Parts(MemoryStore()) as opened:
        for operation in (
            HomePrefix("88.118.8", "acme"),
            Create(ADMIN, (secret(SECRET), secret(hashed_secret(b"hashed"), 301))),
        ):
            (await opened.registrar.submit(SYSTEM, [operation])).single()
        yield opened


def authenticator(parts: Parts) -> Authenticator:
    return Authenticator(parts.local, parts.service.callers.guesses)


@pytest.mark.parametrize(
    "form",
    [
        AnswerForm.OLDEST,
        AnswerForm.MD5,
        AnswerForm.SHA1,
        AnswerForm.SHA256,
        AnswerForm.HMAC_SHA1,
        AnswerForm.HMAC_SHA256,
        AnswerForm.PBKDF2,
    ],
)
async def test_a_secret_proves_in_every_form_and_only_over_its_own_challenge(
    parts: Parts, form: AnswerForm
) -> None:
    auth = authenticator(parts)
    answer = secret_answer(form, SECRET, NONCE, DIGEST, salt=bytes(16))
    caller = (await auth.by_secret(ALICE, answer, NONCE, DIGEST, PEER)).caller
    assert caller.key_id == "300:88.118.8/ADMIN"
    assert caller.handle == ALICE
    for nonce, digest, wrong in (
        (NONCE[::-1], DIGEST, answer),
        (NONCE, DIGEST[::-1], answer),
        (NONCE, DIGEST, answer[:-1]),
        (NONCE, DIGEST, b""),
        (NONCE, DIGEST, secret_answer(form, b"guess", NONCE, DIGEST, salt=bytes(16))),
    ):
        with pytest.raises(Unauthenticated):
            await authenticator(parts).by_secret(ALICE, wrong, nonce, digest, f"10.0.{form}.1")
        parts.service.callers.guesses.__init__()  # type: ignore[misc]  # each is a first guess


async def test_basic_takes_the_secret_or_what_a_hashed_one_was_made_of(parts: Parts) -> None:
    auth = authenticator(parts)
    assert (await auth.by_password(ALICE, SECRET, PEER)).caller.handle == ALICE
    hashed = parse_identity("301:88.118.8/ADMIN")
    assert (await auth.by_password(hashed, b"hashed", PEER)).caller.handle == hashed
    with pytest.raises(Unauthenticated):
        await auth.by_password(ALICE, b"hashed", PEER)


@pytest.mark.parametrize("kind", ["rsa", "dsa", "sm2"])
async def test_a_signature_proves(parts: Parts, kind: str) -> None:
    private = await asyncio.to_thread(generate, kind)
    public = Value(302, "HS_PUBKEY", encode_public_key(private.public))
    (await parts.registrar.submit(SYSTEM, [Modify(ADMIN, set=(public,))])).single()
    identity = parse_identity("302:88.118.8/ADMIN")
    algorithm = "SM3" if kind == "sm2" else "SHA-256"
    signature = sign(private, algorithm, NONCE + DIGEST, str(ADMIN))
    answer = PublicKeyAnswer(algorithm, signature).encode()
    auth = authenticator(parts)
    assert (
        await auth.by_signature(identity, answer, NONCE, DIGEST, PEER)
    ).caller.handle == identity
    assert (await auth.by_certificate(identity, private.public, PEER)).caller.handle == identity
    with pytest.raises(Unauthenticated):
        await auth.by_signature(identity, answer, NONCE, bytes(20), PEER)
    with pytest.raises(Unauthenticated):  # a secret key is no public key
        await auth.by_signature(ALICE, answer, NONCE, DIGEST, PEER)


async def test_all_failures_look_alike_and_guessing_is_slowed(parts: Parts) -> None:
    auth = authenticator(parts)
    said = set()
    for text in ("300:88.118.8/NOBODY", "399:88.118.8/ADMIN", "300:77.1/X", "1:9/9"):
        with pytest.raises(Unauthenticated) as caught:
            await auth.by_password(parse_identity(text), SECRET, PEER)
        said.add(caught.value.detail.en.replace(text, ""))
    assert len(said) == 1
    refused: set[type[Exception]] = set()
    for _ in range(10):
        try:
            await auth.by_password(ALICE, b"guess", PEER)
        except (Unauthenticated, TooManyRequests) as error:
            refused.add(type(error))
    assert TooManyRequests in refused


@pytest.mark.parametrize("how", ["draft", "suspended"])
async def test_keys_of_records_not_in_force_prove_nothing(parts: Parts, how: str) -> None:
    operation: Modify | ChangePrefix = Modify(ADMIN, status=Status.DRAFT)
    if how == "suspended":
        operation = ChangePrefix("88.118.8", status=PrefixStatus.SUSPENDED)
    (await parts.registrar.submit(SYSTEM, [operation])).single()
    with pytest.raises(Unauthenticated):
        await authenticator(parts).by_password(ALICE, SECRET, PEER)


async def test_a_secret_leaves_in_no_view(parts: Parts) -> None:
    found = await parts.service.resolve(Query(ADMIN), SYSTEM)
    assert found.record.values == ()
    # Whoever adds a value does not see the secret, and yet cannot write over it unawares.
    over = Modify(ADMIN, set=(Value(300, "URL", b"https://example.com"),))
    with pytest.raises(ValueTaken):
        (await parts.registrar.submit(SYSTEM, [over])).single()
    (await parts.registrar.submit(SYSTEM, [Modify(ADMIN, set=(secret(b"new"),))])).single()


def test_a_challenge_is_good_once_and_for_a_minute() -> None:
    now = [0.0]
    challenges: Challenges[str] = Challenges(clock=lambda: now[0], challenges_max=3)
    nonce = challenges.give("first")
    assert len(nonce) == 16
    assert challenges.take(nonce) == "first"
    assert challenges.take(nonce) is None
    late = challenges.give("late")
    now[0] += 60
    assert challenges.take(late) is None
    many = [challenges.give(str(n)) for n in range(5)]
    assert len(challenges) == 3
    assert challenges.take(many[0]) is None
    assert challenges.take(many[4]) == "4"


@pytest.mark.parametrize("text", ["", "300", "300:", "x:88.1/A", "-1:88.1/A", "³:88.1/A", "1:88.1"])
def test_what_is_no_identity(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_identity(text)
