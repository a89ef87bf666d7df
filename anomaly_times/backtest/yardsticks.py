"""What a model is held against: a plain threshold, and the same time last week.

Both are what one would write into an alert rule by hand, made anew every day from the history so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np

from anomaly_times import scoring
from anomaly_times.errors import AnomalyTimesError, MissionError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Forecast, Panel
from anomaly_times.passes import ForecastResult
from anomaly_times.stores import Store

__all__ = ["YARDSTICKS", "Yardstick"]

_DAY, _WEEK = timedelta(days=1), timedelta(weeks=1)
_SHARE = 0.001
"""How much of the history lies beyond the bounds."""


class _Bounds(Protocol):
    def __call__(self, history: Panel, h: int, direction: str) -> tuple[Floats, Floats, Floats]: ...


@dataclass(frozen=True)
class Yardstick:
    """A rule by hand: `name` on the command line, `title` for people, and how its bounds follow from a history."""

    name: str
    title: str
    bounds: _Bounds

    def forecast(self, mission: Mission, store: Store, *, now: datetime) -> ForecastResult:
        """Its bounds from `now` on, until those of the next day are there."""
        try:
            history = store.read(mission.promql, mission.history_grid(now), max_series=mission.max_series)
        except AnomalyTimesError as exc:
            return ForecastResult(mission, error=exc)
        h = max(1, (_DAY + mission.forecast.period) // mission.step)
        yhat, lower, upper = self.bounds(history, h, mission.detect.direction)
        if not np.isfinite(yhat).any():
            error = MissionError(
                f"{self.title} needs more history than mission {mission.name} has here",
                hint="lengthen `lookback` to more than a week, or begin later",
            )
            return ForecastResult(mission, error=error)
        made = Forecast(history.labels, history.grid.following(h), history.grid.end, yhat, lower, upper)
        return ForecastResult(
            mission, scoring.final_bounds(made, mission.detect, resolution=scoring.resolution(history.y))
        )


def _threshold(history: Panel, h: int, direction: str) -> tuple[Floats, Floats, Floats]:
    """The history's median, and the quantiles beyond which one point in a thousand lies."""
    low, middle, high = _quantiles(history.y, direction)
    return (*(np.repeat(each[:, None], h, axis=1) for each in (middle, low, high)),)  # type: ignore[return-value]


def _last_week(history: Panel, h: int, direction: str) -> tuple[Floats, Floats, Floats]:
    """The value a week before, give or take what all but one point in a thousand differed by from theirs."""
    week = _WEEK // history.grid.step
    if history.grid.n < week + 1:
        nothing = np.full((history.n_series, h), np.nan)
        return nothing, nothing, nothing
    low, _, high = _quantiles(history.y[:, week:] - history.y[:, :-week], direction)
    columns = history.grid.n - week + np.arange(h) % week
    yhat = history.y[:, columns]
    return yhat, yhat + np.minimum(low, 0.0)[:, None], yhat + np.maximum(high, 0.0)[:, None]


def _quantiles(y: Floats, direction: str) -> tuple[Floats, Floats, Floats]:
    """The lower bound, the median and the upper bound of each row, less its gaps: float64[S] each.

    One point in a thousand lies outside: on both sides, or on the one that counts.
    """
    share = _SHARE / 2 if direction == "both" else _SHARE
    ordered = np.sort(y, axis=1)
    n = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(ordered))
    at = [np.clip(np.ceil(q * n).astype(np.intp) - 1, 0, y.shape[1] - 1) for q in (share, 0.5, 1 - share)]
    low, middle, high = (np.where(n > 0, ordered[rows, i], np.nan) for i in at)
    return low, middle, high


YARDSTICKS = {
    each.name: each
    for each in (
        Yardstick("threshold", "a plain threshold", _threshold),
        Yardstick("last_week", "the same time last week", _last_week),
    )
}
"""By name."""
