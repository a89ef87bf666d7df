"""Detection minute after minute on a live VictoriaMetrics, with stored forecasts: `python -m benchmarks.detection`.

What a pass costs in a process that has run before, in one that has not, and where nothing is new; and beside it what
the server alone needs to answer the same queries and to take the same bodies.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels, Limits
from anomaly_times.passes import DetectResult, detect_pass, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.http import HttpClient
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from benchmarks.measure import in_a_process
from tests import servers

MINUTE = timedelta(minutes=1)
AHEAD = 60
"""Minutes for which there are values, and forecasts."""
REMEMBERED_ABSENCE = 11
"""Seconds after which VictoriaMetrics looks again for series that it did not find; in production a minute passes."""


@dataclass(frozen=True)
class Cost:
    """What one pass took: seconds of the clock, seconds of our processor time, and how many requests it made."""

    wall: float
    cpu: float
    requests: int
    scored: int


@dataclass(frozen=True)
class Found:
    """Passes of one process, a minute each, beside the server's floor for the requests of the last warm one."""

    series: int
    missions: int
    cold: Cost
    warm: tuple[Cost, ...]
    idle: tuple[Cost, ...]
    fresh: tuple[dict[str, float], ...]
    """Each a pass of a process of its own, where scores are stored: what a scheduled run is."""
    floor: tuple[float, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        def line(name: str, costs: Sequence[Cost]) -> str:
            walls = sorted(cost.wall for cost in costs)
            cpu = statistics.median(cost.cpu for cost in costs)
            return (
                f"  {name}: {statistics.median(walls):.3f} s ({walls[0]:.3f}–{walls[-1]:.3f}), cpu {cpu:.3f} s, "
                f"{costs[-1].requests} requests, {costs[-1].scored:,} scored"
            )

        floor = f"{statistics.median(self.floor):.3f} s" if self.floor else "not measured"
        return "\n".join(
            (
                f"{self.series:,} series in {self.missions:,} missions",
                line("cold", [self.cold]),
                line("warm", self.warm),
                line("nothing new", self.idle),
                "  in a process of its own: "
                + ", ".join(
                    f"{run['seconds']:.2f} s (cpu {run['cpu']:.2f}, {run['peak_gb']:.2f} GB)" for run in self.fresh
                ),
                f"  the server alone, the same requests by curl: {floor}",
            )
        )


class _Recording(HttpClient):
    """A client that keeps what it sent."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.sent: list[tuple[str, str, Any, bytes | None]] = []

    def request(self, method: str, url: str, **options: Any) -> bytes:
        self.sent.append((method, url, options.get("params"), options.get("content")))
        return super().request(method, url, **options)


def missions_of(count: int) -> list[Mission]:
    """Missions of one pack, told apart by a label of their series."""
    return [
        Mission.model_validate(
            {
                "name": f"mission-{number}",
                "promql": f'bench_load{{job="job-{number}"}}',
                "step": "1m",
                "max_series": 200_000,
                "forecast": {"every": "1h", "lookback": "1d", "model": "profile"},
                "detect": {"every": "1m"},
            }
        )
        for number in range(count)
    ]


def rows_of(mission: int, count: int) -> list[Labels]:
    """The label sets of a mission's series, sorted."""
    return sorted(
        Labels.of(
            {
                "__name__": "bench_load",
                "job": f"job-{mission}",
                "instance": f"10.{mission % 250}.{i // 250}.{i % 250}:9100",
                "zone": f"zone-{i % 3}",
                "service": f"service-{i % 97:02d}",
            }
        )
        for i in range(count)
    )


def load(server: servers.Server, missions: Sequence[Mission], each: int, begin: datetime) -> None:
    """An hour of values for `each` series a mission from `begin` on, and forecasts with limits for all of it."""
    rng = np.random.default_rng(7)
    values = Grid(begin - 20 * MINUTE, MINUTE, AHEAD + 20)
    source = Source(url=server.url)
    with PrometheusStore(source, state=server.folder / "state") as store:
        for number, mission in enumerate(missions):
            rows = rows_of(number, each)
            level = 10 ** rng.uniform(-1, 4, (each, 1))
            y = np.round(level * (1 + rng.normal(0, 0.05, (each, values.n))), 4)
            bare = [row.without(("__name__",)) for row in rows]
            block = Samples(("bench_load",), bare, values.epoch_ms(), y[:, None, :])
            for body in remote_write.encode([block]):
                store.client.request("POST", server.url + "/api/v1/write", content=body, headers=remote_write.HEADERS)
            yhat = np.repeat(level, AHEAD, axis=1)
            usual = np.tile(np.array([0.0, 0.5, 1.0, 0.0, 0.0])[:, None, None], (1, each, 1))
            limit = np.tile(np.array([1.0, 0.9, 2.0, 0.7, 30.0])[:, None, None], (1, each, 1))
            limits = Limits(usual, limit, 0.05 * level)
            grid = Grid(begin, MINUTE, AHEAD)
            forecast = Forecast(
                tuple(rows), grid, begin - MINUTE, yhat, yhat * 0.8, yhat * 1.2, limits=limits.rounded()
            )
            store.write_forecasts([(mission, forecast)])
    server.flush()


def measure(series: int, missions: int, *, repeat: int = 5, threads: int = 2, profile: bool = False) -> Found:
    """Passes over `series` series in all, of `missions` missions of one pack, on a server of its own.

    Args:
        series: in all; a multiple of `missions`.
        missions: how many share them.
        repeat: warm passes, and passes that find nothing new.
        threads: that run missions, as `at run` has them; 1: none.
        profile: print where the processor time of the warm passes goes.
    """
    pack = missions_of(missions)
    begin = Grid.ending(datetime.now(UTC) - timedelta(hours=2), MINUTE, 1).start
    with tempfile.TemporaryDirectory() as temp:
        server = servers.victoria_metrics(
            Path(temp) / "vm", "-search.maxUniqueTimeseries=3000000", "-dedup.minScrapeInterval=1ms"
        )
        try:
            load(server, pack, series // missions, begin)
            return _passes(server, pack, series, begin, repeat=repeat, threads=threads, profile=profile)
        finally:
            server.stop()


def _passes(
    server: servers.Server,
    pack: Sequence[Mission],
    series: int,
    begin: datetime,
    *,
    repeat: int,
    threads: int,
    profile: bool,
) -> Found:
    source = Source(url=server.url)
    client = _Recording(source)
    profiler = cProfile.Profile()
    with (
        PrometheusStore(source, state=server.folder / "state", client=client) as store,
        ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool,
    ):

        def one(minute: int, *, profiled: bool = False) -> Cost:
            now = begin + minute * MINUTE + pack[0].offset
            client.sent.clear()
            wall, cpu = time.perf_counter(), time.process_time()
            if profiled:
                profiler.enable()
            found = detect_pass(pack, {"": store}, now=now, mapper=pool.map if pool else map)
            results, _ = write_scores(found, {"": store})
            profiler.disable()
            cost = Cost(
                time.perf_counter() - wall, time.process_time() - cpu, len(client.sent), sum(map(_scored, results))
            )
            for result in results:
                if result.error is not None:
                    raise result.error
            return cost

        def settle() -> None:
            server.flush()
            time.sleep(1)

        cold = one(1)
        settle()
        time.sleep(REMEMBERED_ABSENCE)
        warm, idle, floor = [], [], []
        for minute in range(2, 3 + repeat):
            cost = one(minute, profiled=profile and minute > 2)
            sent = list(client.sent)
            settle()
            if minute == 2:
                # The first write of a score changes what the server answers next; the second pass is as all others.
                continue
            warm.append(cost)
            idle.append(one(minute))
        # The server has what these bodies carry, which costs it as much again.
        floor = [_alone(sent, server.folder) for _ in range(3)]
    fresh = []
    for minute in range(3 + repeat, 5 + repeat):
        at = begin + minute * MINUTE + pack[0].offset
        fresh.append(in_a_process("detection_once", server.url, str(len(pack)), at.isoformat()))
        server.flush()
        time.sleep(1)
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    return Found(series, len(pack), cold, tuple(warm), tuple(idle), tuple(fresh), tuple(floor))


def _scored(result: DetectResult) -> int:
    return int(np.isfinite(result.scores.score).sum()) if result.scores is not None else 0


def _alone(sent: Sequence[tuple[str, str, Any, bytes | None]], folder: Path) -> float:
    """Seconds in which one curl sends these requests again, two at once, and keeps no answer."""
    lines = []
    for i, (method, url, params, content) in enumerate(sent):
        body = folder / f"body-{i}"
        body.write_bytes(content if content is not None else urlencode(params or {}, doseq=True).encode())
        headers = remote_write.HEADERS if content is not None else {}
        part = [f'url = "{url}"', 'output = "/dev/null"', "silent", f'request = "{method}"']
        if method == "POST":
            part.append(f'data-binary = "@{body}"')
        part += [f'header = "{name}: {value}"' for name, value in headers.items()]
        lines.append("\n".join(part))
    config = folder / "curl.conf"
    config.write_text("\nnext\n".join(lines) + "\n")
    before = time.perf_counter()
    subprocess.run(["curl", "--parallel", "--parallel-immediate", "--parallel-max", "2", "-K", str(config)], check=True)
    return time.perf_counter() - before


def main() -> None:
    """The sizes of the table, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--missions", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="print where processor time goes")
    parser.add_argument("--json", type=Path, help="where to write the figures, too")
    args = parser.parse_args()
    found = measure(args.series, args.missions, repeat=args.repeat, threads=args.threads, profile=args.profile)
    print(found)
    if args.json:
        args.json.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


if __name__ == "__main__":
    main()
