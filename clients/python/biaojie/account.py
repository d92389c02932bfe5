"""Prefixes, keys and roles: who may act where. Values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from .errors import InvalidRequest
from .limits import SEARCHABLE_TYPES_MAX, TYPE_CHARS_MAX
from .record import SECRET_TYPES, fold_type


class Role(StrEnum):
    """admin: everything. registrar: writes under its tenant's prefixes. reader: reads them."""

    ADMIN = "admin"
    REGISTRAR = "registrar"
    READER = "reader"


class PrefixStatus(StrEnum):
    """active: resolves and registers. suspended: does neither until active again.

    The other two name prefixes whose records live at another node, found by the HS_SITE values
    of `0.NA/<prefix>`. delegated: the owner runs a node of its own below ours (Handle answer
    303). referred: another service answers for it (302).
    unhomed: was homed here and is not any more; its records are kept until it is homed again.
    """

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELEGATED = "delegated"
    REFERRED = "referred"
    UNHOMED = "unhomed"

    @property
    def elsewhere(self) -> bool:
        return self in (PrefixStatus.DELEGATED, PrefixStatus.REFERRED)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix homed at this node, owned by `tenant`. `created` is epoch seconds.

    `searchable`: the value types by which its identifiers can be found, as `check_searchable`
    gives them. `indexing`: they were changed and the node is still reading the records; until
    it is done the prefix cannot be searched.
    """

    name: str
    tenant: str
    status: PrefixStatus = PrefixStatus.ACTIVE
    created: int = 0
    version: int = 1
    sequence: int = 0
    searchable: tuple[str, ...] = ()
    indexing: bool = False


def check_searchable(types: Iterable[str]) -> tuple[str, ...]:
    """Value types in the form they are compared by, each once, in order; raises InvalidRequest.

    At most 16 of 1 to 128 printable characters; HS_SECKEY is refused, since a search would
    tell a guessed secret from a wrong one.
    """
    folded = sorted({fold_type(type_) for type_ in types})
    if len(folded) > SEARCHABLE_TYPES_MAX:
        raise InvalidRequest(
            f"searchable: over {SEARCHABLE_TYPES_MAX} types.",
            f"searchable：超过 {SEARCHABLE_TYPES_MAX} 个类型。",
            path="searchable",
        )
    for type_ in folded:
        if not 1 <= len(type_) <= TYPE_CHARS_MAX or not type_.isprintable():
            raise InvalidRequest(
                f"searchable: a type is 1 to {TYPE_CHARS_MAX} printable characters.",
                f"searchable：类型应为 1 至 {TYPE_CHARS_MAX} 个可打印字符。",
                path="searchable",
            )
        if type_ in SECRET_TYPES:
            raise InvalidRequest(
                f"searchable: {type_} holds secrets and cannot be searched for.",
                f"searchable：{type_} 为机密，不可检索。",
                path="searchable",
            )
    return tuple(folded)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key once it has been issued; the secret itself is not kept anywhere.

    `revoked` is 0 while the key is valid, else the epoch second from which it is not. `digest`
    is the SHA-256 of the secret; it stays in the registry and is empty everywhere else.
    """

    id: str
    tenant: str
    role: Role
    label: str = ""
    created: int = 0
    revoked: int = 0
    digest: bytes = field(default=b"", repr=False)
