"""What passes cost as series and missions grow, on a live VictoriaMetrics: `uv run nox -s bench-scale`.

Forecast runs are those of the command line, from its start to its end, in a process of their own; their memory is that
of all their processes together, pages that they share counted for each. `bench-results/scale.json` keeps what was
measured, group by group, so that a run that was cut short goes on with `--only`; `--table` prints it, and `--page FILE`
puts it into that page, between the lines that say so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from anomaly_times import bounds, scoring
from anomaly_times.bounds import bounded_by_blocks
from anomaly_times.engine.processes import ONE_THREAD
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Grid, Labels, Panel
from anomaly_times.passes import forecast_pass, write_forecasts
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from benchmarks import detection
from benchmarks.measure import Row, cpu_timed
from benchmarks.synthetic import services
from tests import servers

STEP = timedelta(minutes=5)
POINTS = 2_016
PATTERNS = 2_000
"""Made-up series that differ in shape; more than that are these at other levels."""
LARGEST = 10_000
"""Series of one mission, at most."""
RESULTS = Path("bench-results/scale.json")
BEGIN, END = "<!-- begin: bench-scale -->", "<!-- end: bench-scale -->"


@dataclass(frozen=True)
class Cost:
    """One run of the command line: seconds, processor seconds, the most memory in GB, samples read and written."""

    seconds: float
    cpu: float
    peak_gb: float
    written: int


class Installation:
    """A VictoriaMetrics with a week of `series` series, and a folder for files of missions."""

    def __init__(self, folder: Path, series: int) -> None:
        self.folder, self.series = folder, series
        self.end = Grid.ending(datetime.now(UTC) - timedelta(minutes=30), STEP, 1).start
        self.server = servers.victoria_metrics(
            folder / "vm", "-search.maxUniqueTimeseries=3000000", "-dedup.minScrapeInterval=1ms"
        )
        self._runs = 0
        began = time.perf_counter()
        self._load()
        print(f"  loaded {series:,} × {POINTS:,} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)

    def _load(self) -> None:
        grid = Grid.ending(self.end, STEP, POINTS)
        shapes = panel_values(min(self.series, PATTERNS))
        rng = np.random.default_rng(11)

        def send(first: int) -> None:
            rows = [labels(i, self.series) for i in range(first, min(first + 1_000, self.series))]
            level = levels[first : first + len(rows)]
            y = np.round(shapes[np.arange(first, first + len(rows)) % len(shapes)] * level[:, None], 4)
            for body in remote_write.encode([Samples(("bench_load",), rows, grid.epoch_ms(), y[:, None, :])]):
                servers.fetch(self.server.url + "/api/v1/write", data=body, timeout=120)

        levels = 10 ** rng.uniform(-1, 1, self.series)
        levels[: len(shapes)] = 1.0
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(send, range(0, self.series, 1_000)))
        self.server.flush()

    def missions(self, count: int, model: str) -> list[Mission]:
        """Missions that share the series evenly: `count` is a power of ten, or 1."""
        return [
            Mission.model_validate(
                {
                    "name": f"bench-{number}",
                    "promql": "bench_load" if count == 1 else f'bench_load{{of_{count}="{number}"}}',
                    "step": "5m",
                    "max_series": LARGEST,
                    "forecast": {"every": "1h", "lookback": "7d", "horizon": "2h", "model": model},
                    "detect": {"every": "5m"},
                }
            )
            for number in range(count)
        ]

    def forecast(
        self,
        missions: Sequence[Mission],
        *options: str,
        at: datetime | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Cost:
        """`at forecast` of these missions, at the end of their history where nothing is said."""
        file = self.folder / "missions.yaml"
        self._runs += 1
        # Under names of its own: what is stored already would not be written again.
        named = [one.model_copy(update={"name": f"run-{self._runs}-{one.name}"}) for one in missions]
        file.write_text(yaml.safe_dump_all([json.loads(one.model_dump_json(exclude_unset=True)) for one in named]))
        command = [
            *(sys.executable, "-c", "from anomaly_times.cli import main; main()", "forecast", str(file)),
            *("--url", self.server.url, "--at", (at or self.end).isoformat(), "--output", "json", *options),
        ]
        env = {**os.environ, "AT_STATE_URL": str(self.folder / "state"), **(env or {})}
        began = time.perf_counter()
        before = os.times()
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            watch = Memory(process.pid)
            answer, _ = process.communicate()
        seconds, after = time.perf_counter() - began, os.times()
        if process.returncode:
            raise RuntimeError(f"at forecast ended with {process.returncode}: {answer[-2000:]}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        written = json.loads(answer).get("written") or {}
        self.server.flush()
        return Cost(seconds, cpu, watch.peak_gb(), int(written.get("samples", 0)))

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()


class Memory:
    """Samples the memory of a process and everything below it until that has ended."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak = pid, 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while Path(f"/proc/{self._pid}/statm").exists():
            self._peak = max(self._peak, sum(map(_resident, _tree(self._pid))))
            time.sleep(0.1)

    def peak_gb(self) -> float:
        """In GB, once it has ended."""
        self._thread.join()
        return self._peak / 1e9


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _tree(pid: int) -> Iterable[int]:
    yield pid
    try:
        below = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    except OSError:
        return
    for child in below:
        yield from _tree(int(child))


