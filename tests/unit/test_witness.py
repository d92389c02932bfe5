"""The witness: what the log had once reached, in a file outside the database."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from biaojie.errors import TamperedLog
from registry.witness import Witness

HASH = bytes(range(32))


def test_remembers_across_processes(tmp_path: Path) -> None:
    assert Witness(tmp_path).read() == (0, b"")
    Witness(tmp_path).note(7, HASH)
    assert Witness(tmp_path).read() == (7, HASH)
    assert [p.name for p in tmp_path.iterdir()] == ["log-witness.json"]


def test_never_moves_backwards(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    witness.note(7, HASH)
    for again in (witness, Witness(tmp_path)):
        again.note(6, bytes(32))
        again.note(7, bytes(32))
        assert again.read() == (7, HASH)
    Witness(tmp_path).note(8, bytes(32))
    assert witness.read() == (8, bytes(32))


def test_an_empty_log_leaves_no_file(tmp_path: Path) -> None:
    Witness(tmp_path).note(0, bytes(32))
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = Witness(tmp_path)
    witness.note(7, HASH)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        witness.note(8, HASH)
    assert Witness(tmp_path).read() == (7, HASH)
    monkeypatch.undo()
    witness.note(9, HASH)
    assert Witness(tmp_path).read() == (9, HASH)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"sequence": 1}',
        b'{"sequence": null, "hash": ""}',
        b'{"sequence": 1, "hash": 5}',
        b'{"sequence": 1, "hash": "zz"}',
        b'{"sequence": "x", "hash": ""}',
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_witness_is_said_to_be_none_and_kept(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "log-witness.json"
    path.write_bytes(content)
    with pytest.raises(TamperedLog) as error:
        Witness(tmp_path).read()
    assert str(path) in error.value.detail.en
    with pytest.raises(TamperedLog):
        Witness(tmp_path).note(9, HASH)
    assert path.read_bytes() == content, "it is evidence"


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    Witness(tmp_path).note(7, HASH)
    found = json.loads((tmp_path / "log-witness.json").read_text())
    assert found == {"sequence": 7, "hash": HASH.hex()}
