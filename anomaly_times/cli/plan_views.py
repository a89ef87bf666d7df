"""How plans and deployed missions look: rows for a terminal, documents for programs, Markdown for a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from anomaly_times.cli.views import Cell, counted
from anomaly_times.deployed import Pause
from anomaly_times.durations import format_duration, iso_utc
from anomaly_times.loading import dump_mission
from anomaly_times.mission import Mission
from anomaly_times.plan import KINDS, Change, Create, Delete, Found, Keep, Leave, Plan, Refuse, Update, to_document

__all__ = ["ListView", "PlanView", "ShowView", "mission_entry", "to_markdown"]

_MARKDOWN_BYTES = 60_000
"""GitHub refuses comments of more than 65,536 characters."""
_SHOWN = 200
"""Missions of one kind that a terminal gets; JSON has all."""
_TITLES = {"create": "to create", "update": "to update", "delete": "to delete"}


@dataclass(frozen=True)
class PlanView:
    """A plan on a terminal, in the manner of terraform."""

    plan: Plan

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns."""
        return ("mission", "what changes", "what it means")

    def rows(self) -> list[tuple[Cell, ...]]:
        """A row for each mission that changes, and one below it for each field."""
        rows: list[tuple[Cell, ...]] = []
        for kind in (Refuse, Create, Update, Delete, Leave):
            changes = [change for change in self.plan.changes if isinstance(change, kind)]
            for change in changes[:_SHOWN]:
                rows += _rows(change)
            if len(changes) > _SHOWN:
                rows.append((f"  … and {len(changes) - _SHOWN:,} more like these", "", "`--output json` has all"))
        for paused in self.plan.paused:
            if paused.paused:
                rows.append((f"  {paused.mission.name}", [("paused", "muted")], _pause(paused.paused)))
        for schedule in self.plan.schedules[:_SHOWN]:
            mark, style = _MARKS[schedule.action]
            rows.append(([(f"{mark} schedule {schedule.schedule.slug}", style)], schedule.action, schedule.drift))
        return rows

    def summary(self) -> list[str]:
        """One line of counts."""
        return [_counts(self.plan)]

    def notes(self) -> list[str]:
        """What a reader should know besides."""
        return list(self.plan.notes)

    def document(self) -> dict[str, Any]:
        """The whole plan for JSON."""
        return {"schema": 1, "kind": "plan", **to_document(self.plan)}


_MARKS = {
    "create": ("+", "good"),
    "update": ("~", "warn"),
    "patch": ("~", "warn"),
    "delete": ("-", "bad"),
    "leave": (" ", "muted"),
    "refuse": ("!", "bad"),
}


def _rows(change: Change) -> Iterator[tuple[Cell, ...]]:
    match change:
        case Create():
            yield _head("create", change.name), "new", change.target.mission.promql
        case Update():
            drift: Cell = [(f"changed in Prefect: {change.drift}", "warn")] if change.drift else ""
            yield _head("update", change.name), drift, change.meaning
            for field in change.fields:
                yield f"    {field.field}", f"{shown(field.old)} → {shown(field.new)}", field.meaning
        case Delete():
            yield _head("delete", change.name), "deleted", "its results stay where they are"
        case Leave():
            text = f"broken: {change.error}" if change.error else "stays, though the files do not have it"
            yield _head("leave", change.name), text, "`--prune` deletes it"
        case Refuse():
            yield _head("refuse", change.name), [(f"refused: {change.reason}", "bad")], change.hint
        case Keep():
            return


def _head(action: str, name: str) -> Cell:
    mark, style = _MARKS[action]
    return [(f"{mark} {name}", style)]


def shown(value: object) -> str:
    """A field's value as a reader knows it from YAML."""
    if value is None or value == "":
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pause(pause: Pause) -> str:
    until = f"until {pause.until:%Y-%m-%d %H:%M} UTC" if pause.until else "until resumed"
    return f"{until}: {pause.reason}" if pause.reason else until


def _counts(plan: Plan) -> str:
    counts = plan.counts
    changes = ", ".join(f"{counts[key]:,} {word}" for key, word in _TITLES.items() if counts[key])
    rest = ", ".join(
        f"{counts[key]:,} {word}"
        for key, word in (
            ("unchanged", "unchanged"),
            ("paused", "paused"),
            ("drifted", "drifted"),
            ("left", "left over"),
            ("refused", "refused"),
        )
        if counts[key]
    )
    head = f"Project {plan.project}: " + (changes or ("schedules only" if plan.schedules else "nothing to do"))
    return head + (f"; {rest}." if rest else ".")


