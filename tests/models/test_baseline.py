from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times.mission import ModelSpec
from anomaly_times.models import Forecaster, build_model
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def model(name: str, **kwargs: object) -> Forecaster:
    return build_model(ModelSpec(type=name), **kwargs)  # type: ignore[arg-type]


def median(name: str, y: Floats, h: int, **kwargs: object) -> Floats:
    return model(name, **kwargs).forecast(panel_of(y), h=h, quantiles=(0.1, 0.5, 0.9)).at(0.5)


def test_seasonal_naive_repeats_the_last_day_and_passes_over_gaps() -> None:
    y = np.tile(np.arange(24.0), 3)[None] + np.repeat([0.0, 100.0, 200.0], 24)
    y[0, -20:-18] = np.nan
    want = np.arange(24.0) + 200
    want[4:6] -= 100
    np.testing.assert_array_equal(median("seasonal_naive", y, 30, season=(DAY,))[0], [*want, *want[:6]])


def test_seasonal_naive_falls_back_to_the_last_value_and_says_so() -> None:
    answer = model("seasonal_naive").forecast(panel_of(np.array([[1.0, 2.0, np.nan]])), h=3, quantiles=(0.5,))
    assert answer.values.ravel().tolist() == [2.0, 2.0, 2.0]
    assert answer.notes == {0: "no season covered twice: the last value"}


def test_no_season_means_the_last_value_without_a_word() -> None:
    y = np.tile(np.arange(24.0), 5)[None]
    answer = model("seasonal_naive", season=()).forecast(panel_of(y), h=5, quantiles=(0.5,))
    assert answer.values.ravel().tolist() == [23.0] * 5
    assert not answer.notes


def test_seasonal_naive_grows_less_sure_with_every_cycle() -> None:
    y = np.random.default_rng(0).standard_normal((1, 240))
    answer = model("seasonal_naive", season=(DAY,)).forecast(panel_of(y), h=48, quantiles=(0.1, 0.5, 0.9))
    width = answer.at(0.9) - answer.at(0.1)
    np.testing.assert_allclose(width[0, 24:], width[0, :24] * np.sqrt(2))


def test_seasonal_naive_is_as_sure_whatever_the_minute_of_a_regular_job() -> None:
    five = timedelta(minutes=5)
    random = np.random.default_rng(4)
    widths = []
    for phase in range(3):
        y = np.where(np.arange(2016) % 3 == phase, random.uniform(0, 60, 2016), 0.0)[None]
        history = panel_of(y, step=five)
        answer = model("seasonal_naive", season=(DAY,)).forecast(history, h=12, quantiles=(0.025, 0.5, 0.975))
        widths.append(float((answer.at(0.975) - answer.at(0.025)).mean()))
    assert max(widths) < 1.3 * min(widths)


@pytest.mark.parametrize("name", ["seasonal_naive", "profile"])
def test_a_change_of_clocks_does_not_shift_the_day(name: str) -> None:
    # Busy from 9 to 17 by the clock in Berlin, which goes forward in the night to 29 March 2026.
    begin = datetime(2026, 3, 15, tzinfo=UTC)
    local = (np.arange(24 * 16) + 1 + (np.arange(24 * 16) >= 24 * 14 + 1)) % 24
    y = 10.0 + 90.0 * ((local >= 9) & (local < 17))[None]
    history = panel_of(y[:, : 24 * 14], start=begin)
    future = y[:, 24 * 14 : 24 * 15]
    berlin = model(name, timezone="Europe/Berlin").forecast(history, h=24, quantiles=(0.5,)).values[:, :, 0]
    np.testing.assert_allclose(berlin, future, atol=3.0)
    utc = model(name).forecast(history, h=24, quantiles=(0.5,)).values[:, :, 0]
    assert np.abs(utc - future).max() > 45


def test_profile_beats_seasonal_naive_on_noise_around_a_rhythm() -> None:
    random = np.random.default_rng(5)
    y = 5 * np.sin(2 * np.pi * np.arange(24 * 15) / 24) + random.standard_normal((50, 24 * 15))
    future, errors = y[:, -24:], {}
    for name in ("seasonal_naive", "profile"):
        errors[name] = np.abs(median(name, y[:, :-24], 24, season=(DAY,)) - future).mean()
    assert errors["profile"] < 0.8 * errors["seasonal_naive"]


