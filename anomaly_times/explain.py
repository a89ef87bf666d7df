"""Why a mission scored what it did at one time: read back from the store that holds its results, and scored once more.

What is stored is told as it is. Beside it stands what the same detection makes of the stored forecast and the values as
they are now: where both agree every number can be reproduced, and where they differ a value, or a forecast, came later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from anomaly_times.backtest.alerts import find_alerts
from anomaly_times.conventions import source_labels
from anomaly_times.durations import iso_utc
from anomaly_times.errors import MissionError, NoSeriesError, QueryError, UsageError
from anomaly_times.evidence import (
    CHANNELS,
    DRIFT,
    KEPT,
    POINT,
    REASONS,
    ROUGHNESS,
    SUSTAINED,
    deviation,
    ratios_to_limits,
)
from anomaly_times.mission import Detect, Mission
from anomaly_times.panel import Floats, Forecast, Grid, Labels, Limits, Panel, Scores
from anomaly_times.passes import detect_pass
from anomaly_times.scoring import POINTS_ALONE, gated
from anomaly_times.stores import Store
from anomaly_times.stores.parquet import Selector
from anomaly_times.stores.stored import StoredPoint, newest_score, read_point

__all__ = ["Account", "AlertState", "Channel", "Closed", "Explanation", "GateName", "explain"]

GateName = Literal["forecast", "missing", "valid_range", "direction", "min_deviation", "min_relative_deviation"]

_RECENT = timedelta(hours=4)
_FEWEST, _MOST = 24, 720
_MOST_SAMPLES = 500_000
"""Of the time before, points that are looked at, and samples of all series together."""
_SAME = 1e-6
"""Scores that are closer, relatively, are one: a store may keep fewer digits than were written."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A gate that settled a score, with the numbers that closed it.

    `found` is what was held against `asked` (for `direction` the side, as +1 or −1), `channel` whose evidence it was.
    `without` is the score, and `reason` what it would be of, if the gates of the mission were open; NaN where there is
    none.
    """

    gate: GateName
    channel: str = ""
    found: float = np.nan
    asked: float = np.nan
    without: float = np.nan
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel's evidence, what is usual, its limit, and how far it is on the way to that; NaN for what is unknown.

    `closed` names the gates that keep it from counting.
    """

    name: str
    evidence: float
    usual: float
    limit: float
    ratio: float
    closed: tuple[GateName, ...] = ()


@dataclass(frozen=True, eq=False)
class Explanation:
    """One series at the time of an `Account`; numbers are NaN where there is none.

    `labels` are those of the source, `written` those of what is stored. `score` and `reason` (of `evidence.REASONS`, or
    empty) are stored, `again` and `again_reason` are what scoring it once more gives. `value` is what the source has
    now, `cutoff` when the forecast stems from. `values` and `scores` (float64[n]) are of `Account.recent`.
    """

    labels: Labels
    written: Labels
    value: float
    yhat: float
    lower: float
    upper: float
    score: float
    reason: str
    again: float
    again_reason: str
    gates: tuple[Closed, ...]
    channels: tuple[Channel, ...]
    incident: float
    incident_since: datetime | None
    yesterday: float
    last_week: float
    cutoff: datetime | None
    values: Floats
    scores: Floats
    over: int
    over_since: datetime | None

    @property
    def differs(self) -> bool:
        """Whether scoring it once more does not give what is stored."""
        if np.isnan(self.again):
            return False
        return not abs(self.again - self.score) <= _SAME * max(1.0, abs(self.score))


@dataclass(frozen=True, slots=True)
class AlertState:
    """Whether the mission's alert is out at a time: since when it fires, and when what it is about began.

    `over` counts series over `alert.above` at that time. `ended` is when it was last over, where it is so no more.
    """

    over: int
    began: datetime | None = None
    fired: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True, eq=False)
class Account:
    """What a mission's series scored at `at`, the highest score first, and why.

    `known` says whether the mission's definition was there: without it nothing can be read from the source, and no gate
    be told. `recent` are the times before, `at` the last of them. `others` counts series that are left out, `notes` are
    sentences about what could not be told.
    """

    mission: Mission
    known: bool
    at: datetime
    recent: Grid
    alert: AlertState
    series: tuple[Explanation, ...]
    others: int
    notes: tuple[str, ...] = ()


