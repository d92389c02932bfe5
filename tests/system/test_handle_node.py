"""The Handle transports as a node has them: ports, settings, metrics, starting and stopping."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from biaojie.wire.handle import (
    MEDIA_TYPE,
    Message,
    OpCode,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    StreamFraming,
    decode_message,
    encode_message,
)
from tests.system.described import metrics, total

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode
    from tests.system.described import Described

Make = Callable[..., "RunningNode"]
HANDLE = "88.118.8/TRANSPORTS"


@pytest.fixture(scope="module")
def registered(node: RunningNode) -> RunningNode:
    body = {"values": [{"index": 1, "type": "URL", "data": "https://example.com/t"}]}
    reply = node.ask("PUT", f"/api/v1/identifiers/{HANDLE}", body)
    assert reply.status in (200, 201), reply.body
    return node


def ask(request_id: int = 1) -> bytes:
    return encode_message(
        Message(OpCode.RESOLUTION, ResolveRequest(HANDLE, (), ("URL",)), request_id=request_id)
    )


def is_found(message: Message) -> bool:
    assert message.response_code == ResponseCode.SUCCESS, message.body
    assert isinstance(message.body, ResolveResponse)
    return [value.data for value in message.body.values] == [b"https://example.com/t"]


def answers(line: socket.socket, count: int) -> list[Message]:
    framing = StreamFraming()
    found: list[Message] = []
    while len(found) < count:
        data = line.recv(65536)
        assert data, f"closed after {len(found)} of {count}"
        found += [decode_message(frame) for frame in framing.feed(data)]
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_node_answers_on_one_port_over_tcp_and_udp(registered: RunningNode, host: str) -> None:
    with socket.create_connection((host, registered.handle_port), timeout=5) as line:
        line.sendall(ask(1) + ask(2))
        found = answers(line, 2)
        assert {message.request_id for message in found} == {1, 2}
        assert all(map(is_found, found))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((host, registered.handle_port))
        client.send(ask(3))
        assert is_found(decode_message(client.recv(2000)))


def test_a_node_answers_inside_http(registered: RunningNode) -> None:
    for path in (f"/{HANDLE}", "/", "/api/v1/keys"):
        reply = registered.ask("POST", path, ask(4), key=None, Content_Type=MEDIA_TYPE)
        assert reply.status == 200
        assert reply.headers["Content-Type"] == MEDIA_TYPE
        assert is_found(decode_message(reply.body))


def test_metrics_of_the_transports(registered: RunningNode, api: Described) -> None:
    with (
        socket.create_connection(("127.0.0.1", registered.handle_port), timeout=5) as line,
        socket.socket(type=socket.SOCK_DGRAM) as client,
    ):
        before = metrics(api)
        line.sendall(ask(1))
        answers(line, 1)
        client.settimeout(5)
        client.sendto(b"x" * 40, ("127.0.0.1", registered.handle_port))
        client.sendto(ask(2), ("127.0.0.1", registered.handle_port))
        client.recv(2000)
        after = metrics(api)

        def grown(name: str) -> float:
            return total(after, name) - total(before, name)

        assert total(after, "biaojie_handle_tcp_connections") >= 1
        assert grown("biaojie_handle_udp_packets_total") == 2
        assert grown("biaojie_handle_udp_malformed_total") == 1
        assert grown("biaojie_handle_udp_dropped_total") == 0


def test_stopping_answers_what_has_come(make_node: Make) -> None:
    node = make_node()
    with socket.create_connection(("127.0.0.1", node.handle_port), timeout=5) as line:
        line.sendall(b"".join(ask(n) for n in range(1, 301)))
        found = answers(line, 1)
        assert node.process is not None
        node.process.terminate()
        found += answers(line, 300 - len(found))
        assert len(found) == 300
        assert line.recv(100) == b""
    node.process.wait(5)  # a second signal would hurry it
    assert node.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", node.handle_port), timeout=5)


def test_without_the_handle_protocol(make_node: Make) -> None:
    node = make_node(handle_enabled=False)
    assert node.handle_port == 0
    assert node.ask("GET", "/readyz").status == 200
    assert node.ask("POST", "/x", ask(), key=None, Content_Type=MEDIA_TYPE).status == 404


def test_a_taken_port_is_named_and_the_node_does_not_start(make_node: Make) -> None:
    node = make_node(start=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        node.handle_port = taken.getsockname()[1]
        node.migrate()
        done = subprocess.run(
            node.command("serve"), env=node.settings(), capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 3
    assert f"127.0.0.1 port {node.handle_port} (Handle)" in done.stderr
    assert "BIAOJIE_HANDLE_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_starts_even_where_the_usual_port_is_taken(make_node: Make) -> None:
    node = make_node(start=False, demo=True)
    settings = node.settings()
    del settings["BIAOJIE_HANDLE_PORT"]  # nothing was chosen
    node.settings = lambda: settings  # type: ignore[method-assign]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 2641))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which serves as well
        node.migrate()
        node.start()
        assert node.handle_port not in (0, 2641)
        assert "port 2641 (Handle)" in node.log
        assert node.stop() == 0
