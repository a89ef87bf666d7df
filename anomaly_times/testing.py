"""What tests of missions and of models need: a store in memory, and the contract that every model keeps."""

# ruff: noqa: S101 - the contract speaks by assertions, like any test

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import numpy as np

from anomaly_times.durations import EPOCH
from anomaly_times.errors import AnomalyTimesError, NoSeriesError, QueryError
from anomaly_times.evidence import CHANNELS, KEPT
from anomaly_times.mission import Mission
from anomaly_times.models import Forecaster
from anomaly_times.panel import Evidence, Floats, Forecast, Grid, Labels, Limits, Panel, Quantiles, Scores
from anomaly_times.stores import Gauge, Written

__all__ = ["CONTRACT", "MemoryStore", "model_contract", "panel_of"]

_FORECAST_ROWS = 3 + 2 * len(CHANNELS) + 1
"""yhat, lower and upper of a forecast, and its limits: `usual`, `limit` and `move`."""


class MemoryStore:
    """A `Store` in memory: panels answer queries, and what is written can be read back.

    Behaves as the real ones do where forecasts run ahead: the freshest cutoff wins at every time, a forecast that a
    series has already for a cutoff is never written again, NaN is not kept.

    Args:
        series: what each query answers, on any grid; an error in place of a panel is raised.
        name: how messages call the store.
        ignore_labels: labels that results are kept without.
    """

    def __init__(
        self,
        series: Mapping[str, Panel | AnomalyTimesError] | None = None,
        *,
        name: str = "memory",
        ignore_labels: tuple[str, ...] = (),
    ) -> None:
        self.series = dict(series or {})
        self.closed = False
        self.gauges: list[tuple[datetime, Gauge]] = []
        """What passes told about themselves, in the order in which it came."""
        self._name = name
        self._ignored = ignore_labels
        self._forecasts: dict[str, dict[Labels, dict[datetime, tuple[Grid, Floats]]]] = {}
        self._scores: dict[str, dict[Labels, dict[int, Floats]]] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """How messages call it."""
        return self._name

    @property
    def ignore_labels(self) -> tuple[str, ...]:
        """As it was made."""
        return self._ignored

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

    def read_forecasts(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> Mapping[str, Forecast]:
        """The freshest forecast at every time of `grid`; see `Store.read_forecasts`."""
        found = {}
        with self._lock:
            for mission in missions:
                rows = {}
                oldest = (since or {}).get(mission.name, EPOCH)
                for labels, by_cutoff in sorted(self._forecasts.get(mission.name, {}).items()):
                    freshest = np.full((_FORECAST_ROWS, grid.n), np.nan)
                    for cutoff, (written_grid, written) in sorted(by_cutoff.items(), key=lambda item: item[0]):
                        if cutoff >= oldest:
                            newer = _resample(written_grid, written, grid)
                            freshest = np.where(np.isnan(newer[0]), freshest, newer)
                    if np.isfinite(freshest).any():
                        rows[labels] = freshest
                if rows:
                    values = np.stack(list(rows.values()), axis=1)
                    limits = Limits(values[3:8], values[8:13], values[13]) if mission.watches_over_time else None
                    yhat, lower, upper = values[:3]
                    found[mission.name] = Forecast(tuple(rows), grid, None, yhat, lower, upper, limits=limits)
        return found

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Panel]:
        """The scores kept at the times of `grid`; see `Store.read_scores`."""
        kept = self._kept(missions, grid)
        return {name: Panel(labels, grid, values[0]) for name, (labels, values) in kept.items()}

    def read_evidence(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Evidence]:
        """What was kept beside the scores at the times of `grid`; see `Store.read_evidence`."""
        kept = self._kept(missions, grid)
        return {name: Evidence(labels, grid, values[2:], values[1]) for name, (labels, values) in kept.items()}

    def _kept(self, missions: Sequence[Mission], grid: Grid) -> dict[str, tuple[tuple[Labels, ...], Floats]]:
        """By mission, label sets and float64[6, S, T]: score, incident, evidence."""
        found = {}
        times = grid.epoch_ms().tolist()
        nothing = np.full(2 + len(KEPT), np.nan)
        with self._lock:
            for mission in missions:
                rows = {
                    labels: [kept.get(time, nothing) for time in times]
                    for labels, kept in sorted(self._scores.get(mission.name, {}).items())
                    if any(time in kept for time in times)
                }
                if rows:
                    found[mission.name] = tuple(rows), np.moveaxis(np.array(list(rows.values())), 2, 0)
        return found

    def write_forecasts(self, forecasts: Sequence[tuple[Mission, Forecast]]) -> Written:
        """Keep these forecasts, never twice for the same series and cutoff; see `Store.write_forecasts`."""
        total = Written()
        with self._lock:
            for mission, forecast in forecasts:
                if forecast.cutoff is None:
                    raise ValueError("a forecast without a cutoff cannot be written")
                kept = self._forecasts.setdefault(mission.name, {})
                values = np.full((len(forecast.labels), _FORECAST_ROWS, forecast.grid.n), np.nan)
                values[:, :3] = np.stack([forecast.yhat, forecast.lower, forecast.upper], axis=1)
                if (limits := forecast.limits) is not None:
                    values[:, 3:8], values[:, 8:13] = np.moveaxis(limits.usual, 0, 1), np.moveaxis(limits.limit, 0, 1)
                    values[:, 13] = limits.move
                for written, row in zip(mission.written_labels(forecast.labels), values, strict=True):
                    labels = written.without(self._ignored)
                    by_cutoff = kept.setdefault(labels, {})
                    finite = np.isfinite(row[:3])
                    series = int(finite.any(axis=1).sum())
                    if forecast.cutoff in by_cutoff:
                        total += Written(skipped=series)
                    elif series:
                        by_cutoff[forecast.cutoff] = forecast.grid, row
                        total += Written(samples=int(finite.sum()), series=series)
        return total

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        """Keep these scores, the last value of a time; see `Store.write_scores`."""
        total = Written()
        with self._lock:
            for mission, scored in scores:
                kept = self._scores.setdefault(mission.name, {})
                times = scored.grid.epoch_ms()
                rows = np.full((2 + len(KEPT), *scored.score.shape), np.nan)
                rows[0] = scored.score
                if scored.incident is not None and scored.evidence is not None:
                    rows[1], rows[2:] = scored.incident, scored.evidence
                for written, row in zip(mission.written_labels(scored.labels), np.moveaxis(rows, 1, 0), strict=True):
                    labels = written.without(self._ignored)
                    finite = np.isfinite(row[0])
                    if finite.any():
                        kept.setdefault(labels, {}).update(zip(times[finite].tolist(), row[:, finite].T, strict=True))
                        total += Written(samples=int(finite.sum()), series=1)
        return total

    def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
        """Keep them in `gauges`; see `Store.write_gauges`."""
        with self._lock:
            self.gauges += [(at, gauge) for gauge in gauges if np.isfinite(gauge.value)]

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


