"""From an operation to its answer: asking again after faults that may pass, and going where
referrals point.

Reads are repeated as over HTTP. A write is repeated only where it certainly did not happen: it
never left, or the server said that it is too busy. A referral (302, 303) is followed to the
server that the HS_SITE values describe, a bounded number of times and nowhere twice; who asks,
and with what key, goes along.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Final

from .errors import BiaojieError, Elsewhere, MalformedAnswer, Unreachable
from .handle_options import HandleOptions, Login, address_of, host_and_port
from .handle_proof import site_keys
from .handle_server import Ask, HandleServer, Place
from .record import Value, fold_type
from .transport import Options
from .wire.handle import (
    FLAGS_DEFAULT,
    Malformed,
    Message,
    OpCode,
    Purpose,
    Referral,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    Server,
    Site,
    Transport,
    decode_site,
    error_of,
)

log = logging.getLogger("biaojie.client")
SERVERS_MAX: Final = 64
"""Servers remembered: the first, and those that referrals led to last."""
SITES_MAX: Final = 8
"""Sites of one referral that are tried."""
_SITES: Final = ("HS_SITE", "HS_SITE.6")
_DELEGATED: Final = ("HS_SITE.PREFIX", "HS_NA_DELEGATE", *_SITES)
_INDIRECT: Final = ("HS_SERV", "HS_SERV.PREFIX")


@dataclass(slots=True)
class _Walk:
    """From server to server: how many steps are left, and what was asked where."""

    left: int
    seen: set[tuple[Place, str]] = field(default_factory=set)

    def step(self, place: Place, handle: str) -> None:
        """Raises Elsewhere where it has gone far enough."""
        what = (replace(place, keys=()), handle.upper())
        self.left -= 1
        if self.left < 0 or what in self.seen:
            en, zh = ("in a circle", "成环") if what in self.seen else ("too far", "过多")
            raise Elsewhere(
                f"The Handle servers refer {en}.",
                f"Handle 服务器的转介{zh}。",
                response_code=int(ResponseCode.SERVICE_REFERRAL),
            )
        self.seen.add(what)


class HandleExchange:
    """Operations, from `hdl://host[:port]` on."""

    def __init__(
        self, url: str, options: Options, handle: HandleOptions, login: Login | None
    ) -> None:
        host, port = host_and_port(url)
        self._first = Place(host, port, port, handle.site_keys)
        self._options = options
        self._handle = handle
        self._login = login
        self._servers: OrderedDict[Place, HandleServer] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def address(self) -> str:
        return address_of(self._first.host, self._first.tcp or 0)

    @property
    def knows_us(self) -> bool:
        """Whether there is an identity to log in with."""
        return self._login is not None

    async def close(self) -> None:
        self._closed = True
        servers = list(self._servers.values())
        self._servers.clear()
        for server in servers:
            await server.close()

    async def send(self, ask: Ask, timeout_s: float) -> Message:
        """The last part of the successful answer. Raises the error that was answered, or what
        kept an answer away; all within `timeout_s`."""
        if self._closed:
            raise RuntimeError("The client is closed. 客户端已关闭。")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "A Client belongs to the event loop that first used it. "
                "Client 只能在首次使用它的事件循环中使用。"
            )
        deadline = loop.time() + timeout_s
        backoff = self._options.backoff
        failures = 0
        while True:
            try:
                walk = _Walk(self._handle.hops_max + 1)
                return await self._walk(self._first, ask, walk, deadline)
            except BiaojieError as error:
                failures += 1
                delay_s = backoff.delay_s(failures)
                late = loop.time() + delay_s >= deadline
                if not error.retryable or failures > backoff.retries or late:
                    raise
                log.debug("%s: %s, again in %.2f s", self.address, error.code, delay_s)
            await asyncio.sleep(delay_s)

    # Referrals --------------------------------------------------------------------------

    async def _walk(self, place: Place, ask: Ask, walk: _Walk, deadline: float) -> Message:
        walk.step(place, ask.handle)
        server = await self._server(place)
        message = await server.ask(ask, deadline)
        if not isinstance(message.body, Referral):
            return message
        if not self._handle.follow_referrals:
            error = error_of(message.response_code)
            error.fields = {**error.fields, "referral": message.body.handle}
            raise error
        onward = replace(ask, hops=ask.hops + 1)
        delegated = message.response_code == ResponseCode.PREFIX_REFERRAL
        fault: BiaojieError | None = None
        for next_place in await self._places(
            place, message.body, delegated, onward, walk, deadline
        ):
            log.debug("%s refers to %s", server.address, next_place.host)
            try:
                return await self._walk(next_place, onward, walk, deadline)
            except Unreachable as error:
                fault = error
        raise fault or Elsewhere(
            "The Handle server refers to another, and does not say where it is.",
            "Handle 服务器转介至其他服务器，但未说明其位置。",
            referral=message.body.handle,
            response_code=message.response_code,
        )

    async def _places(
        self,
        place: Place,
        referral: Referral,
        delegated: bool,
        onward: Ask,
        walk: _Walk,
        deadline: float,
    ) -> list[Place]:
        """Where to go on, best first. A referral says it itself, or names a handle whose values
        do, which is asked for where the referral came from."""
        types = _DELEGATED if delegated else _SITES
        values: Sequence[Value] = referral.values or ()
        name = referral.handle
        while not (sites := _sites(values, types)):
            name = name or _indirection(values)
            if not name:
                return []
            ask = Ask(
                OpCode.RESOLUTION,
                ResolveRequest(name, (), (*types, *_INDIRECT)),
                name,
                FLAGS_DEFAULT,
                hops=onward.hops,
            )
            message = await self._walk(place, ask, walk, deadline)
            if not isinstance(message.body, ResolveResponse):
                raise MalformedAnswer()
            values, name = message.body.values, ""
        if onward.write:
            sites.sort(key=lambda site: not site.is_primary)
        found = [_place(site, onward) for site in sites[:SITES_MAX]]
        return [each for each in found if each is not None]

    async def _server(self, place: Place) -> HandleServer:
        """What is kept of that server. Of many, the one unused longest is given up."""
        server = self._servers.get(place)
        if server is None:
            server = HandleServer(place, self._options, self._handle, self._login)
            self._servers[place] = server
            if len(self._servers) > SERVERS_MAX:
                idle = (where for where, known in self._servers.items() if not known.busy)
                old = next((where for where in idle if where != self._first), place)
                if old != place:
                    await self._servers.pop(old).close()
        self._servers.move_to_end(place)
        return server


def _sites(values: Sequence[Value], types: Sequence[str]) -> list[Site]:
    """In the order of `types`; values that cannot be read are passed over."""
    found = []
    for type_ in types:
        for value in values:
            if fold_type(value.type) == type_:
                try:
                    found.append(decode_site(value.data))
                except Malformed:
                    continue
    return found


def _indirection(values: Sequence[Value]) -> str:
    """The handle that an HS_SERV value names, or nothing."""
    named = (value.text for value in values if fold_type(value.type) in _INDIRECT)
    return next((text for text in named if text), "")


def _place(site: Site, ask: Ask) -> Place | None:
    """The server of a site that has the handle, by the interfaces that take such a request."""
    try:
        server = site.server_for(ask.handle)
    except ValueError:
        return None
    ip = server.ip
    if ip.is_unspecified or ip.is_multicast or ip == IPv4Address("255.255.255.255"):
        return None
    ports = dict(_ports(server, Purpose.ADMIN if ask.write or ask.take else Purpose.QUERY))
    tcp, udp = ports.get(Transport.TCP), ports.get(Transport.UDP)
    if tcp is None and (udp is None or ask.write):
        return None
    return Place(str(ip), tcp, udp, site_keys(replace(site, servers=(server,))))


def _ports(server: Server, purpose: Purpose) -> Iterator[tuple[int, int]]:
    for interface in reversed(server.interfaces):  # the first of a kind wins
        if interface.purpose in (purpose, Purpose.BOTH) and 0 < interface.port < 65536:
            yield interface.transport, interface.port
