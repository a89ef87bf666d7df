"""A command line over a store in memory, with streams apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import anomaly_times.cli.options
import anomaly_times.stores
from anomaly_times.cli import app
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.testing import MemoryStore

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEP = timedelta(minutes=10)
QUERY = "requests"
ESCAPE = "\x1b[31mred\x1b[0m"

Run = Callable[..., Result]


def requests() -> Panel:
    """Three weeks of three series with a daily rhythm up to `AT`; `b` jumps in its last three points."""
    grid = Grid.ending(AT, STEP, 3 * 7 * 144)
    rng = np.random.default_rng(0)
    y = 100 + 30 * np.sin(np.arange(grid.n) / 144 * 2 * np.pi) + rng.normal(0, 1, (3, grid.n))
    y[1, -3:] += 60
    y[2, -2] = np.nan
    labels = [Labels.of({"__name__": "requests", "env": "prod", "job": job}) for job in ("a", "b", ESCAPE)]
    return Panel.of(labels, grid, y)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    """What every command of this test opens."""
    memory = MemoryStore({QUERY: requests()})
    monkeypatch.setattr(anomaly_times.stores, "open_store", lambda source, *, state: memory)
    monkeypatch.setattr(anomaly_times.cli.options, "utc_now", lambda: AT + timedelta(days=60))
    monkeypatch.chdir(tmp_path)
    return memory


@pytest.fixture
def at() -> Iterator[Run]:
    """`at("detect", …)`: exit code, stdout and stderr of a command."""
    runner = CliRunner()

    def run(*args: object) -> Result:
        return runner.invoke(app, [str(arg) for arg in args], prog_name="at")

    return run
