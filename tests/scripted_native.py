"""A node's native port in miniature, on a real loopback socket, that misbehaves when told to.

Records and writes are those of `scripted_node`; the codec is the library's own, whose octets
other tests hold. `faults` holds what shall happen to the coming requests, one each, `greetings`
what shall happen to the coming hellos; `seen` is every request that could be read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from biaojie import Client, Value
from biaojie.account import ApiKey, Prefix, Role
from biaojie.change import Action, BatchResult, Entry, Receipt, RowResult
from biaojie.errors import BatchRejected, BiaojieError, VersionMismatch
from biaojie.identifier import Identifier
from biaojie.record import Record
from biaojie.wire.document import encode_value
from biaojie.wire.native import (
    CONNECTION,
    Frame,
    Framing,
    Hello,
    Kind,
    Request,
    Resolve,
    ResolveMany,
    Welcome,
    answers,
    decode_request,
    encode_error,
    encode_frame,
    encode_resolution,
    encode_welcome,
    requests,
)
from tests.scripted_node import ScriptedNode

LIMITS = {
    "frame_octets_max": 8 * 2**20,
    "pipeline_max": 1024,
    "resolve_many_max": 1000,
    "batch_rows_max": 2000,
    "page_rows_max": 1000,
}


@dataclass
class Met:
    """A request and the connection it came on. `frames` does what it asks, once."""

    native: ScriptedNative
    request: Request
    id: int
    connection: int
    writer: asyncio.StreamWriter

    async def frames(self) -> list[bytes]:
        return await self.native.answers(self)

    async def answer(self) -> None:
        self.send(*await self.frames())

    def send(self, *frames: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(b"".join(frames))

    def refuse(self, error: BiaojieError) -> None:
        self.send(encode_frame(self.id, Kind.ERROR, encode_error(error)))

    def abort(self) -> None:
        self.writer.transport.abort()


Fault = Callable[[Met], Awaitable[None]]


@dataclass
class ScriptedNative:
    node: ScriptedNode = field(default_factory=lambda: ScriptedNode(page_rows=1000))
    port: int = 0
    path: str = ""
    limits: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    greetings: deque[Fault] = field(default_factory=deque)
    seen: list[Request] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    reads: int = 0
    open: int = 0
    open_most: int = 0
    running: int = 0
    running_most: int = 0
    part_rows: int = 3
    follow_limit: int | None = None
    deaf: bool = False
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _replies: dict[str, Receipt | BatchResult] = field(default_factory=dict)

    @property
    def url(self) -> str:
        if self.path:
            return f"biaojie+unix://{self.path}"
        return f"biaojie://127.0.0.1:{self.port}"

    @property
    def keys(self) -> list[str | None]:
        """The idempotency keys that came, in order."""
        return [getattr(request, "idempotency_key", None) for request in self.seen]

    # Serving ----------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.hellos)
        self.open += 1
        self.open_most = max(self.open_most, self.open)
        framing = Framing()
        try:
            while data := await reader.read(2**20):
                self.reads += 1
                for frame in framing.feed(data):
                    task = asyncio.create_task(self._take(frame, number, writer))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except OSError:
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _take(self, frame: Frame, number: int, writer: asyncio.StreamWriter) -> None:
        request = decode_request(frame.kind, frame.body)
        met = Met(self, request, frame.id, number, writer)
        if isinstance(request, Hello):
            self.hellos.append(request)
            await (self.greetings.popleft() if self.greetings else Met.answer)(met)
            return
        if isinstance(request, requests.Ping):
            if not self.deaf:
                await met.answer()
            return
        self.seen.append(request)
        async with self.node.news:
            self.node.news.notify_all()
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            fault = self.faults.popleft() if self.faults else self.always
            if fault is not None:
                await fault(met)
            elif isinstance(request, requests.Follow):
                await self._follow(met, request)
            else:
                await met.answer()
        finally:
            self.running -= 1

    async def answers(self, met: Met) -> list[bytes]:
        """What an honest node says; writes happen here."""
        if isinstance(met.request, Hello):
            welcome = encode_welcome(Welcome(1, "scripted", self.limits, None, None))
            return [encode_frame(CONNECTION, Kind.ANSWER, welcome)]
        try:
            return await self._judge(met.request, met.id)
        except BiaojieError as error:
            error.request_id = "req-1"
            return [encode_frame(met.id, Kind.ERROR, encode_error(error))]

    async def _judge(self, request: Request, id_: int) -> list[bytes]:
        if isinstance(request, requests.ListRecords):
            return self._list(request, id_)
        return [encode_frame(id_, Kind.ANSWER, await self._body(request))]

    async def _body(self, request: Request) -> bytes:
        match request:
            case Resolve(identifier):
                return encode_resolution(self.node._find(identifier), 7, 60, "cache")
            case ResolveMany(identifiers):
                return answers.encode_resolutions([self._item(name) for name in identifiers])
            case requests.Write(operation, key, condition):
                if condition is not None:
                    found = self.node._find(operation.identifier)
                    if condition.version not in (None, found.version):
                        raise VersionMismatch
                if operation.action not in (Action.CREATE, Action.PUT):
                    self.node._find(operation.identifier)
                receipt = self._once(key, lambda: self._write(operation))
                return answers.encode_written(receipt, replayed=False)
            case requests.Mint(prefix, start, _, _, _, key):
                name = f"{prefix}/{start}01MINTED"
                made = requests.Operation(Action.CREATE, name, request.values)
                receipt = self._once(key, lambda: self._write(made))
                return answers.encode_written(receipt, replayed=False)
            case requests.WriteMany():
                return answers.encode_written_many(self._batch(request), replayed=False)
            case requests.Changes(after, limit, wait_s):
                query = {"after": [str(after)], "limit": [str(limit)], "wait": [str(wait_s)]}
                got = await self.node._changes(query)
                return answers.encode_changes(
                    [entry(item["sequence"]) for item in got["items"]], got["next"]
                )
            case requests.Search():
                names = [record.identifier for record in self.node.records.values()]
                return answers.encode_findings(names, None)
            case requests.ListPrefixes():
                return answers.encode_prefixes([Prefix("99.1", "acme")], None)
            case requests.FindPrefix(name):
                return answers.encode_one_prefix(Prefix(name, "acme"))
            case requests.HomePrefix(name, tenant) | requests.ChangePrefix(name, tenant):
                return answers.encode_written_prefix(Prefix(name, tenant or "acme"), replayed=False)
            case requests.ListKeys():
                return answers.encode_keys([API_KEY], None)
            case requests.IssueKey():
                self.node.registered.append("key")
                return answers.encode_issued(API_KEY, "bj_12345678_secret")
            case requests.RevokeKey():
                return answers.encode_revoked(API_KEY, replayed=False)
            case _:
                return answers.NOTHING

    def _item(self, name: str) -> tuple[Record, int, int, str] | BiaojieError:
        try:
            return (self.node._find(name), 7, 60, "store")
        except BiaojieError as error:
            return error

    def _write(self, operation: requests.Operation | requests.BadRow) -> Receipt:
        assert isinstance(operation, requests.Operation)
        values = [encode_value(value) for value in operation.values]
        body = {"identifier": operation.identifier, "values": values}
        return self.node._register(body, operation.action)

    def _once(self, key: str | None, write: Callable[[], Receipt]) -> Receipt:
        assert key is not None
        if key not in self._replies:
            self._replies[key] = write()
        receipt = self._replies[key]
        assert isinstance(receipt, Receipt)
        return receipt

    def _batch(self, request: requests.WriteMany) -> BatchResult:
        assert request.idempotency_key is not None
        kept = self._replies.get(request.idempotency_key)
        if isinstance(kept, BatchResult):
            return kept
        rows = []
        for number, operation in enumerate(request.rows, 1):
            name = operation.identifier
            try:
                rows.append(RowResult(number, name, self._write(operation)))
            except BiaojieError as error:
                if request.mode == "all":
                    raise BatchRejected(rows=[{"row": number, "ok": False}]) from None
                rows.append(RowResult(number, name, None, error.code, *error.detail))
        result = BatchResult(request.mode, request.dry_run, self.node.head, tuple(rows))
        self._replies[request.idempotency_key] = result
        return result

    def _list(self, request: requests.ListRecords, id_: int) -> list[bytes]:
        start = int(request.after or b"0")
        every = list(self.node.records.values())
        stop = min(len(every), start + (request.limit or len(every)))
        frames = []
        for at in range(start, stop, self.part_rows):
            part = every[at : min(at + self.part_rows, stop)]
            packed = [answers.encode_resolution_tail(record) for record in part]
            frames.append(encode_frame(id_, Kind.PART, answers.encode_records(packed)))
        cursor = str(stop).encode() if stop < len(every) else None
        return [*frames, encode_frame(id_, Kind.END, answers.encode_end(cursor))]

    async def _follow(self, met: Met, request: requests.Follow) -> None:
        after, told = request.after, 0
        while self.follow_limit is None or told < self.follow_limit:
            async with self.node.news:
                await self.node.news.wait_for(lambda: self.node.head > after)  # noqa: B023
            packed = [
                answers.encode_entry_packed(entry(n)) for n in range(after + 1, self.node.head + 1)
            ]
            after, told = self.node.head, told + len(packed)
            met.send(encode_frame(met.id, Kind.PART, answers.encode_entries(packed)))
        met.abort()

    async def arrived(self, count: int) -> None:
        """Returns when so many requests have arrived in all."""
        async with self.node.news:
            await asyncio.wait_for(self.node.news.wait_for(lambda: len(self.seen) >= count), 5)

    @asynccontextmanager
    async def serving(self, path: Path | None = None) -> AsyncIterator[ScriptedNative]:
        """Listens on loopback, or on a Unix socket, until the block ends; then hangs up."""
        writers: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                await self._serve(reader, writer)
            finally:
                writers.discard(writer)

        if path is None:
            server = await asyncio.start_server(serve, "127.0.0.1", self.port, limit=2**24)
            self.port = server.sockets[0].getsockname()[1]
        else:
            server = await asyncio.start_unix_server(serve, path)
            self.path = str(path)
        try:
            yield self
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            for writer in tuple(writers):
                writer.transport.abort()
            await asyncio.sleep(0)


API_KEY = ApiKey("k1", "acme", Role.READER, "", 1)


def entry(sequence: int) -> Entry:
    zeros = bytes(32)
    return Entry(sequence, 1, "a", "create", "99.1", 0, zeros, zeros, zeros, ())


# Faults ---------------------------------------------------------------------------------


async def reset(met: Met) -> None:
    """The connection breaks before anything has been done."""
    met.abort()


async def cut_after_commit(met: Met) -> None:
    """The write is done; its answer is lost."""
    await met.frames()
    met.abort()


async def cut_in_answer(met: Met) -> None:
    """The write is done; half of its answer arrives."""
    whole = b"".join(await met.frames())
    met.send(whole[: len(whole) // 2])
    await met.writer.drain()
    met.writer.close()


async def silence(met: Met) -> None:
    """Nothing is done and nothing said."""


def refusing(error: BiaojieError) -> Fault:
    async def fault(met: Met) -> None:
        met.refuse(error)

    return fault


def saying(make: Callable[[Met], bytes]) -> Fault:
    """Octets made up by the test."""

    async def fault(met: Met) -> None:
        met.send(make(met))

    return fault


def held(until: asyncio.Event) -> Fault:
    """Answers rightly, once `until` is set."""

    async def fault(met: Met) -> None:
        frames = await met.frames()
        await until.wait()
        met.send(*frames)

    return fault


def framing(kind: int, body: bytes) -> Fault:
    """A frame of that kind in the place of the answer."""
    return saying(lambda met: encode_frame(met.id, kind, body))


# Those who ask --------------------------------------------------------------------------


async def reads(client: Client, name: str = "99.1/a") -> bool:
    return str((await client.resolve(name)).record.identifier) == name


def fill(node: ScriptedNative, names: int, octets: int = 0) -> list[str]:
    """Records in the place of those there were; their names."""
    wanted = [f"99.1/{number:05}" for number in range(names)]
    node.node.records.clear()
    for name in wanted:
        values = (Value(1, "URL", bytes(octets)),) if octets else ()
        node.node.records[name] = Record(Identifier.parse(name), values)
    return wanted
