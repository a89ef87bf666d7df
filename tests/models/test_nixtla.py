from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from anomaly_times.errors import ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.nixtla import StatsForecast
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of

FIVE, HOUR = timedelta(minutes=5), timedelta(hours=1)


def rhythm(n: int, rows: int = 2) -> Floats:
    random = np.random.default_rng(1)
    return 50 + 10 * np.sin(2 * np.pi * np.arange(n) / 288) + random.standard_normal((rows, n))


@pytest.mark.parametrize("name", ["ets", "theta", "mstl", "arima", "ces", "holt_winters"])
def test_a_day_of_288_steps_is_forecast_with_its_season(name: str) -> None:
    y = rhythm(288 * 6)
    answer = build_model(ModelSpec(type=name)).forecast(
        panel_of(y[:, : 288 * 5], step=FIVE), h=288, quantiles=(0.1, 0.5, 0.9)
    )
    assert not answer.notes
    assert np.abs(answer.at(0.5) - y[:, 288 * 5 :]).mean() < 2.0
    assert (answer.at(0.9) > answer.at(0.1)).all()


def test_one_series_that_fails_falls_back_with_the_reason_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fails:
        def forecast(self, y: Floats, h: int, level: list[float]) -> dict[str, Floats]:
            if len(y) == 300:
                raise ZeroDivisionError("the optimiser gave up")
            return {"mean": np.zeros(h)} | {f"{side}-{one}": np.zeros(h) for side in ("lo", "hi") for one in level}

    monkeypatch.setattr(StatsForecast, "_model", lambda self, seasons: Fails())
    y = np.random.default_rng(0).standard_normal((3, 300)) + 40
    y[0, :10] = np.nan
    y[2, :-5] = np.nan
    history = panel_of(y, step=FIVE)
    answer = build_model(ModelSpec(type="ets")).forecast(history, h=4, quantiles=(0.1, 0.5, 0.9))
    assert answer.notes == {
        1: "profile instead of ets (ZeroDivisionError: the optimiser gave up)",
        2: "profile instead of ets (only 5 points)",
    }
    profile = build_model(ModelSpec(type="profile")).forecast(history, h=4, quantiles=(0.1, 0.5, 0.9))
    np.testing.assert_allclose(answer.values[1], profile.values[1])
    assert (answer.values[0] == answer.values[0, 0, 0]).all()


def test_the_quantiles_asked_for_are_those_of_the_levels() -> None:
    y = np.random.default_rng(0).standard_normal((1, 400))
    levels = (0.0005, 0.05, 0.2, 0.5, 0.8, 0.95, 0.9995)
    answer = build_model(ModelSpec(type="ets", model="ANN"), season=()).forecast(panel_of(y), h=2, quantiles=levels)
    width = answer.values[0, 0] - answer.at(0.5)[0, 0]
    np.testing.assert_allclose(
        width / width[-2], np.array([-3.29, -1.645, -0.842, 0, 0.842, 1.645, 3.29]) / 1.645, atol=0.01
    )


class Remembers:
    """Stands for a statsforecast model, and keeps what it was given."""

    def __init__(self) -> None:
        self.seasons: list[int] = []
        self.y = np.empty(0)

    def forecast(self, y: Floats, h: int, level: list[float]) -> dict[str, Floats]:
        self.y = y
        return {"mean": np.zeros(h)} | {f"{side}-{one}": np.zeros(h) for side in ("lo", "hi") for one in level}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Remembers:
    """What reaches statsforecast: the seasons that it is told of, and the values."""
    stand_in = Remembers()

    def model(self: StatsForecast, seasons: list[int]) -> Remembers:
        stand_in.seasons = seasons
        return stand_in

    monkeypatch.setattr(StatsForecast, "_model", model)
    return stand_in


@pytest.mark.parametrize(
    ("spec", "step", "season"),
    [
        ({"type": "arima"}, HOUR, []),
        ({"type": "arima", "seasonal": "native"}, HOUR, [24]),
        ({"type": "ces", "seasonal": "native"}, FIVE, [288]),
        ({"type": "holt_winters"}, HOUR, [24]),
        ({"type": "holt_winters"}, FIVE, []),
        ({"type": "mstl"}, FIVE, [288]),
    ],
)
def test_a_model_keeps_the_season_that_it_can_bear(
    given: Remembers, spec: dict[str, Any], step: timedelta, season: list[int]
) -> None:
    n = timedelta(days=1) // step
    y = 50 + 10 * np.sin(2 * np.pi * np.arange(6 * n) / n) + 0.1 * np.random.default_rng(0).standard_normal((1, 6 * n))
    build_model(ModelSpec(**spec)).forecast(panel_of(y, step=step), h=3, quantiles=(0.1, 0.5, 0.9))
    assert given.seasons == season
    wave = abs(np.corrcoef(given.y, y[0, -len(given.y) :])[0, 1])
    assert wave > 0.9 if season else wave < 0.3


def test_a_gap_is_filled_along_the_season_that_the_model_keeps(given: Remembers) -> None:
    y = 50 + 10 * np.sin(2 * np.pi * np.arange(24 * 8) / 24)[None]
    whole = y.copy()
    y[0, 100:110] = np.nan
    build_model(ModelSpec(type="holt_winters")).forecast(panel_of(y), h=3, quantiles=(0.1, 0.5, 0.9))
    assert np.corrcoef(given.y, whole[0])[0, 1] > 0.99
    assert np.ptp(given.y[100:110]) > 0.5 * np.ptp(given.y)


@pytest.mark.parametrize("spec", [{"type": "ets", "model": "MAN"}, {"type": "holt_winters", "error": "multiplicative"}])
def test_a_multiplicative_model_leaves_what_is_not_positive_to_profile(spec: dict[str, Any]) -> None:
    wave = 10 + 3 * np.sin(2 * np.pi * np.arange(24 * 8) / 24)
    y = np.stack([wave, wave - 10]) + 0.1 * np.random.default_rng(0).standard_normal((2, 24 * 8))
    answer = build_model(ModelSpec(**spec)).forecast(panel_of(y), h=24, quantiles=(0.1, 0.5, 0.9))
    why = f"profile instead of {spec['type']} (ValueError: a multiplicative model, and values of 0 or below)"
    assert answer.notes == {1: why}
    assert np.abs(answer.at(0.5) - [wave[:24], wave[:24] - 10]).max() < 1.0


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("arima", {"max_p": -1}),
        ("arima", {"seasonal": "yes"}),
        ("ces", {"model": "A"}),
        ("holt_winters", {"error": "both"}),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"model '{name}': {next(iter(params))}: "):
        build_model(ModelSpec(type=name, **params))


def test_parameters_reach_arima() -> None:
    y = np.random.default_rng(2).standard_normal((1, 300)).cumsum(axis=1)
    free = build_model(ModelSpec(type="arima"), season=()).forecast(panel_of(y), h=5, quantiles=(0.1, 0.5, 0.9))
    tied = build_model(ModelSpec(type="arima", max_p=0, max_q=0, max_d=0), season=())
    still = tied.forecast(panel_of(y), h=5, quantiles=(0.1, 0.5, 0.9)).at(0.5)
    np.testing.assert_allclose(still, y.mean(), atol=0.05)
    assert np.abs(free.at(0.5)[0] - y[0, -1]).max() < 1.5
    assert np.abs(still - y[0, -1]).min() > 2
