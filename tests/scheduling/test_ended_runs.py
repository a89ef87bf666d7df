"""How runs ended, on a real Prefect server: what `at status` and `at up` tell."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import anomaly_times.scheduling.server as server_module
from anomaly_times.cli.up import RunLog
from anomaly_times.conventions import project_tag
from anomaly_times.mission import Mission
from anomaly_times.scheduling import sync
from anomaly_times.scheduling.server import EndedRun, PrefectServer
from tests import servers
from tests.prefect_bases import api, base_deployments

pytestmark = pytest.mark.servers

PROJECT = "ended"
HOURLY, MINUTELY = f"at:{PROJECT}:forecast:1h:00", f"at:{PROJECT}:detect:1m:00"


class Runs:
    """Runs of the base deployments that end as a test says."""

    def __init__(self, url: str) -> None:
        self.url, self.bases = url, base_deployments(url)
        self.server = PrefectServer(url + "/api")

    def scheduled(self, slug: str, count: int) -> list[str]:
        """The next runs of a pack that Prefect's scheduler made."""
        [schedule] = [one for one in self.server.read_state(PROJECT).schedules if one.slug == slug]
        where = {"flow_runs": {"created_by": {"id_": [schedule.id]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}
        deadline = time.monotonic() + 60
        while True:
            found = api(self.url, "POST", "flow_runs/filter", {**where, "sort": "EXPECTED_START_TIME_ASC"})
            if len(found) >= count:
                return [str(run["id"]) for run in found[:count]]
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def started(self, kind: str, parameters: dict[str, Any], tags: tuple[str, ...] = ()) -> str:
        body = {"parameters": parameters, "tags": list(tags)}
        return str(api(self.url, "POST", f"deployments/{self.bases[kind]}/create_flow_run", body)["id"])

    def end(self, run: str, kind: str, name: str, message: str = "") -> str:
        state = {"type": kind, "name": name, "message": message}
        api(self.url, "POST", f"flow_runs/{run}/set_state", {"state": state, "force": True})
        return run

    def table(self, run: str, kind: str, rows: list[dict[str, Any]]) -> None:
        """As `create_table_artifact` makes it in a run."""
        body = {"key": f"{kind}-missions", "type": "table", "data": json.dumps(rows), "flow_run_id": run}
        api(self.url, "POST", "artifacts/", body)

    def last(self) -> dict[tuple[str, str], EndedRun]:
        found = self.server.last_runs(PROJECT, self.server.read_state(PROJECT))
        return {(run.kind, run.about): run for run in reversed(found)}


@pytest.fixture
def runs(prefect_server: servers.Server) -> Iterator[Runs]:
    """Two missions in an hourly and a minutely pack, which are gone at the end."""
    here = Runs(prefect_server.url)
    missions = [Mission(name=f"ended-{name}", promql="up") for name in ("a", "b")]
    sync.apply(here.server, missions, project=PROJECT, clock=lambda: datetime.now(UTC))
    yield here
    for mission in missions:
        sync.delete(here.server, mission.name, project=PROJECT)
    here.server.close()


def test_a_failed_forecast_is_seen_however_many_detections_ended_since(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "PAGE", 5)
    runs.end(runs.scheduled(HOURLY, 1)[0], "FAILED", "Failed", "metrics are away")
    for run in runs.scheduled(MINUTELY, 12):
        runs.end(run, "COMPLETED", "Completed", "2 missions scored")
    found = runs.last()
    assert (found["forecast", HOURLY].state, found["forecast", HOURLY].message) == ("Failed", "metrics are away")
    assert found["detect", MINUTELY].state == "Completed"


def test_a_skipped_run_does_not_hide_how_the_one_before_ended(runs: Runs) -> None:
    first, second = runs.scheduled(MINUTELY, 2)
    runs.end(first, "CRASHED", "Crashed", "out of memory")
    runs.end(second, "COMPLETED", "Skipped", "a newer run did it")
    assert runs.last()["detect", MINUTELY].state == "Crashed"


def test_each_mission_that_failed_in_a_run_is_told_with_its_own_error(runs: Runs) -> None:
    [run] = runs.scheduled(HOURLY, 1)
    many = {f"m{i}": f"error {i}" for i in range(30)}
    fine = [{"mission": "fine", "series": 3, "until": "", "ended": 0, "warnings": ""}]
    runs.table(run, "forecast", fine + [{"mission": name, "error": error} for name, error in many.items()])
    runs.end(run, "COMPLETED", "Partial", "1 mission forecast, 30 failed: m0, m1 and 28 more")
    assert runs.last()["forecast", HOURLY].errors == many
    # A run that failed before it came to its missions has no table.
    [run] = runs.scheduled(MINUTELY, 1)
    runs.end(run, "FAILED", "Failed", "the settings are broken")
    assert runs.last()["detect", MINUTELY].errors is None


def test_runs_that_were_asked_for_count_where_they_are_of_this_project(runs: Runs) -> None:
    ours, theirs = (("anomaly-times", project_tag(name)) for name in (PROJECT, "somebody-else"))
    runs.end(runs.started("forecast", {"mission": "ended-a"}, ours), "FAILED", "Failed", "no data")
    runs.end(runs.started("forecast", {"mission": "ended-b"}, theirs), "FAILED", "Failed", "not ours")
    runs.end(runs.started("detect", {"promql": "up"}), "FAILED", "Failed", "by hand")
    runs.end(runs.started("forecast", {"mission": ["ended-a", "ended-b"]}, ours), "FAILED", "Failed", "both")
    found = runs.last()
    assert found["forecast", "2 missions"].missions == ("ended-a", "ended-b")
    assert found["forecast", "ended-a"].message == "no data"
    assert not {("forecast", "ended-b"), ("detect", "up")} & set(found)


def test_a_look_at_what_ended_finds_all_of_it_once(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "PAGE", 5)
    log = RunLog(runs.server, since=datetime.now(UTC))

    def told() -> list[str]:
        return [run.message for run in log.new() if run.message.startswith("told ")]

    for i in range(12):
        runs.end(runs.started("detect", {"promql": "up"}), "COMPLETED", "Completed", f"told {i:02d}")
    assert told() == [f"told {i:02d}" for i in range(12)]
    assert told() == []
    runs.end(runs.started("forecast", {"promql": "up"}), "FAILED", "Failed", "told 12")
    assert told() == ["told 12"]
    assert told() == []


def test_a_run_whose_end_became_known_late_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    ended: list[EndedRun] = []

    class Server:
        def ended_runs(self, *, since: datetime) -> list[EndedRun]:
            return sorted((run for run in ended if run.ended >= since), key=lambda run: run.ended, reverse=True)

    def run(name: str, seconds: int) -> EndedRun:
        return EndedRun(name, "detect", "up", now + timedelta(seconds=seconds), "Completed")

    log = RunLog(Server(), since=now)  # type: ignore[arg-type]
    ended.append(run("first", 20))
    assert [one.id for one in log.new()] == ["first"]
    ended.append(run("second", 15))
    assert [one.id for one in log.new()] == ["second"]
    assert log.new() == []
