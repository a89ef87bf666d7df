"""Missions run over the past, in memory: every forecast and every score as it would have been then.

`forecast_pass` and `detect_pass` do the work, so nothing here decides what a forecast or a score is. A forecast is made
at each of its mission's times from what was complete then, and a point is scored against the newest forecast whose
cutoff lies before it. What detection remembers is handed on, and scores do not depend on how points are cut into
passes, so a stretch of points is scored at once.

The values are read once. Forecasts do not depend on each other and are spread over processes by time, which gives every
model the whole panel, as it has live.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from statistics import median_low
from types import TracebackType
from typing import Self
from zoneinfo import ZoneInfo

import numpy as np
from cronsim import CronSim

from anomaly_times.backtest.yardsticks import YARDSTICKS
from anomaly_times.bounds import Tunings, tuned_at
from anomaly_times.cron import longest_pause
from anomaly_times.durations import EPOCH, iso_utc
from anomaly_times.errors import AnomalyTimesError, NoSeriesError, QueryError, StoreError
from anomaly_times.evidence import CHANNELS, remembered
from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Forecast, Grid, Labels, Limits, Panel, Scores
from anomaly_times.passes import ForecastResult, detect_pass, forecast_pass
from anomaly_times.stores import Gauge, Store, Written

__all__ = ["Job", "Recording", "Replayed", "forecast_times", "freshest", "record", "replay"]

_PIECE, _FEWEST = 24, 8
"""Forecasts that a process makes at once: enough for it to pay, few enough for a bar to move. And so many pay for a
process of their own."""
_SOME_PASSES = 3
_NUMBER = re.compile(r"\d[\d,.]*")
_STRETCH = 2_000_000
"""Points of a stretch that is scored at once."""


@dataclass(frozen=True, eq=False)
class Recording:
    """A store of one query's values over a stretch of time, kept in memory; it holds no results and takes none.

    Answers `read` for any grid of the panel's step, as the store that it was read from would: `name`, `max_series` and
    `ignore_labels` are that store's and that mission's.
    """

    panel: Panel
    name: str = "memory"
    ignore_labels: tuple[str, ...] = ()

    def part(self, start: datetime, end: datetime) -> Recording:
        """What lies in [`start`, `end`]; a view."""
        grid = self.panel.grid
        first, stop = max(0, grid.index(start)), max(0, grid.index(end) + 1)
        return replace(self, panel=self.panel.columns(slice(first, stop)))

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """The series with a value at a time of `grid`; see `Store.read`."""
        have = self.panel.grid
        if grid.step != have.step:
            raise ValueError(f"{have} was recorded, and {grid} is asked for")
        y = np.full((self.panel.n_series, grid.n), np.nan)
        first = have.index(grid.start)
        columns = np.arange(max(0, -first), min(grid.n, have.n - first))
        y[:, columns] = self.panel.y[:, columns + first]
        alive = np.isfinite(y).any(axis=1)
        if not alive.any():
            raise NoSeriesError(
                f"{promql[:200]} has no value in {self.name} from {iso_utc(grid.start)} to {iso_utc(grid.end)}",
                hint="is the exporter down, or is the window in a time without data?",
            )
        if alive.sum() > max_series:
            raise QueryError(
                f"{promql[:200]} matches {alive.sum():,} series in {self.name}, and {max_series:,} are allowed",
                hint="narrow it by labels, or raise max_series",
            )
        return Panel(self.panel.labels, grid, y).rows(alive)

    def read_forecasts(
        self, missions: Sequence[Mission], grid: Grid, *, since: Mapping[str, datetime] | None = None
    ) -> Mapping[str, Forecast]:
        """None are kept."""
        return {}

    def read_scores(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Panel]:
        """None are kept."""
        return {}

    def read_evidence(self, missions: Sequence[Mission], grid: Grid) -> Mapping[str, Evidence]:
        """None is kept."""
        return {}

    def write_forecasts(self, forecasts: Sequence[tuple[Mission, Forecast]]) -> Written:
        """Refused: a recording is read only.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"a recording of {self.name} takes no forecasts", hint="write them into the store itself")

    def write_scores(self, scores: Sequence[tuple[Mission, Scores]]) -> Written:
        """Refused: a recording is read only.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"a recording of {self.name} takes no scores", hint="write them into the store itself")

    def write_gauges(self, gauges: Sequence[Gauge], *, at: datetime) -> None:
        """Nothing: passes over the past tell nothing about themselves."""

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def record(missions: Sequence[Mission], store: Store, grid: Grid) -> Recording:
    """What the passes of missions read while they score the points of `grid`: one query.

    Over a long time more series come and go than at any one time: four times `max_series` are taken.

    Args:
        missions: at least one; alike in query, source and step.
        store: their source.
        grid: of that step.

    Raises:
        AnomalyTimesError: as `Store.read` does.
    """
    first = min(each.history_grid(forecast_times(each, grid)[0]).start for each in missions)
    # Accuracy is told by the value of a day before, and evidence by that of a step before.
    start = min(first, grid.start - timedelta(days=1) - grid.step)
    whole = Grid.covering(start, grid.end, grid.step)
    panel = store.read(missions[0].promql, whole, max_series=4 * max(each.max_series for each in missions))
    return Recording(panel, store.name, store.ignore_labels)


def forecast_times(mission: Mission, grid: Grid) -> list[datetime]:
    """When the forecasts are made that the points of `grid` are held against; rising.

    As soon as the values of their slot are complete, which is `offset` after it. The slots are those of
    `forecast.cron`, or multiples of `forecast.every` since the epoch (live they lie some minutes later, as their pack
    says).
    """
    if mission.forecast.cron:
        slots = list(_cron_slots(mission, grid))
    else:
        every = mission.forecast.every
        first = grid.start - timedelta(milliseconds=1)
        first -= (first - EPOCH) % every
        slots = [first + i * every for i in range(max(0, math.ceil((grid.end - first) / every)))]
    return [slot + mission.offset for slot in slots]


def _cron_slots(mission: Mission, grid: Grid) -> Iterator[datetime]:
    """The slots of the mission's cron line from the last one before the grid to the last one before its end."""
    cron = mission.forecast.cron or ""
    before = None
    start = grid.start - longest_pause(cron) - timedelta(days=1)
    for local in CronSim(cron, start.astimezone(ZoneInfo(mission.timezone))):
        slot = local.astimezone(EPOCH.tzinfo)
        if slot >= grid.end:
            break
        if slot >= grid.start and before is not None:
            yield before
        before = slot
    if before is not None:
        yield before


