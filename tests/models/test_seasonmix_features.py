from __future__ import annotations

import numpy as np

from anomaly_times.models.seasonmix_features import BASES, blocks, describe
from anomaly_times.panel import Floats

HOURLY = (24, 168)
FIVE_MINUTES = (12, 288, 2016)


def test_rows_are_moved_so_that_they_end_with_a_value() -> None:
    y = np.full((4, 100), np.nan)
    y[0], y[1, :90], y[3, -5:] = np.arange(100), np.arange(90), np.arange(5)
    told = {int(row): (block.y[i], int(block.late[i])) for block in blocks(y, 10) for i, row in enumerate(block.rows)}
    assert sorted(told) == [0, 1, 3]
    assert told[0][1] == 0
    assert told[0][0].tolist() == list(range(100))
    assert told[1][1] == 10
    assert told[1][0][-90:].tolist() == list(range(90))
    assert np.isnan(told[1][0][:-90]).all()
    assert told[3][0].shape == (64,)
    assert told[3][0][-5:].tolist() == list(range(5))


def test_many_short_series_and_leads_come_in_small_blocks() -> None:
    assert max(len(block.rows) for block in blocks(np.ones((3000, 64)), 1000)) < 100


def base(y: Floats, name: str, leads: range, calendar: tuple[int, ...] = HOURLY) -> Floats:
    """One simple forecast in the units of `y`."""
    told = describe(y, np.tile(np.array(leads), (len(y), 1)), calendar)
    relative = told.bases[BASES.index(name)]
    return told.center + told.scale * (told.reference + told.unit * relative).astype(np.float64)


def test_bases_are_what_their_names_say() -> None:
    week = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 8.0], 24)
    y = np.tile(week + np.tile(np.arange(24.0), 7), 5)[None]
    leads, coming = range(1, 31), y[:, :30]
    close = dict[str, float](rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(base(y, "b", leads), coming, **close)
    np.testing.assert_allclose(base(y, "a", leads)[:, :24], y[:, -24:], **close)
    np.testing.assert_allclose(base(y, "a", leads)[:, 24:], y[:, -24:-18], **close)
    np.testing.assert_allclose(base(y, "last", leads), np.full((1, 30), y[0, -1]), **close)
    np.testing.assert_allclose(base(y, "a_and_b", leads)[:, :24], coming[:, :24], **close)
    np.testing.assert_allclose(base(y, "mean_16", leads), np.full((1, 30), y[0, -16:].mean()), **close)


def test_a_trend_is_continued_by_the_bases_that_know_of_trends() -> None:
    y = (np.tile(np.arange(24.0), 20) + 0.5 * np.arange(480))[None]
    coming = np.tile(np.arange(24.0), 2) + 0.5 * np.arange(480, 528)
    np.testing.assert_allclose(base(y, "a_trend", range(1, 49))[0], coming, rtol=1e-3)


def test_an_autoregression_is_continued_as_its_equation_says() -> None:
    random = np.random.default_rng(4)
    shocks = random.standard_normal((1, 2000))
    y = np.zeros((1, 2000))
    for t in range(1, 2000):
        y[:, t] = 0.9 * y[:, t - 1] + shocks[:, t]
    y[:, -1] = 5
    ahead = base(y, "a_ar", range(1, 11), ())
    np.testing.assert_allclose(ahead[0], 5 * 0.9 ** np.arange(1, 11), atol=0.7)


def test_features_are_finite_and_of_one_width_whatever_the_series() -> None:
    random = np.random.default_rng(0)
    leads = np.tile([1, 7, 600], (5, 1))
    widths = set()
    for n in (64, 65, 500, 3000):
        y = random.standard_normal((5, n)) * 10.0 ** np.array([[-300.0], [0], [5], [300], [0]])
        y[1, 5:20] = np.nan
        y[4] = 7.0
        told = describe(y, leads, FIVE_MINUTES)
        for part in (told.static, told.lead, told.bases, told.reference, told.unit):
            assert np.isfinite(part).all()
        assert told.scale[4] == 0
        widths.add((told.static.shape[1], told.lead.shape[0], told.bases.shape[0]))
    assert len(widths) == 1
