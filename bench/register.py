"""`bench register`: how fast a node takes registrations, and whether it keeps what it says.

Three ways in: single durable writes, batches, and a file through `biaojie import`. Whatever was
acknowledged is read back past every cache and compared; the change log is read as well, where
the key may, and must hold each of them exactly once.
"""

from __future__ import annotations

import asyncio
import csv
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from biaojie.calls import Row
from biaojie.change import Action, Receipt
from biaojie.client import Client
from biaojie.errors import BiaojieError, Forbidden, PrefixNotHere, Unauthenticated
from biaojie.limits import RESOLVE_MANY_MAX

from .facts import machine, read_node
from .histogram import Histogram
from .names import VALUE_TYPE, OwnNames
from .prepare import CHUNK_OCTETS, TENANT, chunks, found_in, value_of
from .target import parse_target
from .words import BenchFault, say

FORMAT: Final = 1
WAYS: Final = ("single", "batch", "file")
WRONG_KEPT: Final = 20
IMPORT_TIMEOUT_S: Final = 3_600.0
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Wanted:
    """`single`, `batch` and `file` are how many names go each way; 0 leaves one out. `rate`: of
    the single writes, by an open-loop schedule; 0: each of `callers` writes again as soon as its
    last is acknowledged. `data_dir`: the node's, to see how its registry grows."""

    url: str
    prefix: str
    key: str
    single: int = 2_000
    batch: int = 50_000
    file: int = 50_000
    callers: int = 64
    batch_rows: int = 1_000
    batch_callers: int = 2
    rate: float = 0.0
    value_octets: int = 125
    timeout_s: float = 30.0
    node: str = ""
    data_dir: Path | None = None
    own: bool = False


@dataclass(slots=True)
class Way:
    """What came of one way in. `receipts`: by number of the name; None where the way shows none
    (a file). `unsure`: names whose write met an error, and which may or may not be there."""

    count: int
    receipts: dict[int, Receipt | None] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0
    lost: int = 0
    differing: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        if len(self.wrong) < WRONG_KEPT:
            self.wrong.append(what)

    def to_document(self) -> dict[str, Any]:
        done = len(self.receipts)
        return {
            "asked": self.count,
            "acknowledged": done,
            "failed": self.failed.total(),
            "failures": dict(self.failed),
            "seconds": round(self.seconds, 3),
            "rate": round(done / self.seconds, 1) if self.seconds else 0.0,
            "latency": self.latency.summary(),
            "histogram": self.latency.encode(),
            "lost": self.lost,
            "differing": self.differing,
            "doubled": self.doubled,
            "wrong": self.wrong,
        }


Tell = Callable[[str], None]


def quiet(line: str) -> None:
    """For callers who want the result alone."""


async def register_run(wanted: Wanted, live: Tell = quiet) -> dict[str, Any]:
    """Write, read back, compare. Raises BenchFault, and BiaojieError where the node refuses the
    preparations; what goes wrong with a write is in the result."""
    _check(wanted)
    started = datetime.now(UTC)
    facts = machine()
    stem = f"R{_base36(int(time.time() * 1000))}"
    ways: dict[str, Way] = {}
    disk = None
    async with Client(
        wanted.url, wanted.key or None, wanted.timeout_s, connections_max=wanted.callers, retries=0
    ) as client:
        await _home(client, wanted.prefix)
        before = _octets(wanted.data_dir)
        cpu_before = await asyncio.to_thread(read_node, _http(wanted))
        after_sequence = await _head(client)
        for way in WAYS:
            count: int = getattr(wanted, way)
            if not count:
                continue
            names = OwnNames(wanted.prefix, count, wanted.value_octets, f"{stem}{way[0].upper()}")
            live(say(f"{way}: writing {count:,} names", f"{way}：写入 {count:,} 个标识"))
            ways[way] = await _WRITERS[way](client, names, wanted)
            live(say(f"{way}: reading back", f"{way}：读回核对"))
            await read_back(client, names, ways[way])
        cpu_after = await asyncio.to_thread(read_node, _http(wanted))
        grown = None if before is None else (_octets(wanted.data_dir) or 0) - before
        written = sum(len(way.receipts) for way in ways.values())
        if grown is not None and written:
            disk = {"grown_bytes": grown, "bytes_per_identifier": round(grown / written, 1)}
        live(say("reading the change log", "核对变更日志"))
        log = await check_log(client, after_sequence, stem, wanted.prefix, ways)
    documents = {name: way.to_document() for name, way in ways.items()}
    wrong = sum(way.lost + way.differing + way.doubled for way in ways.values())
    return {
        "kind": "register",
        "format": FORMAT,
        "started": started.isoformat(timespec="seconds"),
        "machine": facts,
        "target": {"url": wanted.url},
        "names": {"prefix": wanted.prefix, "stem": stem, "value_octets": wanted.value_octets},
        "shape": {
            "callers": wanted.callers,
            "batch_rows": wanted.batch_rows,
            "batch_callers": wanted.batch_callers,
            "rate": wanted.rate,
            "loop": "open" if wanted.rate else "closed",
        },
        "ways": documents,
        "log": log,
        "disk": disk,
        "node": None
        if cpu_before is None or cpu_after is None
        else {"cpu_s": round(cpu_after.cpu_s - cpu_before.cpu_s, 3)},
        "counts": {"wrong": wrong},
    }


