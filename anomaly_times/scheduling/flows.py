"""The flows that Prefect schedules, `forecasting` and `detection`, and tasks for flows of one's own.

Both flows take the same parameters, so one set serves both of a query's schedules. What to work on is one of `promql`
(a query, with everything about it in the other parameters), `mission` (deployed ones, by name) or `pack` (the slug of
a schedule that `at mission apply` made). The time to work for is always now: a run that is late does what its newer
neighbours would have done, and they find it done.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, get_run_logger, task
from prefect.artifacts import acreate_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from anomaly_times.conventions import BY_HAND, MISSION_NAME, Kind, mission_of_variable, pack_tag, variable_name
from anomaly_times.deployed import from_value
from anomaly_times.durations import parse_duration
from anomaly_times.engine import Job, Places, Processes, Ran, default_jobs, open_engine
from anomaly_times.errors import AnomalyTimesError, MissionError, PrefectError, UsageError
from anomaly_times.mission import Direction, Missing, Mission, Watched
from anomaly_times.monitoring import About
from anomaly_times.outcome import Outcome
from anomaly_times.panel import Grid, Panel
from anomaly_times.passes import (
    DetectResult,
    ForecastResult,
    detect_pass,
    forecast_pass,
    write_forecasts,
    write_scores,
)
from anomaly_times.scheduling.handmade import mission_by_hand
from anomaly_times.scheduling.lease import hold
from anomaly_times.scheduling.server import PAGE, joined
from anomaly_times.scoring import format_score
from anomaly_times.settings import Settings, WriteMode, load_settings
from anomaly_times.stores import Store, Written, open_store
from anomaly_times.stores.prometheus import PrometheusStore

__all__ = ["detect", "detection", "forecast", "forecasting", "read", "write"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_READS = 20
"""Attempts to read a list that changes while it is read."""
_NAMED = 10
"""Missions that a message names, at most; all are in the table."""
_WORST = 3
_PATIENCE = timedelta(minutes=10)


class _Name(str):
    """A parameter's name that passes for an identifier, as a schedule's `model-type` is none."""

    __slots__ = ()

    def isidentifier(self) -> bool:
        return True


class _CheckedFlow(Flow[P, R]):
    """A flow that says which of its parameters does not exist: Prefect lets a schedule hold anything.

    Left alone, Prefect's engine ends such a run as Crashed, with all parameters in a traceback, before any code of a
    flow is reached: it binds what the run was given to the signature of the function. So in the process of a run that
    brings more, the signature has it too, and the run comes as far as `validate_parameters`.
    """

    def __init__(self, fn: Callable[P, R], name: str | None = None, **options: Any) -> None:
        super().__init__(fn, name=name, **options)
        signature = inspect.signature(fn)
        self._known = list(signature.parameters)
        given = [_Name(other) for other in flow_run.parameters or {} if other not in self._known]
        if given and flow_run.flow_name == name:
            strange = [inspect.Parameter(other, inspect.Parameter.KEYWORD_ONLY, default=None) for other in given]
            fn.__signature__ = signature.replace(  # type: ignore[attr-defined]
                parameters=[*signature.parameters.values(), *strange]
            )

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters with their values cast to their types.

        Raises:
            ParameterTypeError: one is unknown, or its value cannot be.
        """
        for name in parameters:
            if name not in self._known:
                near = get_close_matches(name, self._known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._known)}"
                raise ParameterTypeError(f"there is no parameter {name!r}; {hint}")
        return super().validate_parameters(parameters)


