"""How a client comes to be somebody: challenges and their answers, sessions with MACs, the login
of IIIS clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from biaojie.errors import BiaojieError, Unauthenticated
from biaojie.wire.handle import (
    MAC,
    PUBLIC_KEY,
    SECRET_KEY,
    AnswerRequest,
    Challenge,
    Digest,
    Done,
    LoginRequest,
    OpCode,
    ResponseCode,
    VerifyRequest,
    VerifyResponse,
    answer_version,
    mac_matches,
)
from biaojie.wire.handle.message import digest_algorithm
from biaojie.wire.handle.signing import counter_of
from registry.admission import PUBLIC, Caller

from .asked import ADMINISTRATION, Answered, Asked, identity_of, refused
from .challenges import Pending, PendingRequests
from .identity import Authenticator, key_digest
from .peer import Peer
from .sessions import Proof, Session, Sessions

TRUSTED_S: Final = 2.0
"""How long a proved key is taken to be still in force without asking the registry again."""
MACS_SINCE: Final = (2, 7)
"""Before it a MAC does not cover the counter, so a copy of a message could not be told from it:
there each request is challenged."""
_NO_CREDENTIAL: Final = (b"", bytes(4))


class Proving:
    def __init__(
        self,
        authenticator: Authenticator,
        sessions: Sessions,
        pending: PendingRequests,
        *,
        case_sensitive: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._sessions = sessions
        self._pending = pending
        self._case_sensitive = case_sensitive
        self._clock = clock

    # Who sent this? -----------------------------------------------------------------------

    async def identified(self, asked: Asked) -> Asked:
        """With the caller that the session vouches for. Raises what a message that claims a
        session and is not rightly in it is refused with."""
        request, session = asked.request, asked.session
        if session is None:
            self._check_outside(asked)
            return asked
        authentic = self._check_mac(asked, session)
        if request.opcode == OpCode.SESSION_TERMINATE and not authentic and session.scope is None:
            raise _wrong_mac()
        caller = PUBLIC
        if authentic or session.logged_in:
            caller = await self._proved(session)
        if session.scope is not None and caller.is_public and request.opcode in ADMINISTRATION:
            raise _log_in_first()
        return Asked(request, asked.peer, caller, session, asked.sealed, authentic)

    def vouched(self, frame: bytes, end: int, session: Session) -> Caller | None:
        """As whom a whole unsealed request, whose body ends at `end`, comes in `session`, where
        nothing has to be asked for that. None, and nothing has changed, where `identified` would
        have to ask or might refuse it."""
        proof = session.proof
        if proof is None or self._clock() - proof.checked > TRUSTED_S:
            return None
        if frame[end:] in _NO_CREDENTIAL:
            return proof.caller if session.logged_in else None
        counter = 0 if session.key is None else counter_of(frame, end, session.key.octets)
        return proof.caller if session.counters.take(counter) else None

    def _check_outside(self, asked: Asked) -> None:
        request = asked.request
        if not request.session_id:
            return
        credential = request.credential
        within = {OpCode.SESSION_TERMINATE, OpCode.SESSION_EXCHANGE_KEY}
        if request.opcode in within or (credential is not None and credential.type == MAC):
            raise session_lost()
        if request.opcode in ADMINISTRATION:
            raise session_lost() if asked.peer.scope is None else _log_in_first()

    @staticmethod
    def _check_mac(asked: Asked, session: Session) -> bool:
        """Whether the message has a MAC that says who sent it, now and not before."""
        request, credential = asked.request, asked.request.credential
        if credential is None or credential.type != MAC:
            return False
        if session.key is None or not mac_matches(request, session.key.octets):
            raise _wrong_mac()
        if not request.version.reaches(MACS_SINCE):
            return False
        if not session.counters.take(credential.counter):
            raise refused(
                ResponseCode.SESSION_MESSAGE_REJECTED,
                f"A message with counter {credential.counter} has come before.",
                f"计数器为 {credential.counter} 的报文已收到过。",
            )
        return True

    async def _proved(self, session: Session) -> Caller:
        """The session's caller as long as the key it was proved with is in force."""
        proof = session.proof
        if proof is None:
            return PUBLIC
        now = self._clock()
        if now - proof.checked > TRUSTED_S:
            assert proof.caller.handle is not None
            value = await self._authenticator.key_value(proof.caller.handle)
            if value is None or key_digest(value) != proof.digest:
                session.proof = None
                return PUBLIC
            proof.checked = now
        return proof.caller

    # Challenges ---------------------------------------------------------------------------

    def challenge(self, asked: Asked) -> tuple[Challenge, Digest, int]:
        """What to send to whom must prove who they are: the challenge, the digest of their
        request, and the session number that their answer is to carry."""
        request = asked.request
        algorithm = digest_algorithm(answer_version(request.suggested))
        digest = Digest.of(request.header_and_body(), algorithm)
        scope: object = asked.peer.scope
        if asked.session is not None:
            scope, number = asked.session.scope, asked.session.number
        elif request.session_id and scope is not None:
            number = request.session_id  # of the client's choice
        else:
            scope, number = None, self._pending.number(None)
        nonce = self._pending.keep(scope, number, asked, digest.octets)
        return Challenge(nonce), digest, number

    async def answered(self, asked: Asked) -> Asked:
        """CHALLENGE_RESPONSE: the request that waited for this answer, its caller now known.

        Raises the refusal where nothing waits (any more) or the proof does not hold.
        """
        body = asked.request.body
        assert isinstance(body, AnswerRequest)
        pending = self._take(asked)
        if pending is None:
            raise refused(
                ResponseCode.AUTHENTICATION_TIMEOUT,
                "Nothing waits for this answer; it may have come too late or twice.",
                "没有等待此应答的请求；应答可能过迟或重复。",
            )
        proof = await self._prove(body, pending, asked.peer)
        if asked.peer.address == pending.asked.peer.address:
            asked.peer.verified = True
        waiting = pending.asked
        if waiting.session is not None and waiting.authentic:
            self._vouch(waiting.session, proof)
        return replace(waiting, peer=asked.peer, caller=proof.caller, proof=proof)

    def _take(self, asked: Asked) -> Pending | None:
        session = asked.session
        scope = asked.peer.scope if session is None else session.scope
        return self._pending.take(scope, asked.request.session_id)

    async def _prove(self, body: AnswerRequest, pending: Pending, peer: Peer) -> Proof:
        forgeable = peer.transport == "udp"
        identity = identity_of(body.key, case_sensitive=self._case_sensitive)
        nonce, digest = pending.nonce, pending.digest
        try:
            if identity is None:
                raise Unauthenticated()
            if body.type == SECRET_KEY:
                return await self._authenticator.by_secret(
                    identity, body.answer, nonce, digest, peer.address, forgeable=forgeable
                )
            if body.type == PUBLIC_KEY:
                return await self._authenticator.by_signature(
                    identity, body.answer, nonce, digest, peer.address, forgeable=forgeable
                )
        except Unauthenticated as error:
            raise refused(ResponseCode.AUTHENTICATION_FAILED, *error.detail) from None
        raise refused(
            ResponseCode.INVALID_CREDENTIAL,
            "Prove yourself with HS_SECKEY or HS_PUBKEY.",
            "请使用 HS_SECKEY 或 HS_PUBKEY 进行认证。",
        )

    def _vouch(self, session: Session, proof: Proof) -> None:
        """From now on the session's MACs speak for who proved it, if that is who it said it was."""
        if session.scope is not None or session.identity == proof.caller.handle:
            session.proof = Proof(proof.caller, proof.digest, self._clock())

    # IIIS login, and proofs checked for others ----------------------------------------------

    def check_login(self, asked: Asked) -> None:
        """Before a login is challenged: a connection has one user per session number."""
        body, session = asked.request.body, asked.session
        assert isinstance(body, LoginRequest)
        if session is None or not session.logged_in or session.proof is None:
            return
        if session.proof.caller.handle != identity_of(
            body.user, case_sensitive=self._case_sensitive
        ):
            raise refused(
                ResponseCode.LOGIN_AGAIN,
                "This connection is logged in as somebody else.",
                "此连接已由其他用户登录。",
            )

    async def logged_in(self, asked: Asked) -> Answered:
        """LOGIN, its challenge answered: on TCP the connection is authenticated from now on, in
        the session whose number the client chose."""
        request, body = asked.request, asked.request.body
        assert isinstance(body, LoginRequest)
        identity = identity_of(body.user, case_sensitive=self._case_sensitive)
        if identity is None or identity != asked.caller.handle:
            raise refused(
                ResponseCode.AUTHENTICATION_FAILED,
                "Somebody else answered the challenge.",
                "应答者与登录用户不一致。",
            )
        peer, session = asked.peer, asked.session
        if peer.scope is not None:
            if session is None or session.scope is not peer.scope:
                version = answer_version(request.suggested)
                session = self._sessions.open(peer.scope, request.session_id, peer.address, version)
                peer.logged_in = peer.logged_in or not session.number
            assert asked.proof is not None  # a login is always challenged
            self._vouch(session, asked.proof)
        return Answered(Done())

    async def verified(self, asked: Asked) -> Answered:
        """VERIFY_RESPONSE: another server asks whether an answer was made with a secret that is
        kept here. Raises TooManyRequests for guessing."""
        body = asked.request.body
        assert isinstance(body, VerifyRequest)
        identity = identity_of(body.key, case_sensitive=self._case_sensitive)
        if identity is None:
            return Answered(VerifyResponse(False))
        try:
            await self._authenticator.by_secret(
                identity,
                body.answer,
                body.nonce,
                body.digest.octets,
                asked.peer.address,
                forgeable=asked.peer.transport == "udp",
            )
        except Unauthenticated:
            return Answered(VerifyResponse(False))
        return Answered(VerifyResponse(True))


def session_lost() -> BiaojieError:
    return refused(
        ResponseCode.SESSION_TIMEOUT,
        "There is no such session, or it is over.",
        "会话不存在或已结束。",
    )


def _log_in_first() -> BiaojieError:
    return refused(ResponseCode.LOGIN_FIRST, "Log in first.", "请先登录。")


def _wrong_mac() -> BiaojieError:
    return refused(
        ResponseCode.INVALID_SESSION_KEY,
        "The message's MAC is not that of this session.",
        "报文的 MAC 与会话不符。",
    )
