"""The main job on real servers: metrics in, forecasts and scores out, read back from the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.conventions import EVIDENCE, FORECAST_METRICS, LABEL_MISSION, MOVE, PRED, REASON, SCORE, USUAL
from anomaly_times.errors import AnomalyTimesError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Scores
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write, samples
from anomaly_times.stores.http import HttpClient
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from benchmarks import nab
from tests import servers

pytestmark = pytest.mark.servers
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@pytest.mark.slow
def test_real_metrics_get_forecasts_and_scores_and_most_labelled_incidents_are_found(
    start: Callable[..., servers.Server], shared_data: Path, tmp_path: Path
) -> None:
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    end = Grid.ending(datetime.now(UTC) - HOUR, nab.STEP, 1).start
    real = nab.load(shared_data / "nab", end=end)
    nab.write_series(server.url, real)
    server.flush()
    mission = nab.mission("profile")
    passes = nab.replay(server.url, mission, start=end - timedelta(days=3), end=end, visible=server.flush)
    scores = Scores.joined(passes)

    with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
        stored = store.read_scores([mission], scores.grid)["nab"]
        forecast = store.read_forecasts([mission], scores.grid)["nab"]
        for metric in (*FORECAST_METRICS, SCORE):
            found, _ = store.query_range(f'count({metric}{{{LABEL_MISSION}="nab",metric="cloudwatch"}})', scores.grid)
            assert found, metric

    assert stored.labels == forecast.labels == tuple(mission.written_labels(scores.labels))
    np.testing.assert_array_equal(stored.y, scores.score)
    known = np.isfinite(scores.score)
    np.testing.assert_array_equal(forecast.yhat[known], scores.yhat[known])
    np.testing.assert_array_equal(forecast.upper[known], scores.upper[known])
    # Every value since the first forecast is scored, once: three days of every series that reaches the end.
    assert known.sum() > 0.97 * scores.score.size
    findings = nab.judged(real, scores)
    hits = [outcome.found for outcome in findings.outcomes]
    assert len(hits) >= 5
    assert sum(hits) > len(hits) / 2
    # Finding much is easy for who cries wolf: false episodes a series and week.
    assert len(findings.besides) < 5 * known.sum() * (nab.STEP / timedelta(weeks=1))


@pytest.mark.slow
def test_the_same_mission_works_against_a_plain_prometheus_while_other_metrics_keep_flowing(
    start: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = start(servers.prometheus)
    now = Grid.ending(datetime.now(UTC), MINUTE, 1).start
    live = timedelta(minutes=12)
    history = Grid.ending(now, MINUTE, 2 * 24 * 60)
    rows = [Labels.of({"host": name}) for name in ("a", "b")]
    rng = np.random.default_rng(0)
    y = 100 + 20 * np.sin(np.arange(history.n) * 2 * np.pi / 1440) + rng.normal(0, 1, (2, history.n))
    y[0, -3] += 50
    mission = Mission.model_validate(
        {
            "name": "load",
            "promql": "load",
            "offset": "1ms",
            "forecast": {"lookback": "47h", "every": "5m", "horizon": "15m", "model": "profile"},
            "detect": {"every": "1m"},
        }
    )

    with PrometheusStore(Source(url=server.url), state=tmp_path / "state") as store:

        def write(metric: str, columns: slice) -> None:
            values = y[:, None, columns]
            for body in remote_write.encode([Samples((metric,), rows, history.epoch_ms()[columns], values)]):
                store.client.request(
                    "POST", f"{server.url}/api/v1/write", content=body, headers=remote_write.HEADERS, retry=False
                )

        first = history.n - live // MINUTE
        # Prometheus takes nothing that is an hour older than its newest sample: oldest first, all series together.
        for column in range(0, first, 30):
            write("load", slice(column, min(column + 30, first)))
            write("other", slice(column, min(column + 30, first)))

        stores = {"": store}
        for column in range(first, history.n):
            # The live minute of all metrics: refused if anything of the future had been written before.
            write("load", slice(column, column + 1))
            write("other", slice(column, column + 1))
            at = history.start + column * MINUTE + timedelta(seconds=1)
            if (column - first) % 5 == 0:
                (forecast,), _ = write_forecasts(forecast_pass([mission], stores, now=at), stores)
                assert forecast.error is None
            (scored,), _ = write_scores(detect_pass([mission], stores, now=at), stores)
            assert scored.error is None

        lived = history[first + 1 :]
        stored = store.read_scores([mission], lived)["load"]
        assert [row.get("host") for row in stored.labels] == ["a", "b"]
        assert np.isfinite(stored.y).all()
        assert stored.y[0, -3] > 3
        assert np.delete(stored.y, -3, axis=1).max() < 3
        for metric in FORECAST_METRICS:
            labels, beside = store.query_range(f"last_over_time({metric}[59999ms])", lived)
            assert len(labels) == 2
            np.testing.assert_array_equal(np.isfinite(beside), np.isfinite(stored.y))
        _, other = store.query_range("last_over_time(other[59999ms])", lived)
        np.testing.assert_array_equal(other, y[:, first + 1 :])


@pytest.mark.slow
def test_a_detection_killed_and_run_again_scores_what_one_run_scores(
    start: Callable[..., servers.Server], tmp_path: Path
) -> None:
    """Two stores of the same data; on one every pass runs twice, as after a crash between writing and reporting."""
    found = []
    for repeat in (1, 2):
        server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
        end = Grid.ending(datetime.now(UTC) - HOUR, nab.STEP, 1).start
        grid = Grid.ending(end, nab.STEP, 4 * 288)
        y = 50 + 10 * np.sin(np.arange(grid.n) * 2 * np.pi / 288) + np.random.default_rng(1).normal(0, 1, (3, grid.n))
        rows = [Labels.of({"host": name}) for name in "abc"]
        made = nab.mission("seasonal_naive")
        with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
            for body in remote_write.encode([Samples((nab.METRIC,), rows, grid.epoch_ms(), y[:, None, :])]):
                store.client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
            server.flush()
            stores = {"": store}
            for hours in (3, 2, 1):
                at = end - hours * HOUR + made.offset
                for _ in range(repeat):
                    write_forecasts(forecast_pass([made], stores, now=at), stores)
                    server.flush()
                for _ in range(repeat):
                    write_scores(detect_pass([made], stores, now=at + HOUR), stores)
                    server.flush()
        selector = "match[]={__name__=~%22anomaly_.*%22}"
        exported = servers.fetch(f"{server.url}/api/v1/export?{selector}&start=0&end=4102444800")
        found.append(sorted(exported.splitlines()))
    once, twice = found
    # Each of three series: the forecast, its limits, and the score with what is beside it.
    for metric, count in ((PRED, 3), (SCORE, 3), (REASON, 3), (EVIDENCE, 9), (MOVE, 3), (USUAL, 3)):
        assert sum(f'"__name__":"{metric}"'.encode() in line for line in once) == count, metric
    assert once == twice


class Broken(HttpClient):
    """Breaks off after so many writes, as a process that is killed between two requests."""

    def __init__(self, source: Source, writes: int) -> None:
        super().__init__(source)
        self.writes = writes

    def request(self, method: str, url: str, **more: object) -> bytes:
        if url.endswith("/write"):
            if not self.writes:
                raise StoreUnavailableError("killed")
            self.writes -= 1
        return super().request(method, url, **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_workers_in_turn_and_one_killed_while_it_writes_leave_the_same_evidence_and_scores_as_one(
    start: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    end = Grid.ending(datetime.now(UTC) - 2 * HOUR, HOUR, 1).start
    grid = Grid.ending(end, nab.STEP, 6 * 288)
    y = 50 + 10 * np.sin(np.arange(grid.n) * 2 * np.pi / 288) + np.random.default_rng(1).normal(0, 1, (4, grid.n))
    live = 24
    y[0, -live + 4 : -live + 12] += 8
    y[1, -live + 4 : -live + 9] = np.nan
    y[2, -live + 2 :] = y[2, -live + 2]
    y[3, -live + 6 :] += 2
    rows = [Labels.of({"host": name, "channel": "its own"}) for name in "abcd"]
    base = nab.mission("profile")
    missions = {name: base.model_copy(update={"name": name}) for name in ("alone", "turns", "killed")}
    source = Source(url=server.url)
    with PrometheusStore(source, state=tmp_path) as store:
        for body in remote_write.encode([Samples((nab.METRIC,), rows, grid.epoch_ms(), y[:, None, :])]):
            store.client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
        server.flush()
        for hours in (2, 1):
            made = forecast_pass(list(missions.values()), {"": store}, now=end - hours * HOUR + base.offset)
            stored, _ = write_forecasts(made, {"": store})
            assert [result.error for result in stored] == [None] * 3
        server.flush()

    def detect(mission: Mission, by: PrometheusStore, at: datetime) -> AnomalyTimesError | None:
        [result], _ = write_scores(detect_pass([mission], {"": by}, now=at + base.offset), {"": by})
        server.flush()
        return result.error

    times = [end - 2 * HOUR + i * nab.STEP for i in range(1, live + 1)]
    one, two = PrometheusStore(source, state=tmp_path), PrometheusStore(source, state=tmp_path)
    broken = 0
    with one, two:
        for i, at in enumerate(times):
            assert detect(missions["alone"], one, at) is None
            assert detect(missions["turns"], (one, two)[i % 3 == 1], at) is None
            if i % 4 == 2:
                client = Broken(source, writes=1 + i % 5)
                with monkeypatch.context() as patch, PrometheusStore(source, state=tmp_path, client=client) as killed:
                    # As many requests as those of a large mission.
                    patch.setattr(samples, "MAX_BYTES", 300)
                    broken += detect(missions["killed"], killed, at) is not None
            elif i % 4 != 1:
                assert detect(missions["killed"], two, at) is None
        assert detect(missions["killed"], two, times[-1]) is None
    assert broken > 2

    exported = {}
    for name in missions:
        selector = f"match[]={{__name__=~%22anomaly_.*%22,mission=%22{name}%22}}"
        lines = server_lines(server, selector)
        exported[name] = sorted(line.replace(f'"{name}"', '"-"') for line in lines)
    assert len(exported["alone"]) > 4 * 12
    assert exported["turns"] == exported["alone"]
    assert exported["killed"] == exported["alone"]


def server_lines(server: servers.Server, selector: str) -> list[str]:
    exported = servers.fetch(f"{server.url}/api/v1/export?{selector}&start=0&end=4102444800")
    return exported.decode().splitlines()
