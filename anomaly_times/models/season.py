"""Seasons: where a time lies in the day and the week by a local clock, and whether a series follows them.

Slots are counted in local time, so a profile keeps its place through the 23 or 25 hours of a day on which clocks
change, and from grid times rather than positions, so a gap shifts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from anomaly_times.durations import milliseconds
from anomaly_times.panel import Floats, Grid, Panel
from anomaly_times.profiling import staged

__all__ = [
    "Cycles",
    "Season",
    "Windows",
    "believed",
    "block_medians",
    "blocks_of_rows",
    "candidate_periods",
    "find_seasons",
    "fit_season",
    "level_around",
    "middle_mean",
    "moving_level",
    "nan_median",
    "odd_seasons",
    "rows_by_length",
    "smoothed",
    "sorted_planes",
]

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(weeks=1)
FEWEST_SLOTS = 4
MOST_CYCLES = 8
_FEW_SLOTS = 24
# Fewer cost calls, more leave the cache; from 4 MiB an array on, numpy asks for huge pages, and that is slower still.
_BLOCK_VALUES = 1 << 18
# How a period that no clock has is found: on so many means at most, by a line of the spectrum so many times as high as
# the mean one (among hundreds of lines of noise one in ten thousand is), at up to so many times its period.
_MOST_MEANS, _LINE, _MULTIPLES, _OVERTONES = 512, 15.0, 6, 3
_LEAST_ALIKE, _SIMPLER = 0.2, 0.03
# Offsets from UTC change on quarter hours only, in every zone since 1972.
_QUARTER = 900_000

Ints = npt.NDArray[np.intp]


def local_ms(grid: Grid, timezone: str) -> npt.NDArray[np.int64]:
    """What a clock in `timezone` shows at every grid time, in milliseconds: int64[n]."""
    utc = grid.epoch_ms()
    if timezone == "UTC" or not grid.n:
        return utc
    zone = ZoneInfo(timezone)
    quarters, where = np.unique(utc // _QUARTER, return_inverse=True)
    offsets = [
        (datetime.fromtimestamp(quarter * _QUARTER / 1000, UTC).astimezone(zone).utcoffset() or timedelta(0))
        // timedelta(milliseconds=1)
        for quarter in quarters.tolist()
    ]
    return utc + np.array(offsets, dtype=np.int64)[where]


@dataclass(frozen=True)
class Cycles:
    """How a grid folds into cycles of one period: the newest eight, or a day of them, the last ending with the grid.

    `columns[c, s]` is the column that holds slot `s` of cycle `c` (the grid's length where there is none), the newest
    cycle last; `slot[t]` is the slot of a column, `ahead[k]` that of the `k`-th point after the grid.
    """

    period: timedelta
    columns: Ints
    slot: Ints
    ahead: Ints

    @classmethod
    def of(cls, grid: Grid, h: int, period: timedelta, timezone: str) -> Cycles:
        """The cycles of `grid`, and of the `h` points (at least 1) that follow it."""
        if timezone == "UTC":
            # Cycles count back from the end of the grid, so without changes of clocks only lengths matter.
            return _utc_cycles(grid.n, h, grid.step, period)
        return cls._of(local_ms(Grid(grid.start, grid.step, grid.n + h), timezone), grid.n, grid.step, period)

    @classmethod
    def _of(cls, clock: npt.NDArray[np.int64], n_points: int, step: timedelta, period: timedelta) -> Cycles:
        period_ms, step_ms = milliseconds(period), milliseconds(step)
        since = clock - clock[n_points]
        slot = (since % period_ms) // step_ms
        cycle = since[:n_points] // period_ms
        # A season changes over the weeks, so old cycles mislead; but an hour of the night says little of the day.
        most = max(MOST_CYCLES, DAY // period)
        n_cycles = min(most, -int(cycle.min())) if n_points else 0
        columns = np.full((n_cycles, -(-period_ms // step_ms)), n_points, dtype=np.intp)
        recent = np.flatnonzero(cycle >= -n_cycles)
        # Where clocks go back an hour comes twice: the later one stays.
        columns[cycle[recent] + n_cycles, slot[recent]] = recent
        return cls(period, columns, slot[:n_points], slot[n_points:])

    @cached_property
    def lacking(self) -> int:
        """How many slots of the oldest cycle come before the first column; 0 where the clock does not run evenly."""
        lacking = self.columns.size - self._evenly
        return lacking if self._evenly and lacking < self.columns.shape[1] else 0

    @cached_property
    def _evenly(self) -> int:
        """How many columns the cycles hold where these follow each other slot by slot up to the newest, else 0."""
        columns = self.columns.ravel()
        columns = columns[np.argmax(columns < len(self.slot)) :]
        even = np.array_equal(columns, np.arange(len(self.slot) - len(columns), len(self.slot)))
        return len(columns) if even else 0

    def fold(self, x: Floats, first: int = 0, *, blank: float = np.nan) -> Floats:
        """`x`, the grid's columns from `first` on, as float64[S, cycles, slots].

        NaN where a slot has no column, but `blank` in the first `lacking` ones. Often a view of `x`.
        """
        if self._evenly:
            x = x[:, x.shape[1] - self._evenly :]
            if self.lacking:
                x = np.concatenate([np.full((len(x), self.lacking), blank), x], axis=1)
            return x.reshape(len(x), *self.columns.shape)
        padded = np.concatenate([x, np.full((len(x), 1), np.nan)], axis=1)
        return padded.take(self.columns - first, axis=1)


@lru_cache(maxsize=64)
def _utc_cycles(n_points: int, h: int, step: timedelta, period: timedelta) -> Cycles:
    return Cycles._of(np.arange(n_points + h, dtype=np.int64) * milliseconds(step), n_points, step, period)


@dataclass(frozen=True)
class Season:
    """What one period explains of each series.

    `profile` (float64[S, slots]) has a mean of zero and is shrunk by what it explained out of sample. `strength`
    (float64[S]) is the share of the absolute error that it takes away in a cycle that it was not made from: 1 for a
    perfect season, 0 or less for none; NaN with fewer than two cycles. `n` (float64[S]) counts the cycles.
    """

    cycles: Cycles
    profile: Floats
    strength: Floats
    n: Floats


def blocks_of_rows(n_series: int, n_points: int) -> list[slice]:
    """Slices of rows such that one block of work stays in the processor's cache."""
    rows = max(1, _BLOCK_VALUES // max(1, n_points))
    return [slice(first, min(first + rows, n_series)) for first in range(0, n_series, rows)]


def rows_by_length(y: Floats) -> list[tuple[int, Ints]]:
    """Rows grouped by how far back their first point lies: `(columns, rows)`, columns halving.

    A series that is two hours old in a panel of two weeks is then treated as a series of two hours. Rows without any
    point are in no group.
    """
    n_points = y.shape[1]
    there = np.isfinite(y)
    age = np.where(there.any(axis=1), n_points - there.argmax(axis=1), 0)
    groups = []
    length, above = n_points, n_points + 1
    while length:
        members = np.flatnonzero((age < above) & (age > length // 2))
        if members.size:
            groups.append((length, members))
        length, above = length // 2, length // 2 + 1
    return groups


def candidate_periods(grid: Grid, season: Sequence[timedelta] | None = None) -> list[timedelta]:
    """The periods worth a look, shortest first: those given, else hour, day and week.

    Only those that the grid covers twice, with at least four slots (two where the period was given).
    """
    fewest = FEWEST_SLOTS if season is None else 2
    periods = (HOUR, DAY, WEEK) if season is None else season
    return [p for p in sorted(set(periods)) if p >= fewest * grid.step and 2 * p <= grid.n * grid.step]


def middle_mean(folded: Floats, lacking: int = 0) -> tuple[Floats, Floats]:
    """Mean of the middle half of the values along axis 1, gaps left out, and how many values there are.

    The interquartile mean: a quarter of the cycles may be incidents, and it is less noisy than the median. The first
    `lacking` values of the oldest cycle do not count.
    """
    if lacking:
        less, all_ = middle_mean(folded[:, 1:, :lacking]), middle_mean(folded[:, :, lacking:])
        return np.concatenate([less[0], all_[0]], axis=1), np.concatenate([less[1], all_[1]], axis=1)
    n = folded.shape[1]
    first = (n + 1) // 4
    if n <= MOST_CYCLES and folded.shape[2] > _FEW_SLOTS:
        ordered = sorted_planes([folded[:, i] for i in range(n)])
        middle = sum(ordered[first + 1 : n - first], start=ordered[first]) / (n - 2 * first)
    else:
        middle = np.sort(folded, axis=1)[:, first : n - first].mean(axis=1)
        # A sort moves gaps to the end, where the middle may not see them.
        middle[np.isnan(folded).any(axis=1)] = np.nan
    count = np.full(middle.shape, float(n))
    gaps = np.isnan(middle)
    if gaps.any():
        some = np.sort(np.moveaxis(folded, 1, -1)[gaps], axis=-1)
        there = n - np.isnan(some).sum(axis=-1)
        cut = (there + 1) // 4
        position = np.arange(n)
        inside = (position >= cut[:, None]) & (position < (there - cut)[:, None])
        total = np.where(inside, some, 0.0).sum(axis=-1)
        middle[gaps] = np.where(there > 0, total / np.maximum(1, there - 2 * cut), np.nan)
        count[gaps] = there
    return middle, count


def sorted_planes(planes: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Arrays of one shape sorted against each other element by element; a NaN makes its element NaN in all of them.

    Batcher's odd-even merge sort (1968): comparing whole arrays is several times faster than sorting across them.
    """
    planes, n, p = list(planes), len(planes), 1
    while p < n:
        k = p
        while k:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, j + min(k, n - j - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        low, high = planes[i], planes[i + k]
                        planes[i], planes[i + k] = np.minimum(low, high), np.maximum(low, high)
            k //= 2
        p *= 2
    return planes


def nan_median(x: Floats) -> Floats:
    """Median along the last axis, NaN where there is nothing; many times faster than `nanmedian`."""
    ordered = np.sort(x, axis=-1)
    n = ordered.shape[-1]
    if not np.isnan(ordered[..., -1]).any():
        return 0.5 * ordered[..., (n - 1) // 2] + 0.5 * ordered[..., n // 2]
    there = n - np.isnan(ordered).sum(axis=-1, keepdims=True)
    lower = np.take_along_axis(ordered, np.maximum(0, (there - 1) // 2), axis=-1)
    upper = np.take_along_axis(ordered, np.minimum(n - 1, there // 2), axis=-1)
    return np.where(there > 0, 0.5 * lower + 0.5 * upper, np.nan)[..., 0]


@dataclass(frozen=True)
class Windows:
    """Stretches of columns to take means over; made once, used for many blocks of rows.

    `edges` (rising) are where any of them begins or ends, `first` and `stop` positions in `edges`, `size` the columns
    that each holds.
    """

    edges: Ints
    first: Ints
    stop: Ints
    size: Ints

    @classmethod
    def of(cls, first: Ints, stop: Ints) -> Windows:
        """Windows over the columns `first[i]:stop[i]`."""
        edges = np.unique(np.concatenate([first, stop]))
        return cls(edges, np.searchsorted(edges, first), np.searchsorted(edges, stop), stop - first)

    def mean(self, x: Floats) -> Floats:
        """Means over the windows, gaps left out; NaN where one holds nothing: float64[S, windows]."""
        total = self._sum(x)
        # A gap spoils every sum from there on.
        if not np.isnan(total).any():
            total /= np.maximum(1, self.size)
            return total
        there = ~np.isnan(x)
        total = self._sum(np.where(there, x, 0.0))
        inside = self._sum(there.astype(np.float64))
        return np.where(inside > 0, total / np.maximum(1.0, inside), np.nan)

    def _sum(self, x: Floats) -> Floats:
        # Each step of a running sum waits for the one before, so what lies between two edges is added up first.
        if len(self.edges) <= x.shape[1]:
            x = np.add.reduceat(x[:, : self.edges[-1]], self.edges[:-1], axis=1)
        running = np.zeros((len(x), len(self.edges)))
        np.cumsum(x, axis=1, out=running[:, 1:])
        total = running[:, self.stop]
        total -= running[:, self.first]
        return total


def block_medians(x: Floats, width: int) -> tuple[Floats, int]:
    """Medians of blocks of at most `width` columns, the last of which ends with `x`, and how wide the blocks are.

    Medians of three columns, of three such medians and so on (Tukey's ninther, 1978): far faster than true medians.
    They pass over gaps and keep out spikes shorter than a third of a block. A rest at the front joins no block.
    """
    size = 1
    while x.shape[1] >= 3 and size * 3 <= width:
        a, b, c = (x[:, x.shape[1] % 3 + i :: 3] for i in range(3))
        low, high = np.fmin(a, b), np.fmax(a, b)
        x, size = np.fmax(low, np.fmin(high, c, out=high), out=low), size * 3
    return x, size


def moving_level(x: Floats, window: int, width: int) -> Floats:
    """The level around each point: a centred mean over `window` columns of block medians, flat at both ends.

    Float64[S, T], NaN where a whole window is empty.
    """
    medians, size = block_medians(x, width)
    return level_around(medians, size, window, x.shape[1])


def level_around(medians: Floats, size: int, window: int, n_points: int) -> Floats:
    """`moving_level` from `medians` of blocks of `size` columns, the last of which ends with the `n_points` columns."""
    line = _line(medians.shape[1], size, window, n_points)
    level = line.windows.mean(medians)
    ends = np.empty((len(level), len(line.at), 2))
    ends[:, :, 0] = level[:, line.at]
    np.subtract(ends[:, 1:, 0], ends[:, :-1, 0], out=ends[:, :-1, 1])
    ends[:, -1, 1] = 0.0
    around = np.matmul(ends.reshape(-1, 2), line.shares).reshape(len(level), -1)
    return np.asarray(around[:, line.skip : line.skip + n_points])


@dataclass(frozen=True)
class _Line:
    """How levels become a line through the middles of their windows: steps would look like a season to a steady slope.

    Level `at[i]` and its way to the next one make as many columns as `shares` (float64[2, n]) has; the first `skip` lie
    before the grid.
    """

    windows: Windows
    at: Ints
    shares: Floats
    skip: int


@lru_cache(maxsize=64)
def _line(n_medians: int, size: int, window: int, n_points: int) -> _Line:
    reach = min(n_medians, max(1, round(window / size)))
    # The mean over a long window changes slowly: one for every eighth of it is enough.
    stride = max(1, reach // 8)
    start = np.arange((n_medians - reach) % stride, n_medians - reach + 1, stride)
    middle = n_points - (n_medians - start[0]) * size + (reach * size - 1) / 2
    length = stride * size
    begin = math.ceil(middle)
    before, after = -(-begin // length), -(-(n_points - begin) // length)
    shares = np.stack([np.ones(length), (begin - middle + np.arange(length)) / length])
    at = np.clip(np.arange(-before, max(after, len(start))), 0, len(start) - 1)
    return _Line(Windows.of(start, start + reach), at, shares, before * length - begin)


def smoothed(x: Floats, width: int) -> Floats:
    """Centred mean over `width` columns, shorter at both ends; gaps stay gaps."""
    if width <= 1:
        return x
    at = np.arange(x.shape[1])
    mean = Windows.of(np.maximum(0, at - (width - 1) // 2), np.minimum(x.shape[1], at + width // 2 + 1)).mean(x)
    return np.where(np.isnan(x), np.nan, mean)


@staged("season")
def fit_season(y: Floats, cycles: Cycles, step: timedelta) -> Season:
    """The profile of `y` (float64[S, T], NaN for gaps) by slot, and how far it can be trusted."""
    window = max(1, round(cycles.period / step))
    first = int(cycles.columns.min(initial=y.shape[1]))
    x = y[:, first:]
    x = x - moving_level(x, window, max(3, window // 24))
    if cycles.period > DAY:
        # Few cycles: neighbours within an hour help each other.
        x = smoothed(x, max(1, HOUR // step))
    folded = cycles.fold(x, first, blank=0.0)
    middle, count = middle_mean(folded, cycles.lacking)
    residual = folded - middle[:, None, :]
    residual[:, 0, : cycles.lacking] = 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Leaving a cycle out of a mean of n makes its residual n / (n − 1) times as large.
        residual *= (count / (count - 1))[:, None, :]
        predicted = folded - residual
        enough = np.ones(folded.shape[:2], dtype=bool)
        enough[:, 0] = 2 * cycles.lacking <= folded.shape[2]
        if not np.isfinite(predicted).all():
            valid = np.isfinite(predicted)
            valid[:, 0, : cycles.lacking] = False
            enough = valid.mean(axis=2) >= 0.5
            residual, predicted, folded = (np.where(valid, one, 0.0) for one in (residual, predicted, folded))
        slope = np.vecdot(folded, predicted) / np.vecdot(predicted, predicted)
        # Judged cycle by cycle and then by the median cycle, so that a day with an incident has no say.
        left = np.abs(residual, out=residual).sum(axis=2) / np.abs(folded, out=predicted).sum(axis=2)
    n = enough.sum(axis=1).astype(np.float64)
    strength = np.where(n >= 2, 1.0 - nan_median(np.where(enough, left, np.nan)), np.nan)
    weight = np.clip(nan_median(np.where(enough, slope, np.nan)), 0.0, 1.0)
    profile = np.where(np.isfinite(middle) & (count >= 2), middle, 0.0)
    profile -= profile.mean(axis=1, keepdims=True)
    profile *= np.where(np.isnan(weight), 0.0, weight)[:, None]
    return Season(cycles, profile, strength, n)


def believed(season: Season) -> npt.NDArray[np.bool_]:
    """Which series follow the period beyond what chance would give: bool[S].

    The limits let through about one random walk in twenty, whose slow swings look alike in a few cycles by chance.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        # Two cycles are judged by their difference, harsher than by the middle of three or more.
        return season.strength > np.where(season.n < 3, 0.1, 0.02 + 0.6 / season.n)


def odd_seasons(rest: Floats, grid: Grid, h: int, known: Sequence[timedelta] = ()) -> Iterator[tuple[Ints, Season]]:
    """Seasons with periods that no clock has, say a batch of every 100 minutes: rows, and the season that they follow.

    `rest` (float64[S, T]) is what the seasons with `known` periods have left. A row has one such season at most, and it
    is believed as others are.
    """
    taken = [period / grid.step for period in known]
    periods = _odd_periods(rest, taken)
    for steps in taken:
        periods[np.abs(periods - steps) <= 0.02 * steps] = 0
    for length in np.unique(periods[periods > 0]).tolist():
        rows = np.flatnonzero(periods == length)
        season = fit_season(rest[rows], Cycles.of(grid, h, length * grid.step, "UTC"), grid.step)
        keep = believed(season)
        if keep.any():
            yield rows[keep], Season(season.cycles, season.profile[keep], season.strength[keep], season.n[keep])


def _odd_periods(rest: Floats, known: Sequence[float] = ()) -> Ints:
    """The period of each row in steps by its spectrum and its autocorrelation: int[S], 0 where none stands out.

    Lines of `known` periods (in steps) and of their first overtones are what their profiles left, and do not count.
    """
    n_series, n_points = rest.shape
    periods = np.zeros(n_series, dtype=np.intp)
    width = -(-n_points // _MOST_MEANS)
    n_means = n_points // width
    if n_means < 3 * FEWEST_SLOTS:
        return periods
    # A product is ten times faster than a mean over a short axis, and so is a spectrum of a power of two.
    means = rest[:, n_points - n_means * width :].reshape(n_series, n_means, width) @ np.full(width, 1 / width)
    size = 1 << (n_means - 1).bit_length()
    means -= np.nan_to_num(nan_median(means[:, ::8]))[:, None]
    np.nan_to_num(means, copy=False)
    # Cut, or a spike would look like all periods at once.
    limit = _usual_reach(means[:, ::4])[:, None]
    np.clip(means, -limit, limit, out=means)
    # Squares of what is left must neither overflow nor vanish.
    means /= np.where(limit > 0, limit, 1.0)
    # A slow walk would look like a long season, so what the value before says is taken off.
    before, energy = np.vecdot(means[:, 1:], means[:, :-1]), np.vecdot(means, means)
    keeps = before / np.maximum(energy, np.finfo(np.float64).tiny)
    fresh = means[:, 1:] - keeps[:, None] * means[:, :-1]
    lines = np.fft.rfft(fresh, size, axis=1)[:, 3:]
    power = lines.real**2 + lines.imag**2
    total = np.maximum(power.sum(axis=1), np.finfo(np.float64).tiny)
    for steps in known:
        for overtone in range(1, _OVERTONES + 1):
            place = overtone * width * size / steps - 3
            power[:, max(0, math.floor(place)) : max(0, math.ceil(place) + 1)] = 0.0
    line = power.argmax(axis=1)
    stands_out = power[np.arange(n_series), line] * power.shape[1] > _LINE * total
    for i in np.flatnonzero(stands_out).tolist():
        periods[i] = _period_near(rest[i], width * size / (line[i] + 3))
    return periods


def _usual_reach(x: Floats) -> Floats:
    """Three times what nine in ten values of a row stay within, without a limit where that is nothing: float64[S]."""
    size = np.abs(x)
    reach = 3 * np.partition(size, kth := 9 * size.shape[1] // 10, axis=1)[:, kth]
    return np.where(reach > 0, reach, np.inf)


def _period_near(x: Floats, period: float) -> int:
    """The lag of about `period` steps, or a few times that, at which `x` (float64[T]) is most like itself; 0 for none.

    The strongest line of a spectrum may be an overtone.
    """
    there = np.isfinite(x)
    middle = float(np.median(x[there]))
    z = np.where(there, x - middle, 0.0)
    limit = _usual_reach(z[None])[0]
    spectrum = np.fft.rfft(np.clip(z, -limit, limit), 2 * len(z))
    alike = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[: len(z)]
    if alike[0] <= 0:
        return 0
    # Later lags have fewer pairs.
    alike = alike / alike[0] * len(z) / (len(z) - np.arange(len(z)))
    best, found = _LEAST_ALIKE, 0
    for times in range(1, _MULTIPLES + 1):
        reach = max(1, round(times * period * period / (2 * len(z))))
        first = max(FEWEST_SLOTS, round(times * period) - reach)
        stop = min(len(z) // 3, round(times * period) + reach) + 1
        if first >= stop:
            continue
        lag = first + int(alike[first:stop].argmax())
        if alike[lag] - _SIMPLER * (times - 1) > best:
            best, found = float(alike[lag]) - _SIMPLER * (times - 1), lag
    return found


@staged("season")
def find_seasons(history: Panel, *, timezone: str = "UTC") -> list[tuple[int, ...]]:
    """For each series the periods that it follows, in steps, shortest first; empty where it follows none.

    Hour, day and week are tried, then what stands out of the spectrum of the rest; each must explain a cycle that it
    was not made from, on top of the others.
    """
    found: list[list[int]] = [[] for _ in history.labels]
    periods = [
        (max(1, round(period / history.grid.step)), Cycles.of(history.grid, 1, period, timezone))
        for period in candidate_periods(history.grid)
    ]
    for rows in blocks_of_rows(history.n_series, history.grid.n):
        rest = history.y[rows]
        for steps, cycles in periods:
            season = fit_season(rest, cycles, history.grid.step)
            follows = believed(season)
            for i in np.flatnonzero(follows):
                found[rows.start + i].append(steps)
            rest = rest - np.where(follows[:, None], season.profile, 0.0)[:, cycles.slot]
        for members, season in odd_seasons(rest, history.grid, 1, candidate_periods(history.grid)):
            for i in members.tolist():
                found[rows.start + i].append(round(season.cycles.period / history.grid.step))
    return [tuple(sorted(row)) for row in found]
