from __future__ import annotations

import hashlib
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.durations import EPOCH
from anomaly_times.errors import ModelError
from anomaly_times.models import seasonmix as module
from anomaly_times.models.seasonmix import LEVELS, SeasonMix, Weights
from anomaly_times.panel import Floats, Quantiles
from anomaly_times.testing import model_contract, panel_of

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FILE = Path(module.__file__).with_name("seasonmix.npz")


def ask(y: Floats, h: int = 24, *, step: timedelta = HOUR, **kwargs: object) -> Quantiles:
    return SeasonMix(**kwargs).forecast(panel_of(y, step=step), h=h, quantiles=(0.0005, 0.05, 0.5, 0.95, 0.9995))  # type: ignore[arg-type]


def working_days(n_points: int, *, step: timedelta = HOUR, noise: float = 0.3, seed: int = 0) -> Floats:
    """A service that is busy from 8 to 18 on working days, from a Monday 00:00 on."""
    at = np.arange(n_points) * (step / HOUR)
    busy = (at % 24 >= 8) & (at % 24 < 18) & (at // 24 % 7 < 5)
    return 10 + 40.0 * busy[None] + noise * np.random.default_rng(seed).standard_normal((1, n_points))


def test_it_keeps_the_contract() -> None:
    model_contract(SeasonMix)


def test_a_day_and_a_week_are_found_and_continued() -> None:
    y = working_days(24 * 7 * 5)
    answer = ask(y[:, : -24 * 7], h=24 * 7)
    error = np.abs(answer.at(0.5) - y[:, -24 * 7 :])
    # The median hour tells the level of a calm hour; the mean that weekends and working days are told apart.
    assert np.median(error) < 0.5
    assert error.mean() < 2


def test_bounds_hold_what_they_promise_on_noise() -> None:
    y = np.random.default_rng(3).standard_normal((300, 600))
    answer = ask(y[:, :-24])
    inside = (y[:, -24:] > answer.at(0.05)) & (y[:, -24:] < answer.at(0.95))
    assert 0.85 < inside.mean() < 0.94
    far = (y[:, -24:] < answer.at(0.0005)) | (y[:, -24:] > answer.at(0.9995))
    assert far.mean() < 0.004


def test_a_row_does_not_depend_on_how_many_others_there_are() -> None:
    random = np.random.default_rng(1)
    y = random.standard_normal((67, 300)).cumsum(axis=1) + working_days(300)
    y[5, 100:140] = np.nan
    y[6, :200] = np.nan
    y[7, -3:] = np.nan
    together = ask(y, 31).values
    for i in (0, 5, 6, 7, 66):
        np.testing.assert_array_equal(ask(y[[i]], 31).values[0], together[i])


def test_a_gap_at_the_end_keeps_the_phase_and_widens_the_bounds() -> None:
    y = working_days(24 * 21)
    full = ask(y[:, : 24 * 20])
    late = y[:, : 24 * 20].copy()
    late[:, -6:] = np.nan
    answer = ask(late)
    np.testing.assert_allclose(answer.at(0.5), full.at(0.5), atol=2)
    # Its first point lies seven steps ahead of the last value, and is known as well as the seventh.
    six_before = ask(y[:, : 24 * 20 - 6], h=30)
    np.testing.assert_allclose(answer.values, six_before.values[:, 6:], atol=0.5)


def test_season_names_the_periods_and_none_means_none() -> None:
    random = np.random.default_rng(5)
    y = np.tile([0.0] * 6 + [30.0], 60)[None] + random.standard_normal((1, 420))
    seven = ask(y, 14, season=(7 * HOUR,)).at(0.5)[0]
    assert (seven.reshape(2, 7)[:, 6] > 20).all()
    assert (seven.reshape(2, 7)[:, :6] < 5).all()
    without = ask(working_days(24 * 14), 48, season=())
    assert np.ptp(without.at(0.5)[0, 12:]) < 15
    assert not without.notes


def test_of_many_periods_the_longest_that_fit_are_used() -> None:
    y = working_days(24 * 7 * 4)
    many = ask(y, season=(HOUR * 2, HOUR * 12, DAY, 7 * DAY, 365 * DAY))
    np.testing.assert_array_equal(many.values, ask(y, season=(HOUR * 12, DAY, 7 * DAY)).values)


def test_the_night_the_clocks_go_back_does_not_make_it_sure() -> None:
    random = np.random.default_rng(0)
    y = random.standard_normal((40, 2016)).cumsum(axis=1)
    history = panel_of(y, step=5 * MINUTE, start=datetime(2026, 10, 25, tzinfo=UTC) - 2015 * 5 * MINUTE)
    width = {}
    for timezone in ("UTC", "Europe/Berlin"):
        answer = SeasonMix(timezone=timezone).forecast(history, h=48, quantiles=(0.05, 0.5, 0.95))
        width[timezone] = (answer.at(0.95) - answer.at(0.05)).mean(axis=0)
    np.testing.assert_allclose(width["Europe/Berlin"], width["UTC"], rtol=0.25)


def test_a_young_series_says_so() -> None:
    y = working_days(24 * 14, step=HOUR)
    y = np.concatenate([y, y])
    y[1, :-30] = np.nan
    assert list(ask(y).notes) == [1]
    assert ask(y[:, -30:]).notes == {
        0: "shorter than two cycles of an hour, a day or a week",
        1: "shorter than two cycles of an hour, a day or a week",
    }


def test_a_change_of_clocks_does_not_shift_the_day() -> None:
    # Busy from 9 to 17 by the clock in Berlin, which goes forward in the night to 29 March 2026, back to 25 October.
    for begin, change in ((datetime(2026, 3, 15, tzinfo=UTC), 1), (datetime(2026, 10, 11, tzinfo=UTC), -1)):
        offset = 1 if change > 0 else 2
        hour = np.arange(24 * 17)
        local = (hour + offset + change * (hour >= 24 * 14 + 1)) % 24
        y = 10.0 + 90.0 * ((local >= 9) & (local < 17))[None]
        past, future = y[:, : 24 * 14 + 12], y[:, 24 * 14 + 12 : 24 * 15 + 12]
        before, after = y[:, : 24 * 14], y[:, 24 * 14 : 24 * 15]
        for history, coming in ((past, future), (before, after)):
            panel = panel_of(history, start=begin)
            berlin = SeasonMix(timezone="Europe/Berlin").forecast(panel, h=24, quantiles=(0.5,)).values[:, :, 0]
            utc = SeasonMix().forecast(panel, h=24, quantiles=(0.5,)).values[:, :, 0]
            assert np.abs(berlin - coming).max() < 15
            assert np.abs(utc - coming).max() > 60


@pytest.mark.parametrize("n_points", [1, 2, 3, 7, 63, 64, 65, 200])
@pytest.mark.parametrize("h", [1, 700])
def test_any_length_and_any_horizon_will_do(n_points: int, h: int) -> None:
    y = np.random.default_rng(n_points).standard_normal((3, n_points)).cumsum(axis=1)
    y[1] = np.where(np.arange(n_points) % 3 == 0, y[1], np.nan)
    values = ask(y, h, step=5 * MINUTE).values
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=2) >= 0).all()