LEVELS = (0.0005, 0.1, 0.5, 0.9, 0.9995)
"""The quantiles that the contract asks for: those of a 99.9 % interval, a mild pair, and the median."""


def panel_of(y: Floats, *, step: timedelta = timedelta(hours=1), start: datetime | None = None) -> Panel:
    """A panel of the rows of `y` (float64[S, T]) with made-up labels, from Monday 2026-01-05 00:00 UTC by default."""
    labels = tuple(Labels.of({"series": f"{i:06d}"}) for i in range(len(y)))
    return Panel(labels, Grid(start or datetime(2026, 1, 5, tzinfo=UTC), step, y.shape[1]), y.astype(np.float64))


def model_contract(build: Callable[[], Forecaster], *, rows_independent: bool = True) -> None:
    """Run every case of `CONTRACT` against a model; an AssertionError names the promise that it breaks.

    Args:
        build: makes the model, without arguments.
        rows_independent: `False` for a model that learns across the rows of a panel (`ModelInfo.pooled`).
    """
    for case in CONTRACT:
        if rows_independent or case is not a_row_alone_is_as_in_a_panel:
            case(build())


def _ask(model: Forecaster, history: Panel, h: int = 30) -> Quantiles:
    """A forecast, with what holds for all of them checked."""
    answer = model.forecast(history, h=h, quantiles=LEVELS)
    assert answer.labels == history.labels, "rows must stay in the order of the history"
    assert answer.grid == history.grid.following(h), "the forecast must follow the history"
    assert answer.levels == LEVELS
    seen = np.isfinite(history.y).any(axis=1)
    assert np.isfinite(answer.values[seen]).all(), "a series with a point must get finite quantiles"
    assert np.isnan(answer.values[~seen]).all(), "a series without a point must get NaN"
    assert (np.diff(answer.values[seen], axis=2) >= 0).all(), "quantiles must not fall"
    return answer


