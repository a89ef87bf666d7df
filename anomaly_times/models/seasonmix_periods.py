"""The seasonal periods of a series: peaks of its autocorrelation, the calendar first, each checked against the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from anomaly_times.profiling import staged

__all__ = ["SLOTS", "autocorrelation", "day_of", "find_periods", "lagged_difference"]

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

SLOTS = 3
"""Seasonal periods that a series may have."""

_SHORTEST = 4
_RISE = np.float32(0.1)


@staged("season")
def find_periods(
    y: F32, first: Ints, calendar: Sequence[int] = (), season: Sequence[int] | None = None
) -> tuple[Ints, F32]:
    """Up to `SLOTS` periods of each row of `y` (no gaps), in steps, 0 for none: int[S, SLOTS]; and autocorrelations.

    The first is the day (or another calendar period) where the autocorrelation supports it, else the first of the high
    peaks of the autocorrelation. The others are those of several candidates, multiples among them, at which the recent
    past differs least from itself. Autocorrelations are float32[S, T // 2 + 1].
    """
    acf = autocorrelation(_without_trend(y, first), first, y.shape[1] // 2)
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
    a, day = fundamental, day_of(calendar)
    for period in sorted(calendar):
        if _SHORTEST <= period < acf.shape[1]:
            there = (acf[:, period] >= np.maximum(0.05, 0.4 * height)) & (rise[:, period] >= 0.5 * _RISE)
            a = np.where(there & ((a == 0) | (period == day)), period, a)
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


def day_of(calendar: Sequence[int]) -> int:
    """The day in steps: the period of the calendar of which seven make another; 0 where there is none."""
    return next((period for period in calendar if 7 * period in calendar), 0)


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


def autocorrelation(x: F32, first: Ints, most: int) -> F32:
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
