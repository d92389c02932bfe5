"""The body of every request and response, each a frozen value with `read` and `encode`.

Which body an operation or response code has is decided in message.py. Texts named `handle`
are as the peer spelled them: UTF-8, at most 2048 octets, and not checked further, since
clients also probe with handles such as `0` and `/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from ...making import maker
from ...record import Reference, Value
from .codes import HANDLE_OCTETS_MAX, VALUES_PER_MESSAGE_MAX, KeyExchange
from .cursor import Malformed, Reader, block, text, texts, u8, u16, u32, u32s
from .digest import Digest
from .site import Site
from .values import encode_reference, encode_values, read_reference, read_values

NONCE_OCTETS_MAX: Final = 1_024
ANSWER_OCTETS_MAX: Final = 8_192
"""An answer to a challenge or a session key: an RSA-16384 signature takes 2 KiB."""
HANDLES_PER_MESSAGE_MAX: Final = 65_536
TYPE_OCTETS_MAX: Final = 2_048


class Body(Protocol):
    """What stands between header and credential."""

    def encode(self) -> bytes: ...


def _handle(reader: Reader, what: str = "a handle") -> str:
    return reader.text(what, HANDLE_OCTETS_MAX)


# Requests -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """RESOLUTION. Both lists empty: every value that the caller may read.

    `token` is the IIIS extension: None where absent, empty where unused, else a JWT (RS256)
    about the user. `trailing` is whatever else came.
    """

    handle: str
    indexes: tuple[int, ...] = ()
    types: tuple[str, ...] = ()
    token: bytes | None = None
    trailing: bytes = b""

    @classmethod
    def read(cls, reader: Reader) -> ResolveRequest:
        handle = _handle(reader)
        indexes = reader.u32s("indexes", VALUES_PER_MESSAGE_MAX)
        types = reader.texts("types", VALUES_PER_MESSAGE_MAX, TYPE_OCTETS_MAX)
        token = None
        if reader.left:
            before = reader.offset
            try:
                token = reader.block("a token")
            except Malformed:
                reader.offset = before
        return cls(handle, indexes, types, token, reader.rest())

    def encode(self) -> bytes:
        token = b"" if self.token is None else block(self.token)
        head = text(self.handle) + u32s(self.indexes) + texts(self.types)
        return head + token + self.trailing


_make_resolve = maker(ResolveRequest)


def resolve_all(handle: str) -> ResolveRequest:
    """A ResolveRequest for every value, made fast."""
    return _make_resolve(handle, (), (), None, b"")


@dataclass(frozen=True, slots=True)
class HandleRequest:
    """A handle and nothing else: GET_SITE_INFO (ignored, usually `/`), DELETE_HANDLE,
    LIST_HANDLES and the other lists (`0.NA/<prefix>`), HOME and UNHOME_PREFIX,
    SESSION_TERMINATE, GET_NEXT_TRANSACTION, BACKUP_SERVER."""

    handle: str

    @classmethod
    def read(cls, reader: Reader) -> HandleRequest:
        return cls(_handle(reader))

    def encode(self) -> bytes:
        return text(self.handle)


@dataclass(frozen=True, slots=True)
class ValuesRequest:
    """CREATE_HANDLE, ADD_VALUE, MODIFY_VALUE (by index)."""

    handle: str
    values: tuple[Value, ...]

    @classmethod
    def read(cls, reader: Reader) -> ValuesRequest:
        return cls(_handle(reader), read_values(reader))

    def encode(self) -> bytes:
        return text(self.handle) + encode_values(self.values)


@dataclass(frozen=True, slots=True)
class RemoveRequest:
    """REMOVE_VALUE."""

    handle: str
    indexes: tuple[int, ...]

    @classmethod
    def read(cls, reader: Reader) -> RemoveRequest:
        return cls(_handle(reader), reader.u32s("indexes", VALUES_PER_MESSAGE_MAX))

    def encode(self) -> bytes:
        return text(self.handle) + u32s(self.indexes)


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """CHALLENGE_RESPONSE: `answer` (see answers.py) by the key value that `key` names.

    `type` is HS_SECKEY or HS_PUBKEY.
    """

    type: str
    key: Reference
    answer: bytes

    @classmethod
    def read(cls, reader: Reader) -> AnswerRequest:
        type_ = reader.text("an authentication type", TYPE_OCTETS_MAX)
        key = read_reference(reader, "a key")
        return cls(type_, key, reader.block("an answer", ANSWER_OCTETS_MAX))

    def encode(self) -> bytes:
        return text(self.type) + encode_reference(self.key) + block(self.answer)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """VERIFY_RESPONSE: is `answer` right for `nonce` and `digest` under this secret key?"""

    key: Reference
    nonce: bytes
    digest: Digest
    answer: bytes

    @classmethod
    def read(cls, reader: Reader) -> VerifyRequest:
        key = read_reference(reader, "a key")
        nonce = reader.block("a nonce", NONCE_OCTETS_MAX)
        digest = Digest.read(reader)
        return cls(key, nonce, digest, reader.block("an answer", ANSWER_OCTETS_MAX))

    def encode(self) -> bytes:
        head = encode_reference(self.key) + block(self.nonce)
        return head + self.digest.encode() + block(self.answer)


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """SESSION_SETUP. `public_key` with modes CLIENT_KEY and DIFFIE_HELLMAN, `key` with
    HANDLE_KEY. Existing clients leave two octets after it (`trailing`)."""

    mode: int
    timeout_s: int
    identity: Reference
    public_key: bytes = b""
    key: Reference | None = None
    trailing: bytes = b""

    @classmethod
    def read(cls, reader: Reader) -> SessionRequest:
        mode = reader.u16("a key exchange mode")
        timeout_s = reader.u32("a session timeout")
        identity = read_reference(reader, "an identity")
        public_key = b""
        key = None
        if mode in {KeyExchange.CLIENT_KEY, KeyExchange.DIFFIE_HELLMAN}:
            public_key = reader.block("a public key", ANSWER_OCTETS_MAX)
        elif mode == KeyExchange.HANDLE_KEY:
            key = read_reference(reader, "an exchange key")
        return cls(mode, timeout_s, identity, public_key, key, reader.rest())

    def encode(self) -> bytes:
        head = u16(self.mode) + u32(self.timeout_s) + encode_reference(self.identity)
        if self.mode in {KeyExchange.CLIENT_KEY, KeyExchange.DIFFIE_HELLMAN}:
            head += block(self.public_key)
        elif self.mode == KeyExchange.HANDLE_KEY:
            if self.key is None:
                raise ValueError("a session by HANDLE_KEY needs `key`")
            head += encode_reference(self.key)
        return head + self.trailing


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """SESSION_EXCHANGE_KEY: the session key, encrypted for the server."""

    encrypted_key: bytes

    @classmethod
    def read(cls, reader: Reader) -> KeyRequest:
        return cls(reader.block("a session key", ANSWER_OCTETS_MAX))

    def encode(self) -> bytes:
        return block(self.encrypted_key)


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """LOGIN (IIIS)."""

    user: Reference

    @classmethod
    def read(cls, reader: Reader) -> LoginRequest:
        return cls(read_reference(reader, "a user"))

    def encode(self) -> bytes:
        return encode_reference(self.user)


# Responses ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResolveResponse:
    """The handle as asked for, and its values."""

    handle: str
    values: tuple[Value, ...]

    @classmethod
    def read(cls, reader: Reader) -> ResolveResponse:
        return cls(_handle(reader), read_values(reader))

    def encode(self) -> bytes:
        return text(self.handle) + encode_values(self.values)


@dataclass(frozen=True, slots=True)
class SiteResponse:
    """GET_SITE_INFO: the HS_SITE without a length, as in the reference code."""

    site: Site

    @classmethod
    def read(cls, reader: Reader) -> SiteResponse:
        return cls(Site.read(reader))

    def encode(self) -> bytes:
        return self.site.encode()


@dataclass(frozen=True, slots=True)
class CreateResponse:
    """CREATE_HANDLE: the handle made, or None where the server does not repeat it."""

    handle: str | None = None

    @classmethod
    def read(cls, reader: Reader) -> CreateResponse:
        return cls(_handle(reader) if reader.left else None)

    def encode(self) -> bytes:
        return b"" if self.handle is None else text(self.handle)


@dataclass(frozen=True, slots=True)
class ListResponse:
    """One part of a list; with the flag CONTINUOUS more parts follow."""

    handles: tuple[str, ...]

    @classmethod
    def read(cls, reader: Reader) -> ListResponse:
        return cls(reader.texts("handles", HANDLES_PER_MESSAGE_MAX, HANDLE_OCTETS_MAX))

    def encode(self) -> bytes:
        return texts(self.handles)


@dataclass(frozen=True, slots=True)
class VerifyResponse:
    right: bool

    @classmethod
    def read(cls, reader: Reader) -> VerifyResponse:
        return cls(bool(reader.u8("a verdict") & 1))

    def encode(self) -> bytes:
        return u8(self.right)


@dataclass(frozen=True, slots=True)
class SessionResponse:
    """SESSION_SETUP. `data` by mode: the session key, encrypted, or for DIFFIE_HELLMAN an int4
    cipher and the server's public key. Existing servers leave two octets after it."""

    mode: int
    data: bytes
    trailing: bytes = b""

    @classmethod
    def read(cls, reader: Reader) -> SessionResponse:
        mode = reader.u16("a key exchange mode")
        return cls(mode, reader.block("key exchange data", ANSWER_OCTETS_MAX), reader.rest())

    def encode(self) -> bytes:
        return u16(self.mode) + block(self.data) + self.trailing


