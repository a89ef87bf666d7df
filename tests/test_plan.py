from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_times import plan as plan_module
from anomaly_times.conventions import variable_name
from anomaly_times.deployed import DeployedMission, Pause, to_value
from anomaly_times.errors import MissionError, PrefectError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels
from anomaly_times.plan import (
    PACK_SIZE,
    Create,
    Delete,
    FirstRun,
    Found,
    Keep,
    Leave,
    PackSchedule,
    Plan,
    Refuse,
    State,
    Timing,
    Update,
    build_plan,
    first_cutoff,
    new_missions,
    pack_phase,
    read_saved,
    saved,
    to_document,
)
from anomaly_times.settings import Source
from anomaly_times.stores import open_store
from tests.servers import Server

NOW = datetime(2026, 3, 1, 12, 0, 40, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
BASES: dict[Any, str] = {"forecast": "f-id", "detect": "d-id"}
EMPTY = State(deployments=BASES)


def mission(name: str = "a-b", **fields: Any) -> Mission:
    return Mission.model_validate({"name": name, "promql": "up", **fields})


def found(deployed: DeployedMission, *, value: Any = None, tags: Sequence[str] | None = None) -> Found:
    name = variable_name(deployed.mission.name)
    value = to_value(deployed) if value is None else value
    return Found.of(name, json.loads(json.dumps(value)), deployed.tags if tags is None else tags)


def applied(plan: Plan, before: State = EMPTY) -> State:
    """The state after a plan has been carried out, as a server would give it."""
    there = {one.name: one for one in before.found.values() if one.name not in {d.name for d in plan.of(Delete)}}
    for change in plan.changes:
        if isinstance(change, (Create, Update)):
            there[change.name] = found(change.target)
    schedules = {s.slug: s for s in before.schedules}
    for change in plan.schedules:
        if change.action == "delete":
            del schedules[change.schedule.slug]
        else:
            schedules[change.schedule.slug] = replace(change.schedule, id="s-" + change.schedule.slug)
    return State(there, tuple(schedules.values()), BASES)


def deployed(*missions: Mission) -> State:
    return applied(build_plan(missions, EMPTY, project="shop", now=NOW))


def first_runs(plan: Plan, *, now: datetime, asked: dict[str, datetime] | None = None) -> list[FirstRun]:
    return plan_module.first_runs(new_missions(plan, now=now), now=now, asked=asked)


def planned(missions: Sequence[Mission], state: State, *, prune: bool = False, project: str = "shop") -> Plan:
    return build_plan(missions, state, project=project, now=LATER, prune=prune)


def test_a_first_plan_creates_missions_and_the_schedules_of_their_packs() -> None:
    plan = build_plan([mission("a"), mission("b")], EMPTY, project="shop", now=NOW)
    assert [c.name for c in plan.of(Create)] == ["a", "b"]
    assert {c.target.packs for c in plan.of(Create)} == {("at:shop:forecast:1h:00", "at:shop:detect:1m:00")}
    assert [(s.action, s.schedule.slug, s.drift) for s in plan.schedules] == [
        ("create", "at:shop:detect:1m:00", ""),
        ("create", "at:shop:forecast:1h:00", ""),
    ]
    detect = plan.schedules[0].schedule
    assert detect.parameters == {"pack": "at:shop:detect:1m:00"}
    assert detect.timing == Timing(timedelta(minutes=1), pack_phase(detect.slug, timedelta(minutes=1)))


def test_a_plan_of_what_is_deployed_is_empty() -> None:
    missions = [mission("a"), mission("b", isolated=True), mission("c", detect={"cron": "*/5 * * * *"})]
    plan = planned(missions, deployed(*missions))
    assert plan.empty
    assert plan.counts == dict.fromkeys(plan.counts, 0) | {"unchanged": 3}


@pytest.mark.parametrize(
    ("change", "field", "old", "new", "meaning"),
    [
        ({"promql": "up > 0"}, "promql", "up", "up > 0", "identity changes, forecasts restart"),
        ({"step": "5m"}, "step", "1m", "5m", "identity changes, forecasts restart"),
        ({"labels": {"team": "x"}}, "labels", {}, {"team": "x"}, "identity changes, forecasts restart"),
        ({"forecast": {"model": "profile"}}, "forecast.model", {"type": "auto"}, {"type": "profile"}, "model refits"),
        ({"forecast": {"level": 99}}, "forecast.level", None, 99.0, "bounds change, score history stays"),
        ({"detect": {"alerts_per_week": 2}}, "detect.alerts_per_week", 0.5, 2.0, "bounds change, score history stays"),
        ({"detect": {"direction": "above"}}, "detect.direction", "both", "above", "scores are counted differently"),
        ({"forecast": {"every": "2h"}}, "forecast.every", "1h", "2h", "schedule only"),
        ({"alert": {"for": "9m"}}, "alert.for", "5m", "9m", "nothing that runs changes"),
        ({"max_series": 7}, "max_series", 10_000, 7, "takes effect with the next run"),
    ],
)
def test_an_update_says_each_field_and_what_it_means(
    change: dict[str, Any], field: str, old: object, new: object, meaning: str
) -> None:
    plan = planned([mission(**change)], deployed(mission()))
    [update] = plan.of(Update)
    [line] = update.fields
    assert (line.field, line.old, line.new) == (field, old, new)
    assert line.meaning.startswith(meaning)
    assert update.meaning == line.meaning
    restarts = meaning.startswith("identity")
    assert update.restarts == restarts
    assert update.target.since == (LATER if restarts else NOW)


def test_a_shorter_step_waits_for_the_end_of_what_the_old_forecasts_cover() -> None:
    before = mission(step="5m", forecast={"horizon": "90m"})
    state = deployed(before)
    [update] = planned([mission(step="3m", forecast={"horizon": "90m"})], state).of(Update)
    # 13:30:40, in whole steps of three minutes.
    until = datetime(2026, 3, 2, 13, 33, tzinfo=UTC)
    assert (update.restarts, update.waits, update.target.since) == (True, True, until)
    assert update.meaning == (
        "identity changes, forecasts restart at 2026-03-02 13:33 UTC, when those of the old step have ended"
    )
    plan = planned([mission(step="3m")], state)
    assert [run.at for run in first_runs(plan, now=LATER)] == [until + timedelta(seconds=30)]
    # A change while that is awaited does not shorten it, whatever it changes.
    waiting = applied(plan, state)
    for change in ({"promql": "x"}, {"step": "5m"}, {"description": "x"}):
        [update] = planned([mission(**{"step": "3m", **change})], waiting).of(Update)
        assert update.target.since == until
        assert update.waits == (change != {"description": "x"})


def test_every_field_of_a_mission_has_a_meaning_and_the_strongest_counts() -> None:
    [update] = planned([mission(promql="x", description="d")], deployed(mission())).of(Update)
    assert [change.field for change in update.fields] == ["promql", "description"]
    assert update.meaning == "identity changes, forecasts restart"


def test_without_prune_what_the_files_lack_stays_and_runs() -> None:
    state = deployed(mission("a"), mission("b"))
    plan = planned([mission("a")], state)
    assert plan.empty
    assert [c.name for c in plan.of(Leave)] == ["b"]


def test_prune_deletes_what_the_files_lack_with_its_empty_packs_and_nothing_of_another_project() -> None:
    other = applied(build_plan([mission("theirs")], EMPTY, project="web", now=NOW))
    mine = deployed(mission("a"), mission("b", forecast={"every": "2h"}))
    state = replace(mine, found={**mine.found, **other.found})
    plan = planned([mission("a")], state, prune=True)
    assert [c.name for c in plan.of(Delete)] == ["b"]
    assert [(s.action, s.schedule.slug) for s in plan.schedules] == [("delete", "at:shop:forecast:2h:00")]


def test_pruning_everything_is_refused() -> None:
    with pytest.raises(UsageError, match="would delete all"):
        planned([], deployed(mission()), prune=True)


def test_a_name_of_another_project_or_of_a_stranger_is_refused() -> None:
    state = deployed(mission("a"))
    stranger = Found.of("at_s", {"what": "ever"}, ["mine"])
    state = replace(state, found={**state.found, "s": stranger})
    plan = planned([mission("a"), mission("b"), mission("s")], state, project="web")
    assert [(r.name, r.reason) for r in plan.of(Refuse)] == [
        ("a", "the project 'shop' holds a mission of that name"),
        ("s", "the Variable at_s exists and is not ours"),
    ]
    assert [c.name for c in plan.of(Create)] == ["b"]


def test_a_variable_of_a_newer_version_is_refused() -> None:
    one = deployed(mission()).found["a-b"]
    assert one.deployed is not None
    newer = found(one.deployed, value={**to_value(one.deployed), "spec": 2})
    [refusal] = planned([mission()], State({"a-b": newer}, (), BASES)).of(Refuse)
    assert "newer version" in refusal.reason


@pytest.mark.parametrize("nonsense", [None, 3, "text", [], {}, {"mission": {"name": "a-b"}, "spec": 1}])
def test_a_variable_edited_into_nonsense_is_drift_and_keeps_its_packs(nonsense: object) -> None:
    state = deployed(mission())
    good = state.found["a-b"].deployed
    assert good is not None
    state = replace(state, found={"a-b": Found.of("at_a_b", nonsense, good.tags)})
    plan = planned([mission()], state)
    [update] = plan.of(Update)
    assert "at_a_b" in update.drift
    assert update.target.packs == good.packs
    assert plan.schedules == ()
    # Its schedules, if they are gone too, are no missions more that drifted.
    lost = planned([mission()], replace(state, schedules=()))
    assert (update.meaning, lost.counts["update"], lost.counts["drifted"]) == ("forecasts restart", 1, 1)
    assert len(lost.schedules) == 2


def test_an_edited_variable_is_drift_with_its_fields() -> None:
    state = deployed(mission())
    good = state.found["a-b"].deployed
    assert good is not None
    value = to_value(good)
    value["mission"]["promql"] = "down"
    plan = planned([mission()], replace(state, found={"a-b": found(good, value=value)}))
    [update] = plan.of(Update)
    assert update.drift == "edited by hand"
    assert [(f.field, f.old, f.new) for f in update.fields] == [("promql", "down", "up")]
    assert plan.counts["drifted"] == 1


@pytest.mark.parametrize("since", ["2027-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00", "1970-01-01T00:00:00Z"])
def test_a_since_that_was_edited_by_hand_is_put_right(since: str) -> None:
    state = deployed(mission())
    good = state.found["a-b"].deployed
    assert good is not None
    value = {**to_value(good), "since": since}
    plan = planned([mission()], replace(state, found={"a-b": found(good, value=value)}))
    [update] = plan.of(Update)
    assert (update.drift, update.fields, update.target.since) == ("edited by hand", (), LATER)
    assert (update.restarts, update.waits, update.meaning) == (True, False, "forecasts restart")
    assert len(first_runs(plan, now=LATER)) == 1


def test_a_pause_without_a_zone_breaks_its_mission_alone() -> None:
    state = deployed(mission(), mission("c"))
    good = state.found["a-b"].deployed
    assert good is not None
    value = {**to_value(good), "paused": {"until": "2026-03-02T12:00:00", "reason": ""}}
    plan = planned([mission(), mission("c")], replace(state, found={**state.found, "a-b": found(good, value=value)}))
    [update] = plan.of(Update)
    assert (update.name, update.drift) == ("a-b", "the Variable at_a_b holds a time without a zone")


def test_a_variable_that_holds_another_mission_is_broken() -> None:
    good = deployed(mission()).found["a-b"].deployed
    assert good is not None
    one = Found.of("at_other", to_value(good), good.tags)
    assert one.deployed is None
    assert "holds the mission 'a-b'" in one.error


@pytest.mark.parametrize("tags", [["anomaly-times", "project:shop"], ["anomaly-times", "project:shop", "paused"]])
def test_tags_that_were_taken_off_are_drift(tags: list[str]) -> None:
    state = deployed(mission())
    good = state.found["a-b"].deployed
    assert good is not None
    plan = planned([mission()], replace(state, found={"a-b": found(good, tags=tags)}))
    [update] = plan.of(Update)
    assert update.drift == "its tags were changed by hand"
    assert update.target == good
    assert plan.schedules == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"active": False}, "its schedule is paused"),
        ({"parameters": {}}, "its schedule has other parameters"),
        ({"timing": None}, "its schedule runs at other times"),
        ({"timing": Timing(timedelta(minutes=2))}, "its schedule runs at other times"),
    ],
)
def test_a_changed_schedule_is_put_right(change: dict[str, Any], words: str) -> None:
    state = deployed(mission())
    changed = tuple(replace(s, **change) if s.kind == "detect" else s for s in state.schedules)
    plan = planned([mission()], replace(state, schedules=changed))
    [patch] = plan.schedules
    assert (patch.action, patch.drift) == ("patch", words)
    assert patch.schedule == next(s for s in state.schedules if s.kind == "detect")


