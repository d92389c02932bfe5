"""Who asks over REST: what is safe to send, sessions and their bounds, headers."""

from __future__ import annotations

from typing import Any

import pytest

from biaojie.errors import InvalidRequest
from registry.admission import Caller
from resolver.front.http.endpoint import Asked
from resolver.front.http.handle_auth import (
    IDLE_S,
    LIFE_S,
    OPEN_S,
    RestAuthentication,
    RestSessions,
    is_loopback,
)
from resolver.front.http.handles import HandleRest

SOMEONE = Caller("300:20.500/A")


def asked(peer: str, **members: Any) -> Asked:
    path = "/api/handles/20.500/A"
    return Asked("PUT", path, "", {}, b"", peer, "r", "", "20.500/A", **members)


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("2001:db8::1", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_this_machine(peer: str, local: bool) -> None:
    assert is_loopback(peer) is local
    strict = RestAuthentication(None, None)  # type: ignore[arg-type]
    lax = RestAuthentication(None, None, requires_tls=False)  # type: ignore[arg-type]
    assert strict.safe(asked(peer)) is local
    assert strict.safe(asked(peer, tls=True))
    assert lax.safe(asked(peer))


async def test_from_elsewhere_without_tls_a_password_counts_as_not_sent() -> None:
    from biaojie.errors import Unauthenticated

    strict = RestAuthentication(None, None)  # type: ignore[arg-type]
    far = asked("192.0.2.1")
    for header in ("Basic MzAwOmE6Yg==", 'Handle clientCert="true"', 'Handle sessionId="x"'):
        sent = Asked("PUT", far.path, "", {"authorization": header}, b"", far.peer, "r", "")
        assert (await strict.caller(sent)).is_public
    refusal = HandleRest(strict).refuse(far, Unauthenticated())
    assert refusal.status == 403
    assert b'"responseCode":406' in refusal.body
    assert "WWW-Authenticate" not in refusal.headers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_sessions_end() -> None:
    clock = Clock()
    sessions = RestSessions(clock=clock)
    waiting, proved = sessions.begin(), sessions.begin()
    sessions.prove(proved, SOMEONE, b"")
    clock.now = OPEN_S + 1
    assert sessions.find(waiting.id) is None
    assert sessions.find(proved.id) is proved
    while clock.now < LIFE_S - IDLE_S:
        clock.now += IDLE_S - 1
        assert sessions.find(proved.id) is proved
    clock.now += IDLE_S + 1
    assert sessions.find(proved.id) is None
    assert len(sessions) == 0


def test_strangers_do_not_push_out_those_who_proved() -> None:
    sessions = RestSessions(open_max=3, proved_max=2)
    first = sessions.begin()
    sessions.prove(first, SOMEONE, b"")
    for _ in range(10):
        sessions.begin()
    assert len(sessions) == 4
    assert sessions.find(first.id) is first
    for _ in range(2):
        sessions.prove(sessions.begin(), SOMEONE, b"")
    assert sessions.find(first.id) is None


@pytest.mark.parametrize(
    "header",
    ['Handle a="1" b="2"', "Handle =x", "Handle ,,", 'Handle a="1', "Basic !", "Basic YQ=="],
)
async def test_malformed_headers(header: str) -> None:
    local = RestAuthentication(None, None)  # type: ignore[arg-type]
    sent = Asked("GET", "/", "", {"authorization": header}, b"", "127.0.0.1", "r", "")
    with pytest.raises(InvalidRequest):
        await local.caller(sent)
