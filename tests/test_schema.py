from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anomaly_times.mission import Mission
from anomaly_times.schema import file_schema, reference
from anomaly_times.yamlfile import read_documents

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "missions").glob("*.yaml"))


def complaints(schema: dict[str, Any], value: Any, path: str = "$") -> Iterator[str]:
    """What a validator of JSON Schema would say: as much of the standard as our schema uses."""
    root = file_schema()
    if "$ref" in schema:
        yield from complaints(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], value, path)
    if "if" in schema:
        matches = not list(complaints(schema["if"], value, path))
        yield from complaints(schema["then" if matches else "else"], value, path)
    if "anyOf" in schema and all(list(complaints(each, value, path)) for each in schema["anyOf"]):
        yield f"{path}: none of the forms"
    kinds = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "array": list, "object": dict}
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (kind in ("number", "integer") and isinstance(value, bool))):
        yield f"{path}: no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: not one of {schema['enum']}"
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value):
            yield f"{path}: no {schema['pattern']}"
        if len(value) < schema.get("minLength", 0):
            yield f"{path}: too short"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            yield f"{path}: out of range"
        # No limit is NaN, which nothing is beyond.
        if value <= schema.get("exclusiveMinimum", math.nan) or value >= schema.get("exclusiveMaximum", math.nan):
            yield f"{path}: out of range"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{path}: wrong length"
        for i, item in enumerate(value):
            yield from complaints(schema.get("items", {}), item, f"{path}[{i}]")
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{path}: lacks {name}"
        fields, free = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, item in value.items():
            if name in fields:
                yield from complaints(fields[name], item, f"{path}.{name}")
            elif free is False:
                yield f"{path}: has {name}"


def read(text: str) -> Any:
    return read_documents(text.encode())[0].data


def test_the_schema_beside_the_docs_is_current() -> None:
    committed = json.loads((ROOT / "docs" / "mission.schema.json").read_text())
    assert committed == file_schema(), "write it anew: at mission schema > docs/mission.schema.json"


def test_the_reference_in_the_docs_is_current() -> None:
    page = (ROOT / "docs" / "missions.md").read_text()
    assert page.endswith(reference()), "write it anew: at mission schema --output markdown"


def test_every_field_has_a_meaning_in_the_reference() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", reference(), re.MULTILINE)
    assert {name for name, *_ in rows} >= set(Mission.model_fields)
    assert [name for name, takes, _, meaning in rows if not takes or not meaning] == []


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_name_the_schema_and_follow_it(file: Path) -> None:
    first = file.read_text().partition("\n")[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
    assert named is not None
    assert (file.parent / named[1]).resolve() == ROOT / "docs" / "mission.schema.json"
    assert list(complaints(file_schema(), read(file.read_text()))) == []


@pytest.mark.parametrize("page", ["missions.md", "checks.md", "detection.md"])
def test_yaml_in_the_docs_follows_the_schema(page: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        data = read(block)
        assert list(complaints(file_schema(), {"name": "x", **data} if "missions" not in data else data)) == []


@pytest.mark.parametrize(
    "text",
    [
        "name: a\npromql: m\nseason: 1d",
        "name: a\npromql: m\nseason: [1d, 1w]",
        "name: a\npromql: m\nseason: none",
        "name: a\npromql: m\nforecast: {model: profile}",
        "name: a\npromql: m\nforecast: {model: {type: ets, model: ANN}, cron: 0 * * * *}",
        "name: a\npromql: m\ndetect: {min_deviation: [1, 2], min_relative_deviation: [20%, 0.5]}",
        "name: a\npromql: m\nalert: {for: 10m, labels: {severity: page}}",
        "name: a-${each}\nfor_each: [x, y]\npromql: m\nstep: ${each}\ndetect: {min_deviation: '${each.k}'}",
        "defaults: {step: 5m}\nmissions:\n- {name: a, promql: m}\n",
    ],
)
def test_what_loads_follows_the_schema(text: str) -> None:
    assert list(complaints(file_schema(), read(text))) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("promql: m", "lacks name"),
        ("name: a\npromq: m", "has promq"),
        ("name: a\npromql: m\nstep: 5", "step"),
        ("name: a\npromql: m\nstep: 5 minutes", "step"),
        ("name: A B\npromql: m", "name"),
        ("name: a\npromql: m\ndetect: {direction: up}", "direction"),
        ("name: a\npromql: m\nforecast: {level: 101}", "level"),
        ("name: a\npromql: m\ndetect: {alerts_per_week: 0}", "alerts_per_week"),
        ("name: a\npromql: m\nforecast: {lookbak: 1d}", "has lookbak"),
        ("missions:\n- {name: a, promql: m}\nstep: 5m", "has step"),
    ],
)
def test_what_does_not_load_is_marked(text: str, complaint: str) -> None:
    assert any(complaint in each for each in complaints(file_schema(), read(text)))


def test_defaults_are_written_as_in_yaml() -> None:
    fields = file_schema()["$defs"]["Mission"]["properties"]
    assert fields["step"]["default"] == "1m"
    assert fields["season"]["default"] == "auto"
    assert file_schema()["$defs"]["Forecasting"]["properties"]["lookback"]["default"] == "14d"
    assert "Infinity" not in json.dumps(file_schema())