def explain(
    mission: Mission,
    store: Store,
    *,
    now: datetime,
    at: datetime | None = None,
    selector: str = "",
    top: int = 1,
    since: datetime | None = None,
    known: bool = True,
) -> Account:
    """Why the series of `mission` scored what they did.

    Args:
        mission: what it is; only its name and step matter where it is not `known`.
        store: where its results are, and its metrics.
        now: with a time zone.
        at: the last grid time not after it is explained; that of the newest score by default.
        selector: only series that it matches, by the labels of the source or by those of what is stored.
        top: so many series, 0 for all.
        since: from when on results mean what the mission says now.
        known: whether `mission` is what scored, or stands for a name alone.

    Raises:
        MissionError: there is no score at this time, or no series that the selector matches.
        UsageError: the selector is none.
        StoreError: the store is away, or refuses.
    """
    time = _scored_time(mission, store, at, now, known=known)
    stored = read_point(store, mission, time)
    order = _chosen(mission, stored, selector)
    rows = order[:top] if top else order
    labels = tuple(stored.labels[i] for i in rows)
    recent = _recent(mission, time, len(stored.labels))
    scores = store.read_scores([mission], recent)[mission.name]
    then = time if since is not None and time < since else None
    point = Grid(time, mission.step, 1)
    # What was scored before a change was held against forecasts from before it.
    forecast = store.read_forecasts([mission], point, since={mission.name: since} if since and not then else None)
    found = _Found.of(mission, store, stored, forecast.get(mission.name), time, known=known)
    kept = store.read_evidence([mission], recent).get(mission.name)
    evidence, incident = np.full((len(KEPT), len(rows), recent.n), np.nan), np.full((len(rows), recent.n), np.nan)
    if kept is not None:
        evidence = np.stack([_rows(labels, kept.labels, part) for part in kept.values])
        incident = _rows(labels, kept.labels, kept.incident)
    values = np.full((len(rows), recent.n), np.nan)
    earlier = [np.full((len(rows), 1), np.nan)] * 2
    if known:
        values = _values(mission, store, recent, labels)
        earlier = [_values(mission, store, _before(mission, time, days), labels) for days in (1, 7)]
    over = _rows(labels, scores.labels, scores.y)
    series = [
        _explanation(
            mission, stored, i, found, recent, evidence[:, k, -1], incident[k], values[k], over[k], known=known
        )
        for k, i in enumerate(rows)
    ]
    series = [
        replace(each, yesterday=float(earlier[0][k, 0]), last_week=float(earlier[1][k, 0]))
        for k, each in enumerate(series)
    ]
    notes = [] if known else [f"the definition of {mission.name} is not at hand: neither values nor gates can be told"]
    if then and since:
        notes.append(
            f"{mission.name} was changed at {since:%Y-%m-%d %H:%M} UTC: what it says now may not be what scored"
        )
    notes += found.notes
    alert = _alert_state(mission, scores, labels)
    return Account(mission, known, time, recent, alert, tuple(series), len(order) - len(rows), tuple(notes))


def _scored_time(mission: Mission, store: Store, at: datetime | None, now: datetime, *, known: bool) -> datetime:
    """The grid time to explain: one that has a score."""
    last = Grid.ending(at or now, mission.step, 1).start
    newest = newest_score(store, mission, last)
    if newest == last or (newest is not None and at is None):
        return newest
    when = f"{last:%Y-%m-%d %H:%M} UTC"
    why = f": {_why_unscored(mission, store, last)}" if known else ""
    if newest is None:
        raise MissionError(
            f"{mission.name} has no score up to {when} in {store.name}{why}",
            hint="`at status` tells how missions are; `--source` or `--url` names another place",
        )
    raise MissionError(
        f"{mission.name} has no score at {when}{why}; its last score before is of {newest:%Y-%m-%d %H:%M} UTC",
        hint=f"--at {iso_utc(newest)} explains that one",
    )


def _why_unscored(mission: Mission, store: Store, at: datetime) -> str:
    """What was lacking for a score."""
    point = Grid(at, mission.step, 1)
    if mission.name not in store.read_forecasts([mission], point):
        return "no forecast is stored for that time"
    try:
        store.read(mission.promql, point, max_series=mission.max_series)
    except NoSeriesError:
        return "no series has a value then"
    return "it was not scored then"


