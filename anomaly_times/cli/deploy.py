"""`at deploy`: the two deployments that everything scheduled runs by."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["deploy"]


def deploy(
    work_pool: Annotated[
        str | None,
        typer.Option(
            "--work-pool",
            "-p",
            help="Pool whose workers run the flows; made where it lacks [what is set, or anomaly-times].",
            metavar="POOL",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            help="Container image, for pools that start containers [what is set].",
            metavar="IMAGE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make or refresh the two Prefect deployments; schedules stay."""
    from anomaly_times.cli.render import note, say, working
    from anomaly_times.scheduling.server import connect
    from anomaly_times.settings import load_settings

    with working("deploying"), connect(load_settings().prefect) as server:
        from anomaly_times.scheduling.bases import deploy_bases

        bases, pools = deploy_bases(server, work_pool=work_pool, image=image)
    for pool in pools:
        say(f"made the work pool {pool}")
    for base in bases:
        say(f"{'made' if base.made else 'refreshed'} {base.name}, run by the work pool {base.work_pool}")
    for pool in pools:
        note(f"start a worker: prefect worker start --pool {pool}")
