"""What is measured in a process of its own: `python -m benchmarks.jobs JOB ARGS…` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.measure import peak_gb

STEP = timedelta(minutes=5)


def read_panel(url: str, start: str, n: str) -> dict[str, Any]:
    """Our reader: HTTP to Panel; answers the time ranges that it asked for, too."""
    from anomaly_times.panel import Grid
    from anomaly_times.settings import Source
    from anomaly_times.stores.http import HttpClient
    from anomaly_times.stores.prometheus import PrometheusStore

    ranges = []

    class Recording(HttpClient):
        def request(self, method: str, url: str, **options: Any) -> bytes:
            form = options.get("params") or {}
            if "start" in form:
                ranges.append((float(form["start"]), float(form["end"])))
            return super().request(method, url, **options)

    grid = Grid(datetime.fromisoformat(start), STEP, int(n))
    source = Source(url=url)
    with PrometheusStore(source, state=Path("unused"), client=Recording(source)) as store:
        before = time.perf_counter()
        panel = store.read("bench_load", grid, max_series=1_000_000)
        seconds = time.perf_counter() - before
    points = float((panel.y == panel.y).sum())
    return {"seconds": seconds, "series": panel.n_series, "points": points, "ranges": ranges}


def read_pandas(url: str, ranges: str) -> dict[str, float]:
    """The same by requests, json and pandas, with the same cuts and two requests in flight."""
    import pandas as pd
    import requests

    before = time.perf_counter()

    def fetch(times: list[float]) -> pd.DataFrame:
        answer = requests.post(
            f"{url}/api/v1/query_range",
            data={"query": "bench_load", "start": times[0], "end": times[1], "step": 300, "nocache": 1},
            timeout=600,
        )
        columns = {}
        for series in answer.json()["data"]["result"]:
            times, values = zip(*series["values"], strict=True)
            columns[tuple(sorted(series["metric"].items()))] = pd.Series(values, index=times).astype(float)
        return pd.DataFrame(columns)

    with ThreadPoolExecutor(2) as pool:
        frame = pd.concat(list(pool.map(fetch, json.loads(ranges))))
    return {"seconds": time.perf_counter() - before, "series": frame.shape[1], "points": float(frame.count().sum())}


def detection(url: str, now: str) -> dict[str, Any]:
    """A cold pass, then warm ones a step later each: read, join, score, write."""
    import numpy as np

    from anomaly_times.passes import detect_pass, write_scores
    from anomaly_times.settings import Source
    from anomaly_times.stores import open_store
    from benchmarks.speed import detection_mission

    mission = detection_mission()
    seconds, scored = [], 0.0
    with open_store(Source(url=url), state=Path("unused")) as store:
        for run in range(4):
            at = datetime.fromisoformat(now) + run * STEP
            before = time.perf_counter()
            results, written = write_scores(detect_pass([mission], {"": store}, now=at), {"": store})
            seconds.append(time.perf_counter() - before)
            if results[0].error is not None:
                raise results[0].error
            scores = results[0].scores
            scored = float(np.isfinite(scores.score).sum()) if scores is not None and written.samples else 0.0
            urllib.request.urlopen(f"{url}/internal/force_flush").close()
            if run == 0:
                # So long VictoriaMetrics remembers that there were no scores; in production a minute passes anyway.
                time.sleep(11)
    return {"cold": seconds[0], "warm": seconds[1:], "scored": scored}


def detection_once(url: str, missions: str, at: str) -> dict[str, float]:
    """One pass of `benchmarks.detection` in a process that knows nothing yet, as each scheduled run is one."""
    from anomaly_times.passes import detect_pass, write_scores
    from anomaly_times.settings import Source
    from anomaly_times.stores import open_store
    from benchmarks.detection import missions_of

    pack = missions_of(int(missions))
    with open_store(Source(url=url), state=Path("unused")) as store:
        before, cpu = time.perf_counter(), time.process_time()
        results, written = write_scores(detect_pass(pack, {"": store}, now=datetime.fromisoformat(at)), {"": store})
        seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    for result in results:
        if result.error is not None:
            raise result.error
    return {"seconds": seconds, "cpu": cpu, "samples": float(written.samples)}


def detection_pandas(url: str, at: str) -> dict[str, Any]:
    """The read, join and score of one point by requests, json and pandas; scores are not written."""
    import pandas as pd
    import requests

    time_s = datetime.fromisoformat(at).timestamp()

    def fetch(query: str) -> pd.Series:
        answer = requests.post(f"{url}/api/v1/query", data={"query": query, "time": time_s, "nocache": 1}, timeout=60)
        rows = {}
        for series in answer.json()["data"]["result"]:
            labels = {
                key: value for key, value in series["metric"].items() if key not in ("__name__", "mission", "metric")
            }
            rows[tuple(sorted(labels.items()))] = float(series["value"][1])
        return pd.Series(rows)

    seconds = []
    for _ in range(3):
        before = time.perf_counter()
        parts = {"y": fetch("bench_load"), "scored": fetch('anomaly_score{mission="bench"}')}
        for metric in ("anomaly_pred", "anomaly_lower", "anomaly_upper"):
            parts[metric] = fetch(f'last_over_time({metric}{{mission="bench"}}[299999ms])')
        frame = pd.DataFrame(parts)
        deviation = frame["y"] - frame["anomaly_pred"]
        above = deviation / (frame["anomaly_upper"] - frame["anomaly_pred"])
        below = deviation / (frame["anomaly_lower"] - frame["anomaly_pred"])
        frame["score"] = above.where(deviation >= 0, below)
        seconds.append(time.perf_counter() - before)
    return {"warm": seconds[1:], "scored": float(frame["score"].count())}


if __name__ == "__main__":
    result = globals()[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({**result, "peak_gb": peak_gb()}))
