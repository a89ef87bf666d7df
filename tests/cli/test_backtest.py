"""`at backtest`: what is shown, and how it ends."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.backtest import AS_IT_IS, Backtest, Trial
from anomaly_times.backtest.alerts import find_alerts
from anomaly_times.cli.backtest_page import backtest_page
from anomaly_times.cli.backtest_views import BacktestView
from anomaly_times.loading import load_missions
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Scores
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, Run

WINDOW = ("--at", "2026-03-01T12:00:30Z", "--last", "2d")
ARGS = (
    "backtest",
    "-q",
    QUERY,
    "--step",
    "10m",
    "--model",
    "seasonal_naive",
    "--alert-for",
    "10m",
    "--evidence",
    "point",
    "-j",
    1,
)
MISSION = """
name: web
promql: requests
step: 10m
forecast: {model: seasonal_naive}
detect: {evidence: point}
alert: {for: 10m}
incidents:
- {name: jump, start: 2026-03-01 11:40, end: 2026-03-01 12:00, match: '{job="b"}'}
- {name: calm, start: 2026-02-28 10:00, end: 2026-02-28 11:00}
"""


@pytest.fixture
def missions(store: MemoryStore, tmp_path: Path) -> Path:
    file = tmp_path / "web.yaml"
    file.write_text(MISSION)
    return file


def test_a_query_is_replayed_and_nothing_written(at: Run, store: MemoryStore) -> None:
    result = at(*ARGS, *WINDOW, "--name", "web")
    assert result.exit_code == 0, result.stderr
    assert "1 mission from 2026-02-27 12:10 to 2026-03-01 12:00 UTC" in result.stdout
    assert "1 alert would have fired, 3.50 a week" in result.stdout
    assert "2026-03-01 11:50" in result.stdout
    assert "by hour of day, from 0: 0 0 0 0 0 0 0 0 0 0 0 1 0 0" in result.stdout
    assert "Incidents" not in result.stdout
    assert store._forecasts == {}
    assert store._scores == {}


def test_json_holds_all_of_it(at: Run, missions: Path) -> None:
    result = at("backtest", missions, *WINDOW, "-j", 1, "--output", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["schema"], document["kind"]) == (1, "backtest")
    [mission] = document["missions"]
    assert mission["start"] == "2026-02-27T12:10:00Z"
    assert mission["alerts"]["count"] == 1
    [alert] = mission["alerts"]["list"]
    [series] = alert["series"]
    assert series["labels"]["job"] == "b"
    assert series["deviation"] == pytest.approx(60, abs=10)
    assert mission["incidents"]["found"] == 1
    assert mission["incidents"]["false_alarms"] == 0
    assert [each["delay_seconds"] for each in mission["incidents"]["list"]] == [None, 600.0]
    assert mission["accuracy"]["mase"] == pytest.approx(1, abs=0.1)
    assert mission["cost"]["queries"] == 1464
    assert document["alternatives"] == {}


def test_markdown_says_the_same_and_ends_in_its_notes(at: Run, missions: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    missions.write_text(MISSION + "- {name: old, start: 2026-01-01, end: 2026-01-02}\n")
    result = at("backtest", missions, *WINDOW, "-j", 1, "--compare", "level=80", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    text = out.read_text()
    assert text.startswith("### 1 mission from 2026-02-27 12:10 to 2026-03-01 12:00 UTC\n")
    assert "1 of 2 incidents found" in text
    assert "| found | jump | 2026-03-01 11:40 | 2026-03-01 12:00 | 10m |" in text
    assert "| level=80 |" in text
    assert "| a plain threshold |" in text
    assert "\x1b" not in text
    assert text.endswith("### Notes\n\n- web: outside of the window, and not counted: 1 of the labelled incidents\n")


def test_the_page_shows_incidents_alerts_and_every_series(at: Run, missions: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = at("backtest", missions, *WINDOW, "-j", 1, "--plot", page)
    assert result.exit_code == 0, result.stderr
    assert f"drawn into {page}" in result.stderr
    text = page.read_text()
    assert "<h1>Backtest of 1 mission from 2026-02-27 12:10 to 2026-03-01 12:00 UTC</h1>" in text
    assert text.count('class="chart"') == 3
    assert '<span class="pill found">found</span>' in text
    assert '<span class="pill missed">missed</span>' in text
    assert '<td data-column="Field">forecast.model.type</td>' in text
    assert '"label":"jump","status":"found"' in text
    # The worst series comes first, and the alert leads to it.
    assert text.index("requests{env=&quot;prod&quot;,job=&quot;b&quot;}</h2>") < text.index("job=&quot;a&quot;}</h2>")
    assert '<a href="#chart-0" data-chart="0"' in text


@pytest.mark.slow
def test_a_page_of_two_hundred_series_over_four_weeks_stays_small() -> None:
    grid = Grid.ending(AT, timedelta(minutes=5), 28 * 288)
    noise = np.random.default_rng(0).normal(100, 12.34567, (210, grid.n))
    labels = tuple(Labels.of({"__name__": "load", "instance": f"host-{i:03d}:9100"}) for i in range(210))
    score = np.abs(noise - 100) / 30
    scores = Scores(labels, grid, noise, noise + 1, noise - 30, noise + 30, score, reason=np.zeros(noise.shape))
    made = Mission.model_validate({"name": "load", "promql": "load", "step": "5m"})
    trial = Trial(made, AS_IT_IS, grid, scores=scores, alerts=find_alerts(made, scores))
    page = backtest_page(BacktestView(Backtest((trial,), {})))
    assert page.count('class="chart"') == 200
    assert "Drawn are the 200 series of 210 with the highest scores" in page
    assert len(page.encode()) < 15_000_000


def test_incidents_of_a_file_count_too(at: Run, missions: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("start,end,name,mission\n2026-02-28 00:00,2026-02-28 01:00,other,web\n")
    result = at("backtest", missions, *WINDOW, "-j", 1, "--incidents", labels, "-o", "json")
    names = [each["name"] for each in json.loads(result.stdout)["missions"][0]["incidents"]["list"]]
    assert names == ["other", "calm", "jump"]


def test_check_ends_with_three_where_a_mission_does_not_get_what_it_asks_for(at: Run, missions: Path) -> None:
    kept = MISSION + "backtest: {max_alerts_per_week: 4, must_detect: [jump]}\n"
    missions.write_text(kept)
    assert at("backtest", missions, *WINDOW, "-j", 1, "--check").exit_code == 0
    missions.write_text(kept.replace("[jump]", "[jump, calm]"))
    result = at("backtest", missions, *WINDOW, "-j", 1, "--check")
    assert result.exit_code == 3
    assert "1 alert would have fired" in result.stdout
    assert result.stderr.endswith("the backtest is not what was asked for\nweb: calm must be found, and is not\n")
    assert at("backtest", missions, *WINDOW, "-j", 1).exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--from", "2026-02-28", "--last", "2d"), "--from and --last say two things"),
        (("--from", "2026-03-01", "--to", "2026-02-01"), "--from must lie before --to"),
        (("--from", "2027-01-01"), "--from: '2027-01-01' has not come yet"),
        (("--last", "soon"), "--last: 'soon' is not a duration"),
        (("--compare", "colour=red"), "--compare: 'colour=red' names no alternatives"),
        (("--compare", "model="), "--compare: 'model=' names no alternatives"),
        (("--incidents", "none.yaml"), "none.yaml cannot be read: No such file or directory"),
        (("--out", "no/where.md"), "no/where.md cannot be written"),
    ],
)
def test_what_makes_no_sense_is_named_before_anything_is_read(
    at: Run, store: MemoryStore, args: tuple[str, ...], message: str
) -> None:
    store.series.clear()
    result = at(*ARGS, *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_a_query_option_does_not_go_with_files(at: Run, missions: Path) -> None:
    result = at("backtest", missions, "--level", "99")
    assert result.exit_code == 2
    assert "--level does not go with mission files" in result.stderr


def test_an_alternative_that_cannot_be_is_refused(at: Run, missions: Path) -> None:
    result = at("backtest", missions, *WINDOW, "--compare", "level=400")
    assert result.exit_code == 3
    assert "mission web cannot be run with level=400" in result.stderr


def test_an_alternative_with_an_unknown_model_is_refused_before_anything_is_replayed(at: Run, missions: Path) -> None:
    result = at("backtest", missions, *WINDOW, "-j", 1, "--compare", "model=oracle")
    assert result.exit_code == 5
    assert result.stdout == ""
    assert "there is no model 'oracle'" in result.stderr
    assert "known: auto, " in result.stderr


def test_a_mission_whose_own_model_is_unknown_stops_no_comparison_of_the_others(
    at: Run, missions: Path, tmp_path: Path
) -> None:
    odd = MISSION.partition("incidents")[0].replace("name: web", "name: odd").replace("seasonal_naive", "oracle")
    (tmp_path / "odd.yaml").write_text(odd)
    result = at("backtest", missions, tmp_path / "odd.yaml", *WINDOW, "-j", 1, "--compare", "level=99")
    # A mission failed, and the report of the other is there all the same.
    assert result.exit_code == 5
    assert "there is no model 'oracle'" in result.stdout
    assert "level=99" in result.stdout.partition("Alternatives")[2]


def test_where_all_missions_fail_the_first_error_is_the_end(at: Run, store: MemoryStore) -> None:
    result = at("backtest", "-q", "gone", *WINDOW)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "gone matches nothing in memory" in result.stderr


SUGGEST = ("--at", "2026-03-01T12:00:30Z", "--last", "9d", "-j", 1, "--suggest")
RESTLESS = """# Shop traffic.
name: web   # ours
promql: requests
step: 10m
forecast: {model: seasonal_naive, every: 6h, lookback: 9d, level: 95}   # a plain interval
detect: {evidence: point}
"""


def test_a_suggestion_is_a_patch_that_git_applies(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "missions").mkdir()
    file = tmp_path / "missions" / "web.yaml"
    file.write_text(RESTLESS)
    [before] = load_missions([file]).missions
    result = at("backtest", *SUGGEST, "--max-alerts-per-week", 2)
    assert result.exit_code == 0, result.stderr
    assert "for `git apply` or `patch -p1`, in this folder" in result.stdout
    subprocess.run(["git", "apply"], cwd=tmp_path, input=result.stdout, text=True, check=True)
    [after] = load_missions([file]).missions
    assert after.mission != before.mission
    assert "# Shop traffic.\nname: web   # ours\n" in file.read_text()
    assert "}   # a plain interval\n" in file.read_text()
    again = at("backtest", *SUGGEST, "--max-alerts-per-week", 2)
    assert "web keeps to 2 a week as it is" in again.stdout
    assert "git apply" not in again.stdout


def test_json_has_the_suggestion_and_the_patch(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    # As an editor on another system leaves it.
    file.write_bytes(b"\xef\xbb\xbf" + RESTLESS.replace("\n", "\r\n").encode().rstrip())
    result = at("backtest", "web.yaml", *SUGGEST, "--max-alerts-per-week", 2, "-o", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    [made] = document["suggestions"]
    assert (made["mission"], made["max_alerts_per_week"], made["met"]) == ("web", 2, True)
    assert [field["field"] for field in made["fields"] if field["before"] != field["after"]] != []
    assert made["chosen_on"]["before"]["per_week"] > 2 >= made["chosen_on"]["after"]["per_week"]
    assert made["rest"]["start"] > made["chosen_on"]["end"]
    assert "No newline at end of file" in document["patch"]
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=document["patch"].encode(), check=True)
    assert file.read_bytes().startswith(b"\xef\xbb\xbf# Shop traffic.\r\n")


def test_a_query_gets_the_mission_file_to_write(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    args = ("--every", "6h", "--level", "95", "--name", "web", "-o", "markdown")
    result = at(*ARGS, *SUGGEST, "--max-alerts-per-week", 2, *args)
    assert result.exit_code == 0, result.stderr
    text = result.stdout.partition("### Mission file\n\n```\n")[2].partition("```")[0]
    (tmp_path / "web.yaml").write_text(text)
    [loaded] = load_missions([tmp_path / "web.yaml"]).missions
    mission = loaded.mission
    assert (mission.name, mission.promql, mission.forecast.every) == ("web", "requests", timedelta(hours=6))
    usual = mission.forecast.level, mission.alert.for_, mission.detect.min_relative_deviation
    assert usual != (95, timedelta(minutes=10), (0, 0))


def test_a_mission_of_a_template_has_a_suggestion_and_no_patch(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(RESTLESS.replace("name: web ", "for_each: [web]\nname: ${each} "))
    result = at("backtest", file, *SUGGEST, "--max-alerts-per-week", 2, "-o", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["suggestions"][0]["fields"]
    assert document["patch"] is None
    assert "web: there is no patch: it is one of those that a template makes" in result.stderr


def test_a_budget_that_cannot_be_kept_to_ends_with_three_and_shows_the_nearest(at: Run, missions: Path) -> None:
    early = "- {name: still, start: 2026-02-22 10:00, end: 2026-02-22 11:00}\n"
    missions.write_text(MISSION + early + "backtest: {max_alerts_per_week: 1, must_detect: [still]}\n")
    result = at("backtest", missions, *SUGGEST)
    assert result.exit_code == 3
    assert "the nearest: still not found" in result.stdout
    assert "error: the budget cannot be kept to\nweb: none of" in result.stderr


def test_what_does_not_keep_to_the_budget_is_no_patch(at: Run, missions: Path) -> None:
    early = "incidents: [{name: still, start: 2026-02-22 10:00, end: 2026-02-22 11:00}]\n"
    missions.write_text(RESTLESS + early + "backtest: {max_alerts_per_week: 2, must_detect: [still]}\n")
    result = at("backtest", missions, *SUGGEST, "-o", "json")
    assert result.exit_code == 3
    suggested = json.loads(result.stdout)
    [one] = suggested["suggestions"]
    assert not one["met"]
    assert one["fields"]
    assert suggested["patch"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--max-alerts-per-week", 1), "--max-alerts-per-week goes with --suggest"),
        (("--suggest", "--max-alerts-per-week", "nan"), "--max-alerts-per-week: must be at most 10080"),
        (("--suggest", "--max-alerts-per-week", "inf"), "--max-alerts-per-week: must be at most 10080"),
        (("--suggest",), "--suggest needs a budget, and mission web has none"),
        (("--suggest", "--max-alerts-per-week", 1), "--suggest needs a window of 3d at least, and this one is 2d"),
    ],
)
def test_a_suggestion_that_cannot_be_made_is_refused_before_the_work(
    at: Run, missions: Path, args: tuple[object, ...], message: str
) -> None:
    result = at("backtest", missions, *WINDOW, *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
