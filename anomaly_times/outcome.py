"""What a pass made of one mission, in figures: all that views, logs and messages need, and small enough to be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from anomaly_times.errors import AnomalyTimesError
from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission
from anomaly_times.models.auto import WITHOUT
from anomaly_times.models.profile import INSTEAD
from anomaly_times.panel import Forecast, Labels, Scores
from anomaly_times.passes import DetectResult, ForecastResult

__all__ = [
    "Outcome",
    "Worst",
    "capped_note",
    "counted",
    "distinct_names",
    "grouped_notes",
    "outcome_of",
    "reasons",
]

_NAMED = 3
"""Series that a note names, at most."""


@dataclass(frozen=True, slots=True)
class Worst:
    """The highest score of a mission: of what (empty where it is 0), whose, and when."""

    score: float
    reason: str
    labels: Labels
    at: datetime


@dataclass(frozen=True)
class Outcome:
    """What a pass made of one mission, in figures.

    `points` counts forecast or scored points over all series, `anomalous` those that score over 1, `unforecast` those
    that could not be scored; `until` is the last time of a forecast, `models` says how many series each model forecast
    where `auto` chose, `warming` how many are too young for bounds of their own, `ended` how many were left out because
    they have. `warnings` are those of the pass, `remarks` hold these and what else a reader should know. Figures beside
    an `error` are of what could not be stored. `nothing_new` says that all was scored before.
    """

    mission: Mission
    series: int = 0
    points: int = 0
    until: datetime | None = None
    anomalous: int = 0
    unforecast: int = 0
    worst: Worst | None = None
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    error: AnomalyTimesError | None = None
    nothing_new: bool = False
    models: Mapping[str, int] = field(default_factory=dict)
    warming: int = 0
    ended: int = 0

    @property
    def failed(self) -> bool:
        """Whether there is nothing to show but the error."""
        return self.error is not None and not self.points


def outcome_of(result: ForecastResult | DetectResult) -> Outcome:
    """The figures of one mission's result."""
    if isinstance(result, ForecastResult):
        forecast = result.forecast
        if forecast is None:
            return Outcome(result.mission, warnings=result.warnings, remarks=result.warnings, error=result.error)
        remarks = result.warnings
        if result.ended:
            remarks = (*remarks, f"{result.ended:,} series ended, and were left out")
        if result.capped:
            remarks = (*remarks, capped_note(result.capped, len(forecast.labels)))
        if forecast.warming:
            remarks = (*remarks, f"{len(forecast.warming):,} series warming up: their bands are wide")
        remarks = (*remarks, *grouped_notes(forecast, beginning=(INSTEAD, WITHOUT)))
        points = int(np.isfinite(forecast.yhat).sum())
        return Outcome(
            result.mission,
            len(forecast.labels),
            points,
            forecast.grid.end,
            warnings=result.warnings,
            remarks=remarks,
            error=result.error,
            models=dict(Counter(choice.model for choice in forecast.models.values()).most_common()),
            warming=len(forecast.warming),
            ended=result.ended,
        )
    scores = result.scores
    if scores is None:
        error = result.error
        told = result.warnings
        return Outcome(result.mission, warnings=told, remarks=told, error=error, nothing_new=error is None)
    known = np.isfinite(scores.score)
    worst = None
    if known.any():
        i, t = (int(place) for place in np.unravel_index(np.nanargmax(scores.score), scores.score.shape))
        at = scores.grid.start + t * scores.grid.step
        worst = Worst(float(scores.score[i, t]), reasons(scores)[i, t] or "", scores.labels[i], at)
    return Outcome(
        result.mission,
        int(known.any(axis=1).sum()),
        int(known.sum()),
        anomalous=int((scores.score > 1).sum()),
        unforecast=result.unforecast,
        worst=worst,
        warnings=result.warnings,
        remarks=result.warnings,
        error=result.error,
    )


def reasons(scores: Scores) -> npt.NDArray[np.object_]:
    """What each score is of, one of `evidence.REASONS`: object[S, T], `None` where there is no score, or it is 0."""
    names = np.array([*REASONS, None], dtype=object)
    if scores.reason is None:
        return np.full(scores.score.shape, None, dtype=object)
    told = (scores.score > 0) & np.isfinite(scores.reason)
    return np.asarray(names[np.where(told, scores.reason, len(REASONS)).astype(np.intp)])


def capped_note(capped: int, series: int) -> str:
    """That an alert budget asks for what is rarer than a history of `capped` of so many series can tell."""
    return (
        f"{capped:,} of {counted(series, 'series', 'series')} may raise more alerts than the budget says: a history "
        "tells of what is rare up to ten times its own length; a longer lookback helps"
    )


def distinct_names(labels: Sequence[Labels]) -> list[str]:
    """A short name for each series: the labels in which they differ; all of them where there is one series."""
    shared = frozenset.intersection(*(frozenset(row) for row in labels)) if len(labels) > 1 else frozenset()
    names = []
    for row in labels:
        own = [(key, value) for key, value in row if (key, value) not in shared]
        metric = next((value for key, value in own if key == "__name__"), "")
        rest = Labels((key, value) for key, value in own if key != "__name__")
        names.append(metric + str(rest) if rest else metric or "{}")
    return names


def counted(n: int, one: str, many: str = "") -> str:
    """`1 mission`, `2 missions`; `many` is the plural where that is not just an s more."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def grouped_notes(forecast: Forecast, *, beginning: str | tuple[str, ...] = "") -> list[str]:
    """The notes of rows that begin so, equal ones once, each with the first series that it is about."""
    names = distinct_names(forecast.labels) if forecast.notes else []
    rows: dict[str, list[str]] = {}
    for i, note in sorted(forecast.notes.items()):
        if note.startswith(beginning):
            rows.setdefault(note, []).append(names[i])
    lines = []
    for note, named in rows.items():
        first = ", ".join(named[:_NAMED] + ["…"] * (len(named) > _NAMED))
        lines.append(f"{counted(len(named), 'series', 'series')} ({first}): {note}")
    return lines
