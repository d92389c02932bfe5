"""`python -m bench.peers`: one interleaved run, its JSON and its part of bench/RESULTS.md."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from biaojie.errors import BiaojieError
from biaojie.handle_options import Login

from .. import results
from ..processes import ROOT, Cores, describe
from ..programs import Sample
from ..words import BenchFault
from .given import Peer, read_login, read_names
from .stage import Stage, say
from .table import (
    GROUPS,
    MARKS,
    PACED_SHARE,
    group_table,
    head,
    judge,
    marks_table,
    number,
    paced_table,
)

ROUNDS = 5
SECONDS = 3.0
PACED_SECONDS = 10.0
"""Long enough for what a machine does every few seconds to count as it does in the long run."""
NAMES = 100_000


def _options(text: str, known: list[str]) -> list[str]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise BenchFault(
            f"--only: {', '.join(unknown)}? There are {', '.join(known)}.",
            f"--only：没有 {', '.join(unknown)}，可选 {', '.join(known)}。",
        )
    return wanted or known


def _peer(
    handle: str,
    rest: str,
    url: str,
    pids: str,
    names: Path | None,
    login: Login | None,
    misses: bool,
) -> Peer | None:
    if not (handle or rest or url):
        return None
    if (handle or rest) and names is None:
        raise BenchFault(
            "--handle-server and --handle-rest need --peer-names FILE: a name on each line, and"
            " after a tab what its answer must hold.",
            "--handle-server 与 --handle-rest 需要 --peer-names 文件：每行一个标识，"
            "制表符后为应答应包含的内容。",
        )
    given = read_names(names) if names is not None else ()
    return Peer(
        handle, rest, url, tuple(int(p) for p in pids.split(",") if p), given, login, misses
    )


def measure(stage: Stage, rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Every line in every round; each round begins with another one."""
    keys = [line.key for g in GROUPS for line in g.lines if line.key in stage.measures]
    samples: dict[str, list[Sample]] = {key: [] for key in keys}
    for round_ in range(rounds):
        first = round_ * len(keys) // rounds
        for key in keys[first:] + keys[:first]:
            try:
                sample = stage.measures[key](seconds, round_)
            except BenchFault as fault:
                if not key.startswith("peer."):
                    raise
                stage.skipped.append(f"{key}, round {round_ + 1}: {fault.en}")
                continue
            samples[key].append(sample)
            say(
                f"{round_ + 1}/{rounds} {key:16} {number(sample.rate):>10}/s"
                f" {number(sample.cpu_rate):>10} per CPU-second"
            )
    return samples


def measure_paced(
    stage: Stage, samples: dict[str, list[Sample]], rounds: int, seconds: float
) -> dict[str, list[Sample]]:
    """Our own fronts at a share of the peak that the rounds found."""
    peaks = {
        key: median(sample.rate for sample in of)
        for key, of in samples.items()
        if key.startswith("node.") and key in stage.paced
    }
    paced: dict[str, list[Sample]] = {key: [] for key in peaks}
    for round_ in range(rounds):
        for key, peak in peaks.items():
            sample = stage.paced[key](seconds, PACED_SHARE * peak)
            paced[key].append(sample)
            say(f"{round_ + 1}/{rounds} {key:16} p99 {number(sample.p99_us / 1000)} ms at 70 %")
    return paced


