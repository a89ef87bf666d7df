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
from anomaly_times.panel import Floats

__all__ = ["BASES", "SLOTS", "Block", "Described", "blocks", "describe", "find_periods"]

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

# Shorter histories are padded with gaps in front, so that every window below exists.
_FEWEST_COLUMNS = 64

SLOTS = 3
"""Seasonal periods that a series may have."""

_CYCLES, _CYCLES_B, _CYCLES_C = 7, 4, 3
_ORDER = 10
_RECENT = 512
_SHORTEST = 4
_RISE = np.float32(0.1)
_FAR, _ACCIDENTS = 15.0, 5
_FEATURE_LIMIT, _BASE_LIMIT = 12.0, 60.0

BASES = (
    "a", "a_level", "a_median", "a_mean", "a_newer", "a_median_drift", "a_median_level", "a_newer_level",
    "a_mean_drift", "a_ratio", "a_smooth", "a_smooth_drift", "a_ar",
    "b", "b_mean", "b_level", "b_drift", "b_mean_drift", "b_ratio", "b_ar", "a_and_b",
    "c", "c_level", "last", "mean_16", "mean_64", "median", "trend", "long_trend", "a_trend",
)  # fmt: skip
"""The simple forecasts that are mixed; the first one is the reference that the others are told relative to."""


@dataclass(frozen=True)
class Block:
    """Series of about one age, each moved so that its last value is in the last column.

    `rows` are their rows in the panel, `late` (int[S]) how many columns each was moved by: what is `k` steps ahead of
    the panel is `k + late` steps ahead of the values.
    """

    rows: Ints
    y: Floats
    late: Ints


def blocks(y: Floats) -> Iterator[Block]:
    """The rows of `y` (float64[S, T], NaN for gaps) in blocks that `describe` takes; rows without a value in none."""
    for columns, members in rows_by_length(y):
        width = max(columns, _FEWEST_COLUMNS)
        for block in blocks_of_rows(len(members), width):
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


