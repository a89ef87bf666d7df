"""Passes spread over a Ray cluster: all that knows Ray.

A task takes a few missions, opens stores of its own and answers figures alone, so no data passes through the process
that asks. It is safe to run missions of a lost worker again: what a pass writes has the timestamps that its `now` says,
whoever writes it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import os
import platform
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anomaly_times
from anomaly_times.bounds import Block, Bounded
from anomaly_times.conventions import Kind
from anomaly_times.engine.job import Job, Places, Ran, failed, ordered, refused
from anomaly_times.engine.local import do_here
from anomaly_times.engine.processes import ONE_THREAD
from anomaly_times.errors import AnomalyTimesError, EngineError, MissingExtraError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.models import is_threaded
from anomaly_times.monitoring import Effort, Result, tell
from anomaly_times.outcome import Outcome, outcome_of
from anomaly_times.stores import Store, Written, open_store
from anomaly_times.stores.metered import metered

_SHARES_A_WORKER: Mapping[Kind, int] = {"forecast": 8, "detect": 2}
"""So many shares for each worker even out missions that take longer than others."""
_LARGEST_SHARE: Mapping[Kind, int] = {"forecast": 10, "detect": 200}
"""Missions; those of one detection share their queries, and a forecast that is lost is dear."""
_THREADS: Mapping[Kind, int] = {"forecast": 1, "detect": 4}
"""Of a task: a forecast computes, a detection waits for its source."""
_ATTEMPTS = 3
"""After which a mission whose worker dies each time is given up."""
_ANSWER = 5.0
_JOINING = 60.0
"""Seconds that a cluster has to answer, and then to take us in: Ray itself waits for many minutes."""
_LOOKING, _HEADLESS = 1.0, 15.0
"""Seconds between looks for the head, and how long it may be away: after 60 Ray ends this process."""
_PROBING = 120.0
"""Seconds that a node has to start a worker."""
_FEWEST_BLOCKS = 4
"""A mission with that many blocks of series is spread over the cluster; fewer are done where they were read."""
_PACKAGE = "anomaly-times"


@dataclass(frozen=True)
class _Share:
    """Missions that one task takes, and how often they were tried before."""

    missions: Sequence[Mission]
    tried: int = 0


@dataclass(frozen=True)
class OnRay:
    """The engine of tasks of a Ray cluster that this process has joined."""

    ray: Any
    places: Places
    workers: int

    def run(
        self,
        job: Job,
        stores: Mapping[str, Store],
        *,
        on_done: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> Ran:
        """As `Engine.run` says; missions of a worker that is lost are run again."""
        began = time.monotonic()
        # Ray would try again by itself, but all of a share, and where memory is short without an end.
        work = self.ray.remote(_work).options(max_retries=0, num_cpus=1, runtime_env={"env_vars": ONE_THREAD})
        todo, at_work = deque(_shares(job, self.workers)), dict[Any, _Share]()
        outcomes: list[Outcome] = []
        lost, said, written = refused(job), dict[str, None](), Written()
        of_source: dict[str, Effort] = {}
        head = _Head(self.ray.get_runtime_context().gcs_address)
        try:
            while todo or at_work:
                check()
                head.check()
                # One more than workers can take, so that none waits for us; the others wait here, as names alone.
                while todo and len(at_work) < self.workers + 1:
                    share = todo.popleft()
                    at_work[work.remote(_part(job, share), self.places)] = share
                ready, _ = self.ray.wait(list(at_work), timeout=_LOOKING)
                for ref in ready:
                    share = at_work.pop(ref)
                    try:
                        summary: _Summary = self.ray.get(ref)
                    except self.ray.exceptions.RayError as exc:
                        again, given_up = _after_loss(job.kind, share, exc)
                        todo += again
                        lost += given_up
                        for _ in given_up:
                            on_done()
                        continue
                    outcomes += summary.outcomes
                    written += summary.written
                    said |= dict.fromkeys(summary.said)
                    for source, more in summary.efforts.items():
                        of_source[source] = of_source.get(source, Effort()) + more
                    for _ in summary.outcomes:
                        on_done()
        finally:
            # Without a head nobody takes a message, and Ray would wait for somebody.
            for ref in at_work if head.there else ():
                with suppress(self.ray.exceptions.RayError):
                    self.ray.cancel(ref, force=True)
        untold = list(said)
        outcomes += [outcome_of(result) for result in lost]
        if job.write and job.about is not None:
            untold += tell(
                *(job.kind, lost, metered(stores)),
                about=job.about,
                now=job.now,
                seconds=time.monotonic() - began,
                resting=job.resting,
                unreadable=job.unreadable,
                elsewhere=of_source,
            )
        return Ran(ordered(job, outcomes), written if job.write else None, untold)


class _Head:
    """Watches whether the head of the cluster is there.

    Where it is gone for a minute Ray ends this process, whoever it belongs to, without an exception to be caught.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._seen = self._looked = time.monotonic()

    @property
    def there(self) -> bool:
        """Whether it answered when it was looked at last."""
        return self._seen >= self._looked

    def check(self) -> None:
        """Look, if the last look is some seconds ago.

        Raises:
            EngineError: it has not answered for a while.
        """
        now = time.monotonic()
        if now - self._looked < _LOOKING:
            return
        self._looked = now
        if _answers(self._address):
            self._seen = now
        elif now - self._seen > _HEADLESS:
            raise EngineError(
                f"the head of the Ray cluster at {self._address} is gone",
                hint="what was stored stays; start the cluster again, and the next pass goes on from there",
            )


