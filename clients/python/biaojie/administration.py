"""`client.prefixes` and `client.keys`: who may act where."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence

from .accept import choice_of, texts_of
from .account import ApiKey, Prefix, PrefixStatus, Role, check_searchable
from .calls import IssuedKey
from .identifier import check_prefix
from .limits import PAGE_ROWS_MAX
from .retry import keyed
from .streams import pages
from .transport import Transport


class Prefixes:
    """The prefixes homed at the node. Homing and changing them needs an admin key."""

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s

    async def list(self, *, timeout_s: float | None = None) -> AsyncGenerator[Prefix, None]:
        """All prefixes (admin) or those of the key's tenant, in order."""
        async for page in self._pages(timeout_s=timeout_s):
            for prefix in page:
                yield prefix

    def _pages(self, *, timeout_s: float | None = None) -> AsyncGenerator[Sequence[Prefix], None]:
        return pages(
            lambda after: self._transport.list_prefixes(
                after=after, limit=PAGE_ROWS_MAX, timeout_s=timeout_s or self._timeout_s
            )
        )

    async def get(self, prefix: str, *, timeout_s: float | None = None) -> Prefix:
        """Raises PrefixNotHere."""
        return await self._transport.find_prefix(
            check_prefix(prefix), timeout_s=timeout_s or self._timeout_s
        )

    async def home(
        self,
        prefix: str,
        tenant: str,
        *,
        searchable: str | Iterable[str] = (),
        status: PrefixStatus | str = PrefixStatus.ACTIVE,
        admin: str = "",
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Prefix:
        """Home a prefix at the node, owned by `tenant`; raises PrefixTaken.

        `searchable`: the value types by which its identifiers can be found. `status`: delegated
        or referred make known that its records live at another node. `admin`: the Handle
        identity that gets every right under it, such as `300:88.118.8/ADMIN`.
        """
        with keyed(idempotency_key) as key:
            return await self._transport.home_prefix(
                check_prefix(prefix),
                tenant,
                searchable=check_searchable(texts_of(searchable)),
                status=choice_of(PrefixStatus, status, "status"),
                admin=admin,
                key=key,
                timeout_s=timeout_s or self._timeout_s,
            )

    async def change(
        self,
        prefix: str,
        *,
        status: PrefixStatus | str | None = None,
        tenant: str | None = None,
        searchable: str | Iterable[str] | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Prefix:
        """Suspend it, make it active again, give it to another tenant, or declare other value
        types searchable (`()`: none).

        Its records are then indexed anew; `indexing` says whether that is still going on.
        """
        with keyed(idempotency_key) as key:
            return await self._transport.change_prefix(
                check_prefix(prefix),
                tenant=tenant,
                status=None if status is None else choice_of(PrefixStatus, status, "status"),
                searchable=None if searchable is None else check_searchable(texts_of(searchable)),
                key=key,
                timeout_s=timeout_s or self._timeout_s,
            )


class Keys:
    """The node's API keys. Needs an admin key."""

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s

    async def list(self, *, timeout_s: float | None = None) -> AsyncGenerator[ApiKey, None]:
        """All keys, revoked ones included."""
        async for page in self._pages(timeout_s=timeout_s):
            for key in page:
                yield key

    def _pages(self, *, timeout_s: float | None = None) -> AsyncGenerator[Sequence[ApiKey], None]:
        return pages(
            lambda after: self._transport.list_keys(
                after=after, limit=PAGE_ROWS_MAX, timeout_s=timeout_s or self._timeout_s
            )
        )

    async def issue(
        self, role: Role | str, tenant: str, label: str = "", *, timeout_s: float | None = None
    ) -> IssuedKey:
        """A new key. Its secret is in the result and nowhere else.

        Never retried: after a fault a key may exist that nobody knows; list and revoke it.
        """
        return await self._transport.issue_key(
            choice_of(Role, role, "role"), tenant, label, timeout_s=timeout_s or self._timeout_s
        )

    async def revoke(
        self, id_: str, *, idempotency_key: str | None = None, timeout_s: float | None = None
    ) -> ApiKey:
        """The key stops working everywhere within seconds. `id_` is not the secret."""
        with keyed(idempotency_key) as key:
            return await self._transport.revoke_key(
                id_, key=key, timeout_s=timeout_s or self._timeout_s
            )