def _chosen(mission: Mission, stored: StoredPoint, selector: str) -> list[int]:
    """The rows of the series to explain, the highest score first."""
    keep = set(range(len(stored.labels)))
    if selector:
        sources = [source_labels(row, mission.labels) for row in stored.labels]
        try:
            wanted = Selector(selector)
        except QueryError as exc:
            raise UsageError(
                f"--series: {selector[:200]!r} is no label selector", hint='write it like {service="checkout"}'
            ) from exc
        keep = {i for names in (sources, stored.labels) for i, _ in wanted.matching(names)}
        if not keep:
            raise MissionError(
                f"no series of {mission.name} that was forecast or scored then matches {selector[:200]}",
                hint=f"there is e.g. {sources[0]}" if sources else "",
            )
    score = np.nan_to_num(stored.score, nan=-1.0)
    return sorted(keep, key=lambda i: (-score[i], stored.labels[i]))


def _recent(mission: Mission, time: datetime, series: int) -> Grid:
    """The times up to `time` that are looked at: long enough for an alert, and bearable for many series."""
    span = max(_RECENT, 2 * (mission.alert.lasting + mission.alert.keep_firing_for))
    n = min(max(span // mission.step, _FEWEST), _MOST, max(2, _MOST_SAMPLES // max(1, series)))
    return Grid.ending(time, mission.step, n)


def _before(mission: Mission, time: datetime, days: int) -> Grid:
    """The same time by the clock so many days before."""
    local = time.astimezone(ZoneInfo(mission.timezone))
    return Grid.ending((local - timedelta(days=days)).astimezone(UTC), mission.step, 1)


def _rows(wanted: Sequence[Labels], labels: Sequence[Labels], y: Floats) -> Floats:
    """The wanted rows of `y` (float64[S, T], one for each of `labels`), in that order; NaN where there is none."""
    place = {row: i for i, row in enumerate(labels)}
    out = np.full((len(wanted), y.shape[1]), np.nan)
    for k, row in enumerate(wanted):
        if row in place:
            out[k] = y[place[row]]
    return out


def _keys(mission: Mission, store: Store, labels: Sequence[Labels]) -> tuple[Labels, ...]:
    """The labels under which a store reads back what is written for these series."""
    return tuple(row.without(store.ignore_labels) for row in mission.written_labels(labels))


def _values(mission: Mission, store: Store, grid: Grid, wanted: Sequence[Labels]) -> Floats:
    """What the source says of these series: float64[S, T]."""
    try:
        panel = store.read(mission.promql, grid, max_series=mission.max_series)
    except NoSeriesError:
        return np.full((len(wanted), grid.n), np.nan)
    return _rows(wanted, _keys(mission, store, panel.labels), panel.y)


@dataclass(frozen=True, eq=False)
class _Found:
    """What scoring once more gave at one time: `scores` (`None`: nothing) and by written label set its row in them.

    `limits` are those of the forecast, by the rows of `place`; `None` where they are gone, or none are watched.
    """

    scores: Scores | None
    row: Mapping[Labels, int]
    limits: Limits | None
    place: Mapping[Labels, int]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        mission: Mission,
        store: Store,
        stored: StoredPoint,
        forecast: Forecast | None,
        time: datetime,
        *,
        known: bool,
    ) -> _Found:
        limits = forecast.limits if forecast is not None else None
        place = {row: i for i, row in enumerate(forecast.labels)} if forecast is not None else {}
        if limits is not None and not np.isfinite(limits.move).any():
            limits = None
        notes = []
        if mission.watches_over_time and limits is None:
            notes.append("no limits are stored for that time: points alone can be told")
        if not known:
            return cls(None, {}, limits, place, tuple(notes))
        if forecast is None:
            # Detection wrote it beside the score, and the file that it came from is gone.
            yhat, lower, upper = (each[:, None] for each in (stored.yhat, stored.lower, stored.upper))
            forecast = Forecast(stored.labels, Grid(time, mission.step, 1), None, yhat, lower, upper)
        given = replace(forecast, labels=tuple(source_labels(row, mission.labels) for row in forecast.labels))
        [result] = detect_pass(
            *([mission], {mission.source: store}),
            now=time + mission.offset,
            window=mission.step,
            forecasts={mission.name: given},
        )
        if result.error is not None:
            return cls(None, {}, limits, place, (*notes, f"it cannot be scored again: {result.error.message}"))
        scores = result.scores
        keys = _keys(mission, store, scores.labels) if scores is not None else ()
        return cls(scores, {row: i for i, row in enumerate(keys)}, limits, place, tuple(notes))


def _explanation(
    mission: Mission,
    stored: StoredPoint,
    i: int,
    found: _Found,
    recent: Grid,
    kept: Floats,
    incident: Floats,
    values: Floats,
    scores: Floats,
    *,
    known: bool,
) -> Explanation:
    """The series in row `i` of what is stored."""
    written = stored.labels[i]
    again, again_reason, labels = np.nan, "", source_labels(written, mission.labels)
    value = float(values[-1]) if known else float(stored.y[i])
    counted = value
    row = found.row.get(written)
    if found.scores is not None and row is not None:
        labels, again = found.scores.labels[row], float(found.scores.score[row, 0])
        # Where nothing is there and that means zero, zero is what counts.
        counted = float(found.scores.y[row, 0])
        if found.scores.reason is not None:
            again_reason = _reason(again, float(found.scores.reason[row, 0]))
        if found.scores.evidence is not None and not np.isfinite(kept[0]):
            kept = found.scores.evidence[:, row, 0]
    at = found.place.get(written)
    limits = found.limits.rows(np.array([at])).columns(slice(0, 1)) if found.limits and at is not None else POINTS_ALONE
    one = _Point.of(counted, (stored.yhat[i], stored.lower[i], stored.upper[i]), kept, limits)
    score = float(stored.score[i])
    with np.errstate(invalid="ignore"):
        flagged = scores > mission.alert.above
    return Explanation(
        labels=labels,
        written=written,
        value=value,
        yhat=float(stored.yhat[i]),
        lower=float(stored.lower[i]),
        upper=float(stored.upper[i]),
        score=score,
        reason=_reason(score, float(stored.reason[i])) or (again_reason if again == score else ""),
        again=again,
        again_reason=again_reason,
        gates=_gates(mission.detect, one, value) if known else (),
        channels=_channels(mission, one, known=known),
        incident=float(incident[-1]) if incident[-1] > 1 else np.nan,
        incident_since=_since(incident > 1, np.isfinite(scores), recent),
        yesterday=np.nan,
        last_week=np.nan,
        cutoff=stored.cutoffs[i],
        values=values,
        scores=scores,
        over=int(flagged.sum()),
        over_since=_since(flagged, np.isfinite(scores), recent),
    )


def _reason(score: float, place: float) -> str:
    """What a score is of, in words; empty where it is 0, or nothing is known."""
    return REASONS[int(place)] if score > 0 and place == place else ""


def _since(mask: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_], grid: Grid) -> datetime | None:
    """When the stretch began in which `mask` has been true at every point that is `there`, up to the last one."""
    since = None
    for t in range(grid.n - 1, -1, -1):
        if mask[t]:
            since = grid.start + t * grid.step
        elif there[t] or since is None:
            break
    return since


