"""`at forecast FILES` and `at detect FILES`: many missions, one summary, exit codes for CI and cron."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import anomaly_times.stores
from anomaly_times.errors import StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.outcome import outcome_of
from anomaly_times.panel import Forecast, Grid, Labels
from anomaly_times.passes import ForecastResult
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, STEP, Run, requests

ELEVEN, NOON = ("--at", "2026-03-01T11:00:30Z"), ("--at", "2026-03-01T12:00:30Z")
FIELDS = "step: 10m\nforecast: {model: seasonal_naive}\ndetect: {every: 10m, min_deviation: 20}\n"


def mission_file(name: str, *, promql: str = QUERY, more: str = "", folder: str = "missions") -> Path:
    path = Path(folder, f"{name}.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"name: {name}\npromql: {promql}\n{FIELDS}{more}")
    return path


def scores_of(store: MemoryStore, name: str) -> int:
    mission = Mission(name=name, promql=QUERY, step=STEP)
    found = store.read_scores([mission], Grid.ending(AT, STEP, 300))
    return sum(int((panel.y >= 0).sum()) for panel in found.values())


def test_missions_of_the_folder_are_forecast_then_scored(at: Run, store: MemoryStore) -> None:
    mission_file("first")
    mission_file("second", more="description: the same once more\n")
    forecast = at("forecast", *ELEVEN)
    assert forecast.exit_code == 0, forecast.stderr
    assert [line.split()[:3] for line in forecast.stdout.splitlines() if line.startswith(("first", "second"))] == [
        ["first", "3", "36"],
        ["second", "3", "36"],
    ]
    assert "2 of 2 missions forecast, 72 points; 216 samples stored" in forecast.stdout

    detect = at("detect", *NOON)
    assert detect.exit_code == 0, detect.stderr
    line = next(line for line in detect.stdout.splitlines() if line.startswith("first"))
    assert line.split()[:4] == ["first", "3", "17", "3"]
    assert 'job="b"' in line  # the worst series is named
    assert "2 of 2 missions scored, 34 points; 34 samples stored" in detect.stdout
    assert scores_of(store, "first") == scores_of(store, "second") == 17
    assert store.closed


def test_a_dry_run_scores_the_same_and_writes_nothing(at: Run, store: MemoryStore) -> None:
    file = mission_file("dry")
    at("forecast", file, *ELEVEN)
    dry = json.loads(at("detect", file, *NOON, "--dry-run", "-o", "json").stdout)
    assert scores_of(store, "dry") == 0
    assert dry["written"] is None
    real = json.loads(at("detect", file, *NOON, "-o", "json").stdout)
    assert real["written"] == {"samples": 17, "series": 3, "skipped": 0}
    assert dry["missions"] == real["missions"]


def test_json_is_alone_on_stdout_and_names_the_worst(at: Run, store: MemoryStore) -> None:
    file = mission_file("json")
    made = json.loads(at("forecast", file, *ELEVEN, "--output", "json").stdout)
    assert (made["kind"], made["missions"][0]["until"]) == ("forecast-missions", "2026-03-01T13:00:00Z")
    found = json.loads(at("detect", file, *NOON, "--output", "json").stdout)
    entry = found["missions"][0]
    assert (found["kind"], found["now"], found["failed"]) == ("detect-missions", "2026-03-01T12:00:30Z", 0)
    assert (entry["mission"], entry["series"], entry["points"], entry["anomalous"]) == ("json", 3, 17, 3)
    assert entry["worst"]["labels"]["job"] == "b"
    assert entry["worst"]["score"] > 1
    assert entry["worst"]["reason"] == "point"
    assert entry["worst"]["at"] in {f"2026-03-01T{time}:00Z" for time in ("11:40", "11:50", "12:00")}
    assert entry["error"] is None


def test_where_nothing_is_new_the_table_says_until_when_all_is_scored(at: Run, store: MemoryStore) -> None:
    file = mission_file("again")
    at("forecast", file, *ELEVEN)
    at("detect", file, *NOON)
    [line] = [line for line in at("detect", file, *NOON).stdout.splitlines() if line.startswith("again")]
    assert " ".join(line.split()) == "again 0 0 scored up to 12:00 already"


def test_remarks_are_one_line_and_hints_come_in_the_order_of_the_rows(at: Run, store: MemoryStore) -> None:
    for name in ("b", "a"):
        store.series[name] = StoreUnavailableError(f"{name} is away\n  {name}\n  ^", hint=f"start {name}")
        mission_file(name, promql=name)
    result = at("forecast", *NOON)
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line.endswith(" is away")]
    assert rows == [["a", "a is away"], ["b", "b is away"]]
    assert "\\x" not in result.stdout
    assert [line for line in result.stderr.splitlines() if "start" in line] == ["note: a: start a", "note: b: start b"]


def test_a_failed_mission_stops_no_other_and_gives_its_exit_code(at: Run, store: MemoryStore) -> None:
    store.series["broken"] = StoreUnavailableError("nobody is there", hint="start it")
    mission_file("away", promql="broken")
    mission_file("empty", promql="nothing")
    mission_file("fine")
    result = at("forecast", *NOON)
    assert result.exit_code == 4  # the store's; the mission that matches nothing would give 3
    lines = [line for line in result.stdout.splitlines() if line.startswith(("away", "empty", "fine"))]
    assert [line.split()[0] for line in lines] == ["away", "empty", "fine"]  # failures first
    assert "nobody is there" in lines[0]
    assert "1 of 3 missions forecast" in result.stdout
    assert "note: away: start it" in result.stderr
    errors = json.loads(at("forecast", *NOON, "-o", "json").stdout)
    assert [mission["error"] and mission["error"]["exit_code"] for mission in errors["missions"]] == [4, 3, None]


def test_a_problem_in_one_file_runs_nothing(at: Run, store: MemoryStore) -> None:
    mission_file("good")
    bad = mission_file("bad", more="stepp: 5m\n")
    result = at("forecast", *NOON)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert f"{bad}:6: error mission/unknown-field: there is no field 'stepp' (did you mean 'step'?)" in result.stderr
    good = Mission(name="good", promql=QUERY, step=STEP)
    assert not store.read_forecasts([good], Grid.ending(AT, STEP, 300))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("missions", "--promql", QUERY), "FILES and --promql say two things"),
        (("missions", "--step", "5m"), "--step does not go with mission files"),
        (("--min-deviation", "3"), "--min-deviation does not go with mission files"),
        (("--plot", "p.html"), "--plot does not go with mission files"),
        (("--output", "csv"), "--output csv is for the series of one query"),
        (("nowhere.yaml",), "there is no file or folder nowhere.yaml"),
        (("--ray-address", "10.0.0.1:6379"), "--ray-address goes with --on ray"),
        (("--promql", QUERY, "--jobs", "2"), "--jobs goes with mission files"),
    ],
)
def test_options_that_contradict_are_refused(at: Run, store: MemoryStore, args: tuple[str, ...], message: str) -> None:
    mission_file("one")
    result = at("detect", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_without_a_folder_of_missions_the_way_out_is_told(at: Run, store: MemoryStore) -> None:
    result = at("detect")
    assert result.exit_code == 2
    assert "there is no missions/ here" in result.stderr
    assert "hint: name FILES, or a query by --promql" in result.stderr
    for command in (["mission", "plan"], ["run"], ["mission", "validate", "--offline"]):
        assert "hint: name FILES, or write a first one: `at mission init`" in at(*command).stderr
    Path("missions").mkdir()
    result = at("detect")
    assert result.exit_code == 3
    assert "there is no mission in missions" in result.stderr


def test_a_source_is_opened_once_and_one_that_is_not_there_runs_nothing(
    at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_store(source: object, *, state: Path) -> MemoryStore:
        opened.append(str(source))
        return MemoryStore({QUERY: requests()})

    monkeypatch.setattr(anomaly_times.stores, "open_store", open_store)
    Path("anomaly-times.yaml").write_text("sources: {a: {folder: left}, b: {folder: right}}\nsource: a\n")
    mission_file("one")
    mission_file("two", more="source: a\n")
    mission_file("three", more="source: b\n")
    assert at("forecast", *NOON).exit_code == 0
    assert sorted(opened) == ["left", "right"]
    mission_file("four", more="source: c\n")
    result = at("forecast", *NOON)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "mission four: there is no source 'c'" in result.stderr


def test_what_could_not_be_stored_is_shown_beside_the_error(
    at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailableError("no room", hint="make some")

    mission_file("full")
    stored = json.loads(at("forecast", *ELEVEN, "-o", "json").stdout)["missions"][0]
    scored = json.loads(at("detect", *NOON, "--dry-run", "-o", "json").stdout)["missions"][0]
    monkeypatch.setattr(store, "write_forecasts", refuse)
    monkeypatch.setattr(store, "write_scores", refuse)
    error = {"message": "no room", "hint": "make some", "exit_code": 4}
    for command, before in ((("forecast", *ELEVEN), stored), (("detect", *NOON), scored)):
        result = at(*command, "-o", "json")
        assert result.exit_code == 4
        document = json.loads(result.stdout)
        assert (document["failed"], document["written"]["samples"]) == (1, 0)
        assert document["missions"] == [{**before, "error": error}]
    table = at("detect", *NOON)
    assert table.exit_code == 4
    line = next(line for line in table.stdout.splitlines() if line.startswith("full"))
    assert line.split()[:4] == ["full", "3", "17", "3"]
    assert line.endswith("no room")
    assert "1 of 1 mission scored, 17 points; 1 could not be stored; 0 samples stored" in table.stdout
    assert "note: full: make some" in table.stderr


def test_missions_run_on_a_folder_of_files(at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    requests().to_frame().write_parquet("metrics/requests.parquet")
    mission_file("on-files")
    for command in (("forecast", *ELEVEN), ("detect", *NOON)):
        result = at(*command, "--url", "metrics", "--jobs", "3")
        assert result.exit_code == 0, result.stderr
    assert "17 samples stored" in result.stdout
    assert list(Path("metrics/anomaly-times/scores/on-files").iterdir())


def test_a_mission_names_the_series_that_fell_back() -> None:
    labels = tuple(Labels.of({"job": f"{i}"}) for i in range(6))
    values = np.ones((6, 3))
    notes = dict.fromkeys(range(5), "profile instead of ets (only 3 points)") | {5: "no season covered twice"}
    forecast = Forecast(labels, Grid.ending(AT, STEP, 3), AT, values, values, values, notes)
    outcome = outcome_of(ForecastResult(Mission(name="m", promql=QUERY, step=STEP), forecast))
    assert outcome.remarks == ('5 series ({job="0"}, {job="1"}, {job="2"}, …): profile instead of ets (only 3 points)',)