def _check(wanted: Wanted) -> None:
    target = parse_target(wanted.url, own=wanted.own)
    if wanted.node:
        parse_target(wanted.node, own=wanted.own)
    if target.front not in ("http", "native"):
        raise BenchFault(
            "Registrations go over http:// or biaojie://.", "注册压测使用 http:// 或 biaojie://。"
        )
    if not wanted.key:
        raise BenchFault(
            "Registering needs a key: --key or --key-file.", "注册需要密钥：--key 或 --key-file。"
        )
    if not wanted.single + wanted.batch + wanted.file:
        raise BenchFault("There is nothing to write.", "没有要写入的内容。")
    if wanted.file and not _http(wanted):
        raise BenchFault(
            "Files are imported over HTTP: give the node's address with --node, or --file 0.",
            "文件经 HTTP 导入：请用 --node 给出节点地址，或使用 --file 0。",
        )


def _http(wanted: Wanted) -> str:
    return wanted.node or (wanted.url if wanted.url.startswith("http://") else "")


async def _home(client: Client, prefix: str) -> None:
    try:
        await client.prefixes.get(prefix)
    except PrefixNotHere:
        await client.prefixes.home(prefix, TENANT)


# The three ways in ----------------------------------------------------------------------


async def write_singles(client: Client, names: OwnNames, wanted: Wanted) -> Way:
    way = Way(names.count)
    start = time.monotonic()

    async def one(number: int, due: float) -> None:
        try:
            receipt = await client.register(
                names.name(number), [value_of(names, number, 0)], timeout_s=wanted.timeout_s
            )
        except BiaojieError as error:
            way.failed[error.code] += 1
            way.unsure.add(number)
            return
        way.latency.add_us(int((time.monotonic() - due) * 1e6))
        way.receipts[number] = receipt

    if wanted.rate:
        await _by_schedule(one, names.count, wanted.rate, start)
    else:
        await _by_callers(one, names.count, wanted.callers)
    way.seconds = time.monotonic() - start
    return way


async def write_batches(client: Client, names: OwnNames, wanted: Wanted) -> Way:
    """`latency` is that of whole batches."""
    way = Way(names.count)
    start = time.monotonic()
    batches = list(chunks(names.count, wanted.batch_rows))

    async def one(position: int, due: float) -> None:
        numbers = batches[position]
        rows = [Row(names.name(number), [value_of(names, number, 0)]) for number in numbers]
        begun = time.monotonic()
        try:
            results = await client.register_batch(rows, "valid-rows", timeout_s=wanted.timeout_s)
        except BiaojieError as error:
            way.failed[error.code] += len(numbers)
            way.unsure.update(numbers)
            return
        way.latency.add_us(int((time.monotonic() - begun) * 1e6))
        for number, result in zip(numbers, results, strict=True):
            if result.receipt is None:
                way.failed[result.code] += 1
                way.unsure.add(number)
            else:
                way.receipts[number] = result.receipt

    await _by_callers(one, len(batches), wanted.batch_callers)
    way.seconds = time.monotonic() - start
    return way


async def write_file(client: Client, names: OwnNames, wanted: Wanted) -> Way:
    """Through the command that people use; `seconds` is from its call to its end."""
    way = Way(names.count)
    with tempfile.TemporaryDirectory(prefix="biaojie-bench-") as folder:
        file = Path(folder) / "names.csv"
        await asyncio.to_thread(write_csv, file, names)
        line = [sys.executable, "-m", "resolver", "import", str(file), "--url", _http(wanted)]
        start = time.monotonic()
        code, told = await _call(line, {"BIAOJIE_KEY": wanted.key, "LC_ALL": "C.UTF-8"})
        way.seconds = time.monotonic() - start
    if code not in (0, 1):
        raise BenchFault(
            f"`biaojie import` ended with {code}: {told[-500:]}",
            f"`biaojie import` 退出码 {code}：{told[-500:]}",
        )
    if code == 1:
        way.failed["import"] = names.count
        way.unsure.update(range(names.count))
    else:
        way.receipts = dict.fromkeys(range(names.count))
    return way


