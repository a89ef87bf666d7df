"""What `at backtest --suggest` shows: what to change, what came of it, and a patch of the mission files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

from anomaly_times.backtest import Variant
from anomaly_times.backtest.suggest import Standing, Suggestion
from anomaly_times.cli.render import Section
from anomaly_times.cli.views import Cell, beside, stamp
from anomaly_times.durations import format_duration, iso_utc
from anomaly_times.loading import LoadedMission, dump_mission
from anomaly_times.yamledit import set_value
from anomaly_times.yamlfile import YamlError, read_documents

__all__ = ["Patch", "SuggestedView", "make_patch", "mission_text"]


@dataclass(frozen=True)
class Patch:
    """A unified diff of mission files that `git apply` and `patch -p1` take, and why a mission has no part in it."""

    diff: str = ""
    notes: tuple[str, ...] = ()


def make_patch(suggestions: Sequence[Suggestion], loaded: Sequence[LoadedMission]) -> Patch:
    """What is to be changed in the files of missions; paths are as the files were named, from this folder.

    Args:
        suggestions: any, also those that change nothing.
        loaded: the missions as their files say, by which each is found.
    """
    by_name = {each.mission.name: each for each in loaded}
    files: dict[Path, tuple[bytes, bytes]] = {}
    notes = []
    for each in suggestions:
        # What does not keep to the budget is for people to judge: nobody should apply it unseen.
        if not each.fields or not each.met:
            continue
        one = by_name.get(each.mission.name)
        try:
            if one is None or not one.layers:
                raise YamlError("the file has changed since it was read", 1)
            if any("for_each" in layer.data for layer in one.layers):
                raise YamlError("it is one of those that a template makes (`for_each`)", one.line)
            file = Path(one.file)
            old, new = files.get(file) or (raw := file.read_bytes(), raw)
            files[file] = old, _edited(old, new, one, each.fields)
        except (OSError, YamlError) as exc:
            why = exc.message if isinstance(exc, YamlError) else f"its file cannot be read: {exc.strerror}"
            notes.append(f"{each.mission.name}: there is no patch: {why}; write the fields by hand")
    diffs = (_diff(file, old, new) for file, (old, new) in files.items() if old != new)
    return Patch("".join(diffs), tuple(notes))


def mission_text(suggestion: Suggestion) -> str:
    """The file of a mission with what is suggested, for one that has none yet."""
    return dump_mission(Variant("", suggestion.fields).of(suggestion.mission))


def _edited(old: bytes, raw: bytes, loaded: LoadedMission, fields: Mapping[tuple[str, ...], Any]) -> bytes:
    """`raw`, which is `old` with other missions changed, with these fields of a mission set."""
    own = loaded.layers[0]
    begun = [document.line for document in read_documents(old)]
    if own.document.line not in begun:
        raise YamlError("the file has changed since it was read", own.document.line)
    for path, value in fields.items():
        raw = set_value(raw, begun.index(own.document.line), (*own.path, *path), _scalar(value))
    return raw


def _scalar(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _diff(file: Path, old: bytes, new: bytes) -> str:
    here = Path.cwd()
    # Without a line `diff --git`, git takes the paths from where it stands, as patch does.
    name = (file.relative_to(here) if file.is_absolute() and file.is_relative_to(here) else file).as_posix()
    found = unified_diff(_lines(old), _lines(new), f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in found)


def _lines(raw: bytes) -> list[str]:
    """The lines with their ends, by line feeds alone, as diffs count them."""
    return [line + end for line, end in re.findall("([^\n]*)(\n|$)", raw.decode()) if line or end]


@dataclass(frozen=True)
class SuggestedView:
    """What to change in missions, before and after on both parts of the window, and the patch; the patch comes last.

    `text` is the file of a mission that has none, in place of a patch.
    """

    suggestions: tuple[Suggestion, ...]
    patch: Patch = Patch()
    text: str = ""

    @property
    def failures(self) -> list[str]:
        """What missions ask for that no setting does."""
        return [each.failure for each in self.suggestions if each.failure]

    def sections(self) -> list[Section]:
        """What is printed, in order."""
        judged = any(part.found or part.missed for each in self.suggestions for part in (*each.before, *each.after))
        columns = ["<mission", "of", "from", "to", ">a week"]
        columns += [">found", ">false alarms", ">told after"] if judged else []
        rows = [row for each in self.suggestions for row in _rows(each, judged=judged)]
        found = [Section("Suggestions", tuple(map(_sentence, self.suggestions)), tuple(columns), tuple(rows))]
        if self.patch.diff:
            found.append(Section("Patch", ("for `git apply` or `patch -p1`, in this folder",), code=self.patch.diff))
        if self.text:
            found.append(Section("Mission file", code=self.text))
        return found

    def notes(self) -> list[str]:
        """What a reader should know besides."""
        return [f"{each.mission.name}: {note}" for each in self.suggestions for note in each.notes] + [
            *self.patch.notes
        ]

    def document(self) -> dict[str, Any]:
        """What JSON holds of it, beside the backtest."""
        return {
            "suggestions": [_entry(each) for each in self.suggestions],
            "patch": self.patch.diff or None,
            "mission_file": self.text or None,
        }


def _sentence(suggestion: Suggestion) -> str:
    name, most = suggestion.mission.name, f"{suggestion.most:g} a week"
    changes = ", ".join(f"{field} {_shown(old)} → {_shown(new)}" for field, old, new in _changes(suggestion))
    if suggestion.failure:
        return f"{suggestion.failure}, with {changes or 'the mission as it is'}"
    if suggestion.fields:
        return f"{name}: {changes} keeps to {most}"
    more = "; nothing that was tried finds more" if suggestion.before[0].missed else ""
    return f"{name} keeps to {most} as it is{more}"


def _rows(suggestion: Suggestion, *, judged: bool) -> Iterator[tuple[Cell, ...]]:
    for what, before, after in zip(("chosen on", "the rest"), suggestion.before, suggestion.after, strict=True):
        yield (
            suggestion.mission.name,
            what,
            stamp(before.start),
            stamp(before.end),
            beside(f"{before.per_week:.2f}", f"{after.per_week:.2f}"),
            *(_judged(before, after) if judged else ()),
        )


def _judged(before: Standing, after: Standing) -> tuple[Cell, Cell, Cell]:
    false_alarms = beside(str(before.false_alarms), str(after.false_alarms))
    return beside(_found(before), _found(after)), false_alarms, beside(_delay(before), _delay(after))


def _found(standing: Standing) -> str:
    return f"{len(standing.found)} of {len(standing.found) + len(standing.missed)}"


def _delay(standing: Standing) -> str:
    return format_duration(standing.delay) if standing.delay is not None else "–"


def _changes(suggestion: Suggestion) -> Iterator[tuple[str, Any, Any]]:
    """Each field with what it is and what it is to be, as JSON has them."""
    before = suggestion.mission.model_dump(mode="json")
    after = Variant("", suggestion.fields).of(suggestion.mission).model_dump(mode="json")
    for path in suggestion.fields:
        old, new = before, after
        for key in path:
            old, new = old[key], new[key]
        yield ".".join(path), old, new


def _shown(value: Any) -> str:
    """A value on one line; a pair of equal ones, below and above, as one."""
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _entry(suggestion: Suggestion) -> dict[str, Any]:
    parts = zip(("chosen_on", "rest"), suggestion.before, suggestion.after, strict=True)
    return {
        "mission": suggestion.mission.name,
        "max_alerts_per_week": suggestion.most,
        "met": suggestion.met,
        "failure": suggestion.failure or None,
        "fields": [{"field": field, "before": old, "after": new} for field, old, new in _changes(suggestion)],
        "tried": suggestion.tried,
        **{
            name: {
                "start": iso_utc(before.start),
                "end": iso_utc(before.end),
                "before": _standing(before),
                "after": _standing(after),
            }
            for name, before, after in parts
        },
        "notes": list(suggestion.notes),
    }


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "alerts": standing.alerts,
        "per_week": standing.per_week,
        "found": sorted(name for name, _ in standing.found),
        "missed": sorted(name for name, _ in standing.missed),
        "false_alarms": standing.false_alarms,
        "delay_seconds": standing.delay.total_seconds() if standing.delay is not None else None,
    }
