from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from anomaly_times.errors import ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.auto import CANDIDATES, Auto
from anomaly_times.models.calibrate import SPREAD, calibrated, forecast_with_bounds
from anomaly_times.panel import Floats, Panel, Quantiles
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)


class Says:
    """Forecasts a constant, sure of it; may refuse to, and counts what it was asked."""

    def __init__(self, value: float, *, refuses: bool = False) -> None:
        self.value, self.refuses = value, refuses
        self.asked: list[tuple[int, int]] = []

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        self.asked.append((history.n_series, history.grid.n))
        if self.refuses:
            raise ModelError("too far ahead for me")
        values = self.value + np.zeros((history.n_series, h, len(quantiles))) + np.array(quantiles)
        values[~np.isfinite(history.y).any(axis=1)] = np.nan
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values)


def choosing(**models: Says) -> Auto:
    return Auto(candidates=tuple(models.items()))


def noise(rows: int = 4, n: int = 600) -> Floats:
    return np.random.default_rng(0).standard_normal((rows, n))


def test_each_series_gets_the_candidate_that_was_right_about_it() -> None:
    y = noise()
    y[2:] += 50
    answer = choosing(low=Says(0), high=Says(50)).forecast(panel_of(y), h=24, quantiles=(0.1, 0.5, 0.9))
    assert [answer.models[i].model for i in range(4)] == ["low", "low", "high", "high"]
    np.testing.assert_allclose(answer.at(0.5)[:, 0], [0.5, 0.5, 50.5, 50.5])
    assert "9" in answer.models[2].why
    assert "% better than low in 6 past forecasts" in answer.models[2].why
    assert answer.models[0].losses["high"] > 500
    assert answer.models[2].losses["low"] == 0


def test_chance_chooses_nothing() -> None:
    y = noise(rows=200)
    answer = choosing(usual=Says(-0.5), other=Says(-0.49)).forecast(panel_of(y), h=24, quantiles=(0.5,))
    assert {choice.model for choice in answer.models.values()} == {"usual"}
    assert answer.models[0].why == "no other was clearly better in 6 past forecasts"


def test_one_lucky_past_forecast_chooses_nothing() -> None:
    y = noise()
    # What the other one says came true once, for two hours.
    y[:, 590:] = 50
    answer = choosing(usual=Says(0), other=Says(50)).forecast(panel_of(y), h=24, quantiles=(0.5,))
    assert {choice.model for choice in answer.models.values()} == {"usual"}


def test_a_short_series_gets_the_usual_one_and_says_why() -> None:
    y = noise()
    y[0, :-1] = np.nan
    y[1] = np.nan
    answer = choosing(usual=Says(0), other=Says(50)).forecast(panel_of(y), h=24, quantiles=(0.5,))
    assert answer.models[0].model == "usual"
    assert answer.models[0].why == "too short for a comparison"
    assert answer.models[0].losses == {}
    assert 1 not in answer.models


def test_a_candidate_that_cannot_work_is_left_out_by_name() -> None:
    broken = Says(0, refuses=True)
    answer = choosing(broken=broken, works=Says(0)).forecast(panel_of(noise()), h=24, quantiles=(0.5,))
    assert answer.models[0].model == "works"
    assert answer.models[0].why.endswith("; broken left out: too far ahead for me")
    assert set(answer.notes.values()) == {"auto without broken (too far ahead for me)"}
    # Nothing was compared with what could not work.
    assert answer.models[0].why.startswith("no other was clearly better in ")
    with pytest.raises(ModelError, match="no candidate works here: too far ahead"):
        choosing(broken=broken, too=broken).forecast(panel_of(noise()), h=24, quantiles=(0.5,))


def test_bounds_come_from_the_past_forecasts_that_were_compared() -> None:
    models = {"low": Says(0), "high": Says(50)}
    y = noise()
    y[2:] += 50
    made = calibrated(choosing(**models), panel_of(y), h=24, levels=(99,))
    for model in models.values():
        # Six to compare, all rows each; and one forecast, its own two rows.
        assert [rows for rows, _ in model.asked] == [4] * 6 + [2]
    bounds = made.bounds(99)
    assert bounds.models[3].model == "high"
    width = bounds.upper - bounds.lower
    assert 3 < width.mean() < 9


