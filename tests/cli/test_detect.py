"""`at detect`: the stored forecast, or one made for the occasion; scores shown and stored."""

from __future__ import annotations

import io
import json
import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from anomaly_times.cli.options import query_from_options
from anomaly_times.errors import StoreError
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Panel
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, STEP, Run, requests

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


def test_what_the_stored_forecast_lacks_is_held_against_one_made_for_the_occasion(at: Run, store: MemoryStore) -> None:
    made = json.loads(at("detect", *COMMON, *NOON, "--last", "3h", "--dry-run", "-o", "json").stdout)
    at("forecast", *COMMON[:-2], *ELEVEN)
    stored = json.loads(at("detect", *COMMON, *NOON, "--last", "1h", "--dry-run", "-o", "json").stdout)
    result = at("detect", *COMMON, *NOON, "--last", "3h", "--dry-run", "-o", "json")
    both = json.loads(result.stdout)
    assert [document["forecast"] for document in (made, stored, both)] == ["made", "stored", "both"]
    assert (both["unforecast"], len(both["times"])) == (0, 18)
    assert (
        "covers a part of this: made one for the occasion from what was known at 2026-03-01 09:00 UTC" in result.stderr
    )
    for old, new, mixed in zip(made["series"], stored["series"], both["series"], strict=True):
        assert mixed["yhat"][:12] == old["yhat"][:12]
        assert mixed["upper"][12:] == new["upper"]
        assert mixed["upper"][12:] != old["upper"][12:]


def test_a_new_series_gets_a_forecast_beside_the_stored_ones(at: Run, store: MemoryStore) -> None:
    panel = requests()
    store.series[QUERY] = panel.rows([0, 1])
    at("forecast", *COMMON[:-2], *ELEVEN)
    store.series[QUERY] = panel
    document = json.loads(at("detect", *COMMON, *NOON, "-o", "json").stdout)
    assert (document["forecast"], document["unforecast"], document["anomalous"]) == ("both", 0, 3)


def test_points_that_nothing_is_known_of_lead_the_summary(at: Run, store: MemoryStore) -> None:
    panel = requests()
    store.series[QUERY] = panel.columns(slice(panel.grid.n - 24, None))  # four hours
    at("forecast", *COMMON[:-2], *ELEVEN)
    result = at("detect", *COMMON, *NOON, "--last", "4h")
    assert result.exit_code == 0, result.stderr
    summary = result.stdout.splitlines()[-3:]
    assert summary[0] == "54 points have no forecast, and so no score"
    assert summary[1].startswith("0 points of 17 anomalous")
    assert "no forecast could be made for the others: requests matches nothing in memory" in result.stderr


def test_scores_that_could_not_be_stored_are_shown_then_the_error(
    at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("refused", hint="try")

    monkeypatch.setattr(store, "write_scores", refuse)
    table = at("detect", *COMMON, *NOON)
    assert table.exit_code == 4
    assert "3 points of 17 anomalous" in table.stdout
    assert "no score stored: the write failed" in table.stdout
    assert table.stderr.endswith("error: refused\nhint: try\n")
    result = at("detect", *COMMON, *NOON, "-o", "json")
    document = json.loads(result.stdout)
    assert result.exit_code == 4
    assert document["written"] is None
    assert document["error"] == {"message": "refused", "hint": "try", "exit_code": 4}
    assert document["anomalous"] == 3


def test_a_bare_counter_is_noted_and_its_rate_is_not(at: Run, store: MemoryStore) -> None:
    panel = requests()
    y = np.cumsum(panel.y * (panel.y > 0), axis=1)
    y[:, -20:] -= y[:, -21:-20]  # restarted
    for query in ("hits_total", 'hits_total{job="a"}', "rate(hits_total[5m])", "hits"):
        store.series[query] = Panel(panel.labels, panel.grid, np.nan_to_num(y))
        result = at("forecast", "--promql", query, *COMMON[2:-2], *NOON, "--dry-run")
        assert ("note: hits_total looks like a counter: rate(hits_total[5m])?" in result.stderr) == (
            query.startswith("hits_total")
        )
    store.series["falls_total"] = panel
    assert "counter" not in at("forecast", "--promql", "falls_total", *COMMON[2:-2], *NOON, "--dry-run").stderr


def test_what_is_stored_already_is_told_in_series(at: Run, store: MemoryStore) -> None:
    at("forecast", *COMMON[:-2], *NOON)
    again = at("forecast", *COMMON[:-2], *NOON).stdout
    assert "nothing new to store in http://localhost:8428 as mission q-" in again
    assert ": 9 series had this forecast already (its two bounds count as series)" in again


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
    assert frame.columns == ["unique_id", "ds", "y", "yhat", "yhat_lower", "yhat_upper", "score", "reason"]
    assert frame.height == 17


def test_what_a_score_is_of_is_told_in_words_in_every_form(at: Run, store: MemoryStore, tmp_path: Path) -> None:
    table = at("detect", *COMMON, *NOON, "--dry-run").stdout
    assert re.search(r"\{job=\"b\"\}.* point at 1[12]:\d0 ", table)
    document = json.loads(at("detect", *COMMON, *NOON, "--dry-run", "-o", "json").stdout)
    worst = document["series"][0]
    assert worst["max_reason"] == "point"
    assert worst["reason"][-3:] == ["point"] * 3
    assert all((of is None) == (not score) for of, score in zip(worst["reason"], worst["score"], strict=True))
    frame = pl.read_csv(io.StringIO(at("detect", *COMMON, *NOON, "--dry-run", "-o", "csv").stdout))
    assert set(frame.filter(pl.col("score") > 1)["reason"]) == {"point"}
    page = tmp_path / "page.html"
    at("detect", *COMMON, *NOON, "--dry-run", "--plot", page)
    [drawn, *_] = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text())[1])  # type: ignore[index]
    assert drawn["of"] == [[3, 5, "point"]]


def test_a_lasting_shift_is_called_a_level_shift(at: Run, store: MemoryStore) -> None:
    panel = requests()
    panel.y[1, -60:] += 60  # that of job="a"
    store.series[QUERY] = panel
    document = json.loads(at("detect", *COMMON[:-2], *NOON, "--last", "9h", "--dry-run", "-o", "json").stdout)
    shifted = next(series for series in document["series"] if series["labels"]["job"] == "a")
    assert set(shifted["reason"][-12:]) == {"level shift"}
    assert min(shifted["score"][-12:]) > 1


def test_points_alone_count_where_that_is_asked_for(at: Run, store: MemoryStore) -> None:
    panel = requests()
    panel.y[1, -60:] += 60  # that of job="a"
    store.series[QUERY] = panel
    for option in (("--evidence", "point"), ("--level", "99.9")):
        text = at("detect", *COMMON[:-2], *NOON, "--last", "9h", "--dry-run", "-o", "json", *option).stdout
        told = {of for series in json.loads(text)["series"] for of in series["reason"]}
        assert told <= {"point", None}


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
