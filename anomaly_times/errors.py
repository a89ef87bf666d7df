"""Everything that can stop us, as one tree.

    AnomalyTimesError                1  our own bug, or a class below
    ├── UsageError                   2  a command, option, setting or argument that makes no sense
    │   └── MissingExtraError        2  an optional part that is not installed
    ├── MissionError                 3  a mission, or a query given by hand, that cannot work
    │   └── QueryError               3  PromQL that does not parse, or is no vector
    │       └── NoSeriesError        3  PromQL that is fine and matches nothing
    ├── StoreError                   4  a server or a folder of metrics that does not do what it was asked
    │   ├── StoreUnavailableError    4  nobody answers, or not in time
    │   ├── StoreAuthError           4  credentials refused
    │   └── StoreDataError           4  an answer or a file that cannot be understood
    ├── PrefectError                 4  the Prefect server is away, refuses, or lacks what is needed
    ├── EngineError                  4  a Ray cluster that is away, is unlike us, or loses its workers
    └── ModelError                   5  a model that is unknown, misconfigured or failed

The number is the exit code of `at`. Every error carries a `hint`: what to try next.
"""

from __future__ import annotations

import re
from typing import ClassVar

__all__ = [
    "AnomalyTimesError",
    "EngineError",
    "MissingExtraError",
    "MissionError",
    "ModelError",
    "NoSeriesError",
    "PrefectError",
    "QueryError",
    "StoreAuthError",
    "StoreDataError",
    "StoreError",
    "StoreUnavailableError",
    "UsageError",
    "in_our_words",
    "installing",
]


class AnomalyTimesError(Exception):
    """What all our exceptions are; `message` says what failed and on what, `hint` what to try."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders, and the default would lose the keyword-only hint.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[AnomalyTimesError], message: str, hint: str) -> AnomalyTimesError:
    return kind(message, hint=hint)


class UsageError(AnomalyTimesError):
    """A command, option, setting or argument that makes no sense."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional part of the package that is not installed."""

    def __init__(self, message: str, *, hint: str = "", extra: str = "") -> None:
        super().__init__(message, hint=hint or installing(extra))


def installing(extra: str) -> str:
    """How an optional part is installed."""
    return f"pip install 'anomaly-times[{extra}]', or in a clone: uv sync --inexact --extra {extra}"


_WORDS = (
    (r"^Value error, ", ""),
    (r", unable to (parse|interpret) .*$", ""),
    (r"^Input should be (a )?valid integer", "must be a whole number"),
    (r"^Input should be (a )?valid ", "must be a "),
    (r"^(Input|String|Value|List|Tuple|Dictionary) should ", "must "),
    ("greater than or equal to ", "at least "),
    ("less than or equal to ", "at most "),
    ("greater than ", "more than "),
    (r"^Field required", "is missing"),
    (r"^Extra inputs are not permitted", "is not known"),
)


def in_our_words(message: str) -> str:
    """What is wrong with a value, from pydantic's message: `Input should be greater than 0`, `must be more than 0`."""
    for theirs, ours in _WORDS:
        message = re.sub(theirs, ours, message)
    return message


class MissionError(AnomalyTimesError):
    """A mission, or a query given by hand, that cannot work."""

    exit_code = 3


class QueryError(MissionError):
    """PromQL that does not parse, or does not answer a vector."""


class NoSeriesError(QueryError):
    """PromQL that is fine and matches nothing in the range asked for."""


class StoreError(AnomalyTimesError):
    """A server or a folder of metrics that does not do what it was asked."""

    exit_code = 4


class StoreUnavailableError(StoreError):
    """Nobody answers, or not in time."""


class StoreAuthError(StoreError):
    """The server refuses our credentials."""


class StoreDataError(StoreError):
    """An answer, or a file, that cannot be understood."""


class PrefectError(AnomalyTimesError):
    """The Prefect server is away, refuses, holds a lock of somebody else, or lacks what is needed."""

    exit_code = 4


class EngineError(AnomalyTimesError):
    """A Ray cluster that is away, runs other versions than we do, or loses its workers."""

    exit_code = 4


class ModelError(AnomalyTimesError):
    """A model that is unknown, misconfigured, or that failed on this data."""

    exit_code = 5
