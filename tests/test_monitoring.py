from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_times.conventions import SELF_METRICS, Kind
from anomaly_times.durations import EPOCH
from anomaly_times.engine import run_pass
from anomaly_times.errors import StoreError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.monitoring import About, Result, tell, tell_gone, tells_alike
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.passes import ForecastResult, forecast_pass
from anomaly_times.settings import Source
from anomaly_times.stores import Gauge, remote_write
from anomaly_times.stores.metered import MeteredStore
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from anomaly_times.testing import MemoryStore
from tests import servers

STEP = timedelta(minutes=5)
HOUR = timedelta(hours=1)
NOW = datetime(2026, 3, 15, 12, 1, tzinfo=UTC)
PAGE = Path(__file__).parents[1] / "docs" / "monitoring.md"
ABOUT = About("shop", "at:shop:detect:5m:00")


def mission(name: str = "load", promql: str = "load", **fields: Any) -> Mission:
    fields = {"step": "5m", "forecast": {"lookback": "7d", "model": "seasonal_naive", "level": 99}, **fields}
    fields.setdefault("detect", {"every": "5m"})
    return Mission.model_validate({"name": name, "promql": promql, **fields})


def series(n: int = 3, *, end: datetime = NOW, days: int = 10) -> Panel:
    """`n` series with a daily rhythm around 100 and a little noise, until `end`."""
    grid = Grid.ending(end, STEP, days * 288)
    rhythm = 100 + 30 * np.sin(grid.epoch_ms() / 86_400_000 * 2 * np.pi)
    y = rhythm + np.random.default_rng(0).normal(0, 1, (n, grid.n))
    return Panel(tuple(Labels.of({"__name__": "load", "host": chr(97 + i)}) for i in range(n)), grid, y)


def figures(store: MemoryStore) -> dict[str, float]:
    """The newest figure of each series, by metric and the labels that are not of a mission or pack."""
    return {f"{gauge.metric}{_rest(gauge.labels)}": gauge.value for _, gauge in store.gauges}


def _rest(labels: Labels) -> str:
    shown = {name: value for name, value in labels if name in ("kind", "stage")}
    return str(Labels.of(shown)) if shown else ""


def test_a_forecast_then_a_detection_tell_what_they_did() -> None:
    panel = series()
    panel.y[1, -1] = 500.0
    panel.y[2, -2] = np.nan
    store = MemoryStore({"load": panel})
    run_pass("forecast", [mission()], {"": store}, now=NOW - HOUR, about=ABOUT)
    first = figures(store)
    assert {at for at, _ in store.gauges} == {NOW - HOUR}
    assert first['at_errors{kind="forecast"}'] == 0
    assert first['at_last_success_timestamp_seconds{kind="forecast"}'] == (NOW - HOUR - EPOCH).total_seconds()
    # The cutoff is 11:00, and a forecast reaches two hours.
    assert first["at_forecast_end_timestamp_seconds"] == (NOW - EPOCH).total_seconds() + HOUR.total_seconds() - 60
    assert "at_points_judged" not in first  # nothing was stored before
    assert first['at_points_written{kind="forecast"}'] == 3 * 24 * 3

    store.gauges.clear()
    run_pass("detect", [mission()], {"": store}, now=NOW, about=ABOUT)
    second = figures(store)
    # An hour of twelve points each, less one gap; all of them are told as read, and the one before each series too.
    assert second["at_series"] == 3
    assert second["at_scored_points"] == 3 * 12 - 1
    assert second["at_missing_forecast"] == 0
    assert second["at_series_anomalous"] == 1
    assert second['at_errors{kind="detect"}'] == 0
    assert second['at_points_read{kind="detect"}'] == 3 * 13 - 1
    assert second['at_points_dropped{kind="detect"}'] == 0
    labels = {gauge.metric: gauge.labels for _, gauge in store.gauges}
    assert labels["at_mission_info"] == Labels.of(
        {
            "mission": "load",
            "project": "shop",
            "source": "default",
            "model": "seasonal_naive",
            "step": "5m",
            "forecast_every": "1h",
            "detect_every": "5m",
        }
    )
    assert labels["at_points_read"] == Labels.of({"pack": ABOUT.pack, "kind": "detect", "source": "default"})


