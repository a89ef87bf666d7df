"""Limits that hold evidence to an alert budget: made in a forecast pass, of past errors and of the history.

Limits are quantiles: what normal data exceeds in an hour as often as the budget allows. Of the averages they come from
hourly maxima, over past forecasts put end to end and over the history; of points from a generalised Pareto tail (peaks
over threshold; Siffer, Fouque, Termier & Largouet, KDD 2017) of how values stray from the median of their neighbours,
because past errors are too few to tell how heavy tails are, and a history is long. Every limit is as much wider as it
is badly known, so that normal data keeps the budget on average over what the history leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from math import ceil
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from anomaly_times.errors import UsageError
from anomaly_times.evidence import CHANNELS, decay, root, rough
from anomaly_times.models.season import blocks_of_rows, nan_median, sorted_planes
from anomaly_times.models.tails import pareto, student_to_normal
from anomaly_times.panel import Floats, Forecast, Limits

__all__ = ["BAND", "REACH", "FittedLimits", "fit_limits", "floored", "widened"]

BAND = 80.0
"""The level of the band that limits are made for; `widened` makes the final one of it."""

REACH = timedelta(hours=12)
"""How far past forecasts should go at least: how evidence gathers over hours cannot be seen in less."""

_WEEK, _DAY = timedelta(weeks=1), timedelta(days=1)
_HOURS_A_WEEK = 168
# How much of the budget each channel may spend. More than the whole, for channels overlap, and limits that are badly
# known are rather too wide.
_POINT_SHARE, _SUSTAINED_SHARE, _ROUGHNESS_SHARE, _DRIFT_SHARE = 0.5, 0.5, 0.4, 0.5
# A history tells how rare something is up to ten times its own length.
_FURTHEST = 10.0
_OUTSIDE = 1 - BAND / 100
# The tail: where it begins, how few values it may have, and how many values its usual shape is worth.
_TAIL, _FEWEST_IN_TAIL, _SHAPE_WEIGHT = 0.02, 8, 30.0
_MOST_DOUBT = 6.0
_FEWEST_FREEDOM, _ENOUGH = 8.0, 32
# Past forecasts are few: each order of them makes other hours.
_MOST_ORDERS, _SEED = 4, 20170612
_STRETCH, _FEWEST_HOURS = 64, 12
# Hourly maxima further above their median than so many times their upper quartile are incidents.
_INCIDENT, _MOST_SKEW = 6.0, 2.5
_KEPT_HOURS = 3.0
_FLAT_LONGEST, _FLAT_STEPS = 3, 6

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FittedLimits(Limits):
    """The limits of S series for a budget, with n = 1.

    `width` (float64[S]) is by how much the 80 % band is to be widened, and `capped` (bool[S]) says where the budget
    asked for more than the history can tell.
    """

    width: Floats
    capped: Bools


def floored(forecast: Forecast, least: Floats) -> Forecast:
    """The forecast with half-widths of at least `least` (float64[S]), the smallest move of each series, say."""
    limit = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        lower = np.minimum(forecast.lower, forecast.yhat - least[:, None])
        upper = np.maximum(forecast.upper, forecast.yhat + least[:, None])
    return replace(forecast, lower=np.maximum(lower, -limit), upper=np.minimum(upper, limit))


def widened(forecast: Forecast, limits: FittedLimits) -> Forecast:
    """The 80 % band made as wide as the budget asks."""
    width = limits.width[:, None]
    with np.errstate(over="ignore"):
        lower = forecast.yhat - width * (forecast.yhat - forecast.lower)
        upper = forecast.yhat + width * (forecast.upper - forecast.yhat)
    limit = np.finfo(np.float64).max
    return replace(forecast, lower=np.clip(lower, -limit, limit), upper=np.clip(upper, -limit, limit))


def fit_limits(
    history: Floats, ratios: Floats, freedom: Floats, *, step: timedelta, alerts_per_week: float = 0.5
) -> FittedLimits:
    """Limits that normal data exceeds about `alerts_per_week` times a week and series, all channels together.

    Args:
        history: float64[S, N], NaN for gaps, without what no one should learn from.
        ratios: past errors over the half-width of the 80 % band, `floored` by the resolution: float64[S, cuts, h],
            NaN where unknown (`Calibrated.past_ratios`).
        freedom: how many independent errors they are worth, float64[S].
        step: between two points.
        alerts_per_week: the budget; points and episodes of one hour count alike.

    Returns:
        A channel whose past is too short for one has an infinite limit.

    Raises:
        UsageError: for a budget that is not positive and finite.
    """
    if not 0 < alerts_per_week < np.inf:
        raise UsageError(
            f"an alert budget must be a positive number, got {alerts_per_week}", hint="0.5 is one alert in two weeks"
        )
    n_series = len(history)
    weeks = np.isfinite(history).sum(axis=1) * (step / _WEEK)
    with np.errstate(divide="ignore"):
        least = 1 / (_FURTHEST * weeks)
    hourly = np.maximum(alerts_per_week, np.minimum(least, 1e6)) / _HOURS_A_WEEK
    freedom = np.maximum(_FEWEST_FREEDOM, freedom)
    per_hour = max(1, round(timedelta(hours=1) / step))

    usual = np.zeros((len(CHANNELS), n_series, 1))
    limit = np.full((len(CHANNELS), n_series, 1), np.inf)
    limit[0] = 1.0
    usual[1], usual[2] = 0.5, 1.0
    width, move = np.ones(n_series), np.ones((n_series, 1))
    share = np.minimum(_POINT_SHARE * hourly, 0.5) / per_hour
    for block in blocks_of_rows(n_series, history.shape[1]):
        width[block] = _width(history[block], ratios[block], share[block])
        move[block, 0], roughness = _roughness(history[block])
        few = np.full(len(roughness), max(_FEWEST_FREEDOM, roughness.shape[1] / per_hour / _KEPT_HOURS))
        hours = _hourly_maxima(_average(roughness, step), np.isfinite(roughness), per_hour)
        limit[2, block, 0] = _exceeded(hours, _ROUGHNESS_SHARE * hourly[block], few)
        limit[4, block, 0] = _longest_flat(history[block], step)
    width = np.maximum(1.0, width * _student(share / 2, freedom))

    n_errors = ratios[0].size if n_series else 0
    for block in blocks_of_rows(n_series, n_errors) if n_errors else ():
        with np.errstate(over="ignore", invalid="ignore"):
            drift = _put_end_to_end(root(ratios[block] / width[block, None, None]), per_hour)
        known = np.isfinite(drift)
        oddness = np.abs(drift)
        usual[1, block, 0] = _mean(oddness)
        cuts = np.isfinite(ratios[block]).any(axis=2).sum(axis=1)
        # How odd a forecast is on the whole differs from one to the next, so forecasts are what is counted.
        few = np.minimum(freedom[block], np.maximum(_FEWEST_FREEDOM, cuts))
        for channel, average, share_of, free in (
            (1, _average(oddness, step), _SUSTAINED_SHARE, few),
            (3, np.abs(_average(drift, step, around=0.0)), _DRIFT_SHARE, freedom[block]),
        ):
            hours = _hourly_maxima(average, known, per_hour)
            limit[channel, block, 0] = _exceeded(hours, share_of * hourly[block], free)
    enough = np.isfinite(ratios).sum(axis=(1, 2)) >= _ENOUGH
    limit[1::2, ~enough] = np.inf
    usual[1, ~enough] = 0.5
    limit = np.where(limit > usual, limit, np.inf)
    return FittedLimits(usual, limit, move, width, alerts_per_week < least)


def _put_end_to_end(segments: Floats, per_hour: int) -> Floats:
    """Segments (float64[S, cuts, h]) one after the other, in so many orders that they make a week: float64[S, T]."""
    random = np.random.default_rng(_SEED)
    orders = min(_MOST_ORDERS, ceil(_HOURS_A_WEEK * per_hour / (segments.shape[1] * segments.shape[2])))
    order = np.concatenate([random.permutation(segments.shape[1]) for _ in range(orders)])
    return segments[:, order].reshape(len(segments), len(order) * segments.shape[2])


def _mean(x: Floats) -> Floats:
    """The mean of each row less its gaps, 0 for an empty one: float64[S]."""
    known = np.isfinite(x)
    return np.asarray(np.where(known, x, 0.0).sum(axis=1) / np.maximum(1, known.sum(axis=1)))


def _average(x: Floats, step: timedelta, around: float | None = None) -> Floats:
    """The moving average of a past, float64[S, T]: it begins at its mean, or at `around`, and takes gaps for that.

    The recursion of `_averages` without its rounding, a stretch of points at once.
    """
    keep = decay(step)
    usual = _mean(x)[:, None] if around is None else np.full((len(x), 1), around)
    x = np.where(np.isfinite(x), x, usual)
    lag = np.arange(_STRETCH) - np.arange(_STRETCH)[:, None]
    weights = np.where(lag >= 0, (1 - keep) * keep ** np.maximum(lag, 0), 0.0)
    fading = keep ** np.arange(1, _STRETCH + 1)
    out, last = np.empty_like(x), usual
    for first in range(0, x.shape[1], _STRETCH):
        part = x[:, first : first + _STRETCH]
        n = part.shape[1]
        out[:, first : first + n] = part @ weights[:n, :n] + last * fading[:n]
        last = out[:, first + n - 1 : first + n]
    return out


def _roughness(history: Floats) -> tuple[Floats, Floats]:
    """The unit of roughness (float64[S]), and the roughness of each move (float64[S, N − 1])."""
    with np.errstate(over="ignore", invalid="ignore"):
        moves = np.abs(np.diff(history, axis=1))
    moves[~np.isfinite(moves)] = np.nan
    unit = _mean(np.sqrt(moves)) ** 2
    unit = np.where(unit > 0, unit, 1.0)
    return unit, rough(moves, unit[:, None])


def _hourly_maxima(average: Floats, known: Bools, per_hour: int) -> Floats:
    """The largest value of each hour (float64[S, hours]), NaN where less than half of the hour is known."""
    n_hours = average.shape[1] // per_hour
    shape = (len(average), n_hours, per_hour)
    there = known[:, : n_hours * per_hour].reshape(shape).sum(axis=2)
    return np.where(2 * there >= per_hour, average[:, : n_hours * per_hour].reshape(shape).max(axis=2), np.nan)


def _exceeded(hours: Floats, share: Floats, freedom: Floats) -> Floats:
    """What so small a share (float64[S]) of hourly maxima exceeds: float64[S].

    From their mean, standard deviation and skewness, as of a gamma distribution (Wilson & Hilferty, PNAS 17, 1931),
    where the normal quantile is replaced by Student's. Infinite where there are fewer than a dozen hours.
    """
    n_hours = np.isfinite(hours).sum(axis=1)
    enough = n_hours >= _FEWEST_HOURS
    if not enough.any():
        return np.full(len(hours), np.inf)
    rows = np.arange(len(hours))
    ordered = np.sort(hours, axis=1)
    last = hours.shape[1] - 1
    middle, upper = (ordered[rows, np.minimum(last, part * n_hours // 4)] for part in (2, 3))
    stray = np.minimum(hours, (middle + _INCIDENT * (upper - middle))[:, None])
    mean = _mean(stray)
    stray = stray - mean[:, None]
    deviation = np.sqrt(_mean(stray**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.nan_to_num(_mean(stray**3) / deviation**3)
    skew = np.clip(skew, 1e-3, _MOST_SKEW)
    share = np.minimum(share, 0.5)
    far = _normal(share) * _student(share, freedom)
    limit = mean + deviation * 2 / skew * ((1 + skew * far / 6 - skew**2 / 36) ** 3 - 1)
    return np.where(enough, limit, np.inf)


def _normal(share: Floats) -> Floats:
    """The normal quantile that `share` (float64[S], under one half) exceeds."""
    values, which = np.unique(share, return_inverse=True)
    quantile = NormalDist().inv_cdf
    return np.array([quantile(1 - max(1e-15, min(0.5, one))) for one in values.tolist()])[which]


def _student(share: Floats, freedom: Floats) -> Floats:
    """How many times as far as the normal quantile Student's lies that `share` exceeds: float64[S]."""
    out = np.ones(len(share))
    values, which = np.unique(share, return_inverse=True)
    for i, one in enumerate(values.tolist()):
        if one < 0.49:
            rows = which == i
            out[rows] = student_to_normal(1 - max(1e-15, one), freedom[rows])
    return out


