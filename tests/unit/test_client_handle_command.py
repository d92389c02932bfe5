"""`biaojie resolve --handle`: the command line as a client of a Handle server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from biaojie import Permissions, Value, keys
from biaojie.keys.keyfile import encode_private
from tests.scripted_handle import IDENTITY, SECRET, ScriptedHandle

A = "88.118.8/A"
URL = Value(1, "URL", b"https://a.example")
PIN = Value(3, "PIN", b"1234", permissions=Permissions.parse("1100"))


async def biaojie(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "resolver", *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"LANG": "C.UTF-8"} | environment,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_resolve_asks_a_handle_server(tmp_path: Path) -> None:
    private = keys.generate("rsa")
    key_file = tmp_path / "key.bin"
    key_file.write_bytes(encode_private(private, b"open sesame"))
    server = ScriptedHandle(user_key=private.public)
    server.put(A, URL, PIN)
    async with server.serving():
        asked = ("resolve", A, "--handle", f"127.0.0.1:{server.port}")
        code, out, _ = await biaojie(*asked, BIAOJIE_KEY="of another node")
        assert code == 0
        assert "https://a.example" in out
        assert "PIN" not in out
        assert f";; Server: {server.url}" in out
        assert server.over() == ["udp 1"]

        code, out, _ = await biaojie(
            *asked, "--json", "--identity", IDENTITY, BIAOJIE_KEY=SECRET.decode()
        )
        assert code == 0
        assert [value["data"] for value in json.loads(out)["values"]][1] == "1234"

        login = ("--identity", IDENTITY, "--key-file", str(key_file))
        code, out, _ = await biaojie(*asked, *login, BIAOJIE_PASSPHRASE="open sesame")
        assert code == 0
        assert "1234" in out
        code, _, err = await biaojie(*asked, *login)
        assert (code, "passphrase" in err) == (2, True)
        code, _, err = await biaojie(*asked, "--key-file", str(key_file))
        assert (code, "--identity" in err) == (2, True)
        code, _, err = await biaojie("resolve", "88.118.8/NO", *asked[2:])
        assert (code, "identifier-not-found" in err) == (1, True)