def _flow(name: str, description: str) -> _CheckedFlow[..., Coroutine[Any, Any, State[None]]]:
    async def run(
        promql: str | None = None,
        mission: str | list[str] | None = None,
        pack: str | None = None,
        model_type: str = "auto",
        model_params: dict[str, Any] | None = None,
        name: str | None = None,
        source: str = "",
        step: str = "1m",
        lookback: str = "14d",
        horizon: str | None = None,
        every: str = "1h",
        alerts_per_week: float | None = None,
        level: float | None = None,
        evidence: Watched = "all",
        offset: str = "30s",
        timezone: str = "UTC",
        season: str | list[str] | None = None,
        max_series: int = 10_000,
        labels: dict[str, str] | None = None,
        interval_scale: float | list[float] = 1.0,
        direction: Direction = "both",
        min_deviation: float | list[float] = 0.0,
        min_relative_deviation: float | str | list[float | str] = 0.0,
        valid_range: list[float] | None = None,
        missing: Missing = "ignore",
        catch_up: str = "1h",
    ) -> State[None]:
        """Run once, for now.

        Args:
            promql: the query; all other parameters but `mission` and `pack` are about it.
            mission: the name of a deployed mission, or of several, instead.
            pack: the slug of a pack of deployed missions, instead.
            model_type: the model that forecasts, see `at models`; no effect on a detection.
            model_params: parameters of the model.
            name: the label `mission` of results; derived from source and query by default.
            source: a source from the settings; the default one if empty.
            step: time between two points.
            lookback: history that a forecast learns from.
            horizon: how far a forecast reaches; twice `every` by default.
            every: how often a forecast is made.
            alerts_per_week: false alarms that normal data may raise, each series; half a one by default.
            level: per cent of normal points inside the bounds, instead.
            evidence: all, or point: points alone.
            offset: how late samples may arrive.
            timezone: IANA name; days and weeks of the season begin by its clock.
            season: `auto`, `none`, or periods like [1d, 1w].
            max_series: refuse a query that answers more.
            labels: added to everything written.
            interval_scale: widens the bounds: a number, or [below, above].
            direction: which side counts: both, above or below.
            min_deviation: smaller deviations score 0: a number, or [below, above].
            min_relative_deviation: the same, as a share of the forecast: 0.2, or 20%.
            valid_range: values that can be: [lowest, highest].
            missing: what an expected point that is not there means: ignore, zero or anomaly.
            catch_up: how far back a late detection goes.
        """
        return await _run(given=locals())

    run.__name__ = run.__qualname__ = name
    # Results are in the store of the metrics; Prefect keeps none.
    return _CheckedFlow(run, name, description=description, persist_result=False, cache_result_in_memory=False)


forecasting = _flow(
    "forecasting",
    "Forecast a query, a deployed mission, or a pack of them, and store the forecasts with their bounds.",
)
detection = _flow(
    "detection",
    "Score what a query, a deployed mission, or a pack of them has not scored yet, and store the scores.",
)


