"""Processor seconds that the slow models need for a series: `OMP_NUM_THREADS=1 python -m benchmarks.costs [MODEL …]`.

What it prints stands in `anomaly_times/models/cost.py` as `MEASURED`. The second of two runs counts: the first one
compiles.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import numpy as np

from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.cost import MEASURED
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of


def rhythm(season: int, n_points: int) -> Floats:
    """A rhythm of `season` steps (none at 1) under noise with a memory."""
    random = np.random.default_rng(0)
    noise = np.zeros(n_points)
    for i, shock in enumerate(random.standard_normal(n_points)):
        noise[i] = 0.7 * noise[i - 1] + shock
    return 20 + (5 * np.sin(2 * np.pi * np.arange(n_points) / season) if season > 1 else 0) + noise


def seconds(model: str, season: int, n_points: int) -> float:
    """One fit and 24 steps."""
    params: dict[str, Any] = {"seasonal": "native"} if season > 1 and model in ("arima", "ces") else {}
    step = timedelta(minutes=5)
    built = build_model(ModelSpec(type=model, **params), season=(season * step,) if season > 1 else ())
    built.forecast(panel_of(rhythm(4, 60)[None], step=step), h=2, quantiles=(0.1, 0.5, 0.9))
    history = panel_of(rhythm(season, n_points)[None], step=step)
    began = time.process_time()
    answer = built.forecast(history, h=24, quantiles=(0.05, 0.1, 0.5, 0.9, 0.95))
    taken = time.process_time() - began
    if answer.notes:
        raise RuntimeError(f"{model}, season {season}: {answer.notes[0]}")
    return taken


if __name__ == "__main__":
    for model in sys.argv[1:] or MEASURED:
        for season, n_points, known in MEASURED[model]:
            now = seconds(model, season, n_points)
            print(
                f"{model:14} season {season:4}  {n_points:5} points  {now:7.2f} s  (in the table: {known})", flush=True
            )
