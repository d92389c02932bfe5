"""What the node remembers between the messages of one client: keys agreed on, identities proved.

A session has a number. One that the node gave is good from any address, as clients open a
connection per message: each message in it carries a MAC, whose counter may occur once. One
whose number the client chose is tied to its TCP connection and ends with it; there a login
(IIIS) authenticates the connection, without MACs. Limits: sessions in all and per address, a
life of a day, and the time idle that the client asked for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from biaojie import keys
from biaojie.errors import TooManyRequests
from biaojie.wire.handle import SessionKey, Version
from registry.admission import Caller
from registry.handle_rights import HandleIdentity

from ..guesses import network_of
from .numbers import ALONE, Numbers

LIFE_MAX_S: Final = 86_400.0
IDLE_MIN_S: Final = 10.0
SESSIONS_MAX: Final = 20_000
PER_ADDRESS_MAX: Final = 1_000
PER_CONNECTION_MAX: Final = 16
WINDOW: Final = 1_024
"""Messages of one session may overtake each other by this many; older ones are refused."""


class Counters:
    """Which counters a session has seen: each passes once, and none from before the window."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0
        """Bit n: the counter `highest - n` has been seen."""

    def take(self, counter: int) -> bool:
        """Whether the counter is new; 0 never is."""
        if counter <= 0:
            return False
        ahead = counter - self._highest
        if ahead > 0:
            kept = self._seen << ahead if ahead < WINDOW else 0
            self._seen = (kept | 1) & ((1 << WINDOW) - 1)
            self._highest = counter
            return True
        if -ahead >= WINDOW or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True


@dataclass(slots=True)
class Proof:
    """An identity that has been proved, by the key value with this digest; `checked` is when the
    value was last seen to be in force."""

    caller: Caller
    digest: bytes
    checked: float


@dataclass(slots=True, eq=False)
class Session:
    """`identity` is who the client said it would prove to be. `key` is None before an exchange
    of mode 2 is complete, and where there was only a login."""

    number: int
    scope: object
    address: str
    version: Version
    since: float
    idle_s: float
    used: float
    key: SessionKey | None = None
    identity: HandleIdentity | None = None
    proof: Proof | None = None
    counters: Counters = field(default_factory=Counters)
    sent: int = 0

    @property
    def logged_in(self) -> bool:
        """Authenticated with its connection, so that messages need no MAC."""
        return self.scope is not None and self.proof is not None

    def next_counter(self) -> int:
        self.sent += 1
        return self.sent

    def seal(self, data: bytes) -> bytes:
        assert self.key is not None
        return keys.encrypt_message(self.key, self.version, data)

    def unseal(self, data: bytes) -> bytes:
        """Raises Undecryptable."""
        assert self.key is not None
        return keys.decrypt_message(self.key, self.version, data)


_Name = tuple[object, int]


class Sessions:
    """`find`, `open`, `close`, and `forget` for a connection that is gone."""

    def __init__(
        self,
        *,
        sessions_max: int = SESSIONS_MAX,
        per_address_max: int = PER_ADDRESS_MAX,
        numbers: Numbers = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max = sessions_max
        self._numbers = numbers
        self._per_address_max = per_address_max
        self._clock = clock
        self._sessions: OrderedDict[_Name, Session] = OrderedDict()  # least lately used first
        self._unproved: OrderedDict[_Name, None] = OrderedDict()
        """Those that had proved nothing when they were last looked at, the oldest first."""
        self._addresses: dict[str, OrderedDict[_Name, None]] = {}
        self._scopes: dict[object, dict[_Name, None]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, name: tuple[object, int]) -> bool:
        """Whether there is a session of this scope and number, over or not."""
        return name in self._sessions

    def find(self, scope: object, number: int) -> Session | None:
        """The session a message is in: its connection's own, else one from any address."""
        own = self._live((scope, number)) if scope is not None else None
        return own or self._live((None, number))

    def open(
        self, scope: object, number: int, address: str, version: Version, timeout_s: int = 0
    ) -> Session:
        """A new session in place of any of the same name; `number` 0 with `scope` None means that
        the node gives one. `timeout_s` 0: as long as it may be. Raises TooManyRequests.
        """
        now = self._clock()
        address = network_of(address)
        if scope is None and not number:
            number = self._new_number()
        name = (scope, number)
        self._drop(name)
        if scope is not None and len(self._scopes.get(scope, ())) >= PER_CONNECTION_MAX:
            raise TooManyRequests(
                f"A connection may have {PER_CONNECTION_MAX} sessions.",
                f"每个连接最多 {PER_CONNECTION_MAX} 个会话。",
            )
        self._make_room(address)
        idle_s = min(max(float(timeout_s), IDLE_MIN_S), LIFE_MAX_S) if timeout_s else LIFE_MAX_S
        session = Session(number, scope, address, version, now, idle_s, now)
        self._sessions[name] = session
        self._unproved[name] = None
        self._addresses.setdefault(address, OrderedDict())[name] = None
        if scope is not None:
            self._scopes.setdefault(scope, {})[name] = None
        return session

    def close(self, session: Session) -> None:
        self._drop((session.scope, session.number))

    def forget(self, scope: object) -> None:
        """The connection is gone, and what was tied to it."""
        for name in list(self._scopes.get(scope, ())):
            self._drop(name)

    def _live(self, name: _Name) -> Session | None:
        session = self._sessions.get(name)
        if session is None:
            return None
        now = self._clock()
        # A login lives as long as its connection: its clients never log in twice on one.
        over = session.scope is None and now - session.since > LIFE_MAX_S
        if over or now - session.used > session.idle_s:
            self._drop(name)
            return None
        session.used = now
        self._sessions.move_to_end(name)
        self._addresses[session.address].move_to_end(name)
        return session

    def _new_number(self) -> int:
        while True:
            number = self._numbers.new()
            if (None, number) not in self._sessions:
                return number

    def _make_room(self, address: str) -> None:
        """Whoever opens too many loses some of their own."""
        own = self._addresses.get(address)
        if own is not None and len(own) >= self._per_address_max:
            unproved = (name for name in own if self._sessions[name].proof is None)
            self._drop(next(unproved, next(iter(own))))
        if len(self._sessions) >= self._max:
            self._drop(self._weakest())

    def _weakest(self) -> _Name:
        """The oldest that has proved nothing, if there is one, else the least lately used: UDP
        addresses are easily forged, and nobody shall end the sessions of others so."""
        while self._unproved:
            name = next(iter(self._unproved))
            if self._sessions[name].proof is None:
                return name
            del self._unproved[name]
        return next(iter(self._sessions))

    def _drop(self, name: _Name) -> None:
        session = self._sessions.pop(name, None)
        if session is None:
            return
        self._unproved.pop(name, None)
        _discard(self._addresses, session.address, name)
        if session.scope is not None:
            _discard(self._scopes, session.scope, name)


def _discard(
    index: dict[str, OrderedDict[_Name, None]] | dict[object, dict[_Name, None]],
    key: object,
    name: _Name,
) -> None:
    names = index[key]  # type: ignore[index]
    del names[name]
    if not names:
        del index[key]  # type: ignore[arg-type]
