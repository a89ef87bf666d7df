"""Where the time of a pass goes, by stage: what `--profile` prints.

Stages are marked where they are done (`stage`, `staged`); without a `Profile` that listens that costs next to nothing.
One listens for the whole process, since a pass has threads; other processes send theirs home (`add`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

__all__ = ["STAGES", "Profile", "Stage", "StageName", "add", "is_listening", "listening", "stage", "staged"]

StageName = Literal["read", "parse", "align", "season", "model", "calibrate", "score", "encode", "write"]
STAGES: tuple[StageName, ...] = (
    *("read", "parse", "align", "season", "model", "calibrate"),
    *("score", "encode", "write"),
)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage took: seconds of the clock and of processors, added up over threads and processes.

    Without those of the stages inside it. `points` and `bytes` are how much it handled, where that is known.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    points: int = 0
    bytes: int = 0

    def __add__(self, other: Stage) -> Stage:
        return Stage(
            self.seconds + other.seconds,
            self.cpu + other.cpu,
            self.points + other.points,
            self.bytes + other.bytes,
        )


class Profile:
    """What stages took up to now; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[StageName, Stage] = {}

    @property
    def stages(self) -> Mapping[StageName, Stage]:
        """By name, in the order of a pass."""
        return {name: self._stages[name] for name in STAGES if name in self._stages}

    def add(self, stages: Mapping[StageName, Stage]) -> None:
        """Count these too."""
        with self._lock:
            for name, more in stages.items():
                self._stages[name] = self._stages.get(name, Stage()) + more


class Work:
    """A stage under way; who does it may say how much it is."""

    __slots__ = ("bytes", "inside_cpu", "inside_seconds", "points")

    def __init__(self) -> None:
        self.points = self.bytes = 0
        self.inside_seconds = self.inside_cpu = 0.0


_NOBODY = Work()
_listening: Profile | None = None
_here = threading.local()


@contextmanager
def listening() -> Iterator[Profile]:
    """A profile of all that this process does in the body."""
    global _listening
    before, _listening = _listening, Profile()
    try:
        yield _listening
    finally:
        _listening = before


def add(stages: Mapping[StageName, Stage]) -> None:
    """Count what was done elsewhere, if somebody listens."""
    if _listening is not None:
        _listening.add(stages)


def is_listening() -> bool:
    """Whether stages are counted now."""
    return _listening is not None


@contextmanager
def stage(name: StageName) -> Iterator[Work]:
    """The body is this stage, less the stages inside it."""
    profile = _listening
    if profile is None:
        yield _NOBODY
        return
    above: Work | None = getattr(_here, "work", None)
    work = _here.work = Work()
    seconds, cpu = time.perf_counter(), time.thread_time()
    try:
        yield work
    finally:
        seconds, cpu = time.perf_counter() - seconds, time.thread_time() - cpu
        _here.work = above
        if above is not None:
            above.inside_seconds += seconds
            above.inside_cpu += cpu
        profile.add({name: Stage(seconds - work.inside_seconds, cpu - work.inside_cpu, work.points, work.bytes)})


def staged(name: StageName) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """The decorated function is this stage."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if _listening is None:
                return function(*args, **kwargs)
            with stage(name):
                return function(*args, **kwargs)

        return wrapper

    return decorate
