"""Quantiles of a sample of errors, also beyond what the sample has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomaly_times.panel import Floats

__all__ = ["tail_quantiles"]

# Where the tail is fitted, and where it begins.
_INNER, _OUTER = 0.90, 0.95


def tail_quantiles(errors: Floats, levels: Sequence[float]) -> Floats:
    """Quantiles of each row of `errors` (float64[S, N], NaN left out): float64[S, len(levels)]; NaN for empty rows.

    Between the 5 % and the 95 % quantile they are empirical (linear between order statistics, as numpy's default).
    Beyond, an exponential tail goes on from there: for q > 0.95

        Q(q) = Q(0.95) + b · ln(0.05 / (1 − q)),   b = (Q(0.95) − Q(0.90)) / ln 2,

    and likewise below. It is the peaks-over-threshold method with a generalised Pareto tail of shape 0 (Coles, An
    Introduction to Statistical Modeling of Extreme Values, 2001, ch. 4), its scale taken from the spacing of two
    quantiles (Pickands, Annals of Statistics 3, 1975) rather than from the largest errors, so that an incident in a
    twentieth of the sample does not widen it.
    """
    ordered = np.sort(errors, axis=1)
    if not ordered.shape[1]:
        return np.full((len(errors), len(levels)), np.nan)
    count = ordered.shape[1] - np.isnan(ordered).sum(axis=1)
    last = np.maximum(count - 1, 0)[:, None]

    def empirical(q: float) -> Floats:
        position = q * last
        below = np.floor(position).astype(np.intp)
        low = np.take_along_axis(ordered, below, axis=1)
        high = np.take_along_axis(ordered, np.minimum(below + 1, last), axis=1)
        share = position - below
        return np.asarray((low * (1 - share) + high * share)[:, 0])

    out = np.empty((len(errors), len(levels)))
    scale = {side: (empirical(side) - empirical(inner)) / np.log(2.0) for side, inner in _tails(levels)}
    for column, q in enumerate(levels):
        if q > _OUTER:
            out[:, column] = empirical(_OUTER) + scale[_OUTER] * np.log((1 - _OUTER) / (1 - q))
        elif q < 1 - _OUTER:
            out[:, column] = empirical(1 - _OUTER) + scale[1 - _OUTER] * np.log((1 - _OUTER) / q)
        else:
            out[:, column] = empirical(q)
    return out


def _tails(levels: Sequence[float]) -> list[tuple[float, float]]:
    return [
        *([(_OUTER, _INNER)] if any(q > _OUTER for q in levels) else []),
        *([(1 - _OUTER, 1 - _INNER)] if any(q < 1 - _OUTER for q in levels) else []),
    ]
