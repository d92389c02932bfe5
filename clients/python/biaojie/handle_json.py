"""Handle values as JSON, as the REST interface of Handle servers has them. Pure.

A value's `data` is `{"format": …, "value": …}`: string, base64 (hex is read too), and for the
types that have a form of their own admin, vlist, site and key. What cannot be decoded in its
own form falls back to string or base64: a record is never withheld for one odd value.
Reading is lenient, as living clients need: bare text as data, numbers as text, unknown members.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from .errors import BiaojieError, InvalidRecord
from .keys import InvalidKey, decode_public_key, encode_public_key
from .keys import jwk as keys_jwk
from .limits import TTL_DEFAULT_S, VALUES_MAX
from .record import (
    PERMISSIONS_DEFAULT,
    Permissions,
    Reference,
    Value,
    fold_type,
    usual_permissions,
)
from .wire import document
from .wire.handle import (
    Admin,
    Interface,
    Malformed,
    Server,
    Site,
    Version,
    decode_admin,
    decode_site,
    decode_value_list,
    encode_value_list,
    format_rights,
    parse_rights,
)
from .wire.handle.site import MULTI_PRIMARY, PRIMARY, HashOption, Purpose, Transport

Json = dict[str, Any]
SITE_TYPES = frozenset({"HS_SITE", "HS_SITE.6", "HS_SITE.PREFIX", "HS_NA_DELEGATE"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_PURPOSES = {(True, True): 3, (True, False): 2, (False, True): 1, (False, False): 0}  # query, admin


# Out ------------------------------------------------------------------------------------


def encode_value(value: Value) -> Json:
    """`permissions` only when they are not the usual 1110; `references` only when there are any."""
    content: Json = {"index": value.index, "type": value.type, "data": encode_data(value)}
    if value.permissions != PERMISSIONS_DEFAULT:
        content["permissions"] = str(value.permissions)
    content["ttl"] = document.encode_time(value.ttl) if value.ttl_absolute else value.ttl
    content["timestamp"] = document.encode_time(value.timestamp)
    if value.references:
        content["references"] = [
            {"handle": r.identifier, "index": r.index} for r in value.references
        ]
    return content


def encode_data(value: Value) -> Json:
    encoder = _ENCODERS.get(fold_type(value.type))
    if encoder is not None:
        try:
            return encoder(value.data)
        except (Malformed, InvalidKey, ValueError):
            pass  # somebody's own idea of this type: shown as what it is
    text = value.text
    if text is not None and _CONTROL.search(text) is None:
        return {"format": "string", "value": text}
    return {"format": "base64", "value": base64.b64encode(value.data).decode()}


def _admin(data: bytes) -> Json:
    admin = decode_admin(data)
    content: Json = {
        "handle": admin.admin.identifier,
        "index": admin.admin.index,
        "permissions": format_rights(admin.rights),
    }
    if admin.legacy:
        content["legacyByteLength"] = True
    return {"format": "admin", "value": content}


def _vlist(data: bytes) -> Json:
    listed = [{"handle": r.identifier, "index": r.index} for r in decode_value_list(data)]
    return {"format": "vlist", "value": listed}


def _key(data: bytes) -> Json:
    if data.lstrip().startswith(b"-----BEGIN"):  # the IIIS form is text and stays text
        raise ValueError
    return {"format": "key", "value": keys_jwk.encode(decode_public_key(data))}


def encode_site(site: Site) -> Json:
    return {
        "version": site.format,
        "protocolVersion": f"{site.version.major}.{site.version.minor}",
        "serialNumber": site.serial,
        "primarySite": site.is_primary,
        "multiPrimary": bool(site.primary_mask & MULTI_PRIMARY),
        **({} if site.hash_option == HashOption.HANDLE else {"hashOption": site.hash_option}),
        **({"hashFilter": site.hash_filter.decode()} if site.hash_filter else {}),
        "attributes": [{"name": name, "value": text} for name, text in site.attributes],
        "servers": [_server(server) for server in site.servers],
    }


def _server(server: Server) -> Json:
    content: Json = {"serverId": server.id, "address": str(server.ip)}
    if server.public_key:
        content["publicKey"] = _key(server.public_key)
    content["interfaces"] = [
        {
            "query": bool(interface.purpose & Purpose.QUERY),
            "admin": bool(interface.purpose & Purpose.ADMIN),
            "protocol": Transport(interface.transport).name,
            "port": interface.port,
        }
        for interface in server.interfaces
    ]
    return content


_ENCODERS: dict[str, Callable[[bytes], Json]] = {
    "HS_ADMIN": _admin,
    "HS_VLIST": _vlist,
    "HS_PUBKEY": _key,
    **{
        name: lambda data: {"format": "site", "value": encode_site(decode_site(data))}
        for name in SITE_TYPES
    },
}


# In -------------------------------------------------------------------------------------


def decode_values(content: object) -> tuple[Value, ...]:
    """From a list of values, an object with `values`, or one value. Raises InvalidRecord."""
    if isinstance(content, Mapping) and "values" in content:
        content = content["values"]
    elif isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list) or len(content) > VALUES_MAX:
        raise _bad("values", f"must be a list of at most {VALUES_MAX} values.")
    return tuple(_value(item, f"values[{n}]") for n, item in enumerate(content))


def _bad(path: str, what: str) -> InvalidRecord:
    return InvalidRecord(f"{path}: {what}", f"{path}：{what}", path=path)


def _value(content: object, path: str) -> Value:
    if not isinstance(content, Mapping):
        raise _bad(path, "must be an object.")
    type_ = content.get("type")
    if not isinstance(type_, str):
        raise _bad(f"{path}.type", "must be text.")
    # Known members only, in the stricter codec's words; everything else is passed over.
    usual = str(usual_permissions(type_))
    ttl = content.get("ttl", TTL_DEFAULT_S)
    absolute = isinstance(ttl, str) and not ttl.isdigit()
    references = content.get("references") or []
    if not isinstance(references, list):
        raise _bad(f"{path}.references", "must be a list.")
    return Value(
        index=_number(content.get("index"), f"{path}.index"),
        type=type_,
        data=_data(content.get("data"), f"{path}.data"),
        ttl=document.decode_time(ttl, f"{path}.ttl") if absolute else _number(ttl, f"{path}.ttl"),
        ttl_absolute=absolute,
        permissions=_permissions(content.get("permissions", usual), f"{path}.permissions"),
        references=tuple(_reference(item, f"{path}.references") for item in references),
    )


def _number(given: object, path: str) -> int:
    """A whole number, as a number or as digits (living clients send both)."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 11:
        return int(given)
    raise _bad(path, "must be a whole number.")


