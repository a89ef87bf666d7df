from __future__ import annotations

from datetime import timedelta
from statistics import NormalDist

import numpy as np
import pytest

from anomaly_times.evidence import CHANNELS
from anomaly_times.limits import FittedLimits, fit_limits
from anomaly_times.panel import Floats

FIVE, HOUR = timedelta(minutes=5), timedelta(hours=1)
NINE_TENTHS = 1.2816
POINT, SUSTAINED, ROUGHNESS, DRIFT, FLAT = range(len(CHANNELS))
# Two weeks of five minutes, the last eight days of which were forecast, twelve hours at a time.
N_POINTS, CUTS, AHEAD = 4032, 16, 144
FIRST = N_POINTS - CUTS * AHEAD


def noise(n_series: int, n_points: int, *, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((n_series, n_points))


def fitted(history: Floats, errors: Floats | None = None, *, budget: float = 0.5) -> FittedLimits:
    """Limits from a history and what its last eight days were off from a forecast by, that of 0 by default."""
    off = history[:, FIRST:] if errors is None else errors
    ratios = off.reshape(len(history), CUTS, AHEAD) / NINE_TENTHS
    return fit_limits(history, ratios, np.full(len(history), 1000.0), step=FIVE, alerts_per_week=budget)


def with_spikes(y: Floats, at: list[int], height: float) -> Floats:
    out = y.copy()
    out[:, at] += height
    return out


def test_spikes_of_separate_days_are_how_a_series_behaves_and_one_alone_is_not() -> None:
    y = noise(20, N_POINTS, seed=1)
    calm = fitted(y)
    one = fitted(with_spikes(y, [FIRST + 700], 40.0))
    many = fitted(with_spikes(y, [FIRST + 200 + 288 * day for day in range(7)], 40.0))
    assert (NINE_TENTHS * calm.width < 6).all()
    assert (NINE_TENTHS * one.width < 20).all()
    assert (NINE_TENTHS * many.width > 40).all()


def test_the_same_spike_in_a_row_of_points_is_one_occasion() -> None:
    y = noise(20, N_POINTS, seed=2)
    row = fitted(with_spikes(y, list(range(FIRST + 780, FIRST + 792)), 40.0))
    days = fitted(with_spikes(y, [FIRST + 100 + 190 * i for i in range(12)], 40.0))
    assert (NINE_TENTHS * row.width < 30).all()
    assert (NINE_TENTHS * days.width > 40).all()


def test_noisy_hours_on_separate_days_raise_the_limit_of_roughness() -> None:
    y = noise(20, N_POINTS, seed=3)
    wild = y.copy()
    for day in range(1, 14, 2):
        wild[:, 288 * day + 97 : 288 * day + 121] *= 8
    alone = y.copy()
    alone[:, 288 * 5 + 97 : 288 * 5 + 121] *= 8
    usual, often, once = (fitted(each, y[:, FIRST:]).limit[ROUGHNESS, :, 0] for each in (y, wild, alone))
    assert (often > 1.5 * usual).all()
    assert np.median(once / usual) < 1.1


def test_steps_that_stay_widen_the_band_of_points() -> None:
    y = noise(30, N_POINTS, seed=4)
    levels = np.repeat(np.random.default_rng(5).integers(0, 2, (30, N_POINTS // 48)), 48, axis=1)
    errors = y[:, FIRST:]
    # As of a forecast that follows at once.
    met = errors + 30 * np.diff(levels, axis=1, prepend=levels[:, :1])[:, FIRST:]
    assert (fitted(y + 30 * levels, met).width > 1.5 * fitted(y, errors).width).all()


def test_a_rhythm_that_moves_from_hour_to_hour_leaves_the_width_alone() -> None:
    n, cuts, ahead = 672, 16, 12
    y = noise(40, n, seed=6)
    rhythm = 30 * np.sin(2 * np.pi * np.arange(n) / 24)
    ratios = y[:, n - cuts * ahead :].reshape(40, cuts, ahead) / NINE_TENTHS
    plain, daily = (fit_limits(each, ratios, np.full(40, 192.0), step=HOUR) for each in (y, y + rhythm))
    assert np.median(daily.width / plain.width) == pytest.approx(1.0, abs=0.05)


def test_a_level_that_past_forecasts_missed_alike_weighs_more_than_one_that_they_missed_in_turn() -> None:
    y = noise(40, N_POINTS, seed=7)
    level = np.random.default_rng(8).standard_normal((40, CUTS, 1)) * 0.6
    at_once = (y[:, FIRST:].reshape(40, CUTS, AHEAD) + level).reshape(40, -1)
    hourly = np.random.default_rng(9).standard_normal((40, CUTS * AHEAD // 12, 1)) * 0.6
    in_turn = (y[:, FIRST:].reshape(40, -1, 12) + hourly).reshape(40, -1)
    long, short = (fitted(y, each).limit[DRIFT, :, 0] for each in (at_once, in_turn))
    assert np.median(long / short) > 1.05
    assert np.median(short / fitted(y).limit[DRIFT, :, 0]) > 1.2


@pytest.mark.parametrize("ahead", [5, 12, 30, 144])
def test_past_forecasts_may_be_of_any_length(ahead: int) -> None:
    y = noise(5, N_POINTS, seed=10)
    ratios = y[:, -CUTS * ahead :].reshape(5, CUTS, ahead) / NINE_TENTHS
    limits = fit_limits(y, ratios, np.full(5, 100.0), step=FIVE)
    assert np.isfinite(limits.width).all()
    long_enough = CUTS * ahead >= 12 * 12
    assert (np.isfinite(limits.limit[[SUSTAINED, DRIFT]]) == long_enough).all()


def test_a_badly_known_past_gives_wider_limits() -> None:
    y = noise(20, N_POINTS, seed=11)
    ratios = y[:, FIRST:].reshape(20, CUTS, AHEAD) / NINE_TENTHS
    sure, unsure = (fit_limits(y, ratios, np.full(20, n), step=FIVE) for n in (2000.0, 20.0))
    assert np.median(unsure.width / sure.width) > 1.2
    few = fit_limits(y, ratios[:, :2], np.full(20, 2000.0), step=FIVE)
    assert np.median(few.limit[DRIFT] / sure.limit[DRIFT]) > 1.0


def test_a_budget_beyond_all_measure_gives_finite_limits_of_spiky_data() -> None:
    y = with_spikes(0.01 * noise(5, N_POINTS, seed=12), list(range(50, N_POINTS, 400)), 1000.0)
    limits = fitted(y, budget=1e9)
    assert np.isfinite(limits.width).all()
    assert (limits.limit > limits.usual).all()


def test_half_an_hour_that_is_odd_every_day_is_a_habit_though_no_past_forecast_met_it() -> None:
    y = noise(20, N_POINTS, seed=21)
    random = np.random.default_rng(22)
    odd = y.copy()
    for day in range(14):
        begin = 288 * day + random.integers(250)
        odd[:, begin : begin + 7] += 4
    once = y.copy()
    once[:, 2000:2007] += 4
    errors = y[:, FIRST:]
    calm, habit, incident = (fitted(history, errors).limit[[SUSTAINED, DRIFT], :, 0] for history in (y, odd, once))
    assert (np.median(habit / calm, axis=1) > 1.1).all()
    assert (np.median(habit / incident, axis=1) > 1.02).all()
    assert np.median(incident[1] / calm[1]) == 1.0


def test_a_history_of_a_day_or_two_has_limits_of_its_past_forecasts_alone() -> None:
    y = noise(5, 576, seed=23)
    past = noise(5, 16 * 24, seed=24).reshape(5, 16, 24) / NINE_TENTHS
    limits = fit_limits(y, past, np.full(5, 300.0), step=FIVE)
    assert np.isfinite(limits.limit[[SUSTAINED, DRIFT]]).all()


def test_a_freeze_that_goes_on_and_one_that_happened_once_leave_the_limit_of_flat_lines_alone() -> None:
    y = noise(3, N_POINTS, seed=25)
    usual = fitted(y).limit[FLAT, :, 0]
    frozen = y.copy()
    frozen[0, 1000:1072] = 3.0
    frozen[1, -72:] = 3.0
    frozen[2, 1000:1060], frozen[2, 2000:2060] = 3.0, 3.0
    once, now, habit = fitted(frozen).limit[FLAT, :, 0]
    assert (usual == 12).all()
    assert once == now == 12
    assert habit > 150


def test_moves_beyond_the_ninth_digit_are_none() -> None:
    y = 4e12 + np.cumsum(np.abs(noise(2, N_POINTS, seed=26)) * 100, axis=1)
    limits = fitted(y, noise(2, N_POINTS - FIRST, seed=27))
    rounded = fitted(np.round(y, -4), noise(2, N_POINTS - FIRST, seed=27))
    np.testing.assert_array_equal(limits.limit[FLAT], rounded.limit[FLAT])
    assert (limits.limit[FLAT] > 100).all()


@pytest.mark.parametrize(("step", "n"), [(6 * HOUR, 400), (24 * HOUR, 365), (168 * HOUR, 300)])
def test_where_steps_are_longer_than_hours_they_are_what_a_budget_counts(step: timedelta, n: int) -> None:
    y = noise(40, n, seed=28)
    past = y[:, -64 * 4 :].reshape(40, 64, 4) / NINE_TENTHS
    reach = NINE_TENTHS * fit_limits(y, past, np.full(40, 256.0), step=step, alerts_per_week=0.5).width
    # Two sides, and a part of the budget: of normal values.
    points = timedelta(weeks=1) / step
    expected = points * 2 * np.array([1 - NormalDist().cdf(far) for far in reach.tolist()])
    assert 0.1 < expected.mean() < 0.75


def test_before_its_second_day_is_over_a_series_is_judged_by_its_points_alone() -> None:
    past = noise(2, 16 * 24, seed=29).reshape(2, 16, 24) / NINE_TENTHS
    y = noise(2, 576, seed=30)
    y[0, :1] = np.nan
    limits = fit_limits(y, past, np.full(2, 300.0), step=FIVE)
    assert np.isinf(limits.limit[1:, 0]).all()
    assert np.isfinite(limits.limit[1:, 1]).all()


def test_a_past_without_errors_gives_no_limit_that_the_noise_of_computing_exceeds() -> None:
    y = np.tile(np.arange(60.0), 67)[None, :N_POINTS]
    limits = fitted(y, np.full((1, N_POINTS - FIRST), 1e-9))
    assert (limits.limit[[SUSTAINED, ROUGHNESS, DRIFT]] >= limits.usual[[SUSTAINED, ROUGHNESS, DRIFT]] + 0.05).all()


def test_steps_that_were_forecast_do_not_widen_the_band() -> None:
    random = np.random.default_rng(31)
    off = 0.3 * noise(10, N_POINTS, seed=32)
    steps = np.where((np.arange(N_POINTS) % 288 // 24) % 4 == 0, 40.0, 0.0) + random.uniform(0, 1e-6, N_POINTS)
    ratios = off[:, FIRST:].reshape(10, CUTS, AHEAD) / (0.3 * NINE_TENTHS)
    limits = fit_limits(off + steps, ratios, np.full(10, 1000.0), step=FIVE)
    assert (NINE_TENTHS * limits.width < 7).all()
