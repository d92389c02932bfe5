"""The Handle operations over an empty registry: what is asked for, what comes back, what is
refused and with which number."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from biaojie.account import PrefixStatus
from biaojie.keys import decode_public_key, verify
from biaojie.record import Permissions, Reference, Value
from biaojie.wire.handle import (
    Admin,
    AdminRight,
    DigestAlgorithm,
    Failure,
    Interface,
    OpCode,
    OpFlag,
    Purpose,
    Referral,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    Site,
    SiteResponse,
    Transport,
    Version,
    covered,
    decode_message,
    decode_site,
    encode_message,
)
from registry.operations import ChangePrefix, Create, HomePrefix, Retire
from tests.core_parts import identifier, write
from tests.handle_talk import (
    ADMIN,
    PREFIX,
    PRIVATE,
    SECKEY,
    SECRET,
    Desk,
    about,
    create,
    desk,
    hidden,
    proof,
    request,
    resolve,
    text_value,
)

SN1 = f"{PREFIX}/SN1"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as made:
        yield made


def values(answer: object) -> tuple[Value, ...]:
    body = answer.body  # type: ignore[attr-defined]
    assert isinstance(body, ResolveResponse), answer
    return body.values


# Resolution -----------------------------------------------------------------------------


async def test_public_values_and_the_spelling_that_was_asked_for(here: Desk) -> None:
    answer = await here.talk().answer(resolve("88.118.8/sn1"))
    assert isinstance(answer.body, ResolveResponse)
    assert answer.body.handle == "88.118.8/sn1"
    assert [value.index for value in answer.body.values] == [1]
    assert answer.response_code == ResponseCode.SUCCESS
    assert answer.has(OpFlag.AUTHORITATIVE)
    assert here.operations.site is not None
    assert answer.site_serial == here.operations.site.serial == 1


@pytest.mark.parametrize(
    ("indexes", "types", "found"),
    [
        ((), (), [1, 2, 3, 4]),
        ((2,), (), [2]),
        ((2,), ("EMAIL",), [2, 4]),
        ((), ("url",), [1]),
        ((), ("URL.",), [1, 2, 3]),
        ((99,), (), None),
        ((), ("URL.mirror", "url.alt"), [2, 3]),
    ],
)
async def test_index_and_type_filters_are_alternatives(
    here: Desk, indexes: tuple[int, ...], types: tuple[str, ...], found: list[int] | None
) -> None:
    several = (
        text_value(),
        text_value(2, type_="URL.mirror"),
        text_value(3, type_="URL.alt"),
        text_value(4, "a@b", "EMAIL"),
    )
    await write(here.parts.registrar, Create(identifier("MANY"), several))
    answer = await here.talk().answer(resolve(f"{PREFIX}/MANY", indexes=indexes, types=types))
    if found is None:
        assert answer.response_code == ResponseCode.VALUES_NOT_FOUND
    else:
        assert [value.index for value in values(answer)] == found


@pytest.mark.parametrize(
    ("handle", "code"),
    [
        (f"{PREFIX}/NOPE", ResponseCode.HANDLE_NOT_FOUND),
        ("99.9/X", ResponseCode.SERVER_NOT_RESPONSIBLE),
        ("0.NA/99.9", ResponseCode.HANDLE_NOT_FOUND),
        ("0", ResponseCode.HANDLE_NOT_FOUND),
        ("/", ResponseCode.INVALID_HANDLE),
        ("", ResponseCode.INVALID_HANDLE),
        ("88.118.8/a\nb", ResponseCode.INVALID_HANDLE),
        ("88.118.8/" + "é" * 300, ResponseCode.INVALID_HANDLE),
    ],
)
async def test_what_is_not_there(here: Desk, handle: str, code: int) -> None:
    answer = await here.talk().answer(resolve(handle))
    assert answer.response_code == code
    assert isinstance(answer.body, Failure)
    assert answer.body.message


async def test_drafts_are_not_there_and_retired_ones_neither(here: Desk) -> None:
    await here.talk().authorized(create(f"{PREFIX}/GONE"))
    await write(here.parts.registrar, Retire(identifier("GONE")))
    assert await here.talk().code(resolve(f"{PREFIX}/GONE")) == ResponseCode.HANDLE_NOT_FOUND
    answer = await here.talk().authorized(create(f"{PREFIX}/GONE"))
    assert answer.response_code == ResponseCode.HANDLE_ALREADY_EXISTS


async def test_trailing_octets_of_the_national_clients_are_passed_over(here: Desk) -> None:
    for token, trailing in ((b"", b""), (b"jwt", b""), (None, b"\0\1")):
        question = request(OpCode.RESOLUTION, ResolveRequest(SN1, (), (), token, trailing))
        assert await here.talk().code(question) == ResponseCode.SUCCESS


async def test_private_values_need_a_proof_and_public_only_hides_them(here: Desk) -> None:
    talk = here.talk()
    assert [v.index for v in values(await talk.answer(resolve(SN1)))] == [1]
    challenged = await talk.answer(resolve(SN1, flags=PRIVATE))
    assert challenged.response_code == ResponseCode.AUTHENTICATION_NEEDED
    answer = await talk.answer(proof(challenged))
    assert answer.opcode == OpCode.RESOLUTION
    assert [v.index for v in values(answer)] == [1, 9]
    # one that asks for public values only gets them, identity or not
    assert await talk.code(resolve(SN1, indexes=[9])) == ResponseCode.VALUES_NOT_FOUND
    # nothing private is asked for, so nobody is bothered
    assert [
        v.index for v in values(await talk.answer(resolve(SN1, indexes=[1], flags=PRIVATE)))
    ] == [1]


async def test_a_secret_is_in_no_answer(here: Desk) -> None:
    talk = here.talk()
    asked = resolve(ADMIN, types=["HS_SECKEY"], flags=PRIVATE)
    assert await talk.code(asked) == ResponseCode.VALUES_NOT_FOUND
    await talk.authorized(create(f"{PREFIX}/S", text_value(), hidden()))
    (frame,) = await talk.exchange(encode_message(resolve(ADMIN, flags=PRIVATE)))
    assert SECRET not in frame
    assert [v.index for v in values(decode_message(frame))] == [301]


async def test_who_may_not_read_is_told_so(here: Desk) -> None:
    reader = Reference(f"{PREFIX}/READER", 300)
    secret = Value(300, "HS_SECKEY", SECRET, permissions=Permissions.parse("1100"))
    await write(here.parts.registrar, Create(identifier("READER"), (secret,)))
    talk = here.talk()
    refused = await talk.authorized(resolve(SN1, flags=PRIVATE), reader)
    assert refused.response_code == ResponseCode.INSUFFICIENT_PERMISSIONS
    reads = Admin(AdminRight.AUTHORIZED_READ, reader).encode()
    owned = (text_value(), hidden(), Value(100, "HS_ADMIN", reads))
    await write(here.parts.registrar, Create(identifier("OWN"), owned))
    answer = await talk.authorized(resolve(f"{PREFIX}/OWN", flags=PRIVATE), reader)
    assert [v.index for v in values(answer)] == [1, 9, 100]


async def test_answers_expire_with_their_values_and_failures_within_two_days(here: Desk) -> None:
    now = time.time()
    long = text_value()
    short = Value(1, "URL", b"x", ttl=60)
    for name, value in (("LONG", long), ("SHORT", short)):
        await write(here.parts.registrar, Create(identifier(name), (value,)))
    for name, least, most in (("LONG", 86_000, 86_500), ("SHORT", 3_500, 3_700)):
        answer = await here.talk().answer(resolve(f"{PREFIX}/{name}"))
        assert least < answer.expiration - now < most
    for asked in (0, int(now) + 43_200, 2**31 - 1):
        answer = await here.talk().answer(resolve(f"{PREFIX}/NOPE", expiration=asked))
        assert 43_000 < answer.expiration - now <= 172_801


# Certified answers, digests, versions ---------------------------------------------------


@pytest.mark.parametrize("handle", [SN1, f"{PREFIX}/NOPE", "99.9/X"])
async def test_certified_answers_are_signed_by_the_key_of_the_site(here: Desk, handle: str) -> None:
    site = (await here.talk().answer(about(OpCode.GET_SITE_INFO, "/"))).body
    assert isinstance(site, SiteResponse)
    key = decode_public_key(site.site.servers[0].public_key)
    for version, name in ((Version(2, 11), "SHA-256"), (Version(2, 6), "SHA1")):
        answer = await here.talk().answer(
            resolve(
                handle,
                flags=OpFlag.CERTIFY | OpFlag.PUBLIC_ONLY,
                version=version,
                suggested=version,
            )
        )
        assert answer.version == version
        assert answer.credential is not None
        assert answer.credential.type == "HS_SIGNED"
        assert answer.credential.algorithm == name
        assert verify(key, name, covered(answer), answer.credential.signature)


@pytest.mark.parametrize(
    ("version", "algorithm"),
    [
        (Version(2, 11), DigestAlgorithm.SHA256),
        (Version(3, 0), DigestAlgorithm.SHA256),
        (Version(2, 6), DigestAlgorithm.SHA1),
        (Version(2, 1), DigestAlgorithm.SHA1),
    ],
)
async def test_the_digest_of_the_request(here: Desk, version: Version, algorithm: int) -> None:
    asked = resolve(
        SN1, flags=OpFlag.REQUEST_DIGEST | OpFlag.PUBLIC_ONLY, version=version, suggested=version
    )
    answer = await here.talk().answer(asked)
    assert answer.digest is not None
    assert answer.digest.algorithm == algorithm
    assert answer.digest.matches(encode_message(asked)[20:-4])
    assert tuple(answer.version) <= (2, 11)


async def test_the_answer_to_a_proof_has_the_digest_of_the_proof(here: Desk) -> None:
    talk = here.talk()
    challenged = await talk.answer(create(f"{PREFIX}/D"))
    sent = proof(challenged, flags=OpFlag.REQUEST_DIGEST)
    answer = await talk.answer(sent)
    assert answer.response_code == ResponseCode.SUCCESS
    assert answer.digest is not None
    assert answer.digest.matches(encode_message(sent)[20:-4])


# The site -------------------------------------------------------------------------------


async def test_the_site_says_where_and_with_which_key(here: Desk) -> None:
    answer = await here.talk().answer(about(OpCode.GET_SITE_INFO, "/", session_id=77))
    assert answer.session_id == 77
    assert isinstance(answer.body, SiteResponse)
    (server,) = answer.body.site.servers
    assert str(server.ip) == "127.0.0.1"
    assert server.interfaces == (
        Interface(Purpose.BOTH, Transport.TCP, 2641),
        Interface(Purpose.QUERY, Transport.UDP, 2641),
        Interface(Purpose.BOTH, Transport.HTTP, 8080),
    )
    assert answer.body.site.is_primary


async def test_a_prefix_homed_here_has_our_site(here: Desk) -> None:
    for handle in (f"0.NA/{PREFIX}", f"0.na/{PREFIX}", PREFIX):
        answer = await here.talk().answer(resolve(handle))
        by_type = {value.type: value for value in values(answer)}
        assert by_type.keys() == {"HS_ADMIN", "HS_SITE", "HS_SITE.6"}
        assert str(decode_site(by_type["HS_SITE"].data).servers[0].ip) == "127.0.0.1"
        assert str(decode_site(by_type["HS_SITE.6"].data).servers[0].ip) == "::1"
        indexes = [value.index for value in values(answer)]
        assert len(set(indexes)) == len(indexes)
    only = await here.talk().answer(resolve(f"0.NA/{PREFIX}", types=["HS_SITE", "HS_SERV"]))
    assert [value.type for value in values(only)] == ["HS_SITE"]


async def test_a_prefix_without_a_record_has_it_too_and_a_stored_site_is_left_alone(
    here: Desk,
) -> None:
    await write(here.parts.registrar, HomePrefix("88.118.9", "globex"))
    answer = await here.talk().answer(resolve("0.NA/88.118.9"))
    assert [value.type for value in values(answer)] == ["HS_SITE", "HS_SITE.6"]
    own = Value(2, "HS_SITE", Site(()).encode())
    await write(here.parts.registrar, Create(identifier("88.118.9", "0.NA"), (own,)))
    answer = await here.talk().answer(resolve("0.NA/88.118.9"))
    assert [value.data for value in values(answer)] == [own.data]


# Referrals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (PrefixStatus.DELEGATED, ResponseCode.PREFIX_REFERRAL),
        (PrefixStatus.REFERRED, ResponseCode.SERVICE_REFERRAL),
    ],
)
async def test_prefixes_that_live_elsewhere(here: Desk, status: PrefixStatus, code: int) -> None:
    await write(here.parts.registrar, HomePrefix("88.118.7", "far", status))
    talk = here.talk()
    for handle in ("88.118.7/X", "88.118.7.1/X", "0.NA/88.118.7.1"):
        unknown = await talk.answer(resolve(handle))
        assert unknown.response_code == code
        assert unknown.body == Referral("0.NA/88.118.7")
    site = Value(1, "HS_SITE", Site((), serial=5).encode())
    serv = Value(3, "HS_SERV", b"0.SERV/88.118.7")
    secretly = Value(4, "HS_SITE", b"x", permissions=Permissions.parse("1100"))
    admin = Value(100, "HS_ADMIN", Admin(1, SECKEY).encode())
    record = Create(identifier("88.118.7", "0.NA"), (site, serv, secretly, admin))
    await write(here.parts.registrar, record)
    for handle in ("88.118.7/X", "88.118.7.1/X", "0.NA/88.118.7.1"):
        for flags in (PRIVATE, OpFlag.PUBLIC_ONLY, OpFlag.PUBLIC_ONLY | OpFlag.AUTHORITATIVE):
            answer = await talk.answer(resolve(handle, flags=flags))
            assert answer.response_code == code
            assert isinstance(answer.body, Referral)
            assert answer.body.handle == ""
            assert [v.data for v in answer.body.values or ()] == [site.data, serv.data]
        stay = resolve(handle, flags=OpFlag.DO_NOT_REFER | OpFlag.PUBLIC_ONLY)
        assert await talk.code(stay) == ResponseCode.SERVER_NOT_RESPONSIBLE
    # its own record is here
    answer = await talk.answer(resolve("0.NA/88.118.7"))
    assert [value.type for value in values(answer)] == ["HS_SITE", "HS_SERV", "HS_ADMIN"]
    # and who wants to write there is sent there, before proving anything
    assert await talk.code(create("88.118.7/X")) == code
    assert await talk.code(create("88.118.7.1/X")) == code


async def test_before_2_5_a_referral_by_prefix_looks_like_maintenance_so_it_says_so(
    here: Desk,
) -> None:
    await write(here.parts.registrar, HomePrefix("88.118.7", "far", PrefixStatus.DELEGATED))
    old = Version(2, 4)
    answer = await here.talk().answer(resolve("88.118.7/X", version=old, suggested=old))
    assert answer.response_code in (ResponseCode.SERVER_BACKUP, ResponseCode.PREFIX_REFERRAL)


async def test_a_suspended_prefix(here: Desk) -> None:
    await write(here.parts.registrar, ChangePrefix(PREFIX, status=PrefixStatus.SUSPENDED))
    talk = here.talk()
    assert await talk.code(resolve(SN1)) == ResponseCode.OPERATION_NOT_SUPPORTED


async def test_versions_that_never_were_are_answered_in_one_that_was(here: Desk) -> None:
    for suggested in (Version(1, 7), Version(4, 0), Version(31, 255)):
        answer = await here.talk().answer(resolve(SN1, suggested=suggested))
        assert answer.response_code == ResponseCode.SUCCESS
        assert answer.version == (Version(2, 1) if suggested.major < 2 else Version(2, 11))
