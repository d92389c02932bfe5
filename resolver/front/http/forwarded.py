"""Who asks, where proxies stand between: the address that the outermost trusted one saw.

Rules: nothing is believed unless the connection comes from a network in `trusted_proxies`; one
header is read, the one that those proxies are known to write, for what a stranger writes into
the other they pass on; it is read from its end, each proxy adding who asked it, up to the first
address that is no trusted proxy. What was written before that is hearsay. Callers leave out what
came over our own TLS, which no proxy can have written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

HOPS_MAX: Final = 16
"""More proxies than that nobody has; the rest is not read."""
_ADDRESSES_MAX: Final = 4_096
_FOR: Final = re.compile(r'(?:^|;)\s*for=(?:"([^"\\]*)"|([^\s";,]*))\s*(?:;|$)', re.IGNORECASE)
_IPV4_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}", re.ASCII)
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?", re.ASCII)
Address = IPv4Address | IPv6Address


def networks(text: str) -> tuple[str, ...]:
    """The networks of a setting, commas between. Raises ValueError."""
    return tuple(str(ip_network(part.strip())) for part in text.split(",") if part.strip())


class Proxies:
    """`header` is X-Forwarded-For or Forwarded (RFC 7239), in lower case."""

    def __init__(self, trusted: str = "", header: str = "x-forwarded-for") -> None:
        """Raises ValueError for what is no network."""
        self.header = header
        self._networks = [ip_network(network) for network in networks(trusted)]
        self._trusts = lru_cache(_ADDRESSES_MAX)(self._within)

    def trusts(self, peer: str) -> bool:
        """Whether what comes from this address may tell for whom it asks."""
        return bool(self._networks) and self._trusts(peer)

    def asker(self, peer: str, told: Sequence[str]) -> str:
        """The address of who asks: `peer` is where the connection comes from, and `told` what it
        has of `header`, in order."""
        if not told or not self.trusts(peer):
            return peer
        seen = peer
        hops = ",".join(told).rsplit(",", HOPS_MAX)[-HOPS_MAX:]
        for hop in reversed(hops):
            address = _address(self._named(hop))
            if address is None:  # unknown, or hidden on purpose: the proxy vouches for nobody
                return seen
            if not address.is_loopback:  # the proxy's own machine, which is not ours
                seen = str(address)
            if not self._trusts(str(address)):
                return seen
        return seen

    def _named(self, hop: str) -> str:
        if self.header != "forwarded":
            return hop.strip()
        found = _FOR.search(hop.strip())
        return (found[1] or found[2] or "") if found else ""

    def _within(self, peer: str) -> bool:
        address = _address(peer.partition("%")[0])
        return address is not None and any(
            address in network
            for network in self._networks
            if isinstance(network, IPv6Network) == isinstance(address, IPv6Address)
        )


def _address(text: str) -> Address | None:
    """An address as the headers have it, with a port or without."""
    if len(text) > 64:
        return None
    found = _BRACKETED.fullmatch(text) or _IPV4_PORT.fullmatch(text)
    try:
        address = ip_address(found[1] if found else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
