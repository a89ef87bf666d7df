"""What passes tell about themselves, in the source of the missions: how they went, and how good forecasts are.

A few series a mission, never one a series of the source. Passes keep nothing, so each figure is that of one pass, and
`sum_over_time` adds them up; `docs/monitoring.md` has the table. None of this ever fails a pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from anomaly_times.conventions import (
    BY_HAND,
    DURATION,
    ERRORS,
    FAILED,
    FORECAST_ABS_ERROR,
    FORECAST_END,
    INFO_LABELS,
    LABEL_KIND,
    LABEL_MISSION,
    LAST_SUCCESS,
    MISSING_FORECAST,
    MISSION_INFO,
    NAIVE_ABS_ERROR,
    PASS_LABELS,
    POINTS_DROPPED,
    POINTS_IN_BAND,
    POINTS_JUDGED,
    POINTS_READ,
    POINTS_WRITTEN,
    SCORED_POINTS,
    SERIES,
    SERIES_ANOMALOUS,
    STAGES,
    Kind,
)
from anomaly_times.durations import EPOCH, format_duration
from anomaly_times.errors import AnomalyTimesError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Labels
from anomaly_times.passes import DetectResult, ForecastResult
from anomaly_times.stores import Gauge, Store
from anomaly_times.stores.metered import MeteredStore, Traffic

__all__ = [
    "About",
    "Effort",
    "Result",
    "efforts",
    "mission_figures",
    "pass_figures",
    "tell",
    "tell_gone",
    "tells_alike",
]

Result = ForecastResult | DetectResult

_DEFAULT = "default"
"""The label `source` of missions that name none."""


@dataclass(frozen=True, slots=True)
class About:
    """Whose missions a pass runs, and the slug of its pack."""

    project: str
    pack: str = BY_HAND


@dataclass(frozen=True, slots=True)
class Effort:
    """What a pass, or a part of one, did in one source.

    `cpu` is seconds of processor time without reading, `dropped` counts points that came to nothing.
    """

    traffic: Traffic = field(default_factory=Traffic)
    cpu: float = 0.0
    dropped: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.traffic + other.traffic, self.cpu + other.cpu, self.dropped + other.dropped)


def efforts(results: Sequence[Result], stores: Mapping[str, MeteredStore], *, now: datetime) -> dict[str, Effort]:
    """By source what these results of a pass at `now` took; sources that are not open are left out."""
    by_source: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_source[result.mission.source].append(result)
    return {
        source: Effort(
            stores[source].traffic,
            sum(result.cpu for result in ours),
            sum(_dropped(result, now) for result in ours),
        )
        for source, ours in by_source.items()
        if source in stores
    }


def tell(
    kind: Kind,
    results: Sequence[Result],
    stores: Mapping[str, MeteredStore],
    *,
    about: About,
    now: datetime,
    seconds: float | None,
    resting: Collection[str] = (),
    unreadable: Collection[str] = (),
    elsewhere: Mapping[str, Effort] | None = None,
) -> list[str]:
    """Store what a pass tells about itself, in one request a source; gives in words what could not be stored, and why.

    Args:
        kind: what the pass did.
        results: as they are after they were written.
        stores: those that the pass used, by the source that missions name.
        about: whose pass it was.
        now: of the pass; the time of every sample.
        seconds: that it took in all; `None` for a part of a pass: then figures of the pass as a whole are left out.
        resting: names of missions that are paused and ran all the same, because somebody asked.
        unreadable: names of missions of the pack that failed because they cannot be read; told to the default source.
        elsewhere: by source, what parts of the pass did that told of their missions themselves.
    """
    by_source: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_source[result.mission.source].append(result)
    of_parts, effort = elsewhere or {}, efforts(results, stores, now=now)
    for source in of_parts:
        by_source.setdefault(source, [])
    if unreadable:
        by_source.setdefault("", [])
    untold = []
    for source, ours in by_source.items():
        store = stores.get(source)
        lost = unreadable if not source else ()
        whom = _count(len(ours) + len(lost)) if ours or lost else "the pass"
        whose = f"figures of {whom} were not stored"
        if store is None:
            untold.append(f"{whose}: the source {source or _DEFAULT!r} is not open")
            continue
        try:
            gauges = [gauge for name in lost for gauge in _failed(name, kind)]
            for result in ours:
                running = result.mission.name not in resting
                gauges += mission_figures(result, about.project, now, running=running)
            if seconds is not None:
                labels = (about.pack, kind, source or _DEFAULT)
                done = effort.get(source, Effort(store.traffic)) + of_parts.get(source, Effort())
                gauges += pass_figures(labels, done, seconds)
            store.write_gauges(gauges, at=now)
        except Exception as exc:  # noqa: BLE001 - what a pass did counts, whatever happens to its figures
            reason = exc.message if isinstance(exc, AnomalyTimesError) else f"{type(exc).__name__}: {exc}"
            untold.append(f"{whose} in {store.name}: {reason}")
    return untold


def tell_gone(missions: Iterable[Mission], stores: Mapping[str, Store], *, project: str, at: datetime) -> list[str]:
    """Store that these missions run no more, so that rules about them fall silent; gives in words what could not be.

    Args:
        missions: as they ran.
        stores: by the source that missions name.
        project: whose they are.
        at: from when on; a pass that began before may still tell what it did.
    """
    by_source: dict[str, list[Mission]] = defaultdict(list)
    for mission in missions:
        by_source[mission.source].append(mission)
    untold = []
    for source, group in by_source.items():
        names = ", ".join(mission.name for mission in group[:3]) + (", …" if len(group) > 3 else "")
        store = stores.get(source)
        reason = f"the source {source or _DEFAULT!r} is not open"
        if store is not None:
            try:
                store.write_gauges([_info(mission, project, 0.0) for mission in group], at=at)
                continue
            except AnomalyTimesError as exc:
                reason = f"{store.name}: {exc.message}"
        untold.append(f"that {names} stopped is not stored, so rules may still wait for scores: {reason}")
    return untold


def tells_alike(one: Mission, other: Mission | None) -> bool:
    """Whether there is another mission at all, and both are told as the same series of `at_mission_info`."""
    return other is not None and _info_labels(one, "") == _info_labels(other, "")


def mission_figures(result: Result, project: str, now: datetime, *, running: bool = True) -> list[Gauge]:
    """What a pass tells about one mission: whether it is `running`, how it went, and what was found."""
    mission, failed = result.mission, result.error is not None
    kind: Kind = "forecast" if isinstance(result, ForecastResult) else "detect"
    told: dict[str, float] = {}
    if isinstance(result, DetectResult):
        if not failed:
            told[SCORED_POINTS] = float(_scored_points(result))
            told[MISSING_FORECAST] = float(_missing_forecasts(result, now))
            # Of a pass that met no new point nothing can be said: the last one that did still holds.
            if result.series is not None:
                told[SERIES] = float(result.series)
            if result.scores is not None:
                told[SERIES_ANOMALOUS] = float((_newest(result.scores.score) > mission.alert.above).sum())
    else:
        if not failed and result.forecast is not None:
            told[FORECAST_END] = (result.forecast.grid.end - EPOCH).total_seconds()
        if result.quality is not None:
            told[POINTS_JUDGED] = float(result.quality.points)
            told[POINTS_IN_BAND] = float(result.quality.in_band)
            told[FORECAST_ABS_ERROR] = result.quality.abs_error
            told[NAIVE_ABS_ERROR] = result.quality.naive_abs_error
    labels = Labels.of({LABEL_MISSION: mission.name})
    out = [_info(mission, project, float(running)), *(Gauge(metric, labels, value) for metric, value in told.items())]
    if failed:
        return [*out, *_failed(mission.name, kind)]
    labels = _kind_labels(mission.name, kind)
    return [*out, Gauge(ERRORS, labels, 0.0), Gauge(LAST_SUCCESS, labels, (now - EPOCH).total_seconds())]


def pass_figures(labels: tuple[str, Kind, str], effort: Effort, seconds: float) -> list[Gauge]:
    """What a pass tells about itself in one source.

    Args:
        labels: the values of `conventions.PASS_LABELS`.
        effort: what it did there.
        seconds: that the pass took in all.
    """
    named, traffic = dict(zip(PASS_LABELS, labels, strict=True)), effort.traffic
    stages = dict(zip(STAGES, (traffic.read, effort.cpu, traffic.write, seconds), strict=True))
    points = {
        POINTS_READ: traffic.points_read,
        POINTS_WRITTEN: traffic.points_written,
        POINTS_DROPPED: effort.dropped,
    }
    return [
        *(Gauge(DURATION, Labels.of({**named, "stage": stage}), value) for stage, value in stages.items()),
        *(Gauge(metric, Labels.of(named), float(value)) for metric, value in points.items()),
    ]


def _info(mission: Mission, project: str, value: float) -> Gauge:
    return Gauge(MISSION_INFO, _info_labels(mission, project), value)


def _info_labels(mission: Mission, project: str) -> Labels:
    values = (
        *(mission.name, project, mission.source or _DEFAULT, mission.forecast.model.type),
        format_duration(mission.step),
        *(part.cron or format_duration(part.every) for part in (mission.forecast, mission.detect)),
    )
    return Labels.of(dict(zip(INFO_LABELS, values, strict=True)))


def _failed(mission: str, kind: Kind) -> list[Gauge]:
    labels = _kind_labels(mission, kind)
    return [Gauge(ERRORS, labels, 1.0), Gauge(FAILED, labels, 1.0)]


def _kind_labels(mission: str, kind: Kind) -> Labels:
    return Labels.of({LABEL_MISSION: mission, LABEL_KIND: kind})


def _scored_points(result: DetectResult) -> int:
    return int(np.isfinite(result.scores.score).sum()) if result.scores is not None else 0


def _newest(score: Floats) -> Floats:
    """The last score of each series that has one."""
    known = np.isfinite(score)
    rows = np.flatnonzero(known.any(axis=1))
    last = score.shape[1] - 1 - known[rows, ::-1].argmax(axis=1)
    return np.asarray(score[rows, last])


def _missing_forecasts(result: DetectResult, now: datetime) -> int:
    """Values without a forecast, of the times that are scored for the first time, and of the last cadence.

    Passes meet older ones again and again until the mission has scores: each is to be counted once.
    """
    scores, mission = result.scores, result.mission
    if scores is None:
        return 0
    first = max(0, scores.grid.index(mission.last_time(now - mission.detect.period)) + 1)
    scored = np.isfinite(scores.score).any(axis=0)
    first = min(first, int(scored.argmax())) if scored.any() else first
    return int((np.isfinite(scores.y) & np.isnan(scores.yhat))[:, first:].sum())


def _dropped(result: Result, now: datetime) -> int:
    """Points of a pass that came to nothing: without a forecast, or made and then not stored."""
    if isinstance(result, DetectResult):
        return _missing_forecasts(result, now) + (_scored_points(result) if result.error is not None else 0)
    if result.error is None or result.forecast is None:
        return 0
    return int(np.isfinite(result.forecast.yhat).sum())


def _count(missions: int) -> str:
    return "1 mission" if missions == 1 else f"{missions} missions"
