"""What a pass over many missions looks like: a line a mission, whatever prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from anomaly_times.cli.views import JSON_SCHEMA, Cell, counted, first_line, found_at, stamp
from anomaly_times.conventions import Kind
from anomaly_times.durations import iso_utc
from anomaly_times.outcome import Outcome
from anomaly_times.scoring import format_score
from anomaly_times.stores import Written

__all__ = ["PassView"]


@dataclass(frozen=True, eq=False)
class PassView:
    """One line a mission: failures first, then the highest scores.

    `written` is `None` for a dry run.
    """

    kind: Kind
    now: datetime
    outcomes: Sequence[Outcome]
    written: Written | None

    @property
    def exit_code(self) -> int:
        """0, or the highest exit code among the errors of missions."""
        return max((outcome.error.exit_code for outcome in self.outcomes if outcome.error is not None), default=0)

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns."""
        if self.kind == "forecast":
            return ("<mission", ">series", ">points", "until", "remarks")
        return ("<mission", ">series", ">points", ">over 1", ">worst", "of", "<where", "remarks")

    def rows(self) -> list[tuple[Cell, ...]]:
        """One row a mission."""
        return [self._row(outcome) for outcome in sorted(self.outcomes, key=_rank)]

    def _row(self, outcome: Outcome) -> tuple[Cell, ...]:
        remarks: Cell = "; ".join(map(first_line, outcome.remarks))
        if outcome.error is not None:
            remarks = [(first_line(outcome.error.message), "bad")]
        elif outcome.nothing_new:
            remarks = f"scored up to {self._stamp(outcome.mission.last_time(self.now))} already"
        name = outcome.mission.name
        counts = ("", "") if outcome.failed else (f"{outcome.series:,}", f"{outcome.points:,}")
        if self.kind == "forecast":
            return (name, *counts, self._stamp(outcome.until) if outcome.until else "", remarks)
        over = f"{outcome.anomalous:,}" if outcome.anomalous else ""
        worst = outcome.worst
        if worst is None:
            return (name, *counts, over, "", "", "", remarks)
        style = "bad" if worst.score > 1 else "good"
        score: Cell = [(format_score(worst.score), style)]
        found = found_at(worst.reason, self._stamp(worst.at))
        return (name, *counts, over, score, found, str(worst.labels), remarks)

    def _stamp(self, at: datetime) -> str:
        return stamp(at, day=at.date() != self.now.date())

    def summary(self) -> list[str]:
        """How many missions did what, and what was written."""
        failed = sum(outcome.failed for outcome in self.outcomes)
        lost = sum(outcome.error is not None for outcome in self.outcomes) - failed
        n, points = len(self.outcomes), sum(outcome.points for outcome in self.outcomes)
        done = {"forecast": "forecast", "detect": "scored"}[self.kind]
        text = f"{n - failed:,} of {counted(n, 'mission')} {done}, {counted(points, 'point')}"
        if failed:
            text += f"; {failed:,} failed"
        if lost:
            text += f"; {lost:,} could not be stored"
        if self.written is None:
            return [f"{text}; dry run: nothing stored"]
        skipped = f", {self.written.skipped:,} series were there already" if self.written.skipped else ""
        return [f"{text}; {counted(self.written.samples, 'sample')} stored{skipped}"]

    def notes(self) -> list[str]:
        """What to try about each failure, in the order of the rows."""
        hints: dict[str, str] = {}
        for outcome in sorted(self.outcomes, key=_rank):
            if outcome.error is not None and outcome.error.hint:
                hints.setdefault(outcome.error.hint, outcome.mission.name)
        return [f"{mission}: {hint}" for hint, mission in hints.items()]

    def document(self) -> dict[str, Any]:
        """The whole result for JSON, missions in the order of the files."""
        written = self.written
        return {
            "schema": JSON_SCHEMA,
            "kind": f"{self.kind}-missions",
            "now": iso_utc(self.now),
            "failed": sum(outcome.error is not None for outcome in self.outcomes),
            "missions": [self._entry(outcome) for outcome in self.outcomes],
            "written": written and {"samples": written.samples, "series": written.series, "skipped": written.skipped},
        }

    def _entry(self, outcome: Outcome) -> dict[str, Any]:
        error, worst = outcome.error, outcome.worst
        entry: dict[str, Any] = {
            "mission": outcome.mission.name,
            "source": outcome.mission.source,
            "series": outcome.series,
            "points": outcome.points,
        }
        if self.kind == "forecast":
            entry |= {
                "until": iso_utc(outcome.until) if outcome.until else None,
                "models": dict(outcome.models),
                "warming": outcome.warming,
            }
        else:
            entry |= {
                "anomalous": outcome.anomalous,
                "unforecast": outcome.unforecast,
                "worst": worst
                and {
                    "score": worst.score,
                    "reason": worst.reason or None,
                    "labels": dict(worst.labels),
                    "at": iso_utc(worst.at),
                },
            }
        return entry | {
            "warnings": list(outcome.remarks),
            "error": error and {"message": error.message, "hint": error.hint, "exit_code": error.exit_code},
        }


def _rank(outcome: Outcome) -> tuple[bool, float, str]:
    worst = outcome.worst.score if outcome.worst else -1.0
    return (outcome.error is None, -worst, outcome.mission.name)
