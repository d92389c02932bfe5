"""UDP sources are easily forged, so nobody may use this node to send others more than he sends.

- Amplification: the packets of an answer hold at most `handle_udp_amplification_max` (3) times
  the octets of the request. A longer answer is replaced by its cut form.
- Rate: a network (/24 of IPv4, /56 of IPv6) gets `handle_udp_rate_max` answers a second. Beyond,
  every second one (slip) is sent in its cut form, so that those who really ask come over TCP,
  and the others not at all.

The cut form is a whole message of one packet: response code ERROR, the truncated mark set, the
request's digest where it asked for one. A fragment carries the mark too, but announces more
octets than it holds; the cut form holds all that it announces. The Java client and what is made
from it look at no mark; on ERROR, and on an ERROR whose signature they miss, they turn to the
next transport, TCP, at once. Any other code they hand to their caller as the answer; part of an
answer makes them wait three seconds for the rest. Clients that know the form look at the mark.
"""

from __future__ import annotations

import math
import socket
from enum import Enum
from typing import Final

from biaojie.wire.handle import (
    ENVELOPE_OCTETS,
    Failure,
    Malformed,
    ResponseCode,
    answer_to,
    decode_message,
    encode_message,
    refusal,
)

ASK_OVER_TCP: Final = "ask over TCP"
NETWORKS_MAX: Final = 65_536
SLIP: Final = 2
IPV4_OCTETS: Final = 3
IPV6_OCTETS: Final = 7
REFUSAL_OCTETS: Final = 52
_TRUNCATED: Final = 0x20


def cut_form(frame: bytes) -> bytes | None:
    """What says "ask over TCP" to the sender of `frame`; None where that is no request."""
    try:
        request = decode_message(frame)
        if not request.is_request:
            return None
        short = encode_message(answer_to(request, Failure(ASK_OVER_TCP), ResponseCode.ERROR))
    except Malformed:  # or encrypted
        found = refusal(frame, ResponseCode.ERROR, ASK_OVER_TCP)
        if found is None:
            return None
        short = found
    return short[:2] + bytes((short[2] | _TRUNCATED,)) + short[3:]


def is_cut_form(packet: bytes) -> bool:
    """Whether a packet that a server sent is a cut form and not a fragment."""
    return (
        len(packet) >= ENVELOPE_OCTETS
        and bool(packet[2] & _TRUNCATED)
        and int.from_bytes(packet[16:20], "big") == len(packet) - ENVELOPE_OCTETS
    )


def short_refusal(data: bytes, code: int, text: str, octets_max: float) -> bytes | None:
    """A refusal of at most `octets_max` octets; None where not even the shortest fits."""
    room = int(octets_max) - REFUSAL_OCTETS
    if room < 0:
        return None
    return refusal(data, code, text.encode()[:room].decode(errors="ignore"))


class Verdict(Enum):
    ANSWER = "answer"
    CUT = "cut"
    SILENCE = "silence"


class RateLimit:
    """A token bucket for each network, filled with `per_s` a second, as much at most; 0 means
    no limit. At most `networks_max` are remembered: those seen last."""

    def __init__(self, per_s: float, *, networks_max: int = NETWORKS_MAX) -> None:
        self._per_s = per_s
        self._half = max(1, networks_max // 2)
        self._young: dict[bytes, Bucket] = {}
        self._old: dict[bytes, Bucket] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def verdict(self, address: str, now: float) -> Verdict:
        """What the next answer to this address is to be; `now` is the caller's clock."""
        if not self._per_s:
            return Verdict.ANSWER
        bucket = self.bucket(network(address), now)
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return Verdict.ANSWER
        bucket.over += 1
        return Verdict.CUT if bucket.over % SLIP == 0 else Verdict.SILENCE

    def bucket(self, name: bytes, now: float) -> Bucket:
        """That of a network, filled up to `now`. Who answers while there is a token takes it;
        where there is none `verdict` says what to do."""
        if not self._per_s:
            return ENDLESS
        bucket = self._young.get(name)
        if bucket is None:
            bucket = self._old.pop(name, None) or Bucket(self._per_s, now)
            if len(self._young) >= self._half:
                self._young, self._old = {}, self._young
            self._young[name] = bucket
        bucket.tokens = min(self._per_s, bucket.tokens + (now - bucket.since) * self._per_s)
        bucket.since = now
        return bucket


class Bucket:
    """`over` counts the answers that there was no token for."""

    __slots__ = ("over", "since", "tokens")

    def __init__(self, tokens: float, since: float) -> None:
        self.tokens = tokens
        self.since = since
        self.over = 0


ENDLESS: Final = Bucket(math.inf, 0.0)


def network(address: str) -> bytes:
    """The first octets of an address: the /24 or /56 that it belongs to."""
    if ":" not in address:
        return socket.inet_aton(address)[:IPV4_OCTETS]
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:IPV6_OCTETS]
