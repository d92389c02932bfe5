"""The parts of a node without its front, and a store whose answers a test can hold or spoil."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from biaojie.account import Role
from biaojie.change import Entry
from biaojie.identifier import Identifier, Key
from biaojie.record import Permissions, Value
from registry.accounts import new_key
from registry.admission import SYSTEM, Caller
from registry.memory import MemoryStore
from registry.operations import Create, HomePrefix, Modify, Operation, Put
from registry.registrar import Idempotency, Outcome, Registrar
from registry.sql import open_store
from registry.store import Store
from resolver.core import Resolver
from resolver.health import Health
from resolver.service import Service
from resolver.steps.cache import CacheStep
from resolver.steps.local import LocalStep
from resolver.steps.referral import ReferralStep
from resolver.tail import Tail

PREFIX = "88.118.8"
ADMIN = Caller("admin001", "", Role.ADMIN)
ACME = Caller("acme0001", "acme", Role.REGISTRAR)
ACME_READER = Caller("acme0002", "acme", Role.READER)
BETA = Caller("beta0001", "beta", Role.REGISTRAR)


def identifier(suffix: str = "SN1", prefix: str = PREFIX) -> Identifier:
    return Identifier(prefix, suffix)


def key(suffix: str = "SN1", prefix: str = PREFIX) -> Key:
    return Identifier(prefix, suffix).key()


def value(data: str = "https://example.com/", index: int = 1, **fields: Any) -> Value:
    return Value(index, fields.pop("type", "URL"), data.encode(), **fields)


def secret(data: str = "secret", index: int = 9) -> Value:
    return Value(index, "NOTE", data.encode(), permissions=Permissions.parse("1100"))


def create(suffix: str = "SN1", data: str = "first", prefix: str = PREFIX, **fields: Any) -> Create:
    return Create(Identifier(prefix, suffix), fields.pop("values", (value(data),)), **fields)


def put(suffix: str = "SN1", data: str = "next", prefix: str = PREFIX, **fields: Any) -> Put:
    return Put(Identifier(prefix, suffix), fields.pop("values", (value(data),)), **fields)


def modify(suffix: str = "SN1", prefix: str = PREFIX, **fields: Any) -> Modify:
    return Modify(Identifier(prefix, suffix), **fields)


class GatedStore:
    """Passes everything on to `inner`, unless a test says otherwise.

    `calls` counts by method; a method in `gates` waits for its event, one in `errors` raises.
    A transaction stops at "transaction" before it begins, at "commit" before and "committed"
    after it is durable. `refuse(record)` may raise for a record that is about to be written.
    """

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner or MemoryStore()
        self.calls: Counter[str] = Counter()
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, Exception] = {}
        self.waiting: Counter[str] = Counter()
        self.refuse: Callable[[Any], None] = lambda record: None

    def close_gate(self, *names: str) -> None:
        for name in names:
            self.gates[name] = asyncio.Event()

    def open_gate(self, *names: str) -> None:
        for name in names:
            self.gates.pop(name).set()

    async def reached(self, name: str, waiting: int = 1) -> None:
        """Wait until so many calls stand before a closed gate."""
        async with asyncio.timeout(5):
            while self.waiting[name] < waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def _pass(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.gates:
            self.waiting[name] += 1
            try:
                await self.gates[name].wait()
            finally:
                self.waiting[name] -= 1
        if name in self.errors:
            raise self.errors[name]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name in ("connections", "close"):
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            await self._pass(name)
            return await method(*arguments, **options)

        return call

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        await self._pass("transaction")
        async with self.inner.transaction() as transaction:
            yield _GatedTransaction(transaction, self)
            await self._pass("commit")
        await self._pass("committed")


class _GatedTransaction:
    def __init__(self, inner: Any, store: GatedStore) -> None:
        self._inner = inner
        self._store = store

    async def put_records(self, records: Any) -> None:
        for record in records.values():
            self._store.refuse(record)
        await self._inner.put_records(records)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Whatever began inside has ended, and no exception was left for nobody to see."""
    heard: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: heard.append(str(context)))
    before = asyncio.all_tasks()
    try:
        yield
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert heard == []
    assert asyncio.all_tasks() <= before


@asynccontextmanager
async def registering(store: Any, **options: Any) -> AsyncIterator[Registrar]:
    registrar = Registrar(store, **options)
    registrar.start()
    try:
        yield registrar
    finally:
        async with asyncio.timeout(10):
            await registrar.stop()


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Any]:
    store = await open_store(url, **options)
    try:
        yield store
    finally:
        await store.close()


async def write(registrar: Registrar, *operations: Operation, caller: Caller = SYSTEM) -> Any:
    """Submit and return the outcome; raises what it raises."""
    return await registrar.submit(caller, list(operations))


async def home(registrar: Registrar, prefix: str = PREFIX, tenant: str = "acme") -> None:
    (await write(registrar, HomePrefix(prefix, tenant))).single()


async def issue(
    registrar: Registrar, tenant: str = "acme", role: Role = Role.REGISTRAR
) -> tuple[str, str]:
    """A new key: its secret and its id."""
    text, operation = new_key(tenant, role)
    (await write(registrar, operation)).single()
    return text, operation.id


class Parts:
    """What a node is made of, joined as `resolver.node` joins it. `async with` starts and stops.

    `cache`, `local` and `service` pass options to those parts.
    """

    def __init__(
        self,
        store: Store | GatedStore,
        *,
        poll_s: float = 0.02,
        tail_timeout_s: float = 0.3,
        cache: dict[str, Any] | None = None,
        local: dict[str, Any] | None = None,
        service: dict[str, Any] | None = None,
    ) -> None:
        self.store: Any = store
        self.health = Health()
        self.cache = CacheStep(self.health, **(cache or {}))
        self.local = LocalStep(self.store, self.health, **{"timeout_s": 0.3, **(local or {})})
        self.registrar = Registrar(self.store, on_commit=self._committed)
        self.tail = Tail(self.store, self.health, [], poll_s=poll_s, timeout_s=tail_timeout_s)
        steps = [self.cache, self.local, ReferralStep(self.store)]
        self.resolver = Resolver(steps, self.cache.at_hand, self.cache.knows, self.cache.flight)
        self.service = Service(
            self.store, self.registrar, self.resolver, self.local, self.tail, **(service or {})
        )
        self.tail.listeners += [self.cache, self.service.callers]

    def _committed(self, entry: Entry) -> None:
        self.cache.forget(entry)
        self.service.callers.forget(entry)
        self.tail.committed(entry)

    async def __aenter__(self) -> Parts:
        self.registrar.start()
        await self.tail.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with asyncio.timeout(10):
            await self.registrar.stop()
            await self.tail.stop()
            await self.local.close()


def later(registrar: Registrar, *operations: Operation, **options: Any) -> asyncio.Task[Outcome]:
    caller = options.pop("caller", ACME)
    return asyncio.create_task(registrar.submit(caller, operations, **options))


async def settled(tasks: list[asyncio.Task[Outcome]]) -> list[Any]:
    async with asyncio.timeout(5):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def records(store: Any, *suffixes: str) -> list[Any]:
    return [found.record for found in await store.look_up([key(s) for s in suffixes])]


def token(text: str = "k", body: str = "body") -> Idempotency:
    return Idempotency(text, hashlib.sha256(body.encode()).digest())
