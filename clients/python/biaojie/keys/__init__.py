"""Keys of the Handle system: as values, in octets and files, signing, and sessions.

    from biaojie.keys import decode_public_key, verify
    key = decode_public_key(value.data)                     # of an HS_PUBKEY value
    verify(key, "SHA-256", nonce + digest, signature)       # True or False, never raises

Reading and writing unencrypted keys needs nothing besides this library. What computes with them
(`verify`, `sign`, `generate` of RSA and DSA, certificates, passphrases, sessions) needs
`cryptography`, and signing or decrypting with an SM2 key `gmssl-pyx`; both come with
`biaojie-client[handle]` and are imported on first use. Without them: MissingLibrary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InvalidKey, MissingLibrary, PassphraseNeeded, Undecryptable
from .octets import (
    decode_dh_key,
    decode_private_key,
    decode_public_key,
    encode_dh_key,
    encode_private_key,
    encode_public_key,
)
from .values import (
    DhPublicKey,
    DsaPrivateKey,
    DsaPublicKey,
    PrivateKey,
    PublicKey,
    RsaPrivateKey,
    RsaPublicKey,
    Sm2PrivateKey,
    Sm2PublicKey,
)

if TYPE_CHECKING:
    from .certificate import Certificate, parse_identity, self_signed
    from .certificate import decode as decode_certificate
    from .generation import generate
    from .keyfile import Loaded, load
    from .session import (
        DiffieHellman,
        decrypt_message,
        encrypt_message,
        new_session_key,
        read_reply,
        unwrap,
        wrap,
    )
    from .signing import default_hash, sign, verify

__all__ = [
    "Certificate",
    "DhPublicKey",
    "DiffieHellman",
    "DsaPrivateKey",
    "DsaPublicKey",
    "InvalidKey",
    "Loaded",
    "MissingLibrary",
    "PassphraseNeeded",
    "PrivateKey",
    "PublicKey",
    "RsaPrivateKey",
    "RsaPublicKey",
    "Sm2PrivateKey",
    "Sm2PublicKey",
    "Undecryptable",
    "decode_certificate",
    "decode_dh_key",
    "decode_private_key",
    "decode_public_key",
    "decrypt_message",
    "default_hash",
    "encode_dh_key",
    "encode_private_key",
    "encode_public_key",
    "encrypt_message",
    "fingerprint",
    "generate",
    "load",
    "new_session_key",
    "parse_identity",
    "read_reply",
    "self_signed",
    "sign",
    "unwrap",
    "verify",
    "wrap",
]
_LAZY = {
    "Certificate": "certificate.Certificate",
    "DiffieHellman": "session.DiffieHellman",
    "Loaded": "keyfile.Loaded",
    "decode_certificate": "certificate.decode",
    "decrypt_message": "session.decrypt_message",
    "default_hash": "signing.default_hash",
    "encrypt_message": "session.encrypt_message",
    "generate": "generation.generate",
    "load": "keyfile.load",
    "new_session_key": "session.new_session_key",
    "parse_identity": "certificate.parse_identity",
    "read_reply": "session.read_reply",
    "self_signed": "certificate.self_signed",
    "sign": "signing.sign",
    "unwrap": "session.unwrap",
    "verify": "signing.verify",
    "wrap": "session.wrap",
}


def fingerprint(key: PublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, in hex:
    what `openssl pkey -pubin -outform der | sha256sum` prints."""
    import hashlib

    from .structures import encode_public

    return hashlib.sha256(encode_public(key)).hexdigest()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, member = _LAZY[name].partition(".")
    return getattr(import_module(f".{module}", __name__), member)