@dataclass(frozen=True, eq=False)
class _Point:
    """One point of one series: a value, its forecast and bounds, the evidence of each channel (float64[5, 1, 1])."""

    y: float
    band: tuple[float, float, float]
    evidence: Floats
    limits: Limits

    @classmethod
    def of(cls, y: float, band: tuple[float, float, float], kept: Floats, limits: Limits) -> _Point:
        yhat, lower, upper = (float(each) for each in band)
        width = upper - yhat if y >= yhat else yhat - lower
        point = abs(y - yhat) / width if width > 0 else np.nan
        return cls(y, (yhat, lower, upper), np.array([point, *kept]).reshape(-1, 1, 1), limits)

    def scored(self, detect: Detect) -> tuple[float, int, npt.NDArray[np.bool_]]:
        """Under these gates: the score, its place in `REASONS`, and for each channel whether a gate is closed."""
        yhat, lower, upper = (np.full((1, 1), each) for each in self.band)
        score, reason, closed = gated(np.full((1, 1), self.y), (yhat, lower, upper), self.evidence, self.limits, detect)
        return float(score[0, 0]), int(np.nan_to_num(reason[0, 0])), np.any(closed[:, :, 0, 0], axis=0)

    @property
    def ratios(self) -> Floats:
        """How far each channel is on the way to its limit: float64[5], before any gate."""
        return np.asarray(ratios_to_limits(self.evidence, self.limits)[:, 0, 0])

    def side(self, channel: int) -> int:
        """1 above the forecast, −1 below it, 0 for what has no side."""
        if channel == POINT:
            return 1 if self.y > self.band[0] else -1
        return (1 if self.evidence[DRIFT, 0, 0] > 0 else -1) if channel in (SUSTAINED, DRIFT) else 0

    def size(self, channel: int) -> float:
        """What a gate for deviations is held against, in the unit of the series."""
        yhat, lower, upper = self.band
        evidence = self.evidence[:, 0, 0]
        if channel == POINT:
            return abs(self.y - yhat)
        if channel == ROUGHNESS:
            return float(evidence[ROUGHNESS] ** 2 * self.limits.move[0, 0])
        average = np.copysign(evidence[[channel]], evidence[DRIFT])
        return float(deviation(average, np.array([yhat - lower]), np.array([upper - yhat]))[0])


