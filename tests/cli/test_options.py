"""Options become a mission, and what is wrong is told under the option's own name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from anomaly_times.cli.options import Output, output_format, parse_since, parse_time, query_from_options
from anomaly_times.errors import UsageError
from anomaly_times.mission import Mission

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _mission(**params: Any) -> Mission:
    return query_from_options({"promql": "up", "source": "", "url": "http://vm:8428", "at": "now"} | params).mission


def test_absent_options_take_the_defaults_of_a_mission() -> None:
    mission = _mission(step=None, model=None)
    assert mission == Mission(name=mission.name, promql="up")
    assert mission.name.startswith("q-")


def test_every_option_lands_in_its_field() -> None:
    mission = _mission(
        name="api",
        step="5m",
        timezone="Europe/Berlin",
        season="1d,1w",
        lookback="28d",
        horizon="4h",
        every="2h",
        model="lgbm",
        model_param=["lags=48", "grid=[1, 2]", "kind=fast"],
        level="99",
        direction="above",
        min_deviation="5,10",
        min_relative_deviation="20%",
        valid_range="0:",
        missing="zero",
    )
    assert mission.name == "api"
    assert mission.step == timedelta(minutes=5)
    assert mission.timezone == "Europe/Berlin"
    assert mission.season == (timedelta(days=1), timedelta(weeks=1))
    assert mission.forecast.lookback == timedelta(days=28)
    assert mission.horizon == timedelta(hours=4)
    assert mission.forecast.every == timedelta(hours=2)
    assert mission.forecast.model.type == "lgbm"
    assert mission.forecast.model.params == {"lags": 48, "grid": [1, 2], "kind": "fast"}
    assert mission.forecast.level == 99
    assert mission.detect.direction == "above"
    assert mission.detect.min_deviation == (5, 10)
    assert mission.detect.min_relative_deviation == (0.2, 0.2)
    assert mission.detect.valid_range == (0, float("inf"))
    assert mission.detect.missing == "zero"


@pytest.mark.parametrize(
    ("params", "start"),
    [
        ({"step": "0s"}, "--step: "),
        ({"step": "-5m"}, "--step: "),
        ({"lookback": "1y2x"}, "--lookback: '1y2x' is not a duration"),
        ({"horizon": "soon"}, "--horizon: "),
        ({"level": "100"}, "--level: must be less than 100"),
        ({"level": "0"}, "--level: must be more than 0"),
        ({"level": "high"}, "--level: must be a number"),
        ({"alerts_per_week": "0"}, "--alerts-per-week: must be more than 0"),
        ({"alerts_per_week": "-1"}, "--alerts-per-week: must be more than 0"),
        ({"alerts_per_week": "169"}, "--alerts-per-week: must be at most 168"),
        ({"alerts_per_week": "inf"}, "--alerts-per-week: must be a finite number"),
        ({"alerts_per_week": "few"}, "--alerts-per-week: must be a number"),
        ({"alerts_per_week": "1", "level": "99"}, "--level and --alerts-per-week say two things"),
        ({"evidence": "some"}, "--evidence: must be 'all' or 'point'"),
        ({"direction": "up"}, "--direction: "),
        ({"missing": "maybe"}, "--missing: "),
        ({"min_deviation": "1,2,3"}, "--min-deviation: "),
        ({"min_relative_deviation": "x%"}, "--min-relative-deviation: "),
        ({"valid_range": "5"}, "--valid-range: "),
        ({"valid_range": "5:1"}, "--valid-range: must be [lowest, highest]"),
        ({"season": "1d,"}, "--season: "),
        ({"timezone": "Mars/Base"}, "--timezone: 'Mars/Base' is no time zone"),
        ({"name": "Not A Name"}, "--name: "),
        ({"promql": ""}, "--promql: "),
        ({"model_param": ["lags"]}, "--model-param: 'lags'"),
        ({"model_param": ["type=x"]}, "--model-param: 'type=x'"),
        ({"at": "yesterday"}, "--at: 'yesterday' is no time"),
        ({"step": "1ms"}, "a horizon of "),
    ],
)
def test_a_wrong_value_is_told_under_its_option(params: dict[str, Any], start: str) -> None:
    with pytest.raises(UsageError) as caught:
        _mission(**params)
    assert caught.value.message.startswith(start)
    assert caught.value.hint


def test_a_query_has_an_alert_budget_unless_an_interval_is_asked_for() -> None:
    assert (_mission().detect.alerts_per_week, _mission().forecast.level) == (0.5, None)
    assert _mission(alerts_per_week="2").detect.alerts_per_week == 2
    assert _mission(evidence="point").watches_over_time is False
    assert _mission(level="99").watches_over_time is False


def test_a_budget_that_makes_no_sense_is_told_with_what_would() -> None:
    with pytest.raises(UsageError) as caught:
        _mission(alerts_per_week="1000")
    assert caught.value.hint.startswith("0.5 is one alert in two weeks")


def test_one_query_has_one_name_whatever_the_other_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _mission().name == _mission(step="5m", level="95", promql=" up ").name
    assert _mission().name != _mission(url="http://other:8428").name
    monkeypatch.chdir(tmp_path)
    assert _mission(url="metrics").name == _mission(url=f"{tmp_path}/metrics/").name


def test_source_and_url_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--source and --url"):
        _mission(source="main")


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOW),
        ("-2h", NOW - timedelta(hours=2)),
        ("2026-03-01T12:00Z", NOW),
        ("2026-03-01T12:00", NOW),
        ("2026-03-01 13:00+01:00", NOW),
        ("2026-03-01", NOW - timedelta(hours=12)),
    ],
)
def test_a_time_is_iso_or_relative_and_utc_where_it_says_nothing_else(text: str, at: datetime) -> None:
    assert parse_time(text, now=NOW) == at
    assert parse_time(text, now=NOW).tzinfo is UTC


def test_a_time_without_its_sign_and_one_to_come_are_told_so() -> None:
    with pytest.raises(UsageError, match="'2h' is no time") as caught:
        parse_time("2h", now=NOW)
    assert caught.value.hint == "-2h is so long ago"
    with pytest.raises(UsageError, match="'2026-03-01T12:02' has not come yet") as caught:
        parse_time("2026-03-01T12:02", now=NOW)
    assert caught.value.hint == "it is 2026-03-01 12:00 UTC"
    assert parse_time("2026-03-01T12:01", now=NOW) == NOW + timedelta(minutes=1)  # clocks differ


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("-2h", NOW - timedelta(hours=2)),
        ("now", NOW),
        ("2026-03-01T12:01", NOW),  # clocks differ
        ("2026-03-01T11:59:59.9", NOW - timedelta(seconds=1)),
    ],
)
def test_since_may_be_so_long_ago_and_is_never_to_come(text: str, at: datetime) -> None:
    assert parse_since(text, now=NOW + timedelta(microseconds=9)) == at


def test_a_since_that_is_no_time_names_its_option() -> None:
    for text, words in (("soon", "--since: 'soon' is no time"), ("2026-03-01T12:02", "--since: .* has not come yet")):
        with pytest.raises(UsageError, match=words):
            parse_since(text, now=NOW)


def test_a_long_step_is_told_which_option_it_needs_besides() -> None:
    with pytest.raises(UsageError, match="the horizon must cover one step") as caught:
        _mission(step="1d")
    assert caught.value.hint == "--horizon 2d, or more"
    with pytest.raises(UsageError, match="the lookback must cover two steps") as caught:
        _mission(step="1h", lookback="90m", horizon="2h")
    assert caught.value.hint == "--lookback 2h, or more"


@pytest.mark.parametrize("text", ["", "12:00", "-soon", "-0s", "1700000000", "0001-01-01", "9999-12-31T23:59-14:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--at: "):
        parse_time(text, now=NOW)


def test_the_output_follows_the_ending_of_the_file_unless_it_is_given(tmp_path: Path) -> None:
    assert output_format(None, None) is Output.TABLE
    assert output_format(None, tmp_path / "a.csv") is Output.CSV
    assert output_format(None, tmp_path / "a.parquet") is Output.PARQUET
    assert output_format(Output.JSON, tmp_path / "a.csv") is Output.JSON
    assert output_format(None, tmp_path / "a.txt") is Output.TABLE


def test_a_file_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "none" / "a.csv"):
        with pytest.raises(UsageError, match="cannot be written"):
            output_format(None, file)
        with pytest.raises(UsageError, match="cannot be written"):
            output_format(None, None, file)


def test_parquet_is_refused_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(UsageError, match="nothing for a terminal"):
        output_format(Output.PARQUET, None)
    assert output_format(Output.PARQUET, tmp_path / "f") is Output.PARQUET
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert output_format(Output.PARQUET, None) is Output.PARQUET
