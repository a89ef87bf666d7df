"""Missions kept going in one process, without Prefect: what `at run` does.

Missions of one kind and cadence run as one pass, at slots as on Prefect: `every` from the epoch plus a phase of its
own, `cron` in the mission's time zone. A pass that takes longer than its cadence skips slots, and works for the newest
one when it comes; it never overlaps itself.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar
from zoneinfo import ZoneInfo

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES
from apscheduler.executors.pool import ThreadPoolExecutor as JobThreads
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger
from cronsim import CronSim

from anomaly_times.conventions import BY_HAND, Kind, pack_slug
from anomaly_times.durations import EPOCH, format_duration
from anomaly_times.engine import Processes, default_processes, run_pass
from anomaly_times.errors import AnomalyTimesError, MissionError, UsageError
from anomaly_times.loading import DEFAULTS_FILE, mission_files
from anomaly_times.mission import Mission
from anomaly_times.monitoring import About, Result, tell_gone, tells_alike
from anomaly_times.passes import Mapper
from anomaly_times.plan import KINDS, first_cutoff, restart, timing_of
from anomaly_times.stores import Store, Written
from anomaly_times.stores.history import Histories

__all__ = [
    "Happening",
    "Missed",
    "Pack",
    "PassDone",
    "Refused",
    "Reloaded",
    "Result",
    "Runner",
    "keep_going",
    "packs_of",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
StoresOf: TypeAlias = Callable[[Sequence[Mission]], Mapping[str, Store]]

# Detections are short and many, forecasts long: neither may wait for the other.
_PASSES_AT_ONCE: Mapping[Kind, int] = {"forecast": 2, "detect": 8}


@dataclass(frozen=True)
class Pack:
    """Missions that are forecast or scored in one pass: alike in cadence, or a single isolated one.

    `slug` is its name, as on Prefect; `cadence` a duration, or a cron line, for people.
    """

    slug: str
    kind: Kind
    cadence: str
    missions: tuple[Mission, ...]

    def trigger(self) -> BaseTrigger:
        """When its passes run."""
        timing = timing_of(self.missions[0], self.kind, self.slug)
        if timing.every is None:
            return _CronTrigger(timing.cron, timing.timezone)
        return IntervalTrigger(seconds=timing.every.total_seconds(), start_date=EPOCH + timing.phase, timezone=UTC)


class _CronTrigger(BaseTrigger):  # type: ignore[misc]  # apscheduler has no types
    """The times of a cron line, read as missions are checked: APScheduler's own counts weekdays from Monday."""

    def __init__(self, cron: str, timezone: str) -> None:
        self._cron, self._zone = cron, ZoneInfo(timezone)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first time after the previous one, or after `now`."""
        return next(CronSim(self._cron, (previous_fire_time or now).astimezone(self._zone)), None)


def packs_of(missions: Iterable[Mission], *, project: str) -> dict[str, Pack]:
    """The forecast and detection packs of missions, by slug; each mission is in one of each kind."""
    groups: dict[tuple[str, Kind, str], list[Mission]] = {}
    for mission in missions:
        for kind in KINDS:
            part = mission.forecast if kind == "forecast" else mission.detect
            cadence = f"{part.cron} {mission.timezone}" if part.cron else format_duration(part.every)
            slug = pack_slug(project, kind, cadence, f"m-{mission.name}" if mission.isolated else "00")
            groups.setdefault((slug, kind, cadence), []).append(mission)
    return {slug: Pack(slug, kind, cadence, tuple(group)) for (slug, kind, cadence), group in groups.items()}


@dataclass(frozen=True, eq=False)
class PassDone:
    """A pass that ended; `first` where it was the first forecast of new and changed missions."""

    kind: Kind
    cadence: str
    now: datetime
    took: timedelta
    results: Sequence[Result]
    written: Written
    first: bool = False


@dataclass(frozen=True)
class Reloaded:
    """The missions that run from now on: how many, and the names of those that are new, changed or gone.

    `waits` says of those whose step became shorter when their forecasts restart: when those of the old step have ended.
    """

    count: int
    new: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    waits: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Mission files that were changed into something that cannot run; what ran goes on."""

    error: AnomalyTimesError


