"""The protocol's numbers: operations, response codes, flags, limits; and the one table
between our errors and Handle response codes.

Numbers on the wire stay plain ints in messages, for a peer may send ones that we do not know;
the IntEnums here compare equal to them. (IntFlag is avoided on purpose: it remembers every
combination it ever met, which lets a stranger fill our memory.)
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ...errors import (
    ERRORS,
    BiaojieError,
    DeadlineExceeded,
    Elsewhere,
    Forbidden,
    IdentifierNotFound,
    IdentifierTaken,
    Internal,
    InvalidIdentifier,
    InvalidRecord,
    InvalidRequest,
    MethodNotAllowed,
    OverCapacity,
    PrefixNotHere,
    TemporarilyUnavailable,
    TooManyRequests,
    Unauthenticated,
    Unreachable,
    ValueNotFound,
    ValueTaken,
)

ENVELOPE_OCTETS: Final = 20
HEADER_OCTETS: Final = 24
MESSAGE_OCTETS_MAX: Final = 262_144
"""Header, body and credential together; existing clients refuse more."""
DATAGRAM_OCTETS_MAX: Final = 512
"""One UDP packet, its envelope included."""
FRAGMENT_OCTETS: Final = DATAGRAM_OCTETS_MAX - ENVELOPE_OCTETS
HANDLE_OCTETS_MAX: Final = 2_048
VALUES_PER_MESSAGE_MAX: Final = 2_048
"""Values, indexes, types or references in one list."""
SERIAL_UNKNOWN: Final = 0xFFFF
"""Site serial number of a request whose sender has not read the HS_SITE."""
PORT: Final = 2641


class OpCode(IntEnum):
    """What is asked (RFC 3652 names; DO-IRP says identifier, element, prefix)."""

    RESOLUTION = 1
    GET_SITE_INFO = 2
    CREATE_HANDLE = 100
    DELETE_HANDLE = 101
    ADD_VALUE = 102
    REMOVE_VALUE = 103
    MODIFY_VALUE = 104
    LIST_HANDLES = 105
    LIST_DERIVED_PREFIXES = 106
    CHALLENGE_RESPONSE = 200
    VERIFY_RESPONSE = 201
    HOME_PREFIX = 300
    UNHOME_PREFIX = 301
    LIST_HOMED_PREFIXES = 302
    SESSION_SETUP = 400
    SESSION_TERMINATE = 401
    SESSION_EXCHANGE_KEY = 402
    GET_NEXT_TRANSACTION = 1000
    RETRIEVE_TRANSACTIONS = 1001
    DUMP_HANDLES = 1002
    BACKUP_SERVER = 1003
    LOGIN = 2001
    """IIIS only; answered by 402, then by the result of the challenge."""


class ResponseCode(IntEnum):
    """What came of it. 407, 408 and 601 to 605 are IIIS only; 900 to 902 nobody sends."""

    REQUEST = 0
    SUCCESS = 1
    ERROR = 2
    SERVER_BUSY = 3
    PROTOCOL_ERROR = 4
    OPERATION_NOT_SUPPORTED = 5
    RECURSION_LIMIT_EXCEEDED = 6
    SERVER_BACKUP = 7
    """Read-only or under maintenance. 303 on the wire before version 2.5."""
    HANDLE_NOT_FOUND = 100
    HANDLE_ALREADY_EXISTS = 101
    INVALID_HANDLE = 102
    VALUES_NOT_FOUND = 200
    VALUE_ALREADY_EXISTS = 201
    INVALID_VALUE = 202
    """201 on the wire before version 2.5."""
    OUT_OF_DATE_SITE_INFO = 300
    SERVER_NOT_RESPONSIBLE = 301
    SERVICE_REFERRAL = 302
    PREFIX_REFERRAL = 303
    INVALID_ADMIN = 400
    INSUFFICIENT_PERMISSIONS = 401
    AUTHENTICATION_NEEDED = 402
    AUTHENTICATION_FAILED = 403
    INVALID_CREDENTIAL = 404
    AUTHENTICATION_TIMEOUT = 405
    UNABLE_TO_AUTHENTICATE = 406
    LOGIN_AGAIN = 407
    LOGIN_FIRST = 408
    SESSION_TIMEOUT = 500
    SESSION_FAILED = 501
    INVALID_SESSION_KEY = 502
    NEED_RSA_KEY = 503
    INVALID_SESSION_SETUP = 504
    SESSION_MESSAGE_REJECTED = 505
    CHANNEL_ERROR = 601
    CHANNEL_TIMEOUT = 602
    DAILY_LIMIT = 603
    REGISTRATION_LIMIT = 604
    PREFIX_LIMIT = 605
    TRYING = 900
    FORWARDED = 901
    QUEUED = 902


class OpFlag(IntEnum):
    """Bits of a message's `flags`; combine with `|`, ask with `&`."""

    AUTHORITATIVE = 0x8000_0000
    CERTIFY = 0x4000_0000
    ENCRYPT = 0x2000_0000
    RECURSIVE = 0x1000_0000
    CACHE_AUTHENTICATE = 0x0800_0000
    CONTINUOUS = 0x0400_0000
    """More messages of this answer follow."""
    KEEP_CONNECTION = 0x0200_0000
    PUBLIC_ONLY = 0x0100_0000
    REQUEST_DIGEST = 0x0080_0000
    OVERWRITE = 0x0040_0000
    MINT_SUFFIX = 0x0020_0000
    DO_NOT_REFER = 0x0010_0000
    CARRY_IDENTITY = 0x0000_0004
    """IIIS only: pass the requester's identity along the recursion."""


