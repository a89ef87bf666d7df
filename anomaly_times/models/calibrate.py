"""Bounds that keep their promise: from the errors that a model made on the series' own past.

Forecasts are made from cut-offs spread over the later part of the history, each seeing only what lies before it. Their
errors are divided by the model's own spread on that side of the median at that lead (its 10 % and 90 % quantiles: the
model knows where errors are larger, but not how large) and by how much larger those of that part of the leads are
throughout; they are pooled per series, and the bound on each side is

    yhat ± spread · lead · t · Q(errors; level).

Scaling errors by an estimate of their spread before taking their quantile is locally weighted conformal prediction
(Lei, G'Sell, Rinaldo, Tibshirani & Wasserman, JASA 113, 2018, section 5.2). Three things are added to it.

Tails. At a level of 99.9 a quantile lies beyond what a sample can tell: Q goes on along a Pareto tail (`ParetoTails`).

How much was seen. Errors of one forecast are kin: a thousand of them from sixteen cut-offs tell as much as a few dozen
that are independent. How many that is, n, follows from how alike the sizes of errors of one cut-off are (the design
effect of cluster samples: Kish, Survey Sampling, 1965, section 5.4), and t is how much further out Student's quantile
lies than the normal one with n / 2 degrees of freedom, half of the errors lying on each side: the exact answer for
independent normal errors of unknown size, and what a conformal rank of n + 1 cannot give beyond 1 − 1 / n.

Incidents. What happened once is an incident, what happened twice is how the series behaves: errors do not count that
are more than three times as large as any that lies further than a day and a half from the largest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from anomaly_times.models.registry import Forecaster
from anomaly_times.models.season import DAY, rows_by_length
from anomaly_times.models.tails import ParetoTails, student_to_normal
from anomaly_times.panel import Floats, Forecast, Panel, Quantiles

__all__ = ["SPREAD", "Calibrated", "RollingForecaster", "calibrated", "forecast_with_bounds", "past_cuts"]

SPREAD = (0.1, 0.5, 0.9)
"""The quantiles that a model is asked for: its median, and its own idea of how far errors go on either side."""

_ORIGINS, _ORIGINS_OF_SLOW = 16, 3
_FIRST = 0.4
_ENOUGH = 32
_INCIDENT, _ECHO = 3.0, 1.5
_LEAD_BANDS, _LEAD_WEIGHT = 3, 30.0
_LONGEST_ERROR = 8.0
_FEWEST_FREEDOM = 3.0


@runtime_checkable
class RollingForecaster(Protocol):
    """A model that shares work between the forecasts of several cut-offs."""

    def rolling(
        self, history: Panel, *, h: int, quantiles: Sequence[float], cuts: Sequence[int]
    ) -> tuple[Quantiles, list[Floats]]:
        """What `forecast` answers, and for each of `cuts` what it would have from `history.columns(slice(cut))`.

        The latter are float64[S, min(h, T − cut), Q] each.
        """
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
        origins: how many cut-offs to forecast from; by default 16, or 3 for a slow model.

    Raises:
        ModelError: if the model cannot work on this panel.
    """
    return calibrated(model, history, h=h, origins=origins).bounds(level)


