"""Processor seconds that the slow models need: `OMP_NUM_THREADS=1 python -m benchmarks.costs [MODEL …]`.

What it prints stands in `anomaly_times/models/cost.py`. The second of two runs counts: the first one compiles.

- The models of statsforecast: one series, by season and points (`MEASURED`).
- `lgbm`: 100 and 400 series of 2,000 points. A line through both says what it takes whatever the series, and for every
  point (`LEARNING`); fewer than a hundred series take less than the line says.
- `chronos`: a model in the shape of Chronos-Bolt small (48 million parameters, T5 small without its vocabulary) with
  random weights, which take as long as trained ones; 2,000 points, up to 64 steps ahead and up to 128 (`BOLT_SMALL`).
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import timedelta
from typing import Any

import numpy as np

from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.cost import BOLT_SMALL, LEARNING, MEASURED
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of
from benchmarks.synthetic import services


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


def learning() -> tuple[float, float]:
    """Of `lgbm`: seconds whatever the series, and for every point."""
    step, n_points = timedelta(minutes=5), 2000
    built = build_model(ModelSpec(type="lgbm"))
    y = services(400, n_points, step, seed=3)

    def taken(n_series: int) -> float:
        began = time.process_time()
        built.forecast(panel_of(y[:n_series], step=step), h=24, quantiles=(0.05, 0.1, 0.5, 0.9, 0.95))
        return time.process_time() - began

    taken(2)
    few, many = taken(100), taken(400)
    a_point = (many - few) / 300 / n_points
    return few - 100 * n_points * a_point, a_point


def bolt_small() -> tuple[float, float]:
    """Of Chronos-Bolt small: seconds of a series for 64 steps, and for the 64 after them."""
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    sizes = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
    special = {"vocab_size": 2, "decoder_start_token_id": 0, "pad_token_id": 0}
    config = T5Config(**sizes, **special, architectures=["ChronosBoltModelForForecasting"])
    config.chronos_pipeline_class = "ChronosBoltPipeline"
    config.chronos_config = {
        "context_length": 2048,
        "prediction_length": 64,
        "input_patch_size": 16,
        "input_patch_stride": 16,
        "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        "use_reg_token": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        ChronosBoltModelForForecasting(config).save_pretrained(folder)
        built = build_model(ModelSpec(type="chronos", path=folder, threads=1))
        history = panel_of(np.stack([rhythm(288, 2000) + i for i in range(16)]), step=timedelta(minutes=5))

        def taken(h: int) -> float:
            began = time.process_time()
            built.forecast(history, h=h, quantiles=(0.05, 0.1, 0.5, 0.9, 0.95))
            return (time.process_time() - began) / history.n_series

        taken(64)
        first = taken(64)
        return first, taken(128) - first


if __name__ == "__main__":
    for model in sys.argv[1:] or (*MEASURED, "lgbm", "chronos"):
        if model in ("lgbm", "chronos"):
            fixed, more = learning() if model == "lgbm" else bolt_small()
            known = LEARNING["lgbm"] if model == "lgbm" else BOLT_SMALL
            print(f"{model:14} {fixed:.3g} s, and {more:.3g} s  (in the table: {known})", flush=True)
            continue
        for season, n_points, then in MEASURED[model]:
            now = seconds(model, season, n_points)
            print(
                f"{model:14} season {season:4}  {n_points:5} points  {now:7.2f} s  (in the table: {then})", flush=True
            )