def test_a_schedule_that_is_gone_is_made_again() -> None:
    state = deployed(mission())
    plan = planned([mission()], replace(state, schedules=state.schedules[:1]))
    assert [(s.action, s.drift) for s in plan.schedules] == [("create", "its schedule is missing")]


def test_a_pack_without_members_loses_its_schedule_without_prune() -> None:
    orphan = PackSchedule("at:shop:detect:9m:00", "detect", Timing(timedelta(minutes=9)), id="x")
    state = deployed(mission())
    plan = planned([mission()], replace(state, schedules=(*state.schedules, orphan)))
    assert [(s.action, s.schedule.slug) for s in plan.schedules] == [("delete", "at:shop:detect:9m:00")]


def test_packs_hold_500_and_a_mission_stays_where_it_is() -> None:
    missions = [mission(f"m-{i:04d}") for i in range(PACK_SIZE + 10)]
    state = deployed(*missions)
    places = {name: one.packs for name, one in state.found.items()}
    assert sum(packs[0].endswith(":00") for packs in places.values()) == PACK_SIZE
    # Ten leave from the first pack; those in the second stay there, and new ones fill the gap.
    rest = missions[10:]
    plan = planned(rest, state, prune=True)
    assert [c.name for c in plan.changes if isinstance(c, Update)] == []
    state = applied(plan, state)
    plan = planned([*rest, mission("new")], state)
    [new] = plan.of(Create)
    assert new.target.packs == ("at:shop:forecast:1h:00", "at:shop:detect:1m:00")
    assert {name: state.found[name].packs for name in state.found} == {m.name: places[m.name] for m in rest}


