"""Blocks of series done by processes of this machine: models hold the interpreter, so threads would take turns.

Processes cost a second or two to start, so they are started once there is enough to do. Each computes with one thread:
there is one for each processor. They are spawned rather than forked, for a fork of a process with threads may hang.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Self

from anomaly_times.bounds import Block, Bounded
from anomaly_times.errors import EngineError
from anomaly_times.models import is_threaded
from anomaly_times.profiling import Profile, Stage, StageName, add, is_listening, listening

__all__ = ["ONE_THREAD", "Processes", "default_processes"]

logger = logging.getLogger(__name__)

ONE_THREAD = dict.fromkeys(
    (
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
        *("NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"),
    ),
    "1",
)
"""For workers, of which there is one a processor: libraries read these when they are loaded."""

_MANY_POINTS = 2_000_000
_LONG = 3.0
"""Points of one panel, or seconds of computing so far, from which on processes are worth their start."""


def default_processes() -> int:
    """How many processes compute where nothing is said: one a processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Does blocks by processes, once that pays; `map` is a `BlockMapper` for any number of threads.

    A process that is killed costs the time of its blocks. Which of those that were in work it was is told by doing each
    again, alone: one that ends its process then has an error of its own, and its neighbours are done.
    """

    def __init__(self, n: int | None = None, *, many_points: int = _MANY_POINTS, long: float = _LONG) -> None:
        """Nothing is started yet.

        Args:
            n: processes at most; with fewer than 2 all is done in this one.
            many_points: a panel with more starts them.
            long: as do so many seconds of computing.
        """
        self.n = default_processes() if n is None else n
        self._many_points, self._long = many_points, long
        self._computed = 0.0
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False
        self._swap, self._alone = threading.Lock(), threading.Lock()

    def map(self, function: Callable[[Block], Bounded], blocks: Iterable[Block], /) -> Iterator[Bounded]:
        """What `function` makes of each block, in their order.

        Raises:
            EngineError: a block ended its process twice, or we were closed meanwhile.
        """
        waiting = deque(blocks)
        points = sum(block.history.y.size for block in waiting)
        if self.n < 2 or not waiting or is_threaded(waiting[0].mission.forecast.model):
            yield from map(function, waiting)
            return
        while waiting and not self._pays(points):
            began = time.thread_time()
            yield function(waiting.popleft())
            self._computed += time.thread_time() - began
        at_work = deque[tuple[Block, Future[_Made]]]()
        try:
            while waiting or at_work:
                # One more than there are processes, so that none waits for us; the others are not copied yet.
                while waiting and len(at_work) <= self.n:
                    block = waiting.popleft()
                    at_work.append((block, self._submit(function, block)))
                block, future = at_work.popleft()
                try:
                    made = future.result().told()
                except (BrokenProcessPool, CancelledError):
                    made = self._again(function, block)
                yield made
        finally:
            for _, future in at_work:
                future.cancel()

    def _pays(self, points: int) -> bool:
        return self._pool is not None or points >= self._many_points or self._computed >= self._long

    def _submit(self, function: Callable[[Block], Bounded], block: Block) -> Future[_Made]:
        with self._swap:
            self._check_open()
            if self._pool is None:
                self._pool = _pool(self.n)
            try:
                return _submit(self._pool, function, block)
            except BrokenProcessPool:
                # Those that were in work find out by themselves.
                self._pool.shutdown(wait=False)
                self._pool = _pool(self.n)
                return _submit(self._pool, function, block)

    def _again(self, function: Callable[[Block], Bounded], block: Block) -> Bounded:
        """The block whose process may have been the one that was killed, in a process of its own."""
        self._check_open()
        name = block.mission.name
        logger.warning("%s: a process that computed was killed; its series are done again", name)
        with self._alone, _pool(1) as pool:
            try:
                return _submit(pool, function, block).result().told()
            except BrokenProcessPool as exc:
                raise EngineError(
                    f"mission {name} ended its process twice",
                    hint="a process that is killed had too little memory most times: a shorter lookback, a longer "
                    "step, or fewer series",
                ) from exc

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the pass was ended", hint="run it again; what was stored stays")

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        with self._swap:
            self._closed, pool = True, self._pool
            self._pool = None
        if pool is None:
            return
        # They hold nothing that could be left half-done.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pool(n: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def _submit(pool: ProcessPoolExecutor, function: Callable[[Block], Bounded], block: Block) -> Future[_Made]:
    # The first one starts the processes.
    with _as_a_worker_wants_it():
        return pool.submit(_metered, function, block, is_listening())


_starting = threading.Lock()


@contextmanager
def _as_a_worker_wants_it() -> Iterator[None]:
    """What a process finds that is spawned meanwhile: one thread for each library, and no main module to import.

    Python would import ours there, which for a run of Prefect's takes seconds.
    """
    with _starting:
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        main = sys.modules.get("__main__")
        os.environ.update(ONE_THREAD)
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            if main is not None:
                sys.modules["__main__"] = main
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _begin() -> None:
    """In a new process: Ctrl-C is for the parent, and when that is gone there is nothing left to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


@dataclass(frozen=True)
class _Made:
    """What comes back from another process."""

    bounded: Bounded
    stages: Mapping[StageName, Stage]

    def told(self) -> Bounded:
        """The forecast; whoever listens here hears what it took there."""
        add(self.stages)
        return self.bounded


def _metered(function: Callable[[Block], Bounded], block: Block, listened: bool) -> _Made:
    began = time.process_time()
    with listening() if listened else nullcontext(Profile()) as profile:
        made = function(block)
    return _Made(replace(made, cpu=time.process_time() - began), profile.stages)
