"""Passes on Ray: the same results as in this process, whatever happens to workers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_times.bounds import Block
from anomaly_times.engine import EngineName, Job, Node, Places, Ran, cluster, nodes_of_cluster, open_engine
from anomaly_times.errors import EngineError, MissingExtraError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.monitoring import About
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.settings import source_for_url
from anomaly_times.stores import open_store, remote_write
from anomaly_times.stores.samples import Samples
from tests import servers

# Ray leaves pipes and sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:subprocess:ResourceWarning")

NOW = datetime.now(UTC).replace(second=35, microsecond=0)
ABOUT = About("shop", "at:shop:forecast:1h:00")
PLACES = Places({"": source_for_url("http://127.0.0.1:9")}, Path("state"))


def mission(name: str, **fields: Any) -> Mission:
    spec = {"promql": f"load_{name}", "forecast": {"lookback": "6h", "model": "seasonal_naive"}, **fields}
    return Mission.model_validate({"name": name, **spec})


def loaded(server: servers.Server, missions: int) -> servers.Server:
    """A server with six hours of three series for each mission, the same on every one."""
    last = int(NOW.timestamp()) // 60 * 60
    stamps = [(last - 60 * i) * 1000 for i in range(361)][::-1]
    rng = np.random.default_rng(7)
    lines = []
    for i in range(missions):
        for job in "abc":
            metric = {"__name__": f"load_m{i}", "job": job}
            values = (50 + 5 * rng.normal(size=len(stamps))).round(6).tolist()
            lines.append(json.dumps({"metric": metric, "values": values, "timestamps": stamps}))
    servers.fetch(f"{server.url}/api/v1/import", data="\n".join(lines).encode(), timeout=60)
    server.flush()
    return server


def exported(server: servers.Server) -> dict[str, list[tuple[int, float]]]:
    """All results on a server, less what passes tell about themselves, for that holds seconds."""
    server.flush()
    body = servers.fetch(f"{server.url}/api/v1/export?match[]=%7B__name__=~%22anomaly_.*%22%7D&reduce_mem_usage=0")
    found = {}
    for line in body.decode().splitlines():
        series = json.loads(line)
        found[json.dumps(series["metric"], sort_keys=True)] = sorted(
            set(zip(series["timestamps"], series["values"], strict=True))
        )
    return found


def ran(name: EngineName, server: servers.Server, job: Job, state: Path, **how: Any) -> Ran:
    places = Places({"": source_for_url(server.url)}, state)
    with open_store(places.sources[""], state=state) as store, open_engine(name, places, **how) as opened:
        return opened.run(job, {"": store})


@pytest.fixture
def ray_address() -> Iterator[str]:
    """A cluster of one node on this machine, which passes join."""
    ray = pytest.importorskip("ray")
    context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


# -- without a cluster ---------------------------------------------------------------------------------------------


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught, open_engine("ray", PLACES):
        pass
    assert caught.value.exit_code == 2
    assert "anomaly-times[ray]" in caught.value.hint


def test_an_address_that_does_not_answer_is_told_at_once() -> None:
    pytest.importorskip("ray")
    address, began = f"127.0.0.1:{servers.free_port()}", time.monotonic()
    with pytest.raises(EngineError, match=f"no Ray cluster answers at {address}") as caught:
        nodes_of_cluster(address)
    assert caught.value.exit_code == 4
    assert "ray start --head" in caught.value.hint
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_what_answers_and_is_no_ray_keeps_nobody_waiting(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # In a process of its own, for Ray goes on trying in a thread until that ends.
    program = (
        "import sys; from anomaly_times.engine import cluster; cluster._JOINING = 3.0\n"
        "try: cluster.nodes_of_cluster(sys.argv[1])\n"
        "except cluster.EngineError as exc: print(exc.message, flush=True); import os; os._exit(exc.exit_code)"
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", program, address], capture_output=True, text=True, timeout=100, cwd=tmp_path
        )
    assert (done.returncode, done.stdout.strip()) == (4, f"what answers at {address} takes us into no Ray cluster")


def test_a_share_that_is_lost_runs_again_alone_and_the_one_that_kills_is_named() -> None:
    share = cluster._Share([mission("a"), mission("b")])
    again, given_up = cluster._after_loss("forecast", share, RuntimeError("died"))
    assert ([[m.name for m in each.missions] for each in again], given_up) == ([["a"], ["b"]], [])
    [again], given_up = cluster._after_loss("forecast", again[0], RuntimeError("died"))
    assert (again.tried, given_up) == (2, [])
    none, [failed] = cluster._after_loss("forecast", again, RuntimeError("died"))
    assert none == []
    assert failed.error is not None
    assert failed.error.message == "mission a ended its worker 3 times: died"
    assert failed.error.exit_code == 4


def test_a_task_that_raises_is_no_lost_worker() -> None:
    ray = pytest.importorskip("ray")
    two, one = cluster._Share([mission("a"), mission("b")]), cluster._Share([mission("a")], 1)
    ours = ray.exceptions.RayTaskError("_work", "Traceback", UsageError("no file ca.pem"))
    again, none = cluster._after_loss("forecast", two, ours)
    assert ([[m.name for m in each.missions] for each in again], none) == ([["a"], ["b"]], [])
    again, [result] = cluster._after_loss("forecast", one, ours)
    assert again == []
    assert isinstance(result.error, UsageError)
    assert result.error.message == "no file ca.pem"
    again, [result] = cluster._after_loss("detect", one, ray.exceptions.RayTaskError("_work", "", ValueError("oh")))
    assert again == []
    assert result.error is not None
    assert (result.error.exit_code, result.error.message) == (1, "mission a met a bug of ours on Ray: ValueError: oh")


@pytest.mark.slow
@pytest.mark.servers
def test_a_cluster_that_loses_its_head_is_an_error_and_no_sudden_end(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("psutil")
    # In a process of its own, for Ray may end it.
    program = tmp_path / "lose.py"
    program.write_text(
        """
