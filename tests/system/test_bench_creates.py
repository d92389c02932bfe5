"""Creates through the Handle protocol, measured at a node of ours: acknowledged and read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.node import Node
from bench.peers.creates import Creates, admit
from bench.peers.questions import Writer
from bench.processes import Cores
from bench.programs import compiler
from bench.words import BenchFault

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
PREFIX = "88.118.8"


@pytest.fixture(scope="module")
def creates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Creates]:
    folder, cores = tmp_path_factory.mktemp("creates"), Cores.of_this_machine()
    node = Node(folder / "node", cores.server)
    try:
        login, writer = admit(node, PREFIX), Writer(folder)
        yield Creates(
            "127.0.0.1",
            node.ports["handle_port"],
            PREFIX,
            login,
            writer,
            lambda: [node.pid],
            cores.generator,
        )
    finally:
        node.close()


@pytest.mark.parametrize("anew", [False, True])
def test_creates_are_acknowledged_and_read_back(creates: Creates, anew: bool) -> None:
    sample = replace(creates, anew=anew).measure(0.3, 0)
    assert sample.replies > 0
    assert (sample.errors, sample.lost, sample.cut) == (0, 0, 0)


def test_who_cannot_log_in(creates: Creates) -> None:
    wrong = replace(creates, login=replace(creates.login, secret=b"another"))
    with pytest.raises(BenchFault):
        wrong.measure(0.3, 0)


def test_a_prefix_of_somebody_else(creates: Creates) -> None:
    with pytest.raises(BenchFault):
        replace(creates, prefix="88.999").measure(0.3, 0)