def _answers(address: str) -> bool:
    try:
        _connect(address)
    except (OSError, ValueError):
        return False
    return True


def _connect(address: str) -> None:
    """Whether somebody takes a connection there.

    Raises:
        OSError: nobody does.
        ValueError: this is no address.
    """
    place = urlsplit(f"//{address}")
    socket.create_connection((place.hostname, place.port), timeout=_ANSWER).close()


def _shares(job: Job, workers: int) -> list[_Share]:
    """The missions that can run, a few at a time; those that share queries stand together."""
    able = [mission for mission in job.missions if mission.name not in job.refused]
    if job.kind == "detect":
        able.sort(key=lambda mission: (mission.source, mission.step, mission.detect.period))
    size = math.ceil(len(able) / (_SHARES_A_WORKER[job.kind] * max(1, workers)))
    size = max(1, min(size, _LARGEST_SHARE[job.kind]))
    return [_Share(able[i : i + size]) for i in range(0, len(able), size)]


def _part(job: Job, share: _Share) -> Job:
    """The job of these missions alone."""
    names = {mission.name for mission in share.missions}
    since = {name: at for name, at in job.since.items() if name in names}
    resting = [name for name in job.resting if name in names]
    return replace(job, missions=share.missions, since=since, refused={}, resting=resting, unreadable=())


def _after_loss(kind: Kind, share: _Share, exc: Exception) -> tuple[list[_Share], list[Result]]:
    """What is done again, and what is given up, when the task of this share ended without an answer."""
    # Which of several missions it was is told by running each alone.
    cause = getattr(exc, "cause", None)
    if len(share.missions) > 1 or (cause is None and share.tried + 1 < _ATTEMPTS):
        return [_Share([mission], share.tried + 1) for mission in share.missions], []
    [mission] = share.missions
    if cause is not None:
        # The task lived to raise, and would again: a file of the settings that is not on this node, for one.
        return [], [failed(kind, mission, _as_error(cause, mission.name))]
    return [], [failed(kind, mission, _lost(mission.name, exc))]


def _lost(mission: str, exc: Exception) -> EngineError:
    return EngineError(
        f"mission {mission} ended its worker {_ATTEMPTS} times: {_first_line(exc)}",
        hint="a worker that is killed had too little memory most times: a shorter lookback, a longer step, fewer "
        "series, or larger nodes",
    )


def _as_error(cause: Exception, mission: str) -> AnomalyTimesError:
    if isinstance(cause, AnomalyTimesError):
        return cause
    return AnomalyTimesError(
        f"mission {mission} met a bug of ours on Ray: {type(cause).__name__}: {_first_line(cause)}",
        hint="run it with --on local --debug and report it",
    )


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0] or type(exc).__name__


@dataclass(frozen=True)
class _Summary:
    """What a task answers: figures, never data."""

    outcomes: Sequence[Outcome]
    written: Written
    said: Sequence[str]
    efforts: Mapping[str, Effort]


