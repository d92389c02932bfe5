"""The seam between the client and a wire protocol.

A Transport carries one exchange per method: it knows addresses, connections, deadlines and
safe retries, and nothing of streams, pages or what callers may write. Every method ends
within its `timeout_s` and raises the classes of `errors`: the node's own error, or
Unreachable, DeadlineExceeded, MalformedAnswer when there was no answer to be had.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .account import ApiKey, Prefix, PrefixStatus, Role
from .calls import IssuedKey, Mint, Mode, Operation, Page, Resolved
from .change import BatchResult, Entry, Receipt
from .errors import BiaojieError, InvalidRequest
from .identifier import Identifier
from .range import Range
from .record import Record, Status, Value
from .retry import Backoff

if TYPE_CHECKING:
    from .handle_options import HandleOptions, Login
    from .keys import PrivateKey

# The library is silent unless the program that uses it asks for its log.
logging.getLogger("biaojie").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Options:
    """What every transport can be told.

    `connections_max` bounds the open connections, `connect_timeout_s` the making of one,
    `idle_s` how long an unused one is kept (less than the 75 s after which a node hangs up),
    `reply_octets_max` what is read of one reply. `tls` replaces the system's trust store.
    `key` is for HTTP and the native protocol; `login` and `handle` are for the Handle protocol.
    """

    key: str | None = field(default=None, repr=False)
    connections_max: int = 64
    connect_timeout_s: float = 5.0
    idle_s: float = 30.0
    reply_octets_max: int = 64 * 1_048_576
    backoff: Backoff = field(default_factory=Backoff)
    tls: ssl.SSLContext | None = None
    login: Login | None = field(default=None, repr=False)
    handle: HandleOptions | None = None


class Transport(Protocol):
    """`key` is the idempotency key of a write: repeated with it, a write happens once."""

    @property
    def address(self) -> str:
        """Where the node is, for people to read; without secrets."""
        ...

    async def resolve(
        self,
        identifier: Identifier,
        *,
        index: Sequence[int],
        types: Sequence[str],
        authoritative: bool,
        timeout_s: float,
    ) -> Resolved: ...

    async def resolve_batch(
        self, identifiers: Sequence[Identifier], *, timeout_s: float
    ) -> list[Resolved | BiaojieError]:
        """One answer per identifier, in order; at most `limits.RESOLVE_MANY_MAX`."""
        ...

    async def write(self, operation: Operation, *, key: str, timeout_s: float) -> Receipt: ...

    async def mint(self, mint: Mint, *, key: str, timeout_s: float) -> Receipt: ...

    async def write_batch(
        self,
        operations: Sequence[Operation],
        *,
        mode: Mode,
        dry_run: bool,
        key: str,
        timeout_s: float,
    ) -> BatchResult:
        """One result per operation, in order; at most `limits.BATCH_ROWS_MAX`."""
        ...

    async def list_records(
        self, prefix: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Record]: ...

    async def search(
        self,
        values: Sequence[tuple[str, str]],
        *,
        prefix: str | None,
        after: str | None,
        limit: int,
        timeout_s: float,
    ) -> Page[Identifier]:
        """Identifiers that have all of the values (type, data), at most SEARCH_VALUES_MAX."""
        ...

    async def list_prefixes(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Prefix]: ...

    async def find_prefix(self, name: str, *, timeout_s: float) -> Prefix: ...

    async def home_prefix(
        self,
        name: str,
        tenant: str,
        *,
        searchable: Sequence[str],
        status: PrefixStatus,
        admin: str,
        key: str,
        timeout_s: float,
    ) -> Prefix: ...

    async def change_prefix(
        self,
        name: str,
        *,
        tenant: str | None,
        status: PrefixStatus | None,
        searchable: Sequence[str] | None,
        key: str,
        timeout_s: float,
    ) -> Prefix: ...

    async def list_keys(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[ApiKey]: ...

    async def issue_key(
        self, role: Role, tenant: str, label: str, *, timeout_s: float
    ) -> IssuedKey:
        """Never retried: a repeated call would issue a second key."""
        ...

    async def revoke_key(self, id_: str, *, key: str, timeout_s: float) -> ApiKey: ...

    async def list_changes(
        self, after: int, *, limit: int, wait_s: float, timeout_s: float
    ) -> tuple[tuple[Entry, ...], int]:
        """Entries after that sequence, and the sequence to pass next (never less).

        With none to give the node waits `wait_s` for one. The whole takes at most
        `wait_s + timeout_s`.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Streaming(Protocol):
    """What a Transport may offer besides: pages that come without being asked for one by one."""

    def stream_records(
        self, prefix: str, *, page_rows: int, timeout_s: float
    ) -> AsyncGenerator[Sequence[Record], None]:
        """All records under a prefix, in order and each once; `timeout_s` is for each page."""
        ...

    def stream_changes(
        self, after: int, *, page_rows: int, wait_s: float, timeout_s: float
    ) -> AsyncGenerator[tuple[tuple[Entry, ...], int], None]:
        """What `list_changes` gives, over and over and for ever; any fault ends it."""
        ...


@runtime_checkable
class Ranged(Protocol):
    """What a Transport may offer besides: ranges of identifiers. `pattern` is text in any form;
    the node judges it."""

    @property
    def address(self) -> str: ...

    async def register_range(
        self,
        prefix: str,
        pattern: str,
        values: Sequence[Value],
        *,
        status: Status | None,
        template: str | None,
        key: str,
        timeout_s: float,
    ) -> Receipt: ...

    async def cut_range(
        self, prefix: str, pattern: str, *, purge: bool, key: str, timeout_s: float
    ) -> Receipt: ...

    async def find_range(self, prefix: str, pattern: str, *, timeout_s: float) -> Range: ...

    async def list_ranges(
        self, prefix: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Range]: ...


def login_of(
    identity: str | None, secret: str | bytes | None, private_key: PrivateKey | bytes | None
) -> Login | None:
    """Who logs in over the Handle protocol; None where nobody does. Raises InvalidRequest or
    InvalidKey. (Not imported at the top: most callers speak HTTP.)"""
    if identity is None and secret is None and private_key is None:
        return None
    from . import handle_options

    return handle_options.login_of(identity, secret, private_key)


SCHEMES = ("http", "https", "hdl", "biaojie", "biaojie+unix")
"""What `open_transport` can speak."""


def open_transport(url: str, options: Options) -> Transport:
    """The transport for an address; raises InvalidRequest for one that none can speak.

    Nothing is connected yet, and no event loop is needed.
    """
    scheme, colon, _ = url.partition("://")
    scheme = scheme.lower() if colon else ""
    if scheme == "hdl":
        from .handle_transport import HandleTransport

        return HandleTransport(url, options)
    if scheme in SCHEMES:
        if options.login is not None or options.handle is not None:
            raise InvalidRequest(
                "identity, secret, private_key and handle are for hdl:// addresses; over "
                f"{scheme}:// give a key.",
                "identity、secret、private_key 与 handle 用于 hdl:// 地址；"
                f"{scheme}:// 请使用 key。",
            )
        if scheme.startswith("biaojie"):
            from .native_transport import NativeTransport

            return NativeTransport(url, options)
        from .http_transport import HttpTransport

        return HttpTransport(url, options)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    shown = f"{scheme}://" if scheme else "nothing"
    raise InvalidRequest(
        f"A node's address begins with {known}; this one begins with {shown}.",
        f"节点地址应以 {known} 开头，而不是 {scheme + '://' if scheme else '空'}。",
        scheme=scheme,
    )
