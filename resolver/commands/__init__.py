"""The commands that talk to a node as anyone else does: through the client library.

Thin: each turns arguments into one call and its result into text. What is slow to import is
imported when a command needs it, so that the small ones stay quick.
"""

from __future__ import annotations

import typer


def client_commands(app: typer.Typer) -> None:
    """Attach every command of this package to `app`."""
    from . import access, bulk, records

    for module in (records, bulk, access):
        module.attach(app)
