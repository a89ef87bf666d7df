"""Every name that is written outside: metrics, labels, and how they are derived.

A dashboard or an alert rule depends on these; changing one is a breaking change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from anomaly_times.panel import Labels

__all__ = [
    "BY_HAND",
    "DETECTION_DEPLOYMENT",
    "DURATION",
    "ERRORS",
    "EVIDENCE",
    "FAILED",
    "FORECASTING_DEPLOYMENT",
    "FORECAST_ABS_ERROR",
    "FORECAST_END",
    "FORECAST_METRICS",
    "FORECAST_QUALITY",
    "INCIDENT",
    "INFO_LABELS",
    "LABEL_CHANNEL",
    "LABEL_KIND",
    "LABEL_METRIC",
    "LABEL_MISSION",
    "LAST_SUCCESS",
    "LIMIT",
    "LIMIT_METRICS",
    "LOWER",
    "MISSING_FORECAST",
    "MISSION_INFO",
    "MISSION_NAME",
    "MOVE",
    "NAIVE_ABS_ERROR",
    "OUR_METRICS",
    "PASS_LABELS",
    "POINTS_DROPPED",
    "POINTS_IN_BAND",
    "POINTS_JUDGED",
    "POINTS_READ",
    "POINTS_WRITTEN",
    "PRED",
    "REASON",
    "SCORE",
    "SCORED_POINTS",
    "SELF_METRICS",
    "SERIES",
    "SERIES_ANOMALOUS",
    "STAGES",
    "TAG",
    "TAG_PAUSED",
    "UPPER",
    "USUAL",
    "Kind",
    "channel_labels",
    "lead_ms",
    "lease_name",
    "lock_name",
    "mission_of_variable",
    "name_for_query",
    "pack_slug",
    "pack_tag",
    "project_tag",
    "source_labels",
    "variable_name",
    "written_labels",
]

PRED = "anomaly_pred"
LOWER = "anomaly_lower"
UPPER = "anomaly_upper"
SCORE = "anomaly_score"
FORECAST_METRICS = (PRED, LOWER, UPPER)
LIMIT = "anomaly_limit"
"""What the evidence of a channel (the label `channel`) is held against; once a forecast, as are the next two."""
USUAL = "anomaly_usual"
"""What the evidence of a channel is in normal times."""
MOVE = "anomaly_move"
"""How far a series moves from one point to the next: the unit of roughness."""
LIMIT_METRICS = (LIMIT, USUAL, MOVE)
REASON = "anomaly_reason"
"""Beside each score, what it is of: a place in `evidence.REASONS`."""
INCIDENT = "anomaly_incident"
"""Beside each score while an incident lasts: over 1, fading."""
EVIDENCE = "anomaly_evidence"
"""Beside each score, the evidence of a channel (the label `channel`)."""
FAILED = "anomaly_mission_failed"
"""1 at the time of a run in which a mission failed, with the labels `mission` and `kind`."""
OUR_METRICS = (*FORECAST_METRICS, *LIMIT_METRICS, SCORE, REASON, INCIDENT, EVIDENCE, FAILED)

MISSION_INFO = "at_mission_info"
"""1 while a mission runs, 0 from when it is paused or gone; the labels `INFO_LABELS` say what it is."""
SERIES = "at_series"
"""Series with a value in this detection pass, by mission, as are the next three."""
SCORED_POINTS = "at_scored_points"
"""Points that this detection pass scored."""
MISSING_FORECAST = "at_missing_forecast"
"""Points that this detection pass could not score for want of a forecast."""
SERIES_ANOMALOUS = "at_series_anomalous"
"""Series whose newest score of this detection pass is over `alert.above`."""
ERRORS = "at_errors"
"""1 where a pass failed for the mission, else 0; with the label `kind`, as is the next."""
LAST_SUCCESS = "at_last_success_timestamp_seconds"
"""The `now` of a pass that succeeded for the mission."""
FORECAST_END = "at_forecast_end_timestamp_seconds"
"""The last time that the newest forecast of the mission is for."""
POINTS_JUDGED = "at_points_judged"
"""Points since the forecast of the slot before that had a value, a stored forecast, and a value a season before."""
POINTS_IN_BAND = "at_points_in_band"
"""Those of the points judged that lie within their bounds: over `POINTS_JUDGED`, the coverage."""
FORECAST_ABS_ERROR = "at_forecast_abs_error"
"""Over the points judged, the sum of abs(y − yhat)."""
NAIVE_ABS_ERROR = "at_naive_abs_error"
"""Over the points judged, the sum of abs(y − y a season before): under `FORECAST_ABS_ERROR`, the MASE."""
DURATION = "at_pass_duration_seconds"
"""Seconds of a stage of the pass, with the labels `PASS_LABELS` and `stage`.

