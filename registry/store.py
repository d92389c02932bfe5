"""What a store must be able to do. Reading is a narrower type than writing.

Every store passes the one contract suite. A store knows nothing of rights: it is told what
to write by the registrar, the only user of `transaction()`. Anything that keeps a store from
answering is raised as TemporarilyUnavailable or StorageFull, never as "not found".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from biaojie.account import ApiKey, Prefix
from biaojie.change import Entry
from biaojie.identifier import Key
from biaojie.record import Record

from .blocks import Block
from .census import Shift
from .matching import Match
from .ranges import HeldRange, RangeKey
from .runs import Piece
from .statistics import StatisticsStore

LOOK_UP_MAX = 4_096
"""Most keys that one `look_up` takes."""
BLOCKS_MAX = 256
"""Most blocks that one call gives."""
INDEXING_MAX = 1_000
"""Most prefixes that `list_indexing` gives."""


class Found(NamedTuple):
    """The answer for one key. `prefix` is None when the prefix is not homed here."""

    prefix: Prefix | None
    record: Record | None


class Ask(NamedTuple):
    """How much of each layer is read at once: rows, blocks."""

    rows: int = 1_000
    blocks: int = 64


class Listed(NamedTuple):
    """Neighbouring records, as they are kept; the folded suffix to go on after, None at the end;
    and how much to read then."""

    pieces: list[Piece]
    after: bytes | None
    ask: Ask


class FoundInBlock(Found):
    """The same, of a name whose record is in a block, with no row over it."""

    __slots__ = ()


class FoundInRange(Found):
    """The same, of a name that nothing has but a range: `record` is that member of it."""

    __slots__ = ()


class ReceiptKey(NamedTuple):
    """An Idempotency-Key belongs to the API key that sent it."""

    actor: str
    key: str


class Row(NamedTuple):
    """A row of the uppermost layer: a record of its own, or none (`record` is None, a marker):
    then there is no record of this name, though a block may have one beneath."""

    suffix: bytes
    record: Record | None
    sequence: int


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """The reply kept for an Idempotency-Key.

    `fingerprint` is the SHA-256 of the request, `reply` opaque to the store; it may be
    forgotten after `expires` (epoch seconds).
    """

    fingerprint: bytes
    reply: bytes
    expires: int


class ReadStore(Protocol):
    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        """One Found per key, in order; one round trip however many keys (at most 4,096)."""
        ...

    async def list_records(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        """Records of the folded prefix whose folded suffix is > `after`, in octet order.

        Tombstones included. Keyset paging: cost does not grow with the page number. Which layer
        keeps a record does not show.
        """
        ...

    async def list_rows(self, prefix: str, after: bytes | None, limit: int) -> list[Row]:
        """The rows of the folded prefix whose suffix is > `after`, in order."""
        ...

    async def list_blocks(self, prefix: str, after: bytes | None, limit: int) -> list[Block]:
        """The blocks (at most BLOCKS_MAX) of the folded prefix that begin > `after`, in order."""
        ...

    async def find_in_blocks(self, keys: Sequence[Key]) -> list[Record | None]:
        """What blocks have for these keys (at most 4,096), whether or not a row lies over it."""
        ...

    async def list_ranges(self, prefix: str, after: RangeKey | None, limit: int) -> list[HeldRange]:
        """Ranges of the folded prefix in order of shape and first run, from the first > `after`."""
        ...

    async def find_prefixes(self, names: Sequence[str]) -> dict[str, Prefix]:
        """Prefixes by folded name; names not homed are absent."""
        ...

    async def list_prefixes(
        self, after: str | None, limit: int, tenant: str | None = None
    ) -> list[Prefix]:
        """In order of folded name, from the first > `after`; of one tenant if given."""
        ...

    async def find_key(self, digest: bytes) -> ApiKey | None:
        """The key whose secret has this SHA-256, revoked ones included."""
        ...

    async def find_keys_by_id(self, ids: Sequence[str]) -> dict[str, ApiKey]:
        """Keys by id; unknown ids are absent."""
        ...

    async def list_keys(self, after: str | None, limit: int) -> list[ApiKey]:
        """In order of id, from the first > `after`."""
        ...

    async def list_changes(self, after: int, limit: int) -> list[Entry]:
        """Log entries with sequence > `after`, in order."""
        ...

    async def head(self) -> tuple[int, bytes]:
        """Sequence and hash of the newest entry; (0, 32 zero bytes) for an empty log."""
        ...

    async def find_matches(
        self, digest: bytes, *, private: bool, prefix: str | None, after: Key, limit: int
    ) -> list[Key]:
        """Keys > `after` that have an index row of this digest, in order; those of one prefix.

        Only public rows unless `private`. A row tells where to look, not what is there.
        """
        ...

    async def list_indexing(self) -> list[Prefix]:
        """Prefixes whose index is not complete, in order of folded name; at most 1,000."""
        ...

    async def newest_record_sequence(self) -> int:
        """The greatest sequence any record, block or prefix carries; 0 if there is none."""
        ...


class PieceStore(ReadStore, Protocol):
    async def list_pieces(self, prefix: str, after: bytes | None, ask: Ask) -> Listed:
        """What `list_records` lists as columns, as much as is read at once: it may be nothing,
        and yet not the end."""
        ...


class Loaded(NamedTuple):
    """What a commit begins with; see `head`, `look_up` and `find_receipts`."""

    head: tuple[int, bytes]
    found: list[Found]
    receipts: dict[ReceiptKey, StoredReceipt]


class Transaction(Protocol):
    """One atomic change. Nothing is visible to others before it ends; all of it then, or none.

    While it is open no other transaction of any process can be: what it reads stays true. What
    is put may be kept until the next read or the end, and its errors come then.
    """

    async def load(self, keys: Sequence[Key], receipts: Sequence[ReceiptKey], now: int) -> Loaded:
        """Head, keys (at most 4,096) and receipts, all in one round trip."""
        ...

    async def look_up(self, keys: Sequence[Key]) -> list[Found]: ...

    async def find_prefixes(self, names: Sequence[str]) -> dict[str, Prefix]: ...

    async def find_keys_by_id(self, ids: Sequence[str]) -> dict[str, ApiKey]: ...

    async def find_receipts(
        self, keys: Sequence[ReceiptKey], now: int
    ) -> dict[ReceiptKey, StoredReceipt]:
        """Receipts that have not expired."""
        ...

    async def head(self) -> tuple[int, bytes]: ...

    async def list_records(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        """As a ReadStore's, but without the members of ranges."""
        ...

    async def list_rows(self, prefix: str, after: bytes | None, limit: int) -> list[Row]: ...

    async def touched(self, prefix: str, spans: Sequence[tuple[bytes, bytes]]) -> list[int]:
        """Numbers of the spans (first and last folded suffix, in order, not overlapping) in which
        any layer has something, markers included, or may have."""
        ...

    async def look_up_marked(self, keys: Sequence[Key]) -> tuple[list[Found], set[Key]]:
        """As `look_up`, and which of the keys have a marker."""
        ...

    async def find_in_blocks(self, keys: Sequence[Key]) -> list[Record | None]: ...

    async def blocks_in(self, prefix: str, first: bytes, last: bytes) -> list[Block]:
        """The blocks that have a suffix from `first` to `last` between their ends, in order; at
        most BLOCKS_MAX, the first of them."""
        ...

    async def put_blocks(self, prefix: str, blocks: Sequence[Block]) -> None:
        """Insert new blocks, which may not overlap others. The prefix must exist."""
        ...

    async def remove_blocks(self, prefix: str, firsts: Iterable[bytes]) -> None:
        """Take out the blocks that begin so."""
        ...

    async def remove_rows(self, prefix: str, suffixes: Iterable[bytes]) -> None:
        """Take out rows and markers, so that what lies beneath shows."""
        ...

    async def put_prefixes(self, prefixes: Iterable[Prefix]) -> None:
        """Insert or replace by folded name. Comes before the records under a new prefix.

        One with `indexing` has its index made anew from the first record on.
        """
        ...

    async def put_records(self, records: Mapping[Key, Record]) -> None:
        """Insert or replace. The prefix must exist."""
        ...

    async def purge_records(self, keys: Iterable[Key], sequence: int) -> None:
        """No record has these names afterwards. Where a lower layer has one, a marker hides it,
        written by the entry `sequence`."""
        ...

    async def find_ranges(self, first: RangeKey, last: bytes, limit: int) -> list[HeldRange]:
        """Ranges of the prefix and shape of `first` with a run from its to `last`, in order."""
        ...

    async def range_shapes(self, prefix: str) -> list[bytes]:
        """The shapes of the folded prefix's ranges, in order."""
        ...

    async def list_row_names(
        self, prefix: str, first: bytes, last: bytes, octets: int, limit: int
    ) -> list[tuple[bytes, bool]]:
        """Folded suffixes of rows from `first` to `last` that have so many octets, in order, and
        whether the row is only a marker."""
        ...

    async def members_of_ranges(self, keys: Sequence[Key]) -> set[Key]:
        """Those of the keys (at most 4,096) that a range has, whatever lies over it."""
        ...

    async def change_ranges(
        self, gone: Iterable[RangeKey], put: Mapping[RangeKey, HeldRange]
    ) -> None:
        """Remove some, then insert or replace others. The prefix must exist."""
        ...

    async def change_rows(self, added: Iterable[Match], removed: Iterable[Match]) -> None:
        """Index rows, none of them in both; one that is there, or is not, already may be named."""
        ...

    async def indexed_to(self, prefix: str) -> bytes | None:
        """The folded suffix up to which a prefix is indexed, empty at the beginning.

        None when its index is complete, or there is no such prefix.
        """
        ...

    async def set_indexed_to(self, prefix: str, suffix: bytes | None) -> None: ...

    async def put_keys(self, keys: Mapping[bytes, ApiKey]) -> None:
        """Insert new keys by the SHA-256 of their secret."""
        ...

    async def revoke_keys(self, revoked: Mapping[str, int]) -> None:
        """Set `revoked` (epoch seconds) by key id."""
        ...

    async def put_receipts(self, receipts: Mapping[ReceiptKey, StoredReceipt]) -> None: ...

    async def forget_receipts(self, now: int, limit: int) -> None:
        """Remove up to `limit` expired receipts."""
        ...

    async def append(self, entry: Entry, shift: Shift | None = None) -> None:
        """Append to the change log; `entry.sequence` must be the head's plus one. `shift` is by
        how much it changes the census; None if that is not known."""
        ...


class Store(ReadStore, StatisticsStore, Protocol):
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commits durably when the block ends, rolls back if it raises."""
        ...

    async def settle_rules(self, case_sensitive: bool) -> None:
        """Fix how this registry compares suffixes, at its first use; the keys depend on it.

        Raises a clear error if it was fixed the other way.
        """
        ...

    def connections(self) -> dict[str, int]:
        """Numbers about the connection pool for metrics, e.g. {"open": 3, "used": 1}."""
        ...

    async def close(self) -> None: ...
