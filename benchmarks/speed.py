"""The groups of the speed benchmark: start-up, models, reading, detection; the last two on a real VictoriaMetrics."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np

from anomaly_times.mission import Mission, ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.calibrate import forecast_with_bounds
from anomaly_times.panel import Floats, Grid, Labels, Panel
from anomaly_times.passes import forecast_pass, write_forecasts
from anomaly_times.settings import Source
from anomaly_times.stores import open_store, remote_write
from anomaly_times.stores.samples import Samples
from benchmarks.measure import Row, cpu_timed, in_a_process, medians, timed
from tests import servers

STEP = timedelta(minutes=5)
DAY = 288
AHEAD = 24
END = Grid.ending(datetime.now(UTC) - timedelta(days=2), STEP, 1).start


def synthetic(series: int, points: int) -> Floats:
    """Lively metrics: a daily rhythm of its own for each series, noise that grows with the level, a few spikes."""
    rng = np.random.default_rng(7)
    t = np.arange(points)
    out = np.empty((series, points))
    for i in range(series):
        level = 10 ** rng.uniform(-1, 4)
        rhythm = 1 + rng.uniform(0.1, 0.8) * np.sin(2 * np.pi * (t / DAY + rng.uniform()))
        out[i] = level * rhythm * (1 + rng.normal(0, 0.05, points))
        out[i, rng.integers(0, points, 3)] *= rng.uniform(1.5, 4)
    return np.round(out, 4)


def labels(i: int) -> Labels:
    return Labels.of(
        {
            "instance": f"10.0.{i // 250}.{i % 250}:9100",
            "job": "node",
            "zone": f"zone-{i % 3}",
            "service": f"service-{i % 97:02d}",
        }
    )


def detection_mission() -> Mission:
    return Mission.model_validate(
        {
            "name": "bench",
            "promql": "bench_load",
            "step": "5m",
            "max_series": 100_000,
            "forecast": {"lookback": "7d", "model": "profile"},
            "detect": {"every": "5m"},
        }
    )


class Work:
    """Sizes, and a VictoriaMetrics with the data in it that is started when it is first needed."""

    def __init__(self, folder: Path, series: int, points: int, repeat: int) -> None:
        self.folder, self.series, self.points, self.repeat = folder, series, points, repeat
        self._server: servers.Server | None = None

    @cached_property
    def history(self) -> Grid:
        return Grid.ending(END, STEP, self.points)

    @cached_property
    def y(self) -> Floats:
        return synthetic(self.series, self.points + AHEAD)

    @property
    def panel(self) -> Panel:
        rows = [labels(i) for i in range(self.series)]
        return Panel.of(rows, self.history, self.y[:, : self.points])

    @property
    def url(self) -> str:
        if self._server is None:
            self._server = servers.victoria_metrics(self.folder / "vm", "-search.maxUniqueTimeseries=1000000")
            self._load(self._server)
        return self._server.url

    def _load(self, server: servers.Server) -> None:
        grid = Grid(self.history.start, STEP, self.points + AHEAD)
        rows = [labels(i) for i in range(self.series)]
        for body in remote_write.encode([Samples(("bench_load",), rows, grid.epoch_ms(), self.y[:, None, :])]):
            request = urllib.request.Request(server.url + "/api/v1/write", data=body, headers=remote_write.HEADERS)
            urllib.request.urlopen(request).close()
        server.flush()

    def flush(self) -> None:
        if self._server is not None:
            self._server.flush()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()


def startup(work: Work) -> list[Row]:
    """`at --help` beside an empty Python."""
    at = [sys.executable, "-c", "from anomaly_times.cli import main; main()", "--help"]
    empty = timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), work.repeat * 3)
    help_ = timed(lambda: subprocess.run(at, check=True, stdout=subprocess.DEVNULL), work.repeat * 3)
    floor = float(np.median(empty))
    return [Row("`at --help`", "× an empty Python", tuple(t / floor for t in help_), f"empty Python: {floor:.3f} s")]


def models(work: Work) -> list[Row]:
    """Series a second of processor time, beside statsforecast; warm."""
    panel = work.panel
    rates = {}
    # Profile first: what it allocates warms the heap up for both.
    for name in ("profile", "seasonal_naive"):
        model = build_model(ModelSpec(type=name))
        seconds = cpu_timed(
            lambda model=model: model.forecast(panel, h=DAY, quantiles=(0.005, 0.5, 0.995)),  # type: ignore[misc]
            work.repeat,
        )
        rates[name] = tuple(work.series / s for s in seconds)
    part = panel.rows(np.arange(min(work.series, 2_000)))
    bounded = cpu_timed(
        lambda: forecast_with_bounds(build_model(ModelSpec(type="profile")), part, h=AHEAD, level=99.9), work.repeat
    )
    from statsforecast.models import MSTL, SeasonalNaive

    few = panel.y[:200]
    naive = cpu_timed(lambda: [SeasonalNaive(DAY).forecast(row, h=DAY, level=[99]) for row in few], work.repeat)
    fewest = panel.y[:8]
    mstl = cpu_timed(lambda: [MSTL([DAY]).forecast(row, h=DAY, level=[99]) for row in fewest], work.repeat)
    peers = (
        f"statsforecast: SeasonalNaive {len(few) / np.median(naive):,.0f}, MSTL {len(fewest) / np.median(mstl):,.2g}"
    )
    return [
        Row("`profile`, h = 288", "series/s", rates["profile"], peers, "> 10,000"),
        Row("`seasonal_naive`, h = 288", "series/s", rates["seasonal_naive"], peers, "faster than `profile`"),
        Row(
            f"`profile` with calibrated bounds, h = {AHEAD}",
            "series/s",
            tuple(part.n_series / s for s in bounded),
            peers,
        ),
    ]


def read(work: Work) -> list[Row]:
    """HTTP to Panel, beside curl with the same cuts and two requests in flight, and beside requests + json + pandas."""
    url, grid = work.url, work.history
    ours, curls, pandas = [], [], []
    for _ in range(work.repeat):
        ours.append(in_a_process("read_panel", url, grid.start.isoformat(), str(grid.n)))
        ranges = ours[-1]["ranges"]
        curls += timed(lambda ranges=ranges: _curl(url, ranges), 1)  # type: ignore[misc]
        pandas.append(in_a_process("read_pandas", url, json.dumps(ranges)))
    assert {result["points"] for result in ours} == {result["points"] for result in pandas}
    curl, slow = float(np.median(curls)), float(np.median(medians(pandas, "seconds")))
    beside = f"curl {curl:.2f} s; requests + json + pandas {slow:.1f} s, {max(medians(pandas, 'peak_gb')):.1f} GB"
    return [
        Row("read into a Panel", "s", medians(ours, "seconds"), beside),
        Row("read into a Panel", "× curl", tuple(r["seconds"] / curl for r in ours), beside, "≤ 1.8"),
        Row("read into a Panel, peak memory", "GB", medians(ours, "peak_gb"), beside, "< 1.5"),
    ]


def _curl(url: str, ranges: list[tuple[float, float]]) -> None:
    def fetch(times: tuple[float, float]) -> None:
        data = [f"start={times[0]}", f"end={times[1]}", "query=bench_load", "step=300", "nocache=1"]
        form = [arg for pair in data for arg in ("-d", pair)]
        subprocess.run(["curl", "-sSf", "-o", "/dev/null", f"{url}/api/v1/query_range", *form], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fetch, ranges))


def detect(work: Work) -> list[Row]:
    """A detection pass over all series, cold and warm, beside the same join and score by requests, json and pandas."""
    url, mission = work.url, detection_mission()
    with open_store(Source(url=url), state=work.folder) as store:
        start = time.perf_counter()
        results, written = write_forecasts(forecast_pass([mission], {"": store}, now=END + mission.offset), {"": store})
        seconds = time.perf_counter() - start
    assert results[0].error is None, results[0].error
    work.flush()
    rows = [
        Row(
            f"forecast run, `profile`, h = {mission.h}: read to written",
            "s",
            (seconds,),
            f"{written.samples:,} samples",
        )
    ]

    out = [
        in_a_process("detection", url, (END + mission.offset + (1 + 4 * i) * STEP).isoformat())
        for i in range(work.repeat)
    ]
    peer = in_a_process("detection_pandas", url, (END + STEP).isoformat())
    assert peer["scored"] == out[-1]["scored"] == work.series
    warm = tuple(seconds for result in out for seconds in result["warm"])
    slow = float(np.median(peer["warm"]))
    beside = f"cold {np.median(medians(out, 'cold')):.2f} s; requests + json + pandas, without the write, {slow:.1f} s"
    rows.append(Row(f"detection pass, {out[-1]['scored']:,.0f} scores written", "s", warm, beside, "< 0.5 warm"))
    return rows
