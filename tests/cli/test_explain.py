"""`at explain`: which mission is meant, what is shown, and the same from every kind of store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import anomaly_times.cli.options
import anomaly_times.scheduling.server
from anomaly_times.cli.explain import _Found, explain
from anomaly_times.cli.explain_view import Origin
from anomaly_times.deployed import DeployedMission, Pause
from anomaly_times.panel import Grid, Labels
from anomaly_times.settings import Source
from anomaly_times.stores import remote_write
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.samples import Samples
from tests import servers
from tests.cli.conftest import Run
from tests.test_explain import HOUR, NOON, NOW, STEP, mission, passed, put, up

WEB = mission()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Metrics with the results of `web`, whose last hour is odd, and a `missions/` that defines it."""
    monkeypatch.setattr(anomaly_times.cli.options, "utc_now", lambda: NOW)
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", "no-profiles.toml")
    monkeypatch.chdir(tmp_path)
    passed(put(tmp_path / "metrics", up), WEB)
    Path("missions").mkdir()
    Path("missions/web.yaml").write_text(WEB.model_dump_json(exclude_defaults=True))
    return tmp_path / "metrics"


def rows(text: str) -> dict[str, str]:
    """The lines of the first table by what they are about."""
    found = (line.split(maxsplit=1) for line in text.splitlines() if line[:1].isalpha())
    return {parts[0]: parts[1].strip() for parts in reversed(list(found)) if len(parts) == 2}


def test_the_page_at_three_in_the_morning(at: Run, folder: Path) -> None:
    result = at("explain", "--url", folder)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == 'requests{job="b"}'
    assert lines[1].strip() == "web at 2026-03-01 12:00 UTC"
    told = rows(result.stdout)
    assert told["score"].endswith(" level shift")
    assert told["why"].startswith("values have lain far from the forecast")
    assert told["value"].endswith("above the forecast")
    assert told["made"] == "from   what was known at 11:00: 1h, 6 steps before"
    assert told["incident"] == "lasts since 11:10"
    assert told["alert"] == "fires since 11:15, of what began at 11:10; 1 series over 1"
    assert told["lately"] == "6 of the last 24 points over 1; it has been over since 11:10"
    assert "1 other series with a lower score" in result.stdout
    assert "at mission rebase web missions/ --since 2026-03-01T11:10:00Z" in result.stdout
    assert "at backtest missions/ --last 7d --plot report.html" in result.stdout


def test_a_gate_is_told_in_words(at: Run, folder: Path) -> None:
    query = ("--promql", "requests", "-m", "web", "--step", "10m", "--evidence", "point")
    result = at("explain", "--url", folder, *query, "--min-deviation", 200)
    assert result.exit_code == 0, result.stderr
    assert "is less than `detect.min_deviation` 200: that counts as 0; without it: 9" in result.stdout
    assert (
        "it was scored, and from what is stored now it would be 0.00: a value or a forecast came later" in result.stdout
    )


def test_json_holds_all_of_it(at: Run, folder: Path) -> None:
    result = at("explain", "missions/", "--mission", "web", "--url", folder, "--top", 0, "-o", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["schema"], document["kind"], document["mission"]) == (1, "explain", "web")
    assert (document["at"], document["step"], document["known"]) == ("2026-03-01T12:00:00Z", "10m", True)
    assert document["alert"] == {
        "above": 1.0,
        "over": 1,
        "began": "2026-03-01T11:10:00Z",
        "fired": "2026-03-01T11:15:00Z",
        "ended": None,
    }
    worst, other = document["series"]
    assert worst["labels"] == {"__name__": "requests", "job": "b"}
    assert worst["score"] == worst["scored_again"] == worst["scores"][-1]
    assert worst["value"] == worst["values"][-1]
    assert [each["channel"] for each in worst["evidence"]] == ["point", "sustained", "roughness", "drift", "flat"]
    assert worst["forecast_cutoff"] == "2026-03-01T11:00:00Z"
    assert worst["over_since"] == "2026-03-01T11:10:00Z"
    assert len(worst["values"]) == len(document["times"]) == 24
    assert other["over"] == 0
    assert other["over_since"] is None


def test_markdown_has_a_table_for_each_series(at: Run, folder: Path) -> None:
    result = at("explain", "--url", folder, "-o", "markdown")
    assert result.stdout.startswith('### requests{job="b"}\n')
    assert "| channel | evidence | usual | limit | on its way | closed by |" in result.stdout


def test_a_mission_that_nobody_defines_here_is_told_as_far_as_it_is_stored(at: Run, folder: Path) -> None:
    shutil.rmtree("missions")
    result = at("explain", "--mission", "web", "--url", folder)
    assert result.exit_code == 0, result.stderr
    assert rows(result.stdout)["score"].endswith(" level shift")
    assert "yesterday" not in result.stdout
    assert "the definition of web is not at hand" in result.stderr


def test_an_unknown_mission_is_told_with_those_that_sound_alike(at: Run, folder: Path) -> None:
    result = at("explain", "--mission", "wep", "--url", folder)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: there is no mission 'wep', and no score of one in ")
    assert "hint: did you mean web?" in result.stderr
    assert at("explain", "--mission", "Web!", "--url", folder).exit_code == 2


