"""Handle operations that change something, and lists: each right, each refusal, each number."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from biaojie.account import Role
from biaojie.errors import TemporarilyUnavailable
from biaojie.record import Permissions, Reference, Value
from biaojie.wire.handle import (
    SERIAL_UNKNOWN,
    Admin,
    AdminRight,
    AnswerForm,
    CreateResponse,
    Done,
    Failure,
    ListResponse,
    OpCode,
    OpFlag,
    RemoveRequest,
    ResolveResponse,
    ResponseCode,
    ValuesRequest,
    VerifyRequest,
    VerifyResponse,
    Version,
    decode_message,
    encode_message,
    secret_answer,
)
from registry.admission import Caller
from registry.operations import Create, HomePrefix, Retire
from tests.core_parts import GatedStore, identifier, write
from tests.handle_talk import (
    ADMIN,
    PREFIX,
    PUBKEY,
    SECKEY,
    SECRET,
    Desk,
    about,
    create,
    desk,
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


# Writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [SECKEY, PUBKEY])
async def test_create_add_modify_remove_delete(here: Desk, key: Reference) -> None:
    talk = here.talk()
    handle = f"{PREFIX}/W"

    async def ask(message: object) -> int:
        return (await talk.authorized(message, key)).response_code  # type: ignore[arg-type]

    made = await talk.authorized(create(handle), key)
    assert (made.opcode, made.body) == (OpCode.CREATE_HANDLE, CreateResponse(handle))
    assert await ask(create(handle)) == ResponseCode.HANDLE_ALREADY_EXISTS
    second = ValuesRequest(handle, (text_value(2, "a@b", "EMAIL"),))
    added = await talk.authorized(request(OpCode.ADD_VALUE, second), key)
    assert (added.response_code, added.body) == (ResponseCode.SUCCESS, Done())
    taken = await talk.authorized(request(OpCode.ADD_VALUE, second), key)
    assert taken.response_code == ResponseCode.VALUE_ALREADY_EXISTS
    assert taken.body == Failure(taken.body.message, (2,))  # type: ignore[attr-defined]
    over = request(OpCode.ADD_VALUE, second, flags=OpFlag.OVERWRITE)
    assert await ask(over) == ResponseCode.SUCCESS
    other = ValuesRequest(handle, (text_value(2, "c@d", "EMAIL"),))
    assert await ask(request(OpCode.MODIFY_VALUE, other)) == ResponseCode.SUCCESS
    absent = ValuesRequest(handle, (text_value(3),))
    assert await ask(request(OpCode.MODIFY_VALUE, absent)) == ResponseCode.VALUES_NOT_FOUND
    assert [v.data for v in values(await talk.answer(resolve(handle)))][1] == b"c@d"
    remove = RemoveRequest(handle, (2,))
    assert await ask(request(OpCode.REMOVE_VALUE, remove)) == ResponseCode.SUCCESS
    assert await ask(request(OpCode.REMOVE_VALUE, remove)) == ResponseCode.VALUES_NOT_FOUND
    assert await ask(about(OpCode.DELETE_HANDLE, handle)) == ResponseCode.SUCCESS
    assert await talk.code(resolve(handle)) == ResponseCode.HANDLE_NOT_FOUND
    assert await ask(about(OpCode.DELETE_HANDLE, handle)) == ResponseCode.HANDLE_NOT_FOUND
    assert await ask(create(handle)) == ResponseCode.SUCCESS  # purged, so free again


async def test_delete_can_be_told_to_leave_a_tombstone(tmp_path: Path) -> None:
    async with desk(tmp_path, handle_delete="retire") as here:
        talk = here.talk()
        removed = await talk.authorized(about(OpCode.DELETE_HANDLE, SN1))
        assert removed.response_code == ResponseCode.SUCCESS
        again = await talk.authorized(create(SN1))
        assert again.response_code == ResponseCode.HANDLE_ALREADY_EXISTS


async def test_overwriting_and_minting(here: Desk) -> None:
    talk = here.talk()
    replaced = await talk.authorized(create(SN1, text_value(4), flags=OpFlag.OVERWRITE))
    assert replaced.response_code == ResponseCode.SUCCESS
    assert replaced.has(OpFlag.OVERWRITE)
    assert [v.index for v in values(await talk.answer(resolve(SN1)))] == [4]
    names = set()
    for start in (f"{PREFIX}/", f"{PREFIX}/LOT-", PREFIX):
        minted = await talk.authorized(create(start, flags=OpFlag.MINT_SUFFIX))
        assert isinstance(minted.body, CreateResponse)
        name = minted.body.handle or ""
        assert name.startswith(start)
        assert len(name) - len(start.rstrip("/")) - 1 >= 26 - 1
        assert await talk.code(resolve(name)) == ResponseCode.SUCCESS
        names.add(name)
    assert len(names) == 3


@pytest.mark.parametrize(
    "values_",
    [
        (text_value(0),),
        (text_value(1), text_value(1)),
        (Value(1, "", b""),),
        (Value(300, "HS_SECKEY", b"x"),),
        (Value(2**31, "URL", b""),),
    ],
)
async def test_values_that_are_wrong(here: Desk, values_: tuple[Value, ...]) -> None:
    answer = await here.talk().authorized(create(f"{PREFIX}/BAD", *values_))
    assert answer.response_code == ResponseCode.INVALID_VALUE
    assert await here.talk().code(resolve(f"{PREFIX}/BAD")) == ResponseCode.HANDLE_NOT_FOUND


async def test_empty_lists_change_nothing(here: Desk) -> None:
    for opcode, body in (
        (OpCode.ADD_VALUE, ValuesRequest(SN1, ())),
        (OpCode.MODIFY_VALUE, ValuesRequest(SN1, ())),
        (OpCode.REMOVE_VALUE, RemoveRequest(SN1, ())),
    ):
        answer = await here.talk().authorized(request(opcode, body))
        assert answer.response_code == ResponseCode.INVALID_VALUE


async def test_writes_where_there_is_nothing_of_ours(here: Desk) -> None:
    talk = here.talk()
    for message in (
        create("99.9/X"),
        about(OpCode.DELETE_HANDLE, "99.9/X"),
        about(OpCode.LIST_HANDLES, "0.NA/99.9"),
        about(OpCode.UNHOME_PREFIX, "0.NA/99.9"),
        request(OpCode.REMOVE_VALUE, RemoveRequest("99.9/X", (1,))),
    ):
        assert await talk.code(message) == ResponseCode.SERVER_NOT_RESPONSIBLE
    assert await talk.code(about(OpCode.LIST_HANDLES, SN1)) == ResponseCode.INVALID_HANDLE


async def test_each_right_is_asked_for(here: Desk) -> None:
    """Someone with every right but one on a record may do all but one thing."""
    someone = Reference(f"{PREFIX}/SOMEONE", 300)
    secret = Value(300, "HS_SECKEY", SECRET, permissions=Permissions.parse("1100"))
    await write(here.parts.registrar, Create(identifier("SOMEONE"), (secret,)))
    talk = here.talk()

    async def may(rights: int, opcode: int, body: object) -> bool:
        name = f"T{rights:x}-{opcode}"
        admin = Value(100, "HS_ADMIN", Admin(rights, someone).encode())
        await write(here.parts.registrar, Create(identifier(name), (text_value(), admin)))
        message = request(opcode, body(f"{PREFIX}/{name}"))  # type: ignore[operator]
        code = (await talk.authorized(message, someone)).response_code
        assert code in (ResponseCode.SUCCESS, ResponseCode.INSUFFICIENT_PERMISSIONS)
        return code == ResponseCode.SUCCESS

    cases = [
        (AdminRight.ADD_VALUE, OpCode.ADD_VALUE, lambda h: ValuesRequest(h, (text_value(2),))),
        (AdminRight.MODIFY_VALUE, OpCode.MODIFY_VALUE, lambda h: ValuesRequest(h, (text_value(),))),
        (AdminRight.REMOVE_VALUE, OpCode.REMOVE_VALUE, lambda h: RemoveRequest(h, (1,))),
        (AdminRight.REMOVE_ADMIN, OpCode.REMOVE_VALUE, lambda h: RemoveRequest(h, (100,))),
        (AdminRight.DELETE_HANDLE, OpCode.DELETE_HANDLE, lambda h: about(0, h).body),
    ]
    for right, opcode, body in cases:
        assert await may(right, opcode, body)
        assert not await may(0xFFF & ~right, opcode, body)


# Lists ----------------------------------------------------------------------------------


async def test_handles_under_a_prefix_come_in_parts(here: Desk) -> None:
    names = [f"L{number:05}" for number in range(450)]
    for start in range(0, 450, 150):
        creates = [Create(identifier(n), (text_value(),)) for n in names[start : start + 150]]
        await write(here.parts.registrar, *creates)
    await write(here.parts.registrar, Retire(identifier("L00007")))
    talk = here.talk()
    challenged = await talk.answer(about(OpCode.LIST_HANDLES, f"0.NA/{PREFIX}"))
    sent = proof(challenged)
    parts = await talk.ask(sent)
    assert [len(part.body.handles) for part in parts] == [200, 200, 51]  # type: ignore[attr-defined]
    assert [part.has(OpFlag.CONTINUOUS) for part in parts] == [True, True, False]
    assert {part.request_id for part in parts} == {sent.request_id}
    listed = [handle for part in parts for handle in part.body.handles]  # type: ignore[attr-defined]
    assert listed == sorted(listed)
    assert set(listed) == {f"{PREFIX}/{n}" for n in names if n != "L00007"} | {SN1, ADMIN}


async def test_a_list_is_empty_or_fits_one_part(here: Desk) -> None:
    await write(here.parts.registrar, HomePrefix("88.118.9", "x", admin=SECKEY))
    answer = await here.talk().authorized(about(OpCode.LIST_HANDLES, "0.NA/88.118.9"))
    assert answer.body == ListResponse(())
    assert not answer.has(OpFlag.CONTINUOUS)


async def test_long_lists_are_not_for_udp(here: Desk) -> None:
    creates = [Create(identifier(f"U{n}"), (text_value(),)) for n in range(250)]
    await write(here.parts.registrar, *creates)
    talk = here.talk(here.peer("udp"))
    refused = await talk.authorized(about(OpCode.LIST_HANDLES, f"0.NA/{PREFIX}"))
    assert refused.response_code == ResponseCode.OPERATION_NOT_SUPPORTED


async def test_a_list_that_breaks_off_says_so(tmp_path: Path) -> None:
    store = GatedStore()
    async with desk(tmp_path, store) as here:
        creates = [Create(identifier(f"B{n:04}"), (text_value(),)) for n in range(650)]
        await write(here.parts.registrar, *creates)
        talk = here.talk()
        sent = proof(await talk.answer(about(OpCode.LIST_HANDLES, f"0.NA/{PREFIX}")))
        parts = []
        async for frame in here.operations.answer(encode_message(sent), here.peer()):
            parts.append(decode_message(frame))
            store.errors["list_records"] = TemporarilyUnavailable()
        assert [part.response_code for part in parts][-1] == ResponseCode.SERVER_BUSY
        assert parts[0].response_code == ResponseCode.SUCCESS


async def test_prefixes_below_and_homed_ones(here: Desk) -> None:
    for name in ("88.118.8.1", "88.118.8.2", "88.118.80", "88.118.9"):
        await write(here.parts.registrar, HomePrefix(name, "x"))
    await write(here.parts.registrar, HomePrefix("88.118.6", "x", admin=SECKEY))
    talk = here.talk()
    below = await talk.authorized(about(OpCode.LIST_DERIVED_PREFIXES, f"0.NA/{PREFIX}"))
    assert below.body == ListResponse(("0.NA/88.118.8.1", "0.NA/88.118.8.2"))
    homed = await talk.authorized(about(OpCode.LIST_HOMED_PREFIXES, "0.NA/0.NA"))
    assert homed.body == ListResponse(("0.NA/88.118.6", "0.NA/88.118.8"))  # which one may list


async def test_home_and_unhome(here: Desk) -> None:
    talk = here.talk()
    new = f"{PREFIX}.501"
    assert await talk.code(about(OpCode.HOME_PREFIX, f"0.NA/{new}")) == 402
    for _ in range(2):  # clients repeat it
        homed = await talk.authorized(about(OpCode.HOME_PREFIX, f"0.NA/{new}"))
        assert (homed.response_code, homed.body) == (ResponseCode.SUCCESS, Done())
    made = await talk.authorized(create(f"{new}/X"))
    assert made.response_code == ResponseCode.SUCCESS
    prefix = await here.parts.service.find_prefix(Caller("a", "", Role.ADMIN), new)
    assert prefix.tenant == "acme"
    unhomed = await talk.authorized(about(OpCode.UNHOME_PREFIX, f"0.NA/{new}"))
    assert unhomed.response_code == ResponseCode.SUCCESS
    assert await talk.code(resolve(f"{new}/X")) == ResponseCode.SERVER_NOT_RESPONSIBLE
    far = await talk.authorized(about(OpCode.HOME_PREFIX, "0.NA/99.9"))
    assert far.response_code == ResponseCode.INSUFFICIENT_PERMISSIONS
    bad = await talk.authorized(about(OpCode.HOME_PREFIX, SN1))
    assert bad.response_code == ResponseCode.INVALID_HANDLE


async def test_verifying_for_another_server(here: Desk) -> None:
    asked = resolve(SN1)
    nonce, digest = bytes(16), asked.digest
    from biaojie.wire.handle import Digest

    digest = Digest.of(b"whatever it was")
    answer = secret_answer(AnswerForm.PBKDF2, SECRET, nonce, digest.octets, salt=bytes(16))
    for key, given, right in (
        (SECKEY, answer, True),
        (SECKEY, answer[:-1] + b"\0", False),
        (Reference(ADMIN, 7), answer, False),
        (Reference("nonsense", 7), answer, False),
    ):
        message = request(OpCode.VERIFY_RESPONSE, VerifyRequest(key, nonce, digest, given))
        assert (await here.talk().answer(message)).body == VerifyResponse(right)


@pytest.mark.parametrize("opcode", [1000, 1001, 1002, 1003, 3, 99_999])
async def test_operations_that_are_not_ours(here: Desk, opcode: int) -> None:
    message = about(opcode, "/")
    assert await here.talk().code(message) == ResponseCode.OPERATION_NOT_SUPPORTED


async def test_a_request_that_suggests_nothing_we_know_still_gets_our_version(here: Desk) -> None:
    answer = await here.talk().answer(resolve(SN1, version=Version(3, 0), suggested=Version(3, 0)))
    assert answer.version == Version(2, 11)
    assert answer.site_serial != SERIAL_UNKNOWN