@dataclass(frozen=True, slots=True)
class Done:
    """Success of an operation that has nothing to tell."""

    trailing: bytes = b""

    @classmethod
    def read(cls, reader: Reader) -> Done:
        return cls(reader.rest())

    def encode(self) -> bytes:
        return self.trailing


@dataclass(frozen=True, slots=True)
class Challenge:
    """AUTHENTICATION_NEEDED: sign this nonce and the message's request digest."""

    nonce: bytes

    @classmethod
    def read(cls, reader: Reader) -> Challenge:
        return cls(reader.block("a nonce", NONCE_OCTETS_MAX))

    def encode(self) -> bytes:
        return block(self.nonce)


@dataclass(frozen=True, slots=True)
class Referral:
    """SERVICE_REFERRAL and PREFIX_REFERRAL: where to go on.

    Send one of the two: `handle`, to be resolved for its HS_SITE values; or the values, with
    `handle` empty. `values` is None where the list is absent.
    """

    handle: str = ""
    values: tuple[Value, ...] | None = None

    @classmethod
    def read(cls, reader: Reader) -> Referral:
        handle = _handle(reader)
        return cls(handle, read_values(reader) if reader.left else None)

    def encode(self) -> bytes:
        return text(self.handle) + (b"" if self.values is None else encode_values(self.values))


