from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydantic import ValidationError

from anomaly_times.durations import parse_duration
from anomaly_times.loading import load_missions
from anomaly_times.mission import Mission

EXAMPLES = Path(__file__).resolve().parents[1] / "missions"


def mission(**fields: object) -> Mission:
    return Mission.model_validate({"name": "m", "promql": "up", **fields})


def test_two_fields_are_enough() -> None:
    made = mission()
    assert (made.step, made.forecast.lookback, made.horizon) == (
        timedelta(minutes=1),
        timedelta(days=14),
        timedelta(hours=2),
    )
    assert made.h == 120
    assert made.forecast.model.type == "auto"


def test_the_horizon_is_twice_the_cadence_unless_given() -> None:
    assert mission(forecast={"every": "30m"}).horizon == timedelta(hours=1)
    assert mission(forecast={"every": "30m", "horizon": "3h"}).horizon == timedelta(hours=3)


def test_the_documents_form_is_understood() -> None:
    made = mission(
        step="5m",
        season=["1d", "1w"],
        forecast={"model": {"type": "lgbm", "lags": 48}, "interval_scale": [1, 2]},
        detect={"direction": "above", "min_deviation": 3, "min_relative_deviation": "20%"},
    )
    assert made.season == (timedelta(days=1), timedelta(days=7))
    assert made.forecast.model.params == {"lags": 48}
    assert made.forecast.interval_scale == (1, 2)
    assert made.detect.min_deviation == (3, 3)
    assert made.detect.min_relative_deviation == (0.2, 0.2)


def test_a_cron_line_stands_for_a_cadence_and_the_horizon_lasts_over_its_longest_pause() -> None:
    made = mission(forecast={"cron": "0 8-18 * * mon-fri"}, detect={"cron": "*/5 * * * *"})
    assert made.forecast.period == timedelta(hours=62)
    assert made.horizon == timedelta(hours=124)
    assert mission(forecast={"cron": "0 0 29 feb *", "horizon": "2h"}).forecast.period > timedelta(days=1400)


def test_a_rebase_is_one_time_whatever_the_clock() -> None:
    made = mission(forecast={"rebase": "2026-03-01T12:30:00+01:00"})
    assert made.forecast.rebase == datetime(2026, 3, 1, 11, 30, tzinfo=UTC)
    assert '"rebase":"2026-03-01T11:30:00Z"' in made.model_dump_json()
    assert mission(forecast={"rebase": None}) == mission()


def test_an_exclusion_without_a_zone_is_utc() -> None:
    made = mission(forecast={"exclude": [{"start": "2026-03-01T10:00:00", "end": "2026-03-01T12:30:00+01:00"}]})
    (window,) = made.forecast.exclude
    assert window.start == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert window.end == datetime(2026, 3, 1, 12, 30, tzinfo=timezone(timedelta(hours=1)))


def test_no_time_at_all_is_a_good_offset_and_a_good_patience() -> None:
    made = mission(offset="0s", alert={"for": "0s"})
    assert made.offset == made.alert.for_ == timedelta(0)


