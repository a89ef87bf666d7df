"""Quantiles of a sample of errors, also beyond what the sample has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
    if not errors.shape[1]:
        return np.full((len(errors), len(levels)), np.nan)
    ordered = np.sort(errors, axis=1)
    last = np.maximum(0, ordered.shape[1] - 1 - np.isnan(ordered).sum(axis=1, keepdims=True))
    q = np.array(levels)
    out = _empirical(ordered, last, np.clip(q, 1 - _OUTER, _OUTER))
    beyond = (q > _OUTER) | (q < 1 - _OUTER)
    if beyond.any():
        inner = _empirical(ordered, last, np.clip(q[beyond], 1 - _INNER, _INNER))
        depth = np.log((1 - _OUTER) / np.minimum(q, 1 - q)[beyond]) / np.log(2.0)
        out[:, beyond] += (out[:, beyond] - inner) * depth
    return out


def _empirical(ordered: Floats, last: npt.NDArray[np.intp], q: Floats) -> Floats:
    position = q * last
    below = position.astype(np.intp)
    rows = np.arange(len(ordered))[:, None]
    low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
    share = position - below
    return np.asarray(low * (1 - share) + high * share)
