"""The express lane of the HTTP front: a plain GET of a cached name → the octets of its reply.

Rules:
- A request is plain if it is one whole head without a body, in the strictest reading of HTTP/1.1,
  and if nothing in it but what is named here decides the reply. All else goes through aiohttp.
- The key is all that decides: method and target as sent, and the `profile` of the headers. What
  a codec reads of the headers is noted (`Noted`): a reply for which it read anything that is
  neither in the profile nor absent from plain requests is not kept.
- A reply is kept as it was sent; only what moves on with time is put in anew: Date, the request
  id, and the two ages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from math import inf
from sys import getsizeof
from typing import Final

from aiohttp import web

from ...core import Cached, Ready
from ...exchange import REQUEST_ID_BLOCK, request_id_block
from ...health import Health
from ...lane import HITS, Lane
from ...observe import FAST_S, Observer, Tally
from .negotiation import wants_json

REPLY_OCTETS_MAX: Final = 65_536
"""Longer replies are not kept: what writes them must wait for slow readers."""
REQUEST_OCTETS_MAX: Final = 4_096
HEADERS_MAX: Final = 64
PROFILES_MAX: Final = 512
"""Header blocks that are remembered; of others the profile is worked out each time."""
IF_NONE_MATCH_OCTETS_MAX: Final = 128
STYLES_MAX: Final = 1_024
_NUMBERS_MAX: Final = 4_096

BLOCK: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e]*+\r\n)++\r\n")
_START: Final = re.compile(rb"(?:GET|HEAD) /[!-~]*+")
_PROFILED: Final = frozenset({b"accept", b"if-none-match"})
_ABSENT: Final = (
    "authorization|proxy-authorization|idempotency-key|expect|te|trailer|upgrade"
    "|http2-settings|transfer-encoding|proxy-connection|range|if-match|if-range"
    "|if-modified-since|if-unmodified-since|content-type|content-length|content-encoding"
)
"""Headers that make a request not plain. The first letters of some others do too, below."""
_NAMES: Final = (
    rb"^(" + _ABSENT.encode() + rb"|content-[a-z-]*|sec-websocket-[a-z0-9-]*"
    rb"|x-request-id|host|connection|accept|if-none-match|user-agent|server|etag|max-forwards"
    rb"):[ \t]*([^\r]*)"
)
_TELLING: Final = re.compile(_NAMES, re.IGNORECASE | re.MULTILINE)
_ONCE: Final = frozenset({b"user-agent", b"server", b"etag", b"max-forwards"})
"""More of them than one are for aiohttp to refuse; else they decide nothing."""
_KNOWN: Final = frozenset({*_ABSENT.split("|"), *(name.decode() for name in _PROFILED)})
_SERIALS: Final = tuple(b"%03x" % number for number in range(REQUEST_ID_BLOCK))
_AGES: Final = re.compile(
    rb"(.*?\r\nCache-Control: public, max-age=)([0-9]+)(\r\n(?:.*?\r\n)??Biaojie-Age: )([0-9]+)"
    rb"(\r\n.*)",
    re.DOTALL,
)
_ID: Final = b"X-Request-Id: "
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NUMBERS: Final = tuple(b"%d" % number for number in range(_NUMBERS_MAX))
_join = b"".join
_monotonic = time.monotonic

_OWN: Final = re.compile(rb"\r\n(?:ETag|Content-Length): ")


def http_date() -> str:
    """Now, as the Date header has it."""
    return _date_of(int(time.time()))


@lru_cache(2)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


class Noted(Mapping[str, str]):
    """Headers of a request, and the names of those that were looked for."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._all = False
        self._names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self._names.add(name)
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        self._all = True
        return iter(self._headers)

    def __len__(self) -> int:
        self._all = True
        return len(self._headers)

    def decided_by_profile(self) -> bool:
        """Whether another plain request of the same profile would have been read alike."""
        return not self._all and self._names <= _KNOWN


@dataclass(frozen=True, slots=True)
class Style:
    """What many replies have in common, `kept_s` being how long they may be used. The reply:
    `status` line · Date and request id · `before` · max-age · `between` · age · `shared` · its
    own `rest`."""

    status: bytes
    before: bytes
    between: bytes
    shared: bytes
    ttl_s: int
    kept_s: float
    tally: Tally


class HttpReady(Ready):
    """Few references, for with many names each of them is a wait for memory. `fetched` is that
    of the entry."""

    __slots__ = ("fetched", "rest", "style")

    def __init__(self, entry: Cached, octets: int, style: Style, rest: bytes) -> None:
        super().__init__(entry, octets)
        self.fetched = entry.fetched
        self.style = style
        self.rest = rest

    def die(self) -> None:
        self.fetched = -inf


