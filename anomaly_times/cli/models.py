"""`at models`: what can forecast here, and what `auto` takes for a query and why."""

from __future__ import annotations

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import UsageError

__all__ = ["models_app"]

models_app = typer.Typer(name="models", rich_markup_mode=None)


@models_app.callback(invoke_without_command=True)
def models(ctx: typer.Context, output: opt.ReportOption = opt.Report.TABLE) -> None:
    """List the models, their revisions, and which are installed."""
    from anomaly_times.cli import render
    from anomaly_times.mission import ModelSpec
    from anomaly_times.models import current_revision, list_models

    if ctx.invoked_subcommand is None:
        known = list_models()
        revisions = {model.name: current_revision(ModelSpec(type=model.name)) for model in known}
        render.show_models(known, revisions, output)


@models_app.command(cls=opt.GroupedHelp)
def explain(
    ctx: typer.Context,
    promql: opt.PromQL = None,
    source: opt.SourceName = "",
    url: opt.Url = "",
    at: opt.At = "now",
    step: opt.Step = None,
    lookback: opt.Lookback = None,
    horizon: opt.Horizon = None,
    every: opt.Every = None,
    timezone: opt.Timezone = None,
    model: opt.Model = None,
    model_param: opt.ModelParam = None,
    season: opt.Season = None,
    top: opt.Top = 20,
    output: opt.ReportOption = opt.Report.TABLE,
) -> None:
    """Say which model each series of a query gets from `auto`, and why; nothing is stored.

    Example: at models explain --url http://localhost:8428 --promql 'rate(http_requests_total[5m])' --step 5m
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.model_views import ExplainView
    from anomaly_times.passes import forecast_pass

    if promql is None:
        raise UsageError("--promql is missing", hint="name a query, e.g. --promql 'sum by (job) (up)'")
    query = opt.query_from_options(ctx.params)
    with query.open() as store, render.working(f"comparing models on {query.mission.promql}"):
        [result] = forecast_pass([query.mission], query.stores(store), now=query.now, keep_history=True)
    render.show_report(ExplainView.of(result, top=top), opt.Output(output))
