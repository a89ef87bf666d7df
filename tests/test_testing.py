from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times.errors import QueryError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Forecast, Grid, Labels, Panel, Scores
from anomaly_times.stores import Store
from anomaly_times.testing import MemoryStore

MINUTE = timedelta(minutes=1)
GRID = Grid(datetime(2026, 1, 5, tzinfo=UTC), MINUTE, 10)
ROWS = (Labels.of({"__name__": "up", "job": "a"}), Labels.of({"__name__": "up", "job": "b"}))
MISSION = Mission(name="m", promql="up")


def forecast(cutoff: int, value: float, *, rows: tuple[Labels, ...] = ROWS[:1]) -> Forecast:
    grid = GRID[: cutoff + 1].following(4)
    yhat: Floats = np.full((len(rows), 4), value)
    return Forecast(rows, grid, GRID[cutoff:].start, yhat, yhat - 1, yhat + 1)


def test_a_query_is_answered_on_the_grid_asked_for() -> None:
    store: Store = MemoryStore({"up": Panel(ROWS, GRID, np.arange(20.0).reshape(2, 10))})
    wider = Grid(GRID.start - 2 * MINUTE, 2 * MINUTE, 3)
    np.testing.assert_array_equal(store.read("up", wider).y, [[np.nan, 0, 2], [np.nan, 10, 12]])


def test_series_without_a_point_are_left_out_and_infinity_is_a_gap() -> None:
    y = np.array([[np.inf] * 10, [1.0] * 9 + [np.inf]])
    read = MemoryStore({"up": Panel(ROWS, GRID, y)}).read("up", GRID)
    assert read.labels == ROWS[1:]
    assert np.isnan(read.y[0, -1])


def test_a_query_that_matches_nothing_or_too_much_is_refused() -> None:
    store = MemoryStore({"up": Panel(ROWS, GRID, np.ones((2, 10))), "away": StoreUnavailableError("gone")})
    with pytest.raises(QueryError, match="matches nothing"):
        store.read("down", GRID)
    with pytest.raises(QueryError, match="matches nothing"):
        store.read("up", GRID.following(5))
    with pytest.raises(QueryError, match="more than 1"):
        store.read("up", GRID, max_series=1)
    with pytest.raises(StoreUnavailableError):
        store.read("away", GRID)


def test_the_freshest_forecast_wins_whatever_the_order_of_writing() -> None:
    store = MemoryStore()
    store.write_forecasts([(MISSION, forecast(2, 20.0)), (MISSION, forecast(0, 50.0))])
    back = store.read_forecasts([MISSION], GRID)["m"]
    assert back.labels == MISSION.written_labels(ROWS[:1])
    np.testing.assert_array_equal(back.yhat[0], [np.nan, 50, 50, 20, 20, 20, 20, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(back.upper - back.lower, np.where(np.isnan(back.yhat), np.nan, 2))


def test_a_forecast_is_never_written_twice_and_a_retry_fills_what_lacks() -> None:
    store = MemoryStore()
    first = store.write_forecasts([(MISSION, forecast(0, 1.0))])
    again = store.write_forecasts([(MISSION, forecast(0, 9.0, rows=ROWS))])
    assert (first.samples, first.series, first.skipped) == (12, 3, 0)
    assert (again.samples, again.series, again.skipped) == (12, 3, 3)
    assert store.read_forecasts([MISSION], GRID)["m"].yhat[:, 1].tolist() == [1.0, 9.0]


def test_scores_come_back_at_their_times_and_nan_is_not_kept() -> None:
    store = MemoryStore()
    score = np.array([[0.5] * 9 + [np.nan], [np.nan] * 10])
    nothing: Floats = np.zeros((2, 10))
    written = store.write_scores([(MISSION, Scores(ROWS, GRID, nothing, nothing, nothing, nothing, score))])
    assert (written.samples, written.series) == (9, 1)
    back = store.read_scores([MISSION], GRID.last(2))["m"]
    assert back.labels == MISSION.written_labels(ROWS[:1])
    np.testing.assert_array_equal(back.y, [[0.5, np.nan]])


def test_missions_do_not_see_each_others_results() -> None:
    store = MemoryStore()
    store.write_forecasts([(MISSION, forecast(0, 1.0))])
    other = Mission(name="other", promql="up")
    assert list(store.read_forecasts([MISSION, other], GRID)) == ["m"]
    assert store.read_forecasts([MISSION], GRID.following(20)[10:]) == {}
    assert store.read_scores([MISSION], GRID) == {}
