"""From forecasts to final bounds, and from bounds to scores.

The scale is that of distance over half-width: 0 at the forecast, 1 at the bound, over 1 anomalous. The forecast pass
makes the bounds final (`final_bounds`), so that value, forecast and bounds as they are stored reproduce a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from anomaly_times.evidence import (
    DRIFT,
    LEVEL_SHIFT,
    MISSING,
    OUT_OF_RANGE,
    POINT,
    ROUGHNESS,
    SUSTAINED,
    Memory,
    advance,
    deviation,
    incidents,
    is_level_shift,
    ratios_to_limits,
    strongest,
)
from anomaly_times.mission import Detect
from anomaly_times.panel import Floats, Forecast, Grid, Labels, Limits, Scores, round_significant

__all__ = [
    "MAX_SCORE",
    "MISSING_SCORE",
    "POINTS_ALONE",
    "Scored",
    "final_bounds",
    "format_score",
    "gated",
    "resolution",
    "score",
    "unseen_sides",
]

MAX_SCORE = 1000.0
MISSING_SCORE = 2.0
"""What a point scores that is not there, under `missing: anomaly`."""

_NARROWEST = 1e-9
_RELATIVE_FLOOR = 0.01
_LARGEST = 1e300
_OFTEN = 0.02

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]


def format_score(score: float) -> str:
    """A score for people, the same wherever one is shown: two decimals, `0.86`, `1000.00`."""
    return f"{score:.2f}"


def resolution(history: Floats) -> Floats:
    """The smallest move of each series from one point to the next: float64[S], 0 where it hardly ever moves.

    A gauge of whole requests has 1, a percentage that an exporter rounds has 0.01; a bound closer to the forecast than
    that would flag the rounding. A series that moves at fewer than one point in fifty has none: its few moves are
    incidents, and no measure of what is normal. Moves under a billionth of the values' size are float noise.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        moves = np.abs(np.diff(history, axis=1))
        noise = 1e-9 * np.fmax.reduce(np.abs(history), axis=1, initial=0.0)
        moved = moves > noise[:, None]
    often = moved.sum(axis=1) >= _OFTEN * np.isfinite(moves).sum(axis=1)
    smallest = np.where(moved, moves, np.inf).min(axis=1, initial=np.inf)
    return np.where(often & np.isfinite(smallest), smallest, 0.0)


def final_bounds(
    forecast: Forecast, detect: Detect, *, resolution: Floats, interval_scale: tuple[float, float] = (1.0, 1.0)
) -> Forecast:
    """The forecast as it is stored: inside the valid range, with bounds wide enough to mean something.

    `yhat` is clipped into `detect.valid_range`. Each half-width is at least the largest of the history's resolution,
    1 % of |yhat| and 1e-9, and is then scaled by `interval_scale` (below, above). The bounds themselves are not
    clipped: a lower bound of 0 would let a total loss of traffic score exactly 1. All values have 9 significant
    digits.

    Args:
        forecast: float64[S, h]; NaN stays NaN.
        detect: where `valid_range` stands.
        resolution: float64[S], see `resolution`.
        interval_scale: factors for the lower and upper half-width.
    """
    low, high = detect.valid_range
    yhat = round_significant(np.clip(forecast.yhat, max(low, -_LARGEST), min(high, _LARGEST)))
    floor = np.maximum(np.maximum(resolution[:, None], _RELATIVE_FLOOR * np.abs(yhat)), _NARROWEST)
    # What is left of a half-width must survive the rounding to nine digits.
    least = np.maximum(_NARROWEST, 1e-8 * np.abs(yhat))
    below = np.maximum(
        np.maximum(yhat - np.clip(forecast.lower, -_LARGEST, _LARGEST), floor) * interval_scale[0], least
    )
    above = np.maximum(
        np.maximum(np.clip(forecast.upper, -_LARGEST, _LARGEST) - yhat, floor) * interval_scale[1], least
    )
    lower = round_significant(yhat - np.minimum(below, _LARGEST))
    upper = round_significant(yhat + np.minimum(above, _LARGEST))
    known = np.isfinite(yhat) & np.isfinite(lower) & np.isfinite(upper)
    return replace(
        forecast,
        yhat=np.where(known, yhat, np.nan),
        lower=np.where(known, lower, np.nan),
        upper=np.where(known, upper, np.nan),
    )


