"""What a store holds of a mission at one time, for people to look at: also what no pass reads back.

A mission's name is enough: whoever wonders about a score may not have the file that the mission is written in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

from anomaly_times.conventions import FORECAST_METRICS, LABEL_MISSION, REASON, SCORE
from anomaly_times.durations import EPOCH, milliseconds
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Grid, Labels
from anomaly_times.stores import Store
from anomaly_times.stores.parquet import FolderStore
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.state import ForecastFiles
from anomaly_times.stores.writing import uncached

__all__ = ["StoredPoint", "mission_names", "newest_score", "read_point", "stored_step"]

_KINDS = (*FORECAST_METRICS, SCORE, REASON)
_WINDOWS = tuple(timedelta(minutes=minutes) for minutes in (10, 60, 360, 1440))
"""How far back scores are looked for whose step is not known."""
_MOST_SERIES = 1_000
_BACK = tuple(timedelta(hours=hours) for hours in (1, 24, 168))
_MOST_STEPS = 2_000
"""How far back the newest score is looked for, at most so many steps."""


@dataclass(frozen=True, eq=False)
class StoredPoint:
    """What is stored of S series for one time: float64[S] each, NaN where there is nothing.

    `labels` are sorted, and as `Store` reads them back. `y` is the value that was scored, where the store keeps it (a
    folder does); `reason` is a place in `evidence.REASONS`; `cutoffs` are those that the forecasts stem from, `None`
    where that is not known.
    """

    labels: tuple[Labels, ...]
    y: Floats
    yhat: Floats
    lower: Floats
    upper: Floats
    score: Floats
    reason: Floats
    cutoffs: tuple[datetime | None, ...]


def read_point(store: Store, mission: Mission, at: datetime) -> StoredPoint:
    """What is stored of `mission` for the grid time `at`; only its name and its step matter.

    Raises:
        StoreError: as `Store.read_scores`.
    """
    grid = Grid(at, mission.step, 1)
    if isinstance(store, PrometheusStore):
        return _from_server(store, mission, grid)
    found = store.read_scored(mission, grid) if isinstance(store, FolderStore) else None
    forecast = store.read_forecasts([mission], grid).get(mission.name)
    scores = store.read_scores([mission], grid).get(mission.name)
    rows: dict[Labels, list[float]] = {}
    if forecast is not None:
        bands = np.stack([forecast.yhat, forecast.lower, forecast.upper])[:, :, 0]
        for labels, band in zip(forecast.labels, bands.T.tolist(), strict=True):
            rows[labels] = [np.nan, *band, np.nan, np.nan]
    if scores is not None:
        for labels, score in zip(scores.labels, scores.y[:, 0].tolist(), strict=True):
            rows.setdefault(labels, [np.nan] * 6)[4] = score
    if found is not None:
        # What was held against the value is what explains the score, also where a newer forecast came since.
        columns = (found.y, found.yhat, found.lower, found.upper, found.score, found.reason)
        numbers = [np.full(len(found.labels), np.nan) if each is None else each[:, 0] for each in columns]
        rows |= {labels: [float(each[i]) for each in numbers] for i, labels in enumerate(found.labels)}
    cutoffs = store.cutoffs(mission, at) if isinstance(store, FolderStore) else {}
    order = sorted(labels for labels, row in rows.items() if np.isfinite(row[1:5]).any())
    y, yhat, lower, upper, score, reason = np.array([rows[labels] for labels in order]).reshape(len(order), 6).T
    of_each = tuple(cutoffs.get(labels) for labels in order)
    return StoredPoint(tuple(order), y, yhat, lower, upper, score, reason, of_each)


def _from_server(store: PrometheusStore, mission: Mission, grid: Grid) -> StoredPoint:
    """All of it is in the raw samples of one step: a forecast lies as many ms before its time as its lead has steps."""
    at_ms, step = grid.start_ms, grid.step
    selector = f'{{__name__=~"{uncached(*_KINDS)}",{LABEL_MISSION}="{mission.name}"}}[{grid.step_ms - 1}ms]'
    ours = ("__name__", *store.ignore_labels)
    rows: dict[Labels, list[float]] = {}
    leads: dict[Labels, int] = {}
    for row, samples in store.query(selector, grid.start, url=store.source.readback_url):
        labels, kind = row.without(ours), _KINDS.index(row.get("__name__"))
        stamp, value = max(samples)
        rows.setdefault(labels, [np.nan] * len(_KINDS))[kind] = value
        if kind == 0:
            leads[labels] = at_ms - stamp
    cutoffs: Mapping[Labels, datetime] = {}
    if not store.writes_ahead(mission):
        # It is written beside its score; where it waited until then says how old it was, and what has no score.
        files = ForecastFiles(store.state)
        cutoffs = files.cutoffs(mission, grid.start)
        waiting = files.read([mission], grid).get(mission.name)
        for i, labels in enumerate(waiting.labels if waiting is not None else ()):
            if waiting is not None and labels not in rows:
                band = (waiting.yhat[i, 0], waiting.lower[i, 0], waiting.upper[i, 0])
                rows[labels] = [*map(float, band), np.nan, np.nan]
    order = sorted(labels for labels, row in rows.items() if np.isfinite(row[:4]).any())
    yhat, lower, upper, score, reason = np.array([rows[labels] for labels in order]).reshape(len(order), len(_KINDS)).T
    of_each = (grid.start - leads[labels] * step if leads.get(labels) else cutoffs.get(labels) for labels in order)
    unknown = np.full(len(order), np.nan)
    return StoredPoint(tuple(order), unknown, yhat, lower, upper, score, reason, tuple(of_each))


def newest_score(store: Store, mission: Mission, at: datetime) -> datetime | None:
    """The time of the newest score of `mission` up to the grid time `at`; `None` where there is none in a week.

    A folder is looked through to its beginning, a server for 2,000 steps at most.

    Raises:
        StoreError: the store is away, or refuses.
    """
    if isinstance(store, FolderStore):
        times = [time for time in store.scored_times(mission.name, at) if time <= at]
        return times[-1] if times else None
    step = mission.step
    for window in sorted({3 * max(mission.detect.period, step), *_BACK}):
        grid = Grid.ending(at, step, min(_MOST_STEPS, max(1, window // step)))
        panel = store.read_scores([mission], grid).get(mission.name)
        scored = np.flatnonzero(np.isfinite(panel.y).any(axis=0)) if panel is not None else np.empty(0, dtype=np.intp)
        if scored.size:
            return grid.start + int(scored[-1]) * step
    return None


def mission_names(store: Store, at: datetime) -> list[str]:
    """The names of missions that have scores in the day up to `at`; of a folder, those that ever had.

    Raises:
        StoreError: the store is away, or refuses.
    """
    if isinstance(store, PrometheusStore):
        return store.label_values(LABEL_MISSION, at - _WINDOWS[-1], at, match=SCORE)
    return store.scored_missions() if isinstance(store, FolderStore) else []


def stored_step(store: Store, name: str, at: datetime) -> timedelta | None:
    """The step of a mission, from the scores of the day up to `at`; `None` where they do not tell.

    Raises:
        StoreError: the store is away, or refuses.
    """
    if isinstance(store, FolderStore):
        return _closest(store.scored_times(name, at))
    if not isinstance(store, PrometheusStore):
        return None
    selector = f'{{__name__=~"{uncached(SCORE)}",{LABEL_MISSION}="{name}"}}'
    for window in _WINDOWS:
        answer = store.query(f"{selector}[{milliseconds(window)}ms]", at, url=store.source.readback_url)
        times = {stamp for _, samples in answer[:_MOST_SERIES] for stamp, _ in samples}
        step = _closest([EPOCH + timedelta(milliseconds=stamp) for stamp in times])
        if step is not None:
            return step
    return None


def _closest(times: Iterable[datetime]) -> timedelta | None:
    """The shortest time between two of these."""
    return min((later - earlier for earlier, later in pairwise(sorted(set(times)))), default=None)
