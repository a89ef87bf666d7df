"""Bounds are tuned twice a day and hold until the next time, whoever forecasts, and with or without what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times import bounds
from anomaly_times.bounds import Bounded, Tunings, bounded, tuned_at
from anomaly_times.mission import Mission
from anomaly_times.models import build_model
from anomaly_times.panel import Floats, Forecast, Grid, Panel
from anomaly_times.testing import panel_of

STEP, HOUR = timedelta(minutes=15), timedelta(hours=1)
NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)


def mission(model: str = "profile", lookback: str = "7d", **fields: object) -> Mission:
    fields = {"step": "15m", "forecast": {"model": model, "lookback": lookback}, **fields}
    return Mission.model_validate({"name": "load", "promql": "load", **fields})


def whole(n: int = 3, *, seed: int = 0) -> Panel:
    """`n` series of noise around a daily rhythm, from nine days before noon to one after."""
    grid = Grid.covering(NOON - timedelta(days=9), NOON + timedelta(days=1), STEP)
    rhythm = 100 + 30 * np.sin(np.arange(grid.n) * 2 * np.pi / 96)
    y = rhythm + np.random.default_rng(seed).normal(0, 5, (n, grid.n))
    return replace(panel_of(y), grid=grid)


def forecast(values: Panel, at: datetime, made: Mission | None = None, tunings: Tunings | None = None) -> Forecast:
    made = made or mission()
    stop = values.grid.index(at) + 1
    history = values.columns(slice(stop - made.forecast.lookback // STEP, stop))
    model = build_model(made.forecast.model)
    found: Bounded = bounded(made, model, history, least=np.zeros(values.n_series), tunings=tunings)
    return found.forecast


def limit(found: Forecast) -> Floats:
    assert found.limits is not None
    return found.limits.limit


@pytest.mark.parametrize("model", ["profile", "auto"])
def test_what_is_kept_changes_nothing(model: str) -> None:
    values, kept = whole(), Tunings()
    values.y[2, : 5 * 96] = np.nan
    for hour in (-13, -12, -5, -1, 0, 1, 5):
        plain, fast = (forecast(values, NOON + hour * HOUR, mission(model), each) for each in (None, kept))
        for name in ("yhat", "lower", "upper"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(fast, name))
        np.testing.assert_array_equal(limit(plain), limit(fast))
        assert plain.models == fast.models
        assert plain.notes == fast.notes
        assert plain.warming == fast.warming


def test_limits_hold_from_noon_to_midnight_whatever_comes_then() -> None:
    values, other = whole(), whole()
    other.y[:, values.grid.index(NOON) + 1 :] *= 3
    at_noon = limit(forecast(values, NOON))
    for hour in (1, 6, 11):
        np.testing.assert_array_equal(limit(forecast(values, NOON + hour * HOUR)), at_noon)
        np.testing.assert_array_equal(limit(forecast(other, NOON + hour * HOUR)), at_noon)
    assert (limit(forecast(values, NOON + 12 * HOUR)) != at_noon).any()
    assert (limit(forecast(values, NOON - HOUR)) != at_noon).any()


def test_the_forecast_itself_knows_the_newest_values() -> None:
    values, higher = whole(), whole()
    higher.y[:, values.grid.index(NOON) + 1 :] += 40
    one, two = (forecast(each, NOON + 10 * HOUR).yhat for each in (values, higher))
    assert (two - one).mean() > 20


def test_auto_keeps_its_choice_for_half_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    made, values = mission("auto"), whole(6)
    names = [{row: each.model for row, each in forecast(values, NOON + h * HOUR, made).models.items()} for h in (0, 11)]
    assert names[0] == names[1]
    assert len(names[0]) == 6


def test_a_young_series_is_tuned_at_once_and_by_itself() -> None:
    values = whole()
    values.y[1, : values.grid.index(NOON - timedelta(days=3))] = np.nan
    at = NOON + 5 * HOUR
    mixed = forecast(values, at)
    alone = forecast(values.rows([1]), at)
    others = forecast(values.rows([0, 2]), at)
    for rows, part in (([1], alone), ([0, 2], others)):
        np.testing.assert_array_equal(mixed.upper[rows], part.upper)
        np.testing.assert_array_equal(limit(mixed)[:, rows], limit(part))
    # By values of the afternoon too.
    later = values.columns(slice(None))
    later.y[1, values.grid.index(NOON) + 1 : values.grid.index(at)] += 50
    assert (limit(forecast(later, at))[:, 1] != limit(mixed)[:, 1]).any()


def test_a_series_that_came_back_is_tuned_at_once() -> None:
    values = whole()
    values.y[0, values.grid.index(NOON - timedelta(days=2)) : values.grid.index(NOON + HOUR)] = np.nan
    found = forecast(values, NOON + 8 * HOUR)
    assert np.isfinite(found.upper).all()


def test_a_short_lookback_is_tuned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[datetime] = []
    tune = bounds.calibrated

    def spied(model: object, history: Panel, *, h: int, levels: Sequence[float]) -> object:
        seen.append(history.grid.end)
        return tune(model, history, h=h, levels=levels)  # type: ignore[arg-type]

    monkeypatch.setattr(bounds, "calibrated", spied)
    forecast(whole(), NOON + 3 * HOUR, mission(lookback="4d"))
    forecast(whole(), NOON + 3 * HOUR, mission(lookback="5d"))
    assert seen == [NOON + 3 * HOUR, NOON]


def test_a_level_is_held_likewise() -> None:
    made = mission(forecast={"model": "seasonal_naive", "lookback": "7d", "level": 99})
    found = forecast(whole(), NOON + 3 * HOUR, made)
    assert found.limits is None
    assert (found.lower < found.yhat).all()
    assert (found.yhat < found.upper).all()


def test_the_time_of_a_tuning_is_midnight_or_noon() -> None:
    assert tuned_at(NOON) == NOON
    assert tuned_at(NOON - timedelta(milliseconds=1)) == NOON - 12 * HOUR
    assert tuned_at(NOON + 11 * HOUR) == NOON
