from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times.errors import UsageError
from anomaly_times.panel import Forecast, Grid, Labels, Panel, Quantiles, Scores, round_significant

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def labels(**names: str) -> Labels:
    return Labels.of(names)


def test_labels_print_as_canonical_promql() -> None:
    assert str(labels(job="b", instance="a")) == '{instance="a",job="b"}'
    assert str(labels(path='C:\\ "x"\n')) == r'{path="C:\\ \"x\"\n"}'
    assert str(labels()) == "{}"


def test_an_empty_label_is_no_label() -> None:
    assert labels(a="1", b="") == labels(a="1")
    assert labels(a="1").get("b") == ""


def test_labels_survive_pickling_and_stay_labels() -> None:
    row = labels(a="1", b="2")
    again = pickle.loads(pickle.dumps(row))
    assert again == row
    assert isinstance(again, Labels)
    assert isinstance(row.without(["a"]), Labels)
    assert row.without(["a"]) == labels(b="2")


@pytest.mark.parametrize("text", ['{a"}', "{a}", '{a="1"', 'a="1"', '{a="1",a="2"}', '{="1"}'])
def test_what_is_no_label_set_is_not_parsed(text: str) -> None:
    with pytest.raises(ValueError, match="label"):
        Labels.parse(text)


def test_a_grid_includes_both_ends() -> None:
    grid = Grid(NOON, MINUTE, 3)
    assert grid.end == NOON + 2 * MINUTE
    assert grid.times().tolist() == [datetime(2026, 3, 1, 12, i) for i in range(3)]
    assert grid.epoch_ms().tolist() == [int(NOON.timestamp()) * 1000 + 60_000 * i for i in range(3)]
    assert Grid.covering(NOON, NOON, MINUTE).n == 1
    assert Grid.covering(NOON + timedelta(seconds=1), NOON + timedelta(seconds=59), MINUTE).n == 0


def test_a_grid_ends_at_the_last_whole_step() -> None:
    grid = Grid.ending(NOON + timedelta(seconds=59), MINUTE, 2)
    assert (grid.start, grid.end) == (NOON - MINUTE, NOON)


@given(st.integers(1, 10**8), st.integers(-(10**13), 10**13), st.integers(0, 50))
def test_every_grid_is_aligned_and_contiguous(step_ms: int, at_ms: int, n: int) -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    grid = Grid.ending(at, timedelta(milliseconds=step_ms), n)
    if n:
        assert timedelta(0) <= at - grid.end < grid.step
    assert (grid.epoch_ms() % step_ms == 0).all()
    assert grid.following(2).start == grid.end + grid.step
    assert grid.last(3).end == grid.end


