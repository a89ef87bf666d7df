"""Passes on this machine: threads read and write, processes compute."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from anomaly_times.bounds import BlockMapper
from anomaly_times.conventions import Kind
from anomaly_times.engine.job import Job, Ran, ordered, refused
from anomaly_times.engine.processes import Processes, default_processes
from anomaly_times.mission import Mission
from anomaly_times.monitoring import About, Effort, Result, efforts, tell
from anomaly_times.outcome import outcome_of
from anomaly_times.passes import ForecastResult, Mapper, detect_pass, forecast_pass, write_forecasts, write_scores
from anomaly_times.stores import Store, Written
from anomaly_times.stores.history import Histories
from anomaly_times.stores.metered import metered

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


def default_jobs() -> int:
    """How many missions run at once in this process where nothing is said: reading waits, and models compute."""
    return min(8, os.cpu_count() or 1)


def run_pass(
    kind: Kind,
    missions: Sequence[Mission],
    stores: Mapping[str, Store],
    *,
    now: datetime,
    window: timedelta | None = None,
    since: Mapping[str, datetime] | None = None,
    mapper: Mapper = map,
    blocks: BlockMapper = map,
    histories: Histories | None = None,
    write: bool = True,
    about: About | None = None,
    on_done: Callable[[Result], None] | None = None,
) -> tuple[list[Result], Written | None]:
    """Forecast or score missions in this process, and store the results; answers them with what was written.

    Forecasts are stored one by one as they come, so that an interruption costs only those in work; scores together.

    Args:
        kind: what to do.
        missions: any number.
        stores: by the source that missions name.
        now: with a time zone.
        window: as for `detect_pass`.
        since: as for `detect_pass` and `forecast_pass`.
        mapper: runs the missions; one that ends early leaves missions out.
        blocks: as for `forecast_pass`.
        histories: as for `forecast_pass`.
        write: else nothing is stored, and `None` takes the place of what was written.
        about: what the figures carry that the pass stores about itself; without, or where nothing is stored, none are.
        on_done: told each result as it comes.
    """
    job = Job(kind, missions, now, window=window, since=since or {}, write=write, about=about)
    done = do_here(job, stores, mapper=mapper, blocks=blocks, histories=histories, on_done=on_done or (lambda _: None))
    for untold in done.untold:
        logger.warning("%s", untold)
    return done.results, done.written if write else None


@dataclass(frozen=True)
class Done:
    """What came of a job in this process: results in no order, and by source what it cost."""

    results: list[Result]
    written: Written
    untold: list[str]
    efforts: Mapping[str, Effort]


def do_here(
    job: Job,
    stores: Mapping[str, Store],
    *,
    mapper: Mapper,
    blocks: BlockMapper = map,
    histories: Histories | None = None,
    on_done: Callable[[Result], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
    share: bool = False,
) -> Done:
    """The job in this process; `share` says that it is a part of a pass, of which another tells as a whole."""
    began, used = time.monotonic(), metered(stores)
    results: list[Result] = []
    total = Written()

    def store(result: ForecastResult) -> None:
        nonlocal total
        if job.write:
            check()
            (result,), written = write_forecasts([result], used)
            total += written
        results.append(result)
        on_done(result)

    able = [mission for mission in job.missions if mission.name not in job.refused]
    if job.kind == "forecast":
        judged = job.write and job.about is not None
        forecast_pass(
            able,
            used,
            now=job.now,
            mapper=mapper,
            blocks=blocks,
            histories=histories,
            judged=judged,
            since=job.since,
            on_done=store,
        )
    else:
        found = detect_pass(able, used, now=job.now, window=job.window, since=job.since, mapper=mapper, on_done=on_done)
        if job.write:
            check()
            found, total = write_scores(found, used)
        results += found
    results += refused(job)
    untold = []
    if job.write and job.about is not None:
        seconds = None if share else time.monotonic() - began
        untold = tell(
            *(job.kind, results, used),
            about=job.about,
            now=job.now,
            seconds=seconds,
            resting=job.resting,
            unreadable=job.unreadable,
        )
    return Done(results, total, untold, efforts(results, used, now=job.now))


@dataclass(frozen=True)
class Local:
    """The engine of this machine: `jobs` missions at once, and as many processes that compute as processors allow."""

    jobs: int
    histories: Histories | None = None

    def run(
        self,
        job: Job,
        stores: Mapping[str, Store],
        *,
        on_done: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> Ran:
        """As `Engine.run` says."""
        pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="mission")

        def mapper(function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]:
            def unless_stopped(item: T) -> R:
                check()
                return function(item)

            return pool.map(unless_stopped, items)

        processes = Processes(min(self.jobs, default_processes()))
        try:
            done = do_here(
                job,
                stores,
                mapper=mapper,
                blocks=processes.map,
                histories=self.histories,
                on_done=lambda _: on_done(),
                check=check,
            )
        finally:
            processes.close()
            # What has not begun when one raises never does.
            pool.shutdown(cancel_futures=True)
        outcomes = [outcome_of(result) for result in done.results]
        return Ran(ordered(job, outcomes), done.written if job.write else None, done.untold)
