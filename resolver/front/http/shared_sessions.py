"""REST sessions that other workers of this node keep: a session's id says which one, and that one
is asked. Nonces stay good once, for they are in one place only.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

from biaojie.errors import BiaojieError, TemporarilyUnavailable, Unauthenticated
from biaojie.wire.problem import decode_error, encode_error
from registry.admission import PUBLIC, Caller

from ...handle.identity import Authenticator
from ...neighbours import NeighbourFault, Neighbours, NotThere
from .handle_auth import RestAuthentication, RestSession

KIND: Final = b"r"
_Words = dict[str, Any]


def home(slot: int) -> str:
    """What the ids of a worker's sessions begin with."""
    return f"{slot}."


class SharedSessions:
    """See `SessionsElsewhere`. A neighbour has `timeout_s` to answer."""

    def __init__(
        self,
        here: RestAuthentication,
        authenticator: Authenticator,
        neighbours: Neighbours,
        *,
        timeout_s: float,
    ) -> None:
        self._here = here
        self._authenticator = authenticator
        self._neighbours = neighbours
        self._timeout_s = timeout_s
        neighbours.on_call[KIND] = self._asked

    def is_elsewhere(self, id_: str) -> bool:
        return self._keeper(id_) is not None

    def _keeper(self, id_: str) -> int | None:
        """The other worker that an id names."""
        start, dot, _ = id_.partition(".")
        if not (dot and start.isascii() and start.isdigit() and len(start) < 4):
            return None
        slot = int(start)
        return slot if slot < self._neighbours.workers and slot != self._neighbours.slot else None

    # Asking others ------------------------------------------------------------------------

    async def prove(self, given: Mapping[str, str], peer: str) -> Caller:
        answer = await self._ask(given["sessionid"], {"given": dict(given), "peer": peer})
        if answer is None:
            raise Unauthenticated("There is no such session.", "没有该会话。")
        return self._caller(answer["identity"])

    async def find(self, id_: str) -> RestSession | None:
        answer = await self._ask(id_, {"find": id_})
        if answer is None or answer["nonce"] is None:
            return None
        session = RestSession(id_, b64decode(answer["nonce"]), 0.0, 0.0)
        if answer["identity"] is not None:
            session.proved = self._caller(answer["identity"]), b""
        return session

    async def end(self, id_: str) -> None:
        await self._ask(id_, {"end": id_})

    async def _ask(self, id_: str, question: _Words) -> _Words | None:
        """None where the worker is gone, and its sessions with it. Raises what it raised, or
        TemporarilyUnavailable."""
        keeper = self._keeper(id_)
        assert keeper is not None
        asking = self._neighbours.ask(
            keeper, KIND, json.dumps(question).encode(), timeout_s=self._timeout_s
        )
        try:
            async with aclosing(asking) as parts:
                answer: _Words = json.loads(await anext(parts))
        except NotThere:
            return None
        except (NeighbourFault, StopAsyncIteration):
            raise TemporarilyUnavailable() from None
        if "error" in answer:
            raise decode_error(answer["error"], 500)
        return answer

    def _caller(self, identity: str | None) -> Caller:
        if identity is None:
            return PUBLIC
        return Caller(identity, handle=self._authenticator.identity(identity))

    # Answering others ---------------------------------------------------------------------

    async def _asked(self, question: bytes) -> AsyncGenerator[bytes, None]:
        try:
            answer = await self._answer(json.loads(question))
        except BiaojieError as error:
            answer = {"error": encode_error(error)}
        yield json.dumps(answer).encode()

    async def _answer(self, asked: _Words) -> _Words:
        sessions = self._here.sessions
        if "given" in asked:
            caller = await self._here.prove(asked["given"], asked["peer"])
            return {"identity": None if caller.is_public else str(caller.handle)}
        if "end" in asked:
            sessions.end(asked["end"])
            return {}
        session = sessions.find(asked["find"])
        if session is None:
            return {"nonce": None}
        proved = None if session.proved is None else str(session.proved[0].handle)
        return {"nonce": b64encode(session.nonce).decode(), "identity": proved}
