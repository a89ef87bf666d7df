"""`at mission rebase`: the file that it changes, what it refuses, and what it brings to a Prefect server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anomaly_times.cli.options as options
from anomaly_times.loading import load_missions
from anomaly_times.panel import Grid
from anomaly_times.settings import Source
from anomaly_times.stores import open_store
from tests import servers
from tests.cli.conftest import Run
from tests.prefect_bases import api, base_deployments

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FILE = """\
# Who is called at night: the shop's team.
name: latency  # p99
promql: up

forecast:
  every: 1h
  level: 99  # a page is dear

---
name: traffic
promql: sum(rate(x[5m]))
"""
TEMPLATE = 'name: errors-${each}\nfor_each: [a, b]\npromql: x{s="${each}"}\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of two missions, in a folder where one stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "utc_now", lambda: NOW)
    file = tmp_path / "missions" / "shop.yaml"
    file.parent.mkdir()
    file.write_text(FILE)
    return file


def rebase_of(name: str) -> datetime | None:
    [mission] = [loaded.mission for loaded in load_missions(["missions"]).missions if loaded.mission.name == name]
    return mission.forecast.rebase


@pytest.mark.parametrize(
    ("since", "written"),
    [
        ("2h", "2026-03-01T10:00:00Z"),
        ("-90m", "2026-03-01T10:30:00Z"),
        ("2026-02-28T10:00Z", "2026-02-28T10:00:00Z"),
        ("2026-03-01T11:00+01:00", "2026-03-01T10:00:00Z"),
        ("now", "2026-03-01T12:00:00Z"),
        ("2026-03-01T12:01", "2026-03-01T12:00:00Z"),  # clocks differ
    ],
)
def test_the_time_stands_in_the_file_and_all_else_as_it_was(at: Run, here: Path, since: str, written: str) -> None:
    result = at("mission", "rebase", "latency", "--since", since)
    assert (result.exit_code, result.stderr) == (0, "")
    line = f"  rebase: {written}"
    assert here.read_text() == FILE.replace("# a page is dear\n", f"# a page is dear\n{line}\n")
    assert f"+{line}\n" in result.stdout
    assert result.stdout.splitlines()[-1] == (
        f"missions/shop.yaml: latency learns its level from what came since {written}; "
        "next: `at mission apply missions/shop.yaml`"
    )
    validated = at("mission", "validate", "--offline")
    assert (validated.exit_code, validated.stdout) == (0, "2 missions: 0 errors, 0 warnings\n")


def test_a_write_that_fails_leaves_the_file_whole_and_nothing_beside_it(
    at: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        written(self, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = at("mission", "rebase", "latency", "--since", "2h")
    assert result.exit_code == 2
    assert "shop.yaml cannot be written: No space left on device" in result.stderr
    assert here.read_text() == FILE
    assert list(here.parent.iterdir()) == [here]


def test_a_linked_file_stays_a_link_and_keeps_its_mode(at: Run, here: Path) -> None:
    real = here.rename(here.parent.parent / "real.yaml")
    real.chmod(0o640)
    here.symlink_to(real)
    assert at("mission", "rebase", "latency", "--since", "2h").exit_code == 0
    assert here.is_symlink()
    assert "rebase: 2026-03-01T10:00:00Z" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_second_time_replaces_the_first_and_clear_leaves_no_trace(at: Run, here: Path) -> None:
    for name in ("latency", "traffic"):
        at("mission", "rebase", name, "--since", "2h")
        assert at("mission", "rebase", name, "missions/shop.yaml", "--since", "1h").exit_code == 0
        assert rebase_of(name) == NOW - timedelta(hours=1)
    again = at("mission", "rebase", "traffic", "--since", "1h")
    assert again.stdout.count("\n") == 1  # nothing differs
    for name in ("latency", "traffic"):
        assert "is not rebased" in at("mission", "rebase", name, "--clear").stdout
    assert here.read_text() == FILE
    assert at("mission", "rebase", "traffic", "--clear").exit_code == 0


def test_json_is_alone_on_stdout(at: Run, here: Path) -> None:
    at("mission", "rebase", "traffic", "--since", "2h")
    document = json.loads(at("mission", "rebase", "traffic", "--since", "1h", "-o", "json").stdout)
    diff = document.pop("diff").splitlines()
    assert document == {
        "schema": 1,
        "kind": "rebase",
        "mission": "traffic",
        "file": "missions/shop.yaml",
        "before": "2026-03-01T10:00:00Z",
        "rebase": "2026-03-01T11:00:00Z",
        "applied": None,
        "forecast_at": None,
    }
    assert diff[-2:] == [
        "-forecast: {rebase: 2026-03-01T10:00:00Z}",
        "+forecast: {rebase: 2026-03-01T11:00:00Z}",
    ]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("latenzy", "--since", "2h"), 3, "there is no mission 'latenzy' in missions\nhint: did you mean 'latency'?"),
        (("nothing", "--since", "2h"), 3, "hint: is it in other FILES?"),
        (("latency",), 2, "rebase takes either --since TIME or --clear"),
        (("latency", "--since", "2h", "--clear"), 2, "rebase takes either --since TIME or --clear"),
        (("latency", "--since", "2026-03-01T12:02Z"), 2, "--since: '2026-03-01T12:02Z' has not come yet"),
        (("latency", "--since", "yesterday"), 2, "--since: 'yesterday' is no time"),
        (("latency", "--since", "14d"), 2, "--since: all that a forecast of latency reads, 14d, lies after"),
        (("latency", "nowhere.yaml", "--since", "2h"), 2, "there is no file or folder nowhere.yaml"),
        (("latency", "--since", "2h", "--apply"), 2, "no Prefect server is set"),
    ],
)
def test_what_makes_no_sense_is_told_and_changes_nothing(
    at: Run, here: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(here.parent))
    result = at("mission", "rebase", *args)
    assert result.exit_code == code
    assert message in result.stderr
    assert here.read_text() == FILE


def test_a_mission_that_would_have_problems_is_not_changed(at: Run, here: Path) -> None:
    here.write_text(FILE.replace("sum(", "sum((") + "---\nname: broken\npromq: up\n")
    result = at("mission", "rebase", "traffic", "--since", "2h")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "promql/syntax" in result.stderr
    result = at("mission", "rebase", "broken", "--since", "2h")
    assert result.exit_code == 3
    assert "missions/shop.yaml:14: error mission/unknown-field" in result.stderr
    # What others have does not keep one from it.
    assert at("mission", "rebase", "latency", "--since", "2h").exit_code == 0


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        (TEMPLATE, ("errors-a", "--since", "2h"), "errors-a is one of those that a template makes"),
        (
            "defaults: {forecast: {rebase: 2026-03-01T10:00Z}}\nmissions:\n- {name: a, promql: up}\n",
            ("a", "--clear"),
            "missions/shop.yaml:1: a takes its rebase from these defaults",
        ),
        (
            "missions:\n- {name: a, promql: up, forecast: &f {every: 1h}}\n- {name: b, promql: up, forecast: *f}\n",
            ("a", "--since", "2h"),
            "missions/shop.yaml:2: this cannot be changed in place",
        ),
    ],
)
def test_what_others_share_is_left_to_people(
    at: Run, here: Path, text: str, args: tuple[str, ...], message: str
) -> None:
    here.write_text(text)
    result = at("mission", "rebase", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "by hand" in result.stderr
    assert here.read_text() == text


def test_a_mission_of_several_with_defaults_gets_a_time_of_its_own(at: Run, here: Path) -> None:
    text = "defaults: {forecast: {every: 2h}}\nmissions:\n- {name: a, promql: up}  # one\n- {name: b, promql: up}\n"
    here.write_text(text)
    assert at("mission", "rebase", "a", "--since", "2h").exit_code == 0
    assert here.read_text() == text.replace("up}  #", "up, forecast: {rebase: 2026-03-01T10:00:00Z}}  #")
    assert rebase_of("b") is None
    [mission, _] = (loaded.mission for loaded in load_missions(["missions"]).missions)
    assert mission.forecast.every == timedelta(hours=2)


PROJECT = "rebase-tests"


@pytest.fixture
def prefect(prefect_server: servers.Server, here: Path, monkeypatch: pytest.MonkeyPatch, at: Run) -> Iterator[str]:
    """The URL of a Prefect server on which the missions of the file are deployed, and the project empty afterwards."""
    monkeypatch.setattr(options, "utc_now", lambda: datetime.now(UTC))
    base_deployments(prefect_server.url)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url + "/api")
    monkeypatch.setenv("AT_PROJECT", PROJECT)
    assert at("mission", "apply", "--yes").exit_code == 0
    yield prefect_server.url
    for mission in json.loads(at("mission", "list", "-o", "json").stdout)["missions"]:
        assert at("mission", "delete", mission["name"], "--yes").exit_code == 0


def first_runs(url: str, name: str) -> dict[str, datetime]:
    """When the forecasts of a mission start that were asked for besides the schedules, by the id of their runs."""
    where = {"deployment_id": {"any_": [base_deployments(url)["forecast"]]}}
    return {
        run["id"]: datetime.fromisoformat(run["expected_start_time"])
        for run in api(url, "POST", "flow_runs/filter", {"flow_runs": where})
        if run["parameters"].get("mission") == name
    }


@pytest.mark.servers
def test_applied_the_mission_alone_changes_and_is_forecast_from_a_new_point_on(
    at: Run, here: Path, prefect: str
) -> None:
    # Made a moment ago, for the first point after the mission was created, and so in time for this change as well.
    for run in first_runs(prefect, "latency"):
        api(prefect, "DELETE", f"flow_runs/{run}")
    # Another mission of the file waits for its review.
    here.write_text(here.read_text().replace("x[5m]", "y[5m]"))
    began = datetime.now(UTC)
    result = at("mission", "rebase", "latency", "--since", "2h", "--apply")
    assert result.exit_code == 0, result.stderr
    told = result.stdout.splitlines()
    assert told[-3:-1] == ["updated latency", "started first forecast of latency"]
    assert any("forecasts restart" in line for line in told)
    assert not any(line[:1] in "+~-!" and "traffic" in line for line in told)
    deployed = json.loads(at("mission", "show", "latency", "-o", "json").stdout)
    assert datetime.fromisoformat(deployed["mission"]["forecast"]["rebase"]) == rebase_of("latency")
    assert datetime.fromisoformat(deployed["since"]) >= began
    [starts] = first_runs(prefect, "latency").values()
    assert began < starts <= began + timedelta(seconds=120)
    assert told[-1].endswith(f"; a forecast with the next point starts at {starts:%H:%M:%S} UTC")
    other = json.loads(at("mission", "show", "traffic", "-o", "json").stdout)
    assert other["mission"]["promql"] == "sum(rate(x[5m]))"

    cleared = at("mission", "rebase", "latency", "--clear", "--apply", "-o", "json")
    document = json.loads(cleared.stdout)
    assert (document["applied"], document["forecast_at"]) == ([{"action": "update", "subject": "latency"}], None)
    again = json.loads(at("mission", "show", "latency", "-o", "json").stdout)
    assert "rebase" not in again["mission"]["forecast"]
    assert again["since"] == deployed["since"]


@pytest.mark.servers
@pytest.mark.parametrize("output", ["table", "json"])
def test_where_more_would_change_a_yes_is_needed(at: Run, here: Path, prefect: str, output: str) -> None:
    text = here.read_text().replace("promql: up", "promql: down")
    here.write_text(text)
    command = ("mission", "rebase", "latency", "--since", "2h", "--apply", "-o", output)
    refused = at(*command)
    assert refused.exit_code == 2
    assert "add --yes, after a look at `at mission plan`" in refused.stderr
    assert here.read_text() == text
    assert at(*command, "--yes").exit_code == 0
    shown = json.loads(at("mission", "show", "latency", "-o", "json").stdout)["mission"]
    assert (shown["promql"], "rebase" in shown["forecast"]) == ("down", True)


def load(server: servers.Server, metric: str, end: datetime, values: np.ndarray) -> None:
    """A sample every five minutes up to `end`."""
    last = int(end.timestamp()) * 1000
    stamps = [last - 300_000 * i for i in range(len(values))][::-1]
    line = json.dumps({"metric": {"__name__": metric}, "values": values.tolist(), "timestamps": stamps})
    servers.fetch(f"{server.url}/api/v1/import", data=line.encode())
    server.flush()


@pytest.mark.servers
def test_after_a_shift_of_many_sigmas_the_band_sits_at_the_new_level_at_once(
    at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[..., servers.Server]
) -> None:
    server = start(servers.victoria_metrics, "-dedup.minScrapeInterval=1ms")
    monkeypatch.chdir(tmp_path)
    step = timedelta(minutes=5)
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    released, cutoff = now - timedelta(hours=3), now - timedelta(hours=1)
    t = (now.timestamp() - 300 * np.arange(15 * 288)[::-1]) / 86_400
    usual = 100 + 30 * np.sin(2 * np.pi * t) + np.random.default_rng(0).normal(0, 1, len(t))
    # 40 sigmas or more: two hours before the forecast, and in the hour after it.
    values = np.where(t * 86_400 >= released.timestamp(), 1.6 * usual, usual)
    load(server, "rebase_latency", now, values)
    Path("missions").mkdir()
    Path("missions/latency.yaml").write_text(
        "name: latency  # p99\npromql: rebase_latency\nstep: 5m\n"
        "forecast: {model: seasonal_naive}\ndetect: {every: 5m}\n"
    )
    late = timedelta(seconds=30)

    def forecast(made: datetime) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Forecast and bounds over the hour after the cut-off, as they are stored by now."""
        result = at("forecast", "--url", server.url, "--at", (made + late).isoformat())
        assert result.exit_code == 0, result.stderr
        server.flush()
        [loaded] = load_missions(["missions"]).missions
        with open_store(Source(url=server.url), state=tmp_path) as store:
            found = store.read_forecasts([loaded.mission], Grid(cutoff + step, step, 12))["latency"]
        return found.yhat[0], found.lower[0], found.upper[0]

    def scored() -> dict[str, Any]:
        """The scores of that hour."""
        found = at(
            "detect", "--url", server.url, "--at", (now + late).isoformat(), "--last", "1h", "--dry-run", "-o", "json"
        )
        assert found.exit_code == 0, found.stderr
        [mission] = json.loads(found.stdout)["missions"]
        return {key: mission[key] for key in ("points", "anomalous", "worst")}

    actual, old = values[-12:], usual[-12:]
    _, lower, upper = forecast(cutoff - step)
    assert ((lower < old) & (old < upper)).all()
    assert scored()["anomalous"] == 12
    assert at("mission", "rebase", "latency", "--since", released.isoformat()).exit_code == 0
    yhat, lower, upper = forecast(cutoff)
    assert np.abs(yhat - actual).max() < 0.1 * actual.mean()
    assert ((lower < actual) & (actual < upper)).all()
    assert (old < lower).all()
    after = scored()
    assert (after["points"], after["anomalous"]) == (12, 0)
    assert after["worst"]["score"] < 1
