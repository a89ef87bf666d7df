from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from anomaly_times import bounds, scoring
from anomaly_times.errors import AnomalyTimesError, ModelError, NoSeriesError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels, Panel, Scores
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.stores import Written
from anomaly_times.testing import MemoryStore

STEP = timedelta(minutes=5)
NOW = datetime(2026, 3, 15, 12, 1, tzinfo=UTC)
HOURS = timedelta(hours=1)


def mission(name: str = "load", promql: str = "load", **fields: object) -> Mission:
    fields = {"step": "5m", "offset": "30s", "forecast": {"lookback": "7d", "model": "seasonal_naive"}, **fields}
    fields.setdefault("detect", {"every": "5m"})
    return Mission.model_validate({"name": name, "promql": promql, **fields})


def series(n: int = 2, *, days: int = 16, end: datetime = NOW + timedelta(days=1)) -> Panel:
    """`n` series with a daily rhythm around 100, a little noise, until a day after `NOW`."""
    grid = Grid.ending(end, STEP, days * 288)
    rhythm = 100 + 30 * np.sin(np.arange(grid.n) * 2 * np.pi / 288)
    y = rhythm + np.random.default_rng(0).normal(0, 1, (n, grid.n))
    return Panel(tuple(Labels.of({"__name__": "load", "host": chr(97 + i)}) for i in range(n)), grid, y)


def forecast_and_write(missions: Sequence[Mission], store: MemoryStore, now: datetime) -> None:
    results, written = write_forecasts(forecast_pass(missions, {"": store}, now=now), {"": store})
    assert [result.error for result in results] == [None] * len(missions)
    assert written.samples


def detect_and_write(missions: Sequence[Mission], store: MemoryStore, now: datetime) -> dict[str, Scores]:
    results, _ = write_scores(detect_pass(missions, {"": store}, now=now), {"": store})
    assert [result.error for result in results] == [None] * len(missions)
    return {result.mission.name: result.scores for result in results if result.scores is not None}


def test_a_forecast_follows_the_last_complete_time() -> None:
    store = MemoryStore({"load": series()})
    (result,) = forecast_pass([mission()], {"": store}, now=NOW)
    assert result.forecast is not None
    assert result.forecast.cutoff == datetime(2026, 3, 15, 12, tzinfo=UTC)
    assert result.forecast.grid == Grid(datetime(2026, 3, 15, 12, 5, tzinfo=UTC), STEP, 24)
    assert np.abs(result.forecast.yhat - 100).max() < 40
    (earlier,) = forecast_pass([mission()], {"": store}, now=NOW - timedelta(seconds=31))
    assert earlier.forecast is not None
    assert earlier.forecast.cutoff == datetime(2026, 3, 15, 11, 55, tzinfo=UTC)


def test_no_forecast_sees_what_comes_after_its_cutoff() -> None:
    past, changed = series(), series()
    changed.y[:, changed.grid.index(NOW) + 1 :] = 1e6
    one, two = (
        forecast_pass([mission()], {"": MemoryStore({"load": panel})}, now=NOW)[0].forecast for panel in (past, changed)
    )
    assert one is not None
    assert two is not None
    assert np.array_equal(one.yhat, two.yhat)
    assert np.array_equal(one.upper, two.upper)


def test_one_missions_failure_never_stops_the_others() -> None:
    store = MemoryStore({"load": series(), "away": StoreUnavailableError("nobody there")})
    missions = [
        mission("a", "away"),
        mission("b"),
        mission("c", "nothing"),
        mission("d", forecast={"model": "no-such-model"}),
        mission("e"),
        mission("f", source="elsewhere"),
    ]
    results = forecast_pass(missions, {"": store}, now=NOW)
    assert [result.mission.name for result in results] == list("abcdef")
    assert [type(result.error) for result in results[:5]] == [
        StoreUnavailableError,
        type(None),
        NoSeriesError,
        ModelError,
        type(None),
    ]
    assert results[5].error is not None
    assert "elsewhere" in results[5].error.message