def test_stages_are_told_in_seconds_and_the_whole_is_no_less_than_the_computing() -> None:
    store = MemoryStore({"load": series()})
    run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT)
    stages = {g.labels.get("stage"): g.value for _, g in store.gauges if g.metric == "at_pass_duration_seconds"}
    assert set(stages) == {"read", "compute", "write", "total"}
    assert min(stages.values()) > 0
    assert stages["total"] >= stages["compute"]
    assert stages["total"] >= stages["read"] + stages["write"]


def test_coverage_and_mase_of_stored_forecasts_are_one_division() -> None:
    panel = series(end=NOW + HOUR)
    store = MemoryStore({"load": panel})
    run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT)
    run_pass("forecast", [mission()], {"": store}, now=NOW + HOUR, about=ABOUT)
    told = figures(store)
    grid = Grid.ending(NOW + HOUR, STEP, 12)
    stored = store.read_forecasts([mission()], grid)["load"]
    y, before = panel.y[:, -12:], panel.y[:, -12 - 288 : -288]
    assert told["at_points_judged"] == 36
    assert told["at_points_in_band"] == ((stored.lower <= y) & (y <= stored.upper)).sum()
    assert told["at_forecast_abs_error"] == pytest.approx(np.abs(y - stored.yhat).sum())
    assert told["at_naive_abs_error"] == pytest.approx(np.abs(y - before).sum())


def test_forecasts_are_judged_by_what_was_measured_where_it_is_not_excluded() -> None:
    panel = series(end=NOW + HOUR)
    store = MemoryStore({"load": panel})
    run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT)

    def judged(**forecast: object) -> tuple[float, float]:
        fields = {"lookback": "7d", "model": "seasonal_naive", "level": 99, **forecast}
        (result,) = forecast_pass([mission(forecast=fields)], {"": store}, now=NOW + HOUR, judged=True)
        assert result.quality is not None
        return result.quality.points, result.quality.naive_abs_error

    plain = judged()
    # A level that moved half a day ago moves the history that is learned from, and no value that is judged.
    assert judged(rebase=NOW - 12 * HOUR) == plain
    half = {"start": NOW + HOUR / 2, "end": NOW + HOUR}
    assert judged(exclude=[half])[0] == 18
    # Neither may the day before be held against what is known to be no day like others.
    assert judged(exclude=[{key: at - timedelta(days=1) for key, at in half.items()}])[0] == 18


@pytest.mark.parametrize(
    ("cadence", "step"), [({"cron": "0 7,11 * * *"}, "5m"), ({"every": "1h"}, "7m"), ({"every": "1h"}, "5m")]
)
def test_passes_of_all_slots_judge_each_point_once(cadence: dict[str, str], step: str) -> None:
    forecast = {"lookback": "7d", "horizon": "24h", "model": "seasonal_naive", "level": 99, **cadence}
    watched = mission(step=step, forecast=forecast)
    grid = Grid.ending(NOW + 48 * HOUR, watched.step, 12 * timedelta(days=1) // watched.step)
    y = 100 + np.random.default_rng(0).normal(0, 1, (1, grid.n))
    store = MemoryStore({"load": Panel((Labels.of({"__name__": "load"}),), grid, y)})
    begin = NOW.replace(hour=11)
    slots = [begin + hours * HOUR for hours in (0, 20, 24, 44)]
    if "every" in cadence:
        slots = [begin + hour * HOUR for hour in range(8)]
    judged = 0
    for now in slots:
        (result,), _ = run_pass("forecast", [watched], {"": store}, now=now, about=ABOUT)
        assert isinstance(result, ForecastResult)
        judged += result.quality.points if result.quality else 0
    assert judged == (watched.last_time(slots[-1]) - watched.last_time(slots[0])) // watched.step


def test_forecasts_of_another_query_are_not_judged() -> None:
    store = MemoryStore({"load": series(end=NOW + HOUR)})
    run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT)
    since = {"load": NOW + HOUR / 2}
    (result,) = forecast_pass([mission()], {"": store}, now=NOW + HOUR, judged=True, since=since)
    assert result.quality is None
    (result,) = forecast_pass([mission()], {"": store}, now=NOW + HOUR, judged=True)
    assert result.quality is not None