@pytest.mark.parametrize("name", ["profile", "seasonmix"])
def test_an_only_candidate_has_the_bounds_that_it_has_alone(name: str) -> None:
    auto = build_model(ModelSpec(type="auto", candidates=[name]))
    profile = build_model(ModelSpec(type=name))
    history = panel_of(noise(n=2016), step=FIVE)
    one, other = (forecast_with_bounds(model, history, h=24, level=99) for model in (auto, profile))
    np.testing.assert_allclose(one.upper, other.upper)
    np.testing.assert_allclose(one.yhat, other.yhat)


def test_a_forecast_alone_takes_the_same_models_as_one_with_bounds() -> None:
    random = np.random.default_rng(1)
    wave = np.sin(2 * np.pi * np.arange(2016) / 288)
    y = np.concatenate([5 + wave + 0.1 * random.standard_normal((5, 2016)), noise(5, 2016).cumsum(axis=1)])
    auto = build_model(ModelSpec(type="auto"))
    assert isinstance(auto, Auto)
    alone = auto.forecast(panel_of(y, step=FIVE), h=24, quantiles=SPREAD)
    bounds = forecast_with_bounds(auto, panel_of(y, step=FIVE), h=24, level=99)
    assert {i: c.model for i, c in alone.models.items()} == {i: c.model for i, c in bounds.models.items()}
    np.testing.assert_allclose(alone.at(0.5), bounds.yhat)
    assert [name for name, _ in auto.candidates] == list(CANDIDATES)


def build(**params: Any) -> Auto:
    model = build_model(ModelSpec.model_validate({"type": "auto", **params}))
    assert isinstance(model, Auto)
    return model


def test_candidates_can_be_named_and_have_parameters() -> None:
    auto = build(candidates=["profile", {"type": "holt"}])
    assert [name for name, _ in auto.candidates] == ["profile", "holt"]
    assert not auto.slow


@pytest.mark.parametrize(
    ("candidates", "complaint"),
    [
        ([], "at least 1 item"),
        (["auto"], "cannot be a candidate of itself"),
        (["profile", "profile"], "named twice"),
        (["profil"], "no model 'profil'"),
        ([{"type": "profile", "lags": 3}], "no parameter 'lags'"),
        ("profile", "list"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(candidates: object, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        build(candidates=candidates)


def test_a_level_shift_is_followed_within_a_day_and_an_incident_leaves_no_trace() -> None:
    y = 5 + 2 * np.sin(2 * np.pi * np.arange(4032) / 288) + noise(8, 4032)
    shifted, struck = y.copy(), y.copy()
    shifted[:, -288:] += 20
    struck[:, 3700:3736] += 500
    calm, moved, hit = (
        forecast_with_bounds(build(), panel_of(values, step=FIVE), h=24, level=99.9) for values in (y, shifted, struck)
    )
    assert np.abs(moved.yhat - calm.yhat - 20).max() < 3
    assert np.abs(hit.yhat - calm.yhat).max() < 1.5
    assert (hit.upper - hit.lower).mean() < 1.2 * (calm.upper - calm.lower).mean()


def test_after_a_level_shift_the_band_of_profile_settles_within_a_day() -> None:
    y = 5 + 2 * np.sin(2 * np.pi * np.arange(4032) / 288) + noise(8, 4032)
    shifted = y.copy()
    shifted[:, -288:] += 20
    calm, moved = (
        forecast_with_bounds(build_model(ModelSpec(type="profile")), panel_of(values, step=FIVE), h=24, level=99.9)
        for values in (y, shifted)
    )
    assert (calm.yhat < moved.lower).all()
    assert (moved.upper - moved.lower).mean() < 1.2 * (calm.upper - calm.lower).mean()


def test_a_new_series_gets_a_wide_band_and_is_warming_up() -> None:
    y = 5 + 2 * np.sin(2 * np.pi * np.arange(4032) / 288) + noise(3, 4032)
    y[1, :-8] = np.nan
    y[2, :-1] = np.nan
    bounds = forecast_with_bounds(build(), panel_of(y, step=FIVE), h=24, level=99.9)
    assert bounds.warming == {1, 2}
    assert "warming up" in bounds.notes[1]
    assert (bounds.upper[1] - bounds.lower[1] > np.ptp(y[1, -8:])).all()
    assert np.isfinite(bounds.upper).all()
