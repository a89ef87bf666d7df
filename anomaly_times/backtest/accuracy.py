"""How good the forecasts were that scores were made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_times.backtest.replay import Recording
from anomaly_times.mission import Mission
from anomaly_times.panel import Scores
from anomaly_times.quality import naive_season

__all__ = ["Accuracy", "measure_accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """How good forecasts were, over all points that have a value and a forecast; NaN where nothing tells it.

    `mase` is the mean over series of the forecast's absolute error over that of the seasonal naive forecast, which is
    the value a `season` before, at the same points (Hyndman & Koehler, International Journal of Forecasting 22, 2006;
    their denominator is taken over the training data). `wql` is the weighted quantile loss of the median, the sum of
    absolute errors over that of absolute values. `coverage` is the share of points inside the bounds, `unforecast`
    that of values without a forecast, `missing` that of times without a value.
    """

    mase: float
    wql: float
    coverage: float
    unforecast: float
    missing: float
    season: timedelta


def measure_accuracy(mission: Mission, recording: Recording, scores: Scores) -> Accuracy:
    """The accuracy of the forecasts behind `scores`, held against `recording`, which reaches a season further back."""
    season = naive_season(mission)
    y, yhat, grid = scores.y, scores.yhat, scores.grid
    known = np.isfinite(y) & np.isfinite(yhat)
    have = recording.panel
    position = {row: i for i, row in enumerate(have.labels)}
    before = np.full(y.shape, np.nan)
    first = have.grid.index(grid.start) - season // grid.step
    columns = np.arange(max(0, -first), min(grid.n, have.grid.n - first))
    for row, labels in enumerate(scores.labels):
        if labels in position:
            before[row, columns] = have.y[position[labels], columns + first]
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(y - yhat)
        naive = np.abs(y - before)
        inside = (scores.lower <= y) & (y <= scores.upper)
    both = known & np.isfinite(naive)
    by_series = np.where(both, error, 0.0).sum(axis=1)
    by_naive = np.where(both, naive, 0.0).sum(axis=1)
    told = by_naive > 0
    values = np.isfinite(y)
    return Accuracy(
        mase=float((by_series[told] / by_naive[told]).mean()) if told.any() else float("nan"),
        wql=_share(np.where(known, error, 0.0), np.where(known, np.abs(y), 0.0)),
        coverage=_share(inside & known, known),
        unforecast=_share(values & ~np.isfinite(yhat), values),
        missing=_share(~values, np.ones(values.shape)),
        season=season,
    )


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> float:
    total = float(whole.sum())
    return float(part.sum()) / total if total else float("nan")
