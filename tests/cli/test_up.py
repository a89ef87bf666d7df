"""`at up`: real servers come up as children, and none is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import servers
from tests.cli.conftest import Run

MISSION = """
name: steady
promql: steady
step: 1s
season: none
forecast: {every: 30s, lookback: 2m, horizon: 75s, model: seasonal_naive}
detect: {every: 10s}
"""


@contextmanager
def running(folder: Path, *args: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`at up` as a child that cannot outlive the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AT_"))}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "anomaly_times.cli", "up", *args], cwd=folder, stderr=log, env={**kept, **env}
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(true: Callable[[], bool], folder: Path, process: subprocess.Popen[bytes], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        log = (folder / "log").read_text()
        assert process.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(0.2)


def left_behind(folder: Path) -> list[str]:
    """The command lines of processes that know of `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if str(folder).encode() in about and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="what is left behind is read from /proc")
def test_all_comes_up_runs_a_mission_and_leaves_no_process(tmp_path: Path) -> None:
    servers.need("victoria-metrics")
    folder = tmp_path / "stack"
    folder.mkdir()
    (folder / "missions").mkdir()
    (folder / "missions" / "steady.yaml").write_text(MISSION)
    prefect, victoria = servers.free_port(), servers.free_port()
    ports = ("--prefect-port", str(prefect), "--victoria-port", str(victoria))
    with running(folder, *ports) as process:
        log = folder / "log"
        until(lambda: "all is up" in log.read_text(), folder, process)
        assert servers.fetch(f"http://127.0.0.1:{prefect}/api/health") == b"true"
        assert servers.fetch(f"http://127.0.0.1:{victoria}/health") == b"OK"
        now = int(time.time())
        lines = "\n".join(f"steady {second % 7} {second * 1000}" for second in range(now - 300, now + 300))
        servers.fetch(f"http://127.0.0.1:{victoria}/api/v1/import/prometheus", data=lines.encode())
        exports = next(line for line in log.read_text().splitlines() if " export " in line).partition(" export ")[2]
        env = {**os.environ, **dict(pair.split("=", 1) for pair in exports.split())}

        def at_there(*args: str) -> str:
            command = [sys.executable, "-m", "anomaly_times.cli", *args]
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        at_there("mission", "apply", "--yes", "missions")
        until(lambda: ":detect:10s:00: " in log.read_text(), folder, process)
        query = f"http://127.0.0.1:{victoria}/api/v1/query?query=count(last_over_time(anomaly_score[5m]))"
        # The first detection may come before the first forecast.
        until(lambda: bool(json.loads(servers.fetch(query))["data"]["result"]), folder, process)
        (entry,) = json.loads(at_there("status", "--output", "json"))["missions"]
        assert entry["mission"] == "steady"
        assert entry["last_run"]["state"] in ("Completed", "Skipped")
        assert entry["scored_until"] is not None
        # A run is wanted that is still starting when the end comes.
        until(lambda: any("prefect.engine" in line for line in left_behind(folder)), folder, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0
    assert left_behind(folder) == []
    assert log.read_text().splitlines()[-1].endswith(" stopped")
    for port in (prefect, victoria):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_without_victoriametrics_it_says_how_to_install_it(
    at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = at("up", "--victoria-port", servers.free_port(), "--prefect-port", servers.free_port())
    assert result.exit_code == 2
    assert "neither victoria-metrics nor victoria-metrics-prod is in PATH" in result.stderr
    assert "apt install victoria-metrics" in result.stderr


def test_a_port_of_somebody_else_is_told_and_nothing_starts(
    at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        port = other.getsockname()[1]
        result = at("up", "--victoria-port", port, "--prefect-port", servers.free_port())
    assert result.exit_code == 2
    assert f"port {port} is taken by something that is no VictoriaMetrics" in result.stderr
    assert "choose another with --victoria-port" in result.stderr
    assert not (tmp_path / ".anomaly-times").exists()


@pytest.mark.servers
def test_a_server_that_answers_already_is_used_and_left_running(tmp_path: Path, vm_server: servers.Server) -> None:
    port = vm_server.url.rpartition(":")[2]
    with running(tmp_path, "--victoria-port", port, "--prefect-port", str(servers.free_port())) as process:
        reused = f"VictoriaMetrics: {vm_server.url} (it was there before: it is used, and left running)"
        until(lambda: reused in (tmp_path / "log").read_text(), tmp_path, process, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not (tmp_path / ".anomaly-times" / "up" / "victoria-metrics").exists()
    assert servers.fetch(vm_server.url + "/health") == b"OK"
    assert "all is up" not in (tmp_path / "log").read_text()
