"""Processes that compute for this one, and end with it however it ends."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_START_S: Final = 60.0


def obey() -> None:
    """Make this process one that computes for the thread that started it, and ends with it."""
    if sys.platform == "linux":
        # They would wait for work for ever if this process were killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal, for this process to obey
    gc.disable()  # what they make has no cycles, and comes and goes by the ten thousand


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many of them, started. To be called in the main thread, which they end with."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=obey)
    try:
        for waiting in [pool.submit(os.getpid) for _ in range(count)]:
            waiting.result(timeout=_START_S)
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
