"""What a mission file may hold, as JSON Schema for editors and as tables for readers.

Both are made from `Mission` and from how files are read (`loading.py`): several missions, `defaults:`, `for_each:`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from anomaly_times.loading import MAX_EACH
from anomaly_times.mission import Alert, Detect, Exclusion, Forecasting, Gate, Incident, Mission, Silence

__all__ = ["file_schema", "reference"]

Schema = dict[str, Any]

_PLACEHOLDER: Schema = {"type": "string", "pattern": r"\$\{each(\.[A-Za-z_][A-Za-z0-9_]*)?\}"}
_FOR_EACH: Schema = {
    "description": f"one mission for each of these values (1 to {MAX_EACH:,}); `${{each}}` or `${{each.key}}` stands "
    "for the value in any other field",
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_EACH,
}
_TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("", Mission),
    ("forecast", Forecasting),
    ("forecast.exclude[]", Exclusion),
    ("detect", Detect),
    ("alert", Alert),
    ("incidents[]", Incident),
    ("backtest", Gate),
    ("silence[]", Silence),
)


def file_schema() -> Schema:
    """JSON Schema (2020-12) of a document in a mission file: one mission, or `missions:` with `defaults:`.

    Looser than loading in one way only: a field may be missing that a folder's `defaults.yaml` could give.
    """
    mission = _plain(Mission)
    definitions: Schema = mission.pop("$defs")
    definitions["ModelSpec"].pop("description")
    fields = mission["properties"]
    fields["name"]["pattern"] = r"^([a-z0-9][a-z0-9-]{0,62}|.*\$\{each.*)$"
    for described in (mission, *definitions.values()):
        for name, field in described.get("properties", {}).items():
            described["properties"][name] = _or_placeholder(field)
    fields["for_each"] = _FOR_EACH
    mission |= {"required": ["name"], "title": "Mission"}
    definitions |= {
        "Each": _PLACEHOLDER,
        "Mission": mission,
        "Defaults": {**mission, "title": "Defaults", "description": "fields that missions take over", "required": []},
        "Missions": {
            "type": "object",
            "additionalProperties": False,
            "required": ["missions"],
            "properties": {
                "defaults": {"$ref": "#/$defs/Defaults"},
                "missions": {"type": "array", "items": {"$ref": "#/$defs/Mission"}, "description": "one after another"},
            },
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Anomaly Times mission file",
        "if": {"type": "object", "required": ["missions"]},
        "then": {"$ref": "#/$defs/Missions"},
        "else": {"$ref": "#/$defs/Mission"},
        "$defs": definitions,
    }


def reference() -> str:
    """Every field of a mission in Markdown: a table for the mission and one for each part of it."""
    return "\n".join(_table(path, model) for path, model in _TABLES)


def _table(path: str, model: type[BaseModel]) -> str:
    lines = [f"### `{path}`\n" if path else "### The mission itself\n"]
    lines += ["| field | takes | default | what it means |", "| --- | --- | --- | --- |"]
    schema = _plain(model)
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        # A part with a table of its own does not repeat its fields here.
        whole = _resolved(field, definitions)
        shown = "" if whole.get("properties") else _default(field)
        cells = (f"`{name}`", _takes(field, definitions), shown, field.get("description") or whole["description"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(model: type[BaseModel]) -> Schema:
    """The schema that pydantic makes, with defaults as they are written in YAML, no titles, and no nulls."""
    schema = copy.deepcopy(model.model_json_schema())
    written = _defaults(model)
    for described, values in ((schema, written), *_parts(schema, model, written)):
        described.pop("title", None)
        for name, field in described.get("properties", {}).items():
            described["properties"][name] = _tidy(field, values.get(name))
    if "model" in schema["properties"]:
        _name_or_parameters(schema)
    for part in schema.get("$defs", {}).values():
        if "model" in part.get("properties", {}):
            _name_or_parameters(part)
    return schema


def _parts(schema: Schema, model: type[BaseModel], written: Mapping[str, Any]) -> Iterator[tuple[Schema, Schema]]:
    """The definitions of `schema`, each with the defaults of its fields."""
    for name, part in schema.get("$defs", {}).items():
        field = next((key for key, info in model.model_fields.items() if _named(info.annotation) == name), "")
        values = written.get(field)
        yield part, dict(values) if isinstance(values, Mapping) else {}


def _named(annotation: object) -> str:
    return getattr(annotation, "__name__", "")


def _defaults(model: type[BaseModel]) -> Schema:
    required = {"name": "x", "promql": "x", "start": "2026-01-01", "end": "2026-01-02", "code": "x", "reason": "x"}
    given = {name: required[name] for name, field in model.model_fields.items() if field.is_required()}
    written = model.model_validate(given).model_dump(mode="json", by_alias=True)
    return {name: value for name, value in written.items() if name not in given}


def _tidy(field: Schema, default: Any) -> Schema:
    out = {key: value for key, value in field.items() if key not in ("title", "default")}
    kinds = [kind for kind in out.get("anyOf", ()) if kind != {"type": "null"}]
    if kinds and len(kinds) < len(out["anyOf"]):
        out.pop("anyOf")
        out = {**kinds[0], **out} if len(kinds) == 1 else {**out, "anyOf": kinds}
        out.pop("title", None)
    if kinds and default is None and "auto" in kinds[0].get("enum", ()):
        default = "auto"
    if default not in (None, "", [], {}) and not isinstance(default, Mapping):
        # JSON knows no infinity; YAML's is `.inf`.
        values = default if isinstance(default, list) else [default]
        if not any(isinstance(value, float) and math.isinf(value) for value in values):
            out["default"] = default
    return out


def _name_or_parameters(described: Schema) -> None:
    field = described["properties"]["model"]
    spec = field.pop("$ref")
    field["anyOf"] = [{"type": "string"}, {"$ref": spec}]
    field["default"] = "auto"


def _or_placeholder(field: Schema) -> Schema:
    """`field`, or the `${each}` of a template in its place; plain text may hold one anyway."""
    if "$ref" in field or (field.get("type") == "string" and not {"pattern", "enum", "format"} & field.keys()):
        return field
    if field.get("type") == "object":
        return field
    beside: Schema = {key: value for key, value in field.items() if key in ("description", "default")}
    rest: Schema = {key: value for key, value in field.items() if key not in beside}
    return {**beside, "anyOf": [rest, {"$ref": "#/$defs/Each"}]}


def _resolved(field: Schema, definitions: Schema) -> Schema:
    reference = field.get("$ref")
    return dict(definitions[reference.rsplit("/", 1)[-1]]) if reference else field


_KINDS = {"string": "text", "boolean": "`true` or `false`", "integer": "whole number"}


def _takes(field: Schema, definitions: Schema) -> str:
    """What a field takes, in words."""
    field = _resolved(field, definitions)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_takes(kind, definitions) for kind in field["anyOf"]))
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("pattern", "").startswith(r"^(\d+y)"):
        return "duration"
    if "%" in field.get("pattern", ""):
        return "per cent"
    if field.get("format") == "date-time":
        return "time (ISO 8601)"
    kind: str = field.get("type", "")
    if kind == "array":
        each: Schema = field.get("items") or field["prefixItems"][0]
        pair = field.get("maxItems") == field.get("minItems") == 2
        return ("two of: " if pair else "list of: ") + _takes(each, definitions)
    if kind == "object":
        return "mapping of text" if "additionalProperties" in field and "properties" not in field else "mapping"
    least, most = (
        field.get("minimum", field.get("exclusiveMinimum")),
        field.get("maximum", field.get("exclusiveMaximum")),
    )
    name = _KINDS.get(kind, kind)
    if least is not None and most is not None:
        if "exclusiveMinimum" in field:
            return f"{name} over {least:,.0f} and {'under' if 'exclusiveMaximum' in field else 'up to'} {most:,.0f}"
        return f"{name} from {least:,} to {most:,}"
    return (
        f"{name} over {least}" if "exclusiveMinimum" in field else f"{name} from {least}" if least is not None else name
    )


def _default(field: Schema) -> str:
    value = field.get("default")
    if value is None:
        return ""
    if isinstance(value, list):
        return "`[" + ", ".join(_scalar(each) for each in value) + "]`"
    return f"`{_scalar(value)}`"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
