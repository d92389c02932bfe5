"""Reading ahead in another process: the same comes of a file, whatever becomes of the process."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest

from registry import import_ahead
from registry.import_ahead import Errand, told
from registry.import_blocks import Ready
from registry.import_prepare import Form
from registry.import_rows import RowMapping
from registry.import_sorting import Sorted
from tests.property.test_import_blocks import PREFIX, Story, story

ROWS = 26_000
"""More than a window."""
SLEEPS = ("-c", "import time; time.sleep(60)")
DIES = (
    "-c",
    "import os\n"
    "from registry import import_reading as r\n"
    "class Teller(r._Teller):\n"
    "    def tell(self, message):\n"
    "        super().tell(message)\n"
    "        self.end()\n"
    "        os._exit(1)\n"
    "r._Teller = Teller\n"
    "r.main()\n",
)
"""After what it tells first."""


def rows(*, ordered: bool) -> list[tuple[str, str]]:
    """Good ones; and the same name twice, taken ones, what is no name, a prefix of nobody."""
    made = [(f"{PREFIX}/R{n:06}", f"https://a.example/{n}") for n in range(ROWS)]
    made[1_000] = made[999]
    made[25_500] = (made[10][0], "again")
    made[2_000] = ("nothing", "x")
    made[25_900] = ("88.999/a", "x")
    made[0] = (f"{PREFIX}/taken", "x")
    if not ordered:
        random.Random(1).shuffle(made)
    return made


def encoded(form: Form, some: list[tuple[str, str]]) -> bytes:
    match form:
        case "csv":
            return b"identifier,URL\n" + b"".join(f"{a},{b}\n".encode() for a, b in some)
        case "ndjson":
            return b"".join(
                orjson.dumps({"identifier": a, "values": [{"index": 1, "type": "URL", "data": b}]})
                + b"\n"
                for a, b in some
            )
    return b"".join(msgpack.packb([a, [[1, "URL", b]]]) for a, b in some)


def come_of(folder: Path, form: Form, data: bytes, *, ordered: bool) -> Story:
    folder.mkdir()
    return asyncio.run(story(data, form, RowMapping(), (), folder, ordered=not ordered))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What other processes tell; they are started for files of any size."""
    messages = []

    def listened(*arguments: Any) -> Iterator[Any]:
        for message in told(*arguments):
            messages.append(message)
            yield message

    monkeypatch.setattr(import_ahead, "AHEAD_BYTES", 1)
    monkeypatch.setattr(import_ahead, "told", lambda *a: (each for each in listened(*a)))
    return messages


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("form", ["csv", "ndjson", "msgpack"])
def test_the_same_comes_of_it(
    tmp_path: Path, form: Form, ordered: bool, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(form, rows(ordered=ordered))
    ahead = come_of(tmp_path / "ahead", form, data, ordered=ordered)
    ways = {type(message) for message in heard}
    assert ways == ({Ready} if ordered else {Ready, Sorted})
    assert sum(m.count for m in heard if isinstance(m, Ready)) == ROWS - (0 if ordered else 1)
    monkeypatch.setattr(import_ahead, "AHEAD_BYTES", 2**40)
    assert come_of(tmp_path / "here", form, data, ordered=ordered) == ahead
    assert ahead[1][:4] == (ROWS, ROWS - 5, 5, ROWS - 5)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("program", [SLEEPS, DIES, ("-c", "print('x' * 9)"), ("-c", "1 / 0")])
def test_whatever_becomes_of_the_process(
    tmp_path: Path, program: tuple[str, ...], ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded("csv", rows(ordered=ordered))
    here = come_of(tmp_path / "here", "csv", data, ordered=ordered)
    monkeypatch.setattr(import_ahead, "AHEAD_BYTES", 1)
    monkeypatch.setattr(import_ahead, "PROGRAM", program)
    monkeypatch.setattr(import_ahead, "SILENT_S", 0.3 if program == SLEEPS else 30)
    assert come_of(tmp_path / "ahead", "csv", data, ordered=ordered) == here


def test_a_stream_that_is_cut_is_told_of_as_ever(
    tmp_path: Path, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded("msgpack", rows(ordered=True))[:-3]
    with pytest.raises(Exception, match="Row 26000, at octet") as raised:
        come_of(tmp_path / "ahead", "msgpack", data, ordered=True)
    assert [message.count for message in heard] == [24_576]
    monkeypatch.setattr(import_ahead, "AHEAD_BYTES", 2**40)
    with pytest.raises(type(raised.value)) as again:
        come_of(tmp_path / "here", "msgpack", data, ordered=True)
    assert str(again.value) == str(raised.value)


def test_without_another_process_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: Any, **how: Any) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(import_ahead, "AHEAD_BYTES", 1)
    monkeypatch.setattr(subprocess, "Popen", none)
    data = encoded("csv", rows(ordered=True))
    assert come_of(tmp_path / "f", "csv", data, ordered=True)[1][0] == ROWS


def errand(folder: Path) -> Errand:
    file = folder / "f.csv"
    with file.open("wb") as out:
        out.write(b"identifier,URL\n")
        for n in range(300_000):
            out.write(b"%s/R%08d,https://a.example/%d\n" % (PREFIX.encode(), n, n))
    return Errand(file, "csv", False, RowMapping(), False, start=(15, 1))


def test_who_stops_listening_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cancelled(Exception):
        pass

    def idle() -> None:
        raise Cancelled

    begun = []
    start = subprocess.Popen

    def watched(*arguments: Any, **how: Any) -> Any:
        begun.append(start(*arguments, **how))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", watched)
    messages = told(errand(tmp_path), lambda: None)
    assert next(messages).count == 24_576
    messages.close()
    monkeypatch.setattr(import_ahead, "PROGRAM", SLEEPS)
    with pytest.raises(Cancelled):
        next(told(errand(tmp_path), idle))
    assert [process.returncode for process in begun] == [-signal.SIGKILL] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    """It would wait for ever to tell somebody what it has read."""
    script = (
        "import sys, pickle, time\n"
        "from registry.import_ahead import told\n"
        "heard = told(pickle.load(sys.stdin.buffer), lambda: None)\n"
        "next(heard)\n"
        "print('heard', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(pickle.dumps(errand(tmp_path)))
        parent.stdin.close()
        assert parent.stdout.readline() == b"heard\n"
        threads = Path(f"/proc/{parent.pid}/task")
        children = [
            int(pid)
            for thread in threads.iterdir()
            for pid in (thread / "children").read_text().split()
        ]
        assert len(children) == 1
    finally:
        parent.kill()
        parent.wait(10)
        parent.stdout.close()  # type: ignore[union-attr]
    until = time.monotonic() + 10
    while _runs(children[0]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(children[0])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return False
