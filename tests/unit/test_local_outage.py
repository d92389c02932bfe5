"""The registry is gone: cache, look-ups and tail together, from the first moment to the end."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from biaojie.errors import (
    IdentifierNotFound,
    TemporarilyUnavailable,
)
from resolver.core import Source
from resolver.query import Query
from tests.core_parts import (
    ACME,
    ACME_READER,
    BETA,
    GatedStore,
    Parts,
    create,
    home,
    identifier,
    key,
    nothing_left_behind,
    put,
    registering,
    secret,
    value,
    write,
)


async def filled(count: int = 3) -> GatedStore:
    store = GatedStore()
    async with registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}", str(n)) for n in range(count)))
    store.calls.clear()
    return store


# Outage: cache, registry and tail together ------------------------------------------------


READS = ("look_up", "list_changes", "head", "find_key", "find_prefixes")


class Outage:
    """Ways in which a registry can be gone."""

    def __init__(self, store: GatedStore, kind: str) -> None:
        self._store = store
        self._kind = kind

    def begin(self) -> None:
        if self._kind == "hangs":
            self._store.close_gate(*READS, "transaction")
        else:
            for name in (*READS, "transaction"):
                self._store.errors[name] = TemporarilyUnavailable()

    def end(self) -> None:
        if self._kind == "hangs":
            self._store.open_gate(*READS, "transaction")
        self._store.errors.clear()


@pytest.mark.parametrize("kind", ["fails", "hangs"])
async def test_an_outage_from_its_first_moment_to_its_end(kind: str) -> None:
    store = await filled(100)
    now = [0.0]
    outage = Outage(store, kind)
    parts = Parts(store, cache={"clock": lambda: now[0]}, local={"timeout_s": 0.2})
    async with nothing_left_behind(), parts:
        names = [f"S{n}" for n in range(100)]
        for name in names:
            await parts.resolver.resolve(key(name))
        assert (await parts.resolver.resolve(key("NONE"))).absence is IdentifierNotFound
        now[0] += 86_400  # all of it expired: the worst case
        outage.begin()

        async def ask(name: str) -> Any:
            started = time.monotonic()
            try:
                return await parts.resolver.resolve(key(name))
            except Exception as error:
                return error
            finally:
                assert time.monotonic() - started < 1.5

        # Those who ask before it is known to be down wait for one timeout, not for many.
        first = await asyncio.gather(*(ask(name) for name in names))
        assert {answer.source for answer in first} == {Source.STALE}
        assert parts.health.down
        for round_ in range(3):
            started = time.monotonic()
            warm = [await ask(name) for name in names]
            assert time.monotonic() - started < 0.5, "nobody waits any more"
            assert [a.found().values[0].text for a in warm] == [str(n) for n in range(100)]
            assert {answer.source for answer in warm} == {Source.STALE}
            cold = [await ask(f"{name}-{round_}") for name in ("NONE", "OTHER")]
            cold.append(await ask("NONE"))
            assert {type(error) for error in cold} == {TemporarilyUnavailable}
            await asyncio.sleep(0.03)
        ended = time.monotonic()
        outage.end()
        while (await ask("S1")).source is Source.STALE:
            assert time.monotonic() - ended < 5
            await asyncio.sleep(0.01)
        assert (await ask("NONE")).absence is IdentifierNotFound
        assert {(await ask(name)).source for name in names[2:]} == {Source.STORE}
        await parts.local.close()


async def test_while_records_cannot_be_read_the_log_alone_does_not_end_the_outage() -> None:
    """Else everybody would wait for a timeout again and again."""
    store = await filled(3)
    async with Parts(store, local={"timeout_s": 0.1}, tail_timeout_s=0.1) as parts:
        await parts.resolver.resolve(key("S1"))
        store.close_gate("look_up")
        with pytest.raises(TemporarilyUnavailable):
            await parts.resolver.resolve(key("S2"))
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            assert (await parts.resolver.resolve(key("S1"))).source is Source.STALE
            await asyncio.sleep(0.005)
        store.open_gate("look_up")
        async with asyncio.timeout(5):
            while parts.health.down:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert (await parts.resolver.resolve(key("S2"))).source is Source.STORE


@pytest.mark.parametrize("kind", ["fails", "hangs"])
async def test_an_outage_as_callers_with_keys_see_it(kind: str) -> None:
    store = GatedStore()
    async with Parts(store, local={"timeout_s": 0.1}) as parts:
        await home(parts.registrar)
        await write(parts.registrar, create(values=(value(), secret())))
        await parts.resolver.resolve(key())
        outage = Outage(store, kind)
        outage.begin()
        for caller in (ACME, ACME_READER, BETA):
            # What everybody gets; what only they may read cannot be had now.
            found = await parts.service.resolve(Query(identifier()), caller)
            assert (found.source, found.private) == (Source.STALE, False)
            assert [v.index for v in found.record.values] == [1]
            with pytest.raises(TemporarilyUnavailable):
                await parts.service.resolve(Query(identifier(), authoritative=True), caller)
        outage.end()
        async with asyncio.timeout(5):
            while parts.health.down:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        found = await parts.service.resolve(Query(identifier()), ACME)
        assert [v.index for v in found.record.values] == [1, 9]


async def test_what_others_changed_during_the_outage_is_gone_with_its_end() -> None:
    """The first fresh answer after an outage is never an old one."""
    store = await filled(3)
    now = itertools.count()
    async with (
        Parts(store, cache={"clock": lambda: 0.0}) as parts,
        registering(store.inner) as elsewhere,
    ):
        await parts.resolver.resolve(key("S1"))
        Outage(store, "fails").begin()
        async with asyncio.timeout(5):
            while not parts.health.down:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        for _ in range(50):
            await write(elsewhere, put("S1", f"changed {next(now)}"))
        assert (await parts.resolver.resolve(key("S1"))).source is Source.STALE
        store.errors.clear()
        async with asyncio.timeout(5):
            while (answer := await parts.resolver.resolve(key("S1"))).source is Source.STALE:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert answer.found().values[0].text == "changed 49"
