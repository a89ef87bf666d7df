from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anomaly_times.models.rebase import rebased
from anomaly_times.panel import Floats, Grid, Labels, Panel

STEP = timedelta(minutes=10)
DAY = 144
END = datetime(2026, 3, 14, 12, tzinfo=UTC)
"""A Saturday."""


def panel(y: Floats, *, step: timedelta = STEP) -> Panel:
    rows = np.atleast_2d(y).astype(float)
    return Panel(
        tuple(Labels.of({"host": f"{i:03d}"}) for i in range(len(rows))), Grid.ending(END, step, rows.shape[1]), rows
    )


def rhythm(days: int = 14, *, noise: float = 1.0, seed: int = 0) -> Floats:
    """100 ± 30 over the day, with noise."""
    t = Grid.ending(END, STEP, days * DAY).epoch_ms() / 86_400_000
    return 100 + 30 * np.sin(2 * np.pi * t) + np.random.default_rng(seed).normal(0, noise, len(t))


def changed(y: Floats, points: int, change: float, *, times: bool = False) -> Floats:
    """`y` whose last `points` lie higher by `change`, or are `change` times as high."""
    out = y.copy()
    out[..., -points:] = out[..., -points:] * change if times else out[..., -points:] + change
    return out


def since(points: int, *, step: timedelta = STEP) -> datetime:
    """The first time of the last `points`."""
    return Grid.ending(END, step, points).start


def test_a_rhythm_keeps_its_shape_at_the_new_level_whatever_the_hour() -> None:
    y = rhythm()
    for hours in (1, 2, 5, 11, 17):
        for shift in (-40.0, 400.0):
            history = panel(changed(y - 300, hours * 6, shift))
            moved = rebased(history, since(hours * 6)).y[0]
            assert np.abs(moved - (y - 300 + shift)).max() < 1.5, (hours, shift)
            np.testing.assert_array_equal(moved[-hours * 6 :], history.y[0, -hours * 6 :])


def test_what_was_never_negative_is_moved_in_proportion() -> None:
    y = rhythm()
    for factor in (0.1, 0.5, 3.0):
        moved = rebased(panel(changed(y, 12, factor, times=True)), since(12)).y[0]
        np.testing.assert_allclose(moved, y * factor, rtol=0.05)


def test_a_shift_of_a_positive_series_is_seen_once_its_rhythm_tells() -> None:
    y = rhythm(noise=0.5)
    moved = rebased(panel(changed(y, 48, 200)), since(48)).y[0]
    assert np.abs(moved - (y + 200)).max() < 1.5


def test_a_level_near_zero_makes_no_factor() -> None:
    # By night it rests at 1; from 3 in the night on it does so at 5. By day it has 100.
    t = np.arange(14 * 144)
    y = np.where((t % 144) < 72, 100.0, 1.0) + np.random.default_rng(0).normal(0, 0.1, len(t)).clip(-0.5, 0.5)
    moved = rebased(panel(changed(y, 12, 4)), since(12)).y[0]
    assert np.abs(moved - (y + 4)).max() < 0.5


def test_what_falls_to_zero_never_falls_below() -> None:
    moved = rebased(panel(changed(rhythm(), 12, 0, times=True)), since(12)).y[0]
    assert moved.min() == 0
    assert moved.max() < 70


