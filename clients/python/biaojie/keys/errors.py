"""What goes wrong with keys. Both are kinds of errors the rest of the project already knows."""

from __future__ import annotations

from ..errors import BiaojieError, InvalidRecord, Text


class InvalidKey(InvalidRecord):
    """A key, key file, certificate or session key that is malformed or out of bounds."""

    title = Text("The key cannot be used", "密钥无法使用")
    advice = Text(
        "Check that it is a whole RSA, DSA or SM2 key in one of the formats named in the help.",
        "请确认它是完整的 RSA、DSA 或 SM2 密钥，且为帮助中列出的格式之一。",
    )


class Undecryptable(InvalidKey):
    """Ciphertext that this key or passphrase does not open. Never says more than that."""

    title = Text("It cannot be decrypted", "无法解密")
    advice = Text(
        "Check the passphrase, or that the key is the one it was encrypted for.",
        "请检查口令，或确认使用的是加密时对应的密钥。",
    )


class PassphraseNeeded(Undecryptable):
    """An encrypted private key and no passphrase."""

    title = Text("The private key is encrypted", "私钥已加密")
    advice = Text("Give its passphrase.", "请提供口令。")


class MissingLibrary(BiaojieError):
    """A cryptographic library that this needs is not installed."""

    title = Text("A cryptographic library is missing", "缺少密码学库")
    advice = Text(
        "Install it: pip install 'biaojie-client[handle]'.",
        "请安装：pip install 'biaojie-client[handle]'。",
    )


def bad(en: str, zh: str) -> InvalidKey:
    return InvalidKey(en, zh)


def missing(name: str) -> MissingLibrary:
    return MissingLibrary(f"This needs the package {name}.", f"此操作需要软件包 {name}。")
