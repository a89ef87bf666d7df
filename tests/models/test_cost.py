from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np
import pytest

from anomaly_times.mission import ModelSpec
from anomaly_times.models import list_models
from anomaly_times.models.calibrate import forecast_with_bounds
from anomaly_times.models.cost import FORECASTS, MEASURED, estimated_seconds
from anomaly_times.panel import Panel, Quantiles
from anomaly_times.testing import panel_of

FIVE, HOUR, DAY = timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)


def seconds(name: str, *, step: timedelta = FIVE, n_points: int = 2000, n_series: int = 1, **params: Any) -> float:
    season = params.pop("season", (DAY,))
    found = estimated_seconds(
        ModelSpec(type=name, **params), step=step, n_points=n_points, n_series=n_series, season=season
    )
    assert found is not None
    return found


def test_what_was_measured_is_what_is_told() -> None:
    assert seconds("ces", seasonal="native") == pytest.approx(FORECASTS * MEASURED["ces"][-1][2])
    assert seconds("holt_winters", step=HOUR) == pytest.approx(FORECASTS * MEASURED["holt_winters"][-1][2])
    assert seconds("ets") == pytest.approx(FORECASTS * MEASURED["ets"][0][2])


def test_series_and_points_count_in_proportion_up_to_what_is_fitted() -> None:
    assert seconds("mstl", n_series=7, n_points=6000) == pytest.approx(21 * seconds("mstl"))
    assert seconds("theta", n_points=1000) == pytest.approx(seconds("theta") / 2)
    assert seconds("theta", n_points=50_000) == pytest.approx(seconds("theta"))


def test_a_season_of_its_own_costs_arima_minutes_and_the_profile_costs_nothing() -> None:
    assert seconds("arima") < 5
    hourly, five_minutes = (seconds("arima", step=step, seasonal="native") for step in (HOUR, FIVE))
    assert hourly > 60
    assert five_minutes > 10 * hourly


def test_between_two_measured_seasons_lies_what_is_between_them() -> None:
    quarter = seconds("mstl", step=timedelta(minutes=15), n_points=2000)
    assert seconds("mstl", step=HOUR) < quarter < seconds("mstl")


def test_models_without_a_figure_have_no_estimate() -> None:
    assert estimated_seconds(ModelSpec(type="profile"), step=FIVE, n_points=2000, n_series=100) is None


def test_every_model_that_fits_series_by_series_is_in_the_table() -> None:
    slow = {info.name for info in list_models() if info.slow and not info.pooled and info.extra == "nixtla"}
    assert slow == set(MEASURED)


class Counts:
    """Zeros, and how often it was asked."""

    slow: ClassVar[bool] = True

    def __init__(self) -> None:
        self.asked = 0

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        self.asked += 1
        values = np.zeros((history.n_series, h, len(quantiles)))
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values)


def test_as_many_forecasts_are_made_as_are_counted() -> None:
    model = Counts()
    forecast_with_bounds(model, panel_of(np.random.default_rng(0).standard_normal((2, 500))), h=24, level=99)
    assert model.asked == FORECASTS
