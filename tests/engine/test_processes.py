"""Blocks done by processes: the same figures, whatever happens to a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times import bounds
from anomaly_times.bounds import Block, Bounded, bounded_by_blocks
from anomaly_times.engine import Processes
from anomaly_times.errors import EngineError
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels, Panel

STEP = timedelta(minutes=30)


def mission(name: str = "m", model: str = "profile", **fields: object) -> Mission:
    return Mission.model_validate(
        {"name": name, "promql": "up", "step": STEP, "forecast": {"lookback": "7d", "horizon": "2h", "model": model}}
        | fields
    )


def panel(n_series: int, days: int = 7) -> Panel:
    grid = Grid.ending(datetime(2026, 3, 2, 12, tzinfo=UTC), STEP, days * 48)
    rng = np.random.default_rng(3)
    hours = grid.epoch_ms() / 3_600_000
    y = 10 + 3 * np.sin(hours * 2 * np.pi / 24) + rng.normal(0, 0.3, (n_series, grid.n))
    # One that is young, and so tuned apart from the others.
    y[1, : grid.n - 8] = np.nan
    return Panel(tuple(Labels.of({"i": f"{i:03d}"}) for i in range(n_series)), grid, y)


def block(name: str, rows: int = 1) -> Block:
    history = panel(rows + 1).rows(np.arange(rows))
    return Block(mission(name), history, np.zeros(rows), 1.0)


def marked(one: Block) -> Bounded:
    """A forecast that tells the process that made it (`yhat`) and how many threads its libraries have (`capped`)."""
    grid = one.history.grid.following(1)
    values = np.full((one.history.n_series, 1), float(os.getpid()))
    forecast = Forecast(one.history.labels, grid, one.history.grid.end, values, values, values)
    return Bounded(forecast, int(os.environ.get("OMP_NUM_THREADS", "0")))


def killed_at_first(one: Block) -> Bounded:
    """As `marked`, but the process of the block called by a folder's name is killed as long as that is empty."""
    folder = Path(one.mission.labels.get("folder", ""))
    if one.mission.labels:
        met = len(list(folder.iterdir()))
        (folder / f"{met}").touch()
        if met < int(one.mission.labels["times"]):
            os.kill(os.getpid(), signal.SIGKILL)
    return marked(one)


def deadly(folder: Path, times: int) -> Block:
    healthy = block("deadly")
    labels = {"folder": str(folder), "times": str(times)}
    return Block(mission("deadly", labels=labels), healthy.history, healthy.least, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["profile", "auto"])
def test_processes_make_what_this_one_makes(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BLOCK_ROWS", 3)
    whole, least = panel(7), np.arange(7) / 100
    asked = mission(model=model, detect={"alerts_per_week": 1, "per": "mission"})
    here = bounded_by_blocks(asked, whole, least=least)
    with Processes(2, many_points=0) as processes:
        there = bounded_by_blocks(asked, whole, least=least, mapper=processes.map)
    assert there.cpu > 0
    assert there.capped == here.capped
    ours, theirs = here.forecast, there.forecast
    assert ours.limits is not None
    assert theirs.limits is not None
    figures = [(getattr(theirs, name), getattr(ours, name)) for name in ("yhat", "lower", "upper")]
    figures += [(getattr(theirs.limits, name), getattr(ours.limits, name)) for name in ("usual", "limit", "move")]
    for those, these in figures:
        assert those.tobytes() == these.tobytes()
    assert (theirs.labels, theirs.notes, theirs.warming) == (ours.labels, ours.notes, ours.warming)
    assert theirs.models.keys() == ours.models.keys()


def test_a_panel_in_blocks_has_every_row_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, least = panel(7), np.zeros(7)
    at_once = bounded_by_blocks(mission(), whole, least=least).forecast
    monkeypatch.setattr(bounds, "BLOCK_ROWS", 2)
    in_blocks = bounded_by_blocks(mission(), whole, least=least).forecast
    assert in_blocks.labels == whole.labels
    np.testing.assert_allclose(in_blocks.yhat, at_once.yhat, rtol=1e-9)
    np.testing.assert_allclose(in_blocks.lower, at_once.lower, rtol=1e-9)
    assert in_blocks.notes == at_once.notes
    assert in_blocks.warming == at_once.warming == {1}


def test_a_model_that_learns_across_series_sees_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlforecast")
    monkeypatch.setattr(bounds, "BLOCK_ROWS", 2)
    seen: list[int] = []

    def mapper(_: object, blocks: list[Block]) -> list[Bounded]:
        seen.extend(one.history.n_series for one in blocks)
        return [marked(one) for one in blocks]

    for model in ("lgbm", "profile"):
        bounded_by_blocks(mission(model=model), panel(5), least=np.zeros(5), mapper=mapper)  # type: ignore[arg-type]
    assert seen == [5, 1, 2, 2]


def test_little_work_starts_no_process() -> None:
    with Processes(2, many_points=10_000, long=60) as processes:
        made = list(processes.map(marked, [block("a"), block("b")]))
    assert {one.forecast.yhat[0, 0] for one in made} == {os.getpid()}


@pytest.mark.slow
def test_much_work_is_shared_by_processes_of_one_thread_each() -> None:
    with Processes(2, many_points=0) as processes:
        made = list(processes.map(marked, [block(str(i)) for i in range(8)]))
        pids = {int(one.forecast.yhat[0, 0]) for one in made}
        assert os.getpid() not in pids
        assert {one.capped for one in made} == {1}
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/stat").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/stat").exists() for pid in pids)
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != ""


@pytest.mark.slow
def test_a_killed_process_costs_nothing_but_time(tmp_path: Path) -> None:
    blocks = [block("a"), deadly(tmp_path, 1), block("b"), block("c")]
    with Processes(2, many_points=0) as processes:
        made = list(processes.map(killed_at_first, blocks))
        assert len(made) == 4
        # And the next ones find processes again.
        assert len(list(processes.map(marked, blocks))) == 4


@pytest.mark.slow
def test_a_block_that_always_kills_is_named_and_its_neighbours_are_done(tmp_path: Path) -> None:
    with Processes(2, many_points=0) as processes:
        neighbours = processes.map(killed_at_first, [block(str(i)) for i in range(6)])
        first = [next(neighbours)]
        with pytest.raises(EngineError, match="mission deadly ended its process twice"):
            list(processes.map(killed_at_first, [deadly(tmp_path, 9)]))
        assert len(first + list(neighbours)) == 6


@pytest.mark.slow
def test_what_is_closed_says_so() -> None:
    processes = Processes(2, many_points=0)
    made = processes.map(marked, [block(str(i)) for i in range(9)])
    next(made)
    processes.close()
    with pytest.raises(EngineError, match="was ended"):
        list(made)


PARENT = """
import sys, time
from anomaly_times.engine import Processes
from tests.engine.test_processes import block, marked
processes = Processes(2, many_points=0)
made = list(processes.map(marked, [block(str(i)) for i in range(4)]))
print(*{int(one.forecast.yhat[0, 0]) for one in made}, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_processes_end_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert pids
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
