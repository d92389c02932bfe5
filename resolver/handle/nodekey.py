"""The node's own key: what certified answers are signed with, and HS_SITE says whose they are.

It is made when a node first starts, in `handle-key.pem` of the data folder, and stays: clients
keep it with the HS_SITE. Nodes that answer for one site must share the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from biaojie.errors import OverCapacity
from biaojie.keys import InvalidKey, RsaPrivateKey, encode_public_key, generate, pem
from biaojie.wire.handle import SIGNED, Credential, Message, Version, covered

FILE: Final = "handle-key.pem"
BITS_MIN: Final = 2048
SIGNING_AT_ONCE: Final = 2
SIGNING_WAITING_MAX: Final = 256
"""A signature takes about a millisecond of one core; whoever asks when so many wait is refused."""


class NodeKey:
    """An RSA key pair; `octets` is its public half as HS_PUBKEY and HS_SITE have it."""

    def __init__(self, private: RsaPrivateKey) -> None:
        self.private = private
        self.octets = encode_public_key(private.public)
        self._slots = asyncio.Semaphore(SIGNING_AT_ONCE)
        self._waiting = 0

    async def signed(self, message: Message) -> Message:
        """`message` with a credential of this key. Raises OverCapacity."""
        if self._waiting >= SIGNING_WAITING_MAX:
            raise OverCapacity()
        # Loaded at the first signature: a start is quicker without.
        from biaojie.keys import sign

        name, algorithm = _hash(message.version)
        data = covered(replace(message, received=b""))
        self._waiting += 1
        try:
            async with self._slots:
                signature = await asyncio.to_thread(sign, self.private, algorithm, data)
        finally:
            self._waiting -= 1
        return replace(message, received=b"", credential=Credential(SIGNED, name, signature))


def _hash(version: Version) -> tuple[str, str]:
    """As the credential names it, and what it is: one that clients of that age can check."""
    if version.reaches((2, 7)):
        return "SHA-256", "SHA-256"
    return ("SHA1" if version.reaches((2, 6)) else "\x02"), "SHA1"


async def load(data_dir: Path) -> NodeKey:
    """The key of the data folder, made if there is none. Raises InvalidKey for a file that holds
    another kind of key, and OSError."""
    return await asyncio.to_thread(_load, data_dir)


def _load(data_dir: Path) -> NodeKey:
    path = data_dir / FILE
    with (data_dir / f"{FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two nodes that start together make one key
        if not path.exists():
            _write(path, pem.encode_private(generate("rsa")))
    private = pem.decode_private(path.read_bytes())
    if not isinstance(private, RsaPrivateKey) or private.public.bits < BITS_MIN:
        raise InvalidKey(
            f"{path} must hold an RSA key of at least {BITS_MIN} bits.",
            f"{path} 应为不少于 {BITS_MIN} 位的 RSA 密钥。",
        )
    return NodeKey(private)


def _write(path: Path, text: bytes) -> None:
    """Whole or not at all, readable by its owner alone."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
