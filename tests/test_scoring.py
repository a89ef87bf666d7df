from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times.evidence import REASONS
from anomaly_times.mission import Detect
from anomaly_times.panel import Forecast, Grid, Labels, Limits, Scores
from anomaly_times.scoring import Scored, final_bounds, format_score, resolution, score, unseen_sides

NAN = float("nan")
INF = float("inf")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def one_score(y: float, *, yhat: float = 10, lower: float = 5, upper: float = 20, **detect: object) -> float:
    """The score of one value against one forecast."""
    grid = Grid(NOON, timedelta(minutes=1), 1)
    band = tuple(np.array([[float(x)]]) for x in (yhat, lower, upper))
    found = score([Labels()], grid, np.array([[float(y)]]), band, Detect.model_validate(detect))  # type: ignore[arg-type]
    return float(found.scores.score[0, 0])


def counted(found: Scored) -> dict[str, int]:
    """How many points each gate settled, of all series."""
    return {gate: int(count.sum()) for gate, count in found.gates.items()}


def test_a_score_reads_the_same_wherever_it_is_shown() -> None:
    assert [format_score(score) for score in (0.0, 0.861, 12.5, 1000.0)] == ["0.00", "0.86", "12.50", "1000.00"]


@pytest.mark.parametrize(
    ("y", "expected"),
    [(10, 0), (20, 1), (5, 1), (15, 0.5), (7.5, 0.5), (30, 2), (0, 2), (1e9, 1000), (-1e9, 1000)],
)
def test_the_scale_is_distance_over_half_width_on_either_side(y: float, expected: float) -> None:
    assert one_score(y) == expected


@pytest.mark.parametrize(
    ("y", "detect", "expected"),
    [
        # direction
        (30, {"direction": "above"}, 2),
        (0, {"direction": "above"}, 0),
        (0, {"direction": "below"}, 2),
        (30, {"direction": "below"}, 0),
        (10, {"direction": "above"}, 0),
        # deviations: a number for both sides, or [below, above]; where both kinds are set both must be exceeded
        (30, {"min_deviation": 21}, 0),
        (30, {"min_deviation": 20}, 2),
        (30, {"min_deviation": [0, 21]}, 0),
        (0, {"min_deviation": [0, 21]}, 2),
        (0, {"min_deviation": [11, 0]}, 0),
        (30, {"min_relative_deviation": "201%"}, 0),
        (30, {"min_relative_deviation": 2.0}, 2),
        (0, {"min_relative_deviation": [1.1, 0]}, 0),
        (30, {"min_deviation": 1, "min_relative_deviation": 3}, 0),
        (30, {"min_deviation": 21, "min_relative_deviation": 0.1}, 0),
        # a value that cannot be beats every gate
        (-1, {"valid_range": [0, INF]}, 1.01),
        (-1, {"valid_range": [0, INF], "direction": "above"}, 1.01),
        (-1, {"valid_range": [0, INF], "min_deviation": 1e6, "out_of_range_score": 5}, 5),
        (101, {"valid_range": [0, 100]}, 1.01),
        (100, {"valid_range": [0, 100]}, 9),
        # no value
        (NAN, {}, NAN),
        (NAN, {"missing": "ignore"}, NAN),
        (NAN, {"missing": "zero"}, 2),
        (NAN, {"missing": "zero", "direction": "above"}, 0),
        (NAN, {"missing": "zero", "valid_range": [1, INF]}, 1.01),
        (NAN, {"missing": "anomaly"}, 2),
        (NAN, {"missing": "anomaly", "direction": "above"}, 2),
        (3, {"missing": "anomaly"}, 1.4),
    ],
)
def test_the_gates(y: float, detect: dict[str, object], expected: float) -> None:
    assert one_score(y, **detect) == pytest.approx(expected, nan_ok=True)


def test_every_gate_that_settled_a_point_is_counted() -> None:
    grid = Grid(NOON, timedelta(minutes=1), 6)
    y = np.array([[0.0, 30, 12, -1, NAN, 30]])
    band = (np.array([[10.0] * 5 + [NAN]]), np.array([[5.0] * 6]), np.array([[20.0] * 6]))
    detect = Detect.model_validate(
        {"direction": "above", "min_deviation": 5, "valid_range": [0, 100], "missing": "anomaly"}
    )
    found = score([Labels()], grid, y, band, detect)
    np.testing.assert_array_equal(found.scores.score, [[0, 2, 0, 1.01, 2, NAN]])
    assert counted(found) == {"direction": 1, "min_deviation": 1, "out_of_range": 1, "missing": 1}
    assert found.unforecast == 1


