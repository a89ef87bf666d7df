"""What a backtest looks like: missions, incidents, alerts and alternatives, whatever prints them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from anomaly_times.backtest import Backtest, Outcome, Trial
from anomaly_times.backtest.alerts import Alert, Episode
from anomaly_times.cli.backtest_suggest import SuggestedView
from anomaly_times.cli.render import Section
from anomaly_times.cli.views import JSON_SCHEMA, Cell, counted, first_line, number, stamp
from anomaly_times.durations import format_duration, iso_utc
from anomaly_times.panel import Labels
from anomaly_times.scoring import format_score

__all__ = [
    "ALERT_COLUMNS",
    "BacktestView",
    "alert_cells",
    "merged_outcomes",
    "series_name",
    "told_after",
    "trial_entry",
    "verdict_cells",
]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_NOTHING = "–"
ALERT_COLUMNS = ("fired", ">lasted", ">score", "of", ">value", ">forecast", "<series", "mission")


@dataclass(frozen=True, eq=False)
class BacktestView:
    """The decision first: how many alerts, what of the incidents; then the list, accuracy, cost, and alternatives.

    `top` alerts are listed (0: all), the strongest first. `suggested` stands at the end.
    """

    result: Backtest
    top: int = 20
    suggested: SuggestedView | None = None

    @property
    def exit_code(self) -> int:
        """0, or the highest exit code among the errors of missions."""
        return max((trial.error.exit_code for trial in self.result.trials if trial.error is not None), default=0)

    @property
    def broken(self) -> list[str]:
        """What missions ask for in `backtest:` and did not get, and those that could not be replayed."""
        lines = []
        for trial in self.result.trials:
            lines += [f"{trial.mission.name}: {line}" for line in trial.broken]
            if trial.error is not None:
                lines.append(f"{trial.mission.name}: {first_line(trial.error.message)}")
        return lines

    def sections(self) -> list[Section]:
        """What is printed, in order."""
        found = [self.missions(), self._incidents(), self._alerts(), self._rhythm(), self.alternatives()]
        suggested = self.suggested.sections() if self.suggested is not None else []
        return [*(section for section in found if section is not None), *suggested]

    def missions(self) -> Section:
        """A line a mission."""
        trials = self.result.trials
        judged = any(trial.verdict is not None for trial in trials)
        columns = ["<mission", ">series", ">alerts", ">a week", ">longest", ">firing", ">brief"]
        columns += [">found", ">false alarms", ">told after"] if judged else []
        columns += [">MASE", ">WQL", ">in band", ">unforecast", "remarks"]
        rows = [tuple(self._row(trial, judged=judged)) for trial in trials]
        return Section(self.title(), tuple(self.headline()), tuple(columns), tuple(rows))

    def _row(self, trial: Trial, *, judged: bool) -> Iterator[Cell]:
        yield trial.mission.name
        alerts, accuracy, scores = trial.alerts, trial.accuracy, trial.scores
        if alerts is None or accuracy is None or scores is None:
            yield from ("",) * (13 if judged else 10)
            yield [(first_line(trial.error.message) if trial.error else "", "bad")]
            return
        firing = alerts.firing
        yield f"{len(scores.labels):,}"
        yield f"{len(alerts.found):,}"
        yield _figure(alerts.per_week)
        yield _duration(max(firing, default=None))
        yield _duration(sum(firing, timedelta(0)) or None)
        yield f"{alerts.brief:,}"
        if judged:
            yield from verdict_cells([trial])
        yield from (_figure(accuracy.mase), _figure(accuracy.wql), _percent(accuracy.coverage))
        yield _percent(accuracy.unforecast)
        yield [("; ".join(trial.broken), "bad")]

    def title(self) -> str:
        """What was replayed, over which time."""
        trials = self.result.trials
        start, end = min(t.grid.start for t in trials), max(t.grid.end for t in trials)
        return f"{counted(len(trials), 'mission')} from {stamp(start)} to {stamp(end)} UTC"

    def headline(self) -> Iterator[str]:
        """How many alerts, how many incidents found, and the cost."""
        trials = [trial for trial in self.result.trials if trial.alerts is not None]
        if not trials:
            return
        alerts = [trial.alerts for trial in trials if trial.alerts is not None]
        a_week = sum(each.per_week for each in alerts)
        total = sum(len(each.found) for each in alerts)
        yield f"{counted(total, 'alert')} would have fired, {_figure(a_week)} a week"
        outcomes = merged_outcomes(trials)
        if outcomes:
            found = sum(each.found for each in outcomes)
            yield f"{found} of {counted(len(outcomes), 'incident')} found"
        costs = [trial.cost for trial in trials if trial.cost is not None]
        yield (
            f"Live, a day takes {sum(each.queries for each in costs):,.0f} queries for values, "
            f"{number(sum(each.points for each in costs))} points read and "
            f"{sum(each.cpu_seconds for each in costs):,.0f} CPU-seconds of models and scoring"
        )

    def _incidents(self) -> Section | None:
        outcomes = merged_outcomes(self.result.trials)
        if not outcomes:
            return None
        rows: list[tuple[Cell, ...]] = [
            (
                [("found", "good") if each.found else ("missed", "bad")],
                each.name,
                stamp(each.start),
                stamp(each.end),
                told_after(each),
            )
            for each in outcomes
        ]
        return Section("Incidents", (), ("", "<incident", "began", "over", ">told after"), tuple(rows))

    def _alerts(self) -> Section | None:
        alerts = [alert for trial in self.result.trials if trial.alerts for alert in trial.alerts.found]
        if not alerts:
            return None
        shown = sorted(alerts, key=lambda alert: -alert.worst.peak)
        shown = sorted(shown[: self.top] if self.top else shown, key=lambda alert: alert.fired)
        false = {
            id(alert) for trial in self.result.trials if trial.verdict for alert in trial.verdict.false_alarms
        }  # by identity: two missions may have equal ones
        left = len(alerts) - len(shown)
        more = (f"the {len(shown)} strongest of {len(alerts):,}: `--top 0` shows all",) if left else ()
        rows = [(*alert_cells(alert), "false alarm" if id(alert) in false else "") for alert in shown]
        return Section("Alerts", more, (*ALERT_COLUMNS, ""), tuple(rows))

    def _rhythm(self) -> Section | None:
        by_hour, by_weekday, zones = [0] * 24, [0] * 7, set()
        for trial in self.result.trials:
            if trial.alerts is not None and trial.alerts.found:
                zone = trial.mission.timezone
                zones.add(zone)
                by_hour = [a + b for a, b in zip(by_hour, trial.alerts.by_hour(zone), strict=True)]
                by_weekday = [a + b for a, b in zip(by_weekday, trial.alerts.by_weekday(zone), strict=True)]
        if not zones:
            return None
        lines = (
            f"by hour of day, from 0: {' '.join(map(str, by_hour))}",
            "by weekday: " + ", ".join(f"{day} {n}" for day, n in zip(_DAYS, by_weekday, strict=True)),
        )
        return Section(f"When alerts fired ({', '.join(sorted(zones))})", lines)

    def alternatives(self) -> Section | None:
        """A line an alternative, over all missions; `None` where there are none."""
        if not self.result.alternatives:
            return None
        groups = {"as it is": self.result.trials, **self.result.alternatives}
        judged = any(trial.verdict is not None for trial in chain(*groups.values()))
        rows = []
        for name, trials in groups.items():
            done = [trial for trial in trials if trial.alerts is not None]
            alerts = [trial.alerts for trial in done if trial.alerts is not None]
            accuracy = [trial.accuracy for trial in done if trial.accuracy is not None]
            failed = len(trials) - len(done)
            row: list[Cell] = [name, f"{sum(len(each.found) for each in alerts):,}"]
            row += [_figure(sum(each.per_week for each in alerts)), f"{sum(each.brief for each in alerts):,}"]
            row += list(verdict_cells(done)) if judged else []
            row += [_figure(_mean([each.mase for each in accuracy])), _percent(_mean([e.coverage for e in accuracy]))]
            row.append(_figure(sum(trial.cost.cpu_seconds for trial in done if trial.cost is not None)))
            row.append([(f"{failed} failed: {_first_error(trials)}", "bad")] if failed else "")
            rows.append(tuple(row))
        columns = ["alternative", ">alerts", ">a week", ">brief"]
        columns += [">found", ">false alarms", ">told after"] if judged else []
        columns += [">MASE", ">in band", ">CPU-seconds a day", "remarks"]
        return Section("Alternatives", tuple(self._needless()), tuple(columns), tuple(rows))

    def _needless(self) -> Iterator[str]:
        judged = False
        for i, trial in enumerate(self.result.trials):
            judged = judged or (trial.verdict is not None and bool(trial.verdict.outcomes))
            for name in self.result.needless(i):
                yield f"{trial.mission.name}: {name} does as well, so no model is needed"
        if not judged:
            yield "without labelled incidents nothing tells which of them is better, only which is quieter"

    def notes(self) -> list[str]:
        """What a reader should know besides."""
        lines = []
        for trial in self.result.trials:
            lines += [f"{trial.mission.name}: {first_line(line)}" for line in trial.notes]
            if trial.error is not None and trial.error.hint:
                lines.append(f"{trial.mission.name}: {trial.error.hint}")
        lines += self.suggested.notes() if self.suggested is not None else []
        return list(dict.fromkeys(lines))

    def document(self) -> dict[str, Any]:
        """The whole result for JSON; its form is described in `docs/backtest.md`."""
        return {
            "schema": JSON_SCHEMA,
            "kind": "backtest",
            "missions": [trial_entry(trial) for trial in self.result.trials],
            "alternatives": {
                name: [trial_entry(trial) for trial in trials] for name, trials in self.result.alternatives.items()
            },
            "needless": {
                trial.mission.name: list(self.result.needless(i)) for i, trial in enumerate(self.result.trials)
            },
            "broken": self.broken,
            **(self.suggested.document() if self.suggested is not None else {}),
        }


def merged_outcomes(trials: Sequence[Trial]) -> list[Outcome]:
    """What became of each incident, by whichever mission told of it first."""
    best: dict[tuple[str, datetime, datetime], Outcome] = {}
    for trial in trials:
        for each in trial.verdict.outcomes if trial.verdict is not None else ():
            key = each.name, each.start, each.end
            known = best.get(key)
            sooner = known is None or known.delay is None or (each.delay is not None and each.delay < known.delay)
            if sooner:
                best[key] = each
    return sorted(best.values(), key=lambda each: (each.start, each.name))


def verdict_cells(trials: Sequence[Trial]) -> tuple[Cell, Cell, Cell]:
    """Found of how many, false alarms, and the median time until somebody was told."""
    verdicts = [trial.verdict for trial in trials if trial.verdict is not None]
    if not verdicts:
        return (_NOTHING,) * 3
    outcomes = merged_outcomes(trials)
    delays = sorted(each.delay for each in outcomes if each.delay is not None)
    median = delays[(len(delays) - 1) // 2] if delays else None
    false = sum(len(each.false_alarms) for each in verdicts)
    found = sum(each.found for each in outcomes)
    return f"{found} of {len(outcomes)}", f"{false:,}", _after(median)


def series_name(labels: Labels) -> str:
    """A series as PromQL writes it, the metric's name first."""
    metric, rest = labels.get("__name__"), labels.without(["__name__"])
    return metric + str(rest) if rest or not metric else metric


