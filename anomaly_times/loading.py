"""Mission files: YAML in, missions and problems out.

A file holds one mission a document, or `missions:` with `defaults:`. A `defaults.yaml` beside it goes for every file of
its folder. `for_each:` makes many missions of one template. All problems of all files are collected, each with its
file, line and field; a mission with a problem is left out.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from anomaly_times.errors import UsageError, in_our_words
from anomaly_times.mission import Mission
from anomaly_times.problems import Problem, Where
from anomaly_times.yamlfile import MAX_BYTES, Document, YamlError, read_documents

__all__ = ["DEFAULTS_FILE", "LoadedMission", "Loading", "load_missions", "mission_files"]

DEFAULTS_FILE = "defaults.yaml"
"""What goes for every mission file of its folder."""
MAX_EACH = 10_000
"""Missions that one template may make."""

_EACH = re.compile(r"\$\{each(?:\.([A-Za-z_][A-Za-z0-9_]*))?\}")
_SUFFIXES = (".yaml", ".yml")
_TOO_SHORT_TO_GUESS = 0.6


@dataclass(frozen=True)
class LoadedMission:
    """A mission and where it was written."""

    mission: Mission
    file: str
    line: int
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict, repr=False)

    def where(self, *path: str | int) -> Where:
        """The place of a field (`where("forecast", "every")`), or of the mission where a default gave it."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        return Where(self.file, self.lines.get(known, self.line), ".".join(str(part) for part in path))


@dataclass(frozen=True)
class Loading:
    """What files held: missions in the order of the files, and the problems of those that are none."""

    missions: tuple[LoadedMission, ...]
    problems: tuple[Problem, ...]
    files: tuple[str, ...]


def load_missions(paths: Sequence[str | Path]) -> Loading:
    """The missions of files, folders (all `*.yaml` and `*.yml` below them) and globs.

    Raises:
        UsageError: a path that is not there, or a glob that matches nothing.
    """
    missions: list[LoadedMission] = []
    problems: list[Problem] = []
    defaults: dict[Path, Mapping[str, Any]] = {}
    files = mission_files(paths)
    for file in files:
        folder = file.parent
        if folder not in defaults:
            defaults[folder] = _folder_defaults(folder, problems)
        for document in _documents(file, problems):
            for draft in _drafts(document, str(file), defaults[folder], problems):
                loaded = _mission(draft, problems)
                if loaded is not None:
                    missions.append(loaded)
    problems += _twice(missions)
    return Loading(tuple(missions), tuple(problems), tuple(str(file) for file in files))


