import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.demo import STEP, Episode, Incident, demo_missions, find_episodes, make_demo, match_incidents
from anomaly_times.panel import Grid, Labels, Panel, Scores
from anomaly_times.settings import Source
from anomaly_times.stores.parquet import FolderStore

END = datetime(2025, 6, 13, 15, 2, tzinfo=UTC)
A, B = (Labels.of({"__name__": "cpu", "host": host}) for host in "ab")
T0 = datetime(2025, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Incident]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo(folder, end=END)


def read(folder: Path, promql: str, grid: Grid) -> Panel:
    return FolderStore(Source(folder=folder)).read(promql, grid)


# What is made


def test_the_demo_is_the_same_for_the_same_arguments(tmp_path: Path, made: tuple[Path, list[Incident]]) -> None:
    def digest(folder: Path) -> dict[str, str]:
        files = sorted(folder.iterdir())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert make_demo(tmp_path / "again", end=END) == made[1]
    assert digest(tmp_path / "again") == digest(made[0])
    make_demo(tmp_path / "other", end=END, seed=8)
    assert digest(tmp_path / "other") != digest(made[0])
    assert sorted(digest(made[0])) == [
        "errors.parquet",
        "latency.parquet",
        "queues.csv",
        "resources.parquet",
        "traffic.parquet",
    ]


def test_each_mission_reads_its_series_over_four_weeks(made: tuple[Path, list[Incident]]) -> None:
    grid = Grid.ending(END, STEP, 28 * 288)
    panels = {mission.name: read(made[0], mission.promql, grid) for mission in demo_missions()}
    assert {name: panel.n_series for name, panel in panels.items()} == {
        "demo-traffic": 5,
        "demo-latency": 3,
        "demo-errors": 3,
        "demo-cpu": 4,
        "demo-memory": 2,
        "demo-disk": 2,
        "demo-queue": 2,
    }
    for mission in demo_missions():
        y = panels[mission.name].y
        low, high = mission.detect.valid_range
        assert np.nanmin(y) >= max(low, 0)
        assert np.nanmax(y) <= high
        # Some scrapes are missed, and no more than that.
        assert 0.99 < np.isfinite(y).mean() <= 1


def test_missions_watch_the_source_that_they_are_told() -> None:
    assert {mission.source for mission in demo_missions("mine")} == {"mine"}
    assert all(mission.h == 24 for mission in demo_missions())


def test_traffic_has_a_rhythm_of_days_and_weeks_and_latency_rises_with_it(made: tuple[Path, list[Incident]]) -> None:
    # Whole days before the first incident: two weeks from a Saturday.
    grid = Grid(datetime(2025, 5, 24, tzinfo=UTC), STEP, 14 * 288)
    hourly = read(made[0], "http_requests_per_second", grid).y.sum(axis=0).reshape(14, 24, 12).mean(axis=2)
    weekend, working = hourly[[0, 1, 7, 8]], hourly[[2, 3, 4, 5, 9, 10, 11, 12]]
    assert (working[:, 11] > 2.5 * working[:, 4]).all()
    assert weekend[:, 9:13].mean() < 0.85 * working[:, 9:13].mean()

    latency = read(made[0], "http_request_duration_p99_seconds", grid)
    assert [row.get("service") for row in latency.labels] == ["checkout", "payments", "search"]
    search = np.median(latency.y[2].reshape(-1, 12), axis=1)
    assert np.corrcoef(search, hourly.reshape(-1))[0, 1] > 0.8
    # A heavy tail: the worst points are far from the usual ones.
    assert (latency.y.max(axis=1) / np.quantile(latency.y, 0.95, axis=1)).max() > 2


def test_errors_are_mostly_none(made: tuple[Path, list[Incident]]) -> None:
    y = read(made[0], 'http_errors_per_second{service="checkout"}', Grid.ending(END, STEP, 28 * 288)).y
    assert 0.5 < (y == 0).mean() < 0.98


def test_a_deploy_changes_the_search_and_is_no_incident(made: tuple[Path, list[Incident]]) -> None:
    day = Grid(datetime(2025, 6, 2, 14, tzinfo=UTC), STEP, 48)
    before, after = (
        np.nanmedian(read(made[0], 'cpu_usage_ratio{service="search"}', Grid(day.start + shift, STEP, 48)).y)
        for shift in (timedelta(days=-7), timedelta(days=1))
    )
    assert after > 1.08 * before
    assert not any(incident.covers(row, day.start, day.end) for incident in made[1] for row in incident.series)


