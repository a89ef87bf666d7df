"""`profile`: what is usual at this hour, day and week, corrected by how the recent past differs from it.

Per series, in this order, everything over blocks of rows at once:

1. Seasons: for hour, day and week (or the periods given) the interquartile mean of each slot over the cycles, after
   the moving level is taken off; kept where it explains cycles that it was not made from, and shrunk by how well.
2. What remains is described at every moment by the means of the last 1, 4, 16, … points up to a day and by the mean of
   all before. The differences between neighbours in that list are bands: slow ones are level shifts, fast ones are
   noise. For some leads, ridge regression over past moments tells how much of each band persists (the direct method of
   multi-step forecasting: Chevillon, Journal of Economic Surveys 21, 2007), drawn towards a prior that keeps slow
   bands and forgets fast ones.
3. Quantiles: the errors of step 2 at those past moments, relative to the usual size of errors at their slot and lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from anomaly_times.models.season import (
    DAY,
    Cycles,
    believed,
    blocks_of_rows,
    candidate_periods,
    fit_season,
    moving_level,
    nan_median,
    rows_by_length,
    window_mean,
)
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Panel, Quantiles

__all__ = ["Profile"]

_LEADS = 8
_MOMENTS = 96
_RIDGE = 3.0
_BANDS_A_DAY = 12
_CLIP = 4.0
_SHORT = "shorter than two cycles of any season: level only"

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Robust seasonal profile in local time with a short-term correction; see the module's text.

    Args:
        season: the periods to use; `None` tries hour, day and week and keeps what the data support.
        timezone: IANA name of the clock that slots begin by.
    """

    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        notes: dict[int, str] = {}
        for columns, members in rows_by_length(history.y):
            part = history.columns(slice(history.grid.n - columns, None))
            cycles = [
                Cycles.of(part.grid, h, period, self.timezone) for period in candidate_periods(part.grid, self.season)
            ]
            if not cycles and self.season != ():
                notes.update(dict.fromkeys(members.tolist(), _SHORT))
            for block in blocks_of_rows(len(members), columns):
                rows = members[block]
                values[rows] = self._block(part.y[rows], part, cycles, h, quantiles)
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes)

    def _block(self, y: Floats, part: Panel, cycles: list[Cycles], h: int, quantiles: Sequence[float]) -> Floats:
        center, scale = _center_and_scale(y)
        z = (y - center) / scale
        ahead = np.zeros((len(y), h))
        spread = np.ones((len(y), 1))
        day: Cycles | None = None
        for cycle in cycles:
            season = fit_season(z, cycle, part.grid.step)
            follows = np.nan_to_num(season.n) >= 2 if self.season is not None else believed(season)
            if follows.any():
                profile = np.where(follows[:, None], season.profile, 0.0)
                z = z - profile[:, cycle.slot]
                ahead += profile[:, cycle.ahead]
                # A profile made of n cycles fits these n better than the next one: by (n − 1) / (n + 1) in variance.
                factor = np.sqrt((season.n + 1) / np.maximum(1.0, season.n - 1))
                spread = np.where(follows[:, None], np.maximum(spread, factor[:, None]), spread)
        day = next((c for c in cycles if c.period == DAY), None)
        window = max(2, min(round(DAY / part.grid.step), part.grid.n // 2))
        level, errors = _rest(z, window, h, day, quantiles)
        out = (ahead + level)[:, :, None] + errors * spread[:, :, None]
        with np.errstate(over="ignore"):
            out = out * scale[:, :, None] + center[:, :, None]
        limit = np.finfo(np.float64).max
        return np.asarray(np.clip(out, -limit, limit))


def _center_and_scale(y: Floats) -> tuple[Floats, Floats]:
    """A typical value of each row and the largest distance from it, so that squares neither overflow nor vanish."""
    center = nan_median(y[:, :: max(1, y.shape[1] // 63)])
    center = np.where(np.isnan(center), np.fmax.reduce(y, axis=1), center)[:, None]
    reach = np.fmax.reduce(np.abs(y - center), axis=1)[:, None]
    return center, np.where(reach > 0, reach, 1.0)


def _rest(z: Floats, window: int, h: int, day: Cycles | None, quantiles: Sequence[float]) -> tuple[Floats, Floats]:
    """Forecast of what the seasons left, float64[S, h], and quantiles of its errors, float64[S, h, Q]."""
    n_points = z.shape[1]
    width = min(n_points, max(3, window // 24))
    around = moving_level(z, width)
    noise = np.abs(z - around)
    size = _quantile_of_sample(noise, 0.75)
    # Spikes shorter than half a block are cut, a level shift is followed.
    calm = np.clip(z, around - _CLIP * size, around + _CLIP * size)

    reach = max(1, min(h, n_points // 3))
    leads = np.unique(np.geomspace(1, reach, _LEADS).round().astype(np.intp))
    first = min(window, n_points // 3)
    moments = np.unique(np.linspace(first, n_points - 1 - reach, _MOMENTS).astype(np.intp))
    if n_points < 4:
        moments = moments[:0]
    base, bands, widths = _bands(calm, np.append(moments, n_points - 1), window)
    past, now = bands[:, :-1], bands[:, -1]

    at = moments[:, None] + leads
    target = calm[:, at] - base[:, :-1, None]
    weight = _persistence(past, target, leads, widths, n_points)
    level = base[:, -1:] + np.einsum("sj,slj->sl", now, weight)
    errors = z[:, at] - base[:, :-1, None] - np.matmul(past, weight.transpose(0, 2, 1))

    usual, usual_ahead = _usual_by_slot(np.minimum(noise, _CLIP * size), day, h)
    errors /= usual[:, at]
    by_lead = _size(errors.transpose(0, 2, 1))
    shape = tail_quantiles((errors / by_lead[:, None, :]).reshape(len(z), -1), quantiles)
    between = _between(leads, h)
    scale = (by_lead @ between) * usual_ahead
    return level @ between, np.nan_to_num(shape)[:, None, :] * scale[:, :, None]


def _quantile_of_sample(x: Floats, q: float) -> Floats:
    """Quantile `q` of about 256 values of each row, spread evenly: float64[S, 1], 0 for an empty row."""
    ordered = np.sort(x[:, :: max(1, x.shape[1] // 256)], axis=1)
    count = ordered.shape[1] - np.isnan(ordered).sum(axis=1, keepdims=True)
    return np.nan_to_num(np.take_along_axis(ordered, (q * np.maximum(0, count - 1)).astype(np.intp), axis=1))


def _bands(x: Floats, moments: Ints, window: int) -> tuple[Floats, Floats, Floats]:
    """The past of each moment as the mean of all before (float64[S, M]) and bands on top of it (float64[S, M, J]).

    Band j is the mean of the last `widths[j]` points less that of the next longer window; an empty window is taken for
    the next longer one, so that its band is 0.
    """
    widths = [4**i for i in range(12) if 4**i < window] + [window]
    stop = moments + 1
    starts = [np.maximum(0, stop - width) for width in widths] + [np.zeros_like(stop)]
    means = window_mean(x, np.concatenate(starts), np.tile(stop, len(starts))).reshape(len(x), len(starts), -1)
    for j in range(len(widths) - 1, -1, -1):
        gap = np.isnan(means[:, j])
        if gap.any():
            means[:, j][gap] = means[:, j + 1][gap]
    bands = np.ascontiguousarray((means[:, :-1] - means[:, 1:]).transpose(0, 2, 1))
    return np.nan_to_num(means[:, -1]), np.nan_to_num(bands), np.array(widths, dtype=np.float64)


def _persistence(past: Floats, target: Floats, leads: Ints, widths: Floats, n_points: int) -> Floats:
    """How much of each band is left after each lead: float64[S, L, J]."""
    until = np.append(widths[1:], n_points)
    prior = 1.0 / (1.0 + leads[:, None] / until)
    if not past.shape[1]:
        return np.broadcast_to(prior, (len(past), *prior.shape))
    valid = np.isfinite(target)
    count = np.maximum(1, valid.sum(axis=1))
    gram = np.matmul(past.transpose(0, 2, 1), past) / past.shape[1]
    cross = np.matmul(np.where(valid, target, 0.0).transpose(0, 2, 1), past) / count[:, :, None]
    energy = np.einsum("sjj->sj", gram)
    # A window of w points gives only about T / (w + lead) independent looks at its band.
    ridge = _RIDGE * (until + leads[:, None]) / n_points * energy[:, None, :]
    ridge += np.where(energy > 0, 1e-9 * energy.max(axis=1, keepdims=True), 1.0)[:, None, :]
    matrix = gram[:, None] + ridge[..., None] * np.eye(len(widths))
    return np.linalg.solve(matrix, (cross + ridge * prior)[..., None])[..., 0]


def _usual_by_slot(noise: Floats, day: Cycles | None, h: int) -> tuple[Floats, Floats]:
    """How noisy each column and each point ahead usually is by its part of the day, 1 on average."""
    if day is None:
        return np.ones_like(noise), np.ones((len(noise), h))
    cycles, slots = day.columns.shape
    parts = min(_BANDS_A_DAY, slots)
    part, part_ahead = day.slot * parts // slots, day.ahead * parts // slots
    member = np.zeros((noise.shape[1], parts))
    member[np.arange(noise.shape[1]), part] = 1.0
    valid = ~np.isnan(noise)
    total = np.where(valid, noise, 0.0) @ member
    count = valid.astype(np.float64) @ member
    mean = total.sum(axis=1, keepdims=True) / np.maximum(1.0, count.sum(axis=1, keepdims=True))
    extra = count.mean(axis=1, keepdims=True) / max(1, cycles) * 2
    usual = (total + extra * mean) / np.maximum(1e-9, count + extra)
    usual = np.where(mean > 0, np.maximum(0.2, usual / np.where(mean > 0, mean, 1.0)), 1.0)
    return usual[:, part], usual[:, part_ahead]


def _size(errors: Floats) -> Floats:
    """Typical size along the last axis: the median of absolute values, their mean where that is 0, 1 without any."""
    absolute = np.abs(errors)
    if not absolute.shape[-1]:
        return np.ones(errors.shape[:-1])
    size = np.nan_to_num(nan_median(absolute))
    valid = ~np.isnan(absolute)
    mean = np.where(valid, absolute, 0.0).sum(axis=-1) / np.maximum(1, valid.sum(axis=-1))
    size = np.where(size > 0, size, mean)
    return np.where(size > 0, size, 1.0)


def _between(leads: Ints, h: int) -> Floats:
    """Weights that turn values at `leads` into values at 1 … h, linear in the logarithm of the lead: float64[L, h]."""
    unit = np.eye(len(leads))
    return np.array([np.interp(np.log(np.arange(1, h + 1)), np.log(leads), row) for row in unit])
