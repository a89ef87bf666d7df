"""What has to change, so that what is deployed is what the files say.

Pure: missions and what was found on the server go in, a frozen plan of typed changes comes out. A plan knows the
fingerprint of the state that it was made from, so that it can be carried out later, exactly, or not at all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from anomaly_times.conventions import (
    TAG,
    TAG_PAUSED,
    Kind,
    mission_of_variable,
    pack_slug,
    pack_tag,
    project_tag,
    variable_name,
)
from anomaly_times.deployed import SPEC, DeployedMission, Pause, from_value, packs_of, project_of, to_value
from anomaly_times.durations import EPOCH, format_duration, iso_utc
from anomaly_times.errors import MissionError, PrefectError, UsageError
from anomaly_times.mission import Mission

__all__ = [
    "IDENTITY_FIELDS",
    "KINDS",
    "PACK_SIZE",
    "Change",
    "Create",
    "Delete",
    "FieldChange",
    "FirstRun",
    "Found",
    "Keep",
    "Leave",
    "PackSchedule",
    "Plan",
    "Refuse",
    "SavedPlan",
    "ScheduleChange",
    "State",
    "Timing",
    "Update",
    "build_plan",
    "field_changes",
    "first_cutoff",
    "first_runs",
    "new_missions",
    "pack_phase",
    "read_saved",
    "restart",
    "saved",
    "timing_of",
    "to_document",
]

PACK_SIZE = 500
"""Missions that share a scheduled run, at most."""

KINDS: tuple[Kind, Kind] = ("forecast", "detect")
"""The two packs of a mission, in the order in which they are kept."""

_FORMAT = 1
_NEW_FOR = timedelta(hours=1)
"""So long after its `since` a mission is looked after until its first forecast has been started."""
_MANY = 5
"""More new missions than this in one pack get one run together: each run costs a process."""

IDENTITY = "identity changes, forecasts restart"
RESTART = "forecasts restart"
MODEL = "model refits"
BOUNDS = "bounds change, score history stays"
GATES = "scores are counted differently from now on"
SCHEDULE = "schedule only"
NEXT_RUN = "takes effect with the next run"
NOTE = "nothing that runs changes"
_STRONGEST_FIRST = (IDENTITY, RESTART, MODEL, BOUNDS, GATES, SCHEDULE, NEXT_RUN, NOTE)

IDENTITY_FIELDS = ("promql", "step", "source", "labels")
"""What a forecast must share with a mission, to be one of it."""
_RESTART_FIELDS = (*IDENTITY_FIELDS, "write")
"""And the place where it is kept, for what is in the old one is not looked at any more."""
_MEANINGS: Mapping[str, str] = {
    **dict.fromkeys(IDENTITY_FIELDS, IDENTITY),
    "write": RESTART,
    **dict.fromkeys(("season", "timezone", "forecast.model", "forecast.lookback"), MODEL),
    **dict.fromkeys(("forecast.exclude", "forecast.rebase"), MODEL),
    **dict.fromkeys(("forecast.level", "forecast.interval_scale", "detect.valid_range"), BOUNDS),
    **dict.fromkeys(("detect.alerts_per_week", "detect.per", "detect.evidence"), BOUNDS),
    **dict.fromkeys(("detect.direction", "detect.min_deviation", "detect.min_relative_deviation"), GATES),
    **dict.fromkeys(("detect.missing", "detect.out_of_range_score"), GATES),
    **dict.fromkeys(("forecast.every", "forecast.cron", "detect.every", "detect.cron", "isolated"), SCHEDULE),
    **dict.fromkeys(("description", "silence", "incidents", "backtest"), NOTE),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """When a pack runs: `every` so long, `phase` after the epoch; or by a cron line in its time zone."""

    every: timedelta | None = None
    phase: timedelta = timedelta(0)
    cron: str = ""
    timezone: str = "UTC"


@dataclass(frozen=True)
class PackSchedule:
    """A schedule of ours on a base deployment; `timing` is `None` where somebody made it into one of another kind."""

    slug: str
    kind: Kind
    timing: Timing | None
    active: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Found:
    """A Variable that is called like one of a mission: a deployed mission, or the error of one that is broken.

    `project` is empty where it does not carry our tags. `digest` changes with its value or tags.
    """

    name: str
    project: str
    packs: tuple[str, str]
    digest: str
    deployed: DeployedMission | None = None
    error: str = ""
    newer: bool = False
    retagged: bool = False

    @classmethod
    def of(cls, variable: str, value: object, tags: Sequence[str]) -> Found:
        """What a Variable called `variable` is; its name must be one of a mission."""
        name = mission_of_variable(variable)
        digest = hashlib.sha256(msgspec.json.encode([value, sorted(tags)], order="sorted")).hexdigest()[:16]
        head = (name, project_of(tags), packs_of(tags), digest)
        try:
            deployed = from_value(variable, value, tags)
        except MissionError as exc:
            spec = value.get("spec") if isinstance(value, Mapping) else None
            return cls(*head, error=exc.message, newer=isinstance(spec, int) and spec > SPEC)
        prefixes = (project_tag(""), pack_tag("at:"))
        ours = {tag for tag in tags if tag in (TAG, TAG_PAUSED) or tag.startswith(prefixes)}
        return cls(*head, deployed, retagged=ours != set(deployed.tags))


@dataclass(frozen=True)
class State:
    """What is on the server: missions by name (of every project), our pack schedules, and the base deployments.

    `deployments` holds the ids of those that exist, `resting` the kinds whose deployment as a whole is paused.
    """

    found: Mapping[str, Found] = field(default_factory=dict)
    schedules: Sequence[PackSchedule] = ()
    deployments: Mapping[Kind, str] = field(default_factory=dict)
    resting: frozenset[Kind] = frozenset()

    def fingerprint(self, project: str, wanted: Iterable[str]) -> str:
        """What changes when anything changes that a plan for these missions depends on."""
        names = set(wanted)
        variables = sorted(
            (found.name, found.project, found.digest)
            for found in self.found.values()
            if found.project == project or found.name in names
        )
        schedules = sorted(
            (s.kind, s.slug, s.id, repr(s.timing), s.active, msgspec.json.encode(s.parameters, order="sorted").decode())
            for s in self.schedules
        )
        text = msgspec.json.encode([variables, schedules, sorted(self.deployments.items())])
        return hashlib.sha256(text).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a mission, by its dotted name: how it was, how it will be, and what that means."""

    field: str
    old: Any
    new: Any
    meaning: str