def _width(history: Floats, ratios: Floats, share: Floats) -> Floats:
    """How many times as far as the 80 % band errors lie that are as rare as `share`: float64[S].

    The tail is that of what values stray from their neighbours by. Where errors have a heavier one, because what is odd
    lasts, it is as much wider as the eighth largest past error lies beyond what is as rare among values.
    """
    n_errors = np.isfinite(ratios).sum(axis=(1, 2))
    size = np.where(np.isfinite(ratios), np.abs(ratios), 0.0).reshape(len(ratios), -1)
    known = n_errors >= _ENOUGH
    tails = _tail_ratios(history, np.stack([share, _FEWEST_IN_TAIL / np.maximum(_ENOUGH, n_errors)], axis=1))
    if not known.any():
        return tails[:, 0]
    far = -np.partition(-size, _FEWEST_IN_TAIL, axis=1)[:, _FEWEST_IN_TAIL]
    return tails[:, 0] * np.where(known, np.maximum(1.0, far / np.maximum(1.0, tails[:, 1])), 1.0)


def _tail_ratios(history: Floats, shares: Floats) -> Floats:
    """How far out the values of each share lie (float64[S, K]), by how far two in ten stray from the median of five.

    Read off a generalised Pareto tail beyond the largest fiftieth, its shape from probability-weighted moments (Hosking
    & Wallis, Technometrics 29, 1987) drawn towards 0.2. The tail is followed further than a share says by half the
    variance of the logarithm of what lies beyond (from the information matrix of scale and shape), so that the share is
    the mean of what lies beyond.
    """
    if history.shape[1] < 5:
        return np.ones(shares.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        planes = [history[:, i : history.shape[1] - 4 + i] for i in range(5)]
        stray = np.abs(planes[2] - sorted_planes(planes)[2])
    known = np.isfinite(stray)
    count = known.sum(axis=1)
    size = np.sort(np.where(known, -stray, np.inf), axis=1)
    np.negative(size, out=size)
    rows = np.arange(len(size))
    near = size[rows, np.minimum((_OUTSIDE * count).astype(np.intp), stray.shape[1] - 1)]
    # A series that is mostly still: what it moves by when it moves.
    moving = nan_median(np.where(known & (stray > 0), stray, np.nan))
    near = np.where(near > 0, near, np.nan_to_num(moving))

    beyond = np.maximum(_FEWEST_IN_TAIL, np.rint(_TAIL * count)).astype(np.intp)
    most = min(int(beyond.max(initial=0)), stray.shape[1] - 1)
    beyond = np.minimum(beyond, most)
    rank = np.arange(most)
    threshold = np.maximum(size[rows, beyond], 0.0)
    unit = np.maximum(np.nan_to_num(size[:, 0], neginf=0.0), np.finfo(np.float64).tiny)
    inside = (rank < beyond[:, None]) & np.isfinite(size[:, :most])
    excess = np.where(inside, size[:, :most] - threshold[:, None], 0.0) / unit[:, None]
    n = np.maximum(1.0, beyond)
    scale, shape = pareto(excess, n, weight=_SHAPE_WEIGHT)
    drawn = n / (n + _SHAPE_WEIGHT)
    with np.errstate(divide="ignore", invalid="ignore"):
        n, drawn, shape, scale, near = n[:, None], drawn[:, None], shape[:, None], scale[:, None], near[:, None]
        depth = np.maximum(0.0, np.log(n / np.maximum(1, count)[:, None] / shares))
        further = depth
        for _ in range(2):
            by_scale = (1 - np.exp(-shape * further)) / shape
            by_shape = (further - by_scale) / shape * drawn
            variance = (1 + shape) / n * (2 * by_scale**2 + (1 + shape) * by_shape**2 - 2 * by_scale * by_shape)
            further = np.where(depth > 0, depth + np.minimum(variance, _MOST_DOUBT) / 2, 0.0)
        beyond_seen = threshold[:, None] / unit[:, None] + scale * (np.exp(shape * further) - 1) / shape
        at = np.minimum((shares * count[:, None]).astype(np.intp), stray.shape[1] - 1)
        seen = np.take_along_axis(size, at, axis=1) / unit[:, None]
        ratio = np.where(depth > 0, beyond_seen, seen) / (near / unit[:, None])
    return np.where((near > 0) & np.isfinite(ratio), ratio, 1.0)


def _longest_flat(history: Floats, step: timedelta) -> Floats:
    """From how many steps without a move on a series hangs (float64[S]): infinite where it never moved."""
    still = history[:, 1:] == history[:, :-1]
    there = np.isfinite(history[:, 1:]) & np.isfinite(history[:, :-1])
    at = np.arange(still.shape[1])
    run = at - np.maximum.accumulate(np.where(still, -1, at), axis=1)
    longest = run.max(axis=1, initial=0)
    least = max(_FLAT_STEPS, ceil(timedelta(hours=1) / step))
    moved = (there & ~still).any(axis=1)
    return np.where(moved, np.maximum(_FLAT_LONGEST * longest, least).astype(np.float64), np.inf)
