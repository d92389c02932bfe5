"""When what fronts gather is asked for: together with as much as costs nobody time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import Final

TURNS: Final = 4
"""A look-up costs much the same for one name and for thirty. So while another is under way what is
asked waits for company for some turns of the loop, which is less time than one takes."""


class Soon:
    """`ask` is called at the end of the turn of the loop in which `begin` was, or, while
    something that was asked before is still `under_way`, up to TURNS turns later."""

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
        if self._left and self._under_way:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._ask()
