"""`biaojie compact` on a registry of its own, as an operator runs it."""

from __future__ import annotations

import subprocess
import sys

from registry.audit import audit
from tests.core_parts import PREFIX, create, home, opened, registering, write


def compact(url: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "resolver", "compact", "--database-url", url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_rows_are_folded_once_they_are_old_enough(sqlite_url: str) -> None:
    async with opened(sqlite_url) as store:
        async with registering(store) as registrar:
            await home(registrar)
            await write(registrar, *(create(f"SN{n:03}") for n in range(100)))
        before = await store.list_records(PREFIX, None, 200)
        assert "整理: 0 records" in compact(sqlite_url)
        assert "整理: 0 records" in compact(sqlite_url, "88.118.77", "--days", "0")
        assert "整理: 100 records" in compact(sqlite_url, PREFIX, "--days", "0")
        assert await store.list_rows(PREFIX, None, 10) == []
        assert await store.list_records(PREFIX, None, 200) == before
        assert (await audit(store)).faults == []
