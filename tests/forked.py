"""Processes forked from one that has everything imported, for tests that start very many.

A process made so is like any other: it has its own id, dies by SIGKILL and has an exit code; only
the second that Python takes to import a program is spent once.
"""

from __future__ import annotations

import multiprocessing

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "resolver.__main__",
        "resolver.node",
        "resolver.commands",
        "registry.sql",
        "registry.sql.transfer",
        "uvloop",
    ]
)