def test_steps_of_any_size_are_survived() -> None:
    y = working_days(200)
    for step in (timedelta(seconds=1), timedelta(seconds=90), 7 * MINUTE, 12 * HOUR, DAY, 30 * DAY):
        history = panel_of(y, step=step, start=EPOCH + 1000 * step)
        answer = SeasonMix(timezone="America/New_York").forecast(history, h=10, quantiles=(0.1, 0.5, 0.9))
        assert np.isfinite(answer.values).all()


def test_a_few_huge_values_spoil_nothing() -> None:
    y = working_days(24 * 21)
    calm = ask(y).at(0.5)
    y[0, 100:104] = 1e300
    np.testing.assert_allclose(ask(y).at(0.5), calm, atol=6)


def test_a_level_that_moved_far_and_stays_is_followed() -> None:
    y = 5 + 0.001 * np.random.default_rng(0).standard_normal((1, 2000))
    y[:, -200:] += 100
    assert (ask(y, 3).at(0.5) > 90).all()


def test_scale_and_offset_do_not_matter() -> None:
    y = working_days(24 * 14) - 500
    plain = ask(y)
    moved = ask(1e6 * y)
    np.testing.assert_allclose(moved.values, 1e6 * plain.values, rtol=1e-3)


def test_quantiles_between_and_beyond_the_trained_levels_rise() -> None:
    y = working_days(24 * 14)
    levels = (1e-6, 0.0001, 0.0005, 0.0006, 0.25, 0.333, 0.5, 0.75, 0.9994, 0.9995, 0.9999, 0.999999)
    values = SeasonMix().forecast(panel_of(y), h=5, quantiles=levels).values
    assert (np.diff(values, axis=2) > 0).all()
    # One is asked for alone as among others.
    alone = SeasonMix().forecast(panel_of(y), h=5, quantiles=(0.333,)).values
    np.testing.assert_allclose(alone[:, :, 0], values[:, :, 5], rtol=1e-12)


