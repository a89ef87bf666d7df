"""`at detect`: how anomalous a query's newest points are, shown and stored."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import NoSeriesError

if TYPE_CHECKING:
    from anomaly_times.panel import Forecast, Grid
    from anomaly_times.passes import DetectResult
    from anomaly_times.stores import Store

__all__ = ["Found", "detect", "merged_forecast", "score"]


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
    alerts_per_week: opt.AlertsPerWeek = None,
    level: opt.Level = None,
    evidence: opt.EvidenceOption = None,
    direction: opt.DirectionOption = None,
    min_deviation: opt.MinDeviation = None,
    min_relative_deviation: opt.MinRelativeDeviation = None,
    valid_range: opt.ValidRange = None,
    missing: opt.MissingOption = None,
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
    """Score the newest points of missions, or of one query; store it.

    Points are held against the stored forecast. Those of a query that it lacks are held against one made for the
    occasion, from what was known before the scored points; options of time and model serve that forecast alone. Without
    FILES and --promql it is the missions of missions/.

    Examples: at detect missions/

    at detect --url http://localhost:8428 --promql 'sum by (job) (rate(http_requests_total[5m]))' --last 2h
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.from_files import pass_over_files
    from anomaly_times.cli.views import DetectView
    from anomaly_times.monitoring import About, tell
    from anomaly_times.passes import write_scores
    from anomaly_times.stores.metered import MeteredStore

    if profile:
        opt.profiled(ctx)
    if files or promql is None:
        opt.require_file_options(ctx)
        pass_over_files("detect", files, ctx.params)
        return
    opt.require_query_options(ctx)
    query, form = opt.query_from_options(ctx.params), opt.output_format(output, out, plot)
    window = opt.parse_window(last, "--last")
    with query.open() as opened, render.working(f"scoring {query.mission.promql}"):
        began, store = time.monotonic(), MeteredStore(opened)
        found = score(query, store, window=window)
        written, failed, untold = None, None, []
        if not dry_run and found.result.error is None:
            stores = {query.mission.source: store}
            told, written = write_scores([found.result], stores)
            failed, about, took = told[0].error, About(query.settings.project), time.monotonic() - began
            untold = tell("detect", told, stores, about=about, now=query.now, seconds=took)
    for text in untold:
        render.note(text)
    view = DetectView.of(query, found.result, written, made=found.made, mixed=found.mixed, failed=failed)
    render.show(view, form, out=out, plot=plot, top=top)
    if failed is not None:
        raise failed


@dataclass(frozen=True, eq=False)
class Found:
    """What a detection found; `made` is a forecast that it made for the occasion, `mixed` if stored ones served too."""

    result: DetectResult
    made: Forecast | None = None
    mixed: bool = False


def score(query: opt.Query, store: Store, *, window: timedelta | None) -> Found:
    """Hold a query's points against its stored forecast; those that it lacks against one made for the occasion.

    The one for the occasion knows what was complete right before the first of the points. Where a stored forecast
    serves other points, and none can be made, a warning says why.

    Raises:
        AnomalyTimesError: nothing is stored, and no forecast can be made.
    """
    from anomaly_times.passes import detect_pass, forecast_pass

    mission, stores = query.mission, query.stores(store)
    [first] = detect_pass([mission], stores, now=query.now, window=window)
    if not first.unforecast and not isinstance(first.error, NoSeriesError):
        return Found(first)
    if first.scores is not None:
        grid = first.scores.grid
    else:
        grid = mission.detect_grid(query.now, window or mission.detect.catch_up)
    # The bounds may depend on the horizon, so it is the mission's own wherever that reaches.
    reach = mission.forecast.model_copy(update={"horizon": max(mission.horizon, grid.n * grid.step)})
    before = grid.start - grid.step + mission.offset
    [made] = forecast_pass([mission.model_copy(update={"forecast": reach})], stores, now=before)
    stored = store.read_forecasts([mission], grid).get(mission.name)
    if made.forecast is None:
        if stored is None and made.error is not None:
            raise made.error
        why = made.error.message if made.error is not None else ""
        return Found(replace(first, warnings=(*first.warnings, f"no forecast could be made for the others: {why}")))
    merged = merged_forecast(query, made.forecast, stored, grid)
    [second] = detect_pass([mission], stores, now=query.now, window=window, forecasts={mission.name: merged})
    if stored is not None and second.unforecast == first.unforecast:
        return Found(first)
    return Found(second, made.forecast, stored is not None)


def merged_forecast(query: opt.Query, made: Forecast, stored: Forecast | None, grid: Grid) -> Forecast:
    """The stored forecast at the times of `grid`, and `made` for each point that it lacks.

    Args:
        query: what both are forecasts of.
        made: with the labels of the source; begins with `grid`, and is as long at least.
        stored: as `Store.read_forecasts` answers it for `grid`, with written labels.
        grid: the times to cover.

    Returns:
        A forecast with the labels of the source.
    """
    import numpy as np

    from anomaly_times.conventions import source_labels
    from anomaly_times.panel import Forecast, Limits

    mission, ignored = query.mission, query.source.ignore_labels
    labels = list(made.labels)
    place = {row.without(ignored): i for i, row in enumerate(mission.written_labels(made.labels))}
    rows = []
    for row in stored.labels if stored is not None else ():
        key = row.without(ignored)
        if key not in place:
            place[key] = len(labels)
            labels.append(source_labels(row, mission.labels))
        rows.append(place[key])
    shape, own = (len(labels), grid.n), slice(len(made.labels))
    bands = np.full((3, *shape), np.nan)
    bands[:, own] = [part[:, : grid.n] for part in (made.yhat, made.lower, made.upper)]
    limits = None
    if made.limits is not None:
        limits = Limits(np.full((5, *shape), np.nan), np.full((5, *shape), np.nan), np.full(shape, np.nan))
        limits.usual[:, own], limits.limit[:, own], limits.move[own] = (
            made.limits.usual,
            made.limits.limit,
            made.limits.move,
        )
    if stored is not None:
        newer = np.stack([stored.yhat, stored.lower, stored.upper])
        there = np.isfinite(newer).all(axis=0)
        bands[:, rows] = np.where(there, newer, bands[:, rows])
        if limits is not None and stored.limits is not None:
            limits.usual[:, rows] = np.where(there, stored.limits.usual, limits.usual[:, rows])
            limits.limit[:, rows] = np.where(there, stored.limits.limit, limits.limit[:, rows])
            limits.move[rows] = np.where(there, stored.limits.move, limits.move[rows])
    yhat, lower, upper = bands
    return Forecast(tuple(labels), grid, None, yhat, lower, upper, limits=limits)
