"""`at doctor`: does a source do what is needed of it?"""

from __future__ import annotations

from typing import Annotated

import typer

from anomaly_times.cli import options as opt

__all__ = ["doctor"]

EXIT_FAILED = 4


def doctor(
    source: opt.SourceName = "",
    url: opt.Url = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Write nothing, so test less.")] = False,
    output: opt.ReportOption = opt.Report.TABLE,
) -> None:
    """Test whether a source does what is needed of it.

    Can it be read, written, and read back with the same labels? Does it hold the future? Unless --read-only is given,
    a few samples of a metric of its own are written.
    """
    from anomaly_times.cli import render
    from anomaly_times.stores import open_store
    from anomaly_times.stores.probe import probe

    settings, _, described = opt.open_source(source, url)
    with open_store(described, state=settings.state_url) as store, render.working(f"testing {store.name}"):
        findings = probe(store, write=not read_only)
        name = store.name
    render.show_findings(name, findings, output)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(EXIT_FAILED)
