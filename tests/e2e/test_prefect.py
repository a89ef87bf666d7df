"""Everything scheduled, for real: a Prefect server, a process worker, and a VictoriaMetrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from anomaly_times.conventions import (
    FORECAST_METRICS,
    LABEL_MISSION,
    MISSION_INFO,
    SCORE,
    SCORED_POINTS,
    name_for_query,
    pack_slug,
    variable_name,
)
from anomaly_times.deployed import DeployedMission
from anomaly_times.durations import EPOCH
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels
from anomaly_times.scheduling.server import PrefectServer
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.http import HttpClient
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from tests import servers
from tests.postgres import postgres
from tests.prefect_server import environment, process_worker
from tests.prefect_server import prefect_server as start_prefect

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
STEP = timedelta(seconds=5)
POOL = "e2e"
FORECASTING, DETECTION = "forecasting/forecasting-deployment", "detection/detection-deployment"


@dataclass
class World:
    """The servers, and what is asked of them."""

    prefect: servers.Server
    metrics: servers.Server
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        known = environment(self.folder / "home", self.prefect.url + "/api")
        more = {"AT_SOURCES__MAIN__URL": self.metrics.url, "AT_PROJECT": "e2e", "PREFECT_WORKER_QUERY_SECONDS": "1"}
        return {**known, **more, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def command(self, *words: str, **env: str) -> str:
        done = subprocess.run(
            words, env={**self.env, **env}, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def worker(self, **env: str) -> servers.Server:
        """A worker that takes runs of the pool."""
        return process_worker(self.folder, POOL, self.env | env)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        while True:
            # SQLite: its writers can block each other for a minute, and then get 503, "database is locked".
            answer = httpx.request(method, f"{self.prefect.url}/api/{path}", json=body, timeout=90)
            if answer.status_code != 503:
                break
            time.sleep(0.3)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def schedule(self, deployment: str, after: timedelta, parameters: Mapping[str, Any], **fields: Any) -> str:
        """Add a schedule by hand whose first slot is `after` from now; gives its id."""
        anchor = (datetime.now(UTC) + after).isoformat()
        # A server that is too busy to plan the first slot in time plans the next.
        timing = {"interval": 120, "anchor_date": anchor, "timezone": "UTC"}
        body = [{"active": True, "schedule": timing, "parameters": parameters, **fields}]
        (made,) = self.ask("POST", f"deployments/{self.id_of(deployment)}/schedules", body)
        return str(made["id"])

    def id_of(self, deployment: str) -> str:
        return str(self.ask("GET", f"deployments/name/{deployment}")["id"])

    def run(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        made = self.ask("POST", f"deployments/{self.id_of(deployment)}/create_flow_run", {"parameters": parameters})
        return self.ended(lambda run: bool(run["id"] == made["id"]))

    def ended(self, wanted: Callable[[Mapping[str, Any]], bool], *, within: float = 300) -> dict[str, Any]:
        """The state of the first run that is `wanted`, once it has ended."""
        deadline = time.monotonic() + within
        # Schedules keep a hundred runs ahead each, so those that ended are asked for alone.
        types = {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}
        ended = {"flow_runs": {"state": {"type": types}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        while time.monotonic() < deadline:
            for run in self.ask("POST", "flow_runs/filter", ended):
                if wanted(run):
                    return dict(run["state"])
            time.sleep(0.5)
        runs = self.ask("POST", "flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC", "limit": 50})
        told = [(run["name"], run["state_name"], run["expected_start_time"]) for run in runs]
        logs = [f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.rglob("*.log")]
        raise AssertionError("\n".join([f"none that ended is it: {told}", *logs]))

    def of_schedule(self, schedule: str) -> dict[str, Any]:
        return self.ended(lambda run: bool((run["created_by"] or {}).get("id") == schedule))

    def schedules(self) -> list[tuple[str, Any]]:
        """Of both deployments, what people have set."""
        return [
            (deployment, {key: schedule[key] for key in ("id", "slug", "active", "schedule", "parameters")})
            for deployment in (FORECASTING, DETECTION)
            for schedule in self.ask("GET", f"deployments/name/{deployment}")["schedules"]
        ]

    def stored(
        self, metric: str, mission: str, *, within: float = 15, after: float = 0, over: float = -np.inf
    ) -> np.ndarray[Any, Any]:
        """The times (ms since the epoch) of the stored samples of a mission's first series, as soon as there are any.

        Only those `after` a time whose value is `over` something.
        """
        deadline = time.monotonic() + within
        with PrometheusStore(Source(url=self.metrics.url), state=self.folder) as store:
            # VictoriaMetrics takes a moment to find a series that is new.
            while time.monotonic() < deadline:
                self.metrics.flush()
                at = datetime.now(UTC) + timedelta(hours=3)
                found = store.query(f'{metric}{{{LABEL_MISSION}="{mission}"}}[6h]', at)
                times = [stamp for _, samples in found[:1] for stamp, value in samples if value > over]
                if times and times[-1] > after:
                    return np.array([stamp for stamp in times if stamp > after])
                time.sleep(0.5)
        return np.array([])


def mission(name: str) -> Mission:
    forecast = {"lookback": "1h", "every": "30m", "model": "profile"}
    fields = {"promql": "sum(e2e_load)", "step": "5s", "offset": "1s", "forecast": forecast, "detect": {"every": "5s"}}
    return Mission.model_validate({"name": name, **fields})


def load_metrics(server: servers.Server) -> None:
    """Three hours of two series, and ten minutes that are still to come."""
    grid = Grid.ending(datetime.now(UTC) + timedelta(minutes=10), STEP, 3 * 720)
    wave = 100 + 10 * np.sin(np.arange(grid.n) * 2 * np.pi / 120)
    y = wave + np.random.default_rng(0).normal(0, 1, (2, grid.n))
    rows = [Labels.of({"host": host}) for host in "ab"]
    with HttpClient(Source(url=server.url)) as client:
        for body in remote_write.encode([Samples(("e2e_load",), rows, grid.epoch_ms(), y[:, None])]):
            client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
    server.flush()


@pytest.fixture
def world(start: Callable[..., servers.Server], tmp_path: Path) -> World:
    """Servers of its own: what another test leaves on a shared Prefect would decide what runs here."""
    metrics = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    load_metrics(metrics)
    return World(start(start_prefect), metrics, tmp_path)


@pytest.fixture
def worker(world: World) -> Iterator[servers.Server]:
    """The pool must be there before, so that it is the one that `at deploy` makes."""
    assert f"made the work pool {POOL}" in world.command("at", "deploy", "--work-pool", POOL)
    server = world.worker()
    yield server
    server.stop()


def test_schedules_by_hand_and_packs_run_beside_each_other_and_survive_deploys(
    world: World, worker: servers.Server
) -> None:
    by_hand = {"promql": "e2e_load", "step": "5s", "offset": "1s", "lookback": "1h", "every": "30m"}
    name = name_for_query("main", "e2e_load")
    packs = pack_slug("e2e", "forecast", "30m", "00"), pack_slug("e2e", "detect", "5s", "00")
    with PrefectServer(world.prefect.url + "/api") as server:
        for each in ("e2e-good", "e2e-fine", "e2e-broken"):
            server.create_mission(DeployedMission(mission(each), "e2e", packs, EPOCH))
    world.ask("PATCH", f"variables/name/{variable_name('e2e-broken')}", {"value": {"spec": 99, "mission": {}}})

    soon = timedelta(seconds=20)
    forecast = world.schedule(FORECASTING, soon, {**by_hand, "model_type": "mstl"})
    misspelt = world.schedule(DETECTION, soon, {"promql": "e2e_load", "model-type": "mstl"})
    pack = world.schedule(FORECASTING, soon, {"pack": packs[0]}, slug=packs[0], active=False)
    # Switching a schedule on by the API empties its parameters.
    world.ask("PATCH", f"deployments/{world.id_of(FORECASTING)}/schedules/{pack}", {"active": True})

    failed = world.of_schedule(misspelt)
    assert failed["type"] == "FAILED", failed["message"] + worker.log
    assert "there is no parameter 'model-type'; did you mean 'model_type'?" in failed["message"]
    partial = world.of_schedule(pack)
    assert (partial["type"], partial["name"]) == ("COMPLETED", "Partial")
    assert partial["message"].endswith("1 failed: e2e-broken")
    state = world.of_schedule(forecast)
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed"), state["message"]
    assert state["message"].startswith("1 mission forecast")
    detect = world.schedule(DETECTION, soon, {**by_hand, "model_type": "mstl"})
    state = world.of_schedule(detect)
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed"), state["message"]
    assert state["message"].startswith("1 mission scored")
    for metric in (*FORECAST_METRICS, SCORE, MISSION_INFO, SCORED_POINTS):
        assert world.stored(metric, name).size, f"{metric}: {worker.log}"

    first = world.run(DETECTION, pack=packs[1])
    assert (first["type"], first["name"]) == ("COMPLETED", "Partial")
    before = world.schedules()
    assert len(before) == 4
    assert [schedule["parameters"] for _, schedule in before if schedule["id"] == pack] == [{}]
    world.command("at", "deploy", "--work-pool", POOL)
    assert world.schedules() == before
    world.command("prefect", "--no-prompt", "deploy", "--all", WORK_POOL_NAME=POOL)
    assert world.schedules() == before

    for deployment, schedule in before:
        world.ask("DELETE", f"deployments/{world.id_of(deployment)}/schedules/{schedule['id']}")
    # A worker that is away for longer than three cadences leaves no hole.
    worker.stop()
    time.sleep(20)
    again = world.worker()
    try:
        state = world.run(DETECTION, pack=packs[1])
    finally:
        again.stop()
    assert (state["type"], state["name"]) == ("COMPLETED", "Partial"), state["message"]
    for each in ("e2e-good", "e2e-fine"):
        scores = world.stored(SCORE, each)
        assert len(scores) > 20 / 5 + 3
        assert (np.diff(scores) == 5000).all()
        assert scores[-1] > (time.time() - 30) * 1000


MISSION = """
name: {name}
promql: {promql}
step: 5s
offset: 1s
forecast: {{every: 10m, lookback: 1h, model: profile}}
detect: {{every: 30s}}
"""


def test_files_become_scores_and_what_changes_in_them_changes_there(world: World, worker: servers.Server) -> None:
    ours, theirs = world.folder / "ours", world.folder / "theirs"

    def write(folder: Path, name: str, promql: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(MISSION.format(name=name, promql=promql))

    def at(*words: str, folder: Path = ours) -> str:
        return world.command("at", "mission", *words, AT_PROJECT=folder.name)

    def deployed(folder: Path) -> list[str]:
        return [each["name"] for each in json.loads(at("list", "-o", "json", folder=folder))["missions"]]

    for name, promql in {"e2e-sum": "sum(e2e_load)", "e2e-each": "e2e_load", "e2e-most": "max(e2e_load)"}.items():
        write(ours, name, promql)
    write(theirs, "e2e-theirs", "min(e2e_load)")
    for folder in (ours, theirs):
        at("apply", str(folder), "--yes", folder=folder)
    by_hand = {"promql": "e2e_load", "step": "5s", "offset": "1s", "lookback": "1h", "model_type": "mstl"}
    hand_made = [
        world.schedule(deployment, timedelta(hours=1), by_hand, active=False) for deployment in (FORECASTING, DETECTION)
    ]
    for name in (*deployed(ours), *deployed(theirs)):
        assert world.stored(SCORE, name, within=240).size, f"{name}: {worker.log}"
        for metric in FORECAST_METRICS:
            assert world.stored(metric, name).size, f"{metric} of {name}"

    # The same files again change nothing.
    schedules = world.schedules()
    ours_alone = {"variables": {"tags": {"all_": ["anomaly-times"]}}}
    variables = world.ask("POST", "variables/filter", ours_alone)
    at("plan", str(ours), "--prune", "--detailed-exitcode")
    at("apply", str(ours), "--prune", "--yes")
    assert world.ask("POST", "variables/filter", ours_alone) == variables
    assert world.schedules() == schedules

    write(ours, "e2e-sum", "1000 * sum(e2e_load)")
    changes = json.loads(at("plan", str(ours), "-o", "json"))["changes"]
    assert [(change["name"], change["action"]) for change in changes] == [("e2e-sum", "update")]
    changed = time.time() * 1000
    at("apply", str(ours), "--yes")
    # Only a new forecast can say what the new query gives, and only scores against it come after the change.
    assert world.stored(FORECAST_METRICS[0], "e2e-sum", over=100_000, within=240).size, worker.log
    assert world.stored(SCORE, "e2e-sum", after=changed, within=240).size, worker.log

    (ours / "e2e-most.yaml").unlink()
    at("apply", str(ours), "--prune", "--yes")
    assert deployed(ours) == ["e2e-each", "e2e-sum"]
    assert deployed(theirs) == ["e2e-theirs"]
    kept = [schedule["id"] for _, schedule in world.schedules()]
    assert set(hand_made) < set(kept)
    assert world.schedules() == schedules


def _mentioning(text: str, psutil: Any) -> list[list[str]]:
    """The command lines of processes that have this in them."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if any(text in word for word in words)]


