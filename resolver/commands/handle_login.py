"""A client for `--handle HOST[:PORT]`: the Handle protocol, and who logs in with what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from biaojie.errors import InvalidRequest

if TYPE_CHECKING:
    from biaojie.client import Client
    from biaojie.keys import PrivateKey


def connect_handle(
    server: str,
    identity: str | None,
    secret: str | None,
    key_file: Path | None,
    timeout_s: float,
) -> Client:
    """A client of a Handle server. Without `identity` it asks as the public does, whatever
    key the environment has for other nodes."""
    from biaojie.client import Client

    url = server if "://" in server else f"hdl://{server}"
    if identity is None:
        if key_file is not None:
            raise InvalidRequest(
                "A key file needs --identity, such as 300:88.118.8/ADMIN.",
                "使用密钥文件时须给出 --identity，例如 300:88.118.8/ADMIN。",
            )
        return Client(url, timeout_s=timeout_s)
    if key_file is not None:
        private = read_private_key(key_file)
        return Client(url, timeout_s=timeout_s, identity=identity, private_key=private)
    return Client(url, timeout_s=timeout_s, identity=identity, secret=secret)


def read_private_key(file: Path) -> PrivateKey:
    """From a file in any format that `handle-key` reads; its passphrase, if it has one, is in
    the environment (BIAOJIE_PASSPHRASE)."""
    from biaojie.keys import load

    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"The key file {file} cannot be read: {error}.", f"无法读取密钥文件 {file}：{error}。"
        ) from None
    passphrase = os.environ.get("BIAOJIE_PASSPHRASE")
    private = load(data, os.fsencode(passphrase) if passphrase else None).private
    if private is None:
        raise InvalidRequest(
            f"{file} has a public key; its private half is needed.",
            f"{file} 是公钥，需要的是私钥。",
        )
    return private
