"""Bounds that keep their promise: what a model claims, corrected by the errors that it made on the series' own past.

Forecasts are made from cut-offs spread over the later part of the history, each seeing only what lies before it (less
what is said of incidents and shifts below). Their errors are divided by the model's own spread on that side of the
median at that lead (its 10 % and 90 % quantiles) and by how much larger those of that part of the leads are throughout,
and pooled per series. Scaling errors by an estimate of their spread before taking their quantile is locally weighted
conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani & Wasserman, JASA 113, 2018, section 5.2). Four things are added
to it.

Tails. At a level of 99.9 a quantile lies beyond what a sample can tell: it is read off a Pareto tail (`ParetoTails`).

How much was seen. Errors of one forecast are kin: a thousand of them from sixteen cut-offs tell as much as a few dozen
that are independent. How many that is, n, follows from how alike the sizes of errors of one cut-off are (the design
effect of cluster samples: Kish, Survey Sampling, 1965, section 5.4), and bounds are as much wider as Student's quantile
lies beyond the normal one with n degrees of freedom.

Claims. The logarithm of what the errors say over what the model claims is drawn towards 0 as James and Stein do (1961,
the positive part): past errors overrule a claim as far as chance does not explain the difference, more readily where
they say that it is too narrow. This happens twice, for the 90 % quantile (its standard error is that of normal errors)
and for how many times as far out the bound lies.

Incidents. What happened once is an incident, what happened twice is how the series behaves: errors do not count that
are more than three times as large as any that lies further than a day and a half from the largest one. Nor do models
see values that stray three times as far as any on other days, once that is over (`without_incident`). A level that has
shifted once, for good, counts as the level that always was (`settled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from anomaly_times.models.rebase import rebased
from anomaly_times.models.registry import Forecaster
from anomaly_times.models.season import DAY, HOUR, nan_median, rows_by_length
from anomaly_times.models.shifts import lasting_shifts
from anomaly_times.models.tails import ParetoTails, student_to_normal
from anomaly_times.panel import Choice, Floats, Forecast, Panel, Quantiles
from anomaly_times.profiling import stage, staged

__all__ = [
    "ORIGINS",
    "ORIGINS_OF_SLOW",
    "SPREAD",
    "Calibrated",
    "ChoosingForecaster",
    "Past",
    "RollingForecaster",
    "calibrated",
    "forecast_again",
    "forecast_with_bounds",
    "past_cuts",
    "without_incident",
]

SPREAD = (0.1, 0.5, 0.9)
"""The quantiles that past forecasts are asked for: the median, and the model's own idea of how far errors go."""

ORIGINS, ORIGINS_OF_SLOW = 16, 3
_SPREAD_SHARE = SPREAD[0]
_FIRST = 0.4
_ENOUGH, _FEWEST_ERRORS, _ORIGINS_OF_ROLLING = 32, 48, 8
_INCIDENT, _ECHO, _FEWEST_DAYS, _FEWEST_OVER = 3.0, 1.5, 4, 3
_LEAD_BANDS, _LEAD_WEIGHT = 3, 30.0
_LONGEST_ERROR = 8.0
_FEWEST_FREEDOM = 3.0
# A claim stands unless it is this many standard errors off. To draw a bound in takes more than to move it out: a small
# sample misses what is rare more often than it meets it too often. The standard error of the logarithm of the 90 %
# quantile of n normal errors is 1.3 / √n; that of how many times as far out another one lies is about √depth / 3 by the
# root of how many exceed the first, for normal and for exponential tails, depth being the logarithm of how many times
# as rare it is.
_DOUBT_WIDER, _DOUBT_NARROWER = 1.0, 4.0
_QUANTILE_ERROR, _TAIL_ERROR = 1.3, 1 / 3
# Where nine errors in ten are 0 their 90 % quantile tells nothing: a bound counts as at most so many times as far out.
_FARTHEST = 20.0
_ROOM, _SOME_DIFFERENCES, _FEWEST_DIFFERENCES = 1.1, 1500, 200
_NOTHING = 1e-6


