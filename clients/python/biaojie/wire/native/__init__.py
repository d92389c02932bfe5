"""The native protocol's codec, for nodes, clients and load generators. Sans I/O.

`frames` cuts octets up; `requests` are what can be asked, `request_bodies` and `answers` the
bodies both ways, `values` and `shapes` their parts. The
document of the protocol is `docs/protocol.md`; names that end in `_OCTETS` or `_AT` are places
in a frame for those who need no more of it.
"""

from __future__ import annotations

from .answers import (
    RESOLUTION,
    RESOLUTION_OCTETS,
    Resolution,
    Welcome,
    decode_error,
    decode_resolution,
    decode_resolutions,
    decode_welcome,
    encode_error,
    encode_resolution,
    encode_welcome,
)
from .frames import (
    CONNECTION,
    HEAD,
    HEAD_OCTETS,
    ID_MAX,
    KEY_AT,
    PORT,
    VERSION,
    Frame,
    Framing,
    Kind,
    encode_frame,
    encode_resolve,
)
from .request_bodies import decode_request, encode_request
from .requests import Hello, Request, Resolve, ResolveMany

__all__ = [
    "CONNECTION",
    "HEAD",
    "HEAD_OCTETS",
    "ID_MAX",
    "KEY_AT",
    "PORT",
    "RESOLUTION",
    "RESOLUTION_OCTETS",
    "VERSION",
    "Frame",
    "Framing",
    "Hello",
    "Kind",
    "Request",
    "Resolution",
    "Resolve",
    "ResolveMany",
    "Welcome",
    "decode_error",
    "decode_request",
    "decode_resolution",
    "decode_resolutions",
    "decode_welcome",
    "encode_error",
    "encode_frame",
    "encode_request",
    "encode_resolution",
    "encode_resolve",
    "encode_welcome",
]