def test_what_runs_for_minutes_says_so_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[list[str]] = []

    def fit(*args: object, **options: object) -> object:
        told.append([record.message for record in caplog.records])
        raise ModelError("far too slow for a test")

    monkeypatch.setattr(bounds, "calibrated", fit)
    store = MemoryStore({"load": series(2)})
    slow = mission(step="1h", forecast={"every": "1h", "model": {"type": "arima", "seasonal": "native"}})
    forecast_pass([mission(name="quick", step="1h"), slow], {"": store}, now=NOW)
    assert told[0] == []
    (message,) = told[1]
    assert message.startswith("load: arima takes about ")
    assert message.endswith(" of one core for a forecast of 2 series at this step")


class CountingStore(MemoryStore):
    """Counts reads by query."""

    def __init__(self, kept: Mapping[str, Panel | AnomalyTimesError]) -> None:
        super().__init__(kept)
        self.reads: list[str] = []

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        self.reads.append(promql)
        return super().read(promql, grid, max_series=max_series)


def test_missions_of_one_query_read_it_once() -> None:
    week = {"forecast": {"lookback": "7d", "model": "profile"}}
    missions = [
        mission("a"),
        mission("other", "other"),
        mission("b", **week),
        mission("short", forecast={"lookback": "6d", "model": "seasonal_naive"}),
        mission("few", max_series=1),
        mission("c"),
    ]
    store = CountingStore({"load": series(), "other": series()})
    with ThreadPoolExecutor(4) as pool:
        results = forecast_pass(missions, {"": store}, now=NOW, mapper=pool.map)
    # What is asked for otherwise is read on its own: a shorter history, another limit of series.
    assert sorted(store.reads) == ["load", "load", "load", "other"]
    assert [result.mission.name for result in results] == ["a", "other", "b", "short", "few", "c"]
    assert [result.mission.name for result in results if result.error] == ["few"]
    (alone,) = forecast_pass([mission("b", **week)], {"": MemoryStore({"load": series()})}, now=NOW)
    together = results[2].forecast
    assert together is not None
    assert alone.forecast is not None
    for part in ("yhat", "lower", "upper"):
        assert np.array_equal(getattr(together, part), getattr(alone.forecast, part))


def test_a_read_that_fails_is_asked_once_and_fails_each_of_its_missions() -> None:
    store = CountingStore({"load": series(), "away": StoreUnavailableError("nobody there")})
    results = forecast_pass([mission("a", "away"), mission("b"), mission("c", "away")], {"": store}, now=NOW)
    assert sorted(store.reads) == ["away", "load"]
    assert [type(result.error) for result in results] == [StoreUnavailableError, type(None), StoreUnavailableError]


def test_a_bug_in_one_mission_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_times.scoring.resolution", lambda _: 1 / 0)
    (result,) = forecast_pass([mission()], {"": MemoryStore({"load": series()})}, now=NOW)
    assert type(result.error) is AnomalyTimesError
    assert "ZeroDivisionError" in result.error.message
    assert isinstance(result.error.__cause__, ZeroDivisionError)


def test_a_mapper_of_threads_gives_the_same_in_the_same_order() -> None:
    store = MemoryStore({"load": series()})
    missions = [mission(f"m-{i}") for i in range(5)]
    plain = forecast_pass(missions, {"": store}, now=NOW)
    with ThreadPoolExecutor(3) as pool:
        threaded = forecast_pass(missions, {"": store}, now=NOW, mapper=pool.map)
    for one, two in zip(plain, threaded, strict=True):
        assert one.mission == two.mission
        assert one.forecast is not None
        assert two.forecast is not None
        assert np.array_equal(one.forecast.upper, two.forecast.upper)