def test_beyond_the_outermost_level_an_exponential_tail_goes_on() -> None:
    values = SeasonMix().forecast(panel_of(working_days(24 * 14)), h=1, quantiles=(LEVELS[-2], LEVELS[-1], 0.999875))
    inner, edge, beyond = values.values[0, 0]
    # 0.998 → 0.9995 and 0.9995 → 0.999875 are both steps to a quarter of what is left.
    assert beyond - edge == pytest.approx(edge - inner, rel=1e-6)


def broken(tmp_path: Path, change: bytes | None) -> Path:
    path = tmp_path / "seasonmix.npz"
    shutil.copy(FILE, path)
    if change is not None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + len(change)] = change
        path.write_bytes(content)
    return path


def test_weights_that_were_damaged_or_exchanged_are_refused(tmp_path: Path) -> None:
    assert Weights.load(broken(tmp_path, None)).revision == SeasonMix().revision
    with pytest.raises(ModelError, match=r"seasonmix\.npz cannot be read"):
        Weights.load(broken(tmp_path, b"\0" * 64))
    with np.load(FILE) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["out.b"] = arrays["out.b"] + np.float16(1)
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ModelError, match="do not have the checksum"):
        Weights.load(tmp_path / "other.npz")
    with pytest.raises(ModelError, match="cannot be read") as refused:
        Weights.load(tmp_path / "gone.npz")
    assert refused.value.hint == "install the package again"
    (tmp_path / "text.npz").write_text("weights")
    with pytest.raises(ModelError, match="cannot be read"):
        Weights.load(tmp_path / "text.npz")


def test_weights_of_other_features_are_refused(tmp_path: Path) -> None:
    good = Weights.load(FILE)
    fewer = good.out[0][:-1], good.out[1][:-1]
    other = Weights(good.encode, good.shared, good.at_lead, good.hidden, fewer, good.revision)
    other.save(tmp_path / "other.npz")
    with pytest.raises(ModelError, match="made for another version"):
        Weights.load(tmp_path / "other.npz")
    narrow = (good.encode[0][0][:, :-1], good.encode[0][1]), good.encode[1]
    Weights(narrow, good.shared, good.at_lead, good.hidden, good.out, good.revision).save(tmp_path / "narrow.npz")
    with pytest.raises(ModelError, match="made for another version"):
        Weights.load(tmp_path / "narrow.npz")


def test_whatever_bit_is_broken_the_weights_are_refused(tmp_path: Path) -> None:
    whole = FILE.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
        path = tmp_path / "bit.npz"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert Weights.load(path).revision == SeasonMix().revision
        except ModelError:
            continue


def test_the_weights_are_small_and_come_back_as_they_were_saved(tmp_path: Path) -> None:
    assert FILE.stat().st_size < 1_000_000
    Weights.load(FILE).save(tmp_path / "again.npz")
    again = Weights.load(tmp_path / "again.npz")
    np.testing.assert_array_equal(again.at_lead, Weights.load(FILE).at_lead)
    assert (
        hashlib.sha256(again.out[0].tobytes()).digest() == hashlib.sha256(Weights.load(FILE).out[0].tobytes()).digest()
    )
