"""What becomes of prefixes and keys when those who run the node say so. Pure."""

from __future__ import annotations

from dataclasses import replace

from biaojie.account import ApiKey, Prefix, PrefixStatus, Role, check_searchable
from biaojie.errors import Forbidden, InvalidRequest, NotFound, PrefixNotHere, PrefixTaken
from biaojie.identifier import check_prefix
from biaojie.limits import LABEL_CHARS_MAX, TENANT_CHARS_MAX
from biaojie.wire.handle.typed import AdminRight

from .admission import Caller, Right, authorize
from .operations import ChangePrefix, HomePrefix, IssueKey, RevokeKey


def _checked_text(text: str, name: str, chars_max: int, *, empty: bool = False) -> str:
    if not (empty or text) or len(text) > chars_max or not text.isprintable():
        raise InvalidRequest(
            f"{name}: {'0' if empty else '1'} to {chars_max} printable characters.",
            f"{name}：应为 {'0' if empty else '1'} 至 {chars_max} 个可打印字符。",
            path=name,
        )
    return text


def decide_home(
    operation: HomePrefix, caller: Caller, current: Prefix | None, now: int, *, holds: int = 0
) -> Prefix:
    """`holds` are the AdminRight bits of a Handle identity on the prefixes above this one."""
    needs = AdminRight.ADD_DERIVED_PREFIX
    authorize(caller, Right.MANAGE, None, needs=needs, holds=holds)
    if current is not None and current.status is PrefixStatus.UNHOMED:
        again = _searching(current, operation.searchable or None)
        return replace(again, status=operation.status, version=current.version + 1)
    if current is not None:
        raise PrefixTaken(f"{current.name} is already homed.", f"前缀 {current.name} 已托管。")
    return Prefix(
        name=check_prefix(operation.name),
        tenant=_checked_text(operation.tenant, "tenant", TENANT_CHARS_MAX),
        status=operation.status,
        created=now,
        searchable=check_searchable(operation.searchable),
    )


def _searching(prefix: Prefix, types: tuple[str, ...] | None) -> Prefix:
    """With these types declared searchable; its records are indexed anew if they are others."""
    searchable = prefix.searchable if types is None else check_searchable(types)
    indexing = prefix.indexing or searchable != prefix.searchable
    return replace(prefix, searchable=searchable, indexing=indexing)


def decide_change_prefix(
    operation: ChangePrefix, caller: Caller, current: Prefix | None, *, holds: int = 0
) -> Prefix:
    """A Handle identity may unhome a prefix, with rights on those above it, and nothing else."""
    others = (operation.tenant, operation.searchable)
    unhomes = operation.status is PrefixStatus.UNHOMED and others == (None, None)
    needs = AdminRight.DELETE_DERIVED_PREFIX if unhomes else 0
    authorize(caller, Right.MANAGE, None, needs=needs, holds=holds)
    if current is None:
        raise PrefixNotHere()
    tenant = current.tenant
    if operation.tenant is not None:
        tenant = _checked_text(operation.tenant, "tenant", TENANT_CHARS_MAX)
    return replace(
        _searching(current, operation.searchable),
        tenant=tenant,
        status=operation.status or current.status,
        version=current.version + 1,
    )


def decide_issue(
    operation: IssueKey, caller: Caller, current: ApiKey | None, blank: bool, now: int
) -> ApiKey:
    authorize(caller, Right.MANAGE, None)
    if operation.first and not blank:
        raise Forbidden("The registry already has a history.", "注册库已有历史记录。")
    if current is not None:
        raise InvalidRequest(
            f"The key id {current.id} is in use.", f"密钥编号 {current.id} 已使用。"
        )
    # An admin acts for every tenant; the others act for exactly one.
    return ApiKey(
        id=operation.id,
        tenant=_checked_text(
            operation.tenant, "tenant", TENANT_CHARS_MAX, empty=operation.role is Role.ADMIN
        ),
        role=operation.role,
        label=_checked_text(operation.label, "label", LABEL_CHARS_MAX, empty=True),
        created=now,
        digest=operation.digest,
    )


def decide_revoke(operation: RevokeKey, caller: Caller, current: ApiKey | None, now: int) -> ApiKey:
    authorize(caller, Right.MANAGE, None)
    if current is None:
        raise NotFound(f"There is no key {operation.id}.", f"没有密钥 {operation.id}。")
    return current if current.revoked else replace(current, revoked=max(now, 1))
