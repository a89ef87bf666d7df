"""Passes run over a stretch of the past, time after time, as they would have run then."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from anomaly_times.durations import format_duration
from anomaly_times.errors import AnomalyTimesError, MissionError
from anomaly_times.evidence import remembered
from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Scores
from anomaly_times.passes import detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.settings import Source
from anomaly_times.stores import Store
from anomaly_times.stores.parquet import FolderStore

__all__ = ["Replay", "replay", "replay_folder"]

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
    kept: dict[str, Evidence] = {}
    errors: dict[str, AnomalyTimesError] = {}
    unforecast = 0
    for at in times:
        forecasts = forecast_pass(missions, stores, now=at)
        if write:
            forecasts, _ = write_forecasts(forecasts, stores)
        errors |= {result.mission.name: result.error for result in forecasts if result.error is not None}
        made = {result.mission.name: result.forecast for result in forecasts if result.forecast is not None}
        alive = [mission for mission in missions if mission.name in made]
        if write:
            scored, _ = write_scores(detect_pass(alive, stores, now=at + every, window=every), stores)
        else:
            scored = detect_pass(alive, stores, now=at + every, window=every, forecasts=made, kept=kept)
        errors |= {result.mission.name: result.error for result in scored if result.error is not None}
        for result in scored:
            unforecast += result.unforecast
            if result.scores is not None:
                found[result.mission.name].append(result.scores)
                if not write:
                    kept[result.mission.name] = kept_of(result.mission, found[result.mission.name])
        on_done()
    return Replay({name: Scores.joined(parts) for name, parts in found.items() if parts}, errors, unforecast)


def replay_folder(
    missions: Sequence[Mission],
    folder: Path,
    times: Sequence[datetime],
    *,
    every: timedelta,
    workers: int | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> Replay:
    """`replay` through a folder's store, spread over processes: missions do not depend on each other.

    Args:
        missions: as for `replay`; the folder is their only source.
        folder: of metrics; gets forecasts and scores.
        times: as for `replay`.
        every: as for `replay`.
        workers: processes; as many as there are processors by default.
        on_done: called with the number of (mission, time) pairs that were just done.
    """
    pieces = [times[i : i + _PIECE] for i in range(0, len(times), _PIECE)]
    workers = min(workers or len(os.sched_getaffinity(0)), len(missions))
    parts = []
    if workers == 1:
        for mission, some in itertools.product(missions, pieces):
            parts.append(_replay_piece(mission, folder, some, every))
            on_done(len(some))
    else:
        # A forked child would inherit the locks of polars' threads, and hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_ctrl_c_to_the_parent) as pool:
            # Each piece of a mission goes on from what the one before it left in the folder.
            running = {
                pool.submit(_replay_piece, mission, folder, pieces[0], every): (mission, 0) for mission in missions
            }
            try:
                while running:
                    done = next(as_completed(running))
                    mission, i = running.pop(done)
                    parts.append(done.result())
                    on_done(len(pieces[i]))
                    if i + 1 < len(pieces):
                        after = pool.submit(_replay_piece, mission, folder, pieces[i + 1], every)
                        running[after] = mission, i + 1
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
    return Replay({name: Scores.joined(of_one) for name, of_one in scores.items()}, errors, unforecast)


def kept_of(mission: Mission, parts: Sequence[Scores]) -> Evidence:
    """What was kept beside the newest of the scores of a mission, as `detect_pass` takes it.

    Args:
        mission: whose they are.
        parts: at least one, by rising time, `reason` and the like among them.
    """
    step = mission.step
    oldest = parts[-1].grid.end - remembered(step) * step
    newest = Scores.joined([part for part in parts if part.grid.end > oldest])
    if newest.evidence is None or newest.incident is None:
        raise ValueError("these scores came without what is kept beside them")
    return Evidence(mission.written_labels(newest.labels), newest.grid, newest.evidence, newest.incident)


def _replay_piece(mission: Mission, folder: Path, times: Sequence[datetime], every: timedelta) -> Replay:
    return replay([mission], {mission.source: _store(folder)}, times, every=every, write=True)


@cache
def _store(folder: Path) -> FolderStore:
    """One store a process and folder: it parses the folder's files once."""
    return FolderStore(Source(folder=folder))


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