def test_packs_run_on_ray_by_setting_alone(world: World) -> None:
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray")
    packs = pack_slug("e2e", "forecast", "30m", "00"), pack_slug("e2e", "detect", "5s", "00")
    names = [f"ray-{i}" for i in range(3)]
    world.command("at", "deploy", "--work-pool", POOL)
    with PrefectServer(world.prefect.url + "/api") as server:
        for name in names:
            server.create_mission(DeployedMission(mission(name), "e2e", packs, EPOCH))
    # Paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="at-", dir="/tmp") as ray_folder:
        worker = world.worker(AT_ENGINE="ray", RAY_TMPDIR=ray_folder)
        try:
            forecast = world.run(FORECASTING, pack=packs[0])
            assert forecast["name"] == "Completed", forecast["message"]
            detection = world.run(DETECTION, pack=packs[1])
            assert detection["name"] == "Completed", detection["message"]
        finally:
            worker.stop()
        for name in names:
            assert world.stored(FORECAST_METRICS[0], name).size
            assert world.stored(SCORE, name).size
        # Each run had a cluster of its own, and left nothing of it behind.
        clusters = [path for path in Path(ray_folder, "ray").glob("session_2*") if not path.is_symlink()]
        assert len(clusters) == 2
        # Its idle workers end when they miss the others.
        deadline = time.monotonic() + 60
        while left := _mentioning(ray_folder, psutil):
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a database on a PostgreSQL of one's own."""
    with postgres() as url:
        yield url


def test_a_pack_runs_where_prefect_has_postgresql(
    database: str, start: Callable[..., servers.Server], tmp_path: Path
) -> None:
    prefect = start_prefect(tmp_path / "prefect", database=database)
    try:
        metrics = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
        load_metrics(metrics)
        world = World(prefect, metrics, tmp_path)
        world.command("at", "deploy", "--work-pool", POOL)
        packs = pack_slug("e2e", "forecast", "30m", "00"), pack_slug("e2e", "detect", "5s", "00")
        with PrefectServer(prefect.url + "/api") as server:
            server.create_mission(DeployedMission(mission("e2e-postgres"), "e2e", packs, EPOCH))
        worker = world.worker()
        try:
            for _ in range(2):
                state = world.run(FORECASTING, pack=packs[0])
                assert (state["type"], state["name"]) == ("COMPLETED", "Completed"), state["message"]
        finally:
            worker.stop()
        assert world.stored(FORECAST_METRICS[0], "e2e-postgres").size
    finally:
        prefect.stop()
