"""Fixtures that every test may use: real servers, one of each kind a test run, fresh ones on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.prefect_server import prefect_server as start_prefect

os.environ.update(
    {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NIXTLA_ID_AS_COL": "1",
    }
)
for name in [name for name in os.environ if name.startswith("AT_") or name in ("COLUMNS", "LINES", "NO_COLOR")]:
    del os.environ[name]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real metrics beside the checkout; tests that need them are skipped where they are absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the shared real metrics are not on this machine")
    return folder


@pytest.fixture(scope="session")
def vm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A VictoriaMetrics for the whole test run: use metric names of your own."""
    server = servers.victoria_metrics(tmp_path_factory.mktemp("vm"), "-dedup.minScrapeInterval=1ms")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def prom_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A plain Prometheus with the Remote Write receiver, for the whole test run."""
    server = servers.prometheus(tmp_path_factory.mktemp("prom"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A Prefect server on SQLite for the whole test run: use a project, names and tags of your own."""
    server = start_prefect(tmp_path_factory.mktemp("prefect"))
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., servers.Server]]:
    """`start(servers.victoria_metrics, "-flag")` gives a server of one's own that ends with the test."""
    running: list[servers.Server] = []

    def run(kind: Callable[..., servers.Server], *args: str) -> servers.Server:
        server = kind(tmp_path / f"server-{len(running)}", *args)
        running.append(server)
        return server

    yield run
    for server in running:
        server.stop()