def _work(job: Job, places: Places) -> _Summary:
    """The task: runs in a worker, which reads, computes, writes and tells for itself."""
    heard = _Heard()
    ours = logging.getLogger("anomaly_times")
    ours.addHandler(heard)
    needed = {mission.source for mission in job.missions}
    threads = _THREADS[job.kind]
    try:
        with ExitStack() as stack:
            stores = {
                name: stack.enter_context(open_store(source, state=places.state))
                for name, source in places.sources.items()
                if name in needed
            }
            pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
            done = do_here(
                job,
                stores,
                mapper=pool.map if pool else map,
                blocks=_spread,
                histories=places.histories(),
                share=True,
            )
    finally:
        ours.removeHandler(heard)
    outcomes = [outcome_of(result) for result in done.results]
    return _Summary(outcomes, done.written, [*done.untold, *heard.said], done.efforts)


def _spread(function: Callable[[Block], Bounded], blocks: Iterable[Block], /) -> Iterator[Bounded]:
    """A `BlockMapper`: those of a large mission are tasks of their own, which wait here for each other.

    A task that waits for others gives its processor back for that time, so there is always one for them. A block goes
    through the object store, where the other reads it without a copy.

    Raises:
        EngineError: a block's worker died each time.
    """
    todo = deque(blocks)
    if len(todo) < _FEWEST_BLOCKS or is_threaded(todo[0].mission.forecast.model):
        yield from map(function, todo)
        return
    ray = _import_ray()
    task = ray.remote(_metered).options(max_retries=_ATTEMPTS - 1, num_cpus=1, runtime_env={"env_vars": ONE_THREAD})
    most, name = int(ray.cluster_resources().get("CPU", 1)) + 1, todo[0].mission.name
    at_work = deque[Any]()
    try:
        while todo or at_work:
            while todo and len(at_work) < most:
                at_work.append(task.remote(function, todo.popleft()))
            try:
                made: Bounded = ray.get(at_work.popleft())
            except ray.exceptions.RayTaskError as exc:
                raise _as_error(getattr(exc, "cause", None) or exc, name) from exc
            except ray.exceptions.RayError as exc:
                raise _lost(name, exc) from exc
            yield made
    finally:
        for ref in at_work:
            with suppress(ray.exceptions.RayError):
                ray.cancel(ref, force=True)


def _metered(function: Callable[[Block], Bounded], block: Block) -> Bounded:
    """The task of one block."""
    began = time.process_time()
    return replace(function(block), cpu=time.process_time() - began)


class _Heard(logging.Handler):
    """Warnings of a worker, for the one who asked: a worker's own log is on another machine."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a Ray cluster: its address, processors and GPUs, and what a worker there runs.

    `error` says why no worker could be asked, or how it differs from us.
    """

    address: str
    processors: int
    gpus: int
    versions: Mapping[str, str]
    error: str = ""


def nodes_of_cluster(address: str) -> list[Node]:
    """The machines of a cluster, each asked what it runs.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: the cluster is away, or takes us not in.
    """
    with _joined(address, None) as ray:
        return _nodes(ray)


@contextmanager
def open_cluster(places: Places, *, address: str = "", jobs: int | None = None) -> Iterator[OnRay]:
    """The engine on the Ray cluster at `address`, or on one of this machine that ends with the block.

    Args:
        places: where missions read and write; workers open them for themselves.
        address: host:port of the cluster's head, or empty.
        jobs: tasks at once, at most as many as the cluster has processors.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: the cluster is away, or differs from us in a version.
    """
    with _cluster(address, jobs) as ray:
        processors = int(ray.cluster_resources().get("CPU", 0))
        yield OnRay(ray, places.absolute(), min(jobs or processors, processors))


@contextmanager
def _cluster(address: str, processors: int | None) -> Iterator[Any]:
    """The module `ray`, joined to a cluster on which our tasks can run."""
    with _joined(address, processors) as ray:
        nodes = _nodes(ray)
        if unlike := [node for node in nodes if node.error]:
            more = f" (and {len(unlike) - 1} more nodes)" if len(unlike) > 1 else ""
            raise EngineError(
                f"the node {unlike[0].address} of the Ray cluster cannot work for us{more}: {unlike[0].error}",
                hint="every node needs the same Python and the same anomaly-times[ray] as this process; `at doctor "
                "--on ray` lists them",
            )
        if not sum(node.processors for node in nodes):
            raise EngineError("the Ray cluster has no processors for tasks", hint="start nodes with --num-cpus")
        yield ray


