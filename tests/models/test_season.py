from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times.models.season import (
    DAY,
    HOUR,
    WEEK,
    Cycles,
    Windows,
    candidate_periods,
    find_seasons,
    middle_mean,
    moving_level,
    smoothed,
)
from anomaly_times.panel import Floats, Grid
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)


def daily(days: int, noise: float, *, seed: int = 1, rows: int = 20) -> Floats:
    random = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * np.arange(288 * days) / 288)
    return wave + noise * random.standard_normal((rows, 288 * days))


def test_a_daily_rhythm_is_found_with_gaps_and_incidents() -> None:
    y = daily(7, 0.5)
    y[:, 300:340] = np.nan
    y[:, 900:930] += 1e6
    assert find_seasons(panel_of(y, step=FIVE)) == [(288,)] * 20


def test_a_weekly_rhythm_is_found_on_top_of_the_daily_one() -> None:
    y = 10 + daily(21, 0.3)
    y[:, (np.arange(y.shape[1]) // 288) % 7 >= 5] *= 0.4
    assert find_seasons(panel_of(y, step=FIVE)) == [(288, 2016)] * 20


def test_an_hourly_rhythm_is_found() -> None:
    y = daily(3, 0.1) * 0 + (np.arange(288 * 3) % 12 == 0) + 0.1 * np.random.default_rng(2).standard_normal((20, 864))
    assert all(12 in found for found in find_seasons(panel_of(y, step=FIVE)))


def test_noise_and_random_walks_have_no_season() -> None:
    noise = np.random.default_rng(3).standard_normal((200, 2016))
    assert sum(map(bool, find_seasons(panel_of(noise, step=FIVE)))) <= 4
    assert sum(map(bool, find_seasons(panel_of(noise.cumsum(axis=1), step=FIVE)))) <= 30


def jobs(every: int, rows: int = 20, n: int = 2016, noise: float = 0.3) -> Floats:
    """A batch every so many steps that takes an eighth of them."""
    random = np.random.default_rng(4)
    return (np.arange(n) % every < max(1, every // 8)) + noise * random.standard_normal((rows, n))


@pytest.mark.parametrize("every", [20, 37, 50, 100])
def test_a_period_that_no_clock_has_is_found(every: int) -> None:
    found = find_seasons(panel_of(jobs(every), step=FIVE))
    assert sum(every in row for row in found) >= 16


def test_a_period_that_no_clock_has_is_found_on_top_of_a_day_among_gaps_and_incidents() -> None:
    y = 3 * daily(7, 0.1) + jobs(20)
    y[:, 500:520] = np.nan
    y[:, 900:910] += 1e4
    assert sum(row == (20, 288) for row in find_seasons(panel_of(y, step=FIVE))) >= 18


def test_an_overtone_is_no_period() -> None:
    # The second overtone is the strongest line.
    t = 2 * np.pi * np.arange(2016) / 50
    y = (
        0.5 * np.sin(t)
        + 0.3 * np.cos(2 * t)
        + np.sin(3 * t)
        + 0.3 * np.random.default_rng(0).standard_normal((5, 2016))
    )
    assert find_seasons(panel_of(y, step=FIVE)) == [(50,)] * 5


def test_one_cycle_is_no_evidence() -> None:
    assert find_seasons(panel_of(daily(1, 0.0), step=FIVE)) == [()] * 20


def test_candidates_are_covered_twice_and_hold_four_slots() -> None:
    def grid(step: timedelta, n: int) -> Grid:
        return Grid(datetime(2026, 1, 5, tzinfo=UTC), step, n)

    assert candidate_periods(grid(FIVE, 2016)) == [HOUR, DAY]
    assert candidate_periods(grid(FIVE, 4032)) == [HOUR, DAY, WEEK]
    assert candidate_periods(grid(HOUR, 336)) == [DAY, WEEK]
    assert candidate_periods(grid(DAY, 28)) == [WEEK]
    assert candidate_periods(grid(FIVE, 2016), ()) == []
    assert candidate_periods(grid(FIVE, 2016), (WEEK, 6 * HOUR)) == [6 * HOUR]


@pytest.mark.parametrize(("start", "n"), [((2026, 3, 26), 24 * 6 - 1), ((2026, 10, 22), 24 * 6 + 1)])
def test_a_day_of_23_or_25_hours_keeps_its_slots(start: tuple[int, int, int], n: int) -> None:
    # Midnight in Berlin; six local days with a change of clocks among them.
    begin = datetime(*start, tzinfo=UTC) - timedelta(hours=1 if start[1] == 3 else 2)
    cycles = Cycles.of(Grid(begin, HOUR, n), 24, DAY, "Europe/Berlin")
    assert cycles.columns.shape == (6, 24)
    assert cycles.slot[:3].tolist() == [0, 1, 2]
    assert cycles.slot[-3:].tolist() == [21, 22, 23]
    assert cycles.ahead.tolist() == list(range(24))
    if start[1] == 3:
        assert (cycles.columns == n).sum() == 1, "the hour that the clocks leave out"
    else:
        assert (np.bincount(cycles.slot) == [6, 6, 7] + [6] * 21).all(), "the hour that comes twice"


def test_a_level_keeps_spikes_out_and_follows_shifts() -> None:
    y = np.ones((1, 300))
    y[0, 100:103] = 1e9
    y[0, 200:] = 5.0
    level = moving_level(y, 27, 27)
    assert level[0, 90:110].tolist() == [1.0] * 20
    assert level[0, -1] == 5.0


def test_smoothing_leaves_gaps_and_constants_alone() -> None:
    y = np.array([[2.0, 2.0, np.nan, 2.0, 2.0]])
    np.testing.assert_array_equal(smoothed(y, 3), y)


@pytest.mark.parametrize("cycles", [2, 3, 7, 8, 12])
@pytest.mark.parametrize("slots", [12, 48])
def test_the_middle_mean_is_the_interquartile_mean_of_what_is_there(cycles: int, slots: int) -> None:
    random = np.random.default_rng(cycles)
    folded = random.standard_normal((3, cycles, slots))
    folded[random.random(folded.shape) < 0.1] = np.nan
    middle, count = middle_mean(folded)
    for row, slot in np.ndindex(3, slots):
        values = np.sort(folded[row, :, slot][~np.isnan(folded[row, :, slot])])
        cut = (len(values) + 1) // 4
        assert count[row, slot] == len(values)
        want = values[cut : len(values) - cut].mean() if len(values) else np.nan
        np.testing.assert_allclose(middle[row, slot], want)


def test_an_oldest_cycle_that_begins_late_counts_from_there_on() -> None:
    cycles = Cycles.of(Grid(datetime(2026, 1, 5, tzinfo=UTC), HOUR, 24 * 3 + 10), 1, DAY, "UTC")
    assert cycles.lacking == 14
    y = np.arange(82.0)[None]
    folded = cycles.fold(y)
    assert np.isnan(folded[0, 0, :14]).all()
    np.testing.assert_array_equal(folded[0].ravel()[14:], y[0])
    middle, count = middle_mean(cycles.fold(y, blank=1e9), cycles.lacking)
    assert count[0].tolist() == [3.0] * 14 + [4.0] * 10
    np.testing.assert_array_equal(middle[0], [*np.arange(34.0, 48.0), *np.arange(36.0, 46.0)])


@pytest.mark.parametrize("gaps", [False, True])
def test_windows_average_what_they_hold(gaps: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 100))
    if gaps:
        x[0, 20:30] = np.nan
    first, stop = np.array([3, 20, 22, 69, 5]), np.array([70, 30, 40, 70, 6])
    mean = Windows.of(first, stop).mean(x)
    for i, (a, b) in enumerate(zip(first, stop, strict=True)):
        for row in range(2):
            there = x[row, a:b][~np.isnan(x[row, a:b])]
            np.testing.assert_allclose(mean[row, i], there.mean() if there.size else np.nan)
