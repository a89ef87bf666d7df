"""Schedules that people made by hand on the base deployments, as missions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anomaly_times.conventions import Kind
from anomaly_times.durations import format_duration
from anomaly_times.errors import AnomalyTimesError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.plan import IDENTITY_FIELDS
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
    """Missions that hand-made schedules amount to, with the schedules of each, and why others amount to none.

    `notes` say what a mission will do that no schedule did.
    """

    settings: Settings
    missions: dict[str, Mission] = field(default_factory=dict)
    schedules: dict[str, list[HandMade]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_handmade(bases: Sequence[BaseDeployment], settings: Settings) -> Adoption:
    """The missions that schedules with a `promql` amount to.

    A forecast and a detection of one query become one mission, which keeps the name that their results carry. Where
    both set the same parameter differently, the one of the schedule that it is about holds. Two that share a name and
    not what they watch become no mission together: the first is taken, the other left.
    """
    parameters: dict[str, dict[str, Any]] = {}
    first: dict[str, Mission] = {}
    adoption = Adoption(settings)
    for base in bases:
        # The oldest first: of two that share a name it is the one that stands for it.
        for schedule in sorted(base.schedules, key=lambda schedule: str(schedule.get("created"))):
            given = schedule["parameters"] or {}
            if "mission" in given or "pack" in given or str(schedule.get("slug") or "").startswith("at:"):
                continue
            what = f"the {base.kind} schedule {schedule.get('slug') or schedule['id']}"
            if not given.get("promql"):
                adoption.left.append(f"{what} has no `promql`, so there is nothing that it could watch")
                continue
            if not schedule["active"]:
                adoption.left.append(f"{what} is not active")
                continue
            try:
                mission = mission_by_hand(given, settings)
            except AnomalyTimesError as exc:
                adoption.left.append(f"{what} is no mission: {exc.message}" + (f"; {exc.hint}" if exc.hint else ""))
                continue
            timing = _cadence(schedule["schedule"])
            if timing is None:
                adoption.left.append(f"{what} is neither an interval nor a cron line")
                continue
            watched = _resolved(mission, settings)
            other = next(
                (n for n in IDENTITY_FIELDS if _differ(n, first.setdefault(mission.name, watched), watched)), ""
            )
            made = adoption.schedules.setdefault(mission.name, [])
            if other:
                adoption.left.append(f"{what} has another {other} than the first one of the name {mission.name}")
                continue
            if any(one.kind == base.kind for one in made):
                adoption.left.append(f"{what} is the second one of {mission.name}, which can have one cadence")
                continue
            _merge(parameters.setdefault(mission.name, {}), mission, base.kind, timing)
            made.append(HandMade(base.kind, base.id, schedule["id"]))
    for name, spec in parameters.items():
        try:
            adoption.missions[name] = Mission.model_validate(spec)
        except ValueError as exc:
            adoption.left.append(f"the schedules of {spec['promql']} make no mission together: {exc}")
            continue
        for kind in {"forecast", "detect"} - {made.kind for made in adoption.schedules[name]}:
            every = format_duration(getattr(adoption.missions[name], kind).period)
            adoption.notes.append(f"{name} has no {kind} schedule; as a mission it gets one, every {every}")
    return adoption


def remove_adopted(server: PrefectServer, adoption: Adoption, *, project: str) -> list[str]:
    """Remove the hand-made schedules of missions that are deployed in `project`; gives the names of those missions.

    A deployed mission of that name that watches something else takes the place of no schedule.

    Raises:
        PrefectError: the server fails.
    """
    removed = []
    for name, mission in adoption.missions.items():
        found = server.read_mission(name)
        if found is None or found.project != project or found.deployed is None:
            continue
        try:
            deployed = _resolved(found.deployed.mission, adoption.settings)
        except UsageError:
            continue  # of a source that is not known here, so not the one of the schedules
        if any(_differ(one, deployed, _resolved(mission, adoption.settings)) for one in IDENTITY_FIELDS):
            continue
        for schedule in adoption.schedules[name]:
            server.delete_schedule(schedule.deployment, schedule.id)
        removed.append(name)
    return removed


def _resolved(mission: Mission, settings: Settings) -> Mission:
    """The mission with its source by name, where it had none."""
    return mission.model_copy(update={"source": settings.named_source(mission.source)[0]})


def _differ(name: str, one: Mission, other: Mission) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


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
    # Its schedule says when, whatever a parameter beside it says.
    inherited = {k: v for k, v in known.get(kind, {}).items() if k not in ("every", "cron")}
    known[kind] = {**inherited, **part, **{k: v for k, v in cadence.items() if k != "timezone"}}
