"""A restore or a move that was killed goes on where it was; nobody serves what is half there."""

from __future__ import annotations

import asyncio
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from registry import deposit
from registry.audit import audit
from registry.sql import UnfitDatabase, loading, migrate, open_store
from registry.sql.loading import Loading
from registry.sql.transfer import backup, move, restore
from tests.audited import Registry
from tests.contract.transferred import contents
from tests.core_parts import create, opened, registering, write
from tests.forked import context

KILLED_S = 60.0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _carry_out(
    what: str, source: str, target: str, left: int, moment: str, told: Connection
) -> None:
    """In a process of its own: dies `moment` the `left`-th commit, or says how much was there."""
    deposit.RUN_ROWS, loading._COMMIT_BYTES = 2, 1
    write, finish = Loading._write, Loading.finish

    async def counted(self: Any, *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0 and moment == "before":
            _die()
        if left == 0 and moment == "within":
            insert = self._insert

            async def inserted(*arguments: Any) -> None:
                await insert(*arguments)
                _die()

            self._insert = inserted
        await write(self, *arguments)
        if left == 0:
            _die()

    async def finished(self: Any, *arguments: Any) -> None:
        if moment == "at the end":
            _die()
        await finish(self, *arguments)

    Loading._write, Loading.finish = counted, finished  # type: ignore[method-assign]
    if what == "restore":
        made = asyncio.run(restore(Path(source), target))
    else:
        made = asyncio.run(move(source, target))
    told.send(made.resumed)


def _run(what: str, source: str, target: str, left: int, moment: str) -> int | None:
    """How much was there before; None of one that died."""
    hears, tells = context.Pipe(duplex=False)
    with hears, tells:
        process = context.Process(
            target=_carry_out, args=(what, source, target, left, moment, tells)
        )
        process.start()
        try:
            process.join(KILLED_S)
            assert process.exitcode in (0, -signal.SIGKILL)
            return int(hears.recv()) if process.exitcode == 0 else None
        finally:
            process.kill()
            process.join(10)


@pytest.mark.parametrize("what", ["restore", "move"])
async def test_what_was_killed_goes_on_and_is_served_by_nobody_before(
    what: str, registry: Registry, bare_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deposit, "RUN_ROWS", 2)
    file = tmp_path / "a.bak"
    await backup(registry.url, file)
    source = str(file) if what == "restore" else registry.url
    for left, moment in ((3, "before"), (3, "within"), (4, "after"), (10**6, "at the end")):
        assert await asyncio.to_thread(_run, what, source, bare_url, left, moment) is None
        with pytest.raises(UnfitDatabase, match="half restored"):
            await open_store(bare_url)
        with pytest.raises(UnfitDatabase, match="half restored"):
            await migrate(bare_url)
        with pytest.raises(UnfitDatabase, match="half restored"):
            await backup(bare_url, tmp_path / "half.bak")
    resumed = await asyncio.to_thread(_run, what, source, bare_url, -1, "never")
    assert resumed is not None
    assert resumed > 6
    assert await contents(bare_url) == await contents(registry.url)
    async with opened(bare_url) as store:
        assert not (await audit(store)).faults


async def test_another_source_begins_anew_where_one_was_stopped(
    registry: Registry, bare_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deposit, "RUN_ROWS", 2)
    assert await asyncio.to_thread(_run, "move", registry.url, bare_url, 5, "after") is None
    async with registering(registry.store) as registrar:
        await write(registrar, create("LATER"))
    made = await move(registry.url, bare_url)
    assert made.resumed == 0
    assert await contents(bare_url) == await contents(registry.url)
