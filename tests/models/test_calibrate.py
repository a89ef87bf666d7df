from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest

from anomaly_times.mission import ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.calibrate import SPREAD, calibrated, forecast_with_bounds, past_cuts, without_incident
from anomaly_times.models.tails import ParetoTails, student_to_normal, tail_quantiles
from anomaly_times.panel import Floats, Panel, Quantiles
from anomaly_times.testing import panel_of

FIVE = timedelta(minutes=5)
PROFILE = build_model(ModelSpec(type="profile"))


class Constant:
    """Always forecasts 0 with a spread of its own, and remembers what it was shown."""

    def __init__(self, spread: float = 1.0) -> None:
        self.spread = spread
        self.seen: list[int] = []

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        self.seen.append(history.grid.n)
        row = self.spread * (np.array(quantiles) - 0.5)
        values = np.broadcast_to(row, (history.n_series, h, len(quantiles))).copy()
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values)


def rhythm(n: int, rows: int = 60, seed: int = 1) -> Floats:
    random = np.random.default_rng(seed)
    return 5 + 2 * np.sin(2 * np.pi * np.arange(n) / 288) + random.standard_normal((rows, n))


@pytest.mark.parametrize("name", ["seasonal_naive", "profile"])
def test_a_99_percent_band_covers_about_99_percent(name: str) -> None:
    y = rhythm(2016 + 96)
    bounds = forecast_with_bounds(
        build_model(ModelSpec(type=name)), panel_of(y[:, :2016], step=FIVE), h=96, level=99, origins=6
    )
    inside = (y[:, 2016:] >= bounds.lower) & (y[:, 2016:] <= bounds.upper)
    assert 0.98 <= inside.mean() <= 0.997


def test_the_forecast_is_the_models_median_at_the_times_that_follow() -> None:
    history = panel_of(rhythm(2016, rows=3), step=FIVE)
    bounds = forecast_with_bounds(PROFILE, history, h=24, level=99.9)
    plain = PROFILE.forecast(history, h=24, quantiles=(0.1, 0.5, 0.9))
    np.testing.assert_allclose(bounds.yhat, plain.at(0.5))
    assert bounds.grid == history.grid.following(24)
    assert bounds.cutoff == history.grid.end
    assert not bounds.notes
    assert ((bounds.lower < bounds.yhat) & (bounds.yhat < bounds.upper)).all()


@pytest.mark.parametrize("size", [15.0, 1000.0])
def test_an_incident_does_not_blow_up_the_band(size: float) -> None:
    y = rhythm(4032, rows=10)
    struck = y.copy()
    struck[:, 3100:3136] += size
    calm, hit = (forecast_with_bounds(PROFILE, panel_of(v, step=FIVE), h=24, level=99.9) for v in (y, struck))
    ratio = (hit.upper - hit.lower).mean(axis=1) / (calm.upper - calm.lower).mean(axis=1)
    assert np.median(ratio) < 1.3
    assert ratio.max() < 2.5
    assert np.abs(hit.yhat - calm.yhat).max() < 1.5


def test_a_model_does_not_see_an_incident_that_is_over() -> None:
    y = rhythm(4032, rows=4)
    y[0, 3000:3036] += 100
    y[1, -36:] += 100
    y[2, 3000:3036] += 100
    y[2, 1500:1536] += 60
    y[3, 3000:3036] = np.nan
    seen = without_incident(panel_of(y, step=FIVE)).y
    assert np.isnan(seen[0, 3000:3036]).all()
    assert np.isnan(seen[0]).sum() == 36
    # One goes on, one has been there before, one was never seen.
    np.testing.assert_array_equal(seen[1:], y[1:])
    assert np.isfinite(y[0]).all()
    short = panel_of(y[:, -1000:], step=FIVE)
    assert without_incident(short) is short


def test_what_happens_again_and_again_is_inside_the_band() -> None:
    y = rhythm(4032 + 24, rows=10)
    # An hour of work every thirty: no season, and no incident.
    for at in range(0, y.shape[1], 360):
        y[:, at : at + 12] += 15
    y[:, 4032:4044] += 15
    bounds = forecast_with_bounds(PROFILE, panel_of(y[:, :4032], step=FIVE), h=24, level=99.9)
    inside = (y[:, 4032:] >= bounds.lower) & (y[:, 4032:] <= bounds.upper)
    assert inside.mean() > 0.9


