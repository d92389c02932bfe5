"""Messages: envelope, header, request digest, body, credential, in both directions.

A frame is a whole message with its envelope, as it stands in a TCP stream or an HTTP body, or
comes out of fragments.Reassembly. Requests have the response code 0; which body class goes
with which operation and response code is in the tables below.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from ...making import maker
from . import bodies
from .bodies import Body, Challenge, Failure
from .codes import (
    DATAGRAM_OCTETS_MAX,
    ENVELOPE_OCTETS,
    HEADER_OCTETS,
    MESSAGE_OCTETS_MAX,
    SERIAL_UNKNOWN,
    OpCode,
    OpFlag,
    ResponseCode,
)
from .credential import Credential
from .cursor import Malformed, Reader, block, u32
from .digest import Digest, DigestAlgorithm
from .version import MAJORS, VERSION_OURS, Version, answer_version

_ENVELOPE = struct.Struct("!BBBBIIII")
_HEADER = struct.Struct("!IIIHBBII")
_FRONT = struct.Struct("!BBBBIIIIIIIHBBII")
"""Envelope and header."""
_COMPRESSED: Final = 0x80
_ENCRYPTED: Final = 0x40
TRUNCATED: Final = 0x20
_MAJOR_MASK: Final = 0x1F

_REQUESTS: Final[dict[int, Callable[[Reader], Body]]] = {
    OpCode.RESOLUTION: bodies.ResolveRequest.read,
    OpCode.GET_SITE_INFO: bodies.HandleRequest.read,
    OpCode.CREATE_HANDLE: bodies.ValuesRequest.read,
    OpCode.DELETE_HANDLE: bodies.HandleRequest.read,
    OpCode.ADD_VALUE: bodies.ValuesRequest.read,
    OpCode.REMOVE_VALUE: bodies.RemoveRequest.read,
    OpCode.MODIFY_VALUE: bodies.ValuesRequest.read,
    OpCode.LIST_HANDLES: bodies.HandleRequest.read,
    OpCode.LIST_DERIVED_PREFIXES: bodies.HandleRequest.read,
    OpCode.CHALLENGE_RESPONSE: bodies.AnswerRequest.read,
    OpCode.VERIFY_RESPONSE: bodies.VerifyRequest.read,
    OpCode.HOME_PREFIX: bodies.HandleRequest.read,
    OpCode.UNHOME_PREFIX: bodies.HandleRequest.read,
    OpCode.LIST_HOMED_PREFIXES: bodies.HandleRequest.read,
    OpCode.SESSION_SETUP: bodies.SessionRequest.read,
    OpCode.SESSION_TERMINATE: bodies.HandleRequest.read,
    OpCode.SESSION_EXCHANGE_KEY: bodies.KeyRequest.read,
    OpCode.GET_NEXT_TRANSACTION: bodies.HandleRequest.read,
    OpCode.BACKUP_SERVER: bodies.HandleRequest.read,
    OpCode.LOGIN: bodies.LoginRequest.read,
}
_SUCCESSES: Final[dict[int, Callable[[Reader], Body]]] = {
    OpCode.RESOLUTION: bodies.ResolveResponse.read,
    OpCode.GET_SITE_INFO: bodies.SiteResponse.read,
    OpCode.CREATE_HANDLE: bodies.CreateResponse.read,
    OpCode.DELETE_HANDLE: bodies.Done.read,
    OpCode.ADD_VALUE: bodies.Done.read,
    OpCode.REMOVE_VALUE: bodies.Done.read,
    OpCode.MODIFY_VALUE: bodies.Done.read,
    OpCode.LIST_HANDLES: bodies.ListResponse.read,
    OpCode.LIST_DERIVED_PREFIXES: bodies.ListResponse.read,
    OpCode.VERIFY_RESPONSE: bodies.VerifyResponse.read,
    OpCode.HOME_PREFIX: bodies.Done.read,
    OpCode.UNHOME_PREFIX: bodies.Done.read,
    OpCode.LIST_HOMED_PREFIXES: bodies.ListResponse.read,
    OpCode.SESSION_SETUP: bodies.SessionResponse.read,
    OpCode.SESSION_TERMINATE: bodies.Done.read,
    OpCode.SESSION_EXCHANGE_KEY: bodies.Done.read,
    OpCode.GET_NEXT_TRANSACTION: bodies.TransactionResponse.read,
    OpCode.BACKUP_SERVER: bodies.Done.read,
    OpCode.LOGIN: bodies.Done.read,
}
_REFERRALS: Final = frozenset({ResponseCode.SERVICE_REFERRAL, ResponseCode.PREFIX_REFERRAL})
_FAILURES: Final = (
    frozenset(ResponseCode)
    - _REFERRALS
    - {ResponseCode.REQUEST, ResponseCode.SUCCESS, ResponseCode.AUTHENTICATION_NEEDED}
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """The 20 octets before every message and fragment; never signed, never encrypted.

    `length` counts the octets of the whole message after its envelope, also in a fragment;
    `sequence` is the fragment's number. `suggested` is what the sender would rather speak.
    """

    version: Version
    suggested: Version
    session_id: int
    request_id: int
    sequence: int
    length: int
    compressed: bool = False
    encrypted: bool = False
    truncated: bool = False

    def encode(self) -> bytes:
        marks = (
            (_COMPRESSED if self.compressed else 0)
            | (_ENCRYPTED if self.encrypted else 0)
            | (TRUNCATED if self.truncated else 0)
        )
        if not 0 <= self.suggested.major <= _MAJOR_MASK:
            raise ValueError(f"major version {self.suggested.major} does not fit five bits")
        try:
            return _ENVELOPE.pack(
                *self.version,
                marks | self.suggested.major,
                self.suggested.minor,
                self.session_id,
                self.request_id,
                self.sequence,
                self.length,
            )
        except struct.error as error:
            raise ValueError(f"envelope: {error}") from None


def decode_envelope(data: bytes, octets_max: int = MESSAGE_OCTETS_MAX) -> Envelope:
    """The envelope at the start of `data`. Raises Malformed, also for a length over `octets_max`
    and for a protocol that is not 2.x, 3.x or the mistaken 5.x."""
    if len(data) < ENVELOPE_OCTETS:
        raise Malformed(len(data), f"an envelope of {ENVELOPE_OCTETS} octets")
    major, minor, marks, suggested_minor, session_id, request_id, sequence, length = (
        _ENVELOPE.unpack_from(data)
    )
    if major not in MAJORS:
        raise Malformed(0, f"protocol version 2 or 3, not {major}")
    if length > octets_max:
        raise Malformed(16, f"a message of at most {octets_max} octets, not {length}")
    version = Version(major, minor)
    suggested_major = marks & _MAJOR_MASK
    return Envelope(
        version,
        Version(suggested_major, suggested_minor) if suggested_major else version,
        session_id,
        request_id,
        sequence,
        length,
        bool(marks & _COMPRESSED),
        bool(marks & _ENCRYPTED),
        bool(marks & TRUNCATED),
    )


@dataclass(frozen=True, slots=True)
class Message:
    """One request or response.

    `opcode`, `response_code`, `flags` are plain ints (OpCode, ResponseCode, OpFlag compare with
    them). `expiration` is epoch seconds. `digest` is the digest of the request, in a
    response that carries one. `received` is header and body as they came, for digests and
    signatures; it is empty in a message made here, and equality passes over it.
    """

    opcode: int
    body: Body
    response_code: int = ResponseCode.REQUEST
    flags: int = 0
    request_id: int = 0
    session_id: int = 0
    version: Version = VERSION_OURS
    suggested: Version = VERSION_OURS
    site_serial: int = SERIAL_UNKNOWN
    recursion_count: int = 0
    expiration: int = 0
    digest: Digest | None = None
    credential: Credential | None = None
    received: bytes = field(default=b"", compare=False, repr=False)

    @property
    def is_request(self) -> bool:
        return self.response_code == ResponseCode.REQUEST

    def has(self, flag: OpFlag) -> bool:
        return bool(self.flags & flag)

    def header_and_body(self) -> bytes:
        """What digests and signatures are made of: as received, else as it would be sent."""
        return self.received or encode_header_and_body(self)


_make_message = maker(Message)


def decode_message(
    frame: bytes,
    unseal: Callable[[bytes], bytes] | None = None,
    *,
    envelope: Envelope | None = None,
) -> Message:
    """A whole frame. Raises Malformed. `envelope` is its own, where that has been decoded.

    `unseal` decrypts the payload of an encrypted message (session key and all are the
    caller's); without it an encrypted message is Malformed. Compressed ones always are.
    """
    envelope = decode_envelope(frame) if envelope is None else envelope
    if envelope.length != len(frame) - ENVELOPE_OCTETS:
        got = len(frame) - ENVELOPE_OCTETS
        raise Malformed(16, f"a message length of {got}, not {envelope.length}")
    if envelope.compressed:
        raise Malformed(2, "an uncompressed message")
    if envelope.encrypted:
        if unseal is None:
            raise Malformed(2, "an unencrypted message outside a session")
        return decode_payload(envelope, unseal(frame[ENVELOPE_OCTETS:]))
    return _read(envelope, Reader(frame, ENVELOPE_OCTETS))


def decode_payload(envelope: Envelope, payload: bytes) -> Message:
    """A message whose envelope is known and whose payload has been decrypted."""
    return _read(envelope, Reader(payload))


def _read(envelope: Envelope, reader: Reader) -> Message:
    start = reader.offset
    header = reader.octets(HEADER_OCTETS, "a header")
    opcode, code, flags, serial, recursion, _, expiration, size = _HEADER.unpack(header)
    if size > reader.left:
        raise Malformed(reader.offset - 4, f"a body of at most {reader.left} octets, not {size}")
    body_reader = Reader(reader.data, reader.offset, reader.offset + size)
    received = reader.data[start : body_reader.end]
    digest = None
    if code != ResponseCode.REQUEST and flags & OpFlag.REQUEST_DIGEST:
        digest = Digest.read(body_reader)
    body: Body
    if code == ResponseCode.PREFIX_REFERRAL and not envelope.version.reaches((2, 5)):
        code = int(ResponseCode.SERVER_BACKUP)
    if code == ResponseCode.REQUEST:
        body = _REQUESTS.get(opcode, bodies.Opaque.read)(body_reader)
    elif code == ResponseCode.SUCCESS:
        body = _SUCCESSES.get(opcode, bodies.Opaque.read)(body_reader)
    elif code in _REFERRALS:
        body = bodies.Referral.read(body_reader)
    elif code == ResponseCode.AUTHENTICATION_NEEDED:
        body = Challenge.read(body_reader)
        if digest is None and not envelope.version.reaches((2, 1)):
            octets = body_reader.block("a digest", 16)
            digest = Digest(DigestAlgorithm.LEGACY, octets)
    elif code in _FAILURES:
        body = Failure.read(body_reader)
    else:
        body = bodies.Opaque.read(body_reader)
    body_reader.done("the body")
    reader.offset = body_reader.end
    credential = None
    if reader.left >= 4:
        size = reader.u32("the length of the credential")
        if size != reader.left:
            raise Malformed(reader.offset - 4, f"a credential of {reader.left} octets, not {size}")
        credential = Credential.read(reader) if size else None
    return _make_message(
        opcode,
        body,
        code,
        flags,
        envelope.request_id,
        envelope.session_id,
        envelope.version,
        envelope.suggested,
        serial,
        recursion,
        expiration,
        digest,
        credential,
        received,
    )


def encode_header_and_body(message: Message) -> bytes:
    """Raises ValueError where a number does not fit its octets."""
    flags, code = message.flags, message.response_code
    body = message.body.encode()
    if not message.is_request:
        flags &= ~OpFlag.REQUEST_DIGEST
        if message.digest is None:
            pass
        elif message.version.reaches((2, 1)):
            flags |= OpFlag.REQUEST_DIGEST
            body = message.digest.encode() + body
        elif isinstance(message.body, Challenge):
            body += block(message.digest.octets)
        if not message.version.reaches((2, 5)):
            code = _BEFORE_2_5.get(code, code)
    try:
        header = _HEADER.pack(
            message.opcode,
            code,
            flags,
            message.site_serial,
            message.recursion_count,
            0,
            message.expiration,
            len(body),
        )
    except struct.error as error:
        raise ValueError(f"header: {error}") from None
    return header + body


_BEFORE_2_5: Final[dict[int, int]] = {
    ResponseCode.SERVER_BACKUP: ResponseCode.PREFIX_REFERRAL,
    ResponseCode.INVALID_VALUE: ResponseCode.VALUE_ALREADY_EXISTS,
}


class Oversized(ValueError):
    """The message is longer than existing clients accept. Answer with less, or a Failure."""


def encode_message(message: Message, seal: Callable[[bytes], bytes] | None = None) -> bytes:
    """The frame of `message`: what a TCP stream or an HTTP body carries, and what
    fragments.split takes. `seal` encrypts the payload for a session.

    Raises Oversized over MESSAGE_OCTETS_MAX, ValueError where a number does not fit.
    """
    credential = b"" if message.credential is None else message.credential.encode()
    payload = encode_header_and_body(message) + block(credential)
    if seal is not None:
        payload = seal(payload)
    if len(payload) > MESSAGE_OCTETS_MAX:
        raise Oversized(f"a message of {len(payload)} octets; {MESSAGE_OCTETS_MAX} is the most")
    envelope = Envelope(
        message.version,
        message.suggested,
        message.session_id,
        message.request_id,
        0,
        len(payload),
        encrypted=seal is not None,
    )
    return envelope.encode() + payload


def answer_to(
    request: Message,
    body: Body,
    response_code: int = ResponseCode.SUCCESS,
    *,
    flags: int = 0,
    session_id: int | None = None,
    site_serial: int | None = None,
    expiration: int | None = None,
    digest: Digest | None = None,
) -> Message:
    """A response that echoes what a response must: request and session id, operation, flags,
    recursion count; site serial and expiration where none are given; in the version that the
    request suggests, as far as we speak it. `flags` are added to the request's.

    With REQUEST_DIGEST set in the request, and in every challenge, the request's digest goes
    along: SHA-256 from version 2.7 as reference servers do, else SHA-1 (before 2.1 MD5).
    """
    version = answer_version(request.suggested)
    if digest is None and (request.has(OpFlag.REQUEST_DIGEST) or isinstance(body, Challenge)):
        digest = Digest.of(request.header_and_body(), digest_algorithm(version))
    return _make_message(
        request.opcode,
        body,
        response_code,
        request.flags | flags,
        request.request_id,
        request.session_id if session_id is None else session_id,
        version,
        VERSION_OURS,
        request.site_serial if site_serial is None else site_serial,
        request.recursion_count,
        request.expiration if expiration is None else expiration,
        digest,
        None,
        b"",
    )


def encode_plain_answer(
    request: bytes, body: bytes, response_code: int, flags: int, site_serial: int, expiration: int
) -> bytes:
    """`encode_message` of `answer_to`, made of the octets of a whole request that came in the
    clear and asks for no digest, and of those of the answer's body: what most answers are, in
    a tenth of the time. Raises Oversized."""
    octets = len(body) + HEADER_OCTETS + len(_NO_CREDENTIAL)
    if octets > MESSAGE_OCTETS_MAX:
        raise Oversized(f"a message of {octets} octets; {MESSAGE_OCTETS_MAX} is the most")
    major, minor, marks, suggested, session, id_, _, _, opcode, _, asked, _, recursion, _, _, _ = (
        _FRONT.unpack_from(request)
    )
    spoken = marks & _MAJOR_MASK
    version = _answered_in(spoken, suggested) if spoken else _answered_in(major, minor)
    if not version.reaches((2, 5)):
        response_code = _BEFORE_2_5.get(response_code, response_code)
    front = _FRONT.pack(
        *version,
        *VERSION_OURS,
        session,
        id_,
        0,
        octets,
        opcode,
        response_code,
        asked | flags,
        site_serial,
        recursion,
        0,
        expiration,
        len(body),
    )
    return front + body + _NO_CREDENTIAL


_NO_CREDENTIAL: Final = bytes(4)


@lru_cache(maxsize=1_024)
def _answered_in(major: int, minor: int) -> Version:
    return answer_version(Version(major, minor))


def digest_algorithm(version: Version) -> DigestAlgorithm:
    """The request digest to send in a response of `version`."""
    if not version.reaches((2, 1)):
        return DigestAlgorithm.LEGACY
    return DigestAlgorithm.SHA256 if version.reaches((2, 7)) else DigestAlgorithm.SHA1


def refusal(data: bytes, response_code: int, text: str = "") -> bytes | None:
    """A reply to octets that could not be decoded: a Failure that echoes as much of them as can
    be read. None where there is not even an envelope to echo, or where the octets are no
    request (answering an error with an error would never end). It never raises.

    `text` is cut so that the reply fits one datagram.
    """
    try:
        envelope = decode_envelope(data, 0xFFFF_FFFF)
    except Malformed:
        return None
    opcode = 0
    if len(data) >= ENVELOPE_OCTETS + 8 and not envelope.encrypted and not envelope.sequence:
        opcode = int.from_bytes(data[ENVELOPE_OCTETS : ENVELOPE_OCTETS + 4], "big")
        if data[ENVELOPE_OCTETS + 4 : ENVELOPE_OCTETS + 8] != u32(ResponseCode.REQUEST):
            return None
    room = DATAGRAM_OCTETS_MAX - ENVELOPE_OCTETS - HEADER_OCTETS - 8
    cut = text.encode(errors="replace")[:room].decode(errors="ignore")
    return encode_message(
        Message(
            opcode,
            Failure(cut),
            response_code,
            request_id=envelope.request_id,
            session_id=envelope.session_id,
            version=answer_version(envelope.suggested),
        )
    )
