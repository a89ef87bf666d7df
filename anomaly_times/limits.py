"""Limits that hold evidence to an alert budget: made in a forecast pass, of past errors and of the history.

Limits are quantiles: what normal data exceeds in an hour as often as the budget allows.

Averages. Their hourly maxima, of past forecasts one after the other and of the history, are squared and taken for a
shifted gamma distribution of the same mean, variance and skewness. Forecasts come anew every hour, so errors of two
hours are less alike than those of one past forecast: the limit of drift lies half-way between hours as they were and
hours in random order.

Points. Past errors tell how large an error is, but are too few to tell how heavy tails are, and a history is long: the
tail is that of values (how they stray from the median of their neighbours, and how they move), by a generalised Pareto
distribution (peaks over threshold; Siffer, Fouque, Termier & Largouet, KDD 2017).

Doubt. Every limit is as much wider as it is badly known, so that normal data keeps the budget on average over what the
history leaves open.

Habits. What went beyond a limit on more separate days than chance explains is how the series behaves: the limit is
raised to what follows from the tail of that (`_raised`).
"""

from __future__ import annotations

from collections.abc import Callable
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
from anomaly_times.panel import Floats, Forecast, Limits, round_significant

__all__ = ["BAND", "REACH", "FittedLimits", "fit_limits", "floored", "widened"]

BAND = 80.0
"""The level of the band that limits are made for; `widened` makes the final one of it."""

REACH = timedelta(hours=12)
"""How far past forecasts should go at least: how evidence gathers over hours cannot be seen in less."""

_WEEK, _DAY, _HOUR = timedelta(weeks=1), timedelta(days=1), timedelta(hours=1)
_HOURS_A_WEEK = 168
# How much of the budget each channel may spend. More than the whole, for channels overlap, and limits that are badly
# known are rather too wide.
_POINT_SHARE, _SUSTAINED_SHARE, _ROUGHNESS_SHARE, _DRIFT_SHARE = 0.6, 0.3, 0.35, 0.4
# A history tells how rare something is up to ten times its own length.
_FURTHEST = 10.0
_OUTSIDE = 1 - BAND / 100
# The tail: where it begins, how few values it may have, and how many values its usual shape is worth.
_TAIL, _FEWEST_IN_TAIL, _SHAPE_WEIGHT = 0.02, 8, 30.0
_MOST_DOUBT, _ROOM, _FORECAST = 6.0, 1.2, 4.0
_FEWEST_FREEDOM, _ENOUGH = 8.0, 32
_SOON = timedelta(hours=3)
_SEED = 20170612
_STRETCH, _FEWEST_HOURS = 64, 12
# Hourly maxima further above their median than so many times their upper quartile are incidents, or habits.
_INCIDENT, _MOST_SKEW = 6.0, 2.5
_HOURS_ALIKE = 6
# How unlikely that many occasions are if they are chance, and how many values a tail without a shape is worth.
_CHANCE, _HABIT_WEIGHT = 0.05, 10.0
# With more points a day than that a rhythm is smooth from one to the next.
_SMOOTH, _FEWEST_DAYS = 96, 3
_FLAT_LONGEST, _FLAT_STEPS = 3, 6
# A limit closer to what is usual would be exceeded by the noise of computing.
_LEAST = 0.05
# How a series behaves from hour to hour cannot be told before its second day is over.
_YOUNG = timedelta(days=2)

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]


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


def widened(forecast: Forecast, width: Floats) -> Forecast:
    """The 80 % band made so many times as wide (float64[S]) as it is."""
    width = width[:, None]
    with np.errstate(over="ignore"):
        lower = forecast.yhat - width * (forecast.yhat - forecast.lower)
        upper = forecast.yhat + width * (forecast.upper - forecast.yhat)
    limit = np.finfo(np.float64).max
    return replace(forecast, lower=np.clip(lower, -limit, limit), upper=np.clip(upper, -limit, limit))


