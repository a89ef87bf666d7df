"""A real Prefect server on a free loopback port, with a database and a home of its own."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests import servers


def environment(home: Path, api_url: str | None = None) -> dict[str, str]:
    """What a process of its own needs to know: its Prefect home, the server, and that nothing phones home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AT_"))}
    return {
        **kept,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        **({"PREFECT_API_URL": api_url} if api_url else {}),
    }


def prefect_server(folder: Path, *, database: str | None = None, **settings: str) -> servers.Server:
    """A running server; `url` + `/api` is what clients take, `database` an SQLAlchemy URL (SQLite in `folder`).

    `settings` are further environment variables of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = servers.free_port()
    home = folder / "home"
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    # PYTHONTZPATH: every call about a schedule otherwise lists all time zones of the machine, 10 ms each.
    env = environment(home) | {"PYTHONTZPATH": "", "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
    # A new schedule has its runs at once, not within a minute.
    env["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "2"
    if database:
        env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
    url = f"http://127.0.0.1:{port}"
    return servers.Server("prefect", command, url, "/api/health", folder, env=env | settings, patience=180).start()


def process_worker(folder: Path, pool: str, env: Mapping[str, str]) -> servers.Server:
    """A running worker that takes the runs of a pool into processes; its health is on a port of its own."""
    port = servers.free_port()
    words = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--with-healthcheck"]
    health = {"PREFECT_WORKER_WEBSERVER_PORT": str(port), "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1"}
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, *words]
    return servers.Server(
        f"worker-{port}", command, url, "/health", folder, env={**env, **health}, patience=120
    ).start()


@contextmanager
def connected(server: servers.Server) -> Iterator[str]:
    """Prefect's client in this process talks to `server`; gives the URL of its API."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

    url = server.url + "/api"
    settings = {PREFECT_API_URL: url, PREFECT_HOME: server.folder / "client", PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(settings):
        yield url
        EventsWorker.drain_all(timeout=10)
    with warnings.catch_warnings():
        # Prefect leaves sockets to the garbage collector, whose warnings would hit whichever test comes next.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
