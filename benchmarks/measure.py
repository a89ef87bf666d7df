"""A figure with its spread and its peer, and jobs run in a process of their own so that their memory is theirs."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table: the median of `runs`, and what it stands beside."""

    what: str
    unit: str
    runs: tuple[float, ...]
    beside: str = ""
    target: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.runs)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "value": self.value}

    def as_markdown(self) -> str:
        spread = f"{len(self.runs)}, {min(self.runs):.3g}–{max(self.runs):.3g}" if len(self.runs) > 1 else "1"
        number = f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:.3g}"
        return f"| {self.what} | {number} {self.unit} | {spread} | {self.beside} | {self.target} |"


def timed(
    job: Callable[[], object], repeat: int, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Seconds of each of `repeat` runs, by `clock`."""
    out = []
    for _ in range(repeat):
        start = clock()
        job()
        out.append(clock() - start)
    return tuple(out)


def cpu_timed(job: Callable[[], object], repeat: int) -> tuple[float, ...]:
    """Seconds of processor time of each of `repeat` runs, after one that is not counted."""
    return timed(job, repeat + 1, clock=time.process_time)[1:]


def in_a_process(job: str, *args: str) -> dict[str, Any]:
    """Run `benchmarks.jobs.<job>(*args)` in a fresh process: what it answers, and `peak_gb` of its memory."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.jobs", job, *args], check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, with that of its children that have ended (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def peak_gb() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def medians(results: Sequence[dict[str, Any]], key: str) -> tuple[float, ...]:
    """The values of `key` over several runs."""
    return tuple(result[key] for result in results)
