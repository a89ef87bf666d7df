"""`at status`: what the stores hold of each mission, beside what Prefect knows of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import anomaly_times.cli.options
import anomaly_times.scheduling.server
from anomaly_times.cli import render
from anomaly_times.cli.options import Output
from anomaly_times.cli.status_view import Deployed, StatusView
from anomaly_times.conventions import Kind
from anomaly_times.deployed import DeployedMission, Pause
from anomaly_times.engine import run_pass
from anomaly_times.errors import StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.scheduling.health import Health, read_health
from anomaly_times.scheduling.server import EndedRun
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, Run, requests

NOW = AT + timedelta(seconds=30)


def mission(name: str) -> Mission:
    return Mission.model_validate(
        {
            "name": name,
            "promql": QUERY,
            "step": "10m",
            "forecast": {"model": "seasonal_naive", "every": "1h"},
            "detect": {"every": "10m"},
        }
    )


def ran(
    store: MemoryStore, name: str, *, forecast: timedelta | None = None, detect: timedelta | None = None
) -> Mission:
    """The mission, after passes that were so long ago."""
    if forecast is not None:
        run_pass("forecast", [mission(name)], {"": store}, now=NOW - forecast)
    if detect is not None:
        run_pass("detect", [mission(name)], {"": store}, now=NOW - detect)
    return mission(name)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore({QUERY: requests()})


HOUR, MINUTES = timedelta(hours=1), timedelta(minutes=1)


def test_what_the_store_holds_says_how_a_mission_is(memory: MemoryStore) -> None:
    missions = [
        ran(memory, "fine", forecast=HOUR, detect=timedelta(0)),
        ran(memory, "slow", forecast=HOUR, detect=30 * MINUTES),
        ran(memory, "late", forecast=1.5 * HOUR, detect=40 * MINUTES),
        ran(memory, "old", forecast=1.7 * HOUR, detect=1.5 * HOUR),
        ran(memory, "new", forecast=timedelta(0)),
        ran(memory, "nothing"),
        ran(memory, "stopped", forecast=5 * HOUR, detect=4 * HOUR),
    ]
    found = {one.mission.name: one for one in read_health(missions, {"": memory}, now=NOW)}
    assert {name: one.state for name, one in found.items()} == {
        "fine": "ok",
        "slow": "ok",  # three cadences are allowed
        "late": "late",
        "old": "late",
        "new": "unscored",
        "nothing": "unforecast",
        "stopped": "unforecast",
    }
    assert found["fine"] == Health(mission("fine"), AT, timedelta(0), AT + HOUR)
    assert found["late"].lag == 40 * MINUTES
    assert found["old"].scored is not None
    assert found["stopped"].scored == AT - 4 * HOUR


def test_a_store_that_is_away_is_the_error_of_its_missions_only(memory: MemoryStore) -> None:
    class Away(MemoryStore):
        def read_scores(self, *_: object) -> None:  # type: ignore[override]
            raise StoreUnavailableError("away")

    here = ran(memory, "here", forecast=HOUR, detect=timedelta(0))
    there = mission("there").model_copy(update={"source": "far"})
    found = read_health([there, here], {"": memory, "far": Away()}, now=NOW)
    assert [one.state for one in found] == ["error", "ok"]


def test_many_missions_take_few_queries(memory: MemoryStore) -> None:
    class Counting(MemoryStore):
        queries = 0

        def read_scores(self, *args: object, **more: object):  # type: ignore[no-untyped-def,override]
            self.queries += 1
            return super().read_scores(*args, **more)  # type: ignore[arg-type]

        def read_forecasts(self, *args: object, **more: object):  # type: ignore[no-untyped-def,override]
            self.queries += 1
            return super().read_forecasts(*args, **more)  # type: ignore[arg-type]

    store = Counting({QUERY: requests()})
    missions = [mission(f"m{i}") for i in range(50)]
    run_pass("forecast", missions, {"": store}, now=NOW - HOUR)
    run_pass("detect", missions, {"": store}, now=NOW)
    store.queries = 0
    assert {one.state for one in read_health(missions, {"": store}, now=NOW)} == {"ok"}
    assert store.queries == 2


@pytest.fixture
def noon(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly_times.cli.options, "utc_now", lambda: NOW)
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", "no-profiles.toml")


@pytest.mark.usefixtures("noon")
def test_the_missions_of_files_are_shown_without_prefect(at: Run, store: MemoryStore) -> None:
    Path("missions").mkdir()
    for name in ("fine", "nothing"):
        Path(f"missions/{name}.yaml").write_text(mission(name).model_dump_json(exclude_defaults=True))
    ran(store, "fine", forecast=HOUR, detect=timedelta(0))
    result = at("status")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith(("fine ", "nothing "))]
    assert [row[:2] for row in rows] == [["nothing", "unforecast"], ["fine", "ok"]]
    assert rows[1][2:5] == ["12:00", "0s", "13:00"]
    assert "nothing: no forecast is stored for the time to come" in result.stdout
    assert "2 missions: 1 unforecast, 1 ok" in result.stdout
    document = json.loads(at("status", "missions/fine.yaml", "-o", "json").stdout)
    assert document["missions"] == [
        {
            "mission": "fine",
            "state": "ok",
            "scored_until": "2026-03-01T12:00:00Z",
            "lag_seconds": 0.0,
            "forecast_until": "2026-03-01T13:00:00Z",
            "last_run": None,
            "remarks": [],
        }
    ]
    assert at("status", "--fail-on-lag").exit_code == 3
    assert at("status", "missions/fine.yaml", "--fail-on-lag").exit_code == 0


def _view() -> StatusView:
    def deployed(name: str, pause: Pause | None = None) -> DeployedMission:
        packs = ("at:p:forecast:1h:00", "at:p:detect:10m:00")
        return DeployedMission(mission(name), "p", packs, AT - timedelta(days=9), pause)

    def run(about: str, minutes: int, state: str, message: str = "", errors: dict[str, str] | None = None) -> EndedRun:
        kind: Kind = "forecast" if "forecast" in about else "detect"
        return EndedRun(f"{about} {minutes}", kind, about, AT - minutes * MINUTES, state, message, errors=errors)

    some = {"bad": "metrics are away", **{f"m{i}": "metrics are away" for i in range(12)}}
    runs = (
        run("at:p:detect:10m:00", 1, "Partial", "2 missions scored, 13 failed: m0, m1 and 11 more", some),
        run("at:p:detect:10m:00", 11, "Failed", "an old story"),
        run("at:p:forecast:1h:00", 30, "Completed"),
        run("bad-luck", 0, "Crashed", "out of memory"),
        run("bad", 40, "Failed", "over since"),
    )
    resting = [deployed("resting", Pause(AT + HOUR, "a release")), deployed("rested", Pause(AT - HOUR, "over"))]
    missions = (deployed("bad"), deployed("bad-luck"), *resting)
    health = tuple(Health(one.mission, AT, timedelta(0), AT + HOUR) for one in missions)
    return StatusView(health, NOW, Deployed(missions, {"broken": "the Variable at_broken holds no mission"}, runs))


def test_what_prefect_knows_stands_beside(capsys: pytest.CaptureFixture[str]) -> None:
    entries = {entry["mission"]: entry for entry in _view().document()["missions"]}
    assert {name: entry["state"] for name, entry in entries.items()} == {
        "bad": "ok",
        "bad-luck": "ok",
        "resting": "paused",
        "rested": "ok",
        "broken": "error",
    }
    assert entries["rested"]["last_run"] == {"ended": "2026-03-01T11:59:00Z", "state": "Partial"}
    # A run that failed in part is told where it failed, and only the newest of each kind counts.
    assert entries["bad"]["remarks"] == ["at:p:detect:10m:00 Partial: metrics are away"]
    assert entries["bad-luck"]["remarks"] == ["bad-luck Crashed: out of memory"]
    assert entries["resting"]["remarks"] == ["paused until 2026-03-01 13:00: a release"]
    assert entries["broken"]["remarks"] == ["the Variable at_broken holds no mission"]
    assert entries["rested"]["remarks"] == []


def test_status_fits_80_columns_and_cuts_no_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    view = _view()
    assert view.deployed is not None
    long = replace(view.deployed, broken={}, runs=tuple(replace(r, ended=r.ended - HOUR) for r in view.deployed.runs))
    names = ["checkout-latency-eu", "up"]
    missions = tuple(replace(long.deployed[0], mission=mission(name)) for name in names)
    health = tuple(Health(one.mission, AT - 3 * HOUR, 3 * HOUR) for one in missions)
    render.show_report(StatusView(health, NOW, replace(long, deployed=missions)), Output.TABLE)
    table = capsys.readouterr().out.partition("\ncheckout-latency-eu: ")[0].splitlines()
    assert all(len(line) <= 80 for line in table)
    assert [line.split() for line in table[2:]] == [
        ["checkout-latency-eu", "unforecast", "09:00", "3h", "–", "10:59", "Partial"],
        ["up", "unforecast", "09:00", "3h", "–", "10:59", "Partial"],
    ]


def test_a_mission_is_new_until_its_first_forecast_and_scores_are_due() -> None:
    def state(age: timedelta, *, failed: bool = False) -> tuple[str, bool]:
        deployed = DeployedMission(mission("m"), "p", ("at:p:forecast:1h:00", "at:p:detect:10m:00"), NOW - age)
        error = EndedRun("x", "forecast", "m", AT, "Failed", "no such metric")
        view = StatusView((Health(mission("m")),), NOW, Deployed((deployed,), {}, (error,) if failed else ()))
        [entry] = view.document()["missions"]
        return entry["state"], view.needs_help

    assert state(5 * MINUTES) == ("new", False)
    assert state(89 * MINUTES) == ("new", False)  # forecasts hourly, scores every ten minutes
    assert state(91 * MINUTES) == ("unforecast", True)
    assert state(5 * MINUTES, failed=True) == ("unforecast", True)


def test_a_run_that_failed_as_a_whole_is_told_at_all_its_missions() -> None:
    view = _view()
    assert view.deployed is not None
    failed = EndedRun("x", "forecast", "at:p:forecast:1h:00", AT, "Failed", "the settings are broken")
    view = replace(view, deployed=replace(view.deployed, runs=(failed,)))
    entries = {entry["mission"]: entry for entry in view.document()["missions"]}
    assert entries["rested"]["remarks"] == ["at:p:forecast:1h:00 Failed: the settings are broken"]


@pytest.mark.usefixtures("noon")
def test_a_mission_of_an_unknown_source_hides_no_other(at: Run, store: MemoryStore) -> None:
    Path("anomaly-times.yaml").write_text("sources: {main: {url: 'http://metrics:8428'}}\n")
    Path("missions").mkdir()
    for name, source in (("fine", ""), ("lost", "gone"), ("lost-too", "gone")):
        one = mission(name).model_copy(update={"source": source})
        Path(f"missions/{name}.yaml").write_text(one.model_dump_json(exclude_defaults=True))
    ran(store, "fine", forecast=HOUR, detect=timedelta(0))
    result = at("status", "-o", "json")
    assert result.exit_code == 3, result.stderr
    found = {one["mission"]: (one["state"], one["remarks"]) for one in json.loads(result.stdout)["missions"]}
    lost = ("error", ["there is no source 'gone' (known: main)"])
    assert found == {"fine": ("ok", []), "lost": lost, "lost-too": lost}


def test_a_server_that_is_set_and_away_is_an_error(
    at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(anomaly_times.scheduling.server, "_AWAY_FOR", 0.1)
    result = at("status")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "127.0.0.1:9" in result.stderr


def test_the_clock_is_utc() -> None:
    assert abs(anomaly_times.cli.options.utc_now() - datetime.now(UTC)) < timedelta(seconds=5)
