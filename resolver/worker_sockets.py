"""The sockets of workers: bound once, by the supervisor, and handed to each worker by descriptor.

A slot has sockets of its own on the same addresses and ports as the others', among which the
system spreads what comes. They stay open in the supervisor, so that nothing that waits in one is
lost while its worker is replaced. A front is added by a line in `_places`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .front.listening import CannotListen, bind, close
from .settings import Settings

HTTP: Final = "http"
HTTPS: Final = "https"
HANDLE_TCP: Final = "handle-tcp"
HANDLE_UDP: Final = "handle-udp"
NATIVE: Final = "native"
TRIES: Final = 20

Sockets = dict[str, list[socket.socket]]
"""What a node listens on, by the names above."""


@dataclass(frozen=True, slots=True)
class _Place:
    """One address and port, and the sockets there, by name."""

    front: str
    kinds: dict[str, socket.SocketKind]
    host: str
    port: int
    settings: tuple[str, ...]
    fallback: str = ""


def _places(settings: Settings) -> Iterator[_Place]:
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    yield _Place("HTTP", {HTTP: stream}, settings.host, settings.port, ("PORT", "HOST"))
    if settings.tls_enabled:
        names = ("TLS_PORT", "HOST", "TLS_ENABLED=false")
        yield _Place("HTTPS", {HTTPS: stream}, settings.host, settings.tls_port, names)
    if settings.handle_enabled:
        yield _Place(
            "Handle",
            {HANDLE_TCP: stream, HANDLE_UDP: datagram},
            settings.handle_host,
            settings.handle_port,
            ("HANDLE_PORT", "HANDLE_HOST", "HANDLE_ENABLED=false"),
            fallback=settings.host,
        )
    if settings.native_enabled:
        names = ("NATIVE_PORT", "NATIVE_HOST", "NATIVE_ENABLED=false")
        host, port = settings.native_host, settings.native_port
        yield _Place("native", {NATIVE: stream}, host, port, names, fallback=settings.host)


PLACE_SETTINGS: Final = (
    "host",
    "port",
    "tls_enabled",
    "tls_port",
    "handle_enabled",
    "handle_host",
    "handle_port",
    "native_enabled",
    "native_host",
    "native_port",
    "native_socket",
)
"""The settings that say where to listen: they hold as long as the sockets do."""


def bind_slots(settings: Settings, slots: int) -> list[Sockets]:
    """The sockets of each slot. Port 0 becomes one number for all. Raises CannotListen."""
    bound: list[Sockets] = [{} for _ in range(slots)]
    try:
        for place in _places(settings):
            _bind_place(place, bound)
        if settings.native_enabled and settings.native_socket is not None:
            from .front.native.listening import bind_unix

            one = bind_unix(settings.native_socket)  # of which all accept
            for slot in bound:
                slot[NATIVE].append(one)
    except BaseException:
        for slot in bound:
            close(tuple(slot.values()))
        raise
    return bound


def _bind_place(place: _Place, bound: list[Sockets]) -> None:
    names, kinds = tuple(place.kinds), tuple(place.kinds.values())
    port = place.port
    try:
        if port:
            # Shared ports are shared with anybody of this user, another node too: only alone
            # does one learn that the port is taken.
            close(bind(place.host, port, fallback=place.fallback, kinds=kinds))
        for slot in bound:
            sockets = bind(place.host, port, fallback=place.fallback, kinds=kinds, shared=True)
            slot.update(zip(names, sockets, strict=True))
            port = port_of(slot, names[0])
    except CannotListen as error:
        raise CannotListen(error, error.address, error.port, place.front, place.settings) from None


def port_of(sockets: Sockets, name: str) -> int:
    """0 where there are none of that name."""
    found = sockets.get(name)
    return int(found[0].getsockname()[1]) if found else 0


def descriptors(sockets: Sockets) -> dict[str, list[int]]:
    return {name: [each.fileno() for each in several] for name, several in sockets.items()}


def adopt(text: str) -> Sockets:
    """The sockets that a worker was started with, from the JSON of their descriptors."""
    return {
        name: [socket.socket(fileno=number) for number in numbers]
        for name, numbers in json.loads(text).items()
    }
