from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.checks import check_missions
from anomaly_times.errors import UsageError
from anomaly_times.loading import LoadedMission, Loading
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Grid, Labels, Panel
from anomaly_times.suggest import suggest_mission, write_new
from anomaly_times.testing import MemoryStore
from anomaly_times.yamlfile import read_documents

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
DAY = 288


def suggested(
    y: Floats, promql: str = "m", *, step: timedelta = STEP, name: str = "m", source: str = ""
) -> tuple[Mission, str]:
    """What is suggested for one series that ends now, after a check that it passes validation."""
    panel = Panel.of([Labels.of({"job": "a"})], Grid.ending(NOW, step, len(y)), y[None])
    store = MemoryStore({promql: panel})
    text = suggest_mission(name, promql, store, source=source, now=NOW)
    mission = Mission.model_validate(read_documents(text.encode())[0].data)
    loading = Loading((LoadedMission(mission, "m.yaml", 1),), (), ("m.yaml",))
    problems = check_missions(loading, now=NOW, stores={source: store}).problems
    assert {problem.severity for problem in problems} <= {"info"}
    return mission, text


def daily(days: int, *, noise: float = 0.02) -> Floats:
    rng = np.random.default_rng(1)
    wave = 10 + 4 * np.sin(np.arange(days * DAY) / DAY * 2 * np.pi)
    return np.asarray(wave * (1 + noise * rng.normal(0, 1, len(wave))))


def test_a_daily_rhythm_asks_for_two_weeks() -> None:
    mission, text = suggested(daily(21))
    assert (mission.step, mission.forecast.lookback) == (STEP, timedelta(days=14))
    assert mission.season is None
    assert "# a rhythm of a day in 1 of 1 series" in text


def test_a_weekly_rhythm_asks_for_four() -> None:
    weekend = np.where(np.arange(28 * DAY) // DAY % 7 < 5, 1.0, 0.3)
    mission, text = suggested(daily(28) * weekend)
    assert mission.forecast.lookback == timedelta(days=28)
    assert "of a week in 1 of 1" in text


def test_a_rhythm_under_noise_is_given_to_the_model() -> None:
    rng = np.random.default_rng(2)
    wave = 10 + 4 * np.sin(np.arange(14 * DAY) / DAY * 2 * np.pi)
    mission, text = suggested(np.abs(wave + rng.normal(0, 6, len(wave))))
    assert mission.season == (timedelta(days=1),)
    assert "means of half an hour" in text


def test_noise_alone_has_no_rhythm() -> None:
    rng = np.random.default_rng(3)
    mission, text = suggested(10 + rng.normal(0, 1, 21 * DAY))
    assert mission.season is None
    assert mission.forecast.lookback == timedelta(days=7)
    assert "no rhythm of hours, days or weeks was found" in text


def test_a_young_metric_is_said_to_be_young() -> None:
    mission, text = suggested(daily(3))
    assert mission.forecast.lookback == timedelta(days=14)
    assert "there are 3.0 days yet" in text


@pytest.mark.parametrize(
    ("promql", "direction"),
    [
        ("sum(rate(http_errors_total[5m]))", "above"),
        ("histogram_quantile(0.99, x)", "above"),
        ('rate(requests{code=~"5.."}[5m])', "above"),
        ("node_filesystem_avail_bytes", "below"),
        ("up", "below"),
        ("1 - node_filesystem_avail_bytes / node_filesystem_size_bytes", "both"),
        ("sum(rate(http_requests_total[5m]))", "both"),
        ("group_size", "both"),
    ],
)
def test_the_direction_is_read_from_names(promql: str, direction: str) -> None:
    mission, _ = suggested(daily(5), promql)
    assert mission.detect.direction == direction


def test_the_smallest_deviation_is_above_the_noise() -> None:
    quiet, _ = suggested(daily(14, noise=0.001))
    loud, _ = suggested(daily(14, noise=0.1))
    assert quiet.detect.min_relative_deviation == (0.1, 0.1)
    assert loud.detect.min_relative_deviation[1] > 0.2
    # Mostly zero: shares of nothing say nothing.
    bursts = np.where(np.arange(14 * DAY) % 51 == 0, 40.0, 0.0)
    rare, _ = suggested(bursts)
    assert rare.detect.min_relative_deviation == (0.0, 0.0)
    assert rare.detect.min_deviation == (4.0, 4.0)


def test_a_valid_range_is_set_only_where_it_is_certain() -> None:
    share, _ = suggested(daily(5) / 20, "a / b")
    rate, _ = suggested(daily(5), "rate(x[5m])")
    unknown, _ = suggested(daily(5), "temperature")
    inf = float("inf")
    assert share.detect.valid_range == (-inf, inf)
    assert rate.detect.valid_range == (0.0, inf)
    assert unknown.detect.valid_range == (-inf, inf)
    ratio, _ = suggested(daily(5) / 20, "cache_hit_ratio")
    assert ratio.detect.valid_range == (0.0, 1.0)


def test_a_flat_series_gets_a_file_too() -> None:
    mission, _ = suggested(np.zeros(5 * DAY))
    assert mission.detect.min_deviation == (0.0, 0.0)


def test_a_slow_metric_gets_a_long_step_and_no_holes() -> None:
    mission, _ = suggested(daily(28)[::12], step=timedelta(hours=1))
    assert mission.step == timedelta(hours=1)
    assert mission.forecast.every == timedelta(hours=6)


@pytest.mark.parametrize("name", ["1e5", "089", "0", "1-2", "null"])
def test_a_name_stays_text_whatever_it_looks_like(name: str) -> None:
    mission, _ = suggested(daily(3), 'm{a="\U0001f600\x7f\u2028"}', name=name, source=name)
    assert (mission.name, mission.source, mission.promql) == (name, name, 'm{a="\U0001f600\x7f\u2028"}')


def test_a_mission_is_never_written_into_the_defaults_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="defaults"):
        write_new(tmp_path / "defaults.yaml", "name: defaults\n")
    assert list(tmp_path.iterdir()) == []