_OPEN = {"direction": "both", "min_deviation": (0.0, 0.0), "min_relative_deviation": (0.0, 0.0)}
_SETTABLE: tuple[GateName, ...] = ("direction", "min_deviation", "min_relative_deviation")


def _only(detect: Detect, *gates: GateName) -> Detect:
    """The same with all gates open but these."""
    return detect.model_copy(update={name: value for name, value in _OPEN.items() if name not in gates})


def _gates(detect: Detect, point: _Point, value: float) -> tuple[Closed, ...]:
    """The gates that settled the score of a point whose value in the source is `value`."""
    if not np.isfinite(point.band).all():
        return (Closed("forecast"),)
    absent = (Closed("missing"),) if np.isnan(value) else ()
    if absent and detect.missing != "zero":
        return absent
    open_score, open_reason, _ = point.scored(_only(detect))
    of = REASONS[open_reason]
    low, high = detect.valid_range
    if not low <= point.y <= high:
        limit = low if point.y < low else high
        return (*absent, Closed("valid_range", found=point.y, asked=limit, without=open_score, reason=of))
    score, _, _ = point.scored(detect)
    if not open_score > score:
        return absent
    channel = int(np.nanargmax(point.ratios))
    side, size = point.side(channel), point.size(channel)
    asked = {"direction": 1.0 if detect.direction == "above" else -1.0}
    for name, pair in (
        ("min_deviation", detect.min_deviation),
        ("min_relative_deviation", detect.min_relative_deviation),
    ):
        asked[name] = min(pair) if side == 0 else pair[side > 0]
    share = size / abs(point.band[0]) if point.band[0] else np.inf
    met = {"direction": float(side), "min_deviation": size, "min_relative_deviation": share}
    shut = tuple(
        Closed(name, CHANNELS[channel], met[name], asked[name], open_score, of)
        for name in _SETTABLE
        if point.scored(_only(detect, name))[2][channel]
    )
    return (*absent, *shut)


def _channels(mission: Mission, point: _Point, *, known: bool) -> tuple[Channel, ...]:
    """The evidence of what the mission watches; a channel without any is left out."""
    usual, limit = point.limits.usual[:, 0, 0], point.limits.limit[:, 0, 0]
    shut = {name: point.scored(_only(mission.detect, name))[2] for name in _SETTABLE} if known else {}
    return tuple(
        Channel(
            name,
            float(point.evidence[c, 0, 0]),
            float(usual[c]),
            float(limit[c]),
            float(point.ratios[c]),
            tuple(gate for gate, closed in shut.items() if closed[c]),
        )
        for c, name in enumerate(CHANNELS)
        if np.isfinite(point.evidence[c, 0, 0]) and (c == POINT or mission.watches_over_time)
    )


def _alert_state(mission: Mission, scores: Panel, labels: Sequence[Labels]) -> AlertState:
    """The alert at the end of `scores`: the mission's, or that of the first of `labels` with one for each series."""
    panel, alert = scores, mission.alert
    if alert.per_series:
        panel = Panel(tuple(labels[:1]), scores.grid, _rows(labels[:1], scores.labels, scores.y))
    unknown = np.full(panel.y.shape, np.nan)
    found = find_alerts(mission, Scores(panel.labels, panel.grid, unknown, unknown, unknown, unknown, panel.y)).found
    with np.errstate(invalid="ignore"):
        over = int((scores.y[:, -1] > alert.above).sum())
    last = max(found, key=lambda each: each.end, default=None)
    time = scores.grid.end
    if last is None or last.end + alert.keep_firing_for < time:
        return AlertState(over)
    return AlertState(over, last.start, last.fired, last.end if last.end < time else None)
