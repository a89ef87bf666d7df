"""Evidence over time: what each new point adds to it, and when it is enough.

A point outside a band is weak evidence: a minutely series has ten thousand points a week, and many incidents are rows
of mildly odd points, a change of roughness, or a slow drift. Five channels look for them, each causal, each with a
limit of its own; the score is the largest ratio of evidence to limit. With e = y − yhat, r = e over the half-width of
the band on its side, and ρ = sign(r) √min(|r|, 1):

- `point` is |r|.
- `sustained` is the moving average of |ρ|: oddness that lasts, after the anomaly likelihood of Ahmad, Lavin, Purdy &
  Agha (Neurocomputing 262, 2017).
- `roughness` is the moving average of √min(|Δy| / move, 8), where `move` makes its usual value 1.
- `drift` is the moving average of ρ: a shift that the forecast has not followed.
- `flat` is for how many steps the value has not moved: an exporter that hangs.

Averages are exponential and forget one half in an hour, or in three steps where that is longer. The root makes errors
with light and with heavy tails alike: of normal ones it has no skewness left, of Student's with three degrees of
freedom a little, so an average over an hour is nearly normal, and one outlier weighs no more than it should.

All that an average remembers is one number a series, and it is rounded to single precision after every step. Nine
significant digits name such a number exactly, so one that was written to a store and read back goes on bit by bit like
one that stayed in memory, however the points are cut into passes.

Limits are made in a forecast pass, see `limits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from anomaly_times.panel import Floats, Limits

__all__ = [
    "CHANNELS",
    "DRIFT",
    "FLAT",
    "KEPT",
    "LEVEL_SHIFT",
    "MISSING",
    "OUT_OF_RANGE",
    "POINT",
    "REASONS",
    "ROUGHNESS",
    "SUSTAINED",
    "Memory",
    "advance",
    "decay",
    "deviation",
    "incidents",
    "is_level_shift",
    "ratios_to_limits",
    "remembered",
    "root",
    "rough",
    "strongest",
]

CHANNELS = ("point", "sustained", "roughness", "drift", "flat")
"""What evidence there is; arrays of evidence and of limits have them in this order."""
KEPT = CHANNELS[1:]
"""The channels whose evidence is kept beside the score: that of a point is in value and bounds."""
REASONS = (*CHANNELS, "level shift", "out of range", "missing")
"""What a score may be of; stores keep the place in this list."""

POINT, SUSTAINED, ROUGHNESS, DRIFT, FLAT = range(len(CHANNELS))
LEVEL_SHIFT, OUT_OF_RANGE, MISSING = range(len(CHANNELS), len(REASONS))

_HALF_LIFE, _FEWEST_STEPS = timedelta(hours=1), 3
_REMEMBERED = timedelta(minutes=15)
_ROUGHEST = 8.0
_LEVEL_SHIFT, _ONE_SIDED = 0.35, 0.5
_LARGEST = 1e300
_HIGHEST, _QUIET = 2.0, timedelta(days=2)

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Memory:
    """What detection remembers of S series between two passes, after some time of the grid.

    `averages` (float64[3, S]) are those of the channels `sustained`, `roughness` and `drift`, NaN where there is none
    yet, in single precision; `flat` counts the steps since the value last moved; `last` is the value at that time, NaN
    where it gave no evidence; `idle` is how many steps ago the averages took a value. `incident` is the envelope of
    scores, 0 where it is over, and `silent` how many steps ago there was a score (float64[S] each).
    """

    averages: Floats
    flat: Floats
    last: Floats
    idle: Floats
    incident: Floats
    silent: Floats

    @classmethod
    def none(cls, n: int) -> Memory:
        """Of `n` series that nothing is known of: evidence begins at its usual value."""
        return cls(np.full((3, n), np.nan), np.zeros(n), np.full(n, np.nan), np.zeros(n), np.zeros(n), np.zeros(n))

    @classmethod
    def of(cls, kept: Floats, incident: Floats, last: Floats, *, step: timedelta) -> Memory:
        """From what a store kept of the last steps, oldest first; at least `remembered(step)` of them.

        Args:
            kept: float64[4, S, T], by channel of `KEPT`, NaN where a point gave none.
            incident: float64[S, T], NaN or 0 where there was none.
            last: the value at the last of these times, float64[S].
            step: between two points.
        """
        kept, incident = kept[:, :, -remembered(step) :], incident[:, -remembered(step) :]
        n_points = incident.shape[1]
        known = np.isfinite(kept[0])
        idle = np.where(known.any(axis=1), np.argmax(known[:, ::-1], axis=1), n_points)
        newest = np.maximum(n_points - 1 - idle, 0)
        found = np.take_along_axis(kept, newest[None, :, None], axis=2)[:, :, 0] if n_points else kept[:, :, :0].sum(2)
        remembers = idle < n_points
        averages = np.where(remembers, _single(found[:3]), np.nan)
        there = idle == 0 if n_points else np.zeros(len(last), dtype=np.bool_)
        flat = np.where(there, np.nan_to_num(found[3]), 0.0)
        envelope = np.zeros(len(last))
        heights = np.nan_to_num(incident)
        silent = np.full(len(last), float(n_points))
        for t in range(n_points):
            envelope = _faded(envelope, step)
            stored = heights[:, t] > 1
            envelope = np.where(stored, _single(heights[:, t]), envelope)
            silent = np.where(stored, float(n_points - 1 - t), silent)
        return cls(averages, flat, np.where(there, last, np.nan), idle.astype(np.float64), envelope, silent)

    def rows(self, positions: Ints | Bools | slice) -> Memory:
        """The series at these positions, or where this boolean mask is true; of a slice, views."""
        return Memory(
            self.averages[:, positions],
            self.flat[positions],
            self.last[positions],
            self.idle[positions],
            self.incident[positions],
            self.silent[positions],
        )


def remembered(step: timedelta) -> int:
    """After how many steps without evidence it begins anew: a quarter of an hour, or three."""
    return max(_FEWEST_STEPS, round(_REMEMBERED / step))


def advance(
    memory: Memory, y: Floats, forecast: tuple[Floats, Floats, Floats], limits: Limits, *, step: timedelta
) -> tuple[Memory, Floats]:
    """Take the next T points of each series: what is remembered after them, and the evidence at each.

    A point without a value or without a forecast changes no average, and a value after it is none that moved. After a
    gap (`remembered`) averages begin anew at their usual values. However points are cut into batches, the numbers are
    the same, bit by bit.

    Args:
        memory: as the point before left it.
        y: float64[S, T], NaN where there is no value.
        forecast: yhat, lower, upper; float64[S, T] each, NaN where there is none.
        limits: in force at each of the points; one without a `move` (NaN) is judged by itself alone.
        step: between two points.

    Returns:
        The memory (with the incidents as they were), and the evidence: float64[5, S, T], NaN where a point has no value
        or no forecast. That of `drift` has the sign of the errors.
    """
    yhat, lower, upper = forecast
    n_series, n_points = y.shape
    if not n_points:
        return memory, np.empty((len(CHANNELS), n_series, 0))
    with np.errstate(all="ignore"):
        error = y - yhat
        ratio = error / np.where(error >= 0, upper - yhat, yhat - lower)
        ratio = np.clip(ratio, -_LARGEST, _LARGEST)
        there = np.isfinite(ratio)
        known = there & np.isfinite(limits.move)
        seen = np.where(known, y, np.nan)
        before = np.concatenate([memory.last[:, None], seen[:, :-1]], axis=1)
        move = np.abs(seen - before)
        signed = root(ratio)
        start = np.broadcast_to(limits.usual[1:4], (3, n_series, n_points))
        inputs = np.stack([np.abs(signed), rough(move, limits.move), signed])
        takes = np.stack([known, known & np.isfinite(move), known])

    at = np.arange(n_points)
    newest = np.maximum.accumulate(np.where(known, at, -1), axis=1)
    long_ago = np.where(np.isnan(memory.averages[0]), remembered(step), memory.idle)[:, None]
    idle = np.where(newest >= 0, at - newest, at + 1 + long_ago)
    since = np.concatenate([long_ago, idle[:, :-1]], axis=1)
    forgotten = known & (since >= remembered(step))
    averages = _averages(memory.averages, inputs, takes, start, forgotten, keep=decay(step))

    moved = ~(seen == before)
    last_move = np.maximum.accumulate(np.where(moved, at, -1), axis=1)
    flat = np.where(last_move >= 0, at - last_move, at + 1 + memory.flat[:, None]).astype(np.float64)

    evidence = np.concatenate([np.abs(ratio)[None], averages, flat[None]])
    evidence[0, ~there] = np.nan
    evidence[1:, ~known] = np.nan
    after = Memory(
        averages[:, :, -1].copy(),
        flat[:, -1].copy(),
        seen[:, -1].copy(),
        idle[:, -1].astype(np.float64),
        memory.incident,
        memory.silent,
    )
    return after, evidence


def ratios_to_limits(evidence: Floats, limits: Limits) -> Floats:
    """How far evidence (float64[5, S, T]) is on its way from usual (0) to the limit (1): float64[5, S, T].

    NaN where there is no evidence, 0 for what is less than usual.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        ratio = (np.abs(evidence) - limits.usual) / (limits.limit - limits.usual)
    return np.maximum(ratio, 0.0)


