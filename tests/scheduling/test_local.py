"""Missions kept going without Prefect: slots, passes, reloads, a clean end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from anomaly_times.conventions import MISSION_INFO, POINTS_READ
from anomaly_times.durations import EPOCH
from anomaly_times.engine import run_pass
from anomaly_times.errors import AnomalyTimesError, MissionError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid
from anomaly_times.scheduling.local import (
    Happening,
    Missed,
    PassDone,
    Refused,
    Reloaded,
    Runner,
    keep_going,
    packs_of,
)
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, STEP, requests

NOW = AT + timedelta(seconds=30)


def mission(name: str, **fields: Any) -> Mission:
    spec = {
        "name": name,
        "promql": QUERY,
        "step": "10m",
        "offset": "0s",
        "forecast": {"model": "seasonal_naive"},
        **fields,
    }
    return Mission.model_validate(spec)


def fast(name: str, **fields: Any) -> Mission:
    return mission(name, detect={"every": "200ms"}, **fields)


class Clock:
    """A clock that shows `at` when it is made, and goes on from there."""

    def __init__(self, at: datetime) -> None:
        self._ahead = at - datetime.now(UTC)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self._ahead


def before_the_next_step(seconds: float) -> Clock:
    """So shortly before the first cutoff after `AT`."""
    return Clock(AT + STEP - timedelta(seconds=seconds))


class Tape:
    """What a runner told, and a way to wait for it."""

    def __init__(self) -> None:
        self.heard: list[Happening] = []
        self._news = threading.Condition()

    def __call__(self, happening: Happening) -> None:
        with self._news:
            self.heard.append(happening)
            self._news.notify_all()

    def wait(self, what: Callable[[list[Happening]], bool], seconds: float = 20) -> None:
        with self._news:
            assert self._news.wait_for(lambda: what(self.heard), seconds), self.heard

    def passes(self, kind: str) -> list[PassDone]:
        return [heard for heard in self.heard if isinstance(heard, PassDone) and heard.kind == kind]


def runner(store: MemoryStore, tape: Tape, **options: Any) -> Runner:
    return Runner(lambda missions: {m.source: store for m in missions}, tape, **{"clock": lambda: NOW, **options})


def test_missions_of_one_cadence_share_a_pack_and_an_isolated_one_has_its_own() -> None:
    missions = [mission("a"), mission("b"), mission("c", isolated=True), mission("d", detect={"every": "5m"})]
    packs = packs_of(missions, project="shop")
    members = {slug: [m.name for m in pack.missions] for slug, pack in packs.items()}
    assert members == {
        "at:shop:forecast:1h:00": ["a", "b", "d"],
        "at:shop:forecast:1h:m-c": ["c"],
        "at:shop:detect:1m:00": ["a", "b"],
        "at:shop:detect:1m:m-c": ["c"],
        "at:shop:detect:5m:00": ["d"],
    }


def test_slots_are_anchored_at_the_epoch_and_packs_are_spread() -> None:
    names = [f"m{i}" for i in range(20)]
    packs = packs_of([mission(name, isolated=True) for name in names], project="shop")
    phases = set()
    for slug, pack in packs.items():
        if pack.kind == "forecast":
            first = pack.trigger().get_next_fire_time(None, NOW)
            assert NOW < first <= NOW + timedelta(hours=1)
            phases.add((first - EPOCH) % timedelta(hours=1))
            again = packs_of([mission(name, isolated=True) for name in names], project="shop")[slug]
            later = NOW + timedelta(days=9, minutes=13)
            assert (again.trigger().get_next_fire_time(None, later) - first) % timedelta(hours=1) == timedelta(0)
    assert len(phases) > 15


@pytest.mark.parametrize(
    ("cron", "zone", "expected"),
    [
        ("30 6 * * 1", "UTC", ["2026-03-02T06:30:00+00:00", "2026-03-09T06:30:00+00:00"]),  # 1 is Monday
        ("0 3 * * sun", "Europe/Berlin", ["2026-03-08T03:00:00+01:00", "2026-03-15T03:00:00+01:00"]),
        ("0 8 28,29,30 3 *", "Europe/Berlin", ["2026-03-28T08:00:00+01:00", "2026-03-29T08:00:00+02:00"]),
    ],
)
def test_a_cron_line_is_literal_in_the_missions_zone(cron: str, zone: str, expected: list[str]) -> None:
    pack = packs_of([mission("a", timezone=zone, forecast={"cron": cron})], project="p")
    trigger = next(pack for pack in pack.values() if pack.kind == "forecast").trigger()
    found, previous = [], None
    for _ in expected:
        previous = trigger.get_next_fire_time(previous, NOW)
        found.append(previous.isoformat())
    assert found == expected


def test_a_pass_of_a_pack_says_which() -> None:
    store, tape = MemoryStore({QUERY: requests()}), Tape()
    with runner(store, tape, project="shop") as running:
        running.run([fast("a")])
        tape.wait(lambda _: bool(tape.passes("forecast")) and bool(tape.passes("detect")))
    told = {(g.labels.get("kind"), g.labels.get("pack")) for _, g in store.gauges if g.metric == POINTS_READ}
    assert told == {("forecast", "by-hand"), ("detect", "at:shop:detect:200ms:00")}


def test_a_pass_stores_each_forecast_as_it_comes() -> None:
    store = MemoryStore({QUERY: requests()})
    seen: list[int] = []

    def done(result: object) -> None:
        grid = Grid.ending(AT + timedelta(hours=2), STEP, 12)
        seen.append(len(store.read_forecasts([mission("a"), mission("b")], grid)))

    results, written = run_pass("forecast", [mission("a"), mission("b")], {"": store}, now=NOW, on_done=done)
    assert seen == [1, 2]
    assert written is not None
    assert [result.error for result in results] == [None, None]
    assert written.samples == 2 * 3 * 3 * 12


def test_new_missions_are_forecast_at_once_and_scored_at_their_slots() -> None:
    store, tape = MemoryStore({QUERY: requests()}), Tape()
    before = NOW - timedelta(hours=1)
    run_pass("forecast", [fast("a"), fast("b")], {"": store}, now=before)
    with runner(store, tape, jobs=2) as running:
        running.run([fast("a"), fast("b")])
        tape.wait(lambda _: bool(tape.passes("forecast")) and len(tape.passes("detect")) >= 2)
    first = tape.passes("forecast")[0]
    assert (first.first, first.now) == (True, NOW)
    assert [result.mission.name for result in first.results] == ["a", "b"]
    assert tape.heard[0] == Reloaded(2, ("a", "b"), (), ())
    scored, again = tape.passes("detect")[:2]
    assert scored.written.samples == 34
    assert again.written.samples == 0  # the store remembers what is scored
    assert scored.cadence == "200ms"


def test_a_changed_mission_is_forecast_again_and_one_that_is_gone_runs_no_more() -> None:
    store, tape = MemoryStore({QUERY: requests(), "other": requests()}), Tape()
    with runner(store, tape, clock=before_the_next_step(2)) as running:
        running.run([fast("stays"), fast("changes"), mission("goes", detect={"every": "300ms"})])
        tape.wait(lambda _: len(tape.passes("forecast")) == 1)
        running.run([fast("stays"), fast("changes", promql="other"), fast("comes")])
        tape.wait(lambda _: len(tape.passes("forecast")) == 3)
        heard = len(tape.passes("detect"))
        tape.wait(lambda _: len(tape.passes("detect")) >= heard + 3)
    assert [heard for heard in tape.heard if isinstance(heard, Reloaded)][1] == Reloaded(
        3, ("comes",), ("changes",), ("goes",)
    )
    # What is new is forecast at once, what changed once there is a cutoff from after the change.
    assert [result.mission.name for result in tape.passes("forecast")[1].results] == ["comes"]
    assert [result.mission.name for result in tape.passes("forecast")[2].results] == ["changes"]
    last = tape.passes("detect")[-1]
    assert {result.mission.name: result.mission.promql for result in last.results} == {
        "stays": QUERY,
        "changes": "other",
        "comes": QUERY,
    }
    assert all(done.cadence == "200ms" for done in tape.passes("detect")[heard + 1 :])


@pytest.mark.parametrize(("field", "samples"), [("promql", 0), ("description", 17)])
def test_a_changed_query_is_not_scored_against_forecasts_of_the_old_one(field: str, samples: int) -> None:
    store, tape = MemoryStore({QUERY: requests(), "other": requests()}), Tape()
    slow = mission("a", detect={"every": "1h"})
    run_pass("forecast", [slow], {"": store}, now=NOW - timedelta(hours=1))
    with runner(store, tape) as running:
        running.run([slow])
        tape.wait(lambda _: bool(tape.passes("forecast")))
        running.run([fast("a", **{field: "other"})])
        tape.wait(lambda _: bool(tape.passes("detect")))
    assert tape.passes("detect")[0].written.samples == samples


def cutoffs(store: MemoryStore, name: str) -> set[datetime]:
    return {cutoff for kept in store._forecasts[name].values() for cutoff in kept}


def test_a_change_right_after_a_forecast_is_forecast_anew_and_nothing_is_scored_against_the_old_query() -> None:
    store, tape = MemoryStore({QUERY: requests(), "other": requests()}), Tape()
    # The forecast of the old query has the last complete time before the change as its cutoff.
    run_pass("forecast", [mission("a")], {"": store}, now=NOW)
    with runner(store, tape, clock=before_the_next_step(2)) as running:
        running.run([mission("a", detect={"every": "1h"})])
        tape.wait(lambda _: bool(tape.passes("forecast")))
        assert cutoffs(store, "a") == {AT}
        running.run([fast("a", promql="other")])
        tape.wait(lambda _: bool(tape.passes("detect")))
        grid = Grid(AT + STEP, STEP, 12)
        assert store.read_forecasts([mission("a")], grid)["a"].yhat.size
        assert store.read_forecasts([mission("a")], grid, since=running._since) == {}
        tape.wait(lambda _: len(tape.passes("forecast")) == 2)
        assert cutoffs(store, "a") == {AT, AT + STEP}
        assert "a" in store.read_forecasts([mission("a")], grid, since=running._since)


def test_rules_are_told_of_missions_that_go_and_of_labels_that_change() -> None:
    store, tape = MemoryStore({QUERY: requests()}), Tape()

    def told() -> dict[tuple[str, str], float]:
        return {
            (gauge.labels.get("mission"), gauge.labels.get("forecast_every")): gauge.value
            for _, gauge in store.gauges
            if gauge.metric == MISSION_INFO
        }

    with runner(store, tape, project="shop") as running:
        running.run([mission("a"), mission("b"), mission("c")])
        tape.wait(lambda _: bool(tape.passes("forecast")))
        assert told() == {("a", "1h"): 1, ("b", "1h"): 1, ("c", "1h"): 1}
        running.run([mission("a", promql="other"), mission("b", forecast={"every": "30m"})])
        # What runs on under the same labels is told by its next pass, not by this.
        assert told() == {("a", "1h"): 1, ("b", "1h"): 0, ("c", "1h"): 0}


def test_a_query_that_goes_and_comes_back_as_another_is_not_scored_against_the_old_one() -> None:
    store, tape = MemoryStore({QUERY: requests(), "other": requests()}), Tape()
    run_pass("forecast", [mission("a")], {"": store}, now=NOW)
    with runner(store, tape) as running:
        running.run([mission("a", detect={"every": "1h"})])
        running.run([mission("b", detect={"every": "1h"})])
        running.run([fast("a", promql="other")])
        tape.wait(lambda _: bool(tape.passes("detect")))
        assert store.read_forecasts([mission("a")], Grid(AT, STEP, 12), since=running._since) == {}


def test_with_a_shorter_step_forecasts_restart_when_those_of_the_old_one_have_ended() -> None:
    store, tape = MemoryStore({QUERY: requests()}), Tape()
    with runner(store, tape) as running:
        running.run([mission("a", forecast={"horizon": "95m"})])
        running.run([mission("a", step="3m")])
        running.run([mission("a", step="3m", description="x")])
    told = [heard for heard in tape.heard if isinstance(heard, Reloaded)]
    # 12:00:30 and 95 minutes, in whole steps of three minutes since the epoch.
    assert told[1] == Reloaded(1, (), ("a",), (), {"a": AT + timedelta(minutes=96)})
    assert running._since == {"a": AT + timedelta(minutes=96)}


def test_a_change_that_comes_after_another_replaces_its_first_forecast() -> None:
    store, tape = MemoryStore({QUERY: requests(), "other": requests(), "third": requests()}), Tape()
    with runner(store, tape, clock=before_the_next_step(2)) as running:
        running.run([mission("a")])
        tape.wait(lambda _: len(tape.passes("forecast")) == 1)
        running.run([mission("a", promql="other")])
        running.run([mission("a", promql="third")])
        tape.wait(lambda _: len(tape.passes("forecast")) == 2)
        time.sleep(0.3)
    assert [result.mission.promql for done in tape.passes("forecast") for result in done.results] == [QUERY, "third"]


def test_a_store_that_is_away_fails_passes_and_stops_nothing() -> None:
    store, tape = MemoryStore({QUERY: StoreUnavailableError("away")}), Tape()
    with runner(store, tape) as running:
        running.run([fast("a")])
        tape.wait(lambda _: len(tape.passes("detect")) >= 2)
        store.series[QUERY] = requests()
        tape.wait(lambda _: bool(tape.passes("detect")) and tape.passes("detect")[-1].results[0].error is None)
    assert str(tape.passes("detect")[0].results[0].error) == "away"


class SlowStore(MemoryStore):
    """Reads take their time; counts those that began and those that ended."""

    began = 0
    stored = 0

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Any:
        self.began += 1
        time.sleep(0.3)
        return super().read(promql, grid, max_series=max_series)

    def write_forecasts(self, forecasts: Any) -> Any:
        self.stored += len(forecasts)
        return super().write_forecasts(forecasts)


def test_an_end_finishes_what_is_in_work_and_begins_nothing() -> None:
    # Each has a query of its own, for missions of one query would share their read.
    missions = [mission(f"m{i}", promql=f"{QUERY} + {i}") for i in range(20)]
    store, tape = SlowStore({each.promql: requests() for each in missions}), Tape()
    with runner(store, tape, jobs=2) as running:
        running.run(missions)
        while store.began < 3:
            time.sleep(0.01)
    assert 3 <= store.began <= 6
    assert store.stored == store.began
    assert len(tape.passes("forecast")[0].results) == store.began
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("forecast", "detect"))]
    assert left == []


def test_a_pass_that_lasts_too_long_never_overlaps_itself() -> None:
    class Counting(SlowStore):
        inside = most = 0

        def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Any:
            if grid.n < 100:  # a detection's
                self.inside += 1
                self.most = max(self.most, self.inside)
                time.sleep(0.5)
                self.inside -= 1
            return MemoryStore.read(self, promql, grid, max_series=max_series)

    store, tape = Counting({QUERY: requests()}), Tape()
    with runner(store, tape) as running:
        running.run([fast("slow")])
        tape.wait(lambda _: len(tape.passes("detect")) >= 2)
    assert store.most == 1
    assert Missed("at:default:detect:200ms:00", "the pass before is still running") in tape.heard


def test_files_are_read_again_when_they_change_and_a_broken_edit_changes_nothing(tmp_path: Path) -> None:
    store, tape, stop = MemoryStore({QUERY: requests()}), Tape(), threading.Event()
    file = tmp_path / "missions.yaml"
    file.write_text("a")

    def load() -> Sequence[Mission]:
        text = file.read_text()
        if text == "broken":
            raise MissionError("missions.yaml:1: broken")
        return [mission(name) for name in text.split()]

    def save(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(file)

    def told(kind: type[object]) -> list[object]:
        return [heard for heard in tape.heard if isinstance(heard, kind)]

    with runner(store, tape) as running:
        loop = threading.Thread(
            target=keep_going, args=(running, [tmp_path], load), kwargs={"tell": tape, "stop": stop, "poll": 0.02}
        )
        loop.start()
        tape.wait(lambda _: len(told(Reloaded)) == 1)
        save("broken")
        tape.wait(lambda _: len(told(Refused)) == 1)
        time.sleep(0.1)
        assert len(told(Refused)) == 1  # once, not at every look
        save("a b")
        tape.wait(lambda _: len(told(Reloaded)) == 2)
        (tmp_path / "defaults.yaml").write_text("step: 5m\n")
        tape.wait(lambda _: len(told(Reloaded)) == 3)
        stop.set()
        loop.join(10)
    assert not loop.is_alive()
    assert told(Reloaded)[1] == Reloaded(2, ("b",), (), ())
    assert told(Reloaded)[2] == Reloaded(2, (), (), ())


def test_files_that_cannot_run_at_the_beginning_are_an_error(tmp_path: Path) -> None:
    def load() -> Sequence[Mission]:
        raise MissionError("broken")

    with runner(MemoryStore(), Tape()) as running, pytest.raises(AnomalyTimesError, match="broken"):
        keep_going(running, [tmp_path], load, tell=Tape(), stop=threading.Event())


def test_the_clock_of_a_runner_is_utc() -> None:
    tape = Tape()
    store = MemoryStore({QUERY: requests()})
    with Runner(lambda _: {"": store}, tape) as running:
        running.run([mission("a")])
        tape.wait(lambda _: bool(tape.passes("forecast")))
    assert abs(tape.passes("forecast")[0].now - datetime.now(UTC)) < timedelta(minutes=1)
