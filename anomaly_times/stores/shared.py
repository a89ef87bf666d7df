"""Reads that several missions have in common, done once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol, TypeAlias

from anomaly_times.errors import AnomalyTimesError
from anomaly_times.panel import Grid, Panel

__all__ = ["Asked", "Reader", "SharedReads"]


class Reader(Protocol):
    """What reads series, as `Store.read` does."""

    def read(self, promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        """See `Store.read`."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One read: of `store`, by the name that missions know it by, with the arguments of `Store.read`.

    Only reads that are alike in all of it are shared: what a longer range answers may differ at the same times, for
    some functions look at the whole range (`range_max`, `topk_avg`, `@ start()`).
    """

    store: str
    promql: str
    grid: Grid
    max_series: int


Answer: TypeAlias = Panel | AnomalyTimesError


@dataclass
class _Shared:
    readers: int
    answer: Answer | None = None
    lock: Lock = field(default_factory=Lock)


class SharedReads:
    """Panels of reads that are done as often as `asked` holds them, each of which the store is asked for once.

    A panel is kept until its last reader has it; readers must leave it as it is. Safe to use from several threads: the
    others wait for the one that reads. A read that fails fails for all of its readers, who need not wait for the same
    time-out one after the other.
    """

    def __init__(self, asked: Iterable[Asked]) -> None:
        self._shared = {one: _Shared(n) for one, n in Counter(asked).items() if n > 1}

    def read(self, asked: Asked, store: Reader) -> Panel:
        """The panel; see `Store.read`.

        Raises:
            AnomalyTimesError: as `Store.read` does.
        """
        shared = self._shared.get(asked)
        if shared is None:
            return store.read(asked.promql, asked.grid, max_series=asked.max_series)
        with shared.lock:
            answer = shared.answer
            if answer is None:
                try:
                    answer = store.read(asked.promql, asked.grid, max_series=asked.max_series)
                except AnomalyTimesError as exc:
                    answer = exc
            shared.readers -= 1
            shared.answer = answer if shared.readers else None
        if isinstance(answer, AnomalyTimesError):
            raise answer
        return answer
