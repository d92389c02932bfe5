"""Endpoints for people and operators: pages, static files, health, metrics, the description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from biaojie import __version__
from biaojie.errors import BiaojieError, InvalidIdentifier, NotFound
from biaojie.identifier import Identifier
from registry.admission import Caller

from ...observe import METRICS_CONTENT_TYPE
from ...service import Service
from . import pages
from .endpoint import Asked, Endpoint, Reply, error_headers, etag, json_reply, problem_reply
from .identifiers import encode_resolution, matches, resolution_headers
from .models import HealthReply
from .negotiation import Language, language, wants_json
from .openapi import describe
from .proxy import PageAnswer, PageQuestion, page_question, resolve_page
from .static_files import static_file

HTML = "text/html; charset=utf-8"
PAGE_AGE_MAX_S = 60


@dataclass(frozen=True, slots=True)
class Facts:
    """What pages and health say of the node itself."""

    node_name: str
    server: str  # what the description names as the server: a URL, or / for "here"
    examples: tuple[str, ...]
    status: Callable[[], str]
    metrics: Callable[[], Awaitable[bytes]]
    clock: Callable[[], float]
    redirects: bool = False


def html_reply(html: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(
        status,
        html.encode("utf-8", "replace"),
        HTML,
        {
            "Cache-Control": "no-store",
            "Vary": "Accept, Accept-Language, Authorization",
            **(headers or {}),
            "Content-Security-Policy": pages.CONTENT_SECURITY_POLICY,
        },
    )


def _untagged(reply: Reply) -> Reply:
    headers = {k: v for k, v in reply.headers.items() if k != "ETag"}
    return replace(reply, headers=headers, entry=None)


async def _nothing(service: Service, caller: Caller, question: Any) -> Any:
    return question


def public_endpoints(
    facts: Facts, api: tuple[Endpoint[Any, Any], ...]
) -> tuple[Endpoint[Any, Any], ...]:
    """The endpoints of this module, and with them the description of all `api` endpoints."""

    def shown(asked: Asked) -> Language:
        return language(asked.headers.get("accept-language"))

    def error_page(asked: Asked, error: BiaojieError, text: str | None = None) -> Reply:
        if wants_json(asked.headers.get("accept")):
            return problem_reply(error, chinese=asked.chinese)
        if text is None:
            try:
                text = asked.tail_text()
            except BiaojieError:
                text = asked.tail
        headers = error_headers(error)
        retry = headers.get("Retry-After")
        html = pages.error_page(
            error,
            identifier_text=text,
            language=shown(asked),
            node_name=facts.node_name,
            retry_after_s=int(retry) if retry else None,
        )
        return html_reply(html, problem_reply(error, chinese=False).status, headers)

    # Pages ------------------------------------------------------------------------------

    def wanted(asked: Asked) -> PageQuestion:
        if "/" not in asked.tail and "%2f" not in asked.tail.lower():
            raise NotFound()
        return page_question(asked, redirects=facts.redirects)

    def show(asked: Asked, answer: PageAnswer) -> Reply:
        found = answer.found
        if answer.target:
            vary = "Accept, Authorization"
            where = {"Location": answer.target, "Cache-Control": "no-store", "Vary": vary}
            return Reply(302, headers=where)
        if wants_json(asked.headers.get("accept")):
            reply = encode_resolution(asked, found)
            # The tag of another record says nothing of the alias that led there.
            return _untagged(reply) if answer.alias else reply
        identifier = found.record.identifier
        html = pages.resolve_page(
            found.record,
            source=found.source.value,
            permanent_url=f"{asked.origin}/{identifier.url_path()}",
            json_url=f"/api/v1/identifiers/{identifier.url_path()}",
            language=shown(asked),
            node_name=facts.node_name,
            now=facts.clock(),
        )
        scope = "private" if found.private else "public"
        headers = resolution_headers(found) | {
            "ETag": etag(found.record, private=found.private)[:-1] + f'.{shown(asked)}"',
            "Cache-Control": f"{scope}, max-age={min(found.ttl_s, PAGE_AGE_MAX_S)}",
            "Content-Language": shown(asked),
        }
        if answer.alias:
            return _untagged(html_reply(html, 200, headers))
        if found.source != "stale" and matches(asked, headers["ETag"]):
            return Reply(304, headers=headers)
        return html_reply(html, 200, headers)

    def search(asked: Asked, _: Any) -> Reply:
        html = pages.search_page(
            language=shown(asked),
            node_name=facts.node_name,
            examples=list(facts.examples),
        )
        return html_reply(html, headers={"Cache-Control": "public, max-age=60"})

    def typed(asked: Asked) -> str:
        pairs = parse_qsl(asked.query, errors="replace", max_num_fields=20)
        return dict(pairs).get("identifier", "")[: pages.TYPED_CHARS_MAX]

    def find(asked: Asked, text: str) -> Reply:
        if not text.strip():
            return Reply(303, headers={"Location": "/", "Cache-Control": "no-store"})
        try:
            identifier = Identifier.parse(text)
        except InvalidIdentifier as error:
            return error_page(asked, error, text)
        where = {"Location": "/" + identifier.url_path(), "Cache-Control": "no-store"}
        return Reply(303, headers=where)

    # The description ----------------------------------------------------------------------

    @cache
    def described() -> dict[str, Any]:
        return describe(every, server=facts.server, version=__version__)

    @cache
    def reference_page(shown: Language) -> str:
        return pages.api_page(described(), language=shown, node_name=facts.node_name)

    def description(asked: Asked, _: Any) -> Reply:
        return json_reply(described(), 200, {"Cache-Control": "public, max-age=60"})

    def reference(asked: Asked, _: Any) -> Reply:
        return html_reply(reference_page(shown(asked)), headers={"Cache-Control": "no-cache"})

    def static(asked: Asked, name: str) -> Reply:
        found = static_file(name)
        if found is None:
            raise NotFound()
        content, kind, tag = found
        headers = {"ETag": tag, "Cache-Control": "public, max-age=86400"}
        if matches(asked, tag):
            return Reply(304, headers=headers)
        return Reply(200, content, kind, headers)

    # Operators ----------------------------------------------------------------------------

    def healthy(asked: Asked, _: Any) -> Reply:
        return json_reply({"status": "ok"})

    def ready(asked: Asked, _: Any) -> Reply:
        # With the registry down the node still answers warm names: it stays in rotation.
        status = facts.status()
        return json_reply({"status": status}, 503 if status in ("starting", "draining") else 200)

    async def measured(service: Service, caller: Caller, question: Any) -> bytes:
        return await facts.metrics()

    def metrics(asked: Asked, page: bytes) -> Reply:
        return Reply(200, page, METRICS_CONTENT_TYPE, {"Cache-Control": "no-store"})

    def plain(
        path: str,
        operation: str,
        encoder: Callable[[Asked, Any], Reply],
        *,
        tag: str = "",
        summary: str = "",
        decode: Callable[[Asked], Any] = lambda asked: None,
        service: Callable[[Service, Caller, Any], Any] = _nothing,
        **more: Any,
    ) -> Endpoint[Any, Any]:
        return Endpoint(
            "GET",
            path,
            operation,
            tag,
            summary,
            decode,
            service,
            encoder,
            public=True,
            keyless=True,
            **more,
        )

    own = (
        plain("/", "search-page", search),
        plain("/resolve", "find", find, decode=typed),
        plain("/api", "api-page", reference),
        plain("/static/{name}", "static", static, decode=lambda asked: asked.tail),
        plain("/openapi.json", "openapi", description, tag="node", summary="This description"),
        plain(
            "/healthz",
            "healthz",
            healthy,
            tag="node",
            summary="Is the process alive?",
            reply=HealthReply,
        ),
        plain(
            "/readyz",
            "readyz",
            ready,
            tag="node",
            summary="Should it get traffic?",
            reply=HealthReply,
            success=(200, 503),
        ),
        plain(
            "/metrics",
            "metrics",
            metrics,
            tag="node",
            summary="Metrics in Prometheus text format",
            service=measured,
            media=METRICS_CONTENT_TYPE,
        ),
        Endpoint(
            "GET",
            "/{identifier}",
            "page",
            "",
            "",
            wanted,
            resolve_page,
            show,
            public=True,
            whole_tail=True,
            error_encoder=error_page,
        ),
    )
    every = (*api, *own)
    return own