@dataclass(frozen=True, eq=False)
class Job:
    """A mission to replay over the points of `grid`, from a recording that reaches as far back as it needs.

    With a `yardstick` (a name of `YARDSTICKS`) that takes the model's place, once a day.
    """

    mission: Mission
    recording: Recording
    grid: Grid
    yardstick: str = ""

    def times(self) -> list[datetime]:
        """When forecasts are made."""
        times = forecast_times(self.mission, self.grid)
        if not self.yardstick:
            return times
        daily = max(1, timedelta(days=1) // self.mission.forecast.period)
        return times[::daily]


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a replay made of a job.

    `scores` are those of all points of its grid, without evidence; `None` where there are none, and then `error` says
    why. `warnings` are those of forecasts, each in its newest form. `failed` counts forecasts by what prevented them,
    `gates` and `unforecast` count points as in `DetectResult`, `cpu_forecast` is the CPU time of one forecast pass,
    which tunes its bounds anew as live ones do, and `cpu_detect` that of one detection pass, in seconds, without what
    reading and writing take.
    """

    job: Job
    scores: Scores | None = None
    error: AnomalyTimesError | None = None
    forecasts: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    gates: Mapping[str, int] = field(default_factory=dict)
    unforecast: int = 0
    cpu_forecast: float = 0.0
    cpu_detect: float = 0.0


def replay(
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    on_done: Callable[[int], None] = lambda _: None,
    on_forecast: Callable[[Mission, Forecast], object] = lambda _mission, _made: None,
    on_scores: Callable[[Mission, Scores], object] = lambda _mission, _found: None,
) -> list[Replayed]:
    """Forecast and score each job's mission over its grid; nothing is read and nothing written.

    Args:
        jobs: any number; they do not depend on each other.
        workers: processes; as many as there are processors by default, and none besides this one for 1.
        on_done: told how many forecasts were just made.
        on_forecast: told each forecast of a mission in order of time.
        on_scores: told the scores of each stretch likewise, with all that is kept beside them, after the forecasts
            that they were made of.
    """
    forecasts = sum(len(job.times()) for job in jobs)
    workers = max(1, min(workers or len(os.sched_getaffinity(0)), forecasts // _FEWEST))
    # At the end no process should wait long for the others.
    size = max(1, min(_PIECE, forecasts // (4 * workers)))
    states = [_State(job, size, on_forecast, on_scores) for job in jobs]
    pieces = [(i, k) for i, state in enumerate(states) for k in range(len(state.pieces))]

    def take(i: int, k: int, found: Sequence[ForecastResult], cpu: float) -> None:
        on_done(len(found))
        states[i].take(k, found, cpu)

    if workers == 1:
        for i, k in pieces:
            take(i, k, *_forecast_piece(*states[i].task(k)))
    else:
        # A forked child would inherit the locks of polars' threads, and hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_ctrl_c_to_the_parent) as pool:
            running: dict[Future[tuple[list[ForecastResult], float]], tuple[int, int]] = {}
            waiting = iter(pieces)
            try:
                while True:
                    # A few ahead of the processes: what waits in line is a copy of its values.
                    while len(running) < 2 * workers and (piece := next(waiting, None)) is not None:
                        running[pool.submit(_forecast_piece, *states[piece[0]].task(piece[1]))] = piece
                    if not running:
                        break
                    done = next(as_completed(running))
                    take(*running.pop(done), *done.result())
            except BaseException:
                # Nothing is written, so a child may end anywhere.
                for child in multiprocessing.active_children():
                    child.terminate()
                pool.shutdown(cancel_futures=True)
                raise
    return [state.replayed() for state in states]


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _forecast_piece(
    mission: Mission, recording: Recording, times: Sequence[datetime], yardstick: str
) -> tuple[list[ForecastResult], float]:
    """The forecasts made at `times`, and the CPU-seconds of the dearest, which is tuned anew as live ones are."""
    tunings, stores = Tunings(), {mission.source: recording}
    found: list[ForecastResult] = []
    dearest = 0.0
    for now in times:
        began = time.process_time()
        if yardstick:
            found.append(YARDSTICKS[yardstick].forecast(mission, recording, now=now))
        else:
            found += forecast_pass([mission], stores, now=now, tunings=tunings)
        dearest = max(dearest, time.process_time() - began)
    return found, dearest


class _State:
    """A job in work: pieces of forecasts that come in any order, and stretches scored in order of time."""

    def __init__(
        self,
        job: Job,
        size: int,
        on_forecast: Callable[[Mission, Forecast], object],
        on_scores: Callable[[Mission, Scores], object],
    ) -> None:
        self.job = job
        self._on_forecast, self._on_scores = on_forecast, on_scores
        self.times = job.times()
        self.pieces = list(_pieces(job.mission, self.times, size))
        # In a day there are more series than a pass sees at any one time.
        self._scoring = job.mission.model_copy(update={"max_series": max(1, job.recording.panel.n_series)})
        self._waiting: dict[int, Sequence[ForecastResult]] = {}
        self._next = 0
        self._scored = 0
        self._pending: list[Forecast] = []
        self._tail: list[Scores] = []
        self._parts: list[Scores] = []
        self._failed: dict[str, int] = {}
        self._first_error: AnomalyTimesError | None = None
        self._broke: AnomalyTimesError | None = None
        self._warnings: dict[str, str] = {}
        self._gates: dict[str, int] = {}
        self._unforecast = 0
        self._made = 0
        self._cpu: list[float] = []

    def task(self, k: int) -> tuple[Mission, Recording, Sequence[datetime], str]:
        """What a process is given for the `k`-th piece: no more of the values than its forecasts read."""
        mission, times = self.job.mission, self.times[self.pieces[k]]
        start = mission.history_grid(times[0]).start
        part = self.job.recording.part(start, mission.last_time(times[-1]))
        return mission, part, times, self.job.yardstick

    def take(self, k: int, found: Sequence[ForecastResult], cpu: float) -> None:
        """Score what the forecasts of the `k`-th piece serve, once all before it are there; `cpu` is of one of them."""
        self._cpu.append(cpu)
        self._waiting[k] = found
        while self._next in self._waiting:
            results = self._waiting.pop(self._next)
            self._next += 1
            self._score(results)

    def _score(self, results: Sequence[ForecastResult]) -> None:
        for result in results:
            if result.forecast is not None:
                self._made += 1
                self._pending.append(result.forecast)
                self._on_forecast(self.job.mission, result.forecast)
            for warning in result.warnings:
                # Of those that differ in numbers alone, the newest.
                self._warnings[_NUMBER.sub("#", warning)] = warning
            if result.error is not None:
                self._first_error = self._first_error or result.error
                self._failed[result.error.message] = self._failed.get(result.error.message, 0) + 1
        grid, mission = self.job.grid, self.job.mission
        stop = grid.n
        if self._next < len(self.pieces):
            # The next piece's first forecast serves what lies past its cutoff.
            following = self.times[self.pieces[self._next]][0]
            stop = min(grid.n, grid.index(mission.last_time(following)) + 1)
        most = max(1, _STRETCH // max(1, self.job.recording.panel.n_series))
        while self._scored < stop:
            until = min(stop, self._scored + most)
            self._score_stretch(grid[self._scored : until])
            self._scored = until

    def _score_stretch(self, grid: Grid) -> None:
        mission = self._scoring
        serving = [each for each in self._pending if each.grid.start <= grid.end and each.grid.end >= grid.start]
        forecasts = {mission.name: freshest(serving, grid)} if serving else {}
        kept = {mission.name: _kept_of(mission, self._tail)} if self._tail else {}
        [found] = detect_pass(
            [mission],
            {mission.source: self.job.recording},
            now=grid.end + mission.offset,
            window=grid.n * grid.step,
            forecasts=forecasts,
            kept=kept,
        )
        self._pending = [each for each in self._pending if each.grid.end > grid.end or each is self._pending[-1]]
        self._unforecast += found.unforecast
        for gate, count in found.gates.items():
            self._gates[gate] = self._gates.get(gate, 0) + count
        if found.error is not None and not isinstance(found.error, NoSeriesError):
            self._broke = self._broke or found.error
        # Where no series has a value there is nothing to keep, and nothing kept beside it.
        if found.scores is not None and found.scores.labels:
            oldest = found.scores.grid.end - remembered(grid.step) * grid.step
            self._on_scores(self.job.mission, found.scores)
            self._tail = [part for part in (*self._tail, found.scores) if part.grid.end > oldest]
            self._parts.append(replace(found.scores, evidence=None, incident=None))

    def replayed(self) -> Replayed:
        scores = Scores.joined(self._parts) if self._parts else None
        if scores is not None:
            scores = _over(scores, self.job.grid)
        error = self._broke or (self._first_error if not self._made else None)
        if scores is None and error is None:
            name = self.job.recording.name
            error = NoSeriesError(
                f"{self.job.mission.promql[:200]} has no value in {name} from {iso_utc(self.job.grid.start)} to "
                f"{iso_utc(self.job.grid.end)}",
                hint="name a window with data by --from and --to",
            )
        return Replayed(
            self.job,
            scores if error is None else None,
            error,
            forecasts=self._made,
            failed=self._failed,
            warnings=tuple(self._warnings.values()),
            gates=self._gates,
            unforecast=self._unforecast,
            # In some pieces a process loads its libraries.
            cpu_forecast=median_low(self._cpu) if self._cpu else 0.0,
            cpu_detect=self._cpu_of_a_pass() if scores is not None else 0.0,
        )

    def _cpu_of_a_pass(self) -> float:
        """The CPU-seconds of a detection pass as it is live, of the last points."""
        mission, grid = self._scoring, self.job.grid
        n = min(grid.n, max(1, mission.detect.period // grid.step))
        last = grid[grid.n - n :]
        forecasts = {mission.name: freshest(self._pending, last)} if self._pending else {}
        kept = {mission.name: _kept_of(mission, self._tail)} if self._tail else {}
        began = time.process_time()
        for _ in range(_SOME_PASSES):
            detect_pass(
                [mission],
                {mission.source: self.job.recording},
                now=last.end + mission.offset,
                window=n * grid.step,
                forecasts=forecasts,
                kept=kept,
            )
        return (time.process_time() - began) / _SOME_PASSES


def _pieces(mission: Mission, times: Sequence[datetime], size: int) -> Iterator[slice]:
    """Forecasts at `times` in pieces of about `size`, cut where they share no tuning if that is near."""
    tuned = [tuned_at(mission.last_time(now)) for now in times]
    first = 0
    for i in range(1, len(times) + 1):
        ends = i == len(times) or tuned[i] != tuned[i - 1]
        if (ends and i - first >= size / 2) or i - first >= 2 * size or i == len(times):
            yield slice(first, i)
            first = i


def _over(scores: Scores, grid: Grid) -> Scores:
    """The scores at all times of `grid`, which holds theirs; NaN where there are none."""
    if scores.grid == grid:
        return scores
    first = grid.index(scores.grid.start)
    columns = slice(first, first + scores.grid.n)
    names = ("y", "yhat", "lower", "upper", "score", "reason")
    wide = {name: np.full((len(scores.labels), grid.n), np.nan) for name in names}
    for name, array in wide.items():
        part = getattr(scores, name)
        if part is not None:
            array[:, columns] = part
    return Scores(scores.labels, grid, **wide)


def _kept_of(mission: Mission, parts: Sequence[Scores]) -> Evidence:
    """What was kept beside the newest of the scores of a mission, as `detect_pass` takes it.

    Args:
        mission: whose they are.
        parts: at least one, by rising time, evidence and incidents among them; those of the last
            `remembered(step)` points.
    """
    newest = Scores.joined(parts)
    last = newest.columns(slice(max(0, newest.grid.n - remembered(mission.step)), None))
    if last.evidence is None or last.incident is None:
        raise ValueError("these scores came without what is kept beside them")
    return Evidence(mission.written_labels(last.labels), last.grid, last.evidence, last.incident)


def freshest(forecasts: Sequence[Forecast], grid: Grid) -> Forecast:
    """At each time of `grid` the newest forecast of each series that has one, as a store answers it.

    Args:
        forecasts: at least one, by rising cutoff, all with limits or none.
        grid: the times.

    Returns:
        All series of the forecasts, sorted; NaN where none has a forecast; limits by point.
    """
    labels: tuple[Labels, ...] = tuple(sorted({row for each in forecasts for row in each.labels}))
    position = {row: i for i, row in enumerate(labels)}
    shape = (len(labels), grid.n)
    bands = np.full((3, *shape), np.nan)
    limits: Limits | None = None
    if any(each.limits is not None for each in forecasts):
        several = (len(CHANNELS), *shape)
        limits = Limits(np.full(several, np.nan), np.full(several, np.nan), np.full(shape, np.nan))
    for each in forecasts:
        first = grid.index(each.grid.start)
        low, high = max(0, first), min(grid.n, first + each.grid.n)
        if low >= high:
            continue
        rows = np.array([position[row] for row in each.labels], dtype=np.intp)
        there = np.isfinite(each.yhat[:, low - first : high - first])
        for band, part in zip(bands, (each.yhat, each.lower, each.upper), strict=True):
            band[rows, low:high] = np.where(there, part[:, low - first : high - first], band[rows, low:high])
        if limits is not None and each.limits is not None:
            limits.move[rows, low:high] = np.where(there, each.limits.move, limits.move[rows, low:high])
            for whole, part in ((limits.usual, each.limits.usual), (limits.limit, each.limits.limit)):
                whole[:, rows, low:high] = np.where(there, part, whole[:, rows, low:high])
    yhat, lower, upper = bands
    return Forecast(labels, grid, None, yhat, lower, upper, limits=limits)
