"""What `seasonmix` sees of a series: seasonal periods, simple forecasts that it mixes, and figures to judge them by.

Training and inference call `describe`, so the network never meets features made in another way. Everything works on
blocks of rows at once, in float32, on values that were centred and scaled before; planes of shape (…, rows, leads) keep
the cycles of a season apart, so that medians over cycles are taken element by element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly_times.models.season import blocks_of_rows, rows_by_length, sorted_planes
from anomaly_times.models.seasonmix_periods import autocorrelation, day_of, find_periods, lagged_difference
from anomaly_times.panel import Floats

__all__ = ["BASES", "LEAD_FEATURES", "STATIC_FEATURES", "Block", "Described", "blocks", "describe"]

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

# Shorter histories are padded with gaps in front, so that every window below exists.
_FEWEST_COLUMNS = 64

_CYCLES, _CYCLES_B, _CYCLES_C = 7, 4, 3
_ORDER = 10
_RECENT = 512
_FAR, _ACCIDENTS = 15.0, 5
_FEATURE_LIMIT, _BASE_LIMIT = 12.0, 60.0

BASES = (
    "a", "a_level", "a_median", "a_mean", "a_newer", "a_median_drift", "a_median_level", "a_newer_level",
    "a_mean_drift", "a_ratio", "a_smooth", "a_smooth_drift", "a_ar",
    "b", "b_mean", "b_level", "b_drift", "b_mean_drift", "b_ratio", "b_ar", "a_and_b",
    "c", "c_level", "last", "mean_16", "mean_64", "median", "trend", "long_trend", "a_trend",
)  # fmt: skip
"""The simple forecasts that are mixed; the first one is the reference that the others are told relative to."""

STATIC_FEATURES, LEAD_FEATURES = 147, 56
"""How many features `describe` makes of a series, and of each lead."""


@dataclass(frozen=True)
class Block:
    """Series of about one age, each moved so that its last value is in the last column.

    `rows` are their rows in the panel, `late` (int[S]) how many columns each was moved by: what is `k` steps ahead of
    the panel is `k + late` steps ahead of the values.
    """

    rows: Ints
    y: Floats
    late: Ints


def blocks(y: Floats, n_leads: int) -> Iterator[Block]:
    """The rows of `y` (float64[S, T], NaN for gaps) in blocks that `describe` takes; rows without a value in none.

    Blocks are small enough for planes of so many leads to stay in the processor's cache.
    """
    for columns, members in rows_by_length(y):
        width = max(columns, _FEWEST_COLUMNS)
        for block in blocks_of_rows(len(members), max(width, _CYCLES * n_leads)):
            rows = members[block]
            part = np.full((len(rows), width), np.nan)
            part[:, width - columns :] = y[rows, y.shape[1] - columns :]
            late = np.isfinite(part)[:, ::-1].argmax(axis=1)
            if late.any():
                column = np.arange(width) - late[:, None]
                moved = np.take_along_axis(part, np.maximum(column, 0), axis=1)
                part = np.where(column >= 0, moved, np.nan)
            yield Block(rows, part, late)


@dataclass(frozen=True)
class Described:
    """A block of series as the network sees it; a forecast is `center + scale · (reference + unit · answer)`.

    `static` is float32[S, …], `lead` float32[…, S, L], `bases` float32[len(BASES), S, L] relative to `reference`
    (float32[S, L]) in multiples of `unit` (float32[S, 1]), roughly the mean error of the seasonal naive forecast.
    `center` and `scale` are float64[S, 1]; scale is 0 for a series that never moved. `length` (int[S]) is how many
    columns lie between the first and the last value, both counted.
    """

    static: F32
    lead: F32
    bases: F32
    reference: F32
    unit: F32
    center: Floats
    scale: Floats
    length: Ints


def describe(
    y: Floats,
    leads: Ints,
    calendar: Sequence[int] = (),
    season: Sequence[int] | None = None,
    by_clock: Ints | None = None,
) -> Described:
    """Describe the series in the rows of `y` for forecasts of the points `leads` steps after its last column.

    Args:
        y: float64[S, T], NaN for gaps, every row with a value in its last column; as `blocks` makes it.
        leads: int[S, L], each at least 1.
        calendar: steps in an hour, a day and a week, those that are whole numbers: where the data leave a choice, a
            period is one of these.
        season: periods in steps to use without asking; `()` for none, `None` to find them.
        by_clock: how far ahead the points lie by a clock that is put forward or back on the way, where that is not
            `leads`: int[S, L], each at least 1. It says which moments of past cycles they are held against.
    """
    center, scale = _center_and_scale(y)
    divisor = np.where(scale > 0, scale, 1.0)
    with np.errstate(over="ignore"):
        far: Floats = (np.clip(y, -8e307, 8e307) - center) / divisor
    z = _without_accidents(far).astype(np.float32)
    zero = np.clip(-center / divisor, -1e9, 1e9).astype(np.float32)
    first = np.isfinite(z).argmax(axis=1)
    gaps = np.isnan(z)
    gaps[np.arange(z.shape[1]) < first[:, None]] = False
    filled = _forward_filled(z)
    seasons = find_periods(filled, first, calendar, season)
    if gaps.any():
        filled = _refilled(z, filled, gaps, np.maximum(seasons[0][:, 0], 1))
    view = _View(_History(filled, first), zero, gaps, seasons, leads, leads if by_clock is None else by_clock)
    bases, lead = view.at_leads()
    return Described(
        static=view.of_series(calendar),
        lead=lead,
        bases=bases,
        reference=view.reference,
        unit=view.unit,
        center=center,
        scale=scale,
        length=y.shape[1] - first,
    )


def _center_and_scale(y: Floats) -> tuple[Floats, Floats]:
    """A typical value and a typical distance from it, so that one huge value does not drown the others."""
    ordered_values = np.sort(y[:, :: -max(1, y.shape[1] // 256)], axis=1)
    last = np.maximum(0, ordered_values.shape[1] - 1 - np.isnan(ordered_values).sum(axis=1))
    rows = np.arange(len(y))
    center = ordered_values[rows, last // 2]
    center = np.where(np.isfinite(center), center, y[:, -1])[:, None]
    with np.errstate(over="ignore"):
        distance = np.minimum(np.abs(np.clip(y, -8e307, 8e307) - center), 1e308)
    distance[np.isnan(distance)] = 0.0
    largest = distance.max(axis=1)
    some = np.sort(distance[:, :: -max(1, y.shape[1] // 256)], axis=1)
    scale = np.zeros(len(y))
    for share in (0.9, 0.96, 0.99, 1.0):
        reach = some[:, int(share * (some.shape[1] - 1))]
        scale = np.where(scale > 0, scale, reach)
    scale = np.where(scale > 0, scale, largest)
    return center, scale[:, None]


def _without_accidents(z: Floats) -> Floats:
    """Cut a few values that lie many times farther off than is usual to the size of the next largest ones."""
    distance = np.fmax.reduce(np.abs(z), axis=1)
    wild = np.flatnonzero(distance > _FAR)
    if not wild.size:
        return z
    sizes = np.nan_to_num(np.abs(z[wild]))
    # A level that has moved for good is no accident: after a few points it stays as it is.
    next_largest = np.partition(sizes, -1 - _ACCIDENTS, axis=1)[:, -1 - _ACCIDENTS]
    limit = np.clip(next_largest, _FAR, 1e5)[:, None]
    z[wild] = np.clip(z[wild], -limit, limit)
    return z


def _forward_filled(z: F32) -> F32:
    """Gaps take the value before them; what lies before the first value takes that one."""
    there = np.isfinite(z)
    if there.all():
        return z
    column = np.where(there, np.arange(z.shape[1]), 0)
    np.maximum.accumulate(column, axis=1, out=column)
    rows = np.arange(len(z))[:, None]
    column = np.maximum(column, there.argmax(axis=1)[:, None])
    return np.asarray(z[rows, column])


def _refilled(z: F32, filled: F32, gaps: Bools, period: Ints) -> F32:
    """Gaps take the value some cycles before them where there is one."""
    out = filled.copy()
    row, column = np.nonzero(gaps)
    found = np.full(len(row), np.nan, dtype=np.float32)
    for cycles in range(1, 5):
        back = column - cycles * period[row]
        found = np.where(np.isnan(found) & (back >= 0), z[row, np.maximum(back, 0)], found)
    out[row, column] = np.where(np.isnan(found), filled[row, column], found)
    return out


class _History:
    """Rows without gaps that can be looked up at any column and averaged over any window."""

    def __init__(self, y: F32, first: Ints) -> None:
        self.y = y
        self.first = first[:, None]
        self.n = y.shape[1]
        self._rows = np.arange(len(y))[:, None]
        self._flat = y.ravel()
        # Sums run over thousands of points; float32 would lose the difference of two.
        sums = np.zeros((len(y), self.n + 1))
        np.cumsum(y, axis=1, dtype=np.float64, out=sums[:, 1:])
        self._sums = sums.ravel()

    def at(self, column: Ints) -> F32:
        """Values at `column`, int[…, S, L]."""
        return np.asarray(self._flat.take(self._rows * self.n + column))

    def level(self, end: Ints, width: Ints | int) -> F32:
        """Mean of the `width` columns before `end` (int[…, S, L]), of those that are there."""
        end = np.clip(end, self.first + 1, self.n)
        start = np.clip(end - width, self.first, self.n - 1)
        rows = self._rows * (self.n + 1)
        total = self._sums.take(rows + end) - self._sums.take(rows + start)
        return np.asarray(total / (end - start), dtype=np.float32)


class _Slot:
    """The past cycles of one period at the leads asked for.

    `column` (int[K, S, L]) is where each cycle's value lies, newest first, `value` what is there, `back` how many
    cycles that is. A short history repeats its cycles.
    """

    def __init__(self, history: _History, period: Ints, leads: Ints, cycles: int) -> None:
        self._history = history
        self.period = period[:, None]
        nearest = -(-leads // self.period)
        known = (history.n - 2 - history.first) // self.period
        self.known = np.clip(known - (nearest - 1), 1, cycles)
        self.back = np.stack([nearest + (k % self.known if k else 0) for k in range(cycles)])
        self.column = history.n - 1 + leads - self.back * self.period
        self.value = history.at(self.column)
        self._most = int(self.back.max()) + 1

    def level(self, width: Ints) -> F32:
        """The mean of the `width` (int[S, 1]) columns before the moment so many cycles ago: float32[K, S, L]."""
        cycles = np.arange(self._most)
        table = self._history.level(self._history.n - cycles * self.period, width)
        rows = np.arange(len(table))[:, None] * self._most
        return np.asarray(table.ravel().take(rows + self.back))

    def residual(self, recent: int) -> F32:
        """The last `recent` columns less the mean of their slot over the cycles, or less their mean: float32[S, n]."""
        history = self._history
        column = np.arange(history.n - recent, history.n)[None]
        cycles = len(self.value)
        slot = column + (history.n - 1 - column) // self.period * self.period
        known = np.clip((history.n - history.first) // self.period, 1, cycles)
        mean = history.at(slot)
        for k in range(1, cycles):
            mean = mean + history.at(slot - k % known * self.period)
        mean /= cycles
        mean = np.where((known > 1) & (self.period > 1), mean, history.level(np.array([[history.n]]), recent))
        return np.where(column >= history.first, history.y[:, -recent:] - mean, np.float32(0))

    def mean_ahead(self, recent: int) -> F32:
        """What `residual` was taken from, at the leads: float32[S, L]."""
        history = self._history
        known = np.clip((history.n - history.first) // self.period, 1, len(self.value))
        mean = self.value[0]
        for k in range(1, len(self.value)):
            mean = mean + history.at(self.column[0] - k % known * self.period)
        mean = mean / len(self.value)
        level = history.level(np.array([[history.n]]), recent)
        return np.where((known > 1) & (self.period > 1), mean, level)


def _autoregression(residual: F32, leads: Ints) -> F32:
    """Forecasts of each row of `residual` (float32[S, n]) by an autoregression fitted to it: float32[S, L].

    Yule–Walker equations by Levinson's recursion (Brockwell & Davis, Time Series, 1991, section 8.2), on values cut
    at four times their mean size.
    """
    limit = 4 * np.abs(residual).mean(axis=1, keepdims=True)
    x = np.clip(residual, -limit, limit)
    n = x.shape[1]
    covariance = np.stack([np.einsum("ij,ij->i", x[:, lag:], x[:, : n - lag]) for lag in range(_ORDER + 1)])
    covariance = covariance.astype(np.float64)
    covariance[0] = covariance[0] * 1.0001 + 1e-12
    weight = np.zeros((_ORDER, len(x)))
    error = covariance[0].copy()
    for k in range(_ORDER):
        reflection = (covariance[k + 1] - (weight[:k] * covariance[k:0:-1]).sum(axis=0)) / error
        weight[:k] -= reflection * weight[:k][::-1]
        weight[k] = reflection
        error *= 1 - reflection**2
    most = int(leads.max())
    path = np.zeros((_ORDER + most, len(x)), dtype=np.float32)
    path[:_ORDER] = x[:, -_ORDER:].T
    oldest_first = weight[::-1].astype(np.float32)
    for step in range(most):
        np.einsum("ij,ij->j", path[step : step + _ORDER], oldest_first, out=path[_ORDER + step])
    return np.take_along_axis(path[_ORDER:].T, leads - 1, axis=1)


class _View:
    """Prepared rows with their seasons at the leads: what bases and features are made of."""

    def __init__(
        self, history: _History, zero: F32, gaps: Bools, seasons: tuple[Ints, F32], leads: Ints, by_clock: Ints
    ) -> None:
        periods, self.acf = seasons
        self.history, self.zero, self.gaps, self.leads, self.by_clock = history, zero, gaps, leads, by_clock
        self.has = periods > 0
        first = np.where(self.has[:, 0], periods[:, 0], 1)
        second = np.where(self.has[:, 1], periods[:, 1], first)
        third = np.where(self.has[:, 2], periods[:, 2], second)
        self.a = _Slot(history, first, by_clock, _CYCLES)
        self.b = _Slot(history, second, by_clock, _CYCLES_B)
        self.c = _Slot(history, third, by_clock, _CYCLES_C)
        self.unit, self.errors, self.deviation = _unit(history, first)
        self.errors_acf = autocorrelation(self.errors, np.zeros_like(first), self.errors.shape[1] // 2)
        self.recent = min(history.n, _RECENT)
        self.residual_a, self.residual_b = self.a.residual(self.recent), self.b.residual(self.recent)
        self._end = np.full((len(history.y), 1), history.n, dtype=np.intp)

    def now(self, width: Ints | int, ago: Ints | int = 0) -> F32:
        """The mean of `width` columns up to `ago` columns before the end: float32[S, 1]."""
        return self.history.level(self._end - ago, width)

    @property
    def reference(self) -> F32:
        """The newest cycle of the first period: float32[S, L]."""
        return np.asarray(self.a.value[0], dtype=np.float32)

    def at_leads(self) -> tuple[F32, F32]:
        """The bases, relative to the reference in units, and the features of each lead."""
        history, a, b, c, leads, zero = self.history, self.a, self.b, self.c, self.leads, self.zero
        y, n, now, reference, unit = history.y, history.n, self.now, self.reference, self.unit
        short, short_b, short_c = (np.clip(slot.period // 3, 1, 8) for slot in (a, b, c))
        level_short, level_period = now(short), now(a.period)
        a_short, a_period = a.level(short), a.level(a.period)
        b_short, b_period = b.level(short_b), b.level(a.period)
        above_short, above_period = a.value - a_short, a.value - a_period
        before, after = history.at(a.column - 1), history.at(np.minimum(a.column + 1, n - 1))
        sorted_values = sorted_planes([*a.value, *before, *after])
        sorted_short, sorted_period = sorted_planes(list(above_short)), sorted_planes(list(above_period))
        median = sorted_values[len(sorted_values) // 2]
        newer = np.array(0.6 ** np.arange(_CYCLES), dtype=np.float32)
        newer = (newer / newer.sum())[:, None, None]
        positive = (y.min(axis=1, keepdims=True) >= zero) & (level_period > zero)
        mean_drift = above_period.mean(axis=0) + level_period
        b_mean_drift = (b.value - b_period).mean(axis=0) + level_period
        half = np.clip(a.period // 40, 1, 12)
        smooth = history.level(np.minimum(a.column + half + 1, n), 2 * half + 1)
        # Both in one go: a recursion costs by its steps, not by its rows.
        ar = _autoregression(np.concatenate([self.residual_a, self.residual_b]), np.concatenate([leads, leads]))
        both_column = n - 1 + self.by_clock - a.back[0] * a.period - b.back[0] * b.period
        both = reference + b.value[0] - history.at(np.maximum(both_column, history.first))
        b_level = b.value[0] - b_short[0] + now(short_b)
        last = y[:, -1:]
        slope = (now(8) - now(8, 16)) / 16
        long_slope = (now(n // 8) - now(n // 8, n // 8)) / np.float32(n // 8)
        ahead = leads.astype(np.float32)
        flat = np.zeros_like(reference)
        middle = np.sort(y[:, -min(n, 1024) :: 4], axis=1)
        bases: list[F32] = [
            reference,
            reference - a_short[0] + level_short,
            median,
            a.value.mean(axis=0),
            (a.value * newer).sum(axis=0),
            sorted_period[_CYCLES // 2] + level_period,
            sorted_short[_CYCLES // 2] + level_short,
            (above_short * newer).sum(axis=0) + level_short,
            mean_drift,
            np.where(positive, _by_ratio(a.value, a_period, level_period, zero), mean_drift),
            smooth.mean(axis=0),
            (smooth - a_period).mean(axis=0) + level_period,
            a.mean_ahead(self.recent) + ar[: len(y)],
            b.value[0],
            b.value.mean(axis=0),
            b_level,
            b.value[0] - b_period[0] + level_period,
            b_mean_drift,
            np.where(positive, _by_ratio(b.value, b_period, level_period, zero), b_mean_drift),
            b.mean_ahead(self.recent) + ar[len(y) :],
            np.where(self.has[:, 1:2] & (both_column >= history.first), both, b_level),
            c.value[0],
            (c.value - c.level(short_c)).mean(axis=0) + now(short_c),
            last + flat,
            now(16) + flat,
            now(64) + flat,
            middle[:, middle.shape[1] // 2, None] + flat,
            np.asarray(last + slope * np.minimum(ahead, 12), dtype=np.float32),
            last + long_slope * ahead,
            reference + a.back[0].astype(np.float32) * (level_period - now(a.period, a.period)),
        ]
        relative = np.stack(bases)
        relative -= reference
        relative /= unit

        distances = [
            *(x - reference for x in (before[0], after[0], a.value[1], a.value[2], a.value[3])),
            *(sorted_values[i] - median for i in (0, 2, 5, 15, 18, 20)),
            *(sorted_short[i] - sorted_short[_CYCLES // 2] for i in (0, 1, -2, -1)),
            above_period[0] - sorted_period[_CYCLES // 2],
        ]
        spreads = [x.std(axis=0) / unit + np.float32(1e-3) for x in (a.value, above_short, b.value)]
        times = [np.log(ahead) / 2, ahead / 64, *(np.minimum(ahead / x.period.astype(np.float32), 4) for x in (a, b))]
        correlations = [
            np.take_along_axis(acf, np.minimum(leads, acf.shape[1] - 1), axis=1) for acf in (self.errors_acf, self.acf)
        ]
        lowest, highest = self.range()
        lead = np.concatenate(
            [
                np.arcsinh(relative[1:]),
                np.arcsinh(np.stack(distances) / unit),
                np.log(np.stack(spreads)),
                np.stack(times + correlations),
                np.arcsinh(np.stack([reference - lowest, highest - reference]) / unit),
            ]
        )
        return _limited(relative, _BASE_LIMIT), _limited(lead, _FEATURE_LIMIT)

    def range(self) -> tuple[F32, F32]:
        """The lowest and the highest of the newest values: float32[S, 1] each."""
        newest = self.history.y[:, -256:]
        return newest.min(axis=1, keepdims=True), newest.max(axis=1, keepdims=True)

    def of_series(self, calendar: Sequence[int]) -> F32:
        """The features that a series has once, whatever the lead: float32[S, …]."""
        y, n, now, unit, acf = self.history.y, self.history.n, self.now, self.unit, self.acf
        pa, pb, pc = self.a.period, self.b.period, self.c.period
        last = y[:, -1:]
        lowest, highest = self.range()
        eighth = np.maximum(1, pa // 8)
        levels = [
            last - y[:, -2:-1],
            last - now(8),
            now(8) - now(16),
            now(16) - now(64),
            now(64) - now(pa),
            now(pa) - now(n),
            *(now(pa, k * pa) - now(pa) for k in (1, 2, 3, 4, 5, 6)),
            *(now(pb, k * pb) - now(pb) for k in (1, 2)),
            now(8) - now(8, pa),
            now(8) - now(8, pb),
            now(8) - now(8, 2 * pa),
            *(now(eighth, k * eighth) - now(pa) for k in range(8)),
            lowest - now(n),
            highest - now(n),
            np.maximum(self.zero - lowest, -1e4),
        ]
        newest = [self.residual_a[:, -24:], self.residual_b[:, -32::2], y[:, -17:-1] - last]
        pieces = [np.arcsinh(np.concatenate([*levels, *newest], axis=1) / unit)]
        residuals = [residual[:, -many:] for residual in (self.residual_a, self.residual_b) for many in (256, 32)]
        pieces += [np.log(np.abs(x).mean(axis=1, keepdims=True) / unit + 1e-3) for x in residuals]
        for x in (self.errors[:, -300:], np.diff(y[:, -301:], axis=1)):
            at = (np.array([0.005, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.995]) * (x.shape[1] - 1)).astype(np.intp)
            pieces.append(np.arcsinh(np.sort(x, axis=1)[:, at] / unit))
        pieces += [np.take_along_axis(acf, np.minimum(lag, acf.shape[1] - 1), axis=1) for lag in (pa, pb, pc)]
        pieces += [acf[:, [1, 2, 4, 8, 16]], self.errors_acf[:, [1, 2, 4, 8, 16]]]
        first, same = self.history.first[:, 0], np.ones(len(y), dtype=np.intp)
        lags = [pa[:, 0], pb[:, 0], pc[:, 0], *(lag * same for lag in (1, 4, 16, 48))]
        pieces += [np.log(lagged_difference(y, first, lag)[:, None] / unit + 1e-3) for lag in lags]
        steps = np.diff(y[:, -256:], axis=1)
        length = n - self.history.first
        lengths = length.astype(np.float32)
        pieces += [
            self.has.astype(np.float32),
            np.log(np.concatenate([pa, pb / pa, pc / pa], axis=1)),
            np.log(lengths) / 2,
            np.log(lengths / pa) / 2,
            np.minimum(length // pa, _CYCLES) / 2,
            np.minimum(length // pb, _CYCLES_B),
            np.log(unit / np.maximum(self.deviation, 1e-9) + 1e-3),
            pa == day_of(calendar),
            pb == 7 * pa,
            lowest >= self.zero,
            (y[:, -256:] == lowest).mean(axis=1, keepdims=True),
            (y[:, -256:] == highest).mean(axis=1, keepdims=True),
            last == lowest,
            (steps == 0).mean(axis=1, keepdims=True),
            steps[:, -1:] == 0,
            np.sqrt(self.gaps.mean(axis=1, keepdims=True)),
            np.sqrt(self.gaps[:, -64:].mean(axis=1, keepdims=True)),
        ]
        return _limited(np.concatenate([piece.astype(np.float32) for piece in pieces], axis=1), _FEATURE_LIMIT)


def _unit(history: _History, period: Ints) -> tuple[F32, F32, F32]:
    """The scale of errors (float32[S, 1]), the newest seasonal differences, and the standard deviation."""
    y, n = history.y, history.n
    column = np.arange(n)
    start = np.minimum(history.first + period[:, None], n - 1)
    errors = y - history.at(np.maximum(column - period[:, None], 0))
    errors *= column >= start
    inside = column >= history.first
    length = (n - history.first).astype(np.float32)
    mean = (y * inside).sum(axis=1, keepdims=True) / length
    deviation = np.sqrt((((y - mean) * inside) ** 2).sum(axis=1, keepdims=True) / length)
    cut = np.clip(errors, -4 * deviation - 1e-12, 4 * deviation + 1e-12)
    unit = np.abs(cut).sum(axis=1, keepdims=True) / np.maximum(1, n - start) + 0.02 * deviation
    return np.maximum(unit, 1e-6).astype(np.float32), errors[:, -_RECENT:], deviation.astype(np.float32)


def _by_ratio(value: F32, level_then: F32, level_now: F32, zero: F32) -> F32:
    """The mean over cycles of values that grew or shrank as the level did."""
    ratio = np.clip((level_now - zero) / np.maximum(level_then - zero, 1e-9), 0.2, 5)
    return np.asarray(((value - zero) * ratio).mean(axis=0) + zero)


def _limited(x: F32, limit: float) -> F32:
    return np.clip(x, -limit, limit, out=x)
