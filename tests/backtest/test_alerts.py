"""Alerts as a rule engine would have fired them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times.backtest.alerts import Alert, find_alerts
from anomaly_times.evidence import DRIFT, FLAT, POINT
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Scores

BEGIN = datetime(2026, 3, 15, 22, tzinfo=UTC)  # a Sunday
STEP = timedelta(minutes=5)
_ = np.nan


def mission(**alert: object) -> Mission:
    fields = {"name": "m", "promql": "m", "step": "5m", "timezone": "Europe/Berlin", "detect": {"every": "5m"}}
    return Mission.model_validate({**fields, "alert": alert})


def scores(*rows: list[float], reason: int = POINT, step: timedelta = STEP) -> Scores:
    """Series `a`, `b`, … with these scores; values lie 10 · score over a forecast of 100."""
    score = np.array(rows, dtype=np.float64)
    labels = tuple(Labels.of({"host": chr(ord("a") + i)}) for i in range(len(rows)))
    yhat = np.full(score.shape, 100.0)
    kind = np.where(np.isfinite(score), float(reason), np.nan)
    return Scores(labels, Grid(BEGIN, step, score.shape[1]), yhat + 10 * score, yhat, yhat, yhat, score, reason=kind)


def at(point: int) -> datetime:
    return BEGIN + point * STEP


def only(found: tuple[Alert, ...]) -> Alert:
    [alert] = found
    return alert


def test_an_alert_fires_when_a_series_has_been_over_for_that_long() -> None:
    found = find_alerts(mission(**{"for": "10m"}), scores([0, 2, 3, 4, 5, 0]))
    alert = only(found.found)
    assert (alert.start, alert.fired, alert.end) == (at(1), at(3), at(4))
    assert found.brief == 0
    assert found.firing == (timedelta(minutes=10),)


@pytest.mark.parametrize(("lasts", "fires"), [("0s", True), ("4m", True), ("5m", False), ("1h", False)])
def test_one_point_stands_for_a_step_and_no_longer(lasts: str, fires: bool) -> None:
    found = find_alerts(mission(**{"for": lasts}), scores([0, 0, 2, 0, 0]))
    assert len(found.found) == fires
    assert found.brief == (not fires)


def test_an_hourly_score_is_over_for_an_hour() -> None:
    hourly = Mission.model_validate({"name": "m", "promql": "m", "step": "1h"})
    alert = only(find_alerts(hourly, scores([0, 2, 0], step=timedelta(hours=1))).found)
    assert alert.fired == BEGIN + timedelta(hours=1, minutes=5)


def test_missing_scores_are_bridged_for_two_cadences_and_the_offset() -> None:
    bridged = find_alerts(mission(**{"for": "20m"}), scores([0, 2, _, _, _, 2, 0, 0]))
    assert only(bridged.found).fired == at(5)
    apart = find_alerts(mission(**{"for": "20m"}), scores([0, 2, _, _, _, _, 2, 0]))
    assert apart.found == ()


@pytest.mark.parametrize(("keep", "quiet"), [("1h", 12), ("15m", 3), ("0s", 0)])
def test_what_comes_back_within_keep_firing_for_is_the_same_alert(keep: str, quiet: int) -> None:
    made = mission(keep_firing_for=keep)
    again = [2.0, 2.0, 2.0, *([0.0] * quiet), 2.0, 2.0, 2.0]
    assert only(find_alerts(made, scores(again)).found).end == at(quiet + 5)
    later = [2.0, 2.0, 2.0, *([0.0] * (quiet + 1)), 2.0, 2.0, 2.0]
    assert [each.fired for each in find_alerts(made, scores(later)).found] == [at(1), at(quiet + 5)]


def test_points_fire_with_the_last_of_them_and_begin_with_the_first() -> None:
    made = mission(points="3 of 5")
    alert = only(find_alerts(made, scores([0, 2, 0, 2, 0, 3, 0, 0, 0])).found)
    assert (alert.start, alert.fired, alert.end) == (at(1), at(5), at(5))
    assert find_alerts(made, scores([0, 2, 0, 2, 0, 0, 3, 0, 0])).found == ()
    # A point without a score is no odd one, and does not make room for an older one.
    assert find_alerts(made, scores([0, 2, 0, 2, _, _, 3, 0, 0])).found == ()
    assert find_alerts(made, scores([2, 2])).found == ()


def test_points_are_counted_series_by_series() -> None:
    made = mission(points="3 of 3")
    assert find_alerts(made, scores([2, 2, 0, 0], [0, 0, 2, 2])).found == ()
    assert only(find_alerts(made, scores([2, 2, 2, 0], [0, 0, 2, 2])).found).fired == at(2)


def test_series_relieve_each_other_in_a_missions_alert_and_not_in_their_own() -> None:
    found = scores([0, 2, 2, 0, 0, 0], [0, 0, 0, 4, 3, 0])
    alert = only(find_alerts(mission(**{"for": "15m"}), found).found)
    assert (alert.start, alert.fired, alert.end) == (at(1), at(4), at(4))
    assert [each.labels.get("host") for each in alert.episodes] == ["b", "a"]
    assert alert.worst.peak == 4
    own = find_alerts(mission(**{"for": "15m", "per_series": True}), found)
    assert (own.found, own.brief) == ((), 2)


def test_the_limit_is_the_missions_own() -> None:
    assert find_alerts(mission(above=2, **{"for": "0s"}), scores([0, 2, 1.5, 2.5])).found[0].start == at(3)
    assert find_alerts(mission(above=3), scores([0, 2, 1.5, 2.5])).found == ()


def test_an_alert_says_how_far_which_way_and_of_what() -> None:
    made = mission(**{"for": "0s"})
    worst = only(find_alerts(made, scores([0, 2, 5, 0], reason=DRIFT)).found).worst
    assert (worst.at, worst.value, worst.yhat, worst.deviation) == (at(2), 150, 100, 50)
    assert (worst.reason, worst.direction) == ("drift", "above")
    assert only(find_alerts(made, scores([0, 2, 0], reason=FLAT)).found).worst.direction == ""


def test_alerts_are_counted_by_week_hour_and_weekday_of_the_missions_clock() -> None:
    found = find_alerts(mission(**{"for": "0s"}), scores([2.0] + [0.0] * 24 + [2.0] + [0.0] * 310))
    assert found.per_week == pytest.approx(2 * 2016 / 336)
    # 22:00 and 00:05 UTC are 23:00 on Sunday and 01:05 on Monday in Berlin.
    assert [hour for hour, n in enumerate(found.by_hour("Europe/Berlin")) if n] == [1, 23]
    assert found.by_weekday("Europe/Berlin") == (1, 0, 0, 0, 0, 0, 1)