@dataclass(frozen=True)
class Create:
    """A mission that is not there yet."""

    target: DeployedMission

    @property
    def name(self) -> str:
        """Of the mission."""
        return self.target.mission.name


@dataclass(frozen=True)
class Update:
    """A mission that differs from its file; `drift` says what was changed in Prefect behind our back.

    `restarts` says that no forecast from before counts, and `waits` that the first that does comes later: at the
    `since` of the target. `before` is what it was, where that can be read.
    """

    target: DeployedMission
    fields: tuple[FieldChange, ...]
    drift: str = ""
    restarts: bool = False
    waits: bool = False
    before: Mission | None = None

    @property
    def name(self) -> str:
        """Of the mission."""
        return self.target.mission.name

    @property
    def meaning(self) -> str:
        """What the strongest of the changes means."""
        if self.waits:
            return f"{IDENTITY} at {self.target.since:%Y-%m-%d %H:%M} UTC, when those of the old step have ended"
        meanings = {change.meaning for change in self.fields}
        if self.restarts and IDENTITY not in meanings:
            return RESTART
        return next((meaning for meaning in _STRONGEST_FIRST if meaning in meanings), SCHEDULE)


@dataclass(frozen=True)
class Delete:
    """A mission of ours that the files no longer have; `before` is what it was, where that can be read."""

    name: str
    packs: tuple[str, str]
    before: Mission | None = None


@dataclass(frozen=True)
class Keep:
    """A mission that is as its file says."""

    target: DeployedMission

    @property
    def name(self) -> str:
        """Of the mission."""
        return self.target.mission.name


@dataclass(frozen=True)
class Leave:
    """A mission of ours that the files do not have, and that stays because nobody asked to prune."""

    name: str
    error: str = ""


@dataclass(frozen=True)
class Refuse:
    """A mission that cannot be deployed under its name, and why."""

    name: str
    reason: str
    hint: str


Change = Create | Update | Delete | Keep | Leave | Refuse
C = TypeVar("C", Create, Update, Delete, Keep, Leave, Refuse)


@dataclass(frozen=True)
class ScheduleChange:
    """A pack schedule to `create`, `patch` or `delete`; `drift` says what was changed behind our back."""

    action: str
    schedule: PackSchedule
    drift: str = ""


