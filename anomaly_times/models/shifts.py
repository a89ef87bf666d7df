"""Where a series came to another level for good: one change, larger than any other, that has lasted for half a day.

Medians of eighths of a day, held against the same eighth of the day before, show a shift for one day and a rhythm
never; noise and incidents of an hour leave little trace in them. As with incidents (`calibrate`), what happened once is
a shift, and what happened twice is how the series behaves: the weekend is none.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import numpy.typing as npt

from anomaly_times.models.season import DAY, blocks_of_rows, nan_median
from anomaly_times.panel import Floats, Panel

__all__ = ["lasting_shifts"]

_PARTS, _SAMPLES = 8, 15
"""How many levels a day has, and of how many values at most each is the median."""

_LASTED, _FEWEST_DAYS = 4, 4
"""A shift is seen once it has lasted for so many levels and follows so many days."""

_WEEK, _WEEKEND = 8 * _PARTS, 20
"""Levels that show a week, and levels that no weekend lasts for."""

_ONCE, _STAYS = 3.0, 0.9

Ints = npt.NDArray[np.intp]


def lasting_shifts(history: Panel) -> Ints:
    """The column at which each series came to its present level: int[S], 0 where there was no lasting shift.

    A shift changes levels by three times as much as any other day did, and on either side of it nine levels in ten are
    nearer to the usual one there, at their part of the day, than to the other one. It takes four days before it and
    half a day since; where no whole week before it is known, two days and a half, lest a weekend be one.
    """
    grid = history.grid
    out = np.zeros(history.n_series, dtype=np.intp)
    n_levels = int(grid.n * grid.step / (DAY / _PARTS))
    # The columns at which levels begin, and the end of the history.
    edges = grid.n - np.rint(np.arange(n_levels, -1, -1) * (DAY / _PARTS / grid.step)).astype(np.intp)
    if grid.step > timedelta(hours=1) or n_levels < _PARTS * _FEWEST_DAYS + _LASTED:
        return out
    sampled = edges[:-1, None] + np.linspace(0, np.diff(edges).min() - 1, _SAMPLES).round().astype(np.intp)
    sampled = sampled[:, np.unique(sampled[0], return_index=True)[1]]
    for rows in blocks_of_rows(history.n_series, grid.n):
        y = history.y[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            levels = nan_median(y[:, sampled])
            at = _largest_change(levels)
            for i in np.flatnonzero(at).tolist():
                out[rows.start + i] = _first_column(y[i], levels[i], at[i], edges)
    return out


def _largest_change(levels: Floats) -> Ints:
    """The level (of float64[S, N]) with which the one change begins that is like no other: int[S], 0 for none."""
    change = levels[:, _PARTS:] - levels[:, :-_PARTS]
    change = np.pad(change, ((0, 0), (0, _PARTS - _LASTED)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(change, _PARTS, axis=1)
    known = np.isfinite(windows).sum(axis=2) >= _LASTED
    # Of a day's changes the middle one.
    size = np.where(known, np.abs(nan_median(windows)), 0.0)
    largest = size.argmax(axis=1)
    far = np.abs(np.arange(size.shape[1]) - largest[:, None]) >= _PARTS + _LASTED
    found = size[np.arange(len(size)), largest] > _ONCE * np.where(far, size, 0.0).max(axis=1)
    at = largest + _PARTS
    return np.where(found & (at >= _PARTS * _FEWEST_DAYS), at, 0)


def _first_column(y: Floats, levels: Floats, at: int, edges: Ints) -> int:
    """Where in one series the change around the level `at` begins, 0 if it does not last."""
    part = np.arange(len(levels)) % _PARTS
    near = slice(max(0, at - _LASTED), min(len(levels), at + _LASTED))
    before = levels[: near.start]
    usual = np.array([nan_median(before[part[: near.start] == p]) for p in range(_PARTS)])[part]
    shift = float(nan_median(levels[at:] - usual[at:]))
    if not shift or np.isnan(shift):
        return 0
    age = np.isfinite(levels[:at])
    if age.sum() < _PARTS * (_FEWEST_DAYS - 1) or at - age.argmax() < _PARTS * _FEWEST_DAYS:
        return 0
    if at - age.argmax() < _WEEK and len(levels) - at < _WEEKEND:
        return 0
    # Nearer to the level since than to the one before.
    moved = (levels - usual) / shift > 0.5
    known = np.isfinite(levels - usual)
    if np.mean(~moved[: near.start][known[: near.start]]) < _STAYS:
        return 0
    if not known[near.stop :].any() and near.stop < len(levels):
        return 0
    since = moved[near.stop :][known[near.stop :]]
    if since.size and np.mean(since) < _STAYS:
        return 0
    first, stop = edges[near.start], edges[near.stop]
    columns = np.repeat(usual[near], np.diff(edges[near.start : near.stop + 1]))
    side = np.sign((y[first:stop] - columns) / shift - 0.5)
    # As many as can be on their own side: old ones before, new ones since.
    wrong = np.concatenate([[0.0], np.cumsum(np.nan_to_num(side))])
    column = int(first + wrong.argmin())
    return column if edges[-1] - column >= edges[_LASTED] - edges[0] else 0
