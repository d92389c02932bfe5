"""The credential section at the end of a message (RFC 3652 §2.2.4): a signature or a MAC.

    length 4 · version 1 · reserved 1 · flags 2 · signer · index 4 · type · length 4
    · digest algorithm · signature

The signer is sent empty, and its index has become the session counter, which stops replays.
What the signature covers is in signing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .codes import HANDLE_OCTETS_MAX
from .cursor import Malformed, Reader, block, text, u32

SIGNED: Final = "HS_SIGNED"
MAC: Final = "HS_MAC"
OLD_SIGNED: Final = "HS_DSAPUBKEY"
SIGNATURE_OCTETS_MAX: Final = 8_192

_HASHES: Final = {
    "\x01": "md5",
    "\x02": "sha1",
    "\x03": "sha256",
    "MD5": "md5",
    "SHA1": "sha1",
    "SHA-1": "sha1",
    "SHA256": "sha256",
    "SHA-256": "sha256",
    "SM3": "sm3",
}


def hash_name(algorithm: str) -> str | None:
    """hashlib's name for a digest algorithm as written on the wire (a name, or before version
    2.6 a single octet); None where it is no known digest."""
    return _HASHES.get(algorithm)


@dataclass(frozen=True, slots=True)
class Credential:
    """`type` is SIGNED, MAC or OLD_SIGNED; `algorithm` as on the wire, e.g. `SHA-256`,
    `HMAC-SHA256`; `counter` is the session counter, 0 outside sessions."""

    type: str
    algorithm: str
    signature: bytes
    counter: int = 0
    signer: str = ""

    @classmethod
    def read(cls, reader: Reader) -> Credential:
        """From the octets after the section's length; raises Malformed. Version, reserved
        octet and flags mean nothing yet and are passed over."""
        reader.octets(4, "a credential's version and flags")
        signer = reader.text("a signer", HANDLE_OCTETS_MAX)
        counter = reader.u32("a session counter")
        type_ = reader.text("a credential type", 64)
        size = reader.u32("the length of a signed-info section")
        if size != reader.left:
            raise Malformed(
                reader.offset - 4, f"a signed-info section of {reader.left} octets, not {size}"
            )
        algorithm = reader.text("a digest algorithm", 64)
        signature = reader.block("a signature", SIGNATURE_OCTETS_MAX)
        reader.done("the credential")
        return cls(type_, algorithm, signature, counter, signer)

    def encode(self) -> bytes:
        """Without the section's length."""
        info = text(self.algorithm) + block(self.signature)
        signer = text(self.signer) + u32(self.counter)
        return bytes(4) + signer + text(self.type) + block(info)
