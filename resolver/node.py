"""One node: its parts joined over a store, started in order and stopped in reverse.

Knows no database driver: the composition root opens the store and hands it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import socket
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import structlog

from biaojie.account import Role
from biaojie.change import Entry
from biaojie.errors import BiaojieError, Forbidden
from biaojie.wire.handle import Site
from registry.accounts import new_key
from registry.admission import SYSTEM
from registry.indexing import Indexer
from registry.registrar import Registrar
from registry.staging import Rules
from registry.standbys import StandbyReader
from registry.store import ReadStore, Store
from registry.witness import Witness

from .core import Resolver
from .front.handle import HandleFront, HandleLimits
from .front.http import accounts, batches, identifiers, ranges, search
from .front.http import statistics as statistics_front
from .front.http.handle_auth import RestAuthentication
from .front.http.handler import HttpLimits
from .front.http.handles import HandleRest
from .front.http.imports import ImportRest
from .front.http.lane import HttpLane
from .front.http.public import Facts, public_endpoints
from .front.http.server import HttpFront
from .front.http.shared_sessions import SharedSessions, home
from .front.native import NativeFront, NativeLimits, bind_tcp, bind_unix
from .handle import site
from .handle.identity import Authenticator
from .handle.lane import HandleLane
from .handle.numbers import Numbers
from .handle.operations import HandleRules, Operations
from .handle.peer import Answerer
from .handle.shared import SharedAnswerer
from .health import Health
from .imports import ImportLimits, Imports
from .lane import Lane
from .large_pages import LargePages
from .neighbours import Neighbours
from .observe import Observer
from .overload import FRAME_REFUSAL_S, REFUSAL_S, Gate
from .service import Service
from .settings import Settings
from .statistics import Statistician
from .steps.cache import CacheStep
from .steps.local import LocalStep
from .steps.referral import ReferralStep
from .tail import Tail
from .worker import Post
from .worker_metrics import SharedMetrics
from .worker_sockets import HANDLE_TCP, HANDLE_UDP, HTTP, HTTPS, NATIVE

if TYPE_CHECKING:
    from .front.http.tls import TlsContext

L = TypeVar("L", HttpLimits, HandleLimits, HandleRules, NativeLimits, ImportLimits)
WITNESS_S = 30.0
LARGE_PAGES_S = 5.0
NOTE_COMMIT, NOTE_GUESS = b"c", b"g"
LANES = 3
"""Fronts that share `lane_bytes_max`: HTTP, Handle, native."""
LINGER_S = 1.0
"""A worker that is replaced still takes requests on connections it has, for this long."""
log = structlog.get_logger("biaojie.node")


class Node:
    """`await start()` serves; `await stop()` drains. `port` and `handle_port` are those it
    listens on, 0 where it does not."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        examples: tuple[str, ...] = (),
        post: Post | None = None,
        standbys: StandbyReader | None = None,
    ) -> None:
        """`post` is the place among several processes that serve together. `standbys` answer
        what the public asks and the cache does not know; all else is for `store`."""
        self.post = post or Post()
        self.settings = settings
        self.store = store
        self.status = "starting"
        self.neighbours: Neighbours | None = None
        self._shared_metrics: SharedMetrics | None = None
        self.port = 0
        self.handle_port = 0
        self.native_port = 0
        self.tls_port = 0
        self.observer = Observer(
            slow_s=settings.slow_request_s, truncate_addresses=settings.truncate_addresses
        )
        self.health = Health()
        case_sensitive = settings.suffix_case_sensitive
        self.cache = CacheStep(
            self.health,
            bytes_max=settings.cache_bytes_max,
            ttl_max_s=settings.cache_ttl_max_s,
            absent_ttl_s=settings.absent_ttl_s,
            absent_max=settings.absent_max,
            stale_s=settings.stale_s,
            case_sensitive=case_sensitive,
        )
        self.local = LocalStep(
            store, self.health, watcher=self.observer, timeout_s=settings.store_timeout_s
        )
        self.standbys = standbys
        reading: ReadStore = store
        self._answering = self.local
        if standbys is not None:
            reading = standbys
            self._answering = LocalStep(
                reading, self.health, watcher=self.observer, timeout_s=settings.store_timeout_s
            )
            self.observer.watch(standbys.readings)
            self.observer.watch(standbys.counts, counters=True)
        self.registrar = Registrar(
            store,
            on_commit=self._committed,
            watcher=self.observer,
            rules=Rules(case_sensitive, not settings.suffix_slash_allowed),
            queue_operations_max=settings.queue_operations_max,
            commit_timeout_s=settings.commit_timeout_s,
        )
        self.tail = Tail(store, self.health, [], poll_s=settings.poll_s)
        referral = ReferralStep(reading, timeout_s=settings.store_timeout_s)
        self.service = Service(
            store,
            self.registrar,
            Resolver(
                [self.cache, self._answering, referral],
                self.cache.at_hand,
                self.cache.knows,
                self.cache.flight,
            ),
            self.local,
            self.tail,
            referral=referral,
            case_sensitive=case_sensitive,
            watchers_max=settings.watchers_max,
            tenant_rate_max=settings.tenant_rate_max,
        )
        self.indexer = Indexer(store, case_sensitive=case_sensitive)
        self.statistician = Statistician(
            store, lambda: self.observer.resolved, folds=not self.post.slot
        )
        self.tail.listeners += [self.cache, self.service.callers, self.indexer]
        if standbys is not None:
            self.tail.listeners.append(standbys)
        fronts = (identifiers, batches, ranges, search, accounts, statistics_front)
        authenticator = Authenticator(
            self.local, self.service.callers.guesses, case_sensitive=case_sensitive
        )
        post = self.post
        if post.folder is not None:
            self.neighbours = Neighbours(post.folder, post.slot, post.workers)
        authentication = RestAuthentication(
            self.service,
            authenticator,
            requires_tls=settings.handle_auth_requires_tls,
            home=home(post.slot) if self.neighbours is not None else "",
        )
        rest = HandleRest(
            authentication,
            delete=settings.handle_delete,
            site=self._site,
        )
        self.imports = Imports(
            self.service,
            store,
            settings.data_dir,
            _chosen(ImportLimits, settings),
            case_sensitive=case_sensitive,
        )
        self.service.imports = self.imports
        self.observer.watch(self.imports.readings)
        self.observer.watch(self.imports.counts, counters=True)
        api = tuple(endpoint for front in fronts for endpoint in front.ENDPOINTS)
        api += ImportRest(self.imports).endpoints()
        api = (*map(rest.admitting, api), *rest.endpoints())
        facts = Facts(
            settings.node_name,
            settings.public_url or "/",
            examples,
            self._state,
            self._metrics,
            time.time,
            settings.page_redirects == "always",
        )
        self.operations: Operations | None = None
        self.handle: HandleFront | None = None
        if settings.handle_enabled:
            lane = HandleLane(
                self.health,
                settings.lane_bytes_max // LANES,
                self.observer,
                amplification_max=settings.handle_udp_amplification_max,
            )
            self.operations = Operations(
                self.service,
                self.local,
                referral,
                store,
                self.observer,
                _chosen(HandleRules, settings),
                authenticator=authenticator,
                lane=lane,
                numbers=Numbers(post.slot, post.workers),
            )
            self.handle = HandleFront(
                self._answerer(self.operations),
                _chosen(HandleLimits, settings),
                lane if settings.lane_bytes_max else None,
                gate=self._gate(settings.handle_requests_max, FRAME_REFUSAL_S),
                together=self.operations.together,
                direct=self.operations.direct,
            )
            self.observer.watch(lane.readings)
            self.observer.watch(self.operations.readings)
            self.observer.watch(self.handle.readings)
            self.observer.watch(self.handle.counts, counters=True)
        self.native: NativeFront | None = None
        if settings.native_enabled:
            self.native = NativeFront(
                self.service,
                self.observer,
                _chosen(NativeLimits, settings),
                Lane(self.health, settings.lane_bytes_max // LANES),
                node_name=settings.node_name,
                gate=self._gate(settings.native_requests_max, FRAME_REFUSAL_S),
            )
            self.observer.watch(self.native.readings)
            self.observer.watch(self.native.all_counts, counters=True)
        self.http_lane = HttpLane(
            self.health,
            settings.lane_bytes_max // LANES,
            self.observer,
            header_bytes_max=settings.header_bytes_max,
        )
        self.front = HttpFront(
            self.service,
            (*api, *public_endpoints(facts, api)),
            self.observer,
            _chosen(HttpLimits, settings),
            public_url=settings.public_url,
            tunnel=self.handle.tunnel.answer if self.handle is not None else None,
            lane=self.http_lane,
            gate=self._gate(settings.requests_max),
        )
        self.observer.watch(self.front.readings)
        self.observer.watch(self.front.counts, counters=True)
        self.observer.watch(self._gauges)
        self.observer.watch(self._counts, counters=True)
        if self.neighbours is not None:
            self._join(self.neighbours, authentication, authenticator)
        self._witness = Witness(settings.data_dir)
        self._witness_task: asyncio.Task[None] | None = None
        self._pages = LargePages()
        self._pages_task: asyncio.Task[None] | None = None

    def _gate(self, requests_max: int, refusal_s: float = REFUSAL_S) -> Gate:
        def look_up_s() -> float:
            return math.inf if self.health.down else self.observer.look_up_s

        return Gate(requests_max, look_up_s=look_up_s, refusal_s=refusal_s)

    def _answerer(self, operations: Operations) -> Answerer:
        if self.neighbours is None:
            return operations
        return SharedAnswerer(
            operations,
            Numbers(self.post.slot, self.post.workers),
            self.neighbours,
            timeout_s=self.settings.batch_deadline_s + 1.0,
        )

    def _join(
        self,
        neighbours: Neighbours,
        authentication: RestAuthentication,
        authenticator: Authenticator,
    ) -> None:
        """What this worker tells the others, and they it."""
        guesses = self.service.callers.guesses
        guesses.tell = lambda network: neighbours.tell(NOTE_GUESS, network.encode())
        neighbours.on_note[NOTE_GUESS] = lambda network: guesses.heed(
            network.decode(), time.monotonic()
        )
        neighbours.on_note[NOTE_COMMIT] = lambda _: self.tail.nudge()
        authentication.elsewhere = SharedSessions(
            authentication, authenticator, neighbours, timeout_s=self.settings.deadline_s
        )
        self._shared_metrics = SharedMetrics(self.observer.registry, neighbours)

    async def _metrics(self) -> bytes:
        if self._shared_metrics is None:
            return self.observer.page()
        return await self._shared_metrics.page()

    def _committed(self, entry: Entry) -> None:
        self.cache.forget(entry)
        self.service.callers.forget(entry)
        self.indexer.forget(entry)
        self.tail.committed(entry)
        if self.neighbours is not None:
            self.neighbours.tell(NOTE_COMMIT)

    def _site(self) -> Site | None:
        published = self.operations.site if self.operations is not None else None
        return published.main if published is not None else None

    def _state(self) -> str:
        if self.status == "ok" and self.health.down:
            return "registry-down"
        return self.status

    def _gauges(self) -> dict[str, float]:
        pool = {f"store_connections_{name}": n for name, n in self.store.connections().items()}
        return {
            "cache_entries": len(self.cache.cached),
            "cache_bytes": self.cache.cached.bytes,
            "cache_absent_entries": len(self.cache.absent),
            "large_pages_moved": self._pages.moved,
            "registry_down": float(self.health.down),
            "log_sequence": self.tail.sequence,
            **pool,
        }

    def _counts(self) -> dict[str, float]:
        counts: dict[str, float] = {
            f"cache_{name.replace('-', '_')}": n for name, n in self.cache.counts.items()
        }
        counts["cache_hit"] += self.http_lane.hits
        return counts

    async def start(self) -> None:
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        await self.store.settle_rules(self.settings.suffix_case_sensitive)
        self.registrar.start()
        await self.tail.start()
        if self.standbys is not None:
            self.standbys.position = lambda: self.tail.seen
        self.indexer.start()
        await first_key(self.store, self.registrar, self.settings.data_dir)
        if self.settings.large_pages:
            self._pages_task = asyncio.create_task(self._move_pages(), name="large-pages")
        if not self.post.slot:  # one for all: it goes forward only
            self._witness_task = asyncio.create_task(self._keep_witness(), name="witness")
        if self.operations is not None:
            await self.operations.open(self.settings.data_dir)
        if self.neighbours is not None:
            await self.neighbours.start()
        await self._listen()
        self.imports.start()
        self.statistician.start()
        self.status = "ok"
        log.info(
            "serving",
            host=self.settings.host,
            port=self.port,
            handle_port=self.handle_port,
            native_port=self.native_port,
            tls_port=self.tls_port,
        )

    async def _listen(self) -> None:
        settings, sockets = self.settings, self.post.sockets
        self.port = await self.front.start(
            settings.host,
            settings.port,
            drain_s=settings.drain_s,
            sockets=sockets.get(HTTP, ()),
        )
        if settings.tls_enabled:
            context = await asyncio.to_thread(_tls_context, settings)
            self.tls_port = await self.front.start_tls(
                settings.host, settings.tls_port, context, sockets=sockets.get(HTTPS, ())
            )
        if self.handle is not None:
            assert self.operations is not None
            if HANDLE_TCP in sockets:
                self.handle_port = await self.handle.serve(sockets[HANDLE_TCP], sockets[HANDLE_UDP])
            else:
                self.handle_port = await self.handle.start(
                    settings.handle_host, settings.handle_port, fallback=settings.host
                )
            self._publish(self.operations)
        if self.native is not None:
            bound = [*sockets.get(NATIVE, ())] or await asyncio.to_thread(_bind_native, settings)
            self.native_port = await self.native.start(bound)

    async def stop(self) -> None:
        """Refuse new requests, finish the running ones, commit what is queued, close."""
        self.status = "draining"
        self.tail.release()
        linger_s = LINGER_S if self.post.sockets else 0.0
        await asyncio.gather(
            self.front.stop(linger_s), self._stop_handle(linger_s), self._stop_native(linger_s)
        )
        await self.imports.stop()
        await self.registrar.stop()
        if self.neighbours is not None:
            await self.neighbours.stop()
        await self.tail.stop()
        await self.indexer.stop()
        await self.statistician.stop()
        await self.local.close()
        await self._answering.close()
        if self._pages_task is not None:
            self._pages_task.cancel()
            await asyncio.gather(self._pages_task, return_exceptions=True)
        if self._witness_task is not None:
            self._witness_task.cancel()
            await asyncio.gather(self._witness_task, return_exceptions=True)
            with contextlib.suppress(BiaojieError, OSError):
                self._witness.note(*await self.store.head())
        if self.standbys is not None:
            await self.standbys.close()
        await self.store.close()
        log.info("stopped")

    def _publish(self, operations: Operations) -> None:
        """Tell Handle clients where the node is."""
        settings = self.settings
        addresses = site.public_addresses(
            settings.handle_public_addresses, settings.handle_host or settings.host
        )
        ports = site.Ports(
            settings.handle_public_port or self.handle_port,
            settings.handle_public_http_port or self.port,
        )
        published = operations.publish(addresses, ports, settings.node_name, settings.data_dir)
        log.info("handle site", addresses=addresses, serial=published.serial)

    async def _stop_handle(self, linger_s: float) -> None:
        if self.handle is not None:
            await self.handle.stop(self.settings.drain_s, linger_s)

    async def _stop_native(self, linger_s: float) -> None:
        if self.native is not None:
            await self.native.stop(self.settings.drain_s, linger_s)

    async def _move_pages(self) -> None:
        while True:
            await asyncio.sleep(LARGE_PAGES_S)
            await asyncio.to_thread(self._pages.move)

    async def _keep_witness(self) -> None:
        """Note the end of the log outside the database, so that `verify` can miss its tail."""
        while True:
            with contextlib.suppress(BiaojieError, OSError):
                self._witness.note(*await self.store.head())
            await asyncio.sleep(WITNESS_S)


def _chosen(limits: type[L], settings: Settings) -> L:
    """A front's limits, each from the setting of the same name."""
    return limits(**{field.name: getattr(settings, field.name) for field in fields(limits)})


def _tls_context(settings: Settings) -> TlsContext:
    """Raises CannotServeTls."""
    from .front.http import tls

    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if certificate is None or key is None:
        named = urlsplit(settings.public_url).hostname
        hosts = ("localhost", "127.0.0.1", *((named,) if named else ()))
        certificate, key = tls.self_signed(settings.data_dir, settings.node_name, hosts)
    return tls.tls_context(certificate, key)


def _bind_native(settings: Settings) -> list[socket.socket]:
    """Raises CannotListen."""
    bound = bind_tcp(settings.native_host, settings.native_port, fallback=settings.host)
    if settings.native_socket is not None:
        bound.append(bind_unix(settings.native_socket))
    return bound


async def first_key(store: Store, registrar: Registrar, data_dir: Path) -> None:
    """Into an empty registry, issue the first admin key and keep it in `admin.key`, mode 0600.

    The file is on disk before the key is valid and stays when it is not known whether the key
    became valid, so that it can be lost at no moment; the lock keeps two nodes that start
    together from writing over each other's.
    """
    with (data_dir / "admin.key.lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if (await store.head())[0]:
            return
        key, operation = new_key("", Role.ADMIN, "first admin key", first=True)
        path = data_dir / "admin.key"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            (await registrar.submit(SYSTEM, [operation])).single()
        except Forbidden:  # another node with another folder was first
            path.unlink()
            return
        log.info("first admin key issued", key_id=operation.id, file=str(path))
