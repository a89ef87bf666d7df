"""How good, how honest and how fast the models are: `uv run nox -s bench-models -- [--models NAME …] [--sets NAME …]`.

Public sets, as they are published, from a folder with `m4/Hourly-{train,test}.csv`, `ett/ETTh1.csv` and
`nab/realAWSCloudwatch/*.csv`, and made-up ones (`benchmarks.synthetic`). Per set and model:

- MASE: mean absolute error by the in-sample error of the value one day before, averaged over series;
- WQL: sum of pinball losses over the quantiles 0.1 … 0.9, twice, by the sum of absolute values, per series scaled by
  its mean absolute value on the made-up sets, where sizes differ by orders of magnitude;
- the share of normal points (NAB's labelled windows left out) inside the 90, 99 and 99.9 % bounds of
  `forecast_with_bounds`, with the 95 % interval of a bootstrap over clusters (Davison & Hinkley, Bootstrap Methods and
  their Application, 1997, section 3.8): points of one forecast are anything but independent;
- series a second of processor time: the forecast alone, and with bounds at one level.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.calibrate import calibrated
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of
from benchmarks.measure import cpu_timed
from benchmarks.synthetic import processes, services

SCORED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEVELS = (90.0, 99.0, 99.9)
CHEAP = ("auto", "seasonmix", "profile", "holt", "seasonal_naive")
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Set:
    """Histories (float64[S, T]), what followed (float64[S, h]), and which rows are not independent of each other."""

    name: str
    history: Floats
    future: Floats
    step: timedelta
    cluster: npt.NDArray[np.intp]
    scaled: bool = False
    odd: npt.NDArray[np.bool_] | None = None
    """Points of the future that lie in a labelled anomaly: bool[S, h]."""


def m4_hourly(folder: Path) -> Set:
    """The 414 hourly series of the M4 competition and their 48 hours of test; all end together."""

    def rows(name: str) -> list[Floats]:
        with (folder / "m4" / name).open() as file:
            return [np.array([float(v) for v in row[1:] if v]) for row in list(csv.reader(file))[1:]]

    train, test = rows("Hourly-train.csv"), rows("Hourly-test.csv")
    y = np.full((len(train), max(map(len, train))), np.nan)
    for i, row in enumerate(train):
        y[i, -len(row) :] = row
    return Set("M4 hourly, 48 h", y, np.stack(test), timedelta(hours=1), np.arange(len(y)))


def etth1(folder: Path) -> Set:
    """Seven signals of a transformer: 40 days of history, the next two, at 50 places; signals of a place are kin."""
    with (folder / "ett" / "ETTh1.csv").open() as file:
        y = np.array([[float(v) for v in row[1:]] for row in list(csv.reader(file))[1:]]).T
    n, h = 24 * 40, 48
    cuts = np.linspace(n, y.shape[1] - h, 50).astype(int)
    history = np.concatenate([y[:, cut - n : cut] for cut in cuts])
    future = np.concatenate([y[:, cut : cut + h] for cut in cuts])
    return Set("ETTh1, 48 h", history, future, timedelta(hours=1), np.repeat(np.arange(len(cuts)), len(y)))


def nab_aws(folder: Path) -> Set:
    """CloudWatch metrics with their incidents: a week of history, then an hour, at ten places; a cluster each.

    Histories hold whatever incidents came before; labelled windows are left out of the coverage, not of the errors.
    """
    history, future, odd, cluster = [], [], [], []
    h = 12
    windows = json.loads((folder / "nab" / "windows.json").read_text())
    for number, path in enumerate(sorted((folder / "nab" / "realAWSCloudwatch").glob("*.csv"))):
        with path.open() as file:
            rows = list(csv.reader(file))[1:]
        at = [_slot(time) for time, _ in rows]
        y = np.full(at[-1] - at[0] + 1, np.nan)
        y[np.array(at) - at[0]] = [float(value) for _, value in rows]
        labelled = np.zeros(len(y), dtype=np.bool_)
        for start, stop in windows[f"realAWSCloudwatch/{path.name}"]:
            labelled[_slot(start) - at[0] : _slot(stop) - at[0] + 1] = True
        for cut in np.linspace(2016, len(y) - h, 10).astype(int) if len(y) > 2016 + h else []:
            history.append(y[cut - 2016 : cut])
            future.append(y[cut : cut + h])
            odd.append(labelled[cut : cut + h])
            cluster.append(number)
    step = timedelta(minutes=5)
    return Set("NAB AWS, 1 h", np.stack(history), np.stack(future), step, np.array(cluster), odd=np.stack(odd))


def _slot(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) // 300


def _made_up(
    make: Callable[..., Floats], name: str, step: timedelta, n_series: int, n_points: int, h: int, seed: int
) -> Set:
    y = make(n_series, n_points + h, step, seed=seed)
    return Set(name, y[:, :n_points], y[:, n_points:], step, np.arange(n_series), scaled=True)


_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)
SETS: dict[str, Callable[[Path], Set]] = {
    "m4": m4_hourly,
    "ett": etth1,
    "nab": nab_aws,
    "services-1m": lambda _: _made_up(services, "services, 1 m, 2 h", _MINUTE, 150, 4320, 120, 11),
    "services-5m": lambda _: _made_up(services, "services, 5 m, 2 h", 5 * _MINUTE, 500, 4032, 24, 12),
    "services-day": lambda _: _made_up(services, "services, 5 m, 24 h", 5 * _MINUTE, 200, 2016, 288, 15),
    "services-1h": lambda _: _made_up(services, "services, 1 h, 48 h", _HOUR, 400, 672, 48, 13),
    "processes": lambda _: _made_up(processes, "processes, 5 m, 3 h", 5 * _MINUTE, 400, 2016, 36, 14),
}


@dataclass(frozen=True)
class Figures:
    """One line of the table."""

    set: str
    model: str
    mase: float
    wql: float
    coverage: dict[str, tuple[float, float, float]]
    """By level: the share inside, and the interval that it is known to."""
    width: float
    """Mean width of the 99 % bounds, by the in-sample error of the value one day before; median over series."""
    series_a_second: float
    bounded_a_second: float

    def as_line(self) -> str:
        """For the terminal."""
        inside = "  ".join(f"{p:6.2%} {lo:6.1%}–{hi:6.1%}" for p, lo, hi in self.coverage.values())
        return (
            f"{self.set:20} {self.model:15} {self.mase:6.3f} {self.wql:7.4f}  {inside} {self.width:7.2f} "
            f"{self.series_a_second:8,.0f} {self.bounded_a_second:8,.0f}"
        )

    def as_markdown(self) -> str:
        """For docs/models.md."""
        inside = " | ".join(f"{100 * p:.1f} ({100 * lo:.1f}–{100 * hi:.1f})" for p, lo, hi in self.coverage.values())
        return f"| {self.set} | `{self.model}` | {self.mase:.3f} | {self.wql:.4f} | {inside} |"


def measure(name: str, data: Set) -> Figures:
    """The figures of one model on one set."""
    history, h = panel_of(data.history, step=data.step), data.future.shape[1]
    model = build_model(ModelSpec(type=name))
    began = time.process_time()
    answer = model.forecast(history, h=h, quantiles=SCORED)
    seconds = time.process_time() - began
    coverage, width = {}, np.nan
    day = max(1, timedelta(days=1) // data.step)
    with np.errstate(invalid="ignore"):
        naive = np.nanmean(np.abs(data.history[:, day:] - data.history[:, :-day]), axis=1)
    began = time.process_time()
    counted = np.isfinite(data.future) & (True if data.odd is None else ~data.odd)
    made = calibrated(model, history, h=h, levels=LEVELS)
    made.bounds(LEVELS[-1])
    bounded = time.process_time() - began
    for level in LEVELS:
        bounds = made.bounds(level)
        inside = (data.future >= bounds.lower) & (data.future <= bounds.upper)
        coverage[f"{level:g}"] = covered(inside, counted, data.cluster)
        if level == 99.0:
            usual = (bounds.upper - bounds.lower).mean(axis=1)[naive > 0] / naive[naive > 0]
            width = float(np.median(usual))
    error = np.nanmean(np.abs(data.future - answer.at(0.5)), axis=1)
    return Figures(
        data.name,
        name,
        float(np.mean(error[naive > 0] / naive[naive > 0])),
        weighted_quantile_loss(data, answer.values),
        coverage,
        width,
        history.n_series / seconds,
        history.n_series / bounded,
    )


def weighted_quantile_loss(data: Set, values: Floats) -> float:
    """Twice the mean pinball loss over `SCORED`, by the size of the values."""
    size = np.nansum(np.abs(data.future), axis=1)
    loss = np.zeros(len(size))
    for i, q in enumerate(SCORED):
        error = data.future - values[:, :, i]
        loss += np.nansum(np.maximum(q * error, (q - 1) * error), axis=1)
    loss *= 2 / len(SCORED)
    if not data.scaled:
        return float(loss.sum() / size.sum())
    usual = np.nanmean(np.abs(data.history), axis=1) * data.future.shape[1]
    return float(np.mean(loss[usual > 0] / usual[usual > 0]))


def covered(
    inside: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_], cluster: npt.NDArray[np.intp]
) -> tuple[float, float, float]:
    """The share of points inside, and the ends of its 95 % bootstrap interval over clusters."""
    groups = np.unique(cluster, return_inverse=True)[1]
    hits = np.bincount(groups, (inside & there).sum(axis=1))
    points = np.bincount(groups, there.sum(axis=1))
    picks = np.random.default_rng(0).integers(0, len(hits), (_RESAMPLES, len(hits)))
    shares = hits[picks].sum(axis=1) / points[picks].sum(axis=1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(hits.sum() / points.sum()), float(low), float(high)


def speed(name: str) -> tuple[float, float, float, float]:
    """Series a second at 2,016 points: a forecast of 36 and of 288, and either with bounds; the best of three runs."""
    step = timedelta(minutes=5)
    model = build_model(ModelSpec(type=name))
    history = panel_of(services(400, 2016, step, seed=16), step=step)

    def rate(job: Callable[[], object]) -> float:
        return history.n_series / min(cpu_timed(job, 3))

    def bounded(h: int) -> object:
        return calibrated(model, history, h=h, levels=(99.9,)).bounds(99.9)

    quantiles = (0.0005, 0.5, 0.9995)
    return (
        rate(lambda: model.forecast(history, h=36, quantiles=quantiles)),
        rate(lambda: model.forecast(history, h=288, quantiles=quantiles)),
        rate(lambda: bounded(36)),
        rate(lambda: bounded(288)),
    )


def figures(folder: Path, sets: Sequence[str], models: Sequence[str]) -> Iterator[Figures]:
    """Line by line, sets in order."""
    for name in sets:
        data = SETS[name](folder)
        for model in models:
            yield measure(model, data)


def main() -> int:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--models", nargs="*", default=list(CHEAP))
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/models.md has it")
    parser.add_argument("--speed", action="store_true", help="measure speed at 2,016 points too")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures there")
    args = parser.parse_args()
    if args.markdown:
        print("| set | model | MASE | WQL | inside 90 % | inside 99 % | inside 99.9 % |", "| --- " * 7 + "|", sep="\n")
    else:
        levels = "  ".join(f"{f'inside {level:g} %':>20}" for level in LEVELS)
        print(f"{'set':20} {'model':15} {'MASE':>6} {'WQL':>7}  {levels} {'width':>7} {'series/s':>8} {'bounded':>8}")
    found: list[dict[str, Any]] = []
    for each in figures(args.data, args.sets, args.models):
        print(each.as_markdown() if args.markdown else each.as_line(), flush=True)
        found.append(vars(each))
    if args.speed:
        print(f"\n{'2,016 points, series/s':20} {'h = 36':>10} {'h = 288':>10} {'bounded 36':>12} {'bounded 288':>12}")
    for model in args.models if args.speed else ():
        rates = speed(model)
        print(f"{model:20} {rates[0]:10,.0f} {rates[1]:10,.0f} {rates[2]:12,.0f} {rates[3]:12,.0f}", flush=True)
        found.append({"set": "speed", "model": model, "series_a_second": rates})
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
