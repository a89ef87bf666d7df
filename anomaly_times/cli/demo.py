"""`at demo`: the whole job on made-up metrics in a folder, or, read-only, on metrics of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_times.cli import options as opt

__all__ = ["demo"]


def demo(
    source: opt.SourceName = "",
    url: opt.Url = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where the demo goes [at-demo], or the page of your own metrics [at-demo-live].",
            show_default=False,
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
) -> None:
    """Show the whole job on made-up metrics; no server is needed.

    Makes four weeks of service metrics with planted incidents in a folder, forecasts and scores the last of them hour
    by hour, says what was found, and draws a page. With --url or --source it does so with a few lively metrics of your
    own, and writes nothing there.
    """
    from anomaly_times.cli.showcase import DEMO_FOLDER, OWN_FOLDER, own_metrics, planted_incidents

    own = bool(source or url)
    report = own_metrics(source, url, out or OWN_FOLDER) if own else planted_incidents(out or DEMO_FOLDER)
    if open_page:
        typer.launch(report.resolve().as_uri())
