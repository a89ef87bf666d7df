"""Made-up series that are normal and uneasy all the same: what happens to them happens again and again.

Each is at home on some machine: a disk that fills and is cleaned, a job that runs every few hours, a cache that is
either warm or cold. None of it is news, so an alert budget should hold here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from anomaly_times.panel import Floats

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Uneasy:
    """One kind of series: a name, and what makes one row of so many points an hour."""

    name: str
    row: Callable[[np.random.Generator, int, float], Floats]

    def __str__(self) -> str:
        return self.name

    def make(self, n_series: int, n_points: int, step: timedelta, *, seed: int) -> Floats:
        """float64[n_series, n_points]."""
        random = np.random.default_rng(seed)
        return np.stack([self.row(random, n_points, HOUR / step) for _ in range(n_series)])


def _times(random: np.random.Generator, n: int, gap: float, jitter: float) -> list[int]:
    """When something begins that happens every `gap` points, early or late by up to a share `jitter` of that."""
    number = np.arange(int(n / gap) + 2)
    at = (number + random.uniform(-jitter, jitter, len(number))) * gap - random.uniform(0, gap)
    return [int(t) for t in np.sort(at) if 0 <= t < n]


def _wave(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    return np.asarray(np.sin(2 * np.pi * (np.arange(n) / per_hour / 24 + random.uniform())))


def _sawtooth(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Fills up by an uneven rate, and is emptied once a day, within half an hour."""
    y = np.cumsum(random.gamma(2.0, 0.5, n)) / per_hour
    for at in _times(random, n, 24 * per_hour, 1 / 48):
        y[at:] -= y[at] * random.uniform(0.85, 1.0)
    return np.asarray(20 + 3 * y + 0.5 * random.standard_normal(n))


def _jobs(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Busy for half an hour every five hours or so, by more or less."""
    y = 10 + 0.5 * random.standard_normal(n)
    for at in _times(random, n, 5 * per_hour, 0.3):
        length = max(1, round(per_hour * random.uniform(0.3, 0.8)))
        part = slice(at, min(n, at + length))
        y[part] += random.uniform(15, 40) + 3 * random.standard_normal(part.stop - at)
    return np.asarray(y)


def _spiky(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Some single values a day far above the others, of any size."""
    spikes = random.random(n) < 4 / (24 * per_hour)
    noise = random.standard_normal(n) + 3 * _wave(random, n, per_hour)
    return np.asarray(50 + noise + np.where(spikes, 5 * random.pareto(2.0, n) + 5, 0.0))


def _rare_spikes(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Calm, but for a spike of a few points every two days."""
    y = 5 + 0.2 * random.standard_normal(n)
    for at in _times(random, n, 48 * per_hour, 0.4):
        y[at : at + random.integers(1, 4)] += random.uniform(20, 60)
    return np.asarray(y)


def _regimes(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Either on one level or on another, for some hours each."""
    switches = random.random(n) < 1 / (6 * per_hour)
    on = np.cumsum(switches) % 2
    return np.asarray(20 + 15 * on + (1 + on) * random.standard_normal(n))


def _quantised(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """A slow value in whole numbers, most of the time the one before."""
    keep = np.exp(-1 / (4 * per_hour))
    y = random.standard_normal(n) * np.sqrt(1 - keep**2)
    for t in range(1, n):
        y[t] += keep * y[t - 1]
    return np.asarray(np.round(30 + 1.2 * y + _wave(random, n, per_hour)))


def _noisy_nights(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Six times as noisy for three hours a day, at the same time."""
    hour = (np.arange(n) / per_hour + random.uniform(0, 24)) % 24
    return np.asarray(100 + np.where(hour < 3, 6.0, 1.0) * random.standard_normal(n))


def _wild_hours(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Five times as noisy for an hour or two, once a day or so, at any time."""
    size = np.ones(n)
    for at in _times(random, n, 24 * per_hour, 0.5):
        size[at : at + max(1, round(per_hour * random.uniform(1, 2)))] = 5.0
    return np.asarray(100 + 5 * _wave(random, n, per_hour) + size * random.standard_normal(n))


def _on_and_off(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """Nothing most of the time, and counts while there is work: twenty minutes of every two hours or so."""
    rate = np.zeros(n)
    for at in _times(random, n, 2 * per_hour, 0.5):
        rate[at : at + max(1, round(per_hour * random.uniform(0.1, 0.6)))] = random.gamma(2.0, 5.0)
    return np.asarray(random.poisson(rate), dtype=np.float64)


def _wandering(random: np.random.Generator, n: int, per_hour: float) -> Floats:
    """A level that wanders for days, and a rhythm that is not the same every day."""
    walk = np.cumsum(random.standard_normal(n)) / np.sqrt(24 * per_hour)
    days = np.repeat(random.uniform(0.7, 1.3, int(n / (24 * per_hour)) + 1), round(24 * per_hour))[:n]
    return np.asarray(200 + 10 * walk + 20 * days * _wave(random, n, per_hour) + 2 * random.standard_normal(n))


UNEASY = (
    Uneasy("daily resets of a sawtooth", _sawtooth),
    Uneasy("a job every five hours", _jobs),
    Uneasy("spikes every day", _spiky),
    Uneasy("a spike every two days", _rare_spikes),
    Uneasy("two levels", _regimes),
    Uneasy("whole numbers", _quantised),
    Uneasy("noisy nights", _noisy_nights),
    Uneasy("wild hours", _wild_hours),
    Uneasy("on and off", _on_and_off),
    Uneasy("wandering", _wandering),
)
