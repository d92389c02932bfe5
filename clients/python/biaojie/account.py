"""Prefixes, keys and roles: who may act where. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


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
    """

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELEGATED = "delegated"
    REFERRED = "referred"

    @property
    def elsewhere(self) -> bool:
        return self in (PrefixStatus.DELEGATED, PrefixStatus.REFERRED)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix homed at this node, owned by `tenant`. `created` is epoch seconds."""

    name: str
    tenant: str
    status: PrefixStatus = PrefixStatus.ACTIVE
    created: int = 0
    version: int = 1
    sequence: int = 0


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
