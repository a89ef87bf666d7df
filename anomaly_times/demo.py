"""Four weeks of made-up service metrics with planted incidents, missions that watch them, and what was found.

The metrics behave like those of a small web shop: traffic with a rhythm of days and weeks, latency that rises with
load and has a heavy tail, errors that are mostly none, processors, memory, disks and queues, each with noise of its own
kind, missed scrapes, and a deploy that changes levels and is no incident. What is planted is not tuned to be found:
some of it is subtle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Grid, Labels, Panel, Scores, round_significant

__all__ = [
    "Episode",
    "Findings",
    "Incident",
    "Outcome",
    "demo_missions",
    "find_episodes",
    "make_demo",
    "match_incidents",
]

STEP = timedelta(minutes=5)
_DAY = timedelta(days=1)

_ROUTES = {
    ("checkout", "/cart"): 90.0,
    ("checkout", "/order"): 22.0,
    ("payments", "/charge"): 18.0,
    ("search", "/query"): 160.0,
    ("search", "/suggest"): 310.0,
}
_SERVICES = ("checkout", "payments", "search")
_INSTANCES = ("checkout-1", "checkout-2", "search-1", "search-2")


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that was planted: in which series (with `__name__`), from when to when (inclusive), and what it is."""

    name: str
    series: tuple[Labels, ...]
    start: datetime
    end: datetime
    description: str

    def covers(self, labels: Labels, start: datetime, end: datetime) -> bool:
        """Whether it concerns this series at some time in [`start`, `end`]."""
        return labels in self.series and start <= self.end and end >= self.start


@dataclass(frozen=True, slots=True)
class Episode:
    """Anomalous points (score over 1) of one series that lie close together, from the first to the last."""

    mission: str
    labels: Labels
    start: datetime
    end: datetime
    peak: float
    """The highest score."""
    reason: str = ""
    """What that is of, one of `evidence.REASONS`; empty where it is not known."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an incident: found if a point of its series was anomalous while it lasted."""

    incident: Incident
    episodes: tuple[Episode, ...]
    delay: timedelta | None
    """From its start to the first anomalous point; `None`: missed."""

    @property
    def found(self) -> bool:
        """Whether it was found while it lasted."""
        return self.delay is not None


@dataclass(frozen=True, slots=True)
class Findings:
    """The outcome of every incident, in order of time, and the episodes that belong to none."""

    outcomes: tuple[Outcome, ...]
    besides: tuple[Episode, ...]


def demo_missions(source: str = "") -> list[Mission]:
    """One mission for each kind of metric of the demo, set as a user would set it.

    Args:
        source: name of the source that has the demo's folder.
    """
    # A week of hourly forecasts in half a minute: `auto` takes several times as long.
    every = {"every": "1h", "lookback": "14d", "horizon": "2h", "model": "profile"}
    kinds: dict[str, tuple[str, dict[str, object]]] = {
        "demo-traffic": (
            "http_requests_per_second",
            {"min_relative_deviation": "20%", "valid_range": (0, float("inf")), "missing": "anomaly"},
        ),
        "demo-latency": (
            "http_request_duration_p99_seconds",
            {"direction": "above", "min_relative_deviation": "15%", "valid_range": (0, float("inf"))},
        ),
        "demo-errors": ("http_errors_per_second", {"direction": "above", "min_deviation": 0.02}),
        "demo-cpu": ("cpu_usage_ratio", {"direction": "above", "min_deviation": 0.1, "valid_range": (0, 1)}),
        "demo-memory": ("memory_usage_bytes", {"direction": "above", "min_relative_deviation": "10%"}),
        "demo-disk": ("disk_used_ratio", {"direction": "above", "min_deviation": 0.01, "valid_range": (0, 1)}),
        "demo-queue": ("queue_depth", {"direction": "above", "min_deviation": 25}),
    }
    return [
        Mission.model_validate(
            {
                "name": name,
                "promql": promql,
                "source": source,
                "step": STEP,
                "forecast": every,
                "detect": {"every": STEP, "catch_up": "2h", **detect},
            }
        )
        for name, (promql, detect) in kinds.items()
    ]