def strongest(ratios: Floats) -> tuple[Floats, Ints]:
    """The score, which is the largest ratio (float64[S, T]), and which of `CHANNELS` it is (int[S, T], −1 for none)."""
    there = np.isfinite(ratios).any(axis=0)
    filled = np.where(np.isnan(ratios), -np.inf, ratios)
    channel = filled.argmax(axis=0)
    return np.where(there, filled.max(axis=0), np.nan), np.where(there, channel, -1)


def is_level_shift(evidence: Floats) -> Bools:
    """Where values have stayed on one side of the forecast, and far from it (bool[S, T]).

    Drift is at 0.35 of what it can be, which takes forty minutes (or two steps) at or beyond the bound, and at half of
    the oddness of both sides.
    """
    with np.errstate(invalid="ignore"):
        drift = np.abs(evidence[DRIFT])
        return np.asarray((drift >= _LEVEL_SHIFT) & (drift >= _ONE_SIDED * evidence[SUSTAINED]))


def deviation(average: Floats, lower: Floats, upper: Floats) -> Floats:
    """How far values have been from the forecast of late, in the unit of the series: that of an average of ρ.

    Half-widths times the average squared, on the side of its sign; float64[S, T] all.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(average**2 * np.where(average >= 0, upper, lower))


def incidents(score: Floats, memory: Memory, *, step: timedelta) -> tuple[Memory, Floats]:
    """Whether an incident lasts at each point: over 1 while it does, 0 when it is over (float64[S, T]).

    The envelope is the largest score so far, counted up to 2, and halves every two days; it is 0 where that is 1 or
    less. An incident begins where it leaves 0, and is over two days after its last score of 2 or more, six hours after
    one of 1.1, or when there was no score for as long as evidence is remembered.

    Args:
        score: float64[S, T], NaN where there is none.
        memory: as the point before left it.
        step: between two points.

    Returns:
        The memory after the last point, and the envelope at each.
    """
    now, silent = memory.incident, memory.silent
    out = np.zeros(score.shape)
    there = np.isfinite(score)
    heights = np.minimum(np.where(there, score, 0.0), _HIGHEST)
    for t in range(score.shape[1]):
        now = np.where(silent < remembered(step), _faded(now, step), 0.0)
        now = np.maximum(now, np.where(heights[:, t] > 1, _single(heights[:, t]), 0.0))
        silent = np.where(there[:, t], 0.0, silent + 1)
        out[:, t] = now
    after = Memory(memory.averages, memory.flat, memory.last, memory.idle, now, silent)
    return after, out


def _window(step: timedelta) -> int:
    """In how many steps an average forgets one half."""
    return max(_FEWEST_STEPS, round(_HALF_LIFE / step))


def decay(step: timedelta) -> float:
    """What an average keeps of itself in a step."""
    return float(0.5 ** (1 / _window(step)))


def root(ratio: Floats) -> Floats:
    """ρ: the root of up to one half-width, with the sign of the error."""
    return np.asarray(np.copysign(np.sqrt(np.minimum(np.abs(ratio), 1.0)), ratio))


def rough(size: Floats, unit: Floats) -> Floats:
    """What a move adds to roughness: 1 for one of the usual size."""
    return np.asarray(np.sqrt(np.minimum(size / unit, _ROUGHEST)))


def _single(x: Floats) -> Floats:
    return x.astype(np.float32).astype(np.float64)


def _faded(envelope: Floats, step: timedelta) -> Floats:
    """The envelope a step later."""
    faded = _single(envelope * 0.5 ** (step / _QUIET))
    return np.where(faded > 1, faded, 0.0)


def _averages(
    averages: Floats, inputs: Floats, takes: Bools, start: Floats, forgotten: Bools, *, keep: float
) -> Floats:
    """The recursion of averages (float64[A, S] before the first point) over their inputs: float64[A, S, T].

    `takes` says where there is an input, `start` where an average begins that is `forgotten` (bool[S, T]).
    """
    out = np.empty(inputs.shape)
    # One time after the other, so times come first.
    steps = np.ascontiguousarray(np.moveaxis(inputs * (1 - keep), 2, 0))
    taken = np.ascontiguousarray(np.moveaxis(takes, 2, 0))
    anew = frozenset(np.flatnonzero(forgotten.any(axis=0)).tolist())
    every = frozenset(np.flatnonzero(np.logical_and.reduce(taken, axis=(1, 2))).tolist())
    now = _single(averages)
    for t in range(len(steps)):
        if t in anew:
            now = np.where(forgotten[:, t], _single(start[:, :, t]), now)
        after = _single(now * keep + steps[t])
        now = after if t in every else np.where(taken[t], after, now)
        out[:, :, t] = now
    return out
