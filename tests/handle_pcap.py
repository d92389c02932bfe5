"""What our Handle encoder writes, as a capture file for Wireshark; a manual check.

    python -m tests.handle_pcap out.pcap --tshark tshark

Needs a tshark that has the dissector do-irp (4.2 or newer). Every golden message, decoded and
encoded by us, goes in once as UDP and once as TCP, and so does all captured traffic. With
--tshark the file is read back: ends with 1 if a packet is not dissected, or is marked
malformed for another reason than those below.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from biaojie.wire.handle import (
    PORT,
    Message,
    Reassembly,
    StreamFraming,
    decode_message,
    encode_message,
    split,
)
from tests.handle_meaning import thing, vectors

DISAGREEMENTS = {
    "a very old client that calls 2.0 by the name 5.0": "not recognised by its version",
    "verify an answer elsewhere; the digest with its algorithm": "expects a length there",
    "session by the server's key": "reads a public key in every mode",
    "IIIS: session by the key at a handle, two octets too long as existing clients write it": (
        "reads a public key in every mode"
    ),
    "session made": "reads a public key in every mode",
    "created, with a digest in the old form, an octet array": "knows algorithms 1 to 3",
    "challenge before 2.1: nonce, then MD5 digest, both octet arrays": "begins with the digest",
    "the site, without a length before it": "expects a length",
}
"""Messages that the dissector reads otherwise than real clients and servers do."""

_RAW_IP = 101
_SEGMENT = 1_400


class Capture:
    """A pcap file of loopback packets; each message has a client port of its own."""

    def __init__(self) -> None:
        self.octets = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, _RAW_IP))
        self.names: list[str] = []
        self._port = 20_000

    def _ip(self, name: str, protocol: int, payload: bytes) -> None:
        self.names.append(name)
        size = 20 + len(payload)
        here = bytes((127, 0, 0, 1))
        header = struct.pack("!BBHHHBBH", 0x45, 0, size, 1, 0, 64, protocol, 0) + here + here
        when = 1_700_000_000 + len(self.names)
        self.octets += struct.pack("<IIII", when, 0, size, size) + header + payload

    def _ports(self, message: Message) -> tuple[int, int]:
        self._port += 1
        return (self._port, PORT) if message.is_request else (PORT, self._port)

    def udp(self, name: str, message: Message) -> None:
        ports = self._ports(message)
        for packet in split(encode_message(message)):
            self._ip(name, 17, struct.pack("!HHHH", *ports, 8 + len(packet), 0) + packet)

    def tcp(self, name: str, message: Message) -> None:
        ports = self._ports(message)
        frame = encode_message(message)
        for start in range(0, len(frame), _SEGMENT):
            last = start + _SEGMENT >= len(frame)
            header = struct.pack("!HHIIBBHHH", *ports, 1 + start, 1, 0x50, 0x18, 65_535, 0, 0)
            self._ip(name if last else "", 6, header + frame[start : start + _SEGMENT])


def _captured() -> Iterator[tuple[str, Message]]:
    streams: dict[tuple[str, str], StreamFraming] = {}
    reassembly = Reassembly()
    for line in vectors("captures"):
        flow = (line["conn"], line["dir"])
        octets = bytes.fromhex(line["hex"])
        if line["proto"] == "udp":
            frame = reassembly.take(flow, octets, 0.0)
            frames = [frame] if frame is not None else []
        else:
            frames = list(streams.setdefault(flow, StreamFraming()).feed(octets))
        yield from ((line["proto"], decode_message(frame)) for frame in frames)


def written() -> Capture:
    capture = Capture()
    for vector in vectors("messages"):
        capture.udp(vector["why"], thing(vector["message"]))
        capture.tcp(vector["why"], thing(vector["message"]))
    for proto, message in _captured():
        name = f"captured {message.opcode} {message.response_code}"
        (capture.udp if proto == "udp" else capture.tcp)(name, message)
    return capture


def faults(capture: Capture, tshark: list[str], file: str) -> Iterator[str]:
    fields = ("frame.protocols", "_ws.malformed", "_ws.expert.message")
    options = [option for name in fields for option in ("-e", name)]
    command = [*tshark, "-r", file, "-T", "fields", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(capture.names), "tshark lost packets"
    for name, line in zip(capture.names, lines, strict=True):
        protocols, malformed, *said = line.split("\t")
        if not name or name in DISAGREEMENTS:  # no name: a segment that others complete
            continue
        if "do-irp" not in protocols or malformed:
            yield f"{name}: {protocols} {malformed} {' '.join(said)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tshark", help="command to read it back with, words parted by spaces")
    parser.add_argument("--seen-as", help="the file's path as that command sees it")
    given = parser.parse_args()
    capture = written()
    given.file.write_bytes(capture.octets)
    found = []
    if given.tshark:
        seen_as = given.seen_as or str(given.file)
        found = list(faults(capture, given.tshark.split(), seen_as))
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(capture.names)} packets, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
