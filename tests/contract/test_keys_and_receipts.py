"""API keys and idempotency receipts."""

from __future__ import annotations

from biaojie.account import ApiKey, Role
from registry.store import ReceiptKey, Store, StoredReceipt

KEYS = {
    b"1" * 32: ApiKey("b1", "acme", Role.ADMIN, "第一把", 2**33, digest=b"1" * 32),
    b"2" * 32: ApiKey("B2", "acme", Role.REGISTRAR, digest=b"2" * 32),
    b"3" * 32: ApiKey("a3", "other", Role.READER, "label", 1, 9, b"3" * 32),
}


async def test_keys_are_found_by_digest_and_id_and_listed_in_order(store: Store) -> None:
    async with store.transaction() as transaction:
        await transaction.put_keys(KEYS)
        await transaction.put_keys({})
    for digest, key in KEYS.items():
        assert await store.find_key(digest) == key
    assert await store.find_key(bytes(32)) is None
    assert [k.id for k in await store.list_keys(None, 10)] == ["B2", "a3", "b1"]
    assert [k.id for k in await store.list_keys("B2", 1)] == ["a3"]
    assert await store.find_keys_by_id(["a3", "A3", "none"]) == {"a3": KEYS[b"3" * 32]}
    assert await store.find_keys_by_id([]) == {}


async def test_a_revoked_key_is_still_found_with_its_time(store: Store, peer: Store) -> None:
    async with store.transaction() as transaction:
        await transaction.put_keys(KEYS)
    async with store.transaction() as transaction:
        await transaction.revoke_keys({"b1": 123, "none": 4})
        await transaction.revoke_keys({})
    found = await peer.find_key(b"1" * 32)
    assert found is not None
    assert found.revoked == 123
    assert await peer.find_key(b"2" * 32) == KEYS[b"2" * 32]


async def find(store: Store, *keys: ReceiptKey, now: int) -> dict[ReceiptKey, StoredReceipt]:
    async with store.transaction() as transaction:
        return await transaction.find_receipts(keys, now)


async def test_receipts_belong_to_actor_and_key_and_expire(store: Store) -> None:
    a, b, c = ReceiptKey("a", "1"), ReceiptKey("b", "1"), ReceiptKey("a", "2")
    kept = {
        a: StoredReceipt(bytes(32), b"\x00reply", 100),
        c: StoredReceipt(b"f" * 32, b"", 2**33),
    }
    async with store.transaction() as transaction:
        await transaction.put_receipts(kept)
        await transaction.put_receipts({})
    assert await find(store, a, b, c, now=100) == kept
    assert await find(store, a, b, c, now=101) == {c: kept[c]}
    assert await find(store, now=0) == {}
    async with store.transaction() as transaction:
        await transaction.put_receipts({a: StoredReceipt(b"g" * 32, b"again", 300)})
    assert (await find(store, a, now=200))[a].reply == b"again"


async def test_forgetting_takes_expired_receipts_up_to_a_limit(store: Store) -> None:
    keys = [ReceiptKey("a", str(n)) for n in range(10)]
    async with store.transaction() as transaction:
        await transaction.put_receipts(
            {key: StoredReceipt(bytes(32), b"", n) for n, key in enumerate(keys)}
        )
        await transaction.forget_receipts(8, 3)
    assert len(await find(store, *keys, now=0)) == 7
    async with store.transaction() as transaction:
        await transaction.forget_receipts(8, 100)
    assert await find(store, *keys, now=0) == {
        keys[n]: StoredReceipt(bytes(32), b"", n) for n in (8, 9)
    }


async def test_many_receipts_at_once(store: Store) -> None:
    keys = [ReceiptKey("a", f"key-{n}") for n in range(2000)]
    async with store.transaction() as transaction:
        await transaction.put_receipts({k: StoredReceipt(bytes(32), b"r", 10) for k in keys})
    assert len(await find(store, *keys, ReceiptKey("a", "none"), now=0)) == 2000
