"""What the node says of itself: its HS_SITE, built from the settings, the ports in use and its
key; the serial number grows whenever any of them changes, which is how clients notice.

The number and what it stands for are kept in `handle-site.json` of the data folder.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from biaojie.record import Value
from biaojie.wire.handle import (
    SERIAL_UNKNOWN,
    Interface,
    Purpose,
    Server,
    Site,
    Transport,
)

FILE: Final = "handle-site.json"
TTL_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Ports:
    """As clients reach them; 0 where there is none."""

    handle: int
    http: int = 0


@dataclass(frozen=True, slots=True)
class NodeSite:
    """The HS_SITE of each public address, the first being what GET_SITE_INFO answers.

    `since` is when it came to be so, in epoch seconds.
    """

    sites: tuple[Site, ...]
    since: int

    @property
    def main(self) -> Site:
        return self.sites[0]

    @property
    def serial(self) -> int:
        return self.main.serial

    def values(self, taken: Iterable[int]) -> tuple[Value, ...]:
        """HS_SITE values (HS_SITE.6 for IPv6), at the lowest indexes that are not taken."""
        used = set(taken)
        made = []
        for site in self.sites:
            index = next(n for n in range(1, len(used) + 2) if n not in used)
            used.add(index)
            type_ = "HS_SITE.6" if site.servers[0].ip.version == 6 else "HS_SITE"
            made.append(Value(index, type_, site.encode(), TTL_S, timestamp=self.since))
        return tuple(made)


def build(addresses: Iterable[str], ports: Ports, public_key: bytes, name: str) -> tuple[Site, ...]:
    """One site for each address, serial 0: administration over TCP and HTTP, questions also over
    UDP. Raises ValueError for what is no IP address."""
    interfaces = []
    if ports.handle:
        interfaces += [
            Interface(Purpose.BOTH, Transport.TCP, ports.handle),
            Interface(Purpose.QUERY, Transport.UDP, ports.handle),
        ]
    if ports.http:
        interfaces.append(Interface(Purpose.BOTH, Transport.HTTP, ports.http))
    return tuple(
        Site(
            (Server.at(1, address, public_key, tuple(interfaces)),),
            serial=0,
            attributes=(("desc", name),),
        )
        for address in addresses
    )


def public_addresses(given: str, host: str) -> list[str]:
    """`given` (addresses, commas between), else the addresses listened on, wildcards aside;
    127.0.0.1 where nothing else is known. Raises ValueError."""
    found = [str(ipaddress.ip_address(part.strip())) for part in given.split(",") if part.strip()]
    if found:
        return found
    for part in host.split(","):
        try:
            address = ipaddress.ip_address(part.strip())
        except ValueError:
            continue  # a host name: clients need addresses
        if not address.is_unspecified:
            found.append(str(address))
    return found or ["127.0.0.1"]


def publish(
    sites: tuple[Site, ...], data_dir: Path, clock: Callable[[], float] = time.time
) -> NodeSite:
    """The sites with their serial number, which has grown if they are not what they were."""
    digest = hashlib.sha256(b"".join(site.encode() for site in sites)).hexdigest()
    serial, known, since = _read(data_dir / FILE)
    if known != digest:
        serial = serial % (SERIAL_UNKNOWN - 1) + 1  # 1 to 0xFFFE: 0xFFFF means unknown
        since = int(clock())
        _write(data_dir / FILE, serial, digest, since)
    return NodeSite(tuple(replace(site, serial=serial) for site in sites), since)


def _read(path: Path) -> tuple[int, str, int]:
    """Nothing known: (0, "", 0)."""
    try:
        kept = json.loads(path.read_text())
        return int(kept["serial"]), str(kept["digest"]), int(kept["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, "", 0


def _write(path: Path, serial: int, digest: str, since: int) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")  # another node may start in this folder too
    with part.open("w") as file:
        json.dump({"serial": serial, "digest": digest, "since": since}, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
