"""What to change in a mission: gates tried on one replay, chosen on a part of the window, told of the rest."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from anomaly_times.backtest import Labelled, Trial, Variant, prepare, run
from anomaly_times.backtest.suggest import Suggestion, Traces, _Replay, suggest
from anomaly_times.errors import UsageError
from anomaly_times.mission import Incident, Mission
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.testing import MemoryStore
from tests.backtest.test_backtest import DAY, END, NOW, incident

STEP = timedelta(minutes=30)
DAYS = 12


def mission(**fields: object) -> Mission:
    model = {"model": "seasonal_naive", "lookback": "9d", "every": "6h"}
    spec = {"name": "load", "promql": "load", "step": "30m", "forecast": model, "detect": {"every": "30m"}}
    return Mission.model_validate({**spec, **fields})


def store(*, rises: tuple[float, ...] = (), dips: tuple[float, ...] = (), dip: float = -30.0) -> MemoryStore:
    """Two series with a daily rhythm; so many days before the end one is 60 higher for four hours, or dips for one."""
    grid = Grid.ending(END, STEP, 22 * 48)
    y = 100 + 30 * np.sin(grid.epoch_ms() / 86_400_000 * 2 * np.pi)
    y = y + np.random.default_rng(0).normal(0, 1, (2, grid.n))
    for days in rises:
        at = grid.index(END - days * DAY)
        y[0, at : at + 8] += 60
    for days in dips:
        at = grid.index(END - days * DAY)
        y[1, at : at + 2] += dip
    return MemoryStore({"load": Panel(tuple(Labels.of({"__name__": "load", "host": h}) for h in "ab"), grid, y)})


def replayed(wanted: Mission, source: MemoryStore, *incidents: Labelled, days: float = DAYS) -> tuple[Trial, Traces]:
    prepared = prepare([wanted], {"": source}, now=NOW, last=days * DAY, incidents=incidents)
    traces = Traces()
    [trial] = run(prepared, workers=1, watch=traces).trials
    return trial, traces


def suggested(
    wanted: Mission, source: MemoryStore, *incidents: Labelled, most: float | None = 1, days: float = DAYS
) -> Suggestion:
    prepared = prepare([wanted], {"": source}, now=NOW, last=days * DAY, incidents=incidents)
    traces = Traces()
    trials = run(prepared, workers=1, watch=traces).trials
    [found] = suggest(prepared, trials, traces, max_alerts_per_week=most, workers=1)
    return found


RISES, DIPS = (9.5, 6.5, 2.5), (11.2, 10.3, 8.4, 7.6, 5.3, 3.4, 1.6)


def rises() -> list[Labelled]:
    return [incident(f"rise {days:g}", END - days * DAY) for days in RISES]


@pytest.mark.parametrize(
    "gates",
    [
        {"direction": "above"},
        {"direction": "below", "min_deviation": 10},
        {"min_relative_deviation": "20%"},
        {"min_deviation": [5, 40]},
    ],
)
@pytest.mark.parametrize("now", [{}, {"direction": "above"}, {"missing": "anomaly", "valid_range": [0, 150]}])
def test_other_gates_on_one_replay_are_as_a_replay_under_them(gates: dict[str, object], now: dict[str, object]) -> None:
    source = store(rises=RISES, dips=(3.4, 1.6))
    panel = source.series["load"]
    assert isinstance(panel, Panel)
    panel.y[0, -100] = np.nan
    before = mission(detect={"every": "30m", **now})
    trial, traces = replayed(before, source, days=6)
    assert trial.scores is not None
    after = Variant("", {("detect", name): value for name, value in gates.items()}).of(before)
    told = _Replay.of(trial.mission, trial.scores, traces).under(after.detect)
    real, _ = replayed(after, source, days=6)
    assert real.scores is not None
    rows = [real.scores.labels.index(row) for row in told.labels]
    with np.errstate(invalid="ignore"):
        over = told.score > 1
        assert over.any()
        np.testing.assert_array_equal(over, real.scores.score[rows] > 1)
        assert (real.scores.score > 1).sum() == over.sum()
    np.testing.assert_array_equal(told.score[over], real.scores.score[rows][over])
    assert told.reason is not None
    assert real.scores.reason is not None
    np.testing.assert_array_equal(told.reason[over], real.scores.reason[rows][over])


def test_false_alarms_go_and_incidents_stay() -> None:
    found = suggested(mission(), store(rises=RISES, dips=DIPS), *rises(), most=2)
    before, after = found.before[0], found.after[0]
    assert found.met
    assert after.per_week <= 2 < before.per_week
    assert after.found == before.found
    assert [name for name, _ in sorted(after.found)] == ["rise 6.5", "rise 9.5"]
    # What it does where it had no say.
    assert (found.after[1].start, found.after[1].end) == (END - 4 * DAY + STEP, END)
    assert {name for name, _ in found.after[1].found} == {"rise 2.5"}
    assert found.after[1].alerts == 1
    # As it would be live.
    changed = Variant("", found.fields).of(found.mission)
    real, _ = replayed(changed, store(rises=RISES, dips=DIPS), *rises())
    assert real.alerts is not None
    assert len(real.alerts.found) == found.after[0].alerts + found.after[1].alerts


def test_what_keeps_to_the_budget_is_left_as_it_is_and_no_forecast_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    source = store(rises=RISES)
    prepared = prepare([mission()], {"": source}, now=NOW, last=DAYS * DAY, incidents=rises())
    traces = Traces()
    trials = run(prepared, workers=1, watch=traces).trials
    made: list[int] = []
    monkeypatch.setattr("anomaly_times.backtest.suggest.replay", lambda jobs, **_: [made.append(len(jobs))][:0])
    [found] = suggest(prepared, trials, traces, max_alerts_per_week=10, workers=1)
    assert made == [0]
    assert (found.fields, found.met, found.failure) == ({}, True, "")
    assert found.after == found.before


def test_no_incident_is_cut_in_two() -> None:
    border = END - 4 * DAY
    long = Labelled(Incident(name="long", start=border - 0.125 * DAY, end=border + 0.75 * DAY))
    found = suggested(mission(), store(rises=(4.0,)), long)
    assert found.before[1].start == long.incident.start
    assert [found.before[0].found | found.before[0].missed, {name for name, _ in found.before[1].found}] == [
        frozenset(),
        {"long"},
    ]


def test_a_silent_mission_is_not_made_louder_for_nothing() -> None:
    found = suggested(mission(), store(), incident("nothing", END - 6.5 * DAY), most=20)
    assert (found.fields, found.met) == ({}, True)
    assert found.tried > 50


def test_a_level_stays_a_level() -> None:
    strict = mission(forecast={"model": "seasonal_naive", "lookback": "9d", "every": "6h", "level": 95})
    found = suggested(strict, store(), most=1)
    assert found.before[0].per_week > 1
    assert found.met
    assert ("detect", "alerts_per_week") not in found.fields
    assert Variant("", found.fields).of(strict).forecast.level is not None


@pytest.mark.parametrize("labelled", [0, 1])
def test_with_fewer_than_two_incidents_no_side_is_taken_for_unimportant(labelled: int) -> None:
    found = suggested(mission(), store(rises=RISES, dips=DIPS), *rises()[:labelled], most=1)
    assert found.met
    assert len(found.after[0].found) == labelled
    assert ("detect", "direction") not in found.fields
    none = [note.startswith("no labelled incident lies where the setting was chosen") for note in found.notes]
    assert any(none) == (labelled == 0)


def test_a_budget_that_cannot_be_kept_to_is_said_with_the_nearest_setting() -> None:
    many = (11.5, 10.5, 9.5, 8.5, 7.5, 6.5, 5.5)
    found = suggested(mission(), store(rises=many), *(incident(f"rise {d:g}", END - d * DAY) for d in many), most=0.5)
    assert not found.met
    assert found.after[0].found == found.before[0].found
    assert 0.5 < found.after[0].per_week <= found.before[0].per_week
    assert found.failure.startswith(f"load: none of {found.tried} settings keeps to the budget and finds what must be")
    assert f"{found.after[0].per_week:.2f} alerts a week, and 0.5 are allowed" in found.failure


def test_what_must_be_found_and_cannot_be_is_named() -> None:
    asked = mission(backtest={"must_detect": ["nothing"], "max_alerts_per_week": 20})
    found = suggested(asked, store(), incident("nothing", END - 6.5 * DAY), most=None)
    assert not found.met
    assert "the nearest: nothing not found" in found.failure


@pytest.mark.parametrize(
    ("most", "days", "message"),
    [
        (None, DAYS, "--suggest needs a budget, and mission load has none"),
        (1, 2, "--suggest needs a window of 3d at least, and this one is 2d"),
    ],
)
def test_what_nothing_can_be_suggested_from_is_refused(most: float | None, days: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        suggested(mission(), store(), most=most, days=days)


def test_where_steps_are_weeks_a_window_is_three_of_them_and_two_are_chosen_on() -> None:
    week = timedelta(weeks=1)
    grid = Grid.ending(END, week, 60)
    y = 100 + np.random.default_rng(0).normal(0, 1, (1, grid.n))
    source = MemoryStore({"load": Panel((Labels.of({"__name__": "load"}),), grid, y)})
    model = {"model": "seasonal_naive", "lookback": "200d", "every": "1w", "horizon": "1w"}
    weekly = mission(step="1w", forecast=model, detect={"every": "1w"}, write="at_detection")
    for weeks in (1, 2):
        with pytest.raises(UsageError, match=f"needs a window of 21d at least, and this one is {7 * weeks}d"):
            suggested(weekly, source, days=7 * weeks)
    found = suggested(weekly, source, days=21, most=0.1)
    assert [round((part.end - part.start) / week) for part in found.before] == [1, 0]
    assert any(note.startswith("it was chosen on 2 weeks") for note in found.notes), found.notes


def test_a_budget_of_less_than_one_alert_on_what_is_chosen_on_is_said_to_be() -> None:
    # Two thirds of ten days are 6.7, so one alert is 1.05 a week.
    found = suggested(mission(), store(rises=(6.5,)), incident("rise", END - 6.5 * DAY), most=1, days=10)
    assert not found.met
    assert found.after[0].alerts == 1
    assert "it was chosen on 0.95 weeks, in which 1 a week allows no alert at all" in found.notes


def test_a_setting_that_does_worse_on_the_rest_is_said_to() -> None:
    # All dips lie in the last third, where the setting is not chosen.
    quiet = store(rises=(9.5, 8.5), dips=(3.8, 3.2, 2.6, 2.1, 1.6, 1.1, 0.6))
    found = suggested(mission(), quiet, most=4)
    assert found.fields == {}
    assert any(note.startswith("in the rest of the window there are") for note in found.notes), found.notes
