"""A worker that finds the registry out of reach when it starts: it waits for it.

The supervisor keeps its sockets open, so meanwhile it hangs up on whoever comes: nobody waits for
an answer that may be hours away, and who tries again may reach a worker that has answers.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import structlog

from biaojie.errors import TemporarilyUnavailable

from .worker_sockets import Sockets

T = TypeVar("T")
AGAIN_S: Final = 0.5
GIVEN_UP_S: Final = 60.0
"""Then it ends and is started anew, lest it be taken for one that hangs."""
AT_ONCE: Final = 64
log = structlog.get_logger("biaojie.worker")


async def wait_for(
    opening: Callable[[], Awaitable[T]], sockets: Sockets, stop: asyncio.Event
) -> T | None:
    """What `opening` returns, tried again while it raises TemporarilyUnavailable; None: told to
    stop. Raises the last of these errors after a minute."""
    began = time.monotonic()
    try:
        return await opening()
    except TemporarilyUnavailable as error:
        log.warning("waiting for the registry", reason=error.detail.en)
    with _hanging_up(sockets):
        while True:
            try:
                async with asyncio.timeout(AGAIN_S):
                    await stop.wait()
                return None
            except TimeoutError:
                pass
            try:
                return await opening()
            except TemporarilyUnavailable:
                if time.monotonic() - began > GIVEN_UP_S:
                    raise


@contextmanager
def _hanging_up(sockets: Sockets) -> Iterator[None]:
    """Within it who connects is sent away. A Unix socket is every worker's: others accept there,
    and datagrams are lost as any may be."""
    loop = asyncio.get_running_loop()
    listening = [
        one
        for several in sockets.values()
        for one in several
        if one.type == socket.SOCK_STREAM and one.family != socket.AF_UNIX
    ]
    for one in listening:
        one.setblocking(False)
        loop.add_reader(one.fileno(), _hang_up, one)
    try:
        yield
    finally:
        for one in listening:
            loop.remove_reader(one.fileno())


def _hang_up(listening: socket.socket) -> None:
    for _ in range(AT_ONCE):
        try:
            came, _ = listening.accept()
        except OSError:  # nobody else has come, or they are gone again
            return
        came.close()
