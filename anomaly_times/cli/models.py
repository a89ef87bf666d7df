"""`at models`: what can forecast here."""

from __future__ import annotations

from anomaly_times.cli import options as opt

__all__ = ["models"]


def models(output: opt.ReportOption = opt.Report.TABLE) -> None:
    """List the models, and which of them are installed."""
    from anomaly_times.cli import render
    from anomaly_times.models import list_models

    render.show_models(list_models(), output)
