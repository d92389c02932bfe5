"""Single durable creates through the Handle protocol: the same for our front and for a peer.

An administrator logs in as the client library does: sessions are agreed on, and a challenge is
answered in each. Every create then carries the MAC of one of them. All are made before the counted
time, and the driver in C sends them, so that whoever makes the octets is never the limit.
What was acknowledged is read back past every cache and compared.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from biaojie import Client
from biaojie.errors import BiaojieError
from biaojie.handle_options import HandleOptions, Login, login_of
from biaojie.handle_server import Ask, HandleServer, Place
from biaojie.handle_session import Session
from biaojie.record import PERMISSIONS_SECRET, Value
from biaojie.transport import Options
from biaojie.wire.handle import (
    FLAGS_DEFAULT,
    KeyExchange,
    Message,
    OpCode,
    OpFlag,
    ValuesRequest,
    encode_message,
    with_mac,
)

from ..fronts.handle import HandleTcpWire
from ..names import OwnNames
from ..node import Node
from ..prepare import TENANT, value_of
from ..programs import SINGLE, Asked, Sample, drive
from ..words import BenchFault
from .questions import Writer

CREATES_PER_S: Final = 15_000
"""So many are readied for a second; who is faster stops early."""
SESSIONS: Final = 16
"""A server may refuse what too many others in its session have overtaken (Java server: 200)."""
BACK_S: Final = 120.0
_LOGIN_S: Final = 30.0
_LIFE_S: Final = 3_600
_KEY_INDEX: Final = 300
_ID: Final = 1
"""What the driver numbers a request where a connection has but one: MACs cover the number."""
_OPTIONS: Final = HandleOptions(udp=False, session=KeyExchange.DIFFIE_HELLMAN)


@dataclass(frozen=True, slots=True)
class Creates:
    """Names under `prefix`, which `login` may create at `host:port`. They stay there. `anew`: each
    create has a connection of its own."""

    host: str
    port: int
    prefix: str
    login: Login
    writer: Writer
    pids: Callable[[], Sequence[int]]
    cores: frozenset[int]
    anew: bool = False

    def measure(self, seconds: float, _: int) -> Sample:
        """Creates acknowledged. BenchFault where one fails, is lost or reads otherwise."""
        try:
            return asyncio.run(self._measure(seconds))
        except BiaojieError as error:
            raise BenchFault(error.detail.en, error.detail.zh) from None

    async def _measure(self, seconds: float) -> Sample:
        stem = f"BENCH-{time.time_ns():X}"
        names = OwnNames(self.prefix, int(CREATES_PER_S * seconds) + 1, stem=stem)
        first = replace(names, stem=f"{stem}-LOGIN")
        place = Place(self.host, self.port, None)
        servers = [HandleServer(place, Options(), _OPTIONS, self.login) for _ in range(SESSIONS)]
        try:
            sessions = [await _proven(server, first, at) for at, server in enumerate(servers)]
            sample = self._drive(names, sessions, seconds)
        finally:
            for server in servers:
                await server.close()
        self._read_back(replace(names, count=max(sample.replies, 1)))
        return sample

    def _drive(self, names: OwnNames, sessions: Sequence[Session], seconds: float) -> Sample:
        asked = self.writer.of(
            lambda number: create(names, number, sessions[number % SESSIONS]), names.count
        )
        sample = drive(
            Asked("handle", self.port, asked.requests, shape=SINGLE, host=self.host),
            seconds=seconds,
            once=True,
            anew=self.anew,
            pids=self.pids(),
            cores=self.cores,
        )
        asked.requests.unlink()
        if sample.errors or sample.lost:
            raise BenchFault(
                f"{sample.errors} creates failed, {sample.lost} were never answered.",
                f"{sample.errors} 个创建请求失败，{sample.lost} 个没有应答。",
            )
        return sample

    def _read_back(self, written: OwnNames) -> None:
        """They were sent in order and all that were sent were answered: so were the first ones."""
        wire = HandleTcpWire()
        needles = self.writer.data(written)
        asked = self.writer.of(
            lambda number: wire.question(1, written.name(number), True), written.count, needles
        )
        given = Asked("handle", self.port, asked.requests, needles, shape=SINGLE, host=self.host)
        back = drive(given, seconds=BACK_S, once=True, anew=self.anew, cores=self.cores)
        if back.replies != written.count:
            raise BenchFault(
                f"{back.replies} of {written.count} acknowledged creates could be read back.",
                f"已确认的 {written.count} 个创建中仅读回 {back.replies} 个。",
            )
        for file in (asked.requests, needles):
            file.unlink()


async def _proven(server: HandleServer, names: OwnNames, number: int) -> Session:
    """A session in which the server knows who we are, from the first create on."""
    body = ValuesRequest(names.name(number), (value_of(names, number, 0),))
    ask = Ask(OpCode.CREATE_HANDLE, body, body.handle, FLAGS_DEFAULT, write=True)
    await server.ask(ask, asyncio.get_running_loop().time() + _LOGIN_S)
    session = server.session
    if session is None or not session.proven:
        raise BenchFault(
            f"{server.address} does not ask who creates {body.handle}; is it its prefix?",
            f"{server.address} 未对创建 {body.handle} 要求身份验证；该前缀是否由其管理？",
        )
    return session


def create(names: OwnNames, number: int, session: Session) -> bytes:
    """One create in the session, with a MAC and not encrypted."""
    session.counter += 1
    request = Message(
        OpCode.CREATE_HANDLE,
        ValuesRequest(names.name(number), (value_of(names, number, 0),)),
        flags=FLAGS_DEFAULT | OpFlag.KEEP_CONNECTION,
        request_id=_ID,
        session_id=session.id,
        version=session.version,
        expiration=int(time.time()) + _LIFE_S,
    )
    return encode_message(with_mac(request, session.key.octets, session.counter))


def admit(node: Node, prefix: str) -> Login:
    """Home the prefix at our own node for an administrator, who is made here."""
    return asyncio.run(_admit(node, prefix))


async def _admit(node: Node, prefix: str) -> Login:
    secret, handle = secrets.token_hex(16), f"{prefix}/ADMIN"
    value = Value(_KEY_INDEX, "HS_SECKEY", secret.encode(), permissions=PERMISSIONS_SECRET)
    async with Client(node.url, key=node.key) as client:
        await client.prefixes.home(prefix, TENANT, admin=f"0:{handle}")
        await client.register(handle, [value])
    login = login_of(f"{_KEY_INDEX}:{handle}", secret, None)
    assert login is not None
    return login
