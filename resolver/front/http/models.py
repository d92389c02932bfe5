"""The shapes of the HTTP API: what bodies, queries and replies look like.

One source for two uses: requests are validated with these, `/openapi.json` is made of them.
What the fields mean (base64, times, permissions, duplicate indexes) is decided by the codec
and the registry; here is only shape and size.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from biaojie.limits import (
    BATCH_ROWS_MAX,
    IDENTIFIER_CHARS_MAX,
    INDEX_MAX,
    LABEL_CHARS_MAX,
    PAGE_ROWS_MAX,
    PREFIX_CHARS_MAX,
    REFERENCES_MAX,
    RESOLVE_MANY_MAX,
    SEARCH_VALUES_MAX,
    SEARCHABLE_TYPES_MAX,
    TENANT_CHARS_MAX,
    TTL_DEFAULT_S,
    TTL_MAX_S,
    TYPE_CHARS_MAX,
    VALUE_BYTES_MAX,
    VALUES_MAX,
)


def _whole(given: Any) -> Any:
    """In JSON 1.0 is a whole number; "1" and true are none."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


Index = Annotated[int, Field(ge=1, le=INDEX_MAX, strict=True), BeforeValidator(_whole)]
IndexOrAll = Annotated[int, Field(ge=0, le=INDEX_MAX, strict=True), BeforeValidator(_whole)]
Seconds = Annotated[int, Field(ge=0, le=TTL_MAX_S, strict=True), BeforeValidator(_whole)]
# Pasted forms (hdl:, https://…) are longer than what they stand for.
IdentifierText = Annotated[
    str, Field(min_length=1, max_length=12 * IDENTIFIER_CHARS_MAX, examples=["88.118.8/SN0001"])
]
PrefixText = Annotated[str, Field(min_length=1, max_length=PREFIX_CHARS_MAX, examples=["88.118.8"])]
PrefixState = Literal["active", "suspended", "delegated", "referred", "unhomed"]
Settable = Literal["draft", "active", "frozen"]
Time = Annotated[str, Field(examples=["2030-01-01T00:00:00Z"])]
Hex32 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


UNKNOWN_FIELDS_MAX = 16


class Shape(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        regex_engine="python-re",
        defer_build=True,  # to when it is first used: most nodes are asked for few of them
    )

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, given: Any) -> Any:
        """Naming unknown fields one by one costs more than sending them: not without limit."""
        if isinstance(given, dict) and len(given) > len(cls.model_fields) + UNKNOWN_FIELDS_MAX:
            raise PydanticCustomError("too_many_fields", "Object has too many fields")
        return given


class Octets(Shape):
    """Data that is not plain text."""

    format: Literal["string", "base64", "hex"] = "string"
    value: str = Field(max_length=2 * VALUE_BYTES_MAX)


class ReferenceShape(Shape):
    identifier: IdentifierText
    index: IndexOrAll = 0


class ValueShape(Shape):
    """A Handle value. UTF-8 data is plain text; other octets are base64 (or hex on input)."""

    index: Index
    type: str = Field(min_length=1, max_length=TYPE_CHARS_MAX, examples=["URL"])
    data: Annotated[str, Field(max_length=VALUE_BYTES_MAX)] | Octets = Field(
        examples=["https://acme.example/p/SN0001"]
    )
    ttl: Seconds | Time = Field(
        TTL_DEFAULT_S, description="Seconds, or the time at which the value expires."
    )
    permissions: str = Field(
        "1110",
        pattern="^[01]{4}$",
        description="Four digits: admin-read, admin-write, public-read, public-write."
        " Left out, secret types get 1100.",
    )
    timestamp: Time | None = Field(None, description="Set by the node; ignored on input.")
    references: Annotated[list[ReferenceShape], FailFast()] = Field(
        default_factory=list, max_length=REFERENCES_MAX
    )


Values = Annotated[list[ValueShape], Field(max_length=VALUES_MAX)]
Template = Annotated[
    IdentifierText | None, Field(description="Identifier of the data template it follows.")
]


class PutBody(Shape):
    values: Values
    status: Settable | None = None
    template: Template = None


class PatchBody(Shape):
    """Add or replace values by index, remove values by index, change status or template."""

    set: Values = Field(default_factory=list)
    remove: list[Index] = Field(default_factory=list, max_length=VALUES_MAX)
    status: Settable | None = None
    template: Template = None


_EITHER: Any = [
    {
        "required": [given],
        "properties": {given: {"type": "string"}, other: {"type": "null"}},
    }
    for given, other in (("identifier", "prefix"), ("prefix", "identifier"))
]


