"""Requests and replies of the Handle REST interface, around its operations: query parameters, the
handle in the path, bodies, JSON and JSONP. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from biaojie.errors import InvalidRecord, InvalidRequest, UnsupportedMediaType
from biaojie.identifier import Identifier
from biaojie.limits import INDEX_MAX, VALUES_MAX
from registry.handle_rights import PREFIXES

from .endpoint import JSON, Asked, Reply

FIELDS_MAX: Final = 2_200
_NAME: Final = "[A-Za-z_$][A-Za-z0-9_$]*"
_CALLBACK: Final = re.compile(rf"{_NAME}(\.{_NAME}){{0,4}}", re.ASCII)
_CALLBACK_CHARS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Parameters:
    """The query string. `indexes` "various" stands for those in the body."""

    indexes: tuple[int, ...]
    various: bool
    types: tuple[str, ...]
    flags: Mapping[str, bool]
    texts: Mapping[str, str]

    def flag(self, name: str, otherwise: bool = False) -> bool:
        return self.flags.get(name, otherwise)


_NOTHING: Final = Parameters((), False, (), MappingProxyType({}), MappingProxyType({}))
_FLAGS: Final = ("auth", "cert", "publiconly", "pretty", "overwrite", "mintnewsuffix")


def parameters(asked: Asked) -> Parameters:
    """Names as they come, case aside; what is not known is passed over. Raises InvalidRequest."""
    if not asked.query:
        return _NOTHING
    try:
        pairs = parse_qsl(
            asked.query, keep_blank_values=True, errors="strict", max_num_fields=2_200
        )
    except ValueError:
        raise fault("query", "not UTF-8, or too many fields.", "不是 UTF-8 或字段过多。") from None
    indexes: dict[int, None] = {}
    types: list[str] = []
    flags: dict[str, bool] = {}
    texts: dict[str, str] = {}
    various = False
    for written, text in pairs:
        name = written.lower()
        if name == "index" and text == "various":
            various = True
        elif name == "index":
            indexes[number(text, "index", 1, INDEX_MAX)] = None
        elif name == "type":
            types.append(text)
        elif name in _FLAGS:
            flags[name] = _flag(text, written)
        else:
            texts[name] = text
    if len(indexes) > VALUES_MAX or len(types) > VALUES_MAX:
        raise fault("index", f"over {VALUES_MAX} of them.", f"超过 {VALUES_MAX} 个。")
    return Parameters(tuple(indexes), various, tuple(types), flags, texts)


def number(text: str, name: str, least: int, most: int) -> int:
    """Raises InvalidRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        raise fault(name, f"a number from {least} to {most}.", f"应为 {least} 至 {most} 的整数。")
    return int(text)


def _flag(text: str, name: str) -> bool:
    """A flag may stand without a value."""
    if text.lower() in ("", "true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise fault(name, "true or false.", "应为 true 或 false。")


def fault(name: str, en: str, zh: str) -> InvalidRequest:
    errors = [{"path": f"query.{name}", "message": en}]
    return InvalidRequest(f"{name}: {en}", f"{name}：{zh}", errors=errors)


def handle_of(asked: Asked) -> Identifier:
    """The handle in the path; without a slash it is a prefix, kept under `0.NA`."""
    prefix, slash, suffix = asked.tail_text().partition("/")
    return Identifier(prefix, suffix) if slash else Identifier(PREFIXES, prefix)


def json_body(asked: Asked) -> Any:
    kind = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
    if asked.method == "POST" and kind != JSON:
        # A page elsewhere can have a browser POST plain text with the password it remembers.
        raise UnsupportedMediaType(f"POST takes {JSON} and nothing else.", f"POST 只接受 {JSON}。")
    try:
        return orjson.loads(asked.body)
    except orjson.JSONDecodeError as error:
        raise InvalidRecord(
            f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
            f"正文不是合法 JSON（第 {error.lineno} 行，第 {error.colno} 列）。",
        ) from None


def reply(
    asked: Asked, content: Mapping[str, Any], status: int = 200, headers: Any = None
) -> Reply:
    """JSON; indented with `?pretty`, as a script with `?callback=name`."""
    pairs = parse_qsl(asked.query, keep_blank_values=True) if asked.query else ()
    told = {name.lower(): text for name, text in pairs}
    indented = told.get("pretty", "false").lower() in ("", "true", "1")
    body = orjson.dumps(content, default=str, option=orjson.OPT_INDENT_2 if indented else 0)
    headers = headers if headers is not None else {"Cache-Control": "no-store"}
    name = callback(asked)
    if name:
        body = b"/**/" + name.encode() + b"(" + _script(body) + b");"
        return Reply(status, body, "application/javascript; charset=utf-8", headers)
    return Reply(status, body, JSON, headers)


def callback(asked: Asked) -> str:
    """The name of the function to call (JSONP), or ""; a name that is none is passed over."""
    if asked.method != "GET" or not asked.query:
        return ""
    for name, text in parse_qsl(asked.query, keep_blank_values=True):
        if name == "callback":
            good = len(text) <= _CALLBACK_CHARS_MAX and _CALLBACK.fullmatch(text)
            return text if good else ""
    return ""


def _script(body: bytes) -> bytes:
    """JSON is a script but for the two line ends that only scripts have."""
    return body.replace("\u2028".encode(), b"\\u2028").replace("\u2029".encode(), b"\\u2029")