def test_a_new_cadence_moves_a_mission_to_another_pack_of_that_kind_alone() -> None:
    state = deployed(mission("a"), mission("b"))
    plan = planned([mission("a", detect={"every": "5m"}), mission("b")], state)
    [update] = plan.of(Update)
    assert update.target.packs == ("at:shop:forecast:1h:00", "at:shop:detect:5m:00")
    assert update.meaning == "schedule only"
    assert [(s.action, s.schedule.slug) for s in plan.schedules] == [("create", "at:shop:detect:5m:00")]


def test_an_isolated_mission_has_schedules_of_its_own() -> None:
    state = deployed(mission("a"), mission("b", isolated=True))
    assert state.found["b"].packs == ("at:shop:forecast:1h:m-b", "at:shop:detect:1m:m-b")
    plan = planned([mission("a"), mission("b")], state)
    assert plan.of(Update)[0].target.packs == state.found["a"].packs
    assert [(s.action, s.schedule.slug) for s in plan.schedules] == [
        ("delete", "at:shop:detect:1m:m-b"),
        ("delete", "at:shop:forecast:1h:m-b"),
    ]


def test_a_cron_pack_runs_literally_in_its_time_zone() -> None:
    berlin = mission("a", forecast={"cron": "0 3 * * *", "horizon": "16h"}, timezone="Europe/Berlin")
    rome = mission("b", forecast={"cron": "0 3 * * *", "horizon": "16h"}, timezone="Europe/Rome")
    plan = build_plan([berlin, rome], EMPTY, project="shop", now=NOW)
    timings = [s.schedule.timing for s in plan.schedules if s.schedule.kind == "forecast"]
    assert sorted(timings, key=str) == [
        Timing(cron="0 3 * * *", timezone="Europe/Berlin"),
        Timing(cron="0 3 * * *", timezone="Europe/Rome"),
    ]