def test_without_a_forecast_there_is_no_score_never_a_zero() -> None:
    assert np.isnan(one_score(30, yhat=NAN))
    assert np.isnan(one_score(NAN, yhat=NAN, missing="anomaly"))
    assert np.isnan(one_score(NAN, yhat=NAN, missing="zero"))
    assert np.isnan(one_score(-1, yhat=NAN, valid_range=[0, 1]))


@given(
    st.floats(-1e12, 1e12),
    st.floats(-1e12, 1e12),
    st.floats(0, 1e12),
    st.floats(0, 1e12),
    st.floats(0, 1e6),
)
def test_what_is_stored_reproduces_the_score(y: float, yhat: float, below: float, above: float, res: float) -> None:
    bounds = finalised(yhat, yhat - below, yhat + above, res=res)
    assert bounds[1] < bounds[0] < bounds[2]
    got = one_score(y, yhat=bounds[0], lower=bounds[1], upper=bounds[2])
    y9 = float(f"{y:.9g}")
    width = (bounds[2] if y9 >= bounds[0] else bounds[1]) - bounds[0]
    assert got == pytest.approx(min(1000, (y9 - bounds[0]) / width), rel=1e-8)


def finalised(yhat: float, lower: float, upper: float, *, res: float = 0, **options: object) -> tuple[float, ...]:
    """yhat, lower and upper of one point as they are stored."""
    scale = options.pop("scale", (1.0, 1.0))
    arrays = [np.array([[float(x)]]) for x in (yhat, lower, upper)]
    raw = Forecast((Labels(),), Grid(NOON, timedelta(minutes=1), 1), NOON, *arrays)
    detect = Detect.model_validate(options)
    made = final_bounds(raw, detect, resolution=np.array([float(res)]), interval_scale=scale)  # type: ignore[arg-type]
    return tuple(float(part[0, 0]) for part in (made.yhat, made.lower, made.upper))


def test_half_widths_have_a_floor() -> None:
    assert finalised(100, 100, 100) == (100, 99, 101)
    assert finalised(100, 99.9, 103) == (100, 99, 103)
    assert finalised(100, 100, 100, res=5) == (100, 95, 105)
    assert finalised(0, 0, 0) == (0, -1e-9, 1e-9)


def test_the_interval_scale_widens_each_side_after_the_floor() -> None:
    assert finalised(100, 90, 110, scale=(2.0, 3.0)) == (100, 80, 130)
    assert finalised(100, 100, 100, scale=(2.0, 0.5)) == (100, 98, 100.5)


def test_the_forecast_is_clipped_into_the_valid_range_and_the_bounds_are_not() -> None:
    assert finalised(-3, -8, 2, valid_range=[0, INF]) == (0, -8, 2)
    assert finalised(-3, -8, -1, valid_range=[0, INF]) == (0, -8, 1e-9)


def test_a_band_past_the_valid_range_is_reported() -> None:
    arrays = [np.array([[x], [x + 50]]) for x in (10.0, -5.0, 25.0)]
    labels = (Labels.of({"a": "1"}), Labels.of({"a": "2"}))
    forecast = Forecast(labels, Grid(NOON, timedelta(minutes=1), 1), NOON, *arrays)
    assert unseen_sides(forecast, Detect(valid_range=(0, 100))) == (1, 0)
    assert unseen_sides(forecast, Detect(valid_range=(0, 70))) == (1, 1)
    assert unseen_sides(forecast, Detect()) == (0, 0)


@pytest.mark.parametrize("value", [1e300, -1e300, 1.7e308, 1e-300, 5e-324])
def test_extreme_values_neither_warn_nor_overflow(value: float) -> None:
    yhat, lower, upper = finalised(value, -1.7e308, 1.7e308)
    assert lower < yhat < upper
    assert np.isfinite([lower, yhat, upper]).all()
    assert np.isfinite(one_score(-value, yhat=yhat, lower=lower, upper=upper))


def test_the_resolution_is_the_smallest_move_between_neighbours() -> None:
    history = np.array(
        [[3.0, 1, 1, NAN, 7], [0.1 + 0.2, 0.3, 0.7, 0.7, 0.3], [5, 5, 5, 5, 5], [NAN] * 5, [1, NAN, NAN, NAN, NAN]]
    )
    assert resolution(history) == pytest.approx([2, 0.4, 0, 0, 0])


@pytest.mark.parametrize(("usual", "incident"), [(1.0, 0.0), (0.0, 500.0), (100.0, 1e6)])
def test_an_incident_in_a_series_that_never_moves_does_not_set_its_resolution(usual: float, incident: float) -> None:
    history = np.full((1, 1000), usual)
    history[0, 500:505] = incident
    assert resolution(history).tolist() == [0.0]


