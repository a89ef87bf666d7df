"""Where metrics live: reading history, writing results, reading them back.

A store is built from a `Source` by `open_store`. Reading answers panels; what is written, under which labels and at
which timestamps, is described in `docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Forecast, Grid, Labels, Panel, Scores
from anomaly_times.settings import Source

__all__ = ["Gauge", "Store", "Written", "open_store"]


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: `samples` sent, of `series` (one metric of one label set each).

    `skipped` counts series of which the store had this forecast already, or scores up to this time.
    """

    samples: int = 0
    series: int = 0
    skipped: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.samples + other.samples, self.series + other.series, self.skipped + other.skipped)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number that a pass tells about itself: `metric`, with `labels` that are without `__name__`."""

    metric: str
    labels: Labels
    value: float


class Store(Protocol):
    """Reads the series of a query, writes results, and reads them back. Safe to use from several threads.

    Everything read back carries the labels that it was written with (`Mission.written_labels`), less `__name__` and
    the source's `ignore_labels`.
    """

    @property
    def name(self) -> str:
        """How messages call it: the base URL or the folder, without secrets."""
        ...

    @property
    def ignore_labels(self) -> tuple[str, ...]:
        """Labels that a relay adds to what is written; no result is told from another by them."""
        ...

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """The series that `promql` answers at the times of `grid`; points without a sample are NaN, as are ±Inf.

        Series without any point on the grid are left out.

        Raises:
            NoSeriesError: the query matches nothing in this range.
            QueryError: the query does not parse, answers no vector, gives two series with equal labels, or gives more
                than `max_series`.
            StoreError: the store is away, refuses, or answers what cannot be understood.
        """
        ...

    def read_forecasts(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> Mapping[str, Forecast]:
        """For each mission (by name) the freshest stored forecast at every time of `grid`; NaN where there is none.

        With the limits that came with it, where the mission watches more than points; a `move` of NaN where none did.

        The missions share the step of the grid. A mission without any forecast there is not in the answer. `since`
        says by mission from which cutoff on forecasts count: those before were made for another query.

        Raises:
            StoreError: as for `read`.
        """
        ...

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Panel]:
        """For each mission (by name) the scores stored at the times of `grid`; none: not in the answer.

        Raises:
            StoreError: as for `read`.
        """
        ...

    def read_evidence(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Evidence]:
        """For each mission (by name) the evidence and incidents kept at the times of `grid`; none: not in the answer.

        Raises:
            StoreError: as for `read`.
        """
        ...

    def write_forecasts(self, forecasts: Sequence[tuple[Mission, Forecast]]) -> Written:
        """Store these forecasts and their limits; what is complete already for a mission and cutoff is left as it is.

        Raises:
            StoreError: the store is away or refuses; a rerun writes what is missing.
        """
        ...

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        """Store these scores at the times of their grids, with what is kept beside them; NaN is not written.

        A score is there only where all is that belongs to it: a write that broke off is done again from there.

        Raises:
            StoreError: the store is away or refuses; a rerun writes the same values again.
        """
        ...

    def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
        """Store one sample of each gauge at that time, in one attempt of a few seconds; a folder keeps none.

        What is not finite is left out, and what is older than the newest sample of its series may be.

        Raises:
            StoreError: the store is away or refuses.
        """
        ...

    def close(self) -> None:
        """Give connections back."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_store(source: Source, *, state: Path) -> Store:
    """The store that `source` describes; nothing is asked of a server yet.

    Args:
        source: a server or a folder.
        state: folder for forecasts that wait for their time (`write: at_detection`).
    """
    if source.folder is not None:
        from anomaly_times.stores.parquet import FolderStore

        return FolderStore(source)
    from anomaly_times.stores.prometheus import PrometheusStore

    return PrometheusStore(source, state=state)
