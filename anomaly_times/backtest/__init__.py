"""What missions would have done: forecasts, scores and alerts over a stretch of the past.

`prepare` reads the values, each query once, and `run` replays the missions through the passes that production runs:
local, without a scheduler, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from anomaly_times.backtest.accuracy import Accuracy, measure_accuracy
from anomaly_times.backtest.alerts import Alerts, find_alerts
from anomaly_times.backtest.incidents import Labelled, Outcome, Verdict, judge
from anomaly_times.backtest.replay import Job, Recording, Replayed, record, replay
from anomaly_times.durations import format_duration
from anomaly_times.errors import AnomalyTimesError, MissionError, UsageError, in_our_words
from anomaly_times.mission import Detect, Mission
from anomaly_times.models import build_model
from anomaly_times.panel import Forecast, Grid, Scores
from anomaly_times.passes import Mapper
from anomaly_times.stores import Store

__all__ = [
    "AS_IT_IS",
    "BEFORE",
    "Accuracy",
    "Alerts",
    "Backtest",
    "Cost",
    "Labelled",
    "Outcome",
    "Prepared",
    "Trial",
    "Variant",
    "Verdict",
    "Version",
    "Watch",
    "pair_up",
    "prepare",
    "prepare_versions",
    "run",
]

MAX_POINTS = 30_000_000
"""Of a mission's window: a gigabyte and a half of values, forecasts, bounds and scores."""
_DAY, _HOLE = timedelta(days=1), timedelta(hours=1)


@dataclass(frozen=True)
class Variant:
    """An alternative to missions as they are: other fields, by their path, or a yardstick in place of the model.

    `name` is what people call it: `model=lgbm`, or the yardstick's title.
    """

    name: str
    fields: Mapping[tuple[str, ...], Any] | None = None
    yardstick: str = ""

    def of(self, mission: Mission) -> Mission:
        """The mission under this alternative.

        Raises:
            MissionError: the mission cannot be so.
        """
        fields = dict(self.fields or {})
        if self.yardstick:
            # A rule by hand knows points alone.
            fields = {("detect", "evidence"): "point", ("forecast", "level"): None}
        spec = mission.model_dump(mode="json", exclude_unset=True)
        if ("detect", "alerts_per_week") in fields:
            fields.setdefault(("forecast", "level"), None)
        if fields.get(("forecast", "level")) is not None:
            for name in ("alerts_per_week", "per"):
                fields.setdefault(("detect", name), getattr(Detect(), name))
        for path, value in fields.items():
            inner = spec
            for parent in path[:-1]:
                inner = inner.setdefault(parent, {})
            inner[path[-1]] = value
        try:
            return Mission.model_validate(spec)
        except ValidationError as exc:
            text = "; ".join(in_our_words(each["msg"]) for each in exc.errors(include_url=False, include_input=False))
            raise MissionError(f"mission {mission.name} cannot be run with {self.name}: {text}") from None


AS_IT_IS = Variant("as it is")
"""Missions as their files say."""
BEFORE = Variant("before")
"""Missions as their files said earlier."""


@dataclass(frozen=True)
class Cost:
    """What a mission takes a day, live: forecast and detection passes, points read, CPU time of models and scoring."""

    forecasts: float
    detections: float
    points: float
    cpu_seconds: float

    @property
    def queries(self) -> float:
        """How often values are asked for; a pass's scores, forecasts and evidence are asked for once for a pack."""
        return self.forecasts + self.detections