def panel_values(series: int) -> Floats:
    """A week of made-up metrics, the first `series` of them."""
    return services(series, POINTS, STEP, seed=1)


def labels(i: int, series: int) -> Labels:
    """Those of one of so many series: `of_10` and so on say to which of ten missions it belongs."""
    groups = {f"of_{count}": str(i * count // series) for count in (10, 100, 1_000, 10_000) if count <= series}
    return Labels.of(
        {"instance": f"10.{i // 62_500}.{i // 250 % 250}.{i % 250}:9100", "service": f"s-{i % 97}"} | groups
    )


def panel(series: int) -> Panel:
    """As the store would answer it."""
    rows = sorted(labels(i, series) for i in range(series))
    return Panel(tuple(rows), Grid.ending(datetime(2026, 3, 2, tzinfo=UTC), STEP, POINTS), panel_values(series))


def row(what: str, costs: Sequence[Cost], *, target: str = "", beside: str = "") -> Row:
    """A line of the table for runs of one kind."""
    cpu = statistics.median(cost.cpu for cost in costs)
    memory = max(cost.peak_gb for cost in costs)
    text = f"{cpu:.0f} s of processors, {memory:.2f} GB, {costs[-1].written:,} samples written"
    return Row(what, "s", tuple(cost.seconds for cost in costs), "; ".join(filter(None, (text, beside))), target)


def forecasts(repeat: int) -> list[Row]:
    """10,000 series in one mission, read to written, beside what the server alone needs for the same bytes."""
    out = []
    with tempfile.TemporaryDirectory() as folder, Installation(Path(folder), LARGEST) as here:
        floor = statistics.median(server_alone(here, 3))
        for model, target in (("auto", "< 60 s, < 3 GB"), ("profile", "< 15 s")):
            costs = [here.forecast(here.missions(1, model)) for _ in range(repeat)]
            ratio = statistics.median(cost.seconds for cost in costs) / floor
            beside = f"{ratio:.1f} × the {floor:.1f} s in which curl reads and writes the same bytes"
            out.append(row(f"forecast, 10,000 series, `{model}`", costs, target=target, beside=beside))
    return out


def server_alone(here: Installation, repeat: int) -> list[float]:
    """Seconds in which curl sends the requests of a forecast run again, and keeps no answer."""
    source = Source(url=here.server.url)
    client = detection._Recording(source)
    with PrometheusStore(source, state=here.folder / "state", client=client) as store:
        results = forecast_pass(here.missions(1, "seasonal_naive"), {"": store}, now=here.end + timedelta(seconds=30))
        written, _ = write_forecasts(results, {"": store})
        for result in written:
            if result.error is not None:
                raise result.error
    return [detection._alone(client.sent, here.server.folder) for _ in range(repeat)]


def cached(repeat: int) -> list[Row]:
    """The same run an hour later, with the history of the first one kept."""
    del repeat
    env = {"AT_HISTORY_CACHE_BYTES": str(4_000_000_000)}
    with tempfile.TemporaryDirectory() as folder, Installation(Path(folder), LARGEST) as here:
        pack, out = here.missions(1, "profile"), []
        for at in (here.end - timedelta(hours=1), here.end):
            cost = here.forecast(pack, at=at, env=env)
            asked = f"/api/v1/query?nocache=1&query=at_points_read&time={at.timestamp() + 30}"
            [answer] = json.loads(servers.fetch(here.server.url + asked))["data"]["result"]
            out.append((cost, float(answer["value"][1])))
        size = sum(file.stat().st_size for file in Path(folder, "state", "history").iterdir())
    (first, all_of_it), (second, some) = out
    return [
        row("forecast, 10,000 series, `profile`, nothing kept yet", [first], beside=f"{all_of_it:,.0f} points read"),
        row("the same an hour later, its history kept", [second], target="≤ 5 % of the points",
            beside=f"{some:,.0f} points read, {some / all_of_it:.1%} of them; {size / 1e6:.0f} MB kept"),
    ]  # fmt: skip


def on_ray(repeat: int) -> list[Row]:
    """Ten missions on a Ray cluster of two workers on this machine, beside two processes."""
    import ray

    with tempfile.TemporaryDirectory() as folder, Installation(Path(folder), LARGEST) as here:
        pack = here.missions(10, "auto")
        local = [here.forecast(pack) for _ in range(repeat)]
        alone = [here.forecast(pack, "--on", "ray", "--jobs", "2")]
        cluster = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            address = cluster.address_info["gcs_address"]
            # The first pass starts the workers.
            joined = [here.forecast(pack, "--on", "ray", "--ray-address", address) for _ in range(repeat + 1)][1:]
        finally:
            ray.shutdown()
    usual = statistics.median(one.seconds for one in local)
    speed = usual / statistics.median(one.seconds for one in joined)
    return [
        row("forecast, 10,000 series in 10 missions, `auto`", local),
        row("the same on a Ray cluster of two workers", joined, target="≥ 0.9 × the speed of processes",
            beside=f"{speed:.2f} × the speed of processes; of ours here, without the workers'"),
        row("the same on one that it starts and stops itself", alone,
            beside=f"{usual / alone[0].seconds:.2f} × the speed"),
    ]  # fmt: skip


def large(repeat: int) -> list[Row]:
    """100,000 series in ten missions."""
    with tempfile.TemporaryDirectory() as folder, Installation(Path(folder), 100_000) as here:
        costs = [here.forecast(here.missions(10, "auto")) for _ in range(repeat)]
    return [row("forecast, 100,000 series in 10 missions, `auto`", costs, target="< 600 s, < 6 GB")]


def detections(repeat: int) -> list[Row]:
    """Detection minute after minute, warm."""
    out = []
    for series, missions, target in ((10_000, 1, "< 0.5 s"), (10_000, 500, "< 2 s"), (100_000, 500, "< 6 s")):
        found = detection.measure(series, missions, repeat=max(3, repeat))
        floor = statistics.median(found.floor)
        warm = [cost.wall for cost in found.warm]
        beside = (
            f"{statistics.median(warm) / floor:.1f} × the {floor:.2f} s of curl; {found.warm[-1].requests} requests, "
            f"{found.idle[-1].requests} where nothing is new ({statistics.median(c.wall for c in found.idle):.2f} s)"
        )
        out.append(Row(f"detection, {series:,} series in {missions:,} missions", "s", tuple(warm), beside, target))
    return out


def growth(repeat: int) -> list[Row]:
    """The same work for more series, and for the same series in more missions; `profile`, the cheapest to compute."""
    out = []
    for series in (1_000, 10_000):
        with tempfile.TemporaryDirectory() as folder, Installation(Path(folder), series) as here:
            out.append(row(f"series: {series:,} in 1 mission, `auto`", [here.forecast(here.missions(1, "auto"))]))
            for count in (10, 100, 1_000, 10_000) if series == 10_000 else ():
                runs = repeat if count < 10_000 else 1
                costs = [here.forecast(here.missions(count, "profile")) for _ in range(runs)]
                out.append(row(f"missions: {count:,} with 10,000 series, `profile`", costs))
    for count in (10, 100, 1_000, 10_000):
        found = detection.measure(10_000, count, repeat=3)
        out.append(Row(f"missions: {count:,} with 10,000 series, detection", "s", tuple(c.wall for c in found.warm)))
    return out


def peers(repeat: int) -> list[Row]:
    """Series a second of one processor, forecasts of 24 points from 2,016, beside other libraries'."""
    import pandas as pd
    from lightgbm import LGBMRegressor
    from mlforecast import MLForecast
    from statsforecast.models import MSTL, SeasonalNaive, SeasonalWindowAverage

    out = []
    history = panel(1_000)
    for model in ("profile", "auto"):
        asked = Mission.model_validate(
            {"name": "m", "promql": "up", "step": "5m", "forecast": {"lookback": "7d", "horizon": "2h", "model": model}}
        )
        seconds = cpu_timed(lambda asked=asked: bounded_by_blocks(asked, history, least=scoring.resolution(history.y)),
                            repeat)  # type: ignore[misc] # fmt: skip
        what = f"`{model}`, with calibrated bounds and limits"
        out.append(Row(what, "series/s", tuple(history.n_series / one for one in seconds)))
    y = np.nan_to_num(history.y)
    for name, make, count in (
        ("SeasonalNaive", lambda: SeasonalNaive(season_length=288), 1_000),
        ("SeasonalWindowAverage", lambda: SeasonalWindowAverage(season_length=288, window_size=3), 1_000),
        ("MSTL", lambda: MSTL(season_length=[288, 2016 // 2]), 5),
    ):
        seconds = cpu_timed(lambda make=make, count=count: [make().forecast(y=one, h=24) for one in y[:count]], repeat)  # type: ignore[misc]
        out.append(Row(f"statsforecast {name}, forecast alone", "series/s", tuple(count / one for one in seconds),
                       f"of {count:,} series"))  # fmt: skip
    count = 200
    times = pd.date_range("2026-01-01", periods=POINTS, freq="5min")
    frame = pd.DataFrame(
        {"unique_id": np.repeat(np.arange(count), POINTS), "ds": np.tile(times, count), "y": y[:count].ravel()}
    )

    def boosted() -> None:
        # The lags and the trees that a tutorial has.
        made = MLForecast(LGBMRegressor(n_jobs=1, verbosity=-1), freq="5min", lags=[1, 2, 3, 12, 288], num_threads=1)
        made.fit(frame).predict(24)

    seconds = cpu_timed(boosted, repeat)
    out.append(Row("mlforecast with LightGBM, forecast alone", "series/s", tuple(count / one for one in seconds),
                   f"one model for {count:,} series, fitted each time"))  # fmt: skip
    return out


def blocks(repeat: int) -> list[Row]:
    """Processor time for each series by how many are computed at once."""
    out, history = [], panel(1_000)
    least = scoring.resolution(history.y)
    usual = bounds.BLOCK_ROWS
    for model in ("auto", "profile"):
        asked = Mission.model_validate(
            {"name": "m", "promql": "up", "step": "5m", "forecast": {"lookback": "7d", "horizon": "2h", "model": model}}
        )
        for rows in (100, 250, 500, 1_000):
            bounds.BLOCK_ROWS = rows
            seconds = cpu_timed(lambda asked=asked: bounded_by_blocks(asked, history, least=least), repeat)  # type: ignore[misc]
            out.append(
                Row(f"`{model}`, {rows} series at once", "ms a series", tuple(1000 * s / 1_000 for s in seconds))
            )
    bounds.BLOCK_ROWS = usual
    return out


def storage(repeat: int) -> list[Row]:
    """Bytes that VictoriaMetrics keeps for a sample of values, and for one of forecasts."""
    del repeat
    with tempfile.TemporaryDirectory() as folder, Installation(Path(folder), 1_000) as here:
        values = _stored(here.server)
        here.forecast(here.missions(1, "auto"))
        both = _stored(here.server)
    each = (both[0] - values[0]) / max(1.0, both[1] - values[1])
    return [
        Row("storage of values", "bytes a sample", (values[0] / values[1],), f"{values[1]:,.0f} samples"),
        Row("storage of forecasts", "bytes a sample", (each,), f"{both[1] - values[1]:,.0f} samples"),
    ]


def _stored(server: servers.Server) -> tuple[float, float]:
    """Bytes and samples on disk, without the index."""
    server.flush()
    servers.fetch(server.url + "/internal/force_merge")
    time.sleep(5)
    size = rows = 0.0
    for line in servers.fetch(server.url + "/metrics").decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("vm_data_size_bytes{") and "indexdb" not in name:
            size += float(value)
        elif name.startswith("vm_rows{") and "indexdb" not in name:
            rows += float(value)
    return size, rows


GROUPS: dict[str, Callable[[int], list[Row]]] = {
    "detections": detections,
    "forecasts": forecasts,
    "cached": cached,
    "ray": on_ray,
    "peers": peers,
    "blocks": blocks,
    "storage": storage,
    "growth": growth,
    "large": large,
}


OF_ONE_PROCESSOR = ("peers", "blocks")


def machine() -> dict[str, object]:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    names = ("anomaly-times", "numpy", "polars", "ray", "statsforecast", "mlforecast", "lightgbm")
    program = subprocess.run(
        [servers.need("victoria-metrics"), "-version"], capture_output=True, text=True, check=False
    )
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "victoria-metrics": (program.stdout + program.stderr).strip(),
        **{name: version(name) for name in names},
    }


def slope(rows: Sequence[dict[str, Any]], kind: str, of: str) -> str:
    """How seconds grow: the exponent between the least and the most, 1 where they are in proportion."""
    found = [
        (int(one["what"].split()[1].replace(",", "")), one["value"])
        for one in rows
        if one["what"].startswith(f"{kind}: ") and one["what"].endswith(of)
    ]
    if len(found) < 2:
        return ""
    (few, fast), (many, slow) = min(found), max(found)
    return f"{kind} {few:,} to {many:,}, {of}: seconds grow as their number to the power of " + (
        f"{math.log(slow / fast) / math.log(many / few):.2f}"
    )


def table(results: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in results.get("machine", {}).items() if value), ""]
    for name, group in results["groups"].items():
        load = f"load average at its start {group['load']:.1f}"
        lines += [f"## {name}", "", f"{group['at']}, {load}.", "", "| work | figure | runs | beside | target |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for one in group["rows"]:
            known = {key: one[key] for key in ("what", "unit", "beside", "target")}
            lines.append(Row(runs=tuple(one["runs"]), **known).as_markdown())
        lines.append("")
    rows = [one for group in results["groups"].values() for one in group["rows"]]
    slopes = [
        slope(rows, "series", "`auto`"),
        slope(rows, "missions", "`profile`"),
        slope(rows, "missions", "detection"),
    ]
    lines += [f"- {text}" for text in slopes if text]
    return "\n".join(lines)


def main() -> None:
    """The groups that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what was measured before, and measure nothing")
    parser.add_argument("--page", type=Path, help="a page to put the table into, too")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json.exists() else {"groups": {}}
    for name in () if args.table else args.only:
        print(f"# {name}", file=sys.stderr, flush=True)
        if name in OF_ONE_PROCESSOR and "OMP_NUM_THREADS" not in os.environ:
            # Libraries read how many threads they may have when they are loaded.
            again = [sys.executable, "-m", "benchmarks.scale", "--only", name, "--repeat", str(args.repeat)]
            subprocess.run([*again, "--json", str(args.json)], env={**os.environ, **ONE_THREAD}, check=True)
            results = json.loads(args.json.read_text())
            continue
        began, load = datetime.now(UTC), os.getloadavg()[0]
        rows = GROUPS[name](args.repeat)
        results["machine"] = machine()
        results["groups"][name] = {
            "at": began.isoformat(timespec="minutes"),
            "load": load,
            "rows": [one.as_dict() for one in rows],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    text = table(results)
    print(text)
    if args.page:
        before, _, rest = args.page.read_text().partition(BEGIN)
        args.page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
