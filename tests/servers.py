"""Real servers on free loopback ports, each with a folder of its own, ended by process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str, *, data: bytes | None = None, timeout: float = 10) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=timeout) as answer:
        return bytes(answer.read())


@dataclass
class Server:
    """One running server; `url` is its base URL, `log` what it printed."""

    name: str
    command: Sequence[str]
    url: str
    ready: str
    folder: Path
    env: Mapping[str, str] | None = None
    patience: float = 60
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def start(self) -> Server:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder, env=self.env)
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log[-3000:]}")
            try:
                fetch(self.url + self.ready, timeout=1)
            except OSError:
                time.sleep(0.02)
            else:
                return self
        self.stop()
        raise RuntimeError(f"{self.name} did not come up:\n{self.log[-3000:]}")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def flush(self) -> None:
        """Make fresh VictoriaMetrics samples visible to queries."""
        fetch(self.url + "/internal/force_flush")


def need(program: str) -> str:
    """Where a server's program is; the test is skipped where it is not installed, except in CI."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            raise RuntimeError(f"{program} is not installed; .ci/run installs what the tests need")
        pytest.skip(f"{program} is not installed")
    return path


def victoria_metrics(folder: Path, *flags: str) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    command = [
        need("victoria-metrics"),
        f"-storageDataPath={folder / 'vm'}",
        f"-httpListenAddr={address}",
        "-retentionPeriod=100y",
        *flags,
    ]
    return Server("victoria-metrics", command, f"http://{address}", "/health", folder).start()


def prometheus(folder: Path, *flags: str, config: str = "global: {scrape_interval: 1h}\n") -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    (folder / "prometheus.yml").write_text(config)
    command = [
        need("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
        "--web.enable-remote-write-receiver",
        *flags,
    ]
    return Server("prometheus", command, f"http://{address}", "/-/ready", folder).start()


def vmagent(folder: Path, target: str, *flags: str) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    command = [
        need("vmagent"),
        f"-httpListenAddr={address}",
        f"-remoteWrite.url={target}",
        f"-remoteWrite.tmpDataPath={folder / 'queue'}",
        "-remoteWrite.flushInterval=100ms",
        *flags,
    ]
    return Server("vmagent", command, f"http://{address}", "/health", folder).start()


def vmalert(folder: Path, rules: str, source: str, notifier: str) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(need("vmalert"), f"-rule={rules}", f"-datasource.url={source}", f"-notifier.url={notifier}"),
        *("-evaluationInterval=1s", f"-httpListenAddr={address}"),
    ]
    return Server("vmalert", command, f"http://{address}", "/health", folder).start()


def alertmanager(folder: Path, webhook: str) -> Server:
    """One that sends every alert to `webhook` at once."""
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    (folder / "alertmanager.yml").write_text(
        f"route: {{receiver: hook, group_by: [mission, alertname], group_wait: 0s, group_interval: 1s}}\n"
        f"receivers: [{{name: hook, webhook_configs: [{{url: '{webhook}'}}]}}]\n"
    )
    command = [
        *(need("prometheus-alertmanager"), f"--config.file={folder / 'alertmanager.yml'}"),
        *(f"--storage.path={folder / 'data'}", f"--web.listen-address={address}", "--cluster.listen-address="),
    ]
    return Server("alertmanager", command, f"http://{address}", "/-/ready", folder).start()
