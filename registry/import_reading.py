"""The process that reads ahead of an import (`registry.import_ahead`).

`python -m registry.import_reading`, with an Errand on standard input. On standard output it
tells, each after its length, the windows of the file, or how far sorting has come. It ends with
whoever started it, is never more than two messages ahead, and says nothing of what is wrong with
a file: where it has to stop it stops, and whoever started it finds out why.
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import sys
import threading
from dataclasses import replace
from typing import Any

from biaojie.errors import BiaojieError

from .import_ahead import HEAD, Errand, sorted_here, source_of
from .import_blocks import Cutter
from .import_prepare import open_rows
from .processes import obey

AHEAD = 2
_COLLECTED = 64
"""Messages after which cycles are looked for: what is made here has hardly any."""


class _Teller:
    """Writes messages in a thread of its own, so that the next is made meanwhile."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._pipe = os.dup(1)
        os.dup2(2, 1)  # whoever prints does not spoil it
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._count = 0

    def tell(self, message: Any) -> None:
        self._waiting.put(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        self._count += 1
        if not self._count % _COLLECTED:
            gc.collect()

    def end(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        with os.fdopen(self._pipe, "wb", buffering=0) as out:
            while (message := self._waiting.get()) is not None:
                rest = memoryview(len(message).to_bytes(HEAD) + message)
                while rest:
                    try:
                        rest = rest[out.write(rest) :]
                    except OSError:
                        os._exit(0)  # nobody listens any more


def main() -> None:
    obey()
    gc.freeze()
    errand: Errand = pickle.load(sys.stdin.buffer)  # noqa: S301 — from who started us
    teller = _Teller()
    try:
        with open_rows(errand.path, errand.form, transcoded=errand.transcoded) as file:
            if errand.sort_to is not None:
                for step in sorted_here(file, errand):
                    teller.tell(step)
            else:
                cutter = Cutter(source_of(file, errand), case_sensitive=errand.case_sensitive)
                for ready in cutter.all(errand.start):
                    teller.tell(replace(ready, groups=None))
    except (BiaojieError, OSError):
        pass  # it is met again, and told, where the import goes on
    teller.end()


if __name__ == "__main__":
    main()
