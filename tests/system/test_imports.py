"""Imports at a real node: over HTTP, from the library and from the command line."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import xlsxwriter
import zstandard

from biaojie import Client, ImportOptions, SyncClient
from biaojie.errors import (
    Forbidden,
    IdempotencyMismatch,
    InvalidFile,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unauthenticated,
)
from biaojie.wire.native import imports as native_imports
from tests.system.wire import until
from tests.system.workers import pids, several

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

IMPORTS = "/api/v1/imports"
PREFIX = "88.118.8"


def start(node: RunningNode, body: bytes, query: str = "", key: str = "", **headers: str) -> Any:
    return node.ask("POST", f"{IMPORTS}?{query}", body, key=key, **headers)


def stands(node: RunningNode, id_: str) -> Any:
    return node.ask("GET", f"{IMPORTS}/{id_}").json


def over(node: RunningNode, id_: str, timeout_s: float = 60) -> Any:
    def ended() -> Any:
        job = stands(node, id_)
        return job if job["state"] in ("done", "failed", "cancelled") else None

    return until(ended, timeout_s)


def rows(name: str, count: int, digits: int = 1) -> bytes:
    """With so many digits, in order."""
    lines = "".join(f"{PREFIX}/{name}{n:0{digits}},https://x.example/{n}\n" for n in range(count))
    return ("identifier,URL\n" + lines).encode()


def resolves(node: RunningNode, name: str) -> bool:
    return node.ask("GET", f"/api/v1/identifiers/{PREFIX}/{name}").status == 200


def workbook(path: Path, name: str) -> bytes:
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet()
        for number, row in enumerate(
            [("identifier", "URL"), (f"{PREFIX}/{name}0", "x"), ("", "y")]
        ):
            sheet.write_row(number, 0, row)
    return path.read_bytes()


def test_every_form_of_file_is_imported_and_its_bad_row_comes_back(
    node: RunningNode, tmp_path: Path
) -> None:
    value = {"index": 1, "type": "URL", "data": "x"}
    forms = {
        "csv": rows("csv", 1) + b",y\n",
        "gzip": gzip.compress(rows("gzip", 1) + b",y\n"),
        "zstd": zstandard.compress(rows("zstd", 1) + b",y\n"),
        "ndjson": json.dumps({"identifier": f"{PREFIX}/ndjson0", "values": [value]}).encode()
        + b'\n{"values":[]}\n',
        "msgpack": msgpack.packb([f"{PREFIX}/msgpack0", [[1, "URL", "x"]]])
        + msgpack.packb(["", []]),
        "xlsx": workbook(tmp_path / "b.xlsx", "xlsx"),
        "gb18030": "identifier,名称\n88.118.8/gb180300,螺栓\n,螺母\n".encode("gb18030"),
    }
    for name, body in forms.items():
        query = {"msgpack": "format=msgpack", "gb18030": "encoding=gb18030"}.get(name, "")
        begun = start(node, body, f"{query}&name={name}")
        assert begun.status == 202, begun.body
        assert begun.headers["Location"] == f"{IMPORTS}/{begun.json['id']}"
        job = over(node, begun.json["id"])
        assert (job["state"], job["good"], job["failed"]) == ("done", 1, 1), (name, job)
        assert resolves(node, f"{name}0")
        errors = node.ask("GET", f"{IMPORTS}:errors/{job['id']}")
        form = "ndjson" if name in ("ndjson", "msgpack") else "csv"
        assert job["errors"] == form
        again = start(node, errors.body.replace(b",y,", b",z,"), f"format={form}")
        job = over(node, again.json["id"])
        assert (job["state"], job["rows"], job["failed"]) == ("done", 1, 1), (name, job)


def test_a_dry_run_and_mode_all_leave_nothing(node: RunningNode) -> None:
    body = rows("dry", 3) + f"{PREFIX}/dry0,twice\n".encode()
    for query in ("dry_run=true", "mode=all"):
        job = over(node, start(node, body, query).json["id"])
        assert (job["good"], job["failed"], job["written"]) == (3, 1, 0)
        page = node.ask("GET", f"{IMPORTS}:report/{job['id']}").json
        assert page["items"][0]["reason"] == "Line 2 of this file has the same identifier."
        assert not resolves(node, "dry0")
    job = over(node, start(node, rows("dry", 3), "mode=all").json["id"])
    assert (job["written"], job["errors"]) == (3, "")
    assert resolves(node, "dry2")
    assert node.ask("GET", f"{IMPORTS}:errors/{job['id']}").status == 404


def test_another_encoding_is_offered(node: RunningNode) -> None:
    body = "identifier,名称\n88.118.8/offered,螺栓\n".encode("gbk")
    job = over(node, start(node, body).json["id"])
    assert (job["state"], job["fault"]["code"], job["written"]) == ("failed", "invalid-file", 0)
    assert job["fault"]["fields"]["encoding"] == "gb18030"
    assert "名称" in job["fault"]["fields"]["sample"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_half_sent_archive_registers_nothing(
    node: RunningNode, pack: Callable[[bytes], bytes]
) -> None:
    name = f"half-{pack.__module__}"
    body = pack(rows(name, 3_000))
    job = over(node, start(node, body[: len(body) * 2 // 3]).json["id"])
    assert (job["state"], job["rows"]) == ("failed", 0)
    assert not resolves(node, f"{name}0")


def test_a_client_that_dies_mid_upload_leaves_nothing(node: RunningNode) -> None:
    folder = node.data_dir / "imports"
    before = set(os.listdir(folder)) if folder.exists() else set()
    head = (
        f"POST {IMPORTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {node.key}\r\n"
        "Content-Length: 100000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as connection:
        connection.sendall(head.encode() + rows("dies", 50_000))
        until(lambda: set(os.listdir(folder)) - before if folder.exists() else False)
    until(lambda: set(os.listdir(folder)) <= before)
    assert not resolves(node, "dies0")


def test_refused_uploads(node: RunningNode) -> None:
    assert start(node, b"x", "mode=some").code == "invalid-request"
    assert start(node, b"x", "column=%3Dx").code == "invalid-request"
    assert start(node, b"x", "colour=red").code == "invalid-request"
    assert start(node, b"x", Content_Type="text/html").code == "unsupported-media-type"
    assert start(node, b"x", Content_Encoding="br").code == "unsupported-media-type"
    for path in ("/none", "/" + "0" * 26, "/..%2F..%2Fadmin.key", ":report/x", ":errors/x"):
        assert node.ask("GET", IMPORTS + path).code == "not-found", path
    assert node.ask("GET", f"{IMPORTS}?after=x").code == "invalid-request"


def test_the_template_can_be_filled_in_and_imported(node: RunningNode) -> None:
    empty = node.ask("GET", f"{IMPORTS}:template?columns=URL,SERIAL", key=None)
    assert empty.body.decode("utf-8-sig") == "identifier,URL,SERIAL\r\n"
    assert empty.headers["Content-Type"] == "text/csv; charset=utf-8"
    filled = empty.body + f"{PREFIX}/filled,https://x/,1\r\n".encode()
    assert over(node, start(node, filled).json["id"])["written"] == 1
    record = node.ask("GET", f"{IMPORTS}:template?format=ndjson", key=None).json
    assert record == {"identifier": "", "values": [{"index": 1, "type": "URL", "data": ""}]}
    assert node.ask("GET", f"{IMPORTS}:template?columns=a,a", key=None).status == 400


def test_the_same_key_starts_one_import(node: RunningNode) -> None:
    first = start(node, rows("once", 2), Idempotency_Key="once").json
    again = start(node, rows("once", 2), Idempotency_Key="once")
    assert again.json["id"] == first["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = start(node, rows("once", 2), "mode=all", Idempotency_Key="once")
    assert other.code == IdempotencyMismatch.code
    assert over(node, first["id"])["written"] == 2


def test_limits(make_node: Callable[..., RunningNode]) -> None:
    most = 4_000_000
    node = make_node(
        import_bytes_max=most,
        import_tenant_jobs_max=2,
        import_jobs_max=3,
        import_unpacked_bytes_max=200_000_000,
    )
    node.home(PREFIX)
    assert start(node, b"x" * (most + 1)).code == TooLarge.code
    assert os.listdir(node.data_dir / "imports") == [], "nothing stays of it"
    bomb = zstandard.compress(b"identifier\n" + b"a" * 3 * 10**8)
    job = over(node, start(node, bomb).json["id"])
    assert (job["state"], job["fault"]["code"], job["rows"]) == ("failed", TooLarge.code, 0)
    acme, globex = node.issue("registrar", "acme"), node.issue("registrar", "globex")
    # So many that none is done before all have been begun; packed, they are small enough.
    body = zstandard.compress(rows("long", 400_000, 6))
    assert len(body) < most
    begun = [start(node, body, key=acme).json["id"] for _ in range(2)]
    refused = start(node, body, key=acme)
    assert (refused.status, refused.code) == (429, "too-many-requests")
    assert int(refused.headers["Retry-After"]) > 0
    begun.append(start(node, body, key=globex).json["id"])
    assert start(node, body, key=globex).code == "over-capacity"
    for id_ in begun:
        node.ask("DELETE", f"{IMPORTS}/{id_}")
    assert [over(node, id_)["state"] for id_ in begun] == ["cancelled"] * 3


def test_stopped_by_its_owner_or_with_its_key(make_node: Callable[..., RunningNode]) -> None:
    node = make_node()
    node.home(PREFIX)
    many = 400_000
    first = start(node, rows("stop", many, 6)).json["id"]
    until(lambda: stands(node, first)["rows"] > 2_000, 30)
    assert node.ask("DELETE", f"{IMPORTS}/{first}").status == 200
    job = over(node, first)
    assert job["state"] == "cancelled"
    assert 2_000 < job["written"] < many
    assert resolves(node, f"stop{job['written'] - 1:06}")
    assert not resolves(node, f"stop{job['written']:06}")
    assert node.ask("DELETE", f"{IMPORTS}/{first}").status == 200
    assert node.ask("GET", f"{IMPORTS}/{first}").status == 404
    key = node.issue("registrar")
    many = 1_500_000  # more than are through before the key is looked at again
    second = start(node, rows("key", many, 7), key=key).json["id"]
    until(lambda: stands(node, second)["rows"] > 2_000, 30)
    assert node.ask("DELETE", f"/api/v1/keys/{key.split('_')[1]}").status == 200
    job = over(node, second)
    assert (job["state"], job["fault"]["code"]) == ("failed", "unauthenticated")
    assert resolves(node, f"key{job['written'] - 1:07}")
    assert not resolves(node, f"key{job['written']:07}")


def at_work(node: RunningNode, id_: str) -> int:
    """The process that holds the job's lock, or 0."""
    for pid in pids(node).values():
        try:
            held = [os.readlink(handle) for handle in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if str(node.data_dir / "imports" / id_ / "lock") in held:
            return pid
    return 0


def test_another_worker_goes_on(make_node: Callable[..., RunningNode]) -> None:
    node = several(make_node, 2)
    node.home(PREFIX)
    many = 400_000
    id_ = start(node, rows("worker", many)).json["id"]
    killed = []
    for share in (0.1, 0.4):
        until(lambda share=share: stands(node, id_)["rows"] >= share * many, 60)
        killed.append(until(lambda: at_work(node, id_)))
        os.kill(killed[-1], signal.SIGKILL)
    job = over(node, id_, 120)
    assert len(set(killed)) == 2
    assert (job["state"], job["good"], job["failed"], job["written"]) == ("done", many, 0, many)
    assert resolves(node, f"worker{many - 1}")


@pytest.mark.parametrize("way", ["http", "native"])
async def test_the_library_follows_an_import(node: RunningNode, tmp_path: Path, way: str) -> None:
    file = tmp_path / "goods.csv"
    file.write_bytes(rows(f"lib-{way}", 2_000) + b",bad\n" + b"\n" * 1_500_000)
    async with Client(node.url if way == "http" else node.native_url, node.key) as client:
        told = [job async for job in client.imports.run(file, poll_s=0.02)]
        job = told[-1]
        assert (job.state, job.good, job.failed, job.written) == ("done", 2_000, 1, 2_000)
        assert job.options == ImportOptions(name="goods.csv")
        assert job.created
        assert {one.state for one in told} <= {"uploading", "queued", "running", "done"}
        assert [one.rows for one in told] == sorted(one.rows for one in told)
        (fault,) = [fault async for fault in client.imports.report(job.id)]
        assert (fault.line, fault.column) == (2_002, "identifier")
        errors = tmp_path / "errors.csv"
        assert await client.imports.save_errors(job.id, errors) == errors.stat().st_size
        assert job.id in [one.id async for one in client.imports.list()]
        assert (await client.imports.cancel(job.id)).id == job.id
        with pytest.raises(NotFound):
            await client.imports.get(job.id)
        with pytest.raises(NotFound):
            await client.imports.save_errors(job.id, tmp_path / "none.csv")
        with pytest.raises(InvalidFile):
            await client.imports.start(tmp_path / "none.csv")
        with pytest.raises(InvalidRequest):
            await client.imports.start(file, ImportOptions(formulas="yes"))  # type: ignore[arg-type]


async def test_an_upload_in_pieces_goes_on_where_it_broke_off(node: RunningNode) -> None:
    """Over the native protocol: what was sent twice is there once, and nothing may be missing."""
    body = rows("pieces", 500)
    options = ImportOptions(name="pieces.csv")
    async with Client(node.native_url, node.key) as client:
        transport: Any = client._transport

        async def breaking() -> AsyncIterator[bytes]:
            yield body[:5_000]
            raise ConnectionError

        async def whole() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 3_000):
                yield body[at : at + 3_000]

        with pytest.raises(ConnectionError):
            await transport.start_import(options, breaking, key="pieces", timeout_s=10)
        job = await transport.start_import(options, whole, key="pieces", timeout_s=10)
        assert job.bytes_received == len(body)
        again = await transport.start_import(options, whole, key="pieces", timeout_s=10)
        assert again.id == job.id
        with pytest.raises(NotFound):
            await transport._step("part", job.id, len(body), b"more", timeout_s=5)
    assert over(node, job.id)["written"] == 500