def test_phases_spread_packs_below_their_cadence() -> None:
    phases = {pack_phase(f"at:shop:detect:1m:{i:02d}", timedelta(minutes=1)) for i in range(30)}
    assert len(phases) > 15
    assert all(timedelta(0) <= phase < timedelta(minutes=1) for phase in phases)


def test_a_pause_survives_a_change_and_an_old_one_ends() -> None:
    state = deployed(mission())
    good = state.found["a-b"].deployed
    assert good is not None
    for until, stays in ((None, True), (LATER + timedelta(hours=1), True), (LATER - timedelta(hours=1), False)):
        paused = replace(good, paused=Pause(until, "why"))
        plan = planned([mission(description="x")], replace(state, found={"a-b": found(paused)}))
        [update] = plan.of(Update)
        assert (update.target.paused == paused.paused) is stays
        assert plan.counts["paused"] == stays


def test_missing_deployments_are_named_with_what_makes_them() -> None:
    with pytest.raises(PrefectError, match="no deployment for detect") as caught:
        planned([mission()], State(deployments={"forecast": "x"}))
    assert "at deploy" in caught.value.hint


def test_a_paused_deployment_is_noted() -> None:
    plan = planned([mission()], replace(deployed(mission()), resting=frozenset({"detect"})))
    assert plan.notes == ("the detect deployment is paused in Prefect: none of its schedules runs",)


