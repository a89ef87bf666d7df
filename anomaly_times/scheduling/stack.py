"""Servers for one machine, as child processes: what `at up` starts and ends.

Each child leads a session of its own, so that a Ctrl-C in the terminal reaches us alone, and what it started ends with
it. A child writes to `<data>/logs/<name>.log`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import httpx

from anomaly_times.errors import AnomalyTimesError, UsageError
from anomaly_times.settings import CONFIG_FILE, DEFAULT_URL, Settings

__all__ = ["Part", "Stack", "StackOptions", "bring_up"]

HOST = "127.0.0.1"
WORK_POOL = "anomaly-times"
_PROGRAMS = ("victoria-metrics", "victoria-metrics-prod")
_PATIENCE = 180.0
"""Seconds for a server to come up: the first start of Prefect's makes its database."""
_GRACE = 20.0
"""Seconds for a process to end by itself once it is asked to."""
_THERE = " (it was there before: it is used, and left running)"
_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent ends."""


@dataclass(frozen=True)
class StackOptions:
    """Where data goes, and on which ports servers listen (all of them on loopback)."""

    data: Path
    prefect_port: int
    victoria_port: int

    @property
    def api_url(self) -> str:
        """Of Prefect's server, as its clients take it."""
        return f"http://{HOST}:{self.prefect_port}/api"

    @property
    def victoria_url(self) -> str:
        """Of VictoriaMetrics."""
        return f"http://{HOST}:{self.victoria_port}"


@dataclass(eq=False)
class Part:
    """One process of ours, from its start to its end."""

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _below: dict[int, str] = field(default_factory=dict, init=False)
    """What it started, by pid: when that was, as `_birth` tells it."""

    def start(self) -> None:
        """Start it; on Linux it is asked to end when this thread ends without having done so."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                start_new_session=True,
                # Two system calls, so it does not matter whether other threads run.
                preexec_fn=_ends_with_us(),
            )

    @property
    def ended(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """End it and everything that it started: asked first, then made to."""
        process = self._process
        if process is None:
            return
        self._look_below(process)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        self.kill()
        process.wait()

    def kill(self) -> None:
        """End it and everything that it started, unasked."""
        process = self._process
        if process is None:
            return
        self._look_below(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid, birth in self._below.items():
            # A number may have gone to another process meanwhile.
            if _birth(pid) == birth:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _look_below(self, process: subprocess.Popen[bytes]) -> None:
        # A worker's runs may lead sessions of their own, so the group is not all; and of what has ended nobody can ask
        # any more what it had started.
        self._below |= {pid: birth for pid in _descendants(process.pid) if (birth := _birth(pid))}

    def failure(self) -> AnomalyTimesError:
        """An error that says how it ended, with the last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-5:]
        return AnomalyTimesError(
            f"{self.name} ended with {self.ended}:\n" + "\n".join(lines), hint=f"{self.log} has the whole story"
        )