def test_one_of_several_missions_must_be_named(at: Run, folder: Path) -> None:
    other = WEB.model_copy(update={"name": "api"})
    Path("missions/api.yaml").write_text(other.model_dump_json(exclude_defaults=True))
    result = at("explain", "--url", folder)
    assert result.exit_code == 2
    assert result.stderr == "error: name a mission: --mission NAME\nhint: there are api, web\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--at", "2026-03-02T00:00Z"), "--at: '2026-03-02T00:00Z' has not come yet"),
        (("--at", "soon"), "--at: 'soon' is no time"),
        (("--step", "5m"), "--step goes with --promql"),
        (("missions/", "--promql", "up"), "FILES and --promql say two things"),
        (("--series", "rate(x[5m])"), "--series: 'rate(x[5m])' is no label selector"),
    ],
)
def test_what_makes_no_sense_is_refused(at: Run, folder: Path, args: tuple[str, ...], message: str) -> None:
    result = at("explain", "--url", folder, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")


def test_what_is_deployed_counts_and_a_pause_is_told(at: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Pause(NOON + HOUR, "a release")
    packs = ("at:p:forecast:1h:00", "at:p:detect:10m:00")
    one = DeployedMission(WEB, "p", packs, NOON + timedelta(minutes=30), pause)
    found = {"web": _Found(one.mission, Origin(("--promql", "requests"), True, one.paused), one.since)}
    monkeypatch.setitem(explain.__globals__, "_deployed", lambda: found)
    result = at("explain", "--url", folder)
    assert result.exit_code == 0, result.stderr
    assert "web is paused until 2026-03-01 13:00 UTC: a release" in result.stderr
    assert "web was changed at 2026-03-01 12:30 UTC" in result.stderr
    assert "at mission pause" not in result.stdout


def test_a_prefect_server_that_is_away_is_told_and_files_serve(
    at: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(anomaly_times.scheduling.server, "_AWAY_FOR", 0.1)
    result = at("explain", "--url", folder)
    assert result.exit_code == 0, result.stderr
    assert "note: what is deployed is not known: " in result.stderr
    assert rows(result.stdout)["yesterday"].endswith("the forecast")


@pytest.mark.servers
@pytest.mark.parametrize("ahead", [True, False], ids=["VictoriaMetrics", "Prometheus"])
def test_a_server_explains_its_scores_to_the_last_digit(
    at: Run, start: Callable[..., servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", "no-profiles.toml")
    server = start(*((servers.victoria_metrics, "-dedup.minScrapeInterval=1ms") if ahead else (servers.prometheus,)))
    grid = Grid.ending(datetime.now(UTC) - timedelta(minutes=2), STEP, 8 * 144)
    y = 100 + 30 * np.sin(np.arange(grid.n) / 144 * 2 * np.pi) + np.random.default_rng(0).normal(0, 1, (2, grid.n))
    up(y[1])
    labels = [Labels.of({"job": job}) for job in "ab"]
    with PrometheusStore(Source(url=server.url), state=tmp_path) as store:
        # Prometheus takes nothing that is an hour older than its newest sample.
        for i in range(0, grid.n, 4):
            part = slice(i, i + 4)
            block = Samples(("requests",), labels, grid.epoch_ms()[part], y[:, None, part])
            for body in remote_write.encode([block]):
                store.client.request(
                    "POST", f"{server.url}/api/v1/write", content=body, headers=remote_write.HEADERS, retry=False
                )
    file, end = tmp_path / "web.yaml", grid.end
    what = mission(min_deviation=[0, 0])
    what = what.model_copy(update={"forecast": what.forecast.model_copy(update={"lookback": timedelta(days=7)})})
    file.write_text(what.model_dump_json(exclude_defaults=True))
    if ahead:
        server.flush()
    before, now = ((end - gap + timedelta(seconds=40)).isoformat() for gap in (HOUR, timedelta(0)))
    assert at("forecast", file, "--url", server.url, "--at", before).exit_code == 0
    if ahead:
        server.flush()
    scored = at("detect", file, "--url", server.url, "--at", now, "--last", "40m")
    assert scored.exit_code == 0, scored.stderr
    assert " 8 points; " in scored.stdout
    if ahead:
        server.flush()

    result = at("explain", file, "--url", server.url, "-o", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    [one] = document["series"]
    assert document["at"] == f"{end:%Y-%m-%dT%H:%M:%SZ}"
    assert one["labels"] == {"__name__": "requests", "job": "b"}
    assert one["score"] == one["scored_again"] > 1
    assert one["reason"] == "level shift"
    assert one["value"] == pytest.approx(y[1, -1])
    assert one["last_week"] == pytest.approx(y[1, -1 - 7 * 144])
    assert one["yesterday"] == pytest.approx(y[1, -1 - 144])
    assert one["forecast_cutoff"] == f"{end - HOUR:%Y-%m-%dT%H:%M:%SZ}"
    point, *_ = one["evidence"]
    assert point["ratio"] == pytest.approx(one["score"])
    assert one["over"] == 4
    assert document["others"] == 1
    assert document["notes"] == []

    named = at("explain", "--mission", "web", "--url", server.url, "-o", "json")
    assert named.exit_code == 0, named.stderr
    short = json.loads(named.stdout)
    assert (short["known"], short["step"]) == (False, "10m")
    same = ("score", "reason", "yhat", "lower", "upper", "forecast_cutoff", "over_since", "incident_since")
    assert [short["series"][0][key] for key in same] == [one[key] for key in same]
    away = at("explain", "--mission", "wab", "--url", server.url)
    assert away.stderr.endswith("hint: did you mean web?\n")

    if not ahead:
        # Past its horizon the folder where the forecast waited holds it no more.
        shutil.rmtree(Path(".anomaly-times", "web"))
        bare = at("explain", file, "--url", server.url, "-o", "json")
        assert bare.exit_code == 0, bare.stderr
        document = json.loads(bare.stdout)
        assert document["series"][0]["yhat"] == one["yhat"]
        assert document["series"][0]["forecast_cutoff"] is None
        assert document["notes"] == ["no limits are stored for that time: points alone can be told"]
