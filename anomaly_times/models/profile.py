"""`profile`: what is usual at this hour, day and week, corrected by how the recent past differs from it.

Per series, in this order, everything over blocks of rows at once:

1. Seasons: for hour, day and week (or the periods given) the interquartile mean of each slot over the cycles, after
   the moving level is taken off; kept where it explains cycles that it was not made from, and shrunk by how well. Then
   the same for a period that stands out of the spectrum of what is left.
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
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from anomaly_times.models.season import (
    DAY,
    Cycles,
    Windows,
    believed,
    block_medians,
    blocks_of_rows,
    candidate_periods,
    fit_season,
    level_around,
    middle_mean,
    nan_median,
    odd_seasons,
    rows_by_length,
)
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Panel, Quantiles

__all__ = ["INSTEAD", "Profile", "between_leads", "typical_size"]

INSTEAD = "profile instead of"
"""How the note of a row begins which another model could not forecast."""

_LEADS = 7
_MOMENTS, _FEWEST_MOMENTS, _MOMENTS_A_DAY = 64, 32, 14
_RIDGE = 20.0
_BANDS_A_DAY = 12
_DAYS_ALIKE = 3.0
_CLIP = 4.0
_ECHO_RIDGE = 10.0
_BLOCKS = 16
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
        z, center, scale = _standardised(y)
        ahead = np.zeros((len(y), h))
        spread = np.ones((len(y), 1))
        for cycle in cycles:
            season = fit_season(z, cycle, part.grid.step)
            follows = season.n >= 2 if self.season is not None else believed(season)
            if follows.any():
                profile = np.where(follows[:, None], season.profile, 0.0)
                z -= profile[:, cycle.slot]
                ahead += profile[:, cycle.ahead]
                # A profile made of n cycles fits these n better than the next one: by (n − 1) / (n + 1) in variance.
                factor = np.sqrt((season.n + 1) / np.maximum(1.0, season.n - 1))
                spread = np.where(follows[:, None], np.maximum(spread, factor[:, None]), spread)
        if self.season is None:
            for rows, season in odd_seasons(z, part.grid, h, [cycle.period for cycle in cycles]):
                z[rows] -= season.profile[:, season.cycles.slot]
                ahead[rows] += season.profile[:, season.cycles.ahead]
        day = next((c for c in cycles if c.period == DAY), None)
        window = max(2, min(round(DAY / part.grid.step), part.grid.n // 2))
        lags = [round(c.period / part.grid.step) for c in cycles if c.period >= DAY]
        level, unit, shape = _rest(z, window, h, lags, day, quantiles)
        out = np.empty((*ahead.shape, len(quantiles)))
        with np.errstate(over="ignore"):
            ahead += level
            ahead *= scale
            ahead += center
            unit *= spread * scale
            for q in range(len(quantiles)):
                np.add(ahead, unit * shape[:, q : q + 1], out=out[:, :, q])
        limit = np.finfo(np.float64).max
        return np.clip(out, -limit, limit, out=out)


def _standardised(y: Floats) -> tuple[Floats, Floats, Floats]:
    """`y` less a typical value of each row, by the largest distance from it: squares neither overflow nor vanish.

    Then that value and that distance, float64[S, 1] each.
    """
    center = nan_median(y[:, :: max(1, y.shape[1] // 63)])
    center = np.where(np.isnan(center), np.fmax.reduce(y, axis=1), center)[:, None]
    z = y - center
    reach = np.fmax(np.fmax.reduce(z, axis=1), -np.fmin.reduce(z, axis=1))[:, None]
    scale = np.where(reach > 0, reach, 1.0)
    z /= scale
    return z, center, scale


def _rest(
    z: Floats, window: int, h: int, lags: Sequence[int], day: Cycles | None, quantiles: Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    """Forecast of what the seasons left, a unit for its errors (float64[S, h] each), and their quantiles in that unit.

    The quantiles are float64[S, Q].
    """
    n_points = z.shape[1]
    width = min(n_points, max(3, window // 24))
    medians, size = block_medians(z, width)
    around = level_around(medians, size, 3 * width, n_points)
    noise = z - around
    limit = _CLIP * _order_statistics(np.abs(_sample(noise)), 0.75)[0]
    np.minimum(noise, limit, out=noise)
    np.maximum(noise, -limit, out=noise)
    # Short spikes are cut, a level shift is followed.
    calm = np.add(around, noise, out=around)

    plan = _plan(n_points, medians.shape[1], size, window, h)
    leads, moments, at, between = plan.leads, plan.moments, plan.at, plan.between
    base, bands = _bands(calm, medians, plan)
    past, now = bands[:, :, :-1], bands[:, :, -1:]

    known = calm[:, at]
    weight = _persistence(past, known - base[:, None, :-1], plan, n_points)
    expected = np.matmul(weight, past)
    expected += base[:, None, :-1]
    ahead = (base[:, -1:] + np.matmul(weight, now)[:, :, 0]) @ between
    mean = base + bands[:, -1]
    for lag in lags:
        echo, echo_ahead = _echo(calm, moments, leads, lag, h, mean)
        strength = _regress(known - expected, echo, lag, n_points)
        expected += strength[:, :, None] * echo
        ahead += (strength @ between) * echo_ahead
    errors = z[:, at] - expected

    usual, usual_ahead = _usual_by_slot(np.abs(noise, out=noise), day, at, h)
    errors /= usual
    by_lead = typical_size(errors)
    errors /= by_lead[:, :, None]
    shape = tail_quantiles(errors.reshape(len(z), -1), quantiles)
    return ahead, (by_lead @ between) * usual_ahead, np.where(np.isnan(shape), 0.0, shape)


def _sample(x: Floats) -> Floats:
    """About 128 columns of `x`, spread evenly."""
    return x[:, :: max(1, x.shape[1] // 128)]


def _order_statistics(x: Floats, *shares: float) -> list[Floats]:
    """Quantiles of each row, rounded to an order statistic: float64[S, 1] each, 0 for an empty row."""
    ordered = np.sort(x, axis=1)
    last = ordered.shape[1] - 1 - np.isnan(ordered).sum(axis=1, keepdims=True)
    rows = np.arange(len(x))[:, None]
    found = ordered[rows, (np.array(shares) * np.maximum(0, last)).astype(np.intp)]
    return list(np.where(np.isnan(found), 0.0, found).T[:, :, None])


@dataclass(frozen=True)
class _Plan:
    """What depends on lengths only: the past moments, the leads, and where the windows of each moment lie.

    `at[l, m]` is the column `leads[l]` after `moments[m]`. The windows of `short` end at the moments and at the last
    column, one width after the other; those of `all_before` and the rows of `recent` hold blocks of columns, −1 where
    there is none.
    """

    leads: Ints
    moments: Ints
    at: Ints
    between: Floats
    widths: Floats
    short: Windows
    all_before: Windows
    recent: Ints


@lru_cache(maxsize=64)
def _plan(n_points: int, n_blocks: int, size: int, window: int, h: int) -> _Plan:
    reach = max(1, min(h, n_points // 3))
    leads = np.unique(np.geomspace(1, reach, _LEADS).round().astype(np.intp))
    first = min(window, n_points // 3)
    last = n_points - 1 - reach
    # Moments close together tell the same thing twice.
    n_moments = int(np.clip(_MOMENTS_A_DAY * (last - first) / window, _FEWEST_MOMENTS, _MOMENTS))
    moments = np.unique(np.linspace(first, last, n_moments).astype(np.intp))
    if n_points < 4:
        moments = moments[:0]
    stop = np.append(moments, n_points - 1) + 1
    widths = [4**i for i in range(12) if i == 0 or 4**i < window // 2]
    # Only blocks that are complete at the moment; before the first one is, that one.
    until = np.maximum(1, (stop - (n_points - n_blocks * size)) // size)
    blocks_a_window = max(1, round(window / size))
    return _Plan(
        leads=leads,
        moments=moments,
        at=leads[:, None] + moments,
        between=between_leads(leads, h),
        widths=np.array([*widths, window], dtype=np.float64),
        short=Windows.of(np.concatenate([np.maximum(0, stop - w) for w in widths]), np.tile(stop, len(widths))),
        all_before=Windows.of(np.zeros_like(until), until),
        recent=np.maximum(-1, until[:, None] - 1 - np.arange(0, blocks_a_window, max(1, blocks_a_window // _BLOCKS))),
    )


def _bands(x: Floats, blocks: Floats, plan: _Plan) -> tuple[Floats, Floats]:
    """The past of each moment as the mean of all before (float64[S, M]) and bands on top of it (float64[S, J, M]).

    Band j is the mean of the last `widths[j]` points less that of the next longer window; an empty window is taken for
    the next longer one, so that its band is 0. The longest window is a median, and the mean of all before is one of
    values cut at their 10 % and 90 % quantiles, so that an incident of some hours leaves no trace in them; both are
    made of `blocks`, medians.
    """
    levels = np.empty((len(x), len(plan.widths) + 1, len(plan.moments) + 1))
    levels[:, :-2] = plan.short.mean(x).reshape(len(x), -1, levels.shape[2])
    recent = blocks[:, plan.recent]
    recent[:, plan.recent < 0] = np.nan
    levels[:, -2] = nan_median(recent)
    low, high = _order_statistics(_sample(blocks), 0.1, 0.9)
    levels[:, -1] = plan.all_before.mean(np.clip(blocks, low, high))
    if np.isnan(levels).any():
        for j in range(levels.shape[1] - 2, -1, -1):
            levels[:, j] = np.where(np.isnan(levels[:, j]), levels[:, j + 1], levels[:, j])
        levels = np.nan_to_num(levels)
    return levels[:, -1], levels[:, :-1] - levels[:, 1:]


def _persistence(past: Floats, target: Floats, plan: _Plan, n_points: int) -> Floats:
    """How much of each band (`past`, float64[S, J, M]) is left in `target` after each lead: float64[S, L, J]."""
    until, leads = np.append(plan.widths[1:], n_points), plan.leads
    prior = 1.0 / (1.0 + leads[:, None] / until)
    if not past.shape[2]:
        return np.broadcast_to(prior, (len(past), *prior.shape))
    # One step of Huber's regression from the prior: the beginning of an incident has no more say than any moment.
    surprise = target - np.matmul(prior, past)
    limit = _CLIP * nan_median(np.abs(surprise))[:, :, None]
    np.minimum(surprise, limit, out=surprise)
    np.maximum(surprise, -limit, out=surprise)
    count: int | Floats = past.shape[2]
    valid = np.isfinite(surprise)
    if not valid.all():
        surprise = np.where(valid, surprise, 0.0)
        count = np.maximum(1.0, valid.sum(axis=2, keepdims=True))
    moments_first = past.transpose(0, 2, 1)
    gram = np.matmul(past, moments_first) / past.shape[2]
    cross = np.matmul(surprise, moments_first) / count
    energy = np.einsum("sjj->sj", gram)
    # A window of w points gives only about T / (w + lead) independent looks at its band.
    ridge = _RIDGE * (until + leads[:, None]) / n_points * energy[:, None, :]
    ridge += np.where(energy > 0, 1e-9 * energy.max(axis=1, keepdims=True), 1.0)[:, None, :]
    matrix = gram[:, None] + ridge[..., None] * np.eye(len(until))
    # A band that grows or turns over by rule is more often a single event in the past.
    return np.asarray(np.clip(prior + np.linalg.solve(matrix, cross[..., None])[..., 0], 0.0, 1.0))


def _echo(x: Floats, moments: Ints, leads: Ints, lag: int, h: int, mean: Floats) -> tuple[Floats, Floats]:
    """How the newest cycle known at each moment differed from the level then: float64[S, L, M], and float64[S, h]."""
    at = moments + (leads - lag * -(-leads // lag))[:, None]
    k = np.arange(1, h + 1)
    now = x.shape[1] - 1 + k - lag * -(-k // lag)
    past, ahead = x[:, np.maximum(0, at)], x[:, np.maximum(0, now)]
    past -= mean[:, None, :-1]
    ahead -= mean[:, -1:]
    past[:, at < 0], ahead[:, now < 0] = 0.0, 0.0
    past[np.isnan(past)], ahead[np.isnan(ahead)] = 0.0, 0.0
    # An incident has no echo.
    limit = _CLIP * _order_statistics(np.abs(past).reshape(len(x), -1)[:, ::7], 0.75)[0]
    np.clip(past, -limit[:, :, None], limit[:, :, None], out=past)
    np.clip(ahead, -limit, limit, out=ahead)
    return past, ahead


def _regress(target: Floats, echo: Floats, lag: int, n_points: int) -> Floats:
    """How much of an echo comes back, by lead: float64[S, L], from 0 to 1."""
    known = np.isfinite(target)
    if not known.all():
        target, echo = np.where(known, target, 0.0), np.where(known, echo, 0.0)
    energy, shared = np.vecdot(echo, echo), np.vecdot(echo, target)
    # All leads tell of the same thing, so each is drawn towards what they say together.
    ridge = _ECHO_RIDGE * lag / n_points * energy.mean(axis=1, keepdims=True)
    pooled = shared.sum(axis=1, keepdims=True) / np.maximum(
        _TINY, energy.sum(axis=1, keepdims=True) * (1 + _ECHO_RIDGE * lag / n_points)
    )
    return np.asarray(np.clip((shared + ridge * pooled) / np.maximum(_TINY, energy + ridge), 0.0, 1.0))


def _usual_by_slot(noise: Floats, day: Cycles | None, at: Ints, h: int) -> tuple[Floats, Floats]:
    """How noisy the columns `at` and the points ahead usually are by their part of the day, 1 on average.

    The middle of the days decides, so that the noise of an incident does not stay with its hour.
    """
    if day is None:
        return np.ones((len(noise), *at.shape)), np.ones((len(noise), h))
    cycles, slots = day.columns.shape
    parts = min(_BANDS_A_DAY, slots)
    first = -(-np.arange(parts) * slots // parts)
    folded = day.fold(noise, blank=0.0).reshape(len(noise), -1)
    edges = (np.arange(cycles)[:, None] * slots + first).ravel()
    total = np.add.reduceat(folded, edges, axis=1).reshape(-1, cycles, parts)
    size: Floats = np.diff(first, append=slots).astype(np.float64)
    if np.isnan(total).any():
        there = ~np.isnan(folded)
        total = np.add.reduceat(np.where(there, folded, 0.0), edges, axis=1).reshape(-1, cycles, parts)
        known = np.add.reduceat(there, edges, axis=1, dtype=np.float64).reshape(-1, cycles, parts)
        total[known < size / 2] = np.nan
        size = np.maximum(1.0, known)
    total[:, 0, first < day.lacking] = np.nan
    usual, days = middle_mean(total / size)
    # Parts of which no day tells enough are as noisy as the others.
    told = days > 0
    usual = np.where(told, usual, 0.0)
    mean = usual.sum(axis=1, keepdims=True) / np.maximum(1, told.sum(axis=1, keepdims=True))
    usual = (usual * days + _DAYS_ALIKE * mean) / (days + _DAYS_ALIKE)
    usual = np.where(mean > 0, np.maximum(0.2, usual / np.where(mean > 0, mean, 1.0)), 1.0)
    return usual[:, day.slot[at] * parts // slots], usual[:, day.ahead * parts // slots]


def typical_size(errors: Floats) -> Floats:
    """Typical size along the last axis: the median of absolute values, their mean where that is 0, 1 without any."""
    absolute = np.abs(errors)
    if not absolute.shape[-1]:
        return np.ones(errors.shape[:-1])
    size = nan_median(absolute)
    doubtful = ~(size > 0)
    if doubtful.any():
        some = absolute[doubtful]
        there = ~np.isnan(some)
        mean = np.where(there, some, 0.0).sum(axis=-1) / np.maximum(1, there.sum(axis=-1))
        size[doubtful] = np.where(mean > 0, mean, 1.0)
    return size


def between_leads(leads: Ints, h: int) -> Floats:
    """Weights that turn values at `leads` into values at 1 … h, linear in the logarithm of the lead: float64[L, h]."""
    unit = np.eye(len(leads))
    return np.array([np.interp(np.log(np.arange(1, h + 1)), np.log(leads), row) for row in unit])