def test_no_model_learns_from_an_excluded_stretch() -> None:
    clean, spoilt = series(1), series(1)
    start, end = NOW - timedelta(days=1, hours=3), NOW - timedelta(days=1)
    spoilt.y[:, spoilt.grid.index(start) + 1 : spoilt.grid.index(end) + 1] = 1e6
    window = {"lookback": "7d", "model": "seasonal_naive", "exclude": [{"start": start, "end": end}]}
    one, two = (
        forecast_pass([mission(forecast=window)], {"": MemoryStore({"load": panel})}, now=NOW)[0].forecast
        for panel in (clean, spoilt)
    )
    assert one is not None
    assert two is not None
    assert np.array_equal(one.yhat, two.yhat)
    assert np.array_equal(one.upper, two.upper)


@pytest.mark.parametrize("model", ["seasonal_naive", "profile"])
def test_a_rebased_mission_is_forecast_at_its_new_level_with_its_old_rhythm(model: str) -> None:
    shifted = series(1)
    since = NOW - 2 * HOURS
    shifted.y[:, shifted.grid.index(since) + 1 :] *= 3
    store = MemoryStore({"load": shifted})
    plain, rebased = (
        mission(forecast={"lookback": "7d", "model": model, "horizon": "12h", **more})
        for more in ({}, {"rebase": since})
    )
    (before, after) = forecast_pass([plain, rebased], {"": store}, now=NOW, keep_history=True)
    assert before.forecast is not None
    assert after.forecast is not None
    first = shifted.grid.index(after.forecast.grid.start)
    actual = shifted.y[:, first : first + 144]
    inside = [
        float(((actual >= made.lower) & (actual <= made.upper)).mean()) for made in (before.forecast, after.forecast)
    ]
    assert inside[0] < 0.9
    assert inside[1] > 0.99
    assert np.abs(after.forecast.yhat - actual).max() < 0.2 * actual.mean()
    # The band is that of the rhythm, and not as wide as the change.
    assert np.median(after.forecast.upper - after.forecast.lower) < 60
    # What was read is shown as it was measured.
    assert after.history is not None
    assert before.history is not None
    np.testing.assert_array_equal(after.history.y, before.history.y)


def test_what_moves_by_whole_units_is_not_held_to_fractions_of_one() -> None:
    panel = series(1)
    panel.y[:] = np.round(panel.y)
    since = NOW - 2 * HOURS
    after = panel.grid.index(since) + 1
    panel.y[:, after:] = np.round(panel.y[:, after:] * 0.05)
    rebased = mission(forecast={"lookback": "7d", "model": "seasonal_naive", "rebase": since})
    (result,) = forecast_pass([rebased], {"": MemoryStore({"load": panel})}, now=NOW)
    assert result.forecast is not None
    assert (result.forecast.upper - result.forecast.yhat).min() >= 1


def test_a_series_silent_for_a_day_is_forecast_no_more() -> None:
    panel = series(3)
    panel.y[1, panel.grid.index(NOW - timedelta(hours=25)) :] = np.nan
    panel.y[2, panel.grid.index(NOW - timedelta(hours=23)) :] = np.nan
    (result,) = forecast_pass([mission()], {"": MemoryStore({"load": panel})}, now=NOW)
    assert result.forecast is not None
    assert [row.get("host") for row in result.forecast.labels] == ["a", "c"]
    assert result.ended == 1


def test_a_mission_whose_series_have_all_ended_says_so() -> None:
    panel = series(1)
    panel.y[:, panel.grid.index(NOW - timedelta(days=2)) :] = np.nan
    (result,) = forecast_pass([mission()], {"": MemoryStore({"load": panel})}, now=NOW)
    assert isinstance(result.error, NoSeriesError)


def test_a_planted_anomaly_scores_over_one_and_the_rest_under() -> None:
    panel = series(2)
    at = panel.grid.index(NOW + timedelta(minutes=30))
    panel.y[0, at] += 60
    store = MemoryStore({"load": panel})
    forecast_and_write([mission()], store, NOW)
    scores = detect_and_write([mission()], store, NOW + HOURS)["load"]
    column = scores.grid.index(panel.grid.start + at * STEP)
    assert scores.score[0, column] > 3
    rest = np.delete(scores.score, column, axis=1)
    assert np.nanmax(rest) < 1


