"""Schedules that people made by hand on the base deployments, as missions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anomaly_times.conventions import Kind
from anomaly_times.durations import format_duration
from anomaly_times.errors import AnomalyTimesError
from anomaly_times.mission import Mission
from anomaly_times.scheduling.handmade import mission_by_hand
from anomaly_times.scheduling.server import BaseDeployment, PrefectServer, read_timing
from anomaly_times.settings import Settings

__all__ = ["Adoption", "HandMade", "find_handmade", "remove_adopted"]


@dataclass(frozen=True)
class HandMade:
    """A schedule that somebody made: on which deployment, and its id there."""

    kind: Kind
    deployment: str
    id: str


@dataclass
class Adoption:
    """Missions that hand-made schedules amount to, with the schedules of each, and why others amount to none."""

    missions: dict[str, Mission] = field(default_factory=dict)
    schedules: dict[str, list[HandMade]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def find_handmade(bases: Sequence[BaseDeployment], settings: Settings) -> Adoption:
    """The missions that schedules with a `promql` amount to.

    A forecast and a detection of one query become one mission, which keeps the name that their results carry. Where
    both set the same parameter differently, the one of the schedule that it is about holds.
    """
    parameters: dict[str, dict[str, Any]] = {}
    adoption = Adoption()
    for base in bases:
        for schedule in base.schedules:
            given = schedule["parameters"] or {}
            if "promql" not in given or str(schedule.get("slug") or "").startswith("at:"):
                continue
            what = f"the {base.kind} schedule {schedule.get('slug') or schedule['id']}"
            if not schedule["active"]:
                adoption.left.append(f"{what} is not active")
                continue
            try:
                mission = mission_by_hand(given, settings)
            except AnomalyTimesError as exc:
                adoption.left.append(f"{what} is no mission: {exc.message}")
                continue
            timing = _cadence(schedule["schedule"])
            if timing is None:
                adoption.left.append(f"{what} is neither an interval nor a cron line")
                continue
            known = parameters.setdefault(mission.name, {})
            _merge(known, mission, base.kind, timing)
            adoption.schedules.setdefault(mission.name, []).append(HandMade(base.kind, base.id, schedule["id"]))
    for name, spec in parameters.items():
        try:
            adoption.missions[name] = Mission.model_validate(spec)
        except ValueError as exc:
            adoption.left.append(f"the schedules of {spec['promql']} make no mission together: {exc}")
    return adoption


def remove_adopted(server: PrefectServer, adoption: Adoption, *, project: str) -> list[str]:
    """Remove the hand-made schedules of missions that are deployed in `project`; gives the names of those missions.

    Raises:
        PrefectError: the server fails.
    """
    removed = []
    for name, schedules in adoption.schedules.items():
        found = server.read_mission(name)
        if found is not None and found.project == project and found.deployed is not None:
            for schedule in schedules:
                server.delete_schedule(schedule.deployment, schedule.id)
            removed.append(name)
    return removed


def _cadence(schedule: Mapping[str, Any]) -> dict[str, str] | None:
    timing = read_timing(schedule)
    if timing is None:
        return None
    if timing.every is None:
        return {"cron": timing.cron, "timezone": timing.timezone}
    return {"every": format_duration(timing.every)}


def _merge(known: dict[str, Any], mission: Mission, kind: Kind, cadence: Mapping[str, str]) -> None:
    dumped = mission.model_dump(exclude_defaults=True)
    part = dumped.pop(kind, {})
    other = "detect" if kind == "forecast" else "forecast"
    for name, value in dumped.items():
        if name == other:
            known.setdefault(other, {}).update({k: v for k, v in value.items() if k not in known[other]})
        else:
            known.setdefault(name, value)
    part.pop("every", None)
    if zone := cadence.get("timezone"):
        known.setdefault("timezone", zone)
    known[kind] = {**known.get(kind, {}), **part, **{k: v for k, v in cadence.items() if k != "timezone"}}
