"""Quantiles of a sample of errors, also beyond what the sample has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from anomaly_times.panel import Floats

__all__ = ["ParetoTails", "pareto", "student_to_normal", "tail_quantiles"]

# Where the exponential tail is fitted, and where it begins.
_INNER, _OUTER = 0.90, 0.95
# The share of errors on each side that the Pareto tails are fitted to.
_BEYOND = 0.1
# Metrics have heavy tails. A shape needs hundreds of exceedances to be told, so it is drawn towards this one as if so
# many had told it.
_SHAPE, _SHAPE_WEIGHT = 0.2, 100.0
_SHAPES = (-0.5, 0.6)

Ints = npt.NDArray[np.intp]


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


def _empirical(ordered: Floats, last: Ints, q: Floats) -> Floats:
    position = q * last
    below = position.astype(np.intp)
    rows = np.arange(len(ordered))[:, None]
    low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
    share = position - below
    return np.asarray(low * (1 - share) + high * share)


@dataclass(frozen=True, eq=False)
class ParetoTails:
    """Rows of errors in order, and how each goes on beyond its tenth on either side.

    Peaks over threshold (Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, ch. 4): what exceeds
    the 90 % quantile follows a generalised Pareto distribution. Its shape comes from probability-weighted moments
    (Hosking & Wallis, Technometrics 29, 1987), shrunk towards 0.2; its scale from the mean excess, given the shape.

    `threshold`, `scale` and `shape` are float64[S, 2]: of the lower side, counted downwards, and of the upper one.
    """

    ordered: Floats
    last: Ints
    threshold: Floats
    scale: Floats
    shape: Floats

    @classmethod
    def of(cls, errors: Floats) -> ParetoTails:
        """The tails of each row of `errors`, float64[S, N] with N ≥ 1, NaN left out."""
        ordered = np.sort(errors, axis=1)
        last = ordered.shape[1] - 1 - np.isnan(ordered).sum(axis=1, keepdims=True)
        sides = [_fit(ordered, last, upper=upper) for upper in (False, True)]
        threshold, scale, shape = (np.stack(each, axis=1) for each in zip(*sides, strict=True))
        return cls(ordered, np.maximum(0, last), threshold, scale, shape)

    def beyond(self, share: float) -> tuple[Floats, Floats]:
        """How far below and above zero the quantiles `share` and 1 − `share` lie: float64[S] each, NaN for empty rows.

        0 where such a quantile lies on the other side of zero.
        """
        if share >= _BEYOND:
            low, high = _empirical(self.ordered, self.last, np.array([share, 1 - share])).T
            return np.maximum(-low, 0.0), np.maximum(high, 0.0)
        with np.errstate(over="ignore"):
            far = self.threshold + self.scale * ((_BEYOND / share) ** self.shape - 1) / self.shape
        below, above = np.maximum(far, 0.0).T
        return below, above


def _fit(ordered: Floats, last: Ints, *, upper: bool) -> tuple[Floats, Floats, Floats]:
    """Threshold, scale and shape of one side's tail, float64[S] each."""
    sign = 1.0 if upper else -1.0
    q = np.array([1 - _BEYOND if upper else _BEYOND])
    threshold = sign * _empirical(ordered, np.maximum(0, last), q)
    most = max(1, round(_BEYOND * ordered.shape[1]))
    rank = np.arange(most)
    n = np.maximum(1, np.rint(_BEYOND * (last + 1)))
    at = last - rank if upper else np.broadcast_to(rank, (len(ordered), most))
    excess = sign * np.take_along_axis(ordered, np.clip(at, 0, ordered.shape[1] - 1), axis=1) - threshold
    excess = np.where((rank < n) & np.isfinite(excess), np.maximum(excess, 0.0), 0.0)
    # The largest excess may be near the end of what a double holds.
    unit = np.maximum(excess.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    excess = excess / unit
    scale, shape = pareto(excess, n[:, 0], weight=_SHAPE_WEIGHT)
    with np.errstate(over="ignore"):
        return threshold[:, 0], scale * unit[:, 0], shape


def pareto(excess: Floats, n: Floats, *, weight: float) -> tuple[Floats, Floats]:
    """Scale and shape of a generalised Pareto distribution, float64[S] each, by probability-weighted moments.

    Hosking & Wallis, Technometrics 29, 1987. The shape is drawn towards 0.2, the usual one of metrics.

    Args:
        excess: over the threshold, the largest first and 0 after the last: float64[S, N], of a size that can be summed.
        n: how many there are, at least 1: float64[S].
        weight: how many values the usual shape is worth.
    """
    mean = excess.sum(axis=1) / n
    weighted = (excess * (np.arange(excess.shape[1]) + 0.35)).sum(axis=1) / n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        told = np.nan_to_num(2 - mean / (mean - 2 * weighted), nan=0.0, posinf=0.0, neginf=0.0)
    shape = (n * np.clip(told, *_SHAPES) + weight * _SHAPE) / (n + weight)
    shape = np.where(np.abs(shape) < 1e-6, 1e-6, shape)
    return mean * (1 - shape), shape


def student_to_normal(p: float, freedom: Floats) -> Floats:
    """How many times as far as the normal one Student's quantile `p` > 0.5 lies, by degrees of freedom.

    The expansion in 1 / freedom of Abramowitz & Stegun, Handbook of Mathematical Functions, 1964, 26.7.5; within a
    tenth from three degrees on, at quantiles up to 0.9995.
    """
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**2 + 1) / 4,
        (5 * z**4 + 16 * z**2 + 3) / 96,
        (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / 384,
        (79 * z**8 + 776 * z**6 + 1482 * z**4 - 1920 * z**2 - 945) / 92160,
    )
    return np.asarray(1 + sum(term / freedom ** (k + 1) for k, term in enumerate(terms)))
