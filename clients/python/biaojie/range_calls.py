"""`client.ranges`: identifiers registered by rule, any number of them in one call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from .accept import status_of, values_of
from .calls import Values
from .change import Receipt
from .errors import InvalidRequest
from .identifier import check_prefix
from .limits import PAGE_ROWS_MAX
from .range import Range
from .record import Status
from .retry import keyed
from .streams import pages
from .transport import Ranged, Transport


class Ranges:
    """The ranges of a prefix. Needs a key with rights on it, and an http(s):// address."""

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._any = transport
        self._timeout_s = timeout_s

    @property
    def _transport(self) -> Ranged:
        if not isinstance(self._any, Ranged):
            raise InvalidRequest(
                f"Ranges are managed over http:// or https://, not at {self._any.address}.",
                f"号段通过 http:// 或 https:// 管理，不能使用 {self._any.address}。",
            )
        return self._any

    async def register(
        self,
        prefix: str,
        pattern: str,
        values: Values = (),
        *,
        status: Status | str | None = None,
        template: str | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Register all that `pattern` names, such as `SN{0000..9999}`, `{0000..9998..2}` (every
        second one) or `{0000..9999+luhn}` (with a check digit: luhn, mod11-10, gs1).

        In the data of values `{suffix}`, `{number}`, `{identifier}` and `{prefix}` stand for
        those of each member. The receipt names the pattern in its normal form. Raises
        InvalidRecord with `position`, RangeTaken with `place`, the first identifier in the way.
        """
        ranged = self._transport
        with keyed(idempotency_key) as key:
            return await ranged.register_range(
                check_prefix(prefix),
                pattern,
                values_of(values),
                status=status_of(status),
                template=template,
                key=key,
                timeout_s=timeout_s or self._timeout_s,
            )

    async def cut(
        self,
        prefix: str,
        pattern: str,
        *,
        purge: bool = False,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Retire what `pattern` names of the ranges that are there, or `purge` it (admin).

        Members that were changed one by one have records of their own, which stay. Raises
        NotFound when no range has a member there, IdentifierRetired.
        """
        ranged = self._transport
        with keyed(idempotency_key) as key:
            return await ranged.cut_range(
                check_prefix(prefix),
                pattern,
                purge=purge,
                key=key,
                timeout_s=timeout_s or self._timeout_s,
            )

    async def get(self, prefix: str, pattern: str, *, timeout_s: float | None = None) -> Range:
        """The range of exactly this pattern; raises NotFound."""
        return await self._transport.find_range(
            check_prefix(prefix), pattern, timeout_s=timeout_s or self._timeout_s
        )

    async def list(
        self, prefix: str, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Range, None]:
        """All ranges of a prefix, those of one shape together and in order."""
        async for page in self._pages(prefix, timeout_s=timeout_s):
            for each in page:
                yield each

    def _pages(
        self, prefix: str, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Sequence[Range], None]:
        ranged = self._transport
        name = check_prefix(prefix)
        return pages(
            lambda after: ranged.list_ranges(
                name, after=after, limit=PAGE_ROWS_MAX, timeout_s=timeout_s or self._timeout_s
            )
        )
