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
    block_medians,
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

_LEADS = 7
_MOMENTS = 64
_RIDGE = 20.0
_BANDS_A_DAY = 12
_CLIP = 4.0
_ECHO_RIDGE = 10.0
_TINY = float(np.finfo(np.float64).tiny)
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
        for cycle in cycles:
            season = fit_season(z, cycle, part.grid.step)
            follows = np.nan_to_num(season.n) >= 2 if self.season is not None else believed(season)
            if follows.any():
                profile = np.where(follows[:, None], season.profile, 0.0)
                z = z - profile.take(cycle.slot, axis=1)
                ahead += profile.take(cycle.ahead, axis=1)
                # A profile made of n cycles fits these n better than the next one: by (n − 1) / (n + 1) in variance.
                factor = np.sqrt((season.n + 1) / np.maximum(1.0, season.n - 1))
                spread = np.where(follows[:, None], np.maximum(spread, factor[:, None]), spread)
        day = next((c for c in cycles if c.period == DAY), None)
        window = max(2, min(round(DAY / part.grid.step), part.grid.n // 2))
        lags = [round(c.period / part.grid.step) for c in cycles if c.period >= DAY]
        level, errors = _rest(z, window, h, lags, day, quantiles)
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


def _rest(
    z: Floats, window: int, h: int, lags: Sequence[int], day: Cycles | None, quantiles: Sequence[float]
) -> tuple[Floats, Floats]:
    """Forecast of what the seasons left, float64[S, h], and quantiles of its errors, float64[S, h, Q]."""
    n_points = z.shape[1]
    width = min(n_points, max(3, window // 24))
    around = moving_level(z, 3 * width, width)
    noise = z - around
    limit = _CLIP * _quantile(np.abs(_sample(noise)), 0.75)
    np.clip(noise, -limit, limit, out=noise)
    # Short spikes are cut, a level shift is followed.
    calm = around + noise

    reach = max(1, min(h, n_points // 3))
    leads = np.unique(np.geomspace(1, reach, _LEADS).round().astype(np.intp))
    first = min(window, n_points // 3)
    moments = np.unique(np.linspace(first, n_points - 1 - reach, _MOMENTS).astype(np.intp))
    if n_points < 4:
        moments = moments[:0]
    base, bands, widths = _bands(calm, np.append(moments, n_points - 1), window, width)
    past, now = bands[:, :-1], bands[:, -1]

    at = moments[:, None] + leads
    target = calm.take(at, axis=1) - base[:, :-1, None]
    weight = _persistence(past, target, leads, widths, n_points)
    between = _between(leads, h)
    expected = base[:, :-1, None] + np.matmul(past, weight.transpose(0, 2, 1))
    ahead = (base[:, -1:] + np.einsum("sj,slj->sl", now, weight)) @ between
    mean = base + bands[:, :, -1]
    for lag in lags:
        echo, echo_ahead = _echo(calm, moments, leads, lag, h, mean)
        strength = _regress(calm.take(at, axis=1) - expected, echo, lag, n_points)
        expected += strength[:, None, :] * echo
        ahead += (strength @ between) * echo_ahead
    errors = z.take(at, axis=1) - expected

    usual, usual_ahead = _usual_by_slot(np.abs(noise, out=noise), day, at, h)
    errors /= usual
    by_lead = _size(errors.transpose(0, 2, 1))
    shape = tail_quantiles((errors / by_lead[:, None, :]).reshape(len(z), -1), quantiles)
    scale = (by_lead @ between) * usual_ahead
    return ahead, np.nan_to_num(shape)[:, None, :] * scale[:, :, None]


def _sample(x: Floats) -> Floats:
    """About 256 columns of `x`, spread evenly."""
    return x[:, :: max(1, x.shape[1] // 256)]


def _quantile(x: Floats, q: float) -> Floats:
    """Quantile `q` of each row, rounded to an order statistic: float64[S, 1], 0 for an empty row."""
    ordered = np.sort(x, axis=1)
    count = ordered.shape[1] - np.isnan(ordered).sum(axis=1, keepdims=True)
    return np.nan_to_num(np.take_along_axis(ordered, (q * np.maximum(0, count - 1)).astype(np.intp), axis=1))


def _bands(x: Floats, moments: Ints, window: int, width: int) -> tuple[Floats, Floats, Floats]:
    """The past of each moment as the mean of all before (float64[S, M]) and bands on top of it (float64[S, M, J]).

    Band j is the mean of the last `widths[j]` points less that of the next longer window; an empty window is taken for
    the next longer one, so that its band is 0. The longest window is a median, and the mean of all before is one of
    values cut at their 10 % and 90 % quantiles, so that an incident of some hours leaves no trace in them.
    """
    widths = [4**i for i in range(12) if i == 0 or 4**i < window // 2]
    stop = moments + 1
    means = window_mean(x, np.concatenate([np.maximum(0, stop - w) for w in widths]), np.tile(stop, len(widths)))
    short = means.reshape(len(x), len(widths), -1)

    blocks, size = block_medians(x, width)
    # Only blocks that are complete at the moment; before the first one is, that one.
    until = np.maximum(1, (stop - (x.shape[1] - blocks.shape[1] * size)) // size)
    low, high = (_quantile(_sample(blocks), q) for q in (0.1, 0.9))
    all_before = window_mean(np.clip(blocks, low, high), np.zeros_like(until), until)
    reach = max(1, round(window / size))
    back = until[:, None] - 1 - np.arange(reach)
    recent = np.where(back >= 0, blocks.take(np.maximum(0, back), axis=1), np.nan)
    levels = np.concatenate([short, nan_median(recent)[:, None], all_before[:, None]], axis=1)

    if np.isnan(levels).any():
        for j in range(levels.shape[1] - 2, -1, -1):
            levels[:, j] = np.where(np.isnan(levels[:, j]), levels[:, j + 1], levels[:, j])
    bands = np.ascontiguousarray((levels[:, :-1] - levels[:, 1:]).transpose(0, 2, 1))
    return np.nan_to_num(levels[:, -1]), np.nan_to_num(bands), np.array([*widths, window], dtype=np.float64)


def _persistence(past: Floats, target: Floats, leads: Ints, widths: Floats, n_points: int) -> Floats:
    """How much of each band is left after each lead: float64[S, L, J]."""
    until = np.append(widths[1:], n_points)
    prior = 1.0 / (1.0 + leads[:, None] / until)
    if not past.shape[1]:
        return np.broadcast_to(prior, (len(past), *prior.shape))
    # One step of Huber's regression from the prior: the beginning of an incident has no more say than any moment.
    surprise = target - np.matmul(past, prior.T)
    limit = _CLIP * nan_median(np.abs(surprise).transpose(0, 2, 1))[:, None, :]
    surprise = np.clip(surprise, -limit, limit)
    valid = np.isfinite(surprise)
    count = np.maximum(1, valid.sum(axis=1))
    gram = np.matmul(past.transpose(0, 2, 1), past) / past.shape[1]
    cross = np.matmul(np.where(valid, surprise, 0.0).transpose(0, 2, 1), past) / count[:, :, None]
    energy = np.einsum("sjj->sj", gram)
    # A window of w points gives only about T / (w + lead) independent looks at its band.
    ridge = _RIDGE * (until + leads[:, None]) / n_points * energy[:, None, :]
    ridge += np.where(energy > 0, 1e-9 * energy.max(axis=1, keepdims=True), 1.0)[:, None, :]
    matrix = gram[:, None] + ridge[..., None] * np.eye(len(widths))
    # A band that grows or turns over by rule is more often a single event in the past.
    return np.asarray(np.clip(prior + np.linalg.solve(matrix, cross[..., None])[..., 0], 0.0, 1.0))


def _echo(x: Floats, moments: Ints, leads: Ints, lag: int, h: int, mean: Floats) -> tuple[Floats, Floats]:
    """How the newest cycle known at each moment differed from the level then: float64[S, M, L], and float64[S, h]."""
    at = moments[:, None] + leads - lag * -(-leads // lag)
    past = np.where(at >= 0, x.take(np.maximum(0, at), axis=1) - mean[:, :-1, None], 0.0)
    k = np.arange(1, h + 1)
    now = x.shape[1] - 1 + k - lag * -(-k // lag)
    ahead = np.where(now >= 0, x.take(np.maximum(0, now), axis=1) - mean[:, -1:], 0.0)
    return np.nan_to_num(past), np.nan_to_num(ahead)


def _regress(target: Floats, echo: Floats, lag: int, n_points: int) -> Floats:
    """How much of an echo comes back, by lead: float64[S, L], from 0 to 1."""
    known = np.isfinite(target)
    energy = np.where(known, echo * echo, 0.0).sum(axis=1)
    shared = np.where(known, echo * target, 0.0).sum(axis=1)
    # All leads tell of the same thing, so each is drawn towards what they say together.
    ridge = _ECHO_RIDGE * lag / n_points * energy.mean(axis=1, keepdims=True)
    pooled = shared.sum(axis=1, keepdims=True) / np.maximum(
        _TINY, energy.sum(axis=1, keepdims=True) * (1 + _ECHO_RIDGE * lag / n_points)
    )
    return np.asarray(np.clip((shared + ridge * pooled) / np.maximum(_TINY, energy + ridge), 0.0, 1.0))


def _usual_by_slot(noise: Floats, day: Cycles | None, at: Ints, h: int) -> tuple[Floats, Floats]:
    """How noisy the columns `at` and the points ahead usually are by their part of the day, 1 on average."""
    if day is None:
        return np.ones((len(noise), *at.shape)), np.ones((len(noise), h))
    cycles, slots = day.columns.shape
    parts = min(_BANDS_A_DAY, slots)
    folded = day.fold(noise)
    valid = ~np.isnan(folded)
    first = -(-np.arange(parts) * slots // parts)
    count = np.add.reduceat(valid.sum(axis=1), first, axis=1)
    total = np.add.reduceat(np.where(valid, folded, 0.0).sum(axis=1), first, axis=1)
    mean = total.sum(axis=1, keepdims=True) / np.maximum(1.0, count.sum(axis=1, keepdims=True))
    extra = count.mean(axis=1, keepdims=True) / max(1, cycles) * 2
    usual = (total + extra * mean) / np.maximum(1e-9, count + extra)
    usual = np.where(mean > 0, np.maximum(0.2, usual / np.where(mean > 0, mean, 1.0)), 1.0)
    return usual.take(day.slot[at] * parts // slots, axis=1), usual.take(day.ahead * parts // slots, axis=1)


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