@dataclass(frozen=True)
class Plan:
    """All changes, in the order of mission names, and the fingerprint of the state that they start from."""

    project: str
    prune: bool
    fingerprint: str
    wanted: tuple[Mission, ...]
    changes: tuple[Change, ...]
    schedules: tuple[ScheduleChange, ...]
    notes: tuple[str, ...] = ()

    def of(self, kind: type[C]) -> list[C]:
        """The changes of one kind."""
        return [change for change in self.changes if isinstance(change, kind)]

    @property
    def paused(self) -> list[DeployedMission]:
        """The missions that rest, and go on resting."""
        return [c.target for c in self.changes if isinstance(c, (Update, Keep)) and c.target.paused]

    @property
    def empty(self) -> bool:
        """Nothing has to change."""
        return not self.schedules and not any(isinstance(c, (Create, Update, Delete)) for c in self.changes)

    @property
    def counts(self) -> dict[str, int]:
        """How many missions fall under each word; drifted are also schedules of which no such mission tells."""
        updates = self.of(Update)
        drifted = [update for update in updates if update.drift]
        told = {slug for update in drifted for slug in update.target.packs}
        schedules = [s for s in self.schedules if s.drift and s.schedule.slug not in told]
        return {
            "create": len(self.of(Create)),
            "update": len(updates),
            "delete": len(self.of(Delete)),
            "unchanged": len(self.of(Keep)),
            "paused": len(self.paused),
            "drifted": len(drifted) + len(schedules),
            "left": len(self.of(Leave)),
            "refused": len(self.of(Refuse)),
        }


def build_plan(wanted: Sequence[Mission], state: State, *, project: str, now: datetime, prune: bool = False) -> Plan:
    """The changes that lead from `state` to `wanted`.

    A mission stays in its packs while its cadence stays; new ones fill the packs that have room.

    Args:
        wanted: the missions of the files, each name once.
        state: what was found.
        project: whose files these are; nothing of another project is changed.
        now: becomes the `since` of missions whose identity changes; with a time zone.
        prune: delete the missions of this project that `wanted` does not have.

    Raises:
        UsageError: to prune with no missions at all, which would delete everything.
        PrefectError: a base deployment is missing.
        MissionError: a mission is too large to be deployed.
    """
    if prune and not wanted:
        raise UsageError(
            "there are no missions here, and --prune would delete all that are deployed",
            hint="is this the right folder? `at mission delete NAME` deletes one by one",
        )
    if missing := [kind for kind in KINDS if kind not in state.deployments]:
        raise PrefectError(
            f"the Prefect server has no deployment for {' and '.join(missing)}", hint="`at deploy` makes them"
        )
    refused = {m.name: r for m in wanted if (r := _refusal(state.found.get(m.name), project))}
    missions = {mission.name: mission for mission in wanted if mission.name not in refused}
    rest = [
        f for f in state.found.values() if f.project == project and f.name not in missions and f.name not in refused
    ]
    staying = [] if prune else rest
    packs = _assign(missions, state, project, staying)
    changes: list[Change] = list(refused.values())
    for name, mission in missions.items():
        changes.append(_change(mission, packs[name], state.found.get(name), project=project, now=now))
    changes += [
        Delete(f.name, f.packs, f.deployed.mission if f.deployed else None) if prune else Leave(f.name, f.error)
        for f in rest
    ]
    schedules = _schedules(changes, staying, state)
    return Plan(
        project=project,
        prune=prune,
        fingerprint=state.fingerprint(project, (mission.name for mission in wanted)),
        wanted=tuple(wanted),
        changes=tuple(sorted(changes, key=lambda change: change.name)),
        schedules=tuple(schedules),
        notes=tuple(
            f"the {kind} deployment is paused in Prefect: none of its schedules runs"
            for kind in KINDS
            if kind in state.resting
        ),
    )


def _refusal(found: Found | None, project: str) -> Refuse | None:
    if found is None:
        return None
    if not found.project:
        reason = f"the Variable {variable_name(found.name)} exists and is not ours"
        return Refuse(found.name, reason, "rename the mission, or delete that Variable")
    if found.project != project:
        reason = f"the project {found.project!r} holds a mission of that name"
        return Refuse(found.name, reason, "names are unique on a Prefect server: rename one of them")
    if found.newer:
        return Refuse(found.name, found.error, "upgrade anomaly-times here")
    return None


