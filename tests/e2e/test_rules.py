"""A planted incident reaches a webhook, by passes, VictoriaMetrics, vmalert and Alertmanager; a usual day does not."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from typer.testing import CliRunner

from anomaly_times.cli import app
from tests import servers
from tests.servers import Server, fetch

pytestmark = [pytest.mark.servers, pytest.mark.slow]

MISSIONS = """\
defaults:
  step: 5m
  forecast: {model: profile, lookback: 7d}
  detect: {every: 5m}
  labels: {team: shop}
missions:
- {name: bad, promql: 'load{world="bad"} # as it is', alert: {points: 3 of 5}, description: '{{ load }}'}
- {name: long, promql: 'load{world="bad"}', alert: {for: 0s, per_series: true}}
- {name: calm, promql: 'load{world="calm"}', alert: {for: 0s}}
"""


class Hook(BaseHTTPRequestHandler):
    """Keeps the alerts that Alertmanager sends."""

    told: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.extend(json.loads(body)["alerts"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    kind = type("Hook", (Hook,), {"told": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", kind.told
    server.shutdown()
    server.server_close()
    thread.join()


def plant(server: Server, last: datetime) -> None:
    """A week of two pods in two worlds alike; in the bad one pod `a` doubles for the last half hour."""
    rng = np.random.default_rng(3)
    n = 7 * 288
    at = np.arange(n)
    lines = []
    for pod in "ab":
        values = 100 + 20 * np.sin(at / 288 * 2 * np.pi) + rng.normal(0, 1, n)
        for world in ("bad", "calm"):
            odd = values.copy()
            if (pod, world) == ("a", "bad"):
                odd[-6:] += 100
            for i, value in enumerate(odd):
                when = int((last - (n - 1 - i) * timedelta(minutes=5)).timestamp() * 1000)
                lines.append(f'load{{world="{world}",pod="{pod}"}} {value:.4f} {when}')
    fetch(f"{server.url}/api/v1/import/prometheus", data="\n".join(lines).encode())
    server.flush()


def test_a_planted_incident_calls_and_the_same_series_without_it_does_not(
    start: Callable[..., Server], hook: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    url, told = hook
    source = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms", "-search.latencyOffset=0s")
    now = datetime.now(UTC)
    last = datetime.fromtimestamp((now.timestamp() - 31) // 300 * 300, UTC)
    plant(source, last)
    missions, rules = tmp_path / "missions.yaml", tmp_path / "rules.yaml"
    missions.write_text(MISSIONS)
    run = CliRunner()

    def at(*args: object) -> None:
        result = run.invoke(app, [str(arg) for arg in args])
        assert result.exit_code == 0, result.output

    at("forecast", missions, "--url", source.url, "--at", (last - timedelta(minutes=44)).isoformat())
    source.flush()
    at("detect", missions, "--url", source.url, "--last", "1h")
    source.flush()
    at("rules", missions, "--out", rules, "--no-keep-firing", "--no-platform")
    # An engine waits up to an interval before it begins.
    rules.write_text(rules.read_text().replace("interval: 1m", "interval: 1s"))
    manager = start(servers.alertmanager, url)
    watching = start(servers.vmalert, str(rules), source.url, manager.url)
    deadline = time.monotonic() + 60
    while {alert["labels"]["mission"] for alert in told} < {"bad", "long"} and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)
    assert {(alert["labels"]["mission"], alert["labels"]["alertname"]) for alert in told} == {
        ("bad", "Anomaly"),
        ("long", "Anomaly"),
    }, watching.log
    [bad] = [each for each in told if each["labels"]["mission"] == "bad"][-1:]
    assert bad["labels"] == {
        "alertname": "Anomaly",
        "alertgroup": "at:bad",
        "mission": "bad",
        "severity": "page",
        "team": "shop",
    }
    said = bad["annotations"]
    assert said["summary"] == "bad: 1 series anomalous"
    assert (said["description"], said["query"]) == ("{{ load }}", 'load{world="bad"} # as it is')
    point = query(source, 'load{world="bad",pod="a"}', last)
    score, yhat, lower, upper = (
        query(source, f'last_over_time({name}{{mission="bad",pod="a"}}[5m])', last)
        for name in ("anomaly_score", "anomaly_pred", "anomaly_lower", "anomaly_upper")
    )
    usual = f"{last - timedelta(minutes=30):%Y-%m-%d %H:%M:%S} +0000 UTC"
    numbers = f"{point:.4g}, expected {yhat:.4g}, bounds {lower:.4g} to {upper:.4g}"
    command = f"at explain --mission bad --at {last:%Y-%m-%dT%H:%M:%SZ}"
    place = f"score {score:.4g} in metric=load pod=a team=shop world=bad"
    assert re.sub("^[a-z ]+, ", "", said["details"]) == "\n".join([place, numbers, f"last usual {usual}", command])
    [own] = [each for each in told if each["labels"]["mission"] == "long"][-1:]
    assert (own["labels"]["pod"], own["annotations"]["summary"]) == ("a", f"long: score {score:.4g}")
    assert f"\n{numbers}\n" in own["annotations"]["details"]


def query(source: Server, promql: str, at: datetime) -> float:
    """The one value that a query answers."""
    asked = urlencode({"query": promql, "time": at.timestamp(), "nocache": 1})
    [row] = json.loads(fetch(f"{source.url}/api/v1/query?{asked}"))["data"]["result"]
    return float(row["value"][1])