def describe(y: Floats, leads: Ints, calendar: Sequence[int] = (), season: Sequence[int] | None = None) -> Described:
    """Describe the series in the rows of `y` for forecasts of the points `leads` steps after its last column.

    Args:
        y: float64[S, T], NaN for gaps, every row with a value in its last column; as `blocks` makes it.
        leads: int[S, L], each at least 1.
        calendar: steps in an hour, a day and a week, those that are whole numbers: where the data leave a choice, a
            period is one of these.
        season: periods in steps to use without asking; `()` for none, `None` to find them.
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
    periods, acf = find_periods(filled, first, calendar, season)
    if gaps.any():
        filled = _refilled(z, filled, gaps, np.where(periods[:, 0] > 0, periods[:, 0], 1))
    return _features(filled, zero, first, gaps, periods, acf, leads, calendar, center, scale)


def find_periods(
    y: F32, first: Ints, calendar: Sequence[int] = (), season: Sequence[int] | None = None
) -> tuple[Ints, F32]:
    """Up to `SLOTS` periods of each row of `y` (no gaps), in steps, 0 for none: int[S, SLOTS]; and autocorrelations.

    The first is the day (or another calendar period) where the autocorrelation supports it, else the first of the high
    peaks of the autocorrelation. The others are those of several candidates, multiples among them, at which the recent
    past differs least from itself. Autocorrelations are float32[S, T // 2 + 1].
    """
    acf = _autocorrelation(_without_trend(y, first), first, y.shape[1] // 2)
    if season is not None:
        given = np.zeros((len(y), SLOTS), dtype=np.intp)
        length = y.shape[1] - first
        for i, period in enumerate(sorted(season)[:SLOTS]):
            given[:, i] = np.where(period <= length - 2, period, 0)
        # Where the shorter ones do not fit the longer ones fit even less, so slots fill from the first.
        return given, acf
    # A rhythm shows as a rise of the autocorrelation after a fall; one that only decays has bumps but no rhythm.
    rise = acf - np.minimum.accumulate(acf, axis=1)
    strongest, early, fundamental, height = _peaks(acf, rise, calendar)
    rows = np.arange(len(y))
    a = fundamental
    for period in sorted(calendar):
        if _SHORTEST <= period < acf.shape[1]:
            there = (acf[:, period] >= np.maximum(0.05, 0.4 * height)) & (rise[:, period] >= 0.5 * _RISE)
            a = np.where(there & (_is_day(period, calendar) | (a == 0)), period, a)
    day = next((period for period in calendar if _is_day(period, calendar)), 0)
    if 2 * _SHORTEST <= day <= y.shape[1] - 64:
        # A day that is covered hardly more than once: yesterday must be nearer than half a day ago.
        whole, half = (lagged_difference(y, first, np.full(len(y), lag)) for lag in (day, day // 2))
        a = np.where((a == 0) & (whole < half) & (y.shape[1] - first >= day + 64), day, a)
    seventh = np.rint(a / 7).astype(np.intp)
    candidates = [fundamental, early, strongest, 7 * a, 7 * early, _refined(seventh, acf), 2 * a]
    candidates += [np.full(len(y), period, dtype=np.intp) for period in calendar]
    offered = np.stack(candidates, axis=1)
    difference = np.stack([lagged_difference(y, first, offered[:, i]) for i in range(offered.shape[1])], axis=1)
    difference[:, 6] *= np.float32(1.2)
    limit = (y.shape[1] - first - 16)[:, None]
    slots = [a]
    unlikely = (offered < _SHORTEST) | (offered > limit)
    short = np.minimum(offered, acf.shape[1] - 1)
    unlikely |= (offered < a[:, None]) & (np.take_along_axis(rise, short, axis=1) < _RISE)
    for _ in range(SLOTS - 1):
        taken = unlikely.copy()
        for slot in slots:
            taken |= np.abs(offered - slot[:, None]) <= np.maximum(2, 0.08 * slot[:, None])
        cost = np.where(taken, np.float32(np.inf), difference)
        best = cost.argmin(axis=1)
        slots.append(np.where(np.isfinite(cost[rows, best]) & (slots[-1] > 0), offered[rows, best], 0))
    return np.stack(slots, axis=1), acf


def lagged_difference(y: F32, first: Ints, lag: Ints) -> F32:
    """Mean absolute difference of the recent past from what lies `lag` steps before it: float32[S]."""
    n = y.shape[1]
    recent = np.arange(max(0, n - 1024), n, 3 if n > 500 else 1)
    back = recent - lag[:, None]
    known = back >= first[:, None]
    rows = np.arange(len(y))[:, None] * n
    difference = np.abs(y[:, recent] - y.ravel()[rows + np.maximum(back, 0)])
    return np.asarray((difference * known).sum(axis=1) / np.maximum(1, known.sum(axis=1)), dtype=np.float32)


def _is_day(period: int, calendar: Sequence[int]) -> bool:
    """Whether a period of the calendar is the day: the one of which seven make another."""
    return 7 * period in calendar


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


def _without_trend(y: F32, first: Ints) -> F32:
    """`y` with outliers cut, less its line; 0 before the first value."""
    some = np.sort(y[:, :: max(1, y.shape[1] // 256)], axis=1)
    cut = some.shape[1] // 50
    low, high = some[:, cut, None], some[:, -1 - cut, None]
    reach = 0.5 * (high - low)
    flat = reach <= 0
    cut_off = np.clip(y, np.where(flat, some[:, :1], low - reach), np.where(flat, some[:, -1:], high + reach))
    column = np.arange(y.shape[1], dtype=np.float32)
    inside = column >= first[:, None]
    n = (y.shape[1] - first).astype(np.float32)[:, None]
    out = np.where(inside, cut_off, np.float32(0))
    out -= out.sum(axis=1, keepdims=True) / n
    time = np.where(inside, (column - 0.5 * (first[:, None] + y.shape[1] - 1)) / y.shape[1], 0).astype(np.float32)
    slope = (out * inside * time).sum(axis=1, keepdims=True) / np.maximum(
        1e-6, (time * time).sum(axis=1, keepdims=True)
    )
    out -= slope * time
    out *= inside
    return out.astype(np.float32, copy=False)


def _autocorrelation(x: F32, first: Ints, most: int) -> F32:
    """Autocorrelation at the lags 0 … `most`, corrected for how many pairs each has: float32[S, most + 1]."""
    n = x.shape[1]
    size = 1 << int(np.ceil(np.log2(n + most + 1)))
    spectrum = np.fft.rfft(x, size, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    acf = np.fft.irfft(power, size, axis=1)[:, : most + 1]
    pairs = (n - first)[:, None] - np.arange(most + 1)
    share = (n - first)[:, None] / np.maximum(1, pairs)
    acf = acf / np.maximum(acf[:, :1], 1e-12) * np.where(2 * np.arange(most + 1) <= (n - first)[:, None], share, 0)
    return np.clip(acf, -2, 2).astype(np.float32)


def _peaks(acf: F32, rise: F32, calendar: Sequence[int]) -> tuple[Ints, Ints, Ints, F32]:
    """Lags of the highest peak, of the first half as high and of the first nearly as high (0: none), and its height."""
    height = np.full(acf.shape, np.float32(-1))
    inner = acf[:, _SHORTEST:-1]
    peak = (inner >= acf[:, _SHORTEST - 1 : -2]) & (inner >= acf[:, _SHORTEST + 1 :])
    height[:, _SHORTEST:-1] = np.where(peak & (rise[:, _SHORTEST:-1] >= _RISE), inner, -1)
    highest = height.max(axis=1)
    there = highest > 0.1

    def first_above(limit: F32) -> Ints:
        lag = np.where(there, (height >= limit[:, None]).argmax(axis=1), 0)
        return _snapped(lag, acf, calendar)

    strongest = _snapped(np.where(there, height.argmax(axis=1), 0), acf, calendar)
    early = first_above(np.maximum(0.5 * highest, np.float32(0.08)))
    fundamental = first_above(highest - np.maximum(np.float32(0.05), 0.25 * highest))
    return strongest, early, fundamental, np.maximum(highest, 0)


def _snapped(lag: Ints, acf: F32, calendar: Sequence[int]) -> Ints:
    """The calendar's period where one lies within 3.5 % and the data do not speak against it."""
    rows = np.arange(len(lag))
    for period in calendar:
        if period < acf.shape[1]:
            near = np.abs(lag - period) <= 0.035 * period
            lag = np.where(near & (acf[:, period] >= acf[rows, lag] - 0.08), period, lag)
    return lag


def _refined(lag: Ints, acf: F32) -> Ints:
    """The lag of the highest autocorrelation within two steps; 0 for a lag that is too short."""
    middle = np.clip(lag, 2, acf.shape[1] - 3)
    window = acf[np.arange(len(lag))[:, None], middle[:, None] + np.arange(-2, 3)]
    return np.where(lag >= _SHORTEST, middle + window.argmax(axis=1) - 2, 0)


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


def _features(
    y: F32,
    zero: F32,
    first: Ints,
    gaps: Bools,
    periods: Ints,
    acf: F32,
    leads: Ints,
    calendar: Sequence[int],
    center: Floats,
    scale: Floats,
) -> Described:
    n = y.shape[1]
    history = _History(y, first)
    length = n - first
    has = periods > 0
    pa = np.where(has[:, 0], periods[:, 0], 1)
    pb = np.where(has[:, 1], periods[:, 1], pa)
    pc = np.where(has[:, 2], periods[:, 2], pb)
    unit, seasonal_errors, deviation = _unit(history, pa)
    a = _Slot(history, pa, leads, _CYCLES)
    b = _Slot(history, pb, leads, _CYCLES_B)
    c = _Slot(history, pc, leads, _CYCLES_C)
    one = np.full((len(y), 1), n, dtype=np.intp)

    def now(width: Ints | int, ago: Ints | int = 0) -> F32:
        return history.level(one - ago, width)

    short = np.clip(a.period // 3, 1, 8)
    short_b, short_c = np.clip(b.period // 3, 1, 8), np.clip(c.period // 3, 1, 8)
    level_short, level_period = now(short), now(a.period)
    a_short, a_period = a.level(short), a.level(a.period)
    above_short, above_period = a.value - a_short, a.value - a_period
    b_short, b_period = b.level(short_b), b.level(a.period)
    reference = a.value[0]

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
    recent = min(n, _RECENT)
    residual = np.concatenate([a.residual(recent), b.residual(recent)])
    ar = _autoregression(residual, np.concatenate([leads, leads]))
    both_column = n - 1 + leads - a.back[0] * a.period - b.back[0] * b.period
    both = reference + b.value[0] - history.at(np.maximum(both_column, first[:, None]))
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
        a.mean_ahead(recent) + ar[: len(y)],
        b.value[0],
        b.value.mean(axis=0),
        b_level,
        b.value[0] - b_period[0] + level_period,
        b_mean_drift,
        np.where(positive, _by_ratio(b.value, b_period, level_period, zero), b_mean_drift),
        b.mean_ahead(recent) + ar[len(y) :],
        np.where(has[:, 1:2] & (both_column >= first[:, None]), both, b_level),
        c.value[0],
        (c.value - c.level(short_c)).mean(axis=0) + now(short_c),
        last + flat,
        now(16) + flat,
        now(64) + flat,
        middle[:, middle.shape[1] // 2, None] + flat,
        last + slope * np.minimum(ahead, 12),
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
    bounds = [reference - y[:, -256:].min(axis=1, keepdims=True), y[:, -256:].max(axis=1, keepdims=True) - reference]
    spreads = [x.std(axis=0) / unit + np.float32(1e-3) for x in (a.value, above_short, b.value)]
    errors_acf = _autocorrelation(seasonal_errors, np.zeros_like(first), seasonal_errors.shape[1] // 2)
    times = [np.log(ahead) / 2, ahead / 64, *(np.minimum(ahead / x.period.astype(np.float32), 4) for x in (a, b))]
    correlations = [
        np.take_along_axis(correlation, np.minimum(leads, correlation.shape[1] - 1), axis=1)
        for correlation in (errors_acf, acf)
    ]
    lead = np.concatenate(
        [
            np.arcsinh(relative[1:]),
            np.arcsinh(np.stack(distances) / unit),
            np.log(np.stack(spreads)),
            np.stack(times + correlations),
            np.arcsinh(np.stack(bounds) / unit),
        ]
    )

    static = _static(
        history, a, b, c, has, unit, deviation, residual, seasonal_errors, errors_acf, acf, gaps, zero, calendar, length
    )
    return Described(
        static=static,
        lead=_limited(lead, _FEATURE_LIMIT),
        bases=_limited(relative, _BASE_LIMIT),
        reference=reference,
        unit=unit,
        center=center,
        scale=scale,
        length=length,
    )


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


def _static(
    history: _History,
    a: _Slot,
    b: _Slot,
    c: _Slot,
    has: Bools,
    unit: F32,
    deviation: F32,
    residual: F32,
    seasonal_errors: F32,
    errors_acf: F32,
    acf: F32,
    gaps: Bools,
    zero: F32,
    calendar: Sequence[int],
    length: Ints,
) -> F32:
    y, n = history.y, history.n
    one = np.full((len(y), 1), n, dtype=np.intp)
    pa, pb, pc = a.period, b.period, c.period

    def now(width: Ints | int, ago: Ints | int = 0) -> F32:
        return history.level(one - ago, width)

    last = y[:, -1:]
    lowest, highest = y[:, -256:].min(axis=1, keepdims=True), y[:, -256:].max(axis=1, keepdims=True)
    in_units = [
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
        *(now(np.maximum(1, pa // 8), k * np.maximum(1, pa // 8)) - now(pa) for k in range(8)),
        lowest - now(n),
        highest - now(n),
        np.maximum(zero - lowest, -1e4),
    ]
    pieces = [np.arcsinh(np.concatenate(in_units, axis=1) / unit)]
    of_a, of_b = residual[: len(y)], residual[len(y) :]
    pieces += [np.arcsinh(of_a[:, -24:] / unit), np.arcsinh(of_b[:, -32::2] / unit)]
    pieces.append(np.arcsinh((y[:, -17:-1] - last) / unit))
    for x in (of_a, of_b):
        pieces.append(np.log(np.abs(x[:, -256:]).mean(axis=1, keepdims=True) / unit + 1e-3))
        pieces.append(np.log(np.abs(x[:, -32:]).mean(axis=1, keepdims=True) / unit + 1e-3))
    for x in (seasonal_errors[:, -300:], np.diff(y[:, -301:], axis=1)):
        ordered_values = np.sort(x, axis=1)
        at = (np.array([0.005, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.995]) * (x.shape[1] - 1)).astype(np.intp)
        pieces.append(np.arcsinh(ordered_values[:, at] / unit))

    def at_lag(lag: Ints) -> F32:
        return np.take_along_axis(acf, np.minimum(lag, acf.shape[1] - 1), axis=1)

    pieces += [at_lag(pa), at_lag(pb), at_lag(pc), acf[:, [1, 2, 4, 8, 16]], errors_acf[:, [1, 2, 4, 8, 16]]]
    lags = [pa[:, 0], pb[:, 0], pc[:, 0], *(np.full(len(y), lag, dtype=np.intp) for lag in (1, 4, 16, 48))]
    pieces += [np.log(lagged_difference(y, history.first[:, 0], lag)[:, None] / unit + 1e-3) for lag in lags]
    steps = np.diff(y[:, -256:], axis=1)
    day = next((period for period in calendar if _is_day(period, calendar)), 0)
    lengths = length[:, None].astype(np.float32)
    pieces += [
        has.astype(np.float32),
        np.log(np.concatenate([pa, pb / pa, pc / pa], axis=1)),
        np.log(lengths) / 2,
        np.log(lengths / pa) / 2,
        np.minimum(length[:, None] // pa, _CYCLES).astype(np.float32) / 2,
        np.minimum(length[:, None] // pb, _CYCLES_B).astype(np.float32),
        np.log(unit / np.maximum(deviation, 1e-9) + 1e-3),
        (pa == day).astype(np.float32),
        (pb == 7 * pa).astype(np.float32),
        (lowest >= zero).astype(np.float32),
        (y[:, -256:] == lowest).mean(axis=1, keepdims=True),
        (y[:, -256:] == highest).mean(axis=1, keepdims=True),
        (last == lowest).astype(np.float32),
        (steps == 0).mean(axis=1, keepdims=True),
        (steps[:, -1:] == 0).astype(np.float32),
        np.sqrt(gaps.mean(axis=1, keepdims=True)),
        np.sqrt(gaps[:, -64:].mean(axis=1, keepdims=True)),
    ]
    return _limited(np.concatenate(pieces, axis=1, dtype=np.float32), _FEATURE_LIMIT)


def _limited(x: F32, limit: float) -> F32:
    return np.clip(x, -limit, limit, out=x)
