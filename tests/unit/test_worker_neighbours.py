"""What workers say to each other, the sockets they are given, and the page they make together."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from resolver.front.listening import CannotListen
from resolver.handle.numbers import NUMBER_MAX, Numbers
from resolver.neighbours import NeighbourFault, Neighbours, NotThere
from resolver.settings import Settings
from resolver.worker_launch import private_folder
from resolver.worker_metrics import families, joined_page
from resolver.worker_sockets import adopt, bind_slots, descriptors, port_of

KIND = b"t"


@asynccontextmanager
async def house(folder: Path, workers: int) -> AsyncIterator[list[Neighbours]]:
    made = [Neighbours(folder, slot, workers) for slot in range(workers)]
    for one in made:
        await one.start()
    try:
        yield made
    finally:
        for one in made:
            await one.stop()


async def told(neighbours: Neighbours, slot: int, question: bytes = b"?") -> list[bytes]:
    return [part async for part in neighbours.ask(slot, KIND, question, timeout_s=0.5)]


async def test_calls_and_notes(tmp_path: Path) -> None:
    long = b"x" * 300_000
    heard: list[tuple[int, bytes]] = []

    def answer(slot: int) -> object:
        async def parts(question: bytes) -> AsyncGenerator[bytes, None]:
            yield b"from %d: " % slot + question
            yield b""
            yield long

        return parts

    # A path longer than a socket's may be.
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    async with house(folder, 3) as made:
        for one in made:
            one.on_call[KIND] = answer(one.slot)  # type: ignore[assignment]
            one.on_note[KIND] = lambda about, slot=one.slot: heard.append((slot, about))  # type: ignore[misc]
        assert await told(made[0], 2) == [b"from 2: ?", b"", long]
        assert await told(made[2], 0) == [b"from 0: ?", b"", long]
        made[1].tell(KIND, b"news")
        made[1].tell(b"unknown", b"news")
        await asyncio.sleep(0.05)
        assert sorted(heard) == [(0, b"news"), (2, b"news")]


async def test_who_is_not_there_or_silent_or_fails(tmp_path: Path) -> None:
    async def silent(question: bytes) -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(60)
        yield b""

    async def failing(question: bytes) -> AsyncGenerator[bytes, None]:
        yield b"one"
        raise ValueError("no")

    async with house(tmp_path, 2) as (first, second):
        with pytest.raises(NotThere):
            await told(first, 7)
        second.on_call[KIND] = silent
        with pytest.raises(NeighbourFault) as caught:
            await told(first, 1)
        assert not isinstance(caught.value, NotThere)
        second.on_call[KIND] = failing
        with pytest.raises(NeighbourFault):
            await told(first, 1)
        await second.stop()
        with pytest.raises(NotThere):
            await told(first, 1)
        lost = first.lost
        first.tell(KIND)
        assert first.lost == lost + 1


async def test_the_newest_of_a_slot_is_reached(tmp_path: Path) -> None:
    def says(word: bytes) -> object:
        async def parts(question: bytes) -> AsyncGenerator[bytes, None]:
            yield word

        return parts

    async with house(tmp_path, 2) as (first, old):
        old.on_call[KIND] = says(b"old")  # type: ignore[assignment]
        assert await told(first, 1) == [b"old"]
        new = Neighbours(tmp_path, 1, 2)
        new.on_call[KIND] = says(b"new")  # type: ignore[assignment]
        await new.start()
        assert await told(first, 1) == [b"new"]
        await old.stop()
        assert await told(first, 1) == [b"new"]
        await new.stop()


@pytest.mark.parametrize("workers", [1, 2, 3, 256])
def test_numbers_say_who_gave_them(workers: int) -> None:
    for slot in {0, workers // 2, workers - 1}:
        numbers = Numbers(slot, workers)
        given = [numbers.new() for _ in range(300)]
        assert all(0 < number <= NUMBER_MAX for number in given)
        assert {numbers.keeper(number) for number in given} == {slot}
        assert len(set(given)) == len(given)


def test_one_page_of_all() -> None:
    pages = {}
    for slot in (0, 1):
        registry = CollectorRegistry()
        Counter("biaojie_requests", "Requests.", ("outcome",), registry=registry).labels("ok").inc(
            slot + 5
        )
        Histogram("biaojie_seconds", "Seconds.", buckets=(1, 2), registry=registry).observe(1.5)
        # As it arrives from a neighbour.
        pages[slot] = [
            (n, d, t, [(s, dict(labels), v) for s, labels, v in samples])
            for n, d, t, samples in families(registry)
        ]
    text = joined_page({**pages, 2: None}).decode()
    samples = {
        (sample.name, sample.labels["worker"], sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert [samples["biaojie_worker_up", str(slot), ""] for slot in range(3)] == [1, 1, 0]
    assert samples["biaojie_requests_total", "0", ""] == 5
    assert samples["biaojie_requests_total", "1", ""] == 6
    assert samples["biaojie_seconds_bucket", "1", "2.0"] == 1
    assert text.count("# TYPE biaojie_requests_total counter") == 1
    assert not any(worker == "2" for name, worker, _ in samples if name != "biaojie_worker_up")


def test_each_slot_has_sockets_of_its_own_on_the_same_port(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=0, handle_port=0, native_port=0)
    slots = bind_slots(settings, 3)
    try:
        for name in ("http", "handle-tcp", "handle-udp"):
            assert len({port_of(slot, name) for slot in slots}) == 1
            assert port_of(slots[0], name) > 0
        assert port_of(slots[0], "handle-tcp") == port_of(slots[0], "handle-udp")
        assert port_of(slots[0], "https") == 0
        numbers = [n for slot in slots for each in descriptors(slot).values() for n in each]
        assert len(set(numbers)) == len(numbers)
        taken = port_of(slots[0], "http")
        with pytest.raises(CannotListen, match=f"port {taken} .HTTP.*BIAOJIE_PORT"):
            bind_slots(settings.model_copy(update={"port": taken}), 2)
        copies = {
            name: [socket.dup(number) for number in several]
            for name, several in descriptors(slots[1]).items()
        }
        adopted = adopt(json.dumps(copies))
        assert port_of(adopted, "http") == taken
        for each in (one for several in adopted.values() for one in several):
            each.close()
    finally:
        for each in (one for slot in slots for several in slot.values() for one in several):
            each.close()


def test_folders_that_killed_supervisors_left_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "workers-left"
    left.mkdir()
    (left / "lock").touch()
    with private_folder(tmp_path) as first, private_folder(tmp_path) as second:
        assert first != second
        assert first.is_dir()
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []
