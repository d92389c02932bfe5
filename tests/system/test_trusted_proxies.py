"""Behind a proxy each client has its own wrong keys, if the proxy may say who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resolver.guesses import Guesses
from tests.system.wire import Wire, request

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]
PATH = "/api/v1/keys"
TRIES = Guesses.FREE + 2


def ask(node: RunningNode, key: str, client: str) -> int:
    headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": client}
    with Wire(node.port) as wire:
        wire.send(request("GET", PATH, headers))
        return wire.answer().status


def guess(node: RunningNode, client: str) -> list[int]:
    return [ask(node, f"{node.key[:-4]}{number:04}", client) for number in range(TRIES)]


def test_one_who_guesses_shuts_out_himself_alone(make_node: Make) -> None:
    node = make_node(trusted_proxies="127.0.0.0/8", truncate_addresses=False)
    told = guess(node, "203.0.113.5")
    assert told[0] == 401
    assert told[-1] == 429
    assert ask(node, "no key", "203.0.113.6, 203.0.113.5") == 429, "the first he wrote himself"
    assert ask(node, node.key, "203.0.113.5") == 429
    assert ask(node, node.key, "203.0.113.6") == 200
    assert ask(node, "no key", "203.0.113.5, 203.0.113.6") == 401
    assert '"peer": "203.0.113.5"' in node.log


def test_of_a_stranger_the_header_says_nothing(make_node: Make) -> None:
    node = make_node(trusted_proxies="192.0.2.0/24")
    assert [ask(node, "no key", f"203.0.113.{n}") for n in range(TRIES)][-1] == 429
    assert ask(node, node.key, "203.0.113.99") == 429