def test_a_mission_too_large_is_refused_before_anything_is_done() -> None:
    with pytest.raises(MissionError, match="mission big takes"):
        planned([mission("a"), mission("big", description="x" * 5000)], EMPTY)


def test_the_fingerprint_moves_with_all_that_the_plan_depends_on_and_nothing_else() -> None:
    state = deployed(mission("a"), mission("b"))
    base = planned([mission("a")], state).fingerprint
    stranger = Found.of("at_zzz", {}, [])
    good = state.found["b"].deployed
    assert good is not None
    moved = [
        replace(state, found={**state.found, "b": found(replace(good, paused=Pause()))}),
        replace(state, found={**state.found, "a": Found.of("at_a", 1, good.tags)}),
        replace(state, schedules=state.schedules[:1]),
        replace(state, schedules=tuple(replace(s, active=False) for s in state.schedules)),
        replace(state, deployments={**BASES, "detect": "other"}),
    ]
    assert planned([mission("a")], replace(state, found={**state.found, "zzz": stranger})).fingerprint == base
    assert base not in {planned([mission("a")], other).fingerprint for other in moved}


def test_a_saved_plan_reads_back() -> None:
    one = mission("a", detect={"valid_range": [0, float("inf")]}, forecast={"model": {"type": "ets", "x": 1}})
    plan = planned([one], EMPTY)
    kept = read_saved(saved(plan))
    assert kept is not None
    assert (kept.project, kept.prune, kept.fingerprint, kept.wanted) == ("shop", False, plan.fingerprint, (one,))


def test_what_is_no_plan_and_what_is_a_broken_one_are_told_apart() -> None:
    assert read_saved(b"name: a\npromql: up\n") is None
    raw = saved(planned([mission()], EMPTY))
    for broken in (raw[:-5], raw.replace(b'"format": 1', b'"format": 2'), raw.replace(b'"promql"', b'"prom"')):
        with pytest.raises(UsageError, match="this plan"):
            read_saved(broken)