FLAGS_DEFAULT: Final = OpFlag.RECURSIVE | OpFlag.CACHE_AUTHENTICATE | OpFlag.PUBLIC_ONLY
"""What existing clients set when they set nothing."""


class KeyExchange(IntEnum):
    """Modes of SESSION_SETUP."""

    CLIENT_KEY = 1
    SERVER_KEY = 2
    HANDLE_KEY = 3
    DIFFIE_HELLMAN = 4


class Cipher(IntEnum):
    """Session ciphers; SM4 is IIIS only."""

    DES = 1
    TRIPLE_DES = 2
    AES = 3
    SM4 = 4


RESPONSE_CODES: Final[dict[str, ResponseCode]] = {
    "batch-rejected": ResponseCode.INVALID_VALUE,
    "deadline-exceeded": ResponseCode.SERVER_BUSY,
    # 302 and 303 carry a Referral; which of them it is depends on the prefix
    "elsewhere": ResponseCode.SERVICE_REFERRAL,
    "forbidden": ResponseCode.INSUFFICIENT_PERMISSIONS,
    "idempotency-mismatch": ResponseCode.ERROR,
    "idempotency-running": ResponseCode.SERVER_BUSY,
    "identifier-not-found": ResponseCode.HANDLE_NOT_FOUND,
    "identifier-retired": ResponseCode.HANDLE_NOT_FOUND,
    "identifier-taken": ResponseCode.HANDLE_ALREADY_EXISTS,
    "internal": ResponseCode.ERROR,
    "invalid-file": ResponseCode.ERROR,
    "invalid-identifier": ResponseCode.INVALID_HANDLE,
    "invalid-record": ResponseCode.INVALID_VALUE,
    "invalid-request": ResponseCode.PROTOCOL_ERROR,
    "malformed-answer": ResponseCode.ERROR,
    "method-not-allowed": ResponseCode.OPERATION_NOT_SUPPORTED,
    "not-found": ResponseCode.HANDLE_NOT_FOUND,
    "over-capacity": ResponseCode.SERVER_BUSY,
    "prefix-not-here": ResponseCode.SERVER_NOT_RESPONSIBLE,
    # RFC 3652 calls 5 "operation denied": neither wrong name nor wrong caller
    "prefix-suspended": ResponseCode.OPERATION_NOT_SUPPORTED,
    "prefix-taken": ResponseCode.HANDLE_ALREADY_EXISTS,
    "range-taken": ResponseCode.HANDLE_ALREADY_EXISTS,
    "record-frozen": ResponseCode.OPERATION_NOT_SUPPORTED,
    "request-timeout": ResponseCode.PROTOCOL_ERROR,
    "storage-full": ResponseCode.SERVER_BACKUP,
    "tampered-log": ResponseCode.ERROR,
    "temporarily-unavailable": ResponseCode.SERVER_BUSY,
    "too-large": ResponseCode.PROTOCOL_ERROR,
    "too-many-requests": ResponseCode.SERVER_BUSY,
    # 402 carries a challenge, which only a front can make
    "unauthenticated": ResponseCode.AUTHENTICATION_FAILED,
    "unreachable": ResponseCode.SERVER_BUSY,
    "unsupported-media-type": ResponseCode.PROTOCOL_ERROR,
    "value-not-found": ResponseCode.VALUES_NOT_FOUND,
    "value-taken": ResponseCode.VALUE_ALREADY_EXISTS,
    "value-read-only": ResponseCode.INSUFFICIENT_PERMISSIONS,
    "version-mismatch": ResponseCode.ERROR,
}
"""The response code of every error of ours, by its permanent code."""
assert RESPONSE_CODES.keys() == ERRORS.keys(), RESPONSE_CODES.keys() ^ ERRORS.keys()

