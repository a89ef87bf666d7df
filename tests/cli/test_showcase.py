"""`at demo`: made-up metrics through the real passes, and what is picked of a server's own."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.cli.lively import candidates, liveliness, pick_lively
from anomaly_times.cli.showcase import planted_incidents
from anomaly_times.errors import UsageError
from anomaly_times.panel import Floats, Grid, Labels, Panel, Scores
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, Run

HOUR = timedelta(hours=1)
NOW = datetime(2026, 3, 12, 0, 10, tzinfo=UTC)


@pytest.mark.slow
def test_the_demo_finds_what_is_easy_and_its_next_commands_work(
    at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("at demo")  # a name that a shell would split
    report = planted_incidents(folder, now=NOW, lasts=timedelta(hours=40), workers=2)
    shown = capsys.readouterr().out
    found = int(re.search(r"found (\d+) of (\d+) planted incidents", shown)[1])  # type: ignore[index]
    assert found >= 1  # a metric that vanishes cannot be missed
    assert report.read_text().count('class="chart"') > 15
    assert list(folder.glob("anomaly-times/scores/demo-traffic/*.parquet"))

    commands = [shlex.split(line) for line in shown.splitlines() if line.startswith("  at ")]
    assert len(commands) == 3
    for command in commands[:2]:
        result = at(*command[1:])
        assert result.exit_code == 0, result.stderr
        assert "made one for the occasion" not in result.stderr
    assert Path("forecast.html").is_file()


@pytest.mark.parametrize("content", ["notes.txt", "report.html"])
def test_the_demo_never_touches_a_folder_that_is_not_its_own(at: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / content).write_text("mine")
    result = at("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path} is there and is no demo\nhint: ")
    assert [path.name for path in tmp_path.iterdir()] == [content]
    with pytest.raises(UsageError, match="is no demo"):
        planted_incidents(tmp_path / content)


def test_scores_are_joined_over_gaps_and_series_that_come_and_go() -> None:
    a, b = Labels.of({"job": "a"}), Labels.of({"job": "b"})
    step = timedelta(minutes=5)

    def part(labels: tuple[Labels, ...], end: datetime, *values: float) -> Scores:
        y = np.array([values] * len(labels), dtype=np.float64)
        return Scores(labels, Grid.ending(end, step, len(values)), y, y, y, y, y)

    joined = Scores.joined([part((b,), AT, 5, 6), part((a, b), AT - 3 * step, 1, 2)])
    assert joined.labels == (a, b)
    assert joined.grid == Grid.ending(AT, step, 5)
    np.testing.assert_array_equal(joined.score, [[1, 2, np.nan, np.nan, np.nan], [1, 2, np.nan, 5, 6]])


def _row(y: Floats) -> float:
    return liveliness(Panel((Labels.of({"job": "a"}),), Grid.ending(AT, timedelta(minutes=5), len(y)), y[None]))


def test_a_rhythm_is_livelier_than_noise_and_flat_lines_are_not_lively() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(576)
    rhythm = 10 + 5 * np.sin(t / 288 * 2 * np.pi) + rng.normal(0, 0.5, 576)
    noise = 10 + rng.normal(0, 5, 576)
    assert _row(rhythm) > 0.9
    assert _row(noise) < 0.2
    assert _row(np.full(576, 3.0)) == 0
    assert _row((t % 2).astype(float)) == 0  # few values
    assert _row(1e6 + rhythm) == 0  # moves by less than a hundredth
    assert _row(np.where(t > 250, np.nan, rhythm)) == 0
    assert liveliness(Panel((), Grid.ending(AT, timedelta(minutes=5), 3), np.empty((0, 3)))) == 0


def test_lively_metrics_are_picked_from_different_families_first() -> None:
    grid = Grid.ending(AT, timedelta(minutes=5), 576)
    wave = 10 + 5 * np.sin(np.arange(576) / 288 * 2 * np.pi)
    slow = wave + np.random.default_rng(0).normal(0, 2, 576)
    job = (Labels.of({"job": "a"}),)
    aggregated = {
        "sum by (job) (rate(http_requests_total[10m]))": Panel(job, grid, wave[None]),
        "avg by (job) (http_inflight)": Panel(job, grid, wave[None]),
        "avg by (job) (node_load1)": Panel(job, grid, slow[None]),
        "avg by (job) (node_flat)": Panel(job, grid, np.ones((1, 576))),
    }
    raw = {name: Panel(job, grid, wave[None]) for name in ("http_requests_total", "http_inflight", "node_load1")}
    store = MemoryStore({**aggregated, **raw, "node_flat": Panel(job, grid, wave[None])})
    looked: list[int] = []
    names = ["http_requests_total", "http_inflight", "node_load1", "node_flat", "node_gone"]
    missions = pick_lively(
        store, names, now=AT + timedelta(minutes=1), every=HOUR, n=2, on_done=lambda: looked.append(1)
    )
    assert [mission.promql for mission in missions] == [
        "sum by (job) (rate(http_requests_total[10m]))",
        "avg by (job) (node_load1)",
    ]
    assert len(looked) == 5
    assert len({mission.name for mission in missions}) == 2
    assert {mission.horizon for mission in missions} == {HOUR}


@pytest.mark.parametrize(
    ("labels", "by"),
    [
        ([{"job": "a", "instance": "1"}, {"job": "a", "instance": "2"}], "by (instance) "),
        ([{"job": "a", "instance": "1"}, {"job": "b", "instance": "2"}], "by (job) "),
        ([{"job": "a", "instance": "1"}], "by (job) "),
        ([{"room": "hall"}, {"room": "attic"}], "by (room) "),
        ([{"id": str(i), "room": f"r{i % 2}"} for i in range(13)], "by (room) "),
        ([{"job": "a"}, {"room": "attic"}], ""),
        ([{}], ""),
    ],
)
def test_lively_metrics_are_told_apart_by_labels_that_they_have(labels: list[dict[str, str]], by: str) -> None:
    grid = Grid.ending(AT, timedelta(minutes=5), 576)
    wave = 10 + 5 * np.sin(np.arange(576) / 288 * 2 * np.pi)
    raw = Panel.of([Labels.of(row) for row in labels], grid, np.tile(wave, (len(labels), 1)))
    query = f"avg {by}(heat)" if by else "avg(heat)"
    store = MemoryStore({"heat": raw, query: Panel((Labels(),), grid, wave[None])})
    [mission] = pick_lively(store, ["heat"], now=AT + timedelta(minutes=1), every=HOUR)
    assert mission.promql == query


def test_candidates_are_spread_and_dull_or_own_names_left_out() -> None:
    names = [f"app_{i:03}" for i in range(200)]
    dull = [
        "up",
        "anomaly_score",
        "anomaly_probe",
        "go_gc_seconds",
        "x_bucket",
        "node_uname_info",
        "scrape_duration_seconds",
        "bad name",
    ]
    assert candidates([*dull, *names[:3]]) == names[:3]
    some = candidates(names, most=10)
    assert len(some) == 10
    assert (some[0], some[-1]) == (names[0], names[-1])
