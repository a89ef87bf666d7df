"""What validation found, for people, programs, and a pull request."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from anomaly_times.checks import Report
from anomaly_times.cli.views import Cell
from anomaly_times.problems import Problem, Severity

__all__ = ["CheckView"]

JSON_SCHEMA = 1
_STYLES: dict[Severity, str] = {"error": "bad", "warning": "warn", "info": "muted"}
_COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
_SHOWN_COSTS = 20
_SHOWN_UNCHECKED = 5


@dataclass(frozen=True)
class CheckView:
    """A report of `check_missions`; `asked` says whether live checks were wanted."""

    report: Report
    asked: bool

    def lines(self) -> list[Cell]:
        """Every problem with its place, then the sums."""
        # What each of hundreds of missions costs is for programs.
        shown = [p for p in self.report.problems if p.code != "cost/estimate" or self.report.missions <= _SHOWN_COSTS]
        out: list[Cell] = []
        for problem in shown:
            about = f" ({problem.mission})" if problem.mission else ""
            style = _STYLES[problem.severity]
            out.append([(f"{problem.where} ", ""), (problem.severity, style), (f" {problem.code}{about}", "muted")])
            out += [f"    {line}" for line in problem.message.split("\n")]
            if problem.hint:
                out.append([(f"    → {problem.hint}", "muted")])
        return [*out, *self.summary()]

    def summary(self) -> list[Cell]:
        """How many missions and problems there are, and what all of it costs."""
        report = self.report
        counts = Counter(problem.severity for problem in report.problems)
        parts = [f"{counts[severity]} {severity}{'s'[: counts[severity] != 1]}" for severity in ("error", "warning")]
        if report.silenced:
            parts.append(f"{len(report.silenced)} silenced")
        lines: list[Cell] = [f"{report.missions:,} mission{'s'[: report.missions != 1]}: {', '.join(parts)}"]
        if report.costs:
            costs = report.costs.values()
            lines.append(
                f"{sum(c.series for c in costs):,} series; forecasts read {sum(c.read for c in costs):,} points a run, "
                f"{sum(c.written for c in costs):,} points are written a day"
            )
        return lines

    def notes(self) -> list[str]:
        """Why live checks did not run, where they were wanted."""
        reasons = Counter(error.message for error in self.report.unchecked.values())
        notes = [
            f"live checks of {n:,} mission{'s'[: n != 1]} did not run: {reason}"
            for reason, n in reasons.most_common(_SHOWN_UNCHECKED)
        ]
        if not self.asked and self.report.missions:
            notes.append("no server was asked (--offline): unknown metrics and the like are not noticed")
        return notes

    def document(self) -> dict[str, Any]:
        """The report for JSON."""
        report = self.report
        return {
            "schema": JSON_SCHEMA,
            "kind": "validate",
            "missions": report.missions,
            "problems": [_document(problem) for problem in report.problems],
            "silenced": [_document(each.problem) | {"reason": each.reason} for each in report.silenced],
            "costs": {name: asdict(cost) for name, cost in report.costs.items()},
            "unchecked": {name: error.message for name, error in report.unchecked.items()},
        }

    def annotations(self) -> list[str]:
        """GitHub's workflow commands, one a problem: it shows them on the lines that they are about.

        https://docs.github.com/actions/reference/workflow-commands-for-github-actions
        """
        out = []
        for problem in self.report.problems:
            if problem.code == "cost/estimate":
                continue
            text = problem.message + (f"\n→ {problem.hint}" if problem.hint else "")
            place = f"file={_property(problem.where.file)},line={problem.where.line or 1}"
            title = _property(f"{problem.code} {problem.mission}".strip())
            out.append(f"::{_COMMANDS[problem.severity]} {place},title={title}::{_escaped(text)}")
        return out


def _document(problem: Problem) -> dict[str, Any]:
    return {
        "code": problem.code,
        "severity": problem.severity,
        "mission": problem.mission or None,
        "file": problem.where.file,
        "line": problem.where.line or None,
        "field": problem.where.field or None,
        "message": problem.message,
        "hint": problem.hint or None,
    }


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
