"""The alerts that scores would have raised, as a rule engine counts them.

A series is over while its newest score is more than `alert.above`, or, with `alert.points`, while so many of the points
up to its newest score are; a score stands until the next one, for two cadences and the offset at most. An alert fires
once that has lasted for more than `alert.for` (a mission's while any of its series is over, with `per_series` each
series' own). One that comes back within `alert.keep_firing_for` is the same alert. `outputs.rules` says the same in
PromQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from anomaly_times.evidence import FLAT, MISSING, REASONS, ROUGHNESS
from anomaly_times.mission import Mission
from anomaly_times.panel import Labels, Scores

__all__ = ["Alert", "Alerts", "Episode", "find_alerts"]

_SIDELESS = frozenset({REASONS[ROUGHNESS], REASONS[FLAT], REASONS[MISSING]})

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Episode:
    """One series that was over during an alert: from its first point to its last, and its highest score.

    `reason`, one of `evidence.REASONS`, is what that score is of. `at`, `value` and `yhat` are those of the point that
    was farthest from its forecast (NaN where none had both), and `direction` is the side on which it lay; empty for
    what has no side.
    """

    labels: Labels
    start: datetime
    end: datetime
    peak: float
    at: datetime
    value: float
    yhat: float
    reason: str
    direction: str

    @property
    def deviation(self) -> float:
        """How far it was from its forecast at the farthest."""
        return self.value - self.yhat


@dataclass(frozen=True, slots=True)
class Alert:
    """Somebody is told at `fired`, of what began at `start` and was last over at `end`; the worst series first."""

    mission: str
    start: datetime
    fired: datetime
    end: datetime
    episodes: tuple[Episode, ...]

    @property
    def worst(self) -> Episode:
        """The series with the highest score."""
        return self.episodes[0]


@dataclass(frozen=True)
class Alerts:
    """The alerts of a mission in order of time; `brief` counts what was over and ended before anybody was told.

    `weeks` is how long the time is that was looked at, `step` that between two points.
    """

    found: tuple[Alert, ...]
    brief: int
    weeks: float
    step: timedelta

    @property
    def per_week(self) -> float:
        """How many a week."""
        return len(self.found) / self.weeks

    @property
    def firing(self) -> tuple[timedelta, ...]:
        """How long each fired."""
        return tuple(max(timedelta(0), alert.end - alert.fired) + self.step for alert in self.found)

    def by_hour(self, timezone: str) -> tuple[int, ...]:
        """How many fired in each hour of the day, by the clock of `timezone`."""
        hours = [alert.fired.astimezone(ZoneInfo(timezone)).hour for alert in self.found]
        return tuple(hours.count(hour) for hour in range(24))

    def by_weekday(self, timezone: str) -> tuple[int, ...]:
        """How many fired on each day of the week, from Monday, by the clock of `timezone`."""
        days = [alert.fired.astimezone(ZoneInfo(timezone)).weekday() for alert in self.found]
        return tuple(days.count(day) for day in range(7))


def find_alerts(mission: Mission, scores: Scores) -> Alerts:
    """The alerts that a mission's `alert:` would have made of its scores, which are at the mission's steps."""
    alert, grid = mission.alert, scores.grid
    with np.errstate(invalid="ignore"):
        over = scores.score > alert.above
    least, newest = alert.least_of_newest
    held = _held(_often(over, least, newest), np.isfinite(scores.score), mission.score_stands // grid.step - 1)
    everyone = np.arange(len(scores.labels))
    units = [everyone[i : i + 1] for i in everyone] if alert.per_series else [everyone]
    found: list[Alert] = []
    brief = 0
    for rows in units:
        for runs in _together(_runs(np.asarray(held[rows].any(axis=0))), alert.keep_firing_for // grid.step):
            fires = [first for first, last in runs if (last - first + 1) * grid.step > alert.lasting]
            if not fires:
                brief += 1
                continue
            # The first of so many points was over before they were enough.
            episodes = _episodes(scores, over, rows, slice(max(0, runs[0][0] - newest + 1), runs[-1][1] + 1))
            found.append(
                Alert(
                    mission.name,
                    min(each.start for each in episodes),
                    grid.start + fires[0] * grid.step + alert.lasting,
                    max(each.end for each in episodes),
                    episodes,
                )
            )
    found.sort(key=lambda each: (each.fired, each.worst.labels))
    return Alerts(tuple(found), brief, grid.n * grid.step / timedelta(weeks=1), grid.step)


def _often(over: Bools, least: int, newest: int) -> Bools:
    """Where at least so many of so many points up to each (bool[S, T]) are over."""
    if newest == 1:
        return over
    sums = np.concatenate([np.zeros((len(over), newest), dtype=np.int64), np.cumsum(over, axis=1)], axis=1)
    return np.asarray(sums[:, newest:] - sums[:, :-newest] >= least)


def _held(over: Bools, known: Bools, most: int) -> Bools:
    """`over` with points that have no score taken for the last one that has, up to `most` points before."""
    at = np.arange(over.shape[1])
    newest = np.maximum.accumulate(np.where(known, at, -1), axis=1)
    there = (newest >= 0) & (at - newest <= most)
    return there & np.take_along_axis(over, np.maximum(newest, 0), axis=1)


def _runs(over: Bools) -> list[tuple[int, int]]:
    """The first and the last point of each stretch where `over` (bool[T]) is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], over, [False]]).astype(np.int8)))
    return [(int(first), int(stop) - 1) for first, stop in edges.reshape(-1, 2)]


def _together(runs: Sequence[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Runs with at most so many points between one and the next."""
    group: list[tuple[int, int]] = []
    for run in runs:
        if group and run[0] - group[-1][1] - 1 > most:
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def _episodes(scores: Scores, over: Bools, rows: npt.NDArray[np.intp], part: slice) -> tuple[Episode, ...]:
    """What each series did that was over in this part of the time, the highest score first."""
    grid = scores.grid
    found = []
    for row in rows[over[rows, part].any(axis=1)].tolist():
        points = part.start + np.flatnonzero(over[row, part])
        peak = int(points[scores.score[row, points].argmax()])
        reason = REASONS[int(scores.reason[row, peak])] if scores.reason is not None else ""
        error = np.nan_to_num(scores.y[row, points] - scores.yhat[row, points])
        farthest = int(points[np.abs(error).argmax()])
        value, yhat = float(scores.y[row, farthest]), float(scores.yhat[row, farthest])
        first, last, at = (grid.start + int(i) * grid.step for i in (points[0], points[-1], farthest))
        sideless = reason in _SIDELESS or value != value
        found.append(
            Episode(
                scores.labels[row],
                first,
                last,
                float(scores.score[row, peak]),
                at,
                value,
                yhat,
                reason,
                "" if sideless else "above" if value > yhat else "below",
            )
        )
    return tuple(sorted(found, key=lambda each: (-each.peak, each.labels)))
