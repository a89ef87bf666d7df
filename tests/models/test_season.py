from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times.models.season import DAY, HOUR, WEEK, Cycles, candidate_periods, find_seasons, moving_level, smoothed
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
