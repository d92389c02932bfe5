"""Encrypted sessions: the ciphers of messages, and how both sides come to one key.

    AES    CBC, the IV in front (before version 2.4: ECB); only the first 16 octets of the key
    SM4    IIIS: CBC, and the key is the IV, which is what its clients do
    3DES   CBC, the IV in front (before 2.4: ECB)
    DES    the same; read and answered, never chosen by us

Modes of key exchange: 1 and 3, the server makes the key and wraps it for a public key of the
client (`wrap`, `unwrap`); 2, the client wraps it for the server's; 4, Diffie-Hellman.
"""

from __future__ import annotations

import secrets
from typing import Final

from ..wire.handle.codes import Cipher
from ..wire.handle.cursor import Malformed, Reader
from ..wire.handle.keys import SessionKey
from ..wire.handle.version import Version
from . import ciphers, der, octets, sm2_curve
from .errors import Undecryptable, bad, missing
from .signing import library_private_key
from .values import (
    DhPublicKey,
    DsaPublicKey,
    PrivateKey,
    PublicKey,
    RsaPrivateKey,
    RsaPublicKey,
    Sm2PrivateKey,
    Sm2PublicKey,
)

try:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
except ImportError:
    raise missing("cryptography") from None

_KEY_OCTETS: Final[dict[int, int]] = {
    Cipher.DES: 8,
    Cipher.TRIPLE_DES: 24,
    Cipher.AES: 16,
    Cipher.SM4: 16,
}
_WRAPPED_OCTETS_MAX: Final = 1_100
_DH_SECRET_BITS: Final = 256
MODP_2048: Final = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E34"
    "04DDEF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6"
    "F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A6916"
    "3FA8FD24CF5F83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C"
    "32905E462E36CE3BE39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA95"
    "6AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
"""RFC 3526, group 14; its generator is 2."""


def new_session_key(cipher: Cipher = Cipher.AES) -> SessionKey:
    return SessionKey(cipher, secrets.token_bytes(_KEY_OCTETS[cipher]))


