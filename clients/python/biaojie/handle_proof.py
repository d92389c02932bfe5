"""Who is who: our answers to a server's challenges, and its signatures under what it says.

Computing with keys is `biaojie.keys`'s, which is imported when the first one is needed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from .errors import BiaojieError, MalformedAnswer, Unauthenticated
from .handle_options import Login
from .keys import PublicKey, decode_public_key
from .wire.handle import (
    OLD_SIGNED,
    PUBLIC_KEY,
    SALT_OCTETS,
    SECRET_KEY,
    SIGNED,
    AnswerRequest,
    Challenge,
    Message,
    PublicKeyAnswer,
    ResponseCode,
    Site,
    answer_form,
    covered,
    hash_name,
    lower,
    secret_answer,
)

UNREAD: Final = frozenset(
    {
        ResponseCode.ERROR,
        ResponseCode.SERVER_BUSY,
        ResponseCode.PROTOCOL_ERROR,
        ResponseCode.OPERATION_NOT_SUPPORTED,
        ResponseCode.SERVER_BACKUP,
        ResponseCode.SESSION_TIMEOUT,
        ResponseCode.SESSION_FAILED,
        ResponseCode.INVALID_SESSION_KEY,
        ResponseCode.NEED_RSA_KEY,
        ResponseCode.INVALID_SESSION_SETUP,
        ResponseCode.SESSION_MESSAGE_REJECTED,
    }
)
"""Refusals that say nothing of any identifier. A server makes them also of what it could not
read, so they may come without a digest and without a signature."""


def answer_challenge(
    login: Login | None, challenge: Message, said: Iterable[bytes]
) -> AnswerRequest:
    """The proof that `login` has its key. `said` are headers and bodies of what was sent before
    the challenge. Raises Unauthenticated where there is no login, and MalformedAnswer where the
    challenge is for something else: what is signed here must not serve anybody else.
    """
    body, digest = challenge.body, challenge.digest
    if not isinstance(body, Challenge) or digest is None or not any(map(digest.matches, said)):
        raise MalformedAnswer(
            "The server wants a signature under a request that is not ours.",
            "服务器要求签署的并非我方请求。",
        )
    if login is None:
        raise Unauthenticated(
            "The Handle server asks who you are; give identity, and secret or private_key.",
            "Handle 服务器要求身份验证；请提供 identity 以及 secret 或 private_key。",
            response_code=int(challenge.response_code),
        )
    if login.secret is not None:
        form = answer_form(challenge.version, challenge.suggested)
        salt = secrets.token_bytes(SALT_OCTETS)
        answer = secret_answer(form, login.secret, body.nonce, digest.octets, salt=salt)
        return AnswerRequest(SECRET_KEY, login.identity, answer)
    assert login.private_key is not None
    from .keys import default_hash, sign

    version = lower(challenge.version, challenge.suggested)
    name = default_hash(login.private_key, version)
    data = body.nonce + digest.octets
    signature = sign(login.private_key, name, data, login.identity.identifier)
    return AnswerRequest(PUBLIC_KEY, login.identity, PublicKeyAnswer(name, signature).encode())


def site_keys(site: Site) -> tuple[PublicKey, ...]:
    """The keys of a site's servers; those that cannot be used are left out."""
    found = []
    for server in site.servers:
        try:
            found.append(decode_public_key(server.public_key))
        except BiaojieError:
            continue
    return tuple(found)


def signed_by(message: Message, keys: Iterable[PublicKey]) -> bool:
    """Whether one of the keys signed the message. MD5 proves nothing and is not taken."""
    credential = message.credential
    if credential is None or credential.type not in (SIGNED, OLD_SIGNED):
        return False
    if hash_name(credential.algorithm) in (None, "md5"):
        return False
    from .keys import verify

    data = covered(message, credential.counter)
    return any(verify(key, credential.algorithm, data, credential.signature) for key in keys)


def check_signature(message: Message, keys: Sequence[PublicKey]) -> None:
    """Raises MalformedAnswer unless one of the keys signed it, or it is an UNREAD refusal."""
    if message.response_code in UNREAD or signed_by(message, keys):
        return
    why = "not signed" if message.credential is None else "signed by somebody else"
    raise MalformedAnswer(
        f"The answer is {why}; it is not the server's whose key is known.",
        "答复缺少有效签名，并非来自密钥已知的服务器。",
    )
