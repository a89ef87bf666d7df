"""The page of a backtest: what was found, above a chart for each series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anomaly_times.backtest import Outcome, Trial
from anomaly_times.cli.backtest_views import (
    ALERT_COLUMNS,
    BacktestView,
    alert_cells,
    merged_outcomes,
    series_name,
    told_after,
)
from anomaly_times.cli.render import Section
from anomaly_times.cli.views import Cell, stamp
from anomaly_times.outputs import Chart, Row, Table, Window, render_page
from anomaly_times.outputs.html import MAX_POINTS
from anomaly_times.panel import Labels, Scores

__all__ = ["MOST_CHARTS", "backtest_page"]

MOST_CHARTS = 200
_POINTS, _FEWEST_POINTS = 300_000, 400
"""What all charts draw together keeps the page under 15 MB."""


def backtest_page(view: BacktestView) -> str:
    """The page as HTML: summary, incidents, alerts, alternatives and settings, then the series, worst first."""
    trials = [trial for trial in view.result.trials if trial.scores is not None]
    drawn = _drawn(trials)
    position = {key: i for i, key in enumerate(drawn)}
    by_name = {trial.mission.name: trial for trial in trials}
    charts = [_chart(by_name[name], labels) for name, labels in drawn]
    series = sum(len(trial.scores.labels) for trial in trials if trial.scores is not None)
    left = f" Drawn are the {len(charts)} series of {series:,} with the highest scores." if series > len(charts) else ""
    alternatives = view.alternatives()
    tables = [
        _plain("Missions", view.missions()),
        *_incidents(trials, position),
        _alerts(trials, position),
        *([_plain("Alternatives", alternatives)] if alternatives is not None else []),
        _settings(trials),
    ]
    return render_page(
        f"Backtest of {view.title()}",
        charts,
        lead=". ".join((*view.headline(), *(alternatives.lines if alternatives is not None else ()))) + "." + left,
        facts=_facts(trials, series),
        tables=tables,
        max_points=max(_FEWEST_POINTS, min(MAX_POINTS, _POINTS // max(1, len(charts)))),
    )


Key = tuple[str, Labels]
"""A mission's name and a series."""


def _drawn(trials: Sequence[Trial]) -> list[Key]:
    """The series with charts, the highest scores first."""
    ranked = []
    for trial in trials:
        scores = trial.scores
        if scores is not None:
            peaks = np.fmax.reduce(np.nan_to_num(scores.score), axis=1, initial=0.0)
            names = [(trial.mission.name, row) for row in scores.labels]
            ranked += list(zip(peaks.tolist(), names, strict=True))
    ranked.sort(key=lambda item: (-item[0], item[1]))
    return [key for _, key in ranked[:MOST_CHARTS]]


def _chart(trial: Trial, labels: Labels) -> Chart:
    scores: Scores | None = trial.scores
    if scores is None:
        raise ValueError("a trial without scores has no charts")
    i = scores.labels.index(labels)
    outcomes = trial.verdict.outcomes if trial.verdict is not None else ()
    return Chart(
        series_name(labels) if labels else trial.mission.promql,
        scores.grid,
        scores.y[i],
        scores.yhat[i],
        scores.lower[i],
        scores.upper[i],
        scores.score[i],
        subtitle=f"{trial.mission.name}: {trial.mission.promql}",
        windows=tuple(_window(each) for each in outcomes if labels in each.series),
        reason=scores.reason[i] if scores.reason is not None else None,
    )


def _window(outcome: Outcome) -> Window:
    return Window(outcome.start, outcome.end, outcome.name, "found" if outcome.found else "missed")


def _facts(trials: Sequence[Trial], series: int) -> list[tuple[str, str]]:
    alerts = [trial.alerts for trial in trials if trial.alerts is not None]
    verdicts = [trial.verdict for trial in trials if trial.verdict is not None]
    facts = [
        ("Alerts", f"{sum(len(each.found) for each in alerts):,}"),
        ("A week", f"{sum(each.per_week for each in alerts):,.2f}"),
    ]
    if verdicts:
        outcomes = merged_outcomes(trials)
        facts += [
            ("Incidents found", f"{sum(each.found for each in outcomes)} of {len(outcomes)}"),
            ("False alarms", f"{sum(len(each.false_alarms) for each in verdicts):,}"),
        ]
    return [*facts, ("Series", f"{series:,}")]


def _incidents(trials: Sequence[Trial], position: Mapping[Key, int]) -> list[Table]:
    rows = []
    for trial in trials:
        for each in trial.verdict.outcomes if trial.verdict is not None else ():
            places = [position[key] for row in each.series if (key := (trial.mission.name, row)) in position]
            status = "found" if each.found else "missed"
            cells = (status, each.name, stamp(each.start), stamp(each.end), told_after(each), trial.mission.name)
            rows.append(Row(cells, _window(each).status, min(places, default=None), _window(each)))
    if not rows:
        return []
    return [Table("Incidents", ("", "Incident", "Began", "Over", "Told after", "Mission"), tuple(rows))]


def _alerts(trials: Sequence[Trial], position: Mapping[Key, int]) -> Table:
    rows = []
    for trial in trials:
        false = trial.verdict.false_alarms if trial.verdict is not None else ()
        for alert in trial.alerts.found if trial.alerts is not None else ():
            fired, *others = (_text(cell) for cell in alert_cells(alert))
            kind = "" if trial.verdict is None else "false alarm" if alert in false else "incident"
            place = position.get((trial.mission.name, alert.worst.labels))
            rows.append(Row((kind, fired, *others), "", place, Window(alert.start, alert.end)))
    columns = ("", *(column.lstrip("<>").capitalize() for column in ALERT_COLUMNS))
    return Table("Alerts", columns, tuple(rows), empty="None would have fired.")


def _plain(title: str, section: Section) -> Table:
    names = [column.lstrip("<>~") for column in section.columns]
    columns = tuple(name[:1].upper() + name[1:] for name in names)
    return Table(title, columns, tuple(Row(tuple(_text(cell) for cell in row)) for row in section.rows))


def _settings(trials: Sequence[Trial]) -> Table:
    """What missions say that is not the default."""
    rows = []
    for trial in trials:
        fields = trial.mission.model_dump(mode="json", exclude_defaults=True, exclude={"incidents", "backtest"})
        rows += [Row((trial.mission.name, path, value)) for path, value in _flat(fields)]
    return Table("Settings", ("Mission", "Field", "Value"), tuple(rows))


def _flat(fields: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{path}{name}.")
        else:
            found.append((f"{path}{name}", str(value)))
    return found


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else "".join(text for text, _ in cell)
