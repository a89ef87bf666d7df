"""`at detect`: how anomalous a query's newest points are, shown and stored."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from anomaly_times.cli import options as opt

if TYPE_CHECKING:
    from anomaly_times.panel import Forecast
    from anomaly_times.stores import Store

__all__ = ["detect", "forecast_for"]


def detect(
    ctx: typer.Context,
    files: opt.Files = None,
    promql: opt.PromQL = None,
    source: opt.SourceName = "",
    url: opt.Url = "",
    name: opt.Name = None,
    at: opt.At = "now",
    last: opt.Last = None,
    step: opt.Step = None,
    lookback: opt.Lookback = None,
    horizon: opt.Horizon = None,
    every: opt.Every = None,
    timezone: opt.Timezone = None,
    model: opt.Model = None,
    model_param: opt.ModelParam = None,
    season: opt.Season = None,
    level: opt.Level = None,
    direction: opt.DirectionOption = None,
    min_deviation: opt.MinDeviation = None,
    min_relative_deviation: opt.MinRelativeDeviation = None,
    valid_range: opt.ValidRange = None,
    missing: opt.MissingOption = None,
    dry_run: opt.DryRun = False,
    output: opt.OutputOption = None,
    out: opt.Out = None,
    plot: opt.Plot = None,
    top: opt.Top = 20,
    jobs: opt.Jobs = None,
) -> None:
    """Score the newest points of missions, or of one query; store it.

    Points are held against the stored forecast. Where there is none for a query, one is made for the occasion, from
    what was known before the scored points; options of time and model serve that forecast alone. Without FILES and
    --promql it is the missions of missions/.

    Examples: at detect missions/

    at detect --url http://localhost:8428 --promql 'sum by (job) (rate(http_requests_total[5m]))' --last 2h
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.from_files import pass_over_files
    from anomaly_times.cli.views import DetectView
    from anomaly_times.passes import detect_pass, write_scores

    if files or promql is None:
        opt.require_file_options(ctx)
        pass_over_files("detect", files, ctx.params)
        return
    opt.require_query_options(ctx)
    query, form = opt.query_from_options(ctx.params), opt.output_format(output, out, plot)
    window = opt.parse_window(last, "--last")
    with query.open() as store, render.working(f"scoring {query.mission.promql}"):
        stores = query.stores(store)
        made = forecast_for(query, store, window or query.mission.detect.catch_up)
        forecasts = {query.mission.name: made} if made else None
        results = detect_pass([query.mission], stores, now=query.now, window=window, forecasts=forecasts)
        results, written = (results, None) if dry_run else write_scores(results, stores)
    view = DetectView.of(query, results[0], written, made=made)
    render.show(view, form, out=out, plot=plot, top=top)


def forecast_for(query: opt.Query, store: Store, window: timedelta) -> Forecast | None:
    """A forecast of the window, as it would have been made right before it; `None` where one is stored.

    Raises:
        AnomalyTimesError: what stopped the forecast.
    """
    from anomaly_times.passes import forecast_pass

    mission = query.mission
    grid = mission.detect_grid(query.now, window)
    if mission.name in store.read_forecasts([mission], grid):
        return None
    # The bounds may depend on the horizon, so it is the mission's own wherever that reaches.
    reach = mission.forecast.model_copy(update={"horizon": max(mission.horizon, grid.n * grid.step)})
    mission = mission.model_copy(update={"forecast": reach})
    before = grid.start - grid.step + mission.offset
    result = forecast_pass([mission], query.stores(store), now=before)[0]
    if result.error is not None:
        raise result.error
    return result.forecast
