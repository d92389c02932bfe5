"""How fast a node takes files: written here, uploaded as jobs over HTTP, and read back.

The node is a process of its own; what it does to a file is what it does for anybody: rights,
checks of every row, uniqueness, change log, each commit on disk before the next. Which of its
processor time is which is told apart by process: a file is read and cut by a child of the node
(`registry.import_reading`), which has ended when the import has; what is left is the node's own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
import orjson

from biaojie import Client
from biaojie.calls import Resolved
from biaojie.errors import PrefixNotHere
from biaojie.importing import ImportOptions
from biaojie.wire.imports import ImportJob

from ..node import Node
from ..processes import cpu_s, family, reaped_s, resident_octets
from ..words import BenchFault
from .disk import Place, place_of
from .drivers import driven
from .plan import TEMPLATES, Plan, columns, prefix_of
from .reading import WrongAnswer

FORMS: Final = ("csv", "ndjson", "msgpack")
ORDERS: Final = ("sorted", "shuffled")
TENANT: Final = "bench"
_RANK: Final = 0
_SAMPLE: Final = 1_000
"""Names that are read back after each import."""
_LOOK_S: Final = 0.1
_IMPORT_S: Final = 3_600.0
_MADE: Final = 8_192

Encode = Callable[[str, Sequence[int], Sequence[str], Sequence[bytes]], bytes]


class Run(NamedTuple):
    """One import. Seconds on the wall and of processor: `upload` until the file is there, `job`
    from then until it is over, of which `reading` and `storing` are processor time alone. `server`
    is the processor time of a database server on this machine."""

    form: str
    order: str
    rows: int
    upload_s: float
    upload_cpu_s: float
    job_s: float
    reading_cpu_s: float
    storing_cpu_s: float
    server_cpu_s: float
    resident_octets: int


def _csv(name: str, indexes: Sequence[int], types: Sequence[str], data: Sequence[bytes]) -> bytes:
    return name.encode() + b"," + b",".join(data) + b"\n"


def _ndjson(
    name: str, indexes: Sequence[int], types: Sequence[str], data: Sequence[bytes]
) -> bytes:
    values = [
        {"index": index, "type": type_, "data": each.decode()}
        for index, type_, each in zip(indexes, types, data, strict=True)
    ]
    return orjson.dumps({"identifier": name, "values": values}) + b"\n"


def _msgpack(
    name: str, indexes: Sequence[int], types: Sequence[str], data: Sequence[bytes]
) -> bytes:
    packed: bytes = msgpack.packb([name, list(zip(indexes, types, data, strict=True))])
    return packed


_ENCODE: Final[dict[str, Encode]] = {"csv": _csv, "ndjson": _ndjson, "msgpack": _msgpack}


def line_of(number: int) -> int:
    """The product line of the n-th file: each has another, all of the template whose values are
    text, since CSV and JSON have nothing else."""
    return number * len(TEMPLATES) + (TEMPLATES.index("trade-item") - _RANK) % len(TEMPLATES)


def rows_in(form: str, seed: str, line: int, count: int) -> Iterator[bytes]:
    """The rows of a file, in the order of their names."""
    encode = _ENCODE[form]
    prefix = prefix_of(_RANK)
    for first in range(0, count, _MADE):
        made = columns(seed, _RANK, line, first, min(_MADE, count - first))
        indexes = [value.index for value in made.shape]
        types = [value.type for value in made.shape]
        for suffix, data in zip(made.suffixes, zip(*made.data, strict=True), strict=True):
            yield encode(f"{prefix}/{suffix}", indexes, types, data)


def write_file(path: Path, form: str, order: str, seed: str, line: int, count: int) -> None:
    """What is shuffled has to fit into memory."""
    rows: Iterator[bytes] = rows_in(form, seed, line, count)
    if order == "shuffled":
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)  # noqa: S311
        rows = iter(shuffled)
    with path.open("wb") as file:
        if form == "csv":
            shape = columns(seed, _RANK, line, 0, 1).shape
            file.write(",".join(["identifier", *(value.type for value in shape)]).encode() + b"\n")
        file.writelines(rows)


Expected = tuple[str, tuple[tuple[int, str, bytes], ...]]
"""A name, and index, type and data of each value."""


def expected(seed: str, line: int, number: int) -> Expected:
    made = columns(seed, _RANK, line, number, 1)
    values = tuple(
        (value.index, value.type, column[0])
        for value, column in zip(made.shape, made.data, strict=True)
    )
    return f"{prefix_of(_RANK)}/{made.suffixes[0]}", values


async def measure(
    database: str,
    folder: Path,
    seed: str,
    count: int,
    forms: Sequence[str],
    orders: Sequence[str],
    driver_rows: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Import a file of `count` rows in each form and order, then let the bare driver load rows.

    Raises BenchFault; WrongAnswer where count or content is not what was sent.
    """
    place = place_of(database, folder)
    place.check_free(count * len(forms) * len(orders))
    await place.find_server()
    url = place.url.replace("postgresql://", "postgresql+asyncpg://")
    url = url.replace("sqlite://", "sqlite+aiosqlite://")
    runs = []
    with closing(Node(folder / "node", settings={"database_url": url})) as node:
        async with Client(node.url, key=node.key, timeout_s=60) as client:
            await _home(client)
            for number, (form, order) in enumerate((f, o) for f in forms for o in orders):
                line = line_of(number)
                file = folder / f"rows.{form}"
                write_file(file, form, order, seed, line, count)
                run = await _imported(client, node.pid, place, file, form, order, count)
                file.unlink()
                await _check(client, seed, line, count)
                say(f"{form}, {order}: {count / run.job_s:,.0f}/s")
                runs.append(run._asdict())
    return {
        "machine": place.machine(),
        "kind": place.kind,
        "seed": seed,
        "runs": runs,
        **await driven(place, folder, Plan(seed, driver_rows), driver_rows),
    }