def unseen_sides(forecast: Forecast, detect: Detect) -> tuple[int, int]:
    """How many series have a band that leaves no room for an anomaly (below, above) inside the valid range.

    A value can then not be outside of the band without being outside of what can be.
    """
    low, high = detect.valid_range
    with np.errstate(invalid="ignore"):
        below = (forecast.lower <= low).any(axis=1) if np.isfinite(low) else np.zeros(len(forecast.labels), bool)
        above = (forecast.upper >= high).any(axis=1) if np.isfinite(high) else np.zeros(len(forecast.labels), bool)
    return int(below.sum()), int(above.sum())


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores, what was decided on the way, and what detection remembers after the last point.

    `gates` counts each series' points (int[S]) by what settled their score: `out_of_range`, `direction`,
    `min_deviation`, `missing`; those that settled none are left out. `unforecast` (int[S]) counts values that no
    forecast stands against: they have no score.
    """

    scores: Scores
    gates: Mapping[str, Ints]
    unforecast: Ints
    memory: Memory

    def rows(self, key: slice) -> Scored:
        """The series of `key`; views."""
        gates = {gate: count[key] for gate, count in self.gates.items()}
        return Scored(self.scores.rows(key), gates, self.unforecast[key], self.memory.rows(key))


def score(
    labels: Sequence[Labels],
    grid: Grid,
    y: Floats,
    forecast: tuple[Floats, Floats, Floats],
    detect: Detect,
    *,
    limits: Limits | None = None,
    memory: Memory | None = None,
) -> Scored:
    """Hold values against a forecast, and what they add up to against its limits.

    In this order: no forecast → no score; no value → as `detect.missing` says; a value that cannot be →
    `detect.out_of_range_score`, whatever the gates say; else the largest ratio of evidence to limit among the channels
    whose gates are open, at most 1,000, and 0 where none is.

    The gates of a channel: the wrong side for `detect.direction`, or less than `min_deviation` or
    `min_relative_deviation` · |yhat|. For `point` that is about y − yhat; for `sustained` and `drift` about how far
    values have been from the forecast of late (`evidence.deviation`), and on which side; for `roughness`, which has no
    side and so needs `direction: both`, about the size of the moves, which must be 1 % of |yhat| as bounds must. A flat
    line has none.

    Args:
        labels: of the source series, S of them.
        grid: T times.
        y: float64[S, T], NaN where there is no value. One that cannot be is no evidence over time.
        forecast: yhat, lower, upper; float64[S, T] each, NaN where there is none.
        detect: the gates.
        limits: of evidence over time, for these points; without them points alone are judged.
        memory: what detection remembers of the time before; nothing by default.

    Returns:
        Scores, reasons and evidence with 9 significant digits; NaN where a point has none.
    """
    memory = memory or Memory.none(len(labels))
    y = round_significant(y)
    yhat, lower, upper = (round_significant(part) for part in forecast)
    expected = np.isfinite(yhat) & np.isfinite(lower) & np.isfinite(upper)
    absent = expected & ~np.isfinite(y)
    if detect.missing == "zero":
        y = np.where(absent, 0.0, y)
    known = expected & np.isfinite(y)
    low, high = detect.valid_range
    with np.errstate(invalid="ignore"):
        impossible = known & ((y < low) | (y > high))

    limits = limits or POINTS_ALONE
    memory, found = advance(memory, np.where(impossible, np.nan, y), (yhat, lower, upper), limits, step=grid.step)
    found = round_significant(found)
    result, reason, closed = gated(y, (yhat, lower, upper), found, limits, detect)
    result[impossible], reason[impossible] = detect.out_of_range_score, OUT_OF_RANGE
    if detect.missing == "anomaly":
        result[absent], reason[absent] = MISSING_SCORE, MISSING
    result = round_significant(result)
    memory, incident = incidents(result, memory, step=grid.step)

    wrong_side, small = closed[:, POINT]
    gates = {
        "out_of_range": impossible,
        "direction": wrong_side & ~impossible,
        "min_deviation": small & ~wrong_side & ~impossible,
        "missing": absent & ~impossible & ~wrong_side & ~small,
    }
    return Scored(
        Scores(
            *(tuple(labels), grid, y, yhat, lower, upper, result),
            reason=reason,
            evidence=found[1:],
            incident=np.where(np.isfinite(result), incident, np.nan),
        ),
        {name: mask.sum(axis=1) for name, mask in gates.items() if mask.any()},
        (np.isfinite(y) & ~expected).sum(axis=1),
        memory,
    )


def gated(
    y: Floats, forecast: tuple[Floats, Floats, Floats], found: Floats, limits: Limits, detect: Detect
) -> tuple[Floats, Floats, Bools]:
    """What evidence scores under the gates of `detect`, before it is rounded, and what that is of.

    Args:
        y: float64[S, T].
        forecast: yhat, lower, upper; float64[S, T] each.
        found: evidence by channel, float64[5, S, T]; it does not depend on gates.
        limits: in force at each point.
        detect: the gates.

    Returns:
        Scores and reasons (float64[S, T], NaN where there is no evidence), and which gates are closed for each channel:
        bool[2, 5, S, T], for the side and for the size.
    """
    closed = _closed(y, forecast, found, limits, detect)
    ratios = np.where(closed.any(axis=0), 0.0, ratios_to_limits(found, limits))
    result, channel = strongest(ratios)
    reason = np.where(np.isfinite(result), channel.astype(np.float64), np.nan)
    shifted = np.isin(channel, (POINT, SUSTAINED, DRIFT)) & (result > 0) & is_level_shift(found)
    reason[shifted] = LEVEL_SHIFT
    return np.minimum(result, MAX_SCORE), reason, closed


POINTS_ALONE = Limits(np.full((5, 1, 1), np.nan), np.full((5, 1, 1), np.nan), np.full((1, 1), np.nan))
POINTS_ALONE.usual[POINT], POINTS_ALONE.limit[POINT] = 0.0, 1.0
"""Limits of any series where nothing but points counts."""


def _closed(y: Floats, forecast: tuple[Floats, Floats, Floats], found: Floats, limits: Limits, detect: Detect) -> Bools:
    """Which gates are closed for each channel: bool[2, 5, S, T], for the side and for the size."""
    yhat, lower, upper = forecast
    side = np.zeros((2, *found.shape), dtype=np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        lately = deviation(found[DRIFT], yhat - lower, upper - yhat)
        oddness = deviation(np.copysign(found[SUSTAINED], found[DRIFT]), yhat - lower, upper - yhat)
        for channel, size, above in (
            (POINT, np.abs(y - yhat), y > yhat),
            (SUSTAINED, oddness, found[DRIFT] > 0),
            (DRIFT, lately, found[DRIFT] > 0),
        ):
            least = np.where(above, detect.min_deviation[1], detect.min_deviation[0])
            share = np.where(above, detect.min_relative_deviation[1], detect.min_relative_deviation[0])
            side[1, channel] = (size < least) | (size < share * np.abs(yhat))
            if detect.direction != "both":
                side[0, channel] = (above != (detect.direction == "above")) & (size > 0)
        move = found[ROUGHNESS] ** 2 * limits.move
        relative = max(_RELATIVE_FLOOR, min(detect.min_relative_deviation))
        side[1, ROUGHNESS] = (move < min(detect.min_deviation)) | (move < relative * np.abs(yhat))
    side[0, ROUGHNESS] = detect.direction != "both"
    return side & np.isfinite(found)
