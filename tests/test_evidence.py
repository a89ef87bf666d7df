from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from anomaly_times.errors import UsageError
from anomaly_times.evidence import (
    CHANNELS,
    Memory,
    advance,
    incidents,
    ratios_to_limits,
    strongest,
)
from anomaly_times.limits import FittedLimits, fit_limits, floored, widened
from anomaly_times.panel import Floats, Forecast
from anomaly_times.testing import panel_of

MINUTE, FIVE, HOUR = timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1)
NINE_TENTHS = 1.2816
POINT, SUSTAINED, ROUGHNESS, DRIFT, FLAT = range(len(CHANNELS))


def noise(n_series: int, n_points: int, *, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((n_series, n_points))


def limits_of(y: Floats, *, step: timedelta = FIVE, budget: float = 0.5) -> FittedLimits:
    """Limits from a past that was forecast with 0, by a band that holds 80 % of standard normal values."""
    h = round(12 * HOUR / step)
    cuts = np.linspace(0.4 * y.shape[1], y.shape[1] - h, 16).astype(int)
    ratios = np.stack([y[:, cut : cut + h] for cut in cuts], axis=1) / NINE_TENTHS
    freedom = np.full(len(y), float(ratios[0].size))
    return fit_limits(y, ratios, freedom, step=step, alerts_per_week=budget)


def band(y: Floats, limits: FittedLimits) -> tuple[Floats, Floats, Floats]:
    """What forecasts of 0 are held against: yhat, lower, upper."""
    reach = np.broadcast_to(NINE_TENTHS * limits.width[:, None], y.shape)
    return np.zeros(y.shape), -reach, reach


def ratios(y: Floats, limits: FittedLimits, *, step: timedelta = FIVE) -> Floats:
    _, evidence = advance(Memory.none(len(y)), y, band(y, limits), limits, step=step)
    return ratios_to_limits(evidence, limits)


def episodes(hot: np.ndarray, per_hour: int) -> int:
    """Runs of true values; those less than an hour apart are one."""
    count = 0
    for row in hot:
        at = np.flatnonzero(row)
        count += int(len(at) > 0) + int((np.diff(at) > per_hour).sum())
    return count


def as_stored(x: Floats) -> Floats:
    """Through the text that a store keeps: nine significant digits."""
    return np.array([float(f"{value:.9g}") for value in x.ravel()]).reshape(x.shape)


@pytest.mark.parametrize("step", [MINUTE, FIVE, HOUR])
def test_scores_are_the_same_bit_by_bit_however_points_are_cut_into_passes(step: timedelta) -> None:
    random = np.random.default_rng(3)
    y = noise(7, 400, seed=1).round(1)
    y[random.random(y.shape) < 0.1] = np.nan
    y[2, 100:300], y[3, 50:90], y[4, :] = np.nan, 0.5, np.nan
    limits = limits_of(noise(7, 2016, seed=2), step=step)
    bands = band(y, limits)
    bands[0][5, 200:260] = np.nan
    whole_memory, whole = advance(Memory.none(7), y, bands, limits, step=step)
    score, _ = strongest(ratios_to_limits(whole, limits))
    after_whole, whole_incident = incidents(score, Memory.none(7), step=step)
    scored = np.isfinite(score)
    kept = np.where(scored & (whole_incident > 1), whole_incident, np.nan)

    for pieces in range(2, 30, 9):
        memory, silent = Memory.none(7), Memory.none(7)
        parts, lasting = [], []
        for part in np.split(np.arange(400), np.sort(random.choice(400, pieces - 1, replace=False))):
            memory, evidence = advance(memory, y[:, part], tuple(each[:, part] for each in bands), limits, step=step)  # type: ignore[arg-type]
            silent, incident = incidents(score[:, part], silent, step=step)
            parts.append(evidence)
            lasting.append(incident)
            # As a process that knows nothing but the store goes on.
            so_far = slice(0, part[-1] + 1)
            stored = as_stored(np.concatenate(parts, axis=2)[1:])
            memory = silent = Memory.of(stored, as_stored(kept[:, so_far]), y[:, part[-1]], step=step)
        np.testing.assert_array_equal(np.concatenate(parts, axis=2), whole)
        np.testing.assert_array_equal(
            np.concatenate(lasting, axis=1) * np.isfinite(score), whole_incident * np.isfinite(score)
        )
        np.testing.assert_array_equal(
            memory.averages[:, np.isfinite(y[:, -1])], whole_memory.averages[:, np.isfinite(y[:, -1])]
        )
        np.testing.assert_array_equal(memory.flat, whole_memory.flat)
        np.testing.assert_array_equal(memory.incident, after_whole.incident)


def test_no_points_change_nothing() -> None:
    limits = limits_of(noise(2, 2016, seed=1))
    memory = Memory.none(2)
    after, evidence = advance(memory, np.empty((2, 0)), (np.empty((2, 0)),) * 3, limits, step=FIVE)
    assert after is memory
    assert evidence.shape == (5, 2, 0)


def test_a_point_without_value_or_forecast_has_no_evidence_and_changes_no_average() -> None:
    limits = limits_of(noise(1, 2016, seed=1))
    y = np.array([[1.0, np.nan, 2.0, 1.5]])
    yhat, lower, upper = band(y, limits)
    lower, upper = lower.copy(), upper.copy()
    lower[0, 2] = upper[0, 2] = yhat[0, 2] = np.nan
    _, evidence = advance(Memory.none(1), y, (yhat, lower, upper), limits, step=FIVE)
    assert np.isnan(evidence[:, 0, 1:3]).all()
    there = np.array([[1.0, 1.5]])
    _, alone = advance(Memory.none(1), there, band(there, limits), limits, step=FIVE)
    np.testing.assert_array_equal(evidence[[SUSTAINED, DRIFT], 0, 3], alone[[SUSTAINED, DRIFT], 0, 1])


def test_a_move_over_a_gap_is_no_roughness() -> None:
    limits = limits_of(noise(1, 2016, seed=1))
    y = np.array([[0.0, 1.0, np.nan, 100.0]])
    _, evidence = advance(Memory.none(1), y, band(y, limits), limits, step=FIVE)
    assert evidence[ROUGHNESS, 0, 3] == evidence[ROUGHNESS, 0, 1]


def test_after_a_quarter_of_an_hour_without_values_averages_begin_anew_at_what_is_usual() -> None:
    limits = limits_of(noise(1, 2016, seed=1))
    y = np.full((1, 100), 10.0)
    y[0, 40:43] = np.nan
    _, evidence = advance(Memory.none(1), y, band(y, limits), limits, step=FIVE)
    sustained = evidence[SUSTAINED, 0]
    assert sustained[39] > 0.8
    assert sustained[43] < limits.usual[SUSTAINED, 0, 0] + 0.06
    y[0, 42] = 10.0
    _, evidence = advance(Memory.none(1), y, band(y, limits), limits, step=FIVE)
    assert evidence[SUSTAINED, 0, 42] > 0.8


@pytest.mark.parametrize("step", [MINUTE, FIVE, HOUR])
def test_normal_data_keeps_the_budget_from_the_first_point_on(step: timedelta) -> None:
    per_hour = max(1, HOUR // step)
    week = 168 * per_hour
    y = noise(120 if per_hour < 60 else 40, 3 * week, seed=5)
    limits = limits_of(y[:, : 2 * week], step=step, budget=2.0)
    found = ratios(y[:, 2 * week :], limits, step=step)
    score, _ = strongest(found)
    assert episodes(score[:, :per_hour] > 1, per_hour) <= 0.1 * len(y)
    assert 0.5 < episodes(score > 1, per_hour) / (2.0 * len(y)) < 1.5
    for channel in (POINT, SUSTAINED, ROUGHNESS, DRIFT):
        assert episodes(found[channel] > 1, per_hour) > 0


def test_a_larger_budget_lowers_every_limit() -> None:
    y = noise(4, 4032, seed=7)
    few, many = limits_of(y, budget=0.25), limits_of(y, budget=2.0)
    assert (many.width < few.width).all()
    # Sustained and drift are measured by the width of the band.
    by_width = np.sqrt(few.width / many.width)[:, None]
    for channel, factor in ((SUSTAINED, by_width), (ROUGHNESS, 1.0), (DRIFT, by_width)):
        assert (many.limit[channel] < few.limit[channel] * factor).all()


@pytest.mark.parametrize(
    ("channel", "within", "fault"),
    [
        (POINT, 1, lambda y: np.where(np.arange(y.shape[1]) == 0, 8.0, y)),
        (DRIFT, 60, lambda y: y + 1.0),
        (ROUGHNESS, 24, lambda y: 2.5 * y),
        (FLAT, 14, lambda y: np.full_like(y, 0.1)),
    ],
)
def test_a_fault_is_found_by_the_channel_made_for_it(channel: int, within: int, fault: object) -> None:
    y = noise(40, 4320, seed=8)
    limits = limits_of(y[:, :4032])
    after = fault(y[:, 4176:])  # type: ignore[operator]
    found = ratios(np.concatenate([y[:, 4032:4176], after], axis=1), limits)[:, :, 144:]
    hit = (found[channel, :, :within] > 1).any(axis=1)
    assert hit.mean() >= 0.9
    score, which = strongest(found)
    assert (score[:, :within].max(axis=1) > 1)[hit].all()
    if channel in (POINT, FLAT):
        assert (which[hit, within - 1 if channel == FLAT else 0] == channel).all()


def test_a_spike_is_over_when_it_is_over() -> None:
    y = noise(50, 4320, seed=9)
    limits = limits_of(y[:, :4032])
    new = y[:, 4032:].copy()
    quiet = ratios(new, limits)
    new[:, 100] = 1e6
    found = ratios(new, limits)
    assert (found[POINT, :, 100] > 1).all()
    # The move back is one point later; after that nothing is left to see.
    assert ((found.max(axis=0) > 1) <= (quiet.max(axis=0) > 1))[:, 102:].mean() > 0.999


def test_a_series_that_keeps_its_value_hangs_only_where_it_used_to_move() -> None:
    y = np.round(noise(3, 2016, seed=10))
    y[1], y[2, :] = 5.0, np.repeat(np.arange(21.0), 96)
    limits = limits_of(y)
    flat = limits.limit[FLAT, :, 0]
    assert 12 <= flat[0] < 60
    assert flat[1] == np.inf
    assert flat[2] == 3 * 95


def test_a_budget_that_a_short_history_cannot_tell_is_capped_and_said() -> None:
    y = noise(2, 6 * 288, seed=11)
    y[1, : 5 * 288] = np.nan
    limits = limits_of(y, budget=0.2)
    assert limits.capped.tolist() == [False, True]
    rarer = limits_of(y, budget=0.001)
    assert rarer.capped.tolist() == [True, True]
    assert rarer.width[1] == limits.width[1]


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_must_be_a_positive_number(budget: float) -> None:
    with pytest.raises(UsageError, match="alert budget"):
        limits_of(noise(1, 300, seed=1), budget=budget)


@pytest.mark.parametrize("budget", [1e-9, 1e9])
def test_an_absurd_budget_gives_limits_all_the_same(budget: float) -> None:
    limits = limits_of(noise(2, 2016, seed=1), budget=budget)
    assert (limits.width >= 1).all()
    assert np.isfinite(limits.width).all()
    assert (limits.limit > limits.usual).all()


@pytest.mark.parametrize(
    "history",
    [
        np.full((2, 600), 3.0),
        np.full((2, 600), np.nan),
        np.zeros((2, 0)),
        np.array([[1.0], [np.nan]]),
        1e300 * noise(2, 600, seed=12),
        -1e300 * np.ones((2, 600)) * np.array([[1.0], [-1.0]]),
        1e-300 * noise(2, 600, seed=13),
    ],
    ids=["constant", "nothing", "no points", "one point", "1e300", "constant 1e300", "1e-300"],
)
def test_odd_histories_give_limits_and_finite_scores(history: Floats) -> None:
    scale = np.nanmax(np.abs(history), initial=1.0) if np.isfinite(history).any() else 1.0
    past = np.full((2, 16, 24), np.nan)
    if history.shape[1] > 400:
        past = np.stack([history[:, cut : cut + 24] / scale for cut in range(0, 384, 24)], axis=1)
    limits = fit_limits(history, past, np.full(2, 30.0), step=FIVE)
    assert (np.isfinite(limits.width) & (limits.width >= 1)).all()
    assert (np.isfinite(limits.move) & (limits.move > 0)).all()
    assert np.isfinite(limits.usual).all()
    assert (limits.limit > limits.usual).all()
    y = np.array([[1.0, 2.0, -1e300, 1e300, np.nan, 0.0]] * 2)
    reach = np.full(y.shape, 1.5)
    memory, evidence = advance(Memory.none(2), y, (np.zeros(y.shape), -reach, reach), limits, step=FIVE)
    assert np.isfinite(memory.averages).all()
    score, channel = strongest(ratios_to_limits(evidence, limits))
    assert np.isfinite(score[:, [0, 1, 2, 3, 5]]).all()
    assert np.isnan(score[:, 4]).all()
    assert (channel[:, 4] == -1).all()
    assert (channel[:, 3] == POINT).all()


def test_without_past_forecasts_only_what_needs_none_is_judged() -> None:
    y = noise(2, 2016, seed=14)
    limits = fit_limits(y, np.full((2, 0, 24), np.nan), np.zeros(2), step=FIVE)
    assert np.isinf(limits.limit[[SUSTAINED, DRIFT]]).all()
    assert np.isfinite(limits.limit[[POINT, ROUGHNESS, FLAT]]).all()


def test_limits_may_change_from_point_to_point() -> None:
    y = noise(3, 288, seed=15)
    old, new = limits_of(noise(3, 2016, seed=16)), limits_of(noise(3, 2016, seed=17))
    stacked = replace(
        old,
        usual=np.concatenate([np.repeat(each.usual, 144, axis=2) for each in (old, new)], axis=2),
        limit=np.concatenate([np.repeat(each.limit, 144, axis=2) for each in (old, new)], axis=2),
        move=np.concatenate([np.repeat(each.move, 144, axis=1) for each in (old, new)], axis=1),
    )
    bands = band(y, old)
    _, whole = advance(Memory.none(3), y, bands, stacked, step=FIVE)
    memory, first = advance(Memory.none(3), y[:, :144], band(y[:, :144], old), old, step=FIVE)
    _, second = advance(memory, y[:, 144:], band(y[:, 144:], old), new, step=FIVE)
    np.testing.assert_array_equal(whole, np.concatenate([first, second], axis=2))


def test_one_incident_is_one_alert_until_two_days_of_quiet() -> None:
    day = 288
    score = np.full((1, 8 * day), 0.3)
    score[0, 100:200] = np.linspace(1.1, 50, 100)
    score[0, 200 + day] = 1.5
    score[0, 100 + 4 * day] = 1.2
    score[0, 100 + 5 * day] = np.nan
    score[0, 100 + 5 * day + 1] = 1.2
    _, incident = incidents(score, Memory.none(1), step=FIVE)
    begins = (incident[0] > 1) & (np.append(0.0, incident[0, :-1]) == 0)
    assert np.flatnonzero(begins).tolist() == [100, 100 + 4 * day, 100 + 5 * day + 1]


def test_the_final_band_is_the_80_percent_band_times_the_width() -> None:
    limits = replace(limits_of(noise(2, 2016, seed=18)), width=np.array([2.0, 3.0]))
    panel = panel_of(np.zeros((2, 3)), step=FIVE)
    yhat = np.full((2, 3), 10.0)
    wide = widened(Forecast(panel.labels, panel.grid, None, yhat, yhat - 1, yhat + 2), limits.width)
    assert wide.lower[:, 0].tolist() == [8.0, 7.0]
    assert wide.upper[:, 0].tolist() == [14.0, 16.0]


def test_a_ratio_is_0_at_usual_and_1_at_the_limit() -> None:
    limits = limits_of(noise(2, 2016, seed=19))
    assert ratios_to_limits(np.repeat(limits.usual, 2, axis=2), limits).tolist() == np.zeros((5, 2, 2)).tolist()
    finite = np.isfinite(limits.limit)
    np.testing.assert_allclose(ratios_to_limits(limits.limit, limits)[finite], 1.0)


def test_a_floor_widens_only_what_is_narrower() -> None:
    panel = panel_of(np.zeros((2, 1)), step=FIVE)
    yhat = np.full((2, 1), 10.0)
    made = floored(Forecast(panel.labels, panel.grid, None, yhat, yhat - 0.5, yhat + 2), np.array([1.0, 0.0]))
    assert made.lower[:, 0].tolist() == [9.0, 9.5]
    assert made.upper[:, 0].tolist() == [12.0, 12.0]


def test_gaps_in_the_history_do_not_lower_a_limit() -> None:
    y = noise(20, 4032, seed=20)
    holed = y.copy()
    for first in range(0, 4032, 288):
        holed[:, first : first + 144] = np.nan
    whole, rest = limits_of(y), limits_of(holed)
    for channel in (SUSTAINED, ROUGHNESS, DRIFT):
        assert np.median(rest.limit[channel] / whole.limit[channel]) == pytest.approx(1.0, abs=0.1)
    assert np.median(rest.width / whole.width) == pytest.approx(1.0, abs=0.1)


def test_a_rows_limits_do_not_depend_on_the_other_rows() -> None:
    y = noise(70, 4032, seed=21)
    together, alone = limits_of(y), limits_of(y[68:69])
    np.testing.assert_allclose(together.limit[:, 68:69], alone.limit, rtol=1e-12)
    np.testing.assert_allclose(together.width[68:69], alone.width, rtol=1e-12)