def _daily(days: int = 8, noise: float = 0.1) -> Floats:
    """Three series of hourly points with a daily rhythm."""
    random = np.random.default_rng(7)
    hour = np.arange(24 * days)
    wave = np.sin(2 * np.pi * hour / 24)
    return np.stack([10 + 5 * wave, 100 - 30 * wave, 3 + np.abs(wave)]) + noise * random.standard_normal((3, 24 * days))


def quantiles_are_ordered_and_follow_the_history(model: Forecaster) -> None:
    """The grid, the rows, the levels, finite values that do not fall."""
    _ask(model, panel_of(_daily()))
    _ask(model, panel_of(_daily()), h=1)


def a_gap_never_shifts_a_phase(model: Forecaster) -> None:
    """With seven hours cut out of the middle, the forecast peaks at the same hours."""
    y = _daily(noise=0.0)
    full = _ask(model, panel_of(y), h=24).at(0.5)
    y[:, 80:87] = np.nan
    gappy = _ask(model, panel_of(y), h=24).at(0.5)
    swing = np.ptp(full, axis=1, keepdims=True)
    assert (np.abs(gappy - full) < 0.15 * np.maximum(swing, 0.1)).all(), "a gap must not shift the season"


def a_constant_series_stays_constant(model: Forecaster) -> None:
    """Constants, zero among them, are forecast as they are."""
    level = np.array([[0.0], [1.0], [-3.5], [1e9]])
    answer = _ask(model, panel_of(np.repeat(level, 100, axis=1)))
    np.testing.assert_allclose(answer.at(0.5), np.repeat(level, 30, axis=1), rtol=1e-6, atol=1e-6)


def one_point_is_enough(model: Forecaster) -> None:
    """A single point, at either end, in a panel of one column or of many."""
    _ask(model, panel_of(np.array([[42.0]])))
    y = np.full((3, 60), np.nan)
    y[0, 0], y[1, -1], y[2, 30:32] = 1.0, 2.0, 3.0
    _ask(model, panel_of(y))


def a_series_without_a_point_gets_nan(model: Forecaster) -> None:
    """All-NaN rows, alone and among others."""
    y = _daily()
    y[1] = np.nan
    _ask(model, panel_of(y))
    _ask(model, panel_of(np.full((2, 50), np.nan)))


def an_empty_panel_is_answered(model: Forecaster) -> None:
    """No rows in, no rows out."""
    assert _ask(model, panel_of(np.empty((0, 50)))).values.shape == (0, 30, len(LEVELS))


def huge_and_tiny_values_are_survived(model: Forecaster) -> None:
    """Values near the ends of what a double holds, steady and as a single spike."""
    y = np.concatenate([_daily() * 1e298, _daily() * 1e-300, _daily()])
    y[6, 50] = 1e300
    y[7, 60] = -1e300
    y[8, -1] = 1e300
    _ask(model, panel_of(y))
    _ask(model, panel_of(np.tile([1e300, -1e300], (1, 60))))


def the_same_history_gives_the_same_forecast(model: Forecaster) -> None:
    """Deterministic, and the history is left as it was."""
    history = panel_of(_daily())
    before = history.y.copy()
    first, second = _ask(model, history), _ask(model, history)
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(history.y, before)


def a_model_can_be_pickled(model: Forecaster) -> None:
    """It travels to other processes and forecasts the same there."""
    history = panel_of(_daily())
    twin = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(_ask(twin, history).values, _ask(model, history).values)


def a_row_alone_is_as_in_a_panel(model: Forecaster) -> None:
    """What else is in the panel has no say in a row's forecast."""
    y = _daily()
    y[1, 40:60] = np.nan
    together = _ask(model, panel_of(y)).values
    for i in range(len(y)):
        alone = _ask(model, panel_of(y).rows([i])).values
        # Single precision adds up in another order in a batch of another size.
        np.testing.assert_allclose(alone[0], together[i], rtol=0, atol=1e-5 * np.abs(together[i]).max())


CONTRACT: tuple[Callable[[Forecaster], None], ...] = (
    quantiles_are_ordered_and_follow_the_history,
    a_gap_never_shifts_a_phase,
    a_constant_series_stays_constant,
    one_point_is_enough,
    a_series_without_a_point_gets_nan,
    an_empty_panel_is_answered,
    huge_and_tiny_values_are_survived,
    the_same_history_gives_the_same_forecast,
    a_model_can_be_pickled,
    a_row_alone_is_as_in_a_panel,
)
"""What every model promises, one function a promise; each takes the model."""
