"""History after a change for good: what is older is moved to the level that came after it.

A release or a migration takes a series to another level, and for days most of the history tells of the old one. Whoever
knows the time of the change says so (`forecast.rebase` in a mission), and models then learn from a history that looks
as if the service had always been the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

from anomaly_times.models.season import (
    DAY,
    HOUR,
    WEEK,
    Cycles,
    believed,
    blocks_of_rows,
    fit_season,
    nan_median,
    smoothed,
)
from anomaly_times.panel import Floats, Panel

__all__ = ["rebased"]

_FAR_FROM_ZERO = 0.25
_CLEARLY_BETTER = 0.75
_TELLING = 24
# Past this many times the usual noise, what came after is another service. Less is asked for once it has been seen for
# so many cycles that it can be learned from by itself.
_ANOTHER, _ANOTHER_IN_TIME, _CYCLES = 4.0, 2.0, 2


def rebased(
    history: Panel, since: datetime, *, season: Sequence[timedelta] | None = None, timezone: str = "UTC"
) -> Panel:
    """The history with everything before `since` moved to the level of what lies after it, series by series.

    The new level is the median since then. The old one is the median of what had been usual at the same times: the
    median over earlier cycles of the longest season that the series followed, corrected by how the last day before
    `since` (24 points at least) differed from that. So the time of day and the day of the week make no level.

    A series that was never negative is multiplied by new over old: its rhythm stays in proportion, and nothing falls
    below zero. The difference is added instead (and cut at zero, where nothing was negative)

    - for a series that has negative values, a new level of zero, or an old one under a quarter of what its values above
      zero usually were: a factor that is found near zero tells nothing of the rest;
    - where that fits clearly better in six hours or more.

    Where what came after is nothing like what was moved (it strays four times as far from it as the old values did from
    what was usual; twice as far once it spans two cycles of the season, and two days), the old values become gaps.

    A series without values on one side of `since` stays as it is, and so do all where `since` lies outside the history.

    Args:
        history: float64[S, T], NaN for gaps.
        since: the first time of the new level, with a time zone.
        season: the periods that the series follow; `None` tries hour, day and week.
        timezone: IANA name of the clock that days and weeks begin by.
    """
    grid = history.grid
    first = -((grid.start - since) // grid.step)
    if not 0 < first < grid.n:
        return history
    cycles = [
        Cycles.of(grid[:first], grid.n - first, period, timezone)
        for period in sorted((HOUR, DAY, WEEK) if season is None else season)
        if 2 * grid.step <= period < first * grid.step
    ]
    y = history.y.copy()
    for rows in blocks_of_rows(history.n_series, grid.n):
        old, new = y[rows, :first], y[rows, first:]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            y[rows, :first] = _moved(old, new, _Usual.of(old, cycles, new.shape[1], grid.step, season), grid.step)
    return replace(history, y=y)


@dataclass(frozen=True, eq=False)
class _Usual:
    """What had been usual: `ahead` (float64[S, h]) at the times that follow, `noise` how far values strayed from it.

    `enough` (int[S]) is how many points span two cycles of the season, and two days.
    """

    ahead: Floats
    noise: Floats
    enough: npt.NDArray[np.intp]

    @classmethod
    def of(
        cls, y: Floats, cycles: Sequence[Cycles], h: int, step: timedelta, given: Sequence[timedelta] | None
    ) -> _Usual:
        """From `y`, float64[S, T]; of seasons that are not `given` only those count that the values support."""
        recent = min(y.shape[1], max(DAY // step, _TELLING))
        known, ahead = np.zeros((len(y), recent)), np.zeros((len(y), h))
        enough, unseen = np.full(len(y), _CYCLES * DAY // step), np.ones(len(y))
        rest = y
        for cycle in cycles:
            fitted = fit_season(rest, cycle, step)
            rows = fitted.n >= 2 if given is not None else believed(fitted)
            if rows.any():
                rest = rest - np.where(rows[:, None], fitted.profile, 0.0)[:, cycle.slot]
                slots = nan_median(np.moveaxis(cycle.fold(y[rows]), 1, -1))
                known[rows], ahead[rows] = slots[:, cycle.slot[-recent:]], slots[:, cycle.ahead]
                enough[rows] = _CYCLES * max(DAY, cycle.period) // step
                # Values lie closer to the middle of a few cycles that they are part of than the next one will.
                unseen[rows] = fitted.n[rows] / (fitted.n[rows] - 1)
        odd = y[:, -recent:] - known
        drift = nan_median(odd)
        ahead += np.where(np.isnan(drift), nan_median(y), drift)[:, None]
        return cls(ahead, unseen * _spread(odd), enough)


def _moved(old: Floats, new: Floats, usual: _Usual, step: timedelta) -> Floats:
    """`old` at the level of `new`, NaN in rows where nothing can be learned from it: float64[S, T]."""
    expected = np.where(np.isnan(new), np.nan, usual.ahead)
    before, after = nan_median(expected), nan_median(new)
    positive = (np.fmin.reduce(old, axis=1) >= 0) & (np.fmin.reduce(new, axis=1) >= 0)
    far = before > _FAR_FROM_ZERO * nan_median(np.where(old > 0, old, np.nan))
    factor = np.where(positive & far & (after > 0), after / before, 1.0)
    if 4 * new.shape[1] * step >= DAY:
        # Rhythms are compared, so by the hour: a factor makes the noise of what was usual larger or smaller as well.
        added, scaled = (_spread(smoothed(new - by * expected, HOUR // step)) for by in (1.0, factor[:, None]))
        factor = np.where(added < _CLEARLY_BETTER * scaled, 1.0, factor)
    moved = factor[:, None] * old + (after - factor * before)[:, None]
    limit = np.finfo(np.float64).max
    moved = np.clip(moved, np.where(positive, 0.0, -limit)[:, None], limit)

    strays = _spread(new - factor[:, None] * expected)
    times = np.where(new.shape[1] >= usual.enough, _ANOTHER_IN_TIME, _ANOTHER)
    another = (np.isfinite(new).sum(axis=1) >= _TELLING) & (strays > times * factor * usual.noise)
    moved[another] = np.nan
    return np.where(np.isfinite(after - before)[:, None], moved, old)


def _spread(x: Floats) -> Floats:
    """How far the values of a row typically lie from their median: float64[S]."""
    return nan_median(np.abs(x - nan_median(x)[:, None]))
