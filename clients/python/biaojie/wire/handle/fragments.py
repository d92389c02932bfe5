"""UDP: a message in packets of at most 512 octets, each with its own envelope.

Fragment n of a message holds its octets from 492 n on, and every one but the last is full.
The reassembly holds what came, never what was announced, and forgets the oldest first when
it is full or when they have waited too long; `now` is the caller's clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Final

from .codes import (
    DATAGRAM_OCTETS_MAX,
    ENVELOPE_OCTETS,
    FRAGMENT_OCTETS,
    HEADER_OCTETS,
    MESSAGE_OCTETS_MAX,
)
from .cursor import Malformed
from .message import Envelope, decode_envelope

WAIT_S: Final = 5.0
"""A client has given up on its last try after 3 seconds."""
PARTIAL_MAX: Final = 1_024
PARTIAL_PER_SOURCE_MAX: Final = 8
PARTIAL_OCTETS_MAX: Final = 4 * 1024 * 1024


def split(frame: bytes) -> list[bytes]:
    """The packets of a whole frame: itself where it fits one, else fragments marked truncated."""
    if len(frame) <= DATAGRAM_OCTETS_MAX:
        return [frame]
    envelope = replace(decode_envelope(frame), truncated=True)
    return [
        replace(envelope, sequence=number).encode() + frame[start : start + FRAGMENT_OCTETS]
        for number, start in enumerate(range(ENVELOPE_OCTETS, len(frame), FRAGMENT_OCTETS))
    ]


@dataclass(slots=True)
class _Partial:
    envelope: Envelope
    since: float
    parts: dict[int, bytes] = field(default_factory=dict)


_Name = tuple[Hashable, int, int]


class Reassembly:
    """Packets in, frames out.

        frame = reassembly.take(address, packet, now)
        if frame is not None:
            message = decode_message(frame)

    A fragment counts as its source's, so nobody can complete or spoil another's message without
    forging its address. Limits: `partial_max` unfinished messages, `per_source_max` of them of
    one source, `octets_max` octets in all; each waits `wait_s` seconds from its first fragment.
    """

    def __init__(
        self,
        *,
        message_octets_max: int = MESSAGE_OCTETS_MAX,
        partial_max: int = PARTIAL_MAX,
        per_source_max: int = PARTIAL_PER_SOURCE_MAX,
        octets_max: int = PARTIAL_OCTETS_MAX,
        wait_s: float = WAIT_S,
    ) -> None:
        self._message_octets_max = message_octets_max
        self._partial_max = partial_max
        self._per_source_max = per_source_max
        self._octets_max = octets_max
        self._wait_s = wait_s
        self._partials: dict[_Name, _Partial] = {}  # oldest first
        self._sources: dict[Hashable, dict[_Name, None]] = {}
        self._octets = 0

    @property
    def octets(self) -> int:
        """Octets of unfinished messages held."""
        return self._octets

    def __len__(self) -> int:
        """Unfinished messages held."""
        return len(self._partials)

    def take(self, source: Hashable, packet: bytes, now: float) -> bytes | None:
        """The frame that `packet` is or completes, else None. Raises Malformed on a packet that
        fits no message; what was held stays.

        A fragment that differs from the one held in its place begins the message anew: the
        peer has signed a second try.
        """
        self.forget(now)
        envelope = decode_envelope(packet, self._message_octets_max)
        if envelope.length < HEADER_OCTETS:
            raise Malformed(16, f"a message of at least {HEADER_OCTETS} octets")
        got = len(packet) - ENVELOPE_OCTETS
        if envelope.sequence == 0 and got == envelope.length:
            return packet if not envelope.truncated else _joined(envelope, [packet[20:]])
        number = -(-envelope.length // FRAGMENT_OCTETS)
        if envelope.sequence >= number:
            raise Malformed(12, f"a fragment number below {number}, not {envelope.sequence}")
        last = envelope.sequence == number - 1
        due = envelope.length - (number - 1) * FRAGMENT_OCTETS if last else FRAGMENT_OCTETS
        if got != due:
            raise Malformed(len(packet), f"a fragment of {due} octets, not {got}")
        return self._add(source, envelope, packet[ENVELOPE_OCTETS:], number, now)

    def _add(
        self, source: Hashable, envelope: Envelope, part: bytes, number: int, now: float
    ) -> bytes | None:
        name = (source, envelope.session_id, envelope.request_id)
        plain = replace(envelope, sequence=0, truncated=False)
        partial = self._partials.get(name)
        if partial is not None and (
            partial.envelope != plain or partial.parts.get(envelope.sequence, part) != part
        ):
            self._drop(name)
            partial = None
        if partial is None:
            self._make_room(source)
            partial = self._partials[name] = _Partial(plain, now)
            self._sources.setdefault(source, {})[name] = None
        if envelope.sequence not in partial.parts:
            partial.parts[envelope.sequence] = part
            self._octets += len(part)
        if len(partial.parts) == number:
            self._drop(name)
            return _joined(plain, [partial.parts[n] for n in range(number)])
        while self._octets > self._octets_max:
            self._drop(next(iter(self._partials)))
        return None

    def forget(self, now: float) -> None:
        """Drop what has waited too long."""
        while self._partials:
            name, partial = next(iter(self._partials.items()))
            if now - partial.since <= self._wait_s:
                return
            self._drop(name)

    def _make_room(self, source: Hashable) -> None:
        own = self._sources.get(source, {})
        if len(own) >= self._per_source_max:
            self._drop(next(iter(own)))
        if len(self._partials) >= self._partial_max:
            self._drop(next(iter(self._partials)))

    def _drop(self, name: _Name) -> None:
        partial = self._partials.pop(name)
        self._octets -= sum(map(len, partial.parts.values()))
        own = self._sources[name[0]]
        del own[name]
        if not own:
            del self._sources[name[0]]


def _joined(envelope: Envelope, parts: list[bytes]) -> bytes:
    return replace(envelope, sequence=0, truncated=False).encode() + b"".join(parts)
