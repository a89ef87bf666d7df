"""Mission files: YAML in, missions and problems out.

A file holds one mission a document, or `missions:` with `defaults:`. A `defaults.yaml` beside it goes for every file of
its folder. `for_each:` makes many missions of one template. All problems of all files are collected, each with the
file, line and field where it was written, so that a mistake in defaults is told once; a mission with a problem is left
out.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from anomaly_times.errors import UsageError, in_our_words
from anomaly_times.mission import Mission
from anomaly_times.problems import Problem, Where
from anomaly_times.yamlfile import MAX_BYTES, Document, YamlError, dump_document, read_documents

__all__ = ["DEFAULTS_FILE", "Layer", "LoadedMission", "Loading", "dump_mission", "load_missions", "mission_files"]

DEFAULTS_FILE = "defaults.yaml"
"""What goes for every mission file of its folder."""
MAX_EACH = 10_000
"""Missions that one template may make."""
MAX_MISSIONS = 50_000
"""Missions that all files of a load may make: an alias repeats a list of values at no cost."""

_EITHER = (("forecast", ("every", "cron")), ("detect", ("every", "cron")), ("alert", ("for", "points")))
"""Fields of which a mission has one: that of a mission replaces the other one of its defaults."""
_EACH = re.compile(r"\$\{each(?:\.([A-Za-z_][A-Za-z0-9_]*))?\}")
_SUFFIXES = (".yaml", ".yml")
_TOO_SHORT_TO_GUESS = 0.6


@dataclass(frozen=True)
class Layer:
    """Fields of a mission as one place gives them: itself, its file's `defaults:`, or a folder's `defaults.yaml`.

    `path` leads to `data` in its document.
    """

    data: Mapping[str, Any]
    file: str
    document: Document
    path: tuple[str | int, ...] = ()

    def where(self, path: tuple[str | int, ...] = ()) -> Where:
        """The place of a field here, or of the nearest thing around it."""
        return Where(self.file, self.document.line_of((*self.path, *path)), ".".join(str(part) for part in path))


@dataclass(frozen=True)
class LoadedMission:
    """A mission and where it was written: `layers` are what it was merged from, its own fields first."""

    mission: Mission
    file: str
    line: int
    layers: tuple[Layer, ...] = field(default=(), repr=False)

    def where(self, *path: str | int) -> Where:
        """The place where a field (`where("forecast", "every")`) was written; where none was, that of the mission."""
        if not self.layers:
            return Where(self.file, self.line, ".".join(str(part) for part in path))
        return _origin(self.layers, path).where(path)

    def inherits(self, *path: str | int) -> bool:
        """Whether a field stands in defaults, and not in the mission itself."""
        return bool(self.layers) and _origin(self.layers, path) is not self.layers[0]


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
    files = mission_files(paths)
    for n, draft in enumerate(_all_drafts(files, problems)):
        if n == MAX_MISSIONS:
            problems.append(
                Problem("file/too-many", "error", draft.where(), f"the files make more than {MAX_MISSIONS:,} missions")
            )
            break
        loaded = _mission(draft, problems)
        if loaded is not None:
            missions.append(loaded)
    problems += _twice(missions)
    problems += _without_missions(paths, {loaded.file for loaded in missions}, {p.where.file for p in problems})
    # What is wrong in defaults is found again with every mission.
    return Loading(tuple(missions), tuple(dict.fromkeys(problems)), tuple(str(file) for file in files))


def mission_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that `load_missions` would read, each once; the defaults of folders are not among them.

    Raises:
        UsageError: a path that is not there, or a glob that matches nothing.
    """
    seen: dict[Path, Path] = {}
    for given in paths:
        for file in _files(given):
            seen.setdefault(file.resolve(), file)
    return list(seen.values())


def dump_mission(mission: Mission) -> str:
    """The YAML from which `mission` is loaded again: one document, fields that differ from their defaults."""
    data = json.loads(mission.model_dump_json(exclude_defaults=True))
    if "valid_range" in data.get("detect", {}):
        # JSON has no infinity; YAML does.
        data["detect"]["valid_range"] = [float(bound) for bound in data["detect"]["valid_range"]]
    return dump_document(data)


def _files(given: str | Path) -> list[Path]:
    """The mission files that one path stands for."""
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
    return [file for file in found if file.name != DEFAULTS_FILE]


