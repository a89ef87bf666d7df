"""The mission that the parameters of a hand-made schedule describe: `{"promql": "...", "model_type": "lgbm"}`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from anomaly_times.conventions import name_for_query
from anomaly_times.errors import MissionError, in_our_words
from anomaly_times.mission import Mission
from anomaly_times.settings import Settings

__all__ = ["mission_by_hand"]

_TOP = ("name", "promql", "source", "step", "offset", "timezone", "season", "max_series", "labels")
_FORECAST = ("lookback", "horizon", "every", "level", "interval_scale")
_GATES = ("direction", "min_deviation", "min_relative_deviation", "valid_range", "missing")
_DETECT = ("alerts_per_week", "evidence", *_GATES, "catch_up")
_KNOWN = (*_TOP, "model_type", "model_params", *_FORECAST, *_DETECT, "mission", "pack")


def mission_by_hand(parameters: Mapping[str, Any], settings: Settings) -> Mission:
    """The mission of a query that is scheduled by hand, the same for both flows.

    Args:
        parameters: those of the flows; what is absent or `None` has its default. Without a `name` it is derived from
            source and query.
        settings: say what the default source is called.

    Raises:
        MissionError: naming the parameter that makes no sense.
        UsageError: there is no such source.
    """
    for name in parameters:
        if name not in _KNOWN:
            near = get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_KNOWN)}"
            raise MissionError(f"there is no parameter {name!r}", hint=hint)
    given = {name: value for name, value in parameters.items() if value is not None}
    source, _ = settings.named_source(given.get("source", ""))
    given.setdefault("name", name_for_query(source, given["promql"]))
    model = {**(given.get("model_params") or {}), "type": given.get("model_type", "auto")}
    spec = {field: given[field] for field in _TOP if field in given}
    spec["forecast"] = {field: given[field] for field in _FORECAST if field in given} | {"model": model}
    spec["detect"] = {field: given[field] for field in _DETECT if field in given}
    try:
        return Mission.model_validate(spec)
    except ValidationError as exc:
        raise MissionError(_by_parameter(exc), hint="correct the parameters of the schedule") from None


def _by_parameter(exc: ValidationError) -> str:
    """What is wrong, under the names that the flows give to the fields."""
    lines = []
    for error in exc.errors(include_input=False, include_url=False, include_context=False):
        path = [str(part) for part in error["loc"] if part not in ("forecast", "detect")]
        name = "model_type" if path[:1] == ["model"] else ".".join(path)
        lines.append(f"{name}: {in_our_words(error['msg'])}" if name else in_our_words(error["msg"]))
    return "; ".join(lines)
