"""Metrics of a made-up shop for the stack of compose: four weeks of past, then every step as its time comes.

    python load.py http://victoria-metrics:8428

What is in the store already is left as it is, so a restart goes on where the last one stopped. The file
`/tmp/past-is-in` is there as soon as the past is.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from anomaly_times.demo import STEP, demo_missions, make_demo
from anomaly_times.panel import Grid, Panel
from anomaly_times.settings import Source
from anomaly_times.stores import open_store

WEEK = timedelta(days=7)
PAST = timedelta(days=28)
READY = Path("/tmp/past-is-in")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
log = logging.getLogger("load")


def main(url: str) -> None:
    while True:
        now = datetime.now(UTC)
        # Incidents are planted in the last week of what is made: this one, which the same end gives anew.
        end = EPOCH + ((now - EPOCH) // WEEK + 1) * WEEK
        panels = shop(end)
        while (now := datetime.now(UTC)) < end:
            first = max(newest(url) + STEP, now - PAST)
            send(url, lines(panels, first, now))
            if not READY.exists():
                log.info("the past is in")
                READY.touch()
            time.sleep(15)


def shop(end: datetime) -> dict[str, Panel]:
    """Panels by metric name, over the five weeks to `end`."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder), end=end, days=35)
        store = open_store(Source(folder=Path(folder)), state=Path(folder))
        grid = Grid.ending(end, STEP, 35 * 24 * 12)
        return {mission.promql: store.read(mission.promql, grid) for mission in demo_missions()}


def lines(panels: dict[str, Panel], first: datetime, last: datetime) -> Iterable[bytes]:
    """Samples from `first` to `last`, both included, as VictoriaMetrics imports them: one series a line."""
    begin, until = int(first.timestamp() * 1000), int(last.timestamp() * 1000)
    for metric, panel in panels.items():
        times = panel.grid.epoch_ms()
        for labels, values in zip(panel.labels, panel.y, strict=True):
            now = (times >= begin) & (times <= until) & (values == values)
            if now.any():
                named = {**dict(labels), "__name__": metric}
                sent = {"metric": named, "values": values[now].tolist(), "timestamps": times[now].tolist()}
                yield json.dumps(sent).encode() + b"\n"


def newest(url: str) -> datetime:
    """The time of the newest sample in the store; long ago where there is none."""
    query = urllib.parse.urlencode({"query": "max(tlast_over_time(http_requests_per_second[28d]))"})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=30) as answer:
        result = json.load(answer)["data"]["result"]
    return datetime.fromtimestamp(float(result[0]["value"][1]), UTC) if result else EPOCH


def send(url: str, body: Iterable[bytes]) -> None:
    data = b"".join(body)
    if data:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/api/v1/import", data=data), timeout=120):
            log.info("%d bytes sent", len(data))
        # Else the next look at the newest sample could miss it.
        urllib.request.urlopen(f"{url}/internal/force_flush", timeout=30).close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    main(sys.argv[1])
