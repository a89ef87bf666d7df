"""A backtest against what real passes wrote into a real server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.backtest import prepare, run
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.http import HttpClient
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from tests import servers

pytestmark = [pytest.mark.servers, pytest.mark.slow]
STEP, HOUR = timedelta(minutes=5), timedelta(hours=1)


def load(url: str, panel: Panel) -> None:
    with HttpClient(Source(url=url)) as client:
        rows = [labels.without(["__name__"]) for labels in panel.labels]
        samples = Samples(("load",), rows, panel.grid.epoch_ms(), panel.y[:, None, :])
        for body in remote_write.encode([samples]):
            client.request("POST", f"{url}/api/v1/write", content=body, headers=remote_write.HEADERS)


def faulty(end: datetime, hours: int) -> Panel:
    """Six days and some hours of five series, with faults in these hours."""
    grid = Grid.covering(end - timedelta(days=6, hours=hours), end, STEP)
    y = 100 + 30 * np.sin(grid.epoch_ms() / 86_400_000 * 2 * np.pi)
    y = y + np.random.default_rng(0).normal(0, 5, (5, grid.n))
    now = grid.n - 12 * hours
    y[0, now + 20 : now + 30] += 90
    y[1, now + 14 : now + 16] = np.nan
    y[1, now + 40 : now + 60] = np.nan
    y[2, now + 20 : now + 50] = y[2, now + 20]
    y[3, now + 5 :] += 40
    y[4, : now + 18] = np.nan
    return Panel(tuple(Labels.of({"__name__": "load", "host": f"{i}"}) for i in range(5)), grid, y)


def test_scores_of_two_days_are_those_that_real_passes_wrote_pass_by_pass(
    start: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    hours = 48
    end = Grid.ending(datetime.now(UTC) - 2 * HOUR, HOUR, 1).start
    begin = end - hours * HOUR
    load(server.url, faulty(end, hours))
    server.flush()
    made = Mission.model_validate(
        {
            "name": "load",
            "promql": "sum by (host) (load)",
            "step": "5m",
            "forecast": {"model": "profile", "lookback": "6d"},
            "detect": {"every": "5m"},
        }
    )
    with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
        stores = {"": store}
        for point in range(12 * hours):
            at = begin + point * STEP + made.offset
            if point % 12 == 0:
                results, written = write_forecasts(forecast_pass([made], stores, now=at), stores)
                assert written.samples > 0, results[0].error
            server.flush()
            [found], _ = write_scores(detect_pass([made], stores, now=at + STEP), stores)
            assert found.error is None
        server.flush()
        grid = Grid.covering(begin + STEP, end, STEP)
        stored = store.read_scores([made], grid)["load"]
        prepared = prepare([made], stores, now=datetime.now(UTC), start=begin + STEP, end=end)
    [trial] = run(prepared, workers=1).trials
    assert trial.scores is not None
    assert trial.scores.grid == grid
    assert made.written_labels(trial.scores.labels) == stored.labels
    np.testing.assert_array_equal(trial.scores.score, stored.y)
    # The faults lie in the first hours.
    assert (stored.y[:, : 8 * 12] > 1).any(axis=1).tolist() == [True, False, True, True, False]
    assert np.isnan(stored.y).any(axis=1).tolist() == [False, True, False, False, True]
    assert trial.alerts is not None
    assert trial.alerts.found
