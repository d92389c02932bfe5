"""Round trips of the Handle codec: every body, every typed value, whole messages, any pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biaojie.record import PERMISSIONS_DEFAULT, Permissions, Reference, Value
from biaojie.wire import handle as h
from biaojie.wire.handle.codes import KeyExchange
from biaojie.wire.handle.markup import Element
from tests.handle_meaning import meaning, thing

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
texts = st.text(max_size=30)
octets = st.binary(max_size=60)
references = st.builds(Reference, texts, u32)
lists = st.lists(references, max_size=4).map(tuple)
values = st.builds(
    Value,
    u32,
    texts,
    octets,
    u32,
    st.booleans(),
    u32,
    st.integers(0, 15).map(Permissions),
    lists,
)
value_lists = st.lists(values, max_size=4).map(tuple)
indexes = st.lists(u32, max_size=5).map(tuple)
names = st.lists(texts, max_size=5).map(tuple)
digests = st.one_of(
    st.builds(h.Digest.of, octets, st.sampled_from(h.DigestAlgorithm)),
    st.binary(min_size=20, max_size=20).map(lambda sha1: h.Digest(0, sha1)),
    st.binary(min_size=32, max_size=32).map(lambda sha256: h.Digest(0, sha256)),
)
versions = st.one_of(st.builds(h.Version, st.just(2), st.integers(1, 11)), st.just(h.Version(3, 0)))
interfaces = st.builds(h.Interface, u8, u8, u32)
servers = st.builds(
    h.Server,
    u32,
    st.binary(min_size=16, max_size=16),
    octets,
    st.lists(interfaces, max_size=4).map(tuple),
)
sites = st.builds(
    h.Site,
    st.lists(servers, max_size=3).map(tuple),
    u16,
    st.builds(h.Version, u8, u8),
    u8,
    u8,
    octets,
    st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    u16,
)
tokens = st.none() | octets
REQUESTS: dict[int, st.SearchStrategy[Any]] = {
    h.OpCode.RESOLUTION: st.builds(h.ResolveRequest, texts, indexes, names, tokens),
    h.OpCode.GET_SITE_INFO: st.builds(h.HandleRequest, texts),
    h.OpCode.CREATE_HANDLE: st.builds(h.ValuesRequest, texts, value_lists),
    h.OpCode.DELETE_HANDLE: st.builds(h.HandleRequest, texts),
    h.OpCode.ADD_VALUE: st.builds(h.ValuesRequest, texts, value_lists),
    h.OpCode.REMOVE_VALUE: st.builds(h.RemoveRequest, texts, indexes),
    h.OpCode.MODIFY_VALUE: st.builds(h.ValuesRequest, texts, value_lists),
    h.OpCode.LIST_HANDLES: st.builds(h.HandleRequest, texts),
    h.OpCode.LIST_DERIVED_PREFIXES: st.builds(h.HandleRequest, texts),
    h.OpCode.CHALLENGE_RESPONSE: st.builds(h.AnswerRequest, texts, references, octets),
    h.OpCode.VERIFY_RESPONSE: st.builds(h.VerifyRequest, references, octets, digests, octets),
    h.OpCode.HOME_PREFIX: st.builds(h.HandleRequest, texts),
    h.OpCode.UNHOME_PREFIX: st.builds(h.HandleRequest, texts),
    h.OpCode.LIST_HOMED_PREFIXES: st.builds(h.HandleRequest, texts),
    h.OpCode.SESSION_SETUP: st.one_of(
        st.builds(
            h.SessionRequest,
            st.sampled_from([KeyExchange.CLIENT_KEY, KeyExchange.DIFFIE_HELLMAN]),
            u32,
            references,
            octets,
            trailing=octets,
        ),
        st.builds(
            h.SessionRequest,
            st.just(KeyExchange.HANDLE_KEY),
            u32,
            references,
            key=references,
            trailing=octets,
        ),
        st.builds(h.SessionRequest, st.integers(5, 0xFFFF), u32, references, trailing=octets),
    ),
    h.OpCode.SESSION_TERMINATE: st.builds(h.HandleRequest, texts),
    h.OpCode.SESSION_EXCHANGE_KEY: st.builds(h.KeyRequest, octets),
    h.OpCode.GET_NEXT_TRANSACTION: st.builds(h.HandleRequest, texts),
    h.OpCode.RETRIEVE_TRANSACTIONS: st.builds(h.Opaque, octets),
    h.OpCode.DUMP_HANDLES: st.builds(h.Opaque, octets),
    h.OpCode.BACKUP_SERVER: st.builds(h.HandleRequest, texts),
    h.OpCode.LOGIN: st.builds(h.LoginRequest, references),
}
done = st.builds(h.Done, octets)
handle_lists = st.builds(h.ListResponse, names)
SUCCESSES: dict[int, st.SearchStrategy[Any]] = {
    h.OpCode.RESOLUTION: st.builds(h.ResolveResponse, texts, value_lists),
    h.OpCode.GET_SITE_INFO: st.builds(h.SiteResponse, sites),
    h.OpCode.CREATE_HANDLE: st.builds(h.CreateResponse, st.none() | texts),
    h.OpCode.DELETE_HANDLE: done,
    h.OpCode.ADD_VALUE: done,
    h.OpCode.REMOVE_VALUE: done,
    h.OpCode.MODIFY_VALUE: done,
    h.OpCode.LIST_HANDLES: handle_lists,
    h.OpCode.LIST_DERIVED_PREFIXES: handle_lists,
    h.OpCode.CHALLENGE_RESPONSE: st.builds(h.Opaque, octets),
    h.OpCode.VERIFY_RESPONSE: st.builds(h.VerifyResponse, st.booleans()),
    h.OpCode.HOME_PREFIX: done,
    h.OpCode.UNHOME_PREFIX: done,
    h.OpCode.LIST_HOMED_PREFIXES: handle_lists,
    h.OpCode.SESSION_SETUP: st.builds(h.SessionResponse, u16, octets, octets),
    h.OpCode.SESSION_TERMINATE: done,
    h.OpCode.SESSION_EXCHANGE_KEY: done,
    h.OpCode.GET_NEXT_TRANSACTION: st.builds(h.TransactionResponse, st.integers(0, 2**64 - 1)),
    h.OpCode.RETRIEVE_TRANSACTIONS: st.builds(h.Opaque, octets),
    h.OpCode.DUMP_HANDLES: st.builds(h.Opaque, octets),
    h.OpCode.BACKUP_SERVER: done,
    h.OpCode.LOGIN: done,
}
credentials = st.none() | st.builds(
    h.Credential,
    texts.filter(lambda text: len(text.encode()) <= 64),
    st.just("SHA-256"),
    octets,
    u32,
)
credentials = credentials | st.builds(
    h.Credential, st.just("HS_MAC"), st.just("\x02"), octets, u32, texts
)


def _message(draw: st.DrawFn, opcode: int, body: Any, response_code: int) -> h.Message:
    response = response_code != h.ResponseCode.REQUEST
    digest = draw(st.none() | digests) if response else None
    flags = draw(u32) & ~h.OpFlag.REQUEST_DIGEST
    return h.Message(
        opcode,
        body,
        response_code,
        flags | (h.OpFlag.REQUEST_DIGEST if digest else 0),
        draw(u32),
        draw(u32),
        draw(versions),
        draw(versions),
        draw(u16),
        draw(u8),
        draw(u32),
        digest,
        draw(credentials),
    )


@st.composite
def requests(draw: st.DrawFn) -> h.Message:
    opcode = draw(st.sampled_from(h.OpCode))
    return _message(draw, opcode, draw(REQUESTS[opcode]), 0)


@st.composite
def responses(draw: st.DrawFn) -> h.Message:
    opcode = draw(st.sampled_from(h.OpCode))
    if draw(st.booleans()):
        return _message(draw, opcode, draw(SUCCESSES[opcode]), 1)
    code = draw(st.sampled_from([code for code in h.ResponseCode if code > 1]))
    if code in {302, 303}:
        body = draw(st.builds(h.Referral, texts, st.none() | value_lists))
    elif code == 402:
        body = draw(st.builds(h.Challenge, octets))
    else:
        body = draw(st.builds(h.Failure, texts, indexes))
    return _message(draw, opcode, body, code)


def _before_2_5(message: h.Message) -> bool:
    return not message.version.reaches((2, 5)) and message.response_code in {7, 202, 303}


@given(st.one_of(requests(), responses()))
@settings(max_examples=1_000)
def test_messages(message: h.Message) -> None:
    frame = h.encode_message(message)
    if _before_2_5(message):  # three codes are not told apart there
        h.encode_message(replace(message, version=h.Version(2, 5)))
        return
    back = h.decode_message(frame)
    assert back == message
    assert h.encode_message(back) == frame
    assert thing(meaning(message)) == message
    assert back.header_and_body() == message.header_and_body()


@given(st.one_of(requests(), responses()), st.binary(min_size=1, max_size=40), u32)
@settings(max_examples=300)
def test_macs(message: h.Message, key: bytes, counter: int) -> None:
    if _before_2_5(message):
        return
    signed = h.with_mac(message, key, counter)
    came = h.decode_message(h.encode_message(signed))
    assert h.mac_matches(came, key)
    assert h.mac_matches(signed, key)
    assert not h.mac_matches(replace(came, expiration=came.expiration ^ 1, received=b""), key)


@given(st.lists(st.one_of(requests(), responses()), max_size=5), st.lists(st.integers(1, 200)))
@settings(max_examples=200)
def test_streams(messages: list[h.Message], cuts: list[int]) -> None:
    frames = [h.encode_message(message) for message in messages]
    stream = b"".join(frames)
    framing = h.StreamFraming()
    got: list[bytes] = []
    for cut in cuts:
        got += framing.feed(stream[:cut])
        stream = stream[cut:]
    got += framing.feed(stream)
    assert got == frames


@given(st.integers(24, 20_000), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_fragments(size: int, chance: Any) -> None:
    envelope = h.Envelope(h.Version(2, 11), h.Version(2, 11), 1, 2, 0, size)
    frame = envelope.encode() + chance.randbytes(size)
    packets = h.split(frame)
    chance.shuffle(packets)
    reassembly = h.Reassembly()
    got = [reassembly.take("a", packet, 0.0) for packet in packets]
    assert got == [None] * (len(packets) - 1) + [frame]


envelopes = st.builds(
    h.Envelope,
    versions,
    versions,
    u32,
    u32,
    u32,
    st.integers(0, h.MESSAGE_OCTETS_MAX),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(envelopes, octets)
def test_envelopes(envelope: h.Envelope, after: bytes) -> None:
    assert h.decode_envelope(envelope.encode() + after) == envelope


@given(values)
def test_values(value: Value) -> None:
    assert h.decode_value(h.encode_value(value)) == value


@given(st.builds(h.Admin, u16, references, st.booleans()))
def test_admins(admin: h.Admin) -> None:
    assert h.decode_admin(admin.encode()) == admin


@given(st.integers(0, h.RIGHTS_ALL))
def test_rights(rights: int) -> None:
    assert h.parse_rights(h.format_rights(rights)) == rights
    admin = h.Admin(rights, Reference("a/b", 1))
    assert sum(right for right in h.AdminRight if admin.may(right)) == rights


@given(lists)
def test_value_lists(members: tuple[Reference, ...]) -> None:
    assert h.decode_value_list(h.encode_value_list(members)) == members


@given(sites)
def test_sites(site: h.Site) -> None:
    assert h.decode_site(site.encode()) == site


integers = st.integers(0, 2**2048)
keys = st.one_of(
    st.builds(h.RsaKey, st.integers(0, 2**64), integers),
    st.builds(h.DsaKey, integers, integers, integers, integers),
    st.builds(h.DhKey, integers, integers, integers),
    st.builds(h.Sm2Key, octets),
    st.builds(h.Sm9Key, texts),
    octets.map(lambda rest: h.PemKey(b"-----BEGIN" + rest)),
)


@given(keys)
def test_public_keys(key: h.PublicKey) -> None:
    assert h.decode_public_key(h.encode_public_key(key)) == key


@given(u32, octets)
def test_session_keys(cipher: int, key: bytes) -> None:
    session_key = h.SessionKey(cipher, key)
    assert h.decode_session_key(session_key.encode()) == session_key


@given(texts, octets)
def test_public_key_answers(algorithm: str, signature: bytes) -> None:
    answer = h.PublicKeyAnswer(algorithm[:10], signature)
    assert h.decode_public_key_answer(answer.encode()) == answer


@pytest.mark.parametrize("form", [form for form in h.AnswerForm if form != h.AnswerForm.PBKDF2])
@given(secret=octets, other=octets, nonce=octets, digest=octets)
@settings(max_examples=50)
def test_secret_answers(
    form: h.AnswerForm, secret: bytes, other: bytes, nonce: bytes, digest: bytes
) -> None:
    answer = h.secret_answer(form, secret, nonce, digest)
    forms = frozenset({form})
    assert h.secret_answer_matches(answer, secret, nonce, digest, forms)
    # HMAC pads its key with zeros
    if other.rstrip(b"\0") != secret.rstrip(b"\0"):
        assert not h.secret_answer_matches(answer, other, nonce, digest, forms)


@given(octets, octets, octets, st.binary(min_size=16, max_size=16), st.integers(1, 20))
@settings(max_examples=50)
def test_pbkdf2_answers(
    secret: bytes, nonce: bytes, digest: bytes, salt: bytes, iterations: int
) -> None:
    form = h.AnswerForm.PBKDF2
    answer = h.secret_answer(form, secret, nonce, digest, salt=salt, iterations=iterations)
    assert h.secret_answer_matches(answer, secret, nonce, digest)
    assert not h.secret_answer_matches(answer, secret + b"?", nonce, digest)


xml_texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff"),
    max_size=20,
).map(str.strip)
namespaces = st.builds(
    h.Namespace,
    st.none() | xml_texts,
    st.none() | xml_texts,
    st.none() | xml_texts,
    st.none() | st.builds(lambda mark: Element("template", {"delimiter": mark}), xml_texts),
    st.lists(xml_texts.filter(bool), max_size=3).map(tuple),
)


@given(namespaces, st.booleans())
def test_namespaces(namespace: h.Namespace, inherits: bool) -> None:
    if namespace.locations:
        namespace = replace(namespace, inherits_locations=inherits)
    assert h.decode_namespace(namespace.encode()) == namespace


@given(namespaces, namespaces)
def test_namespaces_inherit(child: h.Namespace, parent: h.Namespace) -> None:
    whole = child.inherit(parent)
    assert whole.locations == child.locations + parent.locations
    assert whole.template == (child.template or parent.template)
    assert whole.contact == child.contact
    alone = replace(child, inherits_locations=False)
    assert alone.inherit(parent).locations == child.locations


@given(st.text(max_size=60))
def test_paths(handle: str) -> None:
    assert h.tunnel_handle(h.tunnel_path(handle)) == handle


@given(st.lists(values, max_size=8, unique_by=lambda value: value.index), indexes, names)
def test_what_is_asked_for_is_a_part_in_order(
    all_values: list[Value], asked: tuple[int, ...], types: tuple[str, ...]
) -> None:
    got = h.asked_for(all_values, asked, types)
    assert [value for value in all_values if value in got] == list(got)
    if asked or types:
        assert {value.index for value in all_values} & set(asked) <= {v.index for v in got}
        assert all(value in got for value in all_values if value.type in types)
    else:
        assert list(got) == all_values


@given(st.binary(max_size=200), st.text(max_size=600))
def test_refusals(data: bytes, text: str) -> None:
    reply = h.refusal(data, h.ResponseCode.PROTOCOL_ERROR, text)
    if reply is not None:
        assert len(reply) <= h.DATAGRAM_OCTETS_MAX
        assert h.decode_message(reply).response_code == h.ResponseCode.PROTOCOL_ERROR


def test_the_strategies_cover_every_operation() -> None:
    assert REQUESTS.keys() == SUCCESSES.keys() == set(h.OpCode)
    assert PERMISSIONS_DEFAULT in {Permissions(number) for number in range(16)}