class HttpLane(Lane[HttpReady]):
    """`header_bytes_max` as for all requests."""

    def __init__(
        self,
        health: Health,
        bytes_max: int,
        observer: Observer,
        *,
        header_bytes_max: int = REQUEST_OCTETS_MAX,
    ) -> None:
        super().__init__(health, bytes_max)
        self.enabled = bytes_max > 0
        self.octets_max = min(REQUEST_OCTETS_MAX, header_bytes_max)
        self.profiles: dict[bytes, bytes] = {}
        self.request_id: bytes | None = None
        self._observer = observer
        self._styles: dict[Style, Style] = {}
        self._date = b""
        self._date_until = 0.0
        self._id = b""
        self._head = b""
        self._serial = REQUEST_ID_BLOCK

    # Requests ---------------------------------------------------------------------------

    def profile(self, block: bytes) -> bytes | None:
        """What of a header block (all after the request line) decides the reply; None
        where the request is not plain. Asked for blocks that are not in `profiles`: those with a
        request id of their own, which is in `request_id` then, never are."""
        if len(block) > self.octets_max or BLOCK.fullmatch(block) is None:
            return None
        if block.count(b"\r\n") > HEADERS_MAX + 2:
            return None
        given: dict[bytes, bytes] = {}
        for name, text in _TELLING.findall(block):
            folded = name.lower()
            if folded in given:
                return None
            given[folded] = text.rstrip(b" \t")
        if given.pop(b"host", None) is None:
            return None
        if given.pop(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        accept, tag = given.pop(b"accept", b""), given.pop(b"if-none-match", None)
        request_id = given.pop(b"x-request-id", None)
        if not given.keys() <= _ONCE:
            return None
        if request_id is not None and REQUEST_ID.fullmatch(request_id) is None:
            return None
        # None begins as another does, so that no start of a request can be taken for a profile.
        profile = b"j" if wants_json(accept.decode()) else b"p"
        if tag is not None:
            if len(tag) > IF_NONE_MATCH_OCTETS_MAX:
                return None
            profile = profile.upper() + tag + b"\n"
        self.request_id = request_id
        if request_id is None:
            while len(self.profiles) >= PROFILES_MAX:
                del self.profiles[next(iter(self.profiles))]
            self.profiles[block] = profile
        return profile

    def is_start(self, octets: bytes) -> bool:
        """Whether this, before a plain header block, begins a request that may be kept."""
        return _START.fullmatch(octets) is not None

    # Replies ----------------------------------------------------------------------------

    def reply(self, key: bytes, now: float) -> bytes | None:
        """What to send at the monotonic time `now`; counted as answered.

        Each call and each object less to look at shows here.
        """
        ready = self._entries.get(key)
        if ready is None:
            return None
        style = ready.style
        passed = now - ready.fetched
        if passed >= style.kept_s or self._health.down:
            if not self._health.down:
                self.drop(key)
            return None
        if ready.hits < HITS:
            ready.hits += 1
        self.hits += 1
        serial = self._serial
        if serial >= REQUEST_ID_BLOCK or now >= self._date_until:
            serial = self._renew(now)
        self._serial = serial + 1
        age = int(passed)
        left = style.ttl_s - age
        reply = _join(
            (
                style.status,
                self._head,
                _SERIALS[serial],
                style.before,
                b"%d" % left if left > 0 else b"0",
                style.between,
                _NUMBERS[age] if age < _NUMBERS_MAX else b"%d" % age,
                style.shared,
                ready.rest,
            )
        )
        tally = style.tally
        seconds = _monotonic() - now
        if seconds < FAST_S:
            tally.seconds += seconds
            tally.buckets[0] += 1
        else:
            tally.add(seconds)
        return reply

    def renamed(self, reply: bytes) -> bytes:
        """A reply with the request's own id instead of ours."""
        assert self.request_id is not None
        at = reply.index(_ID) + len(_ID)
        return reply[:at] + self.request_id + reply[at + 16 :]

    def _renew(self, now: float) -> int:
        """The next second or the next request ids; returns the serial of the next of them."""
        if now >= self._date_until:
            self._date_until = now + 1.0 - time.time() % 1.0
            self._date = http_date().encode()
        if self._serial >= REQUEST_ID_BLOCK:
            self._id = request_id_block().encode()
            self._serial = 0
        self._head = b"Date: %b\r\nX-Request-Id: %b" % (self._date, self._id)
        return self._serial

    def learn(
        self,
        key: bytes,
        method: str,
        response: web.Response,
        entry: Cached,
        tally: tuple[str, str],
    ) -> None:
        """Keep a reply that was sent to the request of this key, made of `entry` and nothing
        else. Passed over if it is not one that moves on in its ages alone. `tally`: front and
        operation."""
        pieces = _pieces(method, response, entry) if self.enabled else None
        if pieces is None:
            return
        *constant, rest = pieces
        kept_s = round(entry.expires - entry.fetched, 3)
        status, before, between, shared = constant
        counted = self._observer.tally(*tally)
        style = Style(status, before, between, shared, entry.ttl_s, kept_s, counted)
        if len(self._styles) >= STYLES_MAX:
            self._styles.clear()
        style = self._styles.setdefault(style, style)
        self.keep(key, HttpReady(entry, getsizeof(key) + getsizeof(rest), style, rest))


def _pieces(
    method: str, response: web.Response, entry: Cached
) -> tuple[bytes, bytes, bytes, bytes, bytes] | None:
    """Status line, `before`, `between`, `shared`, `rest` of a reply that has been sent."""
    body = response.body
    if method not in ("GET", "HEAD") or response.status not in (200, 304):
        return None
    if not isinstance(body, bytes | None) or len(body or b"") > REPLY_OCTETS_MAX:
        return None
    lines = list(response.headers.items())
    if [name for name, _ in lines[:2]] != ["Date", "X-Request-Id"]:
        return None
    if "Connection" in response.headers:  # it was the last on its connection
        return None
    head = "".join(f"\r\n{name}: {text}" for name, text in lines[2:]).encode() + b"\r\n\r\n"
    found = _AGES.fullmatch(head)
    if found is None:
        return None
    before, left, between, age, after = found.groups()
    if int(left) != max(entry.ttl_s - int(age), 0):
        return None
    split = _OWN.search(after)
    if split is None:
        return None
    status = f"HTTP/1.1 {response.status} {response.reason}\r\n".encode()
    rest = after[split.start() :] + (b"" if method == "HEAD" or not body else body)
    return status, before, between, after[: split.start()], rest