@dataclass(frozen=True)
class Missed:
    """A pass that could not run at its slot: it is still busy, or met a bug of ours."""

    slug: str
    reason: str


Happening: TypeAlias = PassDone | Reloaded | Refused | Missed


class Runner:
    """Runs passes in threads at their slots, between `with Runner(…) as runner:` and its end.

    Leaving the block begins no more missions, and waits for those in work to be computed and stored.

    Args:
        stores_of: the open stores of missions; they belong to the caller.
        tell: told what happens, from several threads.
        project: whose missions these are; a part of packs' names.
        jobs: missions at once in one pass.
        histories: of earlier passes, which need not be read again.
        clock: the time, with a zone; the `now` of every pass.
    """

    def __init__(
        self,
        stores_of: StoresOf,
        tell: Callable[[Happening], None],
        *,
        project: str = "default",
        jobs: int = 1,
        histories: Histories | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stores_of, self._tell, self._project, self._jobs, self._clock = stores_of, tell, project, jobs, clock
        self._processes = Processes(min(jobs, default_processes()))
        self._histories = histories
        self._missions: dict[str, Mission] = {}
        self._packs: dict[str, Pack] = {}
        self._stores: Mapping[str, Store] = {}
        self._since: Mapping[str, datetime] = {}
        self._ran: Mapping[str, Mission] = {}
        """All that ever ran, for what is gone may come back as something else."""
        self._due: Mapping[str, datetime] = {}
        """When the first forecast of a mission that is new or changed is due."""
        # A pass takes its time, its missions and their `since` in one moment: what it forecasts of a mission that is
        # changed meanwhile has a cutoff from before the change.
        self._swap = Lock()
        self._stopping = Event()
        # What it would log, it tells by events too.
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={kind: JobThreads(count) for kind, count in _PASSES_AT_ONCE.items()},
            # A late pass covers what earlier slots would have done, however late it is.
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        self._scheduler.add_listener(self._missed, EVENT_JOB_ERROR | EVENT_JOB_MAX_INSTANCES)

    def run(self, missions: Sequence[Mission]) -> None:
        """Run these missions from now on, in place of others; new ones are forecast at once.

        Changed ones are forecast as soon as there is a cutoff that counts.

        Raises:
            MissionError: a mission names a source that is not there; what ran goes on.
        """
        stores = self._stores_of(missions)
        packs = packs_of(missions, project=self._project)
        with self._swap:
            now = self._clock()
            # Those of missions that are gone stay: a pass that began with them may still be running.
            self._stores = {**self._stores, **stores}
            before, self._missions = self._missions, {mission.name: mission for mission in missions}
            old, self._packs = self._packs, packs
            restarted = {
                mission.name: since
                for mission in missions
                if (was := self._ran.get(mission.name))
                and (since := restart(was, mission, now=now, since=self._since.get(mission.name, EPOCH)))
            }
            self._since = {**self._since, **restarted}
            self._ran = {**self._ran, **self._missions}
        for slug in old.keys() - packs.keys():
            self._scheduler.remove_job(slug)
        for slug in packs.keys() - old.keys():
            pack = packs[slug]
            self._scheduler.add_job(self._pass, pack.trigger(), (slug,), id=slug, executor=pack.kind)
        new = tuple(name for name in self._missions if name not in before)
        changed = tuple(name for name, m in self._missions.items() if before.get(name, m) != m)
        gone = tuple(name for name in before if name not in self._missions)
        waits = {name: since for name, since in restarted.items() if since > now}
        self._tell(Reloaded(len(missions), new, changed, gone, waits))
        asked = datetime.now(UTC)
        due: dict[datetime, list[str]] = {}
        for name in (*new, *changed):
            wait = timedelta(0)
            if name in changed or self._since.get(name, EPOCH) >= now:
                # Not before there is a new cutoff: a forecast of the last one may be stored already, as it was.
                mission, since = self._missions[name], max(now, self._since.get(name, now))
                wait = first_cutoff(mission, since) + mission.offset - now
            due.setdefault(asked + wait, []).append(name)
        self._due = {**self._due, **{name: at for at, names in due.items() for name in names}}
        for at, names in due.items():
            self._scheduler.add_job(self._first, "date", (names, at), run_date=at, executor="forecast")
        # Those that go on under other labels too, for the old ones would seem to wait for scores.
        stopped = [was for name, was in before.items() if not tells_alike(was, self._missions.get(name))]
        for untold in tell_gone(stopped, self._stores, project=self._project, at=now):
            logger.warning("%s", untold)

    def _pass(self, slug: str) -> None:
        pack = self._packs.get(slug)
        if pack is not None:

            def current() -> Sequence[Mission]:
                return self._packs[slug].missions if slug in self._packs else ()

            self._run(pack.kind, pack.cadence, current, slug=slug)

    def _first(self, names: Sequence[str], at: datetime) -> None:
        def current() -> Sequence[Mission]:
            # As they are by now, less those that changed once more and are due again.
            return [self._missions[name] for name in names if name in self._missions and self._due[name] == at]

        self._run("forecast", "", current)

    def _run(self, kind: Kind, cadence: str, current: Callable[[], Sequence[Mission]], *, slug: str = "") -> None:
        """One pass; without a `slug` it is the first forecast of new and changed missions."""
        if self._stopping.is_set():
            return
        began = time.monotonic()
        with self._swap:
            now, missions, stores, since = self._clock(), current(), self._stores, self._since
        if not missions:
            return
        with ThreadPoolExecutor(self._jobs, thread_name_prefix=kind) as pool:
            mapper = self._until_stopped(pool)
            about = About(self._project, slug or BY_HAND)
            results, written = run_pass(
                kind,
                missions,
                stores,
                now=now,
                since=since,
                mapper=mapper,
                blocks=self._processes.map,
                histories=self._histories,
                about=about,
            )
        took = timedelta(seconds=time.monotonic() - began)
        self._tell(PassDone(kind, cadence, now, took, results, written or Written(), not slug))

    def _until_stopped(self, pool: Executor) -> Mapper:
        def mapper(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
            def unless_stopped(item: T) -> list[R]:
                return [] if self._stopping.is_set() else [function(item)]

            for found in pool.map(unless_stopped, items):
                yield from found

        return mapper

    def _missed(self, event: Any) -> None:
        exception = getattr(event, "exception", None)
        if exception is not None:
            self._tell(Missed(event.job_id, f"a bug of ours: {type(exception).__name__}: {exception}"))
        else:
            self._tell(Missed(event.job_id, "the pass before is still running"))

    def __enter__(self) -> Self:
        self._scheduler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._scheduler.shutdown(wait=True)
        self._processes.close()


def keep_going(
    runner: Runner,
    files: Sequence[Path],
    load: Callable[[], Sequence[Mission]],
    *,
    tell: Callable[[Happening], None],
    stop: Event,
    poll: float = 2.0,
) -> None:
    """Run what `load` answers until `stop` is set, and again whenever one of `files` changes.

    A change is taken up once the files have rested for `poll` seconds. Files that cannot run are told once, and the
    missions before them go on.

    Args:
        runner: entered already.
        files: files, folders and globs; looked at every `poll` seconds.
        load: the missions of these files, or an error that says what is wrong.
        tell: told of what is refused.
        stop: ends this.
        poll: seconds.

    Raises:
        AnomalyTimesError: there is nothing that can run at the beginning.
    """
    seen = last = _stamps(files)
    runner.run(load())
    while not stop.wait(poll):
        before, last = last, _stamps(files)
        # Two equal looks, for a file may be half written at the first.
        if last == seen or last != before:
            continue
        seen = last
        try:
            runner.run(load())
        except (MissionError, UsageError) as exc:
            tell(Refused(exc))


def _stamps(files: Sequence[Path]) -> dict[Path, tuple[int, int]] | None:
    """Time and size of every mission file, and of the defaults beside them; `None` where a path is not there."""
    try:
        found = mission_files(files)
    except UsageError:
        return None
    stamps = {}
    for path in {*found, *(file.parent / DEFAULTS_FILE for file in found)}:
        try:
            stat = os.stat(path)  # noqa: PTH116 - as light as it gets, every few seconds
        except OSError:
            continue
        stamps[path] = stat.st_mtime_ns, stat.st_size
    return stamps
