"""What the operator has at hand: its names and administrator, whether it keeps connections, and
creates that carry their proof. Nothing of ours is started."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.names import OwnNames
from bench.peers.creates import create
from bench.peers.given import Peer, address, hangs_up, read_login, read_names
from bench.words import BenchFault
from biaojie import keys
from biaojie.handle_session import Session
from biaojie.keys.keyfile import encode_private
from biaojie.record import Reference, Value
from biaojie.wire.handle import (
    CreateResponse,
    Malformed,
    OpCode,
    ResponseCode,
    ValuesRequest,
    Version,
    answer_to,
    decode_message,
    encode_message,
    mac_matches,
)

NAMES = OwnNames("88.118.8", 10)


def a_session(version: Version) -> Session:
    return Session(7, keys.new_session_key(), version, 0.0, proven=True)


@pytest.mark.parametrize("version", [Version(2, 5), Version(2, 7), Version(2, 11)])
def test_a_create_has_the_mac_of_its_session(version: Version) -> None:
    session, other = a_session(version), a_session(version)
    first, second = (decode_message(create(NAMES, n, session)) for n in (0, 1))
    for number, message in enumerate((first, second)):
        assert message.opcode == OpCode.CREATE_HANDLE
        assert message.body == ValuesRequest(
            NAMES.name(number), (Value(1, "URL", NAMES.data(number, 0)),)
        )
        assert (message.session_id, message.request_id) == (7, 1)
        assert mac_matches(message, session.key.octets)
        assert not mac_matches(message, other.key.octets)
        assert message.credential is not None
        assert message.credential.counter == number + 1


# Connections ----------------------------------------------------------------------------------

QUESTION = create(NAMES, 0, a_session(Version(2, 11)))
ANSWER = encode_message(answer_to(decode_message(QUESTION), CreateResponse(), ResponseCode.SUCCESS))


@contextmanager
def server(answer: bytes, *, ends: bool) -> Iterator[int]:
    """Takes one connection, answers once, and ends it or waits for the other side to."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(65_536)
            connection.sendall(answer)
            if not ends:
                connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        thread.join(30)
        listener.close()


@pytest.mark.parametrize("ends", [True, False])
def test_whether_a_server_hangs_up(ends: bool) -> None:
    with server(ANSWER, ends=ends) as port:
        assert hangs_up("127.0.0.1", port, QUESTION) is ends


def test_a_server_that_says_nothing_hangs_up() -> None:
    with server(b"", ends=True) as port:
        assert hangs_up("127.0.0.1", port, QUESTION)


def test_a_server_that_speaks_something_else() -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n", ends=True) as port, pytest.raises(Malformed):
        hangs_up("127.0.0.1", port, QUESTION)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("127.0.0.1", ("127.0.0.1", 2641)),
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("http://127.0.0.1:8000/x", ("127.0.0.1", 8000)),
    ],
)
def test_addresses(url: str, found: tuple[str, int]) -> None:
    assert address(url, 2641) == found


def test_an_address_without_a_port() -> None:
    with pytest.raises(BenchFault):
        address("127.0.0.1:x", 2641)


# Names and identities ---------------------------------------------------------------------------


def test_names_with_what_their_answers_hold(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("88.118.8/A\tone\n\n88.118.8/B\ttwo\n")
    peer = Peer(names=read_names(tmp_path / "names"))
    assert (peer.count, peer.prefix) == (2, "88.118.8")
    assert (peer.name(1), peer.data(1, 0)) == ("88.118.8/B", b"two")


def test_who_may_create(tmp_path: Path) -> None:
    secret, key = tmp_path / "secret", tmp_path / "key"
    secret.write_text("s3cret\n")
    key.write_bytes(encode_private(keys.generate("RSA", 2048)))
    assert read_login("", None, None) is None
    by_secret = read_login("300:88.118.8/ADMIN", None, secret)
    assert by_secret is not None
    assert (by_secret.identity, by_secret.secret) == (Reference("88.118.8/ADMIN", 300), b"s3cret")
    by_key = read_login("301:88.118.8/ADMIN", key, None)
    assert by_key is not None
    assert by_key.private_key is not None
    for wrong in (("300:88.118.8/ADMIN", None, None), ("300:88.118.8/ADMIN", key, secret)):
        with pytest.raises(BenchFault):
            read_login(*wrong)
    with pytest.raises(BenchFault):
        read_login("ADMIN", None, secret)
