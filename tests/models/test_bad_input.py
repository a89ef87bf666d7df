"""Series that no one would plot, each beside a good one, through every model with its bounds."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from anomaly_times.errors import ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model, list_models, seasonmix
from anomaly_times.models.calibrate import forecast_with_bounds
from anomaly_times.models.seasonmix import Weights
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of

HOUR = timedelta(hours=1)
N = 24 * 8


def bad() -> dict[str, Floats]:
    """By what is wrong with it: a week and a day of hourly points."""
    wave = 10 + 5 * np.sin(2 * np.pi * np.arange(N) / 24) + 0.1 * np.random.default_rng(0).standard_normal(N)
    hour = np.arange(N)
    return {
        "nothing": wave,
        "one point": np.where(hour == N - 1, 4.0, np.nan),
        "two points": np.where(hour >= N - 2, 4.0 + hour, np.nan),
        "no point": np.full(N, np.nan),
        "constant": np.full(N, 7.0),
        "always 0": np.zeros(N),
        "huge": np.where(hour % 2, 1e300, -1e300),
        "tiny": wave * 1e-300,
        "one huge point": np.where(hour == 100, 1e300, wave),
        "one huge point, below": np.where(hour == 100, -1e300, wave),
        "below 0": -wave,
        "hardly a point": np.where(hour % 40 == 0, wave, np.nan),
    }


def spec(name: str, **params: object) -> ModelSpec:
    return ModelSpec.model_validate({"type": name, **params})


MODELS = [
    # Chronos needs weights: test_chronos.py makes some. What fits series by series takes seconds for so many.
    pytest.param(spec(info.name), marks=[pytest.mark.slow] if info.slow else [], id=info.name)
    for info in list_models()
    if info.extra != "chronos"
]
MULTIPLY = [spec("ets", model="MAN"), spec("holt_winters", error="multiplicative")]


@pytest.mark.parametrize(
    "model", [*MODELS, *(pytest.param(one, marks=pytest.mark.slow, id=f"{one.type}-times") for one in MULTIPLY)]
)
def test_whatever_a_series_is_it_gets_finite_bounds_in_order(model: ModelSpec) -> None:
    series = bad()
    history = panel_of(np.stack(list(series.values())), step=HOUR)
    forecast = forecast_with_bounds(build_model(model), history, h=30, level=99.9)
    there = np.array([name != "no point" for name in series])
    for part in (forecast.yhat, forecast.lower, forecast.upper):
        assert np.isfinite(part[there]).all()
        assert np.isnan(part[~there]).all()
    assert (forecast.lower[there] <= forecast.yhat[there]).all()
    assert (forecast.yhat[there] <= forecast.upper[there]).all()
    rows = {name: i for i, name in enumerate(series)}
    for name in ("one point", "two points", "hardly a point"):
        assert rows[name] in forecast.warming
    for name in ("constant", "always 0"):
        np.testing.assert_allclose(forecast.yhat[rows[name]], series[name][0], atol=1e-6)


@pytest.mark.parametrize("name", ["auto", "seasonmix", "profile", "holt", "seasonal_naive"])
def test_a_bad_series_changes_nothing_for_a_good_one(name: str) -> None:
    series = bad()
    model = build_model(ModelSpec(type=name))
    among = forecast_with_bounds(model, panel_of(np.stack(list(series.values())), step=HOUR), h=30, level=99.9)
    alone = forecast_with_bounds(model, panel_of(series["nothing"][None], step=HOUR), h=30, level=99.9)
    for part in ("yhat", "lower", "upper"):
        np.testing.assert_allclose(getattr(among, part)[0], getattr(alone, part)[0], rtol=1e-5)


def test_auto_goes_on_without_a_candidate_whose_weights_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Weights:
        raise ModelError("the weights seasonmix.npz do not have the checksum that they say", hint="install it again")

    monkeypatch.setattr(seasonmix, "_weights", broken)
    history = panel_of(bad()["nothing"][None], step=HOUR)
    forecast = forecast_with_bounds(build_model(ModelSpec()), history, h=12, level=99)
    assert np.isfinite(forecast.yhat).all()
    assert forecast.models[0].model != "seasonmix"
    assert "seasonmix left out: the weights seasonmix.npz do not have the checksum" in forecast.models[0].why