def _without_missions(
    paths: Iterable[str | Path], loaded: Collection[str], broken: Collection[str]
) -> Iterator[Problem]:
    """A mistyped folder must not look like one in which all is well."""
    there = {Path(file).resolve() for file in (*loaded, *broken)}
    for given in paths:
        # Who names the changed files one by one may well name that of the defaults.
        if Path(given).name != DEFAULTS_FILE and not any(file.resolve() in there for file in _files(given)):
            hint = "is it the right one? `at mission init` writes a first mission"
            yield Problem("file/no-mission", "error", Where(str(given)), f"there is no mission in {given}", hint)


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


def _folder_defaults(folder: Path, problems: list[Problem]) -> tuple[Layer, ...]:
    """The layer that lies below all files of a folder; none where it has no defaults, or broken ones."""
    file = folder / DEFAULTS_FILE
    documents = _documents(file, problems) if file.exists() else []
    if not documents:
        return ()
    if len(documents) > 1 or not isinstance(documents[0].data, dict):
        problems.append(
            Problem(
                "file/shape", "error", Where(str(file), 1), "must be one mapping of mission fields", "e.g. step: 1m"
            )
        )
        return ()
    return (Layer(documents[0].data, str(file), documents[0]),)


@dataclass(frozen=True)
class _Draft:
    """The fields of one mission before they are checked, and the layers that they come from."""

    data: Mapping[str, Any]
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, *layers: Layer) -> _Draft:
        """The fields of `layers`, of which the first are the nearest."""
        data: dict[str, Any] = {}
        for layer in reversed(layers):
            data = _over(data, layer.data)
        return cls(data, layers)

    def where(self, path: tuple[str | int, ...] = ()) -> Where:
        return _origin(self.layers, path).where(path)


def _origin(layers: tuple[Layer, ...], path: tuple[str | int, ...]) -> Layer:
    """The layer that gives the field at `path` of what `layers` make together; the first where none does."""
    there: list[tuple[Layer, Any]] = [(layer, layer.data) for layer in layers]
    for key in path:
        there = [(layer, value[key]) for layer, value in there if key in value]
        if not there:
            break
        # Mappings are merged, down to the first that is none; what is no mapping replaces all below it.
        if not isinstance(there[0][1], dict):
            return there[0][0]
        there = list(takewhile(lambda each: isinstance(each[1], dict), there))
    return there[0][0] if there else layers[0]


def _all_drafts(files: Iterable[Path], problems: list[Problem]) -> Iterator[_Draft]:
    defaults: dict[Path, tuple[Layer, ...]] = {}
    for file in files:
        folder = file.parent
        if folder not in defaults:
            defaults[folder] = _folder_defaults(folder, problems)
        for document in _documents(file, problems):
            yield from _drafts(document, str(file), defaults[folder], problems)


def _drafts(document: Document, file: str, defaults: tuple[Layer, ...], problems: list[Problem]) -> Iterator[_Draft]:
    """The missions of a document, with the defaults of folder and file below their own fields."""
    data = document.data
    if data is None:
        return
    if not isinstance(data, dict):
        problems.append(_shape(file, document.line, "must be a mission: a mapping with `name` and `promql`"))
        return
    if "missions" not in data:
        yield from _each(_Draft.of(Layer(data, file, document), *defaults), problems)
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
    below = (Layer(own, file, document, ("defaults",)), *defaults)
    for i, fields in enumerate(data["missions"]):
        path = ("missions", i)
        if isinstance(fields, dict):
            yield from _each(_Draft.of(Layer(fields, file, document, path), *below), problems)
        else:
            problems.append(_shape(file, document.line_of(path), "each of `missions:` must be a mapping"))


def _shape(file: str, line: int, message: str) -> Problem:
    return Problem("file/shape", "error", Where(file, line), message)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `own` over those of `base`; of two that say one thing (`every`, `cron`) one replaces the other."""
    out = _merged(base, own)
    for part, either in _EITHER:
        mine = own.get(part)
        given = [key for key in either if isinstance(mine, dict) and mine.get(key) is not None]
        if len(given) == 1:
            out[part] = {key: value for key, value in out[part].items() if key in given or key not in either}
    return out


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
        yield _Draft(filled, draft.layers)


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
    own = draft.layers[0]
    return LoadedMission(mission, own.file, own.where().line, draft.layers)


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
            # Several fields may share a line: `must be less than 100` needs a subject.
            message = f"{'.'.join(map(str, path))}: {message}" if path else message
        inherited = _origin(draft.layers, path) is not draft.layers[0]
        yield Problem(code, "error", draft.where(path), message, hint, "" if inherited else name)


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
