"""What somebody writes in an afternoon instead: an aiohttp application, a dictionary, one route.

`python -m bench.peers.minimal_aiohttp NAMES OCTETS`: so many names, answers of so many octets.
No limits, no freshness, no metrics: the least that answers. Says its port, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop
from aiohttp import web

from .work import body_of, plain_name


async def _run(names: int, octets: int) -> None:
    answers = {plain_name(number): body_of(number, octets) for number in range(names)}

    async def answer(request: web.Request) -> web.Response:
        body = answers.get(request.match_info["name"])
        if body is None:
            raise web.HTTPNotFound
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/{name}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(_run(int(sys.argv[1]), int(sys.argv[2])))