def test_incidents_lie_in_the_last_week_and_change_the_series_that_they_name(
    tmp_path: Path, made: tuple[Path, list[Incident]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, incidents = made
    assert len({incident.name for incident in incidents}) == len(incidents) == 9
    assert incidents == sorted(incidents, key=lambda incident: incident.start)
    from anomaly_times import demo

    monkeypatch.setattr(demo._Shop, "plant", lambda self, series: [])
    make_demo(tmp_path, end=END)
    grid = Grid.ending(END, STEP, 28 * 288)
    with_them, without = (read(path, '{__name__=~".+"}', grid) for path in (folder, tmp_path))
    changed = ~np.isclose(with_them.y, without.y, rtol=1e-9, atol=0, equal_nan=True)

    expected = np.zeros_like(changed)
    for incident in incidents:
        assert END - timedelta(days=7) <= incident.start < incident.end <= END
        assert incident.description
        for labels in incident.series:
            expected[with_them.labels.index(labels), grid.index(incident.start) : grid.index(incident.end) + 1] = True
    # A missed scrape hides a change, and a ramp begins with none.
    assert not (changed & ~expected).any()
    assert changed.sum() > 0.97 * expected.sum()


@pytest.mark.parametrize("end", [datetime(2025, 6, 13, tzinfo=UTC), datetime(2025, 3, 2, 23, 59, 59, tzinfo=UTC)])
def test_incidents_fit_into_the_last_week_whenever_it_ends(tmp_path: Path, end: datetime) -> None:
    for incident in make_demo(tmp_path, end=end, days=14):
        assert end - timedelta(days=7) <= incident.start < incident.end <= end


def test_a_demo_that_is_too_short_or_too_coarse_is_refused(tmp_path: Path) -> None:
    for arguments in ({"days": 9}, {"step": timedelta(hours=1)}):
        with pytest.raises(ValueError, match="the demo needs"):
            make_demo(tmp_path, end=END, **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# What was found


def scores(rows: dict[Labels, dict[int, float]], n: int = 300) -> Scores:
    """Scores of 0, but at these steps."""
    score = np.zeros((len(rows), n))
    for row, points in zip(score, rows.values(), strict=True):
        row[list(points)] = list(points.values())
    return Scores(tuple(rows), Grid(T0, STEP, n), score, score, score, score, score)


def at(step: int) -> datetime:
    return T0 + step * STEP


def incident(name: str, first: int, last: int, *series: Labels) -> Incident:
    return Incident(name, series or (A,), at(first), at(last), "")


def test_points_that_lie_close_together_are_one_episode() -> None:
    found = find_episodes({"m": scores({A: {10: 2.0, 11: 5.0, 23: 1.5, 36: 9.0}, B: {10: 1.0, 11: 1.01, 12: np.nan}})})
    assert found == [
        Episode("m", A, at(10), at(23), 5.0),
        Episode("m", B, at(11), at(11), 1.01),
        Episode("m", A, at(36), at(36), 9.0),
    ]


def test_episodes_of_two_series_never_join_across_the_rows() -> None:
    # The last point of the first row and the first one of the second are neighbours in memory.
    found = find_episodes({"m": scores({A: {9: 2.0}, B: {10: 3.0}}, n=20), "n": scores({A: {}}, n=20)})
    assert [(each.labels, each.start) for each in found] == [(A, at(9)), (B, at(10))]
    assert find_episodes({}) == []


def test_an_incident_is_found_from_its_first_anomalous_point() -> None:
    (outcome,) = match_incidents({"m": scores({A: {103: 2.0, 104: 3.0}})}, [incident("i", 100, 110)]).outcomes
    assert outcome.found
    assert outcome.delay == 3 * STEP
    assert outcome.episodes == (Episode("m", A, at(103), at(104), 3.0),)


@pytest.mark.parametrize("step", [100, 110])
def test_both_ends_of_an_incident_count(step: int) -> None:
    (outcome,) = match_incidents({"m": scores({A: {step: 2.0}})}, [incident("i", 100, 110)]).outcomes
    assert outcome.delay == (step - 100) * STEP


@pytest.mark.parametrize(
    ("points", "besides"),
    [
        ({A: {99: 2.0}}, 1),
        ({A: {111: 2.0}}, 0),
        ({A: {122: 2.0}}, 0),
        ({A: {123: 2.0}}, 1),
        ({B: {105: 2.0}}, 1),
        ({A: {105: 1.0}}, 0),
        ({A: {}}, 0),
    ],
)
def test_what_lies_outside_does_not_find_it(points: dict[Labels, dict[int, float]], besides: int) -> None:
    findings = match_incidents({"m": scores(points)}, [incident("i", 100, 110)])
    assert not findings.outcomes[0].found
    assert findings.outcomes[0].delay is None
    assert len(findings.besides) == besides


def test_an_episode_that_began_before_belongs_to_the_incident() -> None:
    findings = match_incidents({"m": scores({A: {95: 2.0, 101: 2.0}})}, [incident("i", 100, 110)])
    assert findings.outcomes[0].delay == STEP
    assert findings.besides == ()


def test_any_series_and_any_mission_finds_an_incident_and_outcomes_are_in_order_of_time() -> None:
    found = {"m": scores({A: {108: 2.0}, B: {200: 3.0}}), "n": scores({B: {104: 2.0}})}
    findings = match_incidents(found, [incident("late", 250, 260), incident("early", 100, 110, A, B)])
    assert [(each.incident.name, each.delay) for each in findings.outcomes] == [("early", 4 * STEP), ("late", None)]
    assert [(each.mission, each.start) for each in findings.besides] == [("m", at(200))]


@pytest.mark.parametrize("where", [lambda: incident("i", -50, -40), lambda: incident("i", 400, 410)])
def test_an_incident_outside_of_the_scores_is_missed(where: Callable[[], Incident]) -> None:
    findings = match_incidents({"m": scores({A: {0: 2.0, 299: 2.0}})}, [where()])
    assert not findings.outcomes[0].found
    assert len(findings.besides) == 2
