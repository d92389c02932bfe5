"""How the workers of one node speak with each other: over Unix sockets in a private folder.

Two ways. A note is a datagram to all others, about what is learnt sooner or later anyway; it may
get lost. A call is put to one worker and answered in parts, over a connection of its own. A worker
that comes takes the names of the one it replaces, so calls always reach the newest.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from struct import Struct
from typing import Final

import structlog

NOTE_OCTETS_MAX: Final = 256
NOTES_AT_ONCE: Final = 64
PART_OCTETS_MAX: Final = 32 * 2**20
CALLS_MAX: Final = 512
CONNECT_S: Final = 1.0
ASK_S: Final = 2.0
"""How long a neighbour has to say what it wants, once it has connected."""
BACKLOG: Final = 256
_NOTES: Final = "notes"
_CALLS: Final = "calls"
_PART: Final = Struct(">BI")
_ASK, _MORE, _END, _FAILED = range(4)
log = structlog.get_logger("biaojie.neighbours")


class NeighbourFault(Exception):
    """A call was not answered; whether it was heeded is not known."""


class NotThere(NeighbourFault):
    """A call did not reach the other worker."""


class Neighbours:
    """`on_note[kind]` is called with what others tell, `on_call[kind]` answers what they ask; a
    kind is one octet. Set both before `start`."""

    def __init__(self, folder: Path, slot: int, workers: int) -> None:
        self.slot = slot
        self.workers = workers
        self.on_note: dict[bytes, Callable[[bytes], None]] = {}
        self.on_call: dict[bytes, Callable[[bytes], AsyncGenerator[bytes, None]]] = {}
        self.lost = 0
        self._folder_path = folder
        self._folder = -1
        self._notes: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def others(self) -> list[int]:
        return [slot for slot in range(self.workers) if slot != self.slot]

    async def start(self) -> None:
        """Raises OSError."""
        self._folder = os.open(self._folder_path, os.O_RDONLY | os.O_DIRECTORY)
        self._notes = self._bound(_NOTES, socket.SOCK_DGRAM)
        asyncio.get_running_loop().add_reader(self._notes.fileno(), self._hear)
        self._server = await asyncio.start_unix_server(
            self._answer, sock=self._bound(_CALLS, socket.SOCK_STREAM), backlog=BACKLOG
        )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._notes is not None:
            asyncio.get_running_loop().remove_reader(self._notes.fileno())
            self._notes.close()
            self._notes = None
        for task in tuple(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _path(self, name: str) -> str:
        """By way of the descriptor, for the path of a socket may have few octets."""
        return f"/proc/self/fd/{self._folder}/{name}"

    def _bound(self, name: str, kind: socket.SocketKind) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, kind)
        try:
            made.setblocking(False)
            draft = f"{name}-{self.slot}.{os.getpid()}"
            made.bind(self._path(draft))
            if kind == socket.SOCK_STREAM:
                made.listen(BACKLOG)
            os.rename(
                draft, f"{name}-{self.slot}", src_dir_fd=self._folder, dst_dir_fd=self._folder
            )
        except BaseException:
            made.close()
            raise
        return made

    # Notes ------------------------------------------------------------------------------

    def tell(self, kind: bytes, about: bytes = b"") -> None:
        """Tell all others; never waits."""
        if self._notes is None:
            return
        for slot in self.others:
            try:
                self._notes.sendto(kind + about[:NOTE_OCTETS_MAX], self._path(f"{_NOTES}-{slot}"))
            except OSError:  # it is not there, or has much unread
                self.lost += 1

    def _hear(self) -> None:
        assert self._notes is not None
        for _ in range(NOTES_AT_ONCE):
            try:
                note = self._notes.recv(NOTE_OCTETS_MAX + 1)
            except OSError:
                return
            heard = self.on_note.get(note[:1])
            if heard is not None:
                heard(note[1:])

    # Calls ------------------------------------------------------------------------------

    async def ask(
        self, slot: int, kind: bytes, question: bytes, *, timeout_s: float
    ) -> AsyncGenerator[bytes, None]:
        """The parts of the answer, each within `timeout_s`. Raises NotThere, NeighbourFault."""
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_unix_connection(self._path(f"{_CALLS}-{slot}"))
        except OSError as error:
            raise NotThere(f"worker {slot}: {error!r}") from None
        try:
            writer.write(_PART.pack(_ASK, len(question) + 1) + kind + question)
            while True:
                async with asyncio.timeout(timeout_s):
                    sort, part = await _read(reader)
                if sort == _END:
                    return
                if sort != _MORE:
                    raise ConnectionError("it failed")
                yield part
        except (OSError, EOFError) as error:
            raise NeighbourFault(f"worker {slot}: {error!r}") from None
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            if len(self._calls) <= CALLS_MAX:
                await self._serve(reader, writer)
        except (OSError, EOFError):
            pass
        except Exception as error:
            log.error("a call of a neighbour failed", exc_info=error)
            with suppress(OSError):
                writer.write(_PART.pack(_FAILED, 0))
        finally:
            self._calls.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(ASK_S):
            _, question = await _read(reader)
        parts = self.on_call[question[:1]](question[1:])
        async with aclosing(parts):
            async for part in parts:
                writer.write(_PART.pack(_MORE, len(part)) + part)
                async with asyncio.timeout(ASK_S):
                    await writer.drain()
        writer.write(_PART.pack(_END, 0))
        async with asyncio.timeout(ASK_S):
            await writer.drain()


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    sort, octets = _PART.unpack(await reader.readexactly(_PART.size))
    if octets > PART_OCTETS_MAX:
        raise ConnectionError("too long")
    return sort, await reader.readexactly(octets)