def write_csv(file: Path, names: OwnNames) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("identifier", VALUE_TYPE))
        for number in range(names.count):
            rows.writerow((names.name(number), names.data(number, 0).decode()))


_WRITERS: Final[dict[str, Callable[[Client, OwnNames, Wanted], Coroutine[Any, Any, Way]]]] = {
    "single": write_singles,
    "batch": write_batches,
    "file": write_file,
}

One = Callable[[int, float], Coroutine[Any, Any, None]]
"""Writes number so and so, which was due then."""


async def _by_callers(one: One, count: int, callers: int) -> None:
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await one(number, time.monotonic())

    await asyncio.gather(*(caller() for _ in range(min(callers, count))))


async def _by_schedule(one: One, count: int, rate: float, start: float) -> None:
    """At most one task for each write that is due; `connections_max` of the client bounds what
    is on its way, and latency counts from the time a write was due."""
    tasks = set()
    for number in range(count):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(one(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)


@asynccontextmanager
async def _process(
    line: Sequence[str], environment: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *line,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()


async def _call(line: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    async with _process(line, environment) as process:
        try:
            out, _ = await asyncio.wait_for(process.communicate(), IMPORT_TIMEOUT_S)
        except TimeoutError:
            raise BenchFault("`biaojie import` hangs.", "`biaojie import` 无响应。") from None
        assert process.returncode is not None
        return process.returncode, out.decode(errors="replace")


# Comparing ------------------------------------------------------------------------------


async def read_back(client: Client, names: OwnNames, way: Way) -> None:
    """Every acknowledged name must be there as it was written, in its first version."""
    size = max(1, min(RESOLVE_MANY_MAX, CHUNK_OCTETS // names.value_octets))
    for numbers in chunks(names.count, size):
        asked = [number for number in numbers if number in way.receipts or number in way.unsure]
        if not asked:
            continue
        position = 0
        async for answer in client.resolve_many([names.name(number) for number in asked]):
            number = asked[position]
            position += 1
            if isinstance(answer, BiaojieError):
                if number in way.receipts:
                    way.lost += 1
                    way.fault(f"{names.name(number)} was acknowledged and is lost: {answer.code}")
                continue
            record = answer.record
            receipt = way.receipts.get(number)
            wrong = names.generation_of(number, found_in(record)) != 0
            if receipt is not None:
                wrong |= (record.version, record.sequence) != (receipt.version, receipt.sequence)
            if wrong:
                way.differing += 1
                way.fault(f"{names.name(number)} differs from what was written: {record}"[:400])
            elif record.version != 1:
                way.doubled += 1
                way.fault(
                    f"{names.name(number)} was written once and is of version {record.version}"
                )


async def _head(client: Client) -> int | None:
    """The last entry of the change log; None where the key may not read it."""
    low, high = 0, 1
    try:
        # The log has no gaps: the last entry is found by halves.
        while await _has(client, high):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await _has(client, middle) else (low, middle)
    except (Forbidden, Unauthenticated):
        return None
    return low


async def _has(client: Client, sequence: int) -> bool:
    async for _ in client.changes(sequence - 1, follow=False, page_rows=1):
        return True
    return False


async def check_log(
    client: Client, after: int | None, stem: str, prefix: str, ways: dict[str, Way]
) -> dict[str, Any] | None:
    """Count each name in the change log. What is there twice is doubled; what is not there,
    though it was acknowledged, is lost."""
    if after is None:
        return None
    counts: Counter[str] = Counter()
    head = f"{prefix}/{stem}"
    entries = 0
    async for entry in client.changes(after, follow=False):
        entries += 1
        for change in entry.changes:
            if change.action in (Action.CREATE, Action.PUT) and change.subject.startswith(head):
                counts[change.subject] += 1
    for name, way in ways.items():
        names = OwnNames(prefix, way.count, stem=f"{stem}{name[0].upper()}")
        for number in range(way.count):
            found = counts[names.name(number)]
            if found > 1:
                way.doubled += 1
                way.fault(f"{names.name(number)} is {found} times in the change log")
            elif not found and number in way.receipts:
                way.lost += 1
                way.fault(f"{names.name(number)} was acknowledged and is not in the change log")
    return {"entries": entries, "names": len(counts)}


# Facts ----------------------------------------------------------------------------------


def _octets(folder: Path | None) -> int | None:
    """Of the registry's files in the node's data folder."""
    if folder is None:
        return None
    files = list(folder.glob("registry.db*"))
    if not files:
        raise BenchFault(f"{folder} holds no registry.db.", f"{folder} 中没有 registry.db。")
    return sum(file.stat().st_size for file in files)


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
