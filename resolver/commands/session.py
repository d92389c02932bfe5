"""Running a command: the client it uses, its errors as text, its exit code.

Exit codes: 0 done or found; 1 refused, not found or retired; 2 wrong usage or a malformed
identifier, record or file; 3 the node cannot answer just now or cannot be reached; 130 stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from biaojie.errors import (
    BiaojieError,
    InvalidFile,
    InvalidIdentifier,
    InvalidRecord,
    InvalidRequest,
    MalformedAnswer,
)

from .options import KEY_FILE_DEFAULT
from .wording import error_text, say

if TYPE_CHECKING:
    from biaojie.client import Client

_USAGE = (InvalidFile, InvalidIdentifier, InvalidRecord, InvalidRequest)


def connect(
    url: str,
    key: str | None,
    key_file: Path | None,
    timeout_s: float,
    *,
    public: bool = False,
    retries: int = 3,
) -> Client:
    """A client with the key given, or that in the key file, or (unless `public`) that in the
    node's own `data/admin.key` if this directory has one we may read."""
    from biaojie.client import Client

    if not key and key_file is not None:
        try:
            key = key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise InvalidRequest(
                f"The key file {key_file} cannot be read: {error}.",
                f"无法读取密钥文件 {key_file}：{error}。",
            ) from None
    elif not key and not public:
        try:
            key = KEY_FILE_DEFAULT.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError):
            key = None
    return Client(url, key or None, timeout_s, retries=retries)


def run(
    work: Callable[[], Coroutine[Any, Any, int | None]],
    *,
    as_json: bool = False,
    go_on: str = "",
) -> None:
    """Run a command to its end and leave with its exit code; no error becomes a traceback.

    `go_on` is what to do after an interruption or a passing fault.
    """
    import asyncio

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = asyncio.run(work()) or 0
        sys.stdout.flush()
    except BiaojieError as error:
        typer.echo(error_text(error, as_json=as_json), err=True)
        if go_on and error.retryable:
            typer.echo(f"  {go_on}", err=True)
        code = exit_code(error)
    except KeyboardInterrupt:
        typer.echo(f"\n{say('Stopped.', '已停止。')} {go_on}".rstrip(), err=True)
        code = 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"biaojie: {where}{error.strerror or error}", err=True)
        code = 1
    raise typer.Exit(code)


def exit_code(error: BiaojieError) -> int:
    if isinstance(error, _USAGE):
        return 2
    return 3 if error.retryable or isinstance(error, MalformedAnswer) else 1