class CreateBody(Shape):
    """Give `identifier`, or give `prefix` to have a suffix minted."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _EITHER})

    identifier: IdentifierText | None = None
    prefix: PrefixText | None = None
    suffix_start: str = Field(
        "", max_length=128, description="What a minted suffix begins with.", examples=["SN-"]
    )
    values: Values
    status: Settable = "active"
    template: Template = None


class RangeBody(Shape):
    """Every identifier that `pattern` names is registered. In the data of values `{suffix}`,
    `{number}`, `{identifier}` and `{prefix}` stand for those of each one."""

    prefix: PrefixText
    pattern: str = Field(
        min_length=1,
        max_length=2 * IDENTIFIER_CHARS_MAX,
        description="One number between braces: FIRST..LAST, with a step as FIRST..LAST..STEP,"
        " with a check digit right after it as FIRST..LAST+luhn (or +mod11-10, +gs1).",
        examples=["SN{00000000..99999999}"],
    )
    values: Values
    status: Settable = "active"
    template: Template = None


class ResolveBody(Shape):
    identifiers: list[IdentifierText] = Field(min_length=1, max_length=RESOLVE_MANY_MAX)


class BatchRow(Shape):
    action: Literal["create", "put", "retire"] = "create"
    identifier: IdentifierText
    values: Annotated[Values, FailFast()] = Field(default_factory=list)
    status: Settable | None = None
    template: Template = None


class BatchBody(Shape):
    """Mode `all` writes every row or none; `valid-rows` writes the good ones."""

    mode: Literal["all", "valid-rows"]
    dry_run: bool = Field(False, strict=True)
    # Rows are judged one by one, so that a bad one does not hide the others' results.
    rows: Annotated[
        list[Any],
        WithJsonSchema(
            {
                "type": "array",
                "items": {"$ref": "#/components/schemas/BatchRow"},
                "minItems": 1,
                "maxItems": BATCH_ROWS_MAX,
            }
        ),
    ] = Field(min_length=1)


Searchable = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=TYPE_CHARS_MAX)]],
    Field(
        max_length=SEARCHABLE_TYPES_MAX,
        description="Value types by which identifiers can be found, in upper case.",
        examples=[["URL"]],
    ),
]


class PrefixBody(Shape):
    """`delegated` and `referred` prefixes live at another node: register its HS_SITE values
    under `0.NA/<prefix>`, and whoever asks here is sent there."""

    prefix: PrefixText
    tenant: str = Field(min_length=1, max_length=TENANT_CHARS_MAX, examples=["acme"])
    status: PrefixState = "active"
    searchable: Searchable = Field(default_factory=list)
    admin: str = Field(
        "",
        max_length=IDENTIFIER_CHARS_MAX + 11,
        description="Handle identity that gets every right under the prefix, as HS_ADMIN of"
        " `0.NA/<prefix>` unless that exists.",
        examples=["300:88.118.8/ADMIN"],
    )


class PrefixPatch(Shape):
    """`searchable` replaces the declared types as a whole; `[]` takes all of them back."""

    status: PrefixState | None = None
    tenant: str | None = Field(None, min_length=1, max_length=TENANT_CHARS_MAX)
    searchable: Searchable | None = None


class KeyBody(Shape):
    """`tenant` may be empty only for the role admin, which acts for every tenant."""

    role: Literal["admin", "registrar", "reader"]
    tenant: str = Field("", max_length=TENANT_CHARS_MAX, examples=["acme"])
    label: str = Field("", max_length=LABEL_CHARS_MAX, examples=["line 3 printer"])


# Queries --------------------------------------------------------------------------------


class NoQuery(Shape):
    pass


class ResolveQuery(Shape):
    index: list[Annotated[int, Field(ge=1, le=INDEX_MAX)]] = Field(
        default_factory=list, max_length=64, description="Only values with these indexes, or …"
    )
    type: list[Annotated[str, Field(min_length=1, max_length=TYPE_CHARS_MAX)]] = Field(
        default_factory=list,
        max_length=64,
        description='… of these types; "URL." means URL and all its subtypes.',
    )
    auth: bool = Field(
        False,
        description="Authoritative: bypass every cache.",
        json_schema_extra={"allowEmptyValue": True},
    )


class DeleteQuery(Shape):
    purge: bool = Field(False, description="Remove for good instead of retiring (admin).")


Limit = Annotated[int, Field(ge=1, le=PAGE_ROWS_MAX)]
Cursor = Annotated[
    str,
    Field(
        max_length=1_500,
        pattern="^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?$",
        description="`next` of the page before.",
    ),
]


class PageQuery(Shape):
    after: Cursor | None = None
    limit: Limit = 100


class ListQuery(PageQuery):
    prefix: PrefixText


class SearchQuery(PageQuery):
    value: list[
        Annotated[
            str, Field(max_length=TYPE_CHARS_MAX + 1 + VALUE_BYTES_MAX, pattern="^[^=]{1,128}=")
        ]
    ] = Field(
        min_length=1,
        max_length=SEARCH_VALUES_MAX,
        description="TYPE=DATA: the whole value, not a part of it. Given more than once, all"
        " must be values of the record.",
        examples=[["URL=https://acme.example/p/SN0001"]],
    )
    prefix: PrefixText | None = None


class ChangesQuery(Shape):
    after: int = Field(0, ge=0, le=2**63 - 1, description="Sequence of the last entry you have.")
    limit: Limit = 100
    wait: float = Field(0, ge=0, le=30, description="Seconds to wait for news (long poll).")


# Replies --------------------------------------------------------------------------------


class RecordReply(Shape):
    identifier: str
    status: Literal["draft", "active", "frozen", "retired"]
    template: str | None
    version: int
    sequence: int
    created: Time
    modified: Time
    values: list[ValueShape]


class ReceiptReply(Shape):
    """`sequence` is the change-log entry that wrote the state."""

    identifier: str
    action: str
    status: str
    version: int
    sequence: int


class IdentifierPage(Shape):
    items: list[str]
    next: str | None


class RangeReply(Shape):
    """`pattern` is in its normal form; `count` includes members that were changed one by one."""

    prefix: str
    pattern: str
    first: str
    last: str
    count: int
    status: Literal["draft", "active", "frozen", "retired"]
    template: str | None
    version: int
    sequence: int
    created: Time
    modified: Time
    values: list[ValueShape]


class RangePage(Shape):
    items: list[RangeReply]
    next: str | None


class RecordPage(Shape):
    items: list[RecordReply]
    next: str | None


class ResolvedItem(Shape):
    """`record`, or the error that stands in its place."""

    identifier: str
    record: RecordReply | None = None
    source: Literal["", "cache", "store", "stale"] = ""
    age_s: int = 0
    code: str = ""
    detail: str = ""
    detail_zh: str = ""


class ResolvedReply(Shape):
    items: list[ResolvedItem]


class RowReply(Shape):
    row: int
    ok: bool
    identifier: str
    action: str = ""
    status: str = ""
    version: int = 0
    sequence: int = 0
    code: str = ""
    detail: str = ""
    detail_zh: str = ""


class BatchReply(Shape):
    mode: str
    dry_run: bool
    sequence: int
    written: int
    failed: int
    rows: list[RowReply]


class PrefixReply(Shape):
    prefix: str
    tenant: str
    status: PrefixState
    created: Time
    version: int
    sequence: int
    searchable: list[str]
    indexing: bool = Field(description="Not to be searched before this is false again.")


class PrefixPage(Shape):
    items: list[PrefixReply]
    next: str | None


class KeyReply(Shape):
    id: str
    tenant: str
    role: Literal["admin", "registrar", "reader"]
    label: str
    created: Time
    revoked: Time | None


class NewKeyReply(KeyReply):
    key: str = Field(description="The secret. It is shown this once and not kept.")


class KeyPage(Shape):
    items: list[KeyReply]
    next: str | None


class ChangeReply(Shape):
    action: str
    subject: str
    version: int
    actor: str
    digest: Hex32
    last: str = Field("", description="Of a run: the folded suffix of its last identifier.")
    count: int = Field(
        0,
        description="Of a run: how many identifiers it has. Of `fold`: the version of what lay"
        " beneath in a block.",
    )


class EntryReply(Shape):
    sequence: int
    time_ms: int
    actor: str
    action: str
    prefix: str
    count: int
    root: Hex32
    previous: Hex32
    hash: Hex32
    changes: list[ChangeReply]


class ChangesPage(Shape):
    items: list[EntryReply]
    next: int


class Problem(BaseModel):
    """RFC 9457 problem details. `code` is permanent; see /api for all of them."""

    model_config = ConfigDict(defer_build=True)

    type: str
    title: str
    status: int
    code: str
    detail: str
    detail_en: str
    detail_zh: str
    advice: str
    request_id: str


class HealthReply(Shape):
    status: Literal["ok", "starting", "draining", "registry-down"]
