"""What is wrong with missions: checks that need no server, and checks that ask their sources.

A check is a function with a code, a severity and a section in `docs/checks.md`; a mission silences it by its code
(`silence: [{code: data/gaps, reason: …}]`). A source that is away is never a problem of a mission: what could not be
asked is told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime

from anomaly_times.checks import live, offline
from anomaly_times.checks.evidence import Evidence
from anomaly_times.checks.live import Cost, cost_of
from anomaly_times.checks.registry import CHECKS, LOADING, Check, Found, Subject
from anomaly_times.errors import QueryError, StoreError
from anomaly_times.loading import LoadedMission, Loading
from anomaly_times.problems import Problem, Severity
from anomaly_times.stores import Store
from anomaly_times.stores.promql import parse_query

__all__ = [
    "CHECKS",
    "LOADING",
    "Check",
    "Cost",
    "Found",
    "Report",
    "Silenced",
    "Subject",
    "at_or_above",
    "check_missions",
    "live",
    "offline",
]

_IN_FLIGHT = 4
_RANK: dict[Severity, int] = {"info": 0, "warning": 1, "error": 2}


@dataclass(frozen=True, slots=True)
class Silenced:
    """A problem that its mission accepts, and why."""

    problem: Problem
    reason: str


@dataclass(frozen=True)
class Report:
    """What validation found: `problems` in the order of files and lines.

    `costs` holds what is known of missions' costs, `unchecked` why live checks of a mission did not run; both by the
    mission's name.
    """

    missions: int
    problems: tuple[Problem, ...]
    silenced: tuple[Silenced, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    unchecked: Mapping[str, StoreError] = field(default_factory=dict)


def check_missions(
    loading: Loading,
    *,
    now: datetime,
    sources: Collection[str] | None = None,
    stores: Mapping[str, Store] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Report:
    """Check every mission of `loading`, and pass on what loading found.

    Args:
        loading: missions from files.
        now: the time for which missions are looked at and sources are asked.
        sources: the names of sources that the settings know; `None` where that is not known.
        stores: by the name that missions use, the sources to ask; without them no server is needed. Missions of other
            sources get the checks that need none.
        advance: called as each mission is done, from several threads.
    """
    subjects = [_subject(loaded, now, sources) for loaded in loading.missions]
    evidence, unchecked = _gathered(subjects, stores or {}, now, advance)
    problems, silenced = list(loading.problems), []
    costs = {}
    for subject in subjects:
        name = subject.mission.name
        known = evidence.get(id(subject))
        if known is not None:
            subject = replace(subject, evidence=known)
            cost = cost_of(subject.mission, known)
            if cost is not None:
                costs[name] = cost
        reasons = {each.code: each.reason for each in subject.mission.silence}
        for each in CHECKS.values():
            for problem in each.problems(subject):
                if problem.code in reasons:
                    silenced.append(Silenced(replace(problem, mission=name), reasons[problem.code]))
                else:
                    problems.append(problem)
    problems = list(dict.fromkeys(problems))
    problems.sort(key=lambda problem: (problem.where.file, problem.where.line, -_RANK[problem.severity]))
    return Report(len(subjects), tuple(problems), tuple(silenced), costs, unchecked)


def at_or_above(problems: Iterable[Problem], severity: Severity) -> bool:
    """Whether one of `problems` is as bad as `severity`, or worse."""
    return any(_RANK[problem.severity] >= _RANK[severity] for problem in problems)


def _subject(loaded: LoadedMission, now: datetime, sources: Collection[str] | None) -> Subject:
    try:
        return Subject(loaded, now, parse_query(loaded.mission.promql), sources=sources)
    except QueryError as exc:
        return Subject(loaded, now, None, exc, sources=sources)


def _gathered(
    subjects: Sequence[Subject], stores: Mapping[str, Store], now: datetime, advance: Callable[[], object]
) -> tuple[dict[int, Evidence], dict[str, StoreError]]:
    """What sources say, by the identity of the subject, and why some could not be asked, by the mission's name."""
    asked = [subject for subject in subjects if subject.mission.source in stores]
    if not asked:
        return {}, {}
    from anomaly_times.checks.examiner import Examiner  # its HTTP client takes a while to load

    examiners = {name: Examiner(store, now) for name, store in stores.items()}
    away: dict[str, StoreError] = {}
    for name in {subject.mission.source for subject in asked}:
        try:
            examiners[name].reach()
        except StoreError as exc:
            away[name] = exc

    def examine(subject: Subject) -> Evidence | StoreError | None:
        mission, query = subject.mission, subject.query
        try:
            if mission.source in away:
                return away[mission.source]
            # What no server can take need not be asked.
            return None if query is None or query.broken else examiners[mission.source].examine(mission, query)
        except StoreError as exc:
            return exc
        finally:
            advance()

    evidence: dict[int, Evidence] = {}
    unchecked: dict[str, StoreError] = {}
    with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="check") as pool:
        for subject, answer in zip(asked, pool.map(examine, asked), strict=True):
            if isinstance(answer, StoreError):
                unchecked[subject.mission.name] = answer
            elif answer is not None:
                evidence[id(subject)] = answer
    return evidence, unchecked
