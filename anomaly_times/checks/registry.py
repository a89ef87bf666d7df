"""The checks by their codes: one check, one code, one severity, one section in `docs/checks.md`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from anomaly_times.checks.evidence import Evidence
from anomaly_times.errors import QueryError
from anomaly_times.loading import LoadedMission
from anomaly_times.mission import Mission
from anomaly_times.problems import Problem, Severity
from anomaly_times.stores.promql import Query

__all__ = ["CHECKS", "LOADING", "Check", "Found", "Run", "Subject", "check"]

LOADING = (
    "file/yaml",
    "file/unreadable",
    "file/shape",
    "file/for-each",
    "file/too-many",
    "file/no-mission",
    "mission/unknown-field",
    "mission/missing-field",
    "mission/invalid-value",
    "mission/name-taken",
)
"""Codes of what loading finds. Such a mission is none yet, so these cannot be silenced."""


@dataclass(frozen=True)
class Subject:
    """A mission under examination.

    `query` is its PromQL as far as it is understood, `refusal` why it can never work; one of them is set. `sources`
    are the names that the settings know (`None`: not known here), `evidence` is what the mission's source says about
    it (`None`: it was not asked). `now` is the time of the examination.
    """

    loaded: LoadedMission
    now: datetime
    query: Query | None
    refusal: QueryError | None = None
    sources: Collection[str] | None = None
    evidence: Evidence | None = None

    @property
    def mission(self) -> Mission:
        """The mission itself."""
        return self.loaded.mission

    @property
    def said(self) -> Evidence:
        """The evidence, for checks that are run with it only.

        Raises:
            ValueError: the source was not asked.
        """
        if self.evidence is None:
            raise ValueError(f"the source of {self.mission.name} was not asked")
        return self.evidence


class Found(NamedTuple):
    """What a check has to say: the path of the field that it is about, a sentence, and what to try."""

    field: tuple[str | int, ...]
    message: str
    hint: str = ""


Run = Callable[[Subject], Iterator[Found]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `live` ones need `Subject.evidence`, the others take it where it is there."""

    code: str
    severity: Severity
    live: bool
    run: Run

    def problems(self, subject: Subject) -> Iterator[Problem]:
        """What the check finds, in its place in the file.

        What stands in defaults is as wrong for all missions that take it over, and so a problem of none, unless it is
        the data of each that was looked at.
        """
        if self.live and subject.evidence is None:
            return
        for field, message, hint in self.run(subject):
            shared = not self.live and subject.loaded.inherits(*field)
            name = "" if shared else subject.mission.name
            yield Problem(self.code, self.severity, subject.loaded.where(*field), message, hint, name)


CHECKS: dict[str, Check] = {}
"""Every check by its code, in the order in which they are reported."""


def check(code: str, severity: Severity, *, live: bool = False) -> Callable[[Run], Run]:
    """Register a function as the check `code`."""

    def register(run: Run) -> Run:
        if code in CHECKS or code in LOADING:
            raise ValueError(f"the check {code} exists already")
        CHECKS[code] = Check(code, severity, live, run)
        return run

    return register