def to_markdown(plan: Plan) -> str:
    """The plan as a comment on a pull request; what would not fit is counted."""
    lines = ["### Anomaly Times: plan", "", _counts(plan), ""]
    size = sum(len(line.encode()) for line in lines)
    table = [*_markdown_rows(plan)]
    if table:
        lines += ["| | mission | what changes | what it means |", "| --- | --- | --- | --- |"]
    for done, row in enumerate(table):
        size += len(row.encode()) + 1
        if size > _MARKDOWN_BYTES:
            lines += ["", f"… and {len(table) - done:,} more lines: `at mission plan --output json` has all."]
            break
        lines.append(row)
    lines += [f"\n> {note}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def _markdown_rows(plan: Plan) -> Iterator[str]:
    for change in plan.changes:
        for head, what, meaning in _rows(change):
            name = _plain(head)
            mark, name = ("", name.strip()) if name.startswith("    ") else (name[0], name[2:])
            yield f"| {mark.strip()} | {_cell(name)} | {_cell(_plain(what))} | {_cell(meaning)} |"
    for paused in plan.paused:
        if paused.paused:
            yield f"| | {_cell(paused.mission.name)} | paused | {_cell(_pause(paused.paused))} |"
    for schedule in plan.schedules:
        mark, _ = _MARKS[schedule.action]
        yield f"| {mark} | schedule `{schedule.schedule.slug}` | {schedule.action} | {_cell(schedule.drift)} |"


def _plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else "".join(text for text, _ in cell)


def _cell(text: Cell) -> str:
    """Text that a table of GitHub's Markdown shows as it is: queries are full of `|` and `<`, and may hold `@names`."""
    plain = " ".join(_plain(text).split())
    plain = plain if len(plain) <= 300 else plain[:299] + "…"
    return "".join(f"&#{ord(char)};" if char in "&<|`@*_[]\\" else char for char in plain)


def mission_entry(found: Found) -> dict[str, Any]:
    """What is deployed under a name, for JSON."""
    deployed = found.deployed
    entry: dict[str, Any] = {"name": found.name, "project": found.project, "packs": list(found.packs)}
    if deployed is None:
        return {**entry, "error": found.error}
    paused = deployed.paused
    return {
        **entry,
        "since": iso_utc(deployed.since),
        "edited": deployed.edited or found.retagged,
        "paused": paused and {"until": paused.until and iso_utc(paused.until), "reason": paused.reason},
        "mission": json.loads(deployed.mission.model_dump_json(exclude_defaults=True)),
    }


@dataclass(frozen=True)
class ListView:
    """The missions that are deployed of a project."""

    project: str
    found: Sequence[Found]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns."""
        return ("mission", "forecast", "detect", "model", "state")

    def rows(self) -> list[tuple[Cell, ...]]:
        """A row a mission."""
        return [self._row(found) for found in self.found]

    def _row(self, found: Found) -> tuple[Cell, ...]:
        if found.deployed is None:
            return found.name, "", "", "", [(f"broken: {found.error}", "bad")]
        mission, paused = found.deployed.mission, found.deployed.paused
        state: Cell = "deployed"
        if paused:
            state = [(f"paused {_pause(paused)}", "muted")]
        elif found.deployed.edited or found.retagged:
            state = [("edited by hand", "warn")]
        return (
            found.name,
            _cadence(mission, "forecast"),
            _cadence(mission, "detect"),
            mission.forecast.model.type,
            state,
        )

    def summary(self) -> list[str]:
        """How many there are."""
        return [f"{counted(len(self.found), 'mission')} of project {self.project}"]

    def notes(self) -> list[str]:
        """Nothing."""
        return []

    def document(self) -> dict[str, Any]:
        """The whole list for JSON."""
        missions = [mission_entry(found) for found in self.found]
        return {"schema": 1, "kind": "missions", "project": self.project, "missions": missions}


def _cadence(mission: Mission, kind: str) -> str:
    part = mission.forecast if kind == "forecast" else mission.detect
    return f"{part.cron} {mission.timezone}" if part.cron else format_duration(part.every)


@dataclass(frozen=True)
class ShowView:
    """One deployed mission."""

    found: Found

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns."""
        return ("what", "is")

    def rows(self) -> list[tuple[Cell, ...]]:
        """Where it runs and since when."""
        found, deployed = self.found, self.found.deployed
        rows: list[tuple[Cell, ...]] = [("mission", found.name), ("project", found.project)]
        rows += [(f"{kind} pack", slug) for kind, slug in zip(KINDS, found.packs, strict=True)]
        if deployed is None:
            return [*rows, ("broken", [(found.error, "bad")])]
        rows.append(("since", f"{deployed.since:%Y-%m-%d %H:%M:%S} UTC"))
        if deployed.paused:
            rows.append(("paused", _pause(deployed.paused)))
        if deployed.edited or found.retagged:
            rows.append(("edited", [("changed in Prefect by hand; an apply of its file undoes that", "warn")]))
        return rows

    def summary(self) -> list[str]:
        """Its YAML."""
        return ["", *dump_mission(self.found.deployed.mission).splitlines()] if self.found.deployed else []

    def notes(self) -> list[str]:
        """Nothing."""
        return []

    def document(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {"schema": 1, "kind": "mission", **mission_entry(self.found)}