def test_a_band_is_never_scaled_to_nothing() -> None:
    yhat, lower, upper = finalised(5, 4, 6, scale=(1e-12, 1e-12))
    assert lower < yhat < upper
    assert one_score(5, yhat=yhat, lower=lower, upper=upper) == 0


def test_a_point_is_counted_by_one_gate() -> None:
    grid = Grid(NOON, timedelta(minutes=1), 1)
    band = (np.array([[10.0]]), np.array([[5.0]]), np.array([[20.0]]))
    detect = Detect.model_validate({"missing": "zero", "direction": "above"})
    assert counted(score([Labels()], grid, np.array([[NAN]]), band, detect)) == {"direction": 1}


HOURS_OF_FIVE = Grid(NOON, timedelta(minutes=5), 36)


def over_time(y: np.ndarray, *, move: float = 1.0, **gates: object) -> Scores:
    """The scores of values against a forecast of 100 ± 10, with limits that an hour of odd values exceeds."""
    limits = Limits(
        np.array([0.0, 0.3, 1.0, 0.0, 0.0])[:, None, None],
        np.array([1.0, 0.6, 1.5, 0.4, 12.0])[:, None, None],
        np.full((1, 1), move),
    )
    yhat = np.full((1, 36), 100.0)
    detect = Detect.model_validate(gates)
    found = score([Labels()], HOURS_OF_FIVE, y[None], (yhat, yhat - 10, yhat + 10), detect, limits=limits)
    assert found.scores.reason is not None
    return found.scores


def wiggling(level: float, *, by: float = 0.5) -> np.ndarray:
    return level + by * (-1.0) ** np.arange(36)


def reasons(scores: Scores) -> set[str]:
    """What scores over 1 are of."""
    assert scores.reason is not None
    return {REASONS[int(place)] for place in scores.reason[scores.score > 1]}


def test_values_that_stay_mildly_high_for_hours_are_found_though_no_point_is() -> None:
    scores = over_time(wiggling(107))
    assert (scores.score[0, 18:] > 1).all()
    assert (scores.score[0, :3] < 1).all()
    assert reasons(scores) <= {"drift", "sustained", "level shift"}


@pytest.mark.parametrize(("level", "direction"), [(107, "below"), (93, "above")])
def test_the_wrong_side_counts_for_no_channel(level: float, direction: str) -> None:
    assert (over_time(wiggling(level), direction=direction).score == 0).all()
    right = {"below": "above", "above": "below"}[direction]
    assert (over_time(wiggling(level), direction=right).score[0, 18:] > 1).all()


def test_small_deviations_count_for_no_channel_however_long_they_last() -> None:
    assert (over_time(wiggling(107)).score > 1).any()
    assert not (over_time(wiggling(107), min_deviation=8).score > 1).any()
    assert not (over_time(wiggling(107), min_relative_deviation="8%").score > 1).any()
    assert (over_time(wiggling(107), min_deviation=5).score[0, 30:] > 1).all()
    assert not (over_time(wiggling(107), min_deviation=[0, 8]).score > 1).any()
    assert (over_time(wiggling(107), min_deviation=[8, 0]).score[0, 30:] > 1).all()


def test_roughness_has_no_side_and_its_size_is_that_of_the_moves() -> None:
    rough = wiggling(100, by=2)
    assert reasons(over_time(rough)) == {"roughness"}
    assert not (over_time(rough, direction="above").score > 1).any()
    assert not (over_time(rough, min_deviation=5).score > 1).any()
    assert (over_time(rough, min_deviation=3).score > 1).any()


def test_a_flat_line_is_found_by_any_mission_and_says_so() -> None:
    still = np.full(36, 100.0)
    for gates in ({}, {"direction": "above"}, {"min_deviation": 50}):
        scores = over_time(still, **gates)
        assert reasons(scores) == {"flat"}
        assert np.flatnonzero(scores.score[0] > 1)[0] == 13


def test_a_value_that_cannot_be_is_no_evidence_over_time() -> None:
    y = wiggling(100)
    y[10:20] = -5.0
    scores = over_time(y, valid_range=[0, float("inf")])
    assert scores.evidence is not None
    assert np.isnan(scores.evidence[:, 0, 10:20]).all()
    assert (scores.score[0, 10:20] == 1.01).all()
    assert (scores.score[0, 20:] < 1).all()
    assert reasons(scores) == {"out of range"}


def test_a_missing_series_says_so() -> None:
    y = wiggling(100)
    y[20:] = NAN
    scores = over_time(y, missing="anomaly")
    assert reasons(scores) == {"missing"}
    assert scores.incident is not None
    assert (scores.incident[0, 20:] > 1.9).all()
    assert (scores.incident[0, :20] == 0).all()
