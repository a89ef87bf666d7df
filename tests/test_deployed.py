from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from anomaly_times.deployed import DeployedMission, Pause, from_value, to_value, with_pause
from anomaly_times.errors import MissionError
from anomaly_times.mission import Mission

SINCE = datetime(2026, 3, 1, 12, tzinfo=UTC)
PACKS = ("at:shop:forecast:1h:00", "at:shop:detect:1m:00")


def deployed(paused: Pause | None = None, **fields: object) -> DeployedMission:
    mission = Mission.model_validate({"name": "a-b", "promql": "up", **fields})
    return DeployedMission(mission, "shop", PACKS, SINCE, paused)


@pytest.mark.parametrize("paused", [None, Pause(), Pause(SINCE, "maintenance")])
def test_what_is_deployed_is_read_back(paused: Pause | None) -> None:
    made = deployed(
        paused, forecast={"model": {"type": "ets", "model": "ANN"}}, detect={"valid_range": [0, float("inf")]}
    )
    value = json.loads(json.dumps(to_value(made), allow_nan=False))
    assert from_value("at_a_b", value, made.tags) == made
    assert ("paused" in made.tags) == (paused is not None)


def test_fields_of_a_later_version_are_let_pass() -> None:
    value = to_value(deployed(forecast={"every": "2h"}))
    value["mission"]["novel"] = 1
    value["mission"]["forecast"]["novel"] = {"a": 1}
    value["more"] = True
    assert from_value("at_a_b", value, deployed().tags) == deployed(forecast={"every": "2h"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": 2}, "newer version"),
        ({"spec": None}, "which form"),
        ({"mission": "x"}, "holds no mission"),
        ({"mission": {"name": "a-b"}}, "promql"),
        ({"mission": {"name": "a-b", "promql": "up", "step": "fast"}}, "step"),
        ({"since": "yesterday"}, "broken time"),
        ({"since": "2026-03-01T12:00:00"}, "without a zone"),
        ({"paused": {"until": "soon"}}, "broken time"),
        ({"paused": {"until": "2026-03-01T12:00:00"}}, "without a zone"),
        ({"mission": {"name": "other", "promql": "up"}}, "holds the mission 'other'"),
    ],
)
def test_a_value_edited_by_hand_into_nonsense_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MissionError, match="at_a_b") as caught:
        from_value("at_a_b", {**to_value(deployed()), **change}, deployed().tags)
    assert words in caught.value.message


def test_a_value_that_is_no_mission_at_all_is_named() -> None:
    for value in (None, 3, [], "text"):
        with pytest.raises(MissionError, match="at_a_b"):
            from_value("at_a_b", value, [])


def test_a_mission_too_large_for_prefect_is_refused() -> None:
    with pytest.raises(MissionError, match=r"5,000"):
        to_value(deployed(description="x" * 5000))


def test_a_pause_changes_nothing_else_of_a_value() -> None:
    value = {**to_value(deployed()), "novel": 1}
    value["mission"] = {**value["mission"], "promql": "down", "later": {"a": 1}}
    resting = with_pause(value, Pause(SINCE, "why"))
    assert {key: resting[key] for key in value} == value
    read = from_value("at_a_b", resting, deployed().tags)
    assert (read.paused, read.edited) == (Pause(SINCE, "why"), True)
    assert with_pause(resting, None) == value
    with pytest.raises(MissionError, match=r"5,000"):
        with_pause(value, Pause(None, "x" * 5000))
