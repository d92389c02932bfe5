"""The data of HS_ADMIN, HS_VLIST and HS_SECKEY values. (HS_SITE: site.py, HS_PUBKEY: keys.py,
HS_NAMESPACE: namespace.py.)"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ...record import Reference
from .cursor import Reader, u16
from .values import encode_reference, encode_references, read_reference, read_references


class AdminRight(IntEnum):
    """Bits of an HS_ADMIN mask."""

    ADD_HANDLE = 0x001
    DELETE_HANDLE = 0x002
    ADD_DERIVED_PREFIX = 0x004
    DELETE_DERIVED_PREFIX = 0x008
    MODIFY_VALUE = 0x010
    REMOVE_VALUE = 0x020
    ADD_VALUE = 0x040
    MODIFY_ADMIN = 0x080
    REMOVE_ADMIN = 0x100
    ADD_ADMIN = 0x200
    AUTHORIZED_READ = 0x400
    LIST_HANDLES = 0x800


RIGHTS_ALL: Final = 0xFFF
_RIGHT_DIGITS: Final = len(AdminRight)


@dataclass(frozen=True, slots=True)
class Admin:
    """HS_ADMIN: what `admin` may do. An index of 0 means any key value at that handle.

    `rights` are AdminRight bits. `legacy`: two zero octets follow (handle.net up to 7.3).
    """

    rights: int
    admin: Reference
    legacy: bool = False

    def may(self, right: AdminRight) -> bool:
        return bool(self.rights & right)

    def encode(self) -> bytes:
        tail = b"\0\0" if self.legacy else b""
        return u16(self.rights) + encode_reference(self.admin) + tail


def decode_admin(data: bytes) -> Admin:
    """The data of an HS_ADMIN value; raises Malformed."""
    reader = Reader(data)
    rights = reader.u16("an admin mask")
    admin = read_reference(reader, "an admin")
    legacy = reader.left == 2
    if legacy:
        reader.octets(2)
    reader.done("the admin record")
    return Admin(rights, admin, legacy)


def format_rights(rights: int) -> str:
    """Twelve digits, LIST_HANDLES first; bits without a meaning are left out."""
    return f"{rights & RIGHTS_ALL:012b}"


def parse_rights(digits: str) -> int:
    """From twelve digits; raises ValueError."""
    if len(digits) != _RIGHT_DIGITS or not set(digits) <= {"0", "1"}:
        raise ValueError(f"admin rights are twelve digits 0 or 1, not {digits[:20]!r}")
    return int(digits, 2)


def decode_value_list(data: bytes) -> tuple[Reference, ...]:
    """The data of an HS_VLIST value (an admin group); raises Malformed."""
    reader = Reader(data)
    references = read_references(reader)
    reader.done("the value list")
    return references


def encode_value_list(references: tuple[Reference, ...]) -> bytes:
    return encode_references(references)


def hashed_secret(secret: bytes) -> bytes:
    """What an HS_SECKEY value holds when the password is kept "hashed": SHA-1, lower-case hex.

    A client that is told to hash does the same before it answers a challenge.
    """
    return hashlib.sha1(secret, usedforsecurity=False).hexdigest().encode()
