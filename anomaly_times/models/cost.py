"""How long the slow models take, from measurements, so that what runs for minutes can say so before it starts.

`python -m benchmarks.costs` measures the table anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from math import log

from pydantic import ValidationError

from anomaly_times.durations import format_duration
from anomaly_times.mission import Mission, ModelSpec

__all__ = [
    "BOLT_SMALL",
    "COMPARED",
    "FORECASTS",
    "LEARNING",
    "LONG",
    "MEASURED",
    "estimated_seconds",
    "long_forecast",
]

LONG = timedelta(minutes=1)
"""A forecast that takes longer is worth a word before it starts."""

MEASURED: dict[str, tuple[tuple[int, int, float], ...]] = {
    "ets": ((1, 2000, 0.03),),
    "theta": ((1, 2000, 0.19),),
    "arima": ((1, 2000, 0.34), (12, 250, 3.5), (24, 250, 16.4)),
    "ces": ((1, 2000, 0.35), (24, 2000, 0.63), (288, 2000, 0.76)),
    "holt_winters": ((1, 2000, 0.03), (24, 2000, 0.31)),
    "mstl": ((24, 2000, 0.07), (288, 2000, 0.34)),
}
"""By model: the season that it keeps for itself in steps (1: none), points, processor seconds for one series."""

LEARNING = {"lgbm": (6.3, 4.4e-6)}
"""Models that learn once for all series: processor seconds for that, and for every point of the history besides."""

BOLT_SMALL, _BOLT_STEPS = (0.084, 0.92), 64
"""Chronos-Bolt small, which `chronos` takes by default: processor seconds of a series for its first 64 steps, and for
every 64 more, which go on from nine quantiles."""

FORECASTS, COMPARED = 5, 4
"""A forecast with its bounds is made of so many fits: itself, one when its bounds are tuned, and three from the past.

Of one of several candidates of `auto` there are `COMPARED` at most: two from the past are enough to compare them.
"""


def estimated_seconds(
    spec: ModelSpec,
    *,
    step: timedelta,
    n_points: int,
    n_series: int,
    h: int,
    season: Sequence[timedelta] | None = None,
) -> float | None:
    """Processor seconds for a forecast of a panel with its bounds; `None` where it is no matter or no figure is known.

    Between the seasons measured, and beyond the last two of them, seconds grow with a power of the season; with points
    they grow in proportion. `auto` costs what its slow candidates do. Nothing is known of `chronos` with other weights
    than the default ones, or on a GPU.

    Args:
        spec: the model and its parameters.
        step: between two points.
        n_points: of each series.
        n_series: how many.
        h: steps ahead.
        season: the periods that the mission gives; `None` for a day and a week.
    """

    def once(model: ModelSpec) -> float | None:
        return _one_forecast(model, step=step, n_points=n_points, n_series=n_series, h=h, season=season)

    if spec.type == "auto":
        slow = [seconds for model in _candidates(spec) if (seconds := once(model)) is not None]
        # An only candidate is compared with nothing, and has the bounds that it has alone.
        alone = len(spec.params.get("candidates", ())) == 1
        return (FORECASTS if alone else COMPARED) * sum(slow) if slow else None
    seconds = once(spec)
    return None if seconds is None else FORECASTS * seconds


def _candidates(auto: ModelSpec) -> list[ModelSpec]:
    """What `auto` chooses from, if it names them; one that is no model is not this module's business."""
    given = auto.params.get("candidates")
    found = []
    for each in given if isinstance(given, list) else []:
        try:
            found.append(ModelSpec.model_validate({"type": each} if isinstance(each, str) else each))
        except ValidationError:
            continue
    return found


def _one_forecast(
    spec: ModelSpec, *, step: timedelta, n_points: int, n_series: int, h: int, season: Sequence[timedelta] | None
) -> float | None:
    if spec.type in LEARNING:
        learning, a_point = LEARNING[spec.type]
        return learning + a_point * n_points * n_series
    if spec.type == "chronos" and not {"path", "device"} & spec.params.keys():
        first, more = BOLT_SMALL
        return n_series * (first + more * ((h - 1) // _BOLT_STEPS))
    if spec.type not in MEASURED:
        return None
    from anomaly_times.models.nixtla import ETS_SEASON, RECENT  # with the statistics that all models share

    known = (timedelta(days=1), timedelta(weeks=1)) if season is None else season
    lengths = [n for n in sorted({round(period / step) for period in known}) if n >= 2 and 2 * n <= n_points]
    if spec.type == "mstl":
        kept = lengths
    elif spec.type == "holt_winters":
        kept = [n for n in lengths if n <= ETS_SEASON][-1:]
    else:
        kept = lengths[:1] if spec.params.get("seasonal") == "native" else []
    fitted = n_points if spec.type == "mstl" else min(n_points, max(RECENT, 2 * max(kept, default=0)))
    return n_series * fitted * sum(_seconds(spec.type, n) for n in kept or [1])


def long_forecast(mission: Mission, n_series: int) -> str:
    """What there is to say about a mission whose forecasts take longer than `LONG`; empty for all others."""
    n_points = mission.forecast.lookback // mission.step
    model = mission.forecast.model
    found = estimated_seconds(
        model, step=mission.step, n_points=n_points, n_series=n_series, h=mission.h, season=mission.season
    )
    if found is None or found <= LONG.total_seconds():
        return ""
    size = "one series" if n_series == 1 else f"{n_series:,} series"
    taken = format_duration(timedelta(minutes=round(found / 60)))
    return f"{model.type} takes about {taken} of one core for a forecast of {size} at this step"


def _seconds(model: str, season: int) -> float:
    """Seconds a point."""
    rows = [(length, seconds / points) for length, points, seconds in MEASURED[model]]
    if season <= rows[0][0] or len(rows) == 1:
        return rows[0][1]
    above = next((i for i, (length, _) in enumerate(rows) if length >= season), len(rows) - 1)
    (low, cheap), (high, dear) = rows[above - 1], rows[above]
    ratio, width = dear / cheap, high / low
    return float(cheap * (season / low) ** (log(ratio) / log(width)))