def mission_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that `load_missions` would read, each once; the defaults of folders are not among them.

    Raises:
        UsageError: a path that is not there, or a glob that matches nothing.
    """
    return list(_files(paths))


def dump_mission(mission: Mission) -> str:
    """The YAML from which `mission` is loaded again: one document, fields that differ from their defaults."""
    data = json.loads(mission.model_dump_json(exclude_defaults=True))
    if "valid_range" in data.get("detect", {}):
        # JSON has no infinity; YAML does.
        data["detect"]["valid_range"] = [float(bound) for bound in data["detect"]["valid_range"]]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _files(paths: Sequence[str | Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and not _hidden(p.relative_to(path)))
        elif path.exists():
            found = [path]
        elif has_magic(str(given)):
            # Path.glob takes no absolute pattern.
            found = sorted(Path(name) for name in glob(str(given), recursive=True) if Path(name).is_file())  # noqa: PTH207
            if not found:
                raise UsageError(f"{given} matches no file")
        else:
            raise UsageError(f"there is no file or folder {given}", hint="name mission files, folders or globs")
        for file in found:
            if file.name != DEFAULTS_FILE and file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _documents(file: Path, problems: list[Problem]) -> list[Document]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise YamlError(f"the file is larger than {MAX_BYTES:,} bytes", 1)
        return read_documents(file.read_bytes())
    except YamlError as exc:
        problems.append(Problem("file/yaml", "error", Where(str(file), exc.line), exc.message))
    except OSError as exc:
        problems.append(Problem("file/unreadable", "error", Where(str(file)), f"cannot be read: {exc.strerror}"))
    return []


def _folder_defaults(folder: Path, problems: list[Problem]) -> Mapping[str, Any]:
    file = folder / DEFAULTS_FILE
    if not file.exists():
        return {}
    documents = _documents(file, problems)
    if not documents:
        return {}
    if len(documents) > 1 or not isinstance(documents[0].data, dict):
        problems.append(
            Problem(
                "file/shape", "error", Where(str(file), 1), "must be one mapping of mission fields", "e.g. step: 1m"
            )
        )
        return {}
    return dict(documents[0].data)


@dataclass(frozen=True)
class _Draft:
    """The fields of one mission before they are checked: `path` leads to it in its document."""

    data: Mapping[str, Any]
    file: str
    document: Document
    path: tuple[str | int, ...]

    def where(self, path: tuple[str | int, ...] = ()) -> Where:
        return Where(self.file, self.document.line_of((*self.path, *path)), ".".join(str(part) for part in path))


def _drafts(document: Document, file: str, defaults: Mapping[str, Any], problems: list[Problem]) -> Iterator[_Draft]:
    """The missions of a document, with the defaults of folder and file below their own fields."""
    data = document.data
    if data is None:
        return
    if not isinstance(data, dict):
        problems.append(_shape(file, document.line, "must be a mission: a mapping with `name` and `promql`"))
        return
    if "missions" not in data:
        yield from _each(_Draft(_merged(defaults, data), file, document, ()), problems)
        return
    extra = sorted(set(data) - {"missions", "defaults"})
    if extra:
        line = document.line_of((extra[0],))
        problems.append(_shape(file, line, f"{extra[0]!r} cannot stand beside `missions:`; only `defaults:` can"))
    if not isinstance(data["missions"], list):
        problems.append(_shape(file, document.line_of(("missions",)), "`missions:` must be a list"))
        return
    own = data.get("defaults") or {}
    if not isinstance(own, dict):
        problems.append(_shape(file, document.line_of(("defaults",)), "`defaults:` must be a mapping"))
        return
    base = _merged(defaults, own)
    for i, fields in enumerate(data["missions"]):
        path = ("missions", i)
        if isinstance(fields, dict):
            yield from _each(_Draft(_merged(base, fields), file, document, path), problems)
        else:
            problems.append(_shape(file, document.line_of(path), "each of `missions:` must be a mapping"))


def _shape(file: str, line: int, message: str) -> Problem:
    return Problem("file/shape", "error", Where(file, line), message)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `base`, mapping by mapping; lists and scalars replace."""
    out = dict(base)
    for key, value in own.items():
        below = out.get(key)
        out[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def _each(draft: _Draft, problems: list[Problem]) -> Iterator[_Draft]:
    """The draft itself, or one for every value of its `for_each:` with `${each}` put in."""
    data = dict(draft.data)
    if "for_each" not in data:
        yield draft
        return
    values = data.pop("for_each")
    where = draft.where(("for_each",))
    if not isinstance(values, list) or not values or len(values) > MAX_EACH:
        problems.append(
            Problem("file/for-each", "error", where, f"`for_each:` must be a list of 1 to {MAX_EACH:,} values")
        )
        return
    for value in values:
        try:
            filled = {key: _filled(inner, value) for key, inner in data.items()}
        except KeyError as exc:
            problems.append(
                Problem(
                    "file/for-each", "error", where, f"{value!r} has no {exc.args[0]!r}", "write ${each} or ${each.key}"
                )
            )
            return
        yield _Draft(filled, draft.file, draft.document, draft.path)


def _filled(template: Any, value: Any) -> Any:
    if isinstance(template, dict):
        return {key: _filled(inner, value) for key, inner in template.items()}
    if isinstance(template, list):
        return [_filled(inner, value) for inner in template]
    if not isinstance(template, str):
        return template
    whole = _EACH.fullmatch(template)
    if whole:
        return _chosen(value, whole.group(1))
    return _EACH.sub(lambda match: str(_chosen(value, match.group(1))), template)


def _chosen(value: Any, key: str | None) -> Any:
    if key is None:
        if isinstance(value, dict):
            raise KeyError("plain value")
        return value
    if not isinstance(value, dict) or key not in value:
        raise KeyError(key)
    return value[key]


def _mission(draft: _Draft, problems: list[Problem]) -> LoadedMission | None:
    try:
        mission = Mission.model_validate(draft.data)
    except ValidationError as exc:
        name = draft.data.get("name")
        problems += _schema_problems(exc, draft, name if isinstance(name, str) else "")
        return None
    depth = len(draft.path)
    lines = {path[depth:]: line for path, line in draft.document.lines.items() if path[:depth] == draft.path and path}
    return LoadedMission(mission, draft.file, draft.document.line_of(draft.path), lines)


def _schema_problems(exc: ValidationError, draft: _Draft, name: str) -> Iterator[Problem]:
    for error in exc.errors(include_url=False, include_context=False):
        path = tuple(error["loc"])
        message, hint = in_our_words(error["msg"]), ""
        if error["type"] == "extra_forbidden":
            code, message = "mission/unknown-field", f"there is no field {path[-1]!r}"
            near = difflib.get_close_matches(str(path[-1]), _fields(path[:-1]), 1, _TOO_SHORT_TO_GUESS)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_fields(path[:-1]))}"
        elif error["type"] == "missing":
            code, message = "mission/missing-field", f"`{path[-1]}` is missing"
        else:
            code = "mission/invalid-value"
        yield Problem(code, "error", draft.where(path), message, hint, name)


def _fields(path: tuple[str | int, ...]) -> list[str]:
    """The fields that may stand at `path` in a mission."""
    model: type[BaseModel] = Mission
    for part in path:
        inner = model.model_fields.get(str(part))
        kind = inner.annotation if inner is not None else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return sorted(model.model_fields)


def _twice(missions: Iterable[LoadedMission]) -> Iterator[Problem]:
    first: dict[str, LoadedMission] = {}
    for loaded in missions:
        other = first.setdefault(loaded.mission.name, loaded)
        if other is not loaded:
            yield Problem(
                "mission/name-taken",
                "error",
                loaded.where("name"),
                f"the name {loaded.mission.name!r} is taken by {other.where('name')}",
                "names are unique: they are the label `mission` of everything written",
                loaded.mission.name,
            )
