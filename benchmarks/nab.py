"""Detection on real metrics: NAB's CloudWatch series in a real VictoriaMetrics, replayed as if they were live.

    uv run python -m benchmarks.nab [--data ../shared/data] [--models profile auto …]

Every hour a forecast pass, then a detection pass over the hour that followed, through the store and its watermark as
in production. Times are shifted so that all series end together; nothing is tuned on these series.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from anomaly_times.demo import Findings, Incident, match_incidents
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Panel, Scores
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores import open_store, remote_write
from anomaly_times.stores.http import HttpClient
from anomaly_times.stores.samples import Samples

STEP = timedelta(minutes=5)
HOUR = timedelta(hours=1)
METRIC = "cloudwatch"
CHEAP = ("auto", "seasonmix", "profile", "holt", "seasonal_naive")


@dataclass(frozen=True)
class Nab:
    """The series on one grid, and the labelled windows, both shifted to end at `panel.grid.end`."""

    panel: Panel
    incidents: tuple[Incident, ...]


def load(folder: Path, *, end: datetime) -> Nab:
    """NAB's `realAWSCloudwatch` files; stamps are rounded down to five minutes, of two at one time the later counts."""
    windows = json.loads((folder / "windows.json").read_text())
    series: dict[Labels, dict[int, float]] = {}
    incidents = []
    end_slot = int(end.timestamp()) // 300
    for path in sorted((folder / "realAWSCloudwatch").glob("*.csv")):
        with path.open() as file:
            samples = {_slot(row["timestamp"]): float(row["value"]) for row in csv.DictReader(file)}
        shift = end_slot - max(samples)
        labels = Labels.of({"__name__": METRIC, "file": path.stem})
        series[labels] = {slot + shift: value for slot, value in samples.items()}
        for i, (start, stop) in enumerate(windows[f"realAWSCloudwatch/{path.name}"]):
            first, last = ((_slot(text) + shift) * STEP for text in (start, stop))
            epoch = datetime(1970, 1, 1, tzinfo=UTC)
            incidents.append(Incident(f"{path.stem}-{i + 1}", (labels,), epoch + first, epoch + last, "labelled"))
    first_slot = min(min(samples) for samples in series.values())
    grid = Grid.ending(end, STEP, end_slot - first_slot + 1)
    y = np.full((len(series), grid.n), np.nan)
    for row, samples in enumerate(series.values()):
        y[row, np.array(list(samples)) - first_slot] = list(samples.values())
    return Nab(Panel.of(list(series), grid, y), tuple(incidents))


def _slot(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) // 300


def mission(model: str) -> Mission:
    return Mission.model_validate(
        {
            "name": "nab",
            "promql": METRIC,
            "step": "5m",
            "offset": "30s",
            "forecast": {"every": "1h", "lookback": "14d", "model": model},
            "detect": {"every": "5m", "catch_up": "1h"},
        }
    )


def write_series(url: str, nab: Nab) -> None:
    """Load the series into a server by Remote Write."""
    with HttpClient(Source(url=url)) as client:
        rows = [labels.without(["__name__"]) for labels in nab.panel.labels]
        samples = Samples((METRIC,), rows, nab.panel.grid.epoch_ms(), nab.panel.y[:, None, :])
        for body in remote_write.encode([samples]):
            client.request("POST", f"{url}/api/v1/write", content=body, headers=remote_write.HEADERS)


def replay(
    url: str, made: Mission, *, start: datetime, end: datetime, visible: Callable[[], object]
) -> tuple[Scores, ...]:
    """A forecast pass every hour from `start`, and a detection pass after each; what the detection passes scored.

    Args:
        url: a server with the series in it.
        made: the mission.
        start: of the first forecast.
        end: no pass runs later.
        visible: makes what was written visible to queries, as time does in production.
    """
    found = []
    with open_store(Source(url=url), state=Path("unused")) as store:
        stores = {"": store}
        at = start
        while at + HOUR <= end:
            forecasts, _ = write_forecasts(forecast_pass([made], stores, now=at + made.offset), stores)
            visible()
            scored, _ = write_scores(detect_pass([made], stores, now=at + HOUR + made.offset), stores)
            visible()
            for result in (*forecasts, *scored):
                if result.error is not None:
                    raise result.error
            found += [result.scores for result in scored if result.scores is not None]
            at += HOUR
    return tuple(found)


def judged(nab: Nab, scores: Scores) -> Findings:
    """What became of the labelled windows that begin inside the replayed time."""
    inside = [each for each in nab.incidents if each.start >= scores.grid.start]
    return match_incidents({"nab": scores}, inside)


@dataclass(frozen=True)
class Figures:
    """What the replay of one model found; `besides` counts episodes outside of all windows, a series and week."""

    model: str
    found: int
    windows: int
    delay: timedelta | None
    besides: float
    points: int
    seconds: float
    """Of processor time, for all passes; the server's is not in it."""

    def as_markdown(self) -> str:
        """For docs/real-metrics.md."""
        delay = "–" if self.delay is None else str(self.delay)
        return (
            f"| `{self.model}` | {self.found} of {self.windows} | {delay} | {self.besides:.2f} | {self.points:,} "
            f"| {self.seconds:.0f} |"
        )


def measure(model: str, nab: Nab, *, start: datetime, end: datetime) -> Figures:
    """Replay one model with a server of its own."""
    from tests import servers

    with tempfile.TemporaryDirectory() as folder:
        server = servers.victoria_metrics(Path(folder), "-dedup.minScrapeInterval=1ms")
        try:
            write_series(server.url, nab)
            server.flush()
            began = time.process_time()
            found = Scores.joined(replay(server.url, mission(model), start=start, end=end, visible=server.flush))
            seconds = time.process_time() - began
        finally:
            server.stop()
    findings = judged(nab, found)
    hits = [outcome for outcome in findings.outcomes if outcome.found]
    delays = sorted(outcome.delay for outcome in hits if outcome.delay is not None)
    points = int(np.isfinite(found.score).sum())
    weeks = points * STEP / timedelta(days=7)
    return Figures(
        model,
        len(hits),
        len(findings.outcomes),
        delays[len(delays) // 2] if delays else None,
        len(findings.besides) / weeks,
        points,
        seconds,
    )


def main() -> int:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--models", nargs="+", default=list(CHEAP))
    parser.add_argument("--warm-up", type=float, default=3.0, help="days of history before the first forecast")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures there")
    args = parser.parse_args()
    if not (args.data / "nab").is_dir():
        print(f"no NAB series in {args.data}", file=sys.stderr)
        return 2
    end = Grid.ending(datetime.now(UTC) - timedelta(hours=3), HOUR, 1).start
    nab = load(args.data / "nab", end=end)
    start = end - timedelta(days=14) + timedelta(days=args.warm_up)
    print("| model | windows found | median time to detection | episodes besides, a series and week ", end="")
    print("| points scored | processor seconds |", "| --- " * 6 + "|", sep="\n")
    made = []
    for model in args.models:
        made.append(measure(model, nab, start=start, end=end))
        print(made[-1].as_markdown(), flush=True)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([vars(each) for each in made], indent=1, default=str))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
