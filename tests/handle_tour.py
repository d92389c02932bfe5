"""Every operation of the client library against a Handle server, whoever wrote it.

The suite runs it against a node. By hand, against another server (make a prefix for it, homed
there, whose HS_ADMIN or server administrators name the identity):

    python -m tests.handle_tour hdl://127.0.0.1:2641 88.118.8 300:88.118.8/ADMIN --secret WORDS
    python -m tests.handle_tour hdl://127.0.0.1:2641 88.118.8 301:88.118.8/ADMIN --key FILE \\
        --certified --session 4

It leaves nothing behind. The numbers of `--session` are those of `KeyExchange`.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from biaojie import Client, Permissions, Resolved, Row, Value
from biaojie.errors import IdentifierNotFound, IdentifierTaken, PrefixNotHere, Unauthenticated
from biaojie.handle_options import HandleOptions, identity_of
from biaojie.record import Reference
from biaojie.wire.handle import RIGHTS_ALL, Admin, KeyExchange

ROWS = 30
SECRET_BITS = Permissions.parse("1100")


def admin_value(index: int, who: Reference) -> Value:
    return Value(index, "HS_ADMIN", Admin(RIGHTS_ALL, who).encode())


async def tour(
    url: str, prefix: str, number: int, login: dict[str, Any], options: HandleOptions
) -> list[str]:
    """Raises AssertionError, or what the server answered; gives the steps taken.

    What it makes is called `prefix/tour-<number>…`, and a prefix `prefix.<number>`.
    """
    name = f"tour-{number}"
    steps: list[str] = []
    admin = admin_value(100, identity_of(login["identity"]))
    pin = Value(9, "PIN", b"\x00\xff", permissions=SECRET_BITS)
    record = f"{prefix}/{name}/泵 1"
    async with (
        Client(url, handle=options, **login) as client,
        Client(url, handle=HandleOptions(udp=options.udp)) as public,
    ):
        assert (await client.register(record, [admin, pin])).status == "active"
        assert await fails(client.register(record, [admin]), IdentifierTaken)
        await client.register(record, [admin, pin, Value(1, "URL", b"a")], overwrite=True)
        steps.append("create, with and without overwriting")
        await client.modify(record, [Value(1, "URL", b"b"), Value(2, "URL.x", b"c")])
        mine = (await client.resolve(record, authoritative=True)).record
        assert [(value.index, value.data) for value in mine.values] == [
            (1, b"b"), (2, b"c"), (9, pin.data), (100, admin.data)
        ]  # fmt: skip
        await client.modify(record, remove=2)
        steps.append("modify, add, remove values; authoritative and private reading")
        seen = (await public.resolve(record, types="url.")).record
        assert [value.data for value in seen.values] == [b"b"]
        assert (await public.resolve(record, index=9)).record.values == ()
        assert await fails(public.register(f"{record}x", [admin]), Unauthenticated)
        steps.append("public reading by type and index; the public may not write")
        minted = (await client.mint(prefix, [admin], f"{name}-")).identifier
        assert (await public.resolve(minted)).record.values
        steps.append("mint a suffix")

        rows = [Row(f"{prefix}/{name}/{n}", [admin, Value(1, "N", str(n).encode())])
                for n in range(ROWS)]  # fmt: skip
        written = [result async for result in client.register_many(rows)]
        assert all(result.ok for result in written), written
        names = [str(row.identifier) for row in rows]
        asked = [*names, f"{prefix}/{name}/nobody"]
        got = [each async for each in public.resolve_many(asked)]
        assert [isinstance(each, Resolved) for each in got] == [True] * ROWS + [False]
        listed = {str(each.identifier).upper() async for each in client.records(prefix)}
        assert {each.upper() for each in (record, minted, *names)} <= listed
        steps.append(f"{ROWS} writes and reads at once; the list of {len(listed)} handles")
        big = [admin, *(Value(n, "TEXT", b"x" * 400) for n in range(1, 60))]
        await client.register(f"{prefix}/{name}/big", big)
        assert len((await public.resolve(f"{prefix}/{name}/big")).record.values) == 60
        steps.append("a record of 24 kB")

        below = f"{prefix}.{number}"
        await client.prefixes.home(below, "")
        assert (await client.prefixes.get(below)).name == below
        await client.prefixes.change(below, status="unhomed")
        assert await fails(client.prefixes.get(below), PrefixNotHere)
        steps.append("home, list homed, unhome a prefix")

        assert (await client.retire(record)).status == "retired"
        assert await fails(public.resolve(record, authoritative=True), IdentifierNotFound)
        gone = [Row(each, action="retire") for each in [*names, minted, f"{prefix}/{name}/big"]]
        assert all([result.ok async for result in client.register_many(gone)])
        steps.append("delete")
    return steps


async def fails(call: Any, error: type[Exception]) -> bool:
    try:
        await call
    except error:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("prefix")
    parser.add_argument("identity")
    parser.add_argument("--secret")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--certified", action="store_true")
    parser.add_argument("--session", type=int)
    parser.add_argument("--tcp", action="store_true")
    given = parser.parse_args()
    key = given.key.read_bytes() if given.key else None
    login = {"identity": given.identity, "secret": given.secret, "private_key": key}
    options = HandleOptions(
        udp=not given.tcp,
        certified=given.certified,
        session=KeyExchange(given.session) if given.session else None,
    )
    for step in asyncio.run(tour(given.url, given.prefix, 1, login, options)):
        print("ok", step)


if __name__ == "__main__":
    main()
