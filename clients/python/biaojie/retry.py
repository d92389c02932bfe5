"""Trying again: when (full jitter, exponential, bounded), and with which key."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .accept import idempotency_key_of
from .errors import BiaojieError


def _dice(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311 - spreads callers, guards nothing


@dataclass(frozen=True, slots=True)
class Backoff:
    """`retries` is how many attempts may follow the first.

    The wait before retry n is uniform in 0 … min(`cap_s`, `base_s` · 2ⁿ⁻¹), after the wait
    the node asked for (Retry-After), if any, cut to `retry_after_max_s`.
    """

    retries: int = 3
    base_s: float = 0.1
    cap_s: float = 5.0
    retry_after_max_s: float = 30.0
    dice: Callable[[float, float], float] = _dice

    def delay_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """Seconds to wait after that many failures (1 or more)."""
        jitter = self.dice(0.0, min(self.cap_s, self.base_s * 2 ** min(failures - 1, 16)))
        return min(retry_after_s or 0.0, self.retry_after_max_s) + jitter


@contextmanager
def keyed(given: str | None) -> Iterator[str]:
    """The idempotency key of a write: the one given, or a new one.

    A fault that leaves the write in doubt carries it on (field `idempotency_key`), so that
    the caller can repeat the write with it.
    """
    key = uuid.uuid4().hex if given is None else idempotency_key_of(given)
    try:
        yield key
    except BiaojieError as error:
        if error.retryable:
            error.fields = {**error.fields, "idempotency_key": key}
        raise