def test_each_point_is_scored_once() -> None:
    store = MemoryStore({"load": series()})
    forecast_and_write([mission()], store, NOW)
    seen: list[datetime] = []
    for minutes in range(5, 60, 5):
        now = NOW + timedelta(minutes=minutes)
        found = detect_and_write([mission()], store, now)
        times = found["load"].to_frame()["ds"].unique().to_list()
        assert times == [now - timedelta(minutes=1)]
        seen += times
        assert detect_and_write([mission()], store, now) == {}
    assert len(seen) == len(set(seen)) == 11


def test_a_late_detection_catches_up_and_no_further() -> None:
    made = mission(detect={"every": "5m", "catch_up": "1h"})
    store = MemoryStore({"load": series()})
    forecast_and_write([made], store, NOW)
    detect_and_write([made], store, NOW + timedelta(minutes=5))
    found = detect_and_write([made], store, NOW + timedelta(minutes=40))["load"]
    assert found.to_frame()["ds"].n_unique() == 7
    forecast_and_write([made], store, NOW + 2 * HOURS)
    forecast_and_write([made], store, NOW + HOURS)
    late = detect_and_write([made], store, NOW + 3 * HOURS)["load"]
    assert late.grid.n == 12


def test_a_series_that_lags_is_scored_from_its_own_newest_score() -> None:
    panel = series(2)
    store = MemoryStore({"load": panel})
    forecast_and_write([mission()], store, NOW)
    arrived = panel.y.copy()
    panel.y[1, panel.grid.index(NOW + timedelta(minutes=5)) :] = np.nan
    detect_and_write([mission()], store, NOW + timedelta(minutes=5))
    panel.y[:] = arrived
    frame = detect_and_write([mission()], store, NOW + timedelta(minutes=10))["load"].to_frame()
    assert frame.group_by("unique_id").len().sort("unique_id")["len"].to_list() == [1, 2]


def test_the_freshest_forecast_is_scored_against() -> None:
    panel = series(1)
    store = MemoryStore({"load": panel})
    made = mission(forecast={"lookback": "7d", "model": "seasonal_naive", "horizon": "3h"})
    forecast_and_write([made], store, NOW)
    (fresh,) = forecast_pass([made], {"": store}, now=NOW + HOURS)
    forecast_and_write([made], store, NOW + HOURS)
    scores = detect_and_write([made], store, NOW + 2 * HOURS)["load"]
    assert fresh.forecast is not None
    assert np.array_equal(scores.upper, fresh.forecast.upper[:, :12])


def test_without_a_forecast_points_are_counted_not_scored() -> None:
    (result,) = detect_pass([mission()], {"": MemoryStore({"load": series()})}, now=NOW)
    assert result.scores is not None
    assert np.isnan(result.scores.score).all()
    assert result.unforecast == 2 * 12
    assert "no forecast" in result.warnings[0]


def test_a_new_series_is_reported_until_it_has_a_forecast() -> None:
    store = MemoryStore({"load": series(1)})
    forecast_and_write([mission()], store, NOW)
    store.series["load"] = series(2)
    (result,) = detect_pass([mission()], {"": store}, now=NOW + timedelta(minutes=10))
    assert "1 of 2 series" in result.warnings[0]
    assert result.unforecast


@pytest.mark.parametrize(("missing", "expected"), [("ignore", None), ("zero", 1.0), ("anomaly", 2.0)])
def test_a_vanished_series_means_what_the_mission_says(missing: str, expected: float | None) -> None:
    made = mission(detect={"every": "5m", "missing": missing})
    store = MemoryStore({"load": series(2)})
    forecast_and_write([made], store, NOW)
    store.series["load"] = series(1)
    scores = detect_and_write([made], store, NOW + timedelta(minutes=10))["load"]
    gone = [i for i, row in enumerate(scores.labels) if row.get("host") == "b"]
    if expected is None:
        assert not gone
    else:
        assert (scores.score[gone] > expected if missing == "zero" else scores.score[gone] == expected).any()
        assert Labels.of({"__name__": "load", "host": "b"}) in scores.labels


