from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import numpy as np
import pytest

from anomaly_times.errors import MissingExtraError, ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models import Forecaster, build_model, gradient_boosting
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)
LEVELS = (0.1, 0.5, 0.9)


def lgbm(*, season: tuple[timedelta, ...] | None = None, timezone: str = "UTC", **params: Any) -> Forecaster:
    return build_model(ModelSpec(type="lgbm", **params), season=season, timezone=timezone)


def after_a_burst(n: int, *, noise: float = 0.05) -> Floats:
    """Bursts at random times, each followed by half of itself three points later."""
    random = np.random.default_rng(3)
    burst = np.where(random.random(n) < 0.1, 10.0, 0.0)
    return 20 + burst + 0.5 * np.roll(burst, 3) + noise * random.standard_normal(n)


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_it_learns_what_no_season_tells(strategy: str) -> None:
    y = np.stack([after_a_burst(2000), after_a_burst(2000, noise=0.06)])
    lonely = [cut for cut in range(1900, 1990) if y[0, cut - 1] > 29 and y[0, cut - 5 : cut - 1].max() < 21]
    for cut in lonely[:2]:
        answer = lgbm(strategy=strategy, trees=60, learning_rate=0.2).forecast(
            panel_of(y[:, :cut]), h=3, quantiles=LEVELS
        )
        assert np.abs(answer.at(0.5)[:, 2] - 25).max() < 1.0
        assert np.abs(answer.at(0.5)[:, 1] - 20).max() < 6.0


def test_one_model_serves_ratios_and_bytes() -> None:
    random = np.random.default_rng(1)
    wave = 2 + np.sin(2 * np.pi * np.arange(288 * 6) / 288) + 0.05 * random.standard_normal((2, 288 * 6))
    y = wave * np.array([[1e-3], [1e10]])
    answer = lgbm(trees=50).forecast(panel_of(y[:, : 288 * 5], step=FIVE), h=288, quantiles=LEVELS)
    assert not answer.notes
    off = np.abs(answer.at(0.5) - y[:, 288 * 5 :]).mean(axis=1) / y.mean(axis=1)
    assert (off < 0.05).all()
    assert (answer.at(0.9) > answer.at(0.1)).all()


def test_a_direct_forecast_knows_the_hour_that_it_is_for() -> None:
    # Without a season only the clock tells that noon is coming.
    hour = np.arange(24 * 40) % 24
    y = np.where(hour == 12, 50.0, 10.0)[None] + 0.1 * np.random.default_rng(0).standard_normal((1, 24 * 40))
    history = panel_of(y[:, : 24 * 39 + 9])
    answer = lgbm(season=(), strategy="direct", lags=2, trees=100, learning_rate=0.2).forecast(
        history, h=5, quantiles=LEVELS
    )
    assert answer.at(0.5)[0] == pytest.approx([10, 10, 10, 50, 10], abs=12)


def test_the_clock_is_the_local_one() -> None:
    # Berlin goes to summer time on 2026-03-29: from then on eight o'clock is at 6:00 UTC.
    start = datetime(2026, 3, 1, tzinfo=UTC)
    hours = np.arange(24 * 28 + 20)
    utc_offset = np.where(hours >= 24 * 28 + 1, 2, 1)
    y = np.where((hours + utc_offset) % 24 == 8, 90.0, 10.0)[None]
    y += 0.1 * np.random.default_rng(0).standard_normal(y.shape)
    history = panel_of(y[:, : 24 * 28], start=start)
    answer = lgbm(timezone="Europe/Berlin", trees=60).forecast(history, h=20, quantiles=LEVELS)
    assert answer.at(0.5)[0].argmax() == 6


def test_direct_up_to_six_steps_and_recursive_beyond() -> None:
    history = panel_of(np.stack([after_a_burst(400)]))

    def ahead(strategy: str, h: int) -> Floats:
        return lgbm(strategy=strategy, trees=20).forecast(history, h=h, quantiles=LEVELS).values

    np.testing.assert_array_equal(ahead("auto", 6), ahead("direct", 6))
    np.testing.assert_array_equal(ahead("auto", 7), ahead("recursive", 7))
    assert not np.array_equal(ahead("direct", 6), ahead("recursive", 6))


def test_a_short_series_falls_back_by_name_and_the_others_go_on() -> None:
    y = np.stack([after_a_burst(400), after_a_burst(400)])
    y[1, :-20] = np.nan
    history = panel_of(y)
    answer = lgbm(trees=20).forecast(history, h=12, quantiles=LEVELS)
    assert answer.notes == {1: "profile instead of lgbm (only 20 points)"}
    profile = build_model(ModelSpec(type="profile")).forecast(history.rows([1]), h=12, quantiles=LEVELS)
    np.testing.assert_allclose(answer.values[1], profile.values[0])


def test_a_fit_that_fails_leaves_every_series_to_profile_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightgbm import LGBMRegressor

    def fail(self: object, *args: object, **options: object) -> NoReturn:
        raise ZeroDivisionError("no tree grew")

    monkeypatch.setattr(LGBMRegressor, "fit", fail)
    history = panel_of(np.stack([after_a_burst(300), np.full(300, 7.0)]))
    answer = lgbm().forecast(history, h=12, quantiles=LEVELS)
    reason = "profile instead of lgbm (ZeroDivisionError: no tree grew)"
    assert answer.notes == {0: reason, 1: reason}
    profile = build_model(ModelSpec(type="profile")).forecast(history, h=12, quantiles=LEVELS)
    np.testing.assert_array_equal(answer.values, profile.values)


def test_a_panel_too_large_to_learn_from_as_a_whole_is_forecast_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_boosting, "_MOST_POINTS", 2 * 600)
    monkeypatch.setattr(gradient_boosting, "_MOST_REPLAYED", 3 * 600)
    monkeypatch.setattr(gradient_boosting, "_MOST_ROWS", 300)
    random = np.random.default_rng(5)
    y = 20 + 10 * np.sin(2 * np.pi * np.arange(648) / 24) + random.standard_normal((7, 648))
    y *= 10.0 ** np.arange(7)[:, None]
    answer = lgbm(trees=30).forecast(panel_of(y[:, :600]), h=48, quantiles=LEVELS)
    assert not answer.notes
    off = np.abs(answer.at(0.5) - y[:, 600:]).mean(axis=1) / y.mean(axis=1)
    assert (off < 0.12).all()


@pytest.mark.parametrize("params", [{"trees": 0}, {"strategy": "both"}, {"learning_rate": 2}, {"lags": "many"}])
def test_a_parameter_that_makes_no_sense_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"model 'lgbm': {next(iter(params))}: "):
        lgbm(**params)


def test_an_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match="no parameter 'leafs'") as caught:
        lgbm(leafs=3)
    assert "leaves" in caught.value.hint


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_boosting, "find_spec", lambda name: None if name == "lightgbm" else object())
    with pytest.raises(MissingExtraError, match="lightgbm") as caught:
        lgbm()
    assert "anomaly-times[nixtla]" in caught.value.hint
