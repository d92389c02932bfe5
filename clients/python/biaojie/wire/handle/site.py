"""HS_SITE: where a service answers, and which of its servers a handle belongs to (RFC 3651 §3.2.2).

format 2 · version 2 · serial 2 · primary mask 1 · hash option 1 · hash filter
· attributes (name · value)* · servers (id 4 · address 16 · public key · interfaces
(type 1 · protocol 1 · port 4)*)*
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from .cursor import Reader, block, text, u8, u16, u32
from .version import VERSION_OURS, Version

ATTRIBUTES_MAX: Final = 256
SERVERS_MAX: Final = 256
INTERFACES_MAX: Final = 64
_ADDRESS_OCTETS: Final = 16
_SERVER_OCTETS_MIN: Final = 4 + _ADDRESS_OCTETS + 4 + 4
_INTERFACE_OCTETS: Final = 6
_PREFIX_HANDLES: Final = b"0.NA"


class Purpose(IntEnum):
    """What an interface is for."""

    NONE = 0
    ADMIN = 1
    QUERY = 2
    BOTH = 3


class Transport(IntEnum):
    UDP = 0
    TCP = 1
    HTTP = 2
    HTTPS = 3


class HashOption(IntEnum):
    """The part of a handle that decides which server of the site has it."""

    PREFIX = 0
    SUFFIX = 1
    HANDLE = 2


PRIMARY: Final = 0x80
MULTI_PRIMARY: Final = 0x40


@dataclass(frozen=True, slots=True)
class Interface:
    """`purpose` and `transport` are Purpose and Transport, or numbers that nobody defined."""

    purpose: int
    transport: int
    port: int

    @classmethod
    def read(cls, reader: Reader) -> Interface:
        return cls(reader.u8("a purpose"), reader.u8("a transport"), reader.u32("a port"))

    def encode(self) -> bytes:
        return u8(self.purpose) + u8(self.transport) + u32(self.port)


@dataclass(frozen=True, slots=True)
class Server:
    """`address` is 16 octets; IPv4 stands at their right end after zeros. `public_key` is as in
    HS_PUBKEY (keys.py), empty where the server signs nothing."""

    id: int
    address: bytes
    public_key: bytes
    interfaces: tuple[Interface, ...]

    @classmethod
    def at(cls, id_: int, ip: str, public_key: bytes, interfaces: tuple[Interface, ...]) -> Server:
        """From an IP address as text; raises ValueError where it is none."""
        return cls(id_, ip_address(ip).packed.rjust(_ADDRESS_OCTETS, b"\0"), public_key, interfaces)

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """`::1` is IPv6 loopback, although IPv4 0.0.0.1 has the same octets."""
        if any(self.address[:12]) or self.address[12:] == b"\0\0\0\1":
            return IPv6Address(self.address)
        return IPv4Address(self.address[12:])

    @classmethod
    def read(cls, reader: Reader) -> Server:
        id_ = reader.u32("a server id")
        address = reader.octets(_ADDRESS_OCTETS, "an address")
        public_key = reader.block("a public key")
        number = reader.count("interfaces", INTERFACES_MAX, _INTERFACE_OCTETS)
        return cls(id_, address, public_key, tuple(Interface.read(reader) for _ in range(number)))

    def encode(self) -> bytes:
        if len(self.address) != _ADDRESS_OCTETS:
            raise ValueError("an address takes 16 octets")
        interfaces = b"".join(interface.encode() for interface in self.interfaces)
        return b"".join(
            (
                u32(self.id),
                self.address,
                block(self.public_key),
                u32(len(self.interfaces)),
                interfaces,
            )
        )


@dataclass(frozen=True, slots=True)
class Site:
    """A service's servers. `serial` grows with every change of it."""

    servers: tuple[Server, ...]
    serial: int = 1
    version: Version = VERSION_OURS
    primary_mask: int = PRIMARY
    hash_option: int = HashOption.HANDLE
    hash_filter: bytes = b""
    attributes: tuple[tuple[str, str], ...] = ()
    format: int = 1

    @property
    def is_primary(self) -> bool:
        return bool(self.primary_mask & PRIMARY)

    def attribute(self, name: str) -> str | None:
        """The first attribute of that name, such as `desc`, `domain`, `path`."""
        return next((value for key, value in self.attributes if key == name), None)

    def server_for(self, handle: str) -> Server:
        """The server that has `handle`. Raises ValueError for an unknown hash option, and where
        the site has no server."""
        if not self.servers:
            raise ValueError("the site has no server")
        return self.servers[handle_hash(handle, self.hash_option) % len(self.servers)]

    @classmethod
    def read(cls, reader: Reader) -> Site:
        format_ = reader.u16("a data format version")
        version = Version(reader.u8("a major version"), reader.u8("a minor version"))
        serial = reader.u16("a serial number")
        primary_mask = reader.u8("a primary mask")
        hash_option = reader.u8("a hash option")
        hash_filter = reader.block("a hash filter")
        number = reader.count("attributes", ATTRIBUTES_MAX, 8)
        attributes = tuple(
            (reader.text("an attribute's name"), reader.text("an attribute's value"))
            for _ in range(number)
        )
        number = reader.count("servers", SERVERS_MAX, _SERVER_OCTETS_MIN)
        servers = tuple(Server.read(reader) for _ in range(number))
        return cls(
            servers, serial, version, primary_mask, hash_option, hash_filter, attributes, format_
        )

    def encode(self) -> bytes:
        parts = [
            u16(self.format),
            u8(self.version.major),
            u8(self.version.minor),
            u16(self.serial),
            u8(self.primary_mask),
            u8(self.hash_option),
            block(self.hash_filter),
            u32(len(self.attributes)),
            *(text(name) + text(value) for name, value in self.attributes),
            u32(len(self.servers)),
            *(server.encode() for server in self.servers),
        ]
        return b"".join(parts)


def decode_site(data: bytes) -> Site:
    """The data of HS_SITE, HS_SITE.6, HS_SITE.PREFIX or HS_NA_DELEGATE; nothing may follow it.

    Raises Malformed.
    """
    reader = Reader(data)
    site = Site.read(reader)
    reader.done("the site")
    return site


def handle_hash(handle: str, option: int) -> int:
    """A number from 0 to 2^31; modulo the number of servers it gives the one responsible.

    Only ASCII letters fold. A handle without a slash counts as a suffix under `0.NA`.
    """
    raw = handle.encode()
    before, slash, after = raw.partition(b"/")
    if not slash:
        before, after = _PREFIX_HANDLES, raw
    try:
        part = (before, after, raw)[HashOption(option)]
    except ValueError:
        raise ValueError(f"hash option {option} is not 0, 1 or 2") from None
    digest = hashlib.md5(part.upper(), usedforsecurity=False).digest()
    return abs(int.from_bytes(digest[-4:], "big", signed=True))
