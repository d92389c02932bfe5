"""What a credential covers, by protocol version, and the MACs of sessions.

| version  | covered                                                     | MAC                 |
|----------|-------------------------------------------------------------|---------------------|
| < 2.5    | header + body                                               | SHA1(key + … + key) |
| 2.5, 2.6 | a mistake of the reference code that peers have: `_broken`  | SHA1 of that        |
| 2.7      | version, session id, request id, counter, header + body     | HMAC-SHA256         |
| >= 2.8   | the same with the suggested version after the version       | HMAC-SHA256         |

Public-key signatures are made over `covered` (in 2.5 still over header + body alone) by
whoever has a cryptography library; this module only says which octets.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import replace

from .codes import ENVELOPE_OCTETS
from .credential import MAC, Credential, hash_name
from .cursor import text, u32
from .message import Message

_IDS = struct.Struct("!III")


def covered(message: Message, counter: int = 0) -> bytes:
    """The octets that a public-key signature of `message` covers.

    To verify, give the counter of the message's credential.
    """
    version = message.version
    octets = message.header_and_body()
    if not version.reaches((2, 6)):
        return octets
    ids = _IDS.pack(message.session_id, message.request_id, counter)
    if version.reaches((2, 8)):
        return bytes((*version, *message.suggested)) + ids + octets
    if version.reaches((2, 7)):
        return bytes(version) + ids + octets
    # 2.6: each number was written to where the one before should have ended but did not
    wrong = bytearray(14)
    wrong[:2] = bytes(version)
    wrong[2:6] = ids[:4]
    wrong[4:8] = ids[8:]
    return bytes(wrong) + octets


def with_mac(message: Message, key: bytes, counter: int) -> Message:
    """`message` with the MAC of a session: `key` is the session key without its cipher."""
    version = message.version
    if version.reaches((2, 7)):
        algorithm = "HMAC-SHA256"
    else:
        algorithm = "SHA1" if version.reaches((2, 6)) else "\x02"
    octets = _mac(replace(message, received=b""), key, counter, algorithm)
    assert octets is not None
    return replace(message, received=b"", credential=Credential(MAC, algorithm, octets, counter))


def mac_matches(message: Message, key: bytes) -> bool:
    """Whether the message's credential is a MAC and right. Whether its counter is new is the
    caller's to check."""
    credential = message.credential
    if credential is None or credential.type != MAC:
        return False
    octets = _mac(message, key, credential.counter, credential.algorithm)
    return octets is not None and hmac.compare_digest(octets, credential.signature)


_MAC_HEAD = u32(77) + bytes(8)
"""Of a section as clients write it with HMAC-SHA256: length, version and flags, no signer;"""
_MAC_TYPES = text(MAC) + u32(51) + text("HMAC-SHA256") + u32(32)
"""behind the counter all but the MAC itself."""
_MAC_OCTETS = len(_MAC_HEAD) + 4 + len(_MAC_TYPES) + 32


def counter_of(frame: bytes, end: int, key: bytes) -> int:
    """The counter of the MAC behind a whole unsealed message, whose body ends at `end`, if the MAC
    is right (see `mac_matches`) and made and written as is usual since version 2.8; else 0, and
    it may be right all the same."""
    counter = end + len(_MAC_HEAD)
    types = counter + 4
    if (
        not _SINCE <= frame[:2] < _BEFORE
        or len(frame) != end + _MAC_OCTETS
        or frame[end:counter] != _MAC_HEAD
        or frame[types:-32] != _MAC_TYPES
    ):
        return 0
    versions = frame[:4] if frame[2] else frame[:2] * 2
    octets = versions + frame[4:12] + frame[counter:types] + frame[ENVELOPE_OCTETS:end]
    if not hmac.compare_digest(hmac.digest(key, octets, "sha256"), frame[-32:]):
        return 0
    return int.from_bytes(frame[counter:types], "big")


_SINCE, _BEFORE = bytes((2, 8)), bytes((4, 0))


def _mac(message: Message, key: bytes, counter: int, algorithm: str) -> bytes | None:
    version = message.version
    if version.reaches((2, 7)):
        # a plain hash of key and message could be stretched, so it is not taken here
        if algorithm != "HMAC-SHA256" and _plain(algorithm) != "HMACSHA256":
            return None
        return hmac.digest(key, covered(message, counter), "sha256")
    name = hash_name(algorithm)
    if name not in {"sha1", "sha256"}:
        return None
    octets = message.header_and_body()
    if version.reaches((2, 5)):
        octets = _broken(message, key, counter, octets)
    else:
        octets = key + octets + key
    return hashlib.new(name, octets, usedforsecurity=False).digest()


def _plain(algorithm: str) -> str:
    return "".join(filter(str.isalnum, algorithm)).upper()


def _broken(message: Message, key: bytes, counter: int, octets: bytes) -> bytes:
    """Versions 2.5 and 2.6 meant key + fields + message + key, but went back to octet 4 for
    the third field and all that follows it, so that fields and most of the key are lost."""
    wrong = bytearray(2 * len(key) + len(octets) + 14)
    size = len(wrong)
    wrong[: len(key)] = key
    at = len(key)
    wrong[at : at + 2] = bytes(message.version)
    wrong[at + 2 : at + 6] = message.session_id.to_bytes(4, "big")
    wrong[4:8] = counter.to_bytes(4, "big")
    wrong[4 : 4 + len(octets)] = octets
    wrong[4 + len(octets) : 4 + len(octets) + len(key)] = key
    assert len(wrong) == size
    return bytes(wrong)