`total` is from begin to end, `read` and `write` are waits for the source, added up over what ran at once, and `compute`
is processor time of forecasting and scoring.
"""
POINTS_READ = "at_points_read"
"""Points of series that this pass read from its source, less gaps; the labels are `PASS_LABELS`, as of the next two."""
POINTS_WRITTEN = "at_points_written"
"""Samples of results that this pass wrote to its source."""
POINTS_DROPPED = "at_points_dropped"
"""Points of this pass that came to nothing: without a forecast, or with a result that could not be written."""
FORECAST_QUALITY = (POINTS_JUDGED, POINTS_IN_BAND, FORECAST_ABS_ERROR, NAIVE_ABS_ERROR)
SELF_METRICS = (
    *(MISSION_INFO, SERIES, SCORED_POINTS, MISSING_FORECAST, SERIES_ANOMALOUS, ERRORS, LAST_SUCCESS, FORECAST_END),
    *(*FORECAST_QUALITY, DURATION, POINTS_READ, POINTS_WRITTEN, POINTS_DROPPED),
)
"""What passes tell about themselves, all gauges: a sample at the `now` of a pass is that pass's own figure."""
INFO_LABELS = ("mission", "project", "source", "model", "step", "forecast_every", "detect_every")
PASS_LABELS = ("pack", "kind", "source")
STAGES = ("read", "compute", "write", "total")
"""What the label `stage` of `DURATION` says."""
BY_HAND = "by-hand"
"""The label `pack` of a pass that no pack asked for."""

LABEL_MISSION = "mission"
LABEL_METRIC = "metric"
LABEL_KIND = "kind"
LABEL_CHANNEL = "channel"

MISSION_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62})")
"""What a mission may be called (full match): at most 63 characters."""


