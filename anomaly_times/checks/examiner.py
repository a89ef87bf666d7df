"""What a source says about a mission, asked with a few cheap queries.

The whole lookback is looked at in 48 places, the newest two hours or so point by point, and of each selector it is
asked whether it matches anything and how often its targets are scraped. What several missions share is asked once.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

import numpy as np

from anomaly_times.checks.evidence import LOOKS, Dead, Evidence
from anomaly_times.durations import format_duration
from anomaly_times.errors import NoSeriesError, QueryError
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.stores import Store
from anomaly_times.stores.http import RefusedError
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.stores.promql import Query, TooManySeriesError, Use

__all__ = ["Examiner"]

_RECENT = 120
# VictoriaMetrics answers no sample older than a step where it sees too few of them to know how often they come.
_NOW = 12
_RECENT_POINTS = 100_000
_MOST_SELECTORS = 8
_FLOOD = 10
_WINDOWS = (timedelta(minutes=10), timedelta(hours=2), timedelta(days=2))
_ENOUGH_SAMPLES = 8
_JITTER = 0.05
_USUAL_INTERVALS = tuple(timedelta(seconds=s) for s in (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600))

T = TypeVar("T")


class Examiner:
    """Asks one source about missions; safe to use from several threads.

    Args:
        store: the source.
        now: the time for which missions are examined.
    """

    def __init__(self, store: Store, now: datetime) -> None:
        self._store = store
        self._server = store if isinstance(store, PrometheusStore) else None
        self._now = now
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], Any] = {}

    def reach(self) -> None:
        """Make sure that the source is there at all.

        Raises:
            StoreError: it is away, or refuses us.
        """
        if self._server:
            self._server.query("vector(1)", self._now)

    def examine(self, mission: Mission, query: Query) -> Evidence:
        """What the source says about `mission`, whose PromQL is `query`.

        Raises:
            StoreError: the source is away, out of time, or refuses us; that says nothing about the query.
        """
        server = self._server
        if server is None:
            return self._folder(mission)
        at, ahead = mission.last_time(self._now), server.writes_ahead(mission)
        try:
            count = self._count(mission.promql, Grid.ending(at, mission.step, _NOW))
            seen, flood = self._lookback(mission, count)
            recent = self._recent(mission, count) if count else None
        except NoSeriesError as exc:
            return Evidence(nothing=exc, dead=self._dead(server, query, mission), ahead=ahead)
        except QueryError as exc:
            return Evidence(refused=exc, ahead=ahead)
        return Evidence(
            dead=self._dead(server, query, mission),
            count=count,
            seen=seen,
            recent=recent,
            flood=flood,
            intervals=self.intervals(query),
            types={
                use.metric: self._once(server.metric_type, use.metric)
                for use in query.uses[:_MOST_SELECTORS]
                if use.metric
            },
            ahead=ahead,
        )

    def intervals(self, query: Query) -> dict[str, timedelta]:
        """The scrape interval behind each selector of `query`, measured from raw samples; without those unknown.

        Raises:
            StoreError: the source is away, or refuses us.
        """
        if self._server is None:
            return {}
        selectors = dict.fromkeys(use.selector for use in query.uses[:_MOST_SELECTORS] if _is_named(use))
        measured = {selector: self._once(_interval, self._server, selector, self._now) for selector in selectors}
        return {selector: interval for selector, interval in measured.items() if interval is not None}

    def _once(self, ask: Callable[..., T], *args: object) -> T:
        """`ask(*args)`, once for several missions that have the same question."""
        key = (ask, *args)
        with self._lock:
            if key in self._known:
                return cast(T, self._known[key])
        answer = ask(*args)
        with self._lock:
            self._known[key] = answer
        return answer

    def _count(self, promql: str, grid: Grid) -> int:
        try:
            # On lines of its own: a query may end in a comment.
            return int(np.nanmax(self._store.read(f"count(\n{promql}\n)", grid).y))
        except NoSeriesError:
            return 0
        except QueryError:
            # What the server says of the query alone is what its author can read.
            return self._store.read(promql, grid, max_series=1_000_000).n_series

    def _lookback(self, mission: Mission, count: int) -> tuple[Panel | None, bool]:
        if count > mission.max_series:
            return None, False
        apart = max(mission.step, -(-mission.forecast.lookback // (LOOKS * mission.step)) * mission.step)
        grid = Grid.ending(mission.last_time(self._now), apart, min(LOOKS, mission.forecast.lookback // apart))
        try:
            return self._store.read(mission.promql, grid, max_series=_FLOOD * mission.max_series), False
        except NoSeriesError:
            if not count:
                raise
            return None, False
        except TooManySeriesError:
            return None, True

    def _recent(self, mission: Mission, count: int) -> Panel | None:
        if count > mission.max_series:
            return None
        n = max(12, min(_RECENT, _RECENT_POINTS // count, mission.forecast.lookback // mission.step))
        grid = Grid.ending(mission.last_time(self._now), mission.step, n)
        return self._store.read(mission.promql, grid, max_series=_FLOOD * mission.max_series)

    def _folder(self, mission: Mission) -> Evidence:
        grid = mission.history_grid(self._now)
        try:
            whole = self._store.read(mission.promql, grid, max_series=_FLOOD * mission.max_series)
        except NoSeriesError as exc:
            return Evidence(nothing=exc)
        except QueryError as exc:
            return Evidence(refused=exc)
        recent = whole.columns(slice(max(0, grid.n - _RECENT), None))
        alive = np.isfinite(recent.y).any(axis=1)
        size = -(-grid.n // LOOKS)
        first = grid.n % size if grid.n > size else 0
        there = np.isfinite(whole.y[:, first:]).reshape(whole.n_series, -1, size).any(axis=2)
        looks = Grid.ending(grid.end, size * grid.step, there.shape[1])
        return Evidence(
            count=int(alive.sum()),
            seen=Panel(whole.labels, looks, np.where(there, 1.0, np.nan)),
            recent=recent.rows(alive) if alive.any() else None,
        )

    def _dead(self, server: PrometheusStore, query: Query, mission: Mission) -> tuple[Dead, ...]:
        start, end = self._now - mission.forecast.lookback, self._now
        uses = {use.selector: use for use in query.uses[:_MOST_SELECTORS]}
        dead = (self._once(_why_dead, server, use, start, end) for use in uses.values())
        return tuple(each for each in dead if each is not None)


def _is_named(use: Use) -> bool:
    return bool(use.metric) and not use.selector.startswith("{")


def _interval(server: PrometheusStore, selector: str, at: datetime) -> timedelta | None:
    """How far raw samples lie apart in the series of `selector` that has most; `None` where there are hardly any.

    The median distance: a gap here and there, or a scrape that is late, does not count.
    """
    for window in _WINDOWS:
        span = format_duration(window)
        try:
            fullest = server.query(f"topk(1, count_over_time({selector}[{span}]))", at)
            if not fullest or fullest[0][1][0][1] < _ENOUGH_SAMPLES:
                continue
            # The function drops the name; without one in the selector this would be another series.
            labels = dict(fullest[0][0]) | {"__name__": selector.partition("{")[0]}
            samples = server.query(f"{Labels.of(labels)}[{span}]", at)
        except RefusedError:
            return None  # a limit of the server, or series that only their names tell apart
        times = np.array([time for time, _ in samples[0][1]]) if samples else np.empty(0)
        if len(times) > 1:
            return _usual(timedelta(milliseconds=float(np.median(np.diff(times)))))
    return None


def _usual(interval: timedelta) -> timedelta:
    """`interval`, or what it was meant to be: scrapers are some milliseconds early or late."""
    near = min(_USUAL_INTERVALS, key=lambda usual: abs(interval - usual))
    if abs(interval / near - 1) < _JITTER:
        return near
    whole = timedelta(seconds=1) if interval > timedelta(seconds=1) else timedelta(milliseconds=100)
    return max(1, round(interval / whole)) * whole


def _why_dead(server: PrometheusStore, use: Use, start: datetime, end: datetime) -> Dead | None:
    """Why a selector matches nothing; `None` where it does match."""

    def matches(selector: str) -> bool:
        return bool(server.label_values("__name__", start, end, match=selector))

    if matches(use.selector):
        return None
    if use.metric and not matches(use.metric):
        near = difflib.get_close_matches(use.metric, server.metric_names(start, end), 3, 0.7)
        hint = f"did you mean {' or '.join(near)}?" if near else "is it scraped, and by this source?"
        return Dead(use.selector, f"there is no metric {use.metric}", hint)
    for label, matcher in use.matchers if use.metric else ():
        if not matches(f"{use.metric}{{{matcher}}}"):
            values = server.label_values(label, start, end, match=use.metric)
            if not values:
                return Dead(use.selector, f"no series of {use.metric} has a label {label}", "")
            wanted = matcher.partition('"')[2].rstrip('"')
            shown = difflib.get_close_matches(wanted, values, 3, 0.6) or sorted(values)[:5]
            return Dead(use.selector, f"no series of {use.metric} matches {matcher}", f"there is {', '.join(shown)}")
    return Dead(use.selector, f"no series matches {use.selector}", "each of its labels alone matches some")
