"""The commands that talk to a node as anyone else does: through the client library.

Thin: each turns arguments into one call and its result into text. What is slow to import is
imported when a command needs it, so that the small ones stay quick.
"""

from __future__ import annotations

import inspect

import typer


def client_commands(app: typer.Typer) -> None:
    """Attach every command of this package to `app`."""
    from . import access, bulk, handle_key, ranges, records

    for module in (records, ranges, bulk, access, handle_key):
        module.attach(app)
    for group in (app, *(group.typer_instance for group in app.registered_groups)):
        for command in group.registered_commands if group else ():
            if command.help is None and command.callback is not None:
                command.help = _flowing(inspect.getdoc(command.callback) or "")


def _flowing(text: str) -> str:
    """Paragraphs without line breaks of their own: the terminal is as wide as it is."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in text.split("\n\n"))
