"""What `serve --demo` adds: a homed prefix and real product data under it.

Goes through the registrar like everything else. A start that was cut short goes on where it
stopped; one that was finished is not repeated.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

import structlog

from biaojie.change import RowResult
from biaojie.errors import BiaojieError
from registry.admission import SYSTEM
from registry.import_rows import Row, RowMapping
from registry.imports import import_file
from registry.operations import Create, HomePrefix
from registry.registrar import Idempotency

from .node import Node

TENANT = "demo"
EXAMPLES = ("WT-E-126/7500", "WT-AD180/8000", "PVM-A10Green-Technology-A10J-S72-175")
log = structlog.get_logger("biaojie.demo")


def examples(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}/{suffix}" for suffix in EXAMPLES)


def samples() -> Traversable:
    """The catalogues: inside the installed package, or `deploy/samples` of a checkout."""
    packaged = files("resolver") / "samples"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parent.parent / "deploy" / "samples"


async def fill(node: Node) -> int:
    """Home the demo prefix and import the catalogues; returns how many records were added."""
    settings = node.settings
    prefix = settings.demo_prefix
    done = settings.data_dir / f"demo-{prefix}.done"
    if done.exists():
        return 0
    homed = await node.store.find_prefixes([prefix.upper()])
    if not homed:
        (await node.registrar.submit(SYSTEM, [HomePrefix(prefix, TENANT)])).single()

    async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> list[RowResult]:
        outcome = await node.registrar.submit(
            SYSTEM,
            [Create(row.identifier, row.values, row.status, row.template) for row in rows],
            mode="valid-rows",
            dry_run=dry_run,
            idempotency=Idempotency(key, bytes(32)) if key else None,
        )
        results = []
        for number, (row, result) in enumerate(zip(rows, outcome.results, strict=True), 1):
            name = str(row.identifier)
            if isinstance(result, BiaojieError):
                results.append(RowResult(number, name, None, result.code, *result.detail))
            else:
                results.append(RowResult(number, name, result))
        return results

    added = 0
    with as_file(samples()) as folder:
        catalogue = tomllib.loads((folder / "catalogue.toml").read_text(encoding="utf-8"))
        for item in catalogue["catalogue"]:
            report = await import_file(
                folder / item["file"],
                RowMapping(prefix=prefix, suffix=item["suffix"]),
                submit,
                state_file=settings.data_dir / f"{item['file']}.import-state.json",
                error_file=settings.data_dir / f"{item['file']}.errors.csv",
                chunk_rows=2_000,
                target=prefix,
                case_sensitive=settings.suffix_case_sensitive,
            )
            added += report.written
            log.info(
                "sample data", file=item["file"], registered=report.written, refused=report.failed
            )
    done.touch()
    return added
