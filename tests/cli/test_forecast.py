"""`at forecast`: shown, stored, drawn; in every form."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from anomaly_times.cli.options import query_from_options
from anomaly_times.errors import StoreError
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, STEP, Run, requests

COMMON = ("--promql", QUERY, "--step", "10m", "--at", "2026-03-01T12:00:30Z", "--model", "seasonal_naive")


def _mission() -> Mission:
    return query_from_options({"promql": QUERY, "source": "", "url": "", "at": "now", "step": "10m"}).mission


def _stored(store: MemoryStore) -> int:
    mission = _mission()
    found = store.read_forecasts([mission], Grid.ending(AT + timedelta(days=1), STEP, 300))
    return sum(forecast.yhat.size for forecast in found.values())


def test_a_forecast_is_stored_and_the_table_says_so(at: Run, store: MemoryStore) -> None:
    result = at("forecast", *COMMON)
    assert result.exit_code == 0, result.stderr
    assert 'all with {__name__="requests",env="prod"}' in result.stdout
    assert '{job="a"}' in result.stdout
    assert "3 series, 12 steps of 10m each, half an alert a series and week, model seasonal_naive" in result.stdout
    assert f"stored 108 samples in http://localhost:8428 as mission {_mission().name}" in result.stdout
    assert _stored(store) > 0
    told = {gauge.metric: gauge for _, gauge in store.gauges}
    assert told["at_points_written"].value == 108
    assert told["at_points_written"].labels.get("pack") == "by-hand"
    assert told["at_mission_info"].labels.get("mission") == _mission().name
    assert "108 samples" not in at("forecast", *COMMON).stdout  # the same cutoff is never written again
    assert store.closed


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--alerts-per-week", "0.25"), "0.25 alerts a series and week"),
        (("--alerts-per-week", "1"), "1 alert a series and week"),
        (("--level", "99.9"), "99.9 % bounds"),
    ],
)
def test_a_summary_says_how_sensitive_the_bounds_are(
    at: Run, store: MemoryStore, option: tuple[str, str], told: str
) -> None:
    assert f"10m each, {told}, model" in at("forecast", *COMMON, *option, "--dry-run").stdout


def test_a_budget_that_a_history_cannot_tell_is_reported(at: Run, store: MemoryStore) -> None:
    result = at("forecast", *COMMON, "--alerts-per-week", "0.001", "--dry-run")
    assert result.exit_code == 0
    assert "3 of 3 series may raise more alerts than the budget says" in result.stderr
    assert "may raise more alerts" not in at("forecast", *COMMON, "--dry-run").stderr


def test_a_forecast_that_could_not_be_stored_is_shown_then_the_error(
    at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("refused", hint="try")

    monkeypatch.setattr(store, "write_forecasts", refuse)
    result = at("forecast", *COMMON)
    assert result.exit_code == 4
    assert "no forecast stored: the write failed" in result.stdout
    assert result.stderr.endswith("error: refused\nhint: try\n")
    document = json.loads(at("forecast", *COMMON, "-o", "json").stdout)
    assert (document["written"], document["error"]["message"], len(document["series"])) == (None, "refused", 3)


def test_a_dry_run_stores_nothing(at: Run, store: MemoryStore) -> None:
    result = at("forecast", *COMMON, "--dry-run")
    assert result.exit_code == 0
    assert "dry run: no forecast stored" in result.stdout
    assert _stored(store) == 0
    assert store.gauges == []


def test_json_is_alone_on_stdout_and_whole(at: Run, store: MemoryStore) -> None:
    document = json.loads(at("forecast", *COMMON, "--output", "json", "--top", 1).stdout)
    assert document["kind"] == "forecast"
    assert document["mission"] == _mission().name
    assert document["cutoff"] == "2026-03-01T12:00:00Z"
    assert document["times"][0] == "2026-03-01T12:10:00Z"
    assert len(document["times"]) == 12
    assert [len(series["labels"]) for series in document["series"]] == [3, 3, 3]
    for series in document["series"]:
        for lower, yhat, upper in zip(series["lower"], series["yhat"], series["upper"], strict=True):
            assert lower < yhat < upper
    assert document["written"] == {"samples": 108, "series": 9, "skipped": 0}


def test_a_series_that_a_model_cannot_forecast_is_named_and_the_others_go_on(at: Run, store: MemoryStore) -> None:
    panel = requests()
    panel.y[1, :-4] = np.nan
    store.series[QUERY] = panel
    result = at("forecast", *COMMON[:-1], "theta", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "3 series, " in result.stdout
    assert 'note: 1 series ({job="a"}): profile instead of theta (only 4 points)' in result.stderr


def test_csv_and_parquet_hold_the_long_frame(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    columns = ["unique_id", "ds", "yhat", "yhat_lower", "yhat_upper"]
    text = at("forecast", *COMMON, "--output", "csv")
    frame = pl.read_csv(io.StringIO(text.stdout))
    assert frame.columns == columns
    assert frame.height == 36
    assert frame["ds"][0] == "2026-03-01T12:10:00Z"
    assert "stored 108 samples" in text.stderr

    binary = at("forecast", *COMMON, "--output", "parquet")
    assert pl.read_parquet(io.BytesIO(binary.stdout_bytes)).columns == columns
    file = tmp_path / "f.parquet"
    assert at("forecast", *COMMON, "--out", file).stdout == ""
    assert pl.read_parquet(file).height == 36


@pytest.mark.parametrize("form", ["table", "json", "csv", "parquet"])
@pytest.mark.parametrize("dry", [True, False])
def test_what_was_written_where_is_told_on_stderr(
    at: Run, store: MemoryStore, tmp_path: Path, form: str, dry: bool
) -> None:
    file = tmp_path / "out"
    result = at("forecast", *COMMON, "--out", file, "--output", form, *(["--dry-run"] if dry else []))
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"printed into {file}" in result.stderr
    assert ("dry run: no forecast stored" if dry else "stored 108 samples in http://localhost:8428") in result.stderr
    assert file.stat().st_size > 0


def test_a_table_in_a_pipe_is_neither_coloured_nor_cut(at: Run, store: MemoryStore) -> None:
    shown = at("forecast", *COMMON).stdout
    assert "\x1b" not in shown
    assert "…" not in shown.replace(" … ", "")
    assert '{job="\\x1b[31mred\\x1b[0m"}' in shown  # a label cannot colour the table either


def test_top_limits_the_table_and_says_what_is_left_out(at: Run, store: MemoryStore) -> None:
    assert "and 2 more: `--top 0` shows all" in at("forecast", *COMMON, "--top", 1).stdout
    assert "more" not in at("forecast", *COMMON, "--top", 0).stdout


def test_a_plot_is_drawn(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    result = at("forecast", *COMMON, "--plot", page)
    assert f"drawn into {page}" in result.stderr
    assert page.read_text().count('class="chart"') == 3


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--step", "0s"), 2, "error: --step: '0s' is no time at all"),
        (("--lookback", "1y2x"), 2, "error: --lookback: '1y2x' is not a duration"),
        (("--promql", "nothing"), 3, "error: nothing matches nothing in memory"),
        (("--model", "crystal_ball"), 5, "error: "),
        (("--out", "none/f.csv"), 2, "error: none/f.csv cannot be written"),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_is_stored(
    at: Run, store: MemoryStore, args: tuple[str, str], code: int, message: str
) -> None:
    result = at("forecast", *COMMON, *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(message)
    assert "hint: " in result.stderr or code != 2 or "--out" in args
    assert _stored(store) == 0


def test_where_missions_run_is_nothing_for_one_query(at: Run, store: MemoryStore) -> None:
    for option in (("--on", "ray"), ("--ray-address", "10.0.0.1:6379")):
        result = at("forecast", *COMMON, *option)
        assert result.exit_code == 2
        assert f"{option[0]} goes with mission files" in result.stderr
