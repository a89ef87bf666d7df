"""What the demo load of compose leaves in a real VictoriaMetrics."""

from __future__ import annotations

import importlib.util
import json
import urllib.parse
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from anomaly_times.demo import STEP
from tests import servers

FILE = Path(__file__).resolve().parents[2] / "compose" / "load.py"


@pytest.mark.servers
@pytest.mark.slow
def test_a_restart_goes_on_where_the_load_stopped(vm_server: servers.Server) -> None:
    spec = importlib.util.spec_from_file_location("load", FILE)
    assert spec
    assert spec.loader
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    panels = load.shop(end)
    stopped = end - timedelta(hours=2)
    assert load.newest(vm_server.url) == load.EPOCH

    load.send(vm_server.url, load.lines(panels, end - timedelta(days=28), stopped))
    assert load.newest(vm_server.url) == stopped
    load.send(vm_server.url, load.lines(panels, load.newest(vm_server.url) + STEP, end))
    assert load.newest(vm_server.url) == end

    query = urllib.parse.urlencode({"query": "count_over_time(http_requests_per_second[4h])", "time": end.timestamp()})
    result = json.loads(servers.fetch(f"{vm_server.url}/api/v1/query?{query}"))["data"]["result"]
    [checkout] = [each for each in result if each["metric"] == {"route": "/cart", "service": "checkout"}]
    # Four hours of five-minute steps, without a hole and none twice.
    assert int(checkout["value"][1]) == 48