_STRING = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)""")
_SPACE = re.compile(r"((?<=\w)\s+(?=\w))|\s+")
"""White space between two words, or any other."""


def written_labels(source: Labels, mission: str, extra: Mapping[str, str] | None = None) -> Labels:
    """The labels, less `__name__`, under which results of `mission` for a source series are written.

    The source's own `mission` and `metric` become `exported_mission` and `exported_metric`; its `__name__` becomes
    `metric`, else two metrics with equal labels would collide. `extra` are the mission's own labels; a label that the
    series has already keeps the series' value.
    """
    out = dict(extra or {})
    for name, value in source:
        if name == "__name__":
            out[LABEL_METRIC] = value
        elif name in (LABEL_MISSION, LABEL_METRIC):
            out[f"exported_{name}"] = value
        else:
            out[name] = value
    out[LABEL_MISSION] = mission
    return Labels.of(out)


def source_labels(written: Labels, mission_labels: Mapping[str, str] | None = None) -> Labels:
    """The labels of the series that results carrying `written` belong to; the inverse of `written_labels`.

    For a series that is gone from its source, and so is known by its forecast alone. Where a label of the mission
    hides an equal one of the series the answer lacks it, and `written_labels` of the answer is `written` all the same.
    """
    out = {}
    for name, value in written:
        if name == LABEL_METRIC:
            out["__name__"] = value
        elif name in (f"exported_{LABEL_MISSION}", f"exported_{LABEL_METRIC}"):
            out[name.removeprefix("exported_")] = value
        elif name != LABEL_MISSION and (mission_labels or {}).get(name) != value:
            out[name] = value
    return Labels.of(out)


def channel_labels(written: Labels, channel: str) -> Labels:
    """The labels of the evidence of one channel for results that carry `written`.

    A label `channel` of the series itself becomes `exported_channel`, and that, where there is one, gets the prefix
    once more.
    """
    out, name, value = dict(written), LABEL_CHANNEL, channel
    while value:
        out[name], value = value, out.get(name, "")
        name = f"exported_{name}"
    return Labels.of(out)


def name_for_query(source: str, promql: str) -> str:
    """The mission name of a query that was given without one: `q-` and ten hex digits, stable.

    The same for the same source and the same PromQL up to white space that separates no words, whatever else differs,
    so that a forecast and a detection that were started by hand find each other.
    """
    parts = _STRING.split(promql.strip())
    canonical = "".join(
        part if i % 2 else _SPACE.sub(lambda found: " " if found[1] else "", part) for i, part in enumerate(parts)
    )
    return "q-" + hashlib.sha256(f"{source}\0{canonical}".encode()).hexdigest()[:10]


FORECASTING_DEPLOYMENT = "forecasting/forecasting-deployment"
DETECTION_DEPLOYMENT = "detection/detection-deployment"
"""Flow and deployment that run missions on Prefect; schedules made by hand name them too."""

TAG = "anomaly-times"
"""What everything of ours on a Prefect server is tagged with."""
TAG_PAUSED = "paused"

Kind = Literal["forecast", "detect"]


def project_tag(project: str) -> str:
    """The tag that says whose missions these are."""
    return f"project:{project}"


def pack_tag(slug: str) -> str:
    """The tag by which the runs of a pack find its missions."""
    return f"pack:{slug}"


def variable_name(mission: str) -> str:
    """The Prefect Variable that holds a deployed mission (Prefect takes no hyphens)."""
    return "at_" + mission.replace("-", "_")


def mission_of_variable(name: str) -> str:
    """The mission that a Variable called `name` holds; empty where it is called like none."""
    mission = name.removeprefix("at_").replace("_", "-")
    return mission if variable_name(mission) == name and MISSION_NAME.fullmatch(mission) else ""


def lock_name(project: str) -> str:
    """The Variable that says who is changing what is deployed of a project; no mission can be called so."""
    return "at__lock_" + project.replace("-", "_")


def lease_name(slug: str) -> str:
    """The Variable by which the runs of a pack take turns; no mission can be called so."""
    return "at__lease_" + hashlib.sha256(slug.encode()).hexdigest()[:16]


def pack_slug(project: str, kind: Kind, cadence: str, place: str) -> str:
    """The name of a pack, and of its schedule: `at:shop:detect:1m:00`.

    Args:
        project: whose it is.
        kind: what its runs do.
        cadence: `every` as a duration, or a short name for a cron line.
        place: a number among packs alike, or the name of an isolated mission.
    """
    return f"at:{project}:{kind}:{cadence}:{place}"


def lead_ms(k: int, step: timedelta) -> int:
    """How many milliseconds before its own time a forecast `k` steps after its cutoff is written: `k`.

    VictoriaMetrics never overwrites. A smaller lead (a newer forecast) gets a later timestamp, so
    `last_over_time(anomaly_pred[<step − 1 ms>])` at a grid time sees only what belongs to that time, newest first.

    Raises:
        ValueError: if `k` does not fit into the step (`1 ≤ k ≤ step in ms − 2`).
    """
    if not 1 <= k <= step / timedelta(milliseconds=1) - 2:
        raise ValueError(f"a lead of {k} steps does not fit into a step of {step}")
    return k
