from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import numpy as np
import pytest

from anomaly_times.bounds import bounded
from anomaly_times.mission import Mission, ModelSpec
from anomaly_times.models import Forecaster, list_models
from anomaly_times.models.auto import Auto
from anomaly_times.models.cost import BOLT_SMALL, COMPARED, FORECASTS, LEARNING, MEASURED, estimated_seconds
from anomaly_times.panel import Grid, Panel, Quantiles
from anomaly_times.testing import panel_of

FIVE, HOUR, DAY = timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)


def estimate(
    name: str, *, step: timedelta = FIVE, n_points: int = 2000, n_series: int = 1, h: int = 24, **params: Any
) -> float | None:
    season = params.pop("season", (DAY,))
    return estimated_seconds(
        ModelSpec(type=name, **params), step=step, n_points=n_points, n_series=n_series, h=h, season=season
    )


def seconds(name: str, **given: Any) -> float:
    found = estimate(name, **given)
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
    assert estimate("profile", n_series=100) is None
    assert estimate("auto", n_series=100) is None
    assert estimate("auto", candidates=["profile", "holt"]) is None
    # Other weights, and other processors, take a time of their own.
    assert estimate("chronos", path="models/tiny") is None
    assert estimate("chronos", device="cuda") is None


def test_what_learns_once_costs_that_and_a_little_for_every_point() -> None:
    once, a_point = LEARNING["lgbm"]
    assert seconds("lgbm", n_series=50) == pytest.approx(FORECASTS * (once + a_point * 50 * 2000))
    assert seconds("lgbm", n_series=5000) > 60


def test_every_64_steps_more_cost_chronos_bolt_many_times_the_first() -> None:
    first, more = BOLT_SMALL
    assert seconds("chronos", h=64, n_series=10) == pytest.approx(FORECASTS * 10 * first)
    assert seconds("chronos", h=65) == seconds("chronos", h=128) == pytest.approx(FORECASTS * (first + more))


def test_auto_costs_what_its_slow_candidates_do() -> None:
    native = {"type": "arima", "seasonal": "native"}
    both = seconds("auto", candidates=["profile", "mstl", native])
    each = seconds("mstl") + seconds("arima", seasonal="native")
    assert both == pytest.approx(each * COMPARED / FORECASTS)
    # A candidate that cannot be is another check's business.
    assert seconds("auto", candidates=["mstl"]) == pytest.approx(seconds("mstl"))
    assert seconds("auto", candidates=["mstl", 7, {"type": 3}]) == pytest.approx(seconds("mstl") * COMPARED / FORECASTS)


def test_every_slow_model_is_in_the_table() -> None:
    slow = {info.name for info in list_models() if info.slow}
    assert slow == {*MEASURED, *LEARNING, "chronos"}


class Counts:
    """Zeros, and how often it was asked."""

    slow: ClassVar[bool] = True

    def __init__(self) -> None:
        self.asked = 0

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        self.asked += 1
        values = np.zeros((history.n_series, h, len(quantiles)))
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values)


def bound(model: Forecaster) -> None:
    """A pass at some time of the day over a mission that is two weeks old."""
    mission = Mission.model_validate({"name": "load", "promql": "load", "step": "1h", "forecast": {"level": 99}})
    grid = Grid.ending(datetime(2026, 3, 1, 7, tzinfo=UTC), mission.step, 14 * 24)
    y = np.random.default_rng(0).standard_normal((2, grid.n))
    bounded(mission, model, Panel(panel_of(y).labels, grid, y), least=np.zeros(2))


def test_as_many_forecasts_are_made_as_are_counted() -> None:
    model = Counts()
    bound(model)
    assert model.asked == FORECASTS


def test_auto_asks_no_candidate_more_often_than_is_counted() -> None:
    first, second = Counts(), Counts()
    bound(Auto(candidates=(("first", first), ("second", second))))
    assert max(first.asked, second.asked) == COMPARED
