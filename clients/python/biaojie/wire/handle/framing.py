"""Finding messages in a TCP stream: envelope, then as many octets as it says. No fragments here;
the truncated mark means nothing on TCP."""

from __future__ import annotations

from collections.abc import Iterator

from .codes import ENVELOPE_OCTETS, HEADER_OCTETS, MESSAGE_OCTETS_MAX
from .cursor import Malformed
from .message import decode_envelope
from .version import MAJORS


class StreamFraming:
    """The octets of one connection in, frames out.

        for frame in framing.feed(data):
            message = decode_message(frame)

    It keeps at most one message of `octets_max` and what one `feed` brought; a longer message
    is refused on its envelope. After Malformed the stream cannot be followed any more.
    """

    __slots__ = ("_buffer", "_octets_max")

    def __init__(self, octets_max: int = MESSAGE_OCTETS_MAX) -> None:
        self._buffer = bytearray()
        self._octets_max = octets_max

    @property
    def buffered(self) -> int:
        """Octets of messages that are not whole yet. 0 between messages: only then may the
        peer hang up without having cut something off."""
        return len(self._buffer)

    @property
    def start(self) -> bytes:
        """Envelope and header of what is not whole yet, as far as they came; after Malformed, of
        what was wrong, for `refusal` to echo."""
        return bytes(self._buffer[: ENVELOPE_OCTETS + HEADER_OCTETS])

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what arrived at once; then give each whole frame, or raise Malformed where the
        stream goes wrong (frames before that have been given by then)."""
        self._buffer += data
        return self._frames()

    def _frames(self) -> Iterator[bytes]:
        buffer = self._buffer
        while len(buffer) >= ENVELOPE_OCTETS:
            envelope = decode_envelope(bytes(buffer[:ENVELOPE_OCTETS]), self._octets_max)
            if envelope.length < HEADER_OCTETS:
                raise Malformed(16, f"a message of at least {HEADER_OCTETS} octets")
            size = ENVELOPE_OCTETS + envelope.length
            if len(buffer) < size:
                return
            frame = bytes(buffer[:size])
            del buffer[:size]
            yield frame


def whole_until(data: bytes, at: int) -> int:
    """Where the message that begins at `at` ends, if it is whole and StreamFraming would give it;
    else 0."""
    body = at + ENVELOPE_OCTETS
    if len(data) < body or data[at] not in MAJORS:
        return 0
    length = int.from_bytes(data[at + 16 : body], "big")
    good = HEADER_OCTETS <= length <= MESSAGE_OCTETS_MAX and body + length <= len(data)
    return body + length if good else 0


def whole_frames(data: bytes, octets_max: int = MESSAGE_OCTETS_MAX) -> tuple[bytes, ...]:
    """The frames of an HTTP body, which must end where a frame ends; raises Malformed."""
    framing = StreamFraming(octets_max)
    frames = tuple(framing.feed(data))
    if framing.buffered:
        raise Malformed(len(data), f"the rest of a message, {framing.buffered} octets of it came")
    return frames