async def _home(client: Client) -> None:
    try:
        await client.prefixes.get(prefix_of(_RANK))
    except PrefixNotHere:
        await client.prefixes.home(prefix_of(_RANK), TENANT)
        return
    raise BenchFault(
        "The database holds a registry that is in use; give an empty one.",
        "该数据库中已有注册内容；请使用空数据库。",
    )


async def _imported(
    client: Client, pid: int, place: Place, file: Path, form: str, order: str, count: int
) -> Run:
    def busy() -> tuple[float, float, float]:
        node = family(pid)
        server = [each for of in place.pids for each in family(of)]
        return cpu_s(node), reaped_s(node), cpu_s(server)

    began, before = time.monotonic(), busy()
    job = await client.imports.start(file, ImportOptions(format=form), upload_s=_IMPORT_S)
    there, uploaded = time.monotonic(), busy()
    most = 0
    while not job.over:
        if time.monotonic() > there + _IMPORT_S:
            raise BenchFault("The import takes too long.", "导入超时。")
        await asyncio.sleep(_LOOK_S)
        most = max(most, resident_octets(family(pid)))
        job = await client.imports.get(job.id)
    ended, after = time.monotonic(), busy()
    if (job.state, job.rows, job.written) != ("done", count, count):
        raise _other(job, count)
    reading = after[1] - uploaded[1]
    return Run(
        form,
        order,
        count,
        there - began,
        uploaded[0] - before[0],
        ended - there,
        reading,
        after[0] - uploaded[0],
        after[2] - uploaded[2],
        most,
    )


def _other(job: ImportJob, count: int) -> WrongAnswer:
    why = f" ({job.fault})" if job.fault else ""
    return WrongAnswer(
        f"The import of {count:,} good rows ended as {job.state}, {job.written:,} written{why}.",
        f"{count:,} 个正确行的导入以 {job.state} 结束，写入 {job.written:,} 行{why}。",
    )


async def _check(client: Client, seed: str, line: int, count: int) -> None:
    """Read some back, the first and the last among them; what was not in the file is not there."""
    drawn = random.Random(line).choices(range(count), k=_SAMPLE)  # noqa: S311
    numbers = sorted({0, count - 1, *drawn})
    wanted = [expected(seed, line, number) for number in [*numbers, count]]
    at = 0
    async for got in client.resolve_many([name for name, _ in wanted]):
        there = None
        if isinstance(got, Resolved):
            values = tuple((v.index, v.type, v.data) for v in got.record.values)
            there = str(got.record.identifier), values
        if there != (wanted[at] if at < len(numbers) else None):
            name = wanted[at][0]
            raise WrongAnswer(
                f"{name} is not answered as it was imported.", f"{name} 读回的内容与导入的不同。"
            )
        at += 1
    if at != len(wanted):
        raise WrongAnswer("Not every name was answered.", "并非所有标识都得到应答。")
