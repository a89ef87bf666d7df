"""A pass as an engine is asked for it, and what the engine answers: what every engine knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from anomaly_times.conventions import Kind
from anomaly_times.errors import AnomalyTimesError
from anomaly_times.mission import Mission
from anomaly_times.monitoring import About, Result
from anomaly_times.outcome import Outcome
from anomaly_times.passes import DetectResult, ForecastResult
from anomaly_times.settings import Source
from anomaly_times.stores import Store, Written
from anomaly_times.stores.history import Histories


@dataclass(frozen=True)
class Job:
    """What a pass is to do.

    Args:
        kind: forecast or detect.
        missions: any number, names apart.
        now: with a time zone.
        window: as for `detect_pass`.
        since: as for `detect_pass` and `forecast_pass`.
        write: else nothing is stored.
        about: what the figures carry that the pass stores about itself; without, or where nothing is stored, none are.
        refused: by name, missions that are not run, and why.
        resting: as for `monitoring.tell`.
        unreadable: as for `monitoring.tell`.
    """

    kind: Kind
    missions: Sequence[Mission]
    now: datetime
    window: timedelta | None = None
    since: Mapping[str, datetime] = field(default_factory=dict)
    write: bool = True
    about: About | None = None
    refused: Mapping[str, AnomalyTimesError] = field(default_factory=dict)
    resting: Collection[str] = ()
    unreadable: Collection[str] = ()


@dataclass(frozen=True)
class Ran:
    """What came of a job: figures in the order of its missions, what was written (`None`: nothing was to be).

    `untold` says in words what the pass could not store about itself, and what workers warned of.
    """

    outcomes: Sequence[Outcome]
    written: Written | None
    untold: Sequence[str] = ()


@dataclass(frozen=True)
class Places:
    """Where missions read and write: sources by the name that missions know them by, and the folder of state.

    Of histories that were read as many bytes are kept there as `history_bytes` says.
    """

    sources: Mapping[str, Source]
    state: Path
    history_bytes: int = 0

    def histories(self) -> Histories:
        """What was read by passes before."""
        return Histories(self.state / "history", self.sources, max_bytes=self.history_bytes)

    def absolute(self) -> Places:
        """The same for a process with another working folder."""
        files = ("folder", "password_file", "bearer_token_file", "ca_file")
        sources = {
            name: source.model_copy(update={file: path.absolute() for file in files if (path := getattr(source, file))})
            for name, source in self.sources.items()
        }
        return replace(self, sources=sources, state=self.state.absolute())


class Engine(Protocol):
    """Does jobs, wherever that is."""

    def run(
        self,
        job: Job,
        stores: Mapping[str, Store],
        *,
        on_done: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> Ran:
        """Do this job; a mission that fails has its error in its outcome.

        Args:
            job: what to do.
            stores: by the source that missions name.
            on_done: called after each mission.
            check: raises where the job must go no further; asked before missions begin, and before anything is stored.

        Raises:
            EngineError: the engine itself is lost.
        """
        ...


def refused(job: Job) -> list[Result]:
    """The results of missions that the job says not to run."""
    return [
        failed(job.kind, mission, job.refused[mission.name]) for mission in job.missions if mission.name in job.refused
    ]


def failed(kind: Kind, mission: Mission, error: AnomalyTimesError) -> Result:
    """The result of a mission that this error ended."""
    made = ForecastResult if kind == "forecast" else DetectResult
    return made(mission, error=error)


def ordered(job: Job, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """These outcomes in the order of the job's missions."""
    place = {mission.name: i for i, mission in enumerate(job.missions)}
    return sorted(outcomes, key=lambda outcome: place[outcome.mission.name])
