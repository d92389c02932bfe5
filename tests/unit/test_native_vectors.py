"""The native codec against frames that another program made, and against the page that says how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from biaojie.errors import BiaojieError, InvalidRecord, InvalidRequest
from biaojie.wire.native import (
    Frame,
    Framing,
    Kind,
    answers,
    decode_request,
    encode_frame,
    encode_request,
    encode_resolve,
)
from biaojie.wire.native.answers import Resolution
from biaojie.wire.native.request_bodies import _DECODERS
from biaojie.wire.native.requests import Resolve

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests/vectors/native"
PAGE = (ROOT / "docs/protocol.md").read_text()


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


FRAMES = read("frames.jsonl")
MALFORMED = read("malformed.jsonl")
REQUESTS = [v for v in FRAMES if v["kind"] < 0x80]
ANSWERS = [v for v in FRAMES if "is" in v]


def why(vector: dict[str, Any]) -> str:
    return str(vector["why"])


def from_json(item: Any) -> Any:
    if isinstance(item, dict):
        if item.keys() == {"octets"}:
            return bytes.fromhex(item["octets"])
        return {name: from_json(value) for name, value in item.items()}
    return [from_json(value) for value in item] if isinstance(item, list) else item


@pytest.mark.parametrize("vector", FRAMES, ids=why)
def test_a_frame_is_found_however_it_arrives(vector: dict[str, Any]) -> None:
    octets = bytes.fromhex(vector["hex"])
    framing = Framing()
    frames = [frame for octet in octets for frame in framing.feed(bytes((octet,)))]
    assert frames == [Frame(vector["id"], vector["kind"], octets[9:])]
    assert frames == Framing().feed(octets)
    assert msgpack.unpackb(octets[9:]) == from_json(vector["body"])
    assert encode_frame(*frames[0]) == octets


@pytest.mark.parametrize("vector", REQUESTS, ids=why)
def test_a_request_is_read_and_written(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["hex"])[9:]
    request = decode_request(vector["kind"], body)
    kind, written = encode_request(request)
    assert kind == vector["kind"]
    if "later" not in vector:
        assert written == body
    else:
        assert decode_request(kind, written) == request


def test_every_request_has_a_vector() -> None:
    assert {v["kind"] for v in REQUESTS} == set(_DECODERS)
    assert {v["kind"] for v in FRAMES} == set(Kind)


def _resolution(found: Resolution) -> tuple[Any, int, int, str]:
    return found.record, found.age_s, found.ttl_s, found.source


def _listed(encode: Callable[..., bytes], one: Callable[..., bytes]) -> Callable[..., bytes]:
    return lambda items: encode([one(item) for item in items])


AGAIN: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    "welcome": (answers.decode_welcome, answers.encode_welcome),
    "resolution": (
        answers.decode_resolution,
        lambda found: answers.encode_resolution(*_resolution(found)),
    ),
    "resolutions": (
        answers.decode_resolutions,
        lambda items: answers.encode_resolutions(
            [item if isinstance(item, BiaojieError) else _resolution(item) for item in items]
        ),
    ),
    "written": (
        answers.decode_written,
        lambda got: answers.encode_written(got[0], replayed=got[1]),
    ),
    "written_many": (
        answers.decode_written_many,
        lambda got: answers.encode_written_many(got[0], replayed=got[1]),
    ),
    "records": (
        answers.decode_records,
        _listed(answers.encode_records, answers.encode_resolution_tail),
    ),
    "entries": (
        answers.decode_entries,
        _listed(answers.encode_entries, answers.encode_entry_packed),
    ),
    "list_end": (answers.decode_list_end, answers.encode_end),
    "follow_end": (answers.decode_follow_end, answers.encode_end),
    "findings": (answers.decode_findings, lambda got: answers.encode_findings(*got)),
    "prefixes": (answers.decode_prefixes, lambda got: answers.encode_prefixes(*got)),
    "one_prefix": (answers.decode_one_prefix, answers.encode_one_prefix),
    "written_prefix": (
        answers.decode_written_prefix,
        lambda got: answers.encode_written_prefix(got[0], replayed=got[1]),
    ),
    "keys": (answers.decode_keys, lambda got: answers.encode_keys(*got)),
    "issued": (answers.decode_issued, lambda got: answers.encode_issued(*got)),
    "revoked": (
        answers.decode_revoked,
        lambda got: answers.encode_revoked(got[0], replayed=got[1]),
    ),
    "changes": (answers.decode_changes, lambda got: answers.encode_changes(*got)),
    "error": (answers.decode_error, answers.encode_error),
}


@pytest.mark.parametrize("vector", ANSWERS, ids=why)
def test_an_answer_is_read_and_written(vector: dict[str, Any]) -> None:
    decode, encode = AGAIN[vector["is"]]
    body = bytes.fromhex(vector["hex"])[9:]
    found = decode(body)
    if "later" not in vector:
        assert encode(found) == body


def test_every_answer_has_a_vector() -> None:
    assert {v["is"] for v in ANSWERS} == AGAIN.keys()


@pytest.mark.parametrize("vector", MALFORMED, ids=why)
def test_what_is_no_request_is_refused_where_it_is_wrong(vector: dict[str, Any]) -> None:
    with pytest.raises((InvalidRequest, InvalidRecord)) as raised:
        decode_request(vector["kind"], bytes.fromhex(vector["hex"]))
    error = raised.value
    assert error.code == vector["code"]
    assert error.detail.zh != error.detail.en
    if "path" in vector:
        errors = error.fields.get("errors")
        assert vector["path"] == (errors[0]["path"] if errors else error.fields["path"])
    assert answers.decode_error(answers.encode_error(error)).fields == error.fields


def test_the_short_form_is_what_the_fast_encoder_writes() -> None:
    for identifier in ("88.118.8/SN1", "88.118.8/" + "泵" * 200, "a/" + "b" * 30):
        whole = encode_frame(7, *encode_request(Resolve(identifier)))
        assert encode_resolve(7, identifier) == whole


# The page -------------------------------------------------------------------------------


def example() -> list[tuple[str, Frame]]:
    lines = re.findall(r"^([CN]) ((?:[0-9a-f]+ ?)+)$", PAGE, re.MULTILINE)
    found = []
    for side, text in lines:
        octets = bytes.fromhex(text)
        (frame,) = Framing().feed(octets)
        assert text.split() == [
            octets[:4].hex(),
            octets[4:8].hex(),
            octets[8:9].hex(),
            octets[9:].hex(),
        ]
        found.append((side, frame))
    return found


def test_the_pages_example_is_what_it_says() -> None:
    frames = example()
    assert [side for side, _ in frames] == ["C", "N", "C", "C", "N", "N"]
    hello, welcome, first, second, found, missing = [frame for _, frame in frames]
    assert encode_request(decode_request(hello.kind, hello.body)) == (Kind.HELLO, hello.body)
    assert answers.decode_welcome(welcome.body).limits["frame_octets_max"] == 8 * 2**20
    assert encode_resolve(7, "88.118.8/SN1") == encode_frame(*first)
    assert encode_resolve(8, "88.118.8/SN2") == encode_frame(*second)
    resolution = answers.decode_resolution(found.body)
    assert (resolution.age_s, resolution.ttl_s, resolution.source) == (3, 86_397, "cache")
    assert resolution.record.values[0].text == "https://acme.example/SN1"
    assert answers.encode_resolution(*_resolution(resolution)) == found.body
    error = answers.decode_error(missing.body)
    assert (error.code, error.request_id) == ("identifier-not-found", "5f0c2a")


def test_the_page_names_every_kind() -> None:
    named = {int(n, 16) for n in re.findall(r"^\| (0x[0-9A-F]{2}) \|", PAGE, re.MULTILINE)}
    assert named == set(Kind)
