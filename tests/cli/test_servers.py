"""The commands against real servers."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest

from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Scores
from anomaly_times.settings import source_for_url
from anomaly_times.stores import open_store
from tests import servers
from tests.cli.conftest import Run

pytestmark = pytest.mark.servers


def _load(server: servers.Server, end: datetime, series: Mapping[str, np.ndarray]) -> None:
    """A sample a minute up to `end`; `name` is a metric name, the label `job` is `shop`."""
    lines = []
    for name, values in series.items():
        last = int(end.timestamp()) * 1000
        stamps = [last - 60_000 * i for i in range(len(values))][::-1]
        metric = {"__name__": name, "job": "shop"}
        lines.append(json.dumps({"metric": metric, "values": values.tolist(), "timestamps": stamps}))
    servers.fetch(f"{server.url}/api/v1/import", data="\n".join(lines).encode())
    server.flush()


def _query(server: servers.Server, promql: str, at: datetime) -> list[dict[str, object]]:
    asked = urlencode({"query": promql, "time": at.timestamp(), "nocache": 1})
    answer = json.loads(servers.fetch(f"{server.url}/api/v1/query?{asked}"))
    return answer["data"]["result"]  # type: ignore[no-any-return]


def _rhythm(minutes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 50 + 20 * np.sin(np.arange(minutes) / 1440 * 2 * np.pi) + rng.normal(0, 1, minutes)


def test_a_forecast_and_its_scores_can_be_queried(
    at: Run, start: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    now = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
    load = _rhythm(4 * 1440, 0)
    load[-10:] += 60
    _load(server, now, {"load": load})
    common = ("--url", server.url, "--promql", 'load{job="shop"}', "--step", "1m", "--name", "load")
    # Half a minute is the offset for late samples.
    later = now + timedelta(seconds=35)
    earlier = later - timedelta(minutes=20)

    made = at("forecast", *common, "--lookback", "3d", "--at", earlier.isoformat())
    assert made.exit_code == 0, made.stderr
    assert f"in {server.url} as mission load" in made.stdout
    server.flush()
    scored = at("detect", *common, "--at", later.isoformat(), "-o", "json", "--last", "20m")
    assert scored.exit_code == 0, scored.stderr
    document = json.loads(scored.stdout)
    assert document["forecast"] == "stored"
    assert document["anomalous"] == 10
    server.flush()
    [stored] = _query(server, 'count_over_time(anomaly_score{mission="load"}[1h]) ', now + timedelta(minutes=1))
    assert stored["metric"] == {"job": "shop", "metric": "load", "mission": "load"}
    assert int(stored["value"][1]) == 20  # type: ignore[index]


def test_the_demo_looks_at_a_servers_own_metrics_and_only_reads(
    at: Run, start: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = start(servers.victoria_metrics)
    minutes = 4 * 1440
    metrics = {
        "shop_requests_total": np.cumsum(_rhythm(minutes, 0) * 60),
        "shop_queue": _rhythm(minutes, 1),
        "node_flat": np.ones(minutes),
    }
    _load(server, datetime.now(UTC), metrics)
    result = at("demo", "--url", server.url)
    assert result.exit_code == 0, result.stderr
    assert "sum by (job) (rate(shop_requests_total[10m]))" in result.stdout
    assert "avg by (job) (shop_queue)" in result.stdout
    assert "node_flat" not in result.stdout
    assert "576 points of the last day scored" in result.stdout  # 24 hours of both
    assert [path.name for path in (tmp_path / "at-demo-live").iterdir()] == ["report.html"]
    assert not (tmp_path / "at-demo").exists()
    assert (tmp_path / "at-demo-live" / "report.html").read_text().count('class="chart"') == 2
    server.flush()
    names = json.loads(servers.fetch(f"{server.url}/api/v1/label/__name__/values"))["data"]
    assert sorted(names) == sorted(metrics)

    for line in re.findall(r"^  (at .*)", result.stdout, re.MULTILINE)[:2]:
        assert at(*shlex.split(line)[1:]).exit_code == 0


def test_the_page_of_own_metrics_takes_nobodys_place(at: Run, prom_server: servers.Server, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    result = at("demo", "--url", prom_server.url, "--out", tmp_path)
    assert result.exit_code == 2
    assert "report.html is there and is not ours" in result.stderr
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_server_without_lively_metrics_is_told_so(at: Run, prom_server: servers.Server, tmp_path: Path) -> None:
    result = at("demo", "--url", prom_server.url, "--out", tmp_path / "d")
    assert result.exit_code == 3
    assert "has moved for two days" in result.stderr
    assert not (tmp_path / "d").exists()


def test_a_server_that_is_away_is_never_a_bad_query(at: Run) -> None:
    away = f"http://127.0.0.1:{servers.free_port()}"
    result = at("detect", "--promql", "up", "--url", away)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "cannot be reached" in result.stderr
    assert at("doctor", "--url", away).exit_code == 4


def test_a_horizon_that_the_server_cannot_hold_is_refused_before_any_work(
    at: Run, vm_server: servers.Server, prom_server: servers.Server
) -> None:
    query = ("forecast", "--promql", "nothing_at_all", "--horizon", "60h", "--url")
    result = at(*query, vm_server.url)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --horizon: 2d12h ahead is too far: VictoriaMetrics drops")
    assert "hint: --horizon 1d23h or less" in result.stderr
    # No series is what stops these: there it may reach so far.
    assert at(*query, vm_server.url, "--dry-run").exit_code == 3
    assert at(*query, prom_server.url).exit_code == 3


def test_a_query_that_does_not_parse_is_shown_with_its_place(at: Run, vm_server: servers.Server) -> None:
    result = at("detect", "--url", vm_server.url, "--promql", "sum(rate(x[5m])")
    assert result.exit_code == 3
    assert "^" in result.stderr


def test_the_doctor_finds_nothing_wrong_with_a_good_server(at: Run, start: Callable[..., servers.Server]) -> None:
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    result = at("doctor", "--url", server.url)
    assert result.exit_code == 0, result.stdout
    assert "fail" not in result.stdout
    findings = json.loads(at("doctor", "--url", server.url, "--read-only", "--output", "json").stdout)["findings"]
    assert {"check", "status", "detail", "hint"} == set(findings[0])


def test_a_plain_prometheus_gets_no_future_and_the_table_says_where_it_waits(
    at: Run, start: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = start(servers.prometheus)
    end = datetime.now(UTC).replace(second=0, microsecond=0)
    grid = Grid.ending(end, timedelta(minutes=1), 90)
    load = _rhythm(grid.n, 0)[None]
    with open_store(source_for_url(server.url), state=tmp_path) as store:
        mission = Mission(name="history", promql="load")
        store.write_scores([(mission, Scores((Labels.of({"job": "shop"}),), grid, load, load, load, load, load))])
    query = ("--url", server.url, "--promql", 'anomaly_score{mission="history"}', "--name", "m", "--lookback", "1h")
    made = at("forecast", *query, "--model", "seasonal_naive", "--at", (end - timedelta(minutes=20)).isoformat())
    assert made.exit_code == 0, made.stderr
    assert "in .anomaly-times, until its time comes, as mission m" in made.stdout
    assert not _query(server, '{__name__=~"anomaly_.*",mission="m"}', end)

    scored = at("detect", *query, "--last", "10m", "--at", (end + timedelta(seconds=31)).isoformat())
    assert scored.exit_code == 0, scored.stderr
    assert "made one for the occasion" not in scored.stderr
    old = at("detect", *query, "--last", "3m", "--at", (end - timedelta(minutes=70)).isoformat(), "--name", "old")
    assert old.exit_code == 4
    assert "no score stored: the write failed" in old.stdout
    assert "▁" in old.stdout or "█" in old.stdout
    assert "out_of_order_time_window" in old.stderr
    names = {str(row["metric"]["__name__"]) for row in _query(server, '{mission="m"}', end)}  # type: ignore[index]
    forecast = {"anomaly_pred", "anomaly_lower", "anomaly_upper"}
    assert names == forecast | {"anomaly_score", "anomaly_reason", "anomaly_evidence"}


def test_the_doctor_tells_of_a_ray_cluster_that_is_away(
    at: Run, vm_server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("AT_ENGINE", "ray")
    monkeypatch.setenv("AT_RAY_ADDRESS", f"127.0.0.1:{servers.free_port()}")
    result = at("doctor", "--url", vm_server.url, "--read-only")
    assert result.exit_code == 4
    assert "ray: no Ray cluster answers at 127.0.0.1:" in result.stdout