def _change(
    mission: Mission, packs: tuple[str, str], found: Found | None, *, project: str, now: datetime
) -> Create | Update | Keep:
    if found is None:
        # One of that name may have been deleted a moment ago, with its last forecast in the store.
        target = DeployedMission(mission, project, packs, now)
        to_value(target)
        return Create(target)
    before = found.deployed
    if before is None:
        # What it was is not known, so no forecast of its can be trusted.
        target = DeployedMission(mission, project, packs, now)
        to_value(target)
        return Update(target, (), drift=found.error, restarts=True)
    fields = tuple(field_changes(before.mission, mission))
    paused = before.paused if before.paused and not _over(before.paused, now) else None
    if before.paused != paused:
        fields += (FieldChange("paused", _pause(before.paused), None, SCHEDULE),)
    since = restart(before.mission, mission, now=now, since=None if before.edited else before.since)
    target = DeployedMission(mission, project, packs, since or before.since, paused)
    drift = "edited by hand" if before.edited else "its tags were changed by hand" if found.retagged else ""
    if not fields and not drift and target == before:
        return Keep(before)
    to_value(target)
    return Update(
        target,
        fields,
        drift,
        restarts=since is not None,
        waits=since is not None and since > now,
        before=before.mission,
    )


def restart(before: Mission, after: Mission, *, now: datetime, since: datetime | None) -> datetime | None:
    """From which cutoff on forecasts count when `after` takes the place of `before` now; `None` where all go on.

    They restart where they would be of another query, or lie elsewhere, and where the level is rebased: forecasts of
    the level that is said to be over are known to be wrong.

    Where the step becomes shorter, that is the end of what forecasts of the old one can cover: how far ahead of its
    time a stored forecast was made is known in steps, and an old one would pass for newer than it is.

    Args:
        before: what was forecast up to now.
        after: what is to be forecast.
        now: with a time zone.
        since: from which cutoff on those of `before` count; `None` where that is not known, so that none can.
    """
    alike = all(getattr(before, name) == getattr(after, name) for name in _RESTART_FIELDS)
    if since is not None and alike and after.forecast.rebase in (None, before.forecast.rebase):
        return None
    end = now
    if after.step < before.step:
        covered = now + before.horizon
        end = EPOCH - (EPOCH - covered) // after.step * after.step
    # It may lie ahead, where a step became shorter lately.
    return end if since is None else max(end, since)


def _over(pause: Pause, now: datetime) -> bool:
    return pause.until is not None and pause.until <= now


def _pause(pause: Pause | None) -> str | None:
    if pause is None:
        return None
    return f"until {iso_utc(pause.until)}" if pause.until else "until resumed"


def field_changes(before: Mission, after: Mission) -> Iterator[FieldChange]:
    """What two versions of a mission differ in, field by field, as JSON has them."""
    if before == after:
        return
    old, new = _flat(before), _flat(after)
    for name in old:
        if old[name] != new[name]:
            meaning = _MEANINGS.get(name, NOTE if name.startswith("alert.") else NEXT_RUN)
            yield FieldChange(name, old[name], new[name], meaning)


def _flat(mission: Mission) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    # By way of JSON, in which durations read as they are written.
    for name, value in msgspec.json.decode(mission.model_dump_json()).items():
        if name in ("forecast", "detect", "alert"):
            flat.update({f"{name}.{inner}": v for inner, v in value.items()})
        else:
            flat[name] = value
    return flat


def _cadence(mission: Mission, kind: Kind) -> str:
    part = mission.forecast if kind == "forecast" else mission.detect
    if part.cron:
        return "cron-" + hashlib.sha256((part.cron + mission.timezone).encode()).hexdigest()[:8]
    return format_duration(part.every)


