"""`at run` as a process of its own, on a real VictoriaMetrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.mission import Mission
from anomaly_times.panel import Grid
from anomaly_times.settings import Source
from anomaly_times.stores import Store, open_store
from tests import servers

MISSION = """
name: {name}
promql: {metric}
step: 1s
offset: 1s
season: none
forecast: {{every: 5s, lookback: 2m, horizon: 20s, model: seasonal_naive}}
detect: {{every: 1s, catch_up: 10s}}
"""


@contextmanager
def running(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "anomaly_times.cli", "run", *args], cwd=folder, stderr=log, text=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def until(true: Callable[[], bool], folder: Path, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)


def load(server: servers.Server, metric: str) -> None:
    """Ten minutes of a steady metric around now, a point a second."""
    now = int(time.time())
    rng = np.random.default_rng(0)
    lines = [f"{metric} {10 + rng.normal():.4f} {second * 1000}" for second in range(now - 300, now + 300)]
    servers.fetch(server.url + "/api/v1/import/prometheus", data="\n".join(lines).encode())
    server.flush()


def scores(store: Store, name: str) -> int:
    mission = Mission.model_validate({"name": name, "promql": "up", "step": "1s", "forecast": {"horizon": "20s"}})
    found = store.read_scores([mission], Grid.ending(datetime.now(UTC), timedelta(seconds=1), 120))
    return int(np.isfinite(found[name].y).sum()) if name in found else 0


@pytest.mark.servers
@pytest.mark.slow
def test_missions_run_at_their_cadence_are_reloaded_and_end_at_sigterm(
    start: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms", "-search.latencyOffset=0s")
    load(server, "steady")
    files = tmp_path / "missions"
    files.mkdir()
    (files / "one.yaml").write_text(MISSION.format(name="one", metric="steady"))
    with open_store(Source(url=server.url), state=tmp_path) as store, running(tmp_path, "--url", server.url) as process:
        until(lambda: scores(store, "one") >= 4, tmp_path)
        (files / "two.yaml").write_text("name: two\npromqll: nonsense\n")
        until(lambda: "what ran goes on" in (tmp_path / "log").read_text(), tmp_path)
        (files / "two.yaml").write_text(MISSION.format(name="two", metric="steady"))
        until(lambda: scores(store, "two") >= 2, tmp_path)
        before = scores(store, "one")
        until(lambda: scores(store, "one") > before, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert "running 1 mission: 1 new" in log
    assert "running 2 missions: 1 new" in log
    assert "first forecast: 1 mission, 20 points" in log
    assert "detect 1s: 2 missions" in log
    assert log.splitlines()[-1].endswith(" stopped")
    assert "FAILED" not in log


def test_problems_in_files_end_it_at_once(tmp_path: Path) -> None:
    (tmp_path / "missions").mkdir()
    (tmp_path / "missions" / "a.yaml").write_text("name: a\n")
    with running(tmp_path, "--url", ".") as process:
        assert process.wait(30) == 3
    assert "missions/a.yaml:1: error mission/missing-field: `promql` is missing" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly_while_a_source_is_away(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "missions").mkdir()
    (tmp_path / "missions" / "a.yaml").write_text(MISSION.format(name="a", metric="up"))
    with running(tmp_path, "--url", f"http://127.0.0.1:{servers.free_port()}") as process:
        until(lambda: "FAILED a: " in (tmp_path / "log").read_text(), tmp_path)
        os.kill(process.pid, number)
        assert process.wait(20) == 0
    assert (tmp_path / "log").read_text().splitlines()[-1].endswith(" stopped")
