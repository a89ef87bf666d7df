"""`seasonal_naive`: the yardstick that every other model has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from anomaly_times.models.season import (
    DAY,
    Cycles,
    believed,
    blocks_of_rows,
    candidate_periods,
    fit_season,
    odd_seasons,
)
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Grid, Panel, Quantiles

__all__ = ["SeasonalNaive"]

# Differences that quantiles are taken of; more cost time and tell little.
_ENOUGH = 512


@dataclass(frozen=True, kw_only=True)
class SeasonalNaive:
    """The last finite value in the same slot of the season; where there is no season, the last finite value.

    Quantiles are those of the absolute differences between neighbouring cycles, on both sides of the forecast, times
    the square root of how many cycles lie between (Hyndman & Athanasopoulos, Forecasting: Principles and Practice,
    3rd ed., section 5.5).

    Args:
        season: the periods; the longest that the history covers twice is used. `None` takes the strongest of hour,
            day and week where the data show one, and the day where they show none.
        timezone: IANA name of the clock that slots begin by.
    """

    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        cycles = [
            Cycles.of(history.grid, h, period, self.timezone) for period in candidate_periods(history.grid, self.season)
        ]
        notes: dict[int, str] = {}
        for rows in blocks_of_rows(history.n_series, history.grid.n):
            y = history.y[rows]
            choice, taken = self._choose(y, cycles, history.grid, h)
            for i in np.unique(choice):
                members = np.flatnonzero(choice == i)
                values[rows.start + members] = (
                    _last_value(y[members], h, quantiles) if i < 0 else _last_cycle(y[members], taken[i], quantiles)
                )
            if self.season != ():
                note = "no season covered twice: the last value"
                notes.update({rows.start + int(i): note for i in np.flatnonzero(choice < 0)})
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes)

    def _choose(
        self, y: Floats, cycles: list[Cycles], grid: Grid, h: int
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], list[Cycles]]:
        """Which cycles each row follows, as a position in the list that comes second; −1 for none."""
        choice = np.full(len(y), -1, dtype=np.intp)
        best = np.full(len(y), -np.inf)
        for i, cycle in enumerate(cycles):
            if self.season is not None:
                covered = np.isfinite(y[:, : max(0, grid.n - cycle.columns.shape[1])]).any(axis=1)
                choice[covered] = i
                continue
            season = fit_season(y, cycle, grid.step)
            fallback = (season.n >= 2) & (cycle.period == DAY)
            rank = np.where(believed(season), season.strength, np.where(fallback, -1.0, -np.inf))
            better = rank > best
            choice[better], best[better] = i, rank[better]
        taken = list(cycles)
        without = np.flatnonzero(best < 0)
        if self.season is None and without.size:
            for rows, season in odd_seasons(y[without], grid, h, [cycle.period for cycle in cycles]):
                choice[without[rows]] = len(taken)
                taken.append(season.cycles)
        return choice, taken


def _last_cycle(y: Floats, cycles: Cycles, quantiles: Sequence[float]) -> Floats:
    folded = cycles.fold(y)
    n_cycles = folded.shape[1]
    seen = np.isfinite(folded)
    # How many cycles back the newest value of each slot lies; the fold's newest cycle comes last.
    back = seen[:, ::-1].argmax(axis=1)
    last = np.take_along_axis(folded, (n_cycles - 1 - back)[:, None], axis=1)[:, 0]
    errors = np.abs(folded[:, 1:] - folded[:, :-1]).reshape(len(y), -1)
    stride = max(1, errors.shape[1] // _ENOUGH)
    # One that shares a divisor with the cycle would meet the same slots of each hour over and over.
    while math.gcd(stride, folded.shape[2]) > 1:
        stride += 1
    errors = errors[:, ::stride]
    # A slot that no cycle has a value for takes the latest value of the slots before it.
    empty = ~seen.any(axis=1)
    if empty.any():
        latest = _latest(y)
        last = np.where(empty, latest[:, None], last)
    cycles_ahead = np.zeros(len(cycles.ahead))
    # A clock that is put back goes back by less than a cycle.
    cycles_ahead[1:] = np.cumsum(np.diff(cycles.ahead) < -folded.shape[2] // 2)
    spread = np.sqrt(back[:, cycles.ahead] + 1.0 + cycles_ahead)
    return _around(last[:, cycles.ahead], errors, spread, quantiles)


def _last_value(y: Floats, h: int, quantiles: Sequence[float]) -> Floats:
    spread = np.broadcast_to(np.sqrt(np.arange(1.0, h + 1)), (len(y), h))
    return _around(np.broadcast_to(_latest(y)[:, None], (len(y), h)), np.abs(np.diff(y, axis=1)), spread, quantiles)


def _latest(y: Floats) -> Floats:
    """The last finite value of each row."""
    column = y.shape[1] - 1 - np.isfinite(y)[:, ::-1].argmax(axis=1)
    return np.asarray(y[np.arange(len(y)), column])


def _around(center: Floats, errors: Floats, spread: Floats, quantiles: Sequence[float]) -> Floats:
    """`center` with quantiles of absolute `errors` (float64[S, N]) times `spread` on both sides of it."""
    # The quantile q of a symmetric distribution is the quantile |2q − 1| of absolute values; none below the tail's end.
    sides = [max(0.05, abs(2 * q - 1)) for q in quantiles]
    with np.errstate(over="ignore"):
        width = np.nan_to_num(tail_quantiles(errors, sides), posinf=np.inf) * np.sign(np.array(quantiles) - 0.5)
        out = center[:, :, None] + width[:, None, :] * spread[:, :, None]
    limit = np.finfo(np.float64).max
    return np.asarray(np.clip(out, -limit, limit))
