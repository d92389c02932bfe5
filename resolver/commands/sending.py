"""What joins the bulk functions of the registry to the client library and to files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from biaojie.calls import Row as ClientRow
from biaojie.change import RowResult
from biaojie.client import Client
from registry.imports import Row, Submit

CHUNK_TIMEOUT_S = 60.0


def through(client: Client) -> Submit:
    """A `submit` for the importer that registers at the client's node."""

    async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        return await client.register_batch(
            [ClientRow(row.identifier, row.values, row.status, row.template) for row in rows],
            "valid-rows",
            dry_run,
            idempotency_key=key or None,
            timeout_s=CHUNK_TIMEOUT_S,
        )

    return submit


@contextmanager
def destination(path: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears under its name only once it is whole."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("wb") as out:
            yield out
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
