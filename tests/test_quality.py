from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from anomaly_times.mission import Mission
from anomaly_times.quality import Quality, judge, naive_season

NAN = float("nan")


def test_a_point_counts_only_with_a_value_a_forecast_and_a_value_a_season_before() -> None:
    y = np.array([[10.0, 12.0, NAN, 9.0, 9.0]])
    bands = np.array([[[11.0, 9.0, 9.0, NAN, 9.0]], [[9.0, 8.0, 8.0, NAN, 8.0]], [[13.0, 11.0, 10.0, NAN, 10.0]]])
    before = np.array([[13.0, 10.0, 10.0, 10.0, NAN]])
    # The first is 1 off and inside, the second 3 off and outside; the naive forecast is off by 3 and 2.
    assert judge(y, bands, before) == Quality(points=2, in_band=1, abs_error=4.0, naive_abs_error=5.0)


def test_a_bound_belongs_to_its_band() -> None:
    bands = np.array([[[5.0, 5.0]], [[4.0, 4.0]], [[6.0, 6.0]]])
    assert judge(np.array([[4.0, 6.0]]), bands, np.zeros((1, 2))).in_band == 2


def test_huge_values_give_an_infinite_sum_and_no_warning() -> None:
    bands = np.array([[[-1.7e308]], [[-1.7e308]], [[0.0]]])
    assert judge(np.array([[1.7e308]]), bands, np.array([[0.0]])).abs_error == np.inf


@pytest.mark.parametrize(
    ("fields", "season"),
    [
        ({}, timedelta(days=1)),
        ({"season": "none"}, timedelta(days=1)),
        ({"season": ["1w", "6h"]}, timedelta(hours=6)),
        ({"step": "2d", "forecast": {"every": "4d", "lookback": "60d"}}, timedelta(days=2)),
    ],
)
def test_the_naive_season_is_the_shortest_or_a_day(fields: dict[str, Any], season: timedelta) -> None:
    assert naive_season(Mission(name="m", promql="up", **fields)) == season
