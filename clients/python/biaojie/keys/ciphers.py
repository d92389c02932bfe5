"""Block ciphers with PKCS#5 padding over `cryptography`: AES, SM4, triple DES and DES.

DES and triple DES are long broken; they stay for what old clients and key files hold.
"""

from __future__ import annotations

from .errors import InvalidKey, Undecryptable, missing

try:
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
    from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, algorithms
    from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
    from cryptography.hazmat.primitives.padding import PKCS7
except ImportError:
    raise missing("cryptography") from None

Algorithm = BlockCipherAlgorithm


def aes(key: bytes) -> Algorithm:
    """`key` of 16, 24 or 32 octets."""
    _need(key, (16, 24, 32))
    return algorithms.AES(key)


def sm4(key: bytes) -> Algorithm:
    _need(key, (16,))
    return algorithms.SM4(key)


def triple_des(key: bytes) -> Algorithm:
    _need(key, (24,))
    return TripleDES(key)


def des(key: bytes) -> Algorithm:
    """Single DES: triple DES with one key thrice."""
    _need(key, (8,))
    return TripleDES(key * 3)


def seal(algorithm: Algorithm, iv: bytes | None, plain: bytes) -> bytes:
    """Ciphertext alone, CBC from `iv`, or ECB where that is None."""
    padder = PKCS7(algorithm.block_size).padder()
    padded = padder.update(plain) + padder.finalize()
    encryptor = Cipher(algorithm, CBC(iv) if iv is not None else ECB()).encryptor()  # noqa: S305
    return encryptor.update(padded) + encryptor.finalize()


def unseal(algorithm: Algorithm, iv: bytes | None, sealed: bytes) -> bytes:
    """What `seal` sealed; raises Undecryptable and says no more, whatever was wrong."""
    octets = algorithm.block_size // 8
    if not sealed or len(sealed) % octets or (iv is not None and len(iv) != octets):
        raise Undecryptable()
    decryptor = Cipher(algorithm, CBC(iv) if iv is not None else ECB()).decryptor()  # noqa: S305
    padded = decryptor.update(sealed) + decryptor.finalize()
    unpadder = PKCS7(algorithm.block_size).unpadder()
    try:
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        raise Undecryptable() from None


def _need(key: bytes, sizes: tuple[int, ...]) -> None:
    if len(key) not in sizes:
        raise InvalidKey(
            f"The key of this cipher has {' or '.join(map(str, sizes))} octets, not {len(key)}.",
            f"该算法的密钥应为 {' 或 '.join(map(str, sizes))} 字节，而不是 {len(key)} 字节。",
        )
