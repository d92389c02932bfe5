"""The Handle REST interface: `/api/handles`, `/api/prefixes`, `/api/site`, `/api/sessions`, with
the parameters, response codes and HTTP statuses that Handle servers have.

Not part of the description of our own API: `docs/handle-rest.md` documents it.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from multidict import CIMultiDict
from pydantic import RootModel
from ulid import ULID

from biaojie import handle_json
from biaojie.change import Action, Receipt
from biaojie.errors import (
    BiaojieError,
    InvalidRecord,
    NotFound,
    Unauthenticated,
)
from biaojie.identifier import Identifier, check_prefix
from biaojie.record import Status, Value
from biaojie.wire import document
from biaojie.wire.handle import ResponseCode, Site
from biaojie.wire.handle.codes import response_code_of
from registry.admission import PUBLIC, Caller
from registry.handle_rights import PREFIXES
from registry.operations import Create, Modify, Purge, Put, RecordOperation, Retire

from ...query import Query, Resolution
from ...service import Service
from .endpoint import Asked, Endpoint, Reply, error_headers
from .handle_auth import RestAuthentication, RestSession
from .handle_query import callback, fault, handle_of, json_body, number, parameters, reply
from .identifiers import resolution_headers

HANDLES_MAX: Final = 10_000
"""How far the numbered pages of a list reach: all before a page are read again for it."""
PREFIXES_MAX: Final = 1_000
STATUS: Final[Mapping[int, int]] = {
    ResponseCode.SUCCESS: 200,
    ResponseCode.ERROR: 500,
    ResponseCode.SERVER_BUSY: 503,
    ResponseCode.SERVER_BACKUP: 503,
    ResponseCode.HANDLE_NOT_FOUND: 404,
    ResponseCode.HANDLE_ALREADY_EXISTS: 409,
    ResponseCode.INVALID_HANDLE: 400,
    ResponseCode.VALUES_NOT_FOUND: 400,
    ResponseCode.VALUE_ALREADY_EXISTS: 409,
    ResponseCode.INVALID_VALUE: 400,
    ResponseCode.SERVER_NOT_RESPONSIBLE: 400,
    ResponseCode.SERVICE_REFERRAL: 400,
    ResponseCode.PREFIX_REFERRAL: 400,
    ResponseCode.AUTHENTICATION_NEEDED: 401,
}
"""HTTP statuses by response code; 400 to 408 are 403 besides, others what our error has."""


class _Values(RootModel[Any]):
    """Any JSON: what it means is for the lenient codec to say."""


# What is answered -----------------------------------------------------------------------


def status_of(code: int, error: BiaojieError) -> int:
    if 400 <= code < 500 and code not in STATUS:
        return 403
    return STATUS.get(code, document.HTTP_STATUS[error.code])


@dataclass(frozen=True, slots=True)
class _Write:
    operation: RecordOperation
    handle: str


class HandleRest:
    """`site` gives what the node says of itself; `delete` is what deleting a handle means."""

    def __init__(
        self,
        authentication: RestAuthentication,
        *,
        delete: Literal["purge", "retire"] = "purge",
        site: Callable[[], Site | None] = lambda: None,
    ) -> None:
        self._authentication = authentication
        self._delete = delete
        self._site = site

    async def caller(self, asked: Asked) -> Caller:
        """A script in somebody else's page (JSONP) sees what everybody sees, whoever is logged
        in to the browser around it."""
        return PUBLIC if callback(asked) else await self._authentication.caller(asked)

    def admitting(self, endpoint: Endpoint[Any, Any]) -> Endpoint[Any, Any]:
        """The search servlet is asked with the same password as its server."""
        if endpoint.operation != "search-handles":
            return endpoint
        return replace(endpoint, authenticate=self.caller)

    def refuse(self, asked: Asked, error: BiaojieError) -> Reply:
        code = int(response_code_of(error))
        if isinstance(error, Unauthenticated):  # clients take another code for a refusal for good
            code = int(ResponseCode.AUTHENTICATION_NEEDED)
        headers: Any = error_headers(error)
        status = status_of(code, error)
        detail = error.detail
        if code == ResponseCode.AUTHENTICATION_NEEDED:
            headers = CIMultiDict(headers)
            del headers["WWW-Authenticate"]
            if self._authentication.safe(asked):
                for scheme in self._authentication.challenge():
                    headers.add("WWW-Authenticate", scheme)
            else:
                status, code = 403, int(ResponseCode.UNABLE_TO_AUTHENTICATE)
                detail = type(detail)(
                    "Passwords and sessions are taken over TLS only.",
                    "用户名密码与会话认证仅可通过 TLS 使用。",
                )
        content: dict[str, Any] = {"responseCode": code}
        if asked.path.startswith("/api/handles/"):
            with contextlib.suppress(BiaojieError):
                content["handle"] = asked.tail_text()
        content["message"] = detail.zh if asked.chinese else detail.en
        return reply(asked, content, status, headers)

    # Handles ----------------------------------------------------------------------------

    @staticmethod
    def ask(asked: Asked) -> tuple[Query, bool | None]:
        given = parameters(asked)
        query = Query(handle_of(asked), given.indexes, given.types, given.flag("auth"))
        return query, given.flags.get("publiconly")

    @staticmethod
    def public_query(question: tuple[Query, bool | None]) -> Query | None:
        query, public_only = question
        return None if query.authoritative or public_only is False else query

    @staticmethod
    async def resolve(
        service: Service, caller: Caller, question: tuple[Query, bool | None]
    ) -> Resolution:
        query, public_only = question
        if public_only is False and caller.is_public:
            raise Unauthenticated()
        return await service.resolve(query, PUBLIC if public_only else caller)

    @staticmethod
    def show(asked: Asked, found: Resolution) -> Reply:
        values = [handle_json.encode_value(value) for value in found.record.values]
        code = ResponseCode.SUCCESS if values else ResponseCode.VALUES_NOT_FOUND
        content = {"responseCode": int(code), "handle": asked.tail_text(), "values": values}
        headers = resolution_headers(found)
        del headers["ETag"]
        shown = reply(asked, content, 200, headers)
        return shown if found.entry is None else replace(shown, entry=found.entry)

    @staticmethod
    def put(asked: Asked) -> _Write:
        given = parameters(asked)
        values = handle_json.decode_values(json_body(asked))
        if given.flag("mintnewsuffix"):
            prefix, _, start = asked.tail_text().partition("/")
            name = Identifier(prefix, f"{start}{ULID()}")
            return _Write(Create(name, values), str(name))
        name = handle_of(asked)
        overwrite = given.flag("overwrite", True)
        operation: RecordOperation
        if given.indexes or given.various:
            chosen = values if given.various else _chosen(values, given.indexes)
            operation = Modify(name, chosen, only="any" if overwrite else "new")
        elif overwrite:
            operation = Put(name, values)
        else:
            operation = Create(name, values)
        return _Write(operation, asked.tail_text())

    def remove(self, asked: Asked) -> _Write:
        given = parameters(asked)
        name = handle_of(asked)
        operation: RecordOperation
        if given.indexes:
            operation = Modify(name, remove=given.indexes)
        else:
            operation = Purge(name) if self._delete == "purge" else Retire(name)
        return _Write(operation, asked.tail_text())

    @staticmethod
    async def write(service: Service, caller: Caller, write: _Write) -> tuple[Receipt, str]:
        return (await service.write(caller, [write.operation])).single(), write.handle

    @staticmethod
    def written(asked: Asked, answer: tuple[Receipt, str]) -> Reply:
        receipt, handle = answer
        created = receipt.action is Action.CREATE
        content = {"responseCode": int(ResponseCode.SUCCESS), "handle": handle}
        return reply(asked, content, 201 if created else 200)

    # Lists ------------------------------------------------------------------------------

    @staticmethod
    def ask_list(asked: Asked) -> tuple[str, int, int | None]:
        """Prefix, page from 0, handles per page."""
        texts = parameters(asked).texts
        prefix = check_prefix(texts.get("prefix", "").removeprefix(f"{PREFIXES}/"))
        size = texts.get("pagesize")
        page = number(texts.get("page", "0"), "page", 0, HANDLES_MAX)
        if size is None:
            return prefix, page, None
        each = number(size, "pageSize", 0, HANDLES_MAX)
        if (page + 1) * each > HANDLES_MAX:
            raise fault(
                "page",
                f"pages reach to handle {HANDLES_MAX}; /api/v1/identifiers goes on by cursor.",
                f"分页最多到第 {HANDLES_MAX} 个；更多请用 /api/v1/identifiers 的游标。",
            )
        return prefix, page, each

    @staticmethod
    async def list_handles(
        service: Service, caller: Caller, question: tuple[str, int, int | None]
    ) -> dict[str, Any]:
        prefix, page, size = question
        each = HANDLES_MAX if size is None else size
        first = 0 if size is None else page * each
        until = HANDLES_MAX if not each else first + each
        handles: list[str] = []
        after: bytes | None = None
        more = True
        while more and len(handles) < until:
            records, more = await service.list_records(caller, prefix, after, 1_000)
            handles += [str(r.identifier) for r in records if r.status is not Status.RETIRED]
            if records:
                after = service.cursor(records[-1])
        content: dict[str, Any] = {"responseCode": int(ResponseCode.SUCCESS), "prefix": prefix}
        if not more:  # counting on would mean to read them all
            content["totalCount"] = len(handles)
        return content | {
            "page": page,
            "pageSize": each,
            "handles": handles[first : first + each],
        }

    @staticmethod
    async def list_prefixes(service: Service, caller: Caller, _: Any) -> dict[str, Any]:
        listed = await service.list_prefixes(caller, None, PREFIXES_MAX)
        names = [f"{PREFIXES}/{prefix.name}" for prefix in listed]
        return {"responseCode": int(ResponseCode.SUCCESS), "prefixes": names}

    @staticmethod
    async def find_prefix(service: Service, caller: Caller, name: str) -> dict[str, Any]:
        prefix = await service.find_prefix(caller, name)
        return {
            "responseCode": int(ResponseCode.SUCCESS),
            "prefix": f"{PREFIXES}/{prefix.name}",
            "status": prefix.status.value,
        }

    async def find_site(self, service: Service, caller: Caller, _: Any) -> dict[str, Any]:
        site = self._site()
        if site is None:
            raise NotFound("This node has no Handle site.", "本节点没有 Handle 站点信息。")
        return handle_json.encode_site(site)

    # Sessions ---------------------------------------------------------------------------

    async def begin(self, service: Service, caller: Caller, asked: Asked) -> dict[str, Any]:
        if not self._authentication.safe(asked):
            raise Unauthenticated()
        return _session(self._authentication.sessions.begin())

    async def this(self, service: Service, caller: Caller, asked: Asked) -> dict[str, Any]:
        session = await self._authentication.session_of(asked)
        if session is None or (asked.method != "GET" and caller.is_public):
            raise Unauthenticated()
        return _session(session)

    async def end(self, service: Service, caller: Caller, asked: Asked) -> None:
        session = await self._authentication.session_of(asked)
        if session is None:
            raise Unauthenticated()
        await self._authentication.end(session)

    # The table --------------------------------------------------------------------------

    def endpoints(self) -> tuple[Endpoint[Any, Any], ...]:
        def at(
            method: str,
            path: str,
            operation: str,
            decode: Callable[[Asked], Any],
            service: Callable[[Service, Caller, Any], Any],
            encoder: Callable[[Asked, Any], Reply] = reply,
            **more: Any,
        ) -> Endpoint[Any, Any]:
            return Endpoint(
                method,
                path,
                operation,
                "",
                "",
                decode,
                service,
                encoder,
                public=method == "GET",
                whole_tail=True,
                authenticate=self.caller,
                error_encoder=self.refuse,
                **more,
            )

        handle = "/api/handles/{handle}"
        this = "/api/sessions/this"

        def same(asked: Asked) -> Asked:
            return asked

        def begun(asked: Asked, content: Any) -> Reply:
            return reply(asked, content, 201)

        def ended(asked: Asked, _: Any) -> Reply:
            return Reply(204, headers={"Cache-Control": "no-store"})

        def named(asked: Asked) -> str:
            return check_prefix(asked.tail_text().removeprefix(f"{PREFIXES}/"))

        written = {"body": _Values}
        together = {"public_query": self.public_query}
        return (
            at("GET", handle, "handle-get", self.ask, self.resolve, self.show, **together),
            at("PUT", handle, "handle-put", self.put, self.write, self.written, **written),
            at("POST", handle, "handle-post", self.put, self.write, self.written, **written),
            at("DELETE", handle, "handle-delete", self.remove, self.write, self.written),
            at("GET", "/api/handles", "handle-list", self.ask_list, self.list_handles),
            at("GET", "/api/prefixes", "handle-prefixes", same, self.list_prefixes),
            at("GET", "/api/prefixes/{prefix}", "handle-prefix", named, self.find_prefix),
            at("GET", "/api/site", "handle-site", same, self.find_site),
            at("POST", "/api/sessions", "handle-session-new", same, self.begin, begun),
            at("POST", "/api/sessions/", "handle-session-new", same, self.begin, begun),
            at("GET", this, "handle-session", same, self.this),
            at("PUT", this, "handle-session", same, self.this),
            at("POST", this, "handle-session", same, self.this),
            at("DELETE", this, "handle-session-end", same, self.end, ended),
        )


def _chosen(values: tuple[Value, ...], indexes: tuple[int, ...]) -> tuple[Value, ...]:
    """Those of the body that `index=` names; each must be there."""
    by_index = {value.index: value for value in values}
    missing = [index for index in indexes if index not in by_index]
    if missing:
        raise InvalidRecord(
            f"The body has no value {missing[0]}.", f"正文中没有索引为 {missing[0]} 的值。"
        )
    return tuple(value for value in values if value.index in indexes)


def _session(session: RestSession) -> dict[str, Any]:
    content: dict[str, Any] = {
        "sessionId": session.id,
        "nonce": base64.b64encode(session.nonce).decode(),
        "authenticated": session.proved is not None,
    }
    if session.proved is not None:
        content["id"] = str(session.proved[0].handle)
    return content