def _permissions(given: object, path: str) -> Permissions:
    if not isinstance(given, str):
        raise _bad(path, "must be four digits 0 or 1.")
    return Permissions.parse(given)


def _reference(given: object, path: str) -> Reference:
    handle = given.get("handle") if isinstance(given, Mapping) else None
    if not isinstance(handle, str):
        raise _bad(path, "must be objects with handle and index.")
    assert isinstance(given, Mapping)
    return Reference(handle, _number(given.get("index", 0), path))


def _data(given: object, path: str) -> bytes:
    if not isinstance(given, Mapping) or given.get("format", "string") in _PLAIN_FORMATS:
        try:
            return document.decode_data(given, path)
        except BiaojieError as error:
            raise InvalidRecord(*error.detail, path=path) from None
    decoder = _DECODERS.get(str(given.get("format")))
    if decoder is None:
        raise _bad(path, "format must be string, base64, hex, admin, vlist, site or key.")
    try:
        return decoder(given.get("value"), path)
    except (ValueError, KeyError, TypeError, AttributeError, InvalidKey) as error:
        raise _bad(path, f"is not in the form {given['format']}: {error}.") from error


_PLAIN_FORMATS = ("string", "base64", "hex")


def _admin_octets(given: Any, path: str) -> bytes:
    admin = Admin(
        rights=_rights(given["permissions"]),
        admin=_reference(given, path),
        legacy=bool(given.get("legacyByteLength", False)),
    )
    return admin.encode()


def _rights(given: object) -> int:
    """Twelve digits; also "*", true or false, a number, or the digits as a list."""
    if given == "*" or given is True:
        return 0xFFF
    if given is False:
        return 0
    if isinstance(given, int):
        if not 0 <= given <= 0xFFFF:
            raise ValueError("permissions out of range")
        return given
    if isinstance(given, list):
        given = "".join(str(int(bool(digit))) for digit in given[:16])
    if not isinstance(given, str):
        raise ValueError("permissions must be twelve digits")
    return parse_rights(given)


def _vlist_octets(given: Any, path: str) -> bytes:
    if not isinstance(given, Sequence) or len(given) > VALUES_MAX:
        raise ValueError("a list of handle and index")
    return encode_value_list(tuple(_reference(item, path) for item in given))


def _key_octets(given: Any, path: str) -> bytes:
    return encode_public_key(keys_jwk.decode(given))


def _site_octets(given: Any, path: str) -> bytes:
    major, _, minor = str(given.get("protocolVersion", "2.11")).partition(".")
    mask = PRIMARY if given.get("primarySite", True) else 0
    return Site(
        format=_number(given.get("version", 1), path),
        version=Version(int(major), int(minor or 0)),
        serial=_number(given.get("serialNumber", 1), path),
        primary_mask=mask | (MULTI_PRIMARY if given.get("multiPrimary") else 0),
        hash_option=_number(given.get("hashOption", int(HashOption.HANDLE)), path),
        hash_filter=str(given.get("hashFilter", "")).encode(),
        attributes=tuple(
            (str(item["name"]), str(item["value"])) for item in given.get("attributes") or []
        ),
        servers=tuple(_server_of(item, path) for item in given.get("servers") or []),
    ).encode()


def _server_of(given: Any, path: str) -> Server:
    key = given.get("publicKey")
    octets = b""
    if isinstance(key, Mapping):
        octets = _data(key, path)
    interfaces = tuple(
        Interface(
            _PURPOSES[bool(item.get("query")), bool(item.get("admin"))],
            Transport[str(item["protocol"]).upper()],
            _number(item["port"], path),
        )
        for item in given.get("interfaces") or []
    )
    address = str(ip_address(str(given["address"])))
    return Server.at(_number(given.get("serverId", 1), path), address, octets, interfaces)


_DECODERS: dict[str, Callable[[Any, str], bytes]] = {
    "admin": _admin_octets,
    "vlist": _vlist_octets,
    "key": _key_octets,
    "site": _site_octets,
}
