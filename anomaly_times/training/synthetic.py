"""Made-up metrics: what `seasonmix` is trained on, and nothing else.

A batch shares its step and length. Each series is a sum of a seasonal part that follows a day and a week (or a period
that no calendar knows), a level that drifts, jumps or stays, and noise; then it is turned into what a metric of some
kind looks like: a rate, a count, a saturated gauge, errors that are mostly zero, a job that is on or off. Incidents,
rounding and gaps come last. Every function takes the random generator first and gives float32[n, T].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MINUTES_A_DAY", "Batch", "Shape", "make_batch"]

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
Rng = np.random.Generator

MINUTES_A_DAY = 1440


@dataclass(frozen=True)
class Shape:
    """What the series of a batch have in common: minutes a step, points of history, points after it."""

    step: int
    n_points: int
    h: int

    @property
    def calendar(self) -> tuple[int, ...]:
        """Steps in an hour, a day and a week, as far as they make a season."""
        return tuple(minutes // self.step for minutes in (60, 1440, 10080) if minutes // self.step >= 4)


@dataclass(frozen=True)
class Batch:
    """`history` (float32[n, T], NaN for gaps) and the `future` that follows it (float32[n, h])."""

    shape: Shape
    history: F32
    future: F32


_SHAPES: tuple[tuple[float, int, tuple[int, ...]], ...] = (
    (0.16, 1, (1008, 1440, 2016, 2880)),
    (0.26, 5, (576, 1152, 2016, 2016, 2880)),
    (0.08, 10, (432, 1008, 2016)),
    (0.10, 15, (672, 1344, 2016)),
    (0.10, 30, (336, 672, 1344)),
    (0.30, 60, (336, 700, 960, 960, 1344, 2016)),
)
_HORIZONS = (48, 64, 64, 96, 144, 288, 576)


def make_batch(rng: Rng, n: int) -> Batch:
    """A batch of `n` series of one shape, some of them with a short history."""
    kinds = rng.choice(len(_SHAPES), p=[share for share, _, _ in _SHAPES])
    _, step, lengths = _SHAPES[kinds]
    n_points, h = int(rng.choice(lengths)), int(rng.choice(_HORIZONS))
    shape = Shape(step, n_points, h)
    y = _metrics(rng, n, n_points + h, shape)
    y = _gaps(rng, y, n_points)
    return Batch(shape, y[:, :n_points], y[:, n_points:])


def _metrics(rng: Rng, n: int, n_points: int, shape: Shape) -> F32:
    day = MINUTES_A_DAY / shape.step
    period = np.full(n, day)
    other = rng.random(n) < 0.2
    # Any period from a few steps up to what the history covers a few times: jobs, batches, clients that poll.
    some = np.exp(rng.uniform(np.log(4.5), np.log(max(12, shape.n_points / 3)), n))
    period[other] = np.where(rng.random(n) < 0.6, np.rint(some), some)[other]
    if shape.n_points < 1.5 * day:
        # A day that is covered once cannot be learned; then the hour and its fractions are what repeats.
        hourly = rng.random(n) < 0.5
        period = np.where(hourly & ~other, 60 / shape.step * rng.choice([1, 1, 0.5, 2, 3, 6], n), period)
    start = np.floor(rng.random(n) * period * 7)
    time = start[:, None] + np.arange(n_points)
    season, shapes = _season(rng, time, period, n_points)
    signal = season + _level(rng, n, n_points, shape.n_points)
    signal += _noise(rng, n, n_points) * _heteroscedastic(rng, shapes)
    signal += _incidents(rng, n, n_points, shape.n_points)
    return _as_metric(rng, signal, time, period)


def _profile(rng: Rng, phase: F32) -> F32:
    """A periodic curve of unit size at `phase` (in cycles): harmonics, bumps, plateaus of working hours."""
    n = len(phase)
    out = np.zeros(phase.shape, dtype=np.float32)
    harmonics, decay = rng.integers(1, 9, n), rng.uniform(0.4, 2.5, n)
    turn = (2 * np.pi * phase).astype(np.float32)
    cosine, sine = np.cos(turn), np.sin(turn)
    cos_k, sin_k = cosine, sine
    for k in range(1, 9):
        size = rng.normal(size=n) * k**-decay * (k <= harmonics)
        angle = rng.uniform(0, 2 * np.pi, n)
        out += _column(size * np.cos(angle)) * cos_k + _column(size * np.sin(angle)) * sin_k
        cos_k, sin_k = cos_k * cosine - sin_k * sine, sin_k * cosine + cos_k * sine
    out /= out.std(axis=1, keepdims=True) + 1e-6
    kind = rng.random(n)
    bumpy = np.flatnonzero(kind < 0.4)
    for _ in range(2):
        width = _column(_log_uniform(rng, 0.004, 0.12, bumpy.size))
        distance = (phase[bumpy] - _column(rng.random(bumpy.size))) % 1
        distance = np.minimum(distance, 1 - distance)
        out[bumpy] += _column(2.5 * rng.normal(size=bumpy.size)) * np.exp(-0.5 * (distance / width) ** 2)
    working = np.flatnonzero((kind > 0.3) & (kind < 0.6))
    since = (phase[working] - _column(rng.random(working.size))) % 1
    hours, steep = _column(rng.uniform(0.1, 0.6, working.size)), _column(_log_uniform(rng, 10, 200, working.size))
    plateau = np.tanh(steep * since / 2) - np.tanh(steep * (since - hours) / 2)
    sign = _column(rng.choice([1.0, 1.0, 1.0, -1.0], working.size))
    out[working] = out[working] * _column(rng.uniform(0, 0.7, working.size)) + sign * plateau
    return _f32(out / (out.std(axis=1, keepdims=True) + 1e-6))


def _season(rng: Rng, time: npt.NDArray[np.float64], period: npt.NDArray[np.float64], n_points: int) -> tuple[F32, F32]:
    """The seasonal part and the bare daily curve: days of the week, days that differ, seasons that change or end."""
    n = len(time)
    rows = np.arange(n)[:, None]
    cycles = time / period[:, None]
    day = np.floor(cycles).astype(np.intp)
    phase = (cycles - day).astype(np.float32)
    weekday = day % 7
    curve = _profile(rng, phase)
    weekly = rng.random(n) < 0.6
    # A weekend with a curve of its own.
    apart = np.flatnonzero(weekly & (rng.random(n) < 0.5))
    share = _column(rng.uniform(0.1, 1, apart.size))
    curve[apart] = np.where(
        weekday[apart] >= 5, (1 - share) * curve[apart] + share * _profile(rng, phase[apart]), curve[apart]
    )
    strength = np.exp(rng.normal(size=(n, 7)) * _column(rng.choice([0, 0.05, 0.2, 0.5], n)))
    strength[:, 5:] *= _column(np.where(rng.random(n) < 0.6, rng.uniform(0.05, 1.1, n), 1))
    offset = rng.normal(size=(n, 7)) * _column(rng.choice([0, 0.05, 0.2, 0.5], n))
    offset[:, 5:] += _column(np.where(rng.random(n) < 0.6, rng.normal(size=n) * 1.2, 0))
    strength[~weekly], offset[~weekly] = 1, 0
    # Days are alike but not equal; what makes them differ lasts for some days.
    count = int((day[:, -1] - day[:, 0]).max()) + 2
    lasting = rng.uniform(-0.2, 0.95, n)
    shifted = _ar1(rng, n, count, lasting) * _column(_sometimes(rng, n, 0.6, -1.6, 0.8))
    stronger = np.exp(np.clip(_ar1(rng, n, count, lasting) * _column(_sometimes(rng, n, 0.5, -1.8, 0.7)), -2, 2))
    at = day - day[:, :1]
    smooth = phase if rng.random() < 0.5 else np.clip((phase - 0.5) / 0.3 + 0.5, 0, 1)
    shift = shifted[rows, at] * (1 - smooth) + shifted[rows, at + 1] * smooth
    factor = stronger[rows, at] * (1 - smooth) + stronger[rows, at + 1] * smooth
    daily = offset[rows, weekday]
    gliding = _column(rng.random(n) < 0.5)
    daily = np.where(gliding, daily * (1 - smooth) + offset[rows, (weekday + 1) % 7] * smooth, daily)
    size = np.where(rng.random(n) < 0.88, np.exp(rng.normal(0, 0.6, n)), 0)
    drifting = np.exp(_walk(rng, n, n_points) * _column(np.where(rng.random(n) < 0.3, rng.uniform(0.1, 0.8, n), 0)))
    season = _column(size) * (curve * strength[rows, weekday] * factor * drifting + daily)
    season += shift * _column(np.where(size > 0, size, 1))
    season = season.astype(np.float32)
    # A new version of the service brings a new curve.
    changed = np.flatnonzero(rng.random(n) < 0.1)
    since = rng.integers(n_points // 5, n_points, (changed.size, 1))
    fresh = _profile(rng, phase[changed]) * _column(size[changed] * rng.uniform(0.3, 1.5, changed.size))
    season[changed] = np.where(np.arange(n_points) >= since, fresh, season[changed])
    # A second, shorter rhythm on top: fractions of the period, whole numbers of steps.
    double = np.flatnonzero(rng.random(n) < 0.2)
    fraction = np.maximum(4, np.rint(period[double] / rng.integers(2, 25, double.size)))
    season[double] += _profile(rng, ((time[double] / fraction[:, None]) % 1).astype(np.float32)) * _column(
        rng.uniform(0.1, 0.7, double.size)
    )
    return season, curve


def _level(rng: Rng, n: int, n_points: int, n_past: int) -> F32:
    """What the season is added to: at rest for two of five, else slow swings, a random walk, a trend, jumps."""
    slow = _ar1(rng, n, n_points, 1 - _log_uniform(rng, 0.002, 0.1, n)) * _column(_sometimes(rng, n, 0.5, -1.2, 0.8))
    out = slow + _walk(rng, n, n_points) * _column(_sometimes(rng, n, 0.35, -0.5, 0.9))
    slope = np.where(rng.random(n) < 0.3, 1.2 * rng.normal(size=n), 0)
    out += _column(slope) * np.linspace(-1, 1, n_points, dtype=np.float32)
    for _ in range(2):
        # Half of the jumps lie just before the forecast, where they are hardest to judge.
        late = n_past - rng.integers(-10, 150, n)
        at = np.where(rng.random(n) < 0.5, rng.integers(20, n_points, n), late)
        jump = np.where(rng.random(n) < 0.12, 1.8 * rng.normal(size=n), 0)
        out += (np.arange(n_points) >= at[:, None]) * _column(jump)
    out *= _column(rng.random(n) < 0.6)
    return out.astype(np.float32, copy=False)


def _noise(rng: Rng, n: int, n_points: int) -> F32:
    """White or autocorrelated noise, with heavy tails for a quarter."""
    lasting = np.where(rng.random(n) < 0.4, 0, rng.uniform(0, 0.98, n))
    out = _ar1(rng, n, n_points, lasting)
    heavy = np.flatnonzero(rng.random(n) < 0.25)
    out[heavy] *= 0.6 * np.abs(rng.standard_t(3, (heavy.size, n_points)))
    smooth = np.flatnonzero(rng.random(n) < 0.15)
    # Temperatures and queues swing: an autoregression of second order.
    out[smooth] = _ar1_filter(out[smooth], rng.uniform(0.5, 0.97, smooth.size))
    out[smooth] /= out[smooth].std(axis=1, keepdims=True) + 1e-6
    return out * _column(np.exp(rng.normal(-1.5, 0.9, n)))


def _heteroscedastic(rng: Rng, curve: F32) -> F32:
    """Noise grows with the season for half of the series."""
    how_much = np.where(rng.random(len(curve)) < 0.5, rng.uniform(0.2, 1, len(curve)), 0)
    return np.exp(_column(how_much) * np.clip(curve, -3, 3))


def _incidents(rng: Rng, n: int, n_points: int, n_past: int) -> F32:
    """Bursts that decay, and stretches that are higher or lower for a while."""
    out = np.zeros((n, n_points), dtype=np.float32)
    bursts = np.flatnonzero(rng.random(n) < 0.2)
    often = _column(_log_uniform(rng, 0.0008, 0.03, bursts.size))
    strikes = (rng.random((bursts.size, n_points), dtype=np.float32) < often) * rng.standard_exponential(
        (bursts.size, n_points), dtype=np.float32
    )
    out[bursts] = _ar1_filter(strikes, rng.uniform(0, 0.95, bursts.size)) * _column(
        np.exp(rng.normal(0.5, 0.6, bursts.size)) * rng.choice([1.0, 1.0, 1.0, -1.0], bursts.size)
    )
    column = np.arange(n_points)
    for _ in range(2):
        rows = np.flatnonzero(rng.random(n) < 0.12)
        begin = rng.integers(0, n_past, (rows.size, 1))
        length = _log_uniform(rng, 1, 80, rows.size)[:, None]
        out[rows] += ((column >= begin) & (column < begin + length)) * _column(4 * rng.normal(size=rows.size))
    return out


Time = npt.NDArray[np.float64]
Kind = Callable[[Rng, F32, Time, Time], F32]


def _as_metric(rng: Rng, signal: F32, time: Time, period: Time) -> F32:
    """Turn each signal into one of the kinds below; some are rounded; scale and offset are any."""
    n = len(signal)
    z = (signal - signal.mean(axis=1, keepdims=True)) / (signal.std(axis=1, keepdims=True) + 1e-6)
    z = np.clip(z, -12, 12)
    out = z.copy()
    shares = np.array([share for share, _ in _KINDS])
    kind = rng.choice(len(_KINDS), n, p=shares / shares.sum())
    for i, (_, make) in enumerate(_KINDS):
        rows = np.flatnonzero(kind == i)
        if rows.size:
            out[rows] = make(rng, z[rows], time[rows], period[rows])
    rounded = np.flatnonzero(rng.random(n) < 0.12)
    unit = out[rounded].std(axis=1, keepdims=True) * _column(rng.uniform(0.03, 0.7, rounded.size)) + 1e-9
    out[rounded] = np.round(out[rounded] / unit) * unit
    return _f32(out)


def _plain(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """A gauge: temperature, load, memory. Half of them far from zero, where ratios mean nothing."""
    return z + _column(rng.choice([0.0, 3.0, 20.0], len(z)))


def _multiplicative(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """Traffic, latency: positive, with swings that grow with the level."""
    out = np.exp(_column(rng.uniform(0.1, 0.9, len(z))) * z)
    noisy = _column(np.where(rng.random(len(z)) < 0.3, 0.1, 0))
    return _f32(out * (1 + noisy * rng.standard_normal(z.shape, dtype=np.float32)))


def _rate(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """`rate()` of a counter: counts of some seconds, spread over a window of a few steps, divided by its length."""
    counts = _counts(rng, z, time, period)
    window = rng.integers(1, 6)
    out = counts.copy()
    for lag in range(1, window):
        out[:, lag:] += counts[:, :-lag]
    return out / np.float32(60 * window)


def _counts(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """Requests: Poisson counts, half of them overdispersed."""
    mean = np.exp(np.clip(_column(rng.uniform(0.2, 0.9, len(z))) * z, -5, 3)) * _column(
        _log_uniform(rng, 0.3, 3000, len(z))
    )
    over = np.flatnonzero(rng.random(len(z)) < 0.5)
    shape = _column(_log_uniform(rng, 1, 30, over.size))
    mean[over] *= rng.gamma(shape, 1 / shape, mean[over].shape)
    return _f32(rng.poisson(mean).astype(np.float32))


def _errors(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """Errors: zero most of the time, a few where there is load, now and then many."""
    mean = np.exp(np.clip(0.6 * z, -4, 3)) * _column(_log_uniform(rng, 0.005, 0.8, len(z)))
    burst = (rng.random(z.shape, dtype=np.float32) < _column(_log_uniform(rng, 0.0005, 0.01, len(z)))).astype(
        np.float32
    )
    burst = _ar1_filter(burst, rng.uniform(0, 0.9, len(z)))
    return _f32(rng.poisson(mean + burst * _column(_log_uniform(rng, 2, 30, len(z)))).astype(np.float32))


def _idle(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """A floor: nothing happens at night."""
    return np.maximum(z, _column(rng.uniform(-1, 0.8, len(z))))


def _saturated(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """A gauge that hits its ceiling, with a little jitter there for half of them."""
    out = np.minimum(z, _column(rng.uniform(0, 1.5, len(z))))
    jitter = _column(np.where(rng.random(len(z)) < 0.5, 0.02, 0))
    return _f32(out + jitter * rng.standard_normal(z.shape, dtype=np.float32))


def _at_peaks(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """Something that happens at peak hours only: throttling, autoscaling, queues."""
    out = np.maximum(0, z - _column(rng.uniform(0.2, 1.8, len(z))))
    wild = _column(rng.random(len(z)) < 0.5)
    return _f32(np.where(wild, out * rng.standard_exponential(z.shape, dtype=np.float32), out))


def _spikes(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """Flat or nearly so, with rare spikes."""
    often = _column(_log_uniform(rng, 0.002, 0.15, len(z))) * np.exp(np.clip(z, -2, 2) * _column(rng.random(len(z))))
    waving = _column(rng.random(len(z)) < 0.6) * np.float32(0.03) * z
    quiet = _column((rng.random(len(z)) < 0.6) * 0.1 * rng.standard_exponential(len(z)))
    spikes = (rng.random(z.shape, dtype=np.float32) < often) * np.exp(
        0.7 * rng.standard_normal(z.shape, dtype=np.float32)
    )
    sign = _column(rng.choice([1.0, 1.0, 1.0, -1.0], len(z)))
    return _f32(waving + quiet * rng.standard_normal(z.shape, dtype=np.float32) + spikes * sign)


def _jobs(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """A job on a timetable: on for part of each period (or of some fraction of it), off else, never exactly so long."""
    every = np.maximum(3, np.rint(period / rng.choice([1, 1, 2, 4, 6, 24], len(z))))
    duty = _column(rng.uniform(0.02, 0.9, len(z)))
    late = np.cumsum(rng.standard_normal(z.shape, dtype=np.float32), axis=1) * _column(
        np.where(rng.random(len(z)) < 0.3, 0.002, 0)
    )
    on = ((time / every[:, None] + late) % 1) < np.maximum(duty, 1.01 / every[:, None])
    height = 3 * (1 + 0.1 * z * _column(rng.random(len(z)) < 0.5))
    rest = 0.1 * z * _column(rng.random(len(z)) < 0.6)
    return _f32(np.where(on, height, 0) + rest)


def _sawtooth(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """Heap between collections, a disk between rotations: up slowly and down at once, on a timetable or not."""
    every = _log_uniform(rng, 8, 400, len(z))
    every = np.where(rng.random(len(z)) < 0.3, period, every)
    pace = np.exp(0.5 * z * _column(np.where(rng.random(len(z)) < 0.3, 1, 0)))
    cycles = np.cumsum(pace / every[:, None], axis=1) + _column(rng.random(len(z)))
    rise = (cycles % 1) ** _column(rng.uniform(0.5, 2, len(z)))
    falling = _column(rng.random(len(z)) < 0.3)
    return _f32(np.where(falling, 1 - rise, rise) + _column(np.where(rng.random(len(z)) < 0.5, 0.15, 0.02)) * z)


def _share(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """A share between 0 and 1, near one of its ends for many: utilisation, success ratio."""
    return _f32(1 / (1 + np.exp(-(_column(rng.normal(0, 2.5, len(z))) + _column(rng.uniform(0.2, 1.5, len(z))) * z))))


def _growing(rng: Rng, z: F32, time: Time, period: Time) -> F32:
    """A disk that fills, a counter without `rate()`, sometimes emptied: a steady slope with steps of varying size."""
    pace = np.exp(_column(rng.uniform(0.1, 0.8, len(z))) * z)
    total = np.cumsum(pace, axis=1) / z.shape[1]
    at = rng.integers(0, z.shape[1], (len(z), 1))
    emptied = _column(rng.random(len(z)) < 0.3) * (np.arange(z.shape[1]) >= at)
    jitter = _column(np.where(rng.random(len(z)) < 0.5, 0.01, 0)) * rng.standard_normal(z.shape, dtype=np.float32)
    return _f32(5 * (total - emptied * np.take_along_axis(total, at, axis=1)) + jitter)


_KINDS: tuple[tuple[float, Kind], ...] = (
    (0.34, _plain),
    (0.16, _multiplicative),
    (0.07, _rate),
    (0.09, _counts),
    (0.04, _errors),
    (0.04, _idle),
    (0.05, _saturated),
    (0.04, _at_peaks),
    (0.03, _spikes),
    (0.04, _jobs),
    (0.04, _sawtooth),
    (0.03, _share),
    (0.03, _growing),
)


def _gaps(rng: Rng, y: F32, n_past: int) -> F32:
    """Single gaps, stretches without values, and histories that began late; what is to be forecast stays."""
    n = len(y)
    column = np.arange(y.shape[1])
    single = np.flatnonzero(rng.random(n) < 0.08)
    often = _column(rng.choice([0.01, 0.1, 0.3], single.size))
    lost = (rng.random((single.size, y.shape[1]), dtype=np.float32) < often) & (column < n_past - 1)
    y[single] = np.where(lost, np.float32(np.nan), y[single])
    stretch = np.flatnonzero(rng.random(n) < 0.1)
    begin = rng.integers(0, n_past, (stretch.size, 1))
    length = _log_uniform(rng, 3, 200, stretch.size)[:, None]
    lost = (column >= begin) & (column < begin + length) & (column < n_past - 1)
    y[stretch] = np.where(lost, np.float32(np.nan), y[stretch])
    # Shorter than half is another shape's business, but a service that is hours old must be forecast too.
    late = np.flatnonzero(rng.random(n) < 0.2)
    begin = n_past - np.where(
        rng.random(late.size) < 0.5, rng.uniform(n_past / 2, n_past, late.size), _log_uniform(rng, 2, n_past, late.size)
    )
    y[late] = np.where(column < np.minimum(begin, n_past - 1)[:, None], np.float32(np.nan), y[late])
    return y


def _f32(x: npt.ArrayLike) -> F32:
    return np.asarray(x, dtype=np.float32)


def _column(x: npt.ArrayLike) -> F32:
    """One value a row, to be spread over its points."""
    return np.asarray(x, dtype=np.float32)[:, None]


def _log_uniform(rng: Rng, low: float, high: float, n: int) -> npt.NDArray[np.float64]:
    return np.exp(rng.uniform(np.log(low), np.log(high), n))


def _sometimes(rng: Rng, n: int, share: float, mean: float, spread: float) -> npt.NDArray[np.float64]:
    """Log-normal sizes for a `share` of rows, 0 for the others."""
    return np.where(rng.random(n) < share, np.exp(rng.normal(mean, spread, n)), 0)


def _walk(rng: Rng, n: int, n_points: int) -> F32:
    """Random walks that end about 1 from where they began."""
    steps = rng.standard_normal((n, n_points), dtype=np.float32)
    return np.cumsum(steps, axis=1, out=steps) / np.float32(np.sqrt(n_points))


def _ar1(rng: Rng, n: int, n_points: int, lasting: npt.NDArray[np.float64]) -> F32:
    """Autoregressions of order one with unit variance, stationary from the first point on."""
    shocks = rng.standard_normal((n, n_points), dtype=np.float32)
    shocks[:, 1:] *= _column(np.sqrt(1 - np.square(lasting)))
    return _ar1_filter(shocks, lasting)


def _ar1_filter(x: F32, lasting: npt.NDArray[np.float64]) -> F32:
    """`y[t] = x[t] + lasting · y[t − 1]`, by doubling, since (1 − φB)⁻¹ = (1 + φB)(1 + φ²B²)(1 + φ⁴B⁴)… and so on."""
    out = x.copy()
    factor, lag = np.asarray(lasting, dtype=np.float64), 1
    while lag < x.shape[1] and (np.abs(factor) > 1e-6).any():
        out[:, lag:] += _column(factor) * out[:, :-lag]
        factor, lag = factor * factor, 2 * lag
    return out
