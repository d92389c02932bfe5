"""The route table: paths exactly as they were sent → endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from biaojie.errors import NotFound

from .endpoint import Endpoint


class Routes:
    """The route table. An exact path wins over a tail; a longer fixed part over a shorter."""

    def __init__(self, endpoints: Iterable[Endpoint[Any, Any]]) -> None:
        self._exact: dict[str, dict[str, Endpoint[Any, Any]]] = {}
        self._tails: dict[str, dict[str, Endpoint[Any, Any]]] = {}
        for endpoint in endpoints:
            fixed, brace, _ = endpoint.path.partition("{")
            table = self._tails if brace else self._exact
            methods = table.setdefault(fixed, {})
            assert endpoint.method not in methods, endpoint.path
            methods[endpoint.method] = endpoint
        self._starts = sorted(self._tails, key=len, reverse=True)

    def find(self, path: str) -> tuple[Mapping[str, Endpoint[Any, Any]], str]:
        """The endpoints at a path by method, and the tail; raises NotFound."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, ""
        for start in self._starts:
            if not path.startswith(start):
                continue
            tail = path[len(start) :]
            methods = self._tails[start]
            if tail and (next(iter(methods.values())).whole_tail or "/" not in tail):
                if start == "/" and path.startswith("/api/"):
                    break  # no identifier has a prefix `api`: say "not here" in JSON
                return methods, tail
        raise NotFound()
