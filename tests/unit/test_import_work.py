"""Working on an import job: what passes is waited for, what stops it loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from biaojie.change import RowResult
from biaojie.errors import (
    Forbidden,
    Internal,
    InvalidFile,
    PrefixNotHere,
    StorageFull,
    TemporarilyUnavailable,
    TooManyRequests,
)
from biaojie.wire.imports import ImportJob, ImportOptions
from registry import import_work
from registry.import_jobs import Claim, JobLimits, Jobs, Owner
from registry.import_rows import Row
from registry.import_work import Stopped, Work, work
from tests.unit.test_imports import Registry
from tests.unit.test_imports import Stopped as Killed

PREFIX = "88.118.8"
BODY = b"identifier\n" + b"".join(b"88.118.8/A%d\n" % n for n in range(30)) + b"none\n88.118.8/A7\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_work, "WAITS_S", (0.0, 0.01))
    monkeypatch.setattr(import_work, "TOLD_EVERY_S", 0.0)
    monkeypatch.setattr(import_work, "CHUNK_ROWS", 10)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "imports", JobLimits())


def begun(jobs: Jobs, body: bytes = BODY, **options: Any) -> Claim:
    job, _ = jobs.begin(ImportOptions(name="f.csv", **options), Owner("key1", "acme"))
    jobs.append(job.id, body)
    jobs.finish(job.id)
    return taken(jobs)


def taken(jobs: Jobs) -> Claim:
    claim = jobs.claim()
    assert claim is not None
    return claim


Submit = Callable[..., Any]


def done(claim: Claim, submit: Submit, stopping: Callable[[], bool] = lambda: False) -> ImportJob:
    try:
        return work(claim, Work(submit, stopping, False, 2**30, 2**29))
    finally:
        claim.release()


def counts(job: ImportJob) -> tuple[str, int, int, int, int]:
    return job.state, job.rows, job.good, job.failed, job.written


def left(jobs: Jobs, job: ImportJob) -> set[str]:
    return {path.name for path in (jobs._folder / job.id).iterdir()}


def test_a_job_from_its_file_to_its_report(jobs: Jobs) -> None:
    claim = begun(jobs)
    registry = Registry()
    job = done(claim, registry)
    assert counts(job) == ("done", 32, 30, 2, 30)
    assert job.codes == {"invalid-identifier": 1, "identifier-taken": 1}
    assert jobs.find(job.id) == job
    assert left(jobs, job) == {"job.json", "lock", "errors.csv", "report.ndjson"}
    items, onward = jobs.report(job.id, 0, 1)
    assert (items[0]["line"], onward is None) == (32, False)
    items, onward = jobs.report(job.id, onward or 0, 10)
    assert (items[0]["reason"], onward) == ("Line 9 of this file has the same identifier.", None)
    assert jobs.claim() is None


def test_what_passes_is_waited_for_and_told(jobs: Jobs) -> None:
    claim = begun(jobs)
    registry = Registry()
    faults: list[Exception] = [
        TemporarilyUnavailable(),
        StorageFull(),
        TooManyRequests(retry_after_s=0),
        TemporarilyUnavailable(outcome="unknown"),
    ]
    told = []

    async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        told.append(jobs.find(claim.kept.job.id).waiting)
        if faults:
            raise faults.pop(0)
        return await registry(rows, key, dry_run=dry_run)

    assert counts(done(claim, submit)) == ("done", 32, 30, 2, 30)
    assert told[1:4] == ["temporarily-unavailable", "storage-full", "too-many-requests"]
    assert told[-1] == ""


@pytest.mark.parametrize("mode", ["valid-rows", "all"])
def test_killed_at_any_moment_and_gone_on_with(tmp_path: Path, mode: str) -> None:
    body = BODY if mode == "valid-rows" else BODY[: BODY.index(b"none")]
    good = 30
    for call in range(1, 8):
        for after in (False, True):
            jobs = Jobs(tmp_path / f"{call}{after}", JobLimits())
            claim = begun(jobs, body, mode=mode)
            registry = Registry()
            setattr(registry, "stop_after" if after else "stop_before", call)
            try:
                job = done(claim, registry)
            except Killed:
                registry.stop_after = registry.stop_before = -1
                job = done(taken(jobs), registry)
            bad = 2 if mode == "valid-rows" else 0
            assert counts(job) == ("done", good + bad, good, bad, good), (call, after)
            assert len(registry.rows) == good
            report = jobs._folder / job.id / "report.ndjson"
            lines = report.read_text().splitlines() if report.exists() else []
            assert [json.loads(line)["line"] for line in lines] == [32, 33][:bad]


def test_an_end_that_was_not_noted_is_noted_again(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = begun(jobs)
    registry = Registry()
    with monkeypatch.context() as patch:
        patch.setattr(Claim, "end", lambda self, job: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            done(claim, registry)
    calls = registry.calls
    assert counts(done(taken(jobs), registry)) == ("done", 32, 30, 2, 30)
    assert registry.calls == calls


def test_a_node_that_stops_leaves_the_job_as_it_is(jobs: Jobs) -> None:
    claim = begun(jobs)
    registry = Registry()
    with pytest.raises(Stopped):
        done(claim, registry, lambda: registry.calls == 2)
    stands = jobs.find(claim.kept.job.id)
    assert (stands.state, stands.rows) == ("running", 20)
    assert counts(done(taken(jobs), registry)) == ("done", 32, 30, 2, 30)


def test_cancelled_while_it_waits(jobs: Jobs) -> None:
    claim = begun(jobs)
    registry = Registry()

    async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        if registry.calls == 1:
            jobs.cancel(claim.kept.job.id)
            raise TemporarilyUnavailable()
        return await registry(rows, key, dry_run=dry_run)

    assert counts(done(claim, submit)) == ("cancelled", 10, 10, 0, 10)
    assert len(registry.rows) == 10


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Forbidden(), "forbidden"), (PrefixNotHere(), "prefix-not-here"), (OSError("x"), "internal")],
)
def test_what_does_not_pass_ends_it_with_what_was_written(
    jobs: Jobs, fault: Exception, code: str
) -> None:
    claim = begun(jobs)
    registry = Registry()

    async def submit(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        if registry.calls == 2:
            raise fault
        return await registry(rows, key, dry_run=dry_run)

    try:
        done(claim, submit)
    except OSError:
        assert code == Internal.code
    job = jobs.find(claim.kept.job.id)
    assert counts(job) == ("failed", 20, 20, 0, 20)
    assert job.fault is not None
    assert job.fault.code == code


def test_files_that_are_none(jobs: Jobs) -> None:
    for body, options in (
        (b"", {}),
        (b"PK\x03\x04", {}),
        (b"\x1f\x8b\x08", {}),
        (b"a,a\n", {}),
        (b"a\n1\n", {}),
        (b"identifier\n1\n", {"columns": (("none", "URL"),)}),
        (b"identifier\n1\n", {"format": "xlsx"}),
        (b"{}\n", {}),
        (b"\xc1", {"format": "msgpack"}),
        (b"identifier\n1\n", {"encoding": "klingon"}),
    ):
        job = done(begun(jobs, body, **options), Registry())
        assert counts(job) == ("failed", 0, 0, 0, 0), body
        assert job.fault is not None
        assert job.fault.code == InvalidFile.code, body
        assert left(jobs, job) <= {"job.json", "lock"}
