"""How well and how fast the models forecast real metrics: `python -m benchmarks.models FOLDER [MODEL …]`.

FOLDER holds the public sets as they are published: `m4/Hourly-{train,test}.csv`, `ett/ETTh1.csv`,
`nab/realAWSCloudwatch/*.csv`. One table: MASE (mean over series, by the in-sample error of the value one day before),
WQL (sum of pinball losses over nine quantiles, twice, by the sum of absolute values), coverage of the model's own 95 %
interval and of the calibrated one (`forecast_with_bounds`), and series a second of CPU time.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.calibrate import forecast_with_bounds
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of

LEVELS = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)
SCORED = LEVELS[1:-1]

Case = tuple[str, Floats, Floats, timedelta]


def m4_hourly(folder: Path) -> Iterator[Case]:
    """The 414 hourly series of the M4 competition and their 48 hours of test; all end together."""

    def rows(name: str) -> list[Floats]:
        with (folder / name).open() as file:
            return [np.array([float(v) for v in row[1:] if v]) for row in list(csv.reader(file))[1:]]

    train, test = rows("Hourly-train.csv"), rows("Hourly-test.csv")
    y = np.full((len(train), max(map(len, train))), np.nan)
    for i, row in enumerate(train):
        y[i, -len(row) :] = row
    yield "M4 hourly, 48 h", y, np.stack(test), timedelta(hours=1)


def etth1(folder: Path) -> Iterator[Case]:
    """Seven signals of a transformer: 40 days of history, the next day, at 50 places."""
    with (folder / "ETTh1.csv").open() as file:
        y = np.array([[float(v) for v in row[1:]] for row in list(csv.reader(file))[1:]]).T
    n, h = 24 * 40, 24
    cuts = np.linspace(n, y.shape[1] - h, 50).astype(int)
    history = np.concatenate([y[:, cut - n : cut] for cut in cuts])
    yield "ETTh1, 24 h", history, np.concatenate([y[:, cut : cut + h] for cut in cuts]), timedelta(hours=1)


def nab_aws(folder: Path) -> Iterator[Case]:
    """CloudWatch metrics with their incidents: a week of history, then two hours and a day, at ten places."""
    series = []
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            rows = list(csv.reader(file))[1:]
        at = [int(datetime.fromisoformat(time + "+00:00").timestamp()) // 300 for time, _ in rows]
        y = np.full(at[-1] - at[0] + 1, np.nan)
        y[np.array(at) - at[0]] = [float(value) for _, value in rows]
        series.append(y)
    for h, name in ((24, "2 h"), (288, "24 h")):
        history, future = [], []
        for y in series:
            for cut in np.linspace(2016, len(y) - h, 10).astype(int) if len(y) > 2016 + h else []:
                history.append(y[cut - 2016 : cut])
                future.append(y[cut : cut + h])
        yield f"NAB AWS, {name}", np.stack(history), np.stack(future), timedelta(minutes=5)


def measure(model_name: str, case: Case) -> str:
    """One line of the table."""
    name, y, future, step = case
    history, h = panel_of(y, step=step), future.shape[1]
    model = build_model(ModelSpec(type=model_name))
    began = time.process_time()
    answer = model.forecast(history, h=h, quantiles=LEVELS)
    seconds = time.process_time() - began
    day = timedelta(days=1) // step
    naive = np.nanmean(np.abs(y[:, day:] - y[:, :-day]), axis=1)
    error = np.nanmean(np.abs(future - answer.at(0.5)), axis=1)
    mase = np.mean(error[naive > 0] / naive[naive > 0])
    pinball = sum(np.nansum(np.maximum(q * (future - answer.at(q)), (q - 1) * (future - answer.at(q)))) for q in SCORED)
    wql = 2 * pinball / len(SCORED) / np.nansum(np.abs(future))
    there = np.isfinite(future)
    own = ((future >= answer.at(LEVELS[0])) & (future <= answer.at(LEVELS[-1])))[there].mean()
    bounds = forecast_with_bounds(model, history, h=h, level=95)
    calibrated = ((future >= bounds.lower) & (future <= bounds.upper))[there].mean()
    rate = history.n_series / seconds
    return f"{name:16} {model_name:15} {mase:6.3f} {wql:7.4f} {own:7.1%} {calibrated:7.1%} {rate:9,.0f}"


def main(folder: Path, models: list[str]) -> None:
    """Print the table."""
    print(f"{'data':16} {'model':15} {'MASE':>6} {'WQL':>7} {'own 95':>7} {'cal. 95':>7} {'series/s':>9}")
    for cases in (m4_hourly(folder / "m4"), etth1(folder / "ett"), nab_aws(folder / "nab" / "realAWSCloudwatch")):
        for case in cases:
            for model in models or ["seasonal_naive", "profile"]:
                print(measure(model, case), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
