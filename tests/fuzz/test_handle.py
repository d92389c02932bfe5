"""Some seconds of tests/fuzz/handle_packets.py, and proof that it would notice."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from biaojie.wire.handle import Malformed, OpCode
from tests.fuzz.handle_packets import Found, Target, feed, run, targets

PACKETS = 60_000


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_mutated_packets(seed: int) -> None:
    counts = run(packets=PACKETS, seconds=None, seed=seed)
    assert counts.total() == PACKETS
    for target in targets():
        assert counts[target.name, "malformed"] > 0, target.name
        assert counts[target.name, "value"] > 0, target.name


def test_there_is_a_target_for_every_operation() -> None:
    names = {target.name for target in targets()}
    assert {f"{op.name} 0" for op in OpCode} - names == {
        "GET_NEXT_TRANSACTION 0",  # shares the body of the others that are one handle
        "RETRIEVE_TRANSACTIONS 0",
        "BACKUP_SERVER 0",
    }
    assert all(target.seeds for target in targets())


def test_the_same_seed_gives_the_same_packets() -> None:
    one, two = (run(packets=2_000, seconds=None, seed=9) for _ in range(2))
    assert one == two


def _crash(_: bytes) -> Any:
    raise IndexError("list index out of range")


def _slow(_: bytes) -> Any:
    end = time.thread_time() + 0.4
    while time.thread_time() < end:
        pass


def _greedy(_: bytes) -> Any:
    return len(bytearray(4_000_000))


def _mistaken(_: bytes) -> Any:
    raise Malformed(99, "something beyond the end")


@pytest.mark.parametrize(
    ("take", "sample", "said"),
    [
        (_crash, False, "IndexError"),
        (_slow, False, r"0\.\d+ s for 6162"),
        (_greedy, True, "octets of memory for 6162"),
        (_mistaken, False, "beyond the end"),
    ],
)
def test_what_it_would_notice(take: Any, sample: bool, said: str) -> None:
    with pytest.raises(Found, match=said):
        feed(Target("t", take), b"ab", sample)


def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.handle_packets", "--seconds", "0.5", "--seed", "6"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert re.search(r"^\d+ packets, \d+ s, \d+ KiB, seed 6$", done.stdout, re.MULTILINE)