_joining = threading.Lock()
_guests = 0
"""Passes of this process that use the cluster now: Ray is one a process."""
_joined_to = ""


@contextmanager
def _joined(address: str, processors: int | None) -> Iterator[Any]:
    """The module `ray`, joined to the cluster at `address`, or to one of this machine that ends with the block.

    Where whoever runs us has joined a cluster already, that one is used, and left alone.
    """
    global _guests, _joined_to
    ray = _import_ray()
    with _joining:
        own = _guests > 0 or not ray.is_initialized()
        if _guests and _joined_to != address:
            raise UsageError(f"this process has joined the Ray cluster {_joined_to or 'of this machine'!r} already")
        if not ray.is_initialized():
            _join(ray, address, processors)
            _joined_to = address
        _guests += own
    try:
        yield ray
    finally:
        with _joining:
            _guests -= own
            if own and not _guests:
                ray.shutdown()


def _import_ray() -> Any:
    # Read when Ray is loaded; whoever wants to send statistics says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as exc:
        raise MissingExtraError("Ray is not installed", extra="ray") from exc
    return ray


def _join(ray: Any, address: str, processors: int | None) -> None:
    # Else it says at each start, in the midst of our output, how its clusters tell friend from foe.
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if not address:
        try:
            ray.init("local", num_cpus=processors or os.cpu_count(), include_dashboard=False, **quiet)
        except Exception as exc:
            raise EngineError(
                f"no Ray cluster can be started on this machine: {_first_line(exc)}",
                hint="is there room in /dev/shm and in the folder for temporary files?",
            ) from exc
        return
    hint = "is `ray start --head` running there? AT_RAY_ADDRESS and --ray-address take host:port of its head"
    try:
        _connect(address)
    except (OSError, ValueError) as exc:
        raise EngineError(f"no Ray cluster answers at {address}: {exc}", hint=hint) from exc
    joining: Future[None] = Future()

    def join() -> None:
        try:
            ray.init(address, **quiet)
        except BaseException as exc:  # noqa: BLE001 - handed to the one who waits
            joining.set_exception(exc)
        else:
            joining.set_result(None)

    # A thread that can be left behind: what answers and is no Ray keeps `ray.init` waiting for minutes.
    threading.Thread(target=join, name="join-ray", daemon=True).start()
    try:
        joining.result(_JOINING)
    except TimeoutError as exc:
        raise EngineError(f"what answers at {address} takes us into no Ray cluster", hint=hint) from exc
    except Exception as exc:
        text = " ".join(str(exc).split())
        if "ersion mismatch" in text:
            hint = "run the same Python and Ray on both sides"
        raise EngineError(f"the Ray cluster at {address} cannot be joined: {text}", hint=hint) from exc


def _versions() -> dict[str, str]:
    """What must be alike on both sides; `code` tells two states of one version apart."""
    packages = {name: importlib.metadata.version(name) for name in (_PACKAGE, "ray")}
    return {"python": platform.python_version(), **packages, "code": _code()}


@lru_cache(maxsize=1)
def _code() -> str:
    """A digest of our code."""
    digest, root = hashlib.sha256(), Path(anomaly_times.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _nodes(ray: Any) -> list[Node]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(_versions)
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    asked = [
        ask.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            runtime_env={"env_vars": ONE_THREAD},
        ).remote()
        for node in alive
    ]
    deadline = time.monotonic() + _PROBING
    return [
        _asked(ray, node, answer, max(0.0, deadline - time.monotonic()))
        for node, answer in zip(alive, asked, strict=True)
    ]


def _asked(ray: Any, node: Mapping[str, Any], answer: Any, patience: float) -> Node:
    resources, versions, error = node["Resources"], dict[str, str](), ""
    try:
        versions = ray.get(answer, timeout=patience)
    except ray.exceptions.GetTimeoutError:
        error = "it starts no worker"
    except ray.exceptions.RayError as exc:
        missing = "No module named" in str(exc)
        error = "anomaly-times is not installed there" if missing else " ".join(str(exc).split())[-300:]
    ours = _versions()
    if versions and versions != ours:
        error = "; ".join(
            f"it has {name} {versions.get(name, 'unknown')}, we have {version}"
            for name, version in ours.items()
            if versions.get(name) != version
        )
    address = node["NodeManagerAddress"]
    return Node(address, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), versions, error)