def _document(
    stage: Stage,
    samples: dict[str, list[Sample]],
    paced: dict[str, list[Sample]],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    judged = [judge(mark, samples) for mark in MARKS]
    return {
        "machine": describe(),
        "rounds": rounds,
        "seconds": seconds,
        "names": stage.names.count,
        "pinned": stage.cores.apart,
        "answer_octets": stage.sizes,
        "notes": stage.notes,
        "skipped": stage.skipped,
        "samples": {key: [asdict(sample) for sample in of] for key, of in samples.items()},
        "paced": {key: [asdict(sample) for sample in of] for key, of in paced.items()},
        "marks": [asdict(one) for one in judged],
    }


def _markdown(
    stage: Stage,
    samples: dict[str, list[Sample]],
    paced: dict[str, list[Sample]],
    rounds: int,
    seconds: float,
) -> str:
    sizes = ", ".join(f"{group} {octets}" for group, octets in stage.sizes.items())
    notes = [
        f"Medians of {rounds} interleaved rounds of {seconds:g} s (least–most).",
        f"{stage.names.count:,} names, each as likely; every one in the cache but under misses.",
        f"Octets of an answer (HTTP: of its body): {sizes or 'as peers usually answer'}."
        " Each peer answers as many.",
        "Server on one core, what asks it on the other (with PostgreSQL)."
        if stage.cores.apart
        else "There is one core only: server and generator share it.",
        *stage.notes,
    ]
    parts = [
        head(describe()),
        "\n".join(f"- {note}" for note in notes),
        *(table for group in GROUPS if (table := group_table(group, samples))),
        "#### Marks",
        marks_table([judge(mark, samples) for mark in MARKS]),
    ]
    if table := paced_table(paced):
        parts += ["#### p99 at 70 % of the peak, open loop (at most 10 ms; stretch: 3 ms)", table]
        span = median(sample.seconds for of in paced.values() for sample in of)
        parts.append(
            f"Runs of {span:.0f} s. Held up: by whatever else the machine did, as a share of the"
            " time; of the server, while its main thread was ready to run."
        )
    if stage.skipped:
        parts.append("Left out:\n\n" + "\n".join(f"- {why}" for why in stage.skipped))
    return "\n\n".join(parts)


def main(
    only: Annotated[
        str, typer.Option(help=f"Of {', '.join(g.key for g in GROUPS)}; commas between.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, max=100)] = ROUNDS,
    seconds: Annotated[float, typer.Option(min=0.2, max=600, help="Of each run.")] = SECONDS,
    names: Annotated[int, typer.Option(min=1_000, max=10_000_000)] = NAMES,
    json_file: Annotated[Path, typer.Option("--json", help="Where the figures go.")] = ROOT
    / "bench"
    / "results"
    / "peers.json",
    latency: Annotated[
        bool, typer.Option(help="Afterwards our p99 at 70 % of the peak, too.")
    ] = True,
    latency_seconds: Annotated[
        float, typer.Option(min=0.2, max=600, help="Of each of those runs.")
    ] = PACED_SECONDS,
    table: Annotated[
        bool, typer.Option(help="Write the tables into bench/RESULTS.md, too.")
    ] = True,
    handle_server: Annotated[str, typer.Option(help="host:port, TCP and UDP")] = "",
    handle_rest: Annotated[str, typer.Option(help="URL of its REST interface")] = "",
    peer_names: Annotated[
        Path | None, typer.Option(help="NAME, tab, what its answer holds; a line each.")
    ] = None,
    url: Annotated[str, typer.Option(help="Any resolver: an address to GET.")] = "",
    peer_pids: Annotated[
        str, typer.Option(help="Its processes, if they are on this machine: for CPU time.")
    ] = "",
    peer_admin: Annotated[
        str,
        typer.Option(help="Who may create at --handle-server: 300:88.118.8/ADMIN. Creates stay."),
    ] = "",
    peer_key: Annotated[
        Path | None, typer.Option(help="File with the private key of --peer-admin.")
    ] = None,
    peer_secret: Annotated[
        Path | None, typer.Option(help="File with its secret, instead of a key.")
    ] = None,
    peer_misses: Annotated[
        bool, typer.Option(help="It has its records in PostgreSQL and caches none of them.")
    ] = False,
) -> None:
    """Our fronts against limits and peers. 与同类服务和性能上限对比。"""
    try:
        groups = _options(only, [group.key for group in GROUPS])
        login = read_login(peer_admin, peer_key, peer_secret)
        peer = _peer(handle_server, handle_rest, url, peer_pids, peer_names, login, peer_misses)
        cores = Cores.of_this_machine()
        with (
            tempfile.TemporaryDirectory(prefix="biaojie-bench-") as folder,
            Stage(Path(folder), cores, names, groups, peer) as stage,
        ):
            samples = measure(stage, rounds, seconds)
            paced = measure_paced(stage, samples, rounds if latency else 0, latency_seconds)
            document = _document(stage, samples, paced, rounds, seconds)
            text = _markdown(stage, samples, paced, rounds, seconds)
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n")
        print(text)
        if table:
            results.write("peers", text)
    except (BenchFault, BiaojieError) as fault:
        say(str(fault))
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
