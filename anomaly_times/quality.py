"""How good stored forecasts turned out to be, once the values that they were for are known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from anomaly_times.mission import Mission
from anomaly_times.panel import Floats

__all__ = ["Quality", "judge", "naive_season"]

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Quality:
    """Sums over the points that have a value, a forecast with bounds, and a value a season before.

    `in_band` counts the points inside their bounds. `abs_error` is the sum of abs(y - yhat), `naive_abs_error` that of
    abs(y - y a season before): their ratio is a MASE, scaled by the seasonal naive forecast of the same points (Hyndman
    & Koehler, International Journal of Forecasting 22, 2006; their denominator is taken over the training data).
    """

    points: int
    in_band: int
    abs_error: float
    naive_abs_error: float


def naive_season(mission: Mission) -> timedelta:
    """How long before a point lies the value that the seasonal naive forecast of it is.

    The mission's shortest season, a day where it leaves that open or has none; a step at least.
    """
    return max(min(mission.season) if mission.season else _DAY, mission.step)


def judge(y: Floats, bands: Floats, before: Floats) -> Quality:
    """How good the forecasts `bands` were.

    Args:
        y: the values, float64[S, T].
        bands: yhat, lower and upper of the same points, float64[3, S, T]; NaN where there was no forecast.
        before: the values a season before, float64[S, T].
    """
    yhat, lower, upper = bands
    judged = np.isfinite(y) & np.isfinite(bands).all(axis=0) & np.isfinite(before)
    value, forecast = y[judged], yhat[judged]
    # Of finite numbers the sum may still be more than a double holds; then it is infinite, and no figure.
    with np.errstate(over="ignore"):
        return Quality(
            points=int(judged.sum()),
            in_band=int(((lower[judged] <= value) & (value <= upper[judged])).sum()),
            abs_error=float(np.abs(value - forecast).sum()),
            naive_abs_error=float(np.abs(value - before[judged]).sum()),
        )
