"""`holt`: exponential smoothing of a level and a damped trend, without seasons, over many series at once.

Level and trend after any point are weighted sums of the points before it, so for each pair of smoothing weights they
are one product of the last few hundred points with two kernels. Which pair a series gets is decided by the absolute
errors of its own past forecasts, from moments all over its history; quantiles come from the same errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from anomaly_times.models.profile import between_leads, typical_size
from anomaly_times.models.season import blocks_of_rows, rows_by_length
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Panel, Quantiles

__all__ = ["Holt"]

_KERNEL = 256
_MOMENTS, _LEADS = 32, 6
_DAMPING = 0.98
# Smoothing weights of level and trend; a trend that follows every point is noise, so it is the slower of the two.
_WEIGHTS = (
    (1.0, 0.0), (0.5, 0.0), (0.25, 0.0), (0.12, 0.0), (0.06, 0.0), (0.03, 0.0),
    (0.8, 0.2), (0.3, 0.05), (0.1, 0.02),
)  # fmt: skip
# Other weights than the usual ones have to be better by so much.
_MARGIN = 0.02
_USUAL = 2

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Holt:
    """Exponential smoothing of a level and a damped trend (Gardner & McKenzie, Management Science 31, 1985).

    Args:
        season: not used; the model knows none.
        timezone: not used.
    """

    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        for columns, members in rows_by_length(history.y):
            for block in blocks_of_rows(len(members), columns):
                rows = members[block]
                values[rows] = _block(history.y[rows, history.grid.n - columns :], h, quantiles)
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values)


def _block(y: Floats, h: int, quantiles: Sequence[float]) -> Floats:
    x = _filled(y)
    center = x[:, -1:]
    scale = np.maximum(np.abs(x / 2 - center / 2).max(axis=1, keepdims=True) * 2, np.finfo(np.float64).tiny)
    z = (x - center) / scale
    plan = _plan(y.shape[1], h)
    padded = np.concatenate([np.repeat(z[:, :1], _KERNEL - 1, axis=1), z], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _KERNEL, axis=1)
    # Level and trend for each pair of weights after each moment, and after the last point: float64[S, M + 1, 2W].
    states = windows[:, np.append(plan.moments, y.shape[1] - 1)] @ _kernels()
    level, trend = states[:, :, : len(_WEIGHTS)], states[:, :, len(_WEIGHTS) :]
    there = np.where(np.isfinite(y), z, np.nan)[:, plan.at]
    expected = level[:, None, :-1] + plan.damped[:, None, None] * trend[:, None, :-1]
    errors = there[..., None] - expected
    sizes = np.nan_to_num(np.abs(errors)).sum(axis=(1, 2))
    sizes[:, _USUAL] *= 1 - _MARGIN
    choice = sizes.argmin(axis=1)
    rows = np.arange(len(y))
    own = errors[rows, :, :, choice]
    by_lead = typical_size(own)
    shape = tail_quantiles((own / by_lead[:, :, None]).reshape(len(y), -1), quantiles)
    shape = np.where(np.isnan(shape), 0.0, shape)
    ahead = level[rows, -1, choice][:, None] + plan.damped_ahead * trend[rows, -1, choice][:, None]
    unit = by_lead @ plan.between
    with np.errstate(over="ignore"):
        out = (ahead[:, :, None] + unit[:, :, None] * shape[:, None, :]) * scale[:, :, None] + center[:, :, None]
    limit = np.finfo(np.float64).max
    return np.asarray(np.clip(out, -limit, limit))


def _filled(y: Floats) -> Floats:
    """Gaps take the value before them, those at the front the first one."""
    known = np.isfinite(y)
    if known.all():
        return y
    at = np.maximum.accumulate(np.where(known, np.arange(y.shape[1]), -1), axis=1)
    at = np.where(at < 0, known.argmax(axis=1)[:, None], at)
    return np.take_along_axis(y, at, axis=1)


@dataclass(frozen=True)
class _Plan:
    """Past moments, leads, the columns `at[l, m]` that lie `leads[l]` after `moments[m]`, and what a trend adds."""

    moments: Ints
    at: Ints
    between: Floats
    damped: Floats
    damped_ahead: Floats


@lru_cache(maxsize=64)
def _plan(n_points: int, h: int) -> _Plan:
    reach = max(1, min(h, n_points // 3))
    leads = np.unique(np.geomspace(1, reach, _LEADS).round().astype(np.intp))
    moments = np.unique(np.linspace(min(16, n_points // 3), n_points - 1 - reach, _MOMENTS).astype(np.intp))
    if n_points < 4:
        moments = moments[:0]
    sums = np.cumsum(_DAMPING ** np.arange(1, max(h, reach) + 1))
    return _Plan(moments, leads[:, None] + moments, between_leads(leads, h), sums[leads - 1], sums[:h])


@lru_cache(maxsize=1)
def _kernels() -> Floats:
    """What a point so many steps back adds to level and trend, oldest first: float64[kernel, 2W].

    The recursions of the method, run on a single impulse. What lies before the kernel counts as its oldest point.
    """
    kernels = np.zeros((_KERNEL, 2, len(_WEIGHTS)))
    for i, (alpha, beta) in enumerate(_WEIGHTS):
        level, trend = alpha, alpha * beta
        for back in range(_KERNEL):
            kernels[-1 - back, :, i] = level, trend
            expected = level + _DAMPING * trend
            # Without a further impulse the observation is 0.
            level, trend = (1 - alpha) * expected, _DAMPING * trend - alpha * beta * expected
        kernels[0, :, i] += (1.0, 0.0) - kernels[:, :, i].sum(axis=0)
    return kernels.reshape(_KERNEL, -1)
