from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times.durations import format_duration, iso_utc, parse_duration
from anomaly_times.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("14d", 1_209_600),
        ("1w", 604_800),
        ("1y", 31_536_000),
        ("250ms", 0.25),
    ],
)
def test_durations_read_as_promql_reads_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "0s", "0h0m", "-5m", "1y2x", "5", "1.5h", "5M", "5 m", "m", "30m1h", "5m5m", "9" * 70 + "s", "200y", "٥m"],
)
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert caught.value.hint
    assert len(caught.value.message) < 150


@given(st.integers(1, 10**12))
def test_a_duration_survives_being_written(ms: int) -> None:
    value = timedelta(milliseconds=ms)
    assert parse_duration(format_duration(value)) == value


def test_durations_are_written_in_falling_units() -> None:
    assert format_duration(timedelta(days=14)) == "14d"
    assert format_duration(timedelta(hours=36, milliseconds=5)) == "1d12h5ms"
    assert format_duration(timedelta(0)) == "0s"
    assert format_duration(timedelta(minutes=-5)) == "-5m"


def test_a_time_is_written_in_utc_whatever_its_zone() -> None:
    assert iso_utc(datetime(2026, 3, 1, 12, tzinfo=UTC)) == "2026-03-01T12:00:00Z"
    assert iso_utc(datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))) == "2026-03-01T10:00:00Z"
