"""What the native front listens on: a TCP port on each address, and a Unix socket if one is named.

The socket's file stays when the node stops; the next one takes it over if nobody listens there.
"""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..listening import BACKLOG, CannotListen, bind

SETTINGS: Final = ("NATIVE_PORT", "NATIVE_HOST", "NATIVE_ENABLED=false")
_CONNECT_S: Final = 1.0


def bind_tcp(host: str, port: int, *, fallback: str = "") -> list[socket.socket]:
    """Sockets that listen; see `front.listening.bind`. Raises CannotListen."""
    try:
        return bind(host, port, fallback=fallback, kinds=(socket.SOCK_STREAM,))[0]
    except CannotListen as error:
        raise CannotListen(error, error.address, error.port, "native", SETTINGS) from None


def bind_unix(path: Path) -> socket.socket:
    """Raises CannotListen, also where somebody else listens there. Who may connect is up to the
    folder that `path` is in."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
                path.unlink()
        made.bind(str(path))
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise CannotListen(
            error, str(path), 0, "native", ("NATIVE_SOCKET", "NATIVE_ENABLED=false")
        ) from None
    except BaseException:
        made.close()
        raise
    return made


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_CONNECT_S)
        try:
            asking.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
