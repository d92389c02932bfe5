"""Facts about this machine and about a node's process, read where they can be had."""

from __future__ import annotations

import os
import platform
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

METRICS_OCTETS_MAX: Final = 4 * 2**20
_TIMEOUT_S: Final = 3.0


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass(frozen=True, slots=True)
class NodeReading:
    """Of a node's own metrics page. Zeros where it does not say."""

    cpu_s: float
    resident_bytes: float
    start_time_s: float
    gauges: dict[str, float]


def read_node(url: str) -> NodeReading | None:
    """The metrics page of the node at an http:// URL; None where there is none to be had."""
    if not url.startswith("http://"):
        return None
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/metrics", timeout=_TIMEOUT_S) as reply:  # noqa: S310
            page = reply.read(METRICS_OCTETS_MAX).decode(errors="replace")
    except (OSError, ValueError):
        return None
    found: dict[str, float] = {}
    for line in page.splitlines():
        name, _, number = line.rpartition(" ")
        if name and not line.startswith("#"):
            # Of several workers on one page, each has its label: their sum is the node's.
            bare = name.partition("{")[0]
            try:
                found[bare] = found.get(bare, 0.0) + float(number)
            except ValueError:
                continue
    return NodeReading(
        found.get("process_cpu_seconds_total", 0.0),
        found.get("process_resident_memory_bytes", 0.0),
        found.get("process_start_time_seconds", 0.0),
        {
            name: value
            for name, value in found.items()
            if name.startswith("biaojie_") and ("cache" in name or "connections" in name)
        },
    )
