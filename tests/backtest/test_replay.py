"""Replays give what the passes gave, and never know what came later."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_times import bounds
from anomaly_times.backtest.replay import Job, Recording, Replayed, forecast_times, freshest, record, replay
from anomaly_times.errors import NoSeriesError, QueryError, StoreError
from anomaly_times.mission import Mission
from anomaly_times.models.calibrate import calibrated
from anomaly_times.panel import Floats, Forecast, Grid, Labels, Panel
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.testing import MemoryStore

STEP, HOUR, DAY = timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)
BEGIN = datetime(2026, 3, 15, tzinfo=UTC)
DAYS = 6
"""Long enough for bands that are tuned twice a day."""


def mission(**fields: object) -> Mission:
    fields = {"step": "5m", "forecast": {"model": "profile", "lookback": "6d"}, **fields}
    return Mission.model_validate({"name": "load", "promql": "load", "detect": {"every": "5m"}, **fields})


def rhythm(n: int, hours: int, *, days: int = DAYS, step: timedelta = STEP, seed: int = 0) -> Panel:
    """`n` series of noise around a daily rhythm, some days before `BEGIN` and so many hours after."""
    grid = Grid.covering(BEGIN - days * DAY + step, BEGIN + hours * HOUR, step)
    y = 100 + 30 * np.sin(grid.epoch_ms() / 86_400_000 * 2 * np.pi)
    y = y + np.random.default_rng(seed).normal(0, 5, (n, grid.n))
    return Panel(tuple(Labels.of({"__name__": "load", "host": f"{i:02d}"}) for i in range(n)), grid, y)


def lively(hours: int) -> Panel:
    """Faults, gaps, a series that begins late, one that vanishes and one that comes back."""
    found, now = rhythm(6, hours), DAYS * 288 - 1
    found.y[0, now + 20 : now + 40] += 60
    found.y[1, now + 30 : now + 32] = np.nan
    found.y[2, now + 40 : now + 70] = found.y[2, now + 40]
    found.y[3, now + 10 :] += 30
    found.y[4, : now + 15] = np.nan
    found.y[5, now + 25 : now + 60] = np.nan
    return found


def replayed(made: Mission, panel: Panel, grid: Grid, *, workers: int = 1) -> Replayed:
    recording = record([made], MemoryStore({made.promql: panel}), grid)
    [found] = replay([Job(made, recording, grid)], workers=workers)
    return found


def pass_by_pass(made: Mission, panel: Panel, grid: Grid) -> Floats:
    """The stored scores after a forecast at each time of the mission and a detection for every point."""
    store = MemoryStore({made.promql: panel})
    forecasts = forecast_times(made, grid)
    for i in range(grid.n):
        now = grid.start + i * grid.step + made.offset
        while forecasts and forecasts[0] < now:
            write_forecasts(forecast_pass([made], {"": store}, now=forecasts.pop(0)), {"": store})
        write_scores(detect_pass([made], {"": store}, now=now), {"": store})
    out = np.full((panel.n_series, grid.n), np.nan)
    found = store.read_scores([made], grid)[made.name]
    written = made.written_labels(panel.labels)
    for row, values in zip(found.labels, found.y, strict=True):
        out[written.index(row)] = values
    return out


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"detect": {"every": "5m", "missing": "anomaly"}},
        {"detect": {"every": "5m", "missing": "zero", "direction": "below"}},
        {"forecast": {"model": "profile", "lookback": "3d", "level": 99}},
        {"forecast": {"model": "seasonal_naive", "lookback": "2d", "cron": "0 */2 * * *", "horizon": "3h"}},
        {"forecast": {"model": "seasonal_naive", "lookback": "2d", "every": "30m", "horizon": "4h"}},
    ],
    ids=["usual", "missing", "zero", "level", "cron", "long horizon"],
)
def test_a_replay_scores_exactly_what_passes_would_have_written(fields: dict[str, object]) -> None:
    made, panel = mission(**fields), lively(9)
    grid = Grid.covering(BEGIN + STEP, BEGIN + 9 * HOUR, STEP)
    found = replayed(made, panel, grid)
    assert found.scores is not None
    assert found.scores.labels == panel.labels
    np.testing.assert_array_equal(found.scores.score, pass_by_pass(made, panel, grid))
    assert (found.scores.score > 1).sum() > 5


def test_two_processes_give_what_one_gives() -> None:
    made, panel = mission(forecast={"model": "seasonal_naive", "lookback": "2d", "every": "30m"}), lively(30)
    grid = Grid.covering(BEGIN + STEP, BEGIN + 30 * HOUR, STEP)
    one, two = (replayed(made, panel, grid, workers=workers) for workers in (1, 2))
    assert one.scores is not None
    assert two.scores is not None
    assert one.forecasts == two.forecasts == 60
    np.testing.assert_array_equal(one.scores.score, two.scores.score)


@settings(max_examples=15, deadline=None)
@given(
    cut=st.integers(0, 6 * 12 - 1),
    change=st.sampled_from([0.0, 1e9, np.nan]),
    model=st.sampled_from(["seasonal_naive", "profile"]),
    yardstick=st.sampled_from(["", "threshold", "last_week"]),
)
def test_what_comes_later_changes_no_score_before_it(cut: int, change: float, model: str, yardstick: str) -> None:
    made = mission(step="5m", forecast={"model": model, "lookback": "8d"})
    panel = rhythm(2, 6, days=8)
    grid = Grid.covering(BEGIN + STEP, BEGIN + 6 * HOUR, STEP)
    until = panel.grid.index(grid.start) + cut
    changed = Panel(panel.labels, panel.grid, panel.y.copy())
    changed.y[:, until + 1 :] = change
    before, after = (
        replay([Job(made, record([made], MemoryStore({"load": each}), grid), grid, yardstick)], workers=1)[0].scores
        for each in (panel, changed)
    )
    assert before is not None
    assert after is not None
    assert np.isfinite(before.score[:, : cut + 1]).all()
    np.testing.assert_array_equal(after.score[:, : cut + 1], before.score[:, : cut + 1])


def test_forecasts_are_made_as_soon_as_their_slot_is_complete_and_the_first_before_the_window() -> None:
    grid = Grid.covering(BEGIN + HOUR, BEGIN + 3 * HOUR, STEP)
    times = forecast_times(mission(), grid)
    assert times == [BEGIN + i * HOUR + timedelta(seconds=30) for i in range(3)]
    assert mission().last_time(times[0]) == BEGIN
    half_past = mission(timezone="Asia/Kolkata", forecast={"cron": "0 * * * *"})
    assert forecast_times(half_past, grid)[0] == BEGIN + HOUR / 2 + timedelta(seconds=30)


def test_where_a_forecast_is_missing_the_one_before_stands_in_while_it_lasts() -> None:
    labels = tuple(Labels.of({"host": host}) for host in "ab")
    grid = Grid.covering(BEGIN, BEGIN + 3 * HOUR, HOUR)

    def made(start: int, value: float, rows: slice) -> Forecast:
        own = Grid(BEGIN + start * HOUR, HOUR, 3)
        y = np.full((len(labels[rows]), 3), value)
        return Forecast(labels[rows], own, own.start - HOUR, y, y - 1, y + 1)

    found = freshest([made(-1, 1.0, slice(0, 2)), made(1, 2.0, slice(0, 1))], grid)
    np.testing.assert_array_equal(found.yhat, [[1, 2, 2, 2], [1, 1, np.nan, np.nan]])


def test_points_without_a_forecast_are_counted() -> None:
    made = mission(forecast={"model": "seasonal_naive", "lookback": "2d", "every": "1h", "horizon": "30m"})
    grid = Grid.covering(BEGIN + STEP, BEGIN + 2 * HOUR, STEP)
    found = replayed(made, rhythm(1, 2), grid)
    assert found.unforecast == 12
    assert found.scores is not None
    assert int(np.isfinite(found.scores.score).sum()) == 12


def test_what_cannot_be_forecast_at_first_is_told_and_the_rest_goes_on() -> None:
    panel = rhythm(1, 12)
    panel.y[0, : DAYS * 288 + 48] = np.nan
    found = replayed(mission(), panel, Grid.covering(BEGIN + STEP, BEGIN + 12 * HOUR, STEP))
    assert sum(found.failed.values()) == 5
    assert found.forecasts == 7
    assert found.error is None
    assert found.scores is not None
    assert np.isnan(found.scores.score[0, :60]).all()


def test_warnings_that_differ_in_numbers_are_told_once() -> None:
    panel = rhythm(3, 6)
    # One after the other is two days old.
    for i in range(3):
        panel.y[i, : panel.grid.index(BEGIN - 2 * DAY + (2 * i + 1) * HOUR)] = np.nan
    found = replayed(mission(), panel, Grid.covering(BEGIN + STEP, BEGIN + 6 * HOUR, STEP))
    assert [text for text in found.warnings if "too short a past" in text] == [
        "1 of 3 series have too short a past for limits of sustained, roughness, drift: points are judged"
    ]


def test_days_without_any_value_are_passed_over() -> None:
    made = mission(forecast={"model": "seasonal_naive", "lookback": "2d"})
    panel = rhythm(2, 100)
    hole = slice(DAYS * 288 + 300, DAYS * 288 + 900)
    panel.y[:, hole] = np.nan
    grid = Grid.covering(BEGIN + STEP, BEGIN + 100 * HOUR, STEP)
    found = replayed(made, panel, grid)
    assert found.scores is not None
    np.testing.assert_array_equal(found.scores.score, pass_by_pass(made, panel, grid))
    assert 24 < sum(found.failed.values()) < 28
    assert np.isfinite(found.scores.score).sum() == 2 * (grid.n - 600) - found.unforecast


def test_more_series_may_come_and_go_in_a_day_than_a_pass_may_see() -> None:
    made = mission(max_series=2, forecast={"model": "seasonal_naive", "lookback": "1h", "horizon": "1h"})
    panel = rhythm(4, 12)
    begin = panel.grid.index(BEGIN)
    panel.y[:2, begin + 7 :] = np.nan
    panel.y[2:, : begin + 18] = np.nan
    grid = Grid.covering(BEGIN + STEP, BEGIN + 12 * HOUR, STEP)
    found = replayed(made, panel, grid)
    assert found.error is None
    assert found.scores is not None
    assert len(found.scores.labels) == 4


def test_what_a_replay_tells_can_be_stored_and_is_what_passes_store() -> None:
    made, panel = mission(forecast={"model": "seasonal_naive", "lookback": "2d"}), lively(30)
    grid = Grid.covering(BEGIN + STEP, BEGIN + 30 * HOUR, STEP)
    store = MemoryStore({"load": panel})
    replay(
        [Job(made, record([made], store, grid), grid)],
        workers=1,
        on_forecast=lambda of, told: store.write_forecasts([(of, told)]),
        on_scores=lambda of, told: store.write_scores([(of, told)]),
    )
    again = MemoryStore({"load": panel})
    for now in forecast_times(made, grid):
        write_forecasts(forecast_pass([made], {"": again}, now=now), {"": again})
        write_scores(detect_pass([made], {"": again}, now=now + HOUR, window=HOUR), {"": again})
    for read in (lambda each: each.read_scores([made], grid), lambda each: each.read_forecasts([made], grid)):
        told, passed = read(store)["load"], read(again)["load"]
        assert told.labels == passed.labels
        for name in ("y",) if isinstance(told, Panel) else ("yhat", "lower", "upper"):
            np.testing.assert_array_equal(getattr(told, name), getattr(passed, name))
    kept, wanted = (each.read_evidence([made], grid)["load"] for each in (store, again))
    np.testing.assert_array_equal(kept.values, wanted.values)
    np.testing.assert_array_equal(kept.incident, wanted.incident)


def test_a_recording_answers_as_its_store_would_and_takes_nothing() -> None:
    panel = rhythm(3, 1)
    panel.y[2, -12:] = np.nan
    recording = Recording(panel)
    last = Grid.covering(BEGIN + STEP, BEGIN + HOUR, STEP)
    found = recording.read("load", last)
    assert found.labels == panel.labels[:2]
    np.testing.assert_array_equal(found.y, MemoryStore({"load": panel}).read("load", last).y)
    beyond = Grid(last.end, STEP, 3)
    assert np.isnan(recording.read("load", beyond).y[:, 1:]).all()
    with pytest.raises(NoSeriesError, match="load has no value in memory"):
        recording.read("load", Grid(last.end + STEP, STEP, 3))
    with pytest.raises(QueryError, match="matches 2 series in memory, and 1 are allowed"):
        recording.read("load", last, max_series=1)
    with pytest.raises(StoreError, match="takes no scores"):
        recording.write_scores([])
    with pytest.raises(StoreError, match="takes no forecasts"):
        recording.write_forecasts([])


def test_the_cost_of_a_forecast_is_that_of_a_live_one_which_tunes_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[int] = []
    spent = 0.2

    def slow(*args: Any, **named: Any) -> Any:
        tuned.append(1)
        until = time.process_time() + spent
        while time.process_time() < until:
            pass
        return calibrated(*args, **named)

    monkeypatch.setattr(bounds, "calibrated", slow)
    made = mission(forecast={"model": "profile", "lookback": "6d", "level": 99})
    found = replayed(made, rhythm(1, 24), Grid.covering(BEGIN, BEGIN + 23 * HOUR, STEP))
    assert len(tuned) < found.forecasts / 4
    assert found.cpu_forecast >= spent