def encrypt_message(key: SessionKey, version: Version, data: bytes) -> bytes:
    """Header, body and credential of a message as they cross the wire under `key`, when the
    message is of that version. Raises InvalidKey for a key too short or a cipher unknown."""
    algorithm, octets_ = _algorithm(key)
    if key.cipher == Cipher.SM4:
        return ciphers.seal(algorithm, octets_, data)
    if not version.reaches((2, 4)):
        return ciphers.seal(algorithm, None, data)
    iv = secrets.token_bytes(algorithm.block_size // 8)
    return iv + ciphers.seal(algorithm, iv, data)


def decrypt_message(key: SessionKey, version: Version, data: bytes) -> bytes:
    """The inverse; raises Undecryptable where this key does not open it."""
    algorithm, octets_ = _algorithm(key)
    if key.cipher == Cipher.SM4:
        return ciphers.unseal(algorithm, octets_, data)
    if not version.reaches((2, 4)):
        return ciphers.unseal(algorithm, None, data)
    size = algorithm.block_size // 8
    return ciphers.unseal(algorithm, data[:size], data[size:])


def wrap(public: PublicKey, key: SessionKey, version: Version) -> bytes:
    """The session key for whoever has the private half: RSA PKCS#1 v1.5, or SM2 (04 ‖ C1 ‖ C3 ‖
    C2, as IIIS clients read). Before version 2.2 the cipher (DES) is not said."""
    plain = key.encode() if version.reaches((2, 2)) else key.octets
    if isinstance(public, RsaPublicKey):
        library = rsa.RSAPublicNumbers(public.e, public.n).public_key()
        return library.encrypt(plain, PKCS1v15())
    if isinstance(public, Sm2PublicKey):
        return sm2_curve.encrypt((public.x, public.y), plain)
    assert isinstance(public, DsaPublicKey)
    raise bad(
        "A DSA key cannot encrypt a session key; use RSA or SM2.", "DSA 密钥不能加密会话密钥。"
    )


def unwrap(private: PrivateKey, data: bytes, version: Version) -> SessionKey:
    """The session key that was wrapped for this key.

    Raises Undecryptable, always the same, whatever is wrong with `data` (else a server would
    tell an eavesdropper bit by bit); InvalidKey for a DSA key, MissingLibrary for SM2 without
    `gmssl-pyx`. A key whose cipher is not said (as the reference client sends it in mode 2) is
    known by its length.
    """
    if len(data) > _WRAPPED_OCTETS_MAX:
        raise Undecryptable()
    if isinstance(private, RsaPrivateKey):
        library = library_private_key(private)
        assert isinstance(library, rsa.RSAPrivateKey)
        try:
            plain = library.decrypt(data, PKCS1v15())
        except ValueError:
            raise Undecryptable() from None
    elif isinstance(private, Sm2PrivateKey):
        plain = _sm2_decrypt(private, data)
    else:
        raise bad(
            "A DSA key cannot encrypt a session key; use RSA or SM2.", "DSA 密钥不能加密会话密钥。"
        )
    if len(plain) in (12, 20, 28, 36) and version.reaches((2, 2)):
        cipher, plain = int.from_bytes(plain[:4], "big"), plain[4:]
    else:
        cipher = {8: Cipher.DES, 16: Cipher.AES, 24: Cipher.TRIPLE_DES, 32: Cipher.AES}.get(
            len(plain), 0
        )
    if len(plain) < _KEY_OCTETS.get(cipher, 1 << 31):
        raise Undecryptable()
    return SessionKey(cipher, plain)


class DiffieHellman:
    """One side of mode 4. The client makes it with no argument and sends `offer()`; the server
    makes it in the client's group with `DiffieHellman(peer)`, and answers `reply(cipher,
    version)`. Both then `agree`.

    The powers are Python's own: the secret serves once, and `cryptography` is giving this up.
    """

    def __init__(self, peer: DhPublicKey | None = None) -> None:
        p, g = (peer.p, peer.g) if peer else (MODP_2048, 2)
        self._secret = secrets.randbits(_DH_SECRET_BITS) | 1 << (_DH_SECRET_BITS - 1)
        self.public = DhPublicKey(p, g, pow(g, self._secret, p))

    def offer(self) -> bytes:
        """The public key of a SESSION_SETUP request."""
        return octets.encode_dh_key(self.public)

    def reply(self, cipher: Cipher, version: Version) -> bytes:
        """The data of its response: the cipher (DES, and not said, before 2.4) and our key."""
        if version.reaches((2, 4)):
            return SessionKey(cipher, self.offer()).encode()
        return self.offer()

    def agree(self, peer: DhPublicKey, cipher: Cipher) -> SessionKey:
        """The session key; raises InvalidKey where the peer's value is not of our group."""
        if (peer.p, peer.g) != (self.public.p, self.public.g):
            raise bad("The Diffie-Hellman groups differ.", "双方 Diffie-Hellman 参数不一致。")
        shared = pow(peer.y, self._secret, peer.p)
        if not 1 < shared < peer.p - 1:
            raise bad("The Diffie-Hellman value is unusable.", "Diffie-Hellman 数值不可用。")
        size = (peer.p.bit_length() + 7) // 8
        return SessionKey(cipher, _derive(shared.to_bytes(size, "big"), cipher))


def read_reply(data: bytes, version: Version) -> tuple[Cipher, DhPublicKey]:
    """The cipher and key in a server's answer to mode 4; raises InvalidKey."""
    if not version.reaches((2, 4)):
        return Cipher.DES, octets.decode_dh_key(data)
    reader = Reader(data)
    try:
        cipher = Cipher(reader.u32("a session cipher"))
    except (Malformed, ValueError):
        raise bad(
            "The server chose no cipher that we know.", "服务器选择的会话加密算法未知。"
        ) from None
    return cipher, octets.decode_dh_key(reader.rest())


def _derive(shared: bytes, cipher: Cipher) -> bytes:
    """As the reference does from the shared number, its leading zeros kept: DES and triple DES
    its first octets with parity set; AES 32 octets after as many zeros as can be spared."""
    if cipher == Cipher.AES:
        spare = len(shared) - 32
        zeros = len(shared) - len(shared.lstrip(b"\0"))
        start = max(0, min(zeros, spare))
        return shared[start : start + 32]
    if cipher in (Cipher.DES, Cipher.TRIPLE_DES):
        return bytes(
            octet & 0xFE | (octet & 0xFE).bit_count() & 1 ^ 1
            for octet in shared[: _KEY_OCTETS[cipher]]
        )
    raise bad(
        "Diffie-Hellman agrees on AES, DES or triple DES.", "Diffie-Hellman 不支持该加密算法。"
    )


def _algorithm(key: SessionKey) -> tuple[ciphers.Algorithm, bytes]:
    size = _KEY_OCTETS.get(key.cipher)
    if size is None or len(key.octets) < size:
        raise bad("The session key does not fit its cipher.", "会话密钥与加密算法不符。")
    used = key.octets[:size]
    make = {
        Cipher.DES: ciphers.des,
        Cipher.TRIPLE_DES: ciphers.triple_des,
        Cipher.AES: ciphers.aes,
        Cipher.SM4: ciphers.sm4,
    }[Cipher(key.cipher)]
    return make(used), used


def _sm2_decrypt(private: Sm2PrivateKey, data: bytes) -> bytes:
    """`data` is 04 ‖ x ‖ y ‖ C3 ‖ C2; the library reads the same in DER."""
    try:
        import gmssl_pyx
    except ImportError:
        raise missing("gmssl-pyx") from None
    if len(data) <= 97 or data[0] != 4:
        raise Undecryptable()
    x, y = int.from_bytes(data[1:33], "big"), int.from_bytes(data[33:65], "big")
    if not sm2_curve.on_curve(x, y):
        raise Undecryptable()
    members = der.integer(x), der.integer(y), der.octets(data[65:97]), der.octets(data[97:])
    try:
        plain: bytes = gmssl_pyx.sm2_decrypt(private.d.to_bytes(32, "big"), der.sequence(*members))
    except gmssl_pyx.GmsslInnerError:
        raise Undecryptable() from None
    return plain