def test_after_a_level_shift_the_band_settles_within_a_day() -> None:
    y = rhythm(4032, rows=10)
    shifted = y.copy()
    shifted[:, -288:] += 20
    calm, moved = (forecast_with_bounds(PROFILE, panel_of(v, step=FIVE), h=24, level=99.9) for v in (y, shifted))
    assert np.abs(moved.yhat - calm.yhat - 20).max() < 3
    assert (calm.yhat + 20 > moved.lower).all()
    assert (calm.yhat < moved.lower).all()


def test_each_side_has_its_own_width() -> None:
    y = np.random.default_rng(0).exponential(size=(20, 2016))
    bounds = forecast_with_bounds(PROFILE, panel_of(y, step=FIVE), h=24, level=99)
    assert ((bounds.upper - bounds.yhat).mean() > 3 * (bounds.yhat - bounds.lower).mean()).all()


@pytest.mark.parametrize("spread", [0.0, 0.001, 1000.0])
def test_what_a_model_claims_of_its_spread_does_not_matter(spread: float) -> None:
    y = np.random.default_rng(0).standard_normal((5, 2000))
    bounds = forecast_with_bounds(Constant(spread), panel_of(y, step=FIVE), h=50, level=98)
    np.testing.assert_allclose(bounds.upper.mean(), 2.33, rtol=0.25)


def test_on_plain_noise_around_a_rhythm_the_default_sees_a_spike_of_ten_deviations() -> None:
    usual = 20 + 5 * np.sin(2 * np.pi * np.arange(4056) / 288)
    y = usual[:4032] + np.random.default_rng(8).standard_normal((40, 4032))
    bounds = forecast_with_bounds(build_model(ModelSpec(type="auto")), panel_of(y, step=FIVE), h=24, level=99.9)
    assert np.mean(usual[4032:] + 10 > bounds.upper) > 0.85
    assert np.mean(usual[4032:] - 10 < bounds.lower) > 0.85


@pytest.mark.parametrize("name", ["auto", "profile", "seasonmix"])
@pytest.mark.parametrize("h", [1, 2, 4])
def test_however_short_the_horizon_a_long_history_is_enough_for_bounds(name: str, h: int) -> None:
    y = rhythm(2016, rows=4)
    bounds = forecast_with_bounds(build_model(ModelSpec(type=name)), panel_of(y, step=FIVE), h=h, level=99.9)
    assert not bounds.warming
    assert bounds.yhat.shape == (4, h)
    assert (bounds.upper - bounds.lower < 25).all()


def test_a_moment_at_the_old_level_does_not_end_a_change() -> None:
    y = 100 + np.random.default_rng(2).standard_normal((3, 4032))
    y[:, -288:] += 100
    y[1, -1] = 102
    y[2, -12:] = 102
    gone = np.isnan(without_incident(panel_of(y, step=FIVE)).y).sum(axis=1)
    assert gone.tolist() == [0, 0, 276]


def test_no_past_forecast_meets_a_value_of_its_future() -> None:
    y = np.random.default_rng(6).standard_normal((2, 1000))
    met: list[Floats] = []

    class Recording(Constant):
        def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
            met.append(history.y)
            return super().forecast(history, h=h, quantiles=quantiles)

    forecast_with_bounds(Recording(), panel_of(y), h=100, level=99)
    assert len(met) == 17
    for seen in met:
        np.testing.assert_array_equal(seen, y[:, : seen.shape[1]])


def test_past_forecasts_see_only_what_lies_before_them() -> None:
    model = Constant()
    forecast_with_bounds(model, panel_of(np.ones((1, 1000))), h=100, level=99)
    cuts = past_cuts(1000, 100, 24, 16)
    assert model.seen == [1000, *cuts]
    assert len(cuts) == 16
    assert cuts[0] >= 400
    assert cuts[-1] == 900
    slow = Constant()
    slow.slow = True  # type: ignore[attr-defined]
    forecast_with_bounds(slow, panel_of(np.ones((1, 1000))), h=100, level=99)
    assert slow.seen == [1000, *past_cuts(1000, 100, 24, 3)]
    assert len(slow.seen) == 4


@pytest.mark.parametrize(("n_points", "h"), [(4032, 24), (2016, 36), (2016, 288), (4032, 12)])
def test_past_forecasts_begin_at_all_hours_of_the_day(n_points: int, h: int) -> None:
    hours = np.sort(np.array(past_cuts(n_points, h, 288, 16)) % 288)
    assert np.diff([*hours, hours[0] + 288]).max() <= 288 / 16 * 3


