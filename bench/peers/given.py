"""Servers that the operator has at hand and has started: asked by their addresses.

They are not ours: what goes wrong with one ends its own line, not the run.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from biaojie.errors import BiaojieError
from biaojie.handle_options import Login, login_of
from biaojie.wire.handle import ENVELOPE_OCTETS, decode_envelope

from ..processes import family
from ..words import BenchFault

WARM_S: Final = 15.0
"""A Java server is asked for so long before anything is counted."""
_PATIENCE_S: Final = 10.0
_IDLE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Addresses, names with what each answer holds, and who may create at the Handle server.

    `misses`: it keeps its records in PostgreSQL and has none of the names at hand.
    """

    handle: str = ""
    rest: str = ""
    url: str = ""
    pids: tuple[int, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    login: Login | None = None
    misses: bool = False

    count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.names))

    def name(self, number: int) -> str:
        return self.names[number][0]

    def data(self, number: int, generation: int) -> bytes:
        return self.names[number][1].encode()

    @property
    def prefix(self) -> str:
        """Under which there are names already, so that there may be more."""
        return self.name(0).partition("/")[0]

    def processes(self) -> Sequence[int]:
        return [member for pid in self.pids for member in family(pid)]


def hangs_up(host: str, port: int, question: bytes) -> bool:
    """Whether a Handle server ends a connection after its answer, though asked to keep it."""
    with socket.create_connection((host, port), timeout=_PATIENCE_S) as connection:
        connection.sendall(question)
        head = connection.recv(ENVELOPE_OCTETS, socket.MSG_WAITALL)
        left = decode_envelope(head).length if len(head) == ENVELOPE_OCTETS else 0
        connection.recv(left, socket.MSG_WAITALL)
        connection.settimeout(_IDLE_S)
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


def read_names(file: Path) -> tuple[tuple[str, str], ...]:
    """Lines of a name, and after a tab what its answer must hold."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple((line.partition("\t")[0], line.partition("\t")[2]) for line in lines if line)


def read_login(identity: str, key: Path | None, secret: Path | None) -> Login | None:
    """Raises BenchFault; None without an identity."""
    try:
        return login_of(
            identity or None,
            secret.read_text(encoding="utf-8").strip() if secret is not None else None,
            key.read_bytes() if key is not None else None,
        )
    except BiaojieError as error:
        raise BenchFault(error.detail.en, error.detail.zh) from None


def address(url: str, port: int) -> tuple[str, int]:
    """IPv4 address and port of `host:port` or a URL."""
    where = url.partition("://")[2].partition("/")[0] if "://" in url else url
    host, _, given = where.partition(":")
    try:
        return socket.gethostbyname(host), int(given or port)
    except (OSError, ValueError):
        raise BenchFault(f"{url}: no IPv4 address and port", f"{url}：无效的地址或端口") from None
