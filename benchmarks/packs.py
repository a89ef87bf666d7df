"""Scheduled runs of packs on real servers: how long one takes, and what Prefect's part of it costs."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_times.conventions import Kind, pack_slug
from anomaly_times.deployed import DeployedMission, Pause
from anomaly_times.durations import EPOCH
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels
from anomaly_times.plan import KINDS, PACK_SIZE, PackSchedule, Timing
from anomaly_times.scheduling import sync
from anomaly_times.scheduling.bases import deploy_bases
from anomaly_times.scheduling.server import PrefectServer
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.http import HttpClient
from anomaly_times.stores.samples import Samples
from benchmarks.measure import Row, cpu_seconds
from tests import servers
from tests.prefect_bases import api
from tests.prefect_server import environment, prefect_server, process_worker

PROJECT, POOL = "bench", "bench"
MINUTE = timedelta(minutes=1)
SERIES = 10
"""Of each mission."""
IDLE, WATCHED = 30, 240
"""Seconds for which a server without runs is watched, and one with runs."""
PACKS = 4


@dataclass(frozen=True)
class Run:
    """A run that ended: its slot, and when a worker took it, its flow began, and it ended."""

    due: datetime
    taken: datetime
    began: datetime
    ended: datetime
    message: str

    @property
    def stored(self) -> str:
        """What it did, without its worst scores."""
        return self.message.partition(", worst")[0]

    @property
    def late(self) -> float:
        """Seconds from the slot to the end."""
        return (self.ended - self.due).total_seconds()

    @property
    def started(self) -> float:
        """Seconds in which the process started and imported; of a run that was taken early, with the wait."""
        return (self.began - self.taken).total_seconds()

    @property
    def inside(self) -> float:
        """Seconds in the flow."""
        return (self.ended - self.began).total_seconds()


class Prefect:
    """A Prefect server on SQLite with the base deployments, and one process worker with Prefect's own settings."""

    def __init__(self, folder: Path, server: servers.Server, worker: servers.Server) -> None:
        self.folder, self.server, self.worker = folder, server, worker
        self.api = PrefectServer(server.url + "/api")
        self.ids: Mapping[Kind, str] = {base.kind: base.id for base in self.api.base_deployments()}

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer of its API."""
        return api(self.server.url, method, path, body)

    def ended(self, kind: Kind, pack: str = "", *, count: int, within: float) -> list[Run]:
        """The last `count` runs of a pack, or of any, once that many have ended, oldest first."""
        known: dict[str, Run] = {}
        deadline = time.monotonic() + within
        asked = {
            "sort": "END_TIME_DESC",
            "limit": 200,
            "deployments": {"id": {"any_": [self.ids[kind]]}},
            "flow_runs": {"end_time": {"is_null_": False}},
        }
        while time.monotonic() < deadline:
            for run in self.ask("POST", "flow_runs/filter", asked):
                if run["id"] not in known and pack in ("", run["parameters"].get("pack")):
                    known[run["id"]] = self._run(run)
            if len(known) >= count:
                return sorted(known.values(), key=lambda run: run.due)[-count:]
            time.sleep(0.5)
        raise RuntimeError(f"{len(known)} of {count} runs of {pack or kind} ended:\n{self.worker.log[-3000:]}")

    def _run(self, run: Mapping[str, Any]) -> Run:
        state = run["state"]
        if state["type"] != "COMPLETED":
            raise RuntimeError(f"the run {run['name']} ended as {state['name']}: {state['message']}")
        at: dict[str, datetime] = {}
        for each in self.ask("GET", f"flow_run_states/?flow_run_id={run['id']}"):
            at[each["type"]] = datetime.fromisoformat(each["timestamp"])
        due = datetime.fromisoformat(run["expected_start_time"])
        return Run(due, at["PENDING"], at["RUNNING"], at["COMPLETED"], state["message"] or "")

    def rest(self, place: str) -> str:
        """A detect pack whose one mission is paused, by its slug: its runs do everything but the work."""
        forecast, detect = (pack_slug(PROJECT, kind, "1m", place) for kind in KINDS)
        resting = mission(0).model_copy(update={"name": f"resting-{place}"})
        self.api.create_mission(DeployedMission(resting, PROJECT, (forecast, detect), EPOCH, Pause()))
        return detect

    def idle_run(self) -> Run:
        """A run that does nothing, at once."""
        pack = self.rest(f"{time.monotonic_ns()}")
        self.ask("POST", f"deployments/{self.ids['detect']}/create_flow_run", {"parameters": {"pack": pack}})
        return self.ended("detect", pack, count=1, within=120)[0]

    def next_run(self, *, after: datetime) -> Run:
        """The next run of the missions' detect pack to end whose slot is after a time."""
        pack = pack_slug(PROJECT, "detect", "1m", "00")
        deadline = time.monotonic() + 300
        while (run := self.ended("detect", pack, count=1, within=300)[0]).due <= after:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{pack} does not run any more:\n{self.worker.log[-3000:]}")
            time.sleep(0.5)
        return run

    def rows(self) -> dict[str, int]:
        """How many rows each table of the database has, and in `""` how many runs have ended."""
        with closing(sqlite3.connect(f"file:{self.folder / 'home' / 'prefect.db'}?mode=ro", uri=True)) as database:

            def count(what: str) -> int:
                return int(database.execute(f"select count(*) from {what}").fetchone()[0])

            tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
            return {"": count("flow_run where end_time is not null")} | {name: count(f'"{name}"') for name in tables}


