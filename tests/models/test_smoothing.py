from __future__ import annotations

from datetime import timedelta

import numpy as np

from anomaly_times.models.smoothing import _DAMPING, _WEIGHTS, Holt, _kernels
from anomaly_times.panel import Floats
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)


def median(y: Floats, h: int) -> Floats:
    return Holt().forecast(panel_of(y, step=FIVE), h=h, quantiles=(0.1, 0.5, 0.9)).at(0.5)


def test_a_level_is_found_under_noise_and_a_walk_is_followed() -> None:
    random = np.random.default_rng(0)
    noise = 100 + random.standard_normal((50, 1000))
    walk = random.standard_normal((50, 1000)).cumsum(axis=1)
    assert np.abs(median(noise, 12) - 100).max() < 1.0
    assert np.abs(median(walk, 12)[:, 0] - walk[:, -1]).mean() < 0.5


def test_a_trend_goes_on_and_fades() -> None:
    y = 3.0 * np.arange(500)[None] + np.random.default_rng(0).standard_normal((1, 500))
    ahead = median(y, 60)[0] - y[0, -1]
    np.testing.assert_allclose(ahead[:5], 3 * np.arange(1, 6), atol=4)
    assert np.diff(ahead)[-1] < 0.8 * np.diff(ahead)[0]


def test_levels_and_trends_are_those_of_the_textbooks_recursion() -> None:
    y = np.concatenate([np.full(300, 7.0), 7 + np.random.default_rng(3).standard_normal(200).cumsum()])
    found = y[-len(_kernels()) :] @ _kernels()
    for i, (alpha, beta) in enumerate(_WEIGHTS):
        level, trend = y[0], 0.0
        for value in y:
            error = value - level - _DAMPING * trend
            level, trend = level + _DAMPING * trend + alpha * error, _DAMPING * trend + alpha * beta * error
        np.testing.assert_allclose(found[i], level, rtol=0.02)
        np.testing.assert_allclose(found[len(_WEIGHTS) + i], trend, atol=0.02)


def test_gaps_take_the_value_before_them() -> None:
    y = np.random.default_rng(0).standard_normal((1, 400)).cumsum(axis=1)
    gappy, filled = y.copy(), y.copy()
    gappy[0, 390:395] = np.nan
    filled[0, 390:395] = y[0, 389]
    np.testing.assert_allclose(median(gappy, 6), median(filled, 6), atol=0.5)


def test_errors_grow_with_the_lead_of_a_walk() -> None:
    y = np.random.default_rng(0).standard_normal((50, 1000)).cumsum(axis=1)
    answer = Holt().forecast(panel_of(y, step=FIVE), h=36, quantiles=(0.1, 0.5, 0.9))
    width = (answer.at(0.9) - answer.at(0.1)).mean(axis=0)
    # The 80 % interval of a walk after k steps is 2.56 √k wide.
    np.testing.assert_allclose(width[[0, 8, 35]], 2.56 * np.sqrt([1, 9, 36]), rtol=0.25)