def test_a_pass_that_is_not_asked_reads_no_stored_forecast() -> None:
    class Deaf(MemoryStore):
        def read_forecasts(self, *_: object, **__: object) -> Any:
            raise AssertionError("nobody asked")

    (result,) = forecast_pass([mission()], {"": Deaf({"load": series()})}, now=NOW)
    assert result.error is None


def test_a_forecast_that_cannot_be_judged_is_stored_with_a_warning() -> None:
    class Forgetful(MemoryStore):
        def read_forecasts(self, *_: object, **__: object) -> Any:
            raise StoreUnavailableError("nobody there")

    store = Forgetful({"load": series()})
    results, written = run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT)
    assert [result.error for result in results] == [None]
    assert results[0].warnings[-1] == "how good the last forecast was is not known: nobody there"
    assert written is not None
    assert written.samples > 0


def test_a_mission_that_failed_says_so_and_counts_what_was_lost() -> None:
    class Full(MemoryStore):
        def write_scores(self, *_: object) -> Any:
            raise StoreError("the disk is full")

    store = Full({"load": series()})
    run_pass("forecast", [mission()], {"": store}, now=NOW - HOUR, about=ABOUT)
    store.gauges.clear()
    run_pass("detect", [mission(), mission("absent", "absent")], {"": store}, now=NOW, about=ABOUT)
    failed = {g.labels.get("mission") for _, g in store.gauges if g.metric == "at_errors" and g.value == 1}
    assert failed == {"load", "absent"}
    assert {g.labels.get("mission") for _, g in store.gauges if g.metric == "anomaly_mission_failed"} == failed
    names = {gauge.metric for _, gauge in store.gauges}
    assert "at_last_success_timestamp_seconds" not in names
    assert "at_scored_points" not in names
    assert figures(store)['at_points_dropped{kind="detect"}'] == 36


def test_a_pass_without_a_new_point_leaves_what_was_found_as_it_was() -> None:
    store = MemoryStore({"load": series()})
    run_pass("forecast", [mission()], {"": store}, now=NOW - HOUR, about=ABOUT)
    run_pass("detect", [mission()], {"": store}, now=NOW, about=ABOUT)
    store.gauges.clear()
    run_pass("detect", [mission()], {"": store}, now=NOW + timedelta(seconds=30), about=ABOUT)
    told = figures(store)
    assert told["at_scored_points"] == 0
    assert told['at_errors{kind="detect"}'] == 0
    assert "at_series" not in told
    assert "at_series_anomalous" not in told


def test_points_without_a_forecast_are_counted_once_while_a_mission_has_none() -> None:
    store = MemoryStore({"load": series(2, end=NOW + HOUR)})
    minutely = mission(detect={"every": "1m"})
    told = []
    for minutes in (0, 1, 5, 6, 10):
        run_pass("detect", [minutely], {"": store}, now=NOW + timedelta(minutes=minutes), about=ABOUT)
        told.append(figures(store)["at_missing_forecast"])
    assert told == [2, 0, 2, 0, 2]


def test_points_without_a_forecast_are_told() -> None:
    panel = series()
    store = MemoryStore({"load": panel.rows([0, 1])})
    run_pass("forecast", [mission()], {"": store}, now=NOW - HOUR, about=ABOUT)
    store.series["load"] = panel
    run_pass("detect", [mission()], {"": store}, now=NOW, about=ABOUT)
    told = figures(store)
    assert told["at_series"] == 3
    assert told["at_missing_forecast"] == 12
    assert told['at_points_dropped{kind="detect"}'] == 12