def _ends_with_us() -> Callable[[], None] | None:
    """What a child does before it becomes another program, so that Linux sends it SIGTERM when we are gone."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None, use_errno=True).prctl

    def leash() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # We may have ended just before.
        if os.getppid() != parent:
            os._exit(1)

    return leash


def _descendants(pid: int) -> list[int]:
    """The processes below `pid`, where the system tells (Linux)."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _birth(pid: int) -> str:
    """When a process was started, in ticks; empty where it is gone or the system does not tell."""
    try:
        # The name in parentheses may hold anything; the start is the 20th field after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Stack:
    """The parts that run; at its end they stop in reverse order, whatever happened."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def start(self, part: Part, *, ready: Callable[[], bool], stop: Event) -> bool:
        """Start a part and wait until `ready`; false where `stop` came first.

        Raises:
            AnomalyTimesError: it ended, or did not come up in time.
        """
        self._parts.append(part)
        part.start()
        deadline = time.monotonic() + _PATIENCE
        while not ready():
            if part.ended is not None:
                raise part.failure()
            if time.monotonic() > deadline:
                raise AnomalyTimesError(
                    f"{part.name} did not come up in {_PATIENCE:.0f} s", hint=f"{part.log} may say why"
                )
            if stop.wait(0.1):
                return False
        return not stop.is_set()

    def finish(self, part: Part, *, stop: Event) -> bool:
        """Run a part to its end; false where `stop` came first.

        Raises:
            AnomalyTimesError: it failed.
        """
        if not self.start(part, ready=lambda: part.ended == 0, stop=stop):
            return False
        self._parts.remove(part)
        return True

    def check(self) -> None:
        """Raise if a part has ended.

        Raises:
            AnomalyTimesError: with the end of its log.
        """
        for part in self._parts:
            if part.ended is not None:
                raise part.failure()

    def kill(self) -> None:
        """End all parts and everything that they started, unasked: data that they had not written is lost."""
        for part in reversed(self._parts):
            part.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._parts:
            # One that is being stopped is among those that `kill` ends.
            self._parts[-1].stop()
            self._parts.pop()


def bring_up(
    stack: Stack, options: StackOptions, settings: Settings, *, tell: Callable[[str], None], stop: Event
) -> bool:
    """Start what is missing, step by step; false where `stop` came first.

    VictoriaMetrics only where the settings name no source; a server that answers already on its port is used. Then
    Prefect's server, a process worker, and the two deployments.

    Raises:
        UsageError: VictoriaMetrics is not installed, or a port is taken by something else.
        AnomalyTimesError: something did not come up.
    """
    data, logs = options.data.resolve(), options.data.resolve() / "logs"
    # Runs start in folders of their own, so what is relative to this one is told as it is from everywhere.
    env = {
        "PREFECT_API_URL": options.api_url,
        "AT_PREFECT__API_URL": options.api_url,
        "AT_STATE_URL": str(settings.state_url.resolve()),
    }
    config = Path(os.environ.get("AT_CONFIG", CONFIG_FILE))
    if config.is_file():
        env["AT_CONFIG"] = str(config.resolve())
    if settings.sources:
        tell(f"metrics: the sources of the settings ({', '.join(sorted(settings.sources))})")
    else:
        if options.victoria_url.replace(HOST, "localhost") != DEFAULT_URL:
            env |= {"AT_SOURCES__LOCAL__URL": options.victoria_url, "AT_SOURCE": "local"}
        ours = _free(options.victoria_port, "VictoriaMetrics", "--victoria-port", lambda: _is_victoria(options))
        if ours:
            part = Part("VictoriaMetrics", _victoria_command(data, options), logs / "victoria-metrics.log")
            if not stack.start(part, ready=lambda: _is_victoria(options), stop=stop):
                return False
        tell(f"VictoriaMetrics: {options.victoria_url}" + ("" if ours else _THERE))
    ours = _free(options.prefect_port, "Prefect server", "--prefect-port", lambda: _is_prefect(options))
    if ours:
        part = Part("Prefect server", _prefect_command(options), logs / "prefect-server.log", _prefect_env(data))
        if not stack.start(part, ready=lambda: _is_prefect(options), stop=stop):
            return False
    tell(f"Prefect: {options.api_url.removesuffix('/api')}" + ("" if ours else _THERE))
    worker = Part("worker", _worker_command(), logs / "worker.log", env | {"PREFECT_HOME": str(data / "worker")})
    if not stack.start(worker, ready=lambda: _has_pool(options), stop=stop):
        return False
    tell(f"worker: of the work pool {WORK_POOL}")
    if not stack.finish(Part("at deploy", _deploy_command(), logs / "deploy.log", env), stop=stop):
        return False
    tell("deployments: forecasting, detection")
    exports = [f"{name}={value}" for name, value in env.items() if name.startswith(("PREFECT_API", "AT_SOURCE"))]
    tell("for commands in another terminal: export " + " ".join(exports))
    return True


def _victoria_command(data: Path, options: StackOptions) -> list[str]:
    program = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        raise UsageError(
            f"VictoriaMetrics is not installed: neither {' nor '.join(_PROGRAMS)} is in PATH",
            hint="`apt install victoria-metrics`, `brew install victoriametrics`, or the release from "
            "https://github.com/VictoriaMetrics/VictoriaMetrics; or name your own server in anomaly-times.yaml",
        )
    return [
        program,
        f"-storageDataPath={data / 'victoria-metrics'}",
        f"-httpListenAddr={HOST}:{options.victoria_port}",
        "-retentionPeriod=13",
        # A rerun that writes the same values again leaves one of them.
        "-dedup.minScrapeInterval=1ms",
    ]


def _prefect_command(options: StackOptions) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(options.prefect_port)]


def _prefect_env(data: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(data / "prefect"),
        # Else a database that the user set for another server would be taken.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{data / 'prefect' / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Every call about a schedule otherwise lists all time zones of the machine, 10 ms each.
        "PYTHONTZPATH": "",
    }


def _worker_command() -> list[str]:
    return [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", WORK_POOL]


def _deploy_command() -> list[str]:
    # In a process of its own, which knows the new server and nothing else.
    return [sys.executable, "-m", "anomaly_times.cli", "deploy", "--work-pool", WORK_POOL]


def _free(port: int, what: str, option: str, is_it: Callable[[], bool]) -> bool:
    """Whether nothing listens on `port`; false where it is such a server already.

    Raises:
        UsageError: something else does.
    """
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) != 0:
            return True
    if is_it():
        return False
    raise UsageError(f"port {port} is taken by something that is no {what}", hint=f"choose another with {option}")


def _is_victoria(options: StackOptions) -> bool:
    # Prometheus knows no such function.
    params = {"query": "range_last(vector(1))"}
    answer = _get(f"{options.victoria_url}/api/v1/query", params)
    return isinstance(answer, dict) and answer.get("status") == "success"


def _is_prefect(options: StackOptions) -> bool:
    return _get(f"{options.api_url}/health") is True


def _has_pool(options: StackOptions) -> bool:
    pool = _get(f"{options.api_url}/work_pools/{WORK_POOL}")
    return isinstance(pool, dict) and pool.get("status") == "READY"


def _get(url: str, params: Mapping[str, str] | None = None) -> Any:
    try:
        answer = httpx.get(url, params=params, timeout=2, trust_env=False)
        return answer.json() if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError):
        return None