def _assign(
    missions: Mapping[str, Mission], state: State, project: str, staying: Sequence[Found]
) -> dict[str, tuple[str, str]]:
    """The packs of each mission: where it is, while its cadence stays, else the first with room."""
    slugs: dict[str, list[str]] = {name: [] for name in missions}
    for i, kind in enumerate(KINDS):
        filled = Counter(found.packs[i] for found in staying)
        homeless: list[tuple[str, str]] = []
        for name, mission in sorted(missions.items()):
            cadence = _cadence(mission, kind)
            found = state.found.get(name)
            slug = found.packs[i] if found else ""
            alone = pack_slug(project, kind, cadence, f"m-{name}")
            if mission.isolated:
                slug = alone
            elif not _is_shared(slug, pack_slug(project, kind, cadence, "")) or filled[slug] >= PACK_SIZE:
                homeless.append((name, cadence))
                slug = ""
            filled[slug] += 1
            slugs[name].append(slug)
        place: dict[str, int] = {}
        for name, cadence in homeless:
            n = place.get(cadence, 0)
            while filled[slug := pack_slug(project, kind, cadence, f"{n:02d}")] >= PACK_SIZE:
                n += 1
            place[cadence] = n
            filled[slug] += 1
            slugs[name][i] = slug
    return {name: (pair[0], pair[1]) for name, pair in slugs.items()}


def _is_shared(slug: str, prefix: str) -> bool:
    return slug.startswith(prefix) and slug.removeprefix(prefix).isdecimal()


def pack_phase(slug: str, every: timedelta) -> timedelta:
    """How long after each slot a pack runs: whole seconds below `every`, stable, so that packs spread out."""
    seconds = max(1, int(every.total_seconds()))
    return timedelta(seconds=int.from_bytes(hashlib.sha256(slug.encode()).digest()[:8]) % seconds)


def timing_of(mission: Mission, kind: Kind, slug: str) -> Timing:
    """When the pack `slug` runs that `mission` is in."""
    part = mission.forecast if kind == "forecast" else mission.detect
    if part.cron:
        return Timing(cron=part.cron, timezone=mission.timezone)
    return Timing(part.every, pack_phase(slug, part.every))


def _schedules(changes: Sequence[Change], staying: Sequence[Found], state: State) -> Iterator[ScheduleChange]:
    wanted: dict[tuple[Kind, str], PackSchedule | None] = {}
    members = [c.target for c in changes if isinstance(c, (Create, Update, Keep))]
    members += [found.deployed for found in staying if found.deployed]
    for member in members:
        for kind, slug in zip(KINDS, member.packs, strict=True):
            if slug and wanted.get((kind, slug)) is None:
                timing = timing_of(member.mission, kind, slug)
                wanted[kind, slug] = PackSchedule(slug, kind, timing, parameters={"pack": slug})
    for found in staying:
        for kind, slug in zip(KINDS, found.packs, strict=True):
            # When a pack of nothing but broken missions runs is known by its schedule alone.
            wanted.setdefault((kind, slug), None)
    there = {(schedule.kind, schedule.slug): schedule for schedule in state.schedules}
    inhabited = {slug for found in state.found.values() for slug in found.packs}
    for key, schedule in sorted(wanted.items()):
        if schedule is None:
            continue
        now = there.get(key)
        if now is None:
            yield ScheduleChange("create", schedule, "its schedule is missing" if key[1] in inhabited else "")
        elif drift := _schedule_drift(now, schedule):
            yield ScheduleChange("patch", replace(schedule, id=now.id), drift)
    for key, schedule in sorted(there.items()):
        if key not in wanted:
            yield ScheduleChange("delete", schedule)


def _schedule_drift(now: PackSchedule, wanted: PackSchedule) -> str:
    wrong = [
        text
        for text, is_so in (
            ("paused", not now.active),
            ("runs at other times", now.timing != wanted.timing),
            ("has other parameters", dict(now.parameters) != dict(wanted.parameters)),
        )
        if is_so
    ]
    return f"its schedule {' and '.join('is paused' if text == 'paused' else text for text in wrong)}" if wrong else ""


@dataclass(frozen=True)
class FirstRun:
    """A run to start besides the schedules; those of one `key` are one run, however often it is asked for."""

    parameters: Mapping[str, str | Sequence[str]]
    key: str
    at: datetime

    @property
    def missions(self) -> str:
        """What it is about, in words."""
        names = self.parameters["mission"]
        return names if isinstance(names, str) else f"{len(names)} missions"


def new_missions(plan: Plan, *, now: datetime) -> list[DeployedMission]:
    """The missions that are new or have a new identity.

    Also those that became so lately: an apply that was cut off may have left them without a first forecast.
    """
    found = []
    for change in plan.changes:
        if not isinstance(change, (Create, Update, Keep)) or change.target.paused:
            continue
        target = change.target
        fresh = isinstance(change, Create) or (isinstance(change, Update) and change.restarts)
        if fresh or target.since > now - _NEW_FOR - target.mission.step - target.mission.offset:
            found.append(target)
    return found