def test_figures_that_cannot_be_stored_are_a_warning_and_never_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(MemoryStore):
        def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
            raise StoreUnavailableError("nobody there")

    store = Mute({"load": series()})
    results, written = run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT)
    assert [result.error for result in results] == [None]
    assert written is not None
    assert written.samples > 0
    assert caplog.messages == ["figures of 1 mission were not stored in memory: nobody there"]


def test_a_dry_run_tells_nothing() -> None:
    store = MemoryStore({"load": series()})
    run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT, write=False)
    run_pass("forecast", [mission()], {"": store}, now=NOW)
    assert store.gauges == []


def test_a_paused_mission_that_somebody_ran_is_told_as_paused() -> None:
    store = MeteredStore(memory := MemoryStore({"load": series()}))
    results = forecast_pass([mission(), mission("rests")], {"": store}, now=NOW)
    assert tell("forecast", results, {"": store}, about=ABOUT, now=NOW, seconds=1.0, resting=["rests"]) == []
    info = {g.labels.get("mission"): g.value for _, g in memory.gauges if g.metric == "at_mission_info"}
    assert info == {"load": 1.0, "rests": 0.0}


def test_a_mission_that_cannot_be_read_is_told_to_the_default_source() -> None:
    store = MeteredStore(memory := MemoryStore())
    told: dict[str, Any] = {"about": ABOUT, "now": NOW, "seconds": 1.0, "unreadable": ["broken"]}
    assert tell("detect", [], {"": store}, **told) == []
    assert figures(memory)['at_errors{kind="detect"}'] == 1
    (untold,) = tell("detect", [], {}, **told)
    assert untold == "figures of 1 mission were not stored: the source 'default' is not open"


def test_each_source_is_told_in_one_request_what_is_its_own() -> None:
    asked: list[int] = []

    class Counting(MemoryStore):
        def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
            asked.append(len(gauges))
            super().write_gauges(gauges, at=at)

    one, two = Counting({"load": series()}), Counting({"load": series(1)})
    missions = [mission("a"), mission("b"), mission("c", source="far")]
    run_pass("forecast", missions, {"": one, "far": two}, now=NOW, about=ABOUT)
    assert len(asked) == 2
    assert {g.labels.get("mission") for _, g in one.gauges} == {"a", "b", ""}
    assert figures(two)['at_points_written{kind="forecast"}'] == 24 * 3
    assert {g.labels.get("source") for _, g in two.gauges if g.metric == "at_points_read"} == {"far"}


def test_what_stopped_is_told_under_the_labels_that_it_ran_with() -> None:
    store = MemoryStore({"load": series()})
    run_pass("forecast", [mission()], {"": store}, now=NOW, about=ABOUT)
    ran = next(gauge for _, gauge in store.gauges if gauge.metric == "at_mission_info")
    store.gauges.clear()
    assert tell_gone([mission()], {"": store}, project="shop", at=NOW + STEP) == []
    assert store.gauges == [(NOW + STEP, Gauge("at_mission_info", ran.labels, 0.0))]
    (told,) = tell_gone([mission(source="away")], {}, project="shop", at=NOW)
    assert told.endswith("rules may still wait for scores: the source 'away' is not open")


def test_only_what_the_labels_say_makes_another_series() -> None:
    assert tells_alike(mission(), mission(promql="other", detect={"every": "5m", "direction": "above"}))
    assert not tells_alike(mission(), mission(detect={"every": "10m"}))
    assert not tells_alike(mission(), mission(source="far"))
    assert not tells_alike(mission(), None)


def test_a_meter_counts_values_and_neither_gaps_nor_our_own_results() -> None:
    panel = series(2)
    panel.y[0, -3:] = np.nan
    metered = MeteredStore(MemoryStore({"load": panel}))
    metered.read("load", Grid.ending(NOW, STEP, 12))
    metered.read_scores([mission()], Grid.ending(NOW, STEP, 12))
    assert metered.traffic.points_read == 2 * 12 - 3
    assert metered.traffic.points_written == 0
    assert metered.traffic.write == 0
    assert metered.name == "memory"


