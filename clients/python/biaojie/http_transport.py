"""The HTTP transport: one call of the node's JSON interface per method.

How a call gets there and back belongs to `http_exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from .account import ApiKey, Prefix, PrefixStatus, Role
from .calls import IssuedKey, Mint, Mode, Operation, Page, Resolved
from .change import Action, BatchResult, Entry, Receipt
from .errors import ERRORS, BiaojieError, MalformedAnswer
from .http_exchange import Call, HttpExchange, segment
from .http_imports import HttpImports
from .identifier import Identifier
from .range import Range
from .record import Record, Status, Value
from .transport import Options
from .wire import document
from .wire.document import Json

T = TypeVar("T")
_METHOD = {
    Action.CREATE: "POST",
    Action.PUT: "PUT",
    Action.MODIFY: "PATCH",
    Action.RETIRE: "DELETE",
    Action.PURGE: "DELETE",
}


class HttpTransport(HttpImports):
    """A Transport to `http://…` or `https://…`. It is Importing as well."""

    def __init__(self, url: str, options: Options) -> None:
        self._http = HttpExchange(url, options)

    @property
    def address(self) -> str:
        return self._http.address

    async def close(self) -> None:
        await self._http.close()

    # Look-ups ---------------------------------------------------------------------------

    async def resolve(
        self,
        identifier: Identifier,
        *,
        index: Sequence[int],
        types: Sequence[str],
        authoritative: bool,
        timeout_s: float,
    ) -> Resolved:
        query = [("index", str(number)) for number in index]
        query += [("type", name) for name in types]
        if authoritative:
            query.append(("auth", "1"))
        reply = await self._http.send(
            Call("GET", f"/api/v1/identifiers/{identifier.url_path()}", timeout_s, query)
        )
        return Resolved(
            record=_decoded(document.decode_record, reply.document),
            source=reply.headers.get("Biaojie-Source", ""),
            # Since the node took it from its registry, and since a proxy took it from the node.
            age_s=_whole(reply.headers.get("Biaojie-Age")) + _whole(reply.headers.get("Age")),
            etag=reply.headers.get("ETag", ""),
        )

    async def resolve_batch(
        self, identifiers: Sequence[Identifier], *, timeout_s: float
    ) -> list[Resolved | BiaojieError]:
        reply = await self._http.send(
            Call(
                "POST",
                "/api/v1/identifiers:resolve",
                timeout_s,
                body={"identifiers": [str(identifier) for identifier in identifiers]},
            )
        )
        items = _items(reply.document)
        if len(items) != len(identifiers):
            _malformed(f"{len(items)} answers for {len(identifiers)} names")
        return [
            _resolved_item(item, str(asked)) for item, asked in zip(items, identifiers, strict=True)
        ]

    async def list_records(
        self, prefix: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Record]:
        query = [("prefix", prefix), *_cursor(after, limit)]
        return await self._page("/api/v1/identifiers", query, document.decode_record, timeout_s)

    async def search(
        self,
        values: Sequence[tuple[str, str]],
        *,
        prefix: str | None,
        after: str | None,
        limit: int,
        timeout_s: float,
    ) -> Page[Identifier]:
        query = [("value", f"{type_}={data}") for type_, data in values]
        query += [*([] if prefix is None else [("prefix", prefix)]), *_cursor(after, limit)]
        return await self._page("/api/v1/identifiers:search", query, _identifier, timeout_s)

    async def list_changes(
        self, after: int, *, limit: int, wait_s: float, timeout_s: float
    ) -> tuple[tuple[Entry, ...], int]:
        query = [("after", str(after)), ("limit", str(limit)), ("wait", f"{wait_s:g}")]
        reply = await self._http.send(Call("GET", "/api/v1/changes", wait_s + timeout_s, query))
        entries = tuple(_decoded(document.decode_entry, item) for item in _items(reply.document))
        following = reply.document.get("next")
        if not isinstance(following, int) or following < after:
            _malformed("the change log's `next` runs backwards")
        return entries, following

    # Writes -----------------------------------------------------------------------------

    async def write(self, operation: Operation, *, key: str, timeout_s: float) -> Receipt:
        headers = {"Idempotency-Key": key}
        if operation.if_version is not None:
            headers["If-Match"] = f'"{operation.if_version}"'
        path = "/api/v1/identifiers"
        if operation.action is not Action.CREATE:
            path += f"/{operation.identifier.url_path()}"
        reply = await self._http.send(
            Call(
                _METHOD[operation.action],
                path,
                timeout_s,
                query=[("purge", "true")] if operation.action is Action.PURGE else (),
                body=_operation_body(operation),
                headers=headers,
            )
        )
        return _decoded(document.decode_receipt, reply.document)

    async def mint(self, mint: Mint, *, key: str, timeout_s: float) -> Receipt:
        body: Json = {"prefix": mint.prefix, "values": _values(mint.values)}
        if mint.suffix_start:
            body["suffix_start"] = mint.suffix_start
        _add_state(body, mint)
        return await self._keyed(
            "POST", "/api/v1/identifiers", body, key, timeout_s, document.decode_receipt
        )

    async def write_batch(
        self,
        operations: Sequence[Operation],
        *,
        mode: Mode,
        dry_run: bool,
        key: str,
        timeout_s: float,
    ) -> BatchResult:
        body: Json = {"mode": mode, "rows": [_row_body(operation) for operation in operations]}
        if dry_run:
            body["dry_run"] = True
        result = await self._keyed(
            "POST", "/api/v1/identifiers:batch", body, key, timeout_s, document.decode_batch
        )
        if len(result.rows) != len(operations):
            _malformed(f"{len(result.rows)} results for {len(operations)} rows")
        return result

    # Ranges -----------------------------------------------------------------------------

    async def register_range(
        self,
        prefix: str,
        pattern: str,
        values: Sequence[Value],
        *,
        status: Status | None,
        template: str | None,
        key: str,
        timeout_s: float,
    ) -> Receipt:
        body: Json = {"prefix": prefix, "pattern": pattern, "values": _values(values)}
        if status is not None:
            body["status"] = status.value
        if template is not None:
            body["template"] = template
        return await self._keyed(
            "POST", "/api/v1/ranges", body, key, timeout_s, document.decode_receipt
        )

    async def cut_range(
        self, prefix: str, pattern: str, *, purge: bool, key: str, timeout_s: float
    ) -> Receipt:
        reply = await self._http.send(
            Call(
                "DELETE",
                _range_path(prefix, pattern),
                timeout_s,
                [("purge", "true")] if purge else (),
                headers={"Idempotency-Key": key},
            )
        )
        return _decoded(document.decode_receipt, reply.document)

    async def find_range(self, prefix: str, pattern: str, *, timeout_s: float) -> Range:
        reply = await self._http.send(Call("GET", _range_path(prefix, pattern), timeout_s))
        return _decoded(document.decode_range, reply.document)

    async def list_ranges(
        self, prefix: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Range]:
        query = [("prefix", prefix), *_cursor(after, limit)]
        return await self._page("/api/v1/ranges", query, document.decode_range, timeout_s)

    # Prefixes and keys ------------------------------------------------------------------

    async def list_prefixes(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Prefix]:
        return await self._page(
            "/api/v1/prefixes", _cursor(after, limit), document.decode_prefix, timeout_s
        )

    async def find_prefix(self, name: str, *, timeout_s: float) -> Prefix:
        reply = await self._http.send(Call("GET", f"/api/v1/prefixes/{segment(name)}", timeout_s))
        return _decoded(document.decode_prefix, reply.document)

    async def home_prefix(
        self,
        name: str,
        tenant: str,
        *,
        searchable: Sequence[str],
        status: PrefixStatus,
        admin: str,
        key: str,
        timeout_s: float,
    ) -> Prefix:
        body: Json = {"prefix": name, "tenant": tenant}
        if searchable:
            body["searchable"] = list(searchable)
        if status is not PrefixStatus.ACTIVE:
            body["status"] = status.value
        if admin:
            body["admin"] = admin
        return await self._keyed(
            "POST", "/api/v1/prefixes", body, key, timeout_s, document.decode_prefix
        )

    async def change_prefix(
        self,
        name: str,
        *,
        tenant: str | None,
        status: PrefixStatus | None,
        searchable: Sequence[str] | None,
        key: str,
        timeout_s: float,
    ) -> Prefix:
        body: Json = {}
        if tenant is not None:
            body["tenant"] = tenant
        if status is not None:
            body["status"] = status.value
        if searchable is not None:
            body["searchable"] = list(searchable)
        path = f"/api/v1/prefixes/{segment(name)}"
        return await self._keyed("PATCH", path, body, key, timeout_s, document.decode_prefix)

    async def list_keys(self, *, after: str | None, limit: int, timeout_s: float) -> Page[ApiKey]:
        return await self._page(
            "/api/v1/keys", _cursor(after, limit), document.decode_key, timeout_s
        )

    async def issue_key(
        self, role: Role, tenant: str, label: str, *, timeout_s: float
    ) -> IssuedKey:
        body = {"role": role.value, "tenant": tenant, "label": label}
        reply = await self._http.send(
            Call("POST", "/api/v1/keys", timeout_s, body=body, again=False)
        )
        return _decoded(
            lambda got: IssuedKey(document.decode_key(got), str(got["key"])), reply.document
        )

    async def revoke_key(self, id_: str, *, key: str, timeout_s: float) -> ApiKey:
        path = f"/api/v1/keys/{segment(id_)}"
        return await self._keyed("DELETE", path, None, key, timeout_s, document.decode_key)

    # What they have in common -----------------------------------------------------------

    async def _keyed(
        self,
        method: str,
        path: str,
        body: Json | None,
        key: str,
        timeout_s: float,
        decode: Callable[[object], T],
    ) -> T:
        headers = {"Idempotency-Key": key}
        reply = await self._http.send(Call(method, path, timeout_s, body=body, headers=headers))
        return _decoded(decode, reply.document)

    async def _page(
        self,
        path: str,
        query: Sequence[tuple[str, str]],
        decode: Callable[[object], T],
        timeout_s: float,
    ) -> Page[T]:
        reply = await self._http.send(Call("GET", path, timeout_s, query))
        items = tuple(_decoded(decode, item) for item in _items(reply.document))
        following = reply.document.get("next")
        if following is not None and not isinstance(following, str):
            _malformed("`next` is not text")
        return Page(items, following)


# Queries and bodies --------------------------------------------------------------------


def _range_path(prefix: str, pattern: str) -> str:
    return f"/api/v1/ranges/{segment(f'{prefix}/{pattern}')}"


def _cursor(after: str | None, limit: int) -> list[tuple[str, str]]:
    return [("limit", str(limit)), *([] if after is None else [("after", after)])]


def _values(values: Sequence[Any]) -> list[Json]:
    return [document.encode_value(value) for value in values]


def _add_state(body: Json, state: Operation | Mint) -> None:
    if state.status is not None:
        body["status"] = state.status.value
    if state.template is not None:
        body["template"] = state.template


def _operation_body(operation: Operation) -> Json | None:
    body: Json
    match operation.action:
        case Action.RETIRE | Action.PURGE:
            return None
        case Action.MODIFY:
            body = {}
            if operation.values:
                body["set"] = _values(operation.values)
            if operation.remove:
                body["remove"] = list(operation.remove)
        case Action.CREATE:
            body = {"identifier": str(operation.identifier), "values": _values(operation.values)}
        case _:
            body = {"values": _values(operation.values)}
    _add_state(body, operation)
    return body


def _row_body(operation: Operation) -> Json:
    body: Json = {"identifier": str(operation.identifier)}
    if operation.action is not Action.CREATE:
        body["action"] = operation.action.value
    if operation.action is not Action.RETIRE:
        body["values"] = _values(operation.values)
        _add_state(body, operation)
    return body


# Answers --------------------------------------------------------------------------------


def _malformed(what: str) -> NoReturn:
    raise MalformedAnswer(f"The answer does not fit: {what}.", f"返回内容不符：{what}。")


def _decoded(decode: Callable[[Any], T], got: object) -> T:
    """Whatever a node sends, it is decoded or it is a MalformedAnswer."""
    try:
        return decode(got)
    except MalformedAnswer:
        raise
    except (BiaojieError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        _malformed(f"{type(error).__name__}: {error}")


def _items(got: object) -> list[Any]:
    items = got.get("items") if isinstance(got, dict) else None
    if not isinstance(items, list):
        _malformed("there is no list of items")
    return items


def _identifier(item: object) -> Identifier:
    if not isinstance(item, str):
        _malformed("an identifier is not text")
    return Identifier(*item.partition("/")[::2])


def _resolved_item(item: Any, asked: str) -> Resolved | BiaojieError:
    """One bad item is that name's error, and does not hide the others."""
    try:
        if "record" in item and item["record"] is not None:
            return Resolved(_decoded(document.decode_record, item["record"]))
        kind = ERRORS.get(item["code"], MalformedAnswer)
        return kind(str(item.get("detail", "")), str(item.get("detail_zh", "")), identifier=asked)
    except MalformedAnswer as error:
        return MalformedAnswer(*error.detail, identifier=asked)
    except (LookupError, TypeError, AttributeError):
        return MalformedAnswer(identifier=asked)


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0
