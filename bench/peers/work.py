"""What servers are asked and what their answers must hold, as octets. No I/O.

A body for a peer is as many octets as ours, and differs from name to name, so that an answer to
another question is seen.
"""

from __future__ import annotations

import hashlib
import struct

NEEDLE_OCTETS = 40


def plain_name(number: int) -> str:
    """A name as servers without identifiers have it."""
    return f"B-{number:010d}"


def body_of(number: int, octets: int) -> bytes:
    """A body of that size; its first NEEDLE_OCTETS, or all if it is shorter, tell it apart."""
    proof = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=20).hexdigest().encode()
    return (proof * (octets // len(proof) + 1))[:octets]


def needle_of(number: int) -> bytes:
    return body_of(number, NEEDLE_OCTETS)


def http_get(path: str, host: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def redis_get(number: int) -> bytes:
    name = plain_name(number).encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)


def redis_set(number: int, octets: int) -> bytes:
    name, body = plain_name(number).encode(), body_of(number, octets)
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(body), body)


DNS_ZONE = "bench.example"
_DNS_HEAD = struct.Struct("!6H")
_TXT, _IN = 16, 1
TXT_OCTETS_MAX = 255


def _labels(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def dns_name(number: int) -> str:
    return f"{plain_name(number)}.{DNS_ZONE}".lower()


def dns_query(number: int) -> bytes:
    question = _labels(dns_name(number)) + struct.pack("!2H", _TXT, _IN)
    return _DNS_HEAD.pack(0, 0, 1, 0, 0, 0) + question


def dns_text_octets(answer_octets: int) -> int:
    """The text that makes an answer of that size: head, question, then pointer, type, class,
    TTL, length and one string. Within 40 to 255."""
    text = answer_octets - len(dns_query(0)) - 13
    return max(NEEDLE_OCTETS, min(text, TXT_OCTETS_MAX))


def dns_zone(names: int, text_octets: int) -> str:
    head = (
        f"$ORIGIN {DNS_ZONE}.\n$TTL 86400\n"
        f"@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n"
    )
    lines = (
        f'{plain_name(n).lower()} TXT "{body_of(n, text_octets).decode()}"\n' for n in range(names)
    )
    return head + "".join(lines)