def test_a_query_that_matches_nothing_any_more_is_no_failure_while_it_is_forecast() -> None:
    made = mission(detect={"every": "5m", "missing": "anomaly"})
    store = MemoryStore({"load": series(2)})
    forecast_and_write([made], store, NOW)
    del store.series["load"]
    (result,) = detect_pass([made], {"": store}, now=NOW + timedelta(minutes=10))
    assert result.error is None
    assert "gone" in result.warnings[0]
    assert result.scores is not None
    assert np.nanmax(result.scores.score) == 2
    (unknown,) = detect_pass([mission("other")], {"": store}, now=NOW)
    assert isinstance(unknown.error, NoSeriesError)


def test_labels_that_a_relay_adds_part_no_result_from_its_series() -> None:
    panel = series(2)
    labelled = tuple(Labels.of({**dict(row), "cluster": "eu"}) for row in panel.labels)
    store = MemoryStore({"load": Panel(labelled, panel.grid, panel.y)}, ignore_labels=("cluster",))
    made = mission(detect={"every": "5m", "missing": "anomaly"})
    forecast_and_write([made], store, NOW)
    for minutes in (5, 10):
        scores = detect_and_write([made], store, NOW + timedelta(minutes=minutes))["load"]
        assert scores.labels == labelled
        assert scores.to_frame().height == 2
    assert detect_and_write([made], store, NOW + timedelta(minutes=10)) == {}


def test_what_is_scored_again_on_purpose_is_shown_and_not_stored_over() -> None:
    panel = series(1)
    panel.y[0, panel.grid.index(NOW) - 1] -= 60
    store = MemoryStore({"load": panel})
    forecast_and_write([mission()], store, NOW - HOURS)
    detect_and_write([mission()], store, NOW - timedelta(minutes=20))
    above = mission(detect={"every": "5m", "direction": "above"})
    results, written = write_scores(detect_pass([above], {"": store}, now=NOW, window=HOURS), {"": store})
    assert results[0].scores is not None
    assert np.isfinite(results[0].scores.score).all()
    assert (written.samples, written.skipped) == (4, 1)


def test_a_cron_line_of_a_detection_says_how_far_back_it_looks() -> None:
    made = mission(detect={"cron": "0 */6 * * *"}, forecast={"lookback": "7d", "every": "12h", "model": "profile"})
    store = MemoryStore({"load": series(1)})
    forecast_and_write([made], store, NOW - 12 * HOURS)
    detect_and_write([made], store, NOW - 6 * HOURS)
    found = detect_and_write([made], store, NOW)["load"]
    assert found.to_frame().height == 72


def test_a_mission_that_excludes_all_of_its_history_is_told_so() -> None:
    window = {"lookback": "7d", "exclude": [{"start": NOW - timedelta(days=30), "end": NOW + HOURS}]}
    (result,) = forecast_pass([mission(forecast=window)], {"": MemoryStore({"load": series()})}, now=NOW)
    assert result.error is not None
    assert "excludes all" in result.error.message


def test_forecasts_made_in_memory_can_be_scored_against() -> None:
    store = MemoryStore({"load": series()})
    (made,) = forecast_pass([mission()], {"": store}, now=NOW)
    assert made.forecast is not None
    (result,) = detect_pass([mission()], {"": store}, now=NOW + HOURS, window=HOURS, forecasts={"load": made.forecast})
    assert result.scores is not None
    assert np.isfinite(result.scores.score).all()
    assert result.scores.score.shape == (2, 12)