def test_new_missions_get_a_first_forecast_each_and_many_share_one() -> None:
    plan = build_plan([mission("a"), mission("b", step="5m")], EMPTY, project="shop", now=NOW)
    runs = first_runs(plan, now=NOW)
    first = datetime(2026, 3, 1, 12, 1, 30, tzinfo=UTC), datetime(2026, 3, 1, 12, 5, 30, tzinfo=UTC)
    assert [(run.parameters, run.at) for run in runs] == [({"mission": "a"}, first[0]), ({"mission": "b"}, first[1])]
    many = build_plan([mission(f"m-{i}") for i in range(20)], EMPTY, project="shop", now=NOW)
    names = sorted(f"m-{i}" for i in range(20))
    assert [(run.parameters, run.missions) for run in first_runs(many, now=NOW)] == [
        ({"mission": names}, "20 missions")
    ]


def test_minutely_missions_do_not_wait_for_the_first_cutoff_of_hourly_ones() -> None:
    missions = [mission(f"m-{i}", step="1h" if i % 2 else "1m") for i in range(20)]
    runs = first_runs(build_plan(missions, EMPTY, project="shop", now=NOW), now=NOW)
    assert [(run.at.isoformat(), len(run.parameters["mission"])) for run in runs] == [
        ("2026-03-01T12:01:30+00:00", 10),
        ("2026-03-01T13:00:30+00:00", 10),
    ]


def test_a_first_forecast_after_a_new_identity_waits_for_the_first_cutoff_that_counts() -> None:
    plan = build_plan([mission(step="5m")], deployed(mission()), project="shop", now=NOW)
    [run] = first_runs(plan, now=NOW)
    assert plan.of(Update)[0].target.since == NOW
    assert run.at == datetime(2026, 3, 1, 12, 5, 30, tzinfo=UTC)


def test_a_rerun_starts_no_first_forecast_that_was_asked_for_and_an_hour_later_none() -> None:
    missions = [mission(f"m-{i}") for i in range(10)]
    state = deployed(*missions)
    soon, later = NOW + timedelta(minutes=2), NOW + timedelta(minutes=5)
    asked = {one.name: datetime(2026, 3, 1, 12, 1, 30, tzinfo=UTC) for one in missions}
    again = build_plan(missions, state, project="shop", now=soon)
    assert first_runs(again, now=soon, asked=asked) == []
    # An apply that was cut off, or a run that failed: those that are left, now.
    del asked["m-3"], asked["m-4"]
    assert [(run.parameters, run.at) for run in first_runs(again, now=soon, asked=asked)] == [
        ({"mission": "m-3"}, soon),
        ({"mission": "m-4"}, soon),
    ]
    # Fewer missions, or another cadence, are nothing new.
    rest = [mission("m-0", forecast={"every": "2h"}), *missions[1:3], *missions[5:]]
    assert first_runs(build_plan(rest, state, project="shop", now=later), now=later, asked=asked) == []
    assert first_runs(planned(missions, state), now=LATER) == []


def test_a_mission_that_changes_again_needs_another_first_forecast() -> None:
    state = deployed(mission())
    asked = {"a-b": datetime(2026, 3, 1, 12, 1, 30, tzinfo=UTC)}
    now = NOW + timedelta(minutes=2)
    [run] = first_runs(build_plan([mission(promql="x")], state, project="shop", now=now), now=now, asked=asked)
    assert run.at == datetime(2026, 3, 1, 12, 3, 30, tzinfo=UTC)


def test_another_place_for_forecasts_starts_them_anew() -> None:
    plan = planned([mission(write="at_detection")], deployed(mission()))
    [update] = plan.of(Update)
    assert (update.restarts, update.meaning, update.target.since) == (True, "forecasts restart", LATER)
    assert [run.parameters for run in first_runs(plan, now=LATER)] == [{"mission": "a-b"}]


