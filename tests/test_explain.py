"""Why a score is what it is: told from what is stored, and scored once more from it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_times.errors import MissionError, UsageError
from anomaly_times.explain import Account, Explanation, explain
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores.parquet import FolderStore
from anomaly_times.testing import MemoryStore

STEP = timedelta(minutes=10)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = NOON + timedelta(seconds=40)
HOUR = timedelta(hours=1)


def mission(**more: Any) -> Mission:
    spec = {"name": "web", "promql": "requests", "step": "10m", "forecast": {"model": "seasonal_naive"}}
    return Mission.model_validate({**spec, "detect": {"every": "10m", **more}})


def put(folder: Path, b: Callable[[np.ndarray], None] = lambda y: None) -> FolderStore:
    """Two weeks of two series with a daily rhythm up to noon; `b` is changed."""
    grid = Grid.ending(NOON, STEP, 14 * 144)
    y = 100 + 30 * np.sin(np.arange(grid.n) / 144 * 2 * np.pi) + np.random.default_rng(0).normal(0, 1, (2, grid.n))
    b(y[1])
    folder.mkdir(exist_ok=True)
    lines = ["ds,job,value"]
    for job, row in zip("ab", y, strict=True):
        lines += [
            f"{grid.start + i * STEP:%Y-%m-%dT%H:%M:%SZ},{job},{value!r}"
            for i, value in enumerate(row.tolist())
            if value == value
        ]
    (folder / "requests.csv").write_text("\n".join(lines))
    return FolderStore(Source(folder=folder))


def passed(store: FolderStore, what: Mission) -> None:
    """Forecasts of ten and of eleven, and the scores of two hours."""
    stores = {"": store}
    for hours in (2, 1):
        [made], _ = write_forecasts(forecast_pass([what], stores, now=NOW - hours * HOUR), stores)
        assert made.error is None
    [scored], _ = write_scores(detect_pass([what], stores, now=NOW, window=2 * HOUR), stores)
    assert scored.error is None


def up(y: np.ndarray) -> None:
    y[-6:] += 60


def down(y: np.ndarray) -> None:
    y[-1] -= 40


def gone(y: np.ndarray) -> None:
    y[-1] = np.nan


def told(tmp_path: Path, what: Mission, b: Callable[[np.ndarray], None], **more: Any) -> Account:
    store = put(tmp_path / "metrics", b)
    passed(store, what)
    return explain(what, store, now=NOW, **more)


def only(account: Account) -> Explanation:
    [one] = account.series
    return one


def test_what_is_stored_explains_the_score_exactly(tmp_path: Path) -> None:
    account = told(tmp_path, mission(), up)
    one = only(account)
    assert (account.at, account.others, account.notes) == (NOON, 1, ())
    assert one.labels == Labels.of({"__name__": "requests", "job": "b"})
    assert one.reason == "level shift"
    assert one.score == one.again
    assert not one.differs
    assert one.gates == ()
    assert one.value - one.yhat == pytest.approx(60, abs=6)
    assert one.value == one.values[-1]
    strongest = max(one.channels, key=lambda channel: channel.ratio)
    assert strongest.name == "point"
    assert strongest.ratio == pytest.approx(one.score)
    assert [channel.name for channel in one.channels] == ["point", "sustained", "roughness", "drift", "flat"]
    assert one.yesterday == pytest.approx(one.yhat, abs=4)
    assert one.last_week == pytest.approx(one.yhat, abs=6)
    assert one.cutoff == NOON - HOUR
    assert one.incident > 1


def test_since_when_it_is_so_is_told(tmp_path: Path) -> None:
    account = told(tmp_path, mission(), up)
    one, began = only(account), NOON - 5 * STEP
    assert (one.over, one.over_since, one.incident_since) == (6, began, began)
    assert (account.alert.over, account.alert.began, account.alert.ended) == (1, began, None)
    assert account.alert.fired == began + timedelta(minutes=5)


def test_an_alert_that_is_over_and_still_held_says_since_when(tmp_path: Path) -> None:
    def spell(y: np.ndarray) -> None:
        y[-6:-3] += 60

    what = mission(evidence="point")
    account = told(tmp_path, what, spell)
    assert account.alert.over == 0
    assert account.alert.ended == NOON - 3 * STEP
    before = explain(what, put(tmp_path / "metrics", spell), now=NOW, at=NOON - 6 * STEP)
    assert before.alert.fired is None


def test_another_time_is_explained_by_what_was_known_then(tmp_path: Path) -> None:
    account = told(tmp_path, mission(), up, at=NOON - HOUR + timedelta(minutes=3))
    assert account.at == NOON - HOUR
    assert only(account).cutoff == NOON - 2 * HOUR
    assert only(account).score < 1


@pytest.mark.parametrize(
    ("detect", "b", "gate", "found", "asked"),
    [
        ({"direction": "above"}, down, "direction", -1.0, 1.0),
        ({"direction": "below"}, up, "direction", 1.0, -1.0),
        ({"min_deviation": 200}, up, "min_deviation", pytest.approx(60, abs=6), 200),
        ({"min_deviation": [200, 0]}, down, "min_deviation", pytest.approx(40, abs=6), 200),
        ({"min_relative_deviation": "90%"}, up, "min_relative_deviation", pytest.approx(0.6, abs=0.1), 0.9),
    ],
)
def test_the_gate_that_zeroed_a_score_is_named_with_its_numbers(
    tmp_path: Path, detect: dict[str, Any], b: Callable[[np.ndarray], None], gate: str, found: float, asked: float
) -> None:
    one = only(told(tmp_path, mission(evidence="point", **detect), b, selector='{job="b"}'))
    assert one.score == 0
    [closed] = one.gates
    assert (closed.gate, closed.channel) == (gate, "point")
    assert closed.found == found
    assert closed.asked == asked
    assert closed.without > 1
    assert closed.reason == "point"
    assert one.channels[0].closed == (gate,)
    assert not one.differs


def test_two_gates_are_both_named(tmp_path: Path) -> None:
    what = mission(evidence="point", direction="above", min_deviation=200)
    one = only(told(tmp_path, what, down, selector='{job="b"}'))
    assert [gate.gate for gate in one.gates] == ["direction", "min_deviation"]


def test_a_gate_of_evidence_over_time_is_held_against_what_it_says(tmp_path: Path) -> None:
    one = only(told(tmp_path, mission(min_deviation=200), up, selector='{job="b"}'))
    assert one.score == 0
    shut = {channel.name: channel.closed for channel in one.channels}
    assert shut["sustained"] == shut["drift"] == ("min_deviation",)
    assert shut["flat"] == ()


def test_an_open_gate_is_not_named(tmp_path: Path) -> None:
    one = only(told(tmp_path, mission(direction="above", min_deviation=5), up))
    assert one.gates == ()
    assert one.score > 1


def test_a_value_that_cannot_be_is_told_with_the_range(tmp_path: Path) -> None:
    one = only(told(tmp_path, mission(valid_range=[0, 110], evidence="point"), up))
    assert (one.score, one.reason) == (1.01, "out of range")
    [closed] = one.gates
    assert (closed.gate, closed.asked) == ("valid_range", 110)
    assert closed.found == pytest.approx(one.value)
    assert closed.without > 1.01


@pytest.mark.parametrize(
    ("missing", "score", "reason"),
    [("ignore", None, ""), ("zero", pytest.approx(15, abs=14), "point"), ("anomaly", 2.0, "missing")],
)
def test_what_a_missing_value_means_is_told(tmp_path: Path, missing: str, score: float | None, reason: str) -> None:
    one = only(told(tmp_path, mission(missing=missing, evidence="point"), gone, selector='{job="b"}'))
    assert [gate.gate for gate in one.gates] == ["missing"]
    assert np.isnan(one.value)
    assert np.isfinite(one.yhat)
    assert np.isnan(one.score) if score is None else one.score == score
    assert one.reason == reason


def test_a_value_that_came_late_shows_as_a_difference(tmp_path: Path) -> None:
    what = mission(evidence="point")
    account = told(tmp_path, what, gone, selector='{job="b"}')
    assert np.isnan(only(account).score)
    assert not only(account).differs
    late = explain(what, put(tmp_path / "metrics", up), now=NOW, selector='{job="b"}')
    assert np.isnan(only(late).score)
    assert only(late).again > 1
    assert only(late).differs


def test_a_value_that_changed_shows_as_a_difference(tmp_path: Path) -> None:
    what = mission(evidence="point")
    told(tmp_path, what, up)
    changed = only(explain(what, put(tmp_path / "metrics"), now=NOW, selector='{job="b"}'))
    assert changed.score > 1 > changed.again
    assert changed.differs


def test_without_the_definition_what_is_stored_is_told(tmp_path: Path) -> None:
    what = mission()
    store = put(tmp_path / "metrics", up)
    passed(store, what)
    forecast = {"every": "10m", "horizon": "10m"}
    stand_in = Mission.model_validate({"name": "web", "promql": "vector(0)", "step": "10m", "forecast": forecast})
    account, full = (explain(each, store, now=NOW, known=each is what) for each in (stand_in, what))
    one, whole = only(account), only(full)
    assert account.notes == ("the definition of web is not at hand: neither values nor gates can be told",)
    assert (one.score, one.reason, one.yhat, one.cutoff) == (whole.score, whole.reason, whole.yhat, whole.cutoff)
    # A folder keeps the value beside the score.
    assert one.value == pytest.approx(whole.value)
    assert np.isnan(one.again)
    assert np.isnan(one.yesterday)
    assert [each.name for each in one.channels] == [each.name for each in whole.channels]
    assert [each.ratio for each in one.channels] == pytest.approx([each.ratio for each in whole.channels])


def test_the_worst_series_comes_first_and_the_others_are_counted(tmp_path: Path) -> None:
    account = told(tmp_path, mission(), up, top=0)
    assert [row.labels.get("job") for row in account.series] == ["b", "a"]
    assert account.series[0].score > account.series[1].score
    assert account.others == 0


def test_series_are_chosen_by_the_labels_of_source_and_of_results(tmp_path: Path) -> None:
    store, what = put(tmp_path / "metrics", up), mission()
    passed(store, what)
    for selector in ('requests{job="a"}', '{job=~"a|x"}', '{metric="requests",mission="web",job="a"}'):
        assert only(explain(what, store, now=NOW, selector=selector)).labels.get("job") == "a"
    with pytest.raises(MissionError, match="no series of web that was forecast or scored then matches") as caught:
        explain(what, store, now=NOW, selector='{job="c"}')
    assert caught.value.hint == 'there is e.g. {__name__="requests",job="a"}'
    with pytest.raises(UsageError, match="--series: 'sum\\(x\\)' is no label selector"):
        explain(what, store, now=NOW, selector="sum(x)")


def test_a_time_without_scores_says_what_was_there(tmp_path: Path) -> None:
    store, what = put(tmp_path / "metrics", up), mission()
    with pytest.raises(MissionError, match=r"web has no score up to 2026-03-01 12:00 UTC in .*: no forecast is stored"):
        explain(what, store, now=NOW)
    passed(store, what)
    with pytest.raises(
        MissionError, match="no series has a value then; its last score before is of 2026-03-01 12:00"
    ) as c:
        explain(what, store, now=NOW, at=NOON + STEP)
    assert c.value.hint == "--at 2026-03-01T12:00:00Z explains that one"
    with pytest.raises(MissionError, match="at 2026-03-01 18:00 UTC: no forecast is stored for that time; its last"):
        explain(what, store, now=NOON + 9 * HOUR, at=NOON + 6 * HOUR)
    assert explain(what, store, now=NOON + 9 * HOUR).at == NOON


def test_what_was_scored_before_a_change_says_so(tmp_path: Path) -> None:
    account = told(tmp_path, mission(), up, since=NOON + HOUR)
    assert account.notes == ("web was changed at 2026-03-01 13:00 UTC: what it says now may not be what scored",)
    assert only(account).score == only(account).again


def test_the_same_time_of_day_is_that_of_the_clock(tmp_path: Path) -> None:
    # Clocks in Berlin went forward on 29 March 2026: noon there was an hour earlier in UTC than the day before.
    noon = datetime(2026, 3, 29, 10, tzinfo=UTC)
    grid = Grid.ending(noon, STEP, 15 * 144)
    panel = Panel.of([Labels.of({"__name__": "requests"})], grid, np.arange(grid.n, dtype=float)[None])
    store = MemoryStore({"requests": panel})
    what = Mission.model_validate(
        {**mission().model_dump(mode="json", exclude_defaults=True), "timezone": "Europe/Berlin"}
    )
    stores, now = {"": store}, noon + timedelta(seconds=40)
    write_forecasts(forecast_pass([what], stores, now=now - HOUR), stores)
    write_scores(detect_pass([what], stores, now=now), stores)
    one = only(explain(what, store, now=now))
    assert one.value - one.yesterday == 23 * 6
    assert one.value - one.last_week == 6 * 24 * 6 + 23 * 6
