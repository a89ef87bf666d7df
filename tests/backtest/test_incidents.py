"""Labelled incidents: read from files, found or missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from anomaly_times.backtest.alerts import Alert, Episode
from anomaly_times.backtest.incidents import Labelled, judge, read_incidents
from anomaly_times.errors import MissionError, UsageError
from anomaly_times.mission import Incident
from anomaly_times.panel import Grid, Labels

BEGIN = datetime(2026, 3, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
A, B = Labels.of({"__name__": "cpu", "host": "a"}), Labels.of({"__name__": "cpu", "host": "b"})
DAY = Grid.covering(BEGIN, BEGIN + 24 * HOUR, timedelta(minutes=5))


def alert(start: float, end: float, *labels: Labels, after: float = 0.0) -> Alert:
    """From hour `start` to hour `end`, fired so many hours after its start."""
    first, last = BEGIN + start * HOUR, BEGIN + end * HOUR
    episodes = tuple(Episode(row, first, last, 2.0, first, 9.0, 5.0, "point", "above") for row in labels or (A,))
    return Alert("m", first, first + after * HOUR, last, episodes)


def incident(start: float, end: float, match: str = "", mission: str = "", name: str = "") -> Labelled:
    return Labelled(Incident(name=name, start=BEGIN + start * HOUR, end=BEGIN + end * HOUR, match=match), mission)


def test_an_incident_is_found_by_an_alert_that_fires_before_it_is_over() -> None:
    verdict = judge("m", [incident(1, 3)], [alert(1.5, 2, after=0.25)], [A, B], DAY)
    assert [each.delay for each in verdict.outcomes] == [0.75 * HOUR]
    assert verdict.false_alarms == ()
    late = judge("m", [incident(1, 3)], [alert(2.5, 4, after=1)], [A, B], DAY)
    assert [each.found for each in late.outcomes] == [False]
    assert late.false_alarms == ()


def test_an_alert_that_fires_already_finds_it_at_once() -> None:
    verdict = judge("m", [incident(1, 3)], [alert(0.5, 1.5, after=0.1)], [A], DAY)
    assert verdict.delay == timedelta(0)


def test_an_alert_of_another_series_or_time_is_a_false_alarm() -> None:
    alerts = [alert(1.5, 2, B), alert(10, 11), alert(3.5, 3.75)]
    verdict = judge("m", [incident(1, 3, 'cpu{host="a"}')], alerts, [A, B], DAY)
    assert verdict.found == 0
    # What begins within an hour after the end is an echo.
    assert verdict.false_alarms == (alerts[0], alerts[1])


def test_what_lies_outside_or_concerns_nothing_here_is_counted_and_not_missed() -> None:
    wanted = [incident(-5, -4), incident(30, 31), incident(1, 2, 'cpu{host="c"}'), incident(1, 2, mission="other")]
    verdict = judge("m", wanted, [], [A, B], DAY)
    assert (verdict.outcomes, verdict.outside, verdict.unseen) == ((), 2, 1)


def test_a_match_that_is_no_selector_is_an_error() -> None:
    with pytest.raises(MissionError, match=r"incident release: match: 'rate\(x\[5m\]\)' is no label selector"):
        judge("m", [incident(1, 2, "rate(x[5m])", name="release")], [], [A], DAY)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", '- {start: "2026-03-15T01:00Z", end: "2026-03-15T02:00Z", name: one, match: \'{host="a"}\'}'),
        ("b.yaml", "incidents:\n- {start: 2026-03-15 01:00, end: 2026-03-15 02:00, name: one, match: '{host=\"a\"}'}"),
        ("c.json", '[{"start": "2026-03-15T02:00+01:00", "end": "2026-03-15T02:00:00Z", "name": "one", '
         '"match": "{host=\\"a\\"}"}]'),
        ("d.csv", 'name,start,end,match,mission\none,2026-03-15 01:00:00,2026-03-15 02:00:00,"{host=""a""}",\n'),
    ],
)  # fmt: skip
def test_incidents_are_read_from_yaml_json_and_csv(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    [found] = read_incidents(tmp_path / name)
    assert (found.name, found.mission) == ("one", "")
    assert (found.incident.start, found.incident.end) == (BEGIN + HOUR, BEGIN + 2 * HOUR)
    assert found.concerns([A, B]) == {A}


def test_labels_of_the_numenta_benchmark_are_understood(tmp_path: Path) -> None:
    file = tmp_path / "windows.json"
    file.write_text(
        '{"real/ec2_cpu-24.csv": [["2014-02-26 13:45:00.000000", "2014-02-27 06:25:00.000000"]], "real/b.csv": []}'
    )
    [found] = read_incidents(file)
    assert found.incident.start == datetime(2014, 2, 26, 13, 45, tzinfo=UTC)
    assert found.concerns([Labels.of({"__name__": "ec2_cpu_24"}), A]) == {Labels.of({"__name__": "ec2_cpu_24"})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {start: 2026-03-15}", "incident 1: end: is missing"),
        ("- {start: 2026-03-15, end: 2026-03-14}", "incident 1: must not end before it begins"),
        ("- {start: yesterday, end: 2026-03-14}", "incident 1: start: "),
        ("- {start: 2026-03-15, end: 2026-03-16, what: x}", "incident 1: what: is not known"),
        ("- noise", 'incident 1 is "noise"'),
        ("- [", "no valid YAML"),
    ],
)
def test_a_bad_incident_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "incidents.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_incidents(file)
    assert message in caught.value.message
    assert str(file) in caught.value.message


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.yaml cannot be read: No such file"):
        read_incidents(tmp_path / "none.yaml")
