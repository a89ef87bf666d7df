"""What alert rules say of missions, asked of Prometheus' own tester and of vmalert with an Alertmanager."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import promql_parser
import pytest
import yaml

from anomaly_times.backtest.alerts import Alert, find_alerts
from anomaly_times.conventions import SELF_METRICS
from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission
from anomaly_times.outputs.rules import Group, Severities, render_rules, rule_groups
from anomaly_times.panel import Grid, Labels, Scores
from tests.servers import need

MINUTE = timedelta(minutes=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Series = tuple[str, str]


def mission(name: str = "m", alert: Mapping[str, object] | None = None, **fields: Any) -> Mission:
    return Mission.model_validate({"name": name, "promql": "up", "alert": alert or {}, **fields})


def points(*values: float | None, every: int = 1, begin: int = 0) -> str:
    """Values for promtool, one in so many minutes from `begin` on; `None` is a gap."""
    out = ["_"] * begin
    for value in values:
        out += ["_" if value is None else f"{value:g}", *["_"] * (every - 1)]
    return " ".join(out)


def ask(
    folder: Path, groups: Sequence[Group], series: Mapping[str, str], *, minutes: int, interval: str = "1m"
) -> dict[int, list[dict[str, str]]]:
    """The labels of the alerts that fire, at each minute where there are some, of the rules as they are written."""
    rules = folder / "rules.yaml"
    rules.write_text(render_rules(groups, command="at rules"))
    expr = 'ALERTS{alertstate="firing"}'
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": interval,
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [{"expr": expr, "eval_time": f"{at}m"} for at in range(minutes + 1)],
            }
        ],
    }
    file = folder / "test.json"
    file.write_text(json.dumps(test))
    run = subprocess.run([need("promtool"), "test", "rules", str(file)], capture_output=True, text=True, timeout=250)
    fired: dict[int, list[dict[str, str]]] = {}
    for time, got in re.findall(r"time: (\S+),\s+exp: nil\s+got: (.*)", run.stdout + run.stderr):
        labels = [dict(re.findall(r'(\w+)="((?:\\.|[^"])*)"', each)) for each in re.findall(r"\{.*?\} 1E\+00", got)]
        fired[_minutes(time)] = labels
    assert fired or "SUCCESS" in run.stdout, run.stdout + run.stderr
    return fired


def _minutes(time: str) -> int:
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:0s)?", time)
    assert found is not None
    days, hours, minutes = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def stretches(minutes: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last minute of each stretch of minutes without a gap."""
    found: list[tuple[int, int]] = []
    for at in sorted(minutes):
        if found and at == found[-1][1] + 1:
            found[-1] = (found[-1][0], at)
        else:
            found.append((at, at))
    return found


def when(fired: Mapping[int, list[dict[str, str]]], alert: str) -> list[tuple[int, int]]:
    """The stretches of minutes in which an alert of that name fires."""
    return stretches([at for at, alerts in fired.items() if any(each["alertname"] == alert for each in alerts)])


def bare(groups: Sequence[Group]) -> list[Group]:
    """The groups without annotations, which would ask for much in a long test."""
    return [replace(group, rules=tuple(replace(rule, annotations={}) for rule in group.rules)) for group in groups]


# --- what is written -------------------------------------------------------------------------------------------------

ODD = [
    mission("plain"),
    mission("often", {"points": "3 of 5", "above": 2.5}, step="5m", detect={"every": "5m"}),
    mission("each", {"per_series": True, "labels": {"severity": "critical"}}, labels={"team": 'a "b" {{c}}'}),
    mission("each-often", {"per_series": True, "points": "2 of 2"}, step="15s", offset="0s"),
    mission("slow", step="1h", forecast={"every": "1d", "lookback": "90d", "level": 80}, detect={"cron": "0 * * * *"}),
    mission("long", promql='a{b=~"\\\\d+%"} % 2 # "a" `b`', description='100 % "{{ x }}"\nof it'),
]


def test_every_expression_is_promql() -> None:
    for group in rule_groups(ODD):
        for rule in group.rules:
            promql_parser.parse(rule.expr)


def test_the_file_says_what_the_rules_are_and_the_same_in_any_order() -> None:
    text = render_rules(rule_groups(ODD), command="at rules missions/")
    assert text.startswith("# Written by `at rules missions/`")
    assert text == render_rules(rule_groups(ODD[::-1]), command="at rules missions/")
    groups = yaml.safe_load(text)["groups"]
    assert [group["name"] for group in groups] == [*sorted(f"at:{each.name}" for each in ODD), "at"]
    for group, written in zip(rule_groups(ODD), groups, strict=True):
        assert [each["expr"] for each in written["rules"]] == [rule.expr for rule in group.rules]
        assert [each["annotations"] for each in written["rules"]] == [rule.annotations for rule in group.rules]


