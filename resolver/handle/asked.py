"""A request on its way through the operations, and what comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from biaojie.errors import BiaojieError, InvalidIdentifier
from biaojie.identifier import Identifier, check_prefix, fold_prefix
from biaojie.record import Reference
from biaojie.wire.handle import ERROR_CLASSES, Body, Message, OpCode, ResponseCode
from registry.admission import PUBLIC, Caller
from registry.handle_rights import PREFIXES, HandleIdentity

from ..core import Cached
from .peer import Peer
from .sessions import Proof, Session


@dataclass(frozen=True, slots=True)
class Asked:
    """`caller` is who has proved to be asking, `proof` how, if it was just now; `session` is what
    the message is in, `sealed` whether it came encrypted, `authentic` whether it carried a right
    MAC of the session that had not been seen before."""

    request: Message
    peer: Peer
    caller: Caller = PUBLIC
    session: Session | None = None
    sealed: bool = False
    authentic: bool = False
    proof: Proof | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """`ttl_s` is how long the answer may be relied on, None where it is not that kind; `fresh`
    says that it comes from the registry and no cache.
    `session_id` is set where it is not the request's; `more` are the parts that follow `body`,
    which then carries the flag CONTINUOUS, as do all but the last. `entry` is the cached record
    that the answer is made of, where it is made of nothing else and the same for everybody."""

    body: Body
    code: int = ResponseCode.SUCCESS
    flags: int = 0
    ttl_s: int | None = None
    fresh: bool = True
    session_id: int | None = None
    more: AsyncIterator[Body] | None = None
    entry: Cached | None = None


ADMINISTRATION: Final = frozenset(
    {
        OpCode.CREATE_HANDLE,
        OpCode.DELETE_HANDLE,
        OpCode.ADD_VALUE,
        OpCode.REMOVE_VALUE,
        OpCode.MODIFY_VALUE,
        OpCode.LIST_HANDLES,
        OpCode.LIST_DERIVED_PREFIXES,
        OpCode.HOME_PREFIX,
        OpCode.UNHOME_PREFIX,
        OpCode.LIST_HOMED_PREFIXES,
    }
)
"""Operations that nobody may have done without proving an identity."""


def identifier_of(handle: str) -> Identifier:
    """A handle as clients write it; one without a slash is a prefix, kept under `0.NA`.

    Raises InvalidIdentifier.
    """
    prefix, slash, suffix = handle.partition("/")
    return Identifier(prefix, suffix) if slash else Identifier(PREFIXES, handle)


def prefix_of(handle: str) -> str:
    """The prefix that `0.NA/<prefix>` names, or that stands there alone. Raises
    InvalidIdentifier."""
    identifier = identifier_of(handle)
    if fold_prefix(identifier.prefix) != PREFIXES:
        raise InvalidIdentifier(
            f"{identifier} is not the handle of a prefix, such as 0.NA/88.118.8.",
            f"{identifier} 不是前缀标识；前缀标识形如 0.NA/88.118.8。",
        )
    return check_prefix(identifier.suffix)


def identity_of(reference: Reference, *, case_sensitive: bool) -> HandleIdentity | None:
    """The identity that a key reference names; None where it is none."""
    prefix, _, suffix = reference.identifier.partition("/")
    try:
        identifier = Identifier(prefix, suffix)
    except InvalidIdentifier:
        return None
    return HandleIdentity(identifier, reference.index, case_sensitive)


def refused(code: ResponseCode, en: str, zh: str) -> BiaojieError:
    """The error that a client is told as exactly this response code."""
    return ERROR_CLASSES[code](en, zh, response_code=code)
