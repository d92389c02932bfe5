"""The stored form of records: every record comes back whole, common ones are small."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biaojie.identifier import Identifier, Key
from biaojie.record import Permissions, Record, Reference, Status, Value
from registry.sql.blob import decode_blob, encode_blob
from tests.contract.sample import odd_record, record

numbers = st.integers(-(2**63), 2**63 - 1)
seconds = st.integers(0, 2**40)
texts = st.text(max_size=20)
identifiers = st.builds(
    Identifier,
    st.sampled_from(["88.118.8", "Cn.acme_1", "ABC"]),
    st.text(st.characters().filter(str.isprintable), min_size=1, max_size=30).filter(
        lambda text: text.strip(" ") == text
    ),
)
values = st.builds(
    Value,
    index=st.integers(1, 2**31 - 1),
    type=texts,
    data=st.binary(max_size=40),
    ttl=st.one_of(st.just(86_400), numbers),
    ttl_absolute=st.booleans(),
    timestamp=st.one_of(st.just(0), numbers),
    permissions=st.integers(0, 15).map(Permissions),
    references=st.lists(st.builds(Reference, texts, numbers), max_size=2).map(tuple),
)
records = st.builds(
    Record,
    identifiers,
    st.lists(values, max_size=4).map(tuple),
    st.sampled_from(Status),
    st.one_of(st.none(), texts),
    numbers,
    seconds,
    seconds,
    numbers,
)


def decoded(blob: bytes, key: Key, item: Record) -> Record:
    return decode_blob(blob, key, item.status, item.version, item.sequence, item.template)


@given(records, st.booleans())
def test_every_record_comes_back_whole(item: Record, case_sensitive: bool) -> None:
    key = item.identifier.key(case_sensitive=case_sensitive)
    back = decoded(encode_blob(item, key), key, item)
    assert back == item
    assert [type(v.permissions) for v in back.values] == [Permissions] * len(item.values)


@given(records, st.data())
def test_a_damaged_blob_is_never_half_a_record(item: Record, data: st.DataObject) -> None:
    key = item.identifier.key()
    blob = encode_blob(item, key)
    cut = blob[: data.draw(st.integers(0, len(blob) - 1))]
    with pytest.raises((ValueError, TypeError)):
        decoded(cut, key, item)


def test_fields_at_their_defaults_take_no_room() -> None:
    plain = record("SN1")
    key = plain.identifier.key()
    data = sum(len(v.type) + len(v.data) for v in plain.values)
    assert len(encode_blob(plain, key)) <= data + 16
    spelled = replace(plain, identifier=Identifier("88.118.8", "sn1"))
    assert len(encode_blob(spelled, key)) == len(encode_blob(plain, key)) + len("sn1") + 3


def test_the_encoding_is_permanent() -> None:
    """Golden bytes, because registries on disk hold them."""
    plain = record("sn1")
    assert encode_blob(plain, plain.identifier.key()).hex() == (
        "94ce6553f10000919301a355524cc41768747470733a2f2f6578616d706c652e636f6d2f736e318101a3736e31"
    )
    odd = odd_record("odd")
    digest = hashlib.sha256(encode_blob(odd, odd.identifier.key())).hexdigest()
    assert digest == "d56f0e3733d8c55631b9b85d6e3594e61d85b687489677321d89010aa552d542"
