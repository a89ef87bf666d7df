"""`at doctor`: does a source do what is needed of it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_times.cli import options as opt

if TYPE_CHECKING:
    from anomaly_times.stores.probe import Finding

__all__ = ["doctor"]

EXIT_FAILED = 4


def doctor(
    source: opt.SourceName = "",
    url: opt.Url = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Write nothing, so test less.")] = False,
    on: opt.On = None,
    ray_address: opt.RayAddress = None,
    output: opt.ReportOption = opt.Report.TABLE,
) -> None:
    """Test whether a source does what is needed of it.

    Can it be read, written, and read back with the same labels? Does it hold the future? Unless --read-only is given,
    a few samples of a metric of its own are written. Where passes run on Ray, every node of the cluster is asked for
    the versions that it runs.
    """
    from anomaly_times.cli import render
    from anomaly_times.stores import open_store
    from anomaly_times.stores.probe import probe

    settings, _, described = opt.open_source(source, url)
    with open_store(described, state=settings.state_url) as store, render.working(f"testing {store.name}"):
        findings = probe(store, write=not read_only)
        name = store.name
        if (on.value if on is not None else settings.engine) == "ray":
            findings += _cluster(ray_address or settings.ray_address)
    render.show_findings(name, findings, output)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def _cluster(address: str) -> list[Finding]:
    """What the nodes of the Ray cluster are, and which of them differ from this process."""
    from anomaly_times.engine import nodes_of_cluster
    from anomaly_times.errors import AnomalyTimesError
    from anomaly_times.stores.probe import Finding

    try:
        nodes = nodes_of_cluster(address)
    except AnomalyTimesError as exc:
        return [Finding("ray", "fail", exc.message, exc.hint)]
    hint = "install the same Python and anomaly-times[ray] there as here"
    return [
        Finding("ray", "fail", f"{node.address}: {node.error}", hint)
        if node.error
        else Finding("ray", "ok", f"{node.address}: {node.processors} processors, the same versions as here")
        for node in nodes
    ]
