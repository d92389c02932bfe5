"""Who a Handle client is: proof that it has the key at `index:handle`.

The key is an HS_SECKEY or HS_PUBKEY value of a record of this registry. What comes out is a
Caller whose rights the one policy decides by HS_ADMIN values. A secret never leaves this file.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Generic, TypeVar

from biaojie.account import PrefixStatus
from biaojie.errors import InvalidIdentifier, InvalidRequest, Unauthenticated
from biaojie.identifier import Identifier
from biaojie.keys import InvalidKey, PublicKey, decode_public_key, fingerprint
from biaojie.record import Status, Value, fold_type
from biaojie.wire.handle import (
    NONCE_OCTETS,
    AnswerForm,
    Malformed,
    decode_public_key_answer,
    hashed_secret,
    secret_answer_matches,
)
from registry.admission import Caller
from registry.handle_rights import HandleIdentity

from ..guesses import Guesses
from ..steps.local import LocalStep
from .sessions import Proof

CHALLENGE_S = 60.0
CHALLENGES_MAX = 50_000
CHECKS_AT_ONCE = 2
"""PBKDF2 and the slower signatures compute in threads; more of them would starve the rest."""
T = TypeVar("T")


def parse_identity(text: str, *, case_sensitive: bool = False) -> HandleIdentity:
    """From `300:88.118.8/ADMIN`; raises InvalidRequest."""
    index, colon, handle = text.partition(":")
    if colon and index.isascii() and index.isdigit() and len(index) < 10:
        prefix, _, suffix = handle.partition("/")
        try:
            return HandleIdentity(Identifier(prefix, suffix), int(index), case_sensitive)
        except InvalidIdentifier:
            pass
    raise InvalidRequest(
        "An identity is an index and a handle, such as 300:88.118.8/ADMIN.",
        "身份应为 索引:标识，例如 300:88.118.8/ADMIN。",
        errors=[],
    )


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    about: T
    until: float


class Challenges(Generic[T]):
    """Nonces that have been given out, each good for one answer within a minute.

    When more than `challenges_max` are open the oldest is forgotten.
    """

    def __init__(
        self,
        *,
        seconds: float = CHALLENGE_S,
        challenges_max: int = CHALLENGES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._max = challenges_max
        self._clock = clock
        self._open: OrderedDict[bytes, _Kept[T]] = OrderedDict()

    def give(self, about: T) -> bytes:
        """A fresh nonce of 128 bits, and what its answer will be about."""
        nonce = secrets.token_bytes(NONCE_OCTETS)
        self._open[nonce] = _Kept(about, self._clock() + self._seconds)
        while len(self._open) > self._max:
            self._open.popitem(last=False)
        return nonce

    def take(self, nonce: bytes) -> T | None:
        """What the nonce was given for; None if never, already answered, or too late."""
        kept = self._open.pop(nonce, None)
        return kept.about if kept is not None and self._clock() < kept.until else None

    def __len__(self) -> int:
        return len(self._open)


class Authenticator:
    """Checks proofs. Every method raises Unauthenticated alike for a missing record, a missing
    or unfit key and a wrong proof, so that nobody learns which; TooManyRequests for guessing.

    `peer` is the address that is slowed down. Where it is `forgeable`, as over UDP, what it missed
    counts only there: else anybody could keep its owner out everywhere."""

    def __init__(self, local: LocalStep, guesses: Guesses, *, case_sensitive: bool = False) -> None:
        self._local = local
        self._guesses = guesses
        self._forgeable = Guesses()
        self._case_sensitive = case_sensitive
        self._slots = asyncio.Semaphore(CHECKS_AT_ONCE)

    def identity(self, text: str) -> HandleIdentity:
        return parse_identity(text, case_sensitive=self._case_sensitive)

    async def by_password(self, identity: HandleIdentity, password: bytes, peer: str) -> Proof:
        """HTTP Basic: the secret itself, or what a hashed one was made of."""

        def check(value: Value) -> bool:
            if not _is(value, "HS_SECKEY"):
                return False
            plain = compare_digest(value.data, password)
            return compare_digest(value.data.lower(), hashed_secret(password)) or plain

        return await self._prove(identity, check, peer)

    async def by_secret(
        self,
        identity: HandleIdentity,
        answer: bytes,
        nonce: bytes,
        digest: bytes,
        peer: str,
        *,
        forgeable: bool = False,
    ) -> Proof:
        """A challenge answered with a secret key, in any form the codec takes."""

        def check(value: Value) -> bool:
            # MD5 too: old clients know nothing else, and no break of it gives a preimage.
            return _is(value, "HS_SECKEY") and secret_answer_matches(
                answer, value.data, nonce, digest, frozenset(AnswerForm)
            )

        return await self._prove(identity, check, peer, forgeable)

    async def by_signature(
        self,
        identity: HandleIdentity,
        answer: bytes,
        nonce: bytes,
        digest: bytes,
        peer: str,
        *,
        forgeable: bool = False,
    ) -> Proof:
        """A challenge answered with a private key: `algorithm | signature`."""

        def check(value: Value) -> bool:
            signed = decode_public_key_answer(answer)
            return self.signature_matches(
                identity, value, signed.algorithm, nonce + digest, signed.signature
            )

        return await self._prove(identity, check, peer, forgeable)

    async def by_signed_nonces(
        self, identity: HandleIdentity, algorithm: str, data: bytes, signature: bytes, peer: str
    ) -> Proof:
        """A Handle session over HTTP: a signature over both nonces."""

        def check(value: Value) -> bool:
            return self.signature_matches(identity, value, algorithm, data, signature)

        return await self._prove(identity, check, peer)

    async def by_certificate(self, identity: HandleIdentity, key: PublicKey, peer: str) -> Proof:
        """TLS has proved possession of `key`; it must be the one at the identity."""

        def check(value: Value) -> bool:
            known = decode_public_key(value.data) if _is(value, "HS_PUBKEY") else None
            return known is not None and compare_digest(fingerprint(known), fingerprint(key))

        return await self._prove(identity, check, peer)

    @staticmethod
    def signature_matches(
        identity: HandleIdentity, value: Value, algorithm: str, data: bytes, signature: bytes
    ) -> bool:
        from biaojie.keys import verify

        if not _is(value, "HS_PUBKEY"):
            return False
        key = decode_public_key(value.data)
        return verify(key, algorithm, data, signature, str(identity.identifier))

    async def key_value(self, identity: HandleIdentity) -> Value | None:
        """The value at the identity; None unless its record is in force here."""
        key = identity.identifier.key(case_sensitive=self._case_sensitive)
        prefix, record = await self._local.fetch(key)
        if prefix is None or prefix.status is not PrefixStatus.ACTIVE or record is None:
            return None
        if record.status not in (Status.ACTIVE, Status.FROZEN):
            return None
        return record.value(identity.index)

    async def _prove(
        self,
        identity: HandleIdentity,
        check: Callable[[Value], bool],
        peer: str,
        forgeable: bool = False,
    ) -> Proof:
        guesses = self._forgeable if forgeable else self._guesses
        guesses.check(peer, time.monotonic())
        value = await self.key_value(identity)
        proved = False
        if value is not None:
            async with self._slots:
                try:
                    proved = await asyncio.to_thread(check, value)
                except (Malformed, InvalidKey):
                    proved = False
        if value is None or not proved:
            guesses.missed(peer, time.monotonic())
            raise Unauthenticated(
                f"The proof for {identity} does not hold.", f"身份 {identity} 的凭证无效。"
            )
        caller = Caller(str(identity), handle=identity)
        return Proof(caller, key_digest(value), time.monotonic())


def key_digest(value: Value) -> bytes:
    """What tells whether a key is still the one that something was proved with."""
    return hashlib.sha256(value.data).digest()


def _is(value: Value, type_: str) -> bool:
    return fold_type(value.type) == type_