@task(persist_result=False, cache_policy=NO_CACHE)
async def read(promql: str, *, step: str = "1m", last: str = "1d", source: str = "") -> Panel:
    """The series of a query over the time `last` up to now, as a panel.

    Raises:
        AnomalyTimesError: what `Store.read` raises, or an unknown source or malformed duration.
    """
    spacing = parse_duration(step)
    grid = Grid.ending(datetime.now(UTC), spacing, max(1, parse_duration(last) // spacing))

    def work() -> Panel:
        settings = load_settings()
        with open_store(settings.named_source(source)[1], state=settings.state_url) as store:
            return store.read(promql, grid)

    return await asyncio.to_thread(work)


@task(persist_result=False, cache_policy=NO_CACHE)
async def forecast(missions: Sequence[Mission], *, now: datetime | None = None) -> list[ForecastResult]:
    """Forecasts of these missions, from what their sources hold; nothing is stored.

    A mission that fails has its error in its result.

    Raises:
        AnomalyTimesError: the settings are wrong, or lack a mission's source.
    """

    def work() -> list[ForecastResult]:
        with _opened(missions) as stores, Processes() as processes, ThreadPoolExecutor(default_jobs()) as pool:
            at = now or datetime.now(UTC)
            return forecast_pass(missions, stores, now=at, mapper=pool.map, blocks=processes.map)

    return await asyncio.to_thread(work)


@task(persist_result=False, cache_policy=NO_CACHE)
async def detect(
    missions: Sequence[Mission], *, now: datetime | None = None, since: Mapping[str, datetime] | None = None
) -> list[DetectResult]:
    """Scores of what these missions have not scored yet; nothing is stored.

    A mission that fails has its error in its result. `since` as in `detect_pass`.

    Raises:
        AnomalyTimesError: the settings are wrong, or lack a mission's source.
    """

    def work() -> list[DetectResult]:
        with _opened(missions) as stores, ThreadPoolExecutor(default_jobs()) as pool:
            return detect_pass(missions, stores, now=now or datetime.now(UTC), mapper=pool.map, since=since)

    return await asyncio.to_thread(work)


@task(persist_result=False, cache_policy=NO_CACHE)
async def write(results: Sequence[ForecastResult | DetectResult]) -> Written:
    """Store these forecasts and scores in the sources of their missions; results with an error are passed over.

    Raises:
        AnomalyTimesError: the first that a write met, when all were tried.
    """
    sound = [result for result in results if result.error is None]

    def work() -> Written:
        with _opened([result.mission for result in sound]) as stores:
            forecasts, sent = write_forecasts([r for r in sound if isinstance(r, ForecastResult)], stores)
            scores, more = write_scores([r for r in sound if isinstance(r, DetectResult)], stores)
        for error in [*(result.error for result in forecasts), *(result.error for result in scores)]:
            if error is not None:
                raise error
        return sent + more

    return await asyncio.to_thread(work)


@dataclass(frozen=True)
class _Work:
    """What a run is about: missions with their `since`, and by name the errors of those that could not be read.

    `paused` counts members that were left out; `resting` names missions that are paused and were asked for.
    """

    missions: Sequence[Mission]
    since: Mapping[str, datetime] = field(default_factory=dict)
    broken: Mapping[str, AnomalyTimesError] = field(default_factory=dict)
    paused: int = 0
    resting: Collection[str] = ()


async def _run(given: Mapping[str, Any]) -> State[None]:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("a flow runs inside of a flow run")
    kind: Kind = "detect" if context.flow is not None and context.flow.fn is detection.fn else "forecast"
    run = context.flow_run
    try:
        settings = load_settings()
        what, which = _subject(given, kind, run)
        # Before missions are read: what is made of one that changes meanwhile is older than its new `since`.
        now = datetime.now(UTC)
        if what == "promql":
            return await _work(kind, _Work([mission_by_hand(given, settings)]), settings, now)
        async with get_client() as client:
            if what == "mission":
                return await _work(kind, await _named(client, which, now), settings, now)
            # A slot that is lost comes again; a run that somebody asked for does not.
            terms: dict[str, Any] = {"due": run.expected_start_time} if run.auto_scheduled else {"patience": _PATIENCE}
            async with hold(client, which[0], run=run.name, **terms) as lease:
                if lease.refused:
                    return Completed(name="Skipped", message=lease.refused)
                now = datetime.now(UTC)
                members = await _members(client, which[0], now)
                state = await _work(kind, members, settings, now, pack=which[0], check=lease.check)
                # Failed or not: another run for an older slot would meet the same.
                lease.done = now
                return state
    except AnomalyTimesError as exc:
        get_run_logger().error(_sentence(exc))
        return Failed(message=_sentence(exc))


def _subject(given: Mapping[str, Any], kind: Kind, run: FlowRun) -> tuple[str, list[str]]:
    """Which of `promql`, `mission`, `pack` says what to work on, and what it says; only `mission` may say several.

    Raises:
        UsageError: none of them, or several, or a pack of the other flow.
    """
    said: dict[str, list[str]] = {}
    for what in ("promql", "mission", "pack"):
        words = [given[what]] if isinstance(given[what], str) else given[what] or []
        if kept := [word.strip() for word in words if word.strip()]:
            said[what] = kept
    creator = run.created_by
    if not said and creator is not None and creator.type == "SCHEDULE":
        # Prefect empties a schedule's parameters when somebody switches it on or off by its API; ours has its slug.
        slug = creator.display_value or ""
        said = {"pack": [slug]} if slug.startswith("at:") else {}
    if not said:
        raise UsageError(
            "the run has neither `promql` nor `mission` nor `pack`, so there is nothing to work on",
            hint='give its schedule parameters like {"promql": "up"}; Prefect empties them when a schedule is switched '
            "on or off by its API",
        )
    if len(said) > 1:
        raise UsageError(f"{' and '.join(said)} say two things", hint="give one of them")
    what, which = said.popitem()
    if what == "pack" and f":{kind}:" not in which[0]:
        raise UsageError(f"{which[0]} is no {kind} pack", hint="the other flow runs it")
    return what, which


async def _named(client: PrefectClient, names: Sequence[str], now: datetime) -> _Work:
    """Deployed missions by name, paused or not: somebody asked for them."""
    variables = {variable_name(name) for name in names if MISSION_NAME.fullmatch(name)}
    found: list[dict[str, Any]] = []
    for chunk in (sorted(variables)[i : i + PAGE] for i in range(0, len(variables), PAGE)):
        asked = {"variables": {"name": {"any_": chunk}}, "limit": PAGE}
        found += (await client.request("POST", "/variables/filter", json=asked)).json()
    known = {mission_of_variable(variable["name"]) for variable in found}
    missing: dict[str, AnomalyTimesError] = {
        name[:64]: MissionError(f"no mission {name[:64]} is deployed", hint="see `at mission list`, or apply its file")
        for name in names
        if name not in known
    }
    work = _work_of(found, now, asked=True)
    return replace(work, broken={**work.broken, **missing})


async def _members(client: PrefectClient, slug: str, now: datetime) -> _Work:
    """The missions of a pack that are not paused.

    Raises:
        MissionError: it has no mission at all.
    """
    work = _work_of(await _tagged(client, pack_tag(slug)), now)
    if not (work.missions or work.broken or work.paused):
        raise MissionError(
            f"no deployed mission is in the pack {slug}",
            hint="is it spelt right? `at mission apply` removes the schedules of packs that are empty",
        )
    return work


def _work_of(variables: Sequence[Mapping[str, Any]], now: datetime, *, asked: bool = False) -> _Work:
    """The missions that Variables hold, less those that are paused at `now` unless they are `asked` for."""
    missions, since, broken, resting = [], {}, {}, []
    for variable in variables:
        try:
            deployed = from_value(variable["name"], variable["value"], variable["tags"])
        except MissionError as exc:
            broken[mission_of_variable(variable["name"]) or variable["name"]] = exc
            continue
        pause = deployed.paused
        if pause is not None and (pause.until is None or pause.until > now):
            resting.append(deployed.mission.name)
            if not asked:
                continue
        missions.append(deployed.mission)
        since[deployed.mission.name] = deployed.since
    if asked:
        return _Work(missions, since, broken, resting=resting)
    return _Work(missions, since, broken, paused=len(resting))


async def _tagged(client: PrefectClient, tag: str) -> Sequence[Mapping[str, Any]]:
    """All Variables with a tag, none left out however many come and go meanwhile."""
    asked = {"variables": {"tags": {"all_": [tag]}}, "sort": "NAME_ASC", "limit": PAGE}
    for _ in range(_READS):
        pages: list[list[dict[str, Any]]] = []
        while not pages or len(pages[-1]) == PAGE:
            body = {**asked, "offset": len(pages) * (PAGE - 1)}
            pages.append((await client.request("POST", "/variables/filter", json=body)).json())
        found = joined(pages)
        if found is not None:
            return found
    raise PrefectError("the missions of the pack change while they are read", hint="its next run tries again")


async def _work(
    kind: Kind,
    work: _Work,
    settings: Settings,
    now: datetime,
    *,
    pack: str = BY_HAND,
    check: Callable[[], None] = lambda: None,
) -> State[None]:
    """Run the pass, store what it gives, and tell how it went.

    `check` raises where the run must go no further; it is asked before each mission, and before anything is stored.
    """

    def run() -> Ran:
        with _stores(work, settings) as (opened, refused):
            job = Job(
                *(kind, work.missions, now),
                since=work.since,
                about=About(settings.project, pack),
                refused=refused,
                resting=work.resting,
                unreadable=work.broken,
            )
            sources = {name: settings.named_source(name)[1] for name in opened}
            places = Places(sources, settings.state_url, settings.history_cache_bytes)
            with open_engine(settings.engine, places, address=settings.ray_address) as engine:
                return engine.run(job, opened, check=check)

    ran = await asyncio.to_thread(run)
    for text in ran.untold:
        get_run_logger().warning(text)
    failed = {outcome.mission.name: outcome.error for outcome in ran.outcomes if outcome.error is not None}
    return await _report(kind, work, ran.outcomes, {**work.broken, **failed}, ran.written or Written())


async def _report(
    kind: Kind,
    work: _Work,
    outcomes: Sequence[Outcome],
    errors: Mapping[str, AnomalyTimesError],
    written: Written,
) -> State[None]:
    """The final state of the run; a line or two in its log; a table where something failed or was forecast."""
    logger = get_run_logger()
    total = len(work.missions) + len(work.broken)
    summary = [
        _missions(total - len(errors), "forecast" if kind == "forecast" else "scored"),
        f"{written.samples:,} samples stored",
    ]
    if work.paused:
        summary.append(f"{work.paused} paused")
    worst = _worst(outcomes)
    if worst:
        summary.append(f"worst scores: {worst}")
    if errors:
        summary.append(f"{len(errors)} failed: {_some(errors)}")
        logger.error("; ".join(f"{name}: {_sentence(exc)}" for name, exc in itertools.islice(errors.items(), _NAMED)))
    warned = {outcome.mission.name: "; ".join(outcome.warnings) for outcome in outcomes if outcome.warnings}
    if warned:
        logger.warning("; ".join(f"{name}: {text}" for name, text in itertools.islice(warned.items(), _NAMED)))
    message = ", ".join(summary)
    logger.info(message)
    rows = [_row(outcome, warned) for outcome in outcomes if kind == "forecast" and not outcome.error]
    rows += [{"mission": name, "error": _sentence(exc)} for name, exc in errors.items()]
    if rows:
        # Prefect's keys know no colon, and the table of one flow replaces its last one.
        await acreate_table_artifact(rows, key=f"{kind}-missions", description=message)
    if 2 * len(errors) >= total > 0:
        only = next(iter(errors.values()))
        return Failed(message=_sentence(only) if total == 1 else message)
    return Completed(name="Partial", message=message) if errors else Completed(message=message)


def _row(outcome: Outcome, warned: Mapping[str, str]) -> dict[str, Any]:
    return {
        "mission": outcome.mission.name,
        "series": outcome.series,
        "until": outcome.until.isoformat() if outcome.until is not None else "",
        "ended": outcome.ended,
        "warnings": warned.get(outcome.mission.name, ""),
    }


def _worst(outcomes: Sequence[Outcome]) -> str:
    """The highest scores of this pass that are over 0, each of another mission."""
    found = [
        (worst.score, f"{outcome.mission.name}{worst.labels}")
        for outcome in outcomes
        if (worst := outcome.worst) is not None and worst.score > 0 and outcome.error is None
    ]
    return ", ".join(f"{name} {format_score(score)}" for score, name in sorted(found, reverse=True)[:_WORST])


def _missions(count: int, done: str) -> str:
    return f"{count} mission{'' if count == 1 else 's'} {done}"


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(itertools.islice(names, _NAMED)) + more


def _sentence(exc: AnomalyTimesError) -> str:
    return f"{exc.message}; {exc.hint}" if exc.hint else exc.message


@contextmanager
def _stores(work: _Work, settings: Settings) -> Iterator[tuple[Mapping[str, Store], Mapping[str, AnomalyTimesError]]]:
    """The stores of these missions by the source that they name, and by mission why one cannot be used.

    The default one too, where that can be had, if it is to be told of missions that cannot be read.
    """
    with ExitStack() as stack:
        stores: dict[str, Store] = {}
        refused: dict[tuple[str, WriteMode], AnomalyTimesError | None] = {}

        def opened(name: str) -> Store:
            if name not in stores:
                _, source = settings.named_source(name)
                stores[name] = stack.enter_context(open_store(source, state=settings.state_url))
            return stores[name]

        for mission in work.missions:
            key = mission.source, mission.write
            if key in refused:
                continue
            try:
                refused[key] = _lost_state(opened(mission.source), mission, settings)
            except AnomalyTimesError as exc:
                refused[key] = exc
        if work.broken:
            with suppress(AnomalyTimesError):
                opened("")
        by_name = {mission.name: refused[mission.source, mission.write] for mission in work.missions}
        yield stores, {name: exc for name, exc in by_name.items() if exc is not None}


@contextmanager
def _opened(missions: Sequence[Mission]) -> Iterator[Mapping[str, Store]]:
    with _stores(_Work(missions), load_settings()) as (stores, refused):
        for exc in refused.values():
            raise exc
        yield stores


def _lost_state(store: Store, mission: Mission, settings: Settings) -> AnomalyTimesError | None:
    """Why forecasts that wait for their time would be lost: a process worker's runs have a working folder each."""
    if settings.state_url.is_absolute() or not isinstance(store, PrometheusStore) or store.writes_ahead(mission):
        return None
    return UsageError(
        f"forecasts for {store.name} wait in {settings.state_url}, which is another folder in every run",
        hint="set AT_STATE_URL to an absolute path that all workers share",
    )
