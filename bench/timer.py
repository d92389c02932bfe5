"""A timer finer than the event loop's, whose clock ticks in milliseconds.

On Linux it is a timerfd; elsewhere the loop's own. A schedule kept to the millisecond would add
half a millisecond to every latency measured from it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """Calls `ring` at the time last given to `at`, in the time of `time.monotonic()`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        if sys.platform != "linux":
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._spec = _Spec()
            self._pointer = ctypes.byref(self._spec)
            loop.add_reader(self._fd, self._expired)

    def at(self, when: float) -> None:
        if self._fd < 0:
            self.stop()
            self._handle = self._loop.call_later(max(0.0, when - self._loop.time()), self._ring)
            return
        whole = int(when)
        self._spec.value_s = whole
        self._spec.value_ns = max(1, int((when - whole) * 1e9))
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, self._pointer, None)

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew since it rang
            return
        self._ring()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def close(self) -> None:
        self.stop()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
