"""`at models` and `at models explain`: what there is, and what series got."""

from __future__ import annotations

import json
from datetime import timedelta
from importlib.metadata import version

import pytest

from anomaly_times.cli.options import query_from_options
from anomaly_times.models import list_models
from anomaly_times.models.seasonmix import SeasonMix
from anomaly_times.panel import Grid
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, STEP, Run

OURS = f"anomaly-times {version('anomaly-times')}"
COMMON = ("--promql", QUERY, "--step", "10m", "--at", "2026-03-01T12:00:30Z")


def test_models_are_listed_as_a_table_and_as_json(at: Run) -> None:
    assert "per series, the cheap model" in at("models").stdout
    listed = json.loads(at("models", "-o", "json").stdout)
    assert [each["name"] for each in listed] == [m.name for m in list_models()]
    revisions = {each["name"]: each["revision"] for each in listed}
    assert revisions["seasonmix"] == SeasonMix().revision
    assert revisions["ets"] == f"statsforecast {version('statsforecast')}"


@pytest.mark.usefixtures("store")
def test_explain_names_each_series_model_reason_and_seasons(at: Run) -> None:
    candidates = 'candidates=["seasonal_naive", "profile"]'
    document = json.loads(at("models", "explain", *COMMON, "--model-param", candidates, "-o", "json").stdout)
    assert document["kind"] == "models"
    assert [series["model"] for series in document["series"]] == ["profile"] * 3
    for series in document["series"]:
        assert "% better than seasonal_naive in 4 past forecasts" in series["why"]
        assert series["losses"]["seasonal_naive"] == 0
        assert series["losses"]["profile"] < -3
        assert series["seasons"] == ["1d"]
        assert not series["warming"]
        assert series["revision"] == OURS


def test_explain_is_a_table_too_and_stores_nothing(at: Run, store: MemoryStore) -> None:
    result = at("models", "explain", *COMMON, "--model-param", 'candidates=["profile", "holt"]', "--top", 2)
    assert result.exit_code == 0, result.stderr
    assert "no other was clearly better in 4 past forecasts" in result.stdout
    assert "holt +" in result.stdout
    assert "3 series: profile 3" in result.stdout
    assert f"profile: {OURS}" in result.stdout
    assert "1 more series" in result.stderr
    mission = query_from_options({"promql": QUERY, "source": "", "url": "", "at": "now", "step": "10m"}).mission
    assert not store.read_forecasts([mission], Grid.ending(AT + timedelta(days=1), STEP, 300))


@pytest.mark.usefixtures("store")
def test_explain_of_a_named_model_says_that_it_was_named(at: Run) -> None:
    assert "named, so nothing was compared" in at("models", "explain", *COMMON, "--model", "profile").stdout


@pytest.mark.usefixtures("store")
def test_a_forecast_says_which_model_each_series_got(at: Run) -> None:
    document = json.loads(at("forecast", *COMMON, "--dry-run", "-o", "json").stdout)
    assert {series["model"] for series in document["series"]} == {"seasonmix"}
    assert {series["why"] for series in document["series"]} == {"no other was clearly better in 4 past forecasts"}
    assert not any(series["warming"] for series in document["series"])
    assert {series["revision"] for series in document["series"]} == {SeasonMix().revision}
    document = json.loads(at("forecast", *COMMON, "--model", "profile", "--dry-run", "-o", "json").stdout)
    assert {(series["model"], series["revision"], series["why"]) for series in document["series"]} == {
        ("profile", OURS, None)
    }


def test_explain_needs_a_query(at: Run) -> None:
    result = at("models", "explain")
    assert result.exit_code == 2
    assert "--promql is missing" in result.stderr