def make_demo(folder: Path, *, end: datetime, days: int = 28, step: timedelta = STEP, seed: int = 7) -> list[Incident]:
    """Write the demo's metrics into `folder` (which is made if need be), and answer what was planted in the last week.

    The same arguments give the same files.

    Args:
        folder: gets four Parquet files with one sample a row, and a CSV with one series a column.
        end: the last sample is at the last grid time that is not later.
        days: how far back the metrics reach, at least 10.
        step: of the samples; at most 10 minutes, for the shortest incident lasts 30.
        seed: of all that is random.

    Raises:
        ValueError: `days` or `step` out of these bounds.
    """
    if days < 10 or step > timedelta(minutes=10):
        raise ValueError("the demo needs 10 days at least, and a step of 10 minutes at most")
    shop = _Shop(Grid.ending(end, step, days * _DAY // step), seed)
    traffic, latency, errors = shop.traffic(), shop.latency(), shop.errors()
    cpu, memory, disk, queues = shop.cpu(), shop.memory(), shop.disk(), shop.queues()
    shop.deploy(cpu, latency)
    incidents = shop.plant({**traffic, **latency, **errors, **cpu, **memory, **disk, **queues})
    shop.miss_scrapes({**cpu, **memory, **disk})

    folder.mkdir(parents=True, exist_ok=True)
    for name, series in {
        "traffic": traffic,
        "latency": latency,
        "errors": errors,
        "resources": {**cpu, **memory, **disk},
    }.items():
        _write_long(folder / f"{name}.parquet", shop.grid, series)
    _write_wide(folder / "queues.csv", shop.grid, queues)
    return incidents


Series = dict[Labels, Floats]


class _Shop:
    """The generators. Each series has a random stream of its own, so that none changes with what others do."""

    def __init__(self, grid: Grid, seed: int) -> None:
        self.grid = grid
        self.seed = seed
        self.per_hour = timedelta(hours=1) / grid.step
        self.seconds = grid.step.total_seconds()
        clock = grid.epoch_ms() / 1000
        self.hour = clock / 3600 % 24
        # The epoch was a Thursday.
        self.weekday = ((clock // 86_400 + 3) % 7).astype(int)
        weekend = np.isin(self.weekday, (5, 6))
        # A working day has its peak before noon and another one in the evening; a weekend begins late.
        work = 0.25 + 0.75 * _hump(self.hour, 11.5, 3.8) + 0.55 * _hump(self.hour, 19.5, 2.6)
        rest = 0.25 + 0.50 * _hump(self.hour, 14.0, 4.2) + 0.48 * _hump(self.hour, 20.0, 2.8)
        friday = np.where(self.weekday == 4, 0.94, 1.0)
        shape = np.where(weekend, rest, work * friday)
        rng = self.random("load")
        # No two days are alike: a slow wander of a few per cent, shared by all that depends on load.
        self.load = shape * np.exp(0.025 * _wander(rng, grid.n, 30 * self.per_hour))
        first = grid.end - 7 * _DAY
        self.midnight = datetime.combine(first, time(), UTC) + _DAY

    def random(self, *name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *"/".join(name).encode()])

    def traffic(self) -> Series:
        out = {}
        for (service, route), level in _ROUTES.items():
            rng = self.random("traffic", service, route)
            own = np.exp(0.015 * _wander(rng, self.grid.n, 6 * self.per_hour))
            rate = level * self.load**1.1 * own
            # Requests come nearly independently, somewhat burstier: noise that grows with the root of the level.
            counts = rng.poisson(rate * self.seconds) / self.seconds
            out[_labels("http_requests_per_second", service=service, route=route)] = counts * np.exp(
                0.02 * rng.standard_t(6, self.grid.n)
            )
        return out

    def latency(self) -> Series:
        out = {}
        for service, base, queueing in zip(_SERVICES, (0.21, 0.35, 0.12), (0.6, 0.3, 0.9), strict=True):
            rng = self.random("latency", service)
            n = self.grid.n
            level = base * (1 + queueing * self.load**3) * np.exp(0.03 * _wander(rng, n, 4 * self.per_hour))
            # A 99th percentile is noisy, skewed upwards, and now and then a garbage collection hits.
            noise = np.exp(0.05 * rng.standard_normal(n) + 0.03 * rng.exponential(1.0, n))
            pauses = np.where(rng.random(n) < 0.0015, 1 + rng.exponential(0.5, n), 1.0)
            out[_labels("http_request_duration_p99_seconds", service=service)] = level * noise * pauses
        return out

    def errors(self) -> Series:
        out = {}
        for service, per_hour in zip(_SERVICES, (3.0, 1.2, 9.0), strict=True):
            rng = self.random("errors", service)
            n = self.grid.n
            expected = per_hour / self.per_hour * self.load
            # Errors come in small clusters: a Poisson number of them, each with a few errors.
            clusters = rng.poisson(expected / 2.0)
            counts = clusters + rng.poisson(clusters * 1.0)
            retries = (rng.random(n) < 0.0008) * rng.poisson(12, n)
            out[_labels("http_errors_per_second", service=service, code="500")] = (counts + retries) / self.seconds
        return out

    def cpu(self) -> Series:
        out = {}
        for instance in _INSTANCES:
            service = instance.partition("-")[0]
            rng = self.random("cpu", instance)
            n = self.grid.n
            level = 0.08 + (0.38 if service == "search" else 0.30) * self.load * (1 + 0.04 * rng.standard_normal())
            # A backup every night at two, which takes about half an hour.
            backup = 0.18 * ((self.hour >= 2) & (self.hour < 2.5)) * rng.uniform(0.8, 1.2, n)
            noise = 0.012 * _wander(rng, n, 2 * self.per_hour) + 0.012 * rng.standard_normal(n)
            labels = _labels("cpu_usage_ratio", service=service, instance=instance)
            out[labels] = np.clip(level + backup + noise, 0.01, 0.99)
        return out

    def memory(self) -> Series:
        rng = self.random("memory", "payments-1")
        n = self.grid.n
        gib = 2.0**30
        # Grows until the process is recycled, after a day and a half or so.
        saw, level = np.empty(n), 0.0
        growth = rng.gamma(2.0, 0.5, n) / (36 * self.per_hour)
        limit = rng.uniform(0.9, 1.1)
        for i in range(n):
            level += growth[i]
            if level > limit:
                level, limit = 0.0, rng.uniform(0.9, 1.1)
            saw[i] = level
        flat = self.random("memory", "search-1")
        return {
            _labels("memory_usage_bytes", service="payments", instance="payments-1"): gib
            * (1.1 + 1.6 * saw + 0.02 * rng.standard_normal(n)),
            _labels("memory_usage_bytes", service="search", instance="search-1"): gib
            * (5.2 + 0.5 * self.load + 0.05 * _wander(flat, n, 8 * self.per_hour) + 0.03 * flat.standard_normal(n)),
        }

    def disk(self) -> Series:
        out = {}
        days = np.arange(self.grid.n) * (self.grid.step / _DAY)
        for instance, start, daily in (("db-1", 0.48, 0.004), ("db-2", 0.37, 0.006)):
            rng = self.random("disk", instance)
            # Fills slowly; log files grow by day and are rotated at midnight.
            logs = 0.012 * self.hour / 24
            noise = 0.0006 * rng.standard_normal(self.grid.n)
            out[_labels("disk_used_ratio", instance=instance)] = start + daily * days + logs + noise
        return out

    def queues(self) -> Series:
        rng = self.random("queue", "emails")
        n = self.grid.n
        waiting = rng.gamma(4.0, 1.0, n) * (2 + 9 * self.load)
        # A newsletter goes out at nine on working days, in portions.
        newsletter = 160 * _hump(self.hour, 9.4, 0.45) * (self.weekday < 5) * rng.uniform(0.8, 1.2, n)
        batch = self.random("queue", "invoices")
        night = 420 * np.clip(1 - (self.hour - 6) / 0.9, 0, 1) * (self.hour >= 6)
        return {
            _labels("queue_depth", queue="emails"): np.rint(waiting + newsletter),
            _labels("queue_depth", queue="invoices"): np.rint(
                night * np.exp(0.12 * batch.standard_normal(n)) + batch.poisson(0.3 + self.load, n)
            ),
        }

    def deploy(self, cpu: Series, latency: Series) -> None:
        """Eleven days before the end a new release makes the search faster, for more work: new levels, no incident."""
        after = self.grid.times() >= np.datetime64(
            (self.midnight - 5 * _DAY + timedelta(hours=13)).replace(tzinfo=None)
        )
        for series, factor in ((cpu, 1.15), (latency, 0.85)):
            for labels, values in series.items():
                if labels.get("service") == "search":
                    values[after] *= factor

    def miss_scrapes(self, series: Series) -> None:
        """Single scrapes of an instance fail now and then, and two weeks ago the monitoring was down for 40 minutes."""
        down = self._slice(self.midnight - 8 * _DAY + timedelta(hours=15), timedelta(minutes=40))
        for labels, values in series.items():
            rng = self.random("scrape", str(labels))
            values[rng.random(self.grid.n) < 0.003] = np.nan
            values[down] = np.nan

    def plant(self, series: Series) -> list[Incident]:
        """Change `series` in place by each incident."""
        rng = self.random("incidents")
        order = _labels("http_requests_per_second", service="checkout", route="/order")
        charge = _labels("http_requests_per_second", service="payments", route="/charge")
        suggest = _labels("http_requests_per_second", service="search", route="/suggest")
        latency = {name: _labels("http_request_duration_p99_seconds", service=name) for name in _SERVICES}
        errors = _labels("http_errors_per_second", service="payments", code="500")
        neighbour = _labels("cpu_usage_ratio", service="checkout", instance="checkout-2")
        leaking = _labels("memory_usage_bytes", service="payments", instance="payments-1")
        database = _labels("disk_used_ratio", instance="db-2")
        emails = _labels("queue_depth", queue="emails")

        def ramp(n: int, peak: float) -> Floats:
            return np.linspace(0, peak, n)

        planned: list[tuple[str, tuple[Labels, ...], int, str, timedelta, Callable[[Floats], Floats], str]] = [
            ("orders-drop", (order, charge), 0, "13:05", timedelta(minutes=50), lambda y: 0.45 * y,
             "more than half of the orders, and so of the charges, are lost after a bad release"),
            ("search-slow", (latency["search"],), 1, "10:20", timedelta(minutes=40), lambda y: 2.1 * y,
             "a cold cache doubles the latency of the search"),
            ("charge-errors", (errors,), 2, "16:10", timedelta(minutes=30),
             lambda y: y + rng.poisson(0.15 * self.seconds, len(y)) / self.seconds,
             "a payment provider answers with errors"),
            ("noisy-neighbour", (neighbour,), 3, "03:30", timedelta(hours=2),
             lambda y: np.clip(y + 0.22, 0, 0.99), "another tenant takes processor time at night: normal for noon"),
            ("suggest-silent", (suggest,), 4, "09:00", timedelta(minutes=45), lambda y: np.full(len(y), np.nan),
             "a metric vanishes: the exporter hangs"),
            ("checkout-creep", (latency["checkout"],), 4, "14:00", timedelta(hours=5),
             lambda y: y * (1 + ramp(len(y), 0.3)), "checkout gets slower by and by; hard to see"),
            ("memory-leak", (leaking,), 3, "12:00", timedelta(hours=40),
             lambda y: y + 2.0**30 * ramp(len(y), 1.6), "memory that recycling does not give back; hard to see"),
            ("disk-flood", (database,), 2, "20:00", timedelta(hours=6),
             lambda y: np.minimum(y + ramp(len(y), 0.09), 1.0), "debug logs fill a disk, until they are removed"),
            ("emails-stuck", (emails,), 5, "02:00", timedelta(hours=3),
             lambda y: np.rint(y + ramp(len(y), 150)), "the mail server refuses: a backlog builds up at night"),
        ]  # fmt: skip
        incidents = []
        for name, affected, day, clock, lasts, change, description in planned:
            start = datetime.combine(self.midnight + day * _DAY, time.fromisoformat(clock), UTC)
            at = self._slice(start, lasts)
            for labels in affected:
                series[labels][at] = change(series[labels][at])
            part = self.grid[at]
            incidents.append(Incident(name, affected, part.start, part.end, description))
        return sorted(incidents, key=lambda incident: incident.start)

    def _slice(self, start: datetime, lasts: timedelta) -> slice:
        first = Grid.covering(start, start + lasts, self.grid.step)
        at = self.grid.index(first.start)
        return slice(max(0, at), at + lasts // self.grid.step)


def find_episodes(
    scores: Mapping[str, Scores], *, gap: timedelta = timedelta(hours=1), above: float = 1.0
) -> list[Episode]:
    """Runs of points with a score over `above`, by mission and series; in order of time.

    Args:
        scores: by mission.
        gap: points that lie at most this far apart belong together.
        above: the limit.
    """
    episodes = []
    for mission, found in scores.items():
        joined = max(1, gap // found.grid.step)
        rows, columns = np.nonzero(found.score > above)
        # A new episode begins with a new series, or after a gap.
        breaks = np.flatnonzero((np.diff(rows) != 0) | (np.diff(columns) > joined)) + 1
        for row, run in zip(np.split(rows, breaks), np.split(columns, breaks), strict=True):
            if not len(run):
                continue
            start, end = (found.grid.start + int(i) * found.grid.step for i in (run[0], run[-1]))
            highest = row[0], run[found.score[row[0], run].argmax()]
            reason = REASONS[int(found.reason[highest])] if found.reason is not None else ""
            episodes.append(Episode(mission, found.labels[row[0]], start, end, float(found.score[highest]), reason))
    return sorted(episodes, key=lambda episode: (episode.start, episode.mission, episode.labels))


def match_incidents(
    scores: Mapping[str, Scores], incidents: Sequence[Incident], *, gap: timedelta = timedelta(hours=1)
) -> Findings:
    """Which incidents were found and how fast, and what was flagged besides.

    An incident is found if a point of one of its series is anomalous from its start to its end. An episode that begins
    up to `gap` after the end is its echo: it belongs to the incident, and does not make it found.

    Args:
        scores: by mission, with the labels of the source series.
        incidents: what was planted.
        gap: as in `find_episodes`.
    """
    episodes = find_episodes(scores, gap=gap)
    outcomes = []
    explained: set[Episode] = set()
    for incident in sorted(incidents, key=lambda incident: incident.start):
        own = tuple(each for each in episodes if incident.covers(each.labels, each.start - gap, each.end))
        explained.update(own)
        first = min(_anomalous_times(scores, incident), default=None)
        outcomes.append(Outcome(incident, own, None if first is None else first - incident.start))
    return Findings(tuple(outcomes), tuple(each for each in episodes if each not in explained))


def _anomalous_times(scores: Mapping[str, Scores], incident: Incident) -> list[datetime]:
    times = []
    for found in scores.values():
        part = slice(max(0, found.grid.index(incident.start)), max(0, found.grid.index(incident.end) + 1))
        for row, labels in enumerate(found.labels):
            if labels in incident.series:
                hits = np.flatnonzero(found.score[row, part] > 1)
                times += [found.grid.start + (part.start + int(i)) * found.grid.step for i in hits[:1]]
    return times


def _labels(metric: str, **labels: str) -> Labels:
    return Labels.of({"__name__": metric, **labels})


def _hump(hour: npt.NDArray[np.float64], centre: float, width: float) -> Floats:
    """A bell around `centre` o'clock that goes around midnight."""
    away = (hour - centre + 12) % 24 - 12
    return np.asarray(np.exp(-0.5 * (away / width) ** 2))


def _wander(rng: np.random.Generator, n: int, memory: float) -> Floats:
    """A first-order autoregression with variance 1 that forgets over `memory` steps."""
    keep = np.exp(-1 / memory)
    shocks = np.sqrt(1 - keep**2) * rng.standard_normal(n)
    out = np.empty(n)
    level = rng.standard_normal()
    for i in range(n):
        level = keep * level + shocks[i]
        out[i] = level
    return out


def _write_long(path: Path, grid: Grid, series: Series) -> None:
    import polars as pl

    panel = Panel.of(list(series), grid, round_significant(np.stack(list(series.values())), 6))
    names = sorted({name for labels in panel.labels for name, _ in labels})
    keys = pl.DataFrame(
        {"metric" if name == "__name__" else name: [row.get(name) or None for row in panel.labels] for name in names},
        schema_overrides={name: pl.String for name in names if name != "__name__"},
    ).with_columns(pl.Series("unique_id", [str(row) for row in panel.labels]))
    frame = panel.to_frame().join(keys, on="unique_id", maintain_order="left").drop("unique_id")
    frame.select(*(name for name in frame.columns if name not in ("ds", "y")), "ds", "y").write_parquet(path)


def _write_wide(path: Path, grid: Grid, series: Series) -> None:
    import polars as pl

    columns = {}
    for labels, values in series.items():
        name = labels.get("__name__") + str(labels.without(["__name__"]))
        columns[name] = pl.Series(round_significant(values, 6)).fill_nan(None)
    times = pl.Series(grid.times()).dt.to_string("%Y-%m-%dT%H:%M:%SZ")
    pl.DataFrame({"ds": times, **columns}).write_csv(path)
