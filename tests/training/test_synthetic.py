from __future__ import annotations

import numpy as np
import pytest

from anomaly_times.training import synthetic
from anomaly_times.training.synthetic import Shape, make_batch


def test_a_batch_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    one, again, other = (make_batch(np.random.default_rng(seed), 20) for seed in (5, 5, 6))
    assert one.shape == again.shape
    np.testing.assert_array_equal(one.history, again.history)
    assert one.history.shape != other.history.shape or not np.array_equal(one.history, other.history)


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_can_be_learned_from(seed: int) -> None:
    batch = make_batch(np.random.default_rng(seed), 60)
    assert batch.history.shape == (60, batch.shape.n_points)
    assert batch.future.shape == (60, batch.shape.h)
    assert np.isfinite(batch.future).all()
    assert np.isfinite(batch.history[:, -1]).all(), "the newest point is there"
    assert np.isnan(batch.history).any(), "some series have gaps"
    assert np.abs(batch.future).max() < 1e6


def test_the_calendar_counts_steps() -> None:
    assert Shape(step=5, n_points=100, h=10).calendar == (12, 288, 2016)
    assert Shape(step=60, n_points=100, h=10).calendar == (24, 168)


def test_most_series_follow_the_day() -> None:
    random = np.random.default_rng(2)
    day, n = 24, 24 * 60
    time = np.tile(np.arange(float(n)), (200, 1))
    season, _ = synthetic._season(random, time, np.full(200, float(day)), n)
    alike = [np.corrcoef(row[:-day], row[day:])[0, 1] if row.std() > 0 else 0 for row in season]
    assert np.mean(np.array(alike) > 0.5) > 0.7


def test_the_filter_is_an_autoregression() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 50)).astype(np.float32)
    lasting = np.array([0.0, 0.5, -0.9])
    want = x.astype(np.float64)
    for t in range(1, 50):
        want[:, t] += lasting * want[:, t - 1]
    np.testing.assert_allclose(synthetic._ar1_filter(x, lasting), want, atol=1e-5)


@pytest.mark.parametrize("kind", [make for _, make in synthetic._KINDS], ids=lambda make: make.__name__)
def test_every_kind_of_metric_looks_like_one(kind: synthetic.Kind) -> None:
    random = np.random.default_rng(1)
    time = np.tile(np.arange(1500.0), (30, 1))
    z = (np.sin(2 * np.pi * time / 288) + 0.3 * random.standard_normal((30, 1500))).astype(np.float32)
    y = kind(random, z, time, np.full(30, 288.0))
    assert y.shape == z.shape
    assert np.isfinite(y).all()
    if kind in (synthetic._rate, synthetic._counts, synthetic._errors, synthetic._at_peaks, synthetic._multiplicative):
        assert (y >= -0.5).all()
    if kind in (synthetic._counts, synthetic._errors):
        assert (y == np.rint(y)).all()
    if kind is synthetic._share:
        assert (y >= 0).all()
        assert (y <= 1).all()
    if kind is synthetic._errors:
        assert np.mean(y == 0) > 0.5
    if kind is synthetic._growing:
        assert np.mean(y[:, -1] > y[:, 0]) > 0.9
