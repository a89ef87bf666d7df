"""Passes that hold evidence over time: whoever runs them, whenever, the scores are the same."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomaly_times import bounds
from anomaly_times.evidence import DRIFT, FLAT, LEVEL_SHIFT, ROUGHNESS, SUSTAINED
from anomaly_times.mission import Mission, ModelSpec
from anomaly_times.models import build_model
from anomaly_times.panel import Evidence, Floats, Grid, Labels, Panel, Quantiles, Scores, round_significant
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.testing import MemoryStore

STEP, HOUR = timedelta(minutes=5), timedelta(hours=1)
BEGIN = datetime(2026, 3, 15, tzinfo=UTC)
WEEKS = 2


def mission(**fields: object) -> Mission:
    fields = {"step": "5m", "offset": "0s", "forecast": {"model": "profile"}, **fields}
    fields.setdefault("detect", {"every": "5m"})
    return Mission.model_validate({"name": "load", "promql": "load", **fields})


def panel(n: int, hours: int, *, seed: int = 0) -> Panel:
    """`n` series of noise around a daily rhythm, two weeks before `BEGIN` and so many hours after."""
    grid = Grid(BEGIN - timedelta(weeks=WEEKS) + STEP, STEP, WEEKS * 2016 + hours * 12)
    rhythm = 100 + 30 * np.sin(np.arange(grid.n) * 2 * np.pi / 288)
    y = rhythm + np.random.default_rng(seed).normal(0, 5, (n, grid.n))
    return Panel(tuple(Labels.of({"__name__": "load", "host": f"{i:02d}"}) for i in range(n)), grid, y)


def hourly_forecasts(made: Mission, store: MemoryStore, hours: int) -> None:
    for hour in range(hours):
        results = forecast_pass([made], {"": store}, now=BEGIN + hour * HOUR)
        assert results[0].error is None
        write_forecasts(results, {"": store})


def detect(made: Mission, store: MemoryStore, now: datetime) -> Scores | None:
    [result], _ = write_scores(detect_pass([made], {"": store}, now=now), {"": store})
    assert result.error is None
    return result.scores


def lived(made: Mission, store: MemoryStore, hours: int) -> Scores:
    """All scores of so many hours, each forecast at its begin and scored at its end."""
    found = []
    for hour in range(hours):
        write_forecasts(forecast_pass([made], {"": store}, now=BEGIN + hour * HOUR), {"": store})
        scores = detect(made, store, BEGIN + (hour + 1) * HOUR)
        assert scores is not None
        found.append(scores)
    return Scores.joined(found)


def stored(made: Mission, store: MemoryStore, hours: int) -> tuple[Floats, Evidence]:
    grid = Grid(BEGIN + STEP, STEP, hours * 12)
    return store.read_scores([made], grid)["load"].y, store.read_evidence([made], grid)["load"]


def lively(hours: int) -> Panel:
    """Four series with faults and gaps, in the first six hours."""
    found, now = panel(4, max(hours, 6)), WEEKS * 2016
    found.y[0, now + 20 : now + 40] += 40
    found.y[1, now + 30 : now + 32] = np.nan
    found.y[1, now + 50 : now + 58] = np.nan
    found.y[2, now + 40 : now + 70] = found.y[2, now + 40]
    found.y[3, now + 10 :] += 15
    return found


def test_however_passes_are_cut_and_whoever_runs_them_the_scores_are_the_same() -> None:
    made, hours = mission(detect={"every": "5m", "catch_up": "12h"}), 8
    values = lively(hours)
    alone, others = MemoryStore({"load": values}), MemoryStore({"load": values})
    for store in (alone, others):
        hourly_forecasts(made, store, hours)
    for point in range(1, hours * 12 + 1):
        detect(made, alone, BEGIN + point * STEP)
    random = np.random.default_rng(1)
    for point in [*np.sort(random.choice(hours * 12, 17, replace=False)), hours * 12]:
        detect(made, others, BEGIN + int(point) * STEP)
    (score, kept), (again, kept_again) = (stored(made, store, hours) for store in (alone, others))
    np.testing.assert_array_equal(again, score)
    np.testing.assert_array_equal(kept_again.values, kept.values)
    np.testing.assert_array_equal(kept_again.incident, kept.incident)
    assert (kept.incident > 1).any(axis=1).sum() >= 3


def test_one_that_was_killed_after_half_of_its_series_is_gone_on_from_where_it_came() -> None:
    made, hours = mission(detect={"every": "5m", "catch_up": "12h"}), 4
    values = lively(hours)
    alone, killed = MemoryStore({"load": values}), MemoryStore({"load": values})
    for store in (alone, killed):
        hourly_forecasts(made, store, hours)
    for point in range(1, hours * 12 + 1):
        detect(made, alone, BEGIN + point * STEP)
    detect(made, killed, BEGIN + HOUR)
    [result] = detect_pass([made], {"": killed}, now=BEGIN + 2 * HOUR)
    assert result.scores is not None
    keep = np.ones(result.scores.score.shape, dtype=np.bool_)
    keep[1:, 4:], keep[3:, 2:] = False, False
    killed.write_scores([(made, result.scores.only(keep))])
    detect(made, killed, BEGIN + 3 * HOUR)
    detect(made, killed, BEGIN + 4 * HOUR)
    np.testing.assert_array_equal(stored(made, killed, hours)[0], stored(made, alone, hours)[0])
    np.testing.assert_array_equal(stored(made, killed, hours)[1].values, stored(made, alone, hours)[1].values)


def test_a_store_without_evidence_begins_anew_without_a_burst() -> None:
    made, hours = mission(), 6
    store = MemoryStore({"load": panel(30, hours)})
    hourly_forecasts(made, store, hours)
    hot = 0
    for hour in range(1, hours + 1):
        # Nothing of the hour before is there, as after the evidence was deleted.
        [result] = detect_pass([made], {"": store}, now=BEGIN + hour * HOUR, window=HOUR, kept={})
        assert result.scores is not None
        hot += int((result.scores.score > 1).any(axis=1).sum())
    assert hot <= 3


@pytest.mark.parametrize("model", ["profile", "auto"])
def test_after_a_lasting_level_shift_the_score_says_so_and_is_under_one_again_within_a_day(model: str) -> None:
    made, hours = mission(forecast={"model": model}), 24
    values = panel(3, hours, seed=1)
    values.y[:, WEEKS * 2016 + 12 :] += 60
    store = MemoryStore({"load": values})
    whole = lived(made, store, hours)
    assert whole.reason is not None
    hot = whole.score > 1
    assert hot[:, 12:24].mean() > 0.9
    assert (whole.reason[:, 22:24] == LEVEL_SHIFT).all()
    assert not hot[:, -6 * 12 :].any()


def test_noise_keeps_about_its_budget_and_faults_over_time_are_found() -> None:
    made, hours = mission(detect={"every": "5m", "alerts_per_week": 1}), 24
    values, now = panel(40, hours, seed=3), WEEKS * 2016
    random = np.random.default_rng(4)
    values.y[0, now + 100 : now + 244] += 5
    values.y[1, now + 100 : now + 244] += random.normal(0, 15, 144)
    values.y[2, now + 100 : now + 244] = values.y[2, now + 100]
    store = MemoryStore({"load": values})
    found = []
    for hour in range(0, hours, 2):
        write_forecasts(forecast_pass([made], {"": store}, now=BEGIN + hour * HOUR), {"": store})
        for later in (1, 2):
            scores = detect(made, store, BEGIN + (hour + later) * HOUR)
            assert scores is not None
            found.append(scores)
    whole = Scores.joined(found)
    assert whole.reason is not None
    during = whole.score[:3, 100:244] > 1
    assert during.any(axis=1).all()
    assert set(whole.reason[0, 100:244][during[0]]) <= {SUSTAINED, DRIFT, LEVEL_SHIFT, 0}
    assert ROUGHNESS in whole.reason[1, 100:244][during[1]]
    assert FLAT in whole.reason[2, 100:244][during[2]]
    # 37 calm series for a day at one a week: 5 to be expected.
    assert (whole.score[3:] > 1).any(axis=1).sum() <= 12


def test_points_alone_are_judged_where_the_mission_says_so() -> None:
    hours = 2
    values = lively(hours)
    for fields in ({"detect": {"every": "5m", "evidence": "point"}}, {"forecast": {"model": "profile", "level": 99}}):
        made = mission(**fields)
        store = MemoryStore({"load": values})
        hourly_forecasts(made, store, hours)
        scores = detect(made, store, BEGIN + HOUR)
        assert scores is not None
        assert scores.reason is not None
        assert scores.evidence is not None
        assert set(scores.reason[np.isfinite(scores.score)]) == {0.0}
        assert np.isnan(scores.evidence).all()


def test_a_budget_of_the_mission_is_shared_by_its_series() -> None:
    values = panel(20, 1)
    bands = []
    for budget in ({"alerts_per_week": 10, "per": "mission"}, {"alerts_per_week": 0.5}, {"alerts_per_week": 10}):
        made = mission(detect={"every": "5m", **budget})
        [result] = forecast_pass([made], {"": MemoryStore({"load": values})}, now=BEGIN)
        assert result.forecast is not None
        bands.append(result.forecast)
    np.testing.assert_array_equal(bands[0].upper, bands[1].upper)
    assert (bands[0].upper > bands[2].upper).all()


def test_a_budget_that_the_history_cannot_tell_is_counted() -> None:
    made = mission(detect={"every": "5m", "alerts_per_week": 0.001})
    [result] = forecast_pass([made], {"": MemoryStore({"load": panel(3, 1)})}, now=BEGIN)
    assert result.capped == 3
    [usual] = forecast_pass([mission()], {"": MemoryStore({"load": panel(3, 1)})}, now=BEGIN)
    assert usual.capped == 0


def test_what_is_kept_reproduces_the_score() -> None:
    made, hours = mission(), 3
    store = MemoryStore({"load": lively(hours)})
    hourly_forecasts(made, store, hours)
    scores = detect(made, store, BEGIN + HOUR)
    assert scores is not None
    assert scores.evidence is not None
    assert scores.reason is not None
    forecast = store.read_forecasts([made], scores.grid)["load"]
    assert forecast.limits is not None
    limits = forecast.limits
    ratio = (np.abs(scores.evidence) - limits.usual[1:]) / (limits.limit[1:] - limits.usual[1:])
    of_time = (scores.reason >= 1) & (scores.reason <= 4) & (scores.score > 0)
    assert of_time.any()
    which = scores.reason[of_time].astype(int) - 1
    picked = np.moveaxis(ratio, 0, -1)[of_time][np.arange(len(which)), which]
    np.testing.assert_array_equal(scores.score[of_time], round_significant(picked))


def test_a_gap_of_hours_raises_nothing_by_itself() -> None:
    made, hours = mission(detect={"every": "5m", "catch_up": "1h"}), 12
    values = panel(20, hours)
    values.y[:, WEEKS * 2016 + 24 : WEEKS * 2016 + 100] = np.nan
    store = MemoryStore({"load": values})
    hot = 0
    for hour in range(hours):
        results = forecast_pass([made], {"": store}, now=BEGIN + hour * HOUR)
        write_forecasts(results, {"": store})
        [result], _ = write_scores(detect_pass([made], {"": store}, now=BEGIN + (hour + 1) * HOUR), {"": store})
        if result.scores is not None:
            hot += int((result.scores.score > 1).any(axis=1).sum())
    assert hot <= 2


def test_a_line_that_stays_flat_is_found_and_stays_found_while_forecasts_go_on() -> None:
    made, hours = mission(), 8
    for frozen in (0, 5, 11):
        values, now = panel(2, hours), WEEKS * 2016
        values.y[:, now + frozen :] = 100.0
        store = MemoryStore({"load": values})
        whole = lived(made, store, hours)
        assert whole.reason is not None
        assert (whole.score[:, frozen + 14 :] > 1).all()
        assert (whole.reason[:, -12:] == FLAT).all()


def test_bounds_that_are_scaled_take_the_other_limits_with_them() -> None:
    values = panel(30, 12, seed=5)
    hot = {}
    for scale in (1.0, 0.5):
        made = mission(forecast={"model": "profile", "interval_scale": scale})
        store = MemoryStore({"load": values})
        over_time = 0
        for hour in range(0, 12, 2):
            write_forecasts(forecast_pass([made], {"": store}, now=BEGIN + hour * HOUR), {"": store})
            scores = detect(made, store, BEGIN + (hour + 1) * HOUR)
            assert scores is not None
            assert scores.reason is not None
            over_time += int(((scores.score > 1) & (scores.reason != 0)).any(axis=1).sum())
        hot[scale] = over_time
    assert hot[0.5] <= hot[1.0] + 3


def test_evidence_against_forecasts_that_do_not_count_any_more_is_none() -> None:
    made, hours = mission(), 4
    values = panel(2, hours)
    values.y[:, WEEKS * 2016 :] += 100
    store = MemoryStore({"load": values})
    hourly_forecasts(made, store, 1)
    assert detect(made, store, BEGIN + HOUR) is not None
    [before] = detect_pass([made], {"": store}, now=BEGIN + HOUR + STEP)
    assert before.scores is not None
    assert before.scores.evidence is not None
    assert (before.scores.evidence[DRIFT - 1, :, 0] > 0.4).all()
    rebased = mission(forecast={"model": "profile", "rebase": (BEGIN + STEP).isoformat()})
    results = forecast_pass([rebased], {"": store}, now=BEGIN + HOUR)
    [after] = detect_pass(
        [rebased],
        {"": store},
        now=BEGIN + HOUR + STEP,
        forecasts={"load": results[0].forecast},  # type: ignore[dict-item]
        since={"load": BEGIN + HOUR},
    )
    assert after.scores is not None
    assert after.scores.evidence is not None
    assert (np.abs(after.scores.evidence[DRIFT - 1, :, 0]) < 0.1).all()
    assert (after.scores.score[:, 0] < 1).all()


def test_a_slow_model_has_limits_over_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        slow = True

        def __init__(self) -> None:
            self.model = build_model(ModelSpec(type="seasonal_naive"))

        def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
            return self.model.forecast(history, h=h, quantiles=quantiles)

    monkeypatch.setattr(bounds, "known_model", lambda *_, **__: Slow())
    [result] = forecast_pass([mission()], {"": MemoryStore({"load": panel(2, 1)})}, now=BEGIN)
    assert result.forecast is not None
    assert result.forecast.limits is not None
    assert np.isfinite(result.forecast.limits.limit).all()
    assert result.warnings == ()


def test_series_too_young_for_evidence_over_time_are_counted() -> None:
    values = panel(3, 1)
    values.y[0, : -24 * 12] = np.nan
    [result] = forecast_pass([mission()], {"": MemoryStore({"load": values})}, now=BEGIN)
    assert any("1 of 3 series have too short a past" in text for text in result.warnings)


def test_a_vanished_series_that_counts_as_zero_goes_on_from_its_last_value_however_passes_are_cut() -> None:
    made, hours = mission(detect={"every": "5m", "catch_up": "12h", "missing": "zero"}), 4
    values = panel(2, hours)
    values.y[0, WEEKS * 2016 + 24 :] = np.nan
    alone, hourly = MemoryStore({"load": values}), MemoryStore({"load": values})
    for store in (alone, hourly):
        hourly_forecasts(made, store, hours)
    for point in range(1, hours * 12 + 1):
        detect(made, alone, BEGIN + point * STEP)
    for hour in range(1, hours + 1):
        [result] = detect_pass([made], {"": hourly}, now=BEGIN + hour * HOUR, window=HOUR)
        write_scores([result], {"": hourly})
    one, other = (stored(made, store, hours) for store in (alone, hourly))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1].values, other[1].values)
