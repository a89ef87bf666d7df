"""Series made up for checking models and bounds: `services` to develop against, `processes` to check with.

Both are seeded, so a figure can be had again. `services` looks like what Prometheus scrapes: request rates with days
and weekends, latencies with heavy tails, processors that saturate, counts of errors, queues, sawteeth of memory, jobs
by the clock; with bursts, shifts of the level, gaps and rounding. `processes` is what textbooks have: autoregression,
random walks, volatility that clusters, switching regimes, odd periods, sparse counts, growth.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np

from anomaly_times.panel import Floats

__all__ = ["autoregression", "processes", "services"]

Rng = np.random.Generator


def services(n_series: int, n_points: int, step: timedelta, *, seed: int) -> Floats:
    """Metrics of made-up services: float64[n_series, n_points], NaN for gaps."""
    rng = np.random.default_rng(seed)
    out = np.empty((n_series, n_points))
    for i in range(n_series):
        out[i] = _service(rng, n_points, step / timedelta(days=1))
    return out


def processes(n_series: int, n_points: int, step: timedelta, *, seed: int) -> Floats:
    """Textbook processes: float64[n_series, n_points]."""
    rng = np.random.default_rng(seed)
    kinds: tuple[Callable[[Rng, int, float], Floats], ...] = (
        _autoregressive, _walk, _volatile, _switching, _odd_period, _sparse, _growing, _on_off,
    )  # fmt: skip
    return np.stack([kinds[i % len(kinds)](rng, n_points, step / timedelta(days=1)) for i in range(n_series)])


def autoregression(rng: Rng, n: int, memory: float) -> Floats:
    """A process of the first order with unit variance that forgets in `memory` steps: float64[n]."""
    keep = float(np.exp(-1.0 / max(memory, 1e-9)))
    noise = rng.standard_normal(n) * np.sqrt(1 - keep * keep)
    noise[0] = rng.standard_normal()
    out = np.empty(n)
    state = 0.0
    for t, one in enumerate(noise.tolist()):
        state = keep * state + one
        out[t] = state
    return out


def _service(rng: Rng, n: int, step: float) -> Floats:
    days = np.arange(n) * step + rng.uniform(0, 7)
    load = _rhythm(rng, days) * np.exp(
        rng.choice([0.02, 0.05, 0.15]) * autoregression(rng, n, rng.choice([0.02, 0.1, 0.5]) / step)
    )
    kind = int(rng.integers(9))
    size = 10 ** rng.uniform(0, 4)
    if kind == 0:  # a rate of many requests
        y = size * load * np.exp(rng.choice([0.01, 0.03, 0.1]) * rng.standard_normal(n))
    elif kind == 1:  # a rate of few requests, counted over a step
        seconds = step * 86400
        y = rng.poisson(np.maximum(0, load * rng.uniform(0.02, 1.0) * seconds / 10)) / seconds
    elif kind == 2:  # a latency, which grows with the load and has a heavy tail
        busy = np.clip(load / (load.max() * rng.uniform(1.2, 2.5)), 0, 0.95)
        tail = np.exp(rng.uniform(0.05, 0.3) * rng.standard_t(rng.uniform(3, 8), n))
        y = 0.01 * rng.uniform(1, 20) / (1 - busy) * np.minimum(tail, 50)
    elif kind == 3:  # a processor, in per cent
        y = np.clip(rng.uniform(5, 50) * load + rng.uniform(0.5, 5) * rng.standard_normal(n), 0.2, 100)
    elif kind == 4:  # errors: mostly none
        rate = rng.uniform(0.02, 1.5) * load * np.exp(0.8 * autoregression(rng, n, 0.05 / step))
        y = rng.poisson(rate).astype(np.float64)
    elif kind == 5:  # a queue
        level = autoregression(rng, n, rng.uniform(0.01, 0.3) / step)
        y = np.round(np.exp(rng.uniform(0.3, 1.0) * level + rng.uniform(0, 4)) * np.sqrt(load))
    elif kind == 6:  # memory: leaks, then restarts or collections
        y = size * _sawtooth(rng, n, step) * (1 + 0.01 * rng.standard_normal(n))
    elif kind == 7:  # a slow gauge: disk, connections
        drift = np.cumsum(rng.standard_normal(n)) * np.sqrt(step) * rng.choice([0.02, 0.1])
        y = size * (1 + drift + rng.normal(0, 0.03) * (days - days[0]) + 0.1 * load)
        y += size * rng.choice([0.001, 0.01]) * rng.standard_normal(n)
    else:  # jobs by the clock
        y = size * (0.2 * load + _jobs(rng, days, step)) * np.exp(0.05 * rng.standard_normal(n))
    return _marred(rng, y, step)


def _rhythm(rng: Rng, days: Floats) -> Floats:
    """Day and week around 1, never negative; days differ a little from each other."""
    angle = 2 * np.pi * (days % 1)
    shape = np.zeros(len(days))
    for k in range(1, int(rng.integers(2, 6))):
        shape += rng.normal() * k ** -rng.uniform(0.8, 2) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    out = np.exp(rng.choice([0.0, 0.2, 0.5, 0.9], p=[0.15, 0.3, 0.35, 0.2]) * shape / max(1e-9, shape.std()))
    if rng.random() < 0.6:
        out = np.where(days % 7 >= 5, out * rng.uniform(0.3, 1.0), out)
    own = autoregression(rng, int(days[-1]) + 3, rng.uniform(0.2, 4)) * rng.choice([0.01, 0.05, 0.15])
    return np.asarray(out * np.exp(np.interp(days, np.arange(len(own)), own)) / out.mean())


def _sawtooth(rng: Rng, n: int, step: float) -> Floats:
    period = np.exp(rng.uniform(np.log(0.04), np.log(3.0))) / step
    jitter = rng.choice([0.0, 0.1, 0.4])
    y, at, low = np.empty(n), 0, rng.uniform(0.2, 1)
    while at < n:
        length = max(3, int(period * np.exp(jitter * rng.standard_normal())))
        stop = min(n, at + length)
        y[at:stop] = low + np.arange(stop - at) / period
        at = stop
    return y


def _jobs(rng: Rng, days: Floats, step: float) -> Floats:
    period = float(rng.choice([1 / 24, 1 / 4, 1 / 2, 1, 1.5 / 24, 100 / 1440, 1 / 8]))
    length = max(step, period * rng.uniform(0.05, 0.3))
    into = days % period
    return np.where(into < length, rng.uniform(0.5, 3.0), 0.0)


def _marred(rng: Rng, y: Floats, step: float) -> Floats:
    """Bursts that recur, one shift of the level, gaps, rounding."""
    n, typical = len(y), float(np.median(np.abs(y))) or 1.0
    if rng.random() < 0.35:
        for at in np.flatnonzero(rng.random(n) < rng.uniform(0.1, 1.5) * step):
            length = max(1, int(rng.lognormal(np.log(0.014), 0.8) / step))
            y[at : at + length] *= 1 + rng.exponential(0.8)
    if rng.random() < 0.12:
        y[int(rng.uniform(0.1, 0.85) * n) :] += rng.choice([-1, 1]) * rng.uniform(0.1, 0.5) * typical
    if rng.random() < 0.1:
        at, length = int(rng.uniform(0.1, 0.85) * n), max(1, int(rng.uniform(0.05, 0.2) / step))
        y[at : at + length] *= rng.choice([0.1, 3.0, 8.0])
    if rng.random() < 0.2:
        unit = 10.0 ** np.floor(np.log10(typical) - rng.choice([0, 1, 2]))
        y = np.round(y / unit) * unit
    if rng.random() < 0.2:
        y[: n * 9 // 10][rng.random(n * 9 // 10) < 0.01] = np.nan
    return y


def _autoregressive(rng: Rng, n: int, step: float) -> Floats:
    return 10 + autoregression(rng, n, np.exp(rng.uniform(0, 6))) * rng.uniform(0.5, 3)


def _walk(rng: Rng, n: int, step: float) -> Floats:
    return 100 + np.cumsum(rng.standard_t(4, n)) + rng.choice([0, 3]) * rng.standard_normal(n)


def _volatile(rng: Rng, n: int, step: float) -> Floats:
    """Noise whose size wanders (stochastic volatility: Taylor, 1982)."""
    return 50 + np.exp(0.7 * autoregression(rng, n, rng.uniform(20, 300))) * rng.standard_normal(n)


def _switching(rng: Rng, n: int, step: float) -> Floats:
    """Two levels, with stays of random length."""
    stay = rng.uniform(0.1, 2) / step
    state = np.cumsum(rng.random(n) < 1 / stay) % 2
    return 20 + 10 * state + rng.standard_normal(n) * np.where(state, 2.0, 1.0)


def _odd_period(rng: Rng, n: int, step: float) -> Floats:
    """A wave with a period that no clock has, and noise that remembers."""
    period = np.exp(rng.uniform(np.log(6), np.log(n / 6)))
    angle = 2 * np.pi * np.arange(n) / round(period)
    wave = np.sin(angle) + rng.uniform(0, 0.6) * np.sin(2 * angle + 1) + rng.uniform(0, 0.4) * np.cos(3 * angle)
    return 30 + 5 * wave + rng.uniform(0.3, 3) * autoregression(rng, n, rng.choice([0.1, 5, 40]))


def _sparse(rng: Rng, n: int, step: float) -> Floats:
    return rng.poisson(rng.uniform(0.05, 3), n) * rng.lognormal(0, rng.choice([0.0, 0.7]), n)


def _growing(rng: Rng, n: int, step: float) -> Floats:
    days = np.arange(n) * step
    return 100 + rng.uniform(-3, 3) * days + np.sin(2 * np.pi * days) + autoregression(rng, n, 20)


def _on_off(rng: Rng, n: int, step: float) -> Floats:
    """Work from nine to five with noise of its own, nothing else."""
    on = ((np.arange(n) * step) % 1 > 0.375) & ((np.arange(n) * step) % 1 < 0.71)
    return on * (10 + rng.gamma(2, 2, n)) + np.abs(0.1 * rng.standard_normal(n))