def fit_limits(
    history: Floats,
    ratios: Floats,
    freedom: Floats,
    *,
    step: timedelta,
    alerts_per_week: float = 0.5,
    final: Callable[[Floats], Floats] | None = None,
) -> FittedLimits:
    """Limits that normal data exceeds about `alerts_per_week` times a week and series, all channels together.

    Args:
        history: float64[S, N], NaN for gaps, without what no one should learn from.
        ratios: past errors over the half-width of the 80 % band, `floored` by the resolution: float64[S, cuts, h],
            NaN where unknown (`Calibrated.past_ratios`).
        freedom: how many independent errors they are worth, float64[S].
        step: between two points.
        alerts_per_week: the budget; points and episodes of one hour (of one step, where that is longer) count alike.
        final: past errors over the half-widths that will be stored, in the form of `ratios`, for a band made so many
            times as wide (float64[S]); without it bounds are taken for the widened band.

    Returns:
        A channel whose past is too short for one has an infinite limit; before two days of a series all but points.

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
    # Where steps are longer than hours, they are what is counted.
    hourly = np.maximum(alerts_per_week, np.minimum(least, 1e6)) / _HOURS_A_WEEK * max(1.0, step / _HOUR)
    a_day = max(1, round(_DAY / max(step, _HOUR)))
    freedom = np.maximum(_FEWEST_FREEDOM, freedom)
    per_hour = max(1, round(_HOUR / step))

    usual = np.zeros((len(CHANNELS), n_series, 1))
    limit = np.full((len(CHANNELS), n_series, 1), np.inf)
    limit[0] = 1.0
    usual[1], usual[2] = 0.5, 1.0
    width, move = np.ones(n_series), np.ones((n_series, 1))
    share = np.minimum(_POINT_SHARE * hourly, 0.5) / per_hour
    for block in blocks_of_rows(n_series, history.shape[1]):
        width[block] = _width(_without_rhythm(history[block], step), ratios[block], share[block], freedom[block], step)
        # As detection rounds values, lest what moves in the tenth digit counts as still or as rough.
        rounded = round_significant(history[block])
        move[block, 0], roughness = _roughness(rounded)
        hours = _hours_of(roughness, step)
        allowed = _ROUGHNESS_SHARE * hourly[block]
        limit[2, block, 0] = _raised(_exceeded(hours, allowed, step), _grouped(hours, a_day), allowed)
        limit[4, block, 0] = _longest_flat(rounded, step)
    width = np.maximum(1.0, width * _student(share / 2, freedom))

    n_errors = ratios[0].size if n_series else 0
    ahead = max(1, ratios.shape[2] // per_hour)
    if ratios.shape[2] > per_hour:
        ratios = ratios[:, :, : ahead * per_hour]
    for block in blocks_of_rows(n_series, n_errors) if n_errors else ():
        errors = ratios[block].reshape(len(ratios[block]), -1)
        hours = _hourly_maxima(np.abs(errors), np.isfinite(errors), per_hour)
        raised = _raised(width[block], _grouped(hours, ahead), _POINT_SHARE * hourly[block])
        width[block] = np.minimum(raised, _most(errors, share[block]))
    stored = final(width)[:, :, : ratios.shape[2]] if final is not None else ratios / width[:, None, None]
    for block in blocks_of_rows(n_series, n_errors) if n_errors else ():
        with np.errstate(over="ignore", invalid="ignore"):
            drift = root(stored[block].reshape(len(ratios[block]), -1))
        usual[1, block, 0] = _mean(np.abs(drift))
        segments = drift.reshape(len(drift), -1, ratios.shape[2])
        # Errors soon after a cut-off are what detection meets; they are fewer than all.
        soon = segments[:, :, : max(1, round(_SOON / step))].reshape(len(drift), -1)
        allowed = _SUSTAINED_SHARE * hourly[block]
        oddness, of_soon = (_hours_of(np.abs(each), step) for each in (drift, soon))
        found = np.maximum(_exceeded(oddness, allowed, step), _exceeded(of_soon, allowed, step, otherwise=0.0))
        limit[1, block, 0] = _raised(found, _grouped(oddness, ahead), allowed)
        allowed = _DRIFT_SHARE * hourly[block]
        mixed = _in_any_order(drift, min(per_hour, ratios.shape[2]))
        hours, of_mixed, of_soon = (_hours_of(each, step, around=0.0) for each in (drift, mixed, soon))
        found = np.sqrt((_exceeded(hours, allowed, step) ** 2 + _exceeded(of_mixed, allowed, step) ** 2) / 2)
        found = np.maximum(found, _exceeded(of_soon, allowed, step, otherwise=0.0))
        limit[3, block, 0] = _raised(found, _grouped(hours, ahead), allowed)
    with np.errstate(divide="ignore", invalid="ignore"):
        finally_wide = _mean(np.abs(ratios).reshape(n_series, -1)) / _mean(np.abs(stored).reshape(n_series, -1))
    finally_wide = np.where(np.isfinite(finally_wide) & (finally_wide > 0), finally_wide, width)
    # Past forecasts see a part of the history; what happens every day or two shows in the whole of it.
    for block in blocks_of_rows(n_series, history.shape[1]) if n_errors else ():
        with np.errstate(over="ignore", invalid="ignore"):
            drift = root(_plain_errors(history[block], step) / finally_wide[block, None])
        if not drift.shape[1]:
            break
        sustained_share, drift_share = _SUSTAINED_SHARE * hourly[block], _DRIFT_SHARE * hourly[block]
        for channel, hours, allowed in (
            (1, _hours_of(np.abs(drift), step), sustained_share),
            (3, _hours_of(drift, step, around=0.0), drift_share),
        ):
            limit[channel, block, 0] = _raised(limit[channel, block, 0], _grouped(hours, a_day), allowed)
    enough = np.isfinite(ratios).sum(axis=(1, 2)) >= _ENOUGH
    limit[1::2, ~enough] = np.inf
    usual[1, ~enough] = 0.5
    limit[1:] = np.maximum(limit[1:], usual[1:] + _LEAST)
    old = history[:, : max(0, history.shape[1] - ceil(_YOUNG / step) + 1)]
    limit[1:, ~np.isfinite(old).any(axis=1)] = np.inf
    return FittedLimits(usual, limit, move, width, alerts_per_week < least)


def _in_any_order(x: Floats, per_hour: int) -> Floats:
    """The hours of each row of `x` (float64[S, T]) in random order, the same in all rows."""
    hours = x[:, : x.shape[1] // per_hour * per_hour].reshape(len(x), -1, per_hour)
    return hours[:, np.random.default_rng(_SEED).permutation(hours.shape[1])].reshape(len(x), -1)


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


def _hours_of(x: Floats, step: timedelta, around: float | None = None) -> Floats:
    """The largest size in each hour of the moving average of a past (float64[S, T]): float64[S, hours]."""
    average = np.abs(_average(x, step, around=around))
    return _hourly_maxima(average, np.isfinite(x), max(1, round(_HOUR / step)))


def _hourly_maxima(average: Floats, known: Bools, per_hour: int) -> Floats:
    """The largest value of each hour (float64[S, hours]), NaN where less than half of the hour is known."""
    n_hours = average.shape[1] // per_hour
    shape = (len(average), n_hours, per_hour)
    there = known[:, : n_hours * per_hour].reshape(shape).sum(axis=2)
    return np.where(2 * there >= per_hour, average[:, : n_hours * per_hour].reshape(shape).max(axis=2), np.nan)


def _grouped(hours: Floats, n: int) -> Floats:
    """Hours (float64[S, H]) in groups of `n`: float64[S, H / n, n], less the first few where it does not divide."""
    groups = hours.shape[1] // n
    return hours[:, hours.shape[1] - groups * n :].reshape(len(hours), groups, n)


def _exceeded(hours: Floats, share: Floats, step: timedelta, *, otherwise: float = np.inf) -> Floats:
    """What so small a share (float64[S]) of hourly maxima exceeds: float64[S].

    From the mean, variance and skewness of their squares, as of a gamma distribution (Wilson & Hilferty, PNAS 17,
    1931), where the normal quantile is replaced by Student's: squares, for those of a normal variable are gamma
    distributed. `otherwise` where there are fewer than a dozen hours.
    """
    n_hours = np.isfinite(hours).sum(axis=1)
    enough = n_hours >= _FEWEST_HOURS
    if not enough.any():
        return np.full(len(hours), otherwise)
    rows = np.arange(len(hours))
    ordered = np.sort(hours, axis=1)
    last = hours.shape[1] - 1
    middle, upper = (ordered[rows, np.minimum(last, part * n_hours // 4)] for part in (2, 3))
    stray = np.minimum(hours, (middle + _INCIDENT * (upper - middle))[:, None]) ** 2
    mean = _mean(stray)
    stray = stray - mean[:, None]
    variance = _mean(stray**2)
    deviation = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.nan_to_num(_mean(stray**3) / deviation**3)
    skew = np.clip(skew, 1e-3, _MOST_SKEW)
    share = np.minimum(share, 0.5)
    far = _normal(share) * _student(share, _independent(stray, variance, step))
    limit = mean + deviation * 2 / skew * ((1 + skew * far / 6 - skew**2 / 36) ** 3 - 1)
    return np.where(enough, np.sqrt(np.maximum(0.0, limit)), otherwise)


def _independent(stray: Floats, variance: Floats, step: timedelta) -> Floats:
    """How many independent hours those are worth that stray from their mean by so much: float64[S].

    By the variance of the means of six, and no more than an average over an hour leaves independent.
    """
    n_hours = np.isfinite(stray).sum(axis=1)
    groups = _grouped(stray, _HOURS_ALIKE)
    known = np.isfinite(groups)
    of_sums = (np.where(known, groups, 0.0).sum(axis=2) ** 2).sum(axis=1) / np.maximum(1, known.sum(axis=(1, 2)))
    keep = decay(step) ** max(1, round(_HOUR / step))
    with np.errstate(divide="ignore", invalid="ignore"):
        told = n_hours * np.where(of_sums > variance, variance / of_sums, 1.0)
    return np.asarray(np.maximum(_FEWEST_FREEDOM, np.minimum(told, n_hours * (1 - keep) / (1 + keep))))


def _raised(limit: Floats, occasions: Floats, share: Floats) -> Floats:
    """The limit (float64[S]), or a higher one where it was exceeded on more occasions than chance explains.

    The higher one is what `share` (float64[S]) of all hours exceed by a generalised Pareto tail of the larger half of
    those beyond the limit, its shape from probability-weighted moments drawn towards 0.

    Args:
        limit: float64[S].
        occasions: hourly maxima, those of one day or of one past forecast together: float64[S, occasions, hours].
        share: float64[S].
    """
    hours = np.where(np.isfinite(occasions), occasions, -np.inf)
    largest = np.sort(hours.max(axis=2, initial=-np.inf), axis=1)[:, ::-1]
    allowed = np.minimum(share, 0.5) * np.isfinite(occasions).sum(axis=(1, 2))
    by_chance = _by_chance(allowed)
    rows = np.flatnonzero(by_chance < largest.shape[1])
    rows = rows[largest[rows, by_chance[rows]] > limit[rows]]
    if not rows.size:
        return limit
    size = -np.sort(-hours[rows].reshape(len(rows), -1), axis=1)
    n = np.maximum(1, (size > limit[rows, None]).sum(axis=1) // 2)
    threshold = size[np.arange(len(rows)), n]
    inside = np.arange(size.shape[1]) < n[:, None]
    excess = np.where(inside, size - threshold[:, None], 0.0) / size[:, :1]
    _, told = pareto(excess, n.astype(np.float64), weight=0.0)
    shape = n * told / (n + _HABIT_WEIGHT)
    shape = np.where(np.abs(shape) < 1e-6, 1e-6, shape)
    depth = np.log(np.maximum(1.0, n / allowed[rows]))
    scale = size[:, 0] * excess.sum(axis=1) / n * (1 - shape)
    out = limit.copy()
    with np.errstate(over="ignore"):
        out[rows] = np.maximum(limit[rows], threshold + scale * (np.exp(shape * depth) - 1) / shape)
    return out


def _by_chance(expected: Floats) -> Ints:
    """How many occasions chance explains where so many are expected (Poisson), one at least: int[S]."""
    term = np.exp(-expected) * expected
    total, count = np.exp(-expected) + term, np.ones(len(expected), dtype=np.intp)
    while (more := total < 1 - _CHANCE).any() and count.max() < _HOURS_A_WEEK:
        count[more] += 1
        term = np.where(more, term * expected / count, term)
        total = np.where(more, total + term, total)
    return count


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


def _width(history: Floats, ratios: Floats, share: Floats, freedom: Floats, step: timedelta) -> Floats:
    """How many times as far as the 80 % band errors lie that are as rare as `share`: float64[S].

    As far as the largest past errors that are common enough to count on (eight independent ones), and further by as
    much as values that are so rare lie beyond others which are as common as those errors.
    """
    n_errors = np.isfinite(ratios).sum(axis=(1, 2))
    known = n_errors >= _ENOUGH
    # Errors soon after a cut-off may have the heavier tail.
    parts = [ratios, ratios[:, :, : max(1, round(_SOON / step))]]
    common = []
    for part in parts:
        n = np.isfinite(part).sum(axis=(1, 2))
        independent = np.minimum(n, freedom * n / np.maximum(1, n_errors))
        common.append(np.clip(_FEWEST_IN_TAIL / np.maximum(1.0, independent), 0.0, _OUTSIDE))
    if not known.any():
        return np.asarray(np.maximum(*_tails(history, share[:, None]))[:, 0])
    errors = np.where(np.isfinite(ratios), np.abs(ratios), 0.0)
    largest, rarest = errors.max(axis=(1, 2), initial=0.0), 1 / np.maximum(_ENOUGH, n_errors)
    reached = [_reached(part, how_common) for part, how_common in zip(parts, common, strict=True)]
    found: list[Floats] = []
    for tails in _tails(history, np.stack([share, rarest, *common], axis=1)):
        beyond = np.zeros(len(tails))
        for far, value in zip(reached, tails[:, 2:].T, strict=True):
            told = known & (value > 0)
            beyond = np.maximum(beyond, np.where(told, far / np.where(told, value, 1.0), 0.0))
        width, expected = tails[:, :2].T * np.where(beyond > 0, beyond, 1.0)
        # Of moves much may have been forecast, a step at the same time of every day: then no error is as large.
        forecast = bool(found) & known & (expected > _FORECAST * largest)
        found.append(np.where(forecast, 0.0, width))
    return np.asarray(np.maximum(*found))


def _most(errors: Floats, share: Floats) -> Floats:
    """How wide a band may be after errors so large (float64[S, N]), to be left so rarely: float64[S].

    A fifth more than the largest error, and farther by the root of how many times as rare that is: the tail with finite
    variance that is the heaviest. However heavy the tail of values is, much of it may have been forecast. No limit
    where there are few errors.
    """
    known = np.isfinite(errors)
    n = known.sum(axis=1)
    largest = np.where(known, np.abs(errors), 0.0).max(axis=1, initial=0.0)
    with np.errstate(divide="ignore", over="ignore"):
        most = _ROOM * largest * np.sqrt(np.maximum(1.0, 1 / (share * np.maximum(1, n))))
    return np.where((n >= _ENOUGH) & (largest > 0), np.maximum(1.0, most), np.inf)


def _reached(ratios: Floats, share: Floats) -> Floats:
    """What this share of errors exceeds, on either side: float64[S]."""
    size = _largest(np.where(np.isfinite(ratios), np.abs(ratios), 0.0).reshape(len(ratios), -1))
    n = np.isfinite(ratios).sum(axis=(1, 2))
    return np.asarray(size[np.arange(len(size)), np.minimum((share * n).astype(np.intp), size.shape[1] - 1)])


def _largest(x: Floats) -> Floats:
    """The largest fifth of each row and two more, the largest first."""
    n = min(x.shape[1], int(_OUTSIDE * x.shape[1]) + 2)
    if n < x.shape[1]:
        x = np.partition(x, x.shape[1] - n, axis=1)[:, x.shape[1] - n :]
    return np.asarray(np.sort(x, axis=1)[:, ::-1])


def _without_rhythm(history: Floats, step: timedelta) -> Floats:
    """The history less what is usual at its time of the day, where that moves from one point to the next."""
    return history if round(_DAY / step) > _SMOOTH else _less_usual_day(history, step)


def _less_usual_day(history: Floats, step: timedelta) -> Floats:
    """The last whole days of the history less the median day; all of it, as it is, where there are few."""
    a_day = round(_DAY / step)
    # A step of several days has no rhythm of the day.
    n_days = history.shape[1] // a_day if a_day else 0
    if n_days < _FEWEST_DAYS:
        return history
    days = history[:, history.shape[1] - n_days * a_day :].reshape(len(history), n_days, a_day)
    usual = nan_median(days.transpose(0, 2, 1).reshape(-1, n_days)).reshape(len(history), 1, a_day)
    with np.errstate(over="ignore"):
        rest = days - usual
    return np.where(np.isfinite(rest), rest, np.nan).reshape(len(history), -1)


def _plain_errors(history: Floats, step: timedelta) -> Floats:
    """What a plain forecaster is wrong by: the median day at the level of an hour ago; float64[S, T].

    In units of what eight in ten are under. No points where there are few days, or steps of several.
    """
    a_day, an_hour = round(_DAY / step), max(1, round(_HOUR / step))
    if not a_day or history.shape[1] < _FEWEST_DAYS * a_day:
        return history[:, :0]
    rest = _less_usual_day(history, step)
    with np.errstate(over="ignore", invalid="ignore"):
        error = rest[:, an_hour:] - _average(rest, step, around=0.0)[:, :-an_hour]
        known = np.isfinite(error)
        size = np.sort(np.where(known, np.abs(error), np.inf), axis=1)
        most = np.minimum((BAND / 100 * known.sum(axis=1)).astype(np.intp), error.shape[1] - 1)
        unit = size[np.arange(len(size)), most][:, None]
        return np.where(known & (unit > 0) & np.isfinite(unit), error / unit, np.nan)


def _tails(history: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """How far out values of each share lie, by how far two in ten do: float64[S, K] each.

    How they stray from the median of five, and how they move from one to the next. A spike is seen by the first, by the
    second a step that stays.
    """
    if history.shape[1] < 5:
        return np.ones(shares.shape), np.ones(shares.shape)
    planes = [history[:, i : history.shape[1] - 4 + i] for i in range(5)]
    with np.errstate(over="ignore", invalid="ignore"):
        strays = np.abs(planes[2] - sorted_planes(planes)[2])
        return _tail_ratios(strays, shares), _tail_ratios(np.abs(np.diff(history, axis=1)), shares)


def _tail_ratios(stray: Floats, shares: Floats) -> Floats:
    """How far out the values of each share lie (float64[S, K]) in units of how far two in ten do.

    Read off a generalised Pareto tail beyond the largest fiftieth, its shape from probability-weighted moments (Hosking
    & Wallis, Technometrics 29, 1987) drawn towards 0.2. The tail is followed further than a share says by half the
    variance of the logarithm of what lies beyond (from the information matrix of scale and shape), so that the share is
    the mean of what lies beyond.
    """
    known = np.isfinite(stray)
    count = known.sum(axis=1)
    size = _largest(np.where(known, stray, -np.inf))
    rows = np.arange(len(size))
    near = size[rows, np.minimum((_OUTSIDE * count).astype(np.intp), size.shape[1] - 1)]
    # A series that is mostly still: what it moves by when it moves.
    still = np.flatnonzero(~(near > 0))
    near[still] = np.nan_to_num(nan_median(np.where(known[still] & (stray[still] > 0), stray[still], np.nan)))

    beyond = np.maximum(_FEWEST_IN_TAIL, np.rint(_TAIL * count)).astype(np.intp)
    most = min(int(beyond.max(initial=0)), size.shape[1] - 1)
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
        at = np.minimum((shares * count[:, None]).astype(np.intp), size.shape[1] - 1)
        seen = np.take_along_axis(size, at, axis=1) / unit[:, None]
        ratio = np.where(depth > 0, beyond_seen, seen) / (near / unit[:, None])
    return np.where((near > 0) & np.isfinite(ratio), ratio, 1.0)


def _longest_flat(history: Floats, step: timedelta) -> Floats:
    """From how many steps without a move on a series hangs (float64[S]): infinite where it never moved.

    By the second longest rest, for the longest may have been an incident, and without one that goes on.
    """
    still = history[:, 1:] == history[:, :-1]
    there = np.isfinite(history[:, 1:]) & np.isfinite(history[:, :-1])
    at = np.arange(still.shape[1])
    run = at - np.maximum.accumulate(np.where(still, -1, at), axis=1)
    ended = np.where(still[:, :-1] & ~still[:, 1:], run[:, :-1], 0)
    second = -np.partition(-ended, 1, axis=1)[:, 1] if ended.shape[1] > 1 else np.zeros(len(history))
    least = max(_FLAT_STEPS, ceil(_HOUR / step))
    moved = (there & ~still).any(axis=1)
    return np.where(moved, np.maximum(_FLAT_LONGEST * second, least).astype(np.float64), np.inf)
