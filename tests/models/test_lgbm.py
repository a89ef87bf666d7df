from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import numpy as np
import pytest

from anomaly_times.errors import MissingExtraError, ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models import Forecaster, build_model, gradient_boosting
from anomaly_times.panel import Floats, Quantiles
from anomaly_times.testing import panel_of
from benchmarks.synthetic import services

LEVELS = (0.1, 0.5, 0.9)


def lgbm(*, season: tuple[timedelta, ...] | None = None, timezone: str = "UTC", **params: Any) -> Forecaster:
    return build_model(ModelSpec(type="lgbm", **params), season=season, timezone=timezone)


def after_a_burst(n: int, *, noise: float = 0.05) -> Floats:
    """Bursts at random times, each followed by half of itself three points later."""
    random = np.random.default_rng(3)
    burst = np.where(random.random(n) < 0.1, 10.0, 0.0)
    return 20 + burst + 0.5 * np.roll(burst, 3) + noise * random.standard_normal(n)


def learned(y: Floats, h: int, **params: Any) -> Quantiles:
    """A forecast that trees have a part in."""
    answer = lgbm(**params).forecast(panel_of(y), h=h, quantiles=LEVELS)
    assert not answer.notes
    return answer


def lonely_burst(y: Floats, first: int) -> int:
    """How many points of `y` end with a burst that no other comes shortly before."""
    return next(cut for cut in range(first, len(y)) if y[cut - 1] > 29 and y[cut - 5 : cut - 1].max() < 21)


def test_it_learns_what_no_season_tells() -> None:
    y = np.stack([after_a_burst(2000), after_a_burst(2000, noise=0.06)])
    y = y[:, : lonely_burst(y[0], 1900)]
    profile = build_model(ModelSpec(type="profile")).forecast(panel_of(y), h=3, quantiles=LEVELS)
    error, usual = (np.abs(answer.at(0.5) - [20, 20, 25]).mean() for answer in (learned(y, 3), profile))
    assert error < 0.6 * usual


def test_what_old_series_show_serves_a_young_one() -> None:
    old = np.stack([after_a_burst(1000, noise=noise) for noise in (0.04, 0.05, 0.06)])
    old = old[:, : lonely_burst(old[0], 900)]
    young = np.where(np.arange(old.shape[1]) < old.shape[1] - 150, np.nan, old[0])
    together = learned(np.concatenate([old, young[None]]), 3).at(0.5)[3]
    alone = lgbm().forecast(panel_of(young[None, -150:]), h=3, quantiles=LEVELS).at(0.5)[0]
    assert np.abs(together - [20, 20, 25]).mean() < 0.7 * np.abs(alone - [20, 20, 25]).mean()


def test_one_model_serves_ratios_and_bytes() -> None:
    y = np.stack([after_a_burst(1000), after_a_burst(1000)]) * np.array([[1e-3], [1e10]])
    values = learned(y, 12).values / np.array([1e-3, 1e10])[:, None, None]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


def test_a_clock_without_a_season_is_the_local_one() -> None:
    # Berlin goes to summer time on 2026-03-29: from then on eight o'clock is at 6:00 UTC. No season is to be used, so
    # that the trees alone know of it.
    start = datetime(2026, 2, 1, tzinfo=UTC)
    hours = np.arange(24 * 56)
    utc_offset = np.where(hours >= 24 * 56 + 1, 2, 1)
    y = np.where((hours + utc_offset) % 24 == 8, 90.0, 10.0) + 0.1 * np.random.default_rng(0).standard_normal(
        (1, 24 * 56)
    )
    answer = lgbm(season=(), timezone="Europe/Berlin", lags=2).forecast(
        panel_of(y, start=start), h=20, quantiles=LEVELS
    )
    assert not answer.notes
    assert answer.at(0.5)[0].argmax() == 6
    assert answer.at(0.5)[0, 6] > 60


def test_it_does_not_chase_noise() -> None:
    history = panel_of(50 + np.random.default_rng(2).standard_normal((3, 600)))
    profile = build_model(ModelSpec(type="profile")).forecast(history, h=12, quantiles=LEVELS)
    error, usual = (
        np.abs(answer.at(0.5) - 50).mean() for answer in (lgbm().forecast(history, h=12, quantiles=LEVELS), profile)
    )
    assert error <= usual


def test_where_trees_add_nothing_profile_answers_and_a_note_says_so() -> None:
    history = panel_of(np.repeat([[0.0], [7.0]], 480, axis=1))
    answer = lgbm().forecast(history, h=12, quantiles=LEVELS)
    assert answer.notes == dict.fromkeys((0, 1), "profile instead of lgbm (trees add nothing to its past forecasts)")
    profile = build_model(ModelSpec(type="profile")).forecast(history, h=12, quantiles=LEVELS)
    np.testing.assert_array_equal(answer.values, profile.values)


def test_its_median_errs_less_than_that_of_profile_on_made_up_metrics() -> None:
    y = services(40, 720, timedelta(hours=1), seed=77)
    history = panel_of(y[:, :672])
    usual = np.nanmean(np.abs(y[:, 24:672] - y[:, : 672 - 24]), axis=1)

    def error(name: str) -> float:
        median = build_model(ModelSpec(type=name)).forecast(history, h=48, quantiles=LEVELS).at(0.5)
        return float((np.nanmean(np.abs(y[:, 672:] - median), axis=1) / usual).mean())

    assert error("lgbm") < 0.99 * error("profile")


def test_a_short_series_falls_back_by_name_and_the_others_go_on() -> None:
    y = np.stack([after_a_burst(400), after_a_burst(400)])
    y[1, :-20] = np.nan
    history = panel_of(y)
    answer = lgbm(trees=20).forecast(history, h=12, quantiles=LEVELS)
    assert answer.notes[1].startswith("profile instead of lgbm (only 20 points)")
    assert 0 not in answer.notes
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
    monkeypatch.setattr(gradient_boosting, "_MOST_SERIES", 2)
    monkeypatch.setattr(gradient_boosting, "_MOST_ROWS", 2000)
    monkeypatch.setattr(gradient_boosting, "_A_BLOCK", 3 * 1000)
    y = np.stack([after_a_burst(1000, noise=0.02 * i) for i in range(1, 8)])
    y = y[:, : lonely_burst(y[0], 900)]
    size = 10.0 ** np.arange(7)[:, None]
    error = np.abs(learned(y * size, 3).at(0.5) / size - [20, 20, 25]).mean(axis=1)
    profile = build_model(ModelSpec(type="profile")).forecast(panel_of(y), h=3, quantiles=LEVELS)
    assert (error < 0.7 * np.abs(profile.at(0.5) - [20, 20, 25]).mean(axis=1)).all()


@pytest.mark.parametrize("params", [{"trees": 0}, {"threads": 0}, {"learning_rate": 2}, {"lags": "many"}])
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
