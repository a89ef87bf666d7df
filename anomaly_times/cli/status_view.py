"""What `at status` shows: a line a mission, those that need somebody first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from anomaly_times.cli.views import JSON_SCHEMA, Cell, counted, first_line, stamp
from anomaly_times.conventions import Kind
from anomaly_times.deployed import DeployedMission
from anomaly_times.durations import format_duration, iso_utc
from anomaly_times.mission import Mission
from anomaly_times.plan import KINDS
from anomaly_times.scheduling.health import CADENCES, Health, State
from anomaly_times.scheduling.server import EndedRun

__all__ = ["Deployed", "StatusView"]

_ORDER: tuple[str, ...] = ("error", "unforecast", "unscored", "late", "new", "ok", "paused")
_FINE = ("new", "ok", "paused")
_REMARKS: Mapping[State, str] = {
    "unforecast": "no forecast is stored for the time to come",
    "unscored": "nothing was scored lately",
    "late": "scores are behind",
}


@dataclass(frozen=True)
class Deployed:
    """What a Prefect server has of our project: missions, by name the errors of broken ones, last runs newest first."""

    deployed: tuple[DeployedMission, ...]
    broken: Mapping[str, str]
    runs: tuple[EndedRun, ...]

    @property
    def missions(self) -> tuple[Mission, ...]:
        """The missions."""
        return tuple(one.mission for one in self.deployed)


@dataclass(frozen=True)
class _Line:
    name: str
    state: str
    health: Health | None = None
    run: EndedRun | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class StatusView:
    """The health of missions, beside what Prefect knows of them (`None`: they come from files)."""

    health: tuple[Health, ...]
    now: datetime
    deployed: Deployed | None = None

    @property
    def exit_code(self) -> int:
        """0, or the highest exit code among the errors that prevented looking."""
        return max((one.error.exit_code for one in self.health if one.error is not None), default=0)

    @property
    def needs_help(self) -> bool:
        """Whether a mission that is neither paused nor new is anything but ok."""
        return any(line.state not in _FINE for line in self._lines)

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns."""
        last = () if self.deployed is None else ("last run",)
        return ("<mission", "state", "scored", ">behind", "forecast", *last)

    def rows(self) -> list[tuple[Cell, ...]]:
        """One row a mission; times of another day than today come with it."""
        return [self._row(line) for line in self._sorted]

    @property
    def _sorted(self) -> list[_Line]:
        return sorted(self._lines, key=lambda line: (_ORDER.index(line.state), line.name))

    def _row(self, line: _Line) -> tuple[Cell, ...]:
        health = line.health
        style = {"ok": "good", "new": "good", "paused": "muted", "late": "warn"}.get(line.state, "bad")
        scored = self._stamp(health.scored) if health and health.scored else "–"
        behind = format_duration(health.lag) if health and health.lag is not None else "–"
        covered = self._stamp(health.covered) if health and health.covered else "–"
        last: tuple[Cell, ...] = ()
        if self.deployed is not None:
            run = line.run
            last = (f"{self._stamp(run.ended.replace(second=0, microsecond=0))} {run.state}" if run else "–",)
        return (line.name, [(line.state, style)], scored, behind, covered, *last)

    def _stamp(self, at: datetime) -> str:
        return stamp(at, day=at.date() != self.now.date())

    def summary(self) -> list[str]:
        """What is to be said of missions, and how many are how."""
        remarks = [f"{line.name}: {'; '.join(map(first_line, line.remarks))}" for line in self._sorted if line.remarks]
        counts = {state: sum(line.state == state for line in self._lines) for state in _ORDER}
        told = ", ".join(counted(n, state, "errors" if state == "error" else state) for state, n in counts.items() if n)
        return [*remarks, counted(len(self._lines), "mission") + (f": {told}" if told else "")]

    def notes(self) -> list[str]:
        """What to try where looking failed."""
        return list(dict.fromkeys(one.error.hint for one in self.health if one.error is not None and one.error.hint))

    def document(self) -> dict[str, Any]:
        """The whole result for JSON."""
        return {
            "schema": JSON_SCHEMA,
            "kind": "status",
            "now": _iso(self.now),
            "missions": [self._entry(line) for line in self._lines],
        }

    def _entry(self, line: _Line) -> dict[str, Any]:
        health, run = line.health, line.run
        lag = health.lag if health else None
        return {
            "mission": line.name,
            "state": line.state,
            "scored_until": _iso(health.scored) if health else None,
            "lag_seconds": lag.total_seconds() if lag is not None else None,
            "forecast_until": _iso(health.covered) if health else None,
            "last_run": {"ended": _iso(run.ended), "state": run.state} if run else None,
            "remarks": list(line.remarks),
        }

    @cached_property
    def _lines(self) -> tuple[_Line, ...]:
        if self.deployed is None:
            return tuple(_Line(one.mission.name, one.state, one, None, _remarks(one)) for one in self.health)
        by_name = {one.mission.name: one for one in self.deployed.deployed}
        newest: dict[tuple[Kind, str], EndedRun] = {}
        for run in self.deployed.runs:
            for about in run.missions or (run.about,):
                newest.setdefault((run.kind, about), run)
        lines = [self._deployed_line(one, by_name[one.mission.name], newest) for one in self.health]
        lines += [_Line(name, "error", remarks=(error,)) for name, error in self.deployed.broken.items()]
        return tuple(lines)

    def _deployed_line(
        self, one: Health, deployed: DeployedMission, newest: Mapping[tuple[Kind, str], EndedRun]
    ) -> _Line:
        name, pause, runs = one.mission.name, deployed.paused, []
        for kind, pack in zip(KINDS, deployed.packs, strict=True):
            # Whichever came later, the pack's run or one of the mission alone, says how that kind is now.
            both = [run for about in (pack, name) if (run := newest.get((kind, about)))]
            runs += sorted(both, key=lambda run: run.ended)[-1:]
        last = max(runs, key=lambda run: run.ended, default=None)
        if pause is not None and (pause.until is None or pause.until > self.now):
            until = f" until {stamp(pause.until)}" if pause.until else ""
            return _Line(name, "paused", one, last, (f"paused{until}{f': {pause.reason}' if pause.reason else ''}",))
        failures = [failure for run in runs if (failure := _failure(run, name))]
        if one.state in ("unforecast", "unscored") and not failures and self.now < deployed.since + _first_while(one):
            return _Line(name, "new", one, last, (f"deployed at {stamp(deployed.since.replace(microsecond=0))}",))
        return _Line(name, one.state, one, last, (*_remarks(one), *failures))


def _first_while(health: Health) -> timedelta:
    """So long after its `since` a mission may be without a forecast or scores, and nothing is wrong."""
    mission = health.mission
    return mission.forecast.period + CADENCES * max(mission.detect.period, mission.step) + mission.offset


def _remarks(health: Health) -> tuple[str, ...]:
    if health.error is not None:
        return (health.error.message,)
    remark = _REMARKS.get(health.state)
    return (remark,) if remark else ()


def _failure(run: EndedRun, name: str) -> str:
    """What went wrong with this mission in a run; empty where nothing did."""
    if run.state == "Completed" or (run.errors is not None and name not in run.errors):
        return ""
    message = run.message if run.errors is None else run.errors[name]
    return f"{run.about} {run.state}" + (f": {message}" if message else "")


def _iso(at: datetime | None) -> str | None:
    return iso_utc(at) if at else None
