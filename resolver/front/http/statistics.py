"""The endpoint for statistics."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from biaojie.errors import Forbidden, InvalidIdentifier, PrefixNotHere, Unauthenticated
from biaojie.identifier import check_prefix, fold_prefix
from registry.admission import Caller
from registry.statistics import DAYS_MAX, TEMPLATES, TEMPLATES_MAX, Report, Scope, as_document

from ...service import Service
from .accounts import name_of_cursor
from .cursor import cursor_text
from .endpoint import Asked, Endpoint, Reply, json_reply
from .models import PageQuery, PrefixText, Shape


class StatisticsQuery(PageQuery):
    prefix: PrefixText | None = Field(None, description="Only of this prefix.")
    days: int = Field(30, ge=1, le=DAYS_MAX, description="How many days, today included.")
    templates: int = Field(
        TEMPLATES, ge=0, le=TEMPLATES_MAX, description="How many templates, at most."
    )


class NumbersReply(Shape):
    registered: int
    changed: int = Field(description="Changes, not identifiers.")
    retired: int
    purged: int


class LayersReply(Shape):
    rows: int
    blocks: int
    ranges: int


class StatesReply(Shape):
    draft: int
    active: int
    frozen: int
    retired: int


class ThereReply(NumbersReply):
    identifiers: int = Field(description="Those there are, retired ones included.")
    layers: LayersReply | None = Field(
        description="By where they are kept: each in a row of its own, in a block with others, as"
        " members of a range."
    )
    states: StatesReply | None = Field(description="By status.")


class TotalReply(ThereReply):
    resolved: int | None = Field(
        description="Answered requests to resolve; only for an admin, of all prefixes together."
    )


class DayReply(NumbersReply):
    day: str = Field(description="In UTC.", examples=["2030-01-01"])
    resolved: int | None


class PrefixNumbersReply(ThereReply):
    prefix: str
    tenant: str


class TemplateReply(Shape):
    template: str | None
    identifiers: int


class BytesReply(Shape):
    total: int
    tables: dict[str, int] = Field(
        description="By table, where the database knows it without reading them."
    )


class StatisticsReply(Shape):
    """What the change log says up to entry `sequence`, and what nodes have added.

    `layers`, `states` and `templates` are null where the log began before it told of them, until
    `biaojie stats --recount` has counted what there was.
    """

    sequence: int = Field(description="The newest entry of the change log that is counted.")
    total: TotalReply
    days: list[DayReply] = Field(description="Each of the days, the oldest first.")
    prefixes: list[PrefixNumbersReply]
    templates: list[TemplateReply] | None = Field(
        description="Those that most identifiers have; null for those without one."
    )
    other_templates: int | None = Field(description="Identifiers of all other templates together.")
    bytes: BytesReply | None = Field(
        description="On the database's disks, indexes included; only for an admin, of all"
        " prefixes together."
    )
    next: str | None = Field(description="Cursor for more of `prefixes`.")


async def _ask(
    service: Service, caller: Caller, query: StatisticsQuery
) -> tuple[StatisticsQuery, Report]:
    prefix = None if query.prefix is None else check_prefix(query.prefix)
    after = name_of_cursor(query.after)
    listed = Scope(None, None, after, query.limit, query.templates)
    return query, await service.statistics(caller, prefix, query.days, listed)


def _encode(asked: Asked, answer: tuple[StatisticsQuery, Report]) -> Reply:
    query, report = answer
    onward = None
    if query.prefix is None and len(report.prefixes) == query.limit:
        onward = cursor_text(fold_prefix(report.prefixes[-1][0].name).encode())
    return json_reply({**as_document(report), "next": onward})


ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    Endpoint(
        "GET",
        "/api/v1/stats",
        "stats",
        "prefixes",
        "Count identifiers by prefix, template, layer and status, and changes by day (all for an"
        " admin, its tenant's for others)",
        lambda asked: asked.query_as(StatisticsQuery),
        _ask,
        _encode,
        query=StatisticsQuery,
        reply=StatisticsReply,
        errors=(Unauthenticated, Forbidden, InvalidIdentifier, PrefixNotHere),
    ),
)
