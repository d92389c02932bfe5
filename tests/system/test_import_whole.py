"""A bulk file tells the truth: one row in a hundred is bad in twenty ways, the node is killed
while it works, and report, error file and registry say the same; the node's memory is bounded.

`make import-million` does it with a million rows.
"""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from biaojie.client import Client
from tests import bad_rows
from tests.system.wire import until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

ROWS = int(os.environ.get("IMPORT_ROWS", "20000"))
MEMORY_MAX = 512 * 2**20
IMPORTS = "/api/v1/imports"


def prepared(node: RunningNode) -> str:
    """The prefixes and records that the bad rows run into; a key of acme's."""
    node.home(bad_rows.OWN, "acme")
    node.home(bad_rows.FOREIGN, "globex")
    node.home(bad_rows.SUSPENDED, "acme")
    path = f"/api/v1/prefixes/{bad_rows.SUSPENDED}"
    assert node.ask("PATCH", path, {"status": "suspended"}).status == 200
    for name in (bad_rows.TAKEN, bad_rows.RETIRED):
        assert node.ask("PUT", f"/api/v1/identifiers/{name}", {"values": []}).status == 201
    assert node.ask("DELETE", f"/api/v1/identifiers/{bad_rows.RETIRED}").status == 200
    return node.issue("registrar", "acme")


def upload(node: RunningNode, key: str, file: Path, query: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=600)
    with file.open("rb") as body:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "text/csv"}
        connection.request("POST", f"{IMPORTS}?{query}", body, headers, encode_chunked=True)
        reply = connection.getresponse()
        assert reply.status == 202, reply.read()
        return json.loads(reply.read())


def peak_memory(node: RunningNode) -> int:
    """Of the node and the process that reads ahead for it."""
    assert node.process is not None
    pids = [node.process.pid]
    for thread in Path(f"/proc/{pids[0]}/task").iterdir():
        with suppress(OSError):
            pids += map(int, (thread / "children").read_text().split())
    peaks = [0]
    for pid in pids:
        with suppress(OSError):  # it has ended
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks += [int(line.split()[1]) for line in status if line.startswith("VmHWM:")]
    assert peaks[1:]
    return sum(peaks) * 1024


def report(node: RunningNode, key: str, id_: str) -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    after = ""
    while True:
        page = node.ask("GET", f"{IMPORTS}:report/{id_}?limit=1000{after}", key=key).json
        for fault in page["items"]:
            assert fault["line"] not in found, "one fault each"
            assert fault["reason"]
            assert fault["fix"]
            assert fault["fix_zh"]
            found[fault["line"]] = (fault["column"], fault["code"])
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def registered(node: RunningNode) -> set[str]:
    async with Client(node.url, node.key, timeout_s=60) as client:
        return {str(record.identifier) async for record in client.records(bad_rows.OWN)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
async def test_report_and_registry_agree_after_kills(
    make_node: Callable[..., RunningNode], tmp_path: Path
) -> None:
    node = make_node()
    key = prepared(node)
    file = tmp_path / "goods.csv"
    expected, good = bad_rows.write(file, ROWS)
    assert len(expected) == ROWS // 100
    began = time.monotonic()
    title, role = bad_rows.COLUMN
    job = upload(node, key, file, f"column={title}={role}&name=goods.csv")
    peak = 0
    for share in (0.2, 0.6):

        def come_so_far(share: float = share) -> bool:
            state = node.ask("GET", f"{IMPORTS}/{job['id']}", key=key).json
            return bool(state["rows"] >= share * ROWS or state["state"] == "done")

        until(come_so_far, 900, 0.02)
        peak = max(peak, peak_memory(node))
        node.kill()
        node.start()

    def ended() -> Any:
        state = node.ask("GET", f"{IMPORTS}/{job['id']}", key=key).json
        return state if state["state"] in ("done", "failed", "cancelled") else None

    state = until(ended, 900, 0.1)
    took_s = time.monotonic() - began
    peak = max(peak, peak_memory(node))
    assert state["fault"] is None
    assert (state["state"], state["rows"]) == ("done", ROWS)
    assert (state["good"], state["failed"], state["written"]) == (good, len(expected), good)
    assert report(node, key, job["id"]) == expected
    assert await registered(node) == {
        *bad_rows.good_names(ROWS),
        bad_rows.TAKEN,
        bad_rows.RETIRED,
    }
    assert peak <= MEMORY_MAX
    errors = node.ask("GET", f"{IMPORTS}:errors/{job['id']}", key=key, timeout_s=60)
    assert errors.headers["Content-Disposition"] == 'attachment; filename="goods.errors.csv"'
    told = csv.DictReader(io.StringIO(errors.body.decode("utf-8", "surrogateescape"), newline=""))
    by_line = {int(row["_line"]): (row["_column"], row["_code"]) for row in told}
    assert by_line == expected
    print(f"{ROWS} rows in {took_s:.1f} s, two kills included; peak {peak / 2**20:.0f} MiB")