@pytest.mark.parametrize(
    ("start", "step", "n"),
    [
        (datetime(2026, 3, 1), MINUTE, 1),
        (NOON + timedelta(seconds=1), MINUTE, 1),
        (NOON, timedelta(0), 1),
        (NOON, -MINUTE, 1),
        (NOON, timedelta(microseconds=1500), 1),
        (NOON, MINUTE, -1),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(start: datetime, step: timedelta, n: int) -> None:
    with pytest.raises(UsageError):
        Grid(start, step, n)


def test_a_grid_in_another_zone_is_the_same_grid() -> None:
    assert Grid(NOON.astimezone(timezone(timedelta(hours=2))), MINUTE, 2) == Grid(NOON, MINUTE, 2)


def panel(n: int = 3, width: int = 4) -> Panel:
    y = np.arange(n * width, dtype=float).reshape(n, width)
    return Panel(tuple(labels(host=chr(97 + i)) for i in range(n)), Grid(NOON, MINUTE, width), y)


def test_rows_in_any_order_are_sorted_with_their_values() -> None:
    made = Panel.of([labels(h="b"), labels(h="a")], Grid(NOON, MINUTE, 1), np.array([[2.0], [1.0]]))
    assert [str(row) for row in made.labels] == ['{h="a"}', '{h="b"}']
    assert made.y.tolist() == [[1.0], [2.0]]


def test_two_rows_with_equal_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="no two equal"):
        Panel.of([labels(h="a"), labels(h="a")], Grid(NOON, MINUTE, 1), np.zeros((2, 1)))


def test_a_panel_whose_shape_is_off_is_refused() -> None:
    with pytest.raises(ValueError, match="1 series × 2 points"):
        Panel((labels(h="a"),), Grid(NOON, MINUTE, 2), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="float32"):
        Panel((labels(h="a"),), Grid(NOON, MINUTE, 2), np.zeros((1, 2), np.float32))


def test_a_long_frame_has_the_fields_names_and_leaves_gaps_out() -> None:
    made = panel(2, 2)
    made.y[0, 1] = np.nan
    frame = made.to_frame()
    assert frame.columns == ["unique_id", "ds", "y"]
    assert frame.schema["ds"] == pl.Datetime("ms", "UTC")
    assert frame.rows() == [('{host="a"}', NOON, 0.0), ('{host="b"}', NOON, 2.0), ('{host="b"}', NOON + MINUTE, 3.0)]
    assert made.to_frame(gaps=True).height == 4


@given(st.integers(0, 9), st.integers(1, 12))
def test_shards_put_together_are_the_panel(rows: int, n: int) -> None:
    whole = panel(rows)
    parts = list(whole.shards(n))
    assert all(part.n_series for part in parts)
    assert [row for part in parts for row in part.labels] == list(whole.labels)
    assert np.array_equal(np.concatenate([np.empty((0, 4)), *(part.y for part in parts)]), whole.y)
    if parts:
        assert max(p.n_series for p in parts) - min(p.n_series for p in parts) <= 1


def test_rows_are_chosen_by_mask_or_position() -> None:
    whole = panel()
    assert whole.rows(np.array([True, False, True])).labels == whole.rows([0, 2]).labels
    assert whole.rows([1]).y.tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert whole.columns(slice(1, 3)).grid == Grid(NOON + MINUTE, MINUTE, 2)


def test_notes_follow_their_series() -> None:
    y = np.zeros((3, 1))
    forecast = Forecast(panel(3, 1).labels, Grid(NOON, MINUTE, 1), NOON, y, y, y, notes={1: "short"})
    assert forecast.rows([1, 2]).notes == {0: "short"}
    assert forecast.rows([0, 2]).notes == {}


def test_a_quantile_is_found_by_its_level() -> None:
    values = np.stack([np.zeros((1, 1)), np.ones((1, 1))], axis=-1)
    quantiles = Quantiles((labels(),), Grid(NOON, MINUTE, 1), (0.1, 0.9), values)
    assert quantiles.at(0.9).tolist() == [[1.0]]
    with pytest.raises(KeyError):
        quantiles.at(0.5)


def test_score_and_forecast_frames_use_one_vocabulary() -> None:
    one = np.ones((1, 1))
    scores = Scores((labels(h="a"),), Grid(NOON, MINUTE, 1), one, one, one, one, one * 3)
    assert scores.to_frame().rows(named=True) == [
        {"unique_id": '{h="a"}', "ds": NOON, "y": 1.0, "yhat": 1.0, "yhat_lower": 1.0, "yhat_upper": 1.0, "score": 3.0}
    ]
    forecast = Forecast((labels(h="a"),), Grid(NOON, MINUTE, 1), NOON, one, one, one * np.nan)
    assert forecast.to_frame().columns == ["unique_id", "ds", "yhat", "yhat_lower", "yhat_upper"]


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_rounding_is_what_printing_nine_digits_says(value: float) -> None:
    (rounded,) = round_significant(np.array([value]))
    if np.isfinite(value) and (value == 0 or 1e-280 < abs(value) < 1e290):
        assert rounded == pytest.approx(float(f"{value:.9g}"), rel=1e-15)
        assert round_significant(np.array([rounded]))[0] == rounded
    else:
        assert (rounded == pytest.approx(value, rel=1e-8, abs=1e-300)) or (np.isnan(rounded) and np.isnan(value))
