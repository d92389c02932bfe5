"""Sockets to listen on: TCP and UDP, the same port on every address, IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import Final

TRIES: Final = 20
BACKLOG: Final = 1024
_TWINS: Final = {"127.0.0.1": "::1", "0.0.0.0": "::"}  # noqa: S104
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_Sockets = tuple[list[socket.socket], list[socket.socket]]


class CannotListen(OSError):
    """An address or port that cannot be had; the text says which, and what to do."""

    def __init__(self, error: OSError, address: str, port: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.reason = f"{address} port {port} (Handle): {error.strerror}"

    def __str__(self) -> str:
        return (
            f"{self.reason}. Set BIAOJIE_HANDLE_PORT, BIAOJIE_HANDLE_HOST, or"
            " BIAOJIE_HANDLE_ENABLED=false."
            " 无法监听 Handle 端口：请设置以上变量之一。"
        )


async def listen(host: str, port: int, *, fallback: str = "") -> _Sockets:
    """TCP and UDP sockets bound to `port` on each address of `host` (names or addresses, commas
    between); port 0 picks one that is free on all. Without `host`, `fallback` is taken, and where
    that is 127.0.0.1 or 0.0.0.0 its IPv6 twin too if there is IPv6 here.

    Raises CannotListen.
    """
    addresses = await _addresses(host or fallback)
    optional = None if host else _TWINS.get(fallback)
    for _ in range(TRIES if not port else 1):
        try:
            return _bind(addresses, optional, port)
        except CannotListen as error:
            # Free on one address or transport, taken on the other: the next one, if any will do.
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise CannotListen(OSError(errno.EADDRINUSE, "no port is free for both"), host, port)


async def _addresses(host: str) -> list[str]:
    loop = asyncio.get_running_loop()
    found: dict[str, None] = {}
    for name in host.split(","):
        try:
            known = await loop.getaddrinfo(name.strip(), None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise CannotListen(error, name.strip(), 0) from None
        found.update((str(address[0]), None) for *_, address in known)
    return list(found)


def _bind(addresses: list[str], optional: str | None, port: int) -> _Sockets:
    bound: _Sockets = ([], [])
    try:
        for address in addresses if optional is None else [*addresses, optional]:
            try:
                for sockets, kind in zip(bound, _KINDS, strict=True):
                    sockets.append(_bound(address, port, kind))
                    port = sockets[-1].getsockname()[1]
            except OSError as error:
                if address != optional or error.errno not in _NO_IPV6:
                    raise CannotListen(error, address, port) from None
    except BaseException:
        close(bound)
        raise
    return bound


def _bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
    for each in (*sockets[0], *sockets[1]):
        with suppress(OSError):
            each.close()