def questions() -> list[str]:
    """The expressions of the page, without their comments."""
    (block,) = re.findall(r"```promql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    parts = block.split("\n\n")
    return ["\n".join(line for line in part.splitlines() if not line.startswith("#")) for part in parts]


def test_every_metric_is_in_the_table_of_the_page() -> None:
    listed = re.findall(r"^\| `(at_\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(SELF_METRICS)


# -- real servers ------------------------------------------------------------------------------------------------


def write_load(store: PrometheusStore, now: datetime) -> None:
    """Two days of two series up to `now`; the second ends with a jump."""
    panel = series(2, end=now, days=2)
    panel.y[1, -1] = 500.0
    labels = [Labels.of({"host": row.get("host")}) for row in panel.labels]
    # Prometheus takes nothing that is an hour older than its newest sample: oldest first, all series together.
    for first in range(0, panel.grid.n, 6):
        part = slice(first, first + 6)
        values = panel.y[:, None, part]
        for body in remote_write.encode([Samples(("load",), labels, panel.grid.epoch_ms()[part], values)]):
            store.client.request("POST", store.source.write_url, content=body, headers=remote_write.HEADERS)


@pytest.mark.servers
@pytest.mark.parametrize("kind", [servers.victoria_metrics, servers.prometheus])
def test_every_figure_can_be_asked_of_a_server_and_coverage_is_one_division(
    start: Callable[..., servers.Server], kind: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = start(kind)

    def visible() -> None:
        if kind is servers.victoria_metrics:
            server.flush()

    now = Grid.ending(datetime.now(UTC), STEP, 1).start + timedelta(seconds=40)
    watched = mission(forecast={"lookback": "30h", "model": "seasonal_naive", "level": 99})
    about = About("shop", "at:shop:forecast:1h:00")
    with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
        write_load(store, now)
        visible()
        stores = {"": store}
        found: list[Result] = []
        passes: list[tuple[Kind, datetime]] = [
            ("forecast", now - HOUR),
            ("detect", now),
            ("forecast", now + timedelta(seconds=1)),
        ]
        for kind_of, at in passes:
            results, _ = run_pass(kind_of, [watched], stores, now=at, about=about)
            assert [result.error for result in results] == [None]
            found += results
            visible()
        at = now + timedelta(seconds=2)

        def ask(query: str) -> float:
            ((_, samples),) = store.query(query, at)
            return samples[0][1]

        names = {row.get("__name__") for row, _ in store.query('{__name__=~"at_.+"}', at)}
        assert names == set(SELF_METRICS)
        assert isinstance(found[2], ForecastResult)
        quality = found[2].quality
        assert quality is not None
        assert quality.points == 24
        assert ask('at_mission_info{mission="load"}') == 1
        assert ask("at_series") == 2
        assert ask("at_scored_points") == 24
        assert ask("at_series_anomalous") == 1
        assert ask('at_errors{kind="detect"}') == 0
        assert ask("sum(sum_over_time(at_points_in_band[2h])) / sum(sum_over_time(at_points_judged[2h]))") == (
            quality.in_band / 24
        )
        mase = "sum(sum_over_time(at_forecast_abs_error[2h])) / sum(sum_over_time(at_naive_abs_error[2h]))"
        assert ask(mase) == pytest.approx(quality.abs_error / quality.naive_abs_error)
        for question in questions():
            # What runs out soon is a question whose answer is empty on a good day.
            assert store.query(question, at) or "< 1800" in question, question
        lag = 'time() - at_last_success_timestamp_seconds{kind="detect"}'
        assert ask(lag) == pytest.approx(2, abs=0.01)
        # What began before the newest pass and ended after it is no reason to lose the others' figures.
        assert tell_gone([watched], stores, project="shop", at=at) == []
        run_pass("detect", [watched], stores, now=now + timedelta(seconds=1), about=about)
        visible()
        at += timedelta(seconds=2)
        assert ask('at_mission_info{mission="load"}') == 0
        assert ask("at_scored_points") == 0
