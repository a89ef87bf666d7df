from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest

from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.calibrate import forecast_with_bounds
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Panel, Quantiles
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)
PROFILE = build_model(ModelSpec(type="profile"))


class Constant:
    """Always forecasts 0 with a spread of its own, and remembers what it was shown."""

    def __init__(self, spread: float = 1.0) -> None:
        self.spread = spread
        self.seen: list[int] = []

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        self.seen.append(history.grid.n)
        row = self.spread * (np.array(quantiles) - 0.5)
        values = np.broadcast_to(row, (history.n_series, h, len(quantiles))).copy()
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values)


def rhythm(n: int, rows: int = 60, seed: int = 1) -> Floats:
    random = np.random.default_rng(seed)
    return 5 + 2 * np.sin(2 * np.pi * np.arange(n) / 288) + random.standard_normal((rows, n))


@pytest.mark.parametrize("name", ["seasonal_naive", "profile"])
def test_a_99_percent_band_covers_about_99_percent(name: str) -> None:
    y = rhythm(2016 + 96)
    bounds = forecast_with_bounds(
        build_model(ModelSpec(type=name)), panel_of(y[:, :2016], step=FIVE), h=96, level=99, origins=6
    )
    inside = (y[:, 2016:] >= bounds.lower) & (y[:, 2016:] <= bounds.upper)
    assert 0.98 <= inside.mean() <= 0.997


def test_the_forecast_is_the_models_median_at_the_times_that_follow() -> None:
    history = panel_of(rhythm(2016, rows=3), step=FIVE)
    bounds = forecast_with_bounds(PROFILE, history, h=24, level=99.9)
    plain = PROFILE.forecast(history, h=24, quantiles=(0.1, 0.5, 0.9))
    np.testing.assert_allclose(bounds.yhat, plain.at(0.5))
    assert bounds.grid == history.grid.following(24)
    assert bounds.cutoff == history.grid.end
    assert not bounds.notes
    assert ((bounds.lower < bounds.yhat) & (bounds.yhat < bounds.upper)).all()


def test_an_incident_does_not_blow_up_the_band() -> None:
    y = rhythm(2016, rows=10)
    struck = y.copy()
    struck[:, 1500:1560] += 1000
    calm, hit = (forecast_with_bounds(PROFILE, panel_of(v, step=FIVE), h=24, level=99.9) for v in (y, struck))
    assert ((hit.upper - hit.lower).mean(axis=1) < 3 * (calm.upper - calm.lower).mean(axis=1)).all()


def test_each_side_has_its_own_width() -> None:
    y = np.random.default_rng(0).exponential(size=(20, 2016))
    bounds = forecast_with_bounds(PROFILE, panel_of(y, step=FIVE), h=24, level=99)
    assert ((bounds.upper - bounds.yhat).mean() > 3 * (bounds.yhat - bounds.lower).mean()).all()


@pytest.mark.parametrize("spread", [0.0, 0.001, 1000.0])
def test_what_a_model_claims_of_its_spread_does_not_matter(spread: float) -> None:
    y = np.random.default_rng(0).standard_normal((5, 2000))
    bounds = forecast_with_bounds(Constant(spread), panel_of(y, step=FIVE), h=50, level=98)
    np.testing.assert_allclose(bounds.upper.mean(), 2.33, rtol=0.25)


def test_past_forecasts_see_only_what_lies_before_them() -> None:
    model = Constant()
    forecast_with_bounds(model, panel_of(np.ones((1, 1000))), h=100, level=99)
    assert model.seen == [1000, *np.linspace(500, 900, 8).astype(int).tolist()]
    slow = Constant()
    slow.slow = True  # type: ignore[attr-defined]
    forecast_with_bounds(slow, panel_of(np.ones((1, 1000))), h=100, level=99)
    assert slow.seen == [1000, 500, 900]


def test_a_young_series_gets_a_wide_band_and_a_note() -> None:
    y = rhythm(2016, rows=2)
    y[1, :-6] = np.nan
    bounds = forecast_with_bounds(PROFILE, panel_of(y, step=FIVE), h=24, level=99)
    assert list(bounds.notes) == [1]
    assert "warming up" in bounds.notes[1]
    seen = y[1, -6:]
    assert (bounds.upper[1] >= seen.max()).all()
    assert (bounds.lower[1] <= seen.min()).all()


def test_one_point_gets_a_band_of_its_own_size() -> None:
    bounds = forecast_with_bounds(PROFILE, panel_of(np.array([[8.0]])), h=2, level=99)
    assert bounds.yhat.tolist() == [[8.0, 8.0]]
    assert bounds.lower.tolist() == [[0.0, 0.0]]
    assert bounds.upper.tolist() == [[16.0, 16.0]]


def test_a_series_without_a_point_has_no_bounds_and_no_note() -> None:
    bounds = forecast_with_bounds(PROFILE, panel_of(np.full((1, 100), np.nan)), h=2, level=99)
    assert np.isnan(bounds.lower).all()
    assert np.isnan(bounds.upper).all()
    assert "warming" not in bounds.notes.get(0, "")


def test_no_rows_give_no_rows() -> None:
    assert forecast_with_bounds(PROFILE, panel_of(np.empty((0, 100))), h=2, level=99).yhat.shape == (0, 2)


def test_tails_go_on_exponentially_and_ignore_gaps() -> None:
    sample = np.random.default_rng(0).exponential(size=(1, 200_000))
    sample[0, ::3] = np.nan
    levels = (0.5, 0.95, 0.99, 0.9995)
    np.testing.assert_allclose(tail_quantiles(sample, levels)[0], -np.log(1 - np.array(levels)), rtol=0.03)
    np.testing.assert_allclose(
        tail_quantiles(-sample, (0.0005, 0.01, 0.05))[0], np.log([0.0005, 0.01, 0.05]), rtol=0.03
    )


def test_a_twentieth_of_huge_errors_leaves_the_tail_alone() -> None:
    sample = np.random.default_rng(0).exponential(size=(1, 1000))
    struck = sample.copy()
    struck[0, :45] = 1e9
    assert tail_quantiles(struck, (0.999,))[0, 0] < 50 * tail_quantiles(sample, (0.999,))[0, 0]


def test_an_empty_sample_has_no_quantiles() -> None:
    assert np.isnan(tail_quantiles(np.full((2, 3), np.nan), (0.5, 0.99))).all()
    assert np.isnan(tail_quantiles(np.empty((2, 0)), (0.5, 0.99))).all()
