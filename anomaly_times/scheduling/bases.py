"""The two base deployments that run missions and hand-made schedules: made where they lack, refreshed where they are.

Their flows come by module name from the package that is installed where workers run; nothing is pulled. Prefect's own
ways to deploy from Python replace the whole deployment, and with it the schedules that people have added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from anomaly_times.conventions import TAG, Kind
from anomaly_times.scheduling.flows import detection, forecasting
from anomaly_times.scheduling.server import DEPLOYMENTS, PrefectServer

__all__ = ["WORK_POOL", "DeployedBase", "deploy_bases"]

WORK_POOL = "anomaly-times"
"""The work pool where none is named."""

_FLOWS: Mapping[Kind, Flow[..., Any]] = {"forecast": forecasting, "detect": detection}


@dataclass(frozen=True)
class DeployedBase:
    """A base deployment, `flow/name`, that is up to date now; `made` where there was none."""

    name: str
    work_pool: str
    made: bool


def deploy_bases(
    server: PrefectServer, *, work_pool: str | None = None, image: str | None = None
) -> tuple[Sequence[DeployedBase], Sequence[str]]:
    """Make or refresh both base deployments; schedules, parameters, pauses, tags and queues stay as they are.

    Args:
        server: to deploy on.
        work_pool: whose workers run them; one that lacks is made, for workers of the type `process`. By default what
            is set already, or else `WORK_POOL`.
        image: container image with this package, for pools whose workers start containers. By default what is set
            already.

    Returns:
        The deployments, and the names of work pools that were made.

    Raises:
        PrefectError: the server is away, or refuses.
    """
    there = {base.kind: base for base in server.base_deployments()}
    bases, made = [], []
    for kind, flow in _FLOWS.items():
        base = there.get(kind)
        pool = work_pool or (base.work_pool if base else "") or WORK_POOL
        if server.ensure_work_pool(pool, ProcessWorker.get_default_base_job_template()):
            made.append(pool)
        spec: dict[str, Any] = {
            "entrypoint": f"{flow.fn.__module__}.{flow.name}",
            "pull_steps": [],
            "description": flow.description,
            "version": version("anomaly-times"),
            "tags": sorted({TAG, *(base.tags if base else ())}),
            "parameter_openapi_schema": parameter_schema(flow).model_dump(),
            "enforce_parameter_schema": True,
        }
        if base is None or pool != base.work_pool:
            # Even to say it again would take the deployment out of its queue.
            spec["work_pool_name"] = pool
        if image:
            spec["job_variables"] = {**(base.job_variables if base else {}), "image": image}
        server.deploy_base(kind, base.id if base else None, spec)
        bases.append(DeployedBase(DEPLOYMENTS[kind], pool, made=base is None))
    return bases, made
