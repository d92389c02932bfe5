"""Many datagrams by one system call: Linux's recvmmsg and sendmmsg on memory laid out once.

A `Batch` belongs to one socket. `receive` fills its slots; `cutters` and `networks` read of them
what the express lane asks for; an answer is written over its question, and `send` sends it to
where that came from. Rules: nothing here waits; a slot's octets are good until the next `receive`.
Where the platform lacks the calls (`AVAILABLE`), datagrams are taken one by one (udp.py).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

BATCH: Final = 64
"""Packets taken by one call."""
SLOT_OCTETS: Final = 576
"""Where a packet's first octets go: all of it, if it is as long as packets should be. An odd
number of cache lines, so that slots do not share them."""
REST_OCTETS: Final = 65_536
KEY_OCTETS_MIN: Final = 44
_NAME_OCTETS: Final = 32
_FULL: Final = (errno.EAGAIN, errno.ENOBUFS)
Key = tuple[bytes, ...]
Source = tuple[Any, ...]
_IPV4: Final = struct.Struct("=H2s4s8x")
_IPV6: Final = struct.Struct("=H2s4s16sI")


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("octets", ctypes.c_size_t)]


class _Msghdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_octets", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_octets", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Mmsghdr(ctypes.Structure):
    _fields_ = [("header", _Msghdr), ("octets", ctypes.c_uint)]


_HEADER_OCTETS: Final = ctypes.sizeof(_Mmsghdr)
_IOVEC_OCTETS: Final = ctypes.sizeof(_Iovec)
_VECTORS: Final = tuple(struct.Struct("@" + "PN" * n) for n in range(BATCH + 1))
_LENGTH_AT: Final = _Mmsghdr.octets.offset
_LENGTH: Final = f"{_LENGTH_AT}xI{_HEADER_OCTETS - _LENGTH_AT - 4}x"
_LENGTHS: Final = tuple(struct.Struct("=" + _LENGTH * n) for n in range(BATCH + 1))


def _call(name: str) -> Callable[..., int] | None:
    # Other systems lay these structures out otherwise, or have no such calls.
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    function: Any = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return None
    sizes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
    function.argtypes = [*sizes, ctypes.c_void_p] if name == "recvmmsg" else sizes
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_recvmmsg: Final = _call("recvmmsg")
_sendmmsg: Final = _call("sendmmsg")
AVAILABLE: Final = _recvmmsg is not None and _sendmmsg is not None


def _nothing(buffer: object, offset: int) -> Key:
    return ()


def _cutter(size: int) -> Callable[[Any, int], Key]:
    """Of a packet of that size all but octets 8 to 11 and 36 to 39."""
    if size < KEY_OCTETS_MIN:
        return _nothing
    return struct.Struct(f"=8s4x24s4x{size - 40}s").unpack_from


class Batch:
    """`bound` is a UDP socket, IPv4 or IPv6. `arena` holds slot n at n * SLOT_OCTETS, question
    and then answer; at 2n + 1 in `vectors` belongs how many octets the answer has."""

    cutters: Final = tuple(_cutter(size) for size in range(SLOT_OCTETS + 1))
    """By the size of a packet: what makes a key of the slot at an offset of the arena."""

    def __init__(self, bound: socket.socket, network_octets: tuple[int, int]) -> None:
        self.bound = bound
        self._fd = bound.fileno()
        self._ipv4 = bound.family == socket.AF_INET
        self._name_octets = _IPV4.size if self._ipv4 else _IPV6.size
        self.arena = mmap.mmap(-1, BATCH * SLOT_OCTETS)
        self._rest = mmap.mmap(-1, BATCH * REST_OCTETS)
        self._names = mmap.mmap(-1, BATCH * _NAME_OCTETS)
        self._in = (_Mmsghdr * BATCH)()
        self._out = (_Mmsghdr * BATCH)()
        self._in_vectors = (_Iovec * (2 * BATCH))()
        self._out_vectors = (_Iovec * BATCH)()
        self._lay_out()
        self._headers = memoryview(self._in).cast("B")
        self._in_at = ctypes.addressof(self._in)
        self._out_at = ctypes.addressof(self._out)
        before, octets = (4, network_octets[0]) if self._ipv4 else (8, network_octets[1])
        after = _NAME_OCTETS - before - octets
        self._networks = tuple(
            struct.Struct("=" + f"{before}x{octets}s{after}x" * n) for n in range(BATCH + 1)
        )
        start = _address(self.arena)
        self.vectors = [n for slot in range(BATCH) for n in (start + slot * SLOT_OCTETS, 0)]

    def _lay_out(self) -> None:
        arena, rest, names = map(_address, (self.arena, self._rest, self._names))
        vectors_in, vectors_out = map(ctypes.addressof, (self._in_vectors, self._out_vectors))
        for n in range(BATCH):
            self._in_vectors[2 * n] = _Iovec(arena + n * SLOT_OCTETS, SLOT_OCTETS)
            self._in_vectors[2 * n + 1] = _Iovec(rest + n * REST_OCTETS, REST_OCTETS)
            for messages, vectors, count in (
                (self._in, vectors_in, 2),
                (self._out, vectors_out, 1),
            ):
                header = messages[n].header
                header.name = names + n * _NAME_OCTETS
                # As long as every address of the family, so that it needs no setting again.
                header.name_octets = self._name_octets
                header.iov = vectors + count * n * _IOVEC_OCTETS
                header.iov_count = count

    def receive(self) -> tuple[int, ...]:
        """The sizes of the packets that came, those of no octets too; none where there are none,
        or the network says that a reply got lost."""
        assert _recvmmsg is not None
        count = _recvmmsg(self._fd, self._in_at, BATCH, socket.MSG_DONTWAIT, None)
        return _LENGTHS[count].unpack_from(self._headers) if count > 0 else ()

    def networks(self, count: int) -> tuple[bytes, ...]:
        """Of the senders of the first `count` packets."""
        return self._networks[count].unpack_from(self._names)

    def packet(self, slot: int, size: int) -> bytes:
        at = slot * SLOT_OCTETS
        if size <= SLOT_OCTETS:
            return self.arena[at : at + size]
        rest = slot * REST_OCTETS
        return self.arena[at : at + SLOT_OCTETS] + self._rest[rest : rest + size - SLOT_OCTETS]

    def source(self, slot: int) -> Source:
        """The sender's address as `socket` takes it."""
        name = self._names[slot * _NAME_OCTETS : (slot + 1) * _NAME_OCTETS]
        (port,) = struct.unpack_from("!H", name, 2)
        if self._ipv4:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        flow, scope = struct.unpack_from("!I", name, 4)[0], struct.unpack_from("@I", name, 24)[0]
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope

    def send(self, start: int, end: int) -> int:
        """Send the answers in the slots from `start` to before `end`; how many the socket did not
        take. These are lost."""
        assert _sendmmsg is not None
        lost = 0
        vectors = _VECTORS[end - start]
        at = start * _IOVEC_OCTETS
        vectors.pack_into(self._out_vectors, at, *self.vectors[2 * start : 2 * end])
        while start < end:
            first = self._out_at + start * _HEADER_OCTETS
            sent = _sendmmsg(self._fd, first, end - start, socket.MSG_DONTWAIT)
            if sent > 0:
                start += sent
            elif ctypes.get_errno() in _FULL:  # for the others too
                return lost + end - start
            else:  # there is no way to that address
                lost += 1
                start += 1
        return lost

    def send_to(self, packets: Sequence[tuple[Source, bytes]]) -> int:
        """Send packets of at most SLOT_OCTETS to addresses such as `source` gives; how many the
        socket did not take. What was received last is overwritten."""
        lost = 0
        for at in range(0, len(packets), BATCH):
            part = packets[at : at + BATCH]
            for slot, (source, packet) in enumerate(part):
                name, start = slot * _NAME_OCTETS, slot * SLOT_OCTETS
                self._names[name : name + self._name_octets] = self._name(source)
                self.arena[start : start + len(packet)] = packet
                self.vectors[2 * slot + 1] = len(packet)
            lost += self.send(0, len(part))
        return lost

    def _name(self, source: Source) -> bytes:
        port = source[1].to_bytes(2, "big")
        if self._ipv4:
            return _IPV4.pack(socket.AF_INET, port, socket.inet_aton(source[0]))
        octets, flow = socket.inet_pton(socket.AF_INET6, source[0]), source[2].to_bytes(4, "big")
        return _IPV6.pack(socket.AF_INET6, port, flow, octets, source[3])

    def close(self) -> None:
        self._headers.release()
        for memory in (self.arena, self._rest, self._names):
            memory.close()


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
