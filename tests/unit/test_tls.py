"""TLS that takes any client certificate: on both event loops, in both versions, with limits."""

from __future__ import annotations

import asyncio
import socket
import ssl
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from biaojie.keys import decode_certificate, generate, pem
from biaojie.keys import self_signed as client_certificate
from resolver.front.http import tls, tls_client

BODY = b"x" * 300_000


class Echo(asyncio.Protocol):
    """Says who came, then all that it hears."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        found = tls_client.client_certificate(transport)
        transport.write((decode_certificate(found).identity or "").encode() if found else b"-")
        transport.write(b"\n")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    tls.self_signed(folder, "node", ("localhost", "127.0.0.1"))
    key = generate("rsa")
    (folder / "client.pem").write_bytes(client_certificate(key, "300:20.500/A"))
    (folder / "client.key").write_bytes(pem.encode_private(key))
    return folder


def context(files: Path, certificate: bool, version: ssl.TLSVersion) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(files / tls.CERTIFICATE_FILE))
    made.minimum_version = made.maximum_version = version
    if certificate:
        made.load_cert_chain(str(files / "client.pem"), str(files / "client.key"))
    return made


async def serving(files: Path) -> tuple[asyncio.Server, int]:
    server = await asyncio.get_running_loop().create_server(
        Echo,
        "127.0.0.1",
        0,
        ssl=tls.tls_context(files / tls.CERTIFICATE_FILE, files / tls.KEY_FILE),
        ssl_handshake_timeout=5,
    )
    return server, server.sockets[0].getsockname()[1]


async def talk(port: int, client: ssl.SSLContext) -> tuple[bytes, bytes]:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname="localhost", limit=2**20
        )
        who = await reader.readline()
        writer.write(BODY)
        heard = await reader.readexactly(len(BODY))
        writer.close()
        await writer.wait_closed()
    return who.strip(), heard


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_whoever_comes_is_served_and_known(
    files: Path, version: ssl.TLSVersion, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def go() -> None:
        server, port = await serving(files)
        known = await talk(port, context(files, True, version))
        unknown = await talk(port, context(files, False, version))
        server.close()
        assert known == (b"300:20.500/A", BODY)
        assert unknown == (b"-", BODY)

    run(go())


def test_handshakes_have_a_bound(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKES_MAX", 3)
    client = context(files, False, ssl.TLSVersion.TLSv1_3)

    async def go() -> None:
        server, port = await serving(files)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await talk(port, client)
        for one in silent:
            one.close()
        async with asyncio.timeout(10):
            while True:  # those that hung up make room
                try:
                    assert (await talk(port, client))[0] == b"-"
                    break
                except OSError:
                    await asyncio.sleep(0.01)
        server.close()

    uvloop.run(go())


def test_garbage_in_place_of_a_handshake(files: Path) -> None:
    async def go() -> None:
        server, port = await serving(files)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            assert len(await reader.read()) < 100
        writer.close()
        assert (await talk(port, context(files, False, ssl.TLSVersion.TLSv1_2)))[0] == b"-"
        server.close()

    uvloop.run(go())


def test_the_own_certificate_is_made_once_and_its_key_is_private(files: Path) -> None:
    before = (files / tls.KEY_FILE).read_bytes()
    _, key = tls.self_signed(files, "other", ("elsewhere",))
    assert key.read_bytes() == before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_files_that_are_none_are_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(tls_client.CannotServeTls, match=r"absent\.pem"):
        tls.tls_context(tmp_path / "absent.pem", files / tls.KEY_FILE)
    with pytest.raises(tls_client.CannotServeTls, match=r"client\.key"):
        tls.tls_context(files / tls.CERTIFICATE_FILE, files / "client.key")