def test_forecasts_of_a_level_that_is_over_do_not_count_any_more() -> None:
    rebased = mission(forecast={"rebase": "2026-03-01T10:00Z"})
    state = deployed(mission())
    plan = planned([rebased], state)
    [update] = plan.of(Update)
    [line] = update.fields
    assert (line.field, line.old, line.new) == ("forecast.rebase", None, "2026-03-01T10:00:00Z")
    assert (update.restarts, update.meaning, update.target.since) == (True, "forecasts restart", LATER)
    assert [run.parameters for run in first_runs(plan, now=LATER)] == [{"mission": "a-b"}]

    # The same time by another clock is no change, and once all is of the new level the field goes without a trace.
    there = applied(plan, state)
    assert planned([mission(forecast={"rebase": "2026-03-01T11:00+01:00"})], there).empty
    [update] = planned([mission()], there).of(Update)
    assert (update.restarts, update.meaning, update.target.since) == (False, "model refits", LATER)


def test_a_paused_mission_gets_no_first_forecast() -> None:
    good = deployed(mission()).found["a-b"].deployed
    assert good is not None
    state = replace(deployed(mission()), found={"a-b": found(replace(good, paused=Pause()))})
    assert first_runs(build_plan([mission(promql="x")], state, project="shop", now=NOW), now=NOW) == []


def test_the_document_has_every_change_but_only_counts_what_stays() -> None:
    state = deployed(mission("a"), mission("b"), mission("c"))
    plan = planned([mission("a"), mission("b", promql="x"), mission("d")], state, prune=True)
    document = json.loads(json.dumps(to_document(plan), allow_nan=False))
    assert document["summary"] == plan.counts
    assert [(c["action"], c["name"]) for c in document["changes"]] == [
        ("update", "b"),
        ("delete", "c"),
        ("create", "d"),
    ]
    assert document["changes"][0]["fields"] == [
        {"field": "promql", "old": "up", "new": "x", "meaning": "identity changes, forecasts restart"}
    ]
    assert plan.of(Keep)[0].name == "a"


def level(name: str, value: float, *, cutoff: datetime, mission: Mission) -> Forecast:
    """A forecast of one flat series for the whole horizon of a mission."""
    grid = Grid(cutoff + mission.step, mission.step, mission.h)
    flat = np.full((1, grid.n), value)
    return Forecast((Labels.of({"__name__": name, "job": "a"}),), grid, cutoff, flat, flat - 1, flat + 1)


@pytest.mark.servers
@pytest.mark.parametrize(("old_step", "new_step"), [("5m", "1m"), ("4m", "3m"), ("1m", "5m")])
def test_after_a_change_of_step_no_time_has_a_forecast_of_the_old_one(
    old_step: str, new_step: str, vm_server: Server, tmp_path: Path
) -> None:
    name = f"step-{old_step}-{new_step}"
    now = Grid.ending(datetime.now(UTC), timedelta(minutes=1), 1).start
    old, new = (mission(name, step=step, offset="0s") for step in (old_step, new_step))
    before = build_plan([old], EMPTY, project="shop", now=now - timedelta(days=1))
    plan = build_plan([new], applied(before), project="shop", now=now)
    since = plan.of(Update)[0].target.since
    with open_store(Source(url=vm_server.url), state=tmp_path) as store:
        store.write_forecasts([(old, level("steps", 100.0, cutoff=old.last_time(now), mission=old))])
        first = first_cutoff(new, since)
        # One that the schedule made while the old step was awaited, and the first that counts.
        for cutoff in {new.last_time(now), first}:
            store.write_forecasts([(new, level("steps", 5.0, cutoff=cutoff, mission=new))])
        vm_server.flush()
        grid = Grid.covering(now, first + new.horizon, new.step)
        counted = store.read_forecasts([new], grid, since={name: since})[name].yhat
        assert set(counted[np.isfinite(counted)]) == {5.0}
        after = np.isfinite(counted[0, grid.index(first) + 1 :])
        assert after.all()
        # What stands in the way of beginning at once.
        at_once = store.read_forecasts([new], grid, since={name: now})[name].yhat
        assert (100.0 in at_once) == (new.step < old.step)