def test_few_points_have_few_cut_offs() -> None:
    assert past_cuts(1, 10, 24, 16) == ()
    assert past_cuts(2, 10, 24, 16) == (1,)
    for n_points in range(2, 40):
        cuts = past_cuts(n_points, 10, 24, 16)
        assert list(cuts) == sorted(set(cuts))
        assert 1 <= cuts[0] <= cuts[-1] < n_points


class Sharing(Constant):
    """Makes all its forecasts at once."""

    def rolling(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> tuple[Quantiles, dict[int, Floats]]:
        self.seen.append(-history.grid.n)
        plain = Constant(self.spread)
        past = {
            cut: plain.forecast(history.columns(slice(cut)), h=h, quantiles=SPREAD).values
            for cut in past_cuts(history.grid.n, h, 288, 16)
        }
        return plain.forecast(history, h=h, quantiles=quantiles), past


def test_a_model_that_shares_work_between_cut_offs_gets_the_same_bounds() -> None:
    history = panel_of(rhythm(1000, rows=3), step=FIVE)
    sharing = Sharing()
    once, one_by_one = (forecast_with_bounds(model, history, h=10, level=99) for model in (sharing, Constant()))
    assert sharing.seen == [-1000]
    np.testing.assert_array_equal(once.upper, one_by_one.upper)


def test_bounds_at_all_levels_come_from_the_same_forecasts() -> None:
    model = Constant()
    levels = (50, 80, 90, 99, 99.9, 99.99)
    made = calibrated(model, panel_of(rhythm(1000, rows=3), step=FIVE), h=10, levels=levels)
    widths = [made.bounds(level).upper - made.bounds(level).yhat for level in levels]
    assert len(model.seen) == 17
    assert (np.diff(widths, axis=0) > 0).all()


class Growing(Constant):
    """Is always right about the first point, and claims the same spread for all."""

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        answer = super().forecast(history, h=h, quantiles=quantiles)
        answer.values[:] += history.y[:, -1:, None]
        return answer


def test_a_band_grows_with_the_lead_where_errors_do_though_the_model_claims_otherwise() -> None:
    y = np.random.default_rng(0).standard_normal((10, 2000)).cumsum(axis=1)
    bounds = forecast_with_bounds(Growing(), panel_of(y, step=FIVE), h=40, level=99)
    width = (bounds.upper - bounds.lower).mean(axis=0)
    assert width[-1] > 1.5 * width[0]


def test_errors_that_come_in_kin_are_worth_fewer() -> None:
    random = np.random.default_rng(0)
    alone = random.standard_normal((20, 2000))
    kin = np.repeat(random.standard_normal((20, 50)), 40, axis=1)
    free, bound = (
        calibrated(Constant(), panel_of(y, step=FIVE), h=40, levels=(99,)).past[0][1].freedom for y in (alone, kin)
    )
    # Sixteen cut-offs of forty points each, half of them on each side.
    assert free.mean() > 100
    assert bound.mean() < 30


def test_a_young_series_gets_a_wide_band_and_a_note() -> None:
    y = rhythm(2016, rows=2)
    y[1, :-6] = np.nan
    bounds = forecast_with_bounds(PROFILE, panel_of(y, step=FIVE), h=24, level=99)
    assert list(bounds.notes) == [1]
    assert bounds.warming == {1}
    assert "warming up" in bounds.notes[1]
    seen = y[1, -6:]
    assert (bounds.upper[1] >= seen.max()).all()
    assert (bounds.lower[1] <= seen.min()).all()


def test_one_point_gets_a_band_of_its_own_size() -> None:
    bounds = forecast_with_bounds(PROFILE, panel_of(np.array([[8.0]])), h=2, level=99)
    assert bounds.yhat.tolist() == [[8.0, 8.0]]
    assert bounds.lower.tolist() == [[0.0, 0.0]]
    assert bounds.upper.tolist() == [[16.0, 16.0]]


def test_a_series_without_a_point_has_no_bounds_and_no_note() -> None:
    bounds = forecast_with_bounds(PROFILE, panel_of(np.full((1, 100), np.nan)), h=2, level=99)
    assert np.isnan(bounds.lower).all()
    assert np.isnan(bounds.upper).all()
    assert "warming" not in bounds.notes.get(0, "")


def test_no_rows_give_no_rows() -> None:
    assert forecast_with_bounds(PROFILE, panel_of(np.empty((0, 100))), h=2, level=99).yhat.shape == (0, 2)


def test_tails_go_on_exponentially_and_ignore_gaps() -> None:
    sample = np.random.default_rng(0).exponential(size=(1, 200_000))
    sample[0, ::3] = np.nan
    levels = (0.5, 0.95, 0.99, 0.9995)
    np.testing.assert_allclose(tail_quantiles(sample, levels)[0], -np.log(1 - np.array(levels)), rtol=0.03)
    np.testing.assert_allclose(
        tail_quantiles(-sample, (0.0005, 0.01, 0.05))[0], np.log([0.0005, 0.01, 0.05]), rtol=0.03
    )


def test_a_twentieth_of_huge_errors_leaves_the_tail_alone() -> None:
    sample = np.random.default_rng(0).exponential(size=(1, 1000))
    struck = sample.copy()
    struck[0, :45] = 1e9
    assert tail_quantiles(struck, (0.999,))[0, 0] < 50 * tail_quantiles(sample, (0.999,))[0, 0]


def test_an_empty_sample_has_no_quantiles() -> None:
    assert np.isnan(tail_quantiles(np.full((2, 3), np.nan), (0.5, 0.99))).all()
    assert np.isnan(tail_quantiles(np.empty((2, 0)), (0.5, 0.99))).all()


def test_pareto_tails_know_heavy_ones_from_light_ones() -> None:
    random = np.random.default_rng(0)
    sample = np.stack([random.exponential(size=50_000), random.pareto(4, 50_000), random.uniform(0, 1, 50_000)])
    below, above = ParetoTails.of(np.concatenate([sample, -sample])).beyond(0.001)
    true = [-np.log(0.001), 0.001**-0.25 - 1, 0.999]
    np.testing.assert_allclose(above[:3], true, rtol=0.1)
    np.testing.assert_allclose(below[3:], true, rtol=0.1)
    assert (below[:3] < 0.05).all()


def test_pareto_tails_are_the_same_at_any_scale_and_pass_over_gaps() -> None:
    sample = np.random.default_rng(0).standard_t(4, (1, 900))
    gappy = np.concatenate([sample, np.full((1, 300), np.nan)], axis=1)[:, np.random.default_rng(1).permutation(1200)]
    plain = np.array(ParetoTails.of(sample).beyond(0.0005))
    np.testing.assert_allclose(np.array(ParetoTails.of(gappy).beyond(0.0005)), plain)
    np.testing.assert_allclose(np.array(ParetoTails.of(sample * 1e290).beyond(0.0005)), plain * 1e290)
    assert np.isnan(ParetoTails.of(np.full((1, 5), np.nan)).beyond(0.01)).all()


def test_students_quantiles_are_those_of_the_tables() -> None:
    # t by tables: 0.995 at 4, 10 and 30 degrees of freedom, over the normal quantile.
    np.testing.assert_allclose(
        student_to_normal(0.995, np.array([4.0, 10.0, 30.0])), np.array([4.604, 3.169, 2.750]) / 2.5758, rtol=0.01
    )


def test_past_errors_count_by_the_bounds_that_they_would_have_had() -> None:
    y = rhythm(2016, rows=40)
    made = calibrated(PROFILE, panel_of(y, step=FIVE), h=24, levels=(80.0,))
    ratios = made.past_ratios(made.bounds(80.0))
    assert ratios.shape == (40, 16, 24)
    assert (np.abs(ratios) > 1).mean() == pytest.approx(0.2, abs=0.03)
    assert (ratios > 1).mean() == pytest.approx(0.1, abs=0.02)
    assert (made.freedom > 30).all()


def test_past_ratios_have_gaps_where_values_or_cut_offs_are_missing() -> None:
    y = rhythm(2016, rows=2)
    y[0, :1200], y[1, 1990:] = np.nan, np.nan
    made = calibrated(PROFILE, panel_of(y, step=FIVE), h=24, levels=(80.0,))
    ratios = made.past_ratios(made.bounds(80.0))
    assert np.isfinite(ratios[0]).any()
    assert np.isnan(ratios[1, -1]).any()
    assert np.isfinite(ratios[1, 0]).all()
