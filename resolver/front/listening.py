"""Sockets to listen on: the same port on every address, IPv4 and IPv6, for each transport."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

TRIES: Final = 20
BACKLOG: Final = 4_096
"""Connections that the system may hold for us until we take them, if it allows as many. For those
beyond it plays dead: they try again after 1 s, 3 s and 7 s."""
_TWINS: Final = {"127.0.0.1": "::1", "0.0.0.0": "::"}  # noqa: S104
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_Sockets = tuple[list[socket.socket], ...]


class CannotListen(OSError):
    """An address or port that cannot be had; the text says which, and which settings to change."""

    def __init__(
        self,
        error: OSError,
        address: str,
        port: int,
        front: str = "Handle",
        settings: Sequence[str] = ("HANDLE_PORT", "HANDLE_HOST", "HANDLE_ENABLED=false"),
    ) -> None:
        super().__init__(error.errno, error.strerror)
        self.address, self.port = address, port
        self.front = front
        self.reason = f"{address} port {port} ({front}): {error.strerror}"
        *first, last = (f"BIAOJIE_{name}" for name in settings)
        self._advice = f"{', '.join(first)} or {last}"

    def __str__(self) -> str:
        return (
            f"{self.reason}. Set {self._advice}. 无法监听 {self.front} 端口：请设置以上变量之一。"
        )


async def listen(
    host: str, port: int, *, fallback: str = ""
) -> tuple[list[socket.socket], list[socket.socket]]:
    """TCP and UDP sockets for the Handle protocol; see `bind`. Raises CannotListen."""
    streams, datagrams = await asyncio.to_thread(bind, host, port, fallback=fallback)
    return streams, datagrams


def bind(
    host: str,
    port: int,
    *,
    fallback: str = "",
    kinds: Sequence[socket.SocketKind] = _KINDS,
    shared: bool = False,
) -> _Sockets:
    """For each of `kinds` its sockets, bound to `port` on each address of `host` (names or
    addresses, commas between); port 0 picks one that is free on all. Without `host`, `fallback`
    is taken, and where that is 127.0.0.1 or 0.0.0.0 its IPv6 twin too if there is IPv6 here.
    With `shared` others of this user may bind the same port (SO_REUSEPORT); TCP sockets listen.

    Raises CannotListen.
    """
    addresses = _addresses(host or fallback)
    optional = None if host else _TWINS.get(fallback)
    for _ in range(TRIES if not port else 1):
        try:
            return _bind(addresses, optional, port, kinds, shared)
        except CannotListen as error:
            # Free on one address or transport, taken on the other: the next one, if any will do.
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise CannotListen(OSError(errno.EADDRINUSE, "no port is free for both"), host, port)


def _addresses(host: str) -> list[str]:
    found: dict[str, None] = {}
    for name in host.split(","):
        try:
            known = socket.getaddrinfo(name.strip(), None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise CannotListen(error, name.strip(), 0) from None
        found.update((str(address[0]), None) for *_, address in known)
    return list(found)


def _bind(
    addresses: list[str],
    optional: str | None,
    port: int,
    kinds: Sequence[socket.SocketKind],
    shared: bool,
) -> _Sockets:
    bound: _Sockets = tuple([] for _ in kinds)
    try:
        for address in addresses if optional is None else [*addresses, optional]:
            try:
                for sockets, kind in zip(bound, kinds, strict=True):
                    sockets.append(_bound(address, port, kind, shared))
                    port = sockets[-1].getsockname()[1]
            except OSError as error:
                if address != optional or error.errno not in _NO_IPV6:
                    raise CannotListen(error, address, port) from None
    except BaseException:
        close(bound)
        raise
    return bound


def _bound(address: str, port: int, kind: socket.SocketKind, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind((address, port))
        if kind == socket.SOCK_STREAM:
            made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def close(sockets: _Sockets) -> None:
    for kind in sockets:
        for each in kind:
            with suppress(OSError):
                each.close()
