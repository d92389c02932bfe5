"""Prefixes and keys: who may change them, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biaojie.account import ApiKey, Prefix, PrefixStatus, Role
from biaojie.errors import (
    Forbidden,
    InvalidIdentifier,
    InvalidRequest,
    NotFound,
    PrefixNotHere,
    PrefixTaken,
    Unauthenticated,
)
from registry.admission import (
    PUBLIC,
    SYSTEM,
    Caller,
)
from registry.admission_accounts import (
    decide_change_prefix,
    decide_home,
    decide_issue,
    decide_revoke,
)
from registry.operations import (
    ChangePrefix,
    HomePrefix,
    IssueKey,
    RevokeKey,
)
from tests.core_parts import ACME, ACME_READER, ADMIN

HOMED = Prefix("88.118.8", "acme")
NOW = 2_000


@pytest.mark.parametrize("caller", [PUBLIC, ACME, ACME_READER, Caller("k", "", Role.READER)])
def test_prefixes_and_keys_are_for_admins(caller: Caller) -> None:
    refusal = Unauthenticated if caller.role is None else Forbidden
    issue = IssueKey("k", bytes(32), "acme", Role.READER)
    with pytest.raises(refusal):
        decide_home(HomePrefix("88.118.9", "acme"), caller, None, NOW)
    with pytest.raises(refusal):
        decide_home(HomePrefix("88.118.8", "acme"), caller, HOMED, NOW)
    with pytest.raises(refusal):
        decide_change_prefix(ChangePrefix("88.118.8", "acme"), caller, HOMED)
    with pytest.raises(refusal):
        decide_change_prefix(ChangePrefix("88.118.9", "acme"), caller, None)
    with pytest.raises(refusal):
        decide_issue(issue, caller, None, True, NOW)
    with pytest.raises(refusal):
        decide_revoke(RevokeKey("k"), caller, None, NOW)


def test_home_and_change_a_prefix() -> None:
    prefix = decide_home(HomePrefix("88.118.9", "acme"), ADMIN, None, NOW)
    assert prefix == Prefix("88.118.9", "acme", created=NOW)
    with pytest.raises(PrefixTaken):
        decide_home(HomePrefix("88.118.8", "beta"), ADMIN, HOMED, NOW)
    suspended = decide_change_prefix(
        ChangePrefix("88.118.8", status=PrefixStatus.SUSPENDED), ADMIN, HOMED
    )
    assert suspended == replace(HOMED, status=PrefixStatus.SUSPENDED, version=2)
    moved = decide_change_prefix(ChangePrefix("88.118.8", "beta"), ADMIN, suspended)
    assert moved == replace(suspended, tenant="beta", version=3)
    with pytest.raises(PrefixNotHere):
        decide_change_prefix(ChangePrefix("88.118.9"), ADMIN, None)
    with pytest.raises(InvalidIdentifier):
        decide_home(HomePrefix("88..9", "acme"), ADMIN, None, NOW)


@pytest.mark.parametrize("tenant", ["", "a\n", "a" * 65, "\x00", "\ud800"])
def test_names_of_tenants_are_printable_and_short(tenant: str) -> None:
    with pytest.raises(InvalidRequest):
        decide_home(HomePrefix("88.118.9", tenant), ADMIN, None, NOW)
    with pytest.raises(InvalidRequest):
        decide_change_prefix(ChangePrefix("88.118.8", tenant), ADMIN, HOMED)
    with pytest.raises(InvalidRequest):
        decide_issue(IssueKey("k", bytes(32), tenant, Role.READER), ADMIN, None, False, NOW)


def test_issue_and_revoke_a_key() -> None:
    operation = IssueKey("k", b"d" * 32, "acme", Role.READER, "line 3")
    key = decide_issue(operation, ADMIN, None, False, NOW)
    assert key == ApiKey("k", "acme", Role.READER, "line 3", NOW, 0, b"d" * 32)
    revoked = decide_revoke(RevokeKey("k"), ADMIN, key, NOW + 1)
    assert revoked == replace(key, revoked=NOW + 1)
    assert decide_revoke(RevokeKey("k"), ADMIN, revoked, NOW + 9) == revoked
    assert decide_revoke(RevokeKey("k"), ADMIN, key, 0).revoked, "0 would mean valid"
    with pytest.raises(NotFound):
        decide_revoke(RevokeKey("none"), ADMIN, None, NOW)
    with pytest.raises(InvalidRequest):
        decide_issue(operation, ADMIN, key, False, NOW)
    with pytest.raises(InvalidRequest):
        decide_issue(replace(operation, label="x" * 129), ADMIN, None, False, NOW)
    # Only an admin may be without a tenant.
    decide_issue(IssueKey("k", bytes(32), "", Role.ADMIN), ADMIN, None, False, NOW)


def test_the_first_key_only_into_a_blank_registry() -> None:
    first = IssueKey("k", bytes(32), "", Role.ADMIN, first=True)
    assert decide_issue(first, SYSTEM, None, True, NOW).role is Role.ADMIN
    with pytest.raises(Forbidden):
        decide_issue(first, SYSTEM, None, False, NOW)
