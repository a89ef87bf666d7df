"""What a scheduled run does: forecast a sequence of missions, or detect with it.

Plain functions of missions, stores and `now`: no clock, no scheduler, no network of their own, so a backtest and a
test run the live code. A pass answers results; `write_forecasts` and `write_scores` store them. One mission's failure
is its result's `error` and never stops the others.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from anomaly_times import scoring
from anomaly_times.bounds import BlockMapper, Tunings, bounded_by_blocks
from anomaly_times.conventions import source_labels
from anomaly_times.cron import pause_before
from anomaly_times.durations import EPOCH, format_duration, milliseconds
from anomaly_times.errors import AnomalyTimesError, MissionError, NoSeriesError, StoreError
from anomaly_times.evidence import CHANNELS, DRIFT, KEPT, ROUGHNESS, SUSTAINED, Memory, remembered
from anomaly_times.mission import Mission
from anomaly_times.models import known_model
from anomaly_times.models.cost import long_forecast
from anomaly_times.models.rebase import rebased
from anomaly_times.panel import Evidence, Floats, Forecast, Grid, Labels, Limits, Panel, Scores, round_significant
from anomaly_times.profiling import staged
from anomaly_times.quality import Quality, judge, naive_season
from anomaly_times.stores import Store, Written
from anomaly_times.stores.history import Histories
from anomaly_times.stores.shared import Asked, SharedReads

__all__ = [
    "DetectResult",
    "ForecastResult",
    "Mapper",
    "detect_pass",
    "forecast_pass",
    "write_forecasts",
    "write_scores",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_SILENT = timedelta(days=1)
"""A series without a value for that long before the cutoff has ended, and is forecast no more."""

_RECENT_CADENCES = 3

_SERIES_TOGETHER, _MISSIONS_TOGETHER = 8_192, 64
"""So many are scored at once, or one mission that has more series: numpy's own work is for each call, not each series.

More would be no faster, and would tell of the first mission later.
"""


class Mapper(Protocol):
    """Runs a function over work items of this process, in order: `map`, or that of a pool of threads."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]:
        """The results in the order of the items."""
        ...


@dataclass(frozen=True, eq=False)
class ForecastResult:
    """What a forecast pass made of one mission: a forecast, or the error that prevented it.

    `ended` counts series that were left out because they have had no value for a day, `capped` those whose alert budget
    asks for more than ten times what their history can tell. `history` is there where the pass was asked to keep it,
    `quality` where it was asked to judge what was stored, and that could be read. `cpu` is the processor time that it
    took, in seconds, without that of reading.
    """

    mission: Mission
    forecast: Forecast | None = None
    error: AnomalyTimesError | None = None
    warnings: tuple[str, ...] = ()
    ended: int = 0
    capped: int = 0
    history: Panel | None = None
    quality: Quality | None = None
    cpu: float = 0.0


@dataclass(frozen=True, eq=False)
class DetectResult:
    """What a detection pass made of one mission: scores, or the error that prevented them.

    `gates` and `unforecast` count points as in `scoring.Scored`. `scores` is `None` where there was nothing new to
    score, and `series`, how many had a value, where no value was asked for. `again` says that points were scored
    without a look at what is stored; those are left as they are stored. `cpu` is as in `ForecastResult`.
    """

    mission: Mission
    scores: Scores | None = None
    error: AnomalyTimesError | None = None
    warnings: tuple[str, ...] = ()
    gates: Mapping[str, int] = field(default_factory=dict)
    unforecast: int = 0
    again: bool = False
    series: int | None = None
    cpu: float = 0.0