async def test_pieces_that_do_not_fit_are_refused(node: RunningNode) -> None:
    acme = node.issue("registrar", "acme")
    async with (
        Client(node.native_url, acme) as client,
        Client(node.native_url, node.issue("registrar", "globex")) as stranger,
        Client(node.native_url, node.issue("reader", "acme")) as reader,
        Client(node.native_url) as public,
    ):
        transport: Any = client._transport
        options = native_imports.encode_options(ImportOptions())
        begun = await transport._step("begin", options, None, timeout_s=5)
        id_ = native_imports.decode_begun(begun).id
        length = await transport._step("part", id_, 0, b"identifier\n", timeout_s=5)
        assert native_imports.decode_length(length) == 11
        with pytest.raises(InvalidRequest, match="11"):
            await transport._step("part", id_, 12, b"x", timeout_s=5)
        with pytest.raises(InvalidRequest):
            await transport._step("part", id_, 11, b"x" * (2**20 + 1), timeout_s=5)
        for other, refusal in (
            (stranger, NotFound),
            (reader, Forbidden),
            (public, Unauthenticated),
        ):
            hostile: Any = other._transport
            with pytest.raises(refusal):
                await hostile._step("part", id_, 11, b"x", timeout_s=5)
            with pytest.raises(refusal):
                await other.imports.cancel(id_)
        assert (await client.imports.get(id_)).state == "uploading"
        assert (await client.imports.cancel(id_)).state == "cancelled"