def test_the_day_of_the_week_is_no_change_of_level() -> None:
    # Half of the traffic at weekends. On a Saturday it doubles.
    grid = Grid.ending(END, STEP, 14 * DAY)
    weekend = (grid.epoch_ms() // 86_400_000 + 3) % 7 >= 5
    y = rhythm() * np.where(weekend, 0.5, 1.0)
    moved = rebased(panel(changed(y, 12, 2, times=True)), since(12)).y[0]
    np.testing.assert_allclose(moved, 2 * y, rtol=0.06)


def test_an_incident_before_the_change_does_not_count() -> None:
    y = rhythm() - 100
    spoilt = y.copy()
    spoilt[-40:-12] += 500
    moved = rebased(panel(changed(spoilt, 12, 50)), since(12)).y[0]
    assert np.abs(moved - (spoilt + 50)).max() < 2


@pytest.mark.parametrize(("points", "off"), [(6, 2.0), (12, 2.0), (18, 2.0), (24, 7.0)])
def test_the_time_need_not_be_exact(points: int, off: float) -> None:
    y = rhythm() - 200
    moved = rebased(panel(changed(y, 18, 70)), since(points)).y[0]
    assert np.abs(moved[:-26] - (y + 70)[:-26]).max() < off


def test_clocks_that_change_do_not_shift_the_rhythm() -> None:
    # Summer time begins in New York six days before the end; people keep to the clock.
    grid = Grid.ending(END, STEP, 14 * DAY)
    clock = grid.epoch_ms() / 3_600_000 + np.where(grid.epoch_ms() >= 1_772_953_200_000, -4, -5)
    y = np.where((clock % 24 >= 8) & (clock % 24 < 9), 50.0, 0.0) - 10 + np.random.default_rng(0).normal(0, 1, grid.n)
    moved = rebased(panel(changed(y, 18, 30)), since(18), timezone="America/New_York").y[0]
    assert np.abs(moved - (y + 30)).max() < 1


def test_gaps_stay_gaps_and_count_nowhere() -> None:
    y = rhythm() - 200
    holed = changed(y, 12, 70)
    holed[::5] = np.nan
    moved = rebased(panel(holed), since(12)).y[0]
    np.testing.assert_array_equal(np.isnan(moved), np.isnan(holed))
    assert np.nanmax(np.abs(moved - (y + 70))) < 1.5


def test_each_series_is_moved_by_itself_and_one_without_both_sides_stays() -> None:
    y = np.stack([rhythm(seed=seed) - 200 for seed in range(4)])
    y[0, -12:] += 30
    y[1, -12:] = np.nan
    y[2, :-12] = np.nan
    y[3, :] = np.nan
    moved = rebased(panel(y), since(12)).y
    assert np.abs(np.median(moved[0, :-12] - y[0, :-12]) - 30) < 1
    np.testing.assert_array_equal(moved[1:], y[1:])


def test_a_time_outside_the_history_changes_nothing() -> None:
    history = panel(rhythm())
    for at in (history.grid.start, history.grid.start - STEP, END + timedelta(seconds=1), END + timedelta(days=9)):
        assert rebased(history, at) is history
    # The first time of the new level need not lie on the grid.
    assert rebased(history, END - timedelta(seconds=1)) is not history


def test_old_values_are_left_out_where_another_service_came() -> None:
    rng = np.random.default_rng(0)
    y = rhythm() - 200
    wild = y.copy()
    wild[-30:] = rng.normal(0, 25, 30)
    assert np.isnan(rebased(panel(wild), since(30)).y[0, :-30]).all()
    # A few points are no evidence.
    few = y.copy()
    few[-10:] = rng.normal(0, 25, 10)
    assert np.isfinite(rebased(panel(few), since(10)).y[0, :-10]).all()


def test_another_rhythm_counts_as_soon_as_it_was_seen_twice() -> None:
    y = rhythm() - 200
    other = y + 50

    def with_days(days: int) -> Floats:
        # What came after moves three hours later in its day.
        out = y.copy()
        out[-days * DAY :] = other[-days * DAY - 18 : -18]
        return rebased(panel(out), since(days * DAY), season=[timedelta(days=1)]).y[0, : -days * DAY]

    assert np.isnan(with_days(2)).all()
    # The same rhythm goes on being learned from what is older.
    same = rebased(panel(changed(y, 3 * DAY, 50)), since(3 * DAY)).y[0]
    assert np.abs(same - (y + 50)).max() < 1.5


def test_a_series_without_a_season_is_moved_by_its_level() -> None:
    y = np.random.default_rng(0).normal(0, 1, 14 * DAY)
    moved = rebased(panel(changed(y, 20, -9)), since(20), season=()).y[0]
    assert np.abs(moved - (y - 9)).max() < 1


@pytest.mark.parametrize("step", [timedelta(minutes=1), timedelta(hours=6), timedelta(days=3)])
def test_any_step_will_do(step: timedelta) -> None:
    y = np.random.default_rng(0).normal(0, 1, 200)
    moved = rebased(panel(changed(y, 20, 9), step=step), since(20, step=step)).y[0]
    assert np.abs(moved - (y + 9)).max() < 1.5


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(2, 400)),
        elements=st.sampled_from([np.nan, 0.0, 1.0, -1.0, 3.5, 1e300, -1e300, 1e-300]),
        fill=st.just(2.0),
    ),
    st.integers(1, 300),
)
def test_whatever_a_history_holds_gaps_stay_and_values_stay_finite(y: Floats, points: int) -> None:
    history = panel(y)
    moved = rebased(history, since(points))
    assert moved.grid == history.grid
    assert np.isnan(moved.y[np.isnan(history.y)]).all()
    assert not np.isinf(moved.y).any()
    np.testing.assert_array_equal(moved.y[:, -points:], history.y[:, -points:])
    never_negative = ~(history.y < 0).any(axis=1)
    assert not (moved.y[never_negative] < 0).any()


def test_scaling_the_series_scales_what_comes_out() -> None:
    history = panel(changed(rhythm(), 12, 2, times=True))
    scaled = replace(history, y=history.y * 1e6)
    np.testing.assert_allclose(rebased(scaled, since(12)).y, rebased(history, since(12)).y * 1e6)