@contextmanager
def prefect(folder: Path, **env: str) -> Iterator[Prefect]:
    """Both running, in `folder`; `env` is told the worker, and so its runs."""
    # The tests look for new runs more often than Prefect does by itself.
    server = prefect_server(folder, PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="60")
    try:
        with PrefectServer(server.url + "/api") as connection:
            deploy_bases(connection, work_pool=POOL)
        known = environment(folder / "worker-home", server.url + "/api") | {"AT_PROJECT": PROJECT, **env}
        worker = process_worker(folder, POOL, known)
        try:
            running = Prefect(folder, server, worker)
            with running.api:
                yield running
        finally:
            worker.stop()
    finally:
        server.stop()


def mission(number: int) -> Mission:
    """A rate of counters, one series a service; its history is a day, so that loading it does not take the time."""
    return Mission.model_validate(
        {
            "name": f"mission-{number}",
            "promql": f'sum by (service) (rate(bench_requests_total{{job="job-{number}"}}[5m]))',
            "step": "1m",
            "forecast": {"every": "1h", "lookback": "1d", "model": "profile"},
            "detect": {"every": "1m", "direction": "above", "min_relative_deviation": "20%"},
        }
    )


def load_counters(server: servers.Server, missions: int) -> None:
    """A day of counters for each mission, and two hours that are still to come."""
    grid = Grid.ending(datetime.now(UTC) + timedelta(hours=2), MINUTE, 26 * 60)
    rng = np.random.default_rng(7)
    shape = 1 + 0.5 * np.sin(np.arange(grid.n) * 2 * np.pi / 1440)
    with HttpClient(Source(url=server.url)) as client:
        for first in range(0, missions, 50):
            jobs = range(first, min(first + 50, missions))
            rows = [
                Labels.of({"job": f"job-{job}", "service": f"service-{i}", "instance": f"10.0.{job}.{i}:9100"})
                for job in jobs
                for i in range(SERIES)
            ]
            requests = rng.poisson(600 * shape, (len(rows), grid.n)).astype(float)
            samples = Samples(("bench_requests_total",), rows, grid.epoch_ms(), requests.cumsum(axis=1)[:, None, :])
            for body in remote_write.encode([samples]):
                client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
    server.flush()


def one_pack(count: int, repeat: int) -> list[Row]:
    """A pack that Prefect schedules each minute, on servers of its own; a series has one new point each time."""
    missions = [mission(i) for i in range(count)]
    with tempfile.TemporaryDirectory() as temp:
        metrics = servers.victoria_metrics(Path(temp) / "metrics", "-dedup.minScrapeInterval=1ms")
        try:
            load_counters(metrics, count)
            with prefect(Path(temp) / "prefect", AT_SOURCES__MAIN__URL=metrics.url) as world:
                return _watch(world, missions, repeat)
        finally:
            metrics.stop()


