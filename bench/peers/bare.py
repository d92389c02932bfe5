"""The bare driver by itself, in a process that can be put on a core of its own.

`python -m bench.peers.bare reads|commits DSN CALLERS SECONDS`; says what it counted, as JSON.
"""

from __future__ import annotations

import json
import sys

import uvloop

from ..registry_limits import gathered_reads, group_commit


async def _run(what: str, dsn: str, callers: int, seconds: float) -> None:
    limit = await (gathered_reads if what == "reads" else group_commit)(dsn, callers, seconds)
    said = {"replies": limit.requests, "seconds": limit.seconds, "server_cpu_s": limit.cpu_s}
    print(json.dumps(said | {"driver_cpu_s": 0.0}))


if __name__ == "__main__":
    uvloop.run(_run(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
