"""A store that counts what goes through it: points, and the seconds that reading and writing take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

import numpy as np

from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Forecast, Grid, Panel, Scores
from anomaly_times.stores import Gauge, Store, Written

__all__ = ["MeteredStore", "Traffic", "metered"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through a store.

    `points_read` counts the values that queries answered, without gaps and without our own results; `points_written`
    the samples of results. `read` and `write` are seconds between question and answer, added up over calls that ran
    at once; a write that asks what is there already is all of it a write.
    """

    points_read: int = 0
    points_written: int = 0
    read: float = 0.0
    write: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.points_read + other.points_read,
            self.points_written + other.points_written,
            self.read + other.read,
            self.write + other.write,
        )


def metered(stores: Mapping[str, Store]) -> dict[str, MeteredStore]:
    """These stores, by the same names, each with a meter of its own that begins at nothing."""
    return {name: MeteredStore(store) for name, store in stores.items()}


class MeteredStore:
    """`store` with a meter, for the time of one pass; safe to use from several threads, as the store is.

    Closing it closes the store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """What went through up to now."""
        return self._traffic

    @property
    def name(self) -> str:
        """That of the store."""
        return self._store.name

    @property
    def ignore_labels(self) -> tuple[str, ...]:
        """Those of the store."""
        return self._store.ignore_labels

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """See `Store.read`."""
        with self._timed("read"):
            panel = self._store.read(promql, grid, max_series=max_series)
        self._add("points_read", int(np.isfinite(panel.y).sum()))
        return panel

    def read_forecasts(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> Mapping[str, Forecast]:
        """See `Store.read_forecasts`."""
        with self._timed("read"):
            return self._store.read_forecasts(missions, grid, since=since)

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Panel]:
        """See `Store.read_scores`."""
        with self._timed("read"):
            return self._store.read_scores(missions, grid)

    def read_evidence(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Evidence]:
        """See `Store.read_evidence`."""
        with self._timed("read"):
            return self._store.read_evidence(missions, grid)

    def write_forecasts(self, forecasts: Sequence[tuple[Mission, Forecast]]) -> Written:
        """See `Store.write_forecasts`."""
        with self._timed("write"):
            return self._counted(self._store.write_forecasts(forecasts))

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        """See `Store.write_scores`."""
        with self._timed("write"):
            return self._counted(self._store.write_scores(scores))

    def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
        """See `Store.write_gauges`; not metered, as this is how the meter is told."""
        self._store.write_gauges(gauges, at=at)

    def close(self) -> None:
        """See `Store.close`."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _timed(self, stage: Literal["read", "write"]) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - began)

    def _counted(self, written: Written) -> Written:
        self._add("points_written", written.samples)
        return written

    def _add(self, what: str, more: float) -> None:
        with self._lock:
            self._traffic = replace(self._traffic, **{what: getattr(self._traffic, what) + more})
