"""Import jobs on disk: who has them, what is left of them, and when they are forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from biaojie.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    OverCapacity,
    StorageFull,
    TooLarge,
    TooManyRequests,
)
from biaojie.wire.imports import ImportOptions
from registry import import_jobs
from registry.import_jobs import JobLimits, Jobs, Owner

ACME, GLOBEX = Owner("key1", "acme"), Owner("key2", "globex")
OPTIONS = ImportOptions(name="f.csv")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "imports", JobLimits(bytes_max=100, jobs_max=3, tenant_jobs_max=2))


def queued(jobs: Jobs, owner: Owner = ACME, key: str = "") -> str:
    job, known = jobs.begin(OPTIONS, owner, key)
    assert not known
    jobs.append(job.id, b"identifier\n")
    return jobs.finish(job.id).id


def ended(jobs: Jobs, id_: str) -> None:
    claim = jobs.claim(lambda kept: kept.job.id != id_)
    assert claim is not None
    claim.end(replace(claim.kept.job, state="done", ended=int(jobs._clock())))
    claim.release()


def test_one_process_has_a_job_at_a_time(tmp_path: Path, jobs: Jobs) -> None:
    other = Jobs(tmp_path / "imports", JobLimits())
    first = queued(jobs)
    claim = other.claim()
    assert claim is not None
    assert claim.kept.job.id == first
    assert jobs.claim() is None
    second = queued(jobs, GLOBEX)
    again = jobs.claim()
    assert again is not None
    assert again.kept.job.id == second
    claim.release()  # as the system does when a process dies
    taken = jobs.claim()
    assert taken is not None
    assert taken.kept.job.id == first
    taken.release()
    again.release()


def test_the_oldest_comes_first_but_for_those_that_are_passed_over(jobs: Jobs) -> None:
    one, other = queued(jobs), queued(jobs, GLOBEX)
    for passed, wanted in ((None, one), ("acme", other)):
        claim = jobs.claim(lambda kept, passed=passed: kept.job.tenant == passed)
        assert claim is not None
        assert claim.kept.job.id == wanted
        claim.release()


def test_what_is_not_whole_is_not_worked_on(jobs: Jobs) -> None:
    job, _ = jobs.begin(OPTIONS, ACME)
    assert jobs.append(job.id, b"abc") == 3
    assert jobs.find(job.id).bytes_received == 3
    assert jobs.claim() is None
    assert jobs.finish(job.id).state == "queued"
    assert jobs.finish(job.id).state == "queued", "said twice"
    with pytest.raises(NotFound):
        jobs.append(job.id, b"more")


def test_pieces_fit_or_are_refused(jobs: Jobs) -> None:
    job, _ = jobs.begin(OPTIONS, ACME)
    assert jobs.append(job.id, b"abc", 0) == 3
    assert jobs.append(job.id, b"abc", 0) == 3, "sent twice"
    assert jobs.append(job.id, b"def", 3) == 6
    for at, data in ((7, b"x"), (5, b"xy")):
        with pytest.raises(InvalidRequest):
            jobs.append(job.id, data, at)
    with pytest.raises(TooLarge):
        jobs.append(job.id, b"x" * 95, 6)
    assert jobs.finish(job.id).bytes_received == 6


def test_the_same_key_of_the_same_caller_is_the_same_import(jobs: Jobs) -> None:
    first = queued(jobs, key="k")
    assert jobs.begin(OPTIONS, ACME, "k") == (jobs.find(first), True)
    ended(jobs, first)
    assert jobs.begin(OPTIONS, ACME, "k") == (jobs.find(first), True), "and when it has ended"
    with pytest.raises(IdempotencyMismatch):
        jobs.begin(replace(OPTIONS, mode="all"), ACME, "k")
    assert jobs.begin(OPTIONS, GLOBEX, "k")[0].id != first
    half, _ = jobs.begin(OPTIONS, ACME, "h")
    jobs.append(half.id, b"abc")
    taken_up, known = jobs.begin(OPTIONS, ACME, "h", go_on=True)
    assert (taken_up.id, taken_up.bytes_received, known) == (half.id, 3, True)
    anew, known = jobs.begin(OPTIONS, ACME, "h")
    assert (anew.id != half.id, known) == (True, False)
    with pytest.raises(NotFound):
        jobs.find(half.id)


def test_how_many_there_may_be(jobs: Jobs) -> None:
    mine = [queued(jobs), queued(jobs)]
    with pytest.raises(TooManyRequests):
        jobs.begin(OPTIONS, ACME)
    queued(jobs, GLOBEX)
    with pytest.raises(OverCapacity):
        jobs.begin(OPTIONS, GLOBEX)
    ended(jobs, mine[0])
    queued(jobs)
    assert [job.id for job in jobs.page("acme", "", 10)][-1] == mine[0], "the latest first"
    assert len(jobs.page(None, "", 10)) == 4
    assert [job.id for job in jobs.page("acme", mine[1], 10)] == [mine[0]]


def test_what_has_ended_is_not_read_again_and_again(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        ended(jobs, queued(jobs))
    assert jobs.claim() is None
    read = []
    inner = jobs._read
    monkeypatch.setattr(jobs, "_read", lambda id_: read.append(id_) or inner(id_))
    assert jobs.claim() is None
    assert read == []


def test_cancelling(jobs: Jobs) -> None:
    waiting, running = queued(jobs), queued(jobs, GLOBEX)
    assert jobs.cancel(waiting).state == "cancelled"
    claim = jobs.claim()
    assert claim is not None
    assert not claim.cancelled
    assert jobs.cancel(running).state == "queued", "whoever works on it will see"
    assert claim.cancelled
    claim.release()
    assert jobs.cancel(running).state == "cancelled", "nobody does any more"
    jobs.cancel(running)
    with pytest.raises(NotFound):
        jobs.cancel(running)


def test_what_is_old_is_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    limits = JobLimits(kept_s=100, upload_idle_s=50)
    jobs = Jobs(tmp_path / "imports", limits, clock)
    done = queued(jobs)
    ended(jobs, done)
    half, _ = jobs.begin(OPTIONS, ACME)
    waits = queued(jobs)
    clock.now += 99
    jobs.sweep()
    assert jobs.find(done)
    clock.now = (tmp_path / "imports" / half.id / "upload").stat().st_mtime + 51
    jobs.sweep()
    for gone in (done, half.id):
        with pytest.raises(NotFound):
            jobs.find(gone)
    assert jobs.find(waits).state == "queued", "however long it waits"


def test_what_is_no_job_is_none(tmp_path: Path, jobs: Jobs) -> None:
    id_ = queued(jobs)
    for other in ("", "x", "../" + id_, id_[:-1], "0" * 26, id_ + "/", "\0" * 26):
        with pytest.raises(NotFound):
            jobs.find(other)
    folder = tmp_path / "imports"
    (folder / ("A" * 26)).mkdir()
    (folder / "lost+found").mkdir()
    (folder / ("B" * 26)).mkdir()
    (folder / ("B" * 26) / "job.json").write_text(json.dumps({"job": []}))
    assert [job.id for job in jobs.page(None, "", 10)] == [id_]
    claim = jobs.claim()
    assert claim is not None
    claim.release()


def test_a_full_disk_takes_no_file(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = jobs.begin(OPTIONS, ACME)
    monkeypatch.setattr(import_jobs, "FREE_BYTES_MIN", 2**60)
    with pytest.raises(StorageFull):
        jobs.append(job.id, b"abc")
