"""What tests of missions and of models need: a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

import numpy as np

from anomaly_times.errors import AnomalyTimesError, NoSeriesError, QueryError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Forecast, Grid, Labels, Panel, Scores
from anomaly_times.stores import Written

__all__ = ["MemoryStore"]


class MemoryStore:
    """A `Store` in memory: panels answer queries, and what is written can be read back.

    Behaves as the real ones do where forecasts run ahead: the freshest cutoff wins at every time, a forecast that a
    series has already for a cutoff is never written again, NaN is not kept.

    Args:
        series: what each query answers, on any grid; an error in place of a panel is raised.
        name: how messages call the store.
    """

    def __init__(self, series: Mapping[str, Panel | AnomalyTimesError] | None = None, *, name: str = "memory") -> None:
        self.series = dict(series or {})
        self.closed = False
        self._name = name
        self._forecasts: dict[str, dict[Labels, dict[datetime, tuple[Grid, Floats]]]] = {}
        self._scores: dict[str, dict[Labels, dict[int, float]]] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """How messages call it."""
        return self._name

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """The panel kept for exactly this query, at the times of `grid`; see `Store.read`."""
        kept = self.series.get(promql)
        if isinstance(kept, AnomalyTimesError):
            raise kept
        if kept is None:
            raise NoSeriesError(f"{promql} matches nothing in {self.name}")
        if kept.n_series > max_series:
            raise QueryError(f"{promql} gives {kept.n_series} series, more than {max_series}")
        y = _resample(kept.grid, kept.y, grid)
        y[~np.isfinite(y)] = np.nan
        alive = np.flatnonzero(np.isfinite(y).any(axis=1))
        if not alive.size:
            raise NoSeriesError(f"{promql} matches nothing in {self.name}")
        return Panel(kept.labels, grid, y).rows(alive)

    def read_forecasts(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Forecast]:
        """The freshest forecast at every time of `grid`; see `Store.read_forecasts`."""
        found = {}
        with self._lock:
            for mission in missions:
                rows = {}
                for labels, by_cutoff in sorted(self._forecasts.get(mission.name, {}).items()):
                    freshest = np.full((3, grid.n), np.nan)
                    for _, (written_grid, written) in sorted(by_cutoff.items(), key=lambda item: item[0]):
                        newer = _resample(written_grid, written, grid)
                        freshest = np.where(np.isnan(newer), freshest, newer)
                    if np.isfinite(freshest).any():
                        rows[labels] = freshest
                if rows:
                    values = np.stack(list(rows.values()))
                    found[mission.name] = Forecast(
                        tuple(rows), grid, None, yhat=values[:, 0], lower=values[:, 1], upper=values[:, 2]
                    )
        return found

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Panel]:
        """The scores kept at the times of `grid`; see `Store.read_scores`."""
        found = {}
        times = grid.epoch_ms().tolist()
        with self._lock:
            for mission in missions:
                rows = {
                    labels: [kept.get(time, np.nan) for time in times]
                    for labels, kept in sorted(self._scores.get(mission.name, {}).items())
                    if any(time in kept for time in times)
                }
                if rows:
                    found[mission.name] = Panel(tuple(rows), grid, np.array(list(rows.values()), dtype=np.float64))
        return found

    def write_forecasts(self, forecasts: Sequence[tuple[Mission, Forecast]]) -> Written:
        """Keep these forecasts, never twice for the same series and cutoff; see `Store.write_forecasts`."""
        total = Written()
        with self._lock:
            for mission, forecast in forecasts:
                if forecast.cutoff is None:
                    raise ValueError("a forecast without a cutoff cannot be written")
                kept = self._forecasts.setdefault(mission.name, {})
                values = np.stack([forecast.yhat, forecast.lower, forecast.upper], axis=1)
                for labels, row in zip(mission.written_labels(forecast.labels), values, strict=True):
                    by_cutoff = kept.setdefault(labels, {})
                    finite = np.isfinite(row)
                    series = int(finite.any(axis=1).sum())
                    if forecast.cutoff in by_cutoff:
                        total += Written(skipped=series)
                    elif series:
                        by_cutoff[forecast.cutoff] = forecast.grid, np.where(finite, row, np.nan)
                        total += Written(samples=int(finite.sum()), series=series)
        return total

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        """Keep these scores, the last value of a time; see `Store.write_scores`."""
        total = Written()
        with self._lock:
            for mission, scored in scores:
                kept = self._scores.setdefault(mission.name, {})
                times = scored.grid.epoch_ms()
                for labels, row in zip(mission.written_labels(scored.labels), scored.score, strict=True):
                    finite = np.isfinite(row)
                    if finite.any():
                        kept.setdefault(labels, {}).update(
                            zip(times[finite].tolist(), row[finite].tolist(), strict=True)
                        )
                        total += Written(samples=int(finite.sum()), series=1)
        return total

    def close(self) -> None:
        """Remember that it was closed; what is kept stays readable."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _resample(have: Grid, values: Floats, want: Grid) -> Floats:
    """`values` (float64[…, have.n]) at the times of `want`, NaN where `have` has no such time."""
    out = np.full((*values.shape[:-1], want.n), np.nan)
    offset = want.epoch_ms() - have.start_ms
    column = offset // have.step_ms
    there = (offset % have.step_ms == 0) & (column >= 0) & (column < have.n)
    out[..., there] = values[..., column[there]]
    return out
