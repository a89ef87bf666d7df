"""What only data can tell: checks that need the mission's source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from anomaly_times.checks.evidence import Evidence
from anomaly_times.checks.registry import Found, Subject, check
from anomaly_times.conventions import LABEL_METRIC, LABEL_MISSION
from anomaly_times.durations import format_duration
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Labels, Panel

__all__ = ["Cost", "cost_of"]

_DAY = timedelta(days=1)
_NEEDS_SAMPLES = frozenset(("rate", "irate", "increase", "delta", "idelta", "deriv", "predict_linear"))
_SCRAPES = 4
_GAPS = 0.1
_REPLICA_LABELS = ("replica", "prometheus_replica", "__replica__", "receive_replica", "rule_replica")
# These tell instances of a program apart, or two copies of one exporter: only values say which.
_PERHAPS_REPLICAS = ("prometheus", "monitor", "pod", "instance")
_LIKE = 0.05


@check("promql/no-series", "error", live=True)
def no_series(subject: Subject) -> Iterator[Found]:
    """A query that answers nothing in the whole lookback."""
    evidence = subject.said
    if evidence.nothing:
        dead = evidence.dead
        message = evidence.nothing.message
        if dead:
            message = f"the query answers nothing: {', and '.join(each.why for each in dead)}"
        hint = next((each.hint for each in dead if each.hint), evidence.nothing.hint)
        yield Found(("promql",), message, hint)


@check("promql/dead-selector", "warning", live=True)
def dead_selector(subject: Subject) -> Iterator[Found]:
    """A selector that matches nothing, in a query that answers something all the same."""
    evidence = subject.said
    for dead in () if evidence.nothing else evidence.dead:
        yield Found(("promql",), f"{dead.selector} matches nothing: {dead.why}", dead.hint)


@check("promql/short-window", "warning", live=True)
def short_window(subject: Subject) -> Iterator[Found]:
    """A range window that holds fewer than four scrapes."""
    intervals = subject.said.intervals
    for use in dict.fromkeys(subject.query.uses if subject.query else ()):
        interval = intervals.get(use.selector)
        if use.window is None or interval is None or not use.around or use.around[0] not in _NEEDS_SAMPLES:
            continue
        if use.window < _SCRAPES * interval:
            yield Found(
                ("promql",),
                f"{use.around[0]}() of {use.selector} looks at {format_duration(use.window)}, and a sample comes every "
                f"{format_duration(interval)}: a scrape that is late or lost leaves a gap",
                f"widen [{format_duration(use.window)}] to [{format_duration(_SCRAPES * interval)}]",
            )


@check("step/too-fine", "warning", live=True)
def step_too_fine(subject: Subject) -> Iterator[Found]:
    """A step shorter than the time between two samples."""
    mission, intervals = subject.mission, subject.said.intervals
    if intervals and mission.step < max(intervals.values()):
        selector, interval = max(intervals.items(), key=lambda item: item[1])
        yield Found(
            ("step",),
            f"a point every {format_duration(mission.step)} repeats old values: {selector} has a sample every "
            f"{format_duration(interval)}",
            f"step: {format_duration(interval)}",
        )


@check("data/too-many-series", "error", live=True)
def too_many_series(subject: Subject) -> Iterator[Found]:
    """More series than the mission allows."""
    count, limit = subject.said.count, subject.mission.max_series
    if count > limit:
        yield Found(
            ("promql",),
            f"the query answers {count:,} series, and {limit:,} are allowed",
            "narrow its selectors, aggregate (`sum by (…)`), or raise `max_series`",
        )


@check("data/too-many-labels", "error", live=True)
def too_many_labels(subject: Subject) -> Iterator[Found]:
    """Series with more labels than VictoriaMetrics keeps."""
    from anomaly_times.stores.writing import MAX_LABELS

    mission = subject.mission
    written = mission.written_labels(subject.said.labels)
    widest = max(written, key=len, default=Labels())
    # One place is for the name of the metric that is written.
    if len(widest) >= MAX_LABELS:
        yield Found(
            ("promql",),
            f"results would carry {len(widest) + 1} labels; VictoriaMetrics keeps {MAX_LABELS} and drops the series "
            "without a word",
            "aggregate labels away: `sum without (…)`",
        )


@check("labels/exported", "warning", live=True)
def exported_labels(subject: Subject) -> Iterator[Found]:
    """Series whose own labels have names that we write."""
    ours = {f"exported_{LABEL_MISSION}", f"exported_{LABEL_METRIC}"}
    names = {name for row in subject.said.labels for name, _ in row}
    for name in sorted(names & ours):
        if name.removeprefix("exported_") in names:
            yield Found(
                ("promql",),
                f"the series have both {name.removeprefix('exported_')!r} and {name!r}: one of them is lost in what is "
                "written",
                f"rename one with label_replace(), or aggregate it away: `sum without ({name})`",
            )


@check("data/stale", "warning", live=True)
def stale(subject: Subject) -> Iterator[Found]:
    """Series that there were, and that are gone."""
    seen, evidence = subject.said.seen, subject.said
    if seen is not None and not evidence.count:
        newest = int(np.flatnonzero(np.isfinite(seen.y).any(axis=0))[-1])
        ago = seen.grid.end - seen.grid.start - newest * seen.grid.step
        yield Found(
            ("promql",),
            f"the query answers nothing now; it last did about {format_duration(max(ago, seen.grid.step))} ago",
            "is a target down, or a metric gone?",
        )


@check("data/churn", "warning", live=True)
def churn(subject: Subject) -> Iterator[Found]:
    """Series that come and go so fast that they never have history."""
    evidence, mission = subject.said, subject.mission
    hint = "aggregate the label away that changes (pod, container id, path): `sum without (…)`"
    if evidence.flood:
        yield Found(
            ("promql",),
            f"over {10 * mission.max_series:,} series came and went in the last "
            f"{format_duration(mission.forecast.lookback)}, {evidence.count:,} are there now",
            hint,
        )
    if evidence.seen is None or evidence.seen.grid.n < 4:
        return
    there = np.isfinite(evidence.seen.y)
    at_once = int(there.sum(axis=0).max())
    life = np.median(there.sum(axis=1)) * evidence.seen.grid.step
    if evidence.seen.n_series >= 2 * at_once and life < mission.forecast.lookback / 4:
        yield Found(
            ("promql",),
            f"{evidence.seen.n_series:,} series were seen in the last {format_duration(mission.forecast.lookback)}, "
            f"{at_once:,} at once at most: half of them lived {_about(life)} or less, too short to learn from",
            hint,
        )


@check("data/short-season", "warning", live=True)
def short_season(subject: Subject) -> Iterator[Found]:
    """Less history than the season takes."""
    history, mission = _history(subject), subject.mission
    wanted = [_DAY] if mission.season is None else list(mission.season)
    for period in wanted:
        if history is not None and history < 2 * period <= mission.forecast.lookback:
            yield Found(
                ("season",),
                f"there are {_about(history)} of history at most, and a season of {format_duration(period)} takes two: "
                "until then bounds are wide, and the rhythm counts as anomalous or not at all",
                "wait, or load older data",
            )


@check("data/short-history", "info", live=True)
def short_history(subject: Subject) -> Iterator[Found]:
    """Less history than the lookback."""
    history, mission = _history(subject), subject.mission
    if history is not None:
        yield Found(
            ("forecast", "lookback"),
            f"there are {_about(history)} of history at most, less than the lookback of "
            f"{format_duration(mission.forecast.lookback)}: forecasts get better until it is there",
        )


@check("data/gaps", "warning", live=True)
def gaps(subject: Subject) -> Iterator[Found]:
    """Series with holes in their newest points."""
    recent = subject.said.recent
    if recent is None:
        return
    there = np.isfinite(recent.y)
    first = there.argmax(axis=1)
    last = there.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
    missing = 1 - there.sum(axis=1) / (last - first + 1)
    holed = int((missing > _GAPS).sum())
    if holed >= max(1, _GAPS * recent.n_series):
        span = format_duration(recent.grid.n * recent.grid.step)
        yield Found(
            ("promql",),
            f"{holed:,} of {recent.n_series:,} series lack over a tenth of their points in the last {span}",
            "a longer step or range window bridges gaps; `missing: zero` says that none means nothing happened",
        )


@check("data/replicas", "warning", live=True)
def replicas(subject: Subject) -> Iterator[Found]:
    """Everything twice: copies of series that differ in one label alone."""
    recent = subject.said.recent
    if recent is None:
        return
    for label in (*_REPLICA_LABELS, *_PERHAPS_REPLICAS):
        copies = _copies(recent, label, sure=label in _REPLICA_LABELS)
        if copies > recent.n_series / 2:
            yield Found(
                ("promql",),
                f"{copies:,} of {recent.n_series:,} series differ from another one in the label {label!r} alone: "
                "everything is watched, and alerted, more than once",
                f"max without ({label}) (…)",
            )
            return


@check("cost/estimate", "info", live=True)
def estimate(subject: Subject) -> Iterator[Found]:
    """What the mission costs its source."""
    cost = cost_of(subject.mission, subject.said)
    if cost is not None:
        yield Found(
            ("promql",),
            f"{cost.series:,} series; a forecast reads {cost.read:,} points, a day writes {cost.written:,}",
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What a mission costs: `series`, points `read` by one forecast, points `written` in a day."""

    series: int
    read: int
    written: int


