from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.nixtla import StatsForecast
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)


def rhythm(n: int, rows: int = 2) -> Floats:
    random = np.random.default_rng(1)
    return 50 + 10 * np.sin(2 * np.pi * np.arange(n) / 288) + random.standard_normal((rows, n))


@pytest.mark.parametrize("name", ["ets", "theta", "mstl"])
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
