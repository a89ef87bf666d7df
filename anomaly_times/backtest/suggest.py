"""What to change in a mission so that it keeps to so many alerts a week and still tells of its incidents.

Forecasts are the cost of a backtest, and gates have no part in them: evidence, limits and bounds are the same whatever
`direction`, `min_deviation` or `alert.for` say. So each sensitivity is replayed once, `Traces` keeps the points that
are over a limit under no gates at all, and every other setting is judged on those, exactly as live passes would.

Settings are chosen on the first two thirds of the window, cut where no incident lasts, and what they do in the rest,
which had no say, stands beside it. Of those that keep to the budget and find what the mission finds already, the one
that finds most is taken, then the smallest change: steps on the ladders below, and one for each field. One step more is
taken where that gives room: a fifth of the budget to spare, and nothing lost a step further on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_times import scoring
from anomaly_times.backtest import AS_IT_IS, Prepared, Trial, Variant
from anomaly_times.backtest.alerts import find_alerts
from anomaly_times.backtest.incidents import ECHO, Labelled, judge
from anomaly_times.backtest.replay import Job, freshest, replay
from anomaly_times.durations import format_duration
from anomaly_times.errors import MissionError, UsageError
from anomaly_times.evidence import MISSING, OUT_OF_RANGE, ratios_to_limits
from anomaly_times.mission import MOST_ALERTS, Detect, Mission
from anomaly_times.panel import Floats, Forecast, Grid, Labels, Limits, Scores, round_significant

__all__ = ["SHORTEST", "Standing", "Suggestion", "Traces", "budgets_of", "suggest"]

SHORTEST = timedelta(days=3)
"""Of windows: two days to choose on, and one to look at what was chosen."""
_FEWEST_POINTS = 3
_CHOSEN_ON = 2 / 3
_ROOM = 0.8
_MOST_FIELDS, _AT_LAST = 2, 3
"""How many fields are changed at once, and how many where nothing else keeps to the budget."""

# Each from loud to quiet.
_LEVELS = (80.0, 90.0, 95.0, 99.0, 99.9, 99.99)
_REPLAYS = 2
"""So many sensitivities on each side of the present one are replayed."""
_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_SIZES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
_WAITS = tuple(timedelta(minutes=n) for n in (0, 5, 10, 15, 20, 30, 45, 60, 120))
_TELL_A_SIDE = 2
"""So many incidents say which side matters: one may lie there by chance."""
_ONE_SIDE = 3
"""How many steps it counts to look at another side: of one alone half of what can happen is not told any more."""

Ints = npt.NDArray[np.intp]
Fields = Mapping[tuple[str, ...], Any]
Incidence = tuple[str, datetime]
"""The name and the start of an incident."""


@dataclass(frozen=True)
class Standing:
    """What a mission does in a part of the window; `delay` is the median time until somebody is told of an incident."""

    start: datetime
    end: datetime
    alerts: int
    per_week: float
    found: frozenset[Incidence] = frozenset()
    missed: frozenset[Incidence] = frozenset()
    false_alarms: int = 0
    delay: timedelta | None = None


@dataclass(frozen=True, eq=False)
class Suggestion:
    """What to change in a mission: `fields` by their path, none where nothing needs to or can be.

    `before` and `after` are what the mission does as it is and with these fields, in the part of the window that they
    were chosen on and in the rest. `met` says whether `most` alerts a week are kept to in the first of them, and every
    incident found there that has to be: those found before, and those that `backtest.must_detect` names. Where that is
    not so, `fields` come nearest to it. `tried` counts settings.
    """

    mission: Mission
    most: float
    fields: Fields
    before: tuple[Standing, Standing]
    after: tuple[Standing, Standing]
    met: bool
    tried: int
    notes: tuple[str, ...] = ()

    @property
    def failure(self) -> str:
        """What the nearest setting does not keep to; empty where all is met."""
        if self.met:
            return ""
        chosen = self.after[0]
        lost = sorted(name for name, _ in _wanted(self.mission, self.before[0]) - chosen.found)
        parts = [f"{', '.join(lost)} not found"] if lost else []
        if chosen.per_week > self.most:
            parts.append(f"{chosen.per_week:.2f} alerts a week, and {self.most:g} are allowed")
        return (
            f"{self.mission.name}: none of {self.tried:,} settings keeps to the budget and finds what must be found; "
            f"the nearest: {'; '.join(parts)}"
        )


class Traces:
    """Told of replays while they run (`on_forecast`, `on_scores`), it keeps what other gates would have to judge.

    These are the points whose evidence is over a limit, whatever the gates say: a few in a hundred.
    """

    def __init__(self) -> None:
        self._serving: dict[int, list[Forecast]] = defaultdict(list)
        self._points: dict[int, list[_Points]] = defaultdict(list)

    def on_forecast(self, mission: Mission, made: Forecast) -> None:
        """A forecast of this very mission, in order of time."""
        self._serving[id(mission)].append(made)

    def on_scores(self, mission: Mission, scores: Scores) -> None:
        """The scores of a stretch likewise, with all that is kept beside them."""
        grid = scores.grid
        pending = self._serving[id(mission)]
        serving = [each for each in pending if each.grid.start <= grid.end and each.grid.end >= grid.start]
        self._serving[id(mission)] = [each for each in pending if each.grid.end > grid.end]
        if serving and scores.evidence is not None:
            limits = _limits(scores.labels, freshest(serving, grid)) if mission.watches_over_time else None
            self._points[id(mission)].append(_Points.over(scores, limits, above=mission.alert.above))

    def of(self, mission: Mission) -> Sequence[_Points]:
        """What was kept of a mission that was replayed."""
        return self._points.get(id(mission), ())


@dataclass(frozen=True, eq=False)
class _Points:
    """N points of a stretch: rows of `labels`, times since `start`, and what a score is made of (S = N, T = 1)."""

    labels: tuple[Labels, ...]
    start: datetime
    rows: Ints
    columns: Ints
    y: Floats
    forecast: tuple[Floats, Floats, Floats]
    found: Floats
    limits: Limits

    @classmethod
    def over(cls, scores: Scores, limits: Limits | None, *, above: float) -> _Points:
        """Those of `scores` that may score over `above` under some gates."""
        if scores.evidence is None:
            raise ValueError("these scores came without the evidence for them")
        y, yhat, lower, upper = scores.y, scores.yhat, scores.lower, scores.upper
        with np.errstate(all="ignore"):
            error = y - yhat
            point = np.abs(error / np.where(error >= 0, upper - yhat, yhat - lower))
        # A value that cannot be is judged by no gate, and is no evidence: what there is beside it says so.
        judged = ~np.isin(scores.reason, _UNGATED) if scores.reason is not None else np.ones(y.shape, dtype=np.bool_)
        found = np.concatenate([round_significant(np.where(judged, point, np.nan))[None], scores.evidence])
        limits = limits or scoring.POINTS_ALONE
        rows, columns = np.nonzero((ratios_to_limits(found, limits) > above).any(axis=0) & judged)

        def at(values: Floats) -> Floats:
            """Of these points, from what is by series and time, or is the same for all."""
            shape = (*values.shape[:-2], *y.shape)
            return np.asarray(np.broadcast_to(values, shape)[..., rows, columns][..., None])

        return cls(
            scores.labels,
            scores.grid.start,
            rows,
            columns,
            at(y),
            (at(yhat), at(lower), at(upper)),
            at(found),
            Limits(at(limits.usual), at(limits.limit), at(limits.move)),
        )


_UNGATED = (OUT_OF_RANGE, MISSING)


def _limits(labels: Sequence[Labels], forecast: Forecast) -> Limits | None:
    """The limits in force at each point of these series: float64[…, S, T], NaN where a series has none."""
    limits = forecast.limits
    if limits is None or tuple(labels) == forecast.labels:
        return limits
    position = {row: i for i, row in enumerate(forecast.labels)}
    there = np.array([row in position for row in labels])
    rows = np.array([position.get(row, 0) for row in labels], dtype=np.intp)
    picked = limits.rows(rows)
    return Limits(*(np.where(there[:, None], each, np.nan) for each in (picked.usual, picked.limit, picked.move)))


@dataclass(frozen=True, eq=False)
class _Replay:
    """What a mission did at one sensitivity, ready for other gates; `scores` are of the series that were ever over."""

    mission: Mission
    labels: tuple[Labels, ...]
    scores: Scores
    points: Sequence[tuple[_Points, Ints, Ints]]
    """With the rows and columns of `scores` where they belong."""

    @classmethod
    def of(cls, mission: Mission, scores: Scores, traces: Traces) -> _Replay:
        kept = traces.of(mission)
        with np.errstate(invalid="ignore"):
            over = np.asarray((scores.score > mission.alert.above).any(axis=1))
        position = {row: i for i, row in enumerate(scores.labels)}
        for part in kept:
            over[[position[part.labels[i]] for i in np.unique(part.rows).tolist()]] = True
        rows = np.flatnonzero(over)
        place = {scores.labels[row]: i for i, row in enumerate(rows.tolist())}
        arrays = {
            name: array[rows]
            for name in ("y", "yhat", "lower", "upper", "score", "reason")
            if (array := getattr(scores, name)) is not None
        }
        part_of = Scores(tuple(place), scores.grid, **arrays)
        points = []
        for part in kept:
            own = np.array([place.get(row, -1) for row in part.labels], dtype=np.intp)
            points.append((part, own[part.rows], part.columns + scores.grid.index(part.start)))
        return cls(mission, scores.labels, part_of, points)

    def under(self, detect: Detect) -> Scores:
        """The scores under other gates; what is no more than `alert.above` under any stays as it was."""
        score = self.scores.score.copy()
        reason = self.scores.reason.copy() if self.scores.reason is not None else None
        for part, rows, columns in self.points:
            found, of, _ = scoring.gated(part.y, part.forecast, part.found, part.limits, detect)
            score[rows, columns] = round_significant(found[:, 0])
            if reason is not None:
                reason[rows, columns] = of[:, 0]
        return replace(self.scores, score=score, reason=reason)

    def sizes(self, stop: int) -> Floats:
        """How far the points before column `stop` were from their forecasts: float64[N]."""
        found = [np.abs(part.y - part.forecast[0])[columns < stop, 0] for part, _, columns in self.points]
        sizes = np.concatenate(found) if found else np.empty(0)
        return sizes[np.isfinite(sizes)]

    def standing(self, mission: Mission, scores: Scores, part: slice, incidents: Sequence[Labelled]) -> Standing:
        """What the alerts of `mission` on a part of these scores are worth."""
        scores = scores.columns(part)
        alerts = find_alerts(mission, scores)
        verdict = judge(mission.name, incidents, alerts.found, self.labels, scores.grid)
        return Standing(
            scores.grid.start,
            scores.grid.end,
            len(alerts.found),
            alerts.per_week,
            frozenset((each.name, each.start) for each in verdict.outcomes if each.found),
            frozenset((each.name, each.start) for each in verdict.outcomes if not each.found),
            len(verdict.false_alarms) if verdict.outcomes else 0,
            verdict.delay,
        )


@dataclass(frozen=True)
class _Ladder:
    """What a field may be, from loud to quiet; `present` is the place of what it is, which needs no change."""

    rungs: tuple[Fields, ...]
    present: int
    apart: int = 0
    """Where there is no order: how many steps each rung is away from the present one."""

    def cost(self, place: int) -> int:
        """How large a change it is: one for the field, and so many steps."""
        return 0 if place == self.present else 1 + (self.apart or abs(place - self.present))

    def further(self, place: int) -> int | None:
        """The rung beyond `place`, seen from the present one."""
        if place == self.present or self.apart:
            return None
        beyond = place + (1 if place > self.present else -1)
        return beyond if 0 <= beyond < len(self.rungs) else None


def suggest(
    prepared: Prepared,
    trials: Sequence[Trial],
    traces: Traces,
    *,
    max_alerts_per_week: float | None = None,
    workers: int | None = None,
) -> tuple[Suggestion, ...]:
    """What to change in each mission that was replayed; those that failed have no suggestion.

    Where a mission keeps to the budget and misses nothing, that is nothing, and no forecast is made. Otherwise up to
    four other sensitivities are replayed.

    Args:
        prepared: what was run.
        trials: of the missions as they are.
        traces: what `run` told of them.
        max_alerts_per_week: for every mission; that of its `backtest:` by default.
        workers: processes, as for `run`.

    Raises:
        UsageError: as `budgets_of`.
        MissionError: the `match` of an incident is no selector.
    """
    budgets = budgets_of(prepared, max_alerts_per_week)
    jobs = {id(job.mission): job for _, job in prepared.jobs if isinstance(job, Job)}
    searches = [
        _Search(
            jobs[id(trial.mission)],
            _Replay.of(trial.mission, trial.scores, traces),
            budgets[trial.mission.name],
            prepared.incidents,
        )
        for trial in trials
        if trial.scores is not None
    ]
    others = [(search, place, job) for search in searches for place, job in search.sensitivities()]
    replayed = replay(
        [job for _, _, job in others], workers=workers, on_forecast=traces.on_forecast, on_scores=traces.on_scores
    )
    for (search, place, job), done in zip(others, replayed, strict=True):
        if done.scores is not None:
            search.replays[place] = _Replay.of(job.mission, done.scores, traces)
    return tuple(search.suggestion() for search in searches)


def budgets_of(prepared: Prepared, max_alerts_per_week: float | None = None) -> dict[str, float]:
    """By mission, how many alerts a week are allowed: so many, or what its `backtest:` says.

    Raises:
        UsageError: a mission has no budget, or the window is shorter than `SHORTEST`, or than three steps.
    """
    budgets = {}
    for mission, grid in ((job.mission, job.grid) for variant, job in prepared.jobs if variant is AS_IT_IS):
        most = max_alerts_per_week if max_alerts_per_week is not None else mission.backtest.max_alerts_per_week
        if most is None:
            raise UsageError(
                f"--suggest needs a budget, and mission {mission.name} has none",
                hint="give --max-alerts-per-week 1, or write `backtest: {max_alerts_per_week: 1}` into the mission",
            )
        shortest = max(SHORTEST, _FEWEST_POINTS * grid.step)
        if grid.n * grid.step < shortest:
            raise UsageError(
                f"--suggest needs a window of {format_duration(shortest)} at least, and this one is "
                f"{format_duration(grid.n * grid.step)}",
                hint="it chooses on the first two thirds, and tells what came of it in the rest",
            )
        budgets[mission.name] = most
    return budgets


class _Search:
    """The settings of one mission: a place on each ladder, and what they do where they are chosen."""

    def __init__(self, job: Job, present: _Replay, most: float, incidents: Sequence[Labelled]) -> None:
        self.job, self.most = job, most
        self.incidents = [each for each in incidents if each.mission in ("", job.mission.name)]
        self.border = _border(job.grid, self.incidents, present.labels)
        self.before = self._standings(present, job.mission)
        mission, first = job.mission, self.before[0]
        self.wanted = _wanted(mission, first)
        louder = bool(first.missed)
        quieter = louder or first.per_week > most
        self.ladders = (
            _sensitivities(mission, louder=louder, quieter=quieter),
            _directions(mission, louder=louder, quieter=quieter and len(first.found) >= _TELL_A_SIDE),
            _shares(mission, louder=louder, quieter=quieter),
            _sizes(mission, present.sizes(self.border), louder=louder, quieter=quieter),
            _waits(mission, louder=louder, quieter=quieter),
        )
        self.replays = {self.ladders[0].present: present}
        self.done: dict[tuple[int, ...], Standing] = {self.present: first}

    @property
    def present(self) -> tuple[int, ...]:
        """The setting that the mission has."""
        return tuple(ladder.present for ladder in self.ladders)

    def sensitivities(self) -> Iterator[tuple[int, Job]]:
        """The places of the first ladder that are to be replayed."""
        ladder = self.ladders[0]
        for place, fields in enumerate(ladder.rungs):
            if place != ladder.present:
                yield place, replace(self.job, mission=Variant("", fields).of(self.job.mission))

    def suggestion(self) -> Suggestion:
        """The best setting, and what it does; the nearest where none is good enough."""
        best = self.present
        if any(len(ladder.rungs) > 1 for ladder in self.ladders):
            for most_fields in (_MOST_FIELDS, _AT_LAST):
                self._try(most_fields)
                if any(map(self._good, self.done)):
                    break
            best = self._best()
        fields = self._fields(best)
        mission = Variant("", fields).of(self.job.mission)
        after = self._standings(self.replays[best[0]], mission)
        return Suggestion(
            self.job.mission,
            self.most,
            fields,
            self.before,
            after,
            self._good(best),
            len(self.done),
            tuple(self._notes(after)),
        )

    def _standings(self, replayed: _Replay, mission: Mission) -> tuple[Standing, Standing]:
        scores = replayed.under(mission.detect)
        first, second = (
            replayed.standing(mission, scores, part, self.incidents)
            for part in (slice(0, self.border), slice(self.border, None))
        )
        return first, second

    def _try(self, most_fields: int) -> None:
        """Judge every setting that changes so many fields at most."""
        part = slice(0, self.border)
        _, *gates, waits = self.ladders
        for place, replayed in self.replays.items():
            for setting in product(*(range(len(ladder.rungs)) for ladder in gates)):
                scores: Scores | None = None
                shares, sizes = setting[1:3]
                if shares != gates[1].present and sizes != gates[2].present:
                    continue  # Two ways to say the same.
                for wait in range(len(waits.rungs)):
                    places = (place, *setting, wait)
                    changed = sum(a != b for a, b in zip(places, self.present, strict=True))
                    if changed > most_fields or places in self.done:
                        continue
                    try:
                        mission = Variant("", self._fields(places)).of(self.job.mission)
                    except MissionError:
                        continue
                    scores = replayed.under(mission.detect) if scores is None else scores
                    self.done[places] = replayed.standing(mission, scores, part, self.incidents)

    def _fields(self, places: Sequence[int]) -> Fields:
        chosen = zip(self.ladders, places, strict=True)
        return {
            path: value
            for ladder, place in chosen
            if place != ladder.present
            for path, value in ladder.rungs[place].items()
        }

    def _keeps(self, places: tuple[int, ...]) -> bool:
        return self.wanted <= self.done[places].found

    def _good(self, places: tuple[int, ...]) -> bool:
        return self._keeps(places) and self.done[places].per_week <= self.most

    def _cost(self, places: tuple[int, ...]) -> int:
        return sum(ladder.cost(place) for ladder, place in zip(self.ladders, places, strict=True))

    def _best(self) -> tuple[int, ...]:
        good = [places for places in self.done if self._good(places)]
        if not good:
            return self._nearest()
        most = max(self._told(places) for places in good)
        good = [places for places in good if self._told(places) == most]
        least = min(map(self._cost, good))

        def worth(places: tuple[int, ...]) -> tuple[Any, ...]:
            standing = self.done[places]
            return not self._room(places), self._cost(places), standing.alerts, standing.delay or timedelta(0), places

        return min((places for places in good if self._cost(places) <= least + 1), key=worth)

    def _told(self, places: tuple[int, ...]) -> tuple[int, bool]:
        """How many incidents are found, and whether it tells of anything where the mission tells of something now."""
        standing = self.done[places]
        return len(standing.found), bool(standing.alerts or not self.before[0].alerts)

    def _nearest(self) -> tuple[int, ...]:
        """Of those that lose least of what must be found the quietest, by the smallest change."""

        def distance(places: tuple[int, ...]) -> tuple[Any, ...]:
            standing = self.done[places]
            return len(self.wanted - standing.found), standing.alerts, self._cost(places), places

        return min(self.done, key=distance)

    def _room(self, places: tuple[int, ...]) -> bool:
        """Whether a fifth of the budget is left, and a step further on finds as much."""
        standing = self.done[places]
        if standing.per_week > _ROOM * self.most:
            return False
        for i, ladder in enumerate(self.ladders):
            beyond = ladder.further(places[i])
            further = self.done.get((*places[:i], beyond, *places[i + 1 :])) if beyond is not None else None
            if further is not None and len(further.found) < len(standing.found):
                return False
        return True

    def _notes(self, after: tuple[Standing, Standing]) -> Iterator[str]:
        chosen, held_out = after
        weeks = self.border * self.job.grid.step / timedelta(weeks=1)
        if not chosen.found | chosen.missed:
            yield "no labelled incident lies where the setting was chosen: only how many alerts there are decided"
        if self.most * weeks < 1:
            yield f"it was chosen on {weeks:.2g} weeks, in which {self.most:g} a week allows no alert at all"
        if held_out.per_week > self.most:
            yield f"in the rest of the window there are {held_out.per_week:.2f} alerts a week, which is over the budget"
        lost = self.before[1].found - held_out.found
        if lost:
            yield f"in the rest of the window it no longer finds {', '.join(sorted({name for name, _ in lost}))}"


def _border(grid: Grid, incidents: Sequence[Labelled], labels: Sequence[Labels]) -> int:
    """The column from which on settings are not chosen: the nearest to two thirds that no incident lies across."""
    times = np.arange(1, grid.n)
    free = np.ones(len(times), dtype=np.bool_)
    for each in incidents:
        if each.concerns(labels):
            free &= (times <= grid.index(each.incident.start)) | (times > grid.index(each.incident.end + ECHO))
    wanted = _CHOSEN_ON * grid.n
    free &= (times >= grid.n / 3) & (times <= grid.n * 5 / 6)
    columns = times[free]
    return int(columns[np.abs(columns - wanted).argmin()]) if columns.size else round(wanted)


def _wanted(mission: Mission, before: Standing) -> frozenset[Incidence]:
    """What must be found: what is found now, and what `backtest.must_detect` names."""
    return before.found | {each for each in before.missed if each[0] in mission.backtest.must_detect}


def _sensitivities(mission: Mission, *, louder: bool, quieter: bool) -> _Ladder:
    level = mission.forecast.level
    if level is not None:
        values: tuple[float, ...] = _LEVELS
        present, path = level, ("forecast", "level")
        before = [v for v in values if v < present]
        after = [v for v in values if v > present]
    else:
        present, path = mission.detect.alerts_per_week, ("detect", "alerts_per_week")
        values = tuple(v for n in range(3, -7, -1) for v in (float(f"{m}e{n}") for m in (5, 2, 1)) if v <= MOST_ALERTS)
        before = [v for v in values if v > present]
        # As every forecast is made anew for each, they lie far apart.
        after = [v for v in values if v < present][::2]
    return _ladder(path, before[-_REPLAYS:] if louder else (), after[:_REPLAYS] if quieter else ())


def _directions(mission: Mission, *, louder: bool, quieter: bool) -> _Ladder:
    path = ("detect", "direction")
    if mission.detect.direction != "both":
        return _ladder(path, ["both"] if louder else (), (), apart=_ONE_SIDE)
    return _ladder(path, (), ["above", "below"] if quieter else (), apart=_ONE_SIDE)


def _shares(mission: Mission, *, louder: bool, quieter: bool) -> _Ladder:
    present = max(mission.detect.min_relative_deviation)
    before = [f"{100 * v:g}%" for v in _SHARES if v < present] if louder else ()
    after = [f"{100 * v:g}%" for v in _SHARES if v > present] if quieter else ()
    return _ladder(("detect", "min_relative_deviation"), before, after)


def _sizes(mission: Mission, sizes: Floats, *, louder: bool, quieter: bool) -> _Ladder:
    """Round deviations, between those (float64[N]) that were over a limit."""
    present = max(mission.detect.min_deviation)
    told = np.quantile(sizes, _SIZES).tolist() if sizes.size else []
    rounded = sorted({_rounded_up(each) for each in told if each > 0})
    after = [v for v in rounded if v > present] if quieter else ()
    return _ladder(("detect", "min_deviation"), [0.0] if louder and present else (), after)


def _waits(mission: Mission, *, louder: bool, quieter: bool) -> _Ladder:
    # What is shorter than a step is no wait at all.
    waits = [wait for wait in _WAITS if not wait or wait >= mission.step]
    present = mission.alert.for_
    if mission.alert.points:
        return _ladder(("alert", "for"), (), ())
    before = [format_duration(v) for v in waits if v < present] if louder and present >= mission.step else ()
    after = [format_duration(v) for v in waits if v > present] if quieter else ()
    return _ladder(("alert", "for"), before, after)


def _ladder(path: tuple[str, ...], before: Sequence[Any], after: Sequence[Any], *, apart: int = 0) -> _Ladder:
    """The present value, which changes nothing, between louder and quieter ones."""
    rungs: list[Fields] = [*({path: value} for value in before), {}, *({path: value} for value in after)]
    return _Ladder(tuple(rungs), len(before), apart)


def _rounded_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 5 and 7 at some power of ten."""
    power = math.floor(math.log10(value))
    return next(
        each for each in (float(f"{m}e{power}") for m in (1, 1.5, 2, 3, 5, 7, 10)) if each >= value * (1 - 1e-9)
    )
