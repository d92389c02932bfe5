"""Values the contract tests write."""

from __future__ import annotations

from dataclasses import replace

from biaojie.account import Prefix
from biaojie.change import Action, Change, Entry
from biaojie.identifier import Identifier, Key
from biaojie.record import Permissions, Record, Reference, Status, Value
from registry.changelog import next_entry, record_digest
from registry.store import Store, Transaction

PREFIX = "88.118.8"


def record(suffix: str = "SN1", prefix: str = PREFIX, **fields: object) -> Record:
    """An active record with one value."""
    plain = Record(
        Identifier(prefix, suffix),
        (Value(1, "URL", b"https://example.com/" + suffix.encode(), timestamp=1_700_000_000),),
        created=1_700_000_000,
        modified=1_700_000_000,
        sequence=1,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def keyed(*records: Record) -> dict[Key, Record]:
    return {item.identifier.key(): item for item in records}


def odd_record(suffix: str = "odd/标识 ñ") -> Record:
    """Every field away from its default."""
    return Record(
        Identifier("88.118.8", suffix),
        (
            Value(
                1,
                "HS_SECKEY",
                bytes(range(256)),
                ttl=0,
                timestamp=0,
                permissions=Permissions.ADMIN_READ,
            ),
            Value(2, "类型 with space", b"", ttl=2**31 - 1, ttl_absolute=True, timestamp=2**40),
            Value(
                2**31 - 1,
                "REF",
                "数据".encode(),
                permissions=Permissions(0),
                references=(Reference("88.118.8/x", 0), Reference("hdl:86.1/é", 2**31 - 1)),
            ),
        ),
        Status.FROZEN,
        "88.118.8/模板",
        2**31 - 1,
        2**35,
        5,
        2**40,
    )


async def home(store: Store, *names: str, tenant: str = "acme") -> None:
    async with store.transaction() as transaction:
        await transaction.put_prefixes([Prefix(n, tenant, created=7) for n in names or (PREFIX,)])


async def put(store: Store, *records: Record) -> None:
    async with store.transaction() as transaction:
        await transaction.put_records(keyed(*records))


def entry_for(head: tuple[int, bytes], *records: Record, actor: str = "actor") -> Entry:
    return next_entry(
        head,
        1_700_000_000_123,
        [
            Change(Action.PUT, str(r.identifier), r.version, actor, record_digest(r))
            for r in records
        ],
    )


async def append(transaction: Transaction, *records: Record) -> Entry:
    """Write records and their log entry, as the registrar does."""
    entry = entry_for(await transaction.head(), *records)
    written = [replace(r, sequence=entry.sequence) for r in records]
    await transaction.put_records(keyed(*written))
    await transaction.append(entry)
    return entry
