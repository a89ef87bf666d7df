"""`at detect`: the stored forecast, or one made for the occasion; scores shown and stored."""

from __future__ import annotations

import io
import json
import re
from datetime import timedelta
from pathlib import Path

import polars as pl

from anomaly_times.cli.options import query_from_options
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, STEP, Run

COMMON = ("--promql", QUERY, "--step", "10m", "--model", "seasonal_naive", "--min-deviation", "20")
NOON = ("--at", "2026-03-01T12:00:30Z")
ELEVEN = ("--at", "2026-03-01T11:00:30Z")


def _mission() -> Mission:
    return query_from_options({"promql": QUERY, "source": "", "url": "", "at": "now", "step": "10m"}).mission


def _stored(store: MemoryStore) -> int:
    found = store.read_scores([_mission()], Grid.ending(AT, STEP, 300))
    return sum(int((panel.y >= 0).sum()) for panel in found.values())


def test_without_a_stored_forecast_one_is_made_from_what_was_known_before(at: Run, store: MemoryStore) -> None:
    result = at("detect", *COMMON, *NOON)
    assert result.exit_code == 0, result.stderr
    assert "made one for the occasion from what was known at 2026-03-01 11:00 UTC" in result.stderr
    assert "3 points of 17 anomalous (score over 1), in 1 of 3 series" in result.stdout
    lines = result.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if "{job=" in line)
    assert '{job="b"}' in lines[first]  # the highest score comes first
    assert _stored(store) == 17
    assert not store.read_forecasts([_mission()], Grid.ending(AT, STEP, 300))


def test_a_stored_forecast_is_used(at: Run, store: MemoryStore) -> None:
    assert at("forecast", *COMMON[:-2], *ELEVEN).exit_code == 0
    result = at("detect", *COMMON, *NOON)
    assert "made one" not in result.stderr
    assert "3 points of 17 anomalous" in result.stdout
    assert f"stored 17 samples in http://localhost:8428 as mission {_mission().name}" in result.stdout


def test_both_forecasts_score_alike(at: Run, store: MemoryStore) -> None:
    made = json.loads(at("detect", *COMMON, *NOON, "--dry-run", "-o", "json").stdout)
    at("forecast", *COMMON[:-2], *ELEVEN)
    stored = json.loads(at("detect", *COMMON, *NOON, "--dry-run", "-o", "json").stdout)
    assert (made["forecast"], stored["forecast"]) == ("made", "stored")
    assert made["series"][0] == stored["series"][0]


def test_a_dry_run_stores_nothing(at: Run, store: MemoryStore) -> None:
    result = at("detect", *COMMON, *NOON, "--dry-run")
    assert "dry run: no score stored" in result.stdout
    assert _stored(store) == 0


def test_what_is_scored_is_not_scored_again_unless_asked_for(at: Run, store: MemoryStore) -> None:
    at("detect", *COMMON, *NOON)
    again = at("detect", *COMMON, *NOON)
    assert again.exit_code == 0
    assert "nothing is new since 2026-03-01 12:00 UTC" in again.stdout
    assert "3 points of 17 anomalous" in at("detect", *COMMON, *NOON, "--last", "1h", "--dry-run").stdout


def test_json_has_gaps_as_null_and_the_highest_score_first(at: Run, store: MemoryStore) -> None:
    document = json.loads(at("detect", *COMMON, *NOON, "--output", "json").stdout)
    assert document["kind"] == "detect"
    assert document["anomalous"] == 3
    assert document["series"][0]["labels"]["job"] == "b"
    assert document["series"][0]["max_score"] > 1
    gap = next(series for series in document["series"] if series["labels"]["job"] not in "ab")
    assert gap["y"][-2] is None
    assert gap["score"][-2] is None
    assert len(document["times"]) == len(gap["score"]) == 6


def test_csv_holds_the_long_frame(at: Run, store: MemoryStore) -> None:
    frame = pl.read_csv(io.StringIO(at("detect", *COMMON, *NOON, "--output", "csv").stdout))
    assert frame.columns == ["unique_id", "ds", "y", "yhat", "yhat_lower", "yhat_upper", "score"]
    assert frame.height == 17


def test_gates_reach_the_scores_and_are_counted(at: Run, store: MemoryStore) -> None:
    result = at("detect", *COMMON, *NOON, "--min-deviation", "1000", "--valid-range", "0:")
    assert "0 points of 17 anomalous" in result.stdout
    assert "17 points are closer to the forecast than what counts" in result.stderr
    assert "1 expected point is missing" in result.stderr


def test_the_window_can_be_chosen(at: Run, store: MemoryStore) -> None:
    document = json.loads(at("detect", *COMMON, *NOON, "--last", "3h", "-o", "json").stdout)
    assert len(document["times"]) == 18
    result = at("detect", *COMMON, *NOON, "--last", "0s")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --last: '0s' is no time at all")


def test_a_plot_shows_the_highest_score_first(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    at("detect", *COMMON, *NOON, "--plot", page, "--top", 2)
    text = page.read_text()
    assert text.count('class="chart"') == 2
    assert re.findall(r"<h2>(.*?)</h2>", text)[0] == "{job=&quot;b&quot;}"


def test_a_time_without_data_is_told(at: Run, store: MemoryStore) -> None:
    late = AT + timedelta(days=30)
    result = at("detect", *COMMON, "--at", late.isoformat())
    assert result.exit_code == 3
    assert result.stdout == ""