def told_after(outcome: Outcome) -> str:
    """How long after its start somebody was told of an incident, for people."""
    return _after(outcome.delay)


def _after(delay: timedelta | None) -> str:
    if delay is None:
        return _NOTHING
    return format_duration(delay) if delay else "at once"


def alert_cells(alert: Alert) -> tuple[Cell, ...]:
    """The cells of an alert under `ALERT_COLUMNS`, for people."""
    worst = alert.worst
    others = len(alert.episodes) - 1
    series = series_name(worst.labels) + (f" and {others} more" if others else "")
    reason = f"{worst.reason}, {worst.direction}" if worst.direction else worst.reason
    return (
        stamp(alert.fired),
        _duration(alert.end - alert.start),
        [(format_score(worst.peak), "bad")],
        reason,
        number(worst.value),
        number(worst.yhat),
        series,
        alert.mission,
    )


def trial_entry(trial: Trial) -> dict[str, Any]:
    """What JSON has of a mission that was replayed."""
    alerts, accuracy, verdict, cost = trial.alerts, trial.accuracy, trial.verdict, trial.cost
    zone = trial.mission.timezone
    return {
        "mission": trial.mission.name,
        "variant": trial.variant.name,
        "start": iso_utc(trial.grid.start),
        "end": iso_utc(trial.grid.end),
        "step": format_duration(trial.grid.step),
        "series": len(trial.scores.labels) if trial.scores is not None else 0,
        "error": trial.error
        and {"message": trial.error.message, "hint": trial.error.hint, "exit_code": trial.error.exit_code},
        "notes": list(trial.notes),
        "broken": list(trial.broken),
        "alerts": alerts
        and {
            "count": len(alerts.found),
            "per_week": alerts.per_week,
            "brief": alerts.brief,
            "longest_seconds": max((each.total_seconds() for each in alerts.firing), default=0.0),
            "firing_seconds": sum(each.total_seconds() for each in alerts.firing),
            "timezone": zone,
            "by_hour": list(alerts.by_hour(zone)),
            "by_weekday": list(alerts.by_weekday(zone)),
            "list": [_alert(alert) for alert in alerts.found],
        },
        "accuracy": accuracy
        and {
            "mase": _or_null(accuracy.mase),
            "wql": _or_null(accuracy.wql),
            "coverage": _or_null(accuracy.coverage),
            "unforecast": _or_null(accuracy.unforecast),
            "missing": _or_null(accuracy.missing),
            "season": format_duration(accuracy.season),
        },
        "incidents": verdict
        and {
            "found": verdict.found,
            "missed": len(verdict.outcomes) - verdict.found,
            "false_alarms": len(verdict.false_alarms),
            "outside": verdict.outside,
            "unseen": verdict.unseen,
            "list": [
                {
                    "name": each.name,
                    "start": iso_utc(each.start),
                    "end": iso_utc(each.end),
                    "found": each.found,
                    "delay_seconds": each.delay.total_seconds() if each.delay is not None else None,
                }
                for each in verdict.outcomes
            ],
        },
        "cost": cost
        and {
            "queries": cost.queries,
            "forecasts": cost.forecasts,
            "detections": cost.detections,
            "points": cost.points,
            "cpu_seconds": cost.cpu_seconds,
        },
    }


def _alert(alert: Alert) -> dict[str, Any]:
    return {
        "start": iso_utc(alert.start),
        "fired": iso_utc(alert.fired),
        "end": iso_utc(alert.end),
        "series": [_episode(each) for each in alert.episodes],
    }


def _episode(episode: Episode) -> dict[str, Any]:
    return {
        "labels": dict(episode.labels),
        "start": iso_utc(episode.start),
        "end": iso_utc(episode.end),
        "peak": episode.peak,
        "at": iso_utc(episode.at),
        "value": _or_null(episode.value),
        "forecast": _or_null(episode.yhat),
        "deviation": _or_null(episode.deviation),
        "reason": episode.reason or None,
        "direction": episode.direction or None,
    }


def _first_error(trials: Sequence[Trial]) -> str:
    return next((first_line(trial.error.message) for trial in trials if trial.error is not None), "")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _figure(value: float) -> str:
    return f"{value:,.2f}" if value == value else _NOTHING


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share == share else _NOTHING


def _duration(value: timedelta | None) -> str:
    return format_duration(value) if value is not None else _NOTHING


def _or_null(value: float) -> float | None:
    return value if value == value else None