def test_profile_follows_a_level_shift_within_a_day() -> None:
    random = np.random.default_rng(0)
    y = np.sin(2 * np.pi * np.arange(24 * 10) / 24) + 0.3 * random.standard_normal((20, 240))
    shifted = y.copy()
    shifted[:, -24:] += 20
    moved = median("profile", shifted, 24) - median("profile", y, 24)
    assert np.abs(moved.mean(axis=1) - 20).max() < 4


def test_profile_forgets_an_incident() -> None:
    y = (
        10
        + np.sin(2 * np.pi * np.arange(24 * 10) / 24)[None]
        + 0.1 * np.random.default_rng(0).standard_normal((1, 240))
    )
    struck = y.copy()
    struck[0, 100:104] += 500
    assert np.abs(median("profile", struck, 24) - median("profile", y, 24)).max() < 0.5


def test_profile_knows_the_weekend() -> None:
    day = (np.arange(24 * 28) // 24) % 7
    y = np.where(day >= 5, 20.0, 100.0) + np.random.default_rng(1).standard_normal((5, 24 * 28))
    # Twenty-six days from a Monday: the next day is a Saturday.
    saturday = median("profile", y[:, : 24 * 26], 24)
    assert np.abs(saturday - 20).mean() < 15


def test_seasonal_naive_repeats_a_batch_of_every_100_minutes() -> None:
    y = 10.0 * (np.arange(2016 + 20) % 20 < 3)[None] + 0.1 * np.random.default_rng(0).standard_normal((3, 2036))
    answer = model("seasonal_naive").forecast(panel_of(y[:, :2016], step=HOUR / 12), h=20, quantiles=(0.5,))
    np.testing.assert_array_equal(answer.at(0.5), y[:, 1996:2016])


def test_profile_knows_a_batch_of_every_100_minutes() -> None:
    random = np.random.default_rng(0)
    y = 10.0 * (np.arange(2016 + 40) % 20 < 3) + random.standard_normal((20, 2056))
    answer = model("profile").forecast(panel_of(y[:, :2016], step=HOUR / 12), h=40, quantiles=(0.1, 0.5, 0.9))
    assert np.abs(answer.at(0.5) - y[:, 2016:]).mean() < 1.2
    unaware = model("profile", season=()).forecast(panel_of(y[:, :2016], step=HOUR / 12), h=40, quantiles=(0.5,))
    assert np.abs(unaware.at(0.5) - y[:, 2016:]).mean() > 2


def test_profile_treats_a_new_series_by_its_own_age() -> None:
    random = np.random.default_rng(2)
    young = np.cumsum(random.standard_normal(40)) + 50
    y = np.full((1, 24 * 14), np.nan)
    y[0, -40:] = young
    assert abs(median("profile", y, 3)[0, 0] - young[-1]) < 4
    answer = model("profile").forecast(panel_of(y), h=3, quantiles=(0.1, 0.5, 0.9))
    assert "shorter than two cycles" in answer.notes[0]


def test_profile_is_wider_where_the_day_is_noisier() -> None:
    hour = np.arange(24 * 20) % 24
    y = np.random.default_rng(4).standard_normal((20, 24 * 20)) * np.where(hour < 12, 1.0, 10.0)
    answer = model("profile").forecast(panel_of(y), h=24, quantiles=(0.05, 0.5, 0.95))
    width = (answer.at(0.95) - answer.at(0.05)).mean(axis=0)
    assert width[13:23].mean() > 3 * width[1:11].mean()


def test_profile_does_not_stay_wider_at_the_hour_of_an_incident() -> None:
    random, hour = np.random.default_rng(6), np.arange(288 * 8) % 288 // 12
    calm = 20 + random.standard_normal((20, len(hour))) * np.where(hour >= 8, 3.0, 0.3)
    struck = calm.copy()
    struck[:, 288 * 5 + 36 : 288 * 5 + 54] += 12 * random.standard_normal((20, 18))
    width = []
    for y in (calm, struck):
        answer = model("profile").forecast(panel_of(y, step=HOUR / 12), h=288, quantiles=(0.05, 0.5, 0.95))
        width.append((answer.at(0.95) - answer.at(0.05))[:, 36:54].mean())
    assert width[1] < 1.2 * width[0]
