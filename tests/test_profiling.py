"""Where the time of a pass goes: each second once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times import bounds
from anomaly_times.engine import Processes
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.profiling import Stage, listening, stage, staged
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from tests import servers


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_stage_within_another_is_counted_once() -> None:
    with listening() as profile, stage("calibrate"):
        busy(0.02)
        with stage("model") as work:
            work.points = 7
            busy(0.04)
    outer, inner = profile.stages["calibrate"], profile.stages["model"]
    assert inner.points == 7
    assert 0.04 <= inner.cpu <= inner.seconds + 0.02
    assert 0.02 <= outer.cpu < 0.04


def test_stages_of_threads_are_added_up() -> None:
    with listening() as profile, ThreadPoolExecutor(4) as pool:
        list(pool.map(staged("parse")(busy), [0.01] * 8))
    assert profile.stages["parse"].cpu >= 0.08


def test_nothing_is_counted_where_nobody_listens() -> None:
    with listening() as profile:
        pass
    with stage("read") as work:
        work.bytes = 3
    assert profile.stages == {}


def test_stages_that_raise_are_counted_too() -> None:
    with listening() as profile, pytest.raises(ZeroDivisionError), stage("model"):
        _ = 1 / 0
    assert profile.stages["model"] != Stage()


@pytest.mark.servers
@pytest.mark.slow
def test_a_pass_tells_what_it_read_and_wrote(
    start: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(servers.victoria_metrics)
    step = timedelta(minutes=5)
    grid = Grid.ending(datetime.now(UTC), step, 600)
    rows = [Labels.of({"i": str(i)}) for i in range(4)]
    y = np.random.default_rng(0).normal(50, 3, (4, grid.n)).round(3)
    mission = Mission.model_validate(
        {
            "name": "m",
            "promql": "load",
            "step": step,
            "forecast": {"every": "1h", "lookback": "1d", "model": "profile"},
            "detect": {"every": step},
        }
    )
    monkeypatch.setattr(bounds, "BLOCK_ROWS", 2)
    with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
        for body in remote_write.encode([Samples(("load",), rows, grid.epoch_ms(), y[:, None])]):
            store.client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
        server.flush()
        stores, hour = {"": store}, grid.end - timedelta(hours=1) + mission.offset
        with listening() as profile, Processes(2, many_points=0) as processes:
            made = forecast_pass([mission], stores, now=hour, blocks=processes.map)
            _, forecasts = write_forecasts(made, stores)
        stages = profile.stages
        assert list(stages) == ["read", "parse", "align", "season", "model", "calibrate", "encode", "write"]
        assert stages["parse"].points == 4 * mission.history_grid(hour).n
        assert stages["read"].bytes > 4 * 288 * 20
        assert stages["encode"].points == forecasts.samples
        assert stages["encode"].bytes > forecasts.samples
        # By processes: most of what they take is theirs.
        assert made[0].cpu == pytest.approx(sum(stages[s].cpu for s in ("season", "model", "calibrate")), rel=0.6)
        server.flush()
        with listening() as profile:
            _, scores = write_scores(detect_pass([mission], stores, now=grid.end + mission.offset), stores)
        assert {"read", "parse", "score", "encode", "write"} <= set(profile.stages)
        assert profile.stages["encode"].points == scores.samples