ERROR_CLASSES: Final[dict[ResponseCode, type[BiaojieError]]] = {
    ResponseCode.ERROR: Internal,
    ResponseCode.SERVER_BUSY: OverCapacity,
    ResponseCode.PROTOCOL_ERROR: InvalidRequest,
    ResponseCode.OPERATION_NOT_SUPPORTED: MethodNotAllowed,
    ResponseCode.RECURSION_LIMIT_EXCEEDED: Internal,
    ResponseCode.SERVER_BACKUP: TemporarilyUnavailable,
    ResponseCode.HANDLE_NOT_FOUND: IdentifierNotFound,
    ResponseCode.HANDLE_ALREADY_EXISTS: IdentifierTaken,
    ResponseCode.INVALID_HANDLE: InvalidIdentifier,
    ResponseCode.VALUES_NOT_FOUND: ValueNotFound,
    ResponseCode.VALUE_ALREADY_EXISTS: ValueTaken,
    ResponseCode.INVALID_VALUE: InvalidRecord,
    ResponseCode.OUT_OF_DATE_SITE_INFO: PrefixNotHere,
    ResponseCode.SERVER_NOT_RESPONSIBLE: PrefixNotHere,
    ResponseCode.SERVICE_REFERRAL: Elsewhere,
    ResponseCode.PREFIX_REFERRAL: Elsewhere,
    ResponseCode.INVALID_ADMIN: Forbidden,
    ResponseCode.INSUFFICIENT_PERMISSIONS: Forbidden,
    ResponseCode.AUTHENTICATION_NEEDED: Unauthenticated,
    ResponseCode.AUTHENTICATION_FAILED: Unauthenticated,
    ResponseCode.INVALID_CREDENTIAL: Unauthenticated,
    ResponseCode.AUTHENTICATION_TIMEOUT: Unauthenticated,
    ResponseCode.UNABLE_TO_AUTHENTICATE: Unauthenticated,
    ResponseCode.LOGIN_AGAIN: Unauthenticated,
    ResponseCode.LOGIN_FIRST: Unauthenticated,
    ResponseCode.SESSION_TIMEOUT: Unauthenticated,
    ResponseCode.SESSION_FAILED: Unauthenticated,
    ResponseCode.INVALID_SESSION_KEY: Unauthenticated,
    ResponseCode.NEED_RSA_KEY: InvalidRequest,
    ResponseCode.INVALID_SESSION_SETUP: InvalidRequest,
    ResponseCode.SESSION_MESSAGE_REJECTED: Unauthenticated,
    ResponseCode.CHANNEL_ERROR: Unreachable,
    ResponseCode.CHANNEL_TIMEOUT: DeadlineExceeded,
    ResponseCode.DAILY_LIMIT: TooManyRequests,
    ResponseCode.REGISTRATION_LIMIT: TooManyRequests,
    ResponseCode.PREFIX_LIMIT: TooManyRequests,
    ResponseCode.TRYING: TemporarilyUnavailable,
    ResponseCode.FORWARDED: TemporarilyUnavailable,
    ResponseCode.QUEUED: TemporarilyUnavailable,
}
"""What a client raises for each response code that is not success."""
assert ERROR_CLASSES.keys() == set(ResponseCode) - {ResponseCode.REQUEST, ResponseCode.SUCCESS}


def response_code_of(error: BiaojieError) -> ResponseCode:
    """The response code that says `error` to a Handle client."""
    return RESPONSE_CODES[error.code]


def error_of(response_code: int, message: str = "") -> BiaojieError:
    """The error that `response_code` stands for; a code that nobody defined is Internal.

    `message` is the peer's own text, in whatever language. The number goes along as the
    field `response_code`.
    """
    cls = ERROR_CLASSES.get(response_code, Internal)  # type: ignore[call-overload]
    name = ResponseCode(response_code).name if response_code in ERROR_CLASSES else "unknown"
    said = f": {message[:500]}" if message else "."
    error: BiaojieError = cls(
        f"The Handle server answered {response_code} {name}{said}",
        f"Handle 服务器返回 {response_code} {name}{said if message else '。'}",
        response_code=int(response_code),
    )
    return error