def _watch(world: Prefect, missions: Sequence[Mission], repeat: int) -> list[Row]:
    # What a run takes that has nothing to do, while there is nothing else.
    idle = [world.idle_run() for _ in range(repeat)]

    sync.apply(world.api, missions, project=PROJECT, clock=lambda: datetime.now(UTC))
    forecast = world.ended("forecast", count=1, within=600)[0]
    # The first run that finds forecasts has points to catch up with; each later one has a new one.
    first = world.next_run(after=forecast.ended)
    warm: list[Run] = []
    while len(warm) < repeat:
        warm.append(world.next_run(after=warm[-1].due if warm else first.due))

    size = f"{len(missions)} missions × {SERIES} series"
    prefects = float(np.median([run.inside for run in idle]))
    passes = tuple(run.inside - prefects for run in warm)
    overhead = tuple(run.started + run.inside for run in idle)
    return [
        Row(f"forecast run of a pack, {size}, a day of minutes", "s", (forecast.inside,), forecast.stored),
        Row(
            f"scheduled detection of a pack, {size}: slot to end",
            "s",
            tuple(run.late for run in warm),
            f"{warm[-1].stored}; the first one {first.late:.1f} s, {first.stored}",
            "< 60 s",
        ),
        Row(
            "… the pass itself, with the missions read from Prefect",
            "s",
            passes,
            "without what a pack takes whose missions rest",
        ),
        Row(
            "… Prefect's part, most of it ahead of the slot",
            "s",
            overhead,
            f"a pack that rests: process and imports {np.median([run.started for run in idle]):.1f} s, "
            f"API {prefects:.1f} s",
        ),
    ]


def an_hour(missions: int) -> list[Row]:
    """What runs cost Prefect whatever they do: measured on scheduled runs of packs that rest."""
    packs = -(-missions // PACK_SIZE)
    hourly = packs * 60 + packs
    with tempfile.TemporaryDirectory() as temp, prefect(Path(temp) / "prefect") as world:
        time.sleep(IDLE / 2)
        before = cpu_seconds(world.server.process.pid), cpu_seconds(world.worker.process.pid)
        time.sleep(IDLE)
        idle = [
            cpu_seconds(each.process.pid) - start
            for each, start in zip((world.server, world.worker), before, strict=True)
        ]
        slugs = [world.rest(f"{i:02}") for i in range(PACKS)]
        for i, slug in enumerate(slugs):
            timing = Timing(MINUTE, MINUTE * i / PACKS)
            schedule = PackSchedule(slug, "detect", timing, parameters={"pack": slug})
            world.api.create_schedule(world.ids["detect"], schedule)
        for slug in slugs:
            world.ended("detect", slug, count=1, within=240)
        start, spent = world.rows(), [cpu_seconds(world.server.process.pid), cpu_seconds(world.worker.process.pid)]
        time.sleep(WATCHED)
        end, after = world.rows(), [cpu_seconds(world.server.process.pid), cpu_seconds(world.worker.process.pid)]
    grown = {table: end[table] - start.get(table, 0) for table in end}
    runs = grown.pop("")
    rate = WATCHED / IDLE
    server, worker = ((b - a - rate * i) / runs for a, b, i in zip(spent, after, idle, strict=True))
    a_run = sum(grown.values()) / runs
    most = sorted(((count / runs, table) for table, count in grown.items() if count), reverse=True)
    tables = ", ".join(f"{table} {count:.3g}" for count, table in most[:6])
    counted = f"{hourly:,} runs × what {runs} scheduled runs of packs that rest took"
    return [
        Row(
            f"runs an hour for {missions:,} missions",
            "runs",
            (float(hourly),),
            f"{packs} packs that detect each minute and {packs} that forecast each hour",
        ),
        Row("database rows of a run, SQLite", "rows", (a_run,), tables),
        Row("database rows an hour, extrapolated", "rows", (a_run * hourly,), counted),
        Row(
            "processor time of a run: worker", "s", (worker,), f"with the process; idle {idle[1] / IDLE:.1%} of a core"
        ),
        Row("processor time of a run: server", "s", (server,), f"idle {idle[0] / IDLE:.1%} of a core"),
        Row(
            "processor time an hour, extrapolated",
            "cores",
            ((server + worker) * hourly / 3600 + sum(idle) / IDLE,),
            f"{counted}, and idling; the passes come on top",
        ),
    ]
