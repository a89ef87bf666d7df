"""What missions would have done: windows, alternatives, accuracy, gates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times.backtest import Backtest, Labelled, Trial, Variant, prepare, run
from anomaly_times.errors import MissionError, NoSeriesError, UsageError
from anomaly_times.mission import Incident, Mission
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.testing import MemoryStore

STEP, HOUR, DAY = timedelta(minutes=10), timedelta(hours=1), timedelta(days=1)
END = datetime(2026, 3, 15, tzinfo=UTC)
NOW = END + timedelta(seconds=30)
FAULT = END - 8 * HOUR
THRESHOLD, LAST_WEEK = (
    Variant("a plain threshold", yardstick="threshold"),
    Variant("the same time last week", yardstick="last_week"),
)


def mission(**fields: object) -> Mission:
    model = {"forecast": {"model": "seasonal_naive", "lookback": "9d"}}
    return Mission.model_validate({"name": "load", "promql": "load", "step": "10m", **model, **fields})


def store(*, size: float = 60.0) -> MemoryStore:
    """Two series with a daily rhythm over fifteen days; the first is off by `size` for two hours at `FAULT`."""
    grid = Grid.ending(END, STEP, 15 * 144)
    y = 100 + 30 * np.sin(grid.epoch_ms() / 86_400_000 * 2 * np.pi)
    y = y + np.random.default_rng(0).normal(0, 2, (2, grid.n))
    at = grid.index(FAULT)
    y[0, at : at + 12] += size
    return MemoryStore({"load": Panel(tuple(Labels.of({"__name__": "load", "host": h}) for h in "ab"), grid, y)})


def incident(name: str, start: datetime, match: str = "") -> Labelled:
    return Labelled(Incident(name=name, start=start, end=start + 2 * HOUR, match=match))


def backtest(*missions: Mission, source: MemoryStore | None = None, **how: object) -> Backtest:
    how = {"now": NOW, "last": 3 * DAY, **how}
    return run(prepare(missions or [mission()], {"": source or store()}, **how), workers=1)  # type: ignore[arg-type]


def only(result: Backtest) -> Trial:
    [trial] = result.trials
    return trial


def test_a_backtest_tells_alerts_incidents_accuracy_and_cost() -> None:
    wanted = [incident("crowd", FAULT, '{host="a"}'), incident("nothing", FAULT - DAY), incident("old", END - 20 * DAY)]
    trial = only(backtest(mission(incidents=[{"name": "own", "start": FAULT, "end": FAULT + HOUR}]), incidents=wanted))
    assert trial.grid == Grid.ending(END, STEP, 3 * 144)
    assert trial.alerts is not None
    [alert] = trial.alerts.found
    assert FAULT <= alert.start <= alert.fired <= FAULT + HOUR
    assert (alert.worst.labels.get("host"), alert.worst.direction) == ("a", "above")
    assert alert.worst.deviation == pytest.approx(60, abs=10)
    assert trial.alerts.per_week == pytest.approx(7 / 3)
    assert trial.verdict is not None
    assert [(each.name, each.found) for each in trial.verdict.outcomes] == [
        ("nothing", False),
        ("crowd", True),
        ("own", True),
    ]
    assert trial.verdict.false_alarms == ()
    assert trial.verdict.outside == 1
    assert "outside of the window, and not counted: 1 of the labelled incidents" in trial.notes
    assert trial.accuracy is not None
    assert trial.accuracy.mase == pytest.approx(1, abs=0.05)  # it is the seasonal naive forecast
    assert trial.accuracy.coverage > 0.95
    assert trial.accuracy.unforecast == 0
    assert trial.cost is not None
    assert (trial.cost.forecasts, trial.cost.detections, trial.cost.queries) == (24, 1440, 1464)
    assert trial.cost.points == 2 * (24 * 9 * 144 + 1440 * 4)
    assert trial.cost.cpu_seconds > 0


def test_accuracy_is_measured_against_the_value_a_day_before() -> None:
    source = store(size=0)
    panel = source.series["load"]
    assert isinstance(panel, Panel)
    # The last day is the one before plus 3, and the forecast is that one plus 1.
    panel.y[:, -144:] = panel.y[:, -288:-144] + 3
    trial = only(backtest(source=source, last=DAY))
    assert trial.scores is not None
    assert trial.accuracy is not None
    scores = trial.scores
    error = np.abs(scores.y - scores.yhat).sum(axis=1) / (3 * 144)
    assert trial.accuracy.mase == pytest.approx(error.mean())
    assert trial.accuracy.wql == pytest.approx(np.abs(scores.y - scores.yhat).sum() / np.abs(scores.y).sum())


def test_alternatives_run_on_one_reading_and_a_threshold_that_does_as_well_is_named() -> None:
    source = store(size=400)
    read: list[Grid] = []
    answer = source.read

    def counted(promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        read.append(grid)
        return answer(promql, grid, max_series=max_series)

    source.read = counted  # type: ignore[method-assign]
    variants = [Variant("level=90", {("forecast", "level"): 90.0}), THRESHOLD, LAST_WEEK]
    patient = mission(alert={"for": "30m"})
    result = backtest(patient, source=source, variants=variants, incidents=[incident("crowd", FAULT)])
    assert len(read) == 1
    assert list(result.alternatives) == [each.name for each in variants]
    loud, threshold, _ = (trials[0] for trials in result.alternatives.values())
    assert loud.mission.forecast.level == 90
    assert loud.alerts is not None
    own = only(result).alerts
    assert own is not None
    assert len(loud.alerts.found) > len(own.found)
    assert threshold.verdict is not None
    assert threshold.verdict.found == 1
    assert "a plain threshold" in result.needless(0)


def test_without_labelled_incidents_no_model_is_called_needless() -> None:
    result = backtest(source=store(size=400), variants=[THRESHOLD])
    assert result.needless(0) == ()


def test_a_threshold_that_misses_what_the_model_finds_does_not_make_it_needless() -> None:
    # At its trough the rhythm hides what the model sees.
    result = backtest(variants=[THRESHOLD], incidents=[incident("crowd", FAULT)])
    assert only(result).verdict is not None
    assert result.needless(0) == ()


def test_a_sensitivity_of_one_kind_takes_the_place_of_the_other() -> None:
    strict = mission(forecast={"level": 99.9, "lookback": "9d"})
    budget = Variant("alerts_per_week=2", {("detect", "alerts_per_week"): 2.0}).of(strict)
    assert (budget.forecast.level, budget.detect.alerts_per_week) == (None, 2)
    level = Variant("level=99", {("forecast", "level"): 99.0}).of(mission(detect={"alerts_per_week": 2}))
    assert (level.forecast.level, level.detect.alerts_per_week) == (99, 0.5)
    with pytest.raises(MissionError, match=r"mission load cannot be run with horizon=1s: the horizon must cover one"):
        Variant("horizon=1s", {("forecast", "horizon"): "1s"}).of(mission())


def test_the_gate_names_what_is_not_as_asked_for() -> None:
    gate = {"max_alerts_per_week": 1, "must_detect": ["crowd", "nothing", "unheard-of"]}
    wanted = [incident("crowd", FAULT), incident("nothing", FAULT - DAY)]
    trial = only(backtest(mission(backtest=gate), incidents=wanted))
    assert trial.broken == (
        "2.33 alerts a week, and 1 are allowed",
        "nothing must be found, and is not",
        "unheard-of must be found, and is no incident of this window",
    )
    kept = only(backtest(mission(backtest={"max_alerts_per_week": 3, "must_detect": ["crowd"]}), incidents=wanted))
    assert kept.broken == ()


def test_one_mission_that_fails_stops_no_other() -> None:
    source = store()
    gone = mission(name="gone", promql="gone")
    trials = backtest(gone, mission(), source=source).trials
    assert isinstance(trials[0].error, NoSeriesError)
    assert trials[1].alerts is not None


@pytest.mark.parametrize(
    ("window", "note"),
    [
        ({"last": 6 * HOUR}, "the window of 6h is shorter than a day, and tells nothing of a week"),
        ({"last": 12 * DAY}, "the history begins 3d before the window: the first forecasts knew less"),
    ],
)
def test_what_the_figures_cannot_carry_is_said(window: dict[str, object], note: str) -> None:
    trial = only(backtest(**window))
    assert any(line.startswith(note) for line in trial.notes), trial.notes


def test_a_season_that_the_window_does_not_hold_and_holes_in_it_are_said() -> None:
    source = store()
    panel = source.series["load"]
    assert isinstance(panel, Panel)
    panel.y[:, -200:-188] = np.nan
    panel.y[0, -100:-50] = np.nan
    trial = only(backtest(mission(season="1w"), source=source))
    assert "the window of 3d is shorter than the season of 1w: what comes once in a season may not have come" in (
        note.replace("7d", "1w") for note in trial.notes
    )
    assert "for 2h of the window no series has a value, so nothing is scored then" in trial.notes


def test_a_window_before_all_data_has_no_answer() -> None:
    trial = only(backtest(last=None, start=END - 60 * DAY, end=END - 50 * DAY))
    assert isinstance(trial.error, NoSeriesError)


def test_a_window_after_the_last_value_has_no_answer() -> None:
    source = store()
    trial = only(backtest(source=source, now=NOW + 3 * DAY, last=DAY))
    assert isinstance(trial.error, NoSeriesError)
    assert "has a value" in trial.error.message or "has no value" in trial.error.message


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no point of mission load"):
        backtest(start=END + DAY, last=None)


def test_more_points_than_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_times.backtest.MAX_POINTS", 800)
    trial = only(backtest())
    assert isinstance(trial.error, MissionError)
    assert trial.error.message == "mission load has 864 points in this window, and 800 fit into memory"