@dataclass(frozen=True, eq=False)
class Trial:
    """What a mission would have done under a variant; `error` says why nothing.

    `verdict` is there where incidents are labelled. `broken` says what its `backtest:` asks for and did not get.
    """

    mission: Mission
    variant: Variant
    grid: Grid
    error: AnomalyTimesError | None = None
    scores: Scores | None = None
    alerts: Alerts | None = None
    accuracy: Accuracy | None = None
    verdict: Verdict | None = None
    cost: Cost | None = None
    notes: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Backtest:
    """What missions would have done as they are, in their order, and under each alternative."""

    trials: tuple[Trial, ...]
    alternatives: Mapping[str, tuple[Trial, ...]]

    def needless(self, position: int) -> tuple[str, ...]:
        """Which rules by hand found as many incidents of a mission as it did itself, with no more false alarms.

        By the position of the mission; none where no incident is labelled, or nothing finds any.
        """
        own = self.trials[position].verdict
        if own is None or not own.outcomes:
            return ()
        better = []
        for name, trials in self.alternatives.items():
            other = trials[position]
            if other.variant.yardstick and (verdict := other.verdict) is not None:
                as_good = verdict.found >= max(1, own.found) and len(verdict.false_alarms) <= len(own.false_alarms)
                better += [name] if as_good else []
        return tuple(better)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Missions with the values that they need, ready to `run`; those that cannot be have their error."""

    jobs: tuple[tuple[Variant, Job | Trial], ...]
    incidents: tuple[Labelled, ...]
    n_missions: int

    @property
    def forecasts(self) -> int:
        """How many forecasts will be made."""
        return sum(len(job.times()) for _, job in self.jobs if isinstance(job, Job))


def prepare(
    missions: Sequence[Mission],
    stores: Mapping[str, Store],
    *,
    now: datetime,
    last: timedelta | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    incidents: Sequence[Labelled] = (),
    variants: Sequence[Variant] = (),
    mapper: Mapper = map,
    on_done: Callable[[], None] = lambda: None,
) -> Prepared:
    """Read what missions need to be replayed, each in one query.

    Args:
        missions: what to replay.
        stores: by the source that missions name.
        now: with a time zone; what is complete then is the end of what can be replayed.
        last: replay so long before `now`.
        start: replay from here on, instead.
        end: up to here; `now` by default.
        incidents: what went wrong, besides what the missions say themselves.
        variants: alternatives, run on the same values.
        mapper: runs the reading of missions.
        on_done: called after each mission.

    Raises:
        UsageError: the window is empty.
        MissionError: a mission cannot be so as a variant says.
        ModelError: a variant names a model that cannot be built.
    """
    variants = (AS_IT_IS, *variants)

    def one(mission: Mission) -> list[tuple[Variant, Job | Trial]]:
        grid = _window(mission, now=now, last=last, start=start, end=end)
        made = [(variant, variant.of(mission)) for variant in variants]
        try:
            for _, each in made[1:]:
                # An alternative that cannot be would look like one that never alerts.
                if each.forecast.model != mission.forecast.model:
                    build_model(each.forecast.model, season=each.season, timezone=each.timezone)
            return _read(made, stores, grid)
        finally:
            on_done()

    found = list(mapper(one, missions))
    own = [Labelled(incident, mission.name) for mission in missions for incident in mission.incidents]
    in_order = [of_one[k] for k in range(len(variants)) for of_one in found]
    return Prepared(tuple(in_order), (*own, *incidents), len(missions))


def _read(
    made: Sequence[tuple[Variant, Mission]], stores: Mapping[str, Store], grid: Grid
) -> list[tuple[Variant, Job | Trial]]:
    """The jobs of missions that are alike in query, source and step, on one reading; an error each where it fails."""
    mission = made[0][1]
    try:
        if mission.source not in stores:
            raise MissionError(
                f"mission {mission.name} names the source {mission.source!r}, which is not open",
                hint="name a source from the settings",
            )
        recording = record([each for _, each in made], stores[mission.source], grid)
        _refuse_too_many(mission, recording, grid)
    except AnomalyTimesError as exc:
        return [(variant, Trial(each, variant, grid, exc)) for variant, each in made]
    return [(variant, Job(each, recording, grid, variant.yardstick)) for variant, each in made]


@dataclass(frozen=True)
class Version:
    """A mission as it was and as it is: one of them is `None` where it is new, or was deleted."""

    before: Mission | None
    after: Mission | None

    @property
    def newest(self) -> Mission:
        """As it is, or was at last."""
        mission = self.after or self.before
        if mission is None:
            raise ValueError("a version is of a mission")
        return mission

    @property
    def alike(self) -> bool:
        """Whether both would do the same: what differs is said to people only, or is about what is written."""
        if self.before is None or self.after is None:
            return False
        return _replayed_fields(self.before) == _replayed_fields(self.after)

    @property
    def missions(self) -> tuple[tuple[Variant, Mission], ...]:
        """What is to be replayed of it, the newest first."""
        after = [] if self.after is None else [(AS_IT_IS, self.after)]
        before = [] if self.before is None or self.alike else [(BEFORE, self.before)]
        return (*after, *before)


def _replayed_fields(mission: Mission) -> dict[str, Any]:
    beside = {"description", "silence", "isolated", "incidents", "backtest", "labels", "write"}
    fields = mission.model_dump(exclude=beside)
    del fields["alert"]["labels"]
    return fields


def prepare_versions(
    versions: Sequence[Version],
    stores: Mapping[str, Store],
    *,
    now: datetime,
    last: timedelta | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    incidents: Sequence[Labelled] = (),
    mapper: Mapper = map,
    on_done: Callable[[], None] = lambda: None,
) -> Prepared:
    """Read what missions need to be replayed as they were and as they are: in one query where query and step stayed.

    Both are judged by the incidents that the newest version labels. The arguments, and the errors raised, are those of
    `prepare`; `pair_up` tells the trials of what is then `run` apart.
    """

    def one(version: Version) -> list[tuple[Variant, Job | Trial]]:
        groups: dict[tuple[object, ...], list[tuple[Variant, Mission]]] = {}
        for variant, mission in version.missions:
            groups.setdefault((mission.promql, mission.source, mission.step), []).append((variant, mission))
        try:
            windows = [_window(group[0][1], now=now, last=last, start=start, end=end) for group in groups.values()]
            return [
                job for group, grid in zip(groups.values(), windows, strict=True) for job in _read(group, stores, grid)
            ]
        finally:
            on_done()

    jobs = tuple(job for of_one in mapper(one, versions) for job in of_one)
    own = [Labelled(incident, each.newest.name) for each in versions for incident in each.newest.incidents]
    return Prepared(jobs, (*own, *incidents), len(jobs))


def pair_up(versions: Sequence[Version], result: Backtest) -> tuple[tuple[Trial | None, Trial | None], ...]:
    """The trials of each version, as it was and as it is."""
    trials = iter(result.trials)
    pairs = []
    for version in versions:
        of_it = {variant.name: next(trials) for variant, _ in version.missions}
        after = of_it.get(AS_IT_IS.name)
        pairs.append((after if version.alike else of_it.get(BEFORE.name), after))
    return tuple(pairs)


def _window(
    mission: Mission, *, now: datetime, last: timedelta | None, start: datetime | None, end: datetime | None
) -> Grid:
    """The points to replay: of times that are complete at `now`."""
    newest = mission.last_time(now if end is None else min(now, end + mission.offset))
    if start is None:
        grid = Grid.ending(newest, mission.step, max(1, (last or 28 * _DAY) // mission.step))
    else:
        grid = Grid.covering(start, newest, mission.step)
    if grid.n < 1:
        raise UsageError(
            f"there is no point of mission {mission.name} from {start} to {newest}",
            hint=f"its step is {format_duration(mission.step)}, and --from must lie before --to and before now",
        )
    return grid


def _refuse_too_many(mission: Mission, recording: Recording, grid: Grid) -> None:
    points = recording.panel.n_series * grid.n
    if points > MAX_POINTS:
        raise MissionError(
            f"mission {mission.name} has {points:,} points in this window, and {MAX_POINTS:,} fit into memory",
            hint="take a shorter window, or narrow the query by labels",
        )


class Watch(Protocol):
    """Looks on while missions are replayed."""

    def on_forecast(self, mission: Mission, made: Forecast, /) -> object:
        """Told each forecast of a mission, in order of time."""
        ...

    def on_scores(self, mission: Mission, scores: Scores, /) -> object:
        """Told the scores of each stretch likewise, with all that is kept beside them, after their forecasts."""
        ...


def run(
    prepared: Prepared,
    *,
    workers: int | None = None,
    on_done: Callable[[int], None] = lambda _: None,
    watch: Watch | None = None,
) -> Backtest:
    """Replay what was prepared.

    Args:
        prepared: from `prepare`.
        workers: processes; as many as there are processors by default.
        on_done: told how many forecasts were just made.
        watch: told what was made and found.

    Raises:
        MissionError: the `match` of an incident is no selector.
    """
    jobs = [job for _, job in prepared.jobs if isinstance(job, Job)]
    if watch is None:
        done = replay(jobs, workers=workers, on_done=on_done)
    else:
        done = replay(jobs, workers=workers, on_done=on_done, on_forecast=watch.on_forecast, on_scores=watch.on_scores)
    replayed = iter(done)
    trials = [
        _trial(variant, next(replayed), prepared.incidents) if isinstance(job, Job) else job
        for variant, job in prepared.jobs
    ]
    n = prepared.n_missions
    by_variant = [tuple(trials[i : i + n]) for i in range(0, len(trials), n)] if n else [()]
    return Backtest(by_variant[0], {group[0].variant.name: group for group in by_variant[1:]})


def _trial(variant: Variant, replayed: Replayed, incidents: Sequence[Labelled]) -> Trial:
    job = replayed.job
    mission, scores = job.mission, replayed.scores
    if scores is None:
        return Trial(mission, variant, job.grid, replayed.error)
    alerts = find_alerts(mission, scores)
    mine = [each for each in incidents if each.mission in ("", mission.name)]
    verdict = judge(mission.name, mine, alerts.found, scores.labels, job.grid) if mine else None
    trial = Trial(
        mission,
        variant,
        job.grid,
        None,
        scores,
        alerts,
        measure_accuracy(mission, job.recording, scores),
        verdict,
        _cost(replayed),
        _notes(replayed, verdict),
    )
    return replace(trial, broken=_broken(trial))


def _cost(replayed: Replayed) -> Cost:
    """What a day takes live: a forecast reads the lookback, a detection the values since the last but two."""
    job = replayed.job
    mission, n_series = job.mission, job.recording.panel.n_series
    forecasts, detections = _DAY / mission.forecast.period, _DAY / mission.detect.period
    if job.yardstick:
        forecasts = 1.0
    history = max(2, mission.forecast.lookback // mission.step)
    recent = 1 + max(1, 3 * max(mission.detect.period, mission.step) // mission.step)
    return Cost(
        forecasts,
        detections,
        n_series * (forecasts * history + detections * recent),
        forecasts * replayed.cpu_forecast + detections * replayed.cpu_detect,
    )


def _notes(replayed: Replayed, verdict: Verdict | None) -> tuple[str, ...]:
    """What a reader should know of how far the figures carry."""
    job = replayed.job
    grid, have = job.grid, job.recording.panel
    lasts = grid.n * grid.step
    notes = [*replayed.warnings]
    if replayed.failed:
        worst = max(replayed.failed, key=lambda message: replayed.failed[message])
        failed = sum(replayed.failed.values())
        notes.append(f"{failed:,} of {failed + replayed.forecasts:,} forecasts could not be made: {worst}")
    if lasts < _DAY:
        notes.append(f"the window of {format_duration(lasts)} is shorter than a day, and tells nothing of a week")
    elif lasts < (season := max(job.mission.season or (_DAY,))):
        text = f"the window of {format_duration(lasts)} is shorter than the season of {format_duration(season)}"
        notes.append(f"{text}: what comes once in a season may not have come")
    if replayed.scores is not None:
        empty = int((~np.isfinite(replayed.scores.y).any(axis=0)).sum()) * grid.step
        if empty >= _HOLE:
            notes.append(f"for {format_duration(empty)} of the window no series has a value, so nothing is scored then")
    begins = have.grid.start + int(np.isfinite(have.y).any(axis=0).argmax()) * have.grid.step
    wanted = grid.start - job.mission.forecast.lookback
    if begins > wanted + _DAY:
        shown = f"{format_duration(grid.start - begins)} before the window" if begins < grid.start else "inside of it"
        notes.append(f"the history begins {shown}: the first forecasts knew less than the lookback")
    if verdict is not None and verdict.outside:
        notes.append(f"outside of the window, and not counted: {verdict.outside:,} of the labelled incidents")
    if verdict is not None and verdict.unseen:
        notes.append(f"about no series here, and not counted: {verdict.unseen:,} of the labelled incidents")
    return tuple(notes)


def _broken(trial: Trial) -> tuple[str, ...]:
    """What the mission's `backtest:` asks for and did not get."""
    gate, alerts, verdict = trial.mission.backtest, trial.alerts, trial.verdict
    broken = []
    most = gate.max_alerts_per_week
    if most is not None and alerts is not None and alerts.per_week > most:
        broken.append(f"{alerts.per_week:.2f} alerts a week, and {most:g} are allowed")
    outcomes = {each.name: each for each in verdict.outcomes} if verdict is not None else {}
    for name in gate.must_detect:
        if name not in outcomes:
            broken.append(f"{name} must be found, and is no incident of this window")
        elif not outcomes[name].found:
            broken.append(f"{name} must be found, and is not")
    return tuple(broken)
