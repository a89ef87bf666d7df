"""Passes run over a stretch of the past, time after time, as they would have run then."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np

from anomaly_times.durations import format_duration
from anomaly_times.errors import AnomalyTimesError, MissionError
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Scores
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores import Store
from anomaly_times.stores.parquet import FolderStore

__all__ = ["Replay", "join_scores", "replay", "replay_folder"]

_PIECE = 24
"""Times of one mission that a process works through at once: enough for it to pay, few enough for a bar to move."""


@dataclass(frozen=True, eq=False)
class Replay:
    """What a replay found: for each mission (by name) its scores over the whole stretch, or why there are none.

    `unforecast` counts the points of all missions that have no forecast, and so no score.
    """

    scores: Mapping[str, Scores]
    errors: Mapping[str, AnomalyTimesError]
    unforecast: int = 0


def replay(
    missions: Sequence[Mission],
    stores: Mapping[str, Store],
    times: Sequence[datetime],
    *,
    every: timedelta,
    write: bool,
    on_done: Callable[[], None] = lambda: None,
) -> Replay:
    """Forecast at each of `times`, and score the `every` that follows against that forecast.

    Nothing looks ahead: a forecast knows what was complete at its time.

    Args:
        missions: with horizons that cover `every`.
        stores: by the source that missions name.
        times: rising, `every` apart.
        every: the cadence of forecasts.
        write: through the stores, as live passes do; else in memory, and nothing is written.
        on_done: called after each time.

    Raises:
        MissionError: a horizon ends before the next forecast, so that points between would have no score.
    """
    for mission in missions:
        if mission.h * mission.step < every:
            raise MissionError(
                f"mission {mission.name} forecasts {format_duration(mission.h * mission.step)} ahead, "
                f"and is forecast every {format_duration(every)} only",
                hint=f"set `horizon` to {format_duration(every)} or more",
            )
    found: dict[str, list[Scores]] = {mission.name: [] for mission in missions}
    errors: dict[str, AnomalyTimesError] = {}
    unforecast = 0
    for at in times:
        forecasts = forecast_pass(missions, stores, now=at)
        if write:
            forecasts, _ = write_forecasts(forecasts, stores)
        errors |= {result.mission.name: result.error for result in forecasts if result.error is not None}
        made = {result.mission.name: result.forecast for result in forecasts if result.forecast is not None}
        alive = [mission for mission in missions if mission.name in made]
        scored = detect_pass(alive, stores, now=at + every, window=every, forecasts=None if write else made)
        if write:
            scored, _ = write_scores(scored, stores)
        errors |= {result.mission.name: result.error for result in scored if result.error is not None}
        for result in scored:
            unforecast += result.unforecast
            if result.scores is not None:
                found[result.mission.name].append(result.scores)
        on_done()
    return Replay({name: join_scores(parts) for name, parts in found.items() if parts}, errors, unforecast)


def replay_folder(
    missions: Sequence[Mission],
    folder: Path,
    times: Sequence[datetime],
    *,
    every: timedelta,
    workers: int | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> Replay:
    """`replay` through a folder's store, spread over processes: missions and days do not depend on each other.

    Args:
        missions: as for `replay`; the folder is their only source.
        folder: of metrics; gets forecasts and scores.
        times: as for `replay`.
        every: as for `replay`.
        workers: processes; as many as there are processors by default.
        on_done: called with the number of (mission, time) pairs that were just done.
    """
    pieces = [(mission, times[i : i + _PIECE]) for i in range(0, len(times), _PIECE) for mission in missions]
    workers = min(workers or len(os.sched_getaffinity(0)), len(pieces))
    parts = []
    if workers == 1:
        for mission, some in pieces:
            parts.append(_replay_piece(mission, folder, some, every))
            on_done(len(some))
    else:
        # A forked child would inherit the locks of polars' threads, and hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_ctrl_c_to_the_parent) as pool:
            running = {pool.submit(_replay_piece, mission, folder, some, every): some for mission, some in pieces}
            try:
                for done in as_completed(running):
                    parts.append(done.result())
                    on_done(len(running[done]))
            except BaseException:
                # Files appear whole or not at all, so a child may end anywhere.
                for child in multiprocessing.active_children():
                    child.terminate()
                pool.shutdown(cancel_futures=True)
                raise
    scores: dict[str, list[Scores]] = {}
    errors: dict[str, AnomalyTimesError] = {}
    for part in parts:
        errors |= part.errors
        for name, piece in part.scores.items():
            scores.setdefault(name, []).append(piece)
    unforecast = sum(part.unforecast for part in parts)
    return Replay({name: join_scores(of_one) for name, of_one in scores.items()}, errors, unforecast)


def _replay_piece(mission: Mission, folder: Path, times: Sequence[datetime], every: timedelta) -> Replay:
    return replay([mission], {mission.source: _store(folder)}, times, every=every, write=True)


@cache
def _store(folder: Path) -> FolderStore:
    """One store a process and folder: it parses the folder's files once."""
    return FolderStore(Source(folder=folder))


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def join_scores(parts: Sequence[Scores]) -> Scores:
    """Scores of one mission over several stretches of time as one; NaN where a part lacks a series or a time.

    Args:
        parts: at least one, all of one step.
    """
    labels: tuple[Labels, ...] = tuple(sorted({row for part in parts for row in part.labels}))
    position = {row: i for i, row in enumerate(labels)}
    first, last = min(part.grid.start for part in parts), max(part.grid.end for part in parts)
    grid = Grid.covering(first, last, parts[0].grid.step)
    joined = np.full((5, len(labels), grid.n), np.nan)
    for part in parts:
        rows = [position[row] for row in part.labels]
        column = grid.index(part.grid.start)
        for whole, piece in zip(joined, (part.y, part.yhat, part.lower, part.upper, part.score), strict=True):
            whole[rows, column : column + part.grid.n] = piece
    return Scores(labels, grid, *joined)
