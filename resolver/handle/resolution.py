"""RESOLUTION: the values asked for, private ones to whoever may read them, referrals to the node
that has what this one has not; and the records of prefixes, to which this node adds its own
HS_SITE where it is the one that answers for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from biaojie.account import Prefix, PrefixStatus
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    Forbidden,
    IdentifierNotFound,
    IdentifierRetired,
    InvalidIdentifier,
    PrefixNotHere,
    Unauthenticated,
    ValueNotFound,
)
from biaojie.identifier import Identifier, Key, check_prefix, fold_prefix
from biaojie.record import Permissions, Record, Status, Value, fold_type
from biaojie.wire.handle import (
    OpFlag,
    Referral,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    asked_for,
)
from registry.admission import PUBLIC, elsewhere
from registry.handle_rights import PREFIXES

from ..core import Source
from ..query import Query
from ..service import Service
from ..steps.local import LocalStep
from ..steps.referral import ReferralStep
from .asked import Answered, Asked, identifier_of
from .site import NodeSite

SITES: Final = frozenset({"HS_SITE", "HS_SITE.6", "HS_SERV"})
REFERRALS: Final = SITES | {"HS_SITE.PREFIX", "HS_SERV.PREFIX", "HS_NA_DELEGATE"}


class Resolution:
    """`site` gives the node's own site, None before it listens anywhere."""

    def __init__(
        self,
        service: Service,
        local: LocalStep,
        referral: ReferralStep,
        site: Callable[[], NodeSite | None],
        *,
        case_sensitive: bool = False,
    ) -> None:
        self._service = service
        self._local = local
        self._referral = referral
        self._site = site
        self._case_sensitive = case_sensitive

    async def resolve(self, asked: Asked) -> Answered:
        """Raises what `Service.resolve` does; ValueNotFound where no value asked for may be read;
        Unauthenticated where private ones were asked for by nobody in particular."""
        request, body = asked.request, asked.request.body
        assert isinstance(body, ResolveRequest)
        identifier = identifier_of(body.handle)
        public = request.has(OpFlag.PUBLIC_ONLY)
        caller = PUBLIC if public else asked.caller
        query = Query(identifier, authoritative=request.has(OpFlag.AUTHORITATIVE))
        values: tuple[Value, ...]
        try:
            found = await self._service.resolve(query, caller)
        except (IdentifierNotFound, IdentifierRetired, PrefixNotHere, Elsewhere) as error:
            values = await self._instead(identifier, error)
            fresh, open_, ttl_s, entry = True, False, _least_ttl(values), None
        else:
            site = await self._own_site(identifier, found.record)
            values = found.record.values + site
            fresh, ttl_s, entry = found.source is Source.STORE, found.ttl_s, found.entry
            open_ = found.private or found.whole
        wanted = asked_for(values, body.indexes, body.types)
        if not public and not open_ and await self._hides(identifier, body):
            raise Unauthenticated() if caller.is_public else Forbidden()
        if not wanted:
            raise nothing_to_read(identifier)
        if asked.session is not None or body.token or body.trailing or named_prefix(identifier):
            entry = None  # another might get another answer, or there is more to it than the record
        answer = ResolveResponse(body.handle, wanted)
        return Answered(answer, ttl_s=ttl_s, fresh=fresh, entry=entry)

    async def refer(self, error: Elsewhere) -> Answered:
        """The referral that stands for the error: 303 to a node below ours, 302 to another
        service; with the sites if we know them, else with the handle to resolve for them."""
        handle = str(error.fields.get("referral", ""))
        below = error.fields.get("kind") == PrefixStatus.DELEGATED.value
        code = ResponseCode.PREFIX_REFERRAL if below else ResponseCode.SERVICE_REFERRAL
        try:
            found = await self._service.resolve(Query(identifier_of(handle)))
            sites = tuple(v for v in found.record.values if fold_type(v.type) in REFERRALS)
        except BiaojieError:
            sites = ()
        body = Referral("", sites) if sites else Referral(handle)
        return Answered(body, code, ttl_s=_least_ttl(sites))

    # Records of prefixes ------------------------------------------------------------------

    async def _instead(self, identifier: Identifier, error: BiaojieError) -> tuple[Value, ...]:
        """What there is to say of a prefix that has no record here: that we answer for it, or
        (Elsewhere) who does. Raises `error` where that is nothing."""
        name = named_prefix(identifier)
        if name is None:
            raise error
        prefix = await self._prefix(name)
        site = self._site()
        if prefix is not None and _answers(prefix) and site is not None:
            return site.values(())
        responsible = await self._referral.responsible(fold_prefix(name))
        if responsible is not None:
            raise elsewhere(responsible) from error
        raise error

    async def _own_site(self, identifier: Identifier, record: Record) -> tuple[Value, ...]:
        """HS_SITE of this node, for a prefix that it answers for and whose record names none."""
        name = named_prefix(identifier)
        site = self._site()
        if name is None or site is None or any(fold_type(v.type) in SITES for v in record.values):
            return ()
        prefix = await self._prefix(name)
        if prefix is None or not _answers(prefix):
            return ()
        return site.values(value.index for value in record.values)

    async def _prefix(self, name: str) -> Prefix | None:
        return (await self._local.fetch(Key(fold_prefix(name), b""))).prefix

    async def _hides(self, identifier: Identifier, body: ResolveRequest) -> bool:
        """Whether values asked for exist that only some may read."""
        key = identifier.key(case_sensitive=self._case_sensitive)
        prefix, record = await self._local.fetch(key)
        if prefix is None or prefix.status is not PrefixStatus.ACTIVE or record is None:
            return False
        if record.status not in (Status.ACTIVE, Status.FROZEN):
            return False
        wanted = asked_for(record.readable().values, body.indexes, body.types)
        return any(not value.permissions & Permissions.PUBLIC_READ for value in wanted)


def _answers(prefix: Prefix) -> bool:
    return prefix.status in (PrefixStatus.ACTIVE, PrefixStatus.SUSPENDED)


def named_prefix(identifier: Identifier) -> str | None:
    """`0.NA/88.118.8` names `88.118.8`; other identifiers name no prefix."""
    if fold_prefix(identifier.prefix) != PREFIXES:
        return None
    try:
        return check_prefix(identifier.suffix)
    except InvalidIdentifier:
        return None


def nothing_to_read(identifier: Identifier) -> ValueNotFound:
    return ValueNotFound(
        f"{identifier} has no such value that you may read.",
        f"{identifier} 没有您可读取的此类值。",
    )


def _least_ttl(values: tuple[Value, ...]) -> int:
    return min((value.ttl for value in values if not value.ttl_absolute), default=0)
