"""Where a run goes to, and whether it may."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from .words import BenchFault

Front = Literal["http", "native", "hdl-tcp", "hdl-udp"]
SCHEMES: Final = ("http", "biaojie", "biaojie+unix", "hdl", "hdl+udp")
_PORTS: Final = {"http": 80, "biaojie": 2650, "hdl": 2641, "hdl+udp": 2641}
_FRONTS: Final[dict[str, Front]] = {
    "http": "http",
    "biaojie": "native",
    "biaojie+unix": "native",
    "hdl": "hdl-tcp",
    "hdl+udp": "hdl-udp",
}


@dataclass(frozen=True, slots=True)
class Target:
    """`address` is the one that is connected to; `socket` the path of a Unix socket instead."""

    url: str
    front: Front
    host: str = ""
    port: int = 0
    path: str = ""
    address: str = ""
    socket: str = ""

    @property
    def shown_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def loopback(self) -> bool:
        return bool(self.socket) or ipaddress.ip_address(self.address).is_loopback


def parse_target(url: str, *, own: bool = False) -> Target:
    """The target of a URL; raises BenchFault.

    Only this machine itself may be loaded, unless `own` says that the target is the caller's.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _not_an_address(url) from None
    scheme = parts.scheme
    front = _FRONTS.get(scheme)
    if front is None or parts.query or parts.fragment or parts.username:
        raise _not_an_address(url)
    if scheme == "biaojie+unix":
        if not parts.path:
            raise _not_an_address(url)
        return Target(url, front, socket=str(Path(parts.path)))
    if not parts.hostname:
        raise _not_an_address(url)
    port = port or _PORTS[scheme]
    kind = socket.SOCK_DGRAM if front == "hdl-udp" else socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=kind)
    except OSError as error:
        raise BenchFault(
            f"{parts.hostname} cannot be found: {error}", f"无法解析 {parts.hostname}：{error}"
        ) from None
    address = str(found[0][4][0])
    target = Target(url, front, parts.hostname, port, parts.path, address)
    if not target.loopback and not own:
        raise BenchFault(
            f"{parts.hostname} is another machine. A load test can bring a service down: run it"
            " against machines of your own only, and say so with --i-own-this-target.",
            f"{parts.hostname} 不是本机。压测可能使服务中断：只能用于自己的机器，"
            "并以 --i-own-this-target 声明。",
        )
    return target


def _not_an_address(url: str) -> BenchFault:
    known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
    return BenchFault(
        f"{url!r} is no address to load; those begin with {known}.",
        f"{url!r} 不是可压测的地址；应以 {known} 开头。",
    )
