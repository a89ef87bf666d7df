"""A mission as it is deployed: what a Prefect Variable holds, written and read without Prefect.

The value is small JSON (Prefect takes 5,000 bytes): the mission's fields that differ from their defaults, the version
of this form (`spec`), and `since` when results of the mission mean what they mean now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from pydantic import ValidationError

from anomaly_times.conventions import TAG, TAG_PAUSED, pack_tag, project_tag, variable_name
from anomaly_times.errors import MissionError
from anomaly_times.mission import Mission

__all__ = [
    "MAX_BYTES",
    "SPEC",
    "DeployedMission",
    "Pause",
    "from_value",
    "packs_of",
    "project_of",
    "to_value",
    "with_pause",
]

SPEC = 1
MAX_BYTES = 5_000
"""Of a Variable's value, as JSON."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A mission that rests: until when (`None`: until it is resumed), and why."""

    until: datetime | None = None
    reason: str = ""


@dataclass(frozen=True)
class DeployedMission:
    """A mission, its packs (forecast, detect), and since when its results mean what they mean now.

    Forecasts with an older cutoff than `since` were made for another query, step or label set, and are not scored
    against. `edited` says of one that was read that somebody changed it by hand after it was written.
    """

    mission: Mission
    project: str
    packs: tuple[str, str]
    since: datetime
    paused: Pause | None = None
    edited: bool = field(default=False, compare=False)

    @property
    def tags(self) -> list[str]:
        """The tags of its Variable."""
        tags = [TAG, project_tag(self.project), *(pack_tag(slug) for slug in self.packs)]
        return [*tags, TAG_PAUSED] if self.paused else tags


def to_value(deployed: DeployedMission) -> dict[str, Any]:
    """The value of the Variable: plain JSON data.

    Raises:
        MissionError: it would be larger than `MAX_BYTES`.
    """
    value: dict[str, Any] = {
        "spec": SPEC,
        "since": deployed.since.isoformat(),
        # By way of text, in which infinity is a string, as JSON has no number for it.
        "mission": msgspec.json.decode(deployed.mission.model_dump_json(exclude_defaults=True)),
    }
    value["digest"] = _digest(value)
    return with_pause(value, deployed.paused)


def with_pause(value: Mapping[str, Any], pause: Pause | None) -> dict[str, Any]:
    """The value of a Variable with another pause, and nothing else of it changed.

    What a newer version wrote stays, and what somebody edited stays known as edited.

    Raises:
        MissionError: it would be larger than `MAX_BYTES`.
    """
    out = {key: part for key, part in value.items() if key != "paused"}
    if pause:
        out["paused"] = {"until": pause.until.isoformat() if pause.until else None, "reason": pause.reason}
    size = len(msgspec.json.encode(out))
    if size > MAX_BYTES:
        raise MissionError(
            f"mission {value['mission'].get('name')} takes {size:,} bytes; a deployed one may take {MAX_BYTES:,}",
            hint="shorten its query or description (or the reason of a pause), or record the query as a rule",
        )
    return out


def from_value(name: str, value: object, tags: Sequence[str]) -> DeployedMission:
    """The mission that a Variable holds; fields that this version does not know are let pass.

    Args:
        name: the Variable's name.
        value: its value.
        tags: its tags.

    Raises:
        MissionError: it was edited into something else, holds the mission of another Variable, or was written by a
            newer version.
    """
    hint = "apply the mission's file again"
    if not isinstance(value, Mapping) or not isinstance(value.get("mission"), Mapping):
        raise MissionError(f"the Variable {name} holds no mission", hint=hint)
    spec = value.get("spec")
    if not isinstance(spec, int):
        raise MissionError(f"the Variable {name} does not say which form it has (`spec`)", hint=hint)
    if spec > SPEC:
        raise MissionError(
            f"the Variable {name} was written by a newer version (spec {spec}; this one knows {SPEC})",
            hint="upgrade anomaly-times where workers run",
        )
    try:
        mission = Mission.model_validate(_known(_schema(), value["mission"]))
        since = datetime.fromisoformat(str(value.get("since")))
        resting = value.get("paused")
        until = resting.get("until") if isinstance(resting, Mapping) else None
        paused = (
            Pause(datetime.fromisoformat(until) if until else None, str(resting.get("reason") or ""))
            if isinstance(resting, Mapping)
            else None
        )
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MissionError(f"the Variable {name} holds a broken mission: {where}: {first['msg']}", hint=hint) from exc
    except (TypeError, ValueError) as exc:
        raise MissionError(f"the Variable {name} holds a broken time: {exc}", hint=hint) from exc
    if since.tzinfo is None or (paused and paused.until and paused.until.tzinfo is None):
        raise MissionError(f"the Variable {name} holds a time without a zone", hint=hint)
    if variable_name(mission.name) != name:
        raise MissionError(f"the Variable {name} holds the mission {mission.name!r}", hint=hint)
    edited = value.get("digest") != _digest(value)
    return DeployedMission(mission, project_of(tags), packs_of(tags), since, paused, edited)


def _digest(value: Mapping[str, Any]) -> str:
    """What changes when somebody edits a deployed mission by hand."""
    parts = msgspec.json.encode([value["mission"], value["since"]], order="sorted")
    return hashlib.sha256(parts).hexdigest()[:12]


@cache
def _schema() -> Mapping[str, Any]:
    return Mission.model_json_schema()


def project_of(tags: Sequence[str]) -> str:
    """Whose a Variable with these tags is; empty where it is none of ours."""
    prefix = project_tag("")
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)), "") if TAG in tags else ""


def packs_of(tags: Sequence[str]) -> tuple[str, str]:
    """The forecast pack and the detect pack that a Variable with these tags is in; empty where it is in none."""
    slugs: dict[str, str] = {}
    for tag in tags:
        parts = tag.removeprefix(pack_tag("")).split(":")
        if tag.startswith(pack_tag("at:")) and len(parts) > 2:
            slugs[parts[2]] = tag.removeprefix(pack_tag(""))
    return slugs.get("forecast", ""), slugs.get("detect", "")


def _known(schema: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` less the fields that the schema does not have, at every depth where it allows no others."""
    definitions = schema.get("$defs", {})

    def keep(node: Mapping[str, Any], value: Any) -> Any:
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[-1]]
        if isinstance(value, Mapping) and "properties" in node:
            fields = node["properties"]
            free = node.get("additionalProperties") is not False
            return {key: keep(fields.get(key, {}), inner) for key, inner in value.items() if free or key in fields}
        return value

    return dict(keep(schema, data))