@dataclass(frozen=True, slots=True)
class Failure:
    """Every other response: a text for people, and (DO-IRP) the indexes of the values at fault.

    Octets of the text that are not UTF-8 are replaced, for an odd text must not hide the
    response code.
    """

    message: str = ""
    indexes: tuple[int, ...] = ()

    @classmethod
    def read(cls, reader: Reader) -> Failure:
        if not reader.left:
            return cls()
        message = reader.block("an error message").decode(errors="replace")
        try:
            indexes = reader.u32s("indexes", VALUES_PER_MESSAGE_MAX) if reader.left else ()
        except Malformed:
            indexes = ()
        reader.rest()
        return cls(message, indexes)

    def encode(self) -> bytes:
        return text(self.message) + (u32s(self.indexes) if self.indexes else b"")


@dataclass(frozen=True, slots=True)
class TransactionResponse:
    """GET_NEXT_TRANSACTION: the number that the next change will have."""

    next_id: int

    @classmethod
    def read(cls, reader: Reader) -> TransactionResponse:
        return cls(int.from_bytes(reader.octets(8, "a transaction number"), "big"))

    def encode(self) -> bytes:
        if not 0 <= self.next_id < 2**64:
            raise ValueError(f"{self.next_id} does not fit eight octets")
        return self.next_id.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class Opaque:
    """The body of an operation or response code that this codec does not know."""

    octets: bytes

    @classmethod
    def read(cls, reader: Reader) -> Opaque:
        return cls(reader.rest())

    def encode(self) -> bytes:
        return self.octets