def first_runs(
    new: Iterable[DeployedMission], *, now: datetime, asked: Mapping[str, datetime] | None = None
) -> list[FirstRun]:
    """The first forecasts of new missions, each as soon as there is a cutoff that counts.

    Args:
        new: as `new_missions` gives them.
        now: with a time zone.
        asked: by name the last time for which a forecast was asked for; where that was late enough, none is due.
    """
    due: dict[tuple[str, datetime], list[str]] = {}
    for target in new:
        name, earliest = target.mission.name, first_cutoff(target.mission, target.since) + target.mission.offset
        if asked is None or asked.get(name, EPOCH) < earliest:
            due.setdefault((target.packs[0], max(earliest, now)), []).append(name)
    runs = []
    for (slug, at), names in sorted(due.items()):
        for group in [sorted(names)] if len(names) > _MANY else [[name] for name in sorted(names)]:
            digest = hashlib.sha256(repr((slug, at.isoformat(), group)).encode()).hexdigest()[:24]
            runs.append(FirstRun({"mission": group if len(group) > 1 else group[0]}, f"at-first-{digest}", at))
    return runs


def first_cutoff(mission: Mission, since: datetime) -> datetime:
    """The first time not before `since` from which a mission can be forecast."""
    last = mission.last_time(since + mission.offset)
    return last if last >= since else last + mission.step


@dataclass(frozen=True)
class SavedPlan:
    """What a file of `plan --save` says: what to apply, and the fingerprint of the state that must still hold."""

    project: str
    prune: bool
    fingerprint: str
    wanted: tuple[Mission, ...]


_KIND = "anomaly-times plan"


def saved(plan: Plan) -> bytes:
    """The plan as a file."""
    document = {
        "kind": _KIND,
        "format": _FORMAT,
        "project": plan.project,
        "prune": plan.prune,
        "fingerprint": plan.fingerprint,
        "missions": [msgspec.Raw(mission.model_dump_json(exclude_defaults=True).encode()) for mission in plan.wanted],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


def read_saved(raw: bytes) -> SavedPlan | None:
    """What `saved` wrote; `None` where `raw` is no plan at all.

    Raises:
        UsageError: a plan of another version, or a broken one.
    """
    if not raw.lstrip().startswith(b"{") or _KIND.encode() not in raw[:200]:
        return None
    hint = "make the plan again"
    try:
        document = msgspec.json.decode(raw)
        if document["format"] != _FORMAT:
            raise UsageError("this plan was made by another version of anomaly-times", hint=hint)
        return SavedPlan(
            str(document["project"]),
            bool(document["prune"]),
            str(document["fingerprint"]),
            tuple(Mission.model_validate(mission) for mission in document["missions"]),
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValidationError) as exc:
        raise UsageError(f"this plan is broken: {type(exc).__name__}", hint=hint) from exc


def to_document(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON data; unchanged missions are only counted."""
    return {
        "project": plan.project,
        "prune": plan.prune,
        "fingerprint": plan.fingerprint,
        "summary": plan.counts,
        "changes": [entry for change in plan.changes if (entry := _entry(change))],
        "paused": [
            {"name": d.mission.name, "until": d.paused.until and iso_utc(d.paused.until), "reason": d.paused.reason}
            for d in plan.paused
            if d.paused
        ],
        "schedules": [
            {"action": s.action, "slug": s.schedule.slug, "deployment": s.schedule.kind, "drift": s.drift}
            for s in plan.schedules
        ],
        "notes": list(plan.notes),
    }


def _entry(change: Change) -> dict[str, Any] | None:
    match change:
        case Create():
            return {"action": "create", "name": change.name, "promql": change.target.mission.promql}
        case Update():
            fields = [{"field": f.field, "old": f.old, "new": f.new, "meaning": f.meaning} for f in change.fields]
            return {
                "action": "update",
                "name": change.name,
                "meaning": change.meaning,
                "drift": change.drift,
                "fields": fields,
            }
        case Delete():
            return {"action": "delete", "name": change.name}
        case Leave():
            return {"action": "leave", "name": change.name, "error": change.error}
        case Refuse():
            return {"action": "refuse", "name": change.name, "reason": change.reason, "hint": change.hint}
        case Keep():
            return None
