"""What an alert budget gives: false alarms on normal data, planted faults, cost, and labelled incidents of NAB.

    uv run python -m benchmarks.evidence [budget] [uneasy] [faults] [cost] [nab] [--steps 5m] [--data ../shared/data]

`budget`, `faults`: made-up series (white noise to a memory of two hours, normal to heavy tails, with and without a
daily rhythm, counts) at steps of 1 m, 5 m and 1 h, forecast by `profile` every hour from two weeks of history (four at
1 h); limits are made anew every 12 hours (every day at 1 h). An episode is a run of scores over 1; runs less than an
hour apart are one. The settings of `anomaly_times.limits` were chosen on series of these kinds.

`uneasy`: series that are normal and odd all the same, again and again; see `benchmarks.uneasy`.

`nab`: `artificialWithAnomaly` and `realAWSCloudwatch`, forecasts every hour, limits as in production (every 12 hours,
every hour in the first days), half an alert a week, nothing tuned on them. Windows are labelled incidents: one is found
where a score inside it exceeds 1. The standard score is that of the Numenta Anomaly Benchmark, see `nab_score`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomaly_times import evidence
from anomaly_times.evidence import CHANNELS, Memory, advance, ratios_to_limits, strongest
from anomaly_times.limits import BAND, fit_limits, floored, widened
from anomaly_times.mission import Detect, ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.calibrate import Calibrated, calibrated, forecast_again
from anomaly_times.panel import Floats, Forecast, Grid, Panel
from anomaly_times.scoring import final_bounds, resolution
from anomaly_times.testing import panel_of
from benchmarks.nab_score import NabFile, nab_score
from benchmarks.uneasy import UNEASY, Uneasy

Bools = npt.NDArray[np.bool_]

HOUR, WEEK, DAY = timedelta(hours=1), timedelta(weeks=1), timedelta(days=1)
MINUTE = timedelta(minutes=1)
BUDGETS = (0.25, 0.5, 1.0, 2.0)
USUAL_BUDGET = 0.5


@dataclass(frozen=True)
class Kind:
    """One kind of normal series: noise of unit variance, five times as large, around 100; or Poisson counts."""

    memory: timedelta = timedelta(0)
    heavy: bool = False
    daily: bool = False
    rate: float = 0.0

    def __str__(self) -> str:
        rhythm = "daily" if self.daily else "no rhythm"
        if self.rate:
            return f"counts of {self.rate:g}, {rhythm}"
        memory = f"memory {self.memory // MINUTE} m" if self.memory else "white"
        return f"{memory}, {'Student t3' if self.heavy else 'normal'}, {rhythm}"

    def make(self, n_series: int, n_points: int, step: timedelta, *, seed: int) -> Floats:
        """float64[n_series, n_points]."""
        random = np.random.default_rng(seed)
        days = np.arange(n_points) * (step / DAY)
        phase, overtone = random.uniform(0, 1, (2, n_series, 1))
        rhythm = np.sin(2 * np.pi * (days + phase)) + 0.4 * np.sin(4 * np.pi * (days + overtone))
        if self.rate:
            rate = self.rate * (np.exp(0.7 * rhythm) if self.daily else np.ones_like(rhythm))
            return np.asarray(random.poisson(rate), dtype=np.float64)
        shape = (n_series, n_points)
        noise = random.standard_t(3, shape) / np.sqrt(3) if self.heavy else random.standard_normal(shape)
        if self.memory:
            keep = float(np.exp(-step / self.memory))
            noise[:, 1:] *= np.sqrt(1 - keep**2)
            for t in range(1, n_points):
                noise[:, t] += keep * noise[:, t - 1]
        return np.asarray(100 + 5 * noise + (20 * rhythm if self.daily else 0.0))


_LONG, _SHORT = timedelta(hours=2), timedelta(minutes=20)
KINDS = (
    Kind(),
    Kind(daily=True),
    Kind(heavy=True),
    Kind(heavy=True, daily=True),
    Kind(_SHORT, daily=True),
    Kind(_LONG),
    Kind(_LONG, daily=True),
    Kind(_LONG, heavy=True),
    Kind(_LONG, heavy=True, daily=True),
    Kind(rate=5, daily=True),
    Kind(rate=0.3),
)


@dataclass(frozen=True)
class Size:
    """How much is made of every kind at one step: points of history, weeks to detect in, series, hours between fits.

    With fewer points of history than `young` a fit is made every hour.
    """

    step: timedelta
    history: int
    weeks: int
    series: int
    fit_every: int
    origins: int = 16
    young: int = 0

    @property
    def per_hour(self) -> int:
        return max(1, HOUR // self.step)

    @property
    def h(self) -> int:
        """Forecasts reach half a day ahead, so that past ones tell of more hours than two; the first hour is used."""
        return 12 * self.per_hour

    @property
    def live(self) -> int:
        """Points to detect in."""
        return self.weeks * (WEEK // self.step)


SIZES = {
    "1m": Size(MINUTE, 20160, 1, 60, 12),
    "5m": Size(5 * MINUTE, 4032, 1, 150, 12),
    "1h": Size(HOUR, 672, 4, 100, 24),
}


@dataclass(frozen=True, eq=False)
class Fit:
    """What the limits from column `first` on are made of."""

    first: int
    history: Floats
    ratios: Floats
    freedom: Floats


@dataclass(frozen=True, eq=False)
class Replay:
    """Values as they came, with the newest forecast for each, and the fits in order.

    `least` (float64[S, T]) is the resolution that the final half-widths may not fall below.
    """

    y: Panel
    band: Forecast
    least: Floats
    fits: tuple[Fit, ...]

    def ratios(self, budget: float) -> Floats:
        """Evidence by its limit, float64[5, S, T]."""
        step = self.y.grid.step
        memory, found = Memory.none(self.y.n_series), []
        ends = [fit.first for fit in self.fits[1:]] + [self.y.grid.n]
        for fit, end in zip(self.fits, ends, strict=True):
            limits = fit_limits(fit.history, fit.ratios, fit.freedom, step=step, alerts_per_week=budget)
            part = slice(fit.first, end)
            yhat, lower, upper = (each[:, part] for each in (self.band.yhat, self.band.lower, self.band.upper))
            band = Forecast(self.y.labels, self.y.grid[part], None, yhat, lower, upper)
            final = final_bounds(widened(band, limits.width), Detect(), resolution=self.least[:, fit.first])
            bands = final.yhat, final.lower, final.upper
            memory, made = advance(memory, self.y.y[:, part], bands, limits, step=step)
            found.append(ratios_to_limits(made, limits))
        return np.concatenate(found, axis=2)


def replayed(panel: Panel, first: int, size: Size, *, lookback: int) -> Replay:
    """Forecasts of every hour from column `first` on, each from the `lookback` points before it."""
    model = build_model(ModelSpec(type="profile"))
    band = np.full((3, panel.n_series, panel.grid.n - first), np.nan)
    fits: list[Fit] = []
    least = np.zeros(band.shape[1:])
    made: Calibrated | None = None
    for number, cut in enumerate(range(first, panel.grid.n, size.per_hour)):
        history = panel.columns(slice(max(0, cut - lookback), cut))
        part = slice(cut - first, cut - first + min(size.per_hour, panel.grid.n - cut))
        floor = resolution(history.y)
        least[:, part] = floor[:, None]
        if made is None or number % size.fit_every == 0 or cut < size.young:
            made = calibrated(model, history, h=size.h, levels=(BAND,), origins=size.origins)
            now = floored(made.bounds(BAND), floor)
            fits.append(Fit(part.start, made.history.y, made.past_ratios(now), made.freedom))
        else:
            now = floored(forecast_again(model, made, history).bounds(BAND), floor)
        for row, values in zip(band, (now.yhat, now.lower, now.upper), strict=True):
            row[:, part] = values[:, : part.stop - part.start]
    live = panel.columns(slice(first, None))
    return Replay(live, Forecast(panel.labels, live.grid, None, band[0], band[1], band[2]), least, tuple(fits))


def episodes(hot: Bools, step: timedelta) -> npt.NDArray[np.intp]:
    """How many runs each row has; those less than an hour apart are one: int[S]."""
    at = np.arange(hot.shape[1])
    newest = np.maximum.accumulate(np.where(hot, at, -(2**40)), axis=1)
    before = np.concatenate([np.full((len(hot), 1), -(2**40)), newest[:, :-1]], axis=1)
    return np.asarray((hot & (at - before > max(1, HOUR // step))).sum(axis=1))


def false_alarms(job: tuple[str, Kind | Uneasy]) -> str:
    """A line of the table: episodes a series and week for each budget, then those of each channel for the usual one."""
    name, kind = job
    size = SIZES[name]
    y = kind.make(size.series, size.history + size.live, size.step, seed=(*KINDS, *UNEASY).index(kind))
    replay = replayed(panel_of(y, step=size.step), size.history, size, lookback=size.history)
    cells, shares = [], []
    for budget in BUDGETS:
        ratios = replay.ratios(budget)
        weeks = size.series * size.weeks
        cells.append(f"{episodes(strongest(ratios)[0] > 1, size.step).sum() / weeks:.2f}")
        if budget == USUAL_BUDGET:
            shares = [f"{episodes(each > 1, size.step).sum() / weeks:.2f}" for each in ratios]
    return f"| {name} | {kind} | {' | '.join(cells)} | {' / '.join(shares)} |"


SIGMA, FAULT_HOURS = 5.0, 12
FAULTS: dict[str, Callable[[Floats], Floats]] = {
    "spike of 10 σ": lambda y: np.where(np.arange(len(y)) == 0, y + 10 * SIGMA, y),
    "1 σ higher": lambda y: y + SIGMA,
    "noise doubled": lambda y: y + (y - _middle(y)),
    "drift to 3 σ": lambda y: y + np.linspace(0, 3 * SIGMA, len(y)),
    "drop to 0": lambda y: np.zeros_like(y),
    "flat line": lambda y: np.full_like(y, y[0]),
}


def _middle(y: Floats) -> Floats:
    """What half a day of a series looks like without its noise: a parabola."""
    at = np.linspace(-1, 1, len(y))
    return np.asarray(np.polynomial.Polynomial.fit(at, y, 2)(at))


def planted(job: tuple[str, Kind]) -> str:
    """A line of the table: the share of each fault that is found within its 12 hours, and how long that takes."""
    name, kind = job
    size = SIZES[name]
    random = np.random.default_rng(7)
    n = 20 * len(FAULTS)
    span, lead = FAULT_HOURS * size.per_hour, 12 * size.per_hour
    y = kind.make(n, size.history + 3 * lead + span, size.step, seed=100 + KINDS.index(kind))
    begin = random.integers(lead, 3 * lead, n)
    for i, fault in enumerate(np.resize(list(FAULTS), n)):
        part = slice(size.history + begin[i], size.history + begin[i] + span)
        y[i, part] = FAULTS[fault](y[i, part])
    replay = replayed(panel_of(y, step=size.step), size.history, size, lookback=size.history)
    hot = strongest(replay.ratios(USUAL_BUDGET))[0] > 1
    cells = []
    for number in range(len(FAULTS)):
        rows = np.arange(number, n, len(FAULTS))
        during = np.stack([hot[i, begin[i] : begin[i] + span] for i in rows])
        found = during.any(axis=1)
        late = np.median(during.argmax(axis=1)[found]) * (size.step / MINUTE) if found.any() else np.nan
        cells.append(f"{found.mean():.0%} {late:.0f} m" if found.any() else "0 %")
    return f"| {name} | {kind} | {' | '.join(cells)} |"


def cost() -> Iterator[str]:
    """Lines: microseconds a point and series of detection, and milliseconds a series of a fit."""
    random = np.random.default_rng(0)
    for name, (n, points) in {"1 new point": (10_000, 1), "an hour": (10_000, 12), "a day": (1_000, 288)}.items():
        y = random.standard_normal((n, points))
        band = (np.zeros_like(y), np.full_like(y, -4.0), np.full_like(y, 4.0))
        part = random.standard_normal((n, 16, 24)) / 1.2816
        limits = fit_limits(random.standard_normal((n, 300)), part, np.full(n, 200.0), step=5 * MINUTE)
        memory, _ = advance(Memory.none(n), y, band, limits, step=5 * MINUTE)

        def job(memory: Memory = memory, y: Floats = y, band: tuple[Floats, ...] = band) -> None:
            _, made = advance(memory, y, (band[0], band[1], band[2]), limits, step=5 * MINUTE)  # noqa: B023
            score, _ = strongest(ratios_to_limits(made, limits))  # noqa: B023
            evidence.incidents(score, memory, step=5 * MINUTE)

        yield f"| {name} of {n:,} series | {1e6 * _fastest(job) / y.size:.2f} µs a point |"
    history, part = random.standard_normal((1_000, 4032)), random.standard_normal((1_000, 16, 24))
    fit = partial(fit_limits, history, part, np.full(1_000, 200.0), step=5 * MINUTE)
    yield f"| limits of 1,000 series, 4,032 points | {_fastest(fit):.2f} ms a series |"


def _fastest(job: Callable[[], object]) -> float:
    """Processor seconds of the best of five runs."""
    taken = []
    for _ in range(5):
        began = time.process_time()
        job()
        taken.append(time.process_time() - began)
    return min(taken)


def nab_panel(folder: Path) -> tuple[Panel, list[NabFile]]:
    """All series on one grid of five minutes, ending together; of two values at one time the later counts."""
    labelled = json.loads((folder / "windows.json").read_text())
    read = {}
    for name in sorted(labelled):
        if (folder / name).exists():
            with (folder / name).open() as file:
                rows = list(csv.DictReader(file))
            at = np.array([_slot(row["timestamp"]) for row in rows])
            read[name] = at, np.array([float(row["value"]) for row in rows])
    n_points = max(int(at.max() - at.min()) + 1 for at, _ in read.values())
    y = np.full((len(read), n_points), np.nan)
    files = []
    for i, (name, (at, values)) in enumerate(read.items()):
        columns = at - at.max() + n_points - 1
        y[i, columns] = values
        windows = [tuple(int(np.searchsorted(at, _slot(text))) for text in window) for window in labelled[name]]
        files.append(NabFile(name, i, columns, tuple((first, last) for first, last in windows)))
    panel = panel_of(y, step=5 * MINUTE)
    grid = Grid.ending(datetime(2014, 6, 2, tzinfo=UTC), 5 * MINUTE, n_points)
    return Panel(panel.labels, grid, y), files


def _slot(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) // 300


def nab(folder: Path) -> Iterator[str]:
    """Lines of the table: all channels, the first points of incidents alone, and points alone."""
    panel, files = nab_panel(folder)
    size = SIZES["5m"]
    size = replace(size, young=(4 * DAY + 12 * HOUR) // size.step)
    first = DAY // size.step
    replay = replayed(panel, first, size, lookback=14 * DAY // size.step)
    ratios = replay.ratios(USUAL_BUDGET)
    score, _ = strongest(ratios)
    _, incident = evidence.incidents(score, Memory.none(len(score)), step=size.step)
    begun = (incident > 1) & (np.concatenate([np.zeros((len(score), 1)), incident[:, :-1]], axis=1) == 0)
    for name, flags in (
        ("score > 1", score > 1),
        ("first of an incident", begun),
        *((f"{channel} alone", ratio > 1) for channel, ratio in zip(CHANNELS, ratios, strict=True)),
    ):
        whole = np.concatenate([np.zeros((len(flags), first), dtype=np.bool_), flags], axis=1)
        hot = [whole[file.row, file.columns] for file in files]
        yield f"| {name} | {' | '.join(_judged(hot, files, size.step))} | {nab_score(hot, files):.1f} |"


def _judged(hot: Sequence[Bools], files: Sequence[NabFile], step: timedelta) -> Iterator[str]:
    """Windows found, precision, recall, F1, false episodes a series and week, and the median delay."""
    found = missed = false = 0
    weeks, delays = 0.0, []
    for flags, file in zip(hot, files, strict=True):
        flags = flags.copy()
        flags[: file.probation] = False
        outside = np.arange(len(flags)) >= file.probation
        for first, last in file.windows:
            hits = np.flatnonzero(flags[first : last + 1])
            found, missed = found + bool(len(hits)), missed + (not len(hits))
            delays += [hits[0] * step] if len(hits) else []
            outside[first : last + 1] = False
        false += int(episodes((flags & outside)[None], step)[0])
        weeks += outside.sum() * (step / WEEK)
    precision, recall = found / max(1, found + false), found / (found + missed)
    yield f"{found} of {found + missed}"
    yield f"{precision:.2f}"
    yield f"{recall:.2f}"
    yield f"{2 * found / (2 * found + false + missed):.2f}"
    yield f"{false / weeks:.2f}"
    yield f"{sorted(delays)[len(delays) // 2] if delays else '–'}"


def main() -> int:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[], help="budget, uneasy, faults, cost, nab; all by default")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--steps", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    wanted = args.what or ["budget", "uneasy", "faults", "cost", "nab"]
    usual = [(step, kind) for step in args.steps for kind in KINDS if not kind.rate]
    with ProcessPoolExecutor(args.workers) as pool:
        for what, made in (("budget", KINDS), ("uneasy", UNEASY)):
            if what not in wanted:
                continue
            print(f"\n| step | normal data | {' | '.join(f'{b:g} a week' for b in BUDGETS)} | {' / '.join(CHANNELS)} |")
            print("| --- " * (3 + len(BUDGETS)) + "|")
            for line in pool.map(false_alarms, [(step, kind) for step in args.steps for kind in made]):
                print(line, flush=True)
        if "faults" in wanted:
            print(f"\n| step | normal data | {' | '.join(FAULTS)} |", "| --- " * (2 + len(FAULTS)) + "|", sep="\n")
            for line in pool.map(planted, usual):
                print(line, flush=True)
    if "cost" in wanted:
        print("\n| detection | processor time |", "| --- | --- |", *cost(), sep="\n")
    if "nab" in wanted:
        if not (args.data / "nab").is_dir():
            print(f"no NAB series in {args.data}", file=sys.stderr)
            return 2
        print(
            "\n| NAB | found | precision | recall | F1 | false, a week | median delay | score |",
            "| --- " * 8 + "|",
            sep="\n",
        )
        for line in nab(args.data / "nab"):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
