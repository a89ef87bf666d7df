from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from anomaly_times.durations import EPOCH
from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.calibrate import forecast_with_bounds, settled
from anomaly_times.models.shifts import lasting_shifts
from anomaly_times.panel import Floats, Grid, Labels, Panel
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)
N = 4032
LABELS = (Labels.of({"pod": "a"}),)


def rhythm(n: int = N, rows: int = 6) -> Floats:
    day = 2 * np.pi * np.arange(n) / 288
    noise = np.random.default_rng(3).standard_normal((rows, n))
    return np.asarray(20 + 4 * np.sin(day) + 3 * np.cos(2 * day) + noise)


@pytest.mark.parametrize("ago", [144, 288, 1000, 2500])
@pytest.mark.parametrize("size", [-12.0, 12.0])
def test_a_shift_is_found_where_it_began(ago: int, size: float) -> None:
    y = rhythm()
    y[:3, -ago:] += size
    y[3:, -ago - 7 :] += size
    np.testing.assert_allclose(lasting_shifts(panel_of(y, step=FIVE)), [N - ago] * 3 + [N - ago - 7] * 3, atol=12)


@pytest.mark.parametrize(
    "step", [timedelta(minutes=1), timedelta(minutes=11.25), timedelta(minutes=30), timedelta(hours=1)]
)
def test_a_shift_is_found_at_every_step(step: timedelta) -> None:
    day = timedelta(days=1) / step
    n = round(10 * day)
    y = 20 + 4 * np.sin(2 * np.pi * np.arange(n) / day) + np.random.default_rng(5).standard_normal((4, n))
    y[:, n - round(day) :] += 15
    np.testing.assert_allclose(lasting_shifts(panel_of(y, step=step)), n - round(day), atol=0.02 * day)


def test_what_is_no_lasting_shift_is_none() -> None:
    clock = np.arange(N) / 288
    weekends = np.where(clock % 7 >= 5, 0.3, 1.0)
    incident, twice, young, late, ramp = (rhythm(rows=1)[0] for _ in range(5))
    incident[-400:-300] += 30
    twice[1000:] += 30
    twice[2500:] += 30
    young[-100:] += 30
    late[:500] += 30
    ramp += 30 * clock / 14
    rows = [rhythm(rows=1)[0], 50 * weekends + incident * 0.05, incident, twice, young, late, ramp, np.full(N, 5.0)]
    gone = np.where(np.arange(N) > N - 288, np.nan, rhythm(rows=1)[0])
    rows += [gone, np.full(N, np.nan)]
    assert lasting_shifts(panel_of(np.array(rows), step=FIVE)).tolist() == [0] * len(rows)


def test_gaps_and_huge_values_hide_no_shift_and_break_nothing() -> None:
    y = rhythm()
    y[:, -288:] += 15
    y[0, np.random.default_rng(0).random(N) < 0.5] = np.nan
    y[1, -1200:-700] = np.nan
    y[2, 1000] = 1e300
    y[3] *= 1e299
    np.testing.assert_allclose(lasting_shifts(panel_of(y, step=FIVE)), N - 288, atol=2)


def test_a_weekend_is_no_shift_though_it_is_the_first_that_is_seen() -> None:
    clock = np.arange(7 * 288) / 288
    y = np.where(clock % 7 >= 5, 50.0, 100.0) + np.random.default_rng(1).standard_normal((4, 7 * 288))
    for end in (5.6, 6.0, 6.5, 7.0):
        assert not lasting_shifts(panel_of(y[:, : int(end * 288)], step=FIVE)).any()
    y[:, 5 * 288 :] = 50.0
    later = np.concatenate([y, y[:, -288:]], axis=1)
    np.testing.assert_allclose(lasting_shifts(panel_of(later, step=FIVE)), 5 * 288, atol=12)


def test_a_young_series_has_no_shift_however_long_the_others_are() -> None:
    y = rhythm(rows=200)
    y[:, : -60 * 12] = np.nan
    assert not lasting_shifts(panel_of(y, step=FIVE)).any()


@pytest.mark.parametrize("days", [7, 14, 28])
def test_every_step_is_taken_whatever_the_lookback(days: int) -> None:
    for minutes in range(1, 61):
        step = timedelta(minutes=minutes)
        n = timedelta(days=days) // step
        start = EPOCH + 30_000 * step
        assert not lasting_shifts(Panel(LABELS, Grid(start, step, n), np.ones((1, n)))).any()


def test_a_short_history_has_no_shift() -> None:
    y = rhythm(1200)
    y[:, -288:] += 30
    assert not lasting_shifts(panel_of(y, step=FIVE)).any()
    assert not lasting_shifts(panel_of(y[:, :1], step=FIVE)).any()
    assert not lasting_shifts(panel_of(y[:, :200], step=timedelta(days=1))).any()


def test_series_without_a_shift_keep_their_history() -> None:
    y = rhythm()
    y[2, -288:] += 15
    history = panel_of(y, step=FIVE)
    moved = settled(history).y
    np.testing.assert_array_equal(np.delete(moved, 2, axis=0), np.delete(y, 2, axis=0))
    np.testing.assert_array_equal(moved[2, -288:], y[2, -288:])
    assert abs(np.median(moved[2, :-288]) - np.median(y[2, :-288]) - 15) < 1


@pytest.mark.parametrize("name", ["auto", "seasonmix", "profile", "seasonal_naive", "holt"])
@pytest.mark.parametrize("size", [-15.0, 40.0])
def test_within_a_day_of_a_shift_forecast_and_band_are_at_the_new_level(name: str, size: float) -> None:
    y = rhythm()
    shifted = y.copy()
    shifted[:, -288:] += size
    model = build_model(ModelSpec(type=name))
    calm, moved = (forecast_with_bounds(model, panel_of(v, step=FIVE), h=24, level=99.9) for v in (y, shifted))
    assert np.abs(moved.yhat - calm.yhat - size).mean() < 1.5
    assert (moved.upper - moved.lower).mean() < 1.5 * (calm.upper - calm.lower).mean()
