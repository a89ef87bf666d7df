"""What the page about detection says of stored numbers is so: a score is reproduced from the store alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest

from anomaly_times.conventions import LOWER, PRED, UPPER
from anomaly_times.evidence import CHANNELS, REASONS
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores.prometheus import PrometheusStore
from tests import servers
from tests.servers import fetch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "detection.md"
STEP = timedelta(minutes=5)


def page_queries() -> dict[str, str]:
    """The PromQL of the page, by the first word of the comment above each."""
    [block] = re.findall(r"```promql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    parts = [part.partition("\n") for part in block.strip().split("\n\n")]
    return {re.match(r"# (\w+)", comment)[1]: query for comment, _, query in parts}  # type: ignore[index]


def ask(server: servers.Server, query: str, at: datetime) -> dict[str, float]:
    """The answer of an instant query, by the label `host`."""
    text = fetch(f"{server.url}/api/v1/query?{urlencode({'query': query, 'time': at.timestamp()})}")
    return {row["metric"]["host"]: float(row["value"][1]) for row in json.loads(text)["data"]["result"]}


def test_the_page_has_every_reason_under_its_number() -> None:
    rows = re.findall(r"^\| (\d) \| `([\w ]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(str(number), reason) for number, reason in enumerate(REASONS)]


@pytest.mark.servers
def test_scores_follow_from_what_is_stored_by_the_promql_of_the_page(
    start: Callable[..., servers.Server], tmp_path: Path
) -> None:
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    now = Grid.ending(datetime.now(UTC) - timedelta(hours=1), STEP, 1).start
    grid = Grid.ending(now, STEP, 8 * 288)
    hosts, rng = ("flat", "rough", "shifted", "usual"), np.random.default_rng(0)
    y = np.round(100 + 20 * np.sin(np.arange(grid.n) * 2 * np.pi / 288) + rng.normal(0, 2, (4, grid.n)), 3)
    y[0, -40:] = y[0, -41]
    y[1, -40:] += np.resize([9.0, -9.0], 40)
    y[2, -40:] += 40
    times = grid.epoch_ms().tolist()
    lines = [
        f'load{{host="{host}"}} {value} {at}'
        for host, row in zip(hosts, y.tolist(), strict=True)
        for at, value in zip(times, row, strict=True)
    ]
    fetch(f"{server.url}/api/v1/import/prometheus", data="\n".join(lines).encode())
    server.flush()
    mission = Mission.model_validate(
        {
            "name": "load",
            "promql": "load",
            "step": STEP,
            "offset": "0s",
            "forecast": {"model": "profile", "lookback": "7d", "horizon": "4h", "every": "2h"},
            "detect": {"every": "5m"},
        }
    )
    with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
        stores = {"": store}
        [forecast], _ = write_forecasts(forecast_pass([mission], stores, now=now - 42 * STEP), stores)
        server.flush()
        window = 42 * STEP
        [result], _ = write_scores(detect_pass([mission], stores, now=now, window=window), stores)
        assert (forecast.error, result.error) == (None, None)
    server.flush()
    queries = {name: query.replace("[2h]", "[4h]") for name, query in page_queries().items()}
    queries["flat"] = queries["drift"].replace('"drift"', '"flat"')
    told = set()
    for back in range(0, 40, 3):
        at = now - back * STEP
        values = ask(server, "load", at)
        pred, lower, upper = (ask(server, f"last_over_time({name}[299999ms])", at) for name in (PRED, LOWER, UPPER))
        ratios = {name: ask(server, queries[name], at) for name in CHANNELS[1:]}
        reason, score = ask(server, "anomaly_reason", at), ask(server, "anomaly_score", at)
        shifts = ask(server, queries["level"], at)
        for host in hosts:
            error = values[host] - pred[host]
            of_all = {name: ratios[name].get(host, 0.0) for name in CHANNELS[1:]}
            of_all["point"] = error / ((upper if error >= 0 else lower)[host] - pred[host])
            assert max(of_all.values()) == pytest.approx(score[host], rel=1e-6)
            name = REASONS[int(reason[host])]
            assert name in (max(of_all, key=of_all.__getitem__), "level shift")
            assert (host in shifts) == (name == "level shift" and score[host] > 1)
            told.add(name)
    assert told >= {"flat", "roughness", "level shift"}
