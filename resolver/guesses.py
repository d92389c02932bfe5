"""Who has guessed keys, and how long he waits before he may try another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from biaojie.errors import TooManyRequests


class Guesses:
    """Slows down those who try keys: after 5 misses a peer waits, twice as long each time."""

    FREE = 5
    WAIT_MAX_S = 300.0
    DOUBLINGS_MAX = 9

    def __init__(self, peers_max: int = 10_000) -> None:
        self.tell: Callable[[str], None] | None = None
        """Told the network of each miss here: other workers of this node are to `heed` it."""
        self._peers: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._peers_max = peers_max

    def check(self, peer: str, now: float) -> None:
        until = self._peers.get(network_of(peer), (0, 0.0))[1]
        if now < until:
            raise TooManyRequests(
                "Too many invalid keys from this address.",
                "该地址多次使用无效密钥。",
                retry_after_s=int(until - now) + 1,
            )

    def missed(self, peer: str, now: float) -> None:
        network = network_of(peer)
        self.heed(network, now)
        if self.tell is not None:
            self.tell(network)

    def heed(self, network: str, now: float) -> None:
        """A miss of a network, here or elsewhere."""
        misses, until = self._peers.pop(network, (0, 0.0))
        if now > until + self.WAIT_MAX_S:
            misses = 0  # long quiet: start again
        misses = min(misses + 1, self.FREE + self.DOUBLINGS_MAX)
        wait = min(2.0 ** (misses - self.FREE), self.WAIT_MAX_S) if misses > self.FREE else 0.0
        self._peers[network] = (misses, now + wait)
        while len(self._peers) > self._peers_max:
            self._peers.popitem(last=False)


def network_of(peer: str) -> str:
    """Who is slowed down: an IPv4 address, or the /64 in which one IPv6 host may be anyone."""
    if ":" not in peer:
        return peer
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    return str(ip_network(f"{address}/64", strict=False))