def test_severities_are_overridden_by_name_and_by_a_missions_labels() -> None:
    groups = rule_groups(ODD, severities=Severities("p1", "p3"))
    said = {(group.name, rule.alert): rule.labels["severity"] for group in groups for rule in group.rules}
    assert said["at:plain", "Anomaly"] == said["at", "AtNothingRuns"] == "p1"
    assert said["at:each", "Anomaly"] == "critical"
    assert said["at:each", "AnomalyNoScores"] == said["at", "AtMissionFails"] == "p3"


def test_rules_read_what_passes_write() -> None:
    text = render_rules(rule_groups(ODD), command="at rules")
    assert set(re.findall(r"\bat_[a-z_]+", text)) - {"at_pass_duration_seconds"} <= set(SELF_METRICS)


@pytest.mark.servers
def test_prometheus_and_vmalert_take_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(render_rules(rule_groups(ODD), command="at rules"))
    subprocess.run([need("promtool"), "check", "rules", str(file)], check=True, capture_output=True, timeout=60)
    file.write_text(render_rules(rule_groups(ODD), command="at rules", keep_firing=False))
    subprocess.run([need("vmalert"), "-dryRun", f"-rule={file}"], check=True, capture_output=True, timeout=60)


# --- a mission's alert -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.servers
def test_rules_fire_when_a_backtest_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    missions, expected, series = [], {}, {}
    steps = {"1m": 1, "5m": 5, "15m": 15, "1h": 60}
    total = 24 * 60
    for i in range(32):
        step = list(steps)[i % 4]
        fields = {
            "step": step,
            "offset": str(rng.choice(["0s", "30s", "2m"])),
            "detect": {"every": str(rng.choice(["1m", step, f"{2 * steps[step]}m"]))},
        }
        keep = {"keep_firing_for": str(rng.choice(["0s", "10m", "1h"])), "per_series": bool(rng.random() < 0.4)}
        often = i % 8 >= 4
        rule = (
            {"points": str(rng.choice(["1 of 1", "2 of 3", "3 of 5"]))}
            if often
            else {"for": str(rng.choice(["0s", "5m", "10m", "1h"]))}
        )
        made = mission(f"m{i}", {"above": float(rng.choice([1, 1.5])), **keep, **rule}, **fields)
        # Odd and gone for some points at a time, in about a third of them.
        n = total // steps[step]
        state = np.repeat(rng.choice([0.3, 1.2, 4.0, np.nan], (3, n), p=[0.6, 0.1, 0.2, 0.1]), 3, axis=1)[:, :n]
        labels = tuple(Labels.of({"pod": pod}) for pod in "abc")
        scores = Scores(labels, Grid(EPOCH, made.step, n), *(np.zeros((3, n)) for _ in range(4)), state)
        missions.append(made)
        expected[made.name] = find_alerts(made, scores).found
        for pod, row in zip("abc", state, strict=True):
            values = ["_"] * (2 * total)
            # Half a minute late, so that no score is as old as a range is long; but points are counted on the grid.
            for k, value in enumerate(row):
                values[2 * k * steps[step] + (not often)] = "_" if np.isnan(value) else f"{value:g}"
            series[f'anomaly_score{{mission="{made.name}",pod="{pod}"}}'] = " ".join(values)
    fired = ask(tmp_path, bare(rule_groups(missions, platform=False)), series, minutes=total - 1, interval="30s")
    minutes: defaultdict[Series, list[int]] = defaultdict(list)
    for at, alerts in fired.items():
        for each in alerts:
            minutes[each["mission"], each.get("pod", "")].append(at)
    n = 0
    for made in missions:
        found: defaultdict[Series, list[Alert]] = defaultdict(list)
        for alert in expected[made.name]:
            pod = alert.worst.labels.get("pod") or "" if made.alert.per_series else ""
            found[made.name, pod].append(alert)
        for unit in {*found, *(unit for unit in minutes if unit[0] == made.name)}:
            got = stretches(minutes[unit])
            late = 0 if made.alert.points else 1
            begins = [(alert.fired - EPOCH) // MINUTE + late for alert in found[unit]]
            assert [first for first, _ in got] == [at for at in begins if at < total], (made.alert, unit)
            for alert, (_, last) in zip(found[unit], got, strict=False):
                kept = (alert.end + made.step + made.alert.keep_firing_for - EPOCH) // MINUTE - 1 + late
                longest = kept + (made.score_stands + made.alert.least_of_newest[1] * made.step) // MINUTE
                assert min(kept, total - 1) <= last <= longest, (made.alert, unit)
            n += len(got)
    assert n > 100


@pytest.mark.servers
def test_a_page_says_which_series_why_and_by_how_much(tmp_path: Path) -> None:
    made = mission(promql="load", description="How busy.", alert={"for": "0s"}, labels={"team": "shop"})
    labels = 'mission="m",metric="load",pod="{}",team="shop"'
    series = {
        'load{pod="a"}': points(*range(100, 131)),
        'load{pod="b"}': points(*range(200, 231)),
        f"anomaly_score{{{labels.format('a')}}}": points(*[0.5] * 20, *[2] * 11),
        f"anomaly_score{{{labels.format('b')}}}": points(*[0.5] * 25, *[7] * 6),
        f"anomaly_reason{{{labels.format('a')}}}": points(*[0] * 31),
        f"anomaly_reason{{{labels.format('b')}}}": points(*[REASONS.index("level shift")] * 31),
        f"anomaly_pred{{{labels.format('b')}}}": points(*[50] * 31),
        f"anomaly_lower{{{labels.format('b')}}}": points(*[40] * 31),
        f"anomaly_upper{{{labels.format('b')}}}": points(*[60] * 31),
    }
    details = (
        "level shift, score 7 in metric=load pod=b team=shop\n"
        "230, expected 50, bounds 40 to 60\n"
        "last usual 1970-01-01 00:24:00 +0000 UTC\n"
        "at explain --mission m --at 1970-01-01T00:30:00Z"
    )
    expected = {
        "exp_labels": {"mission": "m", "severity": "page", "team": "shop"},
        "exp_annotations": {
            "summary": "m: 2 series anomalous",
            "description": "How busy.",
            "query": "load",
            "details": details,
        },
    }
    expect(tmp_path, made, series, minute=30, told=[expected])


def alert_of(labels: Mapping[str, str], summary: str, *details: str) -> dict[str, dict[str, str]]:
    """An alert of the mission `m` with the query `up`, as promtool names what it expects."""
    annotations = {"summary": summary, "query": "up", "details": "\n".join(details)}
    return {"exp_labels": {"mission": "m", "severity": "page", **labels}, "exp_annotations": annotations}


SEVERE = {"error": 2, "warn": 3}


@pytest.mark.servers
def test_series_that_differ_in_a_label_of_the_alert_alone_are_alerts_of_their_own(tmp_path: Path) -> None:
    made = mission(alert={"for": "0s", "per_series": True})
    series = {f'anomaly_score{{mission="m",severity="{each}"}}': points(0.5, score) for each, score in SEVERE.items()}
    expected = [
        alert_of(
            {"exported_severity": each},
            f"m: score {score}",
            f"score {score} in severity={each}",
            "no value",
            "last usual 1970-01-01 00:00:00 +0000 UTC",
            "at explain --mission m --at 1970-01-01T00:01:00Z",
        )
        for each, score in SEVERE.items()
    ]
    expect(tmp_path, made, series, minute=1, told=expected)


@pytest.mark.servers
def test_the_worst_series_is_told_apart_by_labels_that_the_alert_has_too(tmp_path: Path) -> None:
    made = mission(alert={"for": "0s"})
    series = {f'anomaly_score{{mission="m",severity="{each}"}}': points(0.5, score) for each, score in SEVERE.items()}
    details = ("score 3 in severity=warn", "no value", "last usual 1970-01-01 00:00:00 +0000 UTC")
    command = "at explain --mission m --at 1970-01-01T00:01:00Z"
    expect(tmp_path, made, series, minute=1, told=[alert_of({}, "m: 2 series anomalous", *details, command)])


@pytest.mark.servers
def test_a_page_about_a_value_that_is_missing_says_so(tmp_path: Path) -> None:
    odd = 'mission="m",metric="up",job="a \\"b\\" {{c}} %d"'
    series = {
        'up{job="a \\"b\\" {{c}} %d"}': points(1),
        f"anomaly_score{{{odd}}}": points(0, *[2] * 9),
        f"anomaly_reason{{{odd}}}": points(*[REASONS.index("missing")] * 10),
        f"anomaly_pred{{{odd}}}": points(*[1] * 10),
        f"anomaly_lower{{{odd}}}": points(*[0.5] * 10),
        f"anomaly_upper{{{odd}}}": points(*[1.5] * 10),
    }
    details = (
        'missing, score 2 in job=a "b" {{c}} %d metric=up',
        "no value, expected 1, bounds 0.5 to 1.5",
        "last usual 1970-01-01 00:00:00 +0000 UTC",
        "at explain --mission m --at 1970-01-01T00:09:00Z",
    )
    made = mission(alert={"for": "0s"})
    expect(tmp_path, made, series, minute=9, told=[alert_of({}, "m: 1 series anomalous", *details)])


def expect(
    folder: Path, made: Mission, series: Mapping[str, str], *, minute: int, told: Sequence[Mapping[str, object]]
) -> None:
    """Have promtool hold `Anomaly` of a mission, as it fires at a minute, to these alerts and annotations."""
    rules, file = folder / "rules.yaml", folder / "test.json"
    rules.write_text(render_rules(rule_groups([made], platform=False), command="at rules"))
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": "Anomaly", "exp_alerts": told}],
            }
        ],
    }
    file.write_text(json.dumps(test))
    run = subprocess.run([need("promtool"), "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.servers
@pytest.mark.parametrize(("step", "lets_go"), [("1m", 4), ("5m", 20), ("1h", 240)])
def test_an_hourly_score_lasts_and_a_series_that_vanished_is_let_go(tmp_path: Path, step: str, lets_go: int) -> None:
    every = {"1m": 1, "5m": 5, "1h": 60}[step]
    made = mission(alert={"for": "0s", "keep_firing_for": "0s"}, step=step)
    series = {'anomaly_score{mission="m"}': points(0, 2, 2, 2, every=every)}
    fired = ask(tmp_path, bare(rule_groups([made], platform=False)), series, minutes=3 * every + lets_go + 20)
    assert when(fired, "Anomaly") == [(every, 3 * every + lets_go)]


@pytest.mark.servers
def test_a_mission_that_is_paused_is_told_of_no_more(tmp_path: Path) -> None:
    made = mission(alert={"for": "0s", "keep_firing_for": "0s"}, step="1h")
    series = {'anomaly_score{mission="m"}': points(2, 2, every=60), INFO: points(1, 1, 0, 1, every=30)}
    fired = ask(tmp_path, bare(rule_groups([made], platform=False)), series, minutes=120)
    assert when(fired, "Anomaly") == [(0, 59), (90, 120)]


# --- nobody watches --------------------------------------------------------------------------------------------------

INFO = 'at_mission_info{mission="m",project="p",source="",model="auto",step="1m",forecast_every="1h",detect_every="1m"}'


@pytest.mark.servers
@pytest.mark.parametrize(("newest", "tells"), [(1, True), (0, False)], ids=["dead platform", "paused or deleted"])
def test_silence_is_told_of_a_dead_platform_and_not_of_a_deleted_mission(
    tmp_path: Path, newest: int, tells: bool
) -> None:
    ran = [1] * 60
    series = {
        'anomaly_score{mission="m"}': points(*[0.5] * 60),
        INFO: points(*ran, newest),
        'at_forecast_end_timestamp_seconds{mission="m"}': points(7200),
    }
    fired = ask(tmp_path, bare(rule_groups([mission()], platform=False)), series, minutes=180)
    # The last score is of minute 59; 11m30s later there is none, and that lasts for 5 minutes.
    assert when(fired, "AnomalyNoScores") == ([(76, 180)] if tells else [])
    # Thirty minutes before the forecast ends at minute 120, and 5 minutes.
    assert when(fired, "AnomalyForecastEnds") == ([(96, 180)] if tells else [])


@pytest.mark.servers
def test_a_mission_that_runs_as_it_should_is_not_told_of(tmp_path: Path) -> None:
    hourly = mission(
        name="h", step="1h", forecast={"every": "1h", "horizon": "1h", "lookback": "30d"}, detect={"every": "1h"}
    )
    series = {
        'anomaly_score{mission="m"}': points(*[0.5] * 360),
        INFO: points(*[1] * 360),
        INFO.replace('"m"', '"h"'): points(*[1] * 6, every=60),
        'at_forecast_end_timestamp_seconds{mission="m"}': points(*[(i + 2) * 3600 for i in range(6)], every=60),
        # Its first detection comes with the second hour; each forecast ends when the next one is made.
        'anomaly_score{mission="h"}': points(*[0.5] * 5, every=60, begin=60),
        'at_forecast_end_timestamp_seconds{mission="h"}': points(*[(i + 1) * 3600 for i in range(6)], every=60),
    }
    assert ask(tmp_path, bare(rule_groups([mission(), hourly], platform=False)), series, minutes=359) == {}


PACK = 'pack="at:p:detect:1m:00",kind="detect",source=""'
SUCCESS = 'at_last_success_timestamp_seconds{mission="m",kind="detect"}'


@pytest.mark.servers
@pytest.mark.parametrize(
    ("alert", "series", "expected"),
    [
        ("AtNothingRuns", {SUCCESS: points(*[0] * 30)}, [(45, 180)]),
        ("AtNothingRuns", {SUCCESS: points(*[0] * 30), INFO: points(*[1] * 30, 0)}, []),
        ("AtMissionFails", {'at_errors{mission="m",kind="detect"}': points(*[0] * 60, *[1] * 120)}, [(75, 180)]),
        ("AtMissionFails", {'at_errors{mission="m",kind="detect"}': points(*[0, 0, 1] * 60)}, []),
        ("AtMissionFails", {'at_errors{mission="m",kind="forecast"}': points(0, 1, 1, 1, every=60)}, [(120, 180)]),
        (
            "AtForecastsMissing",
            {
                'at_missing_forecast{mission="m"}': points(*[3] * 181),
                'at_scored_points{mission="m"}': points(*[7] * 181),
            },
            [(15, 180)],
        ),
        (
            "AtForecastsMissing",
            {
                'at_missing_forecast{mission="m"}': points(*[1] * 181),
                'at_scored_points{mission="m"}': points(*[9] * 181),
            },
            [],
        ),
        (
            "AtPointsDropped",
            {f"at_points_dropped{{{PACK}}}": points(*[1] * 181), f"at_points_read{{{PACK}}}": points(*[10] * 181)},
            [(15, 180)],
        ),
        (
            "AtPointsDropped",
            {f"at_points_dropped{{{PACK}}}": points(*[0] * 181), f"at_points_read{{{PACK}}}": points(*[10] * 181)},
            [],
        ),
        ("AtPassesSlow", {f'at_pass_duration_seconds{{{PACK},stage="total"}}': points(*[55] * 181)}, [(67, 180)]),
        ("AtPassesSlow", {f'at_pass_duration_seconds{{{PACK},stage="total"}}': points(*[40] * 181)}, []),
        (
            "AtForecastsOff",
            {
                'at_points_judged{mission="m"}': points(*[600] * 4, every=60),
                'at_points_in_band{mission="m"}': points(*[500] * 4, every=60),
            },
            [(60, 180)],
        ),
        (
            "AtForecastsOff",
            {
                'at_points_judged{mission="m"}': points(*[600] * 4, every=60),
                'at_points_in_band{mission="m"}': points(*[590] * 4, every=60),
            },
            [],
        ),
        (
            "AtForecastsOff",
            {
                'at_points_judged{mission="m"}': points(*[60] * 4, every=60),
                'at_points_in_band{mission="m"}': points(*[10] * 4, every=60),
            },
            [],
        ),
    ],
)
def test_the_platform_is_told_of(
    tmp_path: Path, alert: str, series: dict[str, str], expected: list[tuple[int, int]]
) -> None:
    groups = [group for group in bare(rule_groups([mission()])) if group.name == "at"]
    assert when(ask(tmp_path, groups, series, minutes=180), alert) == expected


@pytest.mark.servers
def test_a_slow_mission_does_not_keep_the_failures_of_a_fast_one_from_being_told(tmp_path: Path) -> None:
    slow = mission("slow", step="1h", forecast={"every": "1d", "lookback": "90d"}, detect={"every": "12h"})
    groups = [group for group in bare(rule_groups([mission(), slow])) if group.name == "at"]
    series = {'at_errors{mission="m",kind="detect"}': points(*[0] * 120, *[1] * 61)}
    assert when(ask(tmp_path, groups, series, minutes=180), "AtMissionFails") == [(135, 180)]
    series = {'at_errors{mission="slow",kind="detect"}': points(0, 1, 1, every=720)}
    assert when(ask(tmp_path, groups, series, minutes=1442), "AtMissionFails") == [(1440, 1442)]


def test_silence_after_a_long_pause_is_told_within_hours() -> None:
    [group, _] = rule_groups([mission("office", detect={"cron": "*/15 8-18 * * 1-5"})])
    [silent] = [rule for rule in group.rules if rule.alert == "AnomalyNoScores"]
    # From Friday 18:45 to Monday 08:00, six hours, the offset and a step.
    assert silent.annotations["summary"] == "office: no score for 2d19h16m30s"


def test_a_narrow_interval_is_not_held_against_a_mission() -> None:
    [off] = [rule for rule in rule_groups(ODD)[-1].rules if rule.alert == "AtForecastsOff"]
    assert off.expr.count('{mission!~"slow"}[1d]') == 2