def test_the_library_without_a_loop(node: RunningNode, tmp_path: Path) -> None:
    file = tmp_path / "goods.ndjson"
    file.write_text(json.dumps({"identifier": f"{PREFIX}/sync", "values": []}))
    with SyncClient(node.url, node.key) as client:
        *_, job = client.imports.run(file, ImportOptions(mode="all"), poll_s=0.02)
        assert (job.state, job.written) == ("done", 1)
        assert list(client.imports.report(job.id)) == []


def command(node: RunningNode, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resolver", "import", *arguments, "--url", node.url],
        env=os.environ | {"BIAOJIE_KEY": node.key, "LANG": "C"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("way", [(), ("--at-node",)])
def test_the_command(node: RunningNode, tmp_path: Path, way: tuple[str, ...]) -> None:
    name = "at-node" if way else "here"
    workbook(tmp_path / "goods.xlsx", name)
    done = command(node, tmp_path, "goods.xlsx", "--column", "URL=URL[5]", *way)
    assert done.returncode == 1, done.stderr
    assert "2 rows, 1 registered, 1 bad" in done.stdout
    assert "line 3, identifier" in done.stdout
    assert (tmp_path / "goods.errors.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    record = node.ask("GET", f"/api/v1/identifiers/{PREFIX}/{name}0").json
    assert [value["index"] for value in record["values"]] == [5]
    assert sorted(os.listdir(tmp_path)) == ["goods.errors.csv", "goods.xlsx"]
    (tmp_path / "gbk.csv").write_bytes("identifier,名称\n88.118.8/x,螺栓\n".encode("gbk"))
    done = command(node, tmp_path, "gbk.csv", *way)
    assert (done.returncode, done.stdout) == (2, "")
    assert "gb18030" in done.stderr
    done = command(node, tmp_path, "gbk.csv", "--encoding", "gb18030", "--dry-run", *way)
    assert done.returncode == 0, done.stderr
    assert "1 would be registered" in done.stdout
