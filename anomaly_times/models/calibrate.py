"""Bounds that keep their promise: from the errors that a model made on the series' own past.

Forecasts are made from cut-offs spread over the later half of the history, each seeing only what lies before it. Their
errors, divided by the model's own spread on that side of the median at that lead (its 10 % and 90 % quantiles: the
model knows where errors are larger, but not how large), are pooled per series, and the bound on each side is

    yhat + spread · Q(errors; level),

Q an empirical quantile with an exponential tail (`tail_quantiles`). Scaling errors by an estimate of their spread
before taking their quantile is locally weighted conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani & Wasserman,
JASA 113, 2018, section 5.2), here without its finite-sample correction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomaly_times.models.registry import Forecaster
from anomaly_times.models.season import nan_median, rows_by_length
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Forecast, Panel

__all__ = ["forecast_with_bounds"]

_ORIGINS, _ORIGINS_OF_SLOW = 8, 2
_ENOUGH = 32
_SCALE = 0.9
_SPOILED, _FEWEST_TO_DROP = 3.0, 5


def forecast_with_bounds(
    model: Forecaster, history: Panel, *, h: int, level: float, origins: int | None = None
) -> Forecast:
    """The next `h` points with bounds that hold `level` per cent of normal points; `yhat` is the model's median.

    `lower ≤ yhat ≤ upper`, and NaN where the model has no forecast. A series with fewer than 32 past errors gets a
    wide band (the model's own, no narrower than the range of its values) and a note.

    Args:
        model: any forecaster; an attribute `slow = True` means that it fits series by series.
        history: what the model may see.
        h: steps ahead, at least 1.
        level: per cent, inside (0, 100).
        origins: how many cut-offs to forecast from; by default 8, or 2 for a slow model.

    Raises:
        ModelError: if the model cannot work on this panel.
    """
    outside = (1 - level / 100) / 2
    wanted = tuple(sorted({outside, 1 - outside, 1 - _SCALE, _SCALE, 0.5}))
    quantiles = model.forecast(history, h=h, quantiles=wanted)
    yhat = quantiles.at(0.5)
    below, above = yhat - quantiles.at(1 - _SCALE), quantiles.at(_SCALE) - yhat
    unit = _unit(below, above)
    n_origins = origins or (_ORIGINS_OF_SLOW if getattr(model, "slow", False) else _ORIGINS)

    factor = np.full((history.n_series, 2), np.nan)
    count = np.zeros(history.n_series)
    for columns, members in rows_by_length(history.y):
        part = history.rows(members).columns(slice(history.grid.n - columns, None))
        errors = _past_errors(model, part, h, n_origins, unit[members])
        factor[members] = tail_quantiles(errors, (outside, 1 - outside))
        count[members] = np.isfinite(errors).sum(axis=1)
    down, up = np.nan_to_num(np.maximum(-factor[:, :1], 0.0)), np.nan_to_num(np.maximum(factor[:, 1:], 0.0))
    with np.errstate(over="ignore", invalid="ignore"):
        down, up = down * np.maximum(below, unit), up * np.maximum(above, unit)
        warming = count < _ENOUGH
        wide = _wide(history.y, yhat)
        own_down, own_up = yhat - quantiles.at(outside), quantiles.at(1 - outside) - yhat
        down = np.where(warming[:, None], np.maximum(np.maximum(down, own_down), wide), down)
        up = np.where(warming[:, None], np.maximum(np.maximum(up, own_up), wide), up)
        limit = np.finfo(np.float64).max
        lower, upper = np.clip(yhat - down, -limit, limit), np.clip(yhat + up, -limit, limit)
    notes = dict(quantiles.notes)
    for i in np.flatnonzero(warming & np.isfinite(yhat).any(axis=1)).tolist():
        text = f"warming up: {int(count[i])} past errors, so the band is wide"
        notes[i] = f"{notes[i]}; {text}" if i in notes else text
    return Forecast(history.labels, quantiles.grid, history.grid.end, yhat, lower, upper, notes)


def _cuts(n_points: int, h: int, origins: int) -> Sequence[int]:
    """How many points each past forecast sees: from half of them to all but a horizon (a quarter, if that is less)."""
    last = n_points - min(h, max(1, n_points // 4))
    return sorted({int(cut) for cut in np.linspace(max(1, n_points // 2), last, origins) if 1 <= cut < n_points})


def _past_errors(model: Forecaster, part: Panel, h: int, origins: int, unit: Floats) -> Floats:
    """Errors of forecasts from inside the history, in units of the model's own spread: float64[S, N], NaN in gaps."""
    errors: list[Floats] = []
    for cut in _cuts(part.grid.n, h, origins):
        ahead = min(h, part.grid.n - cut)
        past = model.forecast(part.columns(slice(cut)), h=ahead, quantiles=(1 - _SCALE, 0.5, _SCALE))
        with np.errstate(over="ignore", invalid="ignore"):
            yhat = past.at(0.5)
            error = part.y[:, cut : cut + ahead] - yhat
            spread = np.where(error > 0, past.at(_SCALE) - yhat, yhat - past.at(1 - _SCALE))
            errors.append(error / np.maximum(spread, unit))
    if not errors:
        return np.empty((part.n_series, 0))
    if len(errors) >= _FEWEST_TO_DROP:
        _drop_incident(errors)
    pooled = np.concatenate(errors, axis=1)
    return np.where(np.isfinite(pooled), pooled, np.nan)


def _drop_incident(errors: list[Floats]) -> None:
    """Leave out each series' worst past forecast (in place) where it went three times as wrong as the median one.

    With eight cut-offs an incident of a few hours spoils an eighth of all errors, more than a tail can bear.
    """
    sizes = np.stack([_mean(np.abs(one)) for one in errors], axis=1)
    worst = sizes == np.fmax.reduce(sizes, axis=1)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        spoiled = worst & (sizes > _SPOILED * nan_median(sizes)[:, None])
    for i, one in enumerate(errors):
        one[spoiled[:, i]] = np.nan


def _mean(x: Floats) -> Floats:
    known = np.isfinite(x)
    with np.errstate(over="ignore"):
        total = np.where(known, x, 0.0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(1, known.sum(axis=1)), np.nan)


def _unit(below: Floats, above: Floats) -> Floats:
    """The least spread that errors are divided by: a tenth of the usual one, 1 where that is 0: float64[S, 1]."""
    with np.errstate(over="ignore", invalid="ignore"):
        usual = 0.05 * np.nan_to_num((below / 2 + above / 2).mean(axis=1, keepdims=True) * 2)
    return np.where(usual > 0, usual, 1.0)


def _wide(y: Floats, yhat: Floats) -> Floats:
    """A half-width where next to nothing is known: the range of the values, and the forecast over their number."""
    highest, lowest = np.fmax.reduce(y, axis=1), np.fmin.reduce(y, axis=1)
    n = np.maximum(1, np.isfinite(y).sum(axis=1))
    return np.asarray(np.nan_to_num(highest - lowest)[:, None] + np.abs(yhat) / n[:, None])