def cost_of(mission: Mission, evidence: Evidence) -> Cost | None:
    """The cost of `mission`; `None` where nothing is known about its series."""
    if not evidence.count:
        return None
    n = evidence.count
    forecasts = (_DAY / mission.forecast.period) * mission.h if evidence.ahead else _DAY / mission.step
    written = n * (3 * forecasts + _DAY / mission.step)
    return Cost(n, n * (mission.forecast.lookback // mission.step), round(written))


def _history(subject: Subject) -> timedelta | None:
    """How much history there is at most; `None` where it covers the lookback, or nothing is known."""
    seen = subject.said.seen
    if seen is None or not subject.said.count:
        return None
    first = int(np.flatnonzero(np.isfinite(seen.y).any(axis=0))[0])
    # A place or two at the begin may be empty by chance; the first point lies up to a place before the one seen.
    return subject.now - seen.grid.start - (first - 1) * seen.grid.step if first > 2 else None


def _copies(panel: Panel, label: str, *, sure: bool) -> int:
    """How many series have a twin that differs in `label` alone; not `sure`: and hardly in values."""
    groups: dict[Labels, list[int]] = defaultdict(list)
    for i, row in enumerate(panel.labels):
        if row.get(label):
            groups[row.without((label,))].append(i)
    twins = [rows for rows in groups.values() if len(rows) > 1]
    return sum(len(rows) for rows in twins if sure or _alike(panel.y[rows]))


def _alike(y: Floats) -> bool:
    """Whether all rows follow the first one closely, and that one moves."""
    both = np.isfinite(y).all(axis=0)
    if both.sum() < 10:
        return False
    y = y[:, both]
    spread = y[0].std()
    return bool(spread > 0 and (np.abs(y[1:] - y[0]).mean(axis=1) < _LIKE * spread).all())


def _about(value: timedelta) -> str:
    """A duration in its one or two largest units."""
    whole = format_duration(timedelta(minutes=max(1, value // timedelta(minutes=1))))
    return whole if value < timedelta(days=2) else f"{value / _DAY:.1f}".removesuffix(".0") + "d"
