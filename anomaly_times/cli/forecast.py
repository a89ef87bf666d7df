"""`at forecast`: a query's forecast with bounds, shown and stored."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import UsageError

if TYPE_CHECKING:
    from anomaly_times.stores import Store

__all__ = ["forecast", "require_room_ahead"]


def forecast(
    ctx: typer.Context,
    files: opt.Files = None,
    promql: opt.PromQL = None,
    source: opt.SourceName = "",
    url: opt.Url = "",
    name: opt.Name = None,
    at: opt.At = "now",
    step: opt.Step = None,
    lookback: opt.Lookback = None,
    horizon: opt.Horizon = None,
    every: opt.Every = None,
    timezone: opt.Timezone = None,
    model: opt.Model = None,
    model_param: opt.ModelParam = None,
    season: opt.Season = None,
    alerts_per_week: opt.AlertsPerWeek = None,
    level: opt.Level = None,
    evidence: opt.EvidenceOption = None,
    valid_range: opt.ValidRange = None,
    dry_run: opt.DryRun = False,
    profile: opt.ProfileOption = False,
    output: opt.OutputOption = None,
    out: opt.Out = None,
    plot: opt.Plot = None,
    top: opt.Top = 20,
    jobs: opt.Jobs = None,
    on: opt.On = None,
    ray_address: opt.RayAddress = None,
) -> None:
    """Forecast missions, or one query, with bounds; show and store it.

    It is stored where the metrics live, or beside them. Without FILES and --promql it is the missions of missions/.

    Examples: at forecast missions/

    at forecast --url http://localhost:8428 --promql 'sum by (job) (rate(http_requests_total[5m]))' --step 5m
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.from_files import pass_over_files
    from anomaly_times.cli.views import ForecastView
    from anomaly_times.engine import Processes
    from anomaly_times.monitoring import About, tell
    from anomaly_times.passes import forecast_pass, write_forecasts
    from anomaly_times.stores.metered import metered

    if profile:
        opt.profiled(ctx)
    if files or promql is None:
        opt.require_file_options(ctx)
        pass_over_files("forecast", files, ctx.params)
        return
    opt.require_query_options(ctx)
    query, form = opt.query_from_options(ctx.params), opt.output_format(output, out, plot)
    with query.open() as store, render.working(f"forecasting {query.mission.promql}"), Processes() as processes:
        began, stores = time.monotonic(), metered(query.stores(store))
        if not dry_run:
            require_room_ahead(query, store)
        [result] = forecast_pass(
            *([query.mission], stores), now=query.now, blocks=processes.map, keep_history=True, judged=not dry_run
        )
        written, failed, where, untold = None, None, "", []
        if not dry_run and result.error is None:
            told, written = write_forecasts([result], stores)
            failed, where = told[0].error, query.place_of_forecasts(store)
            about, took = About(query.settings.project), time.monotonic() - began
            untold = tell("forecast", told, stores, about=about, now=query.now, seconds=took)
    for text in untold:
        render.note(text)
    view = ForecastView.of(query, result, written, where=where, failed=failed)
    render.show(view, form, out=out, plot=plot, top=top)
    if failed is not None:
        raise failed


def require_room_ahead(query: opt.Query, store: Store) -> None:
    """Refuse a forecast that the store could not hold, before it is made.

    Raises:
        UsageError: it reaches further ahead than VictoriaMetrics keeps.
        StoreError: that depends on the server, and it does not answer.
    """
    from anomaly_times.durations import format_duration
    from anomaly_times.stores.prometheus import PrometheusStore
    from anomaly_times.stores.writing import FARTHEST_AHEAD

    mission = query.mission
    if mission.horizon <= FARTHEST_AHEAD or not isinstance(store, PrometheusStore):
        return
    if store.writes_ahead(mission):
        option = "--horizon" if mission.forecast.horizon is not None else "--every"
        raise UsageError(
            f"{option}: {format_duration(mission.horizon)} ahead is too far: VictoriaMetrics drops what lies more than "
            "two days ahead",
            hint=f"--horizon {format_duration(FARTHEST_AHEAD)} or less; --dry-run forecasts further, and stores none",
        )