def test_a_band_past_the_valid_range_is_a_warning_on_the_side_that_is_watched() -> None:
    panel = series(1)
    store = MemoryStore({"load": panel})
    wide = {"lookback": "7d", "model": "seasonal_naive", "interval_scale": [100, 1]}
    (warned,) = forecast_pass([mission(forecast=wide, detect={"valid_range": [0, 1e9]})], {"": store}, now=NOW)
    assert warned.warnings == ("the band of 1 series reaches below 0: a fall cannot leave it",)
    (quiet,) = forecast_pass(
        [mission(forecast=wide, detect={"valid_range": [0, 1e9], "direction": "above"})], {"": store}, now=NOW
    )
    assert quiet.warnings == ()


def test_forecasts_of_what_the_mission_was_before_are_not_scored_against() -> None:
    store = MemoryStore({"load": series()})
    changed, steady = mission("changed"), mission("steady")
    forecast_and_write([changed, steady], store, NOW - HOURS)
    later = datetime(2026, 3, 15, 11, 30, tzinfo=UTC)
    before, other = detect_pass([changed, steady], {"": store}, now=NOW, since={"changed": later})
    assert before.scores is not None
    assert np.isnan(before.scores.score).all()
    assert other.scores is not None
    assert np.isfinite(other.scores.score).any()
    forecast_and_write([changed], store, later + timedelta(seconds=30))
    (after,) = detect_pass([changed], {"": store}, now=NOW, since={"changed": later})
    assert after.scores is not None
    assert after.scores.grid.end == datetime(2026, 3, 15, 12, tzinfo=UTC)
    known = np.isfinite(after.scores.score).all(axis=0)
    np.testing.assert_array_equal(known, after.scores.grid.epoch_ms() > later.timestamp() * 1000)


