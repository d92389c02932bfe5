"""When what fronts gather is asked for: together with as much as costs nobody time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import Final

from .steps.local import LANES

TURNS: Final = 4
"""What is asked while there are LANES look-ups would wait for them, alone. So for some turns of the
loop it waits for company, which makes each of them cheaper."""


class Soon:
    """`ask` is called at the end of the turn of the loop in which `begin` was, or, while
    LANES of what was asked before are still `under_way`, up to TURNS turns later."""

    __slots__ = ("_ask", "_left", "_under_way")

    def __init__(self, ask: Callable[[], None], under_way: Sized) -> None:
        self._ask = ask
        self._under_way = under_way
        self._left = 0

    def begin(self) -> None:
        """Once for all that are gathered until `ask` is called."""
        self._left = TURNS
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._left -= 1
        if self._left and len(self._under_way) >= LANES:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._ask()