import os, signal, sys, threading
from datetime import UTC, datetime
from pathlib import Path
import psutil
from anomaly_times.engine import Job, Places, cluster, open_engine
from anomaly_times.errors import EngineError
from anomaly_times.mission import Mission
from anomaly_times.settings import source_for_url
from anomaly_times.stores import open_store

cluster._HEADLESS = 4.0
names = [f"m{i}" for i in range(200)]
spec = {"forecast": {"lookback": "6h", "model": "seasonal_naive"}}
missions = [Mission.model_validate({"name": name, "promql": name, **spec}) for name in names]
places = Places({"": source_for_url("http://127.0.0.1:9")}, Path("state"))

def behead():
    for process in psutil.Process().children(recursive=True):
        if "gcs_server" in process.name():
            os.kill(process.pid, signal.SIGKILL)

try:
    with open_store(places.sources[""], state=places.state) as store, open_engine("ray", places, jobs=1) as engine:
        threading.Timer(1.0, behead).start()
        engine.run(Job("forecast", missions, datetime.now(UTC), write=False), {"": store})
except EngineError as exc:
    print(exc.message, exc.hint, sep="|", flush=True)
    sys.exit(exc.exit_code)
"""
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert re.fullmatch(r"the head of the Ray cluster at [\d.:]+ is gone\|what was stored stays.*\n", done.stdout)
    assert "Token" not in done.stderr


def test_shares_are_small_and_hold_every_mission_once() -> None:
    missions = [mission(f"m{i}") for i in range(201)]
    # A few are shared out one by one, so that no worker has many more than another.
    assert len(cluster._shares(Job("forecast", missions[:10], NOW), 2)) == 10
    shares = cluster._shares(Job("forecast", missions, NOW), 2)
    assert max(len(share.missions) for share in shares) == 10
    assert [m.name for share in shares for m in share.missions] == [m.name for m in missions]


def test_a_cluster_with_other_versions_is_refused_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    node = Node("10.0.0.7", 4, 0, {}, "it has python 3.12.1, we have 3.11.7")

    class Joined:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(cluster, "_joined", lambda *_: Joined())
    monkeypatch.setattr(cluster, "_nodes", lambda _: [Node("10.0.0.6", 4, 0, {}), node])
    told = r"10\.0\.0\.7.*it has python 3\.12\.1, we have 3\.11\.7"
    with pytest.raises(EngineError, match=told) as caught, open_engine("ray", PLACES):
        pass
    assert "the same Python" in caught.value.hint


# -- with a cluster ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.servers
def test_ray_stores_what_this_process_stores(start: Callable[..., servers.Server], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    here, there = (loaded(start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms"), 6) for _ in range(2))
    missions = [*(mission(f"m{i}") for i in range(6)), mission("absent")]
    detect_at, outcomes = NOW, {}
    for name, server in (("local", here), ("ray", there)):
        job = Job("forecast", missions, NOW - timedelta(minutes=30), about=ABOUT)
        made = ran(name, server, job, tmp_path / name)  # type: ignore[arg-type]
        server.flush()
        found = ran(name, server, Job("detect", missions, detect_at, about=ABOUT), tmp_path / name)  # type: ignore[arg-type]
        outcomes[name] = [made, found]
    for one, other in zip(outcomes["local"], outcomes["ray"], strict=True):
        assert one.written == other.written
        assert [(o.mission.name, o.series, o.points, o.worst, o.warnings) for o in one.outcomes] == [
            (o.mission.name, o.series, o.points, o.worst, o.warnings) for o in other.outcomes
        ]
        assert [o.mission.name for o in other.outcomes if o.error] == ["absent"]
    stored = exported(here)
    assert len(stored) > 60
    assert exported(there) == stored
    figures = {}
    for server in (here, there):
        server.flush()
        at = int(NOW.timestamp())
        asked = "/api/v1/query?nocache=1&query=last_over_time(at_points_written%5B2h%5D)&time="
        answer = json.loads(servers.fetch(f"{server.url}{asked}{at}"))["data"]["result"]
        figures[server.url] = sorted((row["metric"]["kind"], row["metric"]["pack"], row["value"][1]) for row in answer)
    # The pass as a whole is told once, by the one who asked.
    assert figures[here.url] == figures[there.url]
    assert len(figures[here.url]) == 2


@pytest.mark.slow
@pytest.mark.servers
def test_a_worker_that_is_killed_costs_nothing(start: Callable[..., servers.Server], tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray")
    clean, hurt = (loaded(start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms"), 100) for _ in range(2))
    job = Job("forecast", [mission(f"m{i}") for i in range(100)], NOW, about=ABOUT)
    assert not any(outcome.error for outcome in ran("local", clean, job, tmp_path).outcomes)

    done, killed = threading.Semaphore(0), list[int]()

    def kill() -> None:
        for _ in range(15):
            done.acquire()
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                try:
                    busy = process.name().startswith("ray::_work") or process.cmdline()[:1] == ["ray::_work"]
                except psutil.Error:
                    continue
                if busy and not killed:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    places = Places({"": source_for_url(hurt.url)}, tmp_path)
    lost: list[cluster._Share] = []
    after_loss = cluster._after_loss

    def noted(kind: Any, share: cluster._Share, exc: Exception) -> Any:
        lost.append(share)
        return after_loss(kind, share, exc)

    with pytest.MonkeyPatch.context() as patch, open_store(places.sources[""], state=tmp_path) as store:
        patch.setattr(cluster, "_after_loss", noted)
        with open_engine("ray", places, jobs=2) as opened:
            found = opened.run(job, {"": store}, on_done=done.release)
    killer.join()
    assert (len(killed), len(lost)) == (1, 1)
    assert [outcome.mission.name for outcome in found.outcomes if outcome.error] == []
    assert len(found.outcomes) == 100
    assert exported(hurt) == exported(clean)


@pytest.mark.slow
def test_a_cluster_tells_what_its_nodes_run(ray_address: str) -> None:
    [node] = nodes_of_cluster(ray_address)
    assert (node.processors, node.error) == (2, "")
    assert node.versions["python"] == sys.version.split()[0]


@pytest.mark.slow
def test_a_node_with_another_version_says_which(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    answer = ray.put({"python": "3.11.0", "anomaly-times": "0.0.1"})
    monkeypatch.setattr(cluster, "_versions", lambda: {"python": "3.11.0", "anomaly-times": "0.2.0"})
    described = {"Resources": {"CPU": 2.0}, "NodeManagerAddress": "10.0.0.7"}
    assert cluster._asked(ray, described, answer, 30).error == "it has anomaly-times 0.0.1, we have 0.2.0"


@pytest.mark.slow
@pytest.mark.servers
def test_large_missions_are_spread_by_series_and_store_what_this_process_stores(
    start: Callable[..., servers.Server], tmp_path: Path, ray_address: str
) -> None:
    """Three at once on two processors: each waits for its blocks, and those find a processor."""
    grid = Grid.ending(NOW, timedelta(minutes=5), 288)
    y = (100 + np.random.default_rng(3).normal(0, 5, (1_600, grid.n))).round(4)
    here, there = (start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms") for _ in range(2))
    for server in (here, there):
        for name in "abc":
            rows = [Labels.of({"i": f"{i:04d}"}) for i in range(len(y))]
            for body in remote_write.encode([Samples((f"large_{name}",), rows, grid.epoch_ms(), y[:, None])]):
                servers.fetch(server.url + "/api/v1/write", data=body, timeout=60)
        server.flush()
    spec = {"step": "5m", "forecast": {"every": "1h", "lookback": "1d", "model": "profile"}, "detect": {"every": "5m"}}
    missions = [mission(name, promql=f"large_{name}", **spec) for name in "abc"]
    # What is exported ends now.
    job = Job("forecast", missions, NOW - timedelta(hours=2))
    outcomes = [
        ran("local", here, job, tmp_path / "here"),
        ran("ray", there, job, tmp_path / "there", address=ray_address),
    ]
    for made in outcomes:
        assert [(o.series, o.error) for o in made.outcomes] == [(1_600, None)] * 3
    stored = exported(here)
    assert len(stored) >= 3 * 3 * 1_600
    assert exported(there) == stored


def test_blocks_of_a_small_mission_stay_where_they_were_read() -> None:
    grid = Grid.ending(NOW, timedelta(minutes=5), 10)
    panel = Panel((Labels.of({"i": "1"}),), grid, np.zeros((1, grid.n)))
    block = Block(mission("a"), panel, np.zeros(1), 1.0)
    # Without a cluster, so a task would fail.
    assert list(cluster._spread(lambda one: one, [block] * 3)) == [block] * 3  # type: ignore[arg-type,return-value]