def test_a_season_can_be_found_given_or_denied() -> None:
    assert mission().season is None
    assert mission(season="auto").season is None
    assert mission(season="none").season == ()
    assert mission(season="1d").season == (timedelta(days=1),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "Checkout"}, "lower-case"),
        ({"name": "-a"}, "lower-case"),
        ({"name": "a" * 64}, "63"),
        ({"promql": ""}, "at least 1"),
        ({"step": "0s"}, "longer than zero"),
        ({"step": "1y2x"}, "not a duration"),
        ({"timezone": "Mars/Olympus"}, "time zone"),
        ({"timezone": "../etc/passwd"}, "time zone"),
        ({"labels": {"mission": "x"}}, "ours"),
        ({"labels": {"a-b": "x"}}, "no label name"),
        ({"colour": "red"}, "not permitted"),
        ({"step": "1s", "forecast": {"every": "10m"}}, "does not fit"),
        ({"step": "1h", "forecast": {"lookback": "1h"}}, "two steps"),
        ({"step": "1h", "forecast": {"horizon": "5m"}}, "one step"),
        ({"forecast": {"level": 100}}, "less than 100"),
        ({"detect": {"valid_range": [1, 1]}}, "lowest"),
        ({"detect": {"min_deviation": -1}}, "greater than or equal"),
        ({"detect": {"direction": "up"}}, "'above'"),
        ({"forecast": {"interval_scale": 0}}, "greater than 0"),
        ({"forecast": {"cron": "0 * * *"}}, "five fields"),
        ({"forecast": {"cron": "61 * * * *"}}, "no cron line"),
        ({"detect": {"cron": "0 0 31 feb *"}}, "no cron line"),
        ({"forecast": {"exclude": [{"start": "2026-03-01T10:00", "end": "2026-03-01T10:00"}]}}, "begin before"),
        ({"forecast": {"rebase": "2026-03-01T10:00"}}, "needs a zone"),
        ({"forecast": {"rebase": "2h"}}, "'2h' is no time"),
        ({"forecast": {"rebase": 1_772_359_200}}, "is no time"),
        ({"forecast": {"rebase": "0001-01-01T00:00+01:00"}}, "is no time"),
        ({"step": 0}, "not a duration"),
        ({"step": 60}, "not a duration"),
        ({"step": True}, "not a duration"),
        ({"step": timedelta(0)}, "longer than zero"),
        ({"detect": {"catch_up": timedelta(microseconds=1500)}}, "whole milliseconds"),
        ({"offset": "-60s"}, "not a duration"),
        ({"offset": timedelta(minutes=-1)}, "longer than zero"),
        ({"silence": [{"code": "data/gaps", "reason": ""}]}, "at least 1"),
    ],
)
def test_a_mission_that_makes_no_sense_says_why(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        mission(**fields)
    assert words in str(caught.value)


def test_every_pass_works_up_to_the_last_complete_time() -> None:
    now = datetime(2026, 3, 1, 12, 0, 29, tzinfo=UTC)
    made = mission(offset="30s", forecast={"lookback": "1h"})
    assert made.last_time(now) == datetime(2026, 3, 1, 11, 59, tzinfo=UTC)
    assert made.last_time(now + timedelta(seconds=1)) == datetime(2026, 3, 1, 12, tzinfo=UTC)
    history = made.history_grid(now)
    assert (history.n, history.end) == (60, made.last_time(now))
    assert made.detect_grid(now, timedelta(minutes=3)).n == 3


def test_the_example_missions_load_without_a_problem() -> None:
    loading = load_missions([EXAMPLES])
    assert loading.problems == ()
    assert len(loading.missions) >= 3
    assert all(loaded.mission.description for loaded in loading.missions)


def test_a_mission_survives_being_written_as_json_without_its_defaults() -> None:
    made = mission(
        season=["1d"],
        labels={"team": "a"},
        forecast={
            "model": {"type": "ets", "model": "ANN"},
            "exclude": [{"start": "2026-03-01T10:00", "end": "2026-03-02T10:00"}],
            "rebase": "2026-03-03T10:00:30Z",
        },
        detect={"valid_range": [0, float("inf")], "min_relative_deviation": "20%"},
        alert={"for": "10m"},
        silence=[{"code": "data/gaps", "reason": "known"}],
    )
    text = made.model_dump_json(exclude_defaults=True)
    assert Mission.model_validate_json(text) == made
    assert "timezone" not in text
    assert mission().model_dump_json(exclude_defaults=True) == '{"name":"m","promql":"up"}'


def test_an_interval_and_an_alert_budget_say_two_things() -> None:
    with pytest.raises(ValidationError, match="say two things"):
        Mission.model_validate(
            {"name": "a", "promql": "b", "forecast": {"level": 99}, "detect": {"alerts_per_week": 2}}
        )


def test_a_mission_with_an_interval_can_be_read_back_with_every_field_spelt_out() -> None:
    mission = Mission.model_validate({"name": "a", "promql": "b", "forecast": {"level": 99}})
    assert Mission.model_validate(mission.model_dump(mode="json")) == mission
    assert not mission.watches_over_time


@pytest.mark.parametrize("budget", [0, -1, float("inf"), float("nan"), 169, "often", True])
def test_a_budget_is_a_number_of_alerts_up_to_one_an_hour(budget: object) -> None:
    with pytest.raises(ValidationError, match="alerts_per_week"):
        Mission.model_validate({"name": "a", "promql": "b", "detect": {"alerts_per_week": budget}})


def test_points_replace_for_and_are_spelled_in_one_way() -> None:
    made = Mission.model_validate({"name": "m", "promql": "m", "alert": {"points": " 3  of 5"}}).alert
    assert (made.points, made.least_of_newest, made.lasting) == ("3 of 5", (3, 5), timedelta(0))
    usual = Mission.model_validate({"name": "m", "promql": "m"}).alert
    assert (usual.least_of_newest, usual.lasting) == ((1, 1), timedelta(minutes=5))


@pytest.mark.parametrize("points", ["5 of 3", "0 of 3", "3", "3 of 5 points", "1 of 1441", "a of b", 3])
def test_what_is_no_number_of_points_is_refused(points: object) -> None:
    with pytest.raises(ValidationError, match="points"):
        Mission.model_validate({"name": "m", "promql": "m", "alert": {"points": points}})


def test_for_and_points_are_not_both() -> None:
    with pytest.raises(ValidationError, match="say two things"):
        Mission.model_validate({"name": "m", "promql": "m", "alert": {"points": "3 of 5", "for": "10m"}})


@pytest.mark.parametrize("name", ["mission", "alertname", "__name__", "a-b", "1a", ""])
def test_labels_of_an_alert_are_label_names_that_are_free(name: str) -> None:
    with pytest.raises(ValidationError, match="label"):
        Mission.model_validate({"name": "m", "promql": "m", "alert": {"labels": {name: "x"}}})


@pytest.mark.parametrize(
    ("step", "every", "offset", "stands"),
    [("1m", "1m", "30s", "4m"), ("5m", "5m", "0s", "15m"), ("1m", "5m", "2m", "13m"), ("1h", "1m", "30s", "4h")],
)
def test_a_score_stands_for_two_cadences_and_the_offset(step: str, every: str, offset: str, stands: str) -> None:
    made = Mission.model_validate(
        {"name": "m", "promql": "m", "step": step, "offset": offset, "detect": {"every": every}}
    )
    assert made.score_stands == parse_duration(stands)
