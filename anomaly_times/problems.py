"""What is wrong in a user's missions: data that is collected, then reported; never an exception.

An exception (`errors.py`) stops us. A problem is one line of a report, and its place in a file is what a reader and a
pull request need first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Problem", "Severity", "Where", "worst"]

Severity = Literal["error", "warning", "info"]
_RANK: dict[Severity, int] = {"info": 0, "warning": 1, "error": 2}


@dataclass(frozen=True, slots=True, order=True)
class Where:
    """A place in a mission file: `line` counts from 1, 0 where the file as a whole is meant; `field` is dotted."""

    file: str
    line: int = 0
    field: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `code` names the check (`promql/syntax`), `hint` says what to try."""

    code: str
    severity: Severity
    where: Where
    message: str
    hint: str = ""
    mission: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.severity} {self.code}: {self.message}"


def worst(problems: Iterable[Problem]) -> Severity | None:
    """The highest severity among `problems`; `None` where there are none."""
    return max((problem.severity for problem in problems), key=_RANK.__getitem__, default=None)