@runtime_checkable
class RollingForecaster(Protocol):
    """A model that shares work between the forecasts of several cut-offs."""

    def rolling(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> tuple[Quantiles, Mapping[int, Floats]]:
        """What `forecast` answers, and past forecasts by the cut-offs that the model likes: how many points they saw.

        Each is float64[S, min(h, T − cut), 3], at the quantiles `SPREAD`, NaN in rows for which it was not made; most
        of the history's points lie after each row's first value.
        """
        ...


@runtime_checkable
class ChoosingForecaster(Protocol):
    """A model that is another one for each series."""

    def as_chosen(
        self, history: Panel, *, h: int, quantiles: Sequence[float], choices: Mapping[int, Choice]
    ) -> Quantiles:
        """What `forecast` answers, with the models that the rows of an earlier answer got (`Quantiles.models`)."""
        ...


def forecast_with_bounds(
    model: Forecaster, history: Panel, *, h: int, level: float, origins: int | None = None
) -> Forecast:
    """The next `h` points with bounds that hold `level` per cent of normal points; `yhat` is the model's median.

    `lower ≤ yhat ≤ upper`, and NaN where the model has no forecast. A series with fewer than 32 past errors gets a
    wide band (the model's own, no narrower than the range of its values) and a note, and is in `warming`.

    Args:
        model: any forecaster; an attribute `slow = True` means that it fits series by series.
        history: what the model may see.
        h: steps ahead, at least 1.
        level: per cent, inside (0, 100).
        origins: how many cut-offs to forecast from; by default 16, or 3 for a slow model. A model that shares work
            between cut-offs chooses them itself.

    Raises:
        ModelError: if the model cannot work on this panel.
    """
    return calibrated(model, history, h=h, levels=(level,), origins=origins).bounds(level)


def calibrated(
    model: Forecaster, history: Panel, *, h: int, levels: Sequence[float], origins: int | None = None
) -> Calibrated:
    """A forecast with what the past says of its errors, for bounds at any of `levels`.

    The other arguments, and the errors raised, are those of `forecast_with_bounds`.
    """
    if origins is None:
        origins = ORIGINS_OF_SLOW if getattr(model, "slow", False) else ORIGINS
    history = settled(without_incident(history))
    outside = [side for level in levels for side in ((1 - level / 100) / 2, 1 - (1 - level / 100) / 2)]
    wanted = tuple(sorted({*outside, *SPREAD}))
    day = max(1, DAY // history.grid.step)
    rolling = model if isinstance(model, RollingForecaster) else None
    ask = staged("model")(model.forecast)
    final = ask(history, h=h, quantiles=wanted) if rolling is None else None
    # A short horizon has few errors, so past forecasts go on for longer.
    ahead = max(h, -(-_FEWEST_ERRORS // (origins if rolling is None else min(origins, _ORIGINS_OF_ROLLING))))
    values = np.full((history.n_series, h, len(wanted)), np.nan)
    notes: dict[int, str] = {}
    models: dict[int, Choice] = {}
    groups = []
    for columns, members in rows_by_length(history.y):
        part = history.rows(members).columns(slice(history.grid.n - columns, None))
        if rolling is not None:
            with stage("model"):
                answer, made = rolling.rolling(part, h=ahead, quantiles=wanted)
            cuts, past = tuple(made), list(made.values())
            values[members] = answer.values[:, :h]
            notes |= {int(members[i]): text for i, text in answer.notes.items()}
            models |= {int(members[i]): text for i, text in answer.models.items()}
        else:
            cuts = past_cuts(columns, ahead, day, origins)
            past = [ask(part.columns(slice(cut)), h=min(ahead, columns - cut), quantiles=SPREAD).values for cut in cuts]
        groups.append((members, part.y, cuts, past))
    if final is None:
        final = Quantiles(history.labels, history.grid.following(h), wanted, values, notes, models)
    unit = _unit(final)
    errors = [(members, _scaled_errors(y, cuts, past, unit[members], ahead), cuts) for members, y, cuts, past in groups]
    past_errors = [(m, Past.of(e, np.array(cuts), day)) for m, e, cuts in errors if cuts]
    return Calibrated(final, history, unit, past_errors, _differences(history.y, day))


def forecast_again(model: Forecaster, made: Calibrated, history: Panel) -> Calibrated:
    """A forecast from a longer history, with what is known of the errors that forecasts made earlier.

    Args:
        model: the one that `made` is of; one that chooses does so no more.
        made: of the same series.
        history: what the model may see now.

    Raises:
        ModelError: if the model cannot work on this panel.
    """
    history = settled(without_incident(history))
    h, levels = made.quantiles.grid.n, made.quantiles.levels
    with stage("model"):
        if isinstance(model, ChoosingForecaster):
            answer = model.as_chosen(history, h=h, quantiles=levels, choices=made.quantiles.models)
        else:
            answer = model.forecast(history, h=h, quantiles=levels)
    return replace(made, quantiles=answer, history=history)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A forecast (`quantiles`) from `history`, and what is known of its errors by the past ones.

    `unit` (float64[S, 1]) is the least spread that errors are divided by; `past` pairs rows with their errors;
    `differences` tells of values and those a day before.
    """

    quantiles: Quantiles
    history: Panel
    unit: Floats
    past: Sequence[tuple[npt.NDArray[np.intp], Past]]
    differences: ParetoTails

    def bounds(self, level: float) -> Forecast:
        """The forecast with bounds that hold `level` per cent of normal points; see `forecast_with_bounds`.

        Raises:
            KeyError: if the level is not one that `calibrated` was asked for.
        """
        share = (1 - level / 100) / 2
        yhat, at = self.quantiles.at(0.5), self.quantiles.at
        with np.errstate(over="ignore", invalid="ignore"):
            down = self._side(0, share, yhat - at(SPREAD[0]), yhat - at(share))
            up = self._side(1, share, at(SPREAD[-1]) - yhat, at(1 - share) - yhat)
            warming = (self._count < _ENOUGH) & np.isfinite(yhat).any(axis=1)
            wide = np.where(warming[:, None], _wide(self.history.y, yhat), 0.0)
            limit = np.finfo(np.float64).max
            lower = np.clip(yhat - np.maximum(down, wide), -limit, limit)
            upper = np.clip(yhat + np.maximum(up, wide), -limit, limit)
        notes = dict(self.quantiles.notes)
        young = np.flatnonzero(warming).tolist()
        for i in young:
            text = f"warming up: {int(self._count[i])} past errors, so the band is wide"
            notes[i] = f"{notes[i]}; {text}" if i in notes else text
        return Forecast(
            self.history.labels,
            self.quantiles.grid,
            self.history.grid.end,
            yhat,
            lower,
            upper,
            notes,
            models=self.quantiles.models,
            warming=frozenset(young),
        )

    def past_ratios(self, bounds: Forecast) -> Floats:
        """Past errors by the half-widths that `bounds` have on their side and lead: float64[S, cuts, h].

        −1 and 1 are the bounds, which may be others than `bounds(level)` gives: final ones, say. NaN in gaps and
        incidents, and where a row has fewer cut-offs than others.
        """
        yhat = self.quantiles.at(0.5)
        most = max((past.errors.shape[1] for _, past in self.past), default=0)
        ratios = np.full((len(yhat), most, yhat.shape[1]), np.nan)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            below = np.maximum(yhat - self.quantiles.at(SPREAD[0]), self.unit) / (bounds.yhat - bounds.lower)
            above = np.maximum(self.quantiles.at(SPREAD[-1]) - yhat, self.unit) / (bounds.upper - bounds.yhat)
            for members, past in self.past:
                errors, lead = past.errors[:, :, : yhat.shape[1]], past.lead[:, : yhat.shape[1]]
                down, up = ((side[members] * lead)[:, None, :] for side in (below, above))
                ratios[members, : errors.shape[1]] = errors * np.where(errors < 0, down, up)
        return ratios

    @property
    def freedom(self) -> Floats:
        """How many independent errors the past ones of each row are worth: float64[S], 0 where there are none."""
        return self._of_past(lambda past: past.freedom)

    def _side(self, side: int, share: float, spread: Floats, claim: Floats) -> Floats:
        """The half-width on one side (0 below, 1 above): float64[S, h].

        `spread` is how far the model says that nine in ten go, `claim` how far all but `share`.
        """
        spread, claim = np.maximum(spread, self.unit), np.maximum(claim, self.unit)
        farther = claim / spread
        usual = farther.mean(axis=1)
        with np.errstate(invalid="ignore"):
            kept = np.minimum(1.0, self._farthest(share) / usual)
        usual = usual * kept
        width = spread * farther * kept[:, None]
        for members, past in self.past:
            factor = past.correction(side, share, usual[members])
            width[members] *= factor[:, None] * past.lead[:, : width.shape[1]]
        return np.asarray(np.nan_to_num(width, nan=0.0, posinf=np.inf))

    def _farthest(self, share: float) -> Floats:
        """How many times as far out as its 10 % quantile a claim of the quantile `share` may lie: float64[S].

        As much farther as the differences lie, and a tenth; and more by as much as their tails are heavier than normal
        ones, whose size no sample tells well. No limit where there are few differences.
        """
        near, far = (np.add(*self.differences.beyond(one)) for one in (_SPREAD_SHARE, share))
        normal = max(1.0, NormalDist().inv_cdf(share) / NormalDist().inv_cdf(_SPREAD_SHARE))
        told = (self.differences.last[:, 0] + 1 >= _FEWEST_DIFFERENCES) & (near > 0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.maximum(far / near, normal)
            return np.where(told & np.isfinite(ratio), _ROOM * ratio * (ratio / normal), np.inf)

    @cached_property
    def _count(self) -> Floats:
        return self._of_past(lambda past: past.count)

    def _of_past(self, figure: Callable[[Past], Floats]) -> Floats:
        """A figure of the past errors of each row: float64[S], 0 where there are none."""
        out = np.zeros(self.history.n_series)
        for members, past in self.past:
            out[members] = figure(past)
        return out


@lru_cache(maxsize=64)
def past_cuts(n_points: int, h: int, day: int, origins: int) -> tuple[int, ...]:
    """How many points each past forecast sees, rising: from two fifths of them to all but a horizon.

    All but a quarter, where a horizon is more than that. Cut-offs are evenly spaced, so that their hours of the day
    (a day has `day` points) lie as far apart as a slightly smaller spacing can make them: one that fits the day would
    see the same hour over and over.
    """
    last = n_points - min(h, max(1, n_points // 4))
    first = min(last, max(1, round(_FIRST * n_points)))
    if n_points < 2 or origins < 1:
        return ()
    widest = max(1, (last - first) // max(1, origins - 1))
    steps = np.arange(min(origins, (last - first) // widest + 1))
    best, spacing = np.inf, widest
    for one in range(widest, int(0.8 * widest) - 1, -1):
        hours = np.sort((last - one * steps) % day)
        gap = float(np.diff(np.append(hours, hours[0] + day)).max())
        if one > 0 and gap < best:
            best, spacing = gap, one
    return tuple(sorted((last - spacing * steps).tolist()))


def without_incident(history: Panel) -> Panel:
    """The history with gaps for what strayed three times as far from the median as anything on other days.

    The days around the worst one do not count as others. What still goes on at the end of the history stays: it may be
    a new level. A history of less than four days stays as it is.
    """
    day = max(1, DAY // history.grid.step)
    n_days = history.grid.n // day
    if n_days < _FEWEST_DAYS or not history.n_series:
        return history
    with np.errstate(over="ignore", invalid="ignore"):
        stray = np.abs(history.y - nan_median(history.y[:, :: max(1, history.grid.n // 255)])[:, None])
    by_day = stray[:, history.grid.n - n_days * day :].reshape(len(stray), n_days, day)
    worst_of = np.fmax.reduce(by_day, axis=2)
    worst_of = np.where(np.isnan(worst_of), -np.inf, worst_of)
    worst = worst_of.argmax(axis=1)
    others = np.abs(np.arange(n_days) - worst[:, None]) > 1
    elsewhere = np.where(others, worst_of, -np.inf).max(axis=1)
    limit = np.where(elsewhere > -np.inf, _INCIDENT * elsewhere, np.inf)[:, None]
    struck = worst_of.max(axis=1) > limit[:, 0]
    if not struck.any():
        return history
    # One value that falls back for a moment ends nothing.
    recent = max(_FEWEST_OVER, HOUR // history.grid.step)
    over = _last_known(stray[struck], recent) <= limit[struck]
    y = history.y.copy()
    y[struck] = np.where((stray[struck] > limit[struck]) & over, np.nan, y[struck])
    return replace(history, y=y)


def _last_known(x: Floats, n: int) -> Floats:
    """The median of the last `n` values of each row that are there: float64[S, 1]."""
    there = np.isfinite(x)
    newest = there & (there[:, ::-1].cumsum(axis=1)[:, ::-1] <= n)
    return nan_median(np.where(newest, x, np.nan))[:, None]


def settled(history: Panel) -> Panel:
    """The history with what lies before a lasting shift of a series moved to its present level.

    A model then neither expects the old level back, nor do its errors on either side of the shift tell of any other
    day. See `shifts.lasting_shifts` and `rebase.rebased`.
    """
    shifted = lasting_shifts(history)
    rows = np.flatnonzero(shifted)
    if not rows.size:
        return history
    y = history.y.copy()
    for column in np.unique(shifted[rows]).tolist():
        members = np.flatnonzero(shifted == column)
        y[members] = rebased(history.rows(members), history.grid.start + column * history.grid.step).y
    return replace(history, y=y)


def _scaled_errors(y: Floats, cuts: Sequence[int], past: Sequence[Floats], unit: Floats, h: int) -> Floats:
    """Errors of forecasts from inside the history, in units of the model's own spread: float64[S, cuts, h].

    NaN in gaps, and past the end of the history.
    """
    errors = np.full((len(y), len(cuts), h), np.nan)
    for i, (cut, values) in enumerate(zip(cuts, past, strict=True)):
        ahead = values.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            error = y[:, cut : cut + ahead] - values[:, :, 1]
            spread = np.where(error > 0, values[:, :, 2] - values[:, :, 1], values[:, :, 1] - values[:, :, 0])
            error /= np.maximum(spread, unit)
        errors[:, i, :ahead] = np.where(np.isfinite(error), error, np.nan)
    return errors


@dataclass(frozen=True, eq=False)
class Past:
    """What the errors of one group of rows say: tails, how larger they are by lead (float64[S, L]), how many there are.

    Past forecasts go as far as the forecast, and farther where that is short: L ≥ h.

    `errors` (float64[S, cuts, L]) are those left, in units of the model's spread and of `lead`. `freedom` is how many
    independent errors they are worth, `count` how many they are: float64[S].
    """

    errors: Floats
    tails: ParetoTails
    lead: Floats
    freedom: Floats
    count: Floats

    @classmethod
    def of(cls, errors: Floats, cuts: npt.NDArray[np.intp], day: int) -> Past:
        """From scaled errors, float64[S, cuts, h]; they may be changed."""
        _forget_incident(errors, cuts, day)
        known = np.isfinite(errors)
        per_cut = known.sum(axis=2)
        count = per_cut.sum(axis=1).astype(np.float64)
        size = np.where(known, np.abs(errors), 0.0)
        n = np.maximum(1.0, count)
        # Heavy tails would drown what the many usual errors say of their sizes.
        usual = size.sum(axis=(1, 2)) / n
        size = np.minimum(size, (_LONGEST_ERROR * usual)[:, None, None])
        lead = _by_lead(size, known)
        errors /= lead[:, None, :]
        mean = size.sum(axis=(1, 2)) / n
        deviation = np.where(known, size - mean[:, None, None], 0.0)
        variance = (deviation**2).sum(axis=(1, 2)) / n
        here = per_cut > 0
        cut_means = np.where(here, deviation.sum(axis=2) / np.maximum(1, per_cut), 0.0)
        used = np.maximum(1, here.sum(axis=1))
        between = (cut_means**2).sum(axis=1) / np.maximum(1, used - 1)
        each = n / used
        with np.errstate(divide="ignore", invalid="ignore"):
            alike = (between / variance - 1 / each) / (1 - 1 / each)
        alike = np.clip(np.nan_to_num(alike, nan=1.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
        freedom = n / (1 + (each - 1) * alike)
        tails = ParetoTails.of(errors.reshape(len(errors), -1))
        return cls(errors, tails, lead, np.maximum(_FEWEST_FREEDOM, freedom), count)

    def correction(self, side: int, share: float, claimed: Floats) -> Floats:
        """What claims of one side's (0 below, 1 above) quantile `share` are to be multiplied by: float64[S].

        `claimed` (float64[S]) is how many times as far out as its 10 % quantile the model says that it lies.
        """
        near, far = (np.nan_to_num(self.tails.beyond(one)[side]) for one in (_SPREAD_SHARE, share))
        nothing = (near <= 0) & (far <= 0) & (self.count >= _ENOUGH)
        with np.errstate(over="ignore"):
            bound = np.log(np.maximum(far, _NOTHING))
            scale = np.maximum(np.log(np.maximum(near, _NOTHING)), bound - np.log(_FARTHEST))
            beyond = bound - scale - np.log(claimed)
            exceeding = _SPREAD_SHARE * self.freedom + 1
            depth = max(0.0, np.log(_SPREAD_SHARE / share))
            told = _beyond_doubt(scale, _QUANTILE_ERROR / np.sqrt(self.freedom))
            told += _beyond_doubt(beyond, _TAIL_ERROR * np.sqrt(depth / exceeding))
            factor = np.exp(np.where(self.count > 0, told, 0.0)) * student_to_normal(1 - share, self.freedom)
        return np.where(nothing, 0.0, factor)


def _beyond_doubt(x: Floats, error: Floats) -> Floats:
    """`x` (float64[S]) less what chance explains of it, given its standard error."""
    with np.errstate(divide="ignore", over="ignore"):
        doubt = np.where(x > 0, _DOUBT_WIDER, _DOUBT_NARROWER)
        return x * np.maximum(0.0, 1 - (doubt * error / np.maximum(np.abs(x), 1e-300)) ** 2)


def _forget_incident(errors: Floats, cuts: npt.NDArray[np.intp], day: int) -> None:
    """Leave out (in place) errors over three times as large as any that lies further away than the largest one's echo.

    With as many before and after them in the same forecast. A model that repeats days repeats an incident a day later,
    so a day and a half around the largest error belong to it, or a third of the time seen if that is less. Each side is
    judged for itself.
    """
    h = errors.shape[2]
    reach = min(round(_ECHO * day), int(cuts[-1] + h - cuts[0]) // 3)
    struck = np.zeros(errors.shape, dtype=np.bool_)
    for sign in (1.0, -1.0):
        sizes = np.where(np.isnan(errors), -np.inf, sign * errors)
        at = sizes.argmax(axis=2)
        largest = np.take_along_axis(sizes, at[:, :, None], axis=2)[:, :, 0]
        times = cuts + at
        worst = np.take_along_axis(times, largest.argmax(axis=1)[:, None], axis=1)
        elsewhere = np.where(np.abs(times - worst) <= reach, -np.inf, largest).max(axis=1)
        # Within the model's own spread nothing is an incident.
        limit = np.where(elsewhere > -np.inf, _INCIDENT * np.maximum(1.0, elsewhere), np.inf)
        struck |= sizes > limit[:, None, None]
    first, last = struck.argmax(axis=2), h - 1 - struck[:, :, ::-1].argmax(axis=2)
    length = np.where(struck.any(axis=2), last - first + 1, -h)
    lead = np.arange(h)
    out = (lead >= (first - length)[:, :, None]) & (lead <= (last + length)[:, :, None])
    errors[out] = np.nan


def _by_lead(size: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    """How much larger errors are in the nearest, the middle and the farthest leads than in all: float64[S, h].

    As the model does not say itself; drawn towards 1 as far as there are few cut-offs.
    """
    n_cuts, h = size.shape[1:]
    edges = np.unique(np.round(np.geomspace(1, h + 1, _LEAD_BANDS + 1)).astype(np.intp)) - 1
    total, n = size.sum(axis=1), known.sum(axis=1)
    mean = total.sum(axis=1) / np.maximum(1, n.sum(axis=1))
    lead = np.ones(total.shape)
    for first, stop in pairwise(edges.tolist()):
        n_here = n[:, first:stop].sum(axis=1)
        here = total[:, first:stop].sum(axis=1) / np.maximum(1, n_here)
        weight = np.minimum(n_here, 2 * n_cuts) / (np.minimum(n_here, 2 * n_cuts) + _LEAD_WEIGHT)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.clip(np.where((mean > 0) & (n_here > 0), here / mean, 1.0), 0.2, 5.0)
        lead[:, first:stop] = (ratio**weight)[:, None]
    return lead


def _differences(y: Floats, day: int) -> ParetoTails:
    """The tails of each row's differences over a day, of about 1,500 of them."""
    n = y.shape[1] - day
    if n <= 0:
        return ParetoTails.of(np.full((len(y), 1), np.nan))
    stride = max(1, n // _SOME_DIFFERENCES)
    # One that divides the day would meet the same minutes of each hour over and over.
    while math.gcd(stride, day) > 1:
        stride += 1
    with np.errstate(over="ignore", invalid="ignore"):
        apart = y[:, day::stride] - y[:, :n:stride]
    return ParetoTails.of(np.where(np.isfinite(apart), apart, np.nan))


def _unit(quantiles: Quantiles) -> Floats:
    """The least spread that errors are divided by: a tenth of the usual one, 1 where that is 0: float64[S, 1]."""
    low, high = quantiles.at(SPREAD[0]), quantiles.at(SPREAD[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        usual = 0.05 * np.nan_to_num((high / 2 - low / 2).mean(axis=1, keepdims=True) * 2)
    return np.where(usual > 0, usual, 1.0)


def _wide(y: Floats, yhat: Floats) -> Floats:
    """A half-width where next to nothing is known: the range of the values, and the forecast over their number."""
    highest, lowest = np.fmax.reduce(y, axis=1), np.fmin.reduce(y, axis=1)
    n = np.maximum(1, np.isfinite(y).sum(axis=1))
    return np.asarray(np.nan_to_num(highest - lowest)[:, None] + np.abs(yhat) / n[:, None])
