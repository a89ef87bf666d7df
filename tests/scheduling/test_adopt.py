"""What schedules made by hand amount to, and what is said of those that amount to nothing."""

from __future__ import annotations

from typing import Any

from anomaly_times.conventions import Kind
from anomaly_times.scheduling.adopt import Adoption, find_handmade
from anomaly_times.scheduling.server import BaseDeployment
from anomaly_times.settings import Settings

HOURLY = {"interval": 3600, "anchor_date": "2026-03-01T12:00:00Z"}


def found(**parameters: list[dict[str, Any]]) -> Adoption:
    """What `forecast=[…]` and `detect=[…]`, the parameters of active hourly schedules, amount to."""

    def base(kind: Kind) -> BaseDeployment:
        schedules = [
            {"id": f"{kind}-{i}", "slug": None, "active": True, "schedule": HOURLY, "parameters": given}
            for i, given in enumerate(parameters.get(kind, []))
        ]
        return BaseDeployment(kind, kind, paused=False, schedules=schedules)

    return find_handmade([base("forecast"), base("detect")], Settings())


def test_a_mission_that_gets_a_schedule_which_nobody_made_is_told() -> None:
    both = found(forecast=[{"promql": "up", "name": "a"}], detect=[{"promql": "up", "name": "a"}])
    assert (list(both.missions), both.left, both.notes) == (["a"], [], [])
    forecast = found(forecast=[{"promql": "up", "name": "a"}])
    assert forecast.notes == ["a has no detect schedule; as a mission it gets one, every 1m"]
    detect = found(detect=[{"promql": "up", "name": "a"}])
    assert detect.notes == ["a has no forecast schedule; as a mission it gets one, every 1h"]


def test_a_misspelt_parameter_is_not_dropped_without_a_word() -> None:
    adoption = found(forecast=[{"promql": "up", "modle": "mstl"}, {"promql": "up", "model_typ": "mstl"}])
    assert adoption.missions == {}
    assert adoption.left[0].startswith(
        "the forecast schedule forecast-0 is no mission: there is no parameter 'modle'; "
    )
    assert adoption.left[1].endswith("there is no parameter 'model_typ'; did you mean 'model_type'?")


def test_a_schedule_with_nothing_to_watch_is_named_and_ones_of_missions_are_not() -> None:
    adoption = found(forecast=[{}, {"promql": ""}, {"mission": "a"}, {"pack": "at:p:forecast:1h:00"}])
    nothing = "has no `promql`, so there is nothing that it could watch"
    assert adoption.left == [f"the forecast schedule forecast-{i} {nothing}" for i in (0, 1)]