def forecast_pass(
    missions: Sequence[Mission],
    stores: Mapping[str, Store],
    *,
    now: datetime,
    mapper: Mapper = map,
    blocks: BlockMapper = map,
    histories: Histories | None = None,
    keep_history: bool = False,
    judged: bool = False,
    since: Mapping[str, datetime] | None = None,
    tunings: Tunings | None = None,
    on_done: Callable[[ForecastResult], None] | None = None,
) -> list[ForecastResult]:
    """Forecast each mission from the last complete time before `now`; nothing is written.

    Args:
        missions: what to forecast; those alike in source, query, history and `max_series` share what is read.
        stores: by the source that missions name.
        now: with a time zone; the cutoff is the last grid time not after now − offset.
        mapper: runs the missions.
        blocks: does the rows of their panels, a few hundred at a time; from several threads where `mapper` has them.
        histories: of earlier passes, which need not be read again.
        keep_history: put what was read into the results, for charts.
        judged: read the stored forecasts of the time since the slot before too, and say how good they were.
        since: by mission name; stored forecasts with an older cutoff were made for another query, and are not judged.
        tunings: those of earlier passes, which need not be made again; not for several threads.
        on_done: told each result as it comes.
    """
    asked = {mission.name: _history_asked(mission, now) for mission in missions}
    reads = SharedReads(asked.values())

    def one(mission: Mission) -> ForecastResult:
        try:
            store = _store(stores, mission)
            reader = histories.of(mission.source, store) if histories is not None else store
            return _forecast(
                *(mission, store),
                read=lambda: reads.read(asked[mission.name], reader),
                now=now,
                blocks=blocks,
                keep_history=keep_history,
                judged=judged,
                since=(since or {}).get(mission.name),
                tunings=tunings,
            )
        except Exception as exc:  # noqa: BLE001 - the border between missions: none may stop its neighbours
            return ForecastResult(mission, error=_as_error(exc, mission))

    # Those that share a read one after the other, so that no panel waits long for its last reader.
    first: dict[Asked, int] = {}
    for place, mission in enumerate(missions):
        first.setdefault(asked[mission.name], place)
    together = sorted(missions, key=lambda mission: first[asked[mission.name]])
    results = _collect(mapper(one, together), on_done)
    places = {mission.name: place for place, mission in enumerate(missions)}
    return sorted(results, key=lambda result: places[result.mission.name])


def _history_asked(mission: Mission, now: datetime) -> Asked:
    return Asked(mission.source, mission.promql, mission.history_grid(now), mission.max_series)