def calibrated(model: Forecaster, history: Panel, *, h: int, origins: int | None = None) -> Calibrated:
    """A forecast with what the past says of its errors; bounds at any level follow from it at little cost.

    Arguments and errors are those of `forecast_with_bounds`.
    """
    if origins is None:
        origins = _ORIGINS_OF_SLOW if getattr(model, "slow", False) else _ORIGINS
    groups = rows_by_length(history.y)
    day = max(1, DAY // history.grid.step)
    final = model.forecast(history, h=h, quantiles=SPREAD) if not isinstance(model, RollingForecaster) else None
    values = np.full((history.n_series, h, len(SPREAD)), np.nan)
    notes: dict[int, str] = {}
    models: dict[int, str] = {}
    raw = []
    for columns, members in groups:
        part = history.rows(members).columns(slice(history.grid.n - columns, None))
        cuts = past_cuts(columns, h, day, origins)
        if isinstance(model, RollingForecaster):
            answer, past = model.rolling(part, h=h, quantiles=SPREAD, cuts=cuts)
            values[members] = answer.values
            notes |= {int(members[i]): text for i, text in answer.notes.items()}
            models |= {int(members[i]): text for i, text in answer.models.items()}
        else:
            past = [
                model.forecast(part.columns(slice(cut)), h=min(h, columns - cut), quantiles=SPREAD).values
                for cut in cuts
            ]
        raw.append((members, part, cuts, past))
    if final is None:
        final = Quantiles(history.labels, history.grid.following(h), SPREAD, values, notes, models)
    unit = _unit(final.values)
    errors = [
        (members, _scaled_errors(part.y, cuts, past, unit[members], h), np.array(cuts))
        for members, part, cuts, past in raw
    ]
    return Calibrated(final, history, unit, [(m, _Past.of(e, cuts, day)) for m, e, cuts in errors if e.shape[1]])


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A forecast (`quantiles`, at `SPREAD`) from `history`, and the past errors of its rows.

    `unit` (float64[S, 1]) is the least spread that errors are divided by; `past` pairs rows with their errors.
    """

    quantiles: Quantiles
    history: Panel
    unit: Floats
    past: Sequence[tuple[npt.NDArray[np.intp], _Past]]

    def bounds(self, level: float) -> Forecast:
        """The forecast with bounds that hold `level` per cent of normal points; see `forecast_with_bounds`."""
        share = (1 - level / 100) / 2
        yhat = self.quantiles.at(0.5)
        n_series, h = yhat.shape
        factor = np.zeros((2, n_series, 1))
        lead = np.ones((n_series, h))
        for members, past in self.past:
            factor[:, members, 0] = past.factors(share)
            lead[members] = past.lead
        with np.errstate(over="ignore", invalid="ignore"):
            below = np.maximum(yhat - self.quantiles.at(SPREAD[0]), self.unit)
            above = np.maximum(self.quantiles.at(SPREAD[-1]) - yhat, self.unit)
            down, up = factor[0] * lead * below, factor[1] * lead * above
            warming = (self._count < _ENOUGH) & np.isfinite(yhat).any(axis=1)
            wide = np.where(warming[:, None], _wide(self.history.y, yhat), 0.0)
            # The model's own spread, going on as a Laplace distribution does: next to nothing is known of the tail.
            far = np.where(warming[:, None], np.log(2 * min(share, 0.4)) / np.log(2 * SPREAD[0]), 0.0)
            down = np.maximum(down, np.maximum(wide, far * below))
            up = np.maximum(up, np.maximum(wide, far * above))
            limit = np.finfo(np.float64).max
            lower, upper = np.clip(yhat - down, -limit, limit), np.clip(yhat + up, -limit, limit)
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

    @cached_property
    def _count(self) -> Floats:
        count = np.zeros(self.history.n_series)
        for members, past in self.past:
            count[members] = past.count
        return count


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
class _Past:
    """What the errors of one group of rows say: tails, how larger they are by lead (float64[S, h]), how many there are.

    `freedom` is half of how many independent errors they are worth, `count` the errors themselves: float64[S].
    """

    tails: ParetoTails
    lead: Floats
    freedom: Floats
    count: Floats

    @classmethod
    def of(cls, errors: Floats, cuts: npt.NDArray[np.intp], day: int) -> _Past:
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
        freedom = n / (1 + (each - 1) * alike) / 2
        tails = ParetoTails.of(errors.reshape(len(errors), -1))
        return cls(tails, lead, np.maximum(_FEWEST_FREEDOM, freedom), count)

    def factors(self, share: float) -> tuple[Floats, Floats]:
        """How many spreads below and above the median the quantiles `share` and 1 − `share` lie: float64[S] each."""
        with np.errstate(over="ignore"):
            wider = student_to_normal(1 - share, self.freedom)
            below, above = self.tails.beyond(share)
            return np.nan_to_num(below * wider), np.nan_to_num(above * wider)


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


def _unit(values: Floats) -> Floats:
    """The least spread that errors are divided by: a tenth of the usual one, 1 where that is 0: float64[S, 1]."""
    with np.errstate(over="ignore", invalid="ignore"):
        usual = 0.05 * np.nan_to_num((values[:, :, -1] / 2 - values[:, :, 0] / 2).mean(axis=1, keepdims=True) * 2)
    return np.where(usual > 0, usual, 1.0)


def _wide(y: Floats, yhat: Floats) -> Floats:
    """A half-width where next to nothing is known: the range of the values, and the forecast over their number."""
    highest, lowest = np.fmax.reduce(y, axis=1), np.fmin.reduce(y, axis=1)
    n = np.maximum(1, np.isfinite(y).sum(axis=1))
    return np.asarray(np.nan_to_num(highest - lowest)[:, None] + np.abs(yhat) / n[:, None])
