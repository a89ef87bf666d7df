"""The backtest group of the speed benchmark: four weeks replayed, beside statsforecast's `cross_validation`."""

from __future__ import annotations

import time
from datetime import timedelta

from anomaly_times.backtest.replay import Job, Recording, forecast_times, replay
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Panel
from benchmarks.measure import Row
from benchmarks.speed import DAY, END, STEP, Work, labels, synthetic

SERIES, DAYS, LOOKBACK_DAYS = 100, 28, 14
HOUR = timedelta(hours=1) // STEP
# What a peer takes for all forecasts follows from some of them.
WINDOWS_OF_NAIVE, SERIES_OF_MSTL, WINDOWS_OF_MSTL = 24, 8, 2


def backtest(work: Work) -> list[Row]:
    """100 series × 28 days at 5 minutes, a forecast an hour from 14 days, every point scored."""
    columns = (DAYS + LOOKBACK_DAYS) * DAY
    grid = Grid.ending(END, STEP, columns)
    panel = Panel.of([labels(i) for i in range(SERIES)], grid, synthetic(SERIES, columns))
    window = grid[LOOKBACK_DAYS * DAY :]
    rows = []
    n_forecasts = 0
    for model, target in (("profile", "< 10"), ("auto", "< 240")):
        mission = Mission.model_validate(
            {
                "name": "bench",
                "promql": "bench_load",
                "step": "5m",
                "forecast": {"lookback": f"{LOOKBACK_DAYS}d", "model": model},
                "detect": {"every": "5m"},
            }
        )
        n_forecasts = len(forecast_times(mission, window))
        began = time.perf_counter()
        [found] = replay([Job(mission, Recording(panel), window)])
        seconds = time.perf_counter() - began
        assert found.scores is not None, found.error
        beside = f"{found.forecasts:,} forecasts with bounds and limits, {found.scores.score.size:,} points scored"
        rows.append(Row(f"backtest, `{model}`", "s", (seconds,), beside, target))
    return [*rows, *(_peer(name, panel, n_forecasts) for name in ("SeasonalNaive", "MSTL"))]


def _peer(name: str, panel: Panel, n_forecasts: int) -> Row:
    """The same number of forecasts by statsforecast, each from all that lies before it; nothing is scored.

    On every processor. Forecasts are an hour long there, two hours here.
    """
    import pandas as pd
    from statsforecast import StatsForecast
    from statsforecast.models import MSTL, SeasonalNaive

    model, series, windows = (
        (SeasonalNaive(DAY), SERIES, WINDOWS_OF_NAIVE)
        if name == "SeasonalNaive"
        else (MSTL([DAY]), SERIES_OF_MSTL, WINDOWS_OF_MSTL)
    )
    # The windows lie at the end: so much history is there before the first of them.
    part = panel.y[:series, -(LOOKBACK_DAYS * DAY + windows * HOUR) :]
    times = pd.date_range("2026-01-01", periods=part.shape[1], freq=pd.Timedelta(STEP))
    frame = pd.concat(
        [pd.DataFrame({"unique_id": str(i), "ds": times, "y": row}) for i, row in enumerate(part)], ignore_index=True
    )
    peer = StatsForecast([model], freq=pd.Timedelta(STEP), n_jobs=-1)
    began = time.perf_counter()
    answer = peer.cross_validation(df=frame, h=HOUR, step_size=HOUR, n_windows=windows, level=[99], refit=True)
    seconds = time.perf_counter() - began
    assert len(answer) == series * windows * HOUR
    share = series * windows / (SERIES * n_forecasts)
    return Row(
        f"statsforecast `cross_validation`, {name}",
        "s",
        (seconds / share,),
        f"extrapolated from {series} series × {windows} forecasts, {seconds:.1f} s; no scores",
    )
