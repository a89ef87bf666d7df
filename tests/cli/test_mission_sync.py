"""`at mission plan`, `apply` and their kin on a real Prefect server."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml

from anomaly_times.cli.options import missions_from_files
from anomaly_times.cli.plan_views import to_markdown
from anomaly_times.conventions import variable_name
from anomaly_times.deployed import DeployedMission, to_value
from anomaly_times.loading import load_missions
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels
from anomaly_times.plan import Found, State, build_plan
from anomaly_times.settings import Source
from anomaly_times.stores import open_store
from anomaly_times.stores.prometheus import PrometheusStore
from tests import servers
from tests.cli.conftest import Run
from tests.prefect_bases import api, base_deployments

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROJECT = "cli-tests"
FILE = """
name: cli-a
promql: up
---
name: cli-b
promql: sum(rate(x[5m]))
forecast: {level: 99}
"""


@pytest.fixture
def project(
    prefect_server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: Run
) -> Iterator[servers.Server]:
    """A folder with two missions, whose project is empty on the server, before and after."""
    base_deployments(prefect_server.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url + "/api")
    monkeypatch.setenv("AT_PROJECT", PROJECT)
    (tmp_path / "missions").mkdir()
    (tmp_path / "missions" / "ours.yaml").write_text(FILE)
    yield prefect_server
    for mission in json.loads(at("mission", "list", "-o", "json").stdout)["missions"]:
        assert at("mission", "delete", mission["name"], "--yes").exit_code == 0


def edit(old: str, new: str) -> None:
    file = Path("missions/ours.yaml")
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.servers
def test_plan_apply_change_and_plan_again(project: servers.Server, at: Run) -> None:
    first = at("mission", "plan", "--detailed-exitcode")
    assert (first.exit_code, first.stderr) == (6, "")
    assert "+ cli-a" in first.stdout
    assert "2 to create" in first.stdout
    done = at("mission", "apply", "--yes")
    assert done.exit_code == 0, done.stderr
    assert {"created cli-a", "created cli-b", f"created schedule at:{PROJECT}:detect:1m:00", "applied"} <= set(
        done.stdout.splitlines()
    )
    assert at("mission", "plan", "--detailed-exitcode").exit_code == 0
    edit("level: 99", "level: 98")
    changed = json.loads(at("mission", "plan", "-o", "json").stdout)
    assert [(c["name"], c["meaning"]) for c in changed["changes"]] == [("cli-b", "bounds change, score history stays")]
    assert at("mission", "apply", "--yes").stdout.splitlines()[-2:] == ["updated cli-b", "applied"]
    assert at("mission", "apply", "--yes").stdout.splitlines()[-1] == "nothing had to change"


@pytest.mark.servers
def test_one_broken_file_means_that_nothing_is_applied(project: servers.Server, at: Run) -> None:
    Path("missions/broken.yaml").write_text("name: cli-c\npromq: up\n")
    for command in ("plan", "apply"):
        result = at("mission", command, *(["--yes"] if command == "apply" else []))
        assert (result.exit_code, result.stdout) == (3, "")
        assert "missions/broken.yaml:2" in result.stderr
    assert json.loads(at("mission", "list", "-o", "json").stdout)["missions"] == []


@pytest.mark.parametrize("command", [["plan"], ["apply", "--yes"]])
def test_what_offline_validation_refuses_is_not_applied(
    command: list[str], at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    Path("missions").mkdir()
    Path("missions/bad.yaml").write_text(
        "name: a\npromql: sum(up\n---\nname: b\npromql: up\nforecast: {model: nosuch}\n"
        "---\nname: c\npromql: up\nforecast: {every: 1h, horizon: 1h}\n---\nname: d\npromq: up\n"
        "---\nname: e\npromql: up_total\n"
    )
    result = at("mission", *command)
    assert (result.exit_code, result.stdout) == (3, "")
    for told in ("bad.yaml:2", "promql/syntax", "bad.yaml:6", "nosuch", "bad.yaml:10", "horizon-holes", "bad.yaml:12"):
        assert told in result.stderr
    # What is a warning only is for `at mission validate`.
    assert "bare-counter" not in result.stderr
    accepted = "name: c\npromql: up\nforecast: {every: 1h, horizon: 1h}\n"
    silence = "silence: [{code: forecast/horizon-holes, reason: once a day is enough}]\n"
    Path("missions/bad.yaml").write_text(accepted + silence)
    assert [mission.name for mission in missions_from_files(None, checked=True)] == ["c"]


@pytest.mark.servers
def test_pruning_with_no_files_is_refused(project: servers.Server, at: Run) -> None:
    at("mission", "apply", "--yes")
    Path("empty").mkdir()
    result = at("mission", "apply", "empty", "--prune", "--yes")
    assert result.exit_code == 3
    assert "there is no mission in empty" in result.stderr
    assert len(json.loads(at("mission", "list", "-o", "json").stdout)["missions"]) == 2


@pytest.mark.parametrize("command", [("plan",), ("apply", "--yes")])
def test_pruning_needs_a_project_of_ones_own(
    command: tuple[str, ...], tmp_path: Path, at: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    Path("a.yaml").write_text("name: a\npromql: up\n")
    result = at("mission", *command, "a.yaml", "--prune")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no project is set" in result.stderr
    assert "AT_PROJECT" in result.stderr


@pytest.mark.servers
def test_a_saved_plan_is_applied_exactly_or_not_at_all(project: servers.Server, at: Run) -> None:
    at("mission", "plan", "--save", "plan.json")
    edit("promql: up", "promql: down")
    assert "created cli-a" in at("mission", "apply", "plan.json", "--yes").stdout
    shown = json.loads(at("mission", "show", "cli-a", "-o", "json").stdout)
    assert shown["mission"]["promql"] == "up"
    again = at("mission", "apply", "plan.json", "--yes")
    assert again.exit_code == 4
    assert "has changed since this plan was made" in again.stderr


@pytest.mark.servers
def test_without_a_terminal_apply_and_delete_need_a_yes(project: servers.Server, at: Run) -> None:
    for args in (["apply"], ["delete", "cli-a"]):
        result = at("mission", *args)
        assert (result.exit_code, result.stdout) == (2, "")
        look = "at mission plan" if args == ["apply"] else "at mission show cli-a"
        assert f"add --yes, after a look at `{look}`" in result.stderr


@pytest.mark.servers
@pytest.mark.parametrize(("answer", "code", "there"), [(b"n\n", 1, False), (b"y\n", 0, True)])
def test_on_a_terminal_apply_shows_the_plan_and_asks(
    project: servers.Server, at: Run, answer: bytes, code: int, there: bool
) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    run = subprocess.run(
        [sys.executable, "-m", "anomaly_times.cli", "mission", "apply"],
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(ours)
    os.close(theirs)
    assert run.returncode == code, run.stderr
    assert "2 to create" in run.stdout
    assert "Apply this?" in run.stderr
    assert ("created cli-a" in run.stdout) is there


@pytest.mark.servers
def test_pause_resume_show_run_and_delete(project: servers.Server, at: Run) -> None:
    at("mission", "apply", "--yes")
    assert "paused until" in at("mission", "pause", "cli-a", "--for", "2h", "--reason", "migration").stdout
    shown = at("mission", "show", "cli-a").stdout
    assert "migration" in shown
    assert "promql: up" in shown
    assert "paused until" in at("mission", "list").stdout
    assert "1 paused" in at("mission", "plan").stdout
    assert at("mission", "resume", "cli-a").stdout == "cli-a goes on with its next run\n"
    assert at("mission", "resume", "cli-a").stdout == "cli-a is not paused\n"
    shown = json.loads(at("mission", "show", "cli-a", "-o", "json").stdout)
    assert shown["paused"] is None
    assert shown["since"].endswith("Z")
    assert at("mission", "run", "cli-a").stdout == "started a forecast and a detection of cli-a\n"
    assert at("mission", "delete", "cli-a", "--yes").stdout == "deleted cli-a\n"
    for command in ("show", "run", "pause", "resume"):
        result = at("mission", command, "cli-a")
        assert result.exit_code == 3
        assert "no mission 'cli-a' is deployed" in result.stderr


@pytest.mark.servers
def test_rules_fall_silent_at_once_about_what_is_paused_deleted_or_relabelled(
    project: servers.Server, vm_server: servers.Server, at: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AT_SOURCES__MAIN__URL", vm_server.url)
    Path("missions/more.yaml").write_text("name: cli-c\npromql: up\n---\nname: cli-d\npromql: up\n")
    assert at("mission", "apply", "--yes").stderr == ""
    assert at("mission", "pause", "cli-a").stderr == ""
    assert at("mission", "delete", "cli-b", "--yes").stderr == ""
    Path("missions/more.yaml").write_text("name: cli-c\npromql: up\nforecast: {every: 2h}\n")
    assert at("mission", "apply", "--prune", "--yes").stderr == ""
    vm_server.flush()
    with open_store(Source(url=vm_server.url), state=tmp_path) as store:
        assert isinstance(store, PrometheusStore)
        found = store.query(f'last_over_time(at_mission_info{{project="{PROJECT}"}}[5m])', datetime.now(UTC))
    told = {(row.get("mission"), row.get("forecast_every")): samples[0][1] for row, samples in found}
    assert told == {("cli-a", "1h"): 0, ("cli-b", "1h"): 0, ("cli-c", "1h"): 0, ("cli-d", "1h"): 0}
    # Where the source cannot be told, what was done is done.
    monkeypatch.setenv("AT_SOURCES__MAIN__URL", f"http://127.0.0.1:{servers.free_port()}")
    result = at("mission", "pause", "cli-c")
    assert (result.exit_code, result.stdout) == (0, "cli-c is paused until it is resumed\n")
    assert result.stderr.startswith(
        "note: that cli-c stopped is not stored, so rules may still wait for scores: http://"
    )
    monkeypatch.setenv("AT_SOURCES__MAIN__URL", vm_server.url)


@pytest.mark.servers
def test_pull_writes_files_that_change_nothing_when_applied(project: servers.Server, at: Run) -> None:
    edit("promql: up", "promql: up\ndetect: {valid_range: [0, .inf]}\nalert: {for: 9m}")
    at("mission", "apply", "--yes")
    assert "wrote 2 files" in at("mission", "pull", "--out", "pulled").stdout
    assert sorted(path.name for path in Path("pulled").iterdir()) == ["cli-a.yaml", "cli-b.yaml"]
    assert at("mission", "plan", "pulled", "--prune", "--detailed-exitcode").exit_code == 0
    documents = list(yaml.safe_load_all(at("mission", "pull").stdout))
    assert documents[0]["detect"] == {"valid_range": [0.0, float("inf")]}
    assert documents[0]["alert"] == {"for": "9m"}


@pytest.mark.servers
def test_pull_writes_over_no_file_unless_it_is_told_to(project: servers.Server, at: Run) -> None:
    at("mission", "apply", "--yes")
    Path("pulled").mkdir()
    Path("pulled/cli-b.yaml").write_text("# by hand")
    refused = at("mission", "pull", "--out", "pulled")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "pulled/cli-b.yaml: there already, so nothing is written" in refused.stderr
    assert [path.read_text() for path in Path("pulled").iterdir()] == ["# by hand"]
    assert "wrote 2 files" in at("mission", "pull", "--out", "pulled", "--force").stdout
    assert "level: 99" in Path("pulled/cli-b.yaml").read_text()
    Path("pulled/defaults.yaml").write_text("step: 5m\n")
    for force in ([], ["--force"]):
        refused = at("mission", "pull", "--out", "pulled", *force)
        assert refused.exit_code == 2
        assert "pulled/defaults.yaml would be added to what each mission says" in refused.stderr
    taken = at("mission", "pull", "--out", "pulled/cli-b.yaml")
    assert (taken.exit_code, taken.stdout) == (2, "")
    assert "pulled/cli-b.yaml" in taken.stderr


@pytest.mark.servers
def test_names_and_labels_that_look_like_numbers_are_pulled_as_they_are(project: servers.Server, at: Run) -> None:
    Path("missions/ours.yaml").write_text(
        "\n---\n".join(f"name: '{name}'\npromql: up\nlabels: {{zone: '1e5'}}" for name in ("1e5", "089", "null"))
    )
    applied = at("mission", "apply", "--yes")
    assert applied.exit_code == 0, applied.stderr
    at("mission", "pull", "--out", "pulled")
    plan = at("mission", "plan", "pulled", "--prune", "--detailed-exitcode")
    assert plan.exit_code == 0, plan.stderr


@pytest.mark.servers
def test_a_mission_called_defaults_is_not_pulled_into_the_file_of_defaults(project: servers.Server, at: Run) -> None:
    Path("missions/ours.yaml").write_text("name: defaults\npromql: up\n")
    at("mission", "apply", "--yes")
    refused = at("mission", "pull", "--out", "pulled")
    assert (refused.exit_code, Path("pulled").exists()) == (2, False)
    assert "would be taken for defaults" in refused.stderr
    assert "name: defaults" in at("mission", "pull").stdout


@pytest.mark.servers
def test_adopt_writes_a_file_and_removes_schedules_only_when_they_are_deployed(
    project: servers.Server, at: Run
) -> None:
    base = f"deployments/{base_deployments(project.url)['forecast']}/schedules"
    body = {"schedule": {"interval": 3600}, "parameters": {"promql": "adopted", "model_type": "profile"}}
    [made] = api(project.url, "POST", base, [body])
    written = at("mission", "adopt", "--out", "missions/adopted.yaml")
    assert written.stdout == "wrote 1 mission into missions/adopted.yaml\n"
    assert "has no detect schedule; as a mission it gets one, every 1m" in written.stderr
    [mission] = [
        one.mission for one in load_missions(["missions/adopted.yaml"]).missions if one.mission.promql == "adopted"
    ]
    too_early = at("mission", "adopt", "--yes")
    assert f"{mission.name} is not deployed yet" in too_early.stderr
    assert made["id"] in {schedule["id"] for schedule in api(project.url, "GET", base)}
    at("mission", "apply", "--yes")
    assert f"removed 1 hand-made schedule of {mission.name}" in at("mission", "adopt", "--yes").stderr
    assert made["id"] not in {schedule["id"] for schedule in api(project.url, "GET", base)}


@pytest.mark.servers
def test_purging_removes_the_series_of_that_mission_alone(
    project: servers.Server, vm_server: servers.Server, at: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AT_SOURCES__MAIN__URL", vm_server.url)
    at("mission", "apply", "--yes")
    now = datetime.now(UTC).replace(microsecond=0, second=0)
    grid = Grid(now, timedelta(minutes=1), 3)
    row = np.array([[1.0, 2.0, 3.0]])
    labels = (Labels.of({"__name__": "up", "job": "purge"}),)
    missions = [Mission(name=name, promql="up") for name in ("cli-a", "cli-b")]
    with open_store(Source(url=vm_server.url), state=tmp_path) as store:
        forecast = Forecast(labels, grid, now - grid.step, row, row, row)
        store.write_forecasts([(mission, forecast) for mission in missions])
        vm_server.flush()
        deleted = at("mission", "delete", "cli-a", "--purge-series", "--yes")
        assert deleted.exit_code == 0, deleted.stderr
        vm_server.flush()
        assert list(store.read_forecasts(missions, grid)) == ["cli-b"]


@pytest.mark.servers
def test_where_series_cannot_be_purged_the_mission_stays_so_that_it_can_be_repeated(
    project: servers.Server, vm_server: servers.Server, at: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit("name: cli-a", "name: cli-a\nsource: main")
    monkeypatch.setenv("AT_SOURCES__MAIN__URL", f"http://127.0.0.1:{servers.free_port()}")
    at("mission", "apply", "--yes")
    command = ("mission", "delete", "cli-a", "--purge-series", "--yes")

    def deployed() -> bool:
        return at("mission", "show", "cli-a").exit_code == 0

    away = at(*command)
    assert (away.exit_code, away.stdout, deployed()) == (4, "", True)
    monkeypatch.delenv("AT_SOURCES__MAIN__URL")
    unknown = at(*command)
    assert (unknown.exit_code, unknown.stdout, deployed()) == (2, "", True)
    assert "there is no source 'main'" in unknown.stderr
    monkeypatch.setenv("AT_SOURCES__MAIN__URL", vm_server.url)
    done = at(*command)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "deleted cli-a"
    assert not deployed()


@pytest.mark.servers
def test_a_name_of_another_project_makes_plan_fail(
    project: servers.Server, at: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    at("mission", "apply", "--yes")
    monkeypatch.setenv("AT_PROJECT", "somebody-else")
    refused = at("mission", "plan")
    assert refused.exit_code == 3
    assert f"the project '{PROJECT}' holds a mission of that name" in refused.stdout
    assert at("mission", "apply", "--yes").exit_code == 3
    monkeypatch.setenv("AT_PROJECT", PROJECT)


def test_no_server_set_is_wrong_usage(tmp_path: Path, at: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    Path("a.yaml").write_text("name: a\npromql: up\n")
    result = at("mission", "plan", "a.yaml")
    assert result.exit_code == 2
    assert "no Prefect server is set" in result.stderr
    assert at("mission", "plan", "a.yaml", "--detailed-exitcode").exit_code == 2


def test_markdown_shows_queries_as_they_are_and_fits_a_comment() -> None:
    missions = [Mission(name=f"m-{i:04d}", promql=f'x{{a=~"b|c",d="<@team>{"y" * 250}"}} * {i}') for i in range(2000)]
    state = State(deployments={"forecast": "f", "detect": "d"})
    text = to_markdown(build_plan(missions, state, project="p", now=NOW))
    assert len(text.encode()) < 65_536
    assert "2,000 to create" in text
    row = next(line for line in text.splitlines() if "m-0000" in line)
    assert row.count("|") == 5
    assert "<" not in row
    assert "@" not in row
    assert "more lines" in text.splitlines()[-1]


def test_markdown_tells_drift_refusals_and_pauses() -> None:
    one = Mission(name="a", promql="up")
    deployed = DeployedMission(one, "p", ("at:p:forecast:1h:00", "at:p:detect:1m:00"), NOW)
    edited = {**to_value(deployed), "since": (NOW - timedelta(hours=1)).isoformat()}
    found = {
        "a": Found.of(variable_name("a"), edited, deployed.tags),
        "b": Found.of("at_b", {}, ["stranger"]),
    }
    state = State(found, (), {"forecast": "f", "detect": "d"})
    text = to_markdown(build_plan([one, Mission(name="b", promql="x")], state, project="p", now=NOW))
    assert "| ~ | a | changed in Prefect: edited by hand |" in text
    assert "| ! | b | refused: the Variable at&#95;b exists and is not ours |" in text
