"""Who asks, behind proxies that lie, are chained, or are none of ours."""

from __future__ import annotations

import pytest

from resolver.front.http.forwarded import HOPS_MAX, Proxies

OURS = "10.0.0.0/24, 192.0.2.7/32, 2001:db8:1::/48"
PROXY = "10.0.0.9"


@pytest.mark.parametrize(
    ("peer", "told", "asker"),
    [
        (PROXY, [], PROXY),
        (PROXY, ["203.0.113.5"], "203.0.113.5"),
        (PROXY, ["203.0.113.5:4711"], "203.0.113.5"),
        (PROXY, ["2001:DB8::5"], "2001:db8::5"),
        (PROXY, ["[2001:db8::5]:80"], "2001:db8::5"),
        (PROXY, ["::ffff:203.0.113.5"], "203.0.113.5"),
        ("2001:db8:1::1", ["203.0.113.5"], "203.0.113.5"),
        # What stands before the last stranger he wrote himself.
        (PROXY, ["1.1.1.1, 203.0.113.5"], "203.0.113.5"),
        (PROXY, ["1.1.1.1", "203.0.113.5"], "203.0.113.5"),
        (PROXY, ["10.0.0.1, 203.0.113.5"], "203.0.113.5"),
        (PROXY, ["127.0.0.1, 203.0.113.5"], "203.0.113.5"),
        # Through several of ours.
        (PROXY, ["203.0.113.5, 10.0.0.8,192.0.2.7"], "203.0.113.5"),
        (PROXY, ["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        # Who vouches for nobody is the asker.
        (PROXY, ["unknown"], PROXY),
        (PROXY, ["203.0.113.5, "], PROXY),
        (PROXY, ["203.0.113.5, 10.0.0.300, 10.0.0.8"], "10.0.0.8"),
        (PROXY, ["203.0.113.5, 010.0.0.1"], PROXY),
        (PROXY, ["9" * 100_000], PROXY),
        # The proxy's own machine is not the node's own.
        (PROXY, ["127.0.0.1"], PROXY),
        (PROXY, ["203.0.113.5, ::1"], PROXY),
        # Nobody else is believed.
        ("203.0.113.9", ["203.0.113.5"], "203.0.113.9"),
        ("192.0.2.8", ["203.0.113.5"], "192.0.2.8"),
        ("127.0.0.1", ["203.0.113.5"], "127.0.0.1"),
        ("", ["203.0.113.5"], ""),
    ],
)
def test_the_address_that_the_outermost_trusted_proxy_saw(
    peer: str, told: list[str], asker: str
) -> None:
    assert Proxies(OURS).asker(peer, told) == asker
    assert Proxies("").asker(peer, told) == peer


@pytest.mark.parametrize(
    ("told", "asker"),
    [
        (["for=203.0.113.5"], "203.0.113.5"),
        (['For="203.0.113.5:80";proto=https'], "203.0.113.5"),
        (['proto=http; for="[2001:db8::5]:4711" ;by=10.0.0.9'], "2001:db8::5"),
        (["for=1.1.1.1, for=203.0.113.5;host=x, for=10.0.0.8"], "203.0.113.5"),
        (["for=unknown"], PROXY),
        (["for=_hidden, for=10.0.0.8"], "10.0.0.8"),
        (["203.0.113.5"], PROXY),
        (['for="a, for=203.0.113.5'], "203.0.113.5"),
        (['by="for=1.1.1.1";for=203.0.113.5'], "203.0.113.5"),
        (['by="x;for=1.1.1.1"'], PROXY),
    ],
)
def test_forwarded(told: list[str], asker: str) -> None:
    assert Proxies(OURS, "forwarded").asker(PROXY, told) == asker


def test_of_a_long_chain_only_the_end_is_read() -> None:
    chain = ["203.0.113.5", *(["10.0.0.8"] * HOPS_MAX)]
    assert Proxies(OURS).asker(PROXY, [", ".join(chain)]) == "10.0.0.8"
    assert Proxies(OURS).asker(PROXY, [", ".join(chain[:-1])]) == "203.0.113.5"


@pytest.mark.parametrize("wrong", ["proxy.example", "10.0.0.1/24", "10.0.0.0/33"])
def test_what_is_no_network_is_told_at_once(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"not|host bits"):
        Proxies(wrong)