def _forecast(
    mission: Mission,
    store: Store,
    *,
    read: Callable[[], Panel],
    now: datetime,
    blocks: BlockMapper,
    keep_history: bool,
    judged: bool,
    since: datetime | None,
    tunings: Tunings | None,
) -> ForecastResult:
    # Before the history is read: a model that cannot be built needs none.
    known_model(mission.forecast.model, season=mission.season, timezone=mission.timezone)
    history = read()
    began = time.thread_time()
    silent = min(history.grid.n, max(1, _SILENT // mission.step))
    alive = np.isfinite(history.y[:, -silent:]).any(axis=1)
    ended = int((~alive).sum())
    if ended == history.n_series:
        raise NoSeriesError(
            f"no series of {mission.promql} has a value in the last {format_duration(silent * mission.step)}",
            hint="is the exporter down, or is --at in a time without data?",
        )
    if ended:
        history = history.rows(alive)
    history = _without_exclusions(history, mission)
    if slow := long_forecast(mission, history.n_series):
        logger.warning("%s: %s", mission.name, slow)
    known, level_since = history, mission.forecast.rebase
    if level_since is not None:
        known = rebased(history, level_since, season=mission.season, timezone=mission.timezone)
    # Of what was measured: values that were moved in proportion are finer than what comes.
    least = scoring.resolution(history.y)
    made = bounded_by_blocks(mission, known, least=least, mapper=blocks, tunings=tunings)
    forecast = made.forecast
    warnings = (*_band_warnings(mission, forecast), *_limit_warnings(forecast))
    cpu, quality = time.thread_time() - began + made.cpu, None
    if judged:
        try:
            quality = _quality(mission, history, store, now=now, since=since)
        except StoreError as exc:
            warnings += (f"how good the last forecast was is not known: {exc.message}",)
    return ForecastResult(
        mission,
        forecast,
        warnings=warnings,
        ended=ended,
        capped=made.capped,
        history=history if keep_history else None,
        quality=quality,
        cpu=cpu,
    )


def _quality(
    mission: Mission, history: Panel, store: Store, *, now: datetime, since: datetime | None
) -> Quality | None:
    """How good the stored forecasts since the slot before were; `None` where there are none.

    Held against what was measured, and not where the mission excludes it.
    """
    cron, pause = mission.forecast.cron, mission.forecast.every
    if cron:
        pause = pause_before(cron, now, timezone=mission.timezone)
    # So that the passes of all slots judge each point once, also where steps do not divide the time between them.
    n = (mission.last_time(now) - mission.last_time(now - pause)) // mission.step
    n = min(history.grid.n, max(1, n))
    grid = history.grid[history.grid.n - n :]
    # Limits would be a query more, and do not matter here.
    of_points = mission.model_copy(update={"detect": mission.detect.model_copy(update={"evidence": "point"})})
    cutoffs = {mission.name: since} if since is not None else None
    stored = store.read_forecasts([of_points], grid, since=cutoffs).get(mission.name)
    if stored is None:
        return None
    ignored = store.ignore_labels
    stored = replace(stored, labels=_keys(stored.labels, ignored))
    bands, _ = _aligned(_keys(mission.written_labels(history.labels), ignored), grid, stored)
    before = np.full((history.n_series, n), np.nan)
    first = history.grid.n - n - naive_season(mission) // mission.step
    there = slice(max(0, -first), None)
    if first + n > 0:
        before[:, there] = history.y[:, max(0, first) : first + n]
    return judge(history.y[:, -n:], bands, before)


def _without_exclusions(history: Panel, mission: Mission) -> Panel:
    """The history with gaps where the mission says that nothing can be learned."""
    if not mission.forecast.exclude:
        return history
    y = history.y.copy()
    times = history.grid.epoch_ms()
    for window in mission.forecast.exclude:
        start, end = (milliseconds(at - EPOCH) for at in (window.start, window.end))
        y[:, (times >= start) & (times <= end)] = np.nan
    if not np.isfinite(y).any():
        raise MissionError(
            f"mission {mission.name} excludes all of its history", hint="shorten `exclude`, or lengthen `lookback`"
        )
    return replace(history, y=y)


def _band_warnings(mission: Mission, forecast: Forecast) -> tuple[str, ...]:
    low, high = mission.detect.valid_range
    below, above = scoring.unseen_sides(forecast, mission.detect)
    watched = mission.detect.direction
    warnings = []
    if below and watched != "above":
        warnings.append(f"the band of {below} series reaches below {low:g}: a fall cannot leave it")
    if above and watched != "below":
        warnings.append(f"the band of {above} series reaches above {high:g}: a rise cannot leave it")
    return tuple(warnings)


def _limit_warnings(forecast: Forecast) -> tuple[str, ...]:
    if forecast.limits is None:
        return ()
    blind = np.isinf(forecast.limits.limit[[SUSTAINED, ROUGHNESS, DRIFT], :, 0])
    if not blind.any():
        return ()
    names = ", ".join(
        CHANNELS[channel] for channel, none in zip((SUSTAINED, ROUGHNESS, DRIFT), blind, strict=True) if none.any()
    )
    n = int(blind.any(axis=0).sum())
    return (f"{n} of {len(forecast.labels)} series have too short a past for limits of {names}: points are judged",)


def detect_pass(
    missions: Sequence[Mission],
    stores: Mapping[str, Store],
    *,
    now: datetime,
    window: timedelta | None = None,
    mapper: Mapper = map,
    forecasts: Mapping[str, Forecast] | None = None,
    kept: Mapping[str, Evidence] | None = None,
    since: Mapping[str, datetime] | None = None,
    on_done: Callable[[DetectResult], None] | None = None,
) -> list[DetectResult]:
    """Score what each mission has not scored yet, up to the last complete time before `now`; nothing is written.

    What was scored is asked of the store: the scores of the last three cadences, or of `detect.catch_up` where those
    hold none. Each series is scored from its newest score on.

    Args:
        missions: what to score; those alike in source, step and cadence share their queries for scores and forecasts,
            those alike in query and `max_series` too what they read.
        stores: by the source that missions name.
        now: with a time zone.
        window: score everything in this window before `now` instead, scored already or not.
        mapper: reads the values of the missions.
        forecasts: by mission name, used in place of the stored ones (their labels are those of the source).
        kept: by mission name, what was kept beside the scores before, in place of what is stored (written labels).
        since: by mission name; stored forecasts with an older cutoff were made for another query, and do not count.
        on_done: told each result as it comes.
    """
    batches: dict[tuple[object, ...], list[Mission]] = defaultdict(list)
    for mission in missions:
        detect = mission.detect
        batches[mission.source, mission.step, mission.offset, detect.period, detect.catch_up].append(mission)

    work: list[_Work] = []
    # Stored forecasts come in a thread of their own while the missions read their values.
    with ThreadPoolExecutor(max(1, len(batches)), thread_name_prefix="forecasts") as pool:
        for batch in batches.values():
            try:
                store = _store(stores, batch[0])
                work += _prepare(
                    batch, store, pool, now=now, window=window, forecasts=forecasts or {}, kept=kept, since=since or {}
                )
            except Exception as exc:  # noqa: BLE001 - the border between batches: none may stop its neighbours
                work += [_Work(mission, error=_as_error(exc, mission)) for mission in batch]
        order = {mission.name: position for position, mission in enumerate(missions)}
        work.sort(key=lambda item: order[item.mission.name])
        return _collect(_detected(work, stores, mapper, again=window is not None), on_done)


@dataclass(frozen=True, eq=False)
class _Work:
    """One mission to score: where (`None`: nothing is new), against what, and what was scored before."""

    mission: Mission
    grid: Grid | None = None
    forecast: Callable[[], Forecast | None] = lambda: None
    """Waits for the forecast; its labels are the written ones."""
    kept: Callable[[], Evidence | None] = lambda: None
    """Waits for what was kept beside earlier scores."""
    ready: Callable[[], bool] = lambda: True
    """Whether neither would wait."""
    scored: Panel | None = None
    error: AnomalyTimesError | None = None


def _prepare(
    batch: Sequence[Mission],
    store: Store,
    pool: Executor,
    *,
    now: datetime,
    window: timedelta | None,
    forecasts: Mapping[str, Forecast],
    kept: Mapping[str, Evidence] | None,
    since: Mapping[str, datetime],
) -> list[_Work]:
    """The grids of a batch; its forecasts and its evidence are asked for in one query each, in `pool`."""
    first = batch[0]
    if window is not None:
        grids = {mission.name: first.detect_grid(now, window) for mission in batch}
        scored: dict[str, Panel] = {}
    else:
        grids, scored = _unscored(batch, store, now=now)
    unscored = [mission for mission in batch if grids[mission.name].n]
    wanted = [mission for mission in unscored if mission.name not in forecasts]
    stored: Future[Mapping[str, Forecast]] | None = None
    before: Future[Mapping[str, Evidence]] | None = None
    last = first.last_time(now)
    if wanted:
        start = min(grids[mission.name].start for mission in wanted)
        stored = pool.submit(store.read_forecasts, wanted, Grid.covering(start, last, first.step), since=since)
    if unscored and kept is None:
        start = min(grids[mission.name].start for mission in unscored) - remembered(first.step) * first.step
        before = pool.submit(store.read_evidence, unscored, Grid.covering(start, last, first.step))

    def forecast_of(mission: Mission) -> Forecast | None:
        given = forecasts.get(mission.name)
        if given is not None:
            return replace(given, labels=mission.written_labels(given.labels))
        return stored.result().get(mission.name) if stored is not None else None

    def kept_of(mission: Mission) -> Evidence | None:
        everything = kept if kept is not None else before.result() if before is not None else {}
        found = everything.get(mission.name)
        # What was held against forecasts that do not count is no evidence against those that do.
        return _kept_after(found, since.get(mission.name)) if found is not None else None

    def ready() -> bool:
        return all(future is None or future.done() for future in (stored, before))

    return [
        _Work(
            mission,
            grids[mission.name] if grids[mission.name].n else None,
            partial(forecast_of, mission),
            partial(kept_of, mission),
            ready,
            scored.get(mission.name),
        )
        for mission in batch
    ]


def _unscored(batch: Sequence[Mission], store: Store, *, now: datetime) -> tuple[dict[str, Grid], dict[str, Panel]]:
    """What each mission has still to score, and the scores found on the way."""
    first = batch[0]
    recent = first.detect_grid(now, _RECENT_CADENCES * max(first.detect.period, first.step))
    scored = dict(store.read_scores(batch, recent))
    silent = [mission for mission in batch if mission.name not in scored]
    grids = {mission.name: recent for mission in batch}
    wide = first.detect_grid(now, first.detect.catch_up)
    if silent and wide.n > recent.n:
        scored |= store.read_scores(silent, wide)
        grids |= {mission.name: wide for mission in silent}
    for name, panel in scored.items():
        # Unless all that is known of the mission is scored to the end, the whole window is read, for the sake of series
        # that are late by less than that.
        if (_newest(panel.y) == panel.grid.n - 1).all():
            grids[name] = grids[name][grids[name].n :]
    return grids, scored


def _newest(y: Floats) -> npt.NDArray[np.intp]:
    """The column of each row's last value: int[S], −1 where it has none."""
    known = np.isfinite(y)
    last = known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.where(known.any(axis=1), last, -1)


def _detected(
    work: Sequence[_Work], stores: Mapping[str, Store], mapper: Mapper, *, again: bool
) -> Iterator[DetectResult]:
    """The result of each mission, in order; `again` says that points are scored without a look at what is stored.

    Values are read on while forecasts are under way, and while what came with them is scored.
    """
    reads = SharedReads(_values_asked(item.mission, item.grid) for item in work if item.grid is not None)

    def read(item: _Work) -> _Values | AnomalyTimesError | None:
        try:
            return _read_values(item.mission, item.grid, _store(stores, item.mission), reads) if item.grid else None
        except Exception as exc:  # noqa: BLE001 - the border between missions: none may stop its neighbours
            return _as_error(exc, item.mission)

    held: list[tuple[_Work, _Values | AnomalyTimesError | None]] = []
    n_series = 0
    # A mapper that ends early leaves the last missions out.
    for item, values in zip(work, mapper(read, work), strict=False):
        held.append((item, values))
        n_series += values.panel.n_series if isinstance(values, _Values) else 0
        if (len(held) >= _MISSIONS_TOGETHER or n_series >= _SERIES_TOGETHER) and item.ready():
            yield from _results(held, stores, again=again)
            held, n_series = [], 0
    yield from _results(held, stores, again=again)


def _results(
    held: Sequence[tuple[_Work, _Values | AnomalyTimesError | None]], stores: Mapping[str, Store], *, again: bool
) -> list[DetectResult]:
    """What comes of missions whose values are there; those alike are scored together."""
    results: dict[str, DetectResult] = {}
    alike: dict[tuple[object, ...], list[_Candidates]] = defaultdict(list)
    for item, values in held:
        mission = item.mission
        try:
            if item.error is not None or item.grid is None or values is None:
                results[mission.name] = DetectResult(mission, error=item.error)
            else:
                candidates = _candidates(item, item.grid, values, _store(stores, mission))
                alike[candidates.kind].append(candidates)
        except Exception as exc:  # noqa: BLE001 - the border between missions: none may stop its neighbours
            results[mission.name] = DetectResult(mission, error=_as_error(exc, mission))
    for group in alike.values():
        for result in _scored(group):
            results[result.mission.name] = replace(result, again=again) if result.error is None else result
    return [results[item.mission.name] for item, _ in held]


@dataclass(frozen=True, eq=False)
class _Values:
    """The series with a value on the grid, and each one's value a step before it (float64[S])."""

    panel: Panel
    last: Floats


def _values_asked(mission: Mission, grid: Grid) -> Asked:
    wide = Grid(grid.start - grid.step, grid.step, grid.n + 1)
    return Asked(mission.source, mission.promql, wide, mission.max_series)


def _read_values(mission: Mission, grid: Grid, store: Store, reads: SharedReads) -> _Values:
    panel = reads.read(_values_asked(mission, grid), store)
    # Where what is gone counts as 0, it goes on from its last value.
    first = 0 if mission.detect.missing == "zero" else 1
    there = np.isfinite(panel.y[:, first:]).any(axis=1)
    if not np.isfinite(panel.y[:, 1:]).any():
        # The store says it in its own words.
        return _Values(store.read(mission.promql, grid, max_series=mission.max_series), np.empty(0))
    panel = panel if there.all() else panel.rows(there)
    return _Values(panel.columns(slice(1, None)), panel.y[:, 0])


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The series of one mission beside all that they are held against; also of several missions, one after the other.

    `y` is float64[S, T] at the times of `grid`, `last` each one's value a step before, `bands` float64[3, S, T] its
    forecast and bounds, `first` the column from which it is to be scored. `cpu` is what it took up to here.
    """

    mission: Mission
    labels: Sequence[Labels]
    grid: Grid
    y: Floats
    last: Floats
    bands: Floats
    limits: Limits | None
    kept: Evidence
    first: npt.NDArray[np.intp]
    n_series: int = 0
    warnings: tuple[str, ...] = ()
    cpu: float = 0.0

    @property
    def kind(self) -> tuple[object, ...]:
        """Those that are equal in it can be `joined`, and scored as one."""
        return self.mission.detect, self.grid, self.limits.move.shape[1] if self.limits is not None else 0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All of one kind as one, under the first one's mission; only `_scored_from` may be asked about them."""
        if len(parts) == 1:
            return parts[0]
        first, limits = parts[0], None
        each = [part.limits for part in parts if part.limits is not None]
        if each:
            limits = Limits(
                np.concatenate([one.usual for one in each], axis=1),
                np.concatenate([one.limit for one in each], axis=1),
                np.concatenate([one.move for one in each]),
            )
        labels = tuple(row for part in parts for row in part.labels)
        kept = Evidence(
            labels,
            first.kept.grid,
            np.concatenate([part.kept.values for part in parts], axis=1),
            np.concatenate([part.kept.incident for part in parts]),
        )
        return cls(
            first.mission,
            labels,
            first.grid,
            np.concatenate([part.y for part in parts]),
            np.concatenate([part.last for part in parts]),
            np.concatenate([part.bands for part in parts], axis=1),
            limits,
            kept,
            np.concatenate([part.first for part in parts]),
        )


@staged("align")
def _candidates(item: _Work, grid: Grid, values: _Values | AnomalyTimesError, store: Store) -> _Candidates:
    mission, ignored = item.mission, store.ignore_labels
    if isinstance(values, AnomalyTimesError) and not isinstance(values, NoSeriesError):
        raise values
    forecast = item.forecast()
    if isinstance(values, _Values):
        panel, last = values.panel, values.last
    elif forecast is None:
        raise values
    else:
        panel, last = Panel((), grid, np.empty((0, grid.n))), np.empty(0)
    if forecast is not None and ignored:
        forecast = replace(forecast, labels=_keys(forecast.labels, ignored))
    began, n_series = time.thread_time(), int(np.isfinite(panel.y).any(axis=1).sum())
    written = _keys(mission.written_labels(panel.labels), ignored)
    warnings = _detect_warnings(written, forecast)
    if forecast is not None and mission.detect.missing != "ignore":
        panel, last = _with_vanished(mission, panel, last, written, forecast)
        written = _keys(mission.written_labels(panel.labels), ignored)

    bands, limits = _aligned(written, grid, forecast)
    first = _first_unscored(grid, written, item.scored)
    kept = _kept_before(written, grid, item.kept(), ignored)
    limits = limits if mission.watches_over_time else None
    cpu = time.thread_time() - began
    return _Candidates(mission, panel.labels, grid, panel.y, last, bands, limits, kept, first, n_series, warnings, cpu)


@staged("score")
def _scored(group: Sequence[_Candidates]) -> list[DetectResult]:
    """The results of missions of one kind; where one makes all of them fail it is found."""
    began = time.thread_time()
    try:
        found = _scored_from(_Candidates.joined(group))
    except Exception as exc:  # noqa: BLE001 - the border between missions: none may stop its neighbours
        if len(group) > 1:
            return [result for one in group for result in _scored([one])]
        return [DetectResult(group[0].mission, error=_as_error(exc, group[0].mission))]
    cpu = time.thread_time() - began
    ends = np.cumsum([0, *(len(one.labels) for one in group)]).tolist()
    results = []
    for one, (begin, end) in zip(group, pairwise(ends), strict=True):
        parts = []
        for rows, part in found:
            there = slice(*np.searchsorted(rows, (begin, end)).tolist())
            if there.start < there.stop:
                parts.append(part.rows(there))
        scores = None
        if parts:
            scores = parts[0].scores if len(parts) == 1 else Scores.joined([part.scores for part in parts])
        elif not one.labels:
            scores = Scores((), one.grid, *(np.empty((0, one.grid.n)) for _ in range(5)))
        gates = Counter[str]()
        for part in parts:
            gates.update({gate: int(count.sum()) for gate, count in part.gates.items()})
        results.append(
            DetectResult(
                one.mission,
                scores,
                warnings=one.warnings,
                gates={gate: count for gate, count in gates.items() if count},
                unforecast=sum(int(part.unforecast.sum()) for part in parts),
                series=one.n_series,
                cpu=one.cpu + cpu * (end - begin) / max(1, ends[-1]),
            )
        )
    return results


def _aligned(written: Sequence[Labels], grid: Grid, forecast: Forecast | None) -> tuple[Floats, Limits | None]:
    """The forecast of each series at each time, float64[3, S, T], NaN where there is none; and its limits."""
    n_series = len(written)
    bands = np.full((3, n_series, grid.n), np.nan)
    if forecast is None:
        return bands, None
    position = _positions(written, forecast.labels)
    known = position >= 0
    first = grid.index(forecast.grid.start)
    columns = np.arange(max(0, first), min(grid.n, first + forecast.grid.n))
    target, source = np.ix_(known, columns), np.ix_(position[known], columns - first)
    for band, part in zip(bands, (forecast.yhat, forecast.lower, forecast.upper), strict=True):
        band[target] = part[source]
    limits = forecast.limits
    if limits is None:
        return bands, None
    if limits.move.shape[1] == 1:
        # Where a series has no forecast these are those of another, and of no use.
        return bands, limits.rows(position)
    out = Limits(*(np.full((*shape, n_series, grid.n), np.nan) for shape in ((len(CHANNELS),), (len(CHANNELS),), ())))
    out.move[target] = limits.move[source]
    for whole, part in ((out.usual, limits.usual), (out.limit, limits.limit)):
        for to, of in zip(whole, part, strict=True):
            to[target] = of[source]
    return bands, out


def _first_unscored(grid: Grid, written: Sequence[Labels], scored: Panel | None) -> npt.NDArray[np.intp]:
    """The column from which each series is to be scored: the one past its newest stored score."""
    if scored is None:
        return np.zeros(len(written), dtype=np.intp)
    newest = np.append(_newest(scored.y) - scored.grid.index(grid.start), -1)
    return np.asarray(np.maximum(0, newest[_positions(written, scored.labels)] + 1))


def _kept_before(written: Sequence[Labels], grid: Grid, kept: Evidence | None, ignored: tuple[str, ...]) -> Evidence:
    """What was kept of these series, from as long before the grid as it is remembered to the grid's end."""
    before = remembered(grid.step)
    wide = Grid(grid.start - before * grid.step, grid.step, grid.n + before)
    out = Evidence(
        tuple(written),
        wide,
        np.full((len(KEPT), len(written), wide.n), np.nan),
        np.full((len(written), wide.n), np.nan),
    )
    if kept is None:
        return out
    position = _positions(written, _keys(kept.labels, ignored))
    known = position >= 0
    first = wide.index(kept.grid.start)
    columns = np.arange(max(0, first), min(wide.n, first + kept.grid.n))
    target, source = np.ix_(known, columns), np.ix_(position[known], columns - first)
    out.incident[target] = kept.incident[source]
    for to, of in zip(out.values, kept.values, strict=True):
        to[target] = of[source]
    return out


def _kept_after(kept: Evidence, at: datetime | None) -> Evidence:
    if at is None or at < kept.grid.start:
        return kept
    old = kept.grid.epoch_ms() <= milliseconds(at - EPOCH)
    return replace(kept, values=np.where(old, np.nan, kept.values), incident=np.where(old, np.nan, kept.incident))


def _scored_from(these: _Candidates) -> list[tuple[npt.NDArray[np.intp], scoring.Scored]]:
    """Each series from its column `first` on: those that begin together at once, with their (rising) rows.

    None where all is scored.
    """
    grid, step, kept, detect = these.grid, these.grid.step, these.kept, these.mission.detect
    before = np.concatenate([these.last[:, None], these.y], axis=1)
    if detect.missing == "zero":
        # A value that was not there counted as 0.
        before = np.nan_to_num(before)
    found = []
    for begin in np.unique(these.first[these.first < grid.n]).tolist():
        rows, part = np.flatnonzero(these.first == begin), slice(begin, None)
        known = slice(0, remembered(step) + begin)
        memory = Memory.of(
            kept.values[:, rows, known],
            kept.incident[rows, known],
            round_significant(before[rows, begin]),
            step=step,
        )
        yhat, lower, upper = these.bands[:, rows, part]
        scored = scoring.score(
            *([these.labels[i] for i in rows.tolist()], grid[part], these.y[rows, part], (yhat, lower, upper)),
            detect,
            limits=these.limits.rows(rows).columns(part) if these.limits is not None else None,
            memory=memory,
        )
        found.append((rows, scored))
    return found


def _keys(written: tuple[Labels, ...], ignored: tuple[str, ...]) -> tuple[Labels, ...]:
    """What results are known by: their written labels, less those that a relay may have added."""
    return tuple(row.without(ignored) for row in written) if ignored else written


def _positions(written: Sequence[Labels], among: Sequence[Labels]) -> npt.NDArray[np.intp]:
    """Where each label set stands in `among`: int[S], −1 for one that is not there."""
    # Most times they are the same, which is told far sooner than each is looked up.
    if tuple(written) == tuple(among):
        return np.arange(len(written))
    rows = {row: i for i, row in enumerate(among)}
    return np.array([rows.get(row, -1) for row in written], dtype=np.intp)


def _with_vanished(
    mission: Mission, panel: Panel, last: Floats, written: tuple[Labels, ...], forecast: Forecast
) -> tuple[Panel, Floats]:
    """The panel, and values before it, with an empty row for each series that was forecast and is gone."""
    there = set(written)
    gone = [row for row in forecast.labels if row not in there]
    if not gone:
        return panel, last
    labels = [*panel.labels, *(source_labels(row, mission.labels) for row in gone)]
    wide = np.full((len(labels), panel.grid.n + 1), np.nan)
    wide[: len(last), 0], wide[: len(last), 1:] = last, panel.y
    grid = Grid(panel.grid.start - panel.grid.step, panel.grid.step, panel.grid.n + 1)
    whole = Panel.of(labels, grid, wide)
    return whole.columns(slice(1, None)), whole.y[:, 0]


def _detect_warnings(written: Sequence[Labels], forecast: Forecast | None) -> tuple[str, ...]:
    if forecast is None:
        return ("no forecast is stored for these times: a forecast run comes first",)
    if not written:
        return ("the query matches nothing now: its series are gone",)
    unknown = int((_positions(written, forecast.labels) < 0).sum())
    return (f"{unknown} of {len(written)} series have no forecast yet",) if unknown else ()


def write_forecasts(
    results: Sequence[ForecastResult], stores: Mapping[str, Store]
) -> tuple[list[ForecastResult], Written]:
    """Store the forecasts of a pass, mission by mission; a result whose write failed comes back with that error."""
    out, total = [], Written()
    for result in results:
        if result.forecast is not None and result.error is None:
            try:
                total += _store(stores, result.mission).write_forecasts([(result.mission, result.forecast)])
            except AnomalyTimesError as exc:
                result = replace(result, error=exc)
        out.append(result)
    return out, total


def write_scores(results: Sequence[DetectResult], stores: Mapping[str, Store]) -> tuple[list[DetectResult], Written]:
    """Store the scores of a pass, all missions of a source in one go; a failed write is the error of those it hit."""
    out, total = list(results), Written()
    by_source: dict[str, list[int]] = defaultdict(list)
    for position, result in enumerate(results):
        if result.scores is not None and result.error is None:
            by_source[result.mission.source].append(position)

    def write(positions: Sequence[int]) -> Written:
        pairs, stored = [], Written()
        try:
            store = _store(stores, results[positions[0]].mission)
            for i in positions:
                mission, scores = results[i].mission, results[i].scores
                if scores is not None and results[i].again:
                    scores, skipped = _not_stored(mission, scores, store)
                    stored += Written(skipped=skipped)
                if scores is not None:
                    pairs.append((mission, scores))
            return store.write_scores(pairs) + stored
        except MissionError as exc:
            # One mission's labels spoil the whole request: the others are sent without it.
            if len(positions) > 1:
                return sum((write([i]) for i in positions), Written())
            out[positions[0]] = replace(results[positions[0]], error=exc)
        except AnomalyTimesError as exc:
            for i in positions:
                out[i] = replace(results[i], error=exc)
        return Written()

    for positions in by_source.values():
        total += write(positions)
    return out, total


def _not_stored(mission: Mission, scores: Scores, store: Store) -> tuple[Scores, int]:
    """`scores` less the points that the store has a score for, and how many series that is."""
    stored = store.read_scores([mission], scores.grid).get(mission.name)
    if stored is None:
        return scores, 0
    rows = dict(zip(stored.labels, np.isfinite(stored.y), strict=True))
    nothing = np.zeros(scores.grid.n, dtype=np.bool_)
    keys = _keys(mission.written_labels(scores.labels), store.ignore_labels)
    known = np.array([rows.get(row, nothing) for row in keys]).reshape(scores.score.shape)
    known &= np.isfinite(scores.score)
    return scores.only(~known), int(known.any(axis=1).sum())


def _store(stores: Mapping[str, Store], mission: Mission) -> Store:
    try:
        return stores[mission.source]
    except KeyError:
        raise MissionError(
            f"mission {mission.name} names the source {mission.source!r}, which is not open",
            hint="name a source from the settings",
        ) from None


def _as_error(exc: Exception, mission: Mission) -> AnomalyTimesError:
    if isinstance(exc, AnomalyTimesError):
        return exc
    error = AnomalyTimesError(
        f"mission {mission.name} met a bug of ours: {type(exc).__name__}: {exc}",
        hint="run it with --debug and report it",
    )
    error.__cause__ = exc
    return error


def _collect(results: Iterable[R], on_done: Callable[[R], None] | None) -> list[R]:
    out = []
    for result in results:
        out.append(result)
        if on_done is not None:
            on_done(result)
    return out