class Counting(MemoryStore):
    """Counts what it is asked, and refuses to write when told to."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.asked: list[str] = []
        self.refuses: AnomalyTimesError | None = None

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        self.asked.append("read")
        return super().read(promql, grid, max_series=max_series)

    def read_forecasts(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> dict[str, Forecast]:
        self.asked.append("forecasts")
        return dict(super().read_forecasts(missions, grid, since=since))

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> dict[str, Panel]:
        self.asked.append("scores")
        return dict(super().read_scores(missions, grid))

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        self.asked.append("write")
        if self.refuses is not None and any(mission.name == "bad" for mission, _ in scores):
            raise self.refuses
        return super().write_scores(scores)


def test_alike_missions_share_their_queries() -> None:
    store = Counting({"load": series()})
    missions = [mission(f"m-{i}") for i in range(20)]
    forecast_and_write(missions, store, NOW)
    detect_and_write(missions, store, NOW + timedelta(minutes=5))
    store.asked.clear()
    detect_and_write(missions, store, NOW + timedelta(minutes=10))
    assert sorted(store.asked) == ["forecasts", "read", "scores", "write"]
    store.asked.clear()
    assert detect_and_write(missions, store, NOW + timedelta(minutes=10)) == {}
    assert store.asked == ["scores"]


def test_missions_of_one_query_read_its_values_once_a_detection() -> None:
    missions = [
        mission("a"),
        mission("other", "other"),
        mission("b", detect={"every": "5m", "direction": "above"}),
        mission("few", max_series=1),
        mission("rare", detect={"every": "1h"}),
        mission("c"),
    ]
    able = [each for each in missions if each.name != "few"]
    store = CountingStore({"load": series(), "other": series(3)})
    forecast_and_write(able, store, NOW)
    detect_and_write(able, store, NOW)
    store.reads.clear()
    with ThreadPoolExecutor(4) as pool:
        results = detect_pass(missions, {"": store}, now=NOW + timedelta(minutes=15), mapper=pool.map)
    # Another limit of series, and another window, are read on their own.
    assert sorted(store.reads) == ["load", "load", "load", "other"]
    assert [result.mission.name for result in results] == ["a", "other", "b", "few", "rare", "c"]
    assert [result.mission.name for result in results if result.error] == ["few"]
    for result, each in zip(results, missions, strict=True):
        (alone,) = detect_pass([each], {"": store}, now=NOW + timedelta(minutes=15))
        if result.scores is not None and alone.scores is not None:
            assert result.scores.labels == alone.scores.labels
            assert np.array_equal(result.scores.score, alone.scores.score, equal_nan=True)
            assert (result.gates, result.unforecast, result.series) == (alone.gates, alone.unforecast, alone.series)
        else:
            assert each.name == "few"


def test_a_mission_that_cannot_be_scored_does_not_keep_those_alike_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = series(3)
    store = MemoryStore({"load": series(), "spoilt": spoilt})
    missions = [mission("a"), mission("broken", "spoilt"), mission("b")]
    forecast_and_write(missions, store, NOW)
    score = scoring.score

    def broken(labels: Sequence[Labels], *arguments: Any, **options: Any) -> scoring.Scored:
        if any(row.get("host") == "c" for row in labels):
            raise ZeroDivisionError("a bug of ours")
        return score(labels, *arguments, **options)

    monkeypatch.setattr("anomaly_times.scoring.score", broken)
    results = detect_pass(missions, {"": store}, now=NOW + timedelta(minutes=10))
    assert [type(result.error) for result in results] == [type(None), AnomalyTimesError, type(None)]
    assert "broken" in str(results[1].error)
    assert all(result.scores is not None and result.scores.labels for result in (results[0], results[2]))


def test_values_are_read_while_forecasts_are_under_way() -> None:
    class Slow(CountingStore):
        def read_forecasts(
            self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
        ) -> Mapping[str, Forecast]:
            assert all_read.wait(30), "the forecasts came only after values of all missions"
            return super().read_forecasts(missions, grid, since=since)

        def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
            panel = super().read(promql, grid, max_series=max_series)
            if len(self.reads) == 100:
                all_read.set()
            return panel

    all_read = threading.Event()
    names = [f"m-{i}" for i in range(100)]
    store = Slow(dict.fromkeys(names, series(1)))
    results = detect_pass([mission(name, name) for name in names], {"": store}, now=NOW)
    assert [result.error for result in results] == [None] * 100


def test_a_store_that_is_away_is_the_error_of_each_mission_of_its_batch() -> None:
    class Away(MemoryStore):
        def read_scores(self, missions: Sequence[Mission], grid: Grid) -> dict[str, Panel]:
            raise StoreUnavailableError("nobody there")

    results = detect_pass(
        [mission("a"), mission("b", source="up")], {"": Away(), "up": MemoryStore({"load": series()})}, now=NOW
    )
    assert isinstance(results[0].error, StoreUnavailableError)
    assert results[1].error is None


def test_a_mission_that_cannot_be_written_does_not_keep_the_others_from_it() -> None:
    from anomaly_times.errors import MissionError

    store = Counting({"load": series()})
    missions = [mission("a"), mission("bad"), mission("c")]
    forecast_and_write(missions, store, NOW)
    store.refuses = MissionError("31 labels")
    results, written = write_scores(detect_pass(missions, {"": store}, now=NOW + timedelta(minutes=5)), {"": store})
    assert [result.error for result in results] == [None, store.refuses, None]
    assert written.samples == 4
    store.refuses = StoreUnavailableError("gone")
    results, written = write_scores(detect_pass(missions, {"": store}, now=NOW + timedelta(minutes=10)), {"": store})
    assert [result.error for result in results] == [store.refuses] * 3
    assert written == Written()


def test_a_mapper_that_ends_early_leaves_missions_out_and_the_others_are_scored() -> None:
    pack = [mission(name=f"m-{i}") for i in range(3)]
    store = MemoryStore({"load": series()})

    def stopped(function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        return map(function, list(items)[:2])

    assert [result.mission.name for result in detect_pass(pack, {"": store}, now=NOW, mapper=stopped)] == ["m-0", "m-1"]
