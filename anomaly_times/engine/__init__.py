"""Where a pass runs: on this machine, or spread over a Ray cluster; both give the same results.

`open_engine` gives an engine, and its `run` does a `Job`: reads, forecasts or detects, writes, and tells about itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from anomaly_times.engine.cluster import Node, nodes_of_cluster, open_cluster
from anomaly_times.engine.job import Engine, Job, Places, Ran
from anomaly_times.engine.local import Local, default_jobs, run_pass
from anomaly_times.engine.processes import Processes, default_processes

__all__ = [
    "Engine",
    "EngineName",
    "Job",
    "Node",
    "Places",
    "Processes",
    "Ran",
    "default_jobs",
    "default_processes",
    "nodes_of_cluster",
    "open_engine",
    "run_pass",
]

EngineName = Literal["local", "ray"]


@contextmanager
def open_engine(name: EngineName, places: Places, *, address: str = "", jobs: int | None = None) -> Iterator[Engine]:
    """The engine of that name, for as long as the block lasts.

    Args:
        name: `local` or `ray`.
        places: where missions read and write; workers open them for themselves.
        address: of a Ray cluster, as host:port; one of this machine is started, and stopped at the end, if empty.
        jobs: missions at once here, or tasks at once on Ray.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: the cluster is away, or differs from us in a version.
    """
    if name == "local":
        yield Local(jobs or default_jobs(), places.histories())
        return
    with open_cluster(places, address=address, jobs=jobs) as engine:
        yield engine
