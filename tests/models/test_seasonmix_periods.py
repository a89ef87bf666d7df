from __future__ import annotations

import numpy as np
import pytest

from anomaly_times.models.seasonmix_periods import find_periods
from anomaly_times.panel import Floats

HOURLY = (24, 168)
FIVE_MINUTES = (12, 288, 2016)


def wave(n: int, period: float, *, rows: int = 4, noise: float = 0.2) -> Floats:
    random = np.random.default_rng(int(period))
    return np.sin(2 * np.pi * np.arange(n) / period) + noise * random.standard_normal((rows, n))


def periods(y: Floats, calendar: tuple[int, ...] = (), first: int = 0) -> list[list[int]]:
    return find_periods(y.astype(np.float32), np.full(len(y), first), calendar)[0].tolist()


def test_the_day_is_found_and_the_week_with_it() -> None:
    week = wave(24 * 28, 24) + 2 * (np.arange(24 * 28) // 24 % 7 < 5)
    assert [row[:2] for row in periods(week, HOURLY)] == [[24, 168]] * 4
    assert [row[0] for row in periods(wave(2016, 288), FIVE_MINUTES)] == [288] * 4


@pytest.mark.parametrize("period", [5, 17, 40, 111])
def test_a_period_that_no_calendar_knows_is_found(period: int) -> None:
    found = np.array([row[0] for row in periods(wave(1000, period), FIVE_MINUTES)])
    # A lag that is off by less than a tenth of a cycle, or some whole cycles, continues the wave as well.
    off = np.abs(found / period - np.rint(found / period))
    assert (found > 0).all()
    assert (off < 0.1).all()


def test_a_random_walk_and_a_constant_have_no_period_in_slots_that_matter() -> None:
    walk = np.random.default_rng(0).standard_normal((40, 1000)).cumsum(axis=1)
    found = np.array(periods(walk))[:, 0]
    # Slow swings of a walk look like long cycles; short ones would be made up.
    assert ((found == 0) | (found > 40)).all()
    assert periods(np.ones((1, 500))) == [[0, 0, 0]]


def test_a_day_that_is_covered_hardly_more_than_once_is_used_where_it_fits() -> None:
    assert [row[0] for row in periods(wave(2016, 1440), (60, 1440, 10080))] == [1440] * 4


def test_what_lies_before_the_first_value_has_no_say() -> None:
    y = wave(400, 24)
    padded = np.concatenate([np.repeat(y[:, :1], 500, axis=1), y], axis=1)
    assert [row[0] for row in periods(padded, HOURLY, first=500)] == [row[0] for row in periods(y, HOURLY)] == [24] * 4


def test_given_periods_are_taken_as_they_are_where_the_history_covers_them() -> None:
    y = np.random.default_rng(0).standard_normal((2, 200)).astype(np.float32)
    found, _ = find_periods(y, np.array([0, 150]), HOURLY, (100, 7))
    assert found.tolist() == [[7, 100, 0], [7, 0, 0]]
    assert find_periods(y, np.zeros(2, dtype=int), HOURLY, ())[0].tolist() == [[0, 0, 0]] * 2
